//! What is written down about a lab, so that other processes find it, use it and clean up after it.
//!
//! `lab.json` in the lab's directory. It is also what `lab up --json` and `lab status --json` print.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Engine, LabError};

/// A process that cannot be mistaken for another one that got its number later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The process number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start: u64,
    /// The kernel's boot id, since numbers start again with each boot.
    pub boot: String,
}

impl Owner {
    /// The running process `pid`, or none if there is no such process or it is a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = parse_stat(&stat)?;
        if matches!(state, 'Z' | 'X') {
            return None;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        Some(Self { pid, start, boot })
    }

    /// Whether that very process still runs.
    pub fn alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }
}

/// State and start time out of `/proc/PID/stat`. The name in field 2 may hold blanks and parentheses, so fields are counted
/// from the last parenthesis.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// A lab, as written in its `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The version of this format.
    pub version: u32,
    /// The lab's name.
    pub name: String,
    /// Eight hex digits that no other lab has, also not one of that name in another state directory.
    pub id: String,
    /// Its number: hosts are in 10.231.NUMBER.0/24.
    pub number: u8,
    /// The process whose end is the lab's end.
    pub owner: Owner,
    /// The lab's directory.
    pub dir: PathBuf,
    /// The `lab` program that keeps it.
    pub program: PathBuf,
    /// Whether all parts are ready.
    pub ready: bool,
    /// A process that holds the bridge's network namespace (`/proc/PID/ns/net`); 0 before it is made.
    pub bridge_pid: u32,
    /// Where the deploy tool runs.
    pub operator: OperatorRecord,
    /// The hosts, in order.
    pub hosts: Vec<HostRecord>,
    /// The independent registry, if there is one.
    pub registry: Option<RegistryRecord>,
    /// The simulated round trip time in milliseconds.
    pub rtt_ms: Option<f64>,
    /// The ssh client's configuration that knows all hosts.
    pub ssh_config: PathBuf,
    /// A file to source in a POSIX shell, after which `ssh HOST` and `jiji` run where the operator is.
    pub env: PathBuf,
    /// Directories that hosts share with the machine.
    pub binds: Vec<PathBuf>,
    /// The size of each host's disk in bytes.
    pub disk: u64,
}

/// Where the deploy tool runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OperatorRecord {
    /// Its address on the bridge.
    pub address: Ipv4Addr,
    /// A process that holds its network namespace; 0 before it is made.
    pub pid: u32,
    /// The operator's home directory.
    pub home: PathBuf,
    /// A directory of programs that goes first on the operator's path: an `ssh` that reads the lab's configuration.
    pub bin: PathBuf,
}

/// A host of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its name, for ssh and as its own host name.
    pub name: String,
    /// Its container engine.
    pub engine: Engine,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
    /// Where ssh reaches it: its own address, or its relay's.
    pub ssh_address: Ipv4Addr,
    /// Whom ssh logs in as.
    #[serde(default = "root")]
    pub user: String,
    /// Whether nobody becomes root there, and the engine is that user's own.
    #[serde(default)]
    pub rootless: bool,
    /// The host through which alone ssh reaches it, if there is one.
    #[serde(default)]
    pub through: Option<String>,
    /// Its first process, as the machine numbers it; 0 while the host is off.
    pub pid: u32,
    /// How often it was booted.
    pub boots: u32,
    /// The lab's directory about this host: disk image, logs, keys.
    pub dir: PathBuf,
}

/// Whom ssh logged in as before there was a choice.
fn root() -> String {
    "root".to_owned()
}

/// The independent registry of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegistryRecord {
    /// `ADDRESS:PORT`, spoken to in plain HTTP.
    pub address: String,
    /// Where it stores what it is given.
    pub storage: PathBuf,
}

/// The version of `lab.json`.
pub(crate) const VERSION: u32 = 1;

impl Record {
    /// The network's address with this last byte.
    pub(crate) fn address(number: u8, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 231, number, last)
    }

    /// The cgroup of a part of the lab, relative to each hierarchy's root.
    pub(crate) fn cgroup(&self, part: &str) -> PathBuf {
        self.cgroup_root().join(part)
    }

    /// The cgroup of the whole lab.
    pub(crate) fn cgroup_root(&self) -> PathBuf {
        Path::new("jiji-lab").join(format!("{}-{}", self.name, self.id))
    }

    /// Reads the record in a lab's directory.
    pub fn load(dir: &Path) -> Result<Self, LabError> {
        let path = dir.join("lab.json");
        let text = fs::read(&path).map_err(LabError::file("read", &path))?;
        let record: Self = serde_json::from_slice(&text).map_err(LabError::json(format!("`{}`", path.display())))?;
        if record.version != VERSION {
            return Err(LabError::Spec {
                reason: format!(
                    "`{}` is of version {}, this laboratory's is {VERSION}",
                    path.display(),
                    record.version
                ),
            });
        }
        Ok(record)
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn save(&self) -> Result<(), LabError> {
        let path = self.dir.join("lab.json");
        let fresh = self.dir.join("lab.json.new");
        let text = serde_json::to_vec_pretty(self).map_err(LabError::json("the record to write"))?;
        fs::write(&fresh, text).map_err(LabError::file("write", &fresh))?;
        fs::rename(&fresh, &path).map_err(LabError::file("replace", &path))
    }

    /// What deploy files under `examples/` take from the environment: `LAB_NAME`, `LAB_REGISTRY`, `LAB_SSH_CONFIG`, and
    /// `LAB_HOST_N` and `LAB_ADDRESS_N` for each host, counted from 1.
    pub fn variables(&self) -> Vec<(String, String)> {
        let mut all = vec![
            ("LAB_NAME".to_owned(), self.name.clone()),
            ("LAB_SSH_CONFIG".to_owned(), self.ssh_config.display().to_string()),
        ];
        if let Some(registry) = &self.registry {
            all.push(("LAB_REGISTRY".to_owned(), registry.address.clone()));
        }
        for (place, host) in (1..).zip(&self.hosts) {
            all.push((format!("LAB_HOST_{place}"), host.name.clone()));
            all.push((format!("LAB_ADDRESS_{place}"), host.address.to_string()));
        }
        all
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> Result<&HostRecord, LabError> {
        self.hosts.iter().find(|host| host.name == name).ok_or_else(|| LabError::NoSuchHost { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2";
        assert_eq!(parse_stat(stat), Some(('S', 98765)));
    }

    #[test]
    fn this_process_is_alive_and_one_that_started_earlier_under_its_number_is_not() {
        let own = Owner::of(std::process::id()).expect("this process runs");
        assert!(own.alive());
        assert!(!Owner { start: own.start.wrapping_sub(1), ..own.clone() }.alive());
        assert!(!Owner { boot: "another boot".to_owned(), ..own }.alive());
    }
}
