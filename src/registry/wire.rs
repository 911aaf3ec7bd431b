//! Requests: who answers them, with which credentials, and what an answer other than the expected one means.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiji_model::digest::Digest;
use oci_distribution::client::{ClientConfig, ClientProtocol};
use oci_distribution::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_distribution::secrets::RegistryAuth;
use oci_distribution::{Reference as WireReference, RegistryOperation};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;

use super::client::{CredentialLookup, Repository};
use super::error::RegistryError;
use super::manifest;

const USER_AGENT: &str = concat!("jiji/", env!("CARGO_PKG_VERSION"));
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a token is used here. Registries give them for 60 s at least (distribution, token authentication, `expires_in`).
const TOKEN: Duration = Duration::from_secs(45);
/// How much of an error's body is read, in bytes.
const WORDS: u64 = 64 * 1024;

/// The connections to all registries.
pub(super) struct Wire {
    credentials: Arc<CredentialLookup>,
    plain: Lazy,
    tls: Lazy,
    /// Whether a registry asks for authentication, by `HOST[:PORT]`.
    challenges: Mutex<BTreeMap<String, bool>>,
    tokens: Mutex<Tokens>,
}

type Lazy = OnceLock<Protocol>;
/// What was given for a repository and an operation (none: no token is wanted), and when.
type Tokens = BTreeMap<(Repository, RegistryOperation), (Option<String>, Instant)>;

/// The clients for one of the two ways to speak.
#[derive(Clone)]
pub(super) struct Protocol {
    http: reqwest::Client,
    /// One that is told where something is instead, and does not go there.
    as_told: reqwest::Client,
    /// Sends a blob in one request.
    pub(super) oci: oci_distribution::Client,
    /// Sends a blob in pieces of 4 MiB, one after the other, for registries behind a proxy with a limit.
    in_pieces: oci_distribution::Client,
}

impl Protocol {
    fn new(plain: bool) -> Result<Self, RegistryError> {
        // The provider is the process's; whoever set one before has had reasons.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = |use_monolithic_push| ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            use_monolithic_push,
            read_timeout: Some(SILENCE),
            connect_timeout: Some(CONNECT),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        };
        let http = || reqwest::Client::builder().user_agent(USER_AGENT).connect_timeout(CONNECT).read_timeout(SILENCE);
        let built = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|source| RegistryError::Tls { source: source.into() })
        };
        Ok(Self {
            http: built(http())?,
            as_told: built(http().redirect(reqwest::redirect::Policy::none()))?,
            oci: config(true).try_into().map_err(tls)?,
            in_pieces: config(false).try_into().map_err(tls)?,
        })
    }
}

fn tls(source: OciDistributionError) -> RegistryError {
    RegistryError::Tls { source: source.into() }
}

/// A manifest's bytes, verified against the digest that was asked for.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
}

impl Wire {
    pub(super) fn new(credentials: Arc<CredentialLookup>) -> Self {
        Self {
            credentials,
            plain: Lazy::new(),
            tls: Lazy::new(),
            challenges: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    /// The clients to speak to a repository's server with.
    pub(super) fn protocol(&self, repository: &Repository) -> Result<Protocol, RegistryError> {
        let plain = repository.server.plain_http;
        let lazy = if plain { &self.plain } else { &self.tls };
        match lazy.get() {
            Some(protocol) => Ok(protocol.clone()),
            None => {
                let made = Protocol::new(plain)?;
                Ok(lazy.get_or_init(|| made).clone())
            }
        }
    }

    /// The client for what is no registry's.
    pub(super) fn http(&self) -> Result<reqwest::Client, RegistryError> {
        Ok(self.for_others()?.http)
    }

    /// The same, for whoever wants to know where something is instead.
    pub(super) fn http_as_told(&self) -> Result<reqwest::Client, RegistryError> {
        Ok(self.for_others()?.as_told)
    }

    fn for_others(&self) -> Result<Protocol, RegistryError> {
        let protocol = match self.tls.get() {
            Some(protocol) => protocol.clone(),
            None => {
                let made = Protocol::new(false)?;
                self.tls.get_or_init(|| made).clone()
            }
        };
        Ok(protocol)
    }

    /// Makes sure that the clients can sign their requests, and gives the header for requests that are made here.
    pub(super) async fn authorize(
        &self,
        repository: &Repository,
        operation: RegistryOperation,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let credentials = (self.credentials)(&repository.server.authority);
        if credentials.is_none() && !self.challenges(repository).await? {
            // Kept out of the client library, which would ask again before each request.
            return Ok(None);
        }
        let what = format!("repository `{}`", repository.name);
        let auth = match &credentials {
            Some(known) => RegistryAuth::Basic(known.username.clone(), known.password.reveal().to_owned()),
            None => RegistryAuth::Anonymous,
        };
        let key = (repository.clone(), operation);
        let kept = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let token = match kept {
            Some((token, since)) if since.elapsed() < TOKEN => token,
            _ => {
                let protocol = self.protocol(repository)?;
                let reference = wire_reference(repository, "latest");
                let token = protocol
                    .oci
                    .auth(&reference, &auth, operation)
                    .await
                    .map_err(|error| self.refusal(repository, &what, error))?;
                let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                tokens.insert(key, (token.clone(), Instant::now()));
                token
            }
        };
        let text = match (token, auth) {
            (Some(token), _) => format!("Bearer {token}"),
            (None, RegistryAuth::Basic(username, password)) => basic(&username, &password),
            (None, _) => return Ok(None),
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| RegistryError::Malformed {
            registry: repository.server.authority.clone(),
            what: "a token".to_owned(),
            reason: "it has characters that no header may have".to_owned(),
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// The client that sends blobs in pieces, signed in: it keeps tokens of its own.
    pub(super) async fn in_pieces(&self, repository: &Repository) -> Result<oci_distribution::Client, RegistryError> {
        let client = self.protocol(repository)?.in_pieces;
        if let Some(known) = (self.credentials)(&repository.server.authority) {
            let auth = RegistryAuth::Basic(known.username, known.password.reveal().to_owned());
            client.store_auth_if_needed(&repository.server.authority, &auth).await;
        }
        Ok(client)
    }

    fn forget_token(&self, repository: &Repository) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|(kept, _), _| kept != repository);
    }

    /// Whether a registry answers strangers with a challenge.
    async fn challenges(&self, repository: &Repository) -> Result<bool, RegistryError> {
        let authority = &repository.server.authority;
        let known = self.challenges.lock().unwrap_or_else(PoisonError::into_inner).get(authority).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let url = format!("{}/v2/", base(repository));
        let response = self.protocol(repository)?.http.get(url).send().await;
        let response = response.map_err(|error| unreachable(repository, "a greeting", error))?;
        let challenged =
            response.status() == StatusCode::UNAUTHORIZED || response.headers().contains_key(WWW_AUTHENTICATE);
        let mut challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        challenges.insert(authority.clone(), challenged);
        Ok(challenged)
    }

    /// Reads a manifest by tag or digest.
    pub(super) async fn manifest(
        &self,
        repository: &Repository,
        version: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, RegistryError> {
        let what = format!("manifest `{}:{version}`", repository.name);
        let response = self.ask_for_manifest(Method::GET, repository, version, &what).await?;
        let named = named_digest(&response);
        let too_large = || RegistryError::TooLarge {
            registry: repository.server.authority.clone(),
            what: what.clone(),
            limit: manifest::LIMIT,
        };
        let bytes = match read_up_to(response, manifest::LIMIT).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(too_large()),
            Err(error) => return Err(unreachable(repository, &what, error)),
        };
        let actual = Digest::of(&bytes);
        match expected.copied().or(named) {
            Some(expected) if expected != actual => Err(RegistryError::DigestMismatch {
                registry: repository.server.authority.clone(),
                what,
                expected,
                actual,
            }),
            _ => Ok(Fetched { bytes, digest: actual }),
        }
    }

    /// The digest that a registry says a tag or digest has, or none if it has no such manifest or does not say.
    pub(super) async fn manifest_digest(
        &self,
        repository: &Repository,
        version: &str,
    ) -> Result<Option<Digest>, RegistryError> {
        let what = format!("manifest `{}:{version}`", repository.name);
        match self.ask_for_manifest(Method::HEAD, repository, version, &what).await {
            Ok(response) => Ok(named_digest(&response)),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ask_for_manifest(
        &self,
        method: Method,
        repository: &Repository,
        version: &str,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let url = format!("{}/v2/{}/manifests/{version}", base(repository), repository.name);
        let mut again = true;
        loop {
            let authorization = self.authorize(repository, RegistryOperation::Pull).await?;
            let http = self.protocol(repository)?.http;
            let mut request = http.request(method.clone(), &url).header(ACCEPT, manifest::ACCEPT);
            if let Some(authorization) = authorization.clone() {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(|error| unreachable(repository, what, error))?;
            if response.status().is_success() {
                return Ok(response);
            }
            // A token may have ended before its time.
            if response.status() == StatusCode::UNAUTHORIZED && authorization.is_some() && again {
                again = false;
                self.forget_token(repository);
                continue;
            }
            let status = response.status().as_u16();
            let body = read_up_to(response, WORDS).await.ok().flatten().unwrap_or_default();
            return Err(self.answered(repository, what, status, &body));
        }
    }

    /// What a status other than the expected one means.
    fn answered(&self, repository: &Repository, what: &str, status: u16, body: &[u8]) -> RegistryError {
        let registry = repository.server.authority.clone();
        let what = what.to_owned();
        let message = words_of(body);
        match status {
            401 => {
                let with_credentials = (self.credentials)(&registry).is_some();
                RegistryError::Unauthorized { registry, what, with_credentials }
            }
            403 => RegistryError::Denied { registry, what, message },
            404 => RegistryError::NotFound { registry, what },
            429 => RegistryError::RateLimited { registry, what },
            status => RegistryError::Refused { registry, what, status, message },
        }
    }

    /// What an error of the client library means.
    pub(super) fn refusal(&self, repository: &Repository, what: &str, error: OciDistributionError) -> RegistryError {
        let registry = || repository.server.authority.clone();
        match error {
            OciDistributionError::ServerError { code, message, .. } => {
                self.answered(repository, what, code, message.as_bytes())
            }
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                self.answered(repository, what, 401, b"")
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let first = envelope.errors.into_iter().next();
                let status = match first.as_ref().map(|error| &error.code) {
                    Some(OciErrorCode::Unauthorized) => 401,
                    Some(OciErrorCode::Denied) => 403,
                    Some(
                        OciErrorCode::BlobUnknown
                        | OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound,
                    ) => 404,
                    Some(OciErrorCode::Toomanyrequests) => 429,
                    _ => 400,
                };
                let message = first.map(|error| error.message).unwrap_or_default();
                self.answered(repository, what, status, message.as_bytes())
            }
            OciDistributionError::RequestError(error) => match error.status() {
                Some(status) => self.answered(repository, what, status.as_u16(), b""),
                None => unreachable(repository, what, error),
            },
            OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
                match (expected.parse(), actual.parse()) {
                    (Ok(expected), Ok(actual)) => {
                        RegistryError::DigestMismatch { registry: registry(), what: what.to_owned(), expected, actual }
                    }
                    _ => RegistryError::Malformed {
                        registry: registry(),
                        what: what.to_owned(),
                        reason: format!("expected `{}`, got `{}`", clean(&expected), clean(&actual)),
                    },
                }
            }
            OciDistributionError::IoError(source) => {
                RegistryError::Unreachable { registry: registry(), what: what.to_owned(), source: source.into() }
            }
            other => RegistryError::Malformed {
                registry: registry(),
                what: what.to_owned(),
                reason: clean(&other.to_string()),
            },
        }
    }
}

/// A repository in the client library's words. A digest is passed as a tag: the path is the same, and the library's own digest field
/// makes it panic at registries that answer a manifest without saying where it is (`push_manifest_raw`, 0.18.0).
pub(super) fn wire_reference(repository: &Repository, version: &str) -> WireReference {
    WireReference::with_tag(repository.server.authority.clone(), repository.name.to_string(), version.to_owned())
}

fn base(repository: &Repository) -> String {
    let scheme = if repository.server.plain_http { "http" } else { "https" };
    // Docker Hub's name in references is not its host.
    format!("{scheme}://{}", wire_reference(repository, "latest").resolve_registry())
}

fn unreachable(repository: &Repository, what: &str, error: reqwest::Error) -> RegistryError {
    RegistryError::Unreachable {
        registry: repository.server.authority.clone(),
        what: what.to_owned(),
        // An address that a registry redirects to may hold a signature.
        source: error.without_url().into(),
    }
}

fn named_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// Reads a body of at most `limit` bytes. None if it is longer.
async fn read_up_to(mut response: Response, limit: u64) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// What a registry says in an error's body (distribution-spec, "Error Codes"), fit for a terminal.
fn words_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let said = serde_json::from_slice::<Envelope>(body).ok().and_then(|envelope| envelope.errors.into_iter().next());
    let text = match said {
        Some(said) if said.message.is_empty() => said.code,
        Some(said) => said.message,
        None => String::from_utf8_lossy(body).into_owned(),
    };
    clean(&text)
}

/// One line of a stranger's words, without what steers terminals.
fn clean(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    let mut line = String::new();
    for word in words {
        let space = if line.is_empty() { "" } else { " " };
        write!(line, "{space}{word}").expect("writing to a String does not fail");
        if line.len() > 300 {
            return line.chars().take(300).chain(['…']).collect();
        }
    }
    line
}

fn basic(username: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes = format!("{username}:{password}").into_bytes();
    let mut text = String::from("Basic ");
    for three in bytes.chunks(3) {
        let group = three.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// Waits between attempts at something that may go well a moment later.
#[derive(Debug)]
pub(super) struct Patience {
    left: u32,
    pause: Duration,
}

impl Patience {
    const PAUSE: Duration = Duration::from_millis(250);

    /// So many attempts more, with growing pauses.
    pub(super) fn new(attempts: u32) -> Self {
        Self { left: attempts, pause: Self::PAUSE }
    }

    /// Whether to try again after this error; if so, when this returns.
    pub(super) async fn allows(&mut self, error: &RegistryError) -> bool {
        if self.left == 0 || !error.is_passing() {
            return false;
        }
        self.left -= 1;
        tracing::debug!(%error, pause = ?self.pause, "try again");
        tokio::time::sleep(self.pause).await;
        self.pause *= 2;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_base64() {
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(basic("a", "b"), "Basic YTpi");
        assert_eq!(basic("ab", "c"), "Basic YWI6Yw==");
        assert_eq!(basic("a", ""), "Basic YTo=");
    }

    #[test]
    fn a_registrys_words_cannot_steer_the_terminal() {
        let body = "{\"errors\":[{\"code\":\"X\",\"message\":\"a\\u001b[2Jb\\nc\"}]}";
        assert_eq!(words_of(body.as_bytes()), "a [2Jb c");
        assert_eq!(words_of(br#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(words_of(b"<html>\xff"), "<html>\u{fffd}");
        assert_eq!(words_of(&[b'x'; 5000]).chars().count(), 301);
    }
}
