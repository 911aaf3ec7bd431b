//! What a host has, told by the host itself and its engine.

use jiji_lab::{Engine, Host};
use serde_json::Value;

use crate::Outcome;

/// Everything of a host that an unchanged ship must leave alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Below /var/lib/jiji: path, kind, mode, owner, size, inode, times of the content and of the inode. Not the time of reading.
    pub files: Vec<String>,
    /// Containers with their images, states and starts.
    pub containers: Vec<String>,
    /// Images.
    pub images: Vec<String>,
    /// Volumes.
    pub volumes: Vec<String>,
    /// Networks.
    pub networks: Vec<String>,
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    lines.sort();
    lines
}

impl State {
    /// Looks at a host.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn of(host: &Host) -> Outcome<Self> {
        let format = r"%p %y %m %U:%G %s %i %T@ %C@\n";
        let ids = host.engine(&["ps", "--all", "--quiet", "--no-trunc"])?;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        let mut containers = String::new();
        if !ids.is_empty() {
            let format = "{{.Id}} {{.Name}} {{.Image}} {{.State.Status}} {{.State.StartedAt}}";
            let argv = [["inspect", "--format", format].as_slice(), ids.as_slice()].concat();
            containers = host.engine(&argv)?;
        }
        let list = |what: &str| host.engine(&[what, "ls", "--quiet"]);
        Ok(Self {
            files: sorted(&host.exec(&["find", "/var/lib/jiji", "-printf", format])?),
            containers: sorted(&containers),
            images: sorted(&host.engine(&[
                "images",
                "--all",
                "--no-trunc",
                "--format",
                "{{.ID}} {{.Repository}}:{{.Tag}}",
            ])?),
            volumes: sorted(&list("volume")?),
            networks: sorted(&list("network")?),
        })
    }
}

/// A running container of a service, as its engine tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its address in the network `jiji`.
    pub address: String,
    /// The digest of its image's configuration.
    pub config: String,
    /// The digest of its image's manifest, where the engine knows it.
    pub manifest: Option<String>,
}

/// How often containers are looked at that go meanwhile.
const LOOKS: usize = 5;

/// The containers of a project that run on a host.
///
/// # Errors
/// When the engine does not answer.
pub fn running(host: &Host, project: &str) -> Outcome<Vec<Running>> {
    let look = || -> Outcome<Option<Value>> {
        let ids = host.engine(&["ps", "--quiet", "--no-trunc"])?;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(Some(Value::Null));
        }
        let seen = host.output(&[[host.engine_cli(), "inspect"].as_slice(), ids.as_slice()].concat())?;
        // One of another project may go between the two.
        Ok(if seen.status.success() { Some(serde_json::from_slice(&seen.stdout)?) } else { None })
    };
    let mut all = None;
    for _ in 0..LOOKS {
        all = look()?;
        if all.is_some() {
            break;
        }
    }
    let all = all.ok_or_else(|| format!("{}: containers go as fast as they are looked at", host.name))?;
    let of_project = |container: &&Value| container["Config"]["Labels"]["jiji.scope"] == project;
    let digest = |text: &str| if text.starts_with("sha256:") { text.to_owned() } else { format!("sha256:{text}") };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = all.as_array().map(Vec::as_slice).unwrap_or_default();
    let found = all.iter().filter(of_project).map(|container| Running {
        name: text(&container["Name"]).trim_start_matches('/').to_owned(),
        address: text(&container["NetworkSettings"]["Networks"]["jiji"]["IPAddress"]),
        config: digest(container["Image"].as_str().unwrap_or_default()),
        manifest: match host.engine {
            Engine::Podman => container["ImageDigest"].as_str().map(str::to_owned),
            Engine::Docker => None,
        },
    });
    Ok(found.collect())
}

/// The one container of a project that runs on a host.
///
/// # Errors
/// When none or several run.
pub fn only(host: &Host, project: &str) -> Outcome<Running> {
    let mut all = running(host, project)?;
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        (last, _) => {
            Err(format!("one container of `{project}` is due on {}, not {all:?} and {last:?}", host.name).into())
        }
    }
}

/// What the real kamal-proxy says it routes, without its colours.
///
/// # Errors
/// When it does not answer.
pub fn routes(host: &Host) -> Outcome<String> {
    let text = host.engine(&["exec", "kamal-proxy", "kamal-proxy", "list"])?;
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    Ok(plain)
}
