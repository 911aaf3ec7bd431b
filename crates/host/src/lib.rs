//! `jiji-host`: what jiji runs on a server, for as long as one session lasts.
//!
//! It reads frames on its standard input and writes frames on its standard output ([`jiji_model::protocol`]): looks at the host, keeps
//! lease, journal, releases and audit log there, serves streamed blobs to the container engine, runs the steps of a plan and takes them
//! back. It decides nothing: which way a transaction ends is the operator's (`apply`). When its input ends it finishes the step in
//! hand, journals and exits. It listens on nothing but 127.0.0.1, and on that only while the engine pulls.
//!
//! | room | what it does |
//! | --- | --- |
//! | [`session`] | frames in and out, asks in their order, heartbeats and blobs beside them |
//! | [`engine`] | Docker and Podman behind one type |
//! | [`fitness`] | disk, memory, ports, kernel: what decides whether a change is begun at all |
//! | [`observe`] | answers every kind of query, changes nothing |
//! | [`compare`] | how a container differs from what was decided |
//! | [`integrity`] | whether the records are as jiji wrote them |
//! | [`execute`] | runs every kind of action |
//! | [`probe`] | one probe, and the loop of probes with its timeline |
//! | [`reach`] | from where probes reach containers |
//! | [`mesh`] | keys, the interface between servers, and what it needs around it |
//! | [`listen`] | where processes listen by TCP |
//! | [`lease`] | who may change a project here |
//! | [`journal`] | what a transaction did, written before and after it is done |
//! | [`records`] | releases, audit log, addresses, roster |
//! | [`secrets`] | the session's secrets: keyed digest and redaction |
//! | [`place`] | where everything lies, and how it is written |
//! | [`rootless`] | a user's own Podman: where things lie then, and what it needs |
//! | [`command`] | programs with a timeout and a bounded output |
//! | [`clock`] | time since boot, and which process is which |

mod abort;
pub mod clock;
pub mod command;
pub mod compare;
pub mod engine;
pub mod execute;
pub mod fitness;
pub mod integrity;
pub mod journal;
pub mod lease;
pub mod listen;
pub mod mesh;
pub mod observe;
pub mod place;
pub mod probe;
pub mod reach;
pub mod records;
pub mod rootless;
pub mod secrets;
pub mod session;

use std::path::PathBuf;

use jiji_model::project;
use jiji_model::protocol::{ARGUMENT_EXEC, OPTION_ENGINE, OPTION_ROOTLESS};

pub use session::{SessionError, run};

/// Where jiji keeps what it keeps on a server.
pub const ROOT: &str = "/var/lib/jiji";

/// Where programs are looked for: never the caller's `PATH`, which differs between a login, sudo and an SSH exec.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a Docker daemon listens unless somebody says otherwise.
pub const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// How a session is to work.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything lies: [`ROOT`], or [`rootless::root`], but in tests.
    pub root: PathBuf,
    /// Whether everything is done as a user who is not root, with a Podman of their own.
    pub rootless: bool,
    /// Directories in which programs are looked for, separated by colons: [`PATH`] but in tests.
    pub path: String,
    /// The engine to use where the project says; otherwise it is told from the host.
    pub engine: Option<project::Engine>,
    /// Where Docker listens that nobody set up otherwise: [`DOCKER_SOCKET`] but in tests.
    pub docker_socket: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root: PathBuf::from(ROOT),
            rootless: false,
            path: PATH.to_owned(),
            engine: None,
            docker_socket: PathBuf::from(DOCKER_SOCKET),
        }
    }
}

impl Settings {
    /// Reads the arguments of a session: `exec`, and perhaps an engine, whose it is, and a root. None where they are not those of a
    /// session.
    pub fn from_arguments(args: &[String]) -> Option<Self> {
        let (exec, mut rest) = args.split_first()?;
        let mut settings = Self::default();
        let mut root = None;
        while let [option, after @ ..] = rest {
            rest = match (option.as_str(), after) {
                (OPTION_ROOTLESS, after) => {
                    settings.rootless = true;
                    after
                }
                (OPTION_ENGINE, [engine, after @ ..]) => {
                    settings.engine = Some(match engine.as_str() {
                        "docker" => project::Engine::Docker,
                        "podman" => project::Engine::Podman,
                        _ => return None,
                    });
                    after
                }
                ("--root", [path, after @ ..]) => {
                    root = Some(PathBuf::from(path));
                    after
                }
                _ => return None,
            };
        }
        if let Some(root) = root.or_else(|| settings.rootless.then(rootless::root)) {
            settings.root = root;
        }
        (exec == ARGUMENT_EXEC).then_some(settings)
    }
}
