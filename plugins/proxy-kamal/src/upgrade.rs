//! Another proxy in the place of the one that runs, without a moment in which nobody takes connections.
//!
//! Two containers cannot publish the same port, so a second proxy bridges the gap: it runs beside the first with the same state, new
//! connections are led to it by the kernel, the first is stopped (it ends what is under way, `Stop` in internal/server/server.go),
//! its successor takes its name and ports, and new connections are led to that. Connections that are there stay where they are until
//! their proxy stops: the kernel remembers them. Seen by hand under load before it was written: docs/design/plugins.md.
//!
//! What can fail fails before requests move: the bridge runs the new image with the new settings, and must have every route. After it
//! was decided each step waits for the one before to have ended well, so the bridge serves until its successor does.

use crate::bindings::jiji::plan::types::{
    Action, Answer, Check, ContainerSpec, ContainerStop, Context, Evidence, Fault, File, FileQuery, Phase, ProbeSpec,
    Publish, Query, Run, Step, Turn, WaitProbe, Want, Word,
};
use crate::boot::{self, LABEL_SETTINGS};
use crate::settings::Settings;
use crate::{CONTAINER, Facts, PROGRAM, WANT_CONTAINER, WANT_LIST, WANT_STATE, fault, live, settings_of, state};
use crate::{want_container, want_list, want_state};

/// The container that bridges the gap.
pub const BRIDGE: &str = "kamal-proxy-bridge";
/// The ports of loopback that it publishes: Docker lets nothing through to a port of a container that is not published somewhere.
pub const BRIDGE_PORTS: (u16, u16) = (20_080, 20_443);
/// The table that leads new connections to it.
const TABLE: &str = "jiji_proxy";
/// One that is made and removed to see whether that can be done.
const TABLE_TRIED: &str = "jiji_proxy_tried";
/// A file in the plugin's directory that says that an upgrade is under way.
pub const MARK: &str = "upgrade";
/// The proxy gives requests under way 10 s (`shutdownTimeout` in internal/server/server.go).
const STOP_S: u32 = 15;
/// The container of [`BRIDGE`].
const WANT_BRIDGE: &str = "bridge";
/// The file [`MARK`].
pub const WANT_MARK: &str = "mark";

pub fn want_mark(context: &Context) -> Want {
    let path = format!("{}/{MARK}", context.state_dir);
    Want { id: WANT_MARK.to_owned(), query: Query::File(FileQuery { path, limit: 0 }) }
}

pub fn upgrade(context: &Context, facts: &Facts<'_>) -> Result<Turn, Fault> {
    let settings = settings_of(context)?;
    let wants = vec![
        want_container(),
        want_list(),
        want_state(context),
        want_mark(context),
        Want { id: WANT_BRIDGE.to_owned(), query: Query::Container(BRIDGE.to_owned()) },
    ];
    let (Some(container), Some(list), Some(kept), Some(mark), Some(bridge)) = (
        facts.get(WANT_CONTAINER),
        facts.get(WANT_LIST),
        facts.get(WANT_STATE),
        facts.get(WANT_MARK),
        facts.get(WANT_BRIDGE),
    ) else {
        return Ok(Turn::Observe(wants));
    };
    let spec = boot::specification(context, &settings)?;
    let interrupted = matches!(mark, Answer::File(_)) || matches!(bridge, Answer::Container(_));
    let Answer::Container(running) = container else {
        // Nobody serves, or the bridge alone does.
        return if interrupted { steps(context, &settings, spec, &[]) } else { boot::boot(context, facts) };
    };
    let Some(started_with) = boot::label(&running.labels, LABEL_SETTINGS) else {
        return Err(boot::not_ours());
    };
    if !interrupted && boot::same(&running.labels, &spec.labels) && running.state == "running" {
        return Ok(Turn::Done(Vec::new()));
    }
    if !interrupted {
        let Some(lives) = live::read(list) else {
            return boot::boot(context, facts);
        };
        let saved = state::read(kept);
        let lost = lives.iter().find(|live| {
            saved.get(&live.service).is_none_or(|saved| !crate::route::same_set(&saved.targets, &live.targets))
        });
        if let Some(lost) = lost {
            return Err(fault(
                "not-kept",
                format!("replace `{CONTAINER}`: its state file does not have the route of {}", lost.service),
                "ship the project of that service first, which writes the file anew",
            ));
        }
    }
    steps(context, &settings, spec, &ports(started_with))
}

/// The ports in a label such as `http_port 80, https_port 443`.
fn ports(label: &str) -> Vec<u16> {
    label.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn steps(context: &Context, settings: &Settings, spec: ContainerSpec, before: &[u16]) -> Result<Turn, Fault> {
    let address = last_address(context)?;
    let [http, https] =
        [[Some(settings.http_port), before.first().copied()], [Some(settings.https_port), before.get(1).copied()]];
    let bridge = ContainerSpec {
        name: BRIDGE.to_owned(),
        address: Some(address.clone()),
        publish: [(BRIDGE_PORTS.0, 80), (BRIDGE_PORTS.1, 443)]
            .map(|(host_port, container_port)| Publish {
                address: Some("127.0.0.1".to_owned()),
                host_port,
                container_port,
            })
            .to_vec(),
        ..spec.clone()
    };
    let mark = format!("{}/{MARK}", context.state_dir);
    let lead =
        lead(&address, &[(http.into_iter().flatten().collect(), 80), (https.into_iter().flatten().collect(), 443)]);
    let all = vec![
        // Without nft, or in a kernel without its tables, nothing is begun that could not be taken back without it. A table of another
        // name: that of an upgrade that was interrupted leads requests to the bridge.
        step(Phase::Prepare, "see that connections can be led".to_owned(), nft(&absent(TABLE_TRIED)), None),
        step(
            Phase::Prepare,
            "keep others from routing meanwhile".to_owned(),
            Action::File(File { path: mark.clone(), mode: 0o600, content: vec![Word::Lit("under way\n".to_owned())] }),
            Some(Action::Remove(mark.clone())),
        ),
        step(
            Phase::Prepare,
            format!("run {BRIDGE}"),
            Action::ContainerRun(bridge),
            Some(Action::ContainerRemove(BRIDGE.to_owned())),
        ),
        step(Phase::Prepare, format!("wait until {BRIDGE} answers"), answers(context, BRIDGE), None),
        step(Phase::Cutover, format!("lead new connections to {BRIDGE}"), nft(&lead), Some(nft(&lead_back()))),
        step(Phase::Withdraw, format!("stop {CONTAINER}"), stop(CONTAINER), None),
        step(Phase::Withdraw, format!("run {CONTAINER}"), Action::ContainerRun(spec), None),
        step(Phase::Withdraw, format!("wait until {CONTAINER} answers"), answers(context, CONTAINER), None),
        step(Phase::Drain, format!("lead new connections to {CONTAINER}"), nft(&lead_back()), None),
        step(Phase::Drain, format!("stop {BRIDGE}"), stop(BRIDGE), None),
        step(Phase::Finalize, format!("remove {BRIDGE}"), Action::ContainerRemove(BRIDGE.to_owned()), None),
        step(Phase::Finalize, "let others route again".to_owned(), Action::Remove(mark), None),
    ];
    // Each waits for the one before it: after the decision the host would try them all otherwise.
    let all = all
        .into_iter()
        .zip(0_u32..)
        .map(|(step, index)| Step { after: index.checked_sub(1).into_iter().collect(), ..step });
    Ok(Turn::Done(all.collect()))
}

/// The last address of the containers' network, the upper half of a /24: it is given to a service last.
fn last_address(context: &Context) -> Result<String, Fault> {
    match context.network.gateway.rsplit_once('.') {
        Some((start, _)) => Ok(format!("{start}.254")),
        None => Err(fault("bad-context", format!("gateway `{}`", context.network.gateway), "report this")),
    }
}

/// Rules that lead new connections to these ports of the host to the bridge. They come before the engine's own, which have the priority
/// -100, and the first to translate a connection does so for good (nft(8), "nat").
fn lead(address: &str, ports: &[(Vec<u16>, u16)]) -> String {
    let rules = |condition: &str| -> String {
        ports
            .iter()
            .map(|(from, to)| {
                let from: Vec<_> = from.iter().map(u16::to_string).collect();
                format!(
                    "    {condition}fib daddr type local tcp dport {{ {} }} dnat to {address}:{to}\n",
                    from.join(", ")
                )
            })
            .collect()
    };
    format!(
        "{}table ip {TABLE} {{\n  chain prerouting {{\n    type nat hook prerouting priority -110;\n{}  }}\n  chain output {{\n    type nat hook \
         output priority -110;\n{}  }}\n}}\n",
        lead_back(),
        rules(""),
        rules("ip daddr != 127.0.0.0/8 "),
    )
}

fn lead_back() -> String {
    absent(TABLE)
}

/// Declared before it is deleted: absent is fine.
fn absent(table: &str) -> String {
    format!("table ip {table}\ndelete table ip {table}\n")
}

fn nft(rules: &str) -> Action {
    let argv = ["nft", "-f", "-"].map(|word| Word::Lit(word.to_owned())).to_vec();
    Action::Run(Run { argv, stdin: vec![Word::Lit(rules.to_owned())] })
}

fn stop(container: &str) -> Action {
    Action::ContainerStop(ContainerStop { name: container.to_owned(), timeout_s: STOP_S })
}

fn answers(context: &Context, container: &str) -> Action {
    Action::WaitProbe(WaitProbe {
        container: container.to_owned(),
        network: context.network.name.clone(),
        probe: ProbeSpec {
            check: Check::Exec(vec![PROGRAM.to_owned(), "list".to_owned()]),
            interval_ms: 200,
            timeout_ms: 5_000,
            healthy_after: 1,
            deadline_ms: 20_000,
            status_from: 200,
            status_to: 299,
        },
    })
}

fn step(phase: Phase, title: String, action: Action, undo: Option<Action>) -> Step {
    Step {
        phase,
        title,
        action,
        after: Vec::new(),
        timeout_ms: 60_000,
        repeatable: true,
        quiet_ms: 0,
        undo,
        evidence: vec![
            Evidence::State(BRIDGE.to_owned()),
            Evidence::Logs((BRIDGE.to_owned(), 20)),
            Evidence::Logs((CONTAINER.to_owned(), 20)),
        ],
        labels: Vec::new(),
    }
}
