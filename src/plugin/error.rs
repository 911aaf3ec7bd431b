//! Why a plugin is not used, or its answer is not.

use jiji_model::digest::Digest;
use jiji_model::name::PluginName;
use jiji_model::plan::vet::Refusal;
use jiji_store::StoreError;

use super::Role;

/// Why a plugin could not be loaded or called. On the command line: exit code 11.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No plugin of this name is embedded, and `jiji.lock` pins none.
    #[error("load plugin `{plugin}`: it is not installed")]
    NotInstalled {
        /// The plugin.
        plugin: PluginName,
    },
    /// `jiji.lock` pins it, and its bytes are not on this machine.
    #[error("load plugin `{plugin}`: `{digest}` is not in the store")]
    NotFetched {
        /// The plugin.
        plugin: PluginName,
        /// The pinned bytes.
        digest: Digest,
        /// Where they came from.
        source_text: String,
    },
    /// The bytes are not those that were accepted.
    #[error("verify plugin `{plugin}`: expected `{expected}`, got `{actual}`")]
    Changed {
        /// The plugin.
        plugin: PluginName,
        /// What `jiji.lock` pins.
        expected: Digest,
        /// What was found.
        actual: Digest,
    },
    /// The store cannot give or take the bytes.
    #[error("keep plugin `{plugin}` in the store")]
    Store {
        /// The plugin.
        plugin: PluginName,
        /// Why not.
        source: StoreError,
    },
    /// The bytes are no WebAssembly component, or one that this jiji cannot run.
    #[error("read plugin `{plugin}`: {reason}")]
    NotAComponent {
        /// What it is called.
        plugin: String,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// The component wants something of the outside that no plugin may have.
    #[error("accept plugin `{plugin}`: it imports `{import}`")]
    RefusedImport {
        /// What it is called.
        plugin: String,
        /// The import, as the component spells it.
        import: String,
    },
    /// The component fills no role, or not the one it is used for.
    #[error("use plugin `{plugin}` as {role}: it exports {exports}")]
    WrongRole {
        /// What it is called.
        plugin: String,
        /// The role it should fill.
        role: String,
        /// What it exports instead, for people.
        exports: String,
    },
    /// The component was written for a version of the contract that this jiji does not speak.
    #[error("use plugin `{plugin}`: it was written for `{found}`, this jiji speaks `{supported}`")]
    WrongVersion {
        /// What it is called.
        plugin: String,
        /// The interface with its version.
        found: String,
        /// The version of the same interface that would do.
        supported: String,
    },
    /// The plugin asks for a kind of grant that this jiji does not know, or for one whose text is none.
    #[error("accept plugin `{plugin}`: {reason}")]
    BadGrant {
        /// What it is called.
        plugin: String,
        /// What is wrong.
        reason: String,
    },
    /// With these settings the plugin asks for more than was accepted when it was installed.
    #[error("use plugin `{plugin}`: it asks for more than was accepted: {}", beyond.join("; "))]
    NotAccepted {
        /// The plugin.
        plugin: PluginName,
        /// One line for each thing.
        beyond: Vec<String>,
    },
    /// The plugin refuses its settings.
    #[error("check settings of plugin `{plugin}`: {}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Settings {
        /// The plugin.
        plugin: PluginName,
        /// Everything that is wrong.
        faults: Vec<Fault>,
    },
    /// An image that the plugin needs was not resolved to a digest before it was called.
    #[error("call plugin `{plugin}`: its image `{image}` is not pinned")]
    ImageNotPinned {
        /// The plugin.
        plugin: PluginName,
        /// What the plugin calls the image.
        image: String,
    },
    /// The plugin worked for longer than any honest answer takes. The same call always stops at the same place.
    #[error("call `{call}` of plugin `{plugin}`: it ran out of fuel")]
    OutOfFuel {
        /// What it is called.
        plugin: String,
        /// The function.
        call: &'static str,
    },
    /// The plugin took too long by the clock, which only happens when fuel is too coarse a measure.
    #[error("call `{call}` of plugin `{plugin}`: it took too long")]
    OutOfTime {
        /// What it is called.
        plugin: String,
        /// The function.
        call: &'static str,
    },
    /// The plugin wanted more memory or longer tables than any plugin gets.
    #[error("call `{call}` of plugin `{plugin}`: it wanted more than {limit} MiB of memory")]
    OutOfMemory {
        /// What it is called.
        plugin: String,
        /// The function.
        call: &'static str,
        /// The limit in MiB.
        limit: usize,
    },
    /// The plugin crashed, or answered with something that no answer can be.
    #[error("call `{call}` of plugin `{plugin}`: {reason}")]
    Trap {
        /// What it is called.
        plugin: String,
        /// The function.
        call: &'static str,
        /// What WebAssembly's runtime says.
        reason: String,
    },
    /// The plugin cannot go on and says why.
    #[error("call `{call}` of plugin `{plugin}`: {fault}")]
    Fault {
        /// The plugin.
        plugin: PluginName,
        /// The function.
        call: &'static str,
        /// Its words.
        fault: Fault,
    },
    /// The plugin keeps asking and does not answer.
    #[error("call `{call}` of plugin `{plugin}`: no answer after {rounds} rounds of questions")]
    TooManyRounds {
        /// The plugin.
        plugin: PluginName,
        /// The function.
        call: &'static str,
        /// How many rounds there were.
        rounds: usize,
    },
    /// The facts that the plugin asked for are more than one call takes in.
    #[error("call `{call}` of plugin `{plugin}`: {size} bytes of facts, at most {limit}")]
    TooManyFacts {
        /// The plugin.
        plugin: PluginName,
        /// The function.
        call: &'static str,
        /// Their length in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The plugin asked for something that it may not have, or answered with something that cannot be. Nothing was done.
    #[error("call `{call}` of plugin `{plugin}`: {}", refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused {
        /// The plugin.
        plugin: PluginName,
        /// The function.
        call: &'static str,
        /// Every reason.
        refusals: Vec<Refusal>,
    },
    /// WebAssembly's runtime cannot be set up on this machine.
    #[error("set up the plugin runtime: {reason}")]
    Runtime {
        /// What it says.
        reason: String,
    },
}

/// What a plugin says when it cannot go on, with control characters taken out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", path.as_deref().filter(|path| !path.is_empty()).map(|path| format!(" (at `{path}`)")).unwrap_or_default())]
pub struct Fault {
    /// For programs: a short word.
    pub code: String,
    /// For people: a lowercase fragment.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Where in the settings, as a JSON pointer.
    pub path: Option<String>,
}

impl PluginError {
    /// What a person can do, where it is not said by the error itself.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotInstalled { plugin } => {
                return Some(format!(
                    "install it with `jiji plugin install FILE-OR-REFERENCE`, if `{plugin}` is spelled right"
                ));
            }
            Self::NotFetched { source_text, .. } => {
                return Some(format!(
                    "fetch the accepted bytes with `jiji plugin install {source_text}`; a ship never downloads plugins"
                ));
            }
            Self::Changed { .. } => {
                "the file or tag holds something else now; to accept that, run `jiji plugin install` with `--update` and read what it asks for"
            }
            Self::Store { .. } => return None,
            Self::NotAComponent { .. } => "a plugin is a WebAssembly component, not a core module",
            Self::RefusedImport { .. } => {
                "a plugin is a pure function and may import `jiji:plan/log` alone; build it without WASI, for example for \
                 wasm32-unknown-unknown"
            }
            Self::WrongRole { .. } => "see `wit/` for the worlds of each role",
            Self::WrongVersion { .. } => "take a version of the plugin that fits, or another jiji",
            Self::BadGrant { .. } => "it may be written for a newer jiji",
            Self::NotAccepted { .. } => {
                "read it and accept it with `jiji plugin install --update`, or take the settings back"
            }
            Self::Settings { faults, .. } => return faults.iter().find_map(|fault| fault.hint.clone()),
            Self::ImageNotPinned { .. } | Self::Runtime { .. } => "this is a mistake in jiji; please report it",
            Self::OutOfFuel { .. } | Self::OutOfTime { .. } | Self::OutOfMemory { .. } | Self::Trap { .. } => {
                "nothing was done; this is a mistake in the plugin, to be reported to its authors"
            }
            Self::Fault { fault, .. } => return fault.hint.clone(),
            Self::TooManyRounds { .. } | Self::TooManyFacts { .. } => "nothing was done; the plugin asks for too much",
            Self::Refused { refusals, .. } => {
                if refusals.iter().all(|refusal| refusal.grantable) {
                    "nothing was done; the plugin goes beyond what it said it needs, which is a mistake in it or an attack"
                } else {
                    "nothing was done; this is a mistake in the plugin, to be reported to its authors"
                }
            }
        };
        Some(text.to_owned())
    }

    pub(super) fn wrong_role(plugin: &str, role: Option<Role>, exports: &[String]) -> Self {
        Self::WrongRole {
            plugin: plugin.to_owned(),
            role: role.map_or_else(|| "a plugin".to_owned(), |role| format!("the {role}")),
            exports: match exports {
                [] => "nothing".to_owned(),
                exports => exports.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
            },
        }
    }
}
