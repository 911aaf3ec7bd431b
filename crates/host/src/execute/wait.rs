//! Waits for health: a loop of probes, and an eye on the container while they fail.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiji_model::probe::{Findings, Probe, ProbeResult, ProbeSpec, Timeline};
use jiji_model::project::{Check, Engine as Kind};
use jiji_model::transaction::{Outcome, roster};

use super::{ActionError, DONE, Executor};
use crate::engine::Engine;
use crate::engine::inspect::ContainerInspect;
use crate::listen;
use crate::observe::redact;
use crate::probe::{self, Stop, Until};
use crate::reach::Reach;

/// How often a container is looked at while its probes fail.
const LOOK: Duration = Duration::from_millis(400);

/// How much longer than its deadline a container is watched to tell one that is slow from one that never gets well, at least and at most.
const LATE_MS: RangeInclusive<u32> = 1_000..=5_000;

impl Executor<'_> {
    /// A container becomes healthy, or stays so.
    pub(super) async fn wait(
        &self,
        name: &str,
        network: &str,
        spec: &ProbeSpec,
        until: Until,
    ) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        let container = engine.inspect_container(name).await?;
        let container = container.ok_or_else(|| ActionError::NoContainer { name: name.to_owned() })?;
        let address = match container.address(network) {
            _ if network == "host" => Ipv4Addr::LOCALHOST,
            Some(address) => address,
            // It has ended already, which the eye on it sees before the first probe.
            None if !container.running() => Ipv4Addr::LOCALHOST,
            None => {
                return Err(ActionError::NoAddress { name: name.to_owned(), network: network.to_owned() });
            }
        };
        let failing = Cell::new(!container.running());
        let reach = engine.reach();
        let ask = |timeout| {
            let (check, reach) = (&spec.check, &reach);
            async move {
                match check {
                    Check::Http { port, path } => {
                        probe::http(reach, SocketAddrV4::new(address, *port), None, path, timeout).await
                    }
                    Check::Tcp { port } => probe::tcp(reach, SocketAddrV4::new(address, *port), timeout).await,
                    Check::Exec { argv } => in_container(engine, name, argv, timeout).await,
                }
            }
        };
        let what = match &spec.check {
            Check::Http { port, path } => format!("`GET {path}` on port {port} of `{name}`"),
            Check::Tcp { port } => format!("port {port} of `{name}`"),
            Check::Exec { argv } => format!("`{}` in `{name}`", argv.join(" ")),
        };
        if !container.running() {
            let result = not_running(&container);
            let first = Probe { at_ms: 0, took_ms: 0, result, healthy: false };
            self.tell(&first);
            let timeline = Timeline { healthy: false, took_ms: 0, made: 1, probes: vec![first], findings: None };
            return Err(ActionError::NotHealthy { why: verdict(&what, &timeline), timeline: Box::new(timeline) });
        }
        let until_ended = || ended(engine, name, &container, &failing);
        let each = |probe: &Probe| {
            failing.set(!probe.healthy);
            self.tell(probe);
        };
        let (why, mut timeline) = match self.watch(spec, until, &what, ask, until_ended(), each).await {
            Ok(_) => return Ok(DONE),
            Err(ActionError::NotHealthy { why, timeline }) => (why, timeline),
            Err(error) => return Err(error),
        };
        if until != Until::Healthy {
            return Err(ActionError::NotHealthy { why, timeline });
        }
        if let Some(result) = self.ended_meanwhile(name, &container, &timeline).await {
            let last = Probe { at_ms: timeline.took_ms, took_ms: 0, result, healthy: false };
            self.tell(&last);
            add(&mut timeline, last);
        }
        timeline.findings = Some(Findings {
            healthy_at_ms: self.healthy_later(spec, &mut timeline, ask, until_ended()).await?,
            listens: self.listens(name, network).await,
            engine: String::new(),
        });
        Err(ActionError::NotHealthy { why, timeline })
    }

    /// How a container ended, if it did and the eye on it had not seen it when the time was up.
    async fn ended_meanwhile(&self, name: &str, first: &ContainerInspect, timeline: &Timeline) -> Option<ProbeResult> {
        if matches!(timeline.probes.last(), Some(Probe { result: ProbeResult::NotRunning { .. }, .. })) {
            return None;
        }
        let engine = self.engine().ok()?;
        let now = engine.inspect_container(name).await.ok()??;
        if now.running() && (now.restart_count, now.state.pid) == (first.restart_count, first.state.pid) {
            return None;
        }
        Some(ProbeResult::NotRunning {
            exit: match engine.kind {
                _ if !now.running() => Some(now.state.exit_code),
                Kind::Docker => None,
                Kind::Podman => last_exit(engine, &first.id).await,
            },
            oom: now.state.oom_killed,
        })
    }

    /// Whether a container becomes healthy shortly after its deadline, and when: then the deadline is what is wrong. Asked only where
    /// time can help, for a part of the deadline.
    async fn healthy_later<F: Future<Output = ProbeResult>>(
        &self,
        spec: &ProbeSpec,
        timeline: &mut Timeline,
        ask: impl FnMut(Duration) -> F,
        ended: impl Future<Output = ProbeResult>,
    ) -> Result<Option<u32>, ActionError> {
        let starting = match timeline.probes.last().map(|probe| &probe.result) {
            Some(ProbeResult::Http { status, .. }) => *status >= 500,
            Some(ProbeResult::Refused | ProbeResult::TimedOut | ProbeResult::Broken { .. }) => true,
            Some(ProbeResult::Exit { code, .. }) => !matches!(code, 126 | 127),
            Some(ProbeResult::Connected | ProbeResult::NotRunning { .. }) | None => false,
        };
        if !starting {
            return Ok(None);
        }
        let deadline_ms = (spec.deadline_ms / 2).clamp(*LATE_MS.start(), *LATE_MS.end());
        let longer = ProbeSpec { deadline_ms, ..spec.clone() };
        match self.watch(&longer, Until::Healthy, "", ask, ended, |_| {}).await {
            Ok(took_ms) => Ok(Some(timeline.took_ms.saturating_add(took_ms))),
            Err(ActionError::NotHealthy { timeline: later, .. }) => {
                // What it answers once it does tells more than that nothing answered before.
                let told = |probe: &&Probe| !matches!(probe.result, ProbeResult::Refused | ProbeResult::TimedOut);
                if let Some(last) = later.probes.last().filter(told) {
                    let at_ms = timeline.took_ms.saturating_add(last.at_ms);
                    add(timeline, Probe { at_ms, ..last.clone() });
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Where the processes of a container that has a network of its own listen.
    async fn listens(&self, name: &str, network: &str) -> Option<Vec<SocketAddr>> {
        if network == "host" {
            return None;
        }
        let container = self.engine().ok()?.inspect_container(name).await.ok()??;
        listen::of(container.state.pid)
    }

    /// `GET` until it answers as wanted.
    pub(super) async fn wait_http(&self, address: Ipv4Addr, spec: &ProbeSpec) -> Result<Outcome, ActionError> {
        if !(address.is_loopback() || roster::number_of(address).is_some() || probe::is_own(address)) {
            return Err(ActionError::Elsewhere { address });
        }
        let Check::Http { port, path } = &spec.check else {
            return Err(ActionError::Unsupported { kind: "http_wait without an HTTP check".to_owned() });
        };
        let what = format!("`GET http://{address}:{port}{path}`");
        let reach = self.engine().map_or(Reach::Own, Engine::reach);
        let ask = |timeout| probe::http(&reach, SocketAddrV4::new(address, *port), None, path, timeout);
        self.watch(spec, Until::Healthy, &what, ask, std::future::pending(), |probe| self.tell(probe))
            .await
            .map(|_| DONE)
    }

    /// The loop: after how many milliseconds it was healthy.
    async fn watch<F: Future<Output = ProbeResult>>(
        &self,
        spec: &ProbeSpec,
        until: Until,
        what: &str,
        ask: impl FnMut(Duration) -> F,
        ended: impl Future<Output = ProbeResult>,
        each: impl FnMut(&Probe),
    ) -> Result<u32, ActionError> {
        let interrupted = Cell::new(false);
        let stop = async {
            tokio::select! {
                ended = ended => Stop::NotRunning(ended),
                () = (self.stop)() => {
                    interrupted.set(true);
                    Stop::Interrupted
                }
            }
        };
        let mut timeline = probe::watch(spec, until, ask, stop, each).await;
        if timeline.healthy {
            return Ok(timeline.took_ms);
        }
        for probe in &mut timeline.probes {
            probe.result = redact(self.secrets, probe.result.clone());
        }
        let timeline = Box::new(timeline);
        if interrupted.get() {
            Err(ActionError::Interrupted { timeline })
        } else {
            Err(ActionError::NotHealthy { why: verdict(what, &timeline), timeline })
        }
    }

    fn tell(&self, probe: &Probe) {
        (self.probed)(Probe { result: redact(self.secrets, probe.result.clone()), ..probe.clone() });
    }
}

/// Puts one more probe at a timeline's end. One from the middle goes where there are many.
fn add(timeline: &mut Timeline, probe: Probe) {
    timeline.made += 1;
    timeline.probes.push(probe);
    if timeline.probes.len() > probe::MOST {
        timeline.probes.remove(probe::MOST / 2);
    }
}

/// Waits until the container ends, or was started again by the engine since `first`: what does not stay up is not healthy. Looks only
/// while probes fail, because a look costs more than a probe.
async fn ended(engine: &Engine, name: &str, first: &ContainerInspect, failing: &Cell<bool>) -> ProbeResult {
    while !failing.get() {
        tokio::time::sleep(LOOK / 8).await;
    }
    // A container that runs again no longer tells with which code it ended. In Docker, whoever waited for its end knows. Podman's `wait`
    // looks only now and then and misses a quick new start, but Podman keeps a list of what happened.
    let code = async {
        if engine.kind == Kind::Podman {
            return None;
        }
        engine.exit_code(name).await
    };
    let code = code.fuse();
    tokio::pin!(code);
    let looking = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if !failing.get() {
                continue;
            }
            match engine.inspect_container(name).await {
                Ok(Some(now)) => {
                    let same = (now.restart_count, now.state.pid) == (first.restart_count, first.state.pid);
                    if !(now.running() && same) {
                        return Some(now);
                    }
                }
                Ok(None) => return None,
                // An engine that does not answer for a moment says nothing about the container.
                Err(_) => {}
            }
        }
    };
    tokio::select! {
        exit = async {
            match code.as_mut().await {
                Some(exit) => exit,
                None => std::future::pending().await,
            }
        } => {
            let oom = engine.inspect_container(name).await.ok().flatten().is_some_and(|now| now.state.oom_killed);
            ProbeResult::NotRunning { exit: Some(exit), oom }
        }
        now = looking => match now {
            Some(now) if !now.running() => not_running(&now),
            Some(now) => ProbeResult::NotRunning {
                exit: match engine.kind {
                    Kind::Docker => tokio::time::timeout(LOOK, code).await.ok().flatten(),
                    Kind::Podman => last_exit(engine, &first.id).await,
                },
                oom: now.state.oom_killed,
            },
            None => ProbeResult::NotRunning { exit: None, oom: false },
        }
    }
}

/// With which code a container ended last, as Podman's events tell; none where it keeps no events.
async fn last_exit(engine: &Engine, id: &str) -> Option<i32> {
    let container = format!("container={id}");
    let since = ["events", "--stream=false", "--since", "1h", "--filter", "event=died", "--filter", &container];
    let command = engine.command(since).args(["--format", "{{.ContainerExitCode}}"]);
    command.run().await.ok()?.text().lines().last()?.trim().parse().ok()
}

fn not_running(container: &ContainerInspect) -> ProbeResult {
    ProbeResult::NotRunning { exit: Some(container.state.exit_code), oom: container.state.oom_killed }
}

async fn in_container(engine: &Engine, name: &str, argv: &[String], timeout: Duration) -> ProbeResult {
    let command = engine.command(["exec", name]).args(argv).timeout(timeout).limits(probe::BODY, probe::BODY);
    match command.run().await {
        Ok(output) => match output.exit {
            Some(code) => {
                let said = if output.stdout.trim_ascii().is_empty() { &output.stderr } else { &output.stdout };
                ProbeResult::Exit { code, output: probe::beginning(said) }
            }
            None if output.timed_out => ProbeResult::TimedOut,
            None => ProbeResult::Broken { cause: output.ending() },
        },
        Err(error) => ProbeResult::Broken { cause: error.to_string() },
    }
}

/// Why a loop did not end well, in one sentence: what was asked, and what the last probe met.
fn verdict(what: &str, timeline: &Timeline) -> String {
    let met = match timeline.probes.last().map(|probe| &probe.result) {
        None => "no probe was made".to_owned(),
        Some(ProbeResult::Http { status, location: Some(location), .. }) => format!("status {status}, to `{location}`"),
        Some(ProbeResult::Http { status, .. }) => format!("status {status}"),
        Some(ProbeResult::Connected) => "a connection".to_owned(),
        Some(ProbeResult::Exit { code, .. }) => format!("exit code {code}"),
        Some(ProbeResult::Refused) => "nothing listens there".to_owned(),
        Some(ProbeResult::TimedOut) => "no answer in time".to_owned(),
        Some(ProbeResult::Broken { cause }) => cause.clone(),
        Some(ProbeResult::NotRunning { oom: true, .. }) => "the container was ended for memory".to_owned(),
        Some(ProbeResult::NotRunning { exit: Some(exit), .. }) => format!("the container ended with exit code {exit}"),
        Some(ProbeResult::NotRunning { exit: None, .. }) => "the container ended or is gone".to_owned(),
    };
    let probes = if timeline.made == 1 { "probe" } else { "probes" };
    format!("find {what} healthy: {met} ({} {probes} in {} ms)", timeline.made, timeline.took_ms)
}
