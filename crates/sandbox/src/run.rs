//! This side of the wall: starts the helper, hands it the step, passes its output on, and reads how it ended.
//!
//! Blocking, on the caller's thread, with no thread of its own. A step whose caller dies is killed: the helper sees its socket
//! close.

use std::io::{self, Read};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use crate::cgroup::Cgroups;
use crate::helper::{ENTER, REQUEST};
use crate::namespace::Namespace;
use crate::probe::{self, Refusal};
use crate::scratch::Scratch;
use crate::step::{Exit, Outcome, Step, Stream};
use crate::sys;
use crate::ways::Way;
use crate::wire::{self, Failure, Reply, Request};

/// How long a helper may take to clean up after its deadline before it is killed too.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// The first kernel that counts a namespace's processes for the user who made it.
const COUNTED_IN_NAMESPACES: (u32, u32) = (5, 14);

/// This very program.
const ITSELF: &str = "/proc/self/exe";

/// The environment of somebody else.
const SOMEBODY: [(&str, &str); 6] = [
    ("HOME", "/home/somebody"),
    ("LANG", "tr_TR.UTF-8"),
    ("LC_ALL", "tr_TR.UTF-8"),
    ("SOURCE_DATE_EPOCH", "1"),
    ("TZ", "Pacific/Chatham"),
    ("USER", "somebody"),
];

/// Longest line handed on in one piece, bytes; longer ones come in several.
const LINE: usize = 64 << 10;

/// Why a step did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// This machine cannot run steps.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The helper could not be started.
    #[error("start the sandbox's helper: {0}")]
    Start(io::Error),
    /// The helper could not be talked to.
    #[error("talk to the sandbox's helper: {0}")]
    Talk(io::Error),
    /// The step's command never began.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// What was made only to mount on could not be taken away again.
    #[error("remove a step's mount points: {0}")]
    MountPoints(io::Error),
    /// The sandbox ended without saying how. On a machine without memory left the kernel kills at will.
    #[error("run the step to its end: the sandbox was killed from outside")]
    Killed,
}

impl RunError {
    /// What would help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused(refusal) => Some(refusal.hint()),
            Self::Failed(failure) => failure.hint(),
            Self::Start(_) | Self::Talk(_) | Self::MountPoints(_) | Self::Killed => None,
        }
    }
}

/// Ends steps from another thread.
#[derive(Debug, Clone)]
pub struct Canceller {
    event: Arc<OwnedFd>,
}

impl Canceller {
    /// A canceller nobody has used.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// Kills everything in the steps that run with this canceller, and in those that are begun with it later.
    pub fn cancel(&self) {
        // Fails only when the counter is full, and then it has been used.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Waits until it is used, no longer than this. True if it was.
    pub fn is_cancelled_within(&self, time: Duration) -> bool {
        let timeout = Timespec::try_from(time).ok();
        wait([Some(self.event.as_fd())], timeout).is_ok_and(|[used]| used)
    }
}

/// How steps are run: by which helper, and who may end them.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    helper: Option<PathBuf>,
    elsewhere: bool,
    canceller: Option<Canceller>,
}

impl Sandbox {
    /// A sandbox whose helper is this very program, which must call [`enter_if_requested`](crate::enter_if_requested).
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes another program as the helper, one of the same build that calls [`enter_if_requested`](crate::enter_if_requested).
    pub fn with_helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.helper = Some(program.into());
        self
    }

    /// Runs steps as if on another machine: another host name, folder, mask, limit of files and processor, and the environment of
    /// somebody else around it. A step must not see any of it; a check finds out.
    pub fn elsewhere(mut self) -> Self {
        self.elsewhere = true;
        self
    }

    /// Lets `canceller` end the steps.
    pub fn cancelled_by(mut self, canceller: Canceller) -> Self {
        self.canceller = Some(canceller);
        self
    }

    /// As whom steps are run.
    ///
    /// # Errors
    /// [`Refusal`] where no way is open to this process. That one is says nothing yet of whether it leads through: [`probe`](crate::probe())
    /// tries it.
    pub fn way(&self) -> Result<&'static Way, Refusal> {
        static WAY: OnceLock<Way> = OnceLock::new();
        if let Some(way) = WAY.get() {
            return Ok(way);
        }
        let way = Way::of_this_process()?;
        Ok(WAY.get_or_init(|| way))
    }

    /// Runs a step and returns when everything in it is gone. Each line of output, without its line feed, is handed to `on_line`
    /// as it comes.
    ///
    /// # Errors
    /// [`RunError`]. A command that fails is none of them: see [`Outcome::exit`].
    pub fn run(
        &self,
        step: &Step,
        scratch: &Scratch,
        on_line: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Outcome, RunError> {
        probe::kernel_is_new_enough()?;
        let way = self.way()?;
        let began = Instant::now();
        let cgroups = Cgroups::create(&step.limits);
        let request = Request::Run(wire::Run {
            argv: step.argv.clone(),
            env: step.env.clone(),
            user: step.user.clone(),
            workdir: step.workdir.clone().into_os_string(),
            layers: step.layers.iter().map(|layer| layer.clone().into_os_string()).collect(),
            scratch: scratch.path().as_os_str().to_owned(),
            mounts: step.mounts.clone(),
            network: step.network,
            proxy: step.proxy.clone().map(PathBuf::into_os_string),
            source_date_epoch: step.source_date_epoch,
            cpus: step.limits.cpus.get(),
            millis: step.limits.time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            elsewhere: self.elsewhere,
            cgroups: cgroups.entrances().map(PathBuf::into_os_string).collect(),
            highest: way.highest(),
        });
        let (mut helper, namespace) = self.start(way, &request)?;
        let mut output = Output::new(step.limits.output);
        let deadline = step.limits.time.and_then(|time| began.checked_add(time + GRACE));
        let reply = helper.attend(self.canceller.as_ref(), deadline, &mut output, on_line);
        drop(helper);
        let targets: Vec<PathBuf> = step.mounts.iter().map(|mount| mount.target.clone()).collect();
        self.forget(&scratch.upper(), &step.layers, &targets).map_err(RunError::MountPoints)?;
        let exit = match reply? {
            Reply::Exited(code) => Exit::Code(code),
            Reply::Signaled(signal) => Exit::Signal(signal),
            Reply::TimedOut => Exit::TimedOut,
            Reply::Cancelled => Exit::Cancelled,
            Reply::Failed(failure) => return Err(probe::refused(failure, way, scratch.path())),
            Reply::Silent | Reply::Able | Reply::Answer(_) => return Err(RunError::Killed),
        };
        Ok(Outcome {
            exit,
            output: output.total,
            dropped: output.dropped,
            elapsed: began.elapsed(),
            processes_bounded: cgroups.processes || bounds_processes(namespace.as_deref()),
        })
    }

    /// Asks the helper whether it could mount an overlay over `scratch`, and says whether it would bound a step's processes.
    pub(crate) fn try_mounts(&self, way: &Way, scratch: &Scratch) -> Result<bool, RunError> {
        let request = Request::Probe { scratch: scratch.path().as_os_str().to_owned() };
        let (mut helper, namespace) = self.start(way, &request)?;
        let deadline = Instant::now().checked_add(GRACE);
        match helper.attend(None, deadline, &mut Output::new(0), &mut |_, _| {})? {
            Reply::Able => Ok(bounds_processes(namespace.as_deref())),
            Reply::Failed(failure) => Err(probe::refused(failure, way, scratch.path())),
            _ => Err(RunError::Killed),
        }
    }

    /// Starts a helper as the one who can do what `request` asks, and tells the namespace it is in.
    pub(crate) fn start(&self, way: &Way, request: &Request) -> Result<(Helper, Option<Arc<Namespace>>), RunError> {
        let program = self.helper.as_deref();
        match way {
            Way::Root => Ok((Helper::sealed(program, request, self.elsewhere)?, None)),
            Way::Namespace(ids) => {
                let namespace = Namespace::of_this_process(ids, program)?;
                Ok((Helper::entering(program, &namespace, request, self.elsewhere)?, Some(namespace)))
            }
        }
    }
}

fn bounds_processes(namespace: Option<&Namespace>) -> bool {
    namespace.is_some_and(|namespace| namespace.processes.is_some()) && probe::kernel() >= COUNTED_IN_NAMESPACES
}

/// [`Sandbox::run`] with this very program as the helper.
///
/// # Errors
/// As there.
pub fn run(step: &Step, scratch: &Scratch, on_line: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome, RunError> {
    Sandbox::new().run(step, scratch, on_line)
}

/// A running helper. Dropped, it is gone, and the sandbox with it.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    control: UnixStream,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Not its socket's closing but its death is waited for: until then mounts exist. It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Helper {
    /// A helper whose program nobody can write to, for this machine's root.
    fn sealed(program: Option<&Path>, request: &Request, elsewhere: bool) -> Result<Self, RunError> {
        let sealed = seal(program.unwrap_or(Path::new(ITSELF))).map_err(RunError::Start)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", sealed.as_raw_fd()));
        Self::spawn(command.arg0("jiji").arg(REQUEST), elsewhere)?.begin(request)
    }

    /// A helper that enters the namespace, and there protects its own program before it reads the request: only in it has it the right to.
    fn entering(
        program: Option<&Path>,
        namespace: &Namespace,
        request: &Request,
        elsewhere: bool,
    ) -> Result<Self, RunError> {
        let mut command = Command::new(program.unwrap_or(Path::new(ITSELF)));
        let helper = Self::spawn(command.arg0("jiji").arg(REQUEST).arg(ENTER), elsewhere)?;
        wire::send_fd(&helper.control, namespace.fd().as_fd()).map_err(RunError::Talk)?;
        helper.begin(request)
    }

    /// A helper that runs nothing of a step.
    pub(crate) fn bare(program: Option<&Path>, request: &Request) -> Result<Self, RunError> {
        let mut command = Command::new(program.unwrap_or(Path::new(ITSELF)));
        Self::spawn(command.arg0("jiji").arg(REQUEST), false)?.begin(request)
    }

    fn spawn(command: &mut Command, elsewhere: bool) -> Result<Self, RunError> {
        let (control, theirs) = UnixStream::pair().map_err(RunError::Start)?;
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if elsewhere {
            command.envs(SOMEBODY).current_dir("/usr");
        }
        let mut child = command.spawn().map_err(RunError::Start)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        Ok(Self { child, control, out, err })
    }

    fn begin(mut self, request: &Request) -> Result<Self, RunError> {
        match wire::send(&mut self.control, request) {
            // It may have said why it does not listen any more.
            Err(error) => match wire::receive(&mut self.control) {
                Ok(Reply::Failed(failure)) => Err(failure.into()),
                _ => Err(RunError::Talk(error)),
            },
            Ok(()) => Ok(self),
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The connection to it.
    pub(crate) fn control(&mut self) -> &mut UnixStream {
        &mut self.control
    }

    /// Passes output on until the helper has answered and all output is read.
    pub(crate) fn attend(
        &mut self,
        canceller: Option<&Canceller>,
        deadline: Option<Instant>,
        output: &mut Output,
        on_line: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Reply, RunError> {
        let mut reply = None;
        let mut cancelled = false;
        let mut buffer = vec![0; LINE];
        while reply.is_none() || self.out.is_some() || self.err.is_some() {
            let timeout = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    None => return Err(RunError::Killed),
                    Some(left) => Some(Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })),
                },
            };
            let (out, err) = (self.out.as_ref().map(|s| s.as_fd()), self.err.as_ref().map(|s| s.as_fd()));
            let control = reply.is_none().then(|| self.control.as_fd());
            let cancel = canceller.filter(|_| !cancelled).map(|canceller| canceller.event.as_fd());
            let ready = wait([out, err, control, cancel], timeout).map_err(RunError::Talk)?;
            if ready[0] && output.pass(Stream::Out, self.out.as_mut(), &mut buffer, on_line).map_err(RunError::Talk)? {
                self.out = None;
            }
            if ready[1] && output.pass(Stream::Err, self.err.as_mut(), &mut buffer, on_line).map_err(RunError::Talk)? {
                self.err = None;
            }
            if ready[2] {
                reply = Some(match wire::receive(&mut self.control) {
                    Ok(reply) => reply,
                    Err(_) => Reply::Silent,
                });
            }
            if ready[3] {
                cancelled = true;
                self.control.shutdown(std::net::Shutdown::Write).map_err(RunError::Talk)?;
            }
        }
        output.finish(on_line);
        Ok(reply.unwrap_or(Reply::Silent))
    }
}

/// Opens the helper's program through a read-only mount that nobody else has, so that a step cannot write to it through `/proc`.
pub(crate) fn seal(program: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, program, flags)?;
    const READ_ONLY: u64 = 0x1; // MOUNT_ATTR_RDONLY, linux/mount.h
    sys::mount_setattr(mount.as_fd(), false, READ_ONLY)?;
    Ok(mount)
}

/// Waits until one of the descriptors has something, or its end, to be read.
fn wait<const N: usize>(fds: [Option<BorrowedFd<'_>>; N], timeout: Option<Timespec>) -> io::Result<[bool; N]> {
    let mut list: Vec<PollFd<'_>> =
        fds.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    match poll(&mut list, timeout.as_ref()) {
        Err(rustix::io::Errno::INTR) => return Ok([false; N]),
        other => other?,
    };
    let mut ready = list.iter().map(|fd| !fd.revents().is_empty());
    Ok(fds.map(|fd| fd.is_some() && ready.next().unwrap_or(false)))
}

/// Output on its way: cut into lines, counted, bounded.
pub(crate) struct Output {
    limit: u64,
    total: u64,
    dropped: u64,
    parts: [Vec<u8>; 2],
}

impl Output {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, total: 0, dropped: 0, parts: [Vec::new(), Vec::new()] }
    }

    /// Reads once from a stream that has something. True at its end.
    fn pass(
        &mut self,
        stream: Stream,
        from: Option<&mut impl Read>,
        buffer: &mut [u8],
        on_line: &mut dyn FnMut(Stream, &[u8]),
    ) -> io::Result<bool> {
        let read = match from.map(|from| from.read(buffer)) {
            None | Some(Ok(0)) => return Ok(true),
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Some(read) => read?,
        };
        self.take(stream, &buffer[..read], on_line);
        Ok(false)
    }

    fn take(&mut self, stream: Stream, bytes: &[u8], on_line: &mut dyn FnMut(Stream, &[u8])) {
        let left = usize::try_from(self.limit.saturating_sub(self.total)).unwrap_or(usize::MAX);
        let kept = &bytes[..bytes.len().min(left)];
        self.total += bytes.len() as u64;
        self.dropped += (bytes.len() - kept.len()) as u64;
        let part = &mut self.parts[stream as usize];
        for piece in kept.split_inclusive(|&byte| byte == b'\n') {
            part.extend_from_slice(piece);
            if part.last() == Some(&b'\n') {
                part.pop();
            } else if part.len() < LINE {
                continue;
            }
            on_line(stream, part);
            part.clear();
        }
    }

    /// Hands on what came after the last line feed.
    fn finish(&mut self, on_line: &mut dyn FnMut(Stream, &[u8])) {
        for stream in [Stream::Out, Stream::Err] {
            let part = std::mem::take(&mut self.parts[stream as usize]);
            if !part.is_empty() {
                on_line(stream, &part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(limit: u64, pieces: &[(Stream, &[u8])]) -> (Vec<(Stream, String)>, u64, u64) {
        let mut seen = Vec::new();
        let mut output = Output::new(limit);
        let mut on_line = |stream, line: &[u8]| seen.push((stream, String::from_utf8_lossy(line).into_owned()));
        for (stream, bytes) in pieces {
            output.take(*stream, bytes, &mut on_line);
        }
        output.finish(&mut on_line);
        (seen, output.total, output.dropped)
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let (seen, total, dropped) =
            lines(100, &[(Stream::Out, b"one\ntw"), (Stream::Err, b"!\n"), (Stream::Out, b"o\n\nthree")]);
        let seen: Vec<_> = seen.iter().map(|(stream, line)| (*stream, line.as_str())).collect();
        assert_eq!(
            seen,
            [(Stream::Out, "one"), (Stream::Err, "!"), (Stream::Out, "two"), (Stream::Out, ""), (Stream::Out, "three"),]
        );
        assert_eq!((total, dropped), (16, 0));
    }

    #[test]
    fn what_is_beyond_the_limit_is_counted_and_dropped() {
        let (seen, total, dropped) = lines(5, &[(Stream::Out, b"1234\n5678\n"), (Stream::Out, b"9\n")]);
        assert_eq!(seen, [(Stream::Out, "1234".to_owned())]);
        assert_eq!((total, dropped), (12, 7));
    }
}
