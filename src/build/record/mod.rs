//! Steps that are recorded: they have no network but a proxy of this build, which keeps what each URL gave, and gives the same from then on.
//!
//! What a URL had is pinned in `jiji.lock` (`[[recorded]]`) by its digest. A step that is done again, on another machine or since something
//! below it changed, gets the same bytes: from the store, or from the network if they are still the same there. What the lock does not
//! say is asked, and said from then on; with `--locked` it is refused.
//!
//! A step may ask what it likes: it is a stranger. It can GET and HEAD; what it sends besides, and URLs that hold one of its secrets, are refused. The
//! proxy is reached from the step's own network alone, and so no other process of this machine can use it.
//!
//! | inner room | what it does |
//! | --- | --- |
//! | `proxy` | connections: threads, HTTP, TLS |
//! | `request` | what a client says, as far as it is understood |
//! | `authority` | the certificates that clients are shown, for this step alone |

mod authority;
mod proxy;
mod request;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;

use jiji_model::digest::Digest;
use jiji_model::secret::Secret;
use jiji_store::Store;

use super::error::StepError;
use super::sources::{Asking, Sources};
use super::stage::turns::{Turns, held};
use crate::lockfile::{Asked, Recorded};

pub use authority::AuthorityError;

/// Where a step finds the authority's certificate.
const CERTIFICATE: &str = "/run/jiji/ca.pem";
/// Where apt finds what is said to it.
const APT: &str = "/run/jiji/apt.conf";
/// How long clients that give up early are to wait, in seconds: what is fetched is here as a whole before they get the first byte.
const PATIENCE: &str = "600";

/// What a step is told of the proxy, by variables that programs know.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "http_proxy", "https_proxy"];
/// Variables that name a file of certificates: OpenSSL and Go, curl, Python's requests, pip, Node, npm, git, cargo.
const CERTIFICATES: [&str; 8] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];
/// Variables that say how long to wait, in seconds.
const TIMEOUTS: [&str; 3] = ["PIP_DEFAULT_TIMEOUT", "CARGO_HTTP_TIMEOUT", "UV_HTTP_TIMEOUT"];

/// How many different URLs one step may ask for.
const MOST: usize = 20_000;

/// Answers a step's questions, and keeps the answers.
pub(super) struct Recorder<'a> {
    sources: &'a dyn Sources,
    store: &'a Store,
    known: BTreeMap<Asked, Recorded>,
    locked: bool,
    secrets: Vec<Secret>,
    turns: Turns<Asked>,
    asked: Mutex<BTreeMap<Asked, Recorded>>,
    failure: Mutex<Option<StepError>>,
    refused: Mutex<Vec<String>>,
}

/// What a recorded step came to besides what it changed.
pub(super) struct Recording {
    /// What it asked for, known before or not.
    pub(super) asked: BTreeMap<Asked, Recorded>,
    /// Why it cannot be what it should be, whatever its programs made of that.
    pub(super) failure: Option<StepError>,
    /// What it was refused, for people.
    pub(super) refused: Vec<String>,
}

/// What a client gets instead of what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: u16,
    text: String,
}

/// What a client gets.
#[derive(Debug)]
struct Reply {
    said: Recorded,
    body: File,
    size: u64,
}

impl<'a> Recorder<'a> {
    /// `known` is what `jiji.lock` says; with `locked` nothing else is asked. No URL may hold one of `secrets`.
    pub(super) fn new(
        sources: &'a dyn Sources,
        store: &'a Store,
        known: BTreeMap<Asked, Recorded>,
        locked: bool,
        secrets: Vec<Secret>,
    ) -> Self {
        Self {
            sources,
            store,
            known,
            locked,
            secrets,
            turns: Turns::default(),
            asked: Mutex::default(),
            failure: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// Runs a step that has the proxy. It is told what it needs by variables, and by files that are mounted.
    ///
    /// # Errors
    /// When the proxy cannot be begun.
    pub(super) fn around<T>(self, room: &Path, run: impl FnOnce(&Told) -> T) -> Result<(T, Recording), RecordError> {
        let authority = authority::Authority::new()?;
        let socket = room.join("proxy");
        let wall = UnixListener::bind(&socket).map_err(RecordError::Socket)?;
        let told = Told::new(&socket, authority.certificate());
        let (stop, stopped) = UnixStream::pair().map_err(RecordError::Socket)?;
        let result = std::thread::scope(|scope| {
            let (recorder, authority, stopped) = (&self, &authority, &stopped);
            // The step's first process hands over where its programs are listened to, before they begin.
            let serving = std::thread::Builder::new().name("proxy".to_owned()).spawn_scoped(scope, move || {
                if let Some(listener) = handed_over(&wall, stopped)? {
                    proxy::serve(&listener, stopped, recorder, authority)?;
                }
                Ok::<_, io::Error>(())
            });
            serving.map_err(RecordError::Socket)?;
            let result = run(&told);
            // Wakes whoever waits for the step.
            drop(stop);
            Ok::<_, RecordError>(result)
        })?;
        let recording = Recording {
            asked: std::mem::take(&mut *held(&self.asked)),
            failure: held(&self.failure).take(),
            refused: std::mem::take(&mut *held(&self.refused)),
        };
        Ok((result, recording))
    }

    /// What a URL gives, as it is known or as it is now.
    fn answer(&self, asked: &Asked, authorization: Option<&str>) -> Result<Reply, Refusal> {
        if self.secrets.iter().any(|secret| holds(&asked.url, secret.reveal())) {
            let host = asked.url.split('/').nth(2).unwrap_or_default();
            return Err(
                self.refuse(400, format!("a URL of {host} holds a secret of the step: hand it over in a header"))
            );
        }
        self.turns.take(asked.clone(), || {
            let known = held(&self.asked).get(asked).or_else(|| self.known.get(asked)).cloned();
            let said = match known {
                Some(known) => self.known(asked, known, authorization)?,
                None => self.new_answer(asked, authorization)?,
            };
            let (body, size) = self.store.open_blob(&said.digest).map_err(|error| self.fail(error.into()))?;
            Ok(Reply { said, body, size })
        })
    }

    /// What is pinned: fetched again where the store lacks it.
    fn known(&self, asked: &Asked, known: Recorded, authorization: Option<&str>) -> Result<Recorded, Refusal> {
        if self.store.has(&known.digest).map_err(|error| self.fail(error.into()))?.is_none() {
            let actual = if known.status == 200 { self.ask(asked, authorization)?.1 } else { self.nothing()? };
            if actual != known.digest {
                let (url, expected) = (asked.url.clone(), known.digest);
                return Err(self.fail(StepError::OtherFile { url, by: "jiji.lock", expected, actual }));
            }
        }
        held(&self.asked).insert(asked.clone(), known.clone());
        Ok(known)
    }

    fn new_answer(&self, asked: &Asked, authorization: Option<&str>) -> Result<Recorded, Refusal> {
        if self.locked {
            return Err(self.fail(StepError::NotLocked { what: format!("`{}`", asked.url) }));
        }
        if held(&self.asked).len() >= MOST {
            return Err(self.refuse(429, format!("more than {MOST} URLs: `{}`", asked.url)));
        }
        let (said, _) = self.ask(asked, authorization)?;
        held(&self.asked).insert(asked.clone(), said.clone());
        Ok(said)
    }

    /// Asks the network. Answers that say nothing of what is there are handed on and not kept.
    fn ask(&self, asked: &Asked, authorization: Option<&str>) -> Result<(Recorded, Digest), Refusal> {
        let what = || format!("`{}`", asked.url);
        // What nobody may be asked for is missing, whatever the step makes of that.
        self.sources.reachable(&what).map_err(|error| self.fail(error.into()))?;
        let asking = Asking { url: &asked.url, accept: asked.accept.as_deref(), authorization };
        let answer = self.sources.ask(&asking, self.store);
        let answer = answer.map_err(|error| self.refuse(502, format!("`{}`: {error}", asked.url)))?;
        let digest = match answer.body {
            Some((digest, _)) => digest,
            None if answer.is_lasting() => self.nothing()?,
            None => return Err(self.refuse(answer.status, format!("`{}` answered {}", asked.url, answer.status))),
        };
        Ok((Recorded { status: answer.status, kind: answer.kind, location: answer.location, digest }, digest))
    }

    fn nothing(&self) -> Result<Digest, Refusal> {
        self.store.put(b"").map_err(|error| self.fail(error.into()))
    }

    /// Refuses what a step can do without.
    fn refuse(&self, status: u16, text: String) -> Refusal {
        held(&self.refused).push(text.clone());
        Refusal { status, text }
    }

    /// Notes that the step cannot be what it should be. The first counts.
    fn fail(&self, error: StepError) -> Refusal {
        let text = error.to_string();
        held(&self.failure).get_or_insert(error);
        Refusal { status: 502, text }
    }
}

/// What a step needs to know, and what it is shown.
pub(super) struct Told {
    /// Where its first process hands over what is listened to.
    pub(super) socket: std::path::PathBuf,
    /// Variables.
    pub(super) env: Vec<(&'static str, String)>,
    /// Files, by where they are.
    pub(super) files: Vec<(&'static str, String)>,
}

impl Told {
    fn new(socket: &Path, certificate: &str) -> Self {
        let proxy = format!("http://127.0.0.1:{}", jiji_sandbox::PROXY_PORT);
        let of = |names: &[&'static str], value: &str| -> Vec<_> {
            names.iter().map(|name| (*name, value.to_owned())).collect()
        };
        let mut env = of(&PROXIES, &proxy);
        env.extend(of(&CERTIFICATES, CERTIFICATE));
        env.extend(of(&TIMEOUTS, PATIENCE));
        env.push(("APT_CONFIG", APT.to_owned()));
        let apt = format!(
            "Acquire::http::Proxy \"{proxy}\";\nAcquire::https::Proxy \"{proxy}\";\nAcquire::https::CaInfo \"{CERTIFICATE}\";\n\
             Acquire::http::Timeout \"{PATIENCE}\";\nAcquire::https::Timeout \"{PATIENCE}\";\n"
        );
        let files = vec![(CERTIFICATE, certificate.to_owned()), (APT, apt)];
        Self { socket: socket.to_owned(), env, files }
    }
}

/// Why a step could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There are no certificates for it.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The sockets that it talks through could not be made.
    #[error("begin the proxy of a recorded step")]
    Socket(#[source] io::Error),
}

/// The listener of the step's own network, once its first process hands it over; none where the step is over before.
fn handed_over(wall: &UnixListener, stopped: &UnixStream) -> io::Result<Option<TcpListener>> {
    if !proxy::is_ready(wall, stopped)? {
        return Ok(None);
    }
    jiji_sandbox::receive_listener(&wall.accept()?.0).map(Some)
}

/// Whether a URL holds a text, as it is or with some of it written by its bytes' numbers.
fn holds(url: &str, secret: &str) -> bool {
    if secret.is_empty() {
        return false;
    }
    let mut plain = Vec::with_capacity(url.len());
    let mut rest = url.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        let (byte, after) = match (first, hex) {
            (b'%', Some(byte)) => (byte, &tail[2..]),
            (byte, _) => (*byte, tail),
        };
        plain.push(byte);
        rest = after;
    }
    let has = |text: &[u8]| text.windows(secret.len()).any(|window| window == secret.as_bytes());
    has(url.as_bytes()) || has(&plain)
}
