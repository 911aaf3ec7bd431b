//! The default proxy plugin: one kamal-proxy v0.9.2 in a container per host, shared by all projects on it.
//!
//! Pure like every plugin: it reads facts and answers with steps. The proxy is driven by its own command line inside the container,
//! because its control protocol is private. What each command sends is in [`route`], how certificates get to it in [`certificate`], what the proxy says about itself in [`live`] and
//! [`state`]. Where a comment names a file, it is one of kamal-proxy's source at v0.9.2.
//!
//! The crate is also a plain library: the same functions behind the same trait run in native tests, without WebAssembly.

mod boot;
mod certificate;
mod live;
mod route;
mod settings;
mod state;
mod upgrade;

/// The contract's types. Generated: see `wit/next`.
#[expect(clippy::all, reason = "generated from the WIT, which has the documentation")]
pub mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/next/plan", "../../wit/next/proxy"],
        world: "jiji:proxy/plugin",
        generate_all,
        pub_export_macro: true,
        additional_derives: [PartialEq],
    });
}

use bindings::exports::jiji::plan::meta;
use bindings::exports::jiji::proxy::proxy::{self, Turns};
use bindings::jiji::plan::types::{
    Answer, Context, Description, ExecGrant, Fact, Fault, Grant, ImageRef, Needs, Query, Turn, Want,
};

use settings::Settings;
use upgrade::{BRIDGE, BRIDGE_PORTS};

/// The container's name, one per host.
const CONTAINER: &str = "kamal-proxy";
/// The image, as `needs` calls it.
const IMAGE: &str = "kamal-proxy";
/// The image that upstream publishes for the version that this plugin was written against.
const DEFAULT_IMAGE: &str = "docker.io/basecamp/kamal-proxy:v0.9.2";
/// The program in the container.
const PROGRAM: &str = "kamal-proxy";
/// Where the proxy keeps its state in the container: `$HOME/.config/kamal-proxy` (internal/server/config.go).
const STATE_IN_CONTAINER: &str = "/home/kamal-proxy/.config/kamal-proxy";
/// The state's file name (internal/server/config.go).
const STATE_FILE: &str = "kamal-proxy.state";

/// The plugin.
pub struct Plugin;

impl meta::Guest for Plugin {
    fn describe() -> Description {
        Description {
            name: "proxy-kamal".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "routes requests through kamal-proxy, in a container of its own on every host".to_owned(),
            schema: settings::SCHEMA.to_owned(),
            needs: needs(&Settings::default()),
        }
    }

    fn check_settings(settings: String) -> Result<Needs, Vec<Fault>> {
        Settings::read(&settings).map(|settings| needs(&settings))
    }
}

impl proxy::Guest for Plugin {
    fn boot(input: Context, facts: Vec<Fact>) -> Result<Turn, Fault> {
        boot::boot(&input, &Facts(&facts))
    }

    fn route(input: proxy::RouteInput, facts: Vec<Fact>) -> Result<Turns, Fault> {
        route::route(&input, &Facts(&facts))
    }

    fn upgrade(input: Context, facts: Vec<Fact>) -> Result<Turn, Fault> {
        upgrade::upgrade(&input, &Facts(&facts))
    }

    fn unroute(input: proxy::UnrouteInput, facts: Vec<Fact>) -> Result<Turns, Fault> {
        route::unroute(&input, &Facts(&facts))
    }
}

#[cfg(target_arch = "wasm32")]
bindings::export!(Plugin with_types_in bindings);

fn needs(settings: &Settings) -> Needs {
    let exec_in = |container: &str, command: &str| {
        Grant::Exec(ExecGrant { container: container.to_owned(), argv: vec![PROGRAM.to_owned(), command.to_owned()] })
    };
    let exec = |command: &str| exec_in(CONTAINER, command);
    Needs {
        grants: vec![
            Grant::Container(CONTAINER.to_owned()),
            Grant::Container(BRIDGE.to_owned()),
            exec_in(BRIDGE, "list"),
            Grant::Port(BRIDGE_PORTS.0),
            Grant::Port(BRIDGE_PORTS.1),
            Grant::Run(["nft", "-f", "-"].map(str::to_owned).to_vec()),
            exec("list"),
            exec("deploy"),
            exec("remove"),
            Grant::Image(settings::repository(&settings.image).to_owned()),
            Grant::Port(settings.http_port),
            Grant::Port(settings.https_port),
            Grant::Path("/var/lib/jiji/plugins/proxy-kamal".to_owned()),
        ],
        images: vec![ImageRef { name: IMAGE.to_owned(), reference: settings.image.clone() }],
    }
}

/// Settings that `check-settings` has let pass; read again because nothing is kept between two calls.
fn settings_of(context: &Context) -> Result<Settings, Fault> {
    Settings::read(&context.settings).map_err(|mut faults| faults.remove(0))
}

fn fault(code: &str, message: String, hint: &str) -> Fault {
    Fault { code: code.to_owned(), message, hint: Some(hint.to_owned()), path: None }
}

/// Says something to those who look for the reason of an answer.
#[cfg_attr(not(target_arch = "wasm32"), expect(unused_variables, reason = "nobody listens in native tests"))]
fn say(message: &str) {
    #[cfg(target_arch = "wasm32")]
    bindings::jiji::plan::log::emit(bindings::jiji::plan::log::Level::Warn, message);
}

/// The facts of a call.
struct Facts<'a>(&'a [Fact]);

impl<'a> Facts<'a> {
    fn get(&self, id: &str) -> Option<&'a Answer> {
        self.0.iter().find(|fact| fact.id == id).map(|fact| &fact.answer)
    }
}

/// `kamal-proxy list`: which targets are live (the truth), and whether the proxy answers at all.
const WANT_LIST: &str = "list";
/// The state file: with which options.
const WANT_STATE: &str = "state";
/// The container.
const WANT_CONTAINER: &str = "container";

fn want_list() -> Want {
    Want {
        id: WANT_LIST.to_owned(),
        query: Query::Exec(bindings::jiji::plan::types::ExecQuery {
            container: CONTAINER.to_owned(),
            argv: vec![PROGRAM.to_owned(), "list".to_owned()],
            timeout_ms: 5_000,
        }),
    }
}

fn want_state(context: &Context) -> Want {
    Want {
        id: WANT_STATE.to_owned(),
        query: Query::File(bindings::jiji::plan::types::FileQuery {
            path: format!("{}/{STATE_FILE}", context.state_dir),
            limit: 256 * 1024,
        }),
    }
}

fn want_container() -> Want {
    Want { id: WANT_CONTAINER.to_owned(), query: Query::Container(CONTAINER.to_owned()) }
}

#[cfg(test)]
mod tests;
