//! Why a repository could not be had.

use jiji_model::commit::Commit;
use jiji_store::StoreError;

/// Why a repository could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no `git`.
    #[error("start `git`")]
    Program(#[source] std::io::Error),
    /// `git` failed.
    #[error("{doing} `{url}`: {said}")]
    Failed {
        /// What it was to do.
        doing: &'static str,
        /// The repository.
        url: String,
        /// The end of what it said.
        said: String,
    },
    /// `git` could not read what it had fetched.
    #[error("read a repository: {said}")]
    Read {
        /// The end of what it said.
        said: String,
    },
    /// The repository does not have what a reference names.
    #[error("find `{reference}` in `{url}`")]
    NoReference {
        /// The reference.
        reference: String,
        /// The repository.
        url: String,
    },
    /// The commit does not have a directory.
    #[error("find the directory `{directory}` in commit {commit}")]
    NoDirectory {
        /// The directory.
        directory: String,
        /// The commit.
        commit: Commit,
    },
    /// A repository in the repository.
    #[error("take `{path}` of a repository: it is another repository (a submodule)")]
    Submodule {
        /// Where it is.
        path: String,
    },
    /// A name that no file of a repository may have.
    #[error("take `{path}` of a repository: no file of one can be called so")]
    Name {
        /// The name.
        path: String,
    },
    /// It is more than any build needs.
    #[error("take a repository: {what}")]
    TooLarge {
        /// What is too large, and the bound.
        what: &'static str,
    },
    /// It took too long.
    #[error("{doing} `{url}`: it took more than {minutes} minutes")]
    TimedOut {
        /// What it was to do.
        doing: &'static str,
        /// The repository.
        url: String,
        /// How many.
        minutes: u64,
    },
    /// The build was ended.
    #[error("take a repository: the build was ended")]
    Cancelled,
    /// What `git` says cannot be read.
    #[error("talk to `git`")]
    Talk(#[from] std::io::Error),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl GitError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Program(_) => "install git, or ADD an archive of the commit by its URL",
            Self::Failed { said, .. }
                if said.contains("terminal prompts disabled") || said.contains("Permission denied") =>
            {
                "nobody is asked for a password: have git's credential helper or an ssh agent know it, or use a URL that needs none"
            }
            Self::Failed { .. } => {
                "see whether `git ls-remote` reaches it; a commit that no branch holds any more cannot be fetched"
            }
            Self::NoReference { .. } => "name a branch, a tag or all digits of a commit",
            Self::Submodule { .. } => "ADD the other repository by itself, or COPY a checkout that has it",
            Self::NoDirectory { .. } => "the directory after `:` is relative to the repository's root",
            Self::TooLarge { .. } => "ADD a directory of it, or an archive of what is needed",
            _ => return None,
        })
    }
}
