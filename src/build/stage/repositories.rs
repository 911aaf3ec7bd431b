//! ADD of a git repository: a commit that the Dockerfile or the lock names, and its files from then on.

use jiji_model::commit::Commit;
use jiji_model::digest::Digest;
use jiji_sandbox::Canceller;
use serde_json::json;

use super::steps::Stepped;
use super::turns::held;
use super::{Evaluation, Result, error, step_error};
use crate::build::dockerfile::{Instruction, Position, Problem};
use crate::build::error::StepError;
use crate::build::git::{self, Repository, Wanted};
use crate::lockfile::RepositoryKey;

/// `--checksum` of a repository: a commit, or its beginning.
fn checksum(text: &str) -> std::result::Result<&str, Problem> {
    let good = (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let expected = "7 hexadecimal digits of a commit or more, in small letters, for a source that is one repository";
    let bad = || Problem::FlagValue { flag: "checksum", value: text.to_owned(), expected };
    if good { Ok(text) } else { Err(bad()) }
}

impl Evaluation<'_> {
    /// The archive of a repository that stands at `at`, by its commit.
    pub(super) fn repository(
        &self,
        instruction: &Instruction,
        text: &str,
        at: Position,
        sum: Option<(Position, &str)>,
        keep_git: bool,
        canceller: &Canceller,
    ) -> Result<(Digest, u64)> {
        let file = self.file;
        let refused = |expected| Problem::Unexpected { instruction: "ADD", word: text.to_owned(), expected };
        let repository = Repository::parse(text).map_err(|expected| error(file, at, refused(expected)))?;
        if keep_git && repository.directory.is_some() {
            let expected = "a whole repository with `--keep-git-dir`";
            return Err(error(file, at, refused(expected)));
        }
        let sum = match sum {
            Some((at, text)) => Some(checksum(text).map_err(|problem| error(file, at, problem))?),
            None => None,
        };
        // What two stages want is resolved and fetched once.
        let found = self.asked.take(format!("git {}", repository.url), || {
            self.repository_now(text, &repository, sum, keep_git, canceller)
        });
        found.map_err(|cause| step_error(file, at, instruction.name, cause))
    }

    fn repository_now(
        &self,
        text: &str,
        repository: &Repository,
        sum: Option<&str>,
        keep_git: bool,
        canceller: &Canceller,
    ) -> Stepped<(Digest, u64)> {
        let store = self.builder.store;
        let key = RepositoryKey { url: repository.url.clone(), reference: repository.reference.clone() };
        // A commit in full, wherever it stands, needs no lock.
        let said = repository.commit().or_else(|| sum.and_then(|sum| sum.parse().ok()));
        let pinned = said.or_else(|| held(&self.lock).repositories.get(&key).cloned());
        let what = || format!("`{text}`");
        let commit = match pinned {
            Some(commit) => commit,
            None if self.request.locked => return Err(StepError::NotLocked { what: what() }),
            None => {
                self.builder.sources.reachable(&what)?;
                self.tell("build.resolve", format!("resolving {key}"), json!({"url": key.url, "ref": key.reference}));
                git::resolve(repository, store, canceller)?
            }
        };
        self.is_summed(text, &commit, sum)?;
        if repository.commit().is_none() && sum.is_none_or(|sum| sum != commit.as_str()) {
            held(&self.lock).repositories.entry(key).or_insert_with(|| commit.clone());
        }
        let wanted = Wanted { commit: &commit, directory: repository.directory.as_deref(), keep_git };
        if let Some(stored) = wanted.stored(store)? {
            return Ok(stored);
        }
        self.builder.sources.reachable(&|| format!("commit {commit} of `{}`", repository.url))?;
        let told = json!({"url": repository.url, "commit": commit});
        self.tell("build.fetch", format!("fetching {} at {}", repository.url, commit.short()), told);
        Ok(wanted.fetch(repository, store, canceller)?)
    }

    fn is_summed(&self, text: &str, commit: &Commit, sum: Option<&str>) -> Stepped<()> {
        match sum {
            Some(sum) if !commit.as_str().starts_with(sum) => {
                let (repository, expected) = (text.to_owned(), sum.to_owned());
                Err(StepError::OtherCommit { repository, expected, actual: commit.clone() })
            }
            _ => Ok(()),
        }
    }
}
