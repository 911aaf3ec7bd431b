//! The helper: a fresh copy of this program with a single thread, between the caller and the sandbox.
//!
//! Namespaces can be entered only by a process with one thread, and the caller has many; so it starts its own program again and
//! [`enter_if_requested`] takes over before `main` does anything. The helper creates the namespaces, starts their first process
//! and then only watches: for that process's end, for the deadline, for the caller hanging up. Whatever ends first, when the helper
//! is gone so is everything in the sandbox: the first process is killed with its parent, and the kernel kills a pid namespace with
//! its first process. Building the sandbox itself is `inside`'s work.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use rustix::thread::{Gid, Uid, UnshareFlags};

use crate::errands;
use crate::inside;
use crate::step::Network;
use crate::sys::{self, Fork};
use crate::wire::{self, Doing, During as _, Failure, Reply, Request, Run};

/// The one argument that makes a program a helper.
pub(crate) const REQUEST: &str = "__sandbox";

/// A second argument, of a helper that is to enter a user namespace before it reads its request.
pub(crate) const ENTER: &str = "enter";

/// Becomes the sandbox's helper, and never returns, if this process was started to be one. To be called first thing in `main`,
/// before any thread exists; otherwise it costs nothing.
pub fn enter_if_requested() {
    if std::env::args_os().nth(1).as_deref() != Some(OsStr::new(REQUEST)) {
        return;
    }
    let entering = std::env::args_os().nth(2).as_deref() == Some(OsStr::new(ENTER));
    let done = if entering { namespace_of(io::stdin().as_fd()) } else { serve() };
    let code = i32::from(done.is_err()) * 2;
    #[expect(clippy::exit, reason = "a helper must never go on to its program's own main")]
    std::process::exit(code)
}

/// Answers one request. Errors mean that there is nobody to answer.
fn serve() -> io::Result<()> {
    // Standard input is the socket; it moves away so that no child can inherit it as its input.
    let mut control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(null()?)?;
    // A Ctrl-C is for the caller, who decides what it means.
    let _ = rustix::process::setsid();
    let request: Request = wire::receive(&mut control)?;
    let reply = match request {
        Request::Probe { scratch } => inside::probe(&scratch).map(|()| Reply::Able),
        Request::Namespace { processes } => return new_namespace(processes, &mut control),
        Request::Run(run) => watch(&run, &control),
        Request::Deputy(errand) => return errands::run(errand, &mut control),
    };
    wire::send(&mut control, &reply.unwrap_or_else(Reply::Failed))
}

/// Creates a user namespace and stays in it until the caller, who writes its users and keeps it, is done.
fn new_namespace(processes: Option<u64>, control: &mut UnixStream) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let create = || {
        if let Some(processes) = processes {
            // What holds at this moment is the namespace's bound, whatever its processes' own limits say later.
            let Rlimit { current, maximum } = getrlimit(Resource::Nproc);
            let lower = Some(current.map_or(processes, |current| current.min(processes)));
            setrlimit(Resource::Nproc, Rlimit { current: lower, maximum }).during(Doing::UserNamespace)?;
        }
        sys::unshare(UnshareFlags::NEWUSER).during(Doing::UserNamespace)
    };
    let reply = create().map_or_else(Reply::Failed, |()| Reply::Able);
    wire::send(control, &reply)?;
    control.read_exact(&mut [0])
}

/// Enters the user namespace that the caller sends, and begins again there, from a program that nobody can write to.
fn namespace_of(control: BorrowedFd<'_>) -> io::Result<()> {
    let mut control = UnixStream::from(control.try_clone_to_owned()?);
    let namespace = wire::receive_fd(&control)?;
    let failure = match enter(&namespace) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    wire::send(&mut control, &Reply::Failed(failure))
}

fn enter(namespace: &OwnedFd) -> Result<Infallible, Failure> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User)).during(Doing::Join)?;
    // The user is root there by now, and is made so in name where an id of the same number came along from outside.
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).during(Doing::Join)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).during(Doing::Join)?;
    sys::unshare(UnshareFlags::NEWNS).during(Doing::Namespaces)?;
    inside::private()?;
    let own = std::fs::metadata("/proc/self/exe").during(Doing::Seal)?;
    // By its name: the mount it was started from is another namespace's.
    let name = std::fs::read_link("/proc/self/exe").during(Doing::Seal)?;
    let program = crate::run::seal(&name).during(Doing::Seal)?;
    let found = rustix::fs::fstat(&program).during(Doing::Seal)?;
    if (found.st_dev, found.st_ino) != (own.dev(), own.ino()) {
        return Err(rustix::io::Errno::STALE).during(Doing::Seal);
    }
    let text = |text: Vec<u8>| CString::new(text).map_err(|_| Failure::ZeroByte);
    let path = text(by_number(&program).into_bytes())?;
    let argv = [text(b"jiji".to_vec())?, text(REQUEST.into())?];
    let env = std::env::vars_os().map(|(name, value)| text([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let env = env.collect::<Result<Vec<_>, _>>()?;
    sys::exec(&path, &argv, &env).during(Doing::Seal)
}

fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// All that a step is separated in, unless it is given the network. A user namespace is not among them: either the step's root is this machine's
/// root, with few capabilities, because files must get owners that the layer can name, or this process is in a user namespace already.
pub(crate) const NAMESPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWCGROUP);

fn watch(run: &Run, control: &UnixStream) -> Result<Reply, Failure> {
    let deadline = run.millis.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    sealed()?;
    if run.elsewhere {
        become_another_machine(run.cpus).during(Doing::Fixed)?;
    }
    for file in &run.cgroups {
        std::fs::write(file, "0").during(Doing::Cgroup)?;
    }
    let (reports, report) = pipe()?;
    let (gate, go) = pipe()?;
    // For what tells of calls that only this machine's root could make.
    let (told, tell) = UnixStream::pair().during(Doing::Fork)?;
    let namespaces = match run.network {
        Network::None => NAMESPACES,
        Network::Machine => NAMESPACES.difference(UnshareFlags::NEWNET),
    };
    sys::unshare(namespaces).during(Doing::Namespaces)?;
    let first = match sys::fork().during(Doing::Fork)? {
        Fork::Child => {
            drop((go, reports, told));
            inside::first_process(run, gate, report, tell)
        }
        Fork::Parent(first) => first,
    };
    drop((gate, report, tell));
    let result = attend(first, control, reports, told, go, deadline);
    // Nothing may outlive the helper, not even where watching failed. Killing a process that was waited for is an error that
    // changes nothing; its id is in use until then.
    result.unwrap_or_else(|failure| {
        let _ = rustix::process::kill_process(first, Signal::KILL);
        let _ = rustix::process::waitpid(Some(first), WaitOptions::empty());
        Err(failure)
    })
}

/// Makes this process one of a machine with another name, and of a user with another mask, other limits and the last processors. What it
/// starts must not see any of it.
fn become_another_machine(cpus: u32) -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit};
    use rustix::thread::CpuSet;
    sys::unshare(UnshareFlags::NEWUTS)?;
    rustix::system::sethostname(b"elsewhere")?;
    rustix::system::setdomainname(b"another.example")?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let files = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: files.maximum })?;
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let mut last = CpuSet::new();
    for cpu in (0..CpuSet::MAX_CPU).rev().filter(|&cpu| allowed.is_set(cpu)).take(cpus as usize) {
        last.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &last)
}

/// Waits for the first process's end and says how it came about.
fn attend(
    first: Pid,
    control: &UnixStream,
    reports: OwnedFd,
    told: UnixStream,
    go: OwnedFd,
    deadline: Option<Instant>,
) -> Result<Result<Reply, Failure>, Failure> {
    let pidfd = rustix::process::pidfd_open(first, PidfdFlags::empty()).during(Doing::Fork)?;
    // The first process waits for this before it does anything: it must not begin if this process died before it asked to be
    // killed with it.
    rustix::io::write(&go, b"g").during(Doing::Fork)?;
    // First a socket on which a listener comes or nothing, then the listener.
    let mut watched: Option<OwnedFd> = Some(told.into());
    let mut listening = false;
    let cut = loop {
        let timeout = match deadline {
            None => None,
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                None => break Some(Reply::TimedOut),
                Some(left) => Some(Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })),
            },
        };
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
        fds.extend(watched.as_ref().map(|watched| PollFd::new(watched, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.during(Doing::Fork)?,
        };
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        if !ready[0].is_empty() {
            break None;
        }
        if !ready[1].is_empty() {
            break Some(Reply::Cancelled);
        }
        let Some(ready) = ready.get(2).filter(|ready| !ready.is_empty()) else { continue };
        watched = match watched.take() {
            Some(socket) if !listening => {
                listening = true;
                wire::receive_fd(&UnixStream::from(socket)).ok()
            }
            Some(listener) if ready.contains(PollFlags::IN) => match inside::only_root(listener.as_fd()) {
                Some(action) => break Some(Reply::Failed(Failure::OnlyRoot { action })),
                // The process that made the call is gone.
                None => Some(listener),
            },
            // Everybody who could be told of is gone.
            _ => None,
        };
    };
    if cut.is_some() {
        rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).during(Doing::Fork)?;
    }
    // Returns when every process of the namespace is gone: the kernel reaps them before the first.
    rustix::process::waitpid(Some(first), WaitOptions::empty()).during(Doing::Fork)?;
    if let Some(reply) = cut {
        return Ok(Ok(reply));
    }
    let mut bytes = Vec::new();
    File::from(reports).read_to_end(&mut bytes).during(Doing::Fork)?;
    Ok(match wire::receive(&mut bytes.as_slice()) {
        Ok(Reply::Failed(failure)) => Err(failure),
        Ok(reply) => Ok(reply),
        Err(_) => Ok(Reply::Silent),
    })
}

/// Makes sure that nobody can write to this program through `/proc/PID/exe`, not even the sandbox's root (CVE-2019-5736): the
/// caller started it from a read-only mount of its own.
fn sealed() -> Result<(), Failure> {
    let exe = rustix::fs::statvfs("/proc/self/exe").during(Doing::Seal)?;
    if exe.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    Err(rustix::io::Errno::PERM).during(Doing::Seal)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during(Doing::Fork)
}

/// A descriptor as a path that mount options can hold, however long and odd its real name is.
pub(crate) fn by_number(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A name from the wire as something to open.
pub(crate) fn bytes(name: &OsStr) -> &[u8] {
    name.as_bytes()
}
