//! The one place where jiji reads the process's environment and knows where its directories lie.
//!
//! | variable | what for |
//! | --- | --- |
//! | `XDG_CACHE_HOME` | store, action cache, compile cache lie in `jiji` below it; `~/.cache` otherwise |
//! | `XDG_RUNTIME_DIR` | sockets of ssh's connections lie in `jiji` below it; `/tmp/jiji-UID` otherwise |
//! | `HOME` | where the above falls back to |
//! | `USER`, `HOSTNAME` | who a lease and the audit log name |
//! | `JIJI_STORE_BUDGET` | what the store may take on disk (`20GiB`), or `none`: then nothing is collected after a build |
//! | `NO_COLOR`, `CI` | no colours; no prompt and one line per event |
//! | `JIJI_ABORT_AT` | test builds only: abort at this point of a transaction, or write the points passed to `trace:FILE` |
//! | `JIJI_LEASE_MS` | test builds only: for how many milliseconds a lease lasts without a sign of life |
//!
//! Everything else of the environment is the project's: `${VAR}` in `deploy.yml`, and secrets.

use std::path::PathBuf;

/// What jiji takes from its surroundings, read once.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The user's cache directory for jiji.
    pub cache: PathBuf,
    /// A directory of this user alone, with a short path, for sockets.
    pub sockets: PathBuf,
    /// `user@machine`.
    pub who: String,
    /// Whether to colour.
    pub color: bool,
    /// Whether this is a CI run: no prompt, no moving progress.
    pub ci: bool,
    /// Whether host keys that nobody has vouched for are believed: `--accept-new`, since no variable says so.
    pub accept_new: bool,
    /// The socket of the user's agent of keys.
    pub agent: Option<PathBuf>,
    /// What the store may take, as the variable has it.
    pub store_budget: Option<String>,
    /// Where a test build aborts.
    pub abort_at: Option<String>,
    /// Milliseconds that a test build's leases last.
    pub lease_ms: Option<u64>,
}

impl Environment {
    /// Reads the process's environment.
    pub fn read() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        // The base directory specification asks for absolute paths and ignores others.
        let cache = set("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let user =
            set("USER").or_else(|| set("LOGNAME")).unwrap_or_else(|| rustix::process::getuid().as_raw().to_string());
        let runtime = set("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let sockets = runtime.map_or_else(
            || PathBuf::from(format!("/tmp/jiji-{}", rustix::process::getuid().as_raw())),
            |runtime| runtime.join("jiji"),
        );
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            cache: cache.unwrap_or_else(|| home.join(".cache")).join("jiji"),
            sockets,
            who: format!("{user}@{machine}"),
            color: set("NO_COLOR").is_none(),
            ci: set("CI").is_some(),
            accept_new: false,
            agent: set("SSH_AUTH_SOCK").map(PathBuf::from),
            store_budget: set("JIJI_STORE_BUDGET"),
            abort_at: set("JIJI_ABORT_AT"),
            lease_ms: set("JIJI_LEASE_MS").and_then(|text| text.parse().ok()),
        }
    }
}

/// A variable of the environment, for `${VAR}` and secrets.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
