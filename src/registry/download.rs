//! Taking what a URL has: the one thing here that is no registry's. It shares their connections and the words of their errors.

use std::io::Write as _;

use futures_util::StreamExt as _;
use jiji_model::digest::Digest;
use jiji_model::event::Record;
use jiji_store::{Store, StoreError};
use serde_json::json;

use super::client::Client;
use super::error::RegistryError;

/// The longest that is taken, in bytes.
const LIMIT: u64 = 16 << 30;

impl Client {
    /// Takes what a URL has into the store, whatever it is: its digest and length. Redirections are followed. Blocks for the disk.
    ///
    /// # Errors
    /// [`RegistryError`], with the URL's host as the registry.
    pub async fn download(&self, url: &str, store: &Store) -> Result<(Digest, u64), RegistryError> {
        self.online(|| format!("`{url}`"))?;
        let (registry, what) = (host(url).to_owned(), format!("`{url}`"));
        let unreachable = |error: reqwest::Error| RegistryError::Unreachable {
            registry: registry.clone(),
            what: what.clone(),
            source: error.without_url().into(),
        };
        let response = self.wire().http()?.get(url).send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        match status {
            200 => {}
            404 | 410 => return Err(RegistryError::NotFound { registry, what }),
            429 => return Err(RegistryError::RateLimited { registry, what }),
            _ => return Err(RegistryError::Refused { registry, what, status, message: String::new() }),
        }
        let mut writer = store.writer()?;
        let mut body = response.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(unreachable)?;
            if writer.written() + chunk.len() as u64 > LIMIT {
                return Err(RegistryError::TooLarge { registry, what, limit: LIMIT });
            }
            let failed = |source| StoreError::Io { action: "write", path: store.root().join("tmp"), source };
            writer.write_all(&chunk).map_err(failed)?;
        }
        let (digest, size) = writer.finish(None)?;
        let line = format!("fetched {url}, {size} bytes");
        self.emit(Record::new("registry.fetched", line).with(json!({"url": url, "digest": digest, "bytes": size})));
        Ok((digest, size))
    }
}

/// `HOST[:PORT]` of a URL.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}
