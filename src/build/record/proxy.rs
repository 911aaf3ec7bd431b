//! Connections of a recorded step: as many at once as there are threads, each for one request.
//!
//! What is asked for through CONNECT is read as well, since the step trusts the authority that speaks for the host. No connection leads
//! anywhere: what is fetched is fetched by [`Recorder`](super::Recorder).

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::{ServerConnection, StreamOwned};

use super::authority::Authority;
use super::request::{self, Request, Unread};
use super::{Recorder, Refusal, Reply};
use crate::lockfile::Asked;

/// How many connections are served at once.
const AT_ONCE: usize = 16;
/// How long a client may be silent, and how long it may take to read on.
const SILENCE: Duration = Duration::from_secs(60);
/// What a client may still send after it was answered, in bytes.
const REST: u64 = 1 << 20;

/// Serves until the step is over.
pub(super) fn serve(
    listener: &TcpListener,
    stopped: &UnixStream,
    recorder: &Recorder<'_>,
    authority: &Authority,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let serve = move || {
                while is_ready(listener, stopped).unwrap_or(false) {
                    // Somebody else may have been faster, and a client that hangs up ends nothing but its connection.
                    let Ok((stream, _)) = listener.accept() else { continue };
                    let _ = converse(stream, recorder, authority);
                }
            };
            std::thread::Builder::new().name("proxy".to_owned()).spawn_scoped(scope, serve)?;
        }
        Ok(())
    })
}

/// Waits for somebody who connects. False where the step is over.
pub(super) fn is_ready(listener: &impl AsFd, stopped: &UnixStream) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        return Ok(fds[1].revents().is_empty());
    }
}

fn converse(mut stream: TcpStream, recorder: &Recorder<'_>, authority: &Authority) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let request = match request::read(&mut stream) {
        Ok(request) => request,
        Err(unread) => return refused(&mut stream, unread, recorder),
    };
    if request.method != "CONNECT" {
        let url = request::whole(&request.target);
        answer(&mut stream, &request, url, recorder)?;
        stream.shutdown(Shutdown::Write)?;
        return rest(&mut stream);
    }
    let (host, port) = match request::authority_of(&request.target, 443) {
        Ok(named) => named,
        Err(unread) => return refused(&mut stream, unread, recorder),
    };
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let config = authority.host(name).map_err(io::Error::other)?;
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let mut tls = StreamOwned::new(ServerConnection::new(config).map_err(io::Error::other)?, stream);
    match request::read(&mut tls) {
        Ok(request) => {
            let is_path = request.target.starts_with('/');
            let of_host = || format!("https://{}{}", request::shown(&host, port, 443), request.target);
            let url = if is_path { Ok(of_host()) } else { Err(Unread::Wrong("it names no path")) };
            answer(&mut tls, &request, url, recorder)?;
        }
        Err(unread) => refused(&mut tls, unread, recorder)?,
    }
    tls.conn.send_close_notify();
    tls.flush()?;
    tls.sock.shutdown(Shutdown::Write)?;
    rest(&mut tls.sock)
}

/// Reads what a client still sends: closed before, the connection would take back what was answered.
fn rest(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(&mut stream.take(REST), &mut io::sink()).map(drop)
}

fn refused(to: &mut impl Write, unread: Unread, recorder: &Recorder<'_>) -> io::Result<()> {
    match unread {
        Unread::Gone => Ok(()),
        Unread::Wrong(reason) => refusal(to, &recorder.refuse(400, format!("a request: {reason}"))),
    }
}

fn answer(
    to: &mut impl Write,
    request: &Request,
    url: Result<String, Unread>,
    recorder: &Recorder<'_>,
) -> io::Result<()> {
    let url = match url {
        Ok(url) => url,
        Err(unread) => return refused(to, unread, recorder),
    };
    let with_body = match request.method.as_str() {
        "GET" => true,
        "HEAD" => false,
        method => {
            let address = url.split(['?']).next().unwrap_or_default();
            let text = format!("{method} {address}: only what is asked for with GET or HEAD can be recorded");
            return refusal(to, &recorder.refuse(405, text));
        }
    };
    let asked = Asked { url, accept: request.accept.clone() };
    match recorder.answer(&asked, request.authorization.as_deref()) {
        Ok(reply) => replied(to, reply, with_body),
        Err(refused) => refusal(to, &refused),
    }
}

fn replied(to: &mut impl Write, reply: Reply, with_body: bool) -> io::Result<()> {
    let Reply { said, mut body, size } = reply;
    let mut head = format!("HTTP/1.1 {} {}\r\nContent-Length: {size}\r\n", said.status, reason(said.status));
    for (name, value) in [("Content-Type", &said.kind), ("Location", &said.location)] {
        // Nobody but a server says these, or a lock that somebody wrote by hand.
        if let Some(value) = value.as_ref().filter(|value| !value.contains(char::is_control)) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str("Connection: close\r\n\r\n");
    to.write_all(head.as_bytes())?;
    if with_body {
        io::copy(&mut body, to)?;
    }
    to.flush()
}

fn refusal(to: &mut impl Write, refusal: &Refusal) -> io::Result<()> {
    let Refusal { status, text } = refusal;
    write!(
        to,
        "HTTP/1.1 {status} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\njiji: {text}\n",
        reason(*status),
        text.len() + "jiji: \n".len()
    )?;
    to.flush()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        410 => "Gone",
        502 => "Bad Gateway",
        _ => "Answer",
    }
}
