//! The command: started, waited for, and everything it orphaned reaped.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};
use rustix::thread::{Gid, Uid};

use super::{Place, fixed, privileges, tripwires};
use crate::sys::{self, Fork};
use crate::wire::{self, Doing, During as _, Failure, Reply, Run};

/// Docker's default, and where a program is looked for if the step has no `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts the command and waits for its end. Where it runs in a user namespace, what tells of calls that only root could make is sent
/// through `tell`.
pub(super) fn command(run: &Run, place: Place, tell: UnixStream) -> Result<Reply, Failure> {
    if let Some(highest) = run.highest {
        tripwires::there_is(highest, &place.user)?;
    }
    let rights = privileges::Rights::of(run)?;
    let (answers, answer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during(Doing::Fork)?;
    // A user who is not root opens `/dev/stdout` by path, and the kernel asks the pipe's owner.
    for stream in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let (uid, gid) = (Uid::from_raw(place.user.uid), Gid::from_raw(place.user.gid));
        rustix::fs::fchown(stream, Some(uid), Some(gid)).during(Doing::Fork)?;
    }
    if let Some(highest) = run.highest {
        tripwires::lay(highest, &tell)?;
    }
    drop(tell);
    let command = match sys::fork().during(Doing::Fork)? {
        Fork::Child => {
            drop(answers);
            let failure = match become_command(run, &place, &rights) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            let code = i32::from(wire::send(&mut File::from(answer), &failure).is_err());
            #[expect(clippy::exit, reason = "the command could not be started")]
            std::process::exit(code)
        }
        Fork::Parent(pid) => pid,
    };
    drop((answer, place));
    privileges::give_up(&rights)?;
    // The command's exec closes the other end; until then it can say why there will be none.
    if let Ok(failure) = wire::receive::<Failure>(&mut File::from(answers)) {
        return Err(failure);
    }
    reap(command)
}

/// Waits for the command. As the first process of its namespace this one is also the parent of every orphan.
fn reap(command: Pid) -> Result<Reply, Failure> {
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::empty()) {
            Err(Errno::INTR) | Ok(None) => continue,
            Ok(Some(ended)) => ended,
            Err(errno) => return Err(errno).during(Doing::Fork),
        };
        if pid != command {
            continue;
        }
        if let Some(code) = status.exit_status() {
            return Ok(Reply::Exited(u8::try_from(code & 0xff).expect("masked to a byte")));
        }
        if let Some(signal) = status.terminating_signal() {
            return Ok(Reply::Signaled(signal));
        }
    }
}

fn become_command(run: &Run, place: &Place, rights: &privileges::Rights) -> Result<std::convert::Infallible, Failure> {
    rustix::process::setsid().during(Doing::Fork)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).during(Doing::Dev)?;
    rustix::stdio::dup2_stdin(null).during(Doing::Dev)?;
    rustix::process::fchdir(&place.workdir).during(Doing::Privileges)?;
    let env = environment(run, &place.user.home);
    let argv = strings(run.argv.iter())?;
    let program = run.argv.first().filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| Failure::NotFound { program: String::new() })?;
    let candidates = candidates(program, env.get(OsStr::new("PATH")))?;
    let env: Vec<OsString> = env.into_iter().map(|(name, value)| [name, value].join(OsStr::new("="))).collect();
    let env = strings(env.iter())?;
    fixed::apply(run.cpus)?;
    sys::default_signals();
    sys::close_on_exec_from(3).during(Doing::Privileges)?;
    privileges::become_user(&place.user, rights, run.highest != Some(tripwires::NONE_BUT_ROOT))?;
    Err(exec(program, &candidates, &argv, &env))
}

/// The fixed variables with the step's own over them, in the order of their names.
fn environment(run: &Run, home: &str) -> BTreeMap<OsString, OsString> {
    let fixed = [
        ("HOME", home.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("PATH", PATH.to_owned()),
        // Python orders its sets by a random number otherwise.
        ("PYTHONHASHSEED", "0".to_owned()),
        ("SOURCE_DATE_EPOCH", run.source_date_epoch.to_string()),
        ("TERM", "dumb".to_owned()),
        ("TZ", "UTC".to_owned()),
    ];
    let fixed = fixed.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    fixed.into_iter().chain(run.env.iter().cloned()).collect()
}

fn strings<'a>(list: impl Iterator<Item = &'a OsString>) -> Result<Vec<CString>, Failure> {
    list.map(|text| CString::new(text.clone().into_vec()).map_err(|_| Failure::ZeroByte)).collect()
}

/// Where the program may be: itself if it has a slash, else in every directory of `PATH` (an empty one is the working directory).
fn candidates(program: &OsStr, path: Option<&OsString>) -> Result<Vec<CString>, Failure> {
    if program.as_bytes().contains(&b'/') {
        return strings([program.to_owned()].iter());
    }
    let path = path.map_or(PATH.as_bytes(), |path| path.as_bytes());
    let joined = path.split(|&byte| byte == b':').map(|dir| {
        let dir = if dir.is_empty() { b".".as_slice() } else { dir };
        OsString::from_vec([dir, b"/", program.as_bytes()].concat())
    });
    strings(joined.collect::<Vec<_>>().iter())
}

/// Tries each candidate like a shell: one that cannot be executed is remembered and the search goes on.
fn exec(program: &OsStr, candidates: &[CString], argv: &[CString], env: &[CString]) -> Failure {
    let program = program.to_string_lossy().into_owned();
    let mut denied = false;
    for candidate in candidates {
        let error = match sys::exec(candidate, argv, env) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EACCES) => denied = true,
            // A file that is there although the kernel cannot find it: its interpreter is missing.
            Some(libc::ENOENT) if std::fs::exists(OsStr::from_bytes(candidate.to_bytes())).unwrap_or(false) => {
                return Failure::NotRunnable { program, errno: libc::ENOENT };
            }
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            other => {
                return Failure::NotRunnable { program, errno: other.unwrap_or(libc::EIO) };
            }
        }
    }
    if denied {
        return Failure::NotRunnable { program, errno: libc::EACCES };
    }
    Failure::NotFound { program }
}
