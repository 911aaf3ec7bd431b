//! An agent of this machine, handed on to a step: it may ask which keys there are and have something signed, and nothing else.
//!
//! The step's socket is one of its own, with the mode and owner that it asked for, and each request is read before it is passed on. So a step
//! can neither add keys to the agent nor remove or lock them, and what the agent does not understand it never sees.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest message, in bytes (OpenSSH, ssh-agent.c, `AGENT_MAX_LEN`).
const LONGEST: u32 = 256 * 1024;
/// How many may ask at once.
const AT_ONCE: usize = 64;
/// How long an agent may take to answer: a person may have to touch a key.
const PATIENCE: Duration = Duration::from_secs(120);

/// `SSH_AGENT_FAILURE`, `SSH_AGENTC_REQUEST_IDENTITIES`, `SSH_AGENTC_SIGN_REQUEST` (RFC 9987).
const FAILURE: u8 = 5;
const IDENTITIES: u8 = 11;
const SIGN: u8 = 13;

/// A socket that is listened on for as long as this lives.
#[derive(Debug)]
pub(super) struct Agent {
    path: PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Begins to hand on the agent at `socket`, by a socket at `path`.
    pub(super) fn start(socket: &Path, path: &Path, mode: u32, owner: (u32, u32)) -> io::Result<Self> {
        // Whether there is an agent is better told before the step runs than by it.
        drop(UnixStream::connect(socket)?);
        let listener = UnixListener::bind(path)?;
        std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        let over = Arc::new(AtomicBool::new(false));
        let (ended, socket) = (Arc::clone(&over), socket.to_owned());
        let thread =
            std::thread::Builder::new().name("agent".to_owned()).spawn(move || serve(&listener, &socket, &ended))?;
        Ok(Self { path: path.to_owned(), over, thread: Some(thread) })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // Wakes the thread; where that fails it is not listening any more.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, socket: &Path, over: &Arc<AtomicBool>) {
    let asking = Arc::new(AtomicUsize::new(0));
    for asker in listener.incoming() {
        if over.load(Ordering::Acquire) {
            return;
        }
        let Ok(asker) = asker else { return };
        if asking.fetch_add(1, Ordering::AcqRel) >= AT_ONCE {
            asking.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (asking_still, socket) = (Arc::clone(&asking), socket.to_owned());
        let spawned = std::thread::Builder::new().name("agent".to_owned()).spawn(move || {
            // An asker that hangs up, or an agent that does, ends the conversation and nothing else.
            let _ = converse(asker, &socket);
            asking_still.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            asking.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Passes on what is allowed and refuses the rest, until somebody hangs up.
fn converse(mut asker: UnixStream, socket: &Path) -> io::Result<()> {
    asker.set_read_timeout(Some(PATIENCE))?;
    let mut agent = UnixStream::connect(socket)?;
    agent.set_read_timeout(Some(PATIENCE))?;
    while let Some(request) = message(&mut asker)? {
        let answer = match request.first() {
            Some(&(IDENTITIES | SIGN)) => {
                send(&mut agent, &request)?;
                message(&mut agent)?.ok_or(io::ErrorKind::UnexpectedEof)?
            }
            _ => vec![FAILURE],
        };
        send(&mut asker, &answer)?;
    }
    Ok(())
}

/// One message, without its length; none where the other side hung up.
fn message(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_be_bytes(length);
    if length == 0 || length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    Ok(Some(body))
}

fn send(to: &mut impl Write, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    to.write_all(&[&length.to_be_bytes()[..], body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_may_ask_for_keys_and_signatures_and_for_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let (real, own) = (dir.path().join("real"), dir.path().join("own"));
        let missing = Agent::start(&real, &own, 0o600, (0, 0)).expect_err("there is no agent");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        // An agent that answers with what it was asked.
        let listener = UnixListener::bind(&real).expect("bound");
        std::thread::spawn(move || {
            for mut asker in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    while let Ok(Some(request)) = message(&mut asker) {
                        if send(&mut asker, &[b"heard ", &request[..]].concat()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let me = rustix::process::geteuid().as_raw();
        let agent = Agent::start(&real, &own, 0o640, (me, rustix::process::getegid().as_raw())).expect("started");
        assert_eq!(fs::metadata(&own).expect("there").permissions().mode() & 0o7777, 0o640);
        let mut asker = UnixStream::connect(&own).expect("connected");
        let mut ask = |body: &[u8]| {
            send(&mut asker, body).expect("asked");
            message(&mut asker).expect("answered").expect("something")
        };
        assert_eq!(ask(&[IDENTITIES]), b"heard \x0b");
        assert_eq!(ask(&[SIGN, 1, 2]), b"heard \x0d\x01\x02");
        for other in [17_u8, 18, 19, 22, 23, 25, 27, 0] {
            assert_eq!(ask(&[other, 1]), [FAILURE], "{other}");
        }
        // Too long, or nothing: the conversation is over, and another begins.
        let mut rude = UnixStream::connect(&own).expect("connected");
        rude.write_all(&[0xff; 4]).expect("written");
        assert!(message(&mut rude).expect("closed").is_none());
        let mut next = UnixStream::connect(&own).expect("connected");
        send(&mut next, &[IDENTITIES]).expect("asked");
        assert!(message(&mut next).expect("answered").is_some());
        drop(agent);
        send(&mut next, &[IDENTITIES]).expect("those who are at it go on");
    }
}
