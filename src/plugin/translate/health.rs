//! Inputs and verdicts of the health judge.

use std::net::SocketAddr;

use jiji_model::name::HostName;
use jiji_model::probe::{Timeline, Verdict};

use super::super::bindings::health::exports::jiji::health::health as wit;
use super::super::bindings::types;
use super::super::text::sentence;
use super::super::{Judge, Subject};
use super::{check_to_wit, result_to_wit};

pub(in super::super) fn probes_input(
    host: &HostName,
    architecture: &str,
    subjects: &[Subject<'_>],
    settings: &str,
) -> wit::ProbesInput {
    wit::ProbesInput {
        host: server(host, architecture),
        settings: settings.to_owned(),
        subjects: subjects.iter().map(subject).collect(),
    }
}

fn server(host: &HostName, architecture: &str) -> types::Server {
    types::Server { name: host.to_string(), architecture: architecture.to_owned(), labels: Vec::new() }
}

fn subject(subject: &Subject<'_>) -> wit::Subject {
    wit::Subject {
        service: subject.service.to_string(),
        check: subject.healthcheck.map(|health| check_to_wit(&health.check)),
        interval_ms: subject.healthcheck.map(|health| health.interval_ms),
        timeout_ms: subject.healthcheck.map(|health| health.timeout_ms),
        deadline_ms: subject.healthcheck.map(|health| health.deadline_ms),
        app_port: subject.app_port,
        labels: Vec::new(),
    }
}

pub(in super::super) fn judge_input(judge: &Judge<'_>, settings: &str) -> wit::JudgeInput {
    wit::JudgeInput {
        host: server(judge.host, judge.architecture),
        settings: settings.to_owned(),
        subject: subject(judge.subject),
        spec: types::ProbeSpec {
            check: check_to_wit(&judge.spec.check),
            interval_ms: judge.spec.interval_ms,
            timeout_ms: judge.spec.timeout_ms,
            healthy_after: judge.spec.healthy_after,
            deadline_ms: judge.spec.deadline_ms,
            status_from: judge.spec.status_from,
            status_to: judge.spec.status_to,
        },
        timeline: timeline(judge.timeline),
        log: judge.log.to_owned(),
    }
}

fn timeline(timeline: &Timeline) -> wit::Timeline {
    wit::Timeline {
        healthy: timeline.healthy,
        took_ms: timeline.took_ms,
        made: timeline.made,
        probes: timeline
            .probes
            .iter()
            .map(|probe| wit::Probe {
                at_ms: probe.at_ms,
                took_ms: probe.took_ms,
                result: result_to_wit(&probe.result),
                healthy: probe.healthy,
            })
            .collect(),
        findings: timeline.findings.as_ref().map(|findings| wit::Findings {
            healthy_at_ms: findings.healthy_at_ms,
            listens: findings.listens.as_ref().map(|listens| {
                let listener = |at: &SocketAddr| wit::Listener { address: at.ip().to_string(), port: at.port() };
                listens.iter().map(listener).collect()
            }),
            engine: findings.engine.clone(),
        }),
    }
}

pub(in super::super) fn verdict(verdict: &wit::Verdict) -> Verdict {
    Verdict {
        healthy: verdict.healthy,
        explanation: sentence(&verdict.explanation),
        hint: verdict.hint.as_deref().map(sentence),
    }
}
