//! The default mesh plugin: one WireGuard interface `jiji0` on every server, a full mesh.
//!
//! Pure like every plugin: it reads what servers say and answers with what each of them should be. Who knows whom, and under which addresses,
//! is decided in [`join`]; keys are made by the servers themselves and private ones never get here. What makes a server's interface so, and
//! what a packet meets on its way, is `jiji-host`'s.
//!
//! The crate is also a plain library: the same functions behind the same trait run in native tests, without WebAssembly.

mod join;
mod management;
mod settings;

/// The contract's types. Generated: see `wit/next`.
#[expect(clippy::all, reason = "generated from the WIT, which has the documentation")]
pub mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/next/plan", "../../wit/next/mesh"],
        world: "jiji:mesh/plugin",
        generate_all,
        pub_export_macro: true,
        additional_derives: [PartialEq],
    });
}

use bindings::exports::jiji::mesh::mesh::{self, Input, Known, Turn};
use bindings::exports::jiji::plan::meta;
use bindings::jiji::plan::types::{Description, Fault, Grant, Needs, Other};

use settings::Settings;

/// The interface's name on every server.
const INTERFACE: &str = "jiji0";

/// Where keys and specifications lie on servers.
const STATE_DIR: &str = "/var/lib/jiji/network";

/// The plugin.
pub struct Plugin;

impl meta::Guest for Plugin {
    fn describe() -> Description {
        Description {
            name: "mesh-wireguard".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "connects servers and their containers by WireGuard, each with each".to_owned(),
            schema: settings::SCHEMA.to_owned(),
            needs: needs(&Settings::default()),
        }
    }

    fn check_settings(settings: String) -> Result<Needs, Vec<Fault>> {
        Settings::read(&settings).map(|settings| needs(&settings))
    }
}

impl mesh::Guest for Plugin {
    fn join(input: Input, known: Known) -> Result<Turn, Fault> {
        // Checked before by `check-settings`; read again because nothing is kept between two calls.
        let settings = Settings::read(&input.settings).map_err(|mut faults| faults.remove(0))?;
        join::join(&input, &known, &settings)
    }
}

#[cfg(target_arch = "wasm32")]
bindings::export!(Plugin with_types_in bindings);

fn needs(settings: &Settings) -> Needs {
    let other = |kind: &str, content: String| Grant::Other(Other { kind: kind.to_owned(), content });
    Needs {
        grants: vec![
            Grant::Path(STATE_DIR.to_owned()),
            other("interface", format!("\"{INTERFACE}\"")),
            other("udp-port", settings.port.to_string()),
        ],
        images: Vec::new(),
    }
}

fn fault(code: &str, message: String, hint: &str) -> Fault {
    Fault { code: code.to_owned(), message, hint: Some(hint.to_owned()), path: None }
}

#[cfg(test)]
mod tests;
