//! Docker and Podman behind one type.
//!
//! Effects go through the engine's own command line: argument lists in, the JSON of `inspect` out. So whatever way the
//! administrator set the engine up (a context, a remote socket, a storage driver) holds for jiji too, and no API version is to be
//! negotiated. Looks at a Docker that is set up as it comes go through its socket ([`socket`]), since they are many and starting the
//! command line is most of what they cost; so do changes that are one request there ([`change`]). What a step does with the engine is
//! [`crate::execute`]'s.

pub mod change;
pub mod inspect;
pub mod list;
pub mod run;
mod socket;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiji_model::image::ImageId;
use jiji_model::observation::{ContainerFacts, NetworkFacts};
use jiji_model::project;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;

use crate::command::{self, Command, CommandError, Output};
use crate::reach::Reach;
use crate::{Settings, rootless};
use inspect::{ContainerInspect, ImageInspect, Made, MadeImage, NetworkInspect};
use socket::Socket;

/// A container engine of this host.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Which.
    pub kind: project::Engine,
    /// The server's version.
    pub version: String,
    /// Whether it knows images by their manifests (Docker's containerd store) and not by their configurations.
    pub by_manifest: bool,
    /// Whether its logs grow without a bound unless one is given.
    pub bounds_logs: bool,
    /// Where it keeps images.
    pub data: PathBuf,
    /// Whether it is a user's own: its containers live in a network namespace of that user's.
    pub rootless: bool,
    program: PathBuf,
    /// Where looks and small changes go, if they need not go through the command line.
    socket: Option<Socket>,
}

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no engine, or a choice that was not made.
    #[error(
        "find the container engine: neither docker nor podman is installed, or both are and the project names none"
    )]
    None,
    /// The engine does not answer.
    #[error("ask {kind} for its version: {reason}")]
    NoAnswer {
        /// Which.
        kind: project::Engine,
        /// What it said.
        reason: String,
    },
    /// A command of it failed.
    #[error("run `{kind} {what}`: {ending}{}{complaint}", if complaint.is_empty() { "" } else { ": " })]
    Failed {
        /// Which engine.
        kind: project::Engine,
        /// The command's first words.
        what: String,
        /// How it ended.
        ending: String,
        /// What it said.
        complaint: String,
    },
    /// Its answer is not in the form that is known.
    #[error("read the answer of `{kind} {what}`: {source}")]
    Unreadable {
        /// Which engine.
        kind: project::Engine,
        /// The command's first words.
        what: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It could not be started.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// How long a look may take.
const LOOK: Duration = Duration::from_secs(30);

/// The parts of `docker info` that matter here, in the daemon's words.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    server_version: String,
    docker_root_dir: PathBuf,
    driver_status: Option<Vec<(String, String)>>,
    logging_driver: Option<String>,
}

/// The same from the command line.
const INFO: &str = r#"{"ServerVersion":{{json .ServerVersion}},"DockerRootDir":{{json .DockerRootDir}},"DriverStatus":{{json .DriverStatus}},"LoggingDriver":{{json .LoggingDriver}}}"#;

impl Engine {
    /// The engine that the settings name, or the one that is installed. None where neither is, or where both are and the settings name
    /// none: to guess would be to run the project twice one day.
    ///
    /// # Errors
    /// [`EngineError`] when the one that is meant does not answer.
    pub async fn find(settings: &Settings) -> Result<Option<Self>, EngineError> {
        let docker = command::find("docker", &settings.path).ok();
        let podman = command::find("podman", &settings.path).ok();
        match (settings.engine, docker, podman) {
            (Some(project::Engine::Docker), Some(program), _) | (None, Some(program), None) => {
                Self::docker(program, Socket::of(settings)).await.map(Some)
            }
            (Some(project::Engine::Podman), _, Some(program)) | (None, None, Some(program)) => {
                Self::podman(program, settings.rootless).await.map(Some)
            }
            (None, Some(_), Some(_)) | (None, None, None) => Ok(None),
            (Some(kind), _, _) => Err(EngineError::NoAnswer { kind, reason: "it is not installed".to_owned() }),
        }
    }

    async fn docker(program: PathBuf, socket: Option<Socket>) -> Result<Self, EngineError> {
        let kind = project::Engine::Docker;
        let mut answer = None;
        if let Some(socket) = socket {
            let info = socket.get("/info").await.ok().flatten();
            answer = info.and_then(|info| Some((serde_json::from_value::<Info>(info).ok()?, socket)));
        }
        let (info, socket) = match answer {
            Some((info, socket)) => (info, Some(socket)),
            None => {
                let output = Command::new(&program).args(["info", "--format", INFO]).timeout(LOOK).run().await?;
                match serde_json::from_slice::<Info>(&output.stdout) {
                    Ok(info) => (info, None),
                    Err(_) => {
                        return Err(EngineError::NoAnswer { kind, reason: Self::complaint(&program, &output).await });
                    }
                }
            }
        };
        if info.server_version.is_empty() {
            return Err(EngineError::NoAnswer { kind, reason: "it does not tell its version".to_owned() });
        }
        Ok(Self {
            kind,
            version: info.server_version,
            // The containerd store tells itself by its snapshotter's driver type.
            by_manifest: info
                .driver_status
                .iter()
                .flatten()
                .any(|(name, value)| name == "driver-type" && value.contains("containerd")),
            // The other drivers refuse the options; where their logs go, somebody else bounds them.
            bounds_logs: info.logging_driver.is_some_and(|driver| driver == "json-file" || driver == "local"),
            data: info.docker_root_dir,
            rootless: false,
            program,
            socket,
        })
    }

    /// Why Docker gives no answer. Of a daemon that is not there `docker info` with a format says no more than that the format does not fit
    /// (20.10); `docker version` says what is wrong.
    async fn complaint(program: &Path, info: &Output) -> String {
        let version =
            Command::new(program).args(["version", "--format", "{{.Server.Version}}"]).timeout(LOOK).run().await;
        let said = version.ok().filter(|output| !output.ok()).map(|output| output.complaint()).unwrap_or_default();
        let mut said = [said, info.complaint(), info.ending()].into_iter().filter(|text| !text.is_empty());
        said.next().unwrap_or_default()
    }

    async fn podman(program: PathBuf, rootless: bool) -> Result<Self, EngineError> {
        let kind = project::Engine::Podman;
        let output =
            Command::new(&program).args(["version", "--format", "{{.Client.Version}}"]).timeout(LOOK).run().await?;
        let version = output.text().trim().to_owned();
        if output.ok() && !version.is_empty() {
            Ok(Self {
                kind,
                version,
                by_manifest: false,
                bounds_logs: false,
                // `podman info` would tell, and takes half a second to look up the versions of packages.
                data: if rootless { rootless::storage() } else { PathBuf::from("/var/lib/containers/storage") },
                rootless,
                program,
                socket: None,
            })
        } else {
            Err(EngineError::NoAnswer { kind, reason: output.complaint() })
        }
    }

    /// Whether its version is at least this one.
    pub fn at_least(&self, major: u32) -> bool {
        let first = self.version.split(|c: char| !c.is_ascii_digit()).next();
        first.and_then(|first| first.parse::<u32>().ok()).is_some_and(|have| have >= major)
    }

    /// From where its containers are reached.
    pub fn reach(&self) -> Reach {
        if self.rootless { Reach::users(self.program.clone()) } else { Reach::Own }
    }

    /// A command of the engine.
    pub fn command<T: Into<String>>(&self, args: impl IntoIterator<Item = T>) -> Command {
        Command::new(&self.program).args(args).timeout(LOOK)
    }

    /// The failure that an output is.
    pub fn failure(&self, what: &str, output: &Output) -> EngineError {
        EngineError::Failed {
            kind: self.kind,
            what: what.to_owned(),
            ending: output.ending(),
            complaint: output.complaint(),
        }
    }

    /// Runs a command that must end with 0.
    ///
    /// # Errors
    /// [`EngineError::Failed`] when it does not.
    pub async fn must(&self, what: &str, command: Command) -> Result<Output, EngineError> {
        let output = command.run().await?;
        if output.ok() { Ok(output) } else { Err(self.failure(what, &output)) }
    }

    /// Inspects things that may not be there: those that are.
    async fn inspect<T: DeserializeOwned>(&self, kind: &str, names: &[String]) -> Result<Vec<T>, EngineError> {
        let what = format!("{kind} inspect");
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let unreadable = |source| EngineError::Unreadable { kind: self.kind, what: what.clone(), source };
        if let Some(socket) = &self.socket
            && let Ok(found) = socket.inspect(kind, names).await
        {
            return found.into_iter().map(serde_json::from_value).collect::<Result<_, _>>().map_err(unreadable);
        }
        let command = self.command([kind, "inspect"]).args(names).limits(16 * 1024 * 1024, 64 * 1024);
        let output = command.run().await?;
        // Docker: `Error: No such container: x`, `Error response from daemon: network x not found`; Podman: `no such container x`,
        // `network not found`, `image not known`. What is there is printed all the same.
        let complaint = output.complaint().to_lowercase();
        let absent = ["no such", "not found", "not known"].iter().any(|word| complaint.contains(word));
        if output.exit.is_none() || (!output.ok() && !absent) {
            return Err(self.failure(&what, &output));
        }
        if output.stdout.trim_ascii().is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&output.stdout).map_err(unreadable)
    }

    /// The containers of these names or ids, those that are there.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn inspect_containers(&self, names: &[String]) -> Result<Vec<ContainerInspect>, EngineError> {
        self.inspect("container", names).await
    }

    /// One container, if it is there.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn inspect_container(&self, name: &str) -> Result<Option<ContainerInspect>, EngineError> {
        let found = self.inspect_containers(&[name.to_owned()]).await?;
        // Podman also finds containers by a beginning of their ids.
        Ok(found.into_iter().find(|container| container.plain_name() == name))
    }

    /// One container with what it was made with, if it is there.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn inspect_made(&self, name: &str) -> Result<Option<(ContainerInspect, Made)>, EngineError> {
        let unreadable =
            |source| EngineError::Unreadable { kind: self.kind, what: "container inspect".to_owned(), source };
        for value in self.inspect::<serde_json::Value>("container", &[name.to_owned()]).await? {
            let inspect = ContainerInspect::deserialize(&value).map_err(unreadable)?;
            if inspect.plain_name() == name {
                return Ok(Some((inspect, Made::deserialize(&value).map_err(unreadable)?)));
            }
        }
        Ok(None)
    }

    /// What an image says of its containers, if it is there.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn inspect_made_image(&self, id: &str) -> Result<Option<MadeImage>, EngineError> {
        Ok(self.inspect("image", &[id.to_owned()]).await?.pop())
    }

    /// The containers with every one of these labels (`NAME=VALUE`), running or not.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn containers(&self, labels: &[String]) -> Result<Vec<ContainerInspect>, EngineError> {
        self.containers_where(labels.iter().map(|label| format!("label={label}"))).await
    }

    /// The containers that a filter of the engine lets through, running or not.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn containers_where(
        &self,
        filters: impl IntoIterator<Item = String>,
    ) -> Result<Vec<ContainerInspect>, EngineError> {
        let filters: Vec<String> = filters.into_iter().collect();
        if let Some(socket) = &self.socket
            && let Ok(ids) = socket.containers(&filters).await
        {
            return self.inspect_containers(&ids).await;
        }
        let filters = filters.into_iter().flat_map(|filter| ["--filter".to_owned(), filter]);
        let command = self.command(["ps", "--all", "--quiet", "--no-trunc"]).args(filters);
        let output = self.must("ps", command).await?;
        let ids: Vec<String> = output.text().split_ascii_whitespace().map(str::to_owned).collect();
        self.inspect_containers(&ids).await
    }

    /// The engine's images that are one of these, with which one each is.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn images(&self, ids: &[ImageId]) -> Result<Vec<(ImageId, ImageInspect)>, EngineError> {
        let mut names: Vec<String> = ids
            .iter()
            .flat_map(|id| match (self.kind, self.by_manifest) {
                (project::Engine::Docker, true) => vec![id.manifest.to_string()],
                (project::Engine::Docker, false) => vec![id.config.to_string()],
                (project::Engine::Podman, _) => vec![id.config.hex()],
            })
            .collect();
        names.sort();
        names.dedup();
        let found: Vec<ImageInspect> = self.inspect("image", &names).await?;
        let mut images = Vec::new();
        for id in ids {
            images.extend(found.iter().find(|image| image.is(id)).map(|image| (*id, image.clone())));
        }
        Ok(images)
    }

    /// One image, if the engine has it.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn image(&self, id: &ImageId) -> Result<Option<ImageInspect>, EngineError> {
        Ok(self.images(&[*id]).await?.pop().map(|(_, image)| image))
    }

    /// A network, if it is there, with the addresses that it knows of itself: Podman's knows none, Docker's those that are in use.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn network_alone(&self, name: &str) -> Result<Option<NetworkFacts>, EngineError> {
        let found: Vec<NetworkInspect> = self.inspect("network", &[name.to_owned()]).await?;
        Ok(found.into_iter().find(|network| network.name() == name).map(|network| network.facts()))
    }

    /// A network, if it is there, and the addresses that containers hold in it.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn network(&self, name: &str) -> Result<Option<NetworkFacts>, EngineError> {
        let Some(mut facts) = self.network_alone(name).await? else {
            return Ok(None);
        };
        let containers = self.containers_where([format!("network={name}")]).await?;
        facts.hold(containers.iter().filter_map(|container| container.address(name)));
        Ok(Some(facts))
    }

    /// With which code a container ends, however long that takes. None where the engine does not tell.
    pub async fn exit_code(&self, container: &str) -> Option<i32> {
        if let Some(socket) = &self.socket
            && let Ok(code) = socket.wait(container).await
        {
            return Some(code);
        }
        let output = self.command(["wait", container]).timeout(Duration::MAX).run().await.ok()?;
        output.ok().then(|| output.text().trim().parse().ok())?
    }

    /// What an observer sees of a container.
    pub fn facts(&self, container: &ContainerInspect) -> ContainerFacts {
        container.facts(self.kind, self.by_manifest)
    }

    /// The end of a container's log, both streams, at most `limit` bytes, fit for people. Secrets are the caller's to replace.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn logs(&self, container: &str, lines: u32, limit: usize) -> Result<String, EngineError> {
        let command = self.command(["logs", "--tail", &lines.to_string(), container]).merged();
        let output = command.limits(limit, 0).run().await?;
        if !output.ok() {
            return Err(EngineError::Failed {
                kind: self.kind,
                what: "logs".to_owned(),
                ending: output.ending(),
                complaint: command::one_line(&output.text()),
            });
        }
        let mut text = command::plain(&output.text());
        // Bytes that are no text become three times as long.
        if text.len() > limit {
            let cut = text.len() - limit;
            let cut = (cut..text.len()).find(|index| text.is_char_boundary(*index)).unwrap_or(text.len());
            text.drain(..cut);
        }
        Ok(text)
    }
}
