//! `jiji drift` on two real hosts, one with Podman and one with Docker: what somebody changed behind jiji's back is found by its name and
//! mended, and requests are answered afterwards.

use std::collections::BTreeSet;

use jiji_e2e::{Outcome, Project, Run, Shared, look};
use jiji_lab::{Engines, Host};
use serde_json::Value;

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// The servers' names in deploy.yml, in the order of the lab's hosts.
const SERVERS: [&str; 2] = ["one", "two"];

/// Where a host keeps what it keeps of the project.
const RECORDS: &str = "/var/lib/jiji/projects/drift";

/// Services beside `web`, for changes to containers. None of them is routed.
const OTHERS: [&str; 4] = ["gone", "renamed", "made", "image"];

/// A container as it was made.
struct Made {
    name: String,
    image: String,
    address: String,
    labels: Vec<String>,
    env: Vec<String>,
    options: Vec<String>,
    command: Vec<String>,
}

/// The container of a service.
fn container(host: &Host, service: &str) -> Outcome<Value> {
    let label = format!("label=jiji.service={service}");
    let ids = host.engine(&["ps", "--all", "--quiet", "--filter", "label=jiji.scope=drift", "--filter", &label])?;
    let id = ids.split_whitespace().next().ok_or_else(|| format!("no container of {service} on {}", host.name))?;
    let all: Value = serde_json::from_str(&host.engine(&["inspect", id])?)?;
    Ok(all[0].clone())
}

fn name(container: &Value) -> String {
    container["Name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned()
}

/// Where a host has the variables of a container for as long as it takes to start it.
const VARIABLES: &str = "/dev/shm/variables";

/// Makes the container of a service anew under the same name, with something changed.
fn recreate(host: &Host, service: &str, change: impl Fn(&mut Made)) -> Outcome {
    let before = container(host, service)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(&text).collect() };
    let labels = before["Config"]["Labels"].as_object().ok_or("labels")?;
    let mut made = Made {
        name: name(&before),
        image: text(&before["Config"]["Image"]),
        address: text(&before["NetworkSettings"]["Networks"]["jiji"]["IPAddress"]),
        labels: labels.iter().map(|(name, value)| format!("{name}={}", text(value))).collect(),
        env: list(&before["Config"]["Env"]).into_iter().filter(|line| line.starts_with("HELLO_KEY=")).collect(),
        options: vec!["--restart".to_owned(), text(&before["HostConfig"]["RestartPolicy"]["Name"])],
        command: Vec::new(),
    };
    change(&mut made);
    host.engine(&["rm", "--force", &made.name])?;
    let mut argv: Vec<&str> = vec!["run", "--detach", "--name", &made.name, "--network", "jiji", "--ip", &made.address];
    argv.extend(made.labels.iter().flat_map(|value| ["--label", value.as_str()]));
    // The secret is among them, and may be in nobody's arguments.
    host.write_file(VARIABLES, made.env.join("\n").as_bytes())?;
    argv.extend(["--env-file", VARIABLES]);
    argv.extend(made.options.iter().map(String::as_str));
    argv.push(&made.image);
    argv.extend(made.command.iter().map(String::as_str));
    host.engine(&argv)?;
    host.remove_file(VARIABLES)?;
    Ok(())
}

/// The differences that a run told of: host, kind, and the whole of each.
fn told<'a>(run: &'a Run, event: &'a str) -> Vec<(&'a str, &'a str, &'a Value)> {
    let text = |value: &'a Value| value.as_str().unwrap_or_default();
    run.events_of(event).map(|event| (text(&event["host"]), text(&event["data"]["kind"]), &event["data"])).collect()
}

/// Finds exactly these kinds of differences on both hosts, mends them all, and finds none afterwards.
#[expect(clippy::print_stdout, reason = "part of what a test shows, outside of a test's own function")]
fn found_and_mended(project: &Project<'_>, kinds: &[&str]) -> Outcome<Run> {
    let run = project.run(&["drift"])?.expect(13)?;
    let due: BTreeSet<&str> = kinds.iter().copied().collect();
    for server in SERVERS {
        let all = told(&run, "drift.found");
        let found: BTreeSet<&str> = all.iter().filter(|(host, ..)| *host == server).map(|(_, kind, _)| *kind).collect();
        assert_eq!(found, due, "on {server}: {all:#?}");
        assert!(all.iter().all(|(.., finding)| finding["fixable"] == true && finding["fix"] != ""), "{all:#?}");
    }
    let fixed = project.run(&["drift", "--fix"])?.expect(0)?;
    assert_eq!(fixed.summary()?["result"], "fixed", "{fixed}");
    println!(
        "{} kinds on two hosts found in {:.1}s and mended in {:.1}s: {}",
        kinds.len(),
        run.took.as_secs_f64(),
        fixed.took.as_secs_f64(),
        kinds.join(", ")
    );
    Ok(fixed)
}

#[test]
fn what_somebody_changed_on_hosts_is_found_by_its_name_and_mended() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "drift")?;
    let authority = project.authority();
    let hosts = site.hosts();
    project.run(&["drift"])?.expect(15)?;
    project.ship()?;
    let old =
        hosts.iter().map(|host| Ok(container(host, "web")?["Config"]["Image"].clone())).collect::<Outcome<Vec<_>>>()?;
    let others: String = OTHERS
        .iter()
        .map(|name| {
            format!("  {name}:\n    build: .\n    hosts: [one, two]\n    environment:\n      secrets: [HELLO_KEY]\n")
        })
        .collect();
    project.edit("\nplugins:\n", &format!("{others}\nplugins:\n"))?;
    project.set_version("v2")?;
    project.ship()?;
    let run = project.run(&["drift"])?.expect(0)?;
    assert_eq!((run.summary()?["result"].as_str(), told(&run, "drift.found").len()), (Some("none"), 0), "{run}");

    // Containers and images.
    for (host, old) in hosts.iter().zip(&old) {
        let of = |service: &str| Ok::<_, Box<dyn std::error::Error + Send + Sync>>(name(&container(host, service)?));
        host.engine(&["stop", "--time", "5", &of("web")?])?;
        host.engine(&["rm", "--force", &of("gone")?])?;
        host.engine(&["rename", &of("renamed")?, "mine"])?;
        recreate(host, "made", |made| {
            made.env = ["DEBUG=1", "HELLO_KEY=another value"].map(str::to_owned).to_vec();
            made.labels.retain(|label| !label.starts_with("jiji.spec="));
            made.labels.push("jiji.spec=another".to_owned());
            made.options = ["--user", "1:1", "-v", "/etc/hostname:/name:ro"].map(str::to_owned).to_vec();
        })?;
        // Out of a container without variables: the engine puts those of the one it commits into the image, the secret among them.
        let image = container(host, "image")?["Config"]["Image"].as_str().unwrap_or_default().to_owned();
        host.engine(&["create", "--name", "plain", &image])?;
        host.engine(&["commit", "plain", "localhost/other:1"])?;
        host.engine(&["rm", "plain"])?;
        recreate(host, "image", |made| made.image = "localhost/other:1".to_owned())?;
        host.engine(&["network", "disconnect", "jiji", &of("image")?])?;
        let labels = ["--label", "jiji.scope=drift", "--label", "jiji.service=web"];
        let image = container(host, "made")?["Config"]["Image"].as_str().unwrap_or_default().to_owned();
        host.engine(&[&["run", "--detach", "--name", "stray"], labels.as_slice(), &[&image]].concat())?;
        host.engine(&["rmi", "--force", old.as_str().unwrap_or_default()])?;
    }
    let kinds = [
        "container-stopped",
        "container-missing",
        "container-renamed",
        "container-env",
        "container-image",
        "container-labels",
        "container-mounts",
        "container-secrets",
        "container-network",
        "container-settings",
        "container-extra",
        "image-missing",
    ];
    let people = project.show(&["drift"])?.expect(13)?;
    println!("{}", people.stdout);
    assert!(people.stdout.contains("    found     also `DEBUG`\n"), "{people}");
    assert!(!people.stdout.contains("another value"), "no value is shown: {people}");
    found_and_mended(&project, &kinds)?;
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);
    for host in &hosts {
        let running = look::running(host, "drift")?;
        assert_eq!(running.len(), 1 + OTHERS.len(), "{running:?}");
        assert!(running.iter().all(|container| container.name != "stray" && container.name != "mine"), "{running:?}");
    }

    // Routes, records and files.
    for host in &hosts {
        host.engine(&["exec", "kamal-proxy", "kamal-proxy", "remove", "drift-web"])?;
        let lease = r#"{"boot_id":"gone","expires_ms":0,"fencing":1,"holder":"x","session":1,"session_start":1,"version":1,"who":"mallory@nowhere"}"#;
        host.write_file(&format!("{RECORDS}/lease.json"), lease.as_bytes())?;
        host.exec(&["sed", "-i", r#"s/"number":1/"number":9/"#, "/var/lib/jiji/roster.json"])?;
        host.exec(&["sed", "-i", "1s/committed/reverted/", &format!("{RECORDS}/audit.jsonl")])?;
        let newest = format!("sed -i 's/drift --fix/mine/' $(ls {RECORDS}/releases/*.json | sort -V | tail -n 1)");
        host.exec(&["sh", "-c", &newest])?;
        host.exec(&[
            "sh",
            "-c",
            "for program in /var/lib/jiji/bin/*; do printf x >> $program; done; chmod 755 /var/lib/jiji",
        ])?;
    }
    found_and_mended(&project, &["route", "lease", "roster", "audit", "release", "program", "mode"])?;
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);

    // Another target, and what only grows went back.
    for host in &hosts {
        let stray = format!(
            "--target={}:8080",
            container(host, "made")?["NetworkSettings"]["Networks"]["jiji"]["IPAddress"].as_str().unwrap_or_default()
        );
        let deploy = ["deploy", "drift-web", stray.as_str(), "--host=drift.test", "--health-check-path=/up"];
        host.engine(&[&["exec", "kamal-proxy", "kamal-proxy"], deploy.as_slice()].concat())?;
        host.write_file(&format!("{RECORDS}/fencing"), b"1\n")?;
        host.exec(&["sed", "-i", "1s/{/[/", &format!("{RECORDS}/journal")])?;
        host.exec(&["rm", "/var/lib/jiji/host.key"])?;
    }
    found_and_mended(&project, &["route", "fencing", "journal", "host-key"])?;
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);

    // The proxy itself, and a run that was killed.
    project.set_version("v3")?;
    let died = Run::of(project.command(&["ship", "--json"])?.env("JIJI_ABORT_AT", "prepared"))?;
    assert_eq!(died.signal(), Some(6), "{died}");
    found_and_mended(&project, &["transaction"])?;
    for host in &hosts {
        host.engine(&["stop", "kamal-proxy"])?;
    }
    found_and_mended(&project, &["proxy"])?;
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);

    // What is somebody else's is left to people.
    let target = format!("{}:8080", look::running(&hosts[1], "drift")?[0].address);
    let proxy = ["exec", "kamal-proxy", "kamal-proxy"];
    hosts[1].engine(&[proxy.as_slice(), &["remove", "drift-web"]].concat())?;
    let foreign =
        ["deploy", "somebody-else", "--target", &target, "--host", "drift.test", "--health-check-path", "/up"];
    hosts[1].engine(&[proxy.as_slice(), &foreign].concat())?;
    let run = project.run(&["drift", "--fix"])?.expect(13)?;
    let left = told(&run, "drift.left");
    assert_eq!(left.iter().map(|(host, kind, _)| (*host, *kind)).collect::<Vec<_>>(), [("two", "route")], "{run}");
    assert_eq!(left[0].2["fixable"], false, "{run}");
    hosts[1].engine(&[proxy.as_slice(), &["remove", "somebody-else"]].concat())?;
    project.run(&["drift", "--fix"])?.expect(0)?;
    project.run(&["drift"])?.expect(0)?;
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);
    Ok(())
}
