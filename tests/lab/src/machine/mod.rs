//! The first process of a host: builds the host's root, starts its services and buries its orphans.
//!
//! It runs in fresh mount, process, host name, IPC, network and control group namespaces. The root is an overlay of the
//! machine's own, so a host has the machine's programs and a private copy of all that it changes; engines store on the
//! host's disk, a file of fixed size, so a disk can be full. Who starts it and gives it a network is the keeper's work.

mod root;
mod services;

use std::{
    fs,
    io::{BufRead, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub(crate) use root::USERS_PODMAN;
pub(crate) use services::PATH;

use crate::{Engine, LabError};

/// What the first process of a host is told; a file in the host's directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// The host's name.
    pub name: String,
    /// Its engine.
    pub engine: Engine,
    /// Whom its sshd lets in: root, or a user who has sudo.
    pub user: String,
    /// Whether that user has no sudo, but what a Podman of their own needs.
    #[serde(default)]
    pub rootless: bool,
    /// The host's directory: disk image, keys, logs.
    pub dir: PathBuf,
    /// The directory of all labs, which hosts are not shown.
    pub state: PathBuf,
    /// The public key that may log in.
    pub authorized_key: String,
    /// Names and addresses of all hosts, for `/etc/hosts`.
    pub hosts: Vec<(String, Ipv4Addr)>,
    /// The registry that is spoken to in plain HTTP.
    pub registry: Option<String>,
    /// Directories that the host shares with the machine.
    pub binds: Vec<PathBuf>,
    /// A boot id of this boot's own.
    pub boot_id: String,
}

/// The whole life of a host. Speaks with the keeper by lines: says `pid N`, hears `go` when the network is there, says
/// `ready` or `failed MESSAGE`. Returns only on failure.
pub(crate) fn live(orders: &Path) -> Result<(), LabError> {
    // The machine's umask must not decide what a host's users can read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // The machine's /proc is still mounted here, so this is the number by which the machine knows this process.
    let own = fs::read_link("/proc/self").map_err(LabError::file("read", "/proc/self"))?;
    say(&format!("pid {}", own.display()))?;
    let result = boot(orders);
    match result {
        Ok(services) => {
            say("ready")?;
            services.supervise()
        }
        Err(error) => {
            say(&format!("failed {error}").replace('\n', " "))?;
            Err(error)
        }
    }
}

fn boot(orders: &Path) -> Result<services::Services, LabError> {
    let text = fs::read(orders).map_err(LabError::file("read", orders))?;
    let orders: Orders = serde_json::from_slice(&text).map_err(LabError::json("the orders of the host"))?;
    rustix::system::sethostname(orders.name.as_bytes()).map_err(LabError::system("set the host name"))?;
    let logs = services::Logs::open(&orders.dir)?;
    root::enter(&orders)?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(LabError::system("hear the keeper"))?;
    if line.trim() != "go" {
        return Err(LabError::Keeper { message: "went away before the host had a network".to_owned() });
    }
    if orders.rootless {
        root::let_users_publish()?;
    }
    services::Services::start(orders.engine, logs)
}

fn say(line: &str) -> Result<(), LabError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(LabError::system("tell the keeper"))
}
