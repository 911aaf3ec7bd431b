//! Whether this machine can run steps, and if not, what would help.
//!
//! A step is never run with less isolation than promised: what is missing is a [`Refusal`]. Only the bounds on processes and
//! memory may be absent, and [`Support`] tells.

use std::path::{Path, PathBuf};

use crate::cgroup::Cgroups;
use crate::run::{RunError, Sandbox};
use crate::scratch::Scratch;
use crate::step::Limits;
use crate::ways::Way;
use crate::wire::{Doing, Failure};

/// The oldest kernel that has all calls used here; the last to come was mount_setattr(2).
const OLDEST: (u32, u32) = (5, 12);

/// What this machine can do for steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// As whom steps are run.
    pub way: Way,
    /// Linux's version, the first two numbers.
    pub kernel: (u32, u32),
    /// Whether the number of a step's processes can be bounded.
    pub processes_bounded: bool,
    /// Whether a step's memory can be bounded.
    pub memory_bounded: bool,
    /// How many processors a step can be given.
    pub cpus: u32,
}

/// What keeps this process from creating a user namespace, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// `user.max_user_namespaces` is 0.
    Maximum,
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's kernels before 11).
    Clone,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu since 23.10).
    AppArmor,
    /// A seccomp filter is in force, as in containers of Docker.
    Seccomp,
    /// Something else.
    Unknown,
}

/// Why this machine cannot run steps.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The root of a container that may not even be its own users.
    #[error("sandbox a step: this root has neither CAP_SYS_ADMIN nor CAP_SETUID and CAP_SETGID")]
    NoIds,
    /// The user has no ids set aside, or too few.
    #[error("sandbox a step: user `{user}` has {found} subordinate ids, and an image's files have 65536 owners")]
    NoSubordinateIds {
        /// The user.
        user: String,
        /// How many there are.
        found: u32,
    },
    /// The program that gives a namespace its users is not there.
    #[error("sandbox a step: find `{tool}`")]
    NoTool {
        /// The program.
        tool: &'static str,
    },
    /// The namespace was not given its users.
    #[error("sandbox a step: give a user namespace its users: {tool}: {said}")]
    NotMapped {
        /// What was to do it.
        tool: &'static str,
        /// What it said.
        said: String,
    },
    /// A user namespace cannot be created.
    #[error("sandbox a step: create a user namespace: {}", std::io::Error::from_raw_os_error(*errno))]
    NoUserNamespaces {
        /// The kernel's error number.
        errno: i32,
        /// What is in the way.
        obstacle: Obstacle,
    },
    /// A new `/proc` or `/sys` cannot be mounted: what is there is covered in part, as in containers.
    #[error("sandbox a step: mount `/{name}`: parts of this machine's are covered")]
    Covered {
        /// `proc` or `sys`.
        name: &'static str,
    },
    /// A seccomp filter denies a call that the sandbox cannot do without.
    #[error("sandbox a step: {doing}: a seccomp filter denies it")]
    Filtered {
        /// What was being done.
        doing: Doing,
    },
    /// A policy denies mounts.
    #[error("sandbox a step: {doing}: a security policy denies mounts")]
    MountsDenied {
        /// What was being done.
        doing: Doing,
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

/// What the defaults of Docker and Podman keep from a container, in one: whoever lacks one of them lacks the others as well.
const CONTAINER: &str = "this looks like a container: start it with `--security-opt seccomp=unconfined --security-opt \
    apparmor=unconfined --security-opt systempaths=unconfined` (Docker), `--security-opt seccomp=unconfined --security-opt unmask=ALL` \
    (Podman) or `--privileged`, be root in it, and put the cache on a volume";

impl Refusal {
    /// What would help.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoIds => {
                "this looks like a container without capabilities: give it CAP_SETUID and CAP_SETGID, or CAP_SYS_ADMIN \
                 (`--privileged`), or build outside of it"
            }
            Self::NoSubordinateIds { .. } => {
                "give the user a range, once: `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER` (numbers \
                 that nobody else has), or build as root; steps are never run without a sandbox"
            }
            Self::NoTool { .. } => {
                "install it (`uidmap` in Debian and Ubuntu, `shadow-utils` in Fedora, `shadow-uidmap` in Alpine), or build as root"
            }
            Self::NotMapped { .. } => {
                "`newuidmap` and `newgidmap` must be setuid root or hold CAP_SETUID and CAP_SETGID, and the ranges must be those of \
                 /etc/subuid and /etc/subgid; in a container, build as its root"
            }
            Self::NoUserNamespaces { obstacle, .. } => match obstacle {
                Obstacle::Maximum => {
                    "allow user namespaces: `sudo sysctl user.max_user_namespaces=15000`, or build as root"
                }
                Obstacle::Clone => {
                    "allow user namespaces: `sudo sysctl kernel.unprivileged_userns_clone=1`, or build as root"
                }
                Obstacle::AppArmor => {
                    "allow user namespaces: `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor profile for \
                     jiji with `userns`, or build as root"
                }
                Obstacle::Seccomp => CONTAINER,
                Obstacle::Unknown => "allow user namespaces on this machine, or build as root",
            },
            Self::Covered { .. } | Self::Filtered { .. } | Self::MountsDenied { .. } => CONTAINER,
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

impl Obstacle {
    /// Looks for what is in the way.
    pub(crate) fn find() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let is = |path: &str, value: &str| read(path).trim() == value;
        let filtered = read("/proc/self/status")
            .lines()
            .any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
        if is("/proc/sys/user/max_user_namespaces", "0") {
            Self::Maximum
        } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
            Self::Clone
        } else if filtered {
            Self::Seccomp
        } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
            Self::AppArmor
        } else {
            Self::Unknown
        }
    }
}

/// Tries, with a real overlay on the file system of the directory `scratch`, whether steps can be run; takes a few milliseconds.
///
/// # Errors
/// [`Refusal`], which names the cure.
pub fn probe(sandbox: &Sandbox, scratch: &Path) -> Result<Support, Refusal> {
    kernel_is_new_enough()?;
    let way = sandbox.way()?;
    let untried = |error| match error {
        RunError::Refused(refusal) => refusal,
        other => Refusal::Untried(Box::new(other)),
    };
    let room = Scratch::new(sandbox, scratch).map_err(|error| untried(RunError::Start(error)))?;
    let bounded = sandbox.try_mounts(way, &room).map_err(untried)?;
    let cgroups = Cgroups::create(&Limits { memory: Some(1 << 30), ..Limits::default() });
    let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    Ok(Support {
        way: way.clone(),
        kernel: kernel(),
        processes_bounded: cgroups.processes || bounded,
        memory_bounded: cgroups.memory,
        cpus,
    })
}

/// What a failure says of this machine, if it says something of it.
pub(crate) fn refused(failure: Failure, way: &Way, scratch: &Path) -> RunError {
    let Failure::System { doing, errno } = failure else { return failure.into() };
    let inside = *way != Way::Root;
    let refusal = match (doing, errno) {
        (
            Doing::HostName | Doing::Fixed | Doing::Private | Doing::Namespaces | Doing::Join | Doing::Overlay,
            libc::EPERM | libc::ENOSYS,
        ) if inside && Obstacle::find() == Obstacle::Seccomp => Refusal::Filtered { doing },
        (Doing::Namespaces, errno) => Refusal::NoNamespaces { errno },
        (Doing::Overlay, libc::ENODEV) => Refusal::NoOverlay,
        (Doing::Overlay, libc::EINVAL | libc::EOPNOTSUPP) => Refusal::UnfitFileSystem { scratch: scratch.to_owned() },
        (Doing::Proc, libc::EPERM) if inside => Refusal::Covered { name: "proc" },
        (Doing::Sys, libc::EPERM) if inside => Refusal::Covered { name: "sys" },
        (Doing::Private | Doing::Overlay | Doing::Proc | Doing::Sys | Doing::Dev | Doing::Etc, libc::EACCES)
            if inside =>
        {
            Refusal::MountsDenied { doing }
        }
        _ => return failure.into(),
    };
    refusal.into()
}

/// The part of the probe that costs nothing.
pub(crate) fn kernel_is_new_enough() -> Result<(), Refusal> {
    let found = kernel();
    if found < OLDEST {
        return Err(Refusal::OldKernel { found });
    }
    Ok(())
}

pub(crate) fn kernel() -> (u32, u32) {
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
