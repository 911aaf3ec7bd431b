//! Sends one request and checks its answer to the byte. Nothing is ever sent twice.

use std::{
    cell::RefCell,
    error::Error,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, Request,
    body::{Body, Frame, SizeHint},
    client::conn::http1::{self, SendRequest},
    header::{CONNECTION, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{
    Target,
    report::{FailureKind, RequestKind},
};
use crate::{LabError, images::sha256_hex};

/// Where an answer names its version.
const VERSION: &str = "x-version";

/// A request that is planned.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub kind: RequestKind,
    /// Whether it has a connection of its own.
    pub fresh: bool,
    /// Bytes of a body, chunks of an answer.
    pub amount: usize,
    /// Milliseconds that a slow answer takes.
    pub millis: u64,
    /// Whether the body is sent in chunks.
    pub in_chunks: bool,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub kind: FailureKind,
    pub status: Option<u16>,
    pub version: Option<String>,
    pub detail: String,
}

impl Failed {
    fn new(kind: FailureKind, detail: impl ToString) -> Self {
        Self { kind, status: None, version: None, detail: detail.to_string() }
    }
}

/// Kept connections to one target that have no request under way.
#[derive(Clone)]
pub(super) struct Client {
    target: Rc<Target>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Rc<RefCell<Vec<SendRequest<Upload>>>>,
}

impl Client {
    /// For one target. Where it speaks TLS, its authorities must be certificates and its Host header a name.
    pub(super) fn new(target: Target) -> Result<Self, LabError> {
        let tls = target.authorities.as_deref().map(|pem| trusting(pem, &target.authority)).transpose()?;
        Ok(Self { target: Rc::new(target), tls, idle: Rc::default() })
    }

    /// Sends the request and checks the answer; gives the version that answered.
    pub(super) async fn send(&self, plan: &Plan, timeout: Duration) -> Result<String, Failed> {
        let limit = timeout + Duration::from_millis(plan.millis);
        match tokio::time::timeout(limit, self.converse(plan)).await {
            Ok(result) => result,
            Err(_) => Err(Failed::new(FailureKind::TimedOut, format!("after {:.1} s", limit.as_secs_f64()))),
        }
    }

    async fn converse(&self, plan: &Plan) -> Result<String, Failed> {
        let kept = if plan.fresh { None } else { self.take_idle() };
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let (request, body) = self.request(plan);
        let answer = sender.send_request(request).await.map_err(|error| explain(&error, FailureKind::Reset))?;
        let status = answer.status().as_u16();
        let version = answer.headers().get(VERSION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let with = |mut failed: Failed| {
            failed.status = Some(status);
            failed.version.clone_from(&version);
            failed
        };
        let content =
            answer.into_body().collect().await.map_err(|error| with(explain(&error, FailureKind::Truncated)))?;
        let content = content.to_bytes();
        if status != 200 {
            let kind = match status {
                404 => FailureKind::NotFound,
                500..=599 => FailureKind::ServerError,
                _ => FailureKind::OtherStatus,
            };
            return Err(with(Failed::new(kind, beginning(&content))));
        }
        let Some(named) = version.clone() else {
            return Err(with(Failed::new(FailureKind::WrongContent, "the answer names no version")));
        };
        if !right(plan, &named, &body, &content) {
            let detail = format!("{} bytes: {}", content.len(), beginning(&content));
            return Err(with(Failed::new(FailureKind::WrongContent, detail)));
        }
        if !plan.fresh {
            self.keep(sender);
        }
        Ok(named)
    }

    /// A kept connection that its other side has not closed.
    fn take_idle(&self) -> Option<SendRequest<Upload>> {
        let mut idle = self.idle.borrow_mut();
        // One that was closed while nothing was under way is no failure of anyone's: every client sees it and opens another.
        while let Some(sender) = idle.pop() {
            if sender.is_ready() && !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection once its answer is read whole.
    fn keep(&self, mut sender: SendRequest<Upload>) {
        let idle = Rc::clone(&self.idle);
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() {
                idle.borrow_mut().push(sender);
            }
        });
    }

    async fn connect(&self) -> Result<SendRequest<Upload>, Failed> {
        let stream = TcpStream::connect(self.target.address).await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => FailureKind::Refused,
                io::ErrorKind::ConnectionReset => FailureKind::Reset,
                io::ErrorKind::TimedOut => FailureKind::TimedOut,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => FailureKind::Unreachable,
                _ => FailureKind::Other,
            };
            Failed::new(kind, format!("connect: {error}"))
        })?;
        stream.set_nodelay(true).map_err(|error| Failed::new(FailureKind::Other, error))?;
        let Some((connector, name)) = &self.tls else {
            return speak(stream).await;
        };
        let stream = connector.connect(name.clone(), stream).await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                    FailureKind::Reset
                }
                _ => FailureKind::Other,
            };
            Failed::new(kind, format!("TLS: {error}"))
        })?;
        speak(stream).await
    }

    fn request(&self, plan: &Plan) -> (Request<Upload>, Bytes) {
        let (method, path, body) = match plan.kind {
            RequestKind::Get => (Method::GET, "/".to_owned(), Bytes::new()),
            RequestKind::Post => (Method::POST, "/echo".to_owned(), content(plan.amount)),
            RequestKind::Chunked => (Method::GET, format!("/chunked?n={}", plan.amount), Bytes::new()),
            RequestKind::Slow => (Method::GET, format!("/slow?s={}", seconds(plan.millis)), Bytes::new()),
        };
        let upload = Upload { rest: body.clone(), sized: !plan.in_chunks };
        let mut request = Request::new(upload);
        *request.method_mut() = method;
        // Paths are made above, of letters and digits.
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(authority) = self.target.authority.parse() {
            headers.insert(HOST, authority);
        }
        if plan.fresh {
            headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("close"));
        }
        (request, body)
    }
}

/// Begins HTTP on a connection.
async fn speak<S>(stream: S) -> Result<SendRequest<Upload>, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| explain(&error, FailureKind::Reset))?;
    tokio::task::spawn_local(async move {
        // What goes wrong with a connection is told to the request on it.
        drop(connection.await);
    });
    Ok(sender)
}

/// Speaks TLS with whom these authorities vouch for under this name.
fn trusting(authorities: &str, name: &str) -> Result<(TlsConnector, ServerName<'static>), LabError> {
    let refused = |what: &str, why: String| LabError::Tls { what: what.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let certificate = certificate.map_err(|error| refused("read an authority's certificate", error.to_string()))?;
        roots.add(certificate).map_err(|error| refused("trust an authority's certificate", error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused("choose versions of TLS", error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(|error| refused("name the server", error.to_string()))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

/// Seconds as the service writes them back: `2` or `1.25`.
fn seconds(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A body of that many bytes that are not all the same.
fn content(amount: usize) -> Bytes {
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
    (0..amount).map(|place| (place * 31 + amount) as u8).collect()
}

/// The beginning of an answer, on one line.
fn beginning(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(&content[..content.len().min(200)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(80).collect()
}

/// Whether the content is what the service in `examples/hello` owes.
fn right(plan: &Plan, version: &str, sent: &[u8], content: &[u8]) -> bool {
    let due = match plan.kind {
        RequestKind::Get => return content.ends_with(format!(" from {version}\n").as_bytes()),
        RequestKind::Post => format!("{} {}\n", sent.len(), sha256_hex(sent)),
        RequestKind::Chunked => {
            (0..plan.amount).map(|index| format!("{version} chunk {index} of {}\n", plan.amount)).collect()
        }
        RequestKind::Slow => format!("{version} took {} s\n", seconds(plan.millis)),
    };
    content == due.as_bytes()
}

fn explain(error: &hyper::Error, otherwise: FailureKind) -> Failed {
    let mut kind = if error.is_canceled() {
        FailureKind::ClosedIdle
    } else if error.is_incomplete_message() {
        otherwise
    } else if error.is_parse() {
        FailureKind::WrongContent
    } else {
        FailureKind::Other
    };
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        detail.push_str(": ");
        detail.push_str(&source.to_string());
        if let Some(io) = source.downcast_ref::<io::Error>() {
            kind = match io.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => FailureKind::Reset,
                io::ErrorKind::UnexpectedEof => FailureKind::Truncated,
                io::ErrorKind::TimedOut => FailureKind::TimedOut,
                _ => kind,
            };
        }
        cause = source.source();
    }
    Failed::new(kind, detail)
}

/// A request's body: in one piece with its length told, or in chunks of 1 KiB without.
pub(super) struct Upload {
    rest: Bytes,
    sized: bool,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let size = if self.sized { self.rest.len() } else { self.rest.len().min(1024) };
        let piece = self.rest.split_to(size);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized { SizeHint::with_exact(self.rest.len() as u64) } else { SizeHint::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: RequestKind) -> Plan {
        Plan { kind, fresh: true, amount: 2, millis: 1250, in_chunks: false }
    }

    #[test]
    fn answers_are_checked_to_the_byte() {
        assert!(right(&plan(RequestKind::Get), "v1", b"", b"hello from v1\n"));
        assert!(!right(&plan(RequestKind::Get), "v2", b"", b"hello from v1\n"));
        assert!(right(&plan(RequestKind::Chunked), "v1", b"", b"v1 chunk 0 of 2\nv1 chunk 1 of 2\n"));
        assert!(!right(&plan(RequestKind::Chunked), "v1", b"", b"v1 chunk 0 of 2\n"));
        assert!(right(&plan(RequestKind::Slow), "v1", b"", b"v1 took 1.25 s\n"));
        let body = content(2);
        let echoed = format!("2 {}\n", sha256_hex(&body));
        assert!(right(&plan(RequestKind::Post), "v1", &body, echoed.as_bytes()));
        assert!(!right(&plan(RequestKind::Post), "v1", b"other", echoed.as_bytes()));
    }

    #[test]
    fn seconds_are_written_as_the_service_writes_them() {
        assert_eq!(seconds(2000), "2");
        assert_eq!(seconds(1250), "1.25");
        assert_eq!(seconds(1001), "1.001");
    }

    /// What the client makes of a server that takes one request and answers with these bytes.
    fn judged(canned: &'static [u8]) -> Result<String, FailureKind> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            tokio::task::spawn_local(async move {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut head = [0; 1024];
                tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.expect("a request");
                tokio::io::AsyncWriteExt::write_all(&mut stream, canned).await.expect("an answer");
            });
            let client = Client::new(Target {
                name: "one".to_owned(),
                address,
                authority: "hello.test".to_owned(),
                authorities: None,
            })
            .expect("no TLS");
            let answer = client.send(&plan(RequestKind::Get), Duration::from_secs(5)).await;
            answer.map_err(|failed| failed.kind)
        })
    }

    #[test]
    fn every_way_to_fail_has_its_name() {
        let good = b"HTTP/1.1 200 OK\r\nX-Version: v1\r\nContent-Length: 14\r\n\r\nhello from v1\n";
        assert_eq!(judged(good), Ok("v1".to_owned()));
        let cut = &good[..good.len() - 3];
        assert_eq!(judged(cut), Err(FailureKind::Truncated));
        assert_eq!(judged(b""), Err(FailureKind::Reset));
        assert_eq!(judged(b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n"), Err(FailureKind::ServerError));
        assert_eq!(judged(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), Err(FailureKind::NotFound));
        assert_eq!(judged(b"HTTP/1.1 204 No\r\nX-Version: v1\r\n\r\n"), Err(FailureKind::OtherStatus));
        let nameless = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nhello from v1\n";
        assert_eq!(judged(nameless), Err(FailureKind::WrongContent));
        let other = b"HTTP/1.1 200 OK\r\nX-Version: v2\r\nContent-Length: 14\r\n\r\nhello from v1\n";
        assert_eq!(judged(other), Err(FailureKind::WrongContent));
        assert_eq!(judged(b"nonsense\r\n\r\n"), Err(FailureKind::WrongContent));
    }

    #[test]
    fn a_port_nobody_listens_on_refuses() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let client =
            Client::new(Target { name: "one".to_owned(), address: free, authority: "a".to_owned(), authorities: None })
                .expect("no TLS");
        let answer = tokio::task::LocalSet::new()
            .block_on(&runtime, client.send(&plan(RequestKind::Get), Duration::from_secs(5)));
        assert_eq!(answer.expect_err("nobody listens").kind, FailureKind::Refused);
    }
}
