//! A ship without SSH, and a secret that must be nowhere but where an engine keeps a container's environment.

use jiji_e2e::secrecy::{Sentinel, hex, suite};
use jiji_e2e::{Outcome, Project, Run, Running, Shared, Site, jiji_bin, look};
use jiji_lab::command::{command, run, run_with_input};
use jiji_lab::{Engines, Host};
use sha2::{Digest, Sha256};

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// The example for the host that it is shipped from.
const LOCAL: &str = "project: local
builder:
  mirrors:
    lab.test: http://${LAB_REGISTRY}
servers:
  here:
    host: localhost
services:
  web:
    build: .
    hosts: [here]
    environment:
      clear:
        GREETING: hello
      secrets: [HELLO_KEY]
    proxy:
      app_port: 8080
      host: local.test
      healthcheck:
        path: /up
        interval: 200ms
    stop_timeout: 5s
plugins:
  proxy:
    settings:
      image: ${LAB_KAMAL_PROXY}
";

/// Puts the project and the program on a host.
fn carry(host: &Host, project: &Project<'_>) -> Outcome {
    std::fs::write(project.root().join(".jiji/deploy.yml"), LOCAL)?;
    let tar = run(command("tar", ["-c", "-C"]).arg(project.root()).arg("."))?;
    host.exec(&["mkdir", "-p", "/root/project"])?;
    run_with_input(&mut host.command(&["tar", "-x", "-C", "/root/project"]), &tar)?;
    host.write_file("/root/jiji", &std::fs::read(jiji_bin()?)?)?;
    host.exec(&["chmod", "755", "/root/jiji"])?;
    Ok(())
}

/// Runs `jiji` on the host itself as root, with the secret in its environment and in no argument.
fn on_host(site: &Site, host: &Host, secret: &Sentinel, args: &[&str]) -> Outcome<Run> {
    let script = "read -r HELLO_KEY; export HELLO_KEY; cd /root/project; exec env \"$@\"";
    let mut argv = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned(), "sh".to_owned()];
    argv.extend(site.variables.iter().map(|(name, value)| format!("{name}={value}")));
    argv.extend(["CI=true".to_owned(), "/root/jiji".to_owned()]);
    argv.extend(args.iter().map(|arg| (*arg).to_owned()));
    Running::start_with(&mut host.command(&argv), Some(&format!("{}\n", secret.value())))?.end()
}

/// What a service answers at a path, through the proxy of a host.
fn ask(site: &Site, host: &Host, authority: &str, path: &str) -> Outcome<String> {
    let url = format!("http://{}{path}", host.address);
    let header = format!("Host: {authority}");
    let answer =
        run(site.lab.operator_command("curl").args(["-sS", "--fail", "--max-time", "5", "-H", &header, &url]))?;
    Ok(String::from_utf8(answer)?.trim().to_owned())
}

/// The service has the secret, and nobody else on its host.
fn only_the_container_has_it(site: &Site, host: &Host, authority: &str, project: &str, secret: &Sentinel) -> Outcome {
    let due = hex(&Sha256::digest(secret.value().as_bytes()));
    assert_eq!(ask(site, host, authority, "/key")?, due, "{}: the service has it", host.name);
    let files = secret.files_on(host)?;
    assert!(files.is_empty(), "{}: files that hold the secret: {files:#?}", host.name);
    let processes = secret.environments_on(host)?;
    assert_eq!(processes.into_iter().collect::<Vec<_>>(), ["python3 /app/server.py"], "{}", host.name);
    let container = look::only(host, project)?;
    let image = host.engine(&["inspect", "--format", "{{.Image}}", &container.name])?;
    let saved = run(&mut host.command(&[host.engine_cli(), "save", image.trim()]))?;
    assert!(saved.len() > 1 << 20 && !secret.is_in(&saved), "{}: the image", host.name);
    let log = host.output(&[host.engine_cli(), "logs", &container.name])?;
    assert!(!secret.is_in(&log.stdout) && !secret.is_in(&log.stderr), "{}: the log", host.name);
    Ok(())
}

fn says_nothing(run: &Run, secret: &Sentinel) {
    assert!(!secret.is_in(run.stdout.as_bytes()), "standard output of `{}`", run.argv);
    assert!(!secret.is_in(run.stderr.as_bytes()), "standard error of `{}`", run.argv);
}

#[test]
fn a_host_ships_to_itself_without_ssh_and_keeps_the_secret() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "local")?;
    let host = site.lab.host("podman-1")?;
    carry(&host, &project)?;
    let secret = Sentinel::new("local");
    let before = host.ssh_sessions()?;
    let watch = secret.watch_arguments();
    let first = on_host(&site, &host, &secret, &["ship", "--json"])?.expect(0)?;
    println!("first ship in {:.1}s", first.took.as_secs_f64());
    assert_eq!(ask(&site, &host, "local.test", "/")?, "hello from v1");

    host.write_file("/root/project/version.txt", b"v2\n")?;
    let plan = on_host(&site, &host, &secret, &["plan"])?.expect(0)?;
    let plan_json = on_host(&site, &host, &secret, &["plan", "--json"])?.expect(0)?;
    let second = on_host(&site, &host, &secret, &["ship", "--verbose"])?.expect(0)?;
    assert_eq!(ask(&site, &host, "local.test", "/")?, "hello from v2");
    let again = on_host(&site, &host, &secret, &["ship", "--json"])?.expect(0)?;
    assert_eq!(again.summary()?["result"], "unchanged");
    let status = on_host(&site, &host, &secret, &["status", "--json"])?.expect(0)?;

    let (arguments, rounds) = watch.end()?;
    assert!(arguments.is_empty(), "argument vectors with the secret: {arguments:#?}");
    println!("no process showed the secret in its arguments in {rounds} looks at all of them");
    for run in [&first, &plan, &plan_json, &second, &again, &status] {
        says_nothing(run, &secret);
    }
    assert_eq!(host.ssh_sessions()?, before, "nobody used ssh");
    only_the_container_has_it(&site, &host, "local.test", "local", &secret)
}

/// An image with layers in zstd, into an engine that reads them or does not.
fn loads_zstd_or_says_why_not(site: &Site, host: &Host, secret: &Sentinel) -> Outcome {
    let zstd = LOCAL.replace("    build: .\n", "    build:\n      context: .\n      compression: zstd\n");
    assert_ne!(zstd, LOCAL);
    host.write_file("/root/project/.jiji/deploy.yml", zstd.as_bytes())?;
    // A layer that an engine has from another image is not read again, in whatever it is compressed.
    host.write_file("/root/project/version.txt", b"zstd\n")?;
    host.engine(&["image", "rm", "--force", "localhost/local/web:latest"])?;
    let major = match host.name.starts_with("docker") {
        true => host.engine(&["version", "--format", "{{.Server.Version}}"])?.split('.').next().map(str::parse::<u32>),
        false => None,
    };
    let old = major.transpose()?.is_some_and(|major| major < 23);
    let loaded = on_host(site, host, secret, &["build", "--load", "--json"])?;
    if old {
        let refused = loaded.expect(1)?;
        assert!(refused.to_string().contains("which Docker reads from 23 on"), "{refused}");
    } else {
        let loaded = loaded.expect(0)?;
        let image = loaded.events_of("build.loaded").next().ok_or("no `build.loaded`")?["data"]["image"].clone();
        assert!(image.as_str().is_some_and(|image| image.starts_with("sha256:")), "{loaded}");
        let said =
            host.engine(&["run", "--rm", "--network=none", "localhost/local/web:latest", "python3", "--version"])?;
        assert!(said.starts_with("Python 3"), "{}: {said}", host.name);
    }
    Ok(host.write_file("/root/project/.jiji/deploy.yml", LOCAL.as_bytes())?)
}

#[test]
fn an_image_is_loaded_into_the_engine_that_is_there_and_found_by_its_name() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "local")?;
    let secret = Sentinel::new("load");
    for name in ["podman-1", "docker-2"] {
        let host = site.lab.host(name)?;
        carry(&host, &project)?;
        let loaded = on_host(&site, &host, &secret, &["build", "--load", "--json"])?.expect(0)?;
        let event = loaded.events_of("build.loaded").next();
        let data = &event.ok_or_else(|| format!("no `build.loaded`: {loaded}"))?["data"];
        assert_eq!(data["reference"], "localhost/local/web:latest");
        let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        let engine = text("engine");
        assert!(name.starts_with(&engine), "{name}: {engine}");
        let id = host.engine(&["image", "inspect", "--format", "{{.Id}}", "localhost/local/web:latest"])?;
        let id = format!("sha256:{}", id.trim().trim_start_matches("sha256:"));
        assert!([text("image"), text("config")].contains(&id), "{name}: {id}, {data}");
        if engine == "podman" {
            // It keeps the manifest as it is, so that the digest is a name too.
            let by_digest = format!("localhost/local/web@{}", text("image"));
            let found = host.engine(&["image", "inspect", "--format", "{{.Id}}", &by_digest])?;
            assert!(id.ends_with(found.trim()), "{found}");
        }
        let said =
            host.engine(&["run", "--rm", "--network=none", "localhost/local/web:latest", "python3", "--version"])?;
        assert!(said.starts_with("Python 3"), "{name}: {said}");
        loads_zstd_or_says_why_not(&site, &host, &secret)?;
        let other = if engine == "podman" { "--load=docker" } else { "--load=podman" };
        let refused = on_host(&site, &host, &secret, &["build", other])?.expect(1)?;
        assert!(refused.stderr.contains("hint: install Podman or Docker"), "{refused}");
        host.engine(&["image", "rm", "--force", "localhost/local/web:latest"])?;
    }
    Ok(())
}

#[test]
fn a_secret_that_is_shipped_over_ssh_is_nowhere_but_in_the_containers_environment() -> Outcome {
    let site = LAB.take()?;
    let mut project = Project::new(&site, "secret")?;
    let secret = Sentinel::new("ssh");
    project.secret = secret.value().to_owned();
    let watch = secret.watch_arguments();
    let first = project.run(&["ship"])?.expect(0)?;
    project.set_version("v2")?;
    let plan = project.run(&["plan"])?.expect(0)?;
    let second = project.show(&["ship", "--verbose"])?.expect(0)?;

    // A version that is not healthy and prints its secret in its last words.
    project.set_version("v3")?;
    let server = project.root().join("server.py");
    let text = std::fs::read_to_string(&server)?;
    let loud = text.replace("    service = Service()\n", "    say(os.environ['HELLO_KEY'])\n    sys.exit(3)\n");
    assert_ne!(loud, text);
    std::fs::write(&server, loud)?;
    project.edit("interval: 200ms\n", "interval: 200ms\n        deploy_timeout: 4s\n")?;
    let failed = project.show(&["ship"])?.expect(7)?;
    let failed_json = project.run(&["ship"])?.expect(7)?;

    let (arguments, rounds) = watch.end()?;
    assert!(arguments.is_empty(), "argument vectors with the secret: {arguments:#?}");
    println!("no process showed the secret in its arguments in {rounds} looks at all of them");
    for run in [&first, &plan, &second, &failed, &failed_json] {
        says_nothing(run, &secret);
    }
    // The suite's own search, which every test ends with, would see it.
    let host = site.lab.host("docker-2")?;
    site.keeps_the_secret()?;
    host.write_file("/var/lib/jiji/told", suite().value().as_bytes())?;
    assert!(site.keeps_the_secret().is_err_and(|error| error.to_string().contains("/var/lib/jiji/told")));
    host.remove_file("/var/lib/jiji/told")?;

    let files = secret.files_below(project.dir())?;
    assert!(files.is_empty(), "files of the operator that hold the secret: {files:#?}");
    for host in site.hosts() {
        only_the_container_has_it(&site, &host, "secret.test", "secret", &secret)?;
    }
    Ok(())
}
