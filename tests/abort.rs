//! What was interrupted comes to its end: by `jiji abort` from anywhere, and by a signal in order.

use std::process::Command;
use std::time::{Duration, Instant};

use jiji_e2e::{Outcome, Project, Run, Running, Shared, Site, jiji_bin, look};
use jiji_lab::Engines;
use jiji_lab::command::{command, run};
use serde_json::Value;

static LAB: Shared = Shared::new(2, Engines::Mixed);

fn signal(pid: u32, name: &str) -> Outcome {
    run(&mut command("kill", [format!("-{name}"), pid.to_string()]))?;
    Ok(())
}

/// `jiji abort` on a machine that has neither the sources nor anything else of the project: it knows one host's address.
fn abort_elsewhere(site: &Site, name: &str, host: usize) -> Outcome<Command> {
    let empty = tempfile::tempdir()?.keep();
    let address = format!("ssh://{}", site.hosts()[host].name);
    let mut command = site.lab.operator_command(jiji_bin()?);
    command.args(["abort", "--json", "--name", name, "--host", &address]);
    command.arg("--ssh-config").arg(site.lab.ssh_config()).current_dir(&empty);
    command
        .env("HOME", &empty)
        .env("XDG_CACHE_HOME", &empty)
        .env("XDG_RUNTIME_DIR", empty.join("run"))
        .env("CI", "true");
    Ok(command)
}

/// Leaves the project as a run leaves it that dies there.
fn die(project: &Project<'_>, version: &str, point: &str) -> Outcome {
    project.set_version(version)?;
    let died = Run::of(project.command(&["ship", "--json"])?.env("JIJI_ABORT_AT", point))?;
    assert_eq!(died.signal(), Some(6), "at {point}: {died}");
    Ok(())
}

fn only_on_both(site: &Site, name: &str) -> Outcome {
    site.hosts().iter().try_for_each(|host| look::only(host, name).map(drop))
}

#[test]
fn what_was_left_open_is_settled_without_the_sources_from_one_address() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "left")?;
    let authority = project.authority();
    project.ship()?;
    for (version, point, way, serves) in [("v2", "cut-over", "reverted", "v1"), ("v3", "settled-one", "finished", "v3")]
    {
        die(&project, version, point)?;
        let status = project.run(&["status"])?.expect(9)?;
        assert_eq!(status.events[0]["open"][0]["at_work"], false, "{status}");
        assert!(status.stderr.contains("jiji abort"), "{status}");

        // The second host's address leads to the first one's too.
        let aborted = Run::of(&mut abort_elsewhere(&site, "left", 1)?)?.expect(0)?;
        let settled = &aborted.summary()?["settled"];
        assert_eq!(settled[0]["result"], way, "at {point}: {aborted}");
        assert_eq!(settled[0]["hosts"], serde_json::json!(["one", "two"]), "at {point}: {aborted}");
        assert_eq!(site.versions(&authority)?, [[serves], [serves]], "at {point}");
        only_on_both(&site, "left")?;
        project.run(&["status"])?.expect(0)?;
    }
    // The first host has nothing open any more, and still knows who took part.
    die(&project, "v4", "concluded-one")?;
    let aborted = Run::of(&mut abort_elsewhere(&site, "left", 0)?)?.expect(0)?;
    assert_eq!(aborted.summary()?["settled"][0]["hosts"], serde_json::json!(["two"]), "{aborted}");
    assert_eq!(site.versions(&authority)?, [["v4"], ["v4"]]);
    only_on_both(&site, "left")?;
    let again = project.run(&["abort"])?.expect(0)?;
    assert_eq!(again.summary()?["result"], "unchanged");
    Ok(())
}

#[test]
fn a_host_that_cannot_be_reached_is_named_and_follows_the_others_when_it_is_back() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "away")?;
    let authority = project.authority();
    project.ship()?;
    for (version, command) in [("v2", "abort"), ("v3", "status")] {
        // The first host alone knows that it was decided.
        die(&project, version, "settled-one")?;
        // A look settles nothing as long as there is something to choose.
        let status = project.run(&["status"])?.expect(9)?;
        assert_eq!(status.events[0]["settled"], serde_json::json!([]), "{status}");
        let away = &site.hosts()[0];
        away.cut_link()?;
        let aborted = Run::of(&mut abort_elsewhere(&site, "away", 1)?)?;
        away.restore_link()?;
        let aborted = aborted.expect(9)?;
        assert!(aborted.stderr.contains("`one` in doubt"), "{aborted}");
        let error = aborted.events_of("summary").next().ok_or("no summary")?;
        assert_eq!(error["data"]["settled"][0]["result"], "reverted", "{aborted}");
        assert_eq!(error["data"]["settled"][0]["in_doubt"], serde_json::json!(["one"]), "{aborted}");

        let followed = project.run(&[command])?.expect(0)?;
        let settled = match command {
            "status" => &followed.events[0]["settled"][0],
            _ => &followed.summary()?["settled"][0],
        };
        assert_eq!(settled["result"], "reverted", "{followed}");
        assert_eq!(settled["hosts"], serde_json::json!(["one"]), "{followed}");
        assert_eq!(site.versions(&authority)?, [["v1"], ["v1"]]);
        only_on_both(&site, "away")?;
        at_rest(&project)?;
    }
    Ok(())
}

/// What has systemd start Podman's containers when a machine boots.
const AT_BOOT: &str = "/etc/systemd/system/default.target.wants/podman-restart.service";

/// Both hosts lose their power and come back.
fn off_and_on(site: &Site) -> Outcome {
    for host in site.hosts() {
        host.kill()?;
    }
    for host in site.hosts() {
        host.boot()?;
    }
    Ok(())
}

#[test]
fn hosts_that_lost_power_in_the_middle_serve_again_once_they_are_settled() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "power")?;
    let authority = project.authority();
    project.ship()?;
    // Without this unit Podman starts nothing again by itself.
    for host in site.hosts() {
        host.exec(&["rm", "-f", AT_BOOT])?;
    }
    for (version, point, way, serves) in [("v2", "cut-over", "reverted", "v1"), ("v3", "settled", "finished", "v3")] {
        die(&project, version, point)?;
        off_and_on(&site)?;
        let aborted = Run::of(&mut abort_elsewhere(&site, "power", 0)?)?.expect(0)?;
        assert_eq!(aborted.summary()?["settled"][0]["result"], way, "at {point}: {aborted}");
        let revived: Vec<_> = aborted.events_of("apply.revived").map(|event| &event["data"]["container"]).collect();
        assert!(revived.iter().any(|container| *container == "kamal-proxy"), "at {point}: {revived:?}");
        assert_eq!(site.versions(&authority)?, [[serves], [serves]], "at {point}");
        only_on_both(&site, "power")?;
    }
    // With nothing open the next ship brings back what should run.
    off_and_on(&site)?;
    project.ship()?;
    assert_eq!(site.versions(&authority)?, [["v3"], ["v3"]]);
    only_on_both(&site, "power")?;
    at_rest(&project)?;

    // With it nobody needs to do anything.
    for host in site.hosts() {
        host.exec(&["ln", "-s", "/lib/systemd/system/podman-restart.service", AT_BOOT])?;
    }
    off_and_on(&site)?;
    let booted = Instant::now();
    loop {
        // The proxy may be up before what it leads to.
        match site.versions(&authority) {
            Ok(versions) if versions == [["v3"], ["v3"]] => break,
            seen => assert!(booted.elapsed() < Duration::from_secs(120), "{seen:?}"),
        }
    }
    only_on_both(&site, "power")?;
    at_rest(&project)
}

/// A ship that waits for a candidate which does not become healthy as long as there is a file.
fn waiting(site: &Site, project: &Project<'_>, version: &str) -> Outcome<Running> {
    for host in site.hosts() {
        host.exec(&["mkdir", "-p", "/etc/hello"])?;
        host.write_file("/etc/hello/sick", b"for now\n")?;
    }
    project.set_version(version)?;
    let mut run = project.start(&["ship"])?;
    run.wait_for("a probe", |event| event["event"] == "apply.probed")?;
    Ok(run)
}

fn at_rest(project: &Project<'_>) -> Outcome {
    let status = project.run(&["status"])?.expect(0)?;
    assert_eq!(status.events[0]["open"], Value::Array(Vec::new()), "{status}");
    Ok(())
}

#[test]
fn a_signal_reverts_in_order_and_a_second_one_leaves_what_the_next_run_settles() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "signals")?;
    let authority = project.authority();
    project.edit("GREETING: hello\n", "GREETING: hello\n        UNHEALTHY_IF: /etc/hello/sick\n")?;
    project.edit("    retain: 2\n", "    retain: 2\n    volumes: [\"/etc/hello:/etc/hello:ro\"]\n")?;
    project.edit("interval: 200ms\n", "interval: 200ms\n        deploy_timeout: 100s\n")?;
    for host in site.hosts() {
        host.exec(&["mkdir", "-p", "/etc/hello"])?;
    }
    project.ship()?;
    for (version, name) in [("v2", "INT"), ("v3", "TERM")] {
        let run = waiting(&site, &project, version)?;
        let begun = Instant::now();
        signal(run.pid(), name)?;
        let run = run.end()?.expect(14)?;
        let took = begun.elapsed();
        println!("SIG{name}: reverted in {:.1}s", took.as_secs_f64());
        // What a CI system leaves between its first signal and its last.
        assert!(took < Duration::from_secs(10), "reverting took {took:?}: {run}");
        assert!(run.stderr.contains("the old version serves"), "{run}");
        only_on_both(&site, "signals")?;
        at_rest(&project)?;
    }

    let run = waiting(&site, &project, "v4")?;
    signal(run.pid(), "INT")?;
    signal(run.pid(), "INT")?;
    let run = run.end()?;
    // The first may have been enough by then.
    assert!(matches!(run.code(), Some(9 | 14)), "{run}");
    if run.code() == Some(9) {
        assert!(run.stderr.contains("jiji abort"), "{run}");
    }
    project.run(&["abort", "--wait-lock", "60s"])?.expect(0)?;
    only_on_both(&site, "signals")?;

    let run = waiting(&site, &project, "v5")?;
    for name in ["INT", "TERM", "KILL"] {
        signal(run.pid(), name)?;
    }
    assert_ne!(run.end()?.code(), Some(0));
    for host in site.hosts() {
        host.remove_file("/etc/hello/sick")?;
    }
    let run = project.run(&["ship", "--wait-lock", "60s"])?.expect(0)?;
    if let Some(settled) = run.summary()?["settled"].as_array().and_then(|all| all.first()) {
        assert_eq!(settled["result"], "reverted", "{run}");
    }
    assert_eq!(site.versions(&authority)?, [["v5"], ["v5"]]);
    only_on_both(&site, "signals")?;
    at_rest(&project)
}

#[test]
fn a_signal_stops_a_build_and_nothing_of_it_runs_on() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "building")?;
    let path = project.root().join("Dockerfile");
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(&path, format!("{text}RUN [\"sleep\", \"86399\"]\n"))?;
    let mut run = project.start(&["ship"])?;
    run.wait_for("the build", |event| event["event"] == "build.started")?;
    std::thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    signal(run.pid(), "INT")?;
    let run = run.end()?.expect(14)?;
    assert!(begun.elapsed() < Duration::from_secs(5), "{run}");
    std::thread::sleep(Duration::from_millis(300));
    let running = String::from_utf8(jiji_lab::command::run(&mut command("ps", ["-eo", "args"]))?)?;
    assert!(!running.contains("sleep 86399"), "the step runs on: {running}");
    for host in site.hosts() {
        assert!(look::running(&host, "building")?.is_empty());
    }
    Ok(())
}
