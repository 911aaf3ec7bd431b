//! The one table of keys that `deploy.yml` may hold: what is checked, what the JSON Schema says and what the reference page says.
//!
//! Names are those of the seed system, so that its files need few changes.

use super::shape::{Field, Object, Shape};

const PORT: Shape = Shape::Integer { least: 1, most: 65535 };
const TEXTS: Shape = Shape::List(&Shape::Text);
const TEXT_OR_TEXTS: Shape = Shape::Either(&[Shape::Text, TEXTS]);
const MILLISECONDS: Shape = Shape::Duration { seconds: false };
const SECONDS: Shape = Shape::Duration { seconds: true };
const ENGINE: Shape = Shape::Word(&["docker", "podman"]);
const COMPRESSION: Shape = Shape::Word(&["gzip", "zstd"]);

const fn field(name: &'static str, shape: Shape, doc: &'static str) -> Field {
    Field { name, shape, required: false, doc, default: None, also: &[] }
}

impl Field {
    const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    const fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }
}

/// The whole file.
pub(super) static PROJECT: Object = Object {
    extensions: true,
    fields: &[
        field("project", Shape::Text, "the project's name, under which hosts keep its records")
            .required()
            .also(&["name"]),
        field("builder", Shape::Object(&BUILDER), "how images are built and where they are kept"),
        field("ssh", Shape::Object(&SSH), "how servers are reached, below the user's own ssh configuration"),
        field(
            "servers",
            Shape::Map { keys: "servers by name", values: &Shape::Object(&SERVER) },
            "the servers, by the name that services use",
        )
        .required()
        .also(&["hosts"]),
        field(
            "services",
            Shape::Map { keys: "services by name", values: &Shape::Object(&SERVICE) },
            "the services: one image each, run once on each of its hosts",
        )
        .required(),
        field(
            "environment",
            Shape::Object(&ENVIRONMENT),
            "environment variables of every service; a service's own win",
        )
        .also(&["env"]),
        field("rollout", Shape::Object(&ROLLOUT), "how a change goes over the servers")
            .also(&["boot", "deploy", "update", "strategy"]),
        field("plugins", Shape::Object(&PLUGINS), "which plugin fills each role"),
        field(
            "network",
            Shape::Object(&NETWORK),
            "a private network between the servers and their containers, which `jiji network setup` makes (docs/design/network.md)",
        ),
    ],
};

static NETWORK: Object = Object {
    extensions: false,
    fields: &[
        field("enabled", Shape::Bool, "whether there is one").default("true, where this section is"),
        field("plugin", Shape::Text, "an embedded plugin, or one that `jiji.lock` pins").default("`mesh-wireguard`"),
        field(
            "settings",
            Shape::Map { keys: "settings", values: &Shape::Anything },
            "its settings, checked by the plugin itself; those of `mesh-wireguard` are `port` (51820), `mtu` (1420) and `keepalive` (25, in seconds)",
        ),
    ],
};

static ROLLOUT: Object = Object {
    extensions: false,
    fields: &[
        field(
            "max_parallel",
            Shape::Integer { least: 1, most: 1000 },
            "how many servers are moved to the new version at once; every server is prepared before any is moved",
        )
        .default("all")
        .also(&["limit", "parallelism", "batch"]),
        field("canary", TEXT_OR_TEXTS, "the servers that are moved before all others").also(&["canaries"]),
        field("wait", MILLISECONDS, "the time between two batches").default("none").also(&["stagger", "delay"]),
        field(
            "hold",
            MILLISECONDS,
            "how long the new version is watched once all servers are moved, with the old one standing by: if it does not stay healthy, \
             all are moved back",
        )
        .default("none")
        .also(&["monitor", "min_healthy_time"]),
    ],
};

static BUILDER: Object = Object {
    extensions: false,
    fields: &[
        field("engine", ENGINE, "the container engine on servers that have both"),
        field("registry", Shape::Object(&REGISTRY), "a registry to push to; without one, images go to the hosts only"),
        field(
            "mirrors",
            Shape::Map { keys: "mirrors by registry", values: &TEXT_OR_TEXTS },
            "where a registry's content may be had from instead, tried in order before the registry itself",
        ),
    ],
};

static REGISTRY: Object = Object {
    extensions: false,
    fields: &[
        field(
            "server",
            Shape::Text,
            "`HOST[:PORT][/PATH]`; `http://` before it for a registry without TLS, which is the default on loopback",
        )
        .required()
        .also(&["host", "url"]),
        field("username", Shape::Text, "the user name").also(&["user"]),
        field("password", Shape::Text, "the name of the secret that holds the password: `NAME` or `${NAME}`"),
    ],
};

static SSH: Object = Object {
    extensions: false,
    fields: &[
        field("user", Shape::Text, "the user name").also(&["username"]),
        field("port", PORT, "the port"),
        field("proxy", Shape::Text, "jump hosts, `[USER@]HOST[:PORT]`, several with commas between")
            .also(&["proxy_jump"]),
        field("keys", TEXT_OR_TEXTS, "identity files").also(&["key", "key_path"]),
        field(
            "config",
            Shape::Text,
            "an ssh configuration file to use instead of the user's; it may say where and as whom to connect, and run nothing (docs/design/hosts.md)",
        ),
        field("connect_timeout", SECONDS, "how long a connection may take; a bare number means seconds"),
    ],
};

static SERVER: Object = Object {
    extensions: false,
    fields: &[
        field(
            "host",
            Shape::Text,
            "what ssh connects to: an address, a name, or `localhost` for this machine without ssh",
        )
        .required()
        .also(&["address", "ip", "hostname"]),
        field("user", Shape::Text, "the user name, before `ssh.user`").also(&["username"]),
        field("port", PORT, "the port, before `ssh.port`"),
        field("engine", ENGINE, "the container engine, before `builder.engine`"),
        field(
            "rootless",
            Shape::Bool,
            "whether everything there is done as `user`, who is not root and needs no sudo, with a Podman of their own; for a project's only \
             server (docs/design/hosts.md)",
        )
        .default("false"),
        field(
            "endpoint",
            Shape::Text,
            "where other servers reach it in the private network, `HOST[:PORT]`, where that is not `host` and the network's port",
        )
        .default("`host`"),
    ],
};

static SERVICE: Object = Object {
    extensions: false,
    fields: &[
        field("image", Shape::Text, "a registry's image, by tag or digest; a tag is resolved once, into `jiji.lock`"),
        field(
            "build",
            Shape::Either(&[Shape::Text, Shape::Object(&BUILD)]),
            "what to build: a context directory, or a map that says more",
        ),
        field("hosts", TEXT_OR_TEXTS, "the servers it runs on").required().also(&["servers", "host", "server"]),
        field("environment", Shape::Object(&ENVIRONMENT), "environment variables").also(&["env"]),
        field(
            "command",
            TEXT_OR_TEXTS,
            "arguments instead of the image's command; a text is split at spaces, no shell reads it",
        )
        .also(&["cmd"]),
        field("volumes", TEXTS, "`NAME:/PATH`, `/HOST/PATH:/PATH` or `tmpfs:/PATH`, each with `:ro` to forbid writing"),
        field("proxy", Shape::Object(&PROXY), "how it is reached from outside"),
        field("healthcheck", Shape::Object(&HEALTHCHECK), "how its health is told, for a service without a proxy")
            .also(&["health_check", "health"]),
        field(
            "retain",
            Shape::Integer { least: 1, most: 100 },
            "how many releases stay on each host, the running one counted",
        )
        .default("3"),
        field("stop_timeout", SECONDS, "how long it may take to stop after SIGTERM").default("10s"),
        field("drain_timeout", SECONDS, "how long requests under way get to end after the proxy has moved on")
            .default("30s"),
    ],
};

static BUILD: Object = Object {
    extensions: false,
    fields: &[
        field("context", Shape::Text, "the context directory, relative to the project's root").default("."),
        field("dockerfile", Shape::Text, "the Dockerfile, relative to the context")
            .default("Dockerfile")
            .also(&["file"]),
        field("recipe", Shape::Text, "the recipe that takes a Dockerfile's place, relative to the context"),
        field("args", Shape::Map { keys: "build arguments", values: &Shape::Text }, "build arguments"),
        field("target", Shape::Text, "the stage to build instead of the last"),
        field("secrets", TEXTS, "names of secrets that `RUN --mount=type=secret` may ask for").also(&["secret"]),
        field(
            "contexts",
            Shape::Map { keys: "contexts by name", values: &Shape::Text },
            "what names stand for in FROM, `COPY --from` and `RUN --mount=from=`: a directory of the project, `docker-image://REFERENCE` or \
             `oci-layout://DIRECTORY[:TAG]`",
        )
        .also(&["additional_contexts", "build_contexts"]),
        field("ssh", TEXTS, "ids of agents that `RUN --mount=type=ssh` may ask to sign; the agent is that of `SSH_AUTH_SOCK`"),
        field(
            "compression",
            COMPRESSION,
            "how layers that are made are compressed; zstd is smaller and faster, and Docker reads it from 23 on, Podman always",
        )
        .default("gzip"),
    ],
};

static ENVIRONMENT: Object = Object {
    extensions: false,
    fields: &[
        field("clear", Shape::Map { keys: "variables", values: &Shape::Text }, "values that anybody may see"),
        field("secrets", TEXTS, "names of secrets; each becomes the variable of that name").also(&["secret"]),
    ],
};

static PROXY: Object = Object {
    extensions: false,
    fields: &[
        field("app_port", PORT, "the port the application listens on in its container").required().also(&["port"]),
        field("host", Shape::Text, "the host name that is routed to it"),
        field("hosts", TEXTS, "several host names; without any, all that no other service takes"),
        field("ssl", Shape::Bool, "whether the proxy speaks TLS for these hosts").default("false").also(&["tls"]),
        field(
            "certificate",
            Shape::Object(&CERTIFICATE),
            "the certificate for it, as names of secrets; else the proxy gets one by itself",
        )
        .also(&["cert"]),
        field("path_prefix", Shape::Text, "the path prefix that is routed to it").default("/").also(&["path"]),
        field(
            "healthcheck",
            Shape::Object(&HEALTHCHECK),
            "how its health is told; without it, `GET /up` on `app_port` must answer 200 to 299",
        )
        .also(&["health_check", "health"]),
    ],
};

static CERTIFICATE: Object = Object {
    extensions: false,
    fields: &[
        field(
            "chain",
            Shape::Text,
            "the secret that holds the certificate and those that lead to its authority, as PEM",
        )
        .required()
        .also(&["certificate_pem", "cert"]),
        field("key", Shape::Text, "the secret that holds its private key, as PEM")
            .required()
            .also(&["private_key_pem", "private_key"]),
    ],
};

static HEALTHCHECK: Object = Object {
    extensions: false,
    fields: &[
        field("path", Shape::Text, "the path that must answer `GET` with 200 to 299"),
        field("port", PORT, "the port in the container; alone, that it takes a connection is enough")
            .default("`app_port`"),
        field("cmd", TEXT_OR_TEXTS, "a command in the container that must exit with 0; a text is split at spaces")
            .also(&["command"]),
        field("interval", MILLISECONDS, "the time between two probes").default("500ms"),
        field("timeout", MILLISECONDS, "how long one probe may take").default("5s"),
        field("deploy_timeout", MILLISECONDS, "the time from the container's start until it must be healthy")
            .default("30s"),
    ],
};

static PLUGINS: Object = Object {
    extensions: false,
    fields: &[
        field("proxy", Shape::Object(&PLUGIN), "the proxy's plugin").default("`proxy-kamal`"),
        field("health", Shape::Object(&PLUGIN), "the health judge's plugin").default("`health-probe`"),
    ],
};

static PLUGIN: Object = Object {
    extensions: false,
    fields: &[
        field("name", Shape::Text, "an embedded plugin, or one that `jiji.lock` pins"),
        field(
            "settings",
            Shape::Map { keys: "settings", values: &Shape::Anything },
            "its settings, checked by the plugin itself",
        ),
    ],
};
