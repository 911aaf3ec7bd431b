//! What a component is, read off its bytes before anything of it is compiled or run.

use std::fmt;

use jiji_model::digest::Digest;
use wasmparser::{ComponentExternalKind, Encoding, Parser, Payload, Validator};

use super::PluginError;

/// Longest component in bytes. Guests with an interpreter inside are some ten megabytes.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What a plugin does for jiji.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It moves requests: `jiji:proxy`.
    Proxy,
    /// It tells health: `jiji:health`.
    Health,
    /// It connects servers: `jiji:mesh`.
    Mesh,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Proxy, Self::Health, Self::Mesh];

    /// The interface that fills the role, with the version this jiji speaks.
    pub fn interface(self) -> &'static str {
        match self {
            Self::Proxy => "jiji:proxy/proxy@0.1.0",
            Self::Health => "jiji:health/health@0.1.0",
            Self::Mesh => "jiji:mesh/mesh@0.1.0",
        }
    }

    /// The world that plugins of the role are written for, as `jiji.lock` spells it.
    pub fn world(self) -> &'static str {
        match self {
            Self::Proxy => "jiji:proxy/plugin@0.1.0",
            Self::Health => "jiji:health/plugin@0.1.0",
            Self::Mesh => "jiji:mesh/plugin@0.1.0",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proxy => "proxy",
            Self::Health => "health judge",
            Self::Mesh => "mesh",
        })
    }
}

/// All that a plugin may import: types, which are no power, and a log.
const IMPORTS: [&str; 2] = ["jiji:plan/log@0.1.0", "jiji:plan/types@0.1.0"];
/// What every plugin exports.
const META: &str = "jiji:plan/meta@0.1.0";

/// A component whose imports and exports are those of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Its name: the digest of its bytes.
    pub digest: Digest,
    /// What it does.
    pub role: Role,
}

/// Reads a component's imports and exports and refuses what is no plugin. `name` is for errors.
pub(super) fn inspect(name: &str, bytes: &[u8]) -> Result<Inspected, PluginError> {
    let not = |reason: String| PluginError::NotAComponent { plugin: name.to_owned(), reason };
    if bytes.len() > MAX_BYTES {
        return Err(not(format!("{} bytes, at most {MAX_BYTES} are allowed", bytes.len())));
    }
    // The whole of it is validated first, so that the compiler behind sees no malformed bytes.
    if !Parser::is_component(bytes) {
        return Err(not(if Parser::is_core_wasm(bytes) {
            "a core module, not a component".to_owned()
        } else {
            "not WebAssembly".to_owned()
        }));
    }
    Validator::new().validate_all(bytes).map_err(|error| not(error.to_string()))?;

    let (imports, exports) = interfaces(bytes).map_err(|error| not(error.to_string()))?;
    for import in &imports {
        if IMPORTS.contains(&import.as_str()) {
            continue;
        }
        return Err(match IMPORTS.iter().find(|known| same_interface(known, import)) {
            Some(known) => PluginError::WrongVersion {
                plugin: name.to_owned(),
                found: import.clone(),
                supported: (*known).to_owned(),
            },
            None => PluginError::RefusedImport { plugin: name.to_owned(), import: import.clone() },
        });
    }
    let role = Role::ALL.into_iter().find(|role| exports.iter().any(|export| export == role.interface()));
    let wanted = [META].into_iter().chain(Role::ALL.map(Role::interface));
    for known in wanted {
        if let Some(found) = exports.iter().find(|export| *export != known && same_interface(known, export)) {
            return Err(PluginError::WrongVersion {
                plugin: name.to_owned(),
                found: found.clone(),
                supported: known.to_owned(),
            });
        }
    }
    match role {
        Some(role) if exports.iter().any(|export| export == META) => Ok(Inspected { digest: Digest::of(bytes), role }),
        role => Err(PluginError::wrong_role(name, role, &exports)),
    }
}

/// Whether two names are the same interface in perhaps different versions.
fn same_interface(one: &str, other: &str) -> bool {
    let base = |name: &str| name.split_once('@').map_or(name.to_owned(), |(base, _)| base.to_owned());
    base(one) == base(other)
}

/// Names of the outermost component's imports, and of the instances that it exports.
fn interfaces(bytes: &[u8]) -> wasmparser::Result<(Vec<String>, Vec<String>)> {
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_usize);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version { encoding, .. } => {
                depth += 1;
                debug_assert!(depth > 1 || encoding == Encoding::Component);
            }
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Instance {
                        exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}
