//! Whether this machine can run steps, and if not, what would help.
//!
//! A step is never run with less isolation than promised: what is missing is a [`Refusal`]. Only the bounds on processes and
//! memory may be absent, and [`Support`] tells.

use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use crate::cgroup::Cgroups;
use crate::run::{RunError, Sandbox};
use crate::scratch::Scratch;
use crate::step::Limits;
use crate::wire::{Doing, Failure};

/// The oldest kernel that has all calls used here; the last to come was mount_setattr(2).
const OLDEST: (u32, u32) = (5, 12);

/// What this machine can do for steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// Linux's version, the first two numbers.
    pub kernel: (u32, u32),
    /// Whether the number of a step's processes can be bounded.
    pub processes_bounded: bool,
    /// Whether a step's memory can be bounded.
    pub memory_bounded: bool,
    /// How many processors a step can be given.
    pub cpus: u32,
}

/// Why this machine cannot run steps.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not root, or a root that may not administrate (as in most containers).
    #[error("sandbox a step: creating namespaces and mounts needs root with CAP_SYS_ADMIN")]
    Unprivileged {
        /// Whether the user is root all the same.
        root: bool,
    },
    /// The kernel lacks system calls that the sandbox cannot do without.
    #[error("sandbox a step: Linux {}.{} is older than {}.{}", found.0, found.1, OLDEST.0, OLDEST.1)]
    OldKernel {
        /// The version found.
        found: (u32, u32),
    },
    /// The kernel or a policy of this machine does not let namespaces be created.
    #[error("sandbox a step: creating namespaces: {}", std::io::Error::from_raw_os_error(*errno))]
    NoNamespaces {
        /// The kernel's error number.
        errno: i32,
    },
    /// The kernel has no overlay file system.
    #[error("sandbox a step: this kernel has no overlay file system")]
    NoOverlay,
    /// The scratch directory's file system cannot carry an overlay.
    #[error("sandbox a step: the file system of `{scratch}` cannot be written to through an overlay")]
    UnfitFileSystem {
        /// Where the scratch directory was to be.
        scratch: PathBuf,
    },
    /// Something else went wrong when it was tried.
    #[error("try the sandbox: {0}")]
    Untried(#[source] Box<RunError>),
}

impl Refusal {
    /// What would help.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unprivileged { root: false } => {
                "build as root (for example with `sudo`); steps are never run without a sandbox"
            }
            Self::Unprivileged { root: true } => {
                "this looks like a container: give it CAP_SYS_ADMIN (`--privileged`), or build outside of it"
            }
            Self::OldKernel { .. } => "build on a machine with a newer kernel",
            Self::NoNamespaces { .. } => {
                "allow namespaces: `sysctl user.max_mnt_namespaces user.max_pid_namespaces user.max_net_namespaces` must not be 0"
            }
            Self::NoOverlay => "load it with `modprobe overlay`",
            Self::UnfitFileSystem { .. } => {
                "put the cache on ext4, xfs, btrfs or tmpfs (XDG_CACHE_HOME); inside a container, on a volume"
            }
            Self::Untried(_) => {
                "this is about the machine rather than the project; the cause above names the call that failed"
            }
        }
    }
}

/// Tries, with a real overlay on the file system of the directory `scratch`, whether steps can be run; takes a few milliseconds.
///
/// # Errors
/// [`Refusal`], which names the cure.
pub fn probe(sandbox: &Sandbox, scratch: &Path) -> Result<Support, Refusal> {
    privileged()?;
    let untried = |error| Refusal::Untried(Box::new(error));
    let room = Scratch::new(scratch).map_err(|error| untried(RunError::Start(error)))?;
    match sandbox.try_overlay(&room).map_err(untried)? {
        Ok(()) => {}
        Err(Failure::System { doing: Doing::Namespaces, errno }) => return Err(Refusal::NoNamespaces { errno }),
        Err(Failure::System { doing: Doing::Overlay, errno: libc::ENODEV }) => return Err(Refusal::NoOverlay),
        Err(Failure::System { doing: Doing::Overlay, errno: libc::EINVAL | libc::EOPNOTSUPP }) => {
            return Err(Refusal::UnfitFileSystem { scratch: scratch.to_owned() });
        }
        Err(failure) => return Err(untried(RunError::Failed(failure))),
    }
    let cgroups = Cgroups::create(&Limits { memory: Some(1 << 30), ..Limits::default() });
    let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    Ok(Support { kernel: kernel(), processes_bounded: cgroups.processes, memory_bounded: cgroups.memory, cpus })
}

/// The part of the probe that costs nothing.
pub(crate) fn privileged() -> Result<(), Refusal> {
    let root = rustix::process::geteuid().is_root();
    let able = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if !root || !able {
        return Err(Refusal::Unprivileged { root });
    }
    let found = kernel();
    if found < OLDEST {
        return Err(Refusal::OldKernel { found });
    }
    Ok(())
}

fn kernel() -> (u32, u32) {
    version(&rustix::system::uname().release().to_string_lossy())
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(version("5.4.0-150-generic"), (5, 4));
        assert_eq!(version("5.12-rc1"), (5, 12));
        assert!(version("5.4.0") < OLDEST && version("5.15.0") > OLDEST && version("10.1") > OLDEST);
    }
}
