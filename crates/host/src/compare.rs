//! How a service's container differs from what was decided for it.
//!
//! The release says what was asked for; a container is that together with what its image says. So both are read from the engine, and what
//! the specification leaves open must be the image's. Values of variables stay here: a difference names the variable, and secrets are
//! compared by their keyed digest. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::name::SecretName;
use jiji_model::observation::{Difference, Part};
use jiji_model::plan::{LABEL_ADDRESS, LABEL_SECRETS, LABEL_SPEC, NETWORK, PlannedService, Word};
use jiji_model::project::{Mount, MountSource};
use jiji_model::secret::Secret;

use crate::engine::inspect::{ContainerInspect, Made, MadeImage, MadeMount};
use crate::engine::run::restart_policy;
use crate::engine::{Engine, EngineError};
use crate::place::Place;
use crate::secrets::{self, Secrets};

/// Variables that engines and their base images set by themselves, so that one more of these is nobody's doing.
const OF_ENGINES: [&str; 5] = ["HOME", "HOSTNAME", "PATH", "TERM", "container"];

/// Compares the container of a service with what was decided. `recorded` is the keyed digest of its secrets that the release has.
///
/// # Errors
/// [`EngineError`].
pub async fn service(
    engine: &Engine,
    place: &Place,
    service: &PlannedService,
    recorded: Option<&str>,
) -> Result<Vec<Difference>, EngineError> {
    let name = service.container.as_str();
    let Some((inspect, made)) = engine.inspect_made(name).await? else {
        let container = format!("container `{name}`");
        return Ok(vec![difference(Part::Existence, container, "none of that name")]);
    };
    let image = engine.inspect_made_image(&inspect.image).await?.unwrap_or_default();
    let key = secrets::host_key(place).ok().flatten();
    let restart = restart_policy(engine.kind);
    let seen = Seen { place, service, inspect: &inspect, made: &made, image: &image, restart };
    let mut found = Vec::new();
    found.extend(seen.state());
    found.extend(seen.image());
    found.extend(seen.env());
    found.extend(key.and_then(|key| seen.secrets(&key, recorded)));
    found.extend(seen.labels(recorded));
    found.extend(seen.mounts());
    found.extend(seen.settings());
    found.extend(seen.network());
    Ok(found)
}

fn difference(part: Part, expected: impl Into<String>, found: impl Into<String>) -> Difference {
    Difference { part, expected: expected.into(), found: found.into() }
}

/// A container beside what it should be.
struct Seen<'a> {
    place: &'a Place,
    service: &'a PlannedService,
    inspect: &'a ContainerInspect,
    made: &'a Made,
    image: &'a MadeImage,
    /// What a container that is to run for ever has for its restart policy.
    restart: &'static str,
}

fn variables(env: &[String]) -> BTreeMap<&str, &str> {
    env.iter().filter_map(|line| line.split_once('=')).collect()
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

impl Seen<'_> {
    fn state(&self) -> Option<Difference> {
        let state = &self.inspect.state;
        (!self.inspect.running()).then(|| {
            let found = match state.status.as_str() {
                "exited" | "stopped" | "dead" => format!("{} ({})", state.status, state.exit_code),
                other => other.to_owned(),
            };
            difference(Part::State, "running", found)
        })
    }

    fn image(&self) -> Option<Difference> {
        let id = self.service.image.id();
        (!self.inspect.runs(&id)).then(|| {
            let short: String = self.inspect.image.trim_start_matches("sha256:").chars().take(12).collect();
            difference(Part::Image, format!("image {}", id.config.short()), format!("image {short}"))
        })
    }

    fn env(&self) -> Option<Difference> {
        let spec = &self.service.container_spec.env;
        let (actual, of_image) = (variables(self.made.env()), variables(self.image.env()));
        let (mut changed, mut missing) = (BTreeSet::new(), BTreeSet::new());
        for (name, word) in spec {
            match (word, actual.get(name.as_str())) {
                (_, None) => {
                    missing.insert(name.as_str());
                }
                (Word::Lit(value), Some(found)) if value != found => {
                    changed.insert(name.as_str());
                }
                _ => {}
            }
        }
        let others = |name: &&&str| !spec.contains_key(**name) && !OF_ENGINES.contains(*name);
        for name in of_image.keys().filter(others) {
            match actual.get(name) {
                None => missing.insert(name),
                Some(found) if found != &of_image[name] => changed.insert(name),
                Some(_) => false,
            };
        }
        let added: BTreeSet<&str> =
            actual.keys().filter(others).filter(|name| !of_image.contains_key(**name)).copied().collect();
        let parts = [("other value of", changed), ("without", missing), ("also", added)];
        let found: Vec<_> = parts
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what} {}", quoted(names)))
            .collect();
        (!found.is_empty()).then(|| difference(Part::Env, "the release's variables", found.join("; ")))
    }

    /// The values of secrets, by their keyed digest.
    fn secrets(&self, key: &[u8; 32], recorded: Option<&str>) -> Option<Difference> {
        let names = self.service.container_spec.secrets();
        let recorded = recorded?;
        let actual = variables(self.made.env());
        // One that is missing is a difference of the variables.
        let values: Option<BTreeMap<SecretName, Secret>> =
            names.iter().map(|name| Some((name.clone(), Secret::new(self.value(name, &actual)?)))).collect();
        let mut secrets = Secrets::default();
        secrets.add(values?);
        let mac = secrets.mac(key, &names).ok()?;
        (mac != recorded).then(|| {
            let names = quoted(names.iter().map(SecretName::as_str));
            difference(Part::Secrets, format!("the release's values of {names}"), "other values")
        })
    }

    /// The value of a secret as the container has it, under whatever variable it stands.
    fn value<'a>(&self, secret: &SecretName, actual: &BTreeMap<&str, &'a str>) -> Option<&'a str> {
        let env = &self.service.container_spec.env;
        let variable = env.iter().find(|(_, word)| matches!(word, Word::Secret(name) if name == secret))?.0;
        actual.get(variable.as_str()).copied()
    }

    fn labels(&self, recorded: Option<&str>) -> Option<Difference> {
        let spec = &self.service.container_spec;
        let digest = self.service.spec.to_string();
        let address = spec.address.map(|address| address.to_string());
        let own = [(LABEL_SPEC, Some(digest.as_str())), (LABEL_ADDRESS, address.as_deref()), (LABEL_SECRETS, recorded)];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let wanted = spec.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(own);
        let wrong: BTreeSet<&str> =
            wanted.filter(|(name, value)| self.inspect.label(name) != Some(value)).map(|(name, _)| name).collect();
        (!wrong.is_empty())
            .then(|| difference(Part::Labels, "the release's labels", format!("another {}", quoted(wrong))))
    }

    fn mounts(&self) -> Option<Difference> {
        let spec = &self.service.container_spec;
        // Engines list what lies in memory in different places, or not at all.
        let on_disk = spec.mounts.iter().filter(|mount| mount.source != MountSource::Tmpfs);
        let expected: BTreeSet<String> = on_disk.map(|mount| wanted_mount(self.place, mount)).collect();
        let found: BTreeSet<String> = self.made.mounts.iter().filter_map(actual_mount).collect();
        (expected != found).then(|| difference(Part::Mounts, list(&expected), list(&found)))
    }

    fn settings(&self) -> Option<Difference> {
        let spec = &self.service.container_spec;
        let (made, image) = (self.made, self.image);
        let entrypoint = spec.entrypoint.clone().unwrap_or_else(|| image.entrypoint());
        // With an entry point of its own, a container has none of the image's arguments.
        let command = match (&spec.command, &spec.entrypoint) {
            (Some(command), _) => command.clone(),
            (None, None) => image.command(),
            (None, Some(_)) => made.command(),
        };
        let user = spec.user.clone().unwrap_or_else(|| image.user());
        let restart = if spec.restart { self.restart } else { "no" };
        let publish: BTreeSet<String> =
            spec.publish.iter().map(|port| format!("{}->{}", port.host_port, port.container_port)).collect();
        let actual_restart = if made.restart().is_empty() { "no" } else { made.restart() };
        let pairs = [
            ("entry point", entrypoint, made.entrypoint()),
            ("arguments", command.join(" "), made.command().join(" ")),
            ("user", user, made.user()),
            ("restart policy", restart.to_owned(), actual_restart.to_owned()),
            ("ports", list(&publish), list(&made.ports())),
        ];
        let wrong: Vec<_> = pairs.into_iter().filter(|(_, expected, found)| expected != found).collect();
        let text = |pick: &dyn Fn(&(&str, String, String)) -> String| {
            let texts: Vec<_> = wrong.iter().map(|pair| format!("{} `{}`", pair.0, pick(pair))).collect();
            texts.join(", ")
        };
        (!wrong.is_empty())
            .then(|| difference(Part::Settings, text(&|pair| pair.1.clone()), text(&|pair| pair.2.clone())))
    }

    fn network(&self) -> Option<Difference> {
        // What does not run may have given its address back.
        if !self.inspect.running() {
            return None;
        }
        let spec = &self.service.container_spec;
        let networks = self.inspect.networks();
        let shown = |name: &str, address: Option<std::net::Ipv4Addr>| match address {
            Some(address) => format!("{address} in `{name}`"),
            None => format!("in `{name}`"),
        };
        let expected = BTreeSet::from([shown(&spec.network, self.service.address)]);
        let found: BTreeSet<String> = networks
            .iter()
            .map(|name| shown(name, self.inspect.address(name).filter(|_| name == NETWORK || *name == spec.network)))
            .collect();
        (expected != found).then(|| difference(Part::Network, list(&expected), list(&found)))
    }
}

fn list(items: &BTreeSet<String>) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().cloned().collect::<Vec<_>>().join(", ")
}

fn wanted_mount(place: &Place, mount: &Mount) -> String {
    let source = match &mount.source {
        MountSource::Volume(name) => format!("volume {name}"),
        MountSource::Bind(path) => place.locate(path).display().to_string(),
        MountSource::Tmpfs => "memory".to_owned(),
    };
    format!("{source} at {}{}", mount.target, if mount.read_only { " (read only)" } else { "" })
}

/// A mount as the engine tells it; none for what nobody asked for by name: memory, and volumes that an image declares.
fn actual_mount(mount: &MadeMount) -> Option<String> {
    let nameless = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let source = match mount.kind.as_str() {
        "volume" if nameless(&mount.name) => return None,
        "volume" => format!("volume {}", mount.name),
        "bind" => mount.source.clone(),
        _ => return None,
    };
    Some(format!("{source} at {}{}", mount.destination, if mount.writable { "" } else { " (read only)" }))
}

#[cfg(test)]
mod tests {
    use jiji_model::digest::Digest;
    use serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    /// The service of the fixture.
    fn planned() -> PlannedService {
        let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/v2/release.json")).expect("read");
        let release: jiji_model::transaction::Release = serde_json::from_slice(&bytes).expect("a release");
        release.services.values().next().map(|service| PlannedService::clone(service)).expect("a service")
    }

    /// What an engine says of its container as it was made.
    fn container(service: &PlannedService) -> Value {
        json!({
            "Id": "1", "Name": format!("/{}", service.container), "Image": service.image.config.digest,
            "State": {"Status": "running", "ExitCode": 0, "OOMKilled": false, "Pid": 7},
            "Config": {
                "Env": ["PATH=/bin", "GREETING=hello", "HELLO_KEY=s3cr3t", "PORT=8080", "HOSTNAME=x"],
                "Cmd": ["serve"], "Entrypoint": null, "User": "65534",
                "Labels": {
                    "jiji.scope": "shop", "jiji.service": "web", "jiji.spec": service.spec, "jiji.address": service.address,
                },
            },
            "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}, "PortBindings": {}},
            "Mounts": [],
            "NetworkSettings": {"Networks": {"jiji": {"IPAddress": service.address}}},
        })
    }

    fn image() -> MadeImage {
        let config = json!({"Env": ["PATH=/bin", "PORT=8080"], "Cmd": ["serve"], "Entrypoint": null, "User": "65534"});
        MadeImage::deserialize(&json!({ "Config": config })).expect("an image")
    }

    /// The parts that differ once the container was changed.
    fn parts(change: impl Fn(&mut Value)) -> Vec<(Part, String)> {
        let service = planned();
        let mut value = container(&service);
        change(&mut value);
        let inspect = ContainerInspect::deserialize(&value).expect("a container");
        let made = Made::deserialize(&value).expect("a container");
        let place = Place::new("/x");
        let restart = restart_policy(jiji_model::project::Engine::Docker);
        let image = image();
        let seen = Seen { place: &place, service: &service, inspect: &inspect, made: &made, image: &image, restart };
        let key = [7; 32];
        let mut secrets = Secrets::default();
        let name = SecretName::new("HELLO_KEY").expect("a name");
        secrets.add(BTreeMap::from([(name.clone(), Secret::new("s3cr3t"))]));
        let names = [name];
        let recorded = secrets.mac(&key, &names).expect("known");
        let all = [
            seen.state(),
            seen.image(),
            seen.env(),
            seen.secrets(&key, Some(&recorded)),
            seen.labels(None),
            seen.mounts(),
            seen.settings(),
            seen.network(),
        ];
        let all: Vec<Difference> = all.into_iter().flatten().collect();
        assert!(!serde_json::to_string(&all).expect("JSON").contains("s3cr3t"), "no value is told");
        all.into_iter().map(|difference| (difference.part, difference.found)).collect()
    }

    #[test]
    fn a_container_as_it_was_made_differs_in_nothing() {
        assert_eq!(parts(|_| {}), []);
        // Podman 4 says its entry point as one text, and the engine's own variables are nobody's doing.
        assert_eq!(parts(|value| value["Config"]["Entrypoint"] = json!("")), []);
        assert_eq!(
            parts(|value| value["Config"]["Env"].as_array_mut().expect("a list").push(json!("container=podman"))),
            []
        );
    }

    /// A part, what is said of it, and what is done to what the engine says.
    type Tampering<'a> = (Part, &'a str, &'a dyn Fn(&mut Value));

    #[test]
    fn each_part_that_was_changed_is_named_without_a_value() {
        let push = |list: &mut Value, item: Value| list.as_array_mut().expect("a list").push(item);
        let cases: [Tampering<'_>; 12] = [
            (Part::State, "exited (137)", &|value| value["State"] = json!({"Status": "exited", "ExitCode": 137})),
            (Part::State, "paused", &|value| value["State"]["Status"] = json!("paused")),
            (Part::Image, "image ", &|value| value["Image"] = json!(Digest::of("other"))),
            (Part::Env, "also `DEBUG`", &|value| push(&mut value["Config"]["Env"], json!("DEBUG=1"))),
            (Part::Env, "other value of `GREETING`", &|value| value["Config"]["Env"][1] = json!("GREETING=s3cr3t")),
            (Part::Env, "without `PORT`", &|value| value["Config"]["Env"][3] = json!("HOME=/")),
            (Part::Secrets, "other values", &|value| value["Config"]["Env"][2] = json!("HELLO_KEY=other")),
            (Part::Labels, "another `jiji.spec`", &|value| value["Config"]["Labels"]["jiji.spec"] = json!("x")),
            (Part::Mounts, "/etc at /x", &|value| {
                push(&mut value["Mounts"], json!({"Type": "bind", "Source": "/etc", "Destination": "/x", "RW": true}));
            }),
            (Part::Settings, "arguments `sleep 1`", &|value| value["Config"]["Cmd"] = json!(["sleep", "1"])),
            (Part::Settings, "ports `80->8080`", &|value| {
                value["HostConfig"]["PortBindings"] = json!({"8080/tcp": [{"HostIp": "", "HostPort": "80"}]});
            }),
            (Part::Network, "10.210.0.150 in `jiji`", &|value| {
                value["NetworkSettings"]["Networks"]["jiji"]["IPAddress"] = json!("10.210.0.150");
            }),
        ];
        for (part, found, change) in cases {
            let parts = parts(change);
            assert!(parts.len() == 1 && parts[0].0 == part && parts[0].1.starts_with(found), "{part:?}: {parts:?}");
        }
    }

    #[test]
    fn volumes_that_an_image_declares_and_memory_are_no_difference() {
        let change = |value: &mut Value| {
            value["Mounts"] = json!([
                {"Type": "volume", "Name": "a".repeat(64), "Destination": "/data", "RW": true},
                {"Type": "tmpfs", "Destination": "/tmp", "RW": true},
            ]);
        };
        assert_eq!(parts(change), []);
    }
}
