//! The command line that runs a container.
//!
//! No secret is an argument. A variable whose value is a secret is passed as `--env NAME`, and the engine's command line takes the value
//! from its own environment: that holds any text, line breaks too, which an environment file does not. A variable that the command
//! line itself heeds (`PATH`, `DOCKER_HOST`) goes through an environment file on its standard input instead.

use std::collections::BTreeMap;

use jiji_model::digest::Digest;
use jiji_model::plan::{ContainerSpec, LABEL_ADDRESS, LABEL_SECRETS, LABEL_SPEC};
use jiji_model::project::{Engine as Kind, Mount, MountSource};
use jiji_model::secret::Secret;

use super::Engine;
use crate::command::Command;

/// What is put in for a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Anybody may see it.
    Clear(String),
    /// Nobody may.
    Secret(Secret),
}

/// Why a specification cannot be a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The engines' `--mount` is a list with commas.
    #[error("mount `{path}`: a path with a comma or a quote cannot be mounted")]
    Comma {
        /// The path.
        path: String,
    },
    /// An environment file holds no line break.
    #[error("set `{name}`: a secret with a line break cannot be a variable that the engine itself heeds")]
    Line {
        /// The variable.
        name: String,
    },
    /// An environment holds no NUL.
    #[error("set `{name}`: the value holds a NUL")]
    Nul {
        /// The variable.
        name: String,
    },
}

/// The labels of a container: the specification's, and what the executor adds.
pub fn labels(spec: &ContainerSpec, digest: &Digest, secrets: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::clone(&spec.labels);
    labels.insert(LABEL_SPEC.to_owned(), digest.to_string());
    if let Some(address) = spec.address {
        labels.insert(LABEL_ADDRESS.to_owned(), address.to_string());
    }
    if let Some(mac) = secrets {
        labels.insert(LABEL_SECRETS.to_owned(), mac.to_owned());
    }
    labels
}

/// The hardware address that belongs to an address, as Docker makes it by itself. Podman draws a random one for each container: who spoke
/// with the last holder of the address would then send to nobody until its neighbour table forgets.
fn mac(address: std::net::Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// How a container that is to run for ever is made to run again. Docker's daemon starts it when it starts itself. Podman has none, and its
/// `podman-restart.service`, which starts containers when the machine boots, takes those alone that are to run `always` (podman-start(1)).
pub fn restart_policy(kind: Kind) -> &'static str {
    match kind {
        Kind::Docker => "unless-stopped",
        Kind::Podman => "always",
    }
}

/// The command that runs `spec` from `image`, a name or id that the engine knows.
///
/// # Errors
/// [`SpecError`].
pub fn command(
    engine: &Engine,
    spec: &ContainerSpec,
    image: &str,
    env: &BTreeMap<String, Value>,
    labels: &BTreeMap<String, String>,
) -> Result<Command, SpecError> {
    let mut args: Vec<String> = vec!["run".into(), "--detach".into(), "--pull".into(), "never".into()];
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("--name", spec.name.to_string());
    option("--network", spec.network.clone());
    if let Some(address) = spec.address {
        option("--ip", address.to_string());
        option("--mac-address", mac(address));
    }
    if spec.restart {
        option("--restart", restart_policy(engine.kind).to_owned());
    }
    option("--stop-timeout", spec.stop_timeout_s.to_string());
    if engine.bounds_logs {
        // A log that nothing bounds fills the disk one day: Docker's default is no bound.
        option("--log-opt", "max-size=10m".to_owned());
        option("--log-opt", "max-file=3".to_owned());
    }
    for (name, value) in labels {
        option("--label", format!("{name}={value}"));
    }
    for mount in &spec.mounts {
        option("--mount", mount_option(mount)?);
    }
    for publish in &spec.publish {
        let address = publish.address.map_or_else(String::new, |address| format!("{address}:"));
        option("--publish", format!("{address}{}:{}", publish.host_port, publish.container_port));
    }
    if let Some(entrypoint) = &spec.entrypoint {
        option("--entrypoint", entrypoint.clone());
    }
    if let Some(user) = &spec.user {
        option("--user", user.clone());
    }
    let mut inherited: Vec<(&str, &str)> = Vec::new();
    let mut file = String::new();
    for (name, value) in env {
        match value {
            Value::Clear(value) => option("--env", format!("{name}={value}")),
            Value::Secret(secret) if secret.reveal().contains('\0') => {
                return Err(SpecError::Nul { name: name.clone() });
            }
            Value::Secret(secret) if !heeded(name) => {
                option("--env", name.clone());
                inherited.push((name, secret.reveal()));
            }
            Value::Secret(secret) if secret.reveal().contains(['\n', '\r']) => {
                return Err(SpecError::Line { name: name.clone() });
            }
            Value::Secret(secret) => file.push_str(&format!("{name}={}\n", secret.reveal())),
        }
    }
    if !file.is_empty() {
        option("--env-file", "/dev/stdin".to_owned());
    }
    args.push(image.to_owned());
    args.extend(spec.command.iter().flatten().cloned());
    let command = engine.command(args).stdin(file.into_bytes());
    Ok(inherited.into_iter().fold(command, |command, (name, value)| command.env(name, value)))
}

/// Whether the engine's own command line, or the loader that starts it, acts on this variable.
fn heeded(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "TMPDIR",
        "TMP",
        "TZ",
        "LANG",
        "NOTIFY_SOCKET",
        "HOSTALIASES",
        "REGISTRY_AUTH_FILE",
        "ALL_PROXY",
    ];
    const PREFIXES: [&str; 18] = [
        "DOCKER_",
        "BUILDX_",
        "BUILDKIT_",
        "COMPOSE_",
        "PODMAN_",
        "CONTAINER",
        "_CONTAINERS_",
        "STORAGE_",
        "XDG_",
        "LD_",
        "LC_",
        "GO",
        "SSL_CERT",
        "SSH_",
        "LISTEN_",
        "NETAVARK_",
        "CNI_",
        "OTEL_",
    ];
    NAMES.contains(&name)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.to_ascii_uppercase().ends_with("_PROXY")
}

fn mount_option(mount: &Mount) -> Result<String, SpecError> {
    let plain = |path: &str| {
        if path.contains([',', '"']) { Err(SpecError::Comma { path: path.to_owned() }) } else { Ok(path.to_owned()) }
    };
    let target = plain(mount.target.as_str())?;
    let read_only = if mount.read_only { ",readonly" } else { "" };
    Ok(match &mount.source {
        MountSource::Volume(name) => format!("type=volume,source={},target={target}{read_only}", plain(name)?),
        MountSource::Bind(path) => format!("type=bind,source={},target={target}{read_only}", plain(path.as_str())?),
        MountSource::Tmpfs => format!("type=tmpfs,target={target}"),
    })
}

/// The words of `network create`.
pub fn network_create(engine: &Engine, name: &str, subnet: &str, gateway: std::net::Ipv4Addr) -> Vec<String> {
    let gateway = gateway.to_string();
    let mut args = vec!["network", "create", "--driver", "bridge", "--subnet", subnet, "--gateway", &gateway];
    args.extend(["--label", "jiji.scope=*"]);
    match engine.kind {
        // Docker 28 and later drop what is routed to containers unless their bridge trusts the interface it comes from.
        Kind::Docker if engine.at_least(28) => {
            args.extend(["--opt", "com.docker.network.bridge.trusted_host_interfaces=jiji0"]);
        }
        Kind::Docker => {}
        // Names are jiji's to serve, on an address that Podman's own name server would take.
        Kind::Podman => args.push("--disable-dns"),
    }
    args.push(name);
    args.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use jiji_model::image::ImageId;
    use jiji_model::name::{AbsPath, ContainerName};
    use jiji_model::plan::{ContainerImage, Publish, Word};

    use super::*;

    fn engine(kind: Kind, version: &str) -> Engine {
        Engine {
            kind,
            version: version.to_owned(),
            by_manifest: false,
            bounds_logs: kind == Kind::Docker,
            data: "/".into(),
            rootless: false,
            program: "/usr/bin/engine".into(),
            socket: None,
        }
    }

    fn spec() -> ContainerSpec {
        let digest = Digest::of("x");
        let path = |text: &str| AbsPath::new(text).expect("a path");
        ContainerSpec {
            name: ContainerName::new("shop-web-1").expect("a name"),
            image: ContainerImage::Seeded {
                id: ImageId { manifest: digest, config: digest },
                repository: "shop/web".into(),
            },
            network: "jiji".into(),
            address: Some([10, 210, 0, 140].into()),
            env: BTreeMap::from([("A".into(), Word::lit("b c"))]).into(),
            labels: BTreeMap::from([("jiji.scope".into(), "shop".into())]).into(),
            mounts: vec![Mount { source: MountSource::Bind(path("/srv/a b")), target: path("/data"), read_only: true }],
            publish: vec![Publish { address: Some([127, 0, 0, 1].into()), host_port: 8080, container_port: 80 }],
            entrypoint: None,
            command: Some(vec!["serve".into(), "--all; rm".into()]),
            user: None,
            restart: true,
            stop_timeout_s: 10,
        }
    }

    #[test]
    fn what_runs_for_ever_runs_again_after_a_boot_on_both_engines() {
        let policy = |engine: &Engine| {
            let command = command(engine, &spec(), "image", &BTreeMap::new(), &BTreeMap::new()).expect("a command");
            format!("{command:?}")
                .split(r#""--restart", ""#)
                .nth(1)
                .expect("a policy")
                .split('"')
                .next()
                .map(str::to_owned)
        };
        assert_eq!(policy(&engine(Kind::Docker, "20.10.24")).as_deref(), Some("unless-stopped"));
        assert_eq!(
            policy(&engine(Kind::Podman, "4.3.1")).as_deref(),
            Some("always"),
            "podman-restart.service looks for nothing else"
        );
    }

    #[test]
    fn a_specification_becomes_one_word_per_argument_and_no_secret_is_one_of_them() {
        let env = BTreeMap::from([
            ("A".to_owned(), Value::Clear("b c".to_owned())),
            ("KEY".to_owned(), Value::Secret(Secret::new("hunter2\nline"))),
            ("DOCKER_HOST".to_owned(), Value::Secret(Secret::new("hunter3"))),
        ]);
        let labels = BTreeMap::from([("l".to_owned(), "v".to_owned())]);
        let command = command(&engine(Kind::Docker, "20.10.24"), &spec(), "jiji.local/shop/web:1", &env, &labels);
        let text = format!("{:?}", command.expect("a command"));
        assert_eq!(
            text,
            r#""/usr/bin/engine" ["run", "--detach", "--pull", "never", "--name", "shop-web-1", "--network", "jiji", "--ip", "10.210.0.140", "--mac-address", "02:42:0a:d2:00:8c", "--restart", "unless-stopped", "--stop-timeout", "10", "--log-opt", "max-size=10m", "--log-opt", "max-file=3", "--label", "l=v", "--mount", "type=bind,source=/srv/a b,target=/data,readonly", "--publish", "127.0.0.1:8080:80", "--env", "A=b c", "--env", "KEY", "--env-file", "/dev/stdin", "jiji.local/shop/web:1", "serve", "--all; rm"]"#
        );
    }

    #[test]
    fn what_cannot_be_said_on_a_command_line_is_refused() {
        let engine = engine(Kind::Podman, "4.3.1");
        let env = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), Value::Secret(Secret::new(value)))]);
        let run = |spec: &ContainerSpec, env| command(&engine, spec, "x", &env, &BTreeMap::new()).map(drop);
        assert_eq!(run(&spec(), env("PATH", "a\nb")), Err(SpecError::Line { name: "PATH".into() }));
        assert_eq!(run(&spec(), env("A", "\0")), Err(SpecError::Nul { name: "A".into() }));
        let mut comma = spec();
        comma.mounts[0].target = AbsPath::new("/a,readonly").expect("a path");
        assert_eq!(run(&comma, BTreeMap::new()), Err(SpecError::Comma { path: "/a,readonly".into() }));
    }

    #[test]
    fn dockers_bridge_trusts_the_mesh_from_version_28_on() {
        let words = |kind, version| {
            network_create(&engine(kind, version), "jiji", "10.210.0.128/25", [10, 210, 0, 129].into()).join(" ")
        };
        assert!(words(Kind::Docker, "28.2.2").contains("trusted_host_interfaces=jiji0"));
        assert!(!words(Kind::Docker, "20.10.24+dfsg1").contains("--opt"));
        assert!(words(Kind::Podman, "4.3.1").contains("--disable-dns"));
    }
}
