//! ADD of a URL: fetched once, and then what the lock or the Dockerfile says.

use jiji_model::digest::Digest;
use serde_json::json;

use super::Evaluation;
use super::steps::Stepped;
use super::turns::held;
use crate::build::copy::url_name;
use crate::build::dockerfile::Problem;
use crate::build::error::StepError;

/// Whether a source of ADD is one that is fetched.
pub(super) fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// What is wrong with a source of ADD that is fetched.
pub(super) fn check(url: &str, destination: &str) -> Result<(), Problem> {
    let authority =
        url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let refused = |expected| Problem::Unexpected { instruction: "ADD", word: url.to_owned(), expected };
    if authority.contains('@') {
        return Err(refused("a URL without a password, which would be in jiji.lock and in the image's history"));
    }
    if destination.ends_with('/') && url_name(url).is_empty() {
        return Err(refused("a URL that ends with a file's name, or a destination that does not end with `/`"));
    }
    Ok(())
}

/// `--checksum`: the digest of a file.
pub(super) fn checksum(text: &str) -> Result<Digest, Problem> {
    let expected = "`sha256:` and 64 hexadecimal digits, for a source that is one URL";
    text.parse().map_err(|_| Problem::FlagValue { flag: "checksum", value: text.to_owned(), expected })
}

impl Evaluation<'_> {
    /// The blob that a URL stands for: by the Dockerfile, or by the lock, or by what it has now, which the lock says from then on. Fetched
    /// where the store lacks it.
    pub(super) fn fetched(&self, url: &str, checksum: Option<Digest>) -> Stepped<(Digest, u64)> {
        self.asked.take(url.to_owned(), || self.fetched_now(url, checksum))
    }

    fn fetched_now(&self, url: &str, checksum: Option<Digest>) -> Stepped<(Digest, u64)> {
        let store = self.builder.store;
        let expected = checksum.or_else(|| held(&self.lock).urls.get(url).copied());
        if let Some(digest) = expected
            && let Some(size) = store.has(&digest)?
        {
            return Ok((digest, size));
        }
        if expected.is_none() && self.request.locked {
            return Err(StepError::NotLocked { what: format!("`{url}`") });
        }
        self.tell("build.fetch", format!("fetching {url}"), json!({"url": url}));
        let (actual, size) = self.builder.sources.fetch(url, store)?;
        match expected {
            Some(expected) if expected != actual => {
                let by = if checksum.is_some() { "--checksum" } else { "jiji.lock" };
                return Err(StepError::OtherFile { url: url.to_owned(), by, expected, actual });
            }
            Some(_) => {}
            None => {
                held(&self.lock).urls.insert(url.to_owned(), actual);
            }
        }
        Ok((actual, size))
    }
}
