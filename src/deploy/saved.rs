//! A plan that was kept in a file, to be applied later, perhaps by somebody else on another machine.
//!
//! The file holds the plan, the digests of its images, and what it stood on ([`Basis`]), and no value of a secret. Whoever applies it does
//! not run what it says: planning is a function, so it is done again with the file's images, and what comes of it must be the file's
//! plan to the last byte ([`Saved::verify`]). So a file from a stranger can bring no step that the project's own configuration and
//! plugins do not give, and one that is out of date is told from one that was tampered with by its basis.
//!
//! # Format, version 1
//! One JSON object; `docs/plan-file.md` has the grammar. Every key that is not known is refused, as are newer versions. `fixtures/` holds
//! a file of every version.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::name::{HostName, PluginName, SecretName, ServiceName};
use jiji_model::plan::vet::{Refusal, vet_form};
use jiji_model::plan::{Plan, Step};
use jiji_model::project::Project;
use serde::{Deserialize, Serialize};

use super::basis::Basis;
use super::{Images, Seeds};

/// The newest version of the format that this jiji reads, and the one that it writes.
pub const VERSION: u32 = 1;

/// Longest file in bytes.
pub const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What the key `format` says.
const FORMAT: &str = "jiji-plan";

/// A plan with everything that applying it takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// `jiji-plan`.
    format: String,
    /// Of the format.
    version: u32,
    /// The version of jiji that planned.
    pub jiji: String,
    /// `user@machine`, for people.
    pub who: String,
    /// Seconds since 1970 by that machine's clock, for people.
    pub at_s: u64,
    /// The environment (`-e`).
    pub environment: Option<String>,
    /// What the configuration says of services and plugins: [`configuration`].
    pub configuration: Digest,
    /// The plugins that answered: the digests of their bytes.
    pub plugins: BTreeMap<PluginName, Digest>,
    /// The images of services.
    pub images: Images,
    /// The images that plugins run.
    pub seeds: Seeds,
    /// What the plan stood on.
    pub basis: Basis,
    /// The plan.
    pub plan: Plan,
}

/// What is known beside the plan when it is kept.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The version of jiji that planned.
    pub jiji: String,
    /// `user@machine`.
    pub who: String,
    /// Seconds since 1970.
    pub at_s: u64,
}

/// Why a file is no plan that may be applied here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// It is no JSON, not of this format, or has what the format does not know.
    #[error("read the plan: {reason}")]
    Syntax {
        /// What is wrong, with the place.
        reason: String,
    },
    /// It is longer than a plan may be.
    #[error("keep the plan: it has {bytes} bytes, at most {MAX_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A newer jiji wrote it.
    #[error("read the plan: it has version {version}, this jiji reads up to {VERSION}")]
    Newer {
        /// Its version.
        version: u32,
    },
    /// It is of another project or another environment.
    #[error("apply the plan here: it is for `{theirs}`, this is `{ours}`")]
    Project {
        /// The plan's.
        theirs: String,
        /// The one here.
        ours: String,
    },
    /// It changes servers that the project does not have.
    #[error("apply the plan here: the project has no server {}", names(.0))]
    Hosts(Vec<HostName>),
    /// It needs secrets that the project does not name.
    #[error("apply the plan here: the project names no secret {}", names(.0))]
    Secrets(Vec<SecretName>),
    /// Its steps do not fit together.
    #[error("apply the plan: step `{}`: {}", .0.step, .0.reason)]
    Form(Refusal),
    /// The configuration here is not the one that it was made of.
    #[error("apply the plan: services or plugins are configured otherwise than when it was made")]
    Configuration,
    /// The plugins here are not those that answered.
    #[error("apply the plan: plugin `{plugin}` is another than the one that it was made with")]
    Plugin {
        /// The plugin.
        plugin: PluginName,
    },
    /// `jiji.lock` pins another image than the plan has.
    #[error("apply the plan: it has {found} for `{reference}`, jiji.lock pins {pinned}")]
    Pinned {
        /// The reference.
        reference: String,
        /// The plan's digest.
        found: Digest,
        /// The lock's.
        pinned: Digest,
    },
    /// The manifest of an image says something else of it than the plan does.
    #[error("apply the plan: {digest} is not what it says of the image of `{service}`")]
    Image {
        /// The service.
        service: ServiceName,
        /// The manifest.
        digest: Digest,
    },
    /// The fleet is not as it was when it was made.
    #[error("apply the plan: {} moved since it was made\n{}", hosts(.0.len()), motions(.0))]
    Moved(BTreeMap<HostName, Vec<String>>),
    /// It is not what the project's configuration gives for the fleet as it is, though nothing moved.
    #[error("apply the plan: planning again gives another (jiji {jiji} made this one)\n{}", .differences.join("\n"))]
    Differs {
        /// The version of jiji that made it.
        jiji: String,
        /// What is otherwise, one line each.
        differences: Vec<String>,
    },
    /// It is not the plan that was asked for.
    #[error("apply the plan: it is {found}, and {wanted} was asked for")]
    OtherPlan {
        /// Its digest.
        found: Digest,
        /// What was typed.
        wanted: String,
    },
}

/// Longest text of a file that is shown, in characters.
const LONGEST: usize = 200;

/// A text of a file or a host as it may be shown to a person.
pub(super) fn plain(text: &str) -> String {
    let text = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    text.take(LONGEST).collect()
}

fn names<T: std::fmt::Display>(names: &[T]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn hosts(count: usize) -> String {
    if count == 1 { "1 host".to_owned() } else { format!("{count} hosts") }
}

/// Hosts that are shown where many moved.
const SHOWN: usize = 10;

fn motions(moved: &BTreeMap<HostName, Vec<String>>) -> String {
    let mut lines: Vec<String> = moved
        .iter()
        .take(SHOWN)
        .flat_map(|(host, lines)| lines.iter().map(move |line| format!("  {host}: {line}")))
        .collect();
    if moved.len() > SHOWN {
        lines.push(format!("  and {} hosts more", moved.len() - SHOWN));
    }
    lines.join("\n")
}

impl SavedError {
    /// What a person can do, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Syntax { .. } => Some("a plan file is written by `jiji plan --out FILE` and by nobody else"),
            Self::TooLong { .. } => Some("plan a part of the fleet, or ship without a file"),
            Self::Newer { .. } => Some("update jiji, so that all who plan and apply agree"),
            Self::Project { .. } => Some("go to the project that it was made of, or choose its environment with `-e`"),
            Self::Hosts(_) | Self::Secrets(_) | Self::Configuration => {
                Some("check out the sources that it was made of, or plan again")
            }
            Self::Plugin { .. } | Self::Pinned { .. } => {
                Some("check out the `jiji.lock` that it was made with, or plan again")
            }
            Self::Moved(_) => Some("nothing was changed; plan again and look at what is otherwise now"),
            Self::Differs { .. } => Some(
                "nothing was changed; it was made by another version of jiji, or changed since it was made: plan again",
            ),
            Self::Form(_) | Self::Image { .. } => Some("it was changed since it was made; nothing was done"),
            Self::OtherPlan { .. } => Some("this is not the plan that was looked at"),
        }
    }
}

/// What a plan depends on of a project's configuration. How hosts and registries are reached is not in it, since that may differ from
/// one operator to the next.
pub fn configuration(project: &Project) -> Digest {
    Digest::of_json(&(project.scope(), &project.services, &project.plugins))
}

impl Saved {
    /// Keeps a plan of `project`.
    pub fn new(
        origin: Origin,
        project: &Project,
        plugins: BTreeMap<PluginName, Digest>,
        (images, seeds): (Images, Seeds),
        basis: Basis,
        plan: Plan,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            jiji: origin.jiji,
            who: origin.who,
            at_s: origin.at_s,
            environment: project.environment.clone(),
            configuration: configuration(project),
            plugins,
            images,
            seeds,
            basis,
            plan,
        }
    }

    /// The file's bytes. Equal plans have equal bytes.
    ///
    /// # Errors
    /// [`SavedError::TooLong`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, SavedError> {
        let mut bytes = canonical_json(self);
        bytes.push(b'\n');
        if bytes.len() > MAX_BYTES { Err(SavedError::TooLong { bytes: bytes.len() }) } else { Ok(bytes) }
    }

    /// Reads a file. What it says is not believed yet: see [`Self::check`] and [`Self::verify`].
    ///
    /// # Errors
    /// [`SavedError::Syntax`], [`SavedError::Newer`], [`SavedError::TooLong`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        /// Only what tells whether the rest can be understood.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        if bytes.len() > MAX_BYTES {
            return Err(SavedError::TooLong { bytes: bytes.len() });
        }
        let syntax = |error: serde_json::Error| SavedError::Syntax { reason: plain(&error.to_string()) };
        let head: Head = serde_json::from_slice(bytes).map_err(syntax)?;
        if head.format != FORMAT {
            return Err(SavedError::Syntax { reason: format!("its format is not `{FORMAT}`") });
        }
        if head.version > VERSION {
            return Err(SavedError::Newer { version: head.version });
        }
        let saved: Self = serde_json::from_slice(bytes).map_err(syntax)?;
        if saved.plan.version > Plan::VERSION {
            return Err(SavedError::Newer { version: saved.plan.version });
        }
        if saved.version == 0 || saved.plan.version == 0 {
            return Err(SavedError::Syntax { reason: "there is no version 0".to_owned() });
        }
        Ok(saved)
    }

    /// Whether the plan is one for this project, as far as that can be told before any host is asked.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn check(&self, project: &Project) -> Result<(), SavedError> {
        let ours = project.scope();
        if self.plan.scope != ours || self.environment != project.environment {
            return Err(SavedError::Project { theirs: plain(&self.plan.scope), ours });
        }
        let used: BTreeSet<&HostName> = project.used_servers().map(|(host, _)| host).collect();
        let named = self.plan.steps.iter().map(|step| &step.host);
        let named = named.chain(self.plan.releases.keys()).chain(self.basis.0.keys());
        let named = named.chain(self.plan.images.iter().flat_map(|image| &image.hosts));
        let strange: BTreeSet<&HostName> = named.filter(|host| !used.contains(host)).collect();
        if !strange.is_empty() {
            return Err(SavedError::Hosts(strange.into_iter().cloned().collect()));
        }
        let known: BTreeSet<&SecretName> =
            project.services.values().flat_map(|service| &service.environment.secrets).collect();
        let services = self.plan.releases.values().flat_map(|services| services.values());
        let wanted: BTreeSet<SecretName> = services.flat_map(|service| service.container_spec.secrets()).collect();
        let strange: Vec<SecretName> = wanted.into_iter().filter(|name| !known.contains(name)).collect();
        if !strange.is_empty() {
            return Err(SavedError::Secrets(strange));
        }
        let hosts = used.into_iter().cloned().collect();
        if let Err(refusals) = vet_form(&self.plan.steps, &hosts) {
            return Err(refusals
                .into_iter()
                .next()
                .map_or(SavedError::Syntax { reason: "its steps do not fit together".to_owned() }, SavedError::Form));
        }
        if self.configuration != configuration(project) {
            return Err(SavedError::Configuration);
        }
        Ok(())
    }

    /// Whether it is the plan with this digest.
    ///
    /// # Errors
    /// [`SavedError::OtherPlan`].
    pub fn is(&self, wanted: &str) -> Result<(), SavedError> {
        let found = self.plan.digest();
        if wanted.parse() == Ok(found) {
            return Ok(());
        }
        Err(SavedError::OtherPlan { found, wanted: plain(wanted) })
    }

    /// Whether it was made with these plugins.
    ///
    /// # Errors
    /// [`SavedError::Plugin`].
    pub fn check_plugins(&self, plugins: &BTreeMap<PluginName, Digest>) -> Result<(), SavedError> {
        let both = self.plugins.keys().chain(plugins.keys());
        let other = both.into_iter().find(|name| self.plugins.get(*name) != plugins.get(*name));
        other.map_or(Ok(()), |plugin| Err(SavedError::Plugin { plugin: plugin.clone() }))
    }

    /// Whether the plan still holds: what it stood on is as it was, and planning again has given the same.
    ///
    /// # Errors
    /// [`SavedError::Moved`] with everything that moved, [`SavedError::Differs`].
    pub fn verify(&self, now: &Basis, again: &Plan) -> Result<(), SavedError> {
        let moved = self.basis.moved(now);
        if !moved.is_empty() {
            return Err(SavedError::Moved(moved));
        }
        if self.plan == *again {
            return Ok(());
        }
        Err(SavedError::Differs { jiji: plain(&self.jiji), differences: differences(&self.plan, again) })
    }
}

/// Differences of two plans that a person is shown.
fn differences(theirs: &Plan, ours: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    let by_id = |plan: &Plan| -> BTreeMap<(HostName, String), Step> {
        plan.steps.iter().map(|step| ((step.host.clone(), step.id.clone()), step.clone())).collect()
    };
    let (theirs_by_id, ours_by_id) = (by_id(theirs), by_id(ours));
    for (key, step) in &theirs_by_id {
        match ours_by_id.get(key) {
            None => lines.push(format!("  {}: the file alone has `{}`", step.host, step.title)),
            Some(same) if same != step => {
                lines.push(format!("  {}: `{}` is another step in the file", step.host, step.title));
            }
            Some(_) => {}
        }
    }
    for (key, step) in &ours_by_id {
        if !theirs_by_id.contains_key(key) {
            lines.push(format!("  {}: the file lacks `{}`", step.host, step.title));
        }
    }
    if lines.is_empty() {
        let part = if theirs.steps != ours.steps {
            "the order of its steps"
        } else if theirs.images != ours.images {
            "the images that hosts are brought"
        } else if theirs.releases != ours.releases {
            "what is recorded of the release"
        } else {
            "how many releases stay"
        };
        lines.push(format!("  {part} is otherwise in the file"));
    }
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("  and {more} differences more"));
    }
    lines
}
