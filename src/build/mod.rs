//! From a project's source to an image: the same input gives the same digest, on every machine.
//!
//! A Dockerfile ([`dockerfile`]) or a recipe ([`recipe`]) is read into stages, the stages needed become steps with keys, and what is not remembered under its
//! key is done: COPY from the [`context`], RUN through an [`execute::Executor`]. Layers are written by [`layer`], configuration and
//! manifest by [`image`]. What was resolved or run is noted in the lock's section that the caller hands in.
//!
//! This room knows nothing of hosts and nothing of services but their names: an image's digest is all that leaves it. It never asks the
//! network but for a base image or a fetched file that the store lacks, through [`Sources`]. It reads no clock, no environment and no home directory; it
//! blocks its thread.
//!
//! | inner room | what it does |
//! | --- | --- |
//! | [`dockerfile`] | text to instructions, each with its place |
//! | [`recipe`] | the same of jiji's own language |
//! | [`context`], [`contents`] | the files that may be copied, and their digests |
//! | [`rootfs`] | what layers hold, without unpacking them |
//! | [`copy`], [`archive`], [`git`] | which files a COPY takes and where they go; what ADD unpacks, and repositories |
//! | `stage` | what instructions mean: steps, keys, what is remembered |
//! | [`execute`], [`trees`] | RUN, and layers as directories |
//! | `record` | the proxy of steps whose URLs are pinned |
//! | [`layer`] | entries to bytes: the layer format |
//! | [`pack`] | one layer's entries as several layers |
//! | `check`, [`compare`] | every step once more under other conditions, and how two images differ |
//! | [`verify`] | whether the store still holds what was put into it |
//! | [`image`] | configuration and manifest |

pub mod archive;
mod check;
pub mod compare;
pub mod contents;
pub mod context;
pub mod copy;
pub mod dockerfile;
mod error;
pub mod execute;
pub mod git;
pub mod image;
pub mod layer;
pub mod pack;
pub mod recipe;
mod record;
pub mod rootfs;
mod sources;
mod stage;
pub mod trees;
pub mod verify;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiji_model::commit::Commit;
use jiji_model::digest::Digest;
use jiji_model::event::{Record, Sink};
use jiji_model::image::{Compression, Image, Platform};
use jiji_model::name::RepositoryName;
use jiji_model::project::{Frontend, NamedContext};
use jiji_model::reference::Reference;
use jiji_model::secret::Secret;
use jiji_store::Store;

use crate::lockfile::{Asked, BaseKey, BuildSection, Recorded, RepositoryKey, Target};
use crate::registry::Depth;
use dockerfile::Dockerfile;
use execute::Executor;
use layer::Form;
use stage::{Evaluation, Memory, Outcome};

pub use check::{Checked, Elsewhere, Finding};
pub use error::{BuildError, StepError};
pub use record::RecordError;
pub use sources::{Answer, Asking, Registries, Sources};

/// What time it is for everything that is built, in seconds since 1970: the first second of 1980 (UTC).
///
/// Any constant would do for the digests. 0 is taken for "no time" by some programs, and archives in ZIP format (wheels, jars) cannot
/// say a time before 1980, so their tools fail on older files.
pub const DEFAULT_EPOCH: u64 = 315_532_800;

/// The argument that says another time than the default, in seconds since 1970 (reproducible-builds.org, "SOURCE_DATE_EPOCH").
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The longest Dockerfile or recipe, in bytes.
const FILE_LIMIT: u64 = 16 << 20;

/// What is to be built.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// What the lock calls it.
    pub target: Target,
    /// The repository name that the image gets.
    pub repository: RepositoryName,
    /// The context directory.
    pub context: PathBuf,
    /// The file that says how: a Dockerfile or a recipe.
    pub file: PathBuf,
    /// Which of the two.
    pub frontend: Frontend,
    /// What errors call that file: its path as the project knows it.
    pub file_name: String,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// What `RUN --mount=type=secret` may ask for, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Agents that `RUN --mount=type=ssh` may ask to sign, by id: their sockets.
    pub ssh: BTreeMap<String, PathBuf>,
    /// What names stand for in FROM, `--from` and `from=`, before stages and images of that name.
    pub contexts: BTreeMap<String, NamedContext>,
    /// The images of the project's services that a recipe may name: those of [`services`], by the services' names.
    pub services: BTreeMap<String, ServiceImage>,
    /// The stage to build instead of the last.
    pub stage: Option<String>,
    /// The platform to build for.
    pub platform: Platform,
    /// Every modification time, in seconds since 1970, and `SOURCE_DATE_EPOCH` for RUN. See [`DEFAULT_EPOCH`].
    pub epoch: u64,
    /// How layers are compressed: those that are made here, not those of base images.
    pub compression: Compression,
    /// Whether anything that `jiji.lock` does not say already is an error.
    pub locked: bool,
    /// Whether all is done again, whatever is remembered.
    pub renew: bool,
    /// Whether to say of each step why it is done or not.
    pub explain: bool,
    /// How many cores to hash and compress on. Reaches no byte of the image.
    pub threads: usize,
}

impl BuildRequest {
    /// The request with the time that the argument `SOURCE_DATE_EPOCH` says, if it is given.
    fn at_its_time(&self) -> Result<Self, BuildError> {
        let epoch = match self.args.get(EPOCH) {
            None => self.epoch,
            Some(text) => text.parse().map_err(|_| BuildError::Epoch { text: text.clone() })?,
        };
        Ok(Self { epoch, ..self.clone() })
    }

    /// How layers are written.
    fn form(&self) -> Form {
        Form { epoch: self.epoch, compression: self.compression, threads: self.threads }
    }

    fn read(&self) -> Result<Dockerfile, BuildError> {
        read(&self.file, self.frontend, &self.file_name)
    }
}

/// What a file says, whichever its language. `name` is what errors call it.
///
/// # Errors
/// When it cannot be opened or read.
pub fn read(path: &Path, frontend: Frontend, name: &str) -> Result<Dockerfile, BuildError> {
    let content = context::read_small(path, FILE_LIMIT).map_err(|source| BuildError::NoFile {
        path: path.to_owned(),
        frontend,
        source,
    })?;
    match frontend {
        Frontend::Dockerfile => dockerfile::parse(name, &content).map_err(BuildError::Dockerfile),
        Frontend::Recipe => recipe::parse(name, &content).map_err(BuildError::Recipe),
    }
}

/// The image of a service that another is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceImage {
    /// It was built: all of it is in the store.
    Built(Image),
    /// A registry has it. A tag is pinned in `jiji.lock`.
    Named(String),
}

/// The names of services whose images are needed for this one. What the wanted stage does not need is not among them.
///
/// # Errors
/// When the file cannot be read.
pub fn services(request: &BuildRequest) -> Result<BTreeSet<String>, BuildError> {
    match request.frontend {
        // It has no word for them.
        Frontend::Dockerfile => Ok(BTreeSet::new()),
        Frontend::Recipe => stage::services(&request.read()?, request),
    }
}

/// How many steps a build went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steps {
    /// RUN, COPY, ADD and WORKDIR of the stages that were needed.
    pub total: u32,
    /// Those of them whose result was remembered.
    pub cached: u32,
}

/// An image that was built. All its blobs are in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The image.
    pub image: Image,
    /// What it took.
    pub steps: Steps,
}

/// Builds images.
pub struct Builder<'a> {
    /// Where blobs and what is remembered are.
    pub store: &'a Store,
    /// Where base images come from.
    pub sources: &'a dyn Sources,
    /// Who runs RUN steps.
    pub executor: &'a dyn Executor,
    /// Who watches.
    pub events: &'a dyn Sink,
}

impl Builder<'_> {
    /// Builds one image. `lock` is what `jiji.lock` says, and afterwards what it should say; hand the changes to
    /// [`LockFile::update_build`](crate::lockfile::LockFile::update_build) with [`Changes`].
    ///
    /// # Errors
    /// [`BuildError`]. The store then holds what was finished, and the next build goes on from there.
    pub fn build(&self, request: &BuildRequest, lock: &mut BuildSection) -> Result<Built, BuildError> {
        let request = &request.at_its_time()?;
        let file = request.read()?;
        let memory = if request.renew { Memory::Renew } else { Memory::Use };
        let outcome = Evaluation::new(self, request, &file, lock, memory)?.target()?;
        let Outcome { draft, runs, steps, undeclared, .. } = outcome;
        for name in undeclared {
            let text = format!("build argument `{name}` is declared by no ARG of {}", request.file_name);
            self.events.emit(Record::new("build.warning", text).service(&request.target.service));
        }
        let image = draft.finish(&request.repository, request.epoch, self.store)?;
        let actual = image.manifest.digest;
        let expected = lock.images.get(&request.target).copied();
        if request.locked && expected != Some(actual) {
            let evidence = match expected {
                Some(expected) => compare::with_stored(&expected, &image, self.store),
                None => Vec::new(),
            };
            return Err(BuildError::LockedImage { image: request.target.to_string(), expected, actual, evidence });
        }
        lock.record(&request.target, actual, &runs);
        Ok(Built { image, steps })
    }
}

impl Builder<'_> {
    /// Takes an image as it is into the store: a base image, or that of a service that is not built. A tag is resolved once, and its
    /// digest noted in `lock`; with `locked` it must be there.
    ///
    /// # Errors
    /// [`StepError::Reference`], [`StepError::Registry`], [`StepError::NotLocked`], or [`StepError::EmptyBase`] for an empty name.
    pub fn image(
        &self,
        name: &str,
        platform: &Platform,
        locked: bool,
        lock: &mut BuildSection,
    ) -> Result<Image, StepError> {
        if name.is_empty() {
            return Err(StepError::EmptyBase);
        }
        let reference: Reference = name.parse()?;
        let digest = match reference.digest {
            Some(digest) => digest,
            None => {
                let spelled = format!("{}/{}:{}", reference.registry, reference.repository, reference.version());
                let key = BaseKey { reference: spelled, platform: platform.clone() };
                match lock.bases.get(&key) {
                    Some(digest) => *digest,
                    None if locked => return Err(StepError::NotLocked { what: format!("`{}`", key.reference) }),
                    None => {
                        self.events.emit(Record::new("build.resolve", format!("resolving {}", key.reference)));
                        let digest = self.sources.resolve(&reference, platform)?;
                        lock.bases.insert(key, digest);
                        digest
                    }
                }
            }
        };
        Ok(self.sources.pull(&reference, &digest, platform, self.store, Depth::WithLayers)?)
    }
}

/// What a build changed in the lock's section: to be written into the section as it is by then, which others may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    target: Target,
    image: Option<Digest>,
    runs: BTreeMap<Digest, Digest>,
    bases: BTreeMap<BaseKey, Digest>,
    urls: BTreeMap<String, Digest>,
    recorded: BTreeMap<Asked, Recorded>,
    repositories: BTreeMap<RepositoryKey, Commit>,
}

impl Changes {
    /// What `after` says of `target`, and all base images, URLs and repositories that it knows.
    pub fn of(target: &Target, after: &BuildSection) -> Self {
        let runs = after.runs.iter().filter(|(key, _)| key.target == *target);
        Self {
            target: target.clone(),
            image: after.images.get(target).copied(),
            runs: runs.map(|(key, diff_id)| (key.step, *diff_id)).collect(),
            bases: after.bases.clone(),
            urls: after.urls.clone(),
            recorded: after.recorded.clone(),
            repositories: after.repositories.clone(),
        }
    }

    /// Writes them into a section.
    pub fn apply(&self, section: &mut BuildSection) {
        for (key, digest) in &self.bases {
            // Who resolved a tag first is right: two builds at once must not disagree.
            section.bases.entry(key.clone()).or_insert(*digest);
        }
        for (url, digest) in &self.urls {
            section.urls.entry(url.clone()).or_insert(*digest);
        }
        for (asked, said) in &self.recorded {
            section.recorded.entry(asked.clone()).or_insert_with(|| said.clone());
        }
        for (key, commit) in &self.repositories {
            section.repositories.entry(key.clone()).or_insert_with(|| commit.clone());
        }
        if let Some(image) = self.image {
            section.record(&self.target, image, &self.runs);
        }
    }
}

#[cfg(test)]
mod tests;
