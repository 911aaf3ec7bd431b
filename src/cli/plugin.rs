//! `jiji plugin …`: which plugins a project has, what they are and ask for, and how new ones come in.

use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use jiji_model::image::Descriptor;
use jiji_model::name::PluginName;
use jiji_model::plan::Grants;
use jiji_model::reference::Reference;
use jiji_store::Store;
use tokio::runtime::Runtime;

use super::args::{Global, PluginCommand};
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::ready;
use super::workplace::Workplace;
use crate::lockfile::LockfileError;
use crate::plugin::install::{ArtifactSource, Candidate, InstallError, Source, fetch};
use crate::plugin::{PluginError, embedded};
use crate::registry::{Artifact, Client, RegistryError};
use crate::report::Report;

/// Runs one of the plugin commands.
pub fn run(
    global: &Global,
    command: &PluginCommand,
    environment: &Environment,
    report: &Arc<dyn Report>,
    runtime: &Runtime,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    let compiled = environment.cache.join("plugins");
    match command {
        PluginCommand::List => list(global, &place),
        PluginCommand::Inspect { plugin } => {
            let source = inspected(&place, plugin)?;
            let mut registry = registry(&place, report, runtime);
            let candidate = read(&place, &source, &mut registry, true, &compiled)?;
            print(&if global.json { json(&candidate) } else { text(&candidate) })
        }
        PluginCommand::Install { source, accept, update } => {
            let source = installed(source)?;
            let mut registry = registry(&place, report, runtime);
            let candidate = read(&place, &source, &mut registry, *update, &compiled)?;
            install(global, environment, &place, candidate, *accept)
        }
    }
}

fn list(global: &Global, place: &Workplace) -> Result<Exit, Failure> {
    let pins = place.lock.read().map_err(|error| lock_failure(&error))?.plugins;
    let chosen = &place.project().plugins;
    let network = place.project().network.as_ref();
    let role = |name: &PluginName| match name {
        name if *name == chosen.proxy.name => "proxy",
        name if *name == chosen.health.name => "health",
        name if network.is_some_and(|choice| *name == choice.name) => "mesh",
        _ => "-",
    };
    let mut rows = Vec::new();
    for (name, bytes) in embedded() {
        let name = PluginName::new(name).expect("an embedded plugin's name is a plugin's name");
        if !pins.contains_key(&name) {
            rows.push((name, jiji_model::digest::Digest::of(bytes), "embedded".to_owned()));
        }
    }
    rows.extend(pins.iter().map(|(name, pin)| (name.clone(), pin.digest, pin.source.clone())));
    rows.sort();
    let mut out = String::new();
    if global.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, digest, from)| {
                serde_json::json!({"name": name, "digest": digest, "source": from, "role": role(name)})
            })
            .collect();
        let _ = writeln!(out, "{}", serde_json::json!({"v": 1, "plugins": rows}));
    } else {
        for (name, digest, from) in &rows {
            let _ = writeln!(out, "{:<7} {:<20} {}  {from}", role(name), name.as_str(), digest.short());
        }
    }
    print(&out)
}

/// What `jiji plugin inspect` names: a file, or a plugin that is there.
fn inspected(place: &Workplace, text: &str) -> Result<Source, Failure> {
    if Path::new(text).is_file() {
        return Ok(Source::File(text.into()));
    }
    let name = PluginName::new(text).map_err(|error| Failure::new(Exit::Usage, &error))?;
    let pins = place.lock.read().map_err(|error| lock_failure(&error))?.plugins;
    if let Some(pin) = pins.get(&name) {
        return Ok(Source::File(place.store.blob_path(&pin.digest)));
    }
    Ok(Source::Embedded(name))
}

/// What `jiji plugin install` names: a file that is there, else a reference.
fn installed(text: &str) -> Result<Source, Failure> {
    if Path::new(text).is_file() {
        return Ok(Source::File(text.into()));
    }
    match text.parse() {
        Ok(reference) => Ok(Source::Registry(reference)),
        Err(error) => {
            Err(Failure::new(Exit::Usage, &error)
                .hint("name a `.wasm` file that is there, or `REGISTRY/REPOSITORY:TAG`"))
        }
    }
}

/// Reads a plugin and asks it what it needs: with the project's settings for it, where the project has chosen it.
fn read(
    place: &Workplace,
    source: &Source,
    registry: &mut Registry<'_>,
    update: bool,
    compiled: &Path,
) -> Result<Candidate, Failure> {
    let pins = place.lock.read().map_err(|error| lock_failure(&error))?.plugins;
    let mut fetched = |settings: Option<&serde_json::Value>| {
        fetch(source, registry, &pins, settings, update, Some(compiled)).map_err(|error| install_failure(&error))
    };
    let candidate = fetched(None)?;
    let chosen = &place.project().plugins;
    let network = place.project().network.as_ref();
    let choice =
        [&chosen.proxy, &chosen.health].into_iter().chain(network).find(|choice| choice.name == candidate.name);
    match choice {
        // Only the settings tell which image it brings and which ports it publishes, and so what it asks for.
        Some(choice) => fetched(Some(&choice.settings)),
        None => Ok(candidate),
    }
}

fn install_failure(error: &InstallError) -> Failure {
    let exit = match error {
        InstallError::Plugin(_) | InstallError::NotAPlugin { .. } | InstallError::Name { .. } => Exit::Plugin,
        InstallError::Registry { .. } => Exit::Registry,
        InstallError::File { .. } => Exit::Usage,
    };
    let failure = Failure::new(exit, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn install(
    global: &Global,
    environment: &Environment,
    place: &Workplace,
    candidate: Candidate,
    accept: bool,
) -> Result<Exit, Failure> {
    let name = candidate.name.clone();
    if candidate.pinned {
        // Its bytes may still be missing on this machine.
        candidate.accept(&place.store, None).map_err(|error| plugin_failure(&error))?;
        return print(&format!("{name} is pinned already\n"));
    }
    if !global.json {
        print(&text(&candidate))?;
    }
    if !candidate.beyond.is_empty() && !accept && !agreed(environment)? {
        return Err(Failure::text(Exit::Plugin, format!("install `{name}`: what it asks for was not accepted"))
            .hint("`--accept` accepts it without being asked"));
    }
    let before = place.lock.read().map_err(|error| lock_failure(&error))?.plugins.get(&name).cloned();
    let (name, pin) = candidate.accept(&place.store, before.as_ref()).map_err(|error| plugin_failure(&error))?;
    let digest = pin.digest;
    place
        .lock
        .update_plugins(|section| {
            section.insert(name.clone(), pin);
        })
        .map_err(|error| lock_failure(&error))?;
    if global.json {
        return print(&format!("{}\n", serde_json::json!({"v": 1, "name": name, "digest": digest})));
    }
    print(&format!("installed {name} {digest}\n"))
}

/// Asks the person. Where nobody can answer, the answer is no.
fn agreed(environment: &Environment) -> Result<bool, Failure> {
    let input = std::io::stdin();
    if environment.ci || !input.is_terminal() {
        return Ok(false);
    }
    let failed = |error: std::io::Error| Failure::text(Exit::Internal, format!("ask: {error}"));
    write!(std::io::stderr(), "accept? [y/N] ").map_err(failed)?;
    let mut line = String::new();
    input.lock().read_line(&mut line).map_err(failed)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn text(candidate: &Candidate) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let Candidate { name, version, summary, role, digest, grants, images, beyond, .. } = candidate;
    let _ = writeln!(out, "{name} {version}, {}", role.world());
    if !summary.is_empty() {
        let _ = writeln!(out, "{summary}");
    }
    let _ = writeln!(out, "{digest}");
    for (name, reference) in images {
        let _ = writeln!(out, "brings image {name}: {reference}");
    }
    let all = grants.beyond(&Grants::default());
    let _ = writeln!(out, "{}", if all.is_empty() { "asks for nothing" } else { "asks to" });
    for line in all {
        let new = if beyond.contains(&line) { "+" } else { " " };
        let _ = writeln!(out, "  {new} {line}");
    }
    out
}

fn json(candidate: &Candidate) -> String {
    let Candidate { name, version, summary, schema, role, digest, grants, beyond, .. } = candidate;
    let images: std::collections::BTreeMap<_, _> =
        candidate.images.iter().map(|(name, reference)| (name, reference.to_string())).collect();
    let value = serde_json::json!({
        "v": 1, "name": name, "version": version, "summary": summary, "schema": schema, "world": role.world(),
        "digest": digest, "grants": grants, "beyond": beyond, "images": images,
    });
    format!("{value}\n")
}

fn print(text: &str) -> Result<Exit, Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    Ok(Exit::Done)
}

fn lock_failure(error: &LockfileError) -> Failure {
    Failure::new(Exit::Usage, error)
}

fn plugin_failure(error: &PluginError) -> Failure {
    let failure = Failure::new(Exit::Plugin, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Registries, for one install.
struct Registry<'a> {
    client: Client,
    store: &'a Store,
    runtime: &'a Runtime,
    artifact: Option<Artifact>,
}

fn registry<'a>(place: &'a Workplace, report: &Arc<dyn Report>, runtime: &'a Runtime) -> Registry<'a> {
    // A project without its secrets can still install a plugin from a registry that wants no password.
    let secrets = ready::secrets(place).unwrap_or_default();
    Registry { client: ready::client(place, &secrets, report), store: &place.store, runtime, artifact: None }
}

impl ArtifactSource for Registry<'_> {
    type Error = RegistryError;

    fn manifest(&mut self, reference: &Reference) -> Result<Vec<u8>, RegistryError> {
        let artifact = self.runtime.block_on(self.client.pull_artifact(reference))?;
        let manifest = artifact.manifest.clone();
        self.artifact = Some(artifact);
        Ok(manifest)
    }

    fn blob(&mut self, reference: &Reference, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let artifact = match self.artifact.take() {
            Some(artifact) => artifact,
            None => self.runtime.block_on(self.client.pull_artifact(reference))?,
        };
        self.runtime.block_on(self.client.artifact_blob(&artifact, blob, limit, self.store))
    }
}
