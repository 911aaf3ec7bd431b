//! What a lab is asked to be: how many hosts, with which engines, how far away.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::LabError;

/// The container engine of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Podman, without a daemon.
    Podman,
    /// Docker Engine, with a dockerd of the host's own.
    Docker,
}

impl Engine {
    /// The engine's command on the host.
    pub fn cli(self) -> &'static str {
        match self {
            Self::Podman => "/usr/bin/podman",
            Self::Docker => "/usr/bin/docker",
        }
    }

    /// The engine's name, as hosts are named after it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// Which engines the hosts of a lab get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engines {
    /// Podman everywhere.
    Podman,
    /// Docker everywhere.
    Docker,
    /// Podman and Docker in turn, starting with Podman.
    Mixed,
}

impl Engines {
    /// The engine of the host with this index, counted from 0.
    fn of(self, index: usize) -> Engine {
        match self {
            Self::Podman => Engine::Podman,
            Self::Docker => Engine::Docker,
            Self::Mixed if index.is_multiple_of(2) => Engine::Podman,
            Self::Mixed => Engine::Docker,
        }
    }
}

impl FromStr for Engines {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        match text {
            "podman" => Ok(Self::Podman),
            "docker" => Ok(Self::Docker),
            "mixed" => Ok(Self::Mixed),
            other => Err(LabError::Spec { reason: format!("engine `{other}` is none of podman, docker, mixed") }),
        }
    }
}

/// What a lab is asked to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The lab's name; without one it gets `lab-N`.
    pub name: Option<String>,
    /// The engine of each host, in order. Hosts are named `podman-1`, `docker-2` and so on.
    pub hosts: Vec<Engine>,
    /// The round trip time between operator and each host's sshd; none means the machine's own, some tens of microseconds.
    pub rtt: Option<Duration>,
    /// Whether the independent registry runs.
    pub registry: bool,
    /// Where labs lie; see [`Spec::state_dir`].
    pub state: Option<PathBuf>,
    /// The `lab` program; see `JIJI_LAB_BIN`.
    pub program: Option<PathBuf>,
    /// Directories of the machine that hosts see as they are, not as copies: a place to share files with hosts.
    pub binds: Vec<PathBuf>,
    /// The size of each host's disk in bytes. It is a sparse file, so only what is written takes room.
    pub disk: u64,
    /// The places of hosts, counted from 1, that let in no root: the operator is the user `deploy` there and has `sudo`.
    pub sudo: Vec<usize>,
    /// The places of hosts, counted from 1, on which nobody becomes root: the operator is the user `deploy` there, without sudo, and has
    /// what a Podman of their own needs. Their engine is Podman.
    pub rootless: Vec<usize>,
    /// Hosts that the operator's ssh reaches through another host alone, by place, with that host's place.
    pub behind: Vec<(usize, usize)>,
}

/// The largest number of hosts in a lab: addresses .11 to .100 of the lab's /24.
pub const MAX_HOSTS: usize = 90;

impl Spec {
    /// A lab of so many hosts with these engines, no added round trip time, and the registry.
    pub fn new(hosts: usize, engines: Engines) -> Self {
        Self {
            name: None,
            hosts: (0..hosts).map(|index| engines.of(index)).collect(),
            rtt: None,
            registry: true,
            state: None,
            program: None,
            binds: Vec::new(),
            disk: 8 << 30,
            sudo: Vec::new(),
            rootless: Vec::new(),
            behind: Vec::new(),
        }
    }

    /// The host of this place, counted from 1, lets in no root, but a user who has `sudo`.
    pub fn sudo(mut self, place: usize) -> Self {
        self.sudo.push(place);
        self
    }

    /// On the host of this place, counted from 1, nobody becomes root.
    pub fn rootless(mut self, place: usize) -> Self {
        self.rootless.push(place);
        self
    }

    /// The first of these hosts, counted from 1, is reached by ssh through the second alone.
    pub fn behind(mut self, place: usize, through: usize) -> Self {
        self.behind.push((place, through));
        self
    }

    /// The lab's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The round trip time between operator and hosts.
    pub fn rtt(mut self, rtt: Duration) -> Self {
        self.rtt = Some(rtt);
        self
    }

    /// A directory of the machine that hosts see as it is.
    pub fn bind(mut self, directory: impl Into<PathBuf>) -> Self {
        self.binds.push(directory.into());
        self
    }

    /// The `lab` program that keeps the lab, when it does not lie beside the caller.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// The directory in which labs lie: the spec's own, else `JIJI_LAB_STATE`, else `/var/tmp/jiji-lab`. It must be on a real
    /// disk, since the hosts' disks are files in it.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(self.state.as_deref())
    }

    /// Refuses what cannot be.
    pub(crate) fn check(&self) -> Result<(), LabError> {
        let refuse = |reason: String| Err(LabError::Spec { reason });
        if self.hosts.is_empty() || self.hosts.len() > MAX_HOSTS {
            return refuse(format!("{} hosts; a lab has 1 to {MAX_HOSTS}", self.hosts.len()));
        }
        if let Some(name) = &self.name
            && (name.is_empty()
                || name.len() > 32
                || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'))
        {
            return refuse(format!("name `{name}`; names are 1 to 32 of a-z, 0-9 and `-`"));
        }
        if self.rtt.is_some_and(|rtt| rtt > Duration::from_secs(2)) {
            return refuse("a round trip time over 2 s".to_owned());
        }
        if self.binds.iter().any(|path| !path.is_absolute()) {
            return refuse("a bind that is not an absolute path".to_owned());
        }
        let here = |place: usize| (1..=self.hosts.len()).contains(&place);
        if let Some(place) = self.sudo.iter().find(|place| !here(**place)) {
            return refuse(format!("`sudo` on host {place}; there are {} hosts", self.hosts.len()));
        }
        let podman = |place: usize| here(place) && self.hosts[place - 1] == Engine::Podman;
        if let Some(place) = self.rootless.iter().find(|place| !podman(**place) || self.sudo.contains(place)) {
            return refuse(format!("`rootless` on host {place}; it must be one with Podman and without `sudo`"));
        }
        let jumps = |place: usize| self.behind.iter().any(|(hidden, _)| *hidden == place);
        for (place, through) in &self.behind {
            if !here(*place) || !here(*through) || place == through || jumps(*through) {
                return refuse(format!("host {place} behind host {through}; the second must be one that is seen"));
            }
        }
        Ok(())
    }
}

/// The directory in which labs lie; see [`Spec::state_dir`].
pub(crate) fn state_dir(chosen: Option<&Path>) -> PathBuf {
    chosen.map(Path::to_owned).unwrap_or_else(|| {
        std::env::var_os("JIJI_LAB_STATE").map_or_else(|| PathBuf::from("/var/tmp/jiji-lab"), PathBuf::from)
    })
}

/// Reads which host is behind which, as people type it: `3=1`.
pub fn parse_behind(text: &str) -> Result<(usize, usize), LabError> {
    let bad = || LabError::Spec { reason: format!("`{text}`; write it like 3=1, host 3 behind host 1") };
    let (place, through) = text.split_once('=').ok_or_else(bad)?;
    Ok((place.parse().map_err(|_| bad())?, through.parse().map_err(|_| bad())?))
}

/// Reads a duration as people type it: `50ms`, `1.5s`, `2m`.
pub fn parse_duration(text: &str) -> Result<Duration, LabError> {
    let bad = || LabError::Spec { reason: format!("duration `{text}`; write it like 50ms, 1.5s or 2m") };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_type_them() {
        assert_eq!(parse_duration("50ms").expect("valid"), Duration::from_millis(50));
        assert_eq!(parse_duration("1.5s").expect("valid"), Duration::from_millis(1500));
        assert_eq!(parse_duration("2m").expect("valid"), Duration::from_secs(120));
        for bad in ["", "50", "ms", "-1s", "1 s", "5x"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mixed_lab_alternates_and_starts_with_podman() {
        let spec = Spec::new(3, Engines::Mixed);
        assert_eq!(spec.hosts, [Engine::Podman, Engine::Docker, Engine::Podman]);
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_built() {
        assert!(Spec::new(0, Engines::Podman).check().is_err());
        assert!(Spec::new(91, Engines::Podman).check().is_err());
        assert!(Spec::new(1, Engines::Podman).name("../up").check().is_err());
        assert!(Spec::new(1, Engines::Podman).bind("relative").check().is_err());
        assert!(Spec::new(1, Engines::Podman).name("demo").check().is_ok());
        assert!(Spec::new(2, Engines::Podman).sudo(2).behind(2, 1).check().is_ok());
        assert!(Spec::new(2, Engines::Podman).sudo(3).check().is_err());
        assert!(Spec::new(2, Engines::Mixed).rootless(1).check().is_ok());
        assert!(Spec::new(2, Engines::Mixed).rootless(2).check().is_err());
        assert!(Spec::new(1, Engines::Podman).rootless(1).sudo(1).check().is_err());
        assert!(Spec::new(2, Engines::Podman).behind(1, 1).check().is_err());
        assert!(Spec::new(3, Engines::Podman).behind(2, 1).behind(3, 2).check().is_err());
        assert_eq!(parse_behind("3=1").expect("valid"), (3, 1));
        assert!(parse_behind("3").is_err());
    }
}
