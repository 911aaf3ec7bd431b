//! Containers, networks and volumes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use jiji_model::plan::{
    ContainerImage, ContainerSpec, LABEL_ADDRESS, LABEL_SCOPE, LABEL_SECRETS, LABEL_SERVICE, LABEL_SPEC, Step, Word,
};
use jiji_model::probe::{Findings, Probe, ProbeResult, Timeline};
use jiji_model::transaction::Outcome;

use super::{ActionError, DONE, Executor, image};
use crate::command::{self, Output};
use crate::engine::Engine;
use crate::engine::change::Change;
use crate::engine::inspect::ContainerInspect;
use crate::engine::run;
use crate::{listen, records, secrets};

/// How often a container is removed that stays.
const REMOVALS: u32 = 4;

/// Time between two of those.
const BETWEEN_REMOVALS: Duration = Duration::from_millis(150);

impl Executor<'_> {
    /// A container with this specification runs.
    pub(super) async fn run_container(&self, spec: &ContainerSpec, limit: Duration) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        let ContainerImage::Seeded { id, repository } = &spec.image else {
            return Err(ActionError::Unsupported { kind: "run of a pinned image".to_owned() });
        };
        let name = spec.name.as_str();
        let mut env = BTreeMap::new();
        for (variable, word) in &spec.env {
            env.insert(variable.clone(), self.value(word)?);
        }
        let labels = run::labels(spec, &spec.digest(), self.mac(spec)?.as_deref());
        // What projects share (a proxy) is brought up by one of them at a time.
        let shared = spec.labels.get(LABEL_SCOPE).is_some_and(|scope| scope == "*");
        let _alone = if shared { Some(self.place.lock_engine().await?) } else { None };
        let (found, old) = tokio::join!(engine.image(id), engine.inspect_container(name));
        let found = found?.ok_or_else(|| ActionError::NoImage { image: id.config.to_string() })?;
        let listed = image::listed(id, repository);
        let image = if found.names().any(|known| known == listed) { listed.as_str() } else { found.id.as_str() };
        let located = self.place.located(spec)?;
        let command = run::command(engine, &located, image, &env, &labels)?;
        if let Some(old) = old? {
            let scope = old.label(LABEL_SCOPE);
            if scope.is_none() || scope != spec.labels.get(LABEL_SCOPE).map(String::as_str) {
                return Err(ActionError::Foreign { name: name.to_owned() });
            }
            let same = [LABEL_SPEC, LABEL_ADDRESS, LABEL_SECRETS]
                .iter()
                .all(|label| old.label(label) == labels.get(*label).map(String::as_str));
            if same && old.running() && old.runs(id) {
                return Ok(Outcome::Unchanged);
            }
            if old.running() {
                self.stop_container(name, spec.stop_timeout_s, limit).await?;
            }
            self.remove_container(name, limit).await?;
        }
        if let Some(address) = spec.address {
            records::remember_address(self.place, address)?;
        }
        let output = command.timeout(limit).run().await?;
        if !output.ok() {
            return Err(cannot_run(engine, spec, &output));
        }
        let started = self.must_exist(name).await?;
        if !started.runs(id) {
            self.remove_container(name, limit).await?;
            return Err(ActionError::WrongImage {
                name: name.to_owned(),
                expected: id.config.to_string(),
                actual: started.image,
            });
        }
        match must_run(&started) {
            // Whether it has ended already or ends a moment later is chance: both are a candidate that is not healthy.
            Err(error @ ActionError::NotRunning { exit, oom, .. }) if spec.labels.contains_key(LABEL_SERVICE) => {
                Err(never_healthy(error.to_string(), exit, oom, String::new()))
            }
            result => result.map(|()| DONE),
        }
    }

    /// The keyed digest of the secrets in a container's environment; none where it has no secrets.
    fn mac(&self, spec: &ContainerSpec) -> Result<Option<String>, ActionError> {
        let names = spec.secrets();
        if names.is_empty() {
            return Ok(None);
        }
        let key = secrets::ensure_host_key(self.place)?;
        let mac = self.secrets.mac(&key, &names);
        mac.map(Some).map_err(|name| ActionError::NoSecret { name: name.to_string() })
    }

    async fn must_exist(&self, name: &str) -> Result<ContainerInspect, ActionError> {
        let found = self.engine()?.inspect_container(name).await?;
        found.ok_or_else(|| ActionError::NoContainer { name: name.to_owned() })
    }

    /// A container that exists is started.
    pub(super) async fn start_container(&self, name: &str, limit: Duration) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        if self.must_exist(name).await?.running() {
            return Ok(Outcome::Unchanged);
        }
        engine.must("start", engine.command(["start", name]).timeout(limit)).await?;
        must_run(&self.must_exist(name).await?)?;
        Ok(DONE)
    }

    /// A container is stopped: SIGTERM, then SIGKILL.
    pub(super) async fn stop_container(
        &self,
        name: &str,
        timeout_s: u32,
        limit: Duration,
    ) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        let Some(container) = engine.inspect_container(name).await? else {
            return Ok(Outcome::Unchanged);
        };
        if container.stopped() {
            return Ok(Outcome::Unchanged);
        }
        let first = FirstProcess::of(container.state.pid);
        // What projects share is a proxy: who stops it wants to know whom that meets.
        let shared = container.label(LABEL_SCOPE) == Some("*");
        let kept = if shared { listen::connections(container.state.pid) } else { None };
        let begun = Instant::now();
        let output = engine.change(Change::Stop { container: name, seconds: timeout_s }, limit).await?;
        // Only one that took all of its time can have been killed.
        let in_time = output.ok() && begun.elapsed() < Duration::from_secs(timeout_s.into());
        let after = if in_time { None } else { engine.inspect_container(name).await? };
        if !output.ok() && after.as_ref().is_some_and(ContainerInspect::running) {
            return Err(engine.failure("stop", &output).into());
        }
        // 128 and the number of SIGKILL: the application did not end when it was asked to.
        let killed = after.is_some_and(|container| container.state.exit_code == 137 && !container.state.oom_killed);
        let output = if killed {
            Some(first.ignored(timeout_s))
        } else {
            kept.map(|kept| format!("{kept} connections that were kept ended with it"))
        };
        Ok(Outcome::Done { output })
    }

    /// A container is gone. One that jiji did not start is not meant: somebody else has taken the name.
    pub(super) async fn remove_container(&self, name: &str, limit: Duration) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        match engine.inspect_container(name).await? {
            Some(container) if container.label(LABEL_SCOPE).is_some() => {}
            Some(_) | None => return Ok(Outcome::Unchanged),
        }
        let begun = Instant::now();
        let mut output = engine.change(Change::RemoveContainer(name), limit).await?;
        for _ in 1..REMOVALS {
            if output.ok() || begun.elapsed() > limit || engine.inspect_container(name).await?.is_none() {
                break;
            }
            // Podman gives up on one that ends at the same moment (`container state improper`), as one does that is started again and
            // again because it ends.
            tokio::time::sleep(BETWEEN_REMOVALS).await;
            let left = limit.saturating_sub(begun.elapsed());
            output = engine.change(Change::RemoveContainer(name), left).await?;
        }
        if !output.ok() && engine.inspect_container(name).await?.is_some() {
            return Err(engine.failure("rm", &output).into());
        }
        Ok(DONE)
    }

    /// A command in a running container.
    pub(super) async fn exec(
        &self,
        step: &Step,
        container: &str,
        argv: &[Word],
        tolerate: &[String],
        limit: Duration,
    ) -> Result<Outcome, ActionError> {
        let argv = self.argv(argv)?;
        let output = self.engine()?.command(["exec", container]).args(argv.clone()).timeout(limit).run().await?;
        if output.ok() {
            return Ok(self.printed(step, &output));
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        if !output.timed_out && tolerate.iter().any(|text| !text.is_empty() && complaint.contains(text)) {
            return Ok(Outcome::Unchanged);
        }
        let what = format!("run `{}` in container `{container}`", argv.join(" "));
        Err(ActionError::exited(what, &output))
    }

    /// The engine's network exists with this subnet.
    pub(super) async fn network(&self, name: &str, subnet: &str, gateway: Ipv4Addr) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        let _alone = self.place.lock_engine().await?;
        if let Some(found) = engine.network(name).await? {
            if found.subnet.as_deref() == Some(subnet) && found.gateway.is_none_or(|found| found == gateway) {
                return Ok(Outcome::Unchanged);
            }
            let actual = match (&found.subnet, found.gateway) {
                (Some(subnet), Some(gateway)) => format!("{subnet} and gateway {gateway}"),
                (Some(subnet), None) => subnet.clone(),
                (None, _) => "of another kind".to_owned(),
            };
            // Without force, both engines refuse to remove a network that a container is in.
            if !found.used.is_empty() || !engine.command(["network", "rm", name]).run().await?.ok() {
                return Err(ActionError::Network {
                    name: name.to_owned(),
                    wanted: format!("{subnet} and gateway {gateway}"),
                    actual,
                });
            }
        }
        let create = engine.command(run::network_create(engine, name, subnet, gateway));
        engine.must("network create", create).await?;
        Ok(DONE)
    }

    /// A volume of the engine exists.
    pub(super) async fn volume(&self, name: &str) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        if engine.command(["volume", "inspect", name]).run().await?.ok() {
            return Ok(Outcome::Unchanged);
        }
        engine.must("volume create", engine.command(["volume", "create", name])).await?;
        Ok(DONE)
    }
}

/// That a container that was just started runs. One without a health check is told by nothing else.
fn must_run(container: &ContainerInspect) -> Result<(), ActionError> {
    if container.running() || container.state.status == "restarting" {
        return Ok(());
    }
    Err(ActionError::NotRunning {
        name: container.plain_name().to_owned(),
        state: container.state.status.clone(),
        exit: container.state.exit_code,
        oom: container.state.oom_killed,
    })
}

/// Why `run` failed. With 126 and 127 both engines say that they made the container and could not run its command: it is no program
/// there, or there is none. That is the image's fault and not the engine's.
fn cannot_run(engine: &Engine, spec: &ContainerSpec, output: &Output) -> ActionError {
    let failure = engine.failure("run", output);
    let complaint = output.complaint();
    // Podman ends so for causes of its own too, such as an address that is taken.
    let command = ["OCI runtime", "executable", "exec format", "exec:"].iter().any(|words| complaint.contains(words));
    match output.exit {
        Some(exit @ (126 | 127)) if command && spec.labels.contains_key(LABEL_SERVICE) => {
            never_healthy(failure.to_string(), exit, false, complaint)
        }
        _ => failure.into(),
    }
}

/// A candidate that ended before anything could be asked of it.
fn never_healthy(why: String, exit: i32, oom: bool, engine: String) -> ActionError {
    let result = ProbeResult::NotRunning { exit: Some(exit), oom };
    let findings = Findings { engine, ..Findings::default() };
    ActionError::NotHealthy {
        why,
        timeline: Box::new(Timeline {
            healthy: false,
            took_ms: 0,
            made: 1,
            probes: vec![Probe { at_ms: 0, took_ms: 0, result, healthy: false }],
            findings: Some(findings),
        }),
    }
}

/// A container's first process, as it was before it was asked to stop.
struct FirstProcess {
    /// Its program's name, at most 15 bytes.
    name: Option<String>,
    /// Whether it handles SIGTERM. The first process of a container gets no signal that it does not handle (pid_namespaces(7)).
    handles: Option<bool>,
}

impl FirstProcess {
    fn of(pid: i32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok().filter(|_| pid > 0);
        Self {
            name: read("comm").map(|name| command::plain(name.trim())),
            handles: read("status").as_deref().and_then(handles_term),
        }
    }

    /// That it had to be killed, and what to do about it.
    fn ignored(&self, timeout_s: u32) -> String {
        let name = self.name.as_deref().unwrap_or("its first process");
        let why = match (self.handles, name) {
            (Some(false), "sh" | "bash" | "dash" | "ash" | "busybox") => {
                format!(": `{name}` is its first process and passes no signal on; start the program with `exec`")
            }
            (Some(false), _) => format!(": its first process `{name}` has no handler for it"),
            _ => String::new(),
        };
        format!("it did not end on SIGTERM and was killed after {timeout_s}s{why}")
    }
}

/// Whether a process handles SIGTERM, by the signals that proc(5) `status` says it catches.
fn handles_term(status: &str) -> Option<bool> {
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
    Some(caught & (1 << (15 - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_handles_no_sigterm_is_told_by_its_caught_signals() {
        assert_eq!(handles_term("Name:\tsh\nSigCgt:\t0000000000010002\n"), Some(false));
        assert_eq!(handles_term("Name:\tpython3\nSigCgt:\t0000000000004002\n"), Some(true));
        assert_eq!(handles_term("Name:\tx\n"), None);
        let shell = FirstProcess { name: Some("sh".to_owned()), handles: Some(false) };
        assert_eq!(
            shell.ignored(10),
            "it did not end on SIGTERM and was killed after 10s: `sh` is its first process and passes no signal on; start the program \
             with `exec`"
        );
        let hung = FirstProcess { name: Some("app".to_owned()), handles: Some(true) };
        assert_eq!(hung.ignored(5), "it did not end on SIGTERM and was killed after 5s");
    }
}
