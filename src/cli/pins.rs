//! `jiji pins …`: what `jiji.lock` holds fast, whether it still is what its names mean, and taking what they mean now.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use jiji_model::commit::Commit;
use jiji_model::digest::Digest;
use jiji_model::event::Record;
use jiji_model::reference::Reference;
use serde_json::{Value, json};

use super::args::{Global, PinsCommand};
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::ready;
use super::workplace::Workplace;
use crate::build::execute::Canceller;
use crate::build::git::{self, Repository};
use crate::lockfile::{Asked, BaseKey, Lock, LockfileError, Recorded, RepositoryKey, Target};
use crate::registry::{Answer, Asking, Client, RegistryError};
use crate::report::{Report, Summary};

/// Runs one of the commands.
pub async fn run(
    global: &Global,
    command: &PinsCommand,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    let lock = place.lock.read().map_err(|error| unreadable(&error))?;
    if let PinsCommand::Show = command {
        return show(global, &lock, report);
    }
    // A project without its secrets can still ask registries that want no password.
    let client = ready::client(&place, &ready::secrets(&place).unwrap_or_default(), report);
    let name = match command {
        PinsCommand::Update { name } => name.as_deref(),
        PinsCommand::Show | PinsCommand::Diff => None,
    };
    let changes = changes(&lock, name, &client, &place).await?;
    let moved: Vec<&Change> = changes.iter().filter(|change| change.has_moved()).collect();
    let update = matches!(command, PinsCommand::Update { .. });
    if update && !moved.is_empty() {
        let written = place.lock.update_build(|section| {
            for change in &changes {
                match change.clone() {
                    Change::Base { key, found, .. } => {
                        section.bases.insert(key, found);
                    }
                    Change::Url { url, found, .. } => {
                        section.urls.insert(url, found);
                    }
                    Change::Recorded { asked, found, .. } => {
                        section.recorded.insert(asked, found);
                    }
                    Change::Git { key, found, .. } => {
                        section.repositories.insert(key, found);
                    }
                }
            }
        });
        written.map_err(|error| unreadable(&error))?;
    }
    let exit = if update || moved.is_empty() { Exit::Done } else { Exit::Differs };
    let verb = if update { "updated" } else { "moved" };
    let text = format!("{} of {} {verb}", moved.len(), changes.len());
    if global.json {
        let list: Vec<Value> = moved.iter().map(|change| change.fields()).collect();
        let event = if update { "pins.updated" } else { "pins.diff" };
        report.emit(Record::new(event, text).with(json!({"asked": changes.len(), "changes": list})));
        report.summary(&summary(exit));
        return Ok(exit);
    }
    let mut out = String::new();
    for change in &moved {
        // Writing to a String does not fail.
        let (pinned, found) = change.both();
        let _ = writeln!(out, "{} {pinned} → {found}", change.name());
    }
    let _ = writeln!(
        out,
        "{text}{}",
        if update && !moved.is_empty() { "; `jiji build` makes what depends on it" } else { "" }
    );
    print(&out)?;
    Ok(exit)
}

/// Something that a registry or a server was asked again.
#[derive(Debug, Clone)]
enum Change {
    Base { key: BaseKey, pinned: Digest, found: Digest },
    Url { url: String, pinned: Digest, found: Digest },
    Recorded { asked: Asked, pinned: Recorded, found: Recorded },
    Git { key: RepositoryKey, pinned: Commit, found: Commit },
}

impl Change {
    /// All that `jiji.lock` says, as if nothing had moved.
    fn all(lock: &Lock) -> impl Iterator<Item = Self> {
        let build = &lock.build;
        let base =
            |(key, pinned): (&BaseKey, &Digest)| Self::Base { key: key.clone(), pinned: *pinned, found: *pinned };
        let url = |(url, pinned): (&String, &Digest)| Self::Url { url: url.clone(), pinned: *pinned, found: *pinned };
        let recorded = |(asked, pinned): (&Asked, &Recorded)| Self::Recorded {
            asked: asked.clone(),
            pinned: pinned.clone(),
            found: pinned.clone(),
        };
        let git = |(key, pinned): (&RepositoryKey, &Commit)| Self::Git {
            key: key.clone(),
            pinned: pinned.clone(),
            found: pinned.clone(),
        };
        let fetched = build.urls.iter().map(url).chain(build.recorded.iter().map(recorded));
        build.bases.iter().map(base).chain(fetched).chain(build.repositories.iter().map(git))
    }

    fn name(&self) -> String {
        match self {
            Self::Base { key: BaseKey { reference, platform }, .. } => format!("{reference} ({platform})"),
            Self::Url { url, .. } => url.clone(),
            Self::Recorded { asked, .. } => asked.to_string(),
            Self::Git { key, .. } => key.to_string(),
        }
    }

    /// What is pinned, and what was found.
    fn both(&self) -> (String, String) {
        match self {
            Self::Base { pinned, found, .. } | Self::Url { pinned, found, .. } => {
                (pinned.to_string(), found.to_string())
            }
            Self::Recorded { pinned, found, .. } => (answer(pinned), answer(found)),
            Self::Git { pinned, found, .. } => (pinned.to_string(), found.to_string()),
        }
    }

    fn has_moved(&self) -> bool {
        let (pinned, found) = self.both();
        pinned != found
    }

    /// Whether a person means this one: by the whole name, or by a reference that says the same.
    fn is_meant(&self, name: &str) -> bool {
        match self {
            Self::Url { url, .. } => url == name,
            Self::Recorded { asked, .. } => asked.url == name || asked.to_string() == name,
            Self::Git { key, .. } => key.url == name || key.to_string() == name,
            Self::Base { key: BaseKey { reference, .. }, .. } => {
                let meant = |text: &str| text.parse::<Reference>().ok();
                let same = |one: Reference, other: Reference| {
                    (&one.registry, &one.repository) == (&other.registry, &other.repository)
                        && (other.tag.is_none() || one.version() == other.version())
                };
                reference == name || meant(reference).zip(meant(name)).is_some_and(|(one, other)| same(one, other))
            }
        }
    }

    fn fields(&self) -> Value {
        match self {
            Self::Base { key: BaseKey { reference, platform }, pinned, found } => json!({
                "kind": "base", "reference": reference, "platform": platform.to_string(),
                "pinned": pinned, "found": found,
            }),
            Self::Url { url, pinned, found } => json!({"kind": "url", "url": url, "pinned": pinned, "found": found}),
            Self::Recorded { asked, pinned, found } => json!({
                "kind": "recorded", "url": asked.url, "accept": asked.accept,
                "pinned": answer(pinned), "found": answer(found),
            }),
            Self::Git { key: RepositoryKey { url, reference }, pinned, found } => {
                json!({"kind": "git", "url": url, "ref": reference, "pinned": pinned, "found": found})
            }
        }
    }
}

/// Asks what everything that is meant has now.
async fn changes(lock: &Lock, name: Option<&str>, client: &Client, place: &Workplace) -> Result<Vec<Change>, Failure> {
    let all: Vec<Change> = Change::all(lock).collect();
    let known: Vec<String> = all.iter().map(|change| format!("`{}`", change.name())).collect();
    let wanted: Vec<_> = all.into_iter().filter(|change| name.is_none_or(|name| change.is_meant(name))).collect();
    if let (Some(name), true) = (name, wanted.is_empty()) {
        let hint = match known.is_empty() {
            true => "jiji.lock pins no image, no URL and no repository".to_owned(),
            false => format!("there are {}", known.join(", ")),
        };
        return Err(Failure::text(Exit::Usage, format!("find `{name}` in jiji.lock")).hint(hint));
    }
    let mut changes = Vec::with_capacity(wanted.len());
    for mut change in wanted {
        match &mut change {
            Change::Base { key: BaseKey { reference, platform }, found, .. } => {
                let reference: Reference = reference.parse().map_err(|error| Failure::new(Exit::Usage, &error))?;
                *found = client.resolve(&reference, platform).await.map_err(refused)?;
            }
            Change::Url { url, found, .. } => *found = client.download(url, &place.store).await.map_err(refused)?.0,
            Change::Recorded { asked, found, .. } => *found = again(asked, client, place).await?,
            Change::Git { key, found, .. } => *found = commit(key.clone(), place).await?,
        }
        changes.push(change);
    }
    Ok(changes)
}

/// What a URL answers now, as text: a digest, or that there is nothing, or where it is.
fn answer(said: &Recorded) -> String {
    match (said.status, &said.location) {
        (200, _) => said.digest.to_string(),
        (status, Some(location)) => format!("{status} {location}"),
        (status, None) => status.to_string(),
    }
}

/// What a URL that a step asked for answers now.
async fn again(asked: &Asked, client: &Client, place: &Workplace) -> Result<Recorded, Failure> {
    let asking = Asking { url: &asked.url, accept: asked.accept.as_deref(), authorization: None };
    let answer = client.ask(&asking, &place.store).await.map_err(refused)?;
    if !answer.is_lasting() {
        let text = format!("ask for `{}`: the answer is {}", asked.url, answer.status);
        return Err(Failure::text(Exit::Registry, text));
    }
    let Answer { status, kind, location, body } = answer;
    let digest = match body {
        Some((digest, _)) => digest,
        None => Digest::of(b""),
    };
    Ok(Recorded { status, kind, location, digest })
}

/// The commit that a repository has now.
async fn commit(key: RepositoryKey, place: &Workplace) -> Result<Commit, Failure> {
    let store = place.store.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let repository = Repository { url: key.url, reference: key.reference, directory: None };
        git::resolve(&repository, &store, &Canceller::new()?)
    });
    let asked = asked.await.map_err(|_| Failure::text(Exit::Internal, "ask a repository: a thread ended"))?;
    asked.map_err(|error| {
        let failure = Failure::new(Exit::Registry, &error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

fn refused(error: RegistryError) -> Failure {
    let failure = Failure::new(Exit::Registry, &error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn show(global: &Global, lock: &Lock, report: &Arc<dyn Report>) -> Result<Exit, Failure> {
    if global.json {
        let pins = list(lock);
        let text = format!("{} pins", pins.len());
        report.emit(Record::new("pins.show", text).with(json!({"pins": pins})));
        report.summary(&summary(Exit::Done));
        return Ok(Exit::Done);
    }
    let mut out = String::new();
    let mut line = |kind: &str, name: &str, digest: &dyn std::fmt::Display| {
        let _ = writeln!(out, "{kind:<7} {name:<50} {digest}");
    };
    for (BaseKey { reference, platform }, digest) in &lock.build.bases {
        line("base", &format!("{reference} {platform}"), digest);
    }
    for (target, digest) in &lock.build.images {
        line("image", &target.to_string(), digest);
    }
    for (key, diff_id) in &lock.build.runs {
        line("run", &format!("{} {}", key.target, key.step.short()), diff_id);
    }
    for (url, digest) in &lock.build.urls {
        line("url", url, digest);
    }
    for (asked, said) in &lock.build.recorded {
        line("url", &asked.to_string(), &answer(said));
    }
    for (key, commit) in &lock.build.repositories {
        line("git", &key.to_string(), commit);
    }
    for (name, pin) in &lock.plugins {
        line("plugin", name.as_str(), &pin.digest);
        for (BaseKey { reference, platform }, digest) in &pin.images {
            line("base", &format!("{reference} {platform}"), digest);
        }
    }
    print(&out)?;
    Ok(Exit::Done)
}

fn list(lock: &Lock) -> Vec<Value> {
    let base = |(BaseKey { reference, platform }, digest): (&BaseKey, &Digest)| json!({"kind": "base", "reference": reference, "platform": platform.to_string(), "digest": digest});
    let target = |Target { service, environment, platform }: &Target| json!({"service": service, "environment": environment, "platform": platform.to_string()});
    let image = |(of, digest): (&Target, &Digest)| json!({"kind": "image", "of": target(of), "digest": digest});
    let build = &lock.build;
    let mut pins: Vec<Value> = build.bases.iter().map(base).collect();
    pins.extend(build.images.iter().map(image));
    pins.extend(
        build.runs.iter().map(
            |(key, diff_id)| json!({"kind": "run", "of": target(&key.target), "key": key.step, "diff_id": diff_id}),
        ),
    );
    pins.extend(build.urls.iter().map(|(url, digest)| json!({"kind": "url", "url": url, "digest": digest})));
    pins.extend(build.recorded.iter().map(|(asked, said)| {
        json!({"kind": "recorded", "url": asked.url, "accept": asked.accept, "answer": answer(said), "digest": said.digest})
    }));
    let git = |(RepositoryKey { url, reference }, commit): (&RepositoryKey, &Commit)| json!({"kind": "git", "url": url, "ref": reference, "commit": commit});
    pins.extend(build.repositories.iter().map(git));
    for (name, pin) in &lock.plugins {
        pins.push(json!({"kind": "plugin", "name": name, "digest": pin.digest}));
        pins.extend(pin.images.iter().map(base));
    }
    pins
}

fn unreadable(error: &LockfileError) -> Failure {
    let failure = Failure::new(Exit::Usage, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn summary(exit: Exit) -> Summary {
    Summary { result: exit.name().to_owned(), exit: exit.code(), ..Summary::default() }
}

fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))
}
