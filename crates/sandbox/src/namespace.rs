//! A user namespace, made once in the life of this process and kept by a descriptor: every helper enters it.
//!
//! Nobody lives in it. A helper creates it, waits until its users are written from outside, and goes. Who may write them is the kernel's
//! rule (user_namespaces(7)): one's own ids whoever has `CAP_SETUID`, those of `/etc/subuid` the setuid programs `newuidmap` and
//! `newgidmap` alone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};

use crate::probe::{Obstacle, Refusal};
use crate::run::{GRACE, Helper, RunError};
use crate::ways::{Ids, Range, Whose};
use crate::wire::{self, Doing, Failure, Reply, Request};

/// Processes that a step may have, and as many more as the user has already, are bounded by the namespace where no cgroup can bound them:
/// what is in it counts for the user who made it, and the limit of that moment is the namespace's for ever (Linux 5.14).
const PROCESSES: u64 = 4096;

/// A user namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
    /// How many processes the user may have in all, in it and outside.
    pub(crate) processes: Option<u64>,
}

/// The one that this process has.
static NAMESPACE: Mutex<Option<Arc<Namespace>>> = Mutex::new(None);

impl Namespace {
    /// The one that this process has, made if need be. Its users do not change while a process runs.
    pub(crate) fn of_this_process(ids: &Ids, program: Option<&Path>) -> Result<Arc<Self>, RunError> {
        let mut held = NAMESPACE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(namespace) = &*held {
            return Ok(Arc::clone(namespace));
        }
        let namespace = Arc::new(make(ids, program)?);
        *held = Some(Arc::clone(&namespace));
        Ok(namespace)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

fn make(ids: &Ids, program: Option<&Path>) -> Result<Namespace, RunError> {
    let processes = processes();
    let mut helper = Helper::bare(program, &Request::Namespace { processes })?;
    helper.control().set_read_timeout(Some(GRACE)).map_err(RunError::Talk)?;
    // It stays until it is dropped here: what it made would go with it.
    match wire::receive(helper.control()).map_err(RunError::Talk)? {
        Reply::Able => {}
        Reply::Failed(Failure::System { doing: Doing::UserNamespace, errno }) => {
            return Err(Refusal::NoUserNamespaces { errno, obstacle: Obstacle::find() }.into());
        }
        Reply::Failed(failure) => return Err(failure.into()),
        _ => return Err(RunError::Killed),
    }
    let pid = helper.id();
    match ids.whose {
        Whose::Same | Whose::Own => {
            if ids.whose == Whose::Own {
                // Without it the kernel lets nobody but root write the groups: a user could leave one that keeps him out of something.
                write(pid, "setgroups", "deny")?;
            }
            for (file, ranges) in [("gid_map", &ids.groups), ("uid_map", &ids.users)] {
                let text: String = ranges
                    .iter()
                    .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
                    .collect();
                write(pid, file, &text)?;
            }
        }
        Whose::Subordinate => {
            map("newgidmap", pid, &ids.groups)?;
            map("newuidmap", pid, &ids.users)?;
        }
    }
    let fd = rustix::fs::open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| RunError::Start(errno.into()))?;
    Ok(Namespace { fd, processes })
}

fn write(pid: u32, file: &'static str, text: &str) -> Result<(), Refusal> {
    let written = fs::write(format!("/proc/{pid}/{file}"), text);
    written.map_err(|error| Refusal::NotMapped { tool: file, said: error.to_string() })
}

/// Has `newuidmap` or its sister write the ids of a process's namespace.
fn map(tool: &'static str, pid: u32, ranges: &[Range]) -> Result<(), Refusal> {
    let numbers = ranges.iter().flat_map(|range| [range.inside, range.outside, range.count]);
    let mut command = Command::new(tool);
    command.arg(pid.to_string()).args(numbers.map(|number| number.to_string())).stdin(Stdio::null());
    match command.output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr).lines().next().unwrap_or_default().to_owned();
            Err(Refusal::NotMapped { tool, said })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Refusal::NoTool { tool }),
        Err(error) => Err(Refusal::NotMapped { tool, said: error.to_string() }),
    }
}

/// How many processes the user may have with a step's.
fn processes() -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    // The machine's root is never counted.
    if own == 0 {
        return None;
    }
    let mut count = 0_u64;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let numbered = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if numbered && entry.metadata().is_ok_and(|meta| meta.uid() == own) {
            // Threads count as well.
            count += fs::read_dir(entry.path().join("task")).map_or(1, |tasks| tasks.count() as u64);
        }
    }
    Some(count + PROCESSES)
}
