//! Taking what a URL has: what is here is no registry's. It shares their connections and the words of their errors.

use std::io::Write as _;

use futures_util::StreamExt as _;
use jiji_model::digest::Digest;
use jiji_model::event::Record;
use jiji_store::{Store, StoreError};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, LOCATION};
use serde_json::json;

use super::client::Client;
use super::error::RegistryError;

/// The longest that is taken, in bytes.
const LIMIT: u64 = 16 << 30;
/// How often one is sent on.
const HOPS: usize = 10;

impl Client {
    /// Takes what a URL has into the store, whatever it is: its digest and length. Redirections are followed. Blocks for the disk.
    ///
    /// # Errors
    /// [`RegistryError`], with the URL's host as the registry.
    pub async fn download(&self, url: &str, store: &Store) -> Result<(Digest, u64), RegistryError> {
        self.online(|| format!("`{url}`"))?;
        let (registry, what) = (host(url).to_owned(), format!("`{url}`"));
        let response = self.wire().http()?.get(url).send().await.map_err(|error| unreachable(url, error))?;
        let status = response.status().as_u16();
        match status {
            200 => {}
            404 | 410 => return Err(RegistryError::NotFound { registry, what }),
            429 => return Err(RegistryError::RateLimited { registry, what }),
            _ => return Err(RegistryError::Refused { registry, what, status, message: String::new() }),
        }
        let (digest, size) = keep(response, url, store).await?;
        let line = format!("fetched {url}, {size} bytes");
        self.emit(Record::new("registry.fetched", line).with(json!({"url": url, "digest": digest, "bytes": size})));
        Ok((digest, size))
    }

    /// Asks for a URL as `asking` says, and takes what it has into the store. An answer that it is elsewhere is given as it is, unless that place is
    /// one for a moment: a URL with a signature or a password in it. Blocks for the disk.
    ///
    /// # Errors
    /// [`RegistryError`], where there is no answer.
    pub async fn ask(&self, asking: &Asking<'_>, store: &Store) -> Result<Answer, RegistryError> {
        let named = asking.url;
        self.online(|| format!("`{named}`"))?;
        let unreachable = |error: reqwest::Error| unreachable(named, error);
        let http = self.wire().http_as_told()?;
        let mut url = named.to_owned();
        for _ in 0..HOPS {
            // What is kept is the file and not a form of it that only this client would understand.
            let mut request = http.get(&url).header(ACCEPT_ENCODING, "identity");
            if let Some(accept) = asking.accept {
                request = request.header(ACCEPT, accept);
            }
            // Whoever it was meant for may send on to others, who are not to know it.
            if let Some(authorization) = asking.authorization.filter(|_| host(&url) == host(named)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(unreachable)?;
            let status = response.status().as_u16();
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let (kind, location) = (header(CONTENT_TYPE), header(LOCATION));
            let target = location.filter(|_| response.status().is_redirection());
            let Some(target) = target.and_then(|target| response.url().join(&target).ok()) else {
                let body = if status == 200 { Some(keep(response, named, store).await?) } else { None };
                return Ok(Answer { status, kind, location: None, body });
            };
            if target.query().is_none() && target.username().is_empty() && target.password().is_none() {
                return Ok(Answer { status, kind: None, location: Some(target.into()), body: None });
            }
            url = target.into();
        }
        let (registry, what) = (host(named).to_owned(), format!("`{named}`"));
        let message = format!("it sends on more than {HOPS} times");
        Err(RegistryError::Refused { registry, what, status: 302, message })
    }
}

/// What is asked for, besides a URL.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// The URL.
    pub url: &'a str,
    /// `Accept`.
    pub accept: Option<&'a str>,
    /// `Authorization`.
    pub authorization: Option<&'a str>,
}

/// What a server says of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Content-Type`.
    pub kind: Option<String>,
    /// Where it is instead.
    pub location: Option<String>,
    /// What it has, in the store, and how long that is: with status 200 alone.
    pub body: Option<(Digest, u64)>,
}

impl Answer {
    /// Whether it says what is there, or that nothing is, rather than that somebody may not have it, or not now.
    pub fn is_lasting(&self) -> bool {
        matches!(self.status, 200 | 301 | 302 | 303 | 307 | 308 | 404 | 410)
    }
}

fn unreachable(url: &str, error: reqwest::Error) -> RegistryError {
    let (registry, what) = (host(url).to_owned(), format!("`{url}`"));
    RegistryError::Unreachable { registry, what, source: error.without_url().into() }
}

/// Takes an answer into the store.
async fn keep(response: reqwest::Response, url: &str, store: &Store) -> Result<(Digest, u64), RegistryError> {
    let mut writer = store.writer()?;
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| unreachable(url, error))?;
        if writer.written() + chunk.len() as u64 > LIMIT {
            let (registry, what) = (host(url).to_owned(), format!("`{url}`"));
            return Err(RegistryError::TooLarge { registry, what, limit: LIMIT });
        }
        let failed = |source| StoreError::Io { action: "write", path: store.root().join("tmp"), source };
        writer.write_all(&chunk).map_err(failed)?;
    }
    Ok(writer.finish(None)?)
}

/// `HOST[:PORT]` of a URL.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}
