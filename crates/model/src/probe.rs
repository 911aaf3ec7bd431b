//! Health probes as data, and the timeline they leave.
//!
//! Deciding is a plugin's work, waiting is not: a health plugin answers with a [`ProbeSpec`], `jiji-host` runs the loop without it, and
//! the plugin sees the finished [`Timeline`] once and explains it. So no foreign code runs on a server and no wait blocks a guest.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::project::Check;

/// A loop of probes against one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSpec {
    /// What one probe asks.
    pub check: Check,
    /// Milliseconds between the starts of two probes, at least 10.
    pub interval_ms: u32,
    /// Milliseconds one probe may take.
    pub timeout_ms: u32,
    /// Probes in a row that must succeed, at least 1.
    pub healthy_after: u32,
    /// Milliseconds from the loop's start until it gives up.
    pub deadline_ms: u32,
    /// Lowest HTTP status that is healthy.
    pub status_from: u16,
    /// Highest HTTP status that is healthy.
    pub status_to: u16,
}

/// What one probe met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeResult {
    /// An HTTP answer, healthy or not.
    Http {
        /// Status code.
        status: u16,
        /// The body's beginning, at most 512 bytes, control characters replaced.
        body: String,
        /// The `Location` header, which tells most redirect mistakes.
        location: Option<String>,
    },
    /// A TCP connection was made.
    Connected,
    /// A command in the container ended.
    Exit {
        /// Exit code.
        code: i32,
        /// What it wrote, at most 512 bytes.
        output: String,
    },
    /// Nothing listens on the port.
    Refused,
    /// No answer in time.
    TimedOut,
    /// The connection broke or spoke no HTTP.
    Broken {
        /// What the system said.
        cause: String,
    },
    /// The container is not running, so nothing was asked.
    NotRunning {
        /// Its exit code, where it ran.
        exit: Option<i32>,
        /// Whether the kernel ended it for memory.
        oom: bool,
    },
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Milliseconds from the loop's start to this probe's start.
    pub at_ms: u32,
    /// Milliseconds it took.
    pub took_ms: u32,
    /// What it met.
    pub result: ProbeResult,
    /// Whether the specification calls it healthy.
    pub healthy: bool,
}

/// What a loop left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// Whether `healthy_after` probes in a row succeeded in time.
    pub healthy: bool,
    /// Milliseconds from the loop's start to its end.
    pub took_ms: u32,
    /// How many probes were made. `probes` may hold fewer: the first ones and the last ones.
    pub made: u32,
    /// The probes, at most 32.
    pub probes: Vec<Probe>,
    /// What was found when the loop had failed. None where it was healthy, or where nothing of a container was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Findings>,
}

/// What `jiji-host` found of a container whose loop had failed. No decision hangs on it: it is there to be explained.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Findings {
    /// Milliseconds from the loop's start until it was healthy after all: the deadline was too early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_at_ms: Option<u32>,
    /// Where the container's processes listen by TCP, each once, in order. None where that could not be told, or nothing runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listens: Option<Vec<SocketAddr>>,
    /// What the engine said where it could not run the container's command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub engine: String,
}

/// What a health plugin says of a finished timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Whether the candidate may be routed.
    pub healthy: bool,
    /// One sentence for people, a lowercase fragment.
    pub explanation: String,
    /// What to try, for people.
    pub hint: Option<String>,
}
