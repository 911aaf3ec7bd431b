use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Every key once. `reference.md` and the schema come from the table; this comes from a user.
const EVERYTHING: &str = r#"
project: shop
x-check: &check
  interval: 1s
  timeout: 2s
builder:
  engine: podman
  registry:
    server: ghcr.io
    username: Acme
    password: REGISTRY_PASSWORD
  mirrors:
    docker.io: http://10.0.0.5:5000
    quay.io: [mirror.example.com, "localhost:5000"]
ssh:
  user: deploy
  port: 2222
  proxy: ops@bastion:22,jump
  keys: [~/.ssh/id_ed25519]
  config: ssh_config
  connect_timeout: 10
servers:
  fra1: { host: 203.0.113.9, engine: docker, rootless: false, endpoint: "198.51.100.9:4000" }
  fra2:
    host: fra2.example.com
    user: root
    port: 22
environment:
  clear: { TZ: UTC, LEVEL: info }
  secrets: [SENTRY_DSN]
services:
  web:
    build: { context: ., dockerfile: deploy/Dockerfile, target: prod, args: { VERSION: 1.10 }, secrets: [NPM_TOKEN], contexts: { shared: libs/shared, base: docker-image://debian:12 }, ssh: [default] }
    hosts: [fra1, fra2]
    environment:
      clear: { PORT: 3000, LEVEL: "${LEVEL:-debug}", DEBUG: false }
      secrets: [DATABASE_URL]
    command: bin/server --port 3000
    volumes: ["data:/srv/data", "/etc/shop:/etc/shop:ro", "tmpfs:/tmp"]
    proxy:
      app_port: 3000
      hosts: [shop.example.com, "*.shop.example.com"]
      ssl: true
      path_prefix: /app/
      healthcheck: { <<: *check, path: /healthz, deploy_timeout: 1m }
    retain: 5
    stop_timeout: 20s
    drain_timeout: 45
  worker:
    image: ghcr.io/acme/worker:1.2
    hosts: fra1
    command: [bin/worker, "--queue", "a b"]
    healthcheck: { cmd: [bin/alive] }
rollout: { max_parallel: 2, canary: fra2, wait: 10s, hold: 1m }
plugins:
  proxy: { name: proxy-caddy, settings: { admin: 2019, ratio: 0.5, on: true, empty: , list: [a] } }
  health: { name: health-probe }
network: { enabled: true, plugin: mesh-wireguard, settings: { mtu: 1380 } }
"#;

const SMALL: &str = "project: hello\nservers:\n  one: { host: localhost }\nservices:\n  web:\n    build: .\n    hosts: [one]\n    proxy: { app_port: 8080 }\n";

fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.to_owned() }
}

fn nothing(_: &str) -> Option<String> {
    None
}

fn load_one(text: &str) -> Result<Loaded, ConfigErrors> {
    load(vec![source(FILE, text)], &nothing, None)
}

/// All errors as a person reads them.
fn told(result: Result<Loaded, ConfigErrors>) -> String {
    let errors = result.expect_err("the configuration holds errors");
    let mut text = String::new();
    for error in errors.errors() {
        text.push_str(&format!("error: failed to {error}\n"));
        if let Some(place) = &error.place {
            text.push_str(&format!("{}\n", place.excerpt()));
        }
        if let Some(hint) = error.hint() {
            text.push_str(&format!("hint: {hint}\n"));
        }
    }
    text
}

#[test]
fn a_file_with_every_key_is_read_whole() {
    let loaded = load_one(EVERYTHING).unwrap_or_else(|_| panic!("{}", told(load_one(EVERYTHING))));
    insta::assert_snapshot!(serde_json::to_string_pretty(&loaded.project).expect("a project is JSON"));
    let asked: Vec<String> =
        loaded.secrets.iter().map(|asked| format!("{} {} {}", asked.name, asked.by, asked.place)).collect();
    insta::assert_debug_snapshot!(asked, @r#"
    [
        "REGISTRY_PASSWORD builder.registry.password .jiji/deploy.yml:11:15",
        "SENTRY_DSN environment.secrets .jiji/deploy.yml:30:13",
        "NPM_TOKEN services.web.build.secrets .jiji/deploy.yml:33:106",
        "DATABASE_URL services.web.environment.secrets .jiji/deploy.yml:37:17",
    ]
    "#);
}

#[test]
fn a_small_file_gets_the_defaults() {
    let project = load_one(SMALL).expect("the smallest useful file is right").project;
    insta::assert_snapshot!(serde_json::to_string(&project.services).expect("services are JSON"), @r#"{"web":{"source":{"build":{"context":".","dockerfile":"Dockerfile","args":{},"target":null}},"hosts":["one"],"environment":{"clear":{},"secrets":[]},"command":null,"volumes":[],"proxy":{"app_port":8080,"hosts":[],"path_prefix":"/","ssl":false},"healthcheck":{"check":{"http":{"port":8080,"path":"/up"}},"interval_ms":500,"timeout_ms":5000,"deadline_ms":30000},"retain":3,"stop_timeout":10,"drain_timeout":30}}"#);
    assert!(project.servers.values().all(jiji_model::project::Server::is_local));
}

#[test]
fn a_network_is_there_where_its_section_is_and_nobody_switched_it_off() {
    let with = |section: &str| load_one(&format!("{SMALL}{section}")).map(|loaded| loaded.project.network);
    let chosen = with("network: {}\n").expect("right").expect("it is there");
    assert_eq!(chosen, jiji_model::project::Plugins::default_mesh());
    assert_eq!(with("network: { enabled: false }\n").expect("right"), None);
    assert_eq!(with("").expect("right"), None);
    let wrong = SMALL.replace("host: localhost", "host: h, endpoint: \"h:0\", rootless: true");
    let text = told(load_one(&format!("{wrong}network: {{}}\n")));
    for line in ["`servers.one.endpoint`: `h:0` is no endpoint", "`network`: a private network is root's to make"] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn every_error_is_told_at_once_with_its_line() {
    let text = r#"projct: shop
builder: { engine: lxc }
servers:
  fra1: { host: "-oProxyCommand=x", port: 70000 }
  Fra2: { host: fra2 }
services:
  web:
    image: nginx:1
    build: .
    hosts: [fra1, fra3, fra1]
    proxy: { app_port: abc, ssl: yes, healthcheck: { interval: 2, path: up } }
    volumes: [data]
    command: a | b
    retain: 0
  db:
    hosts: []
    enviroment: { clear: [A] }
    healthcheck: { timeout: 5x }
"#;
    insta::assert_snapshot!(told(load_one(text)), @r#"
    error: failed to read `.jiji/deploy.yml`: unknown key `projct`
     ┌─ .jiji/deploy.yml:1:1
    1│ projct: shop
     │ ^^^^^^
    hint: did you mean `project`?
    error: failed to read `builder.engine`: expected `docker` or `podman`, found `lxc`
     ┌─ .jiji/deploy.yml:2:20
    2│ builder: { engine: lxc }
     │                    ^^^
    error: failed to read `servers.fra1.host`: `-oProxyCommand=x` is no host
     ┌─ .jiji/deploy.yml:4:17
    4│   fra1: { host: "-oProxyCommand=x", port: 70000 }
     │                 ^^^^^^^^^^^^^^^^^^
    hint: expected a name or an address alone; `user` and `port` are keys of their own
    error: failed to read `servers.fra1.port`: expected a whole number from 1 to 65535, found `70000`
     ┌─ .jiji/deploy.yml:4:43
    4│   fra1: { host: "-oProxyCommand=x", port: 70000 }
     │                                           ^^^^^
    error: failed to read `servers.Fra2`: `Fra2` is no server name
     ┌─ .jiji/deploy.yml:5:3
    5│   Fra2: { host: fra2 }
     │   ^^^^
    hint: expected 1 to 63 of a-z, 0-9, `-` and `.`, beginning and ending with a letter or digit
    error: failed to read `services.web.image`: `image` and `build` cannot be together
     ┌─ .jiji/deploy.yml:8:5
    8│     image: nginx:1
     │     ^^^^^
    hint: keep `image` to run what a registry has, `build` to make it
    error: failed to read `services.web.hosts.1`: there is no server `fra3`
      ┌─ .jiji/deploy.yml:10:19
    10│     hosts: [fra1, fra3, fra1]
      │                   ^^^^
    hint: did you mean `fra1`?
    error: failed to read `services.web.hosts.2`: the server `fra1` stands twice
      ┌─ .jiji/deploy.yml:10:25
    10│     hosts: [fra1, fra3, fra1]
      │                         ^^^^
    hint: a service runs once on each of its hosts
    error: failed to read `services.web.proxy.app_port`: expected a whole number from 1 to 65535, found `abc`
      ┌─ .jiji/deploy.yml:11:24
    11│     proxy: { app_port: abc, ssl: yes, healthcheck: { interval: 2, path: up } }
      │                        ^^^
    error: failed to read `services.web.proxy.ssl`: expected `true` or `false`, found `yes`
      ┌─ .jiji/deploy.yml:11:34
    11│     proxy: { app_port: abc, ssl: yes, healthcheck: { interval: 2, path: up } }
      │                                  ^^^
    hint: YAML 1.2 knows `true` and `false` alone
    error: failed to read `services.web.proxy.healthcheck.interval`: expected a duration such as `500ms`, `2s` or `1m`, found `2`
      ┌─ .jiji/deploy.yml:11:64
    11│     proxy: { app_port: abc, ssl: yes, healthcheck: { interval: 2, path: up } }
      │                                                                ^
    hint: add a unit: `ms`, `s`, `m` or `h`
    error: failed to read `services.web.proxy.healthcheck.path`: `up` is no path
      ┌─ .jiji/deploy.yml:11:73
    11│     proxy: { app_port: abc, ssl: yes, healthcheck: { interval: 2, path: up } }
      │                                                                         ^^
    hint: expected a path that begins with `/`, without spaces
    error: failed to read `services.web.volumes.0`: `data` is no volume
      ┌─ .jiji/deploy.yml:12:15
    12│     volumes: [data]
      │               ^^^^
    hint: expected `NAME:/PATH`, `/HOST/PATH:/PATH` or `tmpfs:/PATH`, then `:ro` or nothing
    error: failed to read `services.web.command`: `a | b` is no plain command
      ┌─ .jiji/deploy.yml:13:14
    13│     command: a | b
      │              ^^^^^
    hint: no shell reads it: write a list of arguments, `[sh, -c, "…"]` if a shell is meant
    error: failed to read `services.web.retain`: expected a whole number from 1 to 100, found `0`
      ┌─ .jiji/deploy.yml:14:13
    14│     retain: 0
      │             ^
    error: failed to read `services.db`: one of `image`, `build` is needed
      ┌─ .jiji/deploy.yml:15:3
    15│   db:
      │   ^^
    error: failed to read `services.db.hosts`: it is empty
      ┌─ .jiji/deploy.yml:16:5
    16│     hosts: []
      │     ^^^^^
    hint: give it at least one server, or remove the key
    error: failed to read `services.db`: unknown key `enviroment`
      ┌─ .jiji/deploy.yml:17:5
    17│     enviroment: { clear: [A] }
      │     ^^^^^^^^^^
    hint: did you mean `environment`?
    error: failed to read `services.db.healthcheck`: one of `path`, `port`, `cmd` is needed
      ┌─ .jiji/deploy.yml:18:5
    18│     healthcheck: { timeout: 5x }
      │     ^^^^^^^^^^^
    error: failed to read `services.db.healthcheck.timeout`: expected a duration such as `500ms`, `2s` or `1m`, found `5x`
      ┌─ .jiji/deploy.yml:18:29
    18│     healthcheck: { timeout: 5x }
      │                             ^^
    hint: the units are `ms`, `s`, `m` and `h`
    "#);
}

#[test]
fn what_is_not_yaml_is_told_with_its_line() {
    insta::assert_snapshot!(told(load_one("project: a\n  b: c\n")), @r"
    error: failed to read `.jiji/deploy.yml`: mapping values are not allowed in this context
     ┌─ .jiji/deploy.yml:2:4
    2│   b: c
     │    ^
    hint: check the indentation and quotes here and on the line before; a value that begins with one of `{ [ & * ! % @ ` or holds `: ` or ` #` needs quotes
    ");
    insta::assert_snapshot!(told(load_one("a: [1, 2\nb: 3\n")), @r"
    error: failed to read `.jiji/deploy.yml`: illegal placement of ':' indicator
     ┌─ .jiji/deploy.yml:2:2
    2│ b: 3
     │  ^
    hint: check the indentation and quotes here and on the line before; a value that begins with one of `{ [ & * ! % @ ` or holds `: ` or ` #` needs quotes
    ");
    insta::assert_snapshot!(told(load_one("a: 1\n---\nb: 3\n")), @r"
    error: failed to read `.jiji/deploy.yml`: a second document begins here
     ┌─ .jiji/deploy.yml:2:1
    2│ ---
     │ ^^^
    hint: one file holds one document; another environment is an overlay, `.jiji/deploy.ENVIRONMENT.yml`
    ");
    insta::assert_snapshot!(told(load_one("a: 1\nb: \u{0}\n")), @r"
    error: failed to read `.jiji/deploy.yml`: the control character U+0000 cannot stand in YAML
     ┌─ .jiji/deploy.yml:2:4
    2│ b: �
     │    ^
    hint: write it as an escape in double quotes
    ");
    insta::assert_snapshot!(told(load_one("project: a\nproject: b\nservers: !!set {}\n[a]: b\n")), @r"
    error: failed to read `.jiji/deploy.yml`: the key `project` stands twice
     ┌─ .jiji/deploy.yml:2:1
    2│ project: b
     │ ^^^^^^^
    hint: it stands first on line 1; keep one
    error: failed to read `.jiji/deploy.yml`: the tag `tag:yaml.org,2002:!set` has no meaning here
     ┌─ .jiji/deploy.yml:3:10
    3│ servers: !!set {}
     │          ^^^^^^^
    hint: leave the tag out; quotes make a value a text
    error: failed to read `.jiji/deploy.yml`: a key must be a text
     ┌─ .jiji/deploy.yml:4:1
    4│ [a]: b
     │ ^
    hint: quote it if it is meant as a text
    ");
    insta::assert_snapshot!(told(load_one("- a\n")), @r"
    error: failed to read `.jiji/deploy.yml`: expected a map, found a list
     ┌─ .jiji/deploy.yml:1:1
    1│ - a
     │ ^
    ");
    insta::assert_snapshot!(told(load_one("# nothing yet\n")), @r"
    error: failed to read `.jiji/deploy.yml`: the key `project` is missing
     ┌─ .jiji/deploy.yml:1:1
    1│ # nothing yet
     │ ^
    hint: add `project:`: the project's name, under which hosts keep its records
    error: failed to read `.jiji/deploy.yml`: the key `servers` is missing
     ┌─ .jiji/deploy.yml:1:1
    1│ # nothing yet
     │ ^
    hint: add `servers:`: the servers, by the name that services use
    error: failed to read `.jiji/deploy.yml`: the key `services` is missing
     ┌─ .jiji/deploy.yml:1:1
    1│ # nothing yet
     │ ^
    hint: add `services:`: the services: one image each, run once on each of its hosts
    ");
}

#[test]
fn an_overlay_is_merged_key_by_key_and_keeps_its_places() {
    let overlay = r#"
servers:
  two: { host: 10.0.0.2, port: 22 }
services:
  web:
    hosts: [two]
    environment: { clear: { A: 1 } }
    proxy: { app_port: 9090, healthcheck: { path: /ok } }
"#;
    let sources = || vec![source(FILE, SMALL), source(&overlay_file("staging"), overlay)];
    let project = load(sources(), &nothing, Some("staging")).expect("base and overlay fit").project;
    let web = project.services.values().next().expect("the service is there");
    assert_eq!(project.scope(), "hello.staging");
    assert_eq!(project.servers.len(), 2, "maps merge");
    assert_eq!(web.hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>(), ["two"], "lists replace");
    assert_eq!(web.proxy.as_ref().map(|proxy| proxy.app_port), Some(9090), "scalars replace");

    let removed = "servers:\n  one:\nservices:\n  web:\n    proxy: null\n    hosts: [zwei]\n";
    let sources = vec![source(FILE, SMALL), source(".jiji/deploy.x.yml", removed)];
    insta::assert_snapshot!(told(load(sources, &nothing, Some("x"))), @r"
    error: failed to read `services.web.hosts.0`: there is no server `zwei`
     ┌─ .jiji/deploy.x.yml:6:13
    6│     hosts: [zwei]
     │             ^^^^
    hint: `servers` is empty
    ");
    let empty = vec![source(FILE, SMALL), source(".jiji/deploy.x.yml", "# later\n")];
    assert!(load(empty, &nothing, Some("x")).is_ok());
}

#[test]
fn variables_are_put_into_scalars_and_never_into_the_text() {
    let text = SMALL.replace(
        "hosts: [one]",
        "hosts: [one]\n    environment: { clear: { A: \"${A}\", B: \"$${A} $A ${N:-x:-y} $\" } }",
    );
    let environment = BTreeMap::from([("A", "1\nproject: evil: [")]);
    let lookup = |name: &str| environment.get(name).map(|value| (*value).to_owned());
    let project = load(vec![source(FILE, &text)], &lookup, None).expect("the text is right").project;
    let clear = &project.services.values().next().expect("the service is there").environment.clear;
    assert_eq!(clear["A"], "1\nproject: evil: [");
    assert_eq!(clear["B"], "${A} $A x:-y $");
}

#[test]
fn a_variable_may_stand_for_a_number_and_its_value_is_never_told() {
    let text = SMALL.replace("8080", "\"${PORT}\"");
    let with = |value: &str| {
        let value = value.to_owned();
        load(vec![source(FILE, &text)], &move |_| Some(value.clone()), None)
    };
    assert!(with("8080").is_ok());
    let told = told(with("hunter2"));
    assert!(!told.contains("hunter2"), "{told}");
    insta::assert_snapshot!(told, @r#"
    error: failed to read `services.web.proxy.app_port`: expected a whole number from 1 to 65535, found what `${PORT}` stands for
     ┌─ .jiji/deploy.yml:8:24
    8│     proxy: { app_port: "${PORT}" }
     │                        ^^^^^^^^^
    "#);
}

#[test]
fn a_variable_that_is_not_set_is_an_error_at_its_place() {
    let text = SMALL.replace("build: .", "image: app:${VERSION}").replace("project: hello", "project: ${1x}");
    insta::assert_snapshot!(told(load_one(&text)), @r"
    error: failed to read `project`: `${1x}` is no variable
     ┌─ .jiji/deploy.yml:1:10
    1│ project: ${1x}
     │          ^^^^^
    hint: write `${NAME}` or `${NAME:-DEFAULT}` with A-Z, a-z, 0-9 and `_`, or `$${` for a plain `${`
    error: failed to read `services.web.image`: the variable `VERSION` is not set
     ┌─ .jiji/deploy.yml:6:16
    6│     image: app:${VERSION}
     │                ^^^^^^^^^^
    hint: set it, write `${VERSION:-DEFAULT}`, or `$${` for a plain `${`
    ");
}

#[test]
fn a_password_is_the_name_of_a_secret_and_one_in_plain_is_never_shown() {
    let registry = |password: &str| {
        format!(
            "{SMALL}builder: {{ registry: {{ server: r.example.com/team, username: u, password: \"{password}\" }} }}\n"
        )
    };
    // Nothing asks for a password's value.
    for name in ["REGISTRY_TOKEN", "${REGISTRY_TOKEN}"] {
        let lookup = |name: &str| -> Option<String> { panic!("the value of {name} was asked for") };
        let loaded = load(vec![source(FILE, &registry(name))], &lookup, None).expect("a secret's name is right");
        assert_eq!(loaded.secrets.len(), 1);
        assert_eq!(loaded.secrets[0].by, "builder.registry.password");
    }
    let told = told(load_one(&registry("hunter2")));
    assert!(!told.contains("hunter2"), "{told}");
    insta::assert_snapshot!(told, @r"
    error: failed to read `builder.registry.password`: the password is written down here
     ┌─ .jiji/deploy.yml:9:75
    9│ builder: { registry: { server: r.example.com/team, username: u, password: ********* } }
     │                                                                           ^^^^^^^^^
    hint: write the name of an environment variable in capitals, such as `REGISTRY_PASSWORD`, and change the password: whoever can read this file has it
    ");
    let errors = load_one(&registry("hunter2")).expect_err("a password in plain is refused");
    assert!(!format!("{:?}", miette::Report::new(errors)).contains("hunter2"));
}

#[test]
fn a_certificate_is_named_by_its_secrets_and_means_tls() {
    let with = |keys: &str| SMALL.replace("app_port: 8080", &format!("app_port: 8080, {keys}"));
    let loaded = load_one(&with("host: a.example, certificate: { chain: TLS_CHAIN, key: TLS_KEY }")).expect("right");
    let proxy = loaded.project.services.values().next().and_then(|service| service.proxy.clone()).expect("a proxy");
    assert!(proxy.ssl && proxy.certificate.is_some_and(|certificate| certificate.key.as_str() == "TLS_KEY"));
    let asked: Vec<_> = loaded.secrets.iter().map(|asked| (asked.name.as_str(), asked.by.as_str())).collect();
    assert_eq!(
        asked,
        [("TLS_CHAIN", "services.web.proxy.certificate.chain"), ("TLS_KEY", "services.web.proxy.certificate.key")]
    );
    for (keys, due) in [
        ("certificate: { chain: TLS_CHAIN, key: TLS_KEY }", "the key `host` is missing"),
        ("host: a.example, certificate: { chain: TLS_CHAIN }", "the key `key` is missing"),
        ("host: a.example, ssl: false, certificate: { chain: TLS_CHAIN, key: TLS_KEY }", "ssl: false"),
    ] {
        let told = told(load_one(&with(keys)));
        assert!(told.contains(due), "{keys}: {told}");
    }
}

#[test]
fn two_services_cannot_take_the_same_requests_on_one_host() {
    let text = format!("{SMALL}  api:\n    image: api:1\n    hosts: [one]\n    proxy: {{ app_port: 1 }}\n");
    insta::assert_snapshot!(told(load_one(&text)), @r"
    error: failed to read `services.api.proxy`: `web` takes the same requests on `one`
      ┌─ .jiji/deploy.yml:12:5
    12│     proxy: { app_port: 1 }
      │     ^^^^^
    hint: give one of them another `host` or `path_prefix`
    ");
}

#[test]
fn a_server_without_root_is_the_only_one_and_has_podman() {
    let alone = SMALL.replace("host: localhost", "host: localhost, rootless: true");
    let loaded = load_one(&alone).unwrap_or_else(|_| panic!("{}", told(load_one(&alone))));
    assert!(loaded.project.servers.values().all(|server| server.rootless));
    let wrong = "project: shop\nbuilder: { engine: docker }\nservers:\n  one: { host: h, user: root, rootless: true }\n  two: { host: g }\n\
                 services:\n  web: { image: \"web:1\", hosts: one }\n";
    let told = told(load_one(wrong));
    for due in ["for a project of one server", "this server's is Docker", "the user of this server is root"] {
        let line = "error: failed to read `servers.one.rootless`: ";
        assert!(told.lines().any(|text| text.starts_with(line) && text.contains(due)), "{told}");
    }
    assert_eq!(told.matches("error: ").count(), 3, "{told}");
}

#[test]
fn a_strangers_file_cannot_exhaust_the_machine() {
    let laughs = (1..30).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, n| {
        let inner = vec![format!("*a{}", n - 1); 9].join(", ");
        format!("{text}a{n}: &a{n} [{inner}]\n")
    });
    insta::assert_snapshot!(told(load_one(&laughs)), @r"
    error: failed to read `.jiji/deploy.yml`: it holds more than 50000 values, aliases counted as what they stand for
     ┌─ .jiji/deploy.yml:5:25
    5│ a4: &a4 [*a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3]
     │                         ^^^
    hint: the limits keep a stranger's file from exhausting the machine
    ");
    insta::assert_snapshot!(told(load_one(&"[".repeat(100_000))).replace(&"[".repeat(99_000), "…"), @r"
    error: failed to read `.jiji/deploy.yml`: recursion limit exceeded
     ┌─ .jiji/deploy.yml:1:256
    1│ …[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[…
     │                                          ^
    hint: check the indentation and quotes here and on the line before; a value that begins with one of `{ [ & * ! % @ ` or holds `: ` or ` #` needs quotes
    ");
    insta::assert_snapshot!(told(load_one(&"- ".repeat(1000))).len() < 5000, @"true");
    insta::assert_snapshot!(told(load_one("a: &a [*a]\n")), @r"
    error: failed to read `.jiji/deploy.yml`: the alias stands inside its own anchor
     ┌─ .jiji/deploy.yml:1:8
    1│ a: &a [*a]
     │        ^^
    hint: an alias can repeat what is complete before it, not what is around it
    ");
    let large = format!("a: \"{}\"\n", "x".repeat(2 * 1024 * 1024));
    assert!(told(load_one(&large)).len() < 1000);
    let many = SMALL.replace("web:", &format!("web: # {}", "x".repeat(10))).replace(
        "hosts: [one]",
        &format!("hosts: [one]\n    environment: {{ clear: {{ A: \"{}\" }} }}", "${A}".repeat(10_000)),
    );
    let lookup = |_: &str| Some("x".repeat(100_000));
    assert!(load(vec![source(FILE, &many)], &lookup, None).is_err());
    // What is many times wrong costs no more than what is many times right.
    let start = std::time::Instant::now();
    let servers: String = (0..4000).map(|n| format!("  s{n}: {{ host: h{n} }}\n")).collect();
    let hosts = (0..4000).map(|n| format!("t{n}")).collect::<Vec<_>>().join(", ");
    let text = format!("project: a\nservers:\n{servers}services:\n  web:\n    image: a\n    hosts: [{hosts}]\n");
    assert!(load_one(&text).is_err());
    assert!(load_one(&(0..20_000).map(|n| format!("unknown{n}: v\n")).collect::<String>()).is_err());
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    let errors = load_one(&"a: 1\n".repeat(50_000 / 2)).expect_err("a key stands twice");
    assert_eq!(errors.errors().len(), 100);
    assert!(errors.more() > 1000);
}

#[test]
fn a_recipe_takes_a_dockerfiles_place_and_does_not_stand_beside_it() {
    let with = |build: &str| load_one(&SMALL.replace("build: .", &format!("build: {build}")));
    let project = with("{ context: web, recipe: image.toml }").expect("a project").project;
    let service = project.services.values().next().expect("a service");
    let jiji_model::project::Source::Build(build) = &service.source else { panic!("it is built") };
    assert_eq!((build.file.as_str(), build.frontend), ("image.toml", jiji_model::project::Frontend::Recipe));
    let errors = told(with("{ recipe: image.toml, dockerfile: Dockerfile }"));
    assert!(errors.contains("keep `dockerfile` or `recipe`"), "{errors}");
    assert!(with("{ recipe: ../image.toml }").is_err(), "it stays inside");
}

#[test]
fn paths_of_a_project_stay_in_the_project() {
    for context in ["..", "/etc", "a/../../b", ""] {
        let text = SMALL.replace("build: .", &format!("build: \"{context}\""));
        assert!(load_one(&text).is_err(), "{context}");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let inside = directory.path().join("project");
    std::fs::create_dir_all(inside.join(".jiji")).expect("a directory");
    std::fs::write(directory.path().join("outside"), "secret: of this machine\n").expect("a file");
    std::os::unix::fs::symlink("../../outside", inside.join(FILE)).expect("a link");
    let errors = find(&inside, None).expect_err("the link leads out");
    assert_eq!(errors.errors()[0].problem, Problem::FileOutside);
    std::fs::remove_file(inside.join(FILE)).expect("the link is removed");
    std::fs::write(inside.join(FILE), SMALL).expect("a file");
    std::fs::write(inside.join(overlay_file("staging")), "# none\n").expect("a file");
    assert_eq!(find(&inside, Some("staging")).expect("both files are there").len(), 2);
    for (environment, problem) in [
        ("prod", Problem::FileMissing { environments: vec!["staging".to_owned()] }),
        ("../x", Problem::EnvironmentName { name: "../x".to_owned() }),
    ] {
        let errors = find(&inside, Some(environment)).expect_err("there is no such overlay");
        assert_eq!(errors.errors()[0].problem, problem);
    }
    std::fs::create_dir_all(inside.join("a/b")).expect("directories");
    assert_eq!(find_root(&inside.join("a/b")), Some(inside));
}

#[test]
fn a_part_is_found_again_by_its_keys() {
    let loaded = load_one(SMALL).expect("the text is right");
    let at = |keys: &[&str]| loaded.locate(keys).map(|place| place.to_string());
    assert_eq!(at(&["services", "web", "build"]).as_deref(), Some(".jiji/deploy.yml:6:12"));
    assert_eq!(at(&["services", "web", "healthcheck"]).as_deref(), Some(".jiji/deploy.yml:5:3"));
    assert_eq!(at(&["nowhere"]), None);
}

#[test]
fn numbers_are_yaml_1_2s_and_texts_stay_as_they_are_written() {
    let text = SMALL.replace(
        "hosts: [one]",
        "hosts: [one]\n    environment: { clear: { A: 1.10, B: 0o17, C: yes, D: 012, E: 1e3 } }",
    );
    let project = load_one(&text).expect("the text is right").project;
    let clear = &project.services.values().next().expect("the service is there").environment.clear;
    assert_eq!(clear.values().map(String::as_str).collect::<Vec<_>>(), ["1.10", "0o17", "yes", "012", "1e3"]);
}

#[test]
fn registries_and_images_are_read_by_their_grammar() {
    let server = |text: &str| {
        let text = format!("{SMALL}builder: {{ registry: {{ server: \"{text}\" }} }}\n");
        load_one(&text).ok().and_then(|loaded| loaded.project.builder.registry)
    };
    let plain = |text: &str| server(text).map(|registry| registry.server.plain_http);
    assert_eq!(plain("ghcr.io"), Some(false));
    assert_eq!(plain("localhost:5000"), Some(true));
    assert_eq!(plain("127.0.0.1:5000"), Some(true));
    assert_eq!(plain("[::1]:5000"), Some(true));
    assert_eq!(plain("https://localhost:5000"), Some(false));
    assert_eq!(plain("http://10.0.0.5:5000/team/a"), Some(true));
    assert_eq!(server("r.example.com/team/a").and_then(|registry| registry.namespace).as_deref(), Some("team/a"));
    for text in ["", "ftp://x", "a b", "x:99999", "x/UP", "user@host", "-x"] {
        assert_eq!(plain(text), None, "{text}");
    }
    let image = |text: &str| load_one(&SMALL.replace("build: .", &format!("image: \"{text}\""))).is_ok();
    let digest = "a".repeat(64);
    for text in ["nginx", "nginx:1.2", "ghcr.io/acme/web:v1", "localhost:5000/a/b", &format!("a/b@sha256:{digest}")] {
        assert!(image(text), "{text}");
    }
    for text in ["", "Nginx", "a b", "-x", "a:b:c", "a@sha256:1", "a//b", "a:"] {
        assert!(!image(text), "{text}");
    }
}

#[test]
fn the_examples_are_right_once_their_variables_are_set() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let lookup = |name: &str| {
        Some(match name {
            "LAB_REGISTRY" => "10.231.0.2:5000".to_owned(),
            "LAB_SSH_CONFIG" => "/lab/ssh_config".to_owned(),
            "LAB_KAMAL_PROXY" => format!("lab.test/kamal-proxy@sha256:{}", "a".repeat(64)),
            name => name.strip_prefix("LAB_HOST_").map(|number| format!("host-{number}"))?,
        })
    };
    for example in std::fs::read_dir(examples).expect("there are examples") {
        let root = example.expect("a directory").path();
        if root.join(FILE).is_file() {
            let loaded = load(find(&root, None).expect("the file is there"), &lookup, None);
            assert!(loaded.is_ok(), "{}: {}", root.display(), told(loaded));
        }
    }
}

/// Compares a file of `docs/` with what the table gives; `cargo xtask docs` writes it anew.
fn assert_document(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if std::env::var_os("JIJI_WRITE_DOCS").is_some() {
        std::fs::write(&path, text).expect("the document can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "docs/{name} is behind the table of keys: run `cargo xtask docs`");
}

#[test]
fn the_json_schema_in_docs_is_the_tables() {
    assert_document("deploy.schema.json", &json_schema());
}

#[test]
fn the_reference_page_in_docs_is_the_tables() {
    assert_document("deploy-yml.md", &reference());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused_and_never_panics(text in ".{0,200}", variable in proptest::option::of(".{0,20}")) {
        let _ = load(vec![source(FILE, &text)], &|_| variable.clone(), None);
    }

    #[test]
    fn a_file_with_any_part_changed_is_read_or_refused(
        at in 0..EVERYTHING.len(),
        length in 0..40usize,
        put in r#"[\[\]{}:,&*!|>'"%@`#\-?~<$ \nabé0]{0,6}"#,
    ) {
        let end = (at + length).min(EVERYTHING.len());
        let text = format!("{}{put}{}", &EVERYTHING[..at], &EVERYTHING[end..]);
        match load_one(&text) {
            Ok(loaded) => prop_assert!(!loaded.project.services.is_empty()),
            Err(errors) => {
                prop_assert!(!errors.errors().is_empty());
                for error in errors.errors() {
                    prop_assert!(error.problem != Problem::NoProject, "{text}");
                    let _ = error.place.as_ref().map(Place::excerpt);
                }
            }
        }
    }

    #[test]
    fn an_overlay_of_any_shape_is_merged_or_refused(words in proptest::collection::vec(
        proptest::sample::select(vec!["services", "web", "hosts", "proxy", "one", "null", "[]", "servers", "x"]), 1..6)) {
        let text = words.iter().enumerate().fold(String::new(), |text, (depth, word)| {
            format!("{text}{}{word}:\n", "  ".repeat(depth))
        });
        let _ = load(vec![source(FILE, EVERYTHING), source("x", &text)], &nothing, Some("x"));
    }
}
