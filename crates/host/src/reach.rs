//! From where probes reach containers.
//!
//! Root's containers are reached from the host as it is. A user's own live in a network namespace that Podman keeps for all of that user's
//! containers, which nothing of the host leads into. But a socket stays in the namespace it was made in, whoever uses it: so a second
//! process of this program, run in there by `podman unshare --rootless-netns`, makes some and hands them over its standard input, a Unix
//! socket (SCM_RIGHTS in unix(7)), and ends. What is not of this host goes through those; nothing else is done in there.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use jiji_model::protocol::ARGUMENT_EXEC;
use jiji_model::transaction::roster;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
};
use tokio::net::{TcpSocket, TcpStream};

use crate::command::one_line;
use crate::probe;

/// The argument that makes this program hand over sockets instead of holding a session.
const ARGUMENT_SOCKETS: &str = "sockets";

/// How many sockets are asked for at once: those of half a minute of probes. The kernel hands over 253 at most (SCM_MAX_FD).
const BATCH: usize = 32;

/// How long it may take to get them: two starts of Podman, and of its network where no container runs.
const PATIENCE: Duration = Duration::from_secs(30);

/// From where something is reached.
#[derive(Debug, Default)]
pub enum Reach {
    /// From this process's own network namespace.
    #[default]
    Own,
    /// From the network namespace of this user's containers, but for what is the host itself.
    Users(Sockets),
}

/// Sockets in the network namespace of this user's containers.
#[derive(Debug)]
pub struct Sockets {
    podman: PathBuf,
    left: RefCell<Vec<TcpSocket>>,
}

/// A way to one address, not gone yet.
#[derive(Debug)]
pub struct Way {
    address: SocketAddrV4,
    socket: Option<TcpSocket>,
}

impl Reach {
    /// From where the containers of this user's Podman are reached.
    pub fn users(podman: PathBuf) -> Self {
        Self::Users(Sockets { podman, left: RefCell::default() })
    }

    /// A way to an address.
    ///
    /// # Errors
    /// What Podman or the system said where there is none.
    pub async fn way(&self, address: SocketAddrV4) -> io::Result<Way> {
        let ip = *address.ip();
        // Those of the network `jiji` are nobody else's, also where the kernel would let anybody bind them (ip(7), `ip_nonlocal_bind`).
        let of_host = || ip.is_loopback() || (roster::number_of(ip).is_none() && probe::is_own(ip));
        let socket = match self {
            Self::Users(sockets) if !of_host() => Some(sockets.take().await?),
            Self::Users(_) | Self::Own => None,
        };
        Ok(Way { address, socket })
    }

    /// Lets go of sockets that were made in advance. Podman takes its namespace away with the last container and makes another with the
    /// next, and where a socket of the old one leads nobody is.
    pub fn forget(&self) {
        if let Self::Users(sockets) = self {
            sockets.left.borrow_mut().clear();
        }
    }
}

impl Way {
    /// Connects.
    ///
    /// # Errors
    /// As [`TcpStream::connect`].
    pub async fn connect(self) -> io::Result<TcpStream> {
        match self.socket {
            Some(socket) => socket.connect(self.address.into()).await,
            None => TcpStream::connect(self.address).await,
        }
    }
}

impl Sockets {
    async fn take(&self) -> io::Result<TcpSocket> {
        let left = self.left.borrow_mut().pop();
        if let Some(socket) = left {
            return Ok(socket);
        }
        let mut made = tokio::time::timeout(PATIENCE, self.ask())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "enter the containers' network: no end in time"))??;
        let socket = made.pop().ok_or_else(|| io::Error::other("enter the containers' network: no socket came"))?;
        self.left.borrow_mut().append(&mut made);
        Ok(socket)
    }

    /// Has new ones made.
    async fn ask(&self) -> io::Result<Vec<TcpSocket>> {
        let (own, theirs) = UnixStream::pair()?;
        // A statement of its own: its end closes this process's copy of the other end.
        let child = tokio::process::Command::new(&self.podman)
            .args(["unshare", "--rootless-netns"])
            .arg(std::env::current_exe()?)
            // What makes a program this one where it is not this one alone: `jiji host`.
            .args(std::env::args_os().skip(1).take_while(|arg| arg != ARGUMENT_EXEC))
            .args([ARGUMENT_SOCKETS, &BATCH.to_string()])
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            let complaint = one_line(&String::from_utf8_lossy(&output.stderr));
            return Err(io::Error::other(format!("enter the containers' network: {complaint}")));
        }
        // What was sent waits in the socket, also after its sender ended.
        own.set_nonblocking(true)?;
        receive(&own)
    }
}

/// Takes sockets that another process handed over.
fn receive(from: &UnixStream) -> io::Result<Vec<TcpSocket>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let handed = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    handed
        .flatten()
        .map(|descriptor| {
            let stream = std::net::TcpStream::from(descriptor);
            stream.set_nonblocking(true)?;
            Ok(TcpSocket::from_std_stream(stream))
        })
        .collect()
}

/// How many sockets these arguments ask for, if they ask for sockets.
pub fn asked(args: &[String]) -> Option<usize> {
    match args {
        [what, count] if what == ARGUMENT_SOCKETS => count.parse().ok().filter(|count| (1..=BATCH).contains(count)),
        _ => None,
    }
}

/// Makes so many sockets in the network namespace of this process, and hands them over standard input, which is a Unix socket.
///
/// # Errors
/// When the system refuses.
pub fn give(count: usize) -> io::Result<()> {
    hand_over(io::stdin(), count)
}

fn hand_over(to: impl AsFd, count: usize) -> io::Result<()> {
    let make = |_| socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let sockets: Vec<OwnedFd> = (0..count).map(make).collect::<Result<_, _>>()?;
    let descriptors: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("more sockets than one message holds"));
    }
    sendmsg(to, &[IoSlice::new(b"s")], &mut control, SendFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn only_its_own_arguments_ask_for_sockets_and_never_for_more_than_a_message_holds() {
        let asked = |args: &[&str]| asked(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>());
        assert_eq!(asked(&["sockets", "32"]), Some(32));
        for other in [&["exec"][..], &["sockets"], &["sockets", "0"], &["sockets", "33"], &["sockets", "1", "2"]] {
            assert_eq!(asked(other), None, "{other:?}");
        }
    }

    #[tokio::test]
    async fn sockets_that_were_handed_over_connect_each_once() {
        let (own, theirs) = UnixStream::pair().expect("a pair");
        hand_over(theirs, 3).expect("handed over");
        let sockets = receive(&own).expect("received");
        assert_eq!(sockets.len(), 3);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        for socket in sockets {
            let mut stream = socket.connect(address).await.expect("connected");
            drop(listener.accept().await.expect("a connection"));
            assert_eq!(stream.read(&mut [0; 1]).await.expect("its end"), 0);
        }
    }

    #[tokio::test]
    async fn the_host_itself_is_reached_without_podman_and_what_podman_says_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let podman = dir.path().join("podman");
        std::fs::write(&podman, "#!/bin/sh\necho \"no $1 here\" >&2\nexit 125\n").expect("written");
        std::fs::set_permissions(&podman, std::fs::Permissions::from_mode(0o755)).expect("set");
        let reach = Reach::users(podman);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let std::net::SocketAddr::V4(own) = listener.local_addr().expect("an address") else {
            panic!("bound to IPv4");
        };
        reach.way(own).await.expect("loopback").connect().await.expect("connected");
        let other = SocketAddrV4::new([10, 210, 0, 140].into(), 80);
        let error = reach.way(other).await.expect_err("podman refuses").to_string();
        assert_eq!(error, "enter the containers' network: no unshare here");
    }
}
