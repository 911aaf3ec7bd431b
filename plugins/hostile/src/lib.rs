//! A proxy plugin that does what its settings say a plugin must not do, so that jiji's tests can watch it be stopped.
//!
//! The settings are one word, as a JSON string or as deploy.yml can say it (`{"do":"loop"}`): `loop`, `memory`, `panic`, `outside`,
//! `undo-outside`, `want-outside`, `rounds`, `same`, `colours`, `flood`, `more`, `settings`, `fewer`, `secret`. Anything else: it behaves.

/// The contract's types. Generated: see `wit/next`.
#[expect(clippy::all, reason = "generated from the WIT, which has the documentation")]
mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/next/plan", "../../wit/next/proxy"],
        world: "jiji:proxy/plugin",
        generate_all,
    });
}

use bindings::exports::jiji::plan::meta;
use bindings::exports::jiji::proxy::proxy::{self, Turns};
use bindings::jiji::plan::types::{
    Action, ContainerExec, Context, Description, ExecGrant, Fact, Fault, Grant, Needs, Other, Phase, Query, Step, Turn,
    Want, Word,
};

struct Hostile;

impl meta::Guest for Hostile {
    fn describe() -> Description {
        Description {
            name: "hostile".to_owned(),
            version: "6.6.6".to_owned(),
            summary: "\u{1b}[31mlooks\u{7} harmless".to_owned(),
            schema: "{}".to_owned(),
            needs: needs(false),
        }
    }

    fn check_settings(settings: String) -> Result<Needs, Vec<Fault>> {
        match what(&settings) {
            "settings" => Err(vec![fault("bad \u{1b}[2Jsetting")]),
            what => Ok(needs(what == "more")),
        }
    }
}

impl proxy::Guest for Hostile {
    fn boot(context: Context, facts: Vec<Fact>) -> Result<Turn, Fault> {
        match what(&context.settings) {
            "loop" => {
                let mut x = 1_u64;
                while x != 0 {
                    x = core::hint::black_box(x.wrapping_mul(3));
                }
                Ok(Turn::Done(Vec::new()))
            }
            "memory" => {
                let mut all: Vec<Vec<u8>> = Vec::new();
                loop {
                    all.push(core::hint::black_box(vec![1; 1 << 20]));
                }
            }
            "panic" => panic!("on purpose"),
            "outside" => Ok(Turn::Done(vec![step("reach out", exec(&["sh", "-c", "id"]), None)])),
            "undo-outside" => Ok(Turn::Done(vec![step("take", exec(&["tool", "take"]), Some(exec(&["sh"])))])),
            "want-outside" => Ok(Turn::Observe(vec![want("secrets", Query::File(file("/etc/shadow")))])),
            "rounds" => Ok(Turn::Observe(vec![want(
                &format!("want-{}", facts.len()),
                Query::Container(format!("c{}", facts.len())),
            )])),
            "same" => Ok(Turn::Observe(vec![want("same", Query::Host)])),
            "colours" => Err(fault("\u{1b}[31mred\u{1b}[0m\nline")),
            "flood" => {
                let text = "x".repeat(1 << 20);
                Ok(Turn::Done((0..200).map(|n| step(&format!("{n}"), Action::Note(text.clone()), None)).collect()))
            }
            "more" => Ok(Turn::Done(vec![step(
                "something new",
                Action::Other(Other { kind: "reboot".to_owned(), content: "{}".to_owned() }),
                None,
            )])),
            _ => Ok(Turn::Done(vec![step("take", exec(&["tool", "take"]), None)])),
        }
    }

    fn route(input: proxy::RouteInput, _: Vec<Fact>) -> Result<Turns, Fault> {
        Ok(Turns::Done(match what(&input.context.settings) {
            "fewer" => Vec::new(),
            "secret" => {
                // What the first route names is not the second's to use.
                let secret = input.routes.iter().find_map(|route| route.options.certificate.as_ref());
                let words = secret.map(|certificate| Word::Secret(certificate.key.clone()));
                let mut steps = vec![Vec::new(); input.routes.len()];
                if let (Some(steps), Some(word)) = (steps.last_mut(), words) {
                    let argv = vec![Word::Lit("tool".to_owned()), word];
                    let exec = ContainerExec { container: "tool".to_owned(), argv, tolerate: Vec::new() };
                    steps.push(step("use a secret", Action::ContainerExec(exec), None));
                }
                steps
            }
            _ => vec![Vec::new(); input.routes.len()],
        }))
    }

    fn upgrade(_: Context, _: Vec<Fact>) -> Result<Turn, Fault> {
        Ok(Turn::Done(Vec::new()))
    }

    fn unroute(input: proxy::UnrouteInput, _: Vec<Fact>) -> Result<Turns, Fault> {
        Ok(Turns::Done(vec![Vec::new(); input.services.len()]))
    }
}

bindings::export!(Hostile with_types_in bindings);

/// The word in the settings.
fn what(settings: &str) -> &str {
    settings.trim_start_matches(r#"{"do":"#).trim_end_matches('}').trim_matches('"')
}

fn needs(more: bool) -> Needs {
    let mut grants = vec![
        Grant::Container("tool".to_owned()),
        Grant::Exec(ExecGrant { container: "tool".to_owned(), argv: vec!["tool".to_owned()] }),
    ];
    if more {
        grants.push(Grant::Run(vec!["rm".to_owned()]));
    }
    Needs { grants, images: Vec::new() }
}

fn fault(message: &str) -> Fault {
    Fault { code: "no".to_owned(), message: message.to_owned(), hint: None, path: None }
}

fn want(id: &str, query: Query) -> Want {
    Want { id: id.to_owned(), query }
}

fn file(path: &str) -> bindings::jiji::plan::types::FileQuery {
    bindings::jiji::plan::types::FileQuery { path: path.to_owned(), limit: 1 }
}

fn exec(argv: &[&str]) -> Action {
    Action::ContainerExec(ContainerExec {
        container: "tool".to_owned(),
        argv: argv.iter().map(|text| Word::Lit((*text).to_owned())).collect(),
        tolerate: Vec::new(),
    })
}

fn step(title: &str, action: Action, undo: Option<Action>) -> Step {
    Step {
        phase: Phase::Boot,
        title: title.to_owned(),
        action,
        after: Vec::new(),
        timeout_ms: 1_000,
        repeatable: true,
        quiet_ms: 0,
        undo,
        evidence: Vec::new(),
        labels: Vec::new(),
    }
}
