//! Repositories that ADD names: one commit of each, as an archive of its files.
//!
//! The `git` program is asked what a name means, fetches one commit, and reads objects. Nothing is ever checked out: no hook, filter or attribute
//! of a repository is carried out, no link of it is followed, and what an archive holds depends on the commit alone. Archives are kept in
//! the store; which commit a name means is the lock's to say.

mod error;
mod program;
mod tree;

use jiji_model::commit::Commit;
use jiji_model::digest::{Digest, canonical_json};
use jiji_sandbox::Canceller;
use jiji_store::Store;
use serde::{Deserialize, Serialize};

pub use error::GitError;
use program::Git;

/// The version of how an archive is put together.
const VERSION: u32 = 1;

/// What of a repository is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Where it is, as git takes it.
    pub url: String,
    /// A branch, a tag, a reference in full or a commit; none for what the repository itself takes.
    pub reference: Option<String>,
    /// The directory of it that is wanted; none for all.
    pub directory: Option<String>,
}

impl Repository {
    /// Reads `URL[#[REFERENCE][:DIRECTORY]]`.
    ///
    /// # Errors
    /// With what was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (url, rest) = text.split_once('#').unwrap_or((text, ""));
        if url.contains('?') {
            return Err("a repository without a query: `URL#REFERENCE:DIRECTORY`");
        }
        let (reference, directory) = rest.split_once(':').unwrap_or((rest, ""));
        let url = match url.strip_prefix("github.com/") {
            Some(rest) => format!("https://github.com/{}.git", rest.trim_end_matches('/').trim_end_matches(".git")),
            None => url.to_owned(),
        };
        let odd = |text: &str| text.starts_with('-') || text.chars().any(|ch| ch.is_control() || ch.is_whitespace());
        // A word that begins with a dash would be an option to git, or to the programs that git runs.
        let authority = match url.split_once("://") {
            Some((_, rest)) => rest.split('/').next().unwrap_or_default(),
            None => url.split([':', '/']).next().unwrap_or_default(),
        };
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if odd(&url) || host.is_empty() || host.starts_with('-') || user.starts_with('-') {
            return Err("the URL of a repository");
        }
        if user.contains(':') || !user.is_empty() && url.starts_with("http") {
            return Err("a URL without a password, which would be in jiji.lock and in the image's history");
        }
        // git-check-ref-format(1).
        let bad = |ch: char| matches!(ch, '~' | '^' | '?' | '*' | '[' | '\\');
        if odd(reference) || reference.contains("..") || reference.contains("@{") || reference.contains(bad) {
            return Err("a branch, a tag or a commit after `#`");
        }
        let parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.contains(&"..") || directory.chars().any(char::is_control) {
            return Err("a directory of the repository after `:`");
        }
        let directory = (!parts.is_empty()).then(|| parts.join("/"));
        Ok(Self { url, reference: (!reference.is_empty()).then(|| reference.to_owned()), directory })
    }

    /// The commit, where the reference is one.
    pub fn commit(&self) -> Option<Commit> {
        self.reference.as_ref()?.parse().ok()
    }
}

/// What an archive is of.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The commit.
    pub commit: &'a Commit,
    /// The directory of it; none for all.
    pub directory: Option<&'a str>,
    /// Whether a `.git` is there too.
    pub keep_git: bool,
}

/// An archive in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    repository: Digest,
    size: u64,
}

/// Whether a record of the store is one of these.
pub(super) fn is_record(record: &[u8]) -> bool {
    serde_json::from_slice::<Record>(record).is_ok()
}

impl Wanted<'_> {
    fn key(&self) -> Digest {
        Digest::of_json(&serde_json::json!({
            "git-archive": VERSION, "commit": self.commit, "directory": self.directory, "keep-git": self.keep_git,
        }))
    }

    /// The archive, if the store has it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn stored(&self, store: &Store) -> Result<Option<(Digest, u64)>, GitError> {
        let Some(record) = store.action(&self.key())? else { return Ok(None) };
        let Ok(Record { repository, size }) = serde_json::from_slice(&record) else { return Ok(None) };
        Ok((store.has(&repository)? == Some(size)).then_some((repository, size)))
    }

    /// Fetches the commit and puts its archive into the store.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn fetch(&self, from: &Repository, store: &Store, canceller: &Canceller) -> Result<(Digest, u64), GitError> {
        let room = store.new_tree()?;
        let git = Git::new(&room.path(), canceller)?;
        git.fetch(from, self.commit)?;
        let (repository, size) = tree::archive(&git, self, store)?;
        store.record_action(&self.key(), &canonical_json(&Record { repository, size }))?;
        Ok((repository, size))
    }
}

/// Asks a repository what a reference means now.
///
/// # Errors
/// [`GitError`].
pub fn resolve(repository: &Repository, store: &Store, canceller: &Canceller) -> Result<Commit, GitError> {
    let room = store.new_tree()?;
    Git::new(&room.path(), canceller)?.resolve(repository)
}

#[cfg(test)]
mod tests;
