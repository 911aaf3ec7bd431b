//! The default health plugin: probes by HTTP, TCP or a command, and what their failures mean.
//!
//! Pure like every plugin. It never waits: it says which loop the host shall run ([`probes`]) and explains what the loop left
//! ([`judge`], [`ended`]). Its words are what a person reads when a ship was reverted, so each common mistake has a sentence and a hint of its own.
//!
//! The crate is also a plain library: the same functions behind the same trait run in native tests, without WebAssembly.

mod ended;
mod judge;
mod probes;

/// The contract's types. Generated: see `wit/next`.
#[expect(clippy::all, reason = "generated from the WIT, which has the documentation")]
pub mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/next/plan", "../../wit/next/health"],
        world: "jiji:health/plugin",
        generate_all,
        pub_export_macro: true,
        additional_derives: [PartialEq],
    });
}

use bindings::exports::jiji::health::health;
use bindings::exports::jiji::plan::meta;
use bindings::jiji::plan::types::{Description, Fault, Needs, ProbeSpec};

/// The plugin.
pub struct Plugin;

impl meta::Guest for Plugin {
    fn describe() -> Description {
        Description {
            name: "health-probe".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "tells a container's health by HTTP, TCP or a command, and explains what failed".to_owned(),
            schema: probes::SCHEMA.to_owned(),
            needs: nothing(),
        }
    }

    fn check_settings(settings: String) -> Result<Needs, Vec<Fault>> {
        probes::Settings::read(&settings).map(|_| nothing())
    }
}

impl health::Guest for Plugin {
    fn probes(input: health::ProbesInput) -> Result<Vec<Option<ProbeSpec>>, Fault> {
        let settings = probes::Settings::read(&input.settings).map_err(|mut faults| faults.remove(0))?;
        Ok(input.subjects.iter().map(|subject| probes::specification(subject, &settings)).collect())
    }

    fn judge(input: health::JudgeInput) -> Result<health::Verdict, Fault> {
        Ok(judge::verdict(&input))
    }
}

#[cfg(target_arch = "wasm32")]
bindings::export!(Plugin with_types_in bindings);

/// It changes nothing and looks at nothing by itself.
fn nothing() -> Needs {
    Needs { grants: Vec::new(), images: Vec::new() }
}

#[cfg(test)]
mod tests;
