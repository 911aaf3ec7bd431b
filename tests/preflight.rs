//! Hosts that are not fit for a ship: refused before any effect, with everything that is wrong with each on one screen.

use std::time::{Duration, Instant};

use jiji_e2e::look::State;
use jiji_e2e::{Outcome, Project, Run, Shared, Site};
use jiji_lab::{Engines, Host};
use serde_json::Value;

static LAB: Shared = Shared::new(2, Engines::Mixed);

fn says(run: &Run, due: &[&str]) {
    for due in due {
        assert!(run.stderr.contains(due), "`{due}` is to be said: {run}");
    }
}

fn pair(site: &Site) -> Outcome<[Host; 2]> {
    site.hosts().try_into().map_err(|hosts| format!("two hosts are due, not {hosts:?}").into())
}

/// Somebody else's web server on a host, until it is dropped.
struct Squatter<'a>(&'a Host);

impl<'a> Squatter<'a> {
    fn on(host: &'a Host, port: u16) -> Outcome<Self> {
        host.exec(&["busybox", "httpd", "-p", &port.to_string(), "-h", "/srv"])?;
        let squatter = Self(host);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !host.exec(&["ss", "-Hltn", &format!("sport = :{port}")])?.contains("LISTEN") {
            if Instant::now() > deadline {
                return Err("nobody listens".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(squatter)
    }
}

impl Drop for Squatter<'_> {
    fn drop(&mut self) {
        // Of the host's own processes: a host has a process namespace to itself.
        drop(self.0.exec(&["sh", "-c", "kill $(pidof busybox)"]));
    }
}

/// What `jiji server check --json` says of a server.
fn checked(run: &Run, server: &str) -> Outcome<Value> {
    // What was seen comes first; that it is an error follows as events do.
    let all: Value = serde_json::from_str(run.stdout.lines().next().ok_or("nothing was said")?)?;
    Ok(all["hosts"][server].clone())
}

fn codes(host: &Value) -> Vec<&str> {
    host["findings"].as_array().into_iter().flatten().filter_map(|finding| finding["code"].as_str()).collect()
}

#[test]
fn a_full_disk_and_a_taken_port_are_told_at_once_and_nothing_is_begun() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "unfit")?;
    let [one, two] = pair(&site)?;
    // First contact brings jiji-host, which is not what this is about.
    let fit = project.run(&["server", "check"])?.expect(0)?;
    for server in ["one", "two"] {
        assert_eq!(checked(&fit, server)?["fit"], true, "{fit}");
    }
    let before = [State::of(&one)?, State::of(&two)?];
    one.fill_disk(8 << 20)?;
    let squatter = Squatter::on(&two, 80)?;
    let sessions = [one.ssh_sessions()?, two.ssh_sessions()?];
    let check = project.run(&["server", "check"])?;
    let shown = project.show(&["server", "check"])?;
    let ship = project.show(&["ship"])?;
    for (host, sessions) in [&one, &two].into_iter().zip(sessions) {
        assert_eq!(host.ssh_sessions()?.sessions - sessions.sessions, 3, "one exec each, on {}", host.name);
    }
    drop(squatter);
    one.free_filled_disk()?;

    println!("{}", ship.stderr);
    says(
        &ship.expect(15)?,
        &[
            "nothing was changed",
            "one\n",
            "disk: ",
            "podman system prune",
            "two\n",
            "port 80: `busybox` (process ",
            "`kamal-proxy` is to publish it",
            "plugins.proxy.settings",
        ],
    );
    let check = check.expect(15)?;
    // The directory of jiji and the engine's storage are two file systems of the host's one disk.
    assert_eq!(codes(&checked(&check, "one")?), ["disk", "disk"], "{check}");
    assert_eq!(codes(&checked(&check, "two")?), ["port_taken"], "{check}");
    let shown = shown.expect(15)?;
    println!("{}", shown.stdout);
    assert!(shown.stdout.contains("port 80: `busybox`") && shown.stdout.contains("hint: "), "{shown}");
    for (host, before) in [&one, &two].into_iter().zip(before) {
        assert_eq!(State::of(host)?, before, "{}", host.name);
    }

    // With both out of the way it ships; its own proxy is nobody else, and a full disk is no matter where nothing is to be done.
    project.ship()?;
    let own = project.run(&["server", "check"])?.expect(0)?;
    assert_eq!(codes(&checked(&own, "two")?), Vec::<&str>::new());
    one.fill_disk(8 << 20)?;
    let unchanged = project.run(&["ship"])?;
    one.free_filled_disk()?;
    assert_eq!(unchanged.expect(0)?.summary()?["result"], "unchanged");
    Ok(())
}

#[test]
fn an_image_in_zstd_runs_with_podman_and_is_refused_where_docker_cannot_read_it() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "zstd")?;
    let [one, two] = pair(&site)?;
    // An image that a host has already, by its configuration, is asked for in no compression.
    project.set_version("of its own")?;
    project.run(&["server", "check"])?.expect(0)?;
    let before = [State::of(&one)?, State::of(&two)?];
    project.edit("build: .\n", "build:\n      compression: zstd\n")?;
    let refused = project.show(&["ship"])?;
    println!("{}", refused.stderr);
    says(
        &refused.expect(15)?,
        &["nothing was changed", "two\n", "cannot read layers compressed with zstd", "leave out `compression: zstd`"],
    );
    assert_eq!([State::of(&one)?, State::of(&two)?], before);

    project.spread(1)?;
    let ship = project.ship()?;
    let running = jiji_e2e::look::only(&one, "zstd")?;
    assert_eq!(running.manifest, Some(ship.image("web")?), "the image that was built, and no other");
    Ok(())
}

#[test]
fn mending_and_another_proxy_are_refused_on_a_host_that_is_not_fit_as_a_ship_is() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "mended")?;
    let [one, two] = pair(&site)?;
    project.ship()?;
    let name = jiji_e2e::look::only(&one, "mended")?.name;
    one.engine(&["rm", "--force", &name])?;
    one.fill_disk(8 << 20)?;
    let before = [State::of(&one)?, State::of(&two)?];
    let fix = project.show(&["drift", "--fix"]);
    let after = [State::of(&one)?, State::of(&two)?];
    one.free_filled_disk()?;
    says(&fix?.expect(15)?, &["nothing was changed", "one\n", "disk: "]);
    assert_eq!(before, after);
    project.run(&["drift", "--fix", "--wait-lock", "1s"])?.expect(0)?;
    project.run(&["drift", "--wait-lock", "1s"])?.expect(2)?;

    // The port of loopback that the bridge between two proxies takes.
    let image = "      image: ${LAB_KAMAL_PROXY}\n";
    project.edit(image, &format!("{image}      https_port: 8443\n"))?;
    let squatter = Squatter::on(&two, 20_080)?;
    let before = [State::of(&one)?, State::of(&two)?];
    let upgrade = project.show(&["proxy", "upgrade", "--wait-lock", "1s"]);
    drop(squatter);
    says(&upgrade?.expect(15)?, &["nothing was changed", "two\n", "port 20080: `busybox`"]);
    assert_eq!([State::of(&one)?, State::of(&two)?], before);
    Ok(())
}

#[test]
fn an_engine_that_is_not_there_or_does_not_answer_is_told_with_what_to_install_or_start() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "engines")?;
    let [one, two] = pair(&site)?;
    let programs = [(&one, "/usr/bin/podman"), (&two, "/usr/bin/docker")];
    one.exec(&["mv", programs[0].1, "/usr/bin/podman.away"])?;
    // The socket is gone while the daemon runs on: the engine is there and gives no answer.
    two.exec(&["mv", "/run/docker.sock", "/run/docker.away"])?;
    let check = project.run(&["server", "check"]);
    let ship = project.show(&["ship"]);
    two.exec(&["mv", "/run/docker.away", "/run/docker.sock"])?;
    one.exec(&["mv", "/usr/bin/podman.away", programs[0].1])?;
    let (check, ship) = (check?.expect(15)?, ship?.expect(15)?);
    assert_eq!(codes(&checked(&check, "one")?), ["engine_missing"], "{check}");
    assert_eq!(codes(&checked(&check, "two")?), ["engine_silent"], "{check}");
    println!("{}", ship.stderr);
    says(
        &ship,
        &[
            "one\n",
            "not installed",
            "apt-get install podman",
            "two\n",
            "Cannot connect to the Docker daemon",
            "systemctl enable --now docker",
        ],
    );
    project.run(&["server", "check"])?.expect(0)?;
    Ok(())
}
