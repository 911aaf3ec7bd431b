//! Inputs and verdicts of the health judge.

use std::net::SocketAddr;

use jiji_model::probe::{Timeline, Verdict};

use super::super::bindings::health::exports::jiji::health::health as wit;
use super::super::bindings::types;
use super::super::text::sentence;
use super::super::{Judge, Probes};
use super::{check_to_wit, result_to_wit};

pub(in super::super) fn probes_input(input: &Probes, settings: &str) -> wit::ProbesInput {
    wit::ProbesInput {
        host: types::Server {
            name: input.host.to_string(),
            architecture: input.architecture.clone(),
            labels: Vec::new(),
        },
        service: input.service.to_string(),
        settings: settings.to_owned(),
        check: input.healthcheck.as_ref().map(|health| check_to_wit(&health.check)),
        interval_ms: input.healthcheck.as_ref().map(|health| health.interval_ms),
        timeout_ms: input.healthcheck.as_ref().map(|health| health.timeout_ms),
        deadline_ms: input.healthcheck.as_ref().map(|health| health.deadline_ms),
        app_port: input.app_port,
        labels: Vec::new(),
    }
}

pub(in super::super) fn judge_input(judge: &Judge<'_>, settings: &str) -> wit::JudgeInput {
    wit::JudgeInput {
        input: probes_input(judge.input, settings),
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
