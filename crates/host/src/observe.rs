//! Answers every kind of query, and changes nothing: no file, no engine object, no lease.
//!
//! The queries of one look are answered side by side, a few at a time and the dearest first, because most of their time goes into the
//! engine's command line. What they say together is bounded by [`FACTS`].

use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use jiji_model::digest::{Digest, canonical_json};
use jiji_model::name::AbsPath;
use jiji_model::observation::{
    Answer, BlobFacts, CommandFacts, EngineFacts, Fact, FileFacts, HostFacts, HttpFacts, Query, Want,
};
use jiji_model::plan::NETWORK;
use jiji_model::probe::ProbeResult;
use jiji_model::transaction::roster;
use sha2::Digest as _;
use tokio::sync::OnceCell;

use crate::engine::inspect::ContainerInspect;
use crate::engine::list::{self, Containers, Named};
use crate::engine::{Engine, EngineError};
use crate::mesh::Mesh;
use crate::place::Place;
use crate::reach::Reach;
use crate::secrets::{self, Secrets};
use crate::{Settings, clock, command, compare, fitness, integrity, probe, records};

/// How many bytes of JSON the facts of one look may be.
pub const FACTS: usize = 1024 * 1024;

/// How many queries are answered at once.
const AT_ONCE: usize = 4;

/// Longest a plugin's command may take.
const LONGEST_EXEC: Duration = Duration::from_secs(60);

/// How long an HTTP query may take.
const HTTP: Duration = Duration::from_secs(5);

/// What a look needs to know.
#[derive(Debug)]
pub struct Observer<'a> {
    /// Where programs are and what the project chose.
    pub settings: &'a Settings,
    /// Where everything lies.
    pub place: &'a Place,
    /// The engine, or why there is none.
    pub engine: &'a Result<Option<Engine>, EngineError>,
    /// The session's secrets.
    pub secrets: &'a Secrets,
}

/// Why a query has no answer.
type Cause = String;

/// What one look lists once, as soon as a query wants it.
type Listed = OnceCell<Result<Containers, Cause>>;

impl Observer<'_> {
    /// Answers all wants, in their order.
    pub async fn look(&self, wants: Vec<Want>) -> Vec<Fact> {
        let listed = OnceCell::new();
        let mut wants: Vec<(usize, Want)> = wants.into_iter().enumerate().collect();
        wants.sort_by_key(|(_, want)| !is_dear(&want.query));
        let answered = stream::iter(wants)
            .map(async |(place, want)| {
                let answer = self.answer(&want.query, &listed).await;
                let answer = answer.unwrap_or_else(|cause| Answer::Failed(self.secrets.redact(&cause)));
                (place, Fact { id: want.id, answer })
            })
            .buffer_unordered(AT_ONCE);
        let mut answered: Vec<(usize, Fact)> = answered.collect().await;
        answered.sort_by_key(|(place, _)| *place);
        let mut facts: Vec<Fact> = answered.into_iter().map(|(_, fact)| fact).collect();
        let mut size = 0;
        for fact in &mut facts {
            size += canonical_json(&fact.answer).len();
            if size > FACTS {
                fact.answer = Answer::Failed(format!("the facts of one look are more than {FACTS} bytes"));
            }
        }
        facts
    }

    fn engine(&self) -> Result<&Engine, Cause> {
        match self.engine {
            Ok(Some(engine)) => Ok(engine),
            Ok(None) => Err(EngineError::None.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The containers that are there, listed once for a whole look.
    async fn listed<'a>(&self, listed: &'a Listed) -> Result<&'a Containers, Cause> {
        let engine = self.engine()?;
        let list = async || Containers::of(engine).await.map_err(text);
        listed.get_or_init(list).await.as_ref().map_err(Cause::clone)
    }

    async fn answer(&self, query: &Query, listed: &Listed) -> Result<Answer, Cause> {
        match query {
            Query::Host => self.host().map(Answer::Host),
            Query::Fitness => Ok(Answer::Fitness(Box::new(fitness::facts(self)))),
            Query::Ports { ports } => {
                let engine = self.engine.as_ref().ok().and_then(Option::as_ref);
                Ok(Answer::Ports(fitness::ports(ports, engine).await))
            }
            Query::Containers { labels } => {
                let engine = self.engine()?;
                let facts = |found: &ContainerInspect| engine.facts(found);
                if list::answers(labels) {
                    let found = self.listed(listed).await?.labelled(labels);
                    return Ok(Answer::Containers(found.map(facts).collect()));
                }
                let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let found = engine.containers(&labels).await.map_err(text)?;
                Ok(Answer::Containers(found.iter().map(facts).collect()))
            }
            Query::Container { name } => {
                let engine = self.engine()?;
                let facts = |found: &ContainerInspect| Answer::Container(Box::new(engine.facts(found)));
                match self.listed(listed).await?.named(name.as_str()) {
                    Named::Inspected(found) => Ok(facts(found)),
                    Named::Absent => Ok(Answer::Absent),
                    Named::Foreign => {
                        let found = engine.inspect_container(name.as_str()).await.map_err(text)?;
                        Ok(found.as_ref().map_or(Answer::Absent, facts))
                    }
                }
            }
            Query::Exec { container, argv, timeout_ms } => {
                let timeout = Duration::from_millis((*timeout_ms).max(1).into()).min(LONGEST_EXEC);
                self.exec(container.as_str(), argv, timeout).await
            }
            Query::Logs { container, lines } => {
                let log = self.engine()?.logs(container.as_str(), (*lines).min(1000), 64 * 1024);
                log.await.map(|log| Answer::Text(self.secrets.redact(&log))).map_err(text)
            }
            Query::File { path, limit } => self.file(path, *limit),
            Query::Network { name } if name == NETWORK => {
                let engine = self.engine()?;
                let (found, listed) = tokio::join!(engine.network_alone(name), self.listed(listed));
                let Some(mut facts) = found.map_err(text)? else { return Ok(Answer::Absent) };
                facts.hold(listed?.in_network().filter_map(|container| container.address(name)));
                Ok(Answer::Network(facts))
            }
            Query::Network { name } => {
                let found = self.engine()?.network(name).await.map_err(text)?;
                Ok(found.map_or(Answer::Absent, Answer::Network))
            }
            Query::Images { images } => {
                let found = self.engine()?.images(images).await.map_err(text)?;
                Ok(Answer::Images(found.into_iter().map(|(id, _)| id).collect()))
            }
            Query::Blobs { digests } => {
                Ok(Answer::Blobs(digests.iter().map(|digest| blob(&self.place.store(), digest)).collect()))
            }
            Query::Http { address, port, path, host } => {
                if !(address.is_loopback() || roster::number_of(*address).is_some() || probe::is_own(*address)) {
                    return Err(format!("ask {address}: it is not this host's"));
                }
                let begun = Instant::now();
                let reach = self.engine.as_ref().ok().and_then(Option::as_ref).map_or(Reach::Own, Engine::reach);
                let at = SocketAddrV4::new(*address, *port);
                let result = probe::http(&reach, at, host.as_deref(), path, HTTP).await;
                Ok(Answer::Http(HttpFacts {
                    result: redact(self.secrets, result),
                    took_ms: probe::millis(begun.elapsed()),
                }))
            }
            Query::PublicKey { path } => {
                let key = self.mesh().public_key(path).await.map_err(text)?;
                Ok(key.map_or(Answer::Absent, Answer::PublicKey))
            }
            Query::Interface { name } => {
                let facts = self.mesh().facts(name).await.map_err(text)?;
                Ok(Answer::Interface(Box::new(facts)))
            }
            Query::Records { scope } => {
                let records = records::observe(self.place, scope).map_err(text)?;
                Ok(Answer::Records(Box::new(records)))
            }
            Query::History { scope } => {
                let project = self.place.project(scope).map_err(text)?;
                records::history(&project).map(Answer::History).map_err(text)
            }
            Query::Release { scope, at } => {
                let project = self.place.project(scope).map_err(text)?;
                let release = records::release_at(&project, *at).map_err(text)?;
                Ok(release.map_or(Answer::Absent, |release| Answer::Release(Box::new(release))))
            }
            Query::Integrity { scope } => {
                integrity::look(self.place, scope).map(|facts| Answer::Integrity(Box::new(facts))).map_err(text)
            }
            Query::Compare { service, secrets } => {
                let found = compare::service(self.engine()?, self.place, service, secrets.as_deref()).await;
                found.map(Answer::Differences).map_err(text)
            }
            Query::SecretsMac { names } => match secrets::host_key(self.place).map_err(text)? {
                None => Ok(Answer::Absent),
                Some(key) => match self.secrets.mac(&key, names) {
                    Ok(mac) => Ok(Answer::Mac(mac)),
                    Err(name) => Err(format!("digest secret `{name}`: its value was not sent")),
                },
            },
        }
    }

    fn mesh(&self) -> Mesh<'_> {
        Mesh { settings: self.settings, place: self.place }
    }

    fn host(&self) -> Result<HostFacts, Cause> {
        let engine = match self.engine {
            Ok(engine) => engine.as_ref(),
            Err(error) => return Err(error.to_string()),
        };
        let data = engine.map_or(Path::new("/"), |engine| engine.data.as_path());
        Ok(HostFacts {
            engine: engine.map(|engine| EngineFacts { kind: engine.kind, version: engine.version.clone() }),
            architecture: architecture().to_owned(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            boot_id: clock::boot_id().map_err(text)?,
            boottime_ms: clock::boottime_ms(),
            wall_clock_s: clock::wall_clock_s(),
            disk_free: fitness::disk(data).free,
            memory_available: fitness::memory_available(),
        })
    }

    async fn exec(&self, container: &str, argv: &[String], timeout: Duration) -> Result<Answer, Cause> {
        let engine = self.engine()?;
        let command = engine.command(["exec", container]).args(argv);
        let output = command.timeout(timeout).limits(64 * 1024, 16 * 1024).run().await.map_err(text)?;
        if !output.ok() {
            // Whether the engine refused or the command failed is told by the container alone.
            match engine.inspect_container(container).await.map_err(text)? {
                None => return Ok(Answer::Absent),
                Some(found) if !found.running() => {
                    return Err(format!("run a command in `{container}`: it is {}", found.state.status));
                }
                Some(_) => {}
            }
        }
        let readable = |bytes: &[u8]| self.secrets.redact(&String::from_utf8_lossy(bytes));
        Ok(Answer::Command(CommandFacts {
            exit: output.exit,
            stdout: readable(&output.stdout),
            stderr: readable(&output.stderr),
            truncated: output.truncated,
        }))
    }

    fn file(&self, path: &AbsPath, limit: u32) -> Result<Answer, Cause> {
        let failed = |action: &str, error: std::io::Error| format!("{action} `{path}`: {error}");
        let mut file = match fs::File::open(self.place.locate(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Answer::Absent),
            Err(error) => return Err(failed("open", error)),
        };
        let metadata = file.metadata().map_err(|error| failed("look at", error))?;
        if !metadata.is_file() {
            return Err(format!("read `{path}`: it is no file"));
        }
        let limit = usize::try_from(limit.min(256 * 1024)).unwrap_or_default();
        let (mut hash, mut size, mut start) = (sha2::Sha256::new(), 0, Vec::new());
        let mut block = vec![0; 64 * 1024];
        loop {
            use std::io::Read as _;
            let count = file.read(&mut block).map_err(|error| failed("read", error))?;
            if count == 0 {
                break;
            }
            hash.update(&block[..count]);
            size += count as u64;
            let room = limit - start.len();
            start.extend_from_slice(&block[..count.min(room)]);
        }
        // A character cut in two at the limit is no reason to withhold the rest.
        let content = match std::str::from_utf8(&start) {
            Ok(content) => Some(content),
            Err(error) if error.error_len().is_none() && size > limit as u64 => {
                std::str::from_utf8(&start[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        Ok(Answer::File(FileFacts {
            sha256: Digest::from_bytes(hash.finalize().into()),
            mode: metadata.mode() & 0o7777,
            size,
            content: content.filter(|_| limit > 0).map(|content| self.secrets.redact(content)),
        }))
    }
}

/// Whether an answer takes longer than others: to enter a container, or to ask whoever is behind an address.
fn is_dear(query: &Query) -> bool {
    matches!(query, Query::Exec { .. } | Query::Http { .. } | Query::Compare { .. })
}

/// What is there of a blob. Opening the store would create and sweep it, so its files are looked at by their documented names.
fn blob(store: &Path, digest: &Digest) -> BlobFacts {
    let length = |dir: &str| fs::metadata(store.join(dir).join(digest.hex())).map(|metadata| metadata.len());
    match length("blobs/sha256") {
        Ok(have) => BlobFacts { digest: *digest, have, complete: true },
        Err(_) => BlobFacts { digest: *digest, have: length("partial").unwrap_or(0), complete: false },
    }
}

/// A probe's result without secrets.
pub fn redact(secrets: &Secrets, result: ProbeResult) -> ProbeResult {
    match result {
        ProbeResult::Http { status, body, location } => ProbeResult::Http {
            status,
            body: secrets.redact(&body),
            location: location.map(|location| secrets.redact(&location)),
        },
        ProbeResult::Exit { code, output } => ProbeResult::Exit { code, output: secrets.redact(&output) },
        other => other,
    }
}

/// The machine's architecture in Go's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn text(error: impl std::fmt::Display) -> Cause {
    error.to_string()
}

/// An error with what caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = command::one_line(&error.to_string());
    let mut source = error.source();
    while let Some(error) = source {
        let cause = command::one_line(&error.to_string());
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
        source = error.source();
    }
    line
}
