//! The text of `jiji.lock`, version 1, to and from [`Lock`].
//!
//! No file is touched here; paths are only for the errors.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use jiji_model::commit::Commit;
use jiji_model::digest::Digest;
use jiji_model::image::{LAYER_FORMAT, Platform};
use jiji_model::name::{PluginName, ServiceName};
use serde::{Deserialize, Serialize};

use super::{
    Asked, BaseKey, BuildSection, Lock, LockfileError, PluginPin, Recorded, RepositoryKey, RunKey, Target, VERSION,
};

const HEADER: &str = "\
# Written by jiji. Commit it: it is what makes every machine build and run the same bytes.

";

/// Only the version, so that a newer file is told apart from a broken one whatever else it holds.
#[derive(Deserialize)]
struct Probe {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    version: u32,
    layer_format: u32,
    #[serde(default, rename = "base", skip_serializing_if = "Vec::is_empty")]
    bases: Vec<Base>,
    #[serde(default, rename = "image", skip_serializing_if = "Vec::is_empty")]
    images: Vec<Image>,
    #[serde(default, rename = "run", skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Run>,
    #[serde(default, rename = "url", skip_serializing_if = "Vec::is_empty")]
    urls: Vec<Url>,
    #[serde(default, rename = "recorded", skip_serializing_if = "Vec::is_empty")]
    recorded: Vec<RecordedUrl>,
    #[serde(default, rename = "git", skip_serializing_if = "Vec::is_empty")]
    repositories: Vec<Repository>,
    #[serde(default, rename = "plugin", skip_serializing_if = "Vec::is_empty")]
    plugins: Vec<Plugin>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Base {
    reference: String,
    #[serde(with = "platform")]
    platform: Platform,
    digest: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Image {
    service: ServiceName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    #[serde(with = "platform")]
    platform: Platform,
    manifest: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Run {
    service: ServiceName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    #[serde(with = "platform")]
    platform: Platform,
    key: Digest,
    diff_id: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Url {
    url: String,
    digest: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RecordedUrl {
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    accept: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    digest: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Repository {
    url: String,
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    commit: Commit,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Plugin {
    name: PluginName,
    source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    digest: Digest,
    world: String,
    #[serde(default)]
    grants: toml::Table,
    #[serde(default, rename = "image", skip_serializing_if = "Vec::is_empty")]
    images: Vec<Base>,
}

/// A platform as `linux/amd64`.
mod platform {
    use super::Platform;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(platform: &Platform, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(platform)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Platform, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads the text of a lock.
pub(super) fn parse(text: &str, path: &Path) -> Result<Lock, LockfileError> {
    let syntax = |error: toml::de::Error| {
        let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        LockfileError::Syntax {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: error.message().trim_end().replace('\n', "; "),
        }
    };
    let found = toml::from_str::<Probe>(text).map_err(syntax)?.version;
    if found > VERSION {
        return Err(LockfileError::NewerVersion { path: path.to_owned(), found });
    }
    let document = toml::from_str::<Document>(text).map_err(syntax)?;
    if document.layer_format > LAYER_FORMAT {
        return Err(LockfileError::NewerLayerFormat { path: path.to_owned(), found: document.layer_format });
    }

    let mut build = BuildSection { bases: bases(document.bases, "base", path)?, ..BuildSection::default() };
    for Image { service, environment, platform, manifest } in document.images {
        let target = Target { service, environment, platform };
        insert_once(&mut build.images, target, manifest, "image", path)?;
    }
    for Run { service, environment, platform, key, diff_id } in document.runs {
        let key = RunKey { target: Target { service, environment, platform }, step: key };
        insert_once(&mut build.runs, key, diff_id, "run", path)?;
    }
    for Url { url, digest } in document.urls {
        insert_once(&mut build.urls, url, digest, "url", path)?;
    }
    for RecordedUrl { url, accept, status, kind, location, digest } in document.recorded {
        let said = Recorded { status: status.unwrap_or(200), kind, location, digest };
        insert_once(&mut build.recorded, Asked { url, accept }, said, "recorded", path)?;
    }
    for Repository { url, reference, commit } in document.repositories {
        insert_once(&mut build.repositories, RepositoryKey { url, reference }, commit, "git", path)?;
    }
    let mut plugins = BTreeMap::new();
    for Plugin { name, source, version, digest, world, grants, images } in document.plugins {
        let grants = grants.into_iter().map(|(key, value)| (key, json_of(value))).collect();
        let pin = PluginPin { source, version, digest, world, grants, images: bases(images, "plugin.image", path)? };
        insert_once(&mut plugins, name, pin, "plugin", path)?;
    }
    Ok(Lock { build, plugins })
}

fn bases(list: Vec<Base>, section: &'static str, path: &Path) -> Result<BTreeMap<BaseKey, Digest>, LockfileError> {
    let mut bases = BTreeMap::new();
    for Base { reference, platform, digest } in list {
        insert_once(&mut bases, BaseKey { reference, platform }, digest, section, path)?;
    }
    Ok(bases)
}

fn insert_once<K: Ord + Display, V>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
    section: &'static str,
    path: &Path,
) -> Result<(), LockfileError> {
    if map.contains_key(&key) {
        return Err(LockfileError::Duplicate { path: path.to_owned(), section, entry: format!("`{key}`") });
    }
    map.insert(key, value);
    Ok(())
}

/// Writes a lock as text: equal locks give equal bytes.
pub(super) fn render(lock: &Lock, path: &Path) -> Result<String, LockfileError> {
    let base = |(key, digest): (&BaseKey, &Digest)| Base {
        reference: key.reference.clone(),
        platform: key.platform.clone(),
        digest: *digest,
    };
    let mut plugins = Vec::with_capacity(lock.plugins.len());
    for (name, pin) in &lock.plugins {
        let grants = pin.grants.iter().map(|(key, value)| Ok((key.clone(), toml_of(value)?)));
        plugins.push(Plugin {
            name: name.clone(),
            source: pin.source.clone(),
            version: pin.version.clone(),
            digest: pin.digest,
            world: pin.world.clone(),
            grants: grants.collect::<Result<_, _>>().map_err(|what| LockfileError::Grants {
                path: path.to_owned(),
                plugin: name.clone(),
                what,
            })?,
            images: pin.images.iter().map(base).collect(),
        });
    }
    let document = Document {
        version: VERSION,
        layer_format: LAYER_FORMAT,
        bases: lock.build.bases.iter().map(base).collect(),
        images: (lock.build.images.iter())
            .map(|(target, manifest)| Image {
                service: target.service.clone(),
                environment: target.environment.clone(),
                platform: target.platform.clone(),
                manifest: *manifest,
            })
            .collect(),
        runs: (lock.build.runs.iter())
            .map(|(RunKey { target, step }, diff_id)| Run {
                service: target.service.clone(),
                environment: target.environment.clone(),
                platform: target.platform.clone(),
                key: *step,
                diff_id: *diff_id,
            })
            .collect(),
        urls: lock.build.urls.iter().map(|(url, digest)| Url { url: url.clone(), digest: *digest }).collect(),
        recorded: (lock.build.recorded.iter())
            .map(|(Asked { url, accept }, said)| RecordedUrl {
                url: url.clone(),
                accept: accept.clone(),
                status: Some(said.status).filter(|status| *status != 200),
                kind: said.kind.clone(),
                location: said.location.clone(),
                digest: said.digest,
            })
            .collect(),
        repositories: (lock.build.repositories.iter())
            .map(|(RepositoryKey { url, reference }, commit)| Repository {
                url: url.clone(),
                reference: reference.clone(),
                commit: commit.clone(),
            })
            .collect(),
        plugins,
    };
    let body = toml::to_string(&document).expect("tables come after values in every type of the document");
    Ok(format!("{HEADER}{body}"))
}

fn json_of(value: toml::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        toml::Value::String(text) => Json::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => Json::Bool(flag),
        toml::Value::Datetime(time) => Json::String(time.to_string()),
        toml::Value::Array(list) => list.into_iter().map(json_of).collect(),
        toml::Value::Table(table) => {
            Json::Object(table.into_iter().map(|(key, value)| (key, json_of(value))).collect())
        }
    }
}

fn toml_of(value: &serde_json::Value) -> Result<toml::Value, &'static str> {
    use serde_json::Value as Json;
    Ok(match value {
        Json::Null => return Err("a null"),
        Json::Bool(flag) => toml::Value::Boolean(*flag),
        Json::Number(number) => match (number.as_i64(), number.is_u64(), number.as_f64()) {
            (Some(number), _, _) => toml::Value::Integer(number),
            (None, false, Some(number)) => toml::Value::Float(number),
            _ => return Err("an integer above 2^63"),
        },
        Json::String(text) => toml::Value::String(text.clone()),
        Json::Array(list) => toml::Value::Array(list.iter().map(toml_of).collect::<Result<_, _>>()?),
        Json::Object(map) => toml::Value::Table(
            map.iter()
                .map(|(key, value)| toml_of(value).map(|value| (key.clone(), value)))
                .collect::<Result<_, _>>()?,
        ),
    })
}

impl Display for BaseKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.reference, self.platform)
    }
}

impl Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.accept {
            Some(accept) => write!(f, "{} as {accept}", self.url),
            None => f.write_str(&self.url),
        }
    }
}

impl Display for RepositoryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.reference {
            Some(reference) => write!(f, "{}#{reference}", self.url),
            None => f.write_str(&self.url),
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.environment {
            Some(environment) => write!(f, "{} in {environment} on {}", self.service, self.platform),
            None => write!(f, "{} on {}", self.service, self.platform),
        }
    }
}

impl Display for RunKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {} of {}", self.step, self.target)
    }
}
