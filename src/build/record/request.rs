//! What a client of the proxy says: a method, a target and a few headers, with bounds. What is not understood is refused.

use std::io::{self, Read};

/// The longest head of a request, in bytes.
const LONGEST: usize = 64 << 10;
/// How many headers it may have.
const HEADERS: usize = 100;

/// A request, as far as it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    /// What it wants, where that is not anything.
    pub(super) accept: Option<String>,
    /// Who it says that it is.
    pub(super) authorization: Option<String>,
}

/// Why a request cannot be answered.
#[derive(Debug)]
pub(super) enum Unread {
    /// There is none: the client hung up, or was silent.
    Gone,
    /// It is none that is understood.
    Wrong(&'static str),
}

impl From<io::Error> for Unread {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Reads the head of a request and not a byte more: what comes next may be of another protocol.
pub(super) fn read(from: &mut impl Read) -> Result<Request, Unread> {
    let mut head = Vec::with_capacity(512);
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == LONGEST {
            return Err(Unread::Wrong("its head is too long"));
        }
        match from.read(&mut byte) {
            Ok(0) => return Err(Unread::Gone),
            Ok(_) => head.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let whole = request.parse(&head).is_ok_and(|status| status.is_complete());
    let (Some(method), Some(target), true) = (request.method, request.path, whole) else {
        return Err(Unread::Wrong("it is no request of HTTP/1"));
    };
    let header = |name: &str| {
        let values = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let values: Vec<&str> = values.filter_map(|header| std::str::from_utf8(header.value).ok()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    };
    Ok(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        accept: header("accept").filter(|accept| accept != "*/*"),
        authorization: header("authorization"),
    })
}

/// The URL of a request that names all of it, as those to a proxy do.
pub(super) fn whole(target: &str) -> Result<String, Unread> {
    let rest = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://")).map(|_| &target[7..]);
    let Some(rest) = rest else { return Err(Unread::Wrong("it names no `http` URL")) };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err(Unread::Wrong("its URL holds a password: hand it over in a header"));
    }
    let (host, port) = authority_of(authority, 80)?;
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(format!("http://{}{slash}{path}", shown(&host, port, 80)))
}

/// Host and port that CONNECT names.
pub(super) fn authority_of(text: &str, default: u16) -> Result<(String, u16), Unread> {
    let wrong = || Unread::Wrong("it names no host");
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (text, default),
    };
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = address.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    if host.is_empty() || host.len() > 253 || !(plain || address) {
        return Err(wrong());
    }
    Ok((host.to_ascii_lowercase(), port))
}

/// Host and port as a URL has them.
pub(super) fn shown(host: &str, port: u16, default: u16) -> String {
    if port == default { host.to_owned() } else { format!("{host}:{port}") }
}
