//! Why an image could not be built, and where in the Dockerfile.

use std::path::PathBuf;

use jiji_model::commit::Commit;
use jiji_model::digest::Digest;
use jiji_model::project::Frontend;
use jiji_model::reference::ParseReferenceError;
use jiji_store::StoreError;

use super::archive::ArchiveError;
use super::compare::CompareError;
use super::context::ContextError;
use super::copy::CopyError;
use super::dockerfile::{DockerfileError, Place};
use super::execute::{ExecuteError, Exit};
use super::git::GitError;
use super::image::BaseError;
use super::layer::LayerError;
use super::recipe::RecipeError;
use super::record::RecordError;
use super::rootfs::IndexError;
use super::trees::TreeError;
use crate::registry::RegistryError;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile or recipe cannot be opened.
    #[error("read `{path}`", path = path.display())]
    NoFile {
        /// Its path.
        path: PathBuf,
        /// Which of the two it is.
        frontend: Frontend,
        /// What the system said.
        source: std::io::Error,
    },
    /// The Dockerfile cannot be read, or holds what jiji does not build.
    #[error(transparent)]
    Dockerfile(Box<DockerfileError>),
    /// The recipe cannot be read.
    #[error(transparent)]
    Recipe(Box<RecipeError>),
    /// The context cannot be read.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// An instruction cannot be carried out.
    #[error("carry out {instruction} at {place}")]
    Step {
        /// Where it stands.
        place: Box<Place>,
        /// Its name.
        instruction: &'static str,
        /// Why not.
        #[source]
        cause: Box<StepError>,
    },
    /// The stage that was asked for is not in the Dockerfile.
    #[error("find stage `{name}` in `{dockerfile}`")]
    UnknownStage {
        /// What was asked for.
        name: String,
        /// The Dockerfile.
        dockerfile: String,
    },
    /// A stage was not carried on, since another had failed. It is never what a build ends with.
    #[error("carry on with a stage: another has failed")]
    Ended,
    /// Stages cannot be carried out side by side.
    #[error("begin a stage")]
    Threads(#[source] std::io::Error),
    /// The argument `SOURCE_DATE_EPOCH` is no time.
    #[error("read the build argument `SOURCE_DATE_EPOCH`: `{text}` is not a number of seconds")]
    Epoch {
        /// Its value.
        text: String,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer of an earlier build cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A layer of an earlier build cannot be compressed otherwise.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Two images that should be equal could not be compared.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// With `--locked`: the image is another than `jiji.lock` says.
    #[error("build `{image}` as locked: it is `{actual}`, jiji.lock says {}", expected.map_or("nothing".to_owned(), |digest| format!("`{digest}`")))]
    LockedImage {
        /// What was built.
        image: String,
        /// The manifest that jiji.lock says, if it says one.
        expected: Option<Digest>,
        /// The manifest that was built.
        actual: Digest,
        /// How they differ, one line each, where the one that jiji.lock says is here.
        evidence: Vec<String>,
    },
}

/// Why an instruction could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// What it copies cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// An archive that ADD names cannot be unpacked.
    #[error("add `{path}`")]
    Archive {
        /// Its path in the context.
        path: String,
        /// Why not.
        source: ArchiveError,
    },
    /// The context cannot be read.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Its layer cannot be written.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A layer below cannot be looked into.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A layer below cannot be unpacked.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The base image cannot be built upon.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The base image's name cannot be read.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// The base image cannot be had.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The command could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The command could not be run.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// The command failed.
    #[error("run `{command}`: {}", exit_text(*exit))]
    Failed {
        /// The command, as the Dockerfile has it.
        command: String,
        /// How it ended.
        exit: Exit,
        /// Whether it had the network.
        network: bool,
        /// The end of its output.
        output: Vec<String>,
    },
    /// With `--locked`: jiji.lock says nothing about it.
    #[error("find {what} in jiji.lock")]
    NotLocked {
        /// What was looked for.
        what: String,
    },
    /// With `--locked`: the step gave another result than jiji.lock says.
    #[error("run a step as locked: it gave `{actual}`, jiji.lock says `{expected}`")]
    Locked {
        /// The layer that jiji.lock says.
        expected: Digest,
        /// The layer that it gave.
        actual: Digest,
        /// Whether it had the network.
        network: bool,
        /// What differs when it is run again, one line each.
        evidence: Vec<String>,
    },
    /// Two layers that should be equal could not be compared.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// A name of an owner that the image does not know.
    #[error("find {kind} `{name}` in the image's `/etc/{file}`")]
    Owner {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// `passwd` or `group`.
        file: &'static str,
    },
    /// A secret that a step needs and that was not given.
    #[error("mount the secret `{id}`: it was not given")]
    Secret {
        /// Its name.
        id: String,
    },
    /// An agent that a step needs and that was not given.
    #[error("mount the agent `{id}`: it was not given")]
    Agent {
        /// Its name.
        id: String,
    },
    /// An image in a directory that is for another platform.
    #[error("take the context `{name}`: it is for {actual}")]
    ContextPlatform {
        /// The context's name.
        name: String,
        /// What it is for.
        actual: String,
    },
    /// A secret that is longer than 1 MiB.
    #[error("mount the secret `{id}`: it is longer than 1 MiB")]
    LargeSecret {
        /// Its name.
        id: String,
    },
    /// A repository that ADD names cannot be had.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A repository has another commit than it should.
    #[error("add `{repository}`: it is commit {actual}, `--checksum` says `{expected}`")]
    OtherCommit {
        /// The repository, as the Dockerfile has it.
        repository: String,
        /// What `--checksum` says.
        expected: String,
        /// The commit that it is.
        actual: Commit,
    },
    /// A URL has another file than it should.
    #[error("fetch `{url}`: it has `{actual}`, {by} says `{expected}`")]
    OtherFile {
        /// The URL.
        url: String,
        /// What says so: `--checksum` or `jiji.lock`.
        by: &'static str,
        /// The digest that it should have.
        expected: Digest,
        /// The digest that it has.
        actual: Digest,
    },
    /// A recipe takes from a service that the project has not.
    #[error("take from the service `{name}`: the project has none of that name")]
    NoService {
        /// What it is called.
        name: String,
    },
    /// FROM of a variable that is empty.
    #[error("begin a stage from nothing: the image's name is empty after variables are replaced")]
    EmptyBase,
}

impl BuildError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoFile { source, frontend, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some(match frontend {
                    Frontend::Dockerfile => {
                        "name it with `build.dockerfile` in deploy.yml; the path is relative to the context"
                    }
                    Frontend::Recipe => "`build.recipe` in deploy.yml names it; the path is relative to the context",
                })
            }
            Self::Dockerfile(error) => error.hint(),
            Self::Recipe(error) => error.hint(),
            Self::Context(error) => error.hint(),
            Self::Step { cause, .. } => cause.hint(),
            Self::Layer(error) => error.hint(),
            Self::LockedImage { .. } => Some("build without `--locked` and commit jiji.lock if the change is meant"),
            Self::Epoch { .. } => Some("give the seconds since 1970, such as those of `git log -1 --format=%ct`"),
            Self::NoFile { .. }
            | Self::UnknownStage { .. }
            | Self::Ended
            | Self::Threads(_)
            | Self::Store(_)
            | Self::Index(_)
            | Self::Compare(_) => None,
        }
    }

    /// Where in a Dockerfile it is, if it is in one.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Dockerfile(error) => Some(&error.place),
            Self::Recipe(error) => Some(&error.place),
            Self::Step { place, .. } => Some(place),
            _ => None,
        }
    }

    /// Output or other evidence to show, one line each.
    pub fn evidence(&self) -> &[String] {
        match self {
            Self::Step { cause, .. } => match &**cause {
                StepError::Failed { output, .. } => output,
                StepError::Locked { evidence, .. } => evidence,
                _ => &[],
            },
            Self::LockedImage { evidence, .. } => evidence,
            _ => &[],
        }
    }

    /// Whether the build disagrees with `jiji.lock`, which has an exit code of its own.
    pub fn is_locked_mismatch(&self) -> bool {
        match self {
            Self::LockedImage { .. } => true,
            Self::Step { cause, .. } => matches!(**cause, StepError::Locked { .. } | StepError::NotLocked { .. }),
            _ => false,
        }
    }

    /// Whether a registry refused or could not be reached, which has an exit code of its own.
    pub fn registry(&self) -> Option<&RegistryError> {
        match self {
            Self::Step { cause, .. } => match &**cause {
                StepError::Registry(error) => Some(error),
                _ => None,
            },
            _ => None,
        }
    }
}

impl StepError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Copy(error) => error.hint(),
            Self::Archive { source, .. } => source.hint(),
            Self::Context(error) => error.hint(),
            Self::Layer(error) => error.hint(),
            Self::Tree(error) => error.hint(),
            Self::Registry(error) => error.hint(),
            Self::Execute(error) => error.hint(),
            Self::NotLocked { .. } => Some("build without `--locked` and commit jiji.lock if the change is meant"),
            Self::Locked { network: true, .. } => Some(
                "what a step fetches must not change: name exact versions (`apt-get install x=1.2`, `npm ci`, `pip install --require-hashes`, `cargo fetch --locked`). Build without `--locked` to take what it gives now",
            ),
            Self::Locked { .. } => Some(
                "the step does not give the same each time, or not on every machine; `jiji build --check` looks at each step. Build without `--locked` to take what it gives now",
            ),
            Self::Owner { .. } => Some("use a number, which means the same in every image"),
            Self::OtherFile { by: "jiji.lock", .. } => Some(
                "the file behind the URL changed: name one that does not, or remove its entry from jiji.lock if the change is meant",
            ),
            Self::Git(error) => error.hint(),
            Self::OtherCommit { .. } => {
                Some("the branch or tag moved: do not use it unless you know why, or name the commit after `#`")
            }
            Self::OtherFile { .. } => Some("the file behind the URL is another one; do not use it unless you know why"),
            Self::Secret { .. } => Some("name it in `build.secrets` in deploy.yml, and set it where jiji runs"),
            Self::NoService { .. } => Some("name one that stands under `services` in deploy.yml"),
            Self::Agent { .. } => {
                Some("name it in `build.ssh` in deploy.yml or with `--ssh`, and have an agent run (`SSH_AUTH_SOCK`)")
            }
            Self::Failed { network: false, output, .. } if output.iter().any(|line| is_about_network(line)) => Some(
                "RUN has no network, so that the same input gives the same image; `RUN --network=default` has it, runs once, and jiji.lock says what it gave",
            ),
            Self::Failed { output, .. } if output.iter().any(|line| is_about_lists(line)) => Some(
                "what a RUN fetched to know what there is (lists, indexes, caches) is no part of the image: fetch and use it in one RUN with `--network=default`",
            ),
            _ => None,
        }
    }
}

/// Whether a line of output looks like a program that wanted the network.
fn is_about_network(line: &str) -> bool {
    [
        "Temporary failure in name resolution",
        "Temporary failure resolving",
        "Could not resolve host",
        "Network is unreachable",
        "getaddrinfo",
        "DNS lookup error",
        "bad address",
        "EAI_AGAIN",
    ]
    .iter()
    .any(|words| line.contains(words))
}

/// Whether a line of output looks like a program that misses what was cleaned up after a step before.
fn is_about_lists(line: &str) -> bool {
    ["Unable to locate package", "has no installation candidate", "you're using offline mode"]
        .iter()
        .any(|words| line.contains(words))
}

fn exit_text(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("it exited with {code}"),
        Exit::Signal(signal) => format!("it was killed by signal {signal}"),
        Exit::TimedOut => "it took too long".to_owned(),
        Exit::Cancelled => "it was interrupted".to_owned(),
    }
}
