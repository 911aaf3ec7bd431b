//! What a transaction tells those who watch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiji_model::event::{Record, Sink, bytes};
use jiji_model::name::{HostName, ServiceName};
use jiji_model::plan::{Action, Phase, Step};
use jiji_model::protocol::HostEvent;
use jiji_model::transaction::{Decision, Lease, Outcome};
use serde_json::json;

use super::link::HostLink;
use super::{phase_text, result_word};
use crate::fleet::BlobProgress;

/// A span of time for people, in whole seconds.
pub(super) fn span(ms: u64) -> String {
    let s = ms.div_ceil(1000);
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s}s"),
        (h, m, _) => format!("{h}h {m}m"),
    }
}

/// What is known of a step when its id comes by.
#[derive(Debug, Clone)]
struct Known {
    title: String,
    /// Whether a container is being stopped.
    stops: bool,
    service: Option<ServiceName>,
    phase: Phase,
}

/// Turns what happens into records for a sink.
pub(super) struct Watch<'a> {
    sink: &'a dyn Sink,
}

impl<'a> Watch<'a> {
    pub(super) fn new(sink: &'a dyn Sink) -> Self {
        Self { sink }
    }

    /// Nobody knows yet whether its holder is at work.
    pub(super) fn waiting_for_expiry(&self, host: &HostName, lease: &Lease) {
        let text = format!("{} holds the lease; waiting for a sign of life", lease.who);
        let data = json!({"who": lease.who, "fencing": lease.fencing});
        self.sink.emit(Record::new("apply.waiting", text).on(host).with(data));
    }

    pub(super) fn waiting_for_lease(&self, host: &HostName, lease: &Lease, age_ms: Option<u64>, left: Duration) {
        let since = age_ms.map_or_else(String::new, |age| format!(" for {}", span(age)));
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let text = format!("{} is at work{since}; waiting for at most {}", lease.who, span(left_ms));
        let data = json!({"who": lease.who, "fencing": lease.fencing, "age_ms": age_ms, "left_ms": left_ms});
        self.sink.emit(Record::new("apply.waiting", text).on(host).with(data));
    }

    pub(super) fn leased(&self, fencing: u64, hosts: usize) {
        let data = json!({"fencing": fencing, "hosts": hosts});
        self.sink.emit(Record::new("apply.leased", "").with(data));
    }

    pub(super) fn sending(&self, host: &HostName, progress: BlobProgress) {
        let text = format!("sending {} of {}", bytes(progress.sent), bytes(progress.bytes));
        let data = json!({"blobs": progress.blobs, "bytes": progress.bytes, "sent": progress.sent});
        self.sink.emit(Record::new("apply.sending", text).on(host).with(data));
    }

    pub(super) fn sent(&self, host: &HostName, progress: BlobProgress) {
        let text = match progress.blobs {
            0 => String::new(),
            1 => format!("sent 1 blob, {}", bytes(progress.sent)),
            blobs => format!("sent {blobs} blobs, {}", bytes(progress.sent)),
        };
        let data = json!({"blobs": progress.blobs, "bytes": progress.sent});
        self.sink.emit(Record::new("apply.sent", text).on(host).with(data));
    }

    pub(super) fn begun(&self, transaction: &str, fencing: u64, hosts: &[HostName]) {
        let data = json!({"transaction": transaction, "fencing": fencing, "hosts": hosts});
        self.sink.emit(Record::new("apply.begun", "").with(data));
    }

    pub(super) fn phase(&self, phase: Phase, hosts: &[HostName]) {
        let data = json!({"hosts": hosts});
        self.sink.emit(Record::new("apply.phase", phase_text(phase)).phase(phase).with(data));
    }

    pub(super) fn batch(&self, number: usize, of: usize, hosts: &[HostName]) {
        let names: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        let data = json!({"batch": number, "of": of, "hosts": hosts});
        let text = format!("batch {number} of {of}: {}", names.join(", "));
        self.sink.emit(Record::new("apply.batch", text).with(data));
    }

    pub(super) fn pausing(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let text = format!("waiting {} before the next batch", span(ms));
        self.sink.emit(Record::new("apply.pausing", text).with(json!({"ms": ms})));
    }

    pub(super) fn interrupting(&self) {
        self.sink.emit(Record::new("apply.interrupting", "stopping after the step in hand, then reverting"));
    }

    pub(super) fn reverting(&self, cause: &str) {
        let data = json!({"cause": cause});
        self.sink.emit(Record::new("apply.reverting", format!("reverting: {cause}")).with(data));
    }

    pub(super) fn settling(&self, transaction: &str, decision: Decision, who: &str, command: &str) {
        let (way, why) = match decision {
            Decision::Commit => ("finishing", "it was decided"),
            Decision::Revert => ("reverting", "it was not decided"),
        };
        let text = format!("{way} the interrupted `{command}` of {who}: {why}");
        let data = json!({"transaction": transaction, "decision": decision, "who": who, "command": command});
        self.sink.emit(Record::new("apply.settling", text).with(data));
    }

    pub(super) fn settled(&self, host: &HostName, decision: Decision) {
        let data = json!({"decision": decision});
        self.sink.emit(Record::new("apply.settled", "").on(host).with(data));
    }

    pub(super) fn concluded(&self, host: &HostName, decision: Decision) {
        let data = json!({"decision": decision});
        self.sink.emit(Record::new("apply.concluded", result_word(decision)).on(host).with(data));
    }

    pub(super) fn lost(&self, host: &HostName, cause: &str) {
        let data = json!({"cause": cause});
        self.sink.emit(Record::new("apply.lost", format!("in doubt: {cause}")).on(host).with(data));
    }
}

/// Lets what hosts tell reach a channel that the driver empties into the sink.
///
/// A host's listener outlives this call's borrow of the sink, so what it hears goes through a queue.
pub(super) struct Hearing {
    heard: tokio::sync::mpsc::UnboundedReceiver<(HostName, HostEvent)>,
    steps: BTreeMap<(HostName, String), Known>,
}

impl Hearing {
    /// Listens to all links from now on. `steps`: those whose ids may come by.
    pub(super) fn of<'a, L: HostLink + 'a>(
        links: impl IntoIterator<Item = &'a L>,
        steps: impl IntoIterator<Item = &'a Step>,
    ) -> Self {
        let (tell, heard) = tokio::sync::mpsc::unbounded_channel();
        for link in links {
            let (tell, host) = (tell.clone(), link.host().clone());
            link.listen(Arc::new(move |event| {
                // Nobody listens any more once the transaction has ended.
                let _ = tell.send((host.clone(), event));
            }));
        }
        let steps = steps.into_iter().map(|step| {
            let known = Known {
                title: step.title.clone(),
                stops: matches!(step.action, Action::ContainerStop { .. }),
                service: step.service.clone(),
                phase: step.phase,
            };
            ((step.host.clone(), step.id.clone()), known)
        });
        Self { heard, steps: steps.collect() }
    }

    /// Runs `work` and shows meanwhile what hosts tell.
    pub(super) async fn during<T>(&mut self, watch: &Watch<'_>, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                biased;
                Some((host, event)) = self.heard.recv() => self.show(watch, &host, &event),
                done = &mut work => break done,
            }
        };
        while let Ok((host, event)) = self.heard.try_recv() {
            self.show(watch, &host, &event);
        }
        done
    }

    fn show(&self, watch: &Watch<'_>, host: &HostName, event: &HostEvent) {
        let record = |name: &str, step: &str, text: &dyn Fn(&str) -> String, data: serde_json::Value| {
            let known = self.steps.get(&(host.clone(), step.to_owned()));
            let title = known.map_or(step, |known| known.title.as_str());
            let mut data = data;
            data["step"] = json!(step);
            data["title"] = json!(title);
            let mut record = Record::new(name, text(title)).on(host).with(data);
            if let Some(known) = known {
                record = record.phase(known.phase);
                record.service = known.service.clone();
            }
            record
        };
        let record = match event {
            HostEvent::StepStarted { step, undo } => {
                let verb = if *undo { "taking back: " } else { "" };
                let text = move |title: &str| format!("{verb}{title}");
                record("apply.step-started", step, &text, json!({"undo": undo}))
            }
            HostEvent::StepEnded { step, undo, outcome, took_ms } => {
                let (word, cause) = match outcome {
                    Outcome::Done { .. } => ("done", None),
                    Outcome::Unchanged => ("unchanged", None),
                    Outcome::Failed { cause } => ("failed", Some(cause)),
                };
                let stops = self.steps.get(&(host.clone(), step.clone())).is_some_and(|known| known.stops);
                // A stop says whom it met: a process that had to be killed, connections that ended with a proxy.
                let said = match outcome {
                    Outcome::Done { output: Some(said) } if stops && !undo => Some(said),
                    _ => None,
                };
                let text = |title: &str| match (cause, said) {
                    (Some(cause), _) => format!("{title}: {cause}"),
                    (None, Some(said)) => format!("{title}: {said}"),
                    (None, None) if *undo => format!("took back: {title}"),
                    (None, None) => title.to_owned(),
                };
                let data = json!({"undo": undo, "outcome": word, "took_ms": took_ms, "cause": cause, "killed": said.is_some_and(|said| said.contains("was killed"))});
                record("apply.step-ended", step, &text, data)
            }
            HostEvent::Probed { step, probe } => {
                let data = json!({"probe": probe});
                record("apply.probed", step, &|_| String::new(), data)
            }
            HostEvent::Revived { container, cause } => {
                let text = match cause {
                    None => format!("started {container}, which did not run"),
                    Some(cause) => format!("{container} does not run and cannot be started: {cause}"),
                };
                Record::new("apply.revived", text).on(host).with(json!({"container": container, "cause": cause}))
            }
            HostEvent::LeaseLost => Record::new("apply.lease-lost", "another run of jiji took the lease").on(host),
        };
        watch.sink.emit(record);
    }
}
