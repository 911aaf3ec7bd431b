//! `jiji ship` on two real hosts, one with Podman and one with Docker, under an honest load.

use std::time::Duration;

use jiji_e2e::look::{self, State};
use jiji_e2e::{Outcome, Project, Run, Shared, Site};
use jiji_lab::load::Report;
use jiji_lab::{Engines, Host};

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// The longest load of one ship.
const LOAD: Duration = Duration::from_secs(150);

/// The servers' names in deploy.yml, in the order of the lab's hosts.
const SERVERS: [&str; 2] = ["one", "two"];

/// Two hosts in the order of [`SERVERS`].
fn pair(site: &Site) -> Outcome<[Host; 2]> {
    site.hosts().try_into().map_err(|hosts| format!("two hosts are due, not {hosts:?}").into())
}

/// Refuses a run in which a request failed, or in which a host was not moved from `old` to `new` when the ship said so.
fn moved(report: &Report, run: &Run, hosts: &[Host], old: &str, new: &str) -> Outcome {
    report.without_failure()?;
    for (server, host) in SERVERS.into_iter().zip(hosts) {
        report.cutover(&host.name, run.cutover(server)?, old, new)?;
    }
    Ok(())
}

/// Refuses a run in which a request failed, or was answered by another version.
fn only_old(report: &Report, old: &str) -> Outcome {
    report.without_failure()?;
    for target in &report.targets {
        let versions: Vec<_> = target.versions.keys().collect();
        assert_eq!(versions, [old], "{}", target.name);
    }
    Ok(())
}

#[test]
fn a_changed_version_is_shipped_under_load_without_a_failed_request() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "change")?;
    let authority = project.authority();
    let hosts = pair(&site)?;
    println!("first ship in {:.1}s", project.ship()?.took.as_secs_f64());

    let quiet = site.lab.baseline(&site.load(&authority, Duration::from_secs(5)))?;
    println!("baseline: {quiet}");

    project.set_version("v2")?;
    let mut full = site.load(&authority, LOAD);
    full.mix.slow_most = 5.0;
    let (run, report) = site.under_load(&full, || project.ship())?;
    println!("ship in {:.1}s: {report}", run.took.as_secs_f64());
    moved(&report, &run, &hosts, "v1", "v2")?;
    assert_eq!(run.summary()?["result"], "shipped");
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]], "afterwards only new answers");
    for host in &hosts {
        look::only(host, "change")?;
    }
    Ok(())
}

#[test]
fn a_version_that_is_sick_on_the_second_host_leaves_the_old_one_on_both() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "sick")?;
    let authority = project.authority();
    let [_, second] = pair(&site)?;
    project.ship()?;
    let before = [look::routes(&pair(&site)?[0])?, look::routes(&second)?];

    second.write_file("/etc/hello/sick", b"on this host only\n")?;
    pair(&site)?[0].exec(&["mkdir", "-p", "/etc/hello"])?;
    project.set_version("v2")?;
    project.edit("GREETING: hello\n", "GREETING: hello\n        UNHEALTHY_IF: /etc/hello/sick\n")?;
    project.edit("    retain: 2\n", "    retain: 2\n    volumes: [\"/etc/hello:/etc/hello:ro\"]\n")?;
    project.edit("interval: 200ms\n", "interval: 200ms\n        deploy_timeout: 4s\n")?;
    let (run, report) = site.under_load(&site.load(&authority, LOAD), || project.show(&["ship"]))?;
    println!("{report}");
    let run = run.expect(7)?;
    println!("{}", run.stderr);
    only_old(&report, "v1")?;
    for due in
        ["503", "unhealthy: /etc/hello/sick exists", "hello v2: listening on port 8080", "`two`", "hint: ", "jiji "]
    {
        assert!(run.stderr.contains(due), "the message shows `{due}`: {run}");
    }
    assert_eq!(site.versions(&authority)?, [["v1"], ["v1"]]);
    for (host, before) in pair(&site)?.iter().zip(before) {
        look::only(host, "sick")?;
        assert_eq!(look::routes(host)?, before, "{}", host.name);
    }

    second.remove_file("/etc/hello/sick")?;
    let (run, report) = site.under_load(&site.load(&authority, LOAD), || project.ship())?;
    moved(&report, &run, &pair(&site)?, "v1", "v2")
}

/// Healthy when it was gated, sick a moment later, on the canary alone: only the hold can see it.
#[test]
fn a_version_that_sickens_while_it_is_watched_is_taken_back_without_a_failed_request() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "watched")?;
    let authority = project.authority();
    let [first, second] = pair(&site)?;
    for host in [&first, &second] {
        host.exec(&["mkdir", "-p", "/etc/hello"])?;
    }
    project.ship()?;

    project.set_version("v2")?;
    project.edit("GREETING: hello\n", "GREETING: hello\n        UNHEALTHY_IF: /etc/hello/late\n")?;
    project.edit("    retain: 2\n", "    retain: 2\n    volumes: [\"/etc/hello:/etc/hello:ro\"]\n")?;
    project.edit("\nplugins:\n", "\nrollout:\n  canary: two\n  wait: 1s\n  hold: 60s\n\nplugins:\n")?;
    let (run, report) = site.under_load(&site.load(&authority, LOAD), || {
        let mut run = project.start(&["ship"])?;
        run.wait_for("the hold", |event| event["event"] == "apply.phase" && event["phase"] == "hold")?;
        std::thread::sleep(Duration::from_secs(2));
        first.write_file("/etc/hello/late", b"it worked at first\n")?;
        run.end()
    })?;
    println!("{report}");
    let run = run.expect(7)?;
    println!("{}", run.stderr);
    report.without_failure()?;
    assert!(run.cutover("two")? < run.cutover("one")?, "the canary goes first");
    for (host, name) in [(&first, "one"), (&second, "two")] {
        assert!(report.target(&host.name)?.versions.contains_key("v2"), "`{name}` was moved before it was watched");
        look::only(host, "watched")?;
    }
    assert_eq!(site.versions(&authority)?, [["v1"], ["v1"]]);
    assert!(run.stderr.contains("unhealthy: /etc/hello/late exists"), "the message shows what it said: {run}");
    first.remove_file("/etc/hello/late")?;
    Ok(())
}

#[test]
fn a_route_that_is_refused_on_the_second_host_is_taken_back_on_the_first() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "refused")?;
    let authority = project.authority();
    let [first, second] = pair(&site)?;
    project.ship()?;
    let old = [look::only(&first, "refused")?, look::only(&second, "refused")?];

    project.edit("\nplugins:\n", "\nrollout:\n  max_parallel: 1\n  wait: 3s\n\nplugins:\n")?;
    // Between the two cutovers, somebody else takes the new host name on the second host's proxy.
    project.set_version("v2")?;
    project.edit("host: refused.test\n", "hosts: [refused.test, taken.test]\n")?;
    let target = format!("{}:8080", old[1].address);
    let proxy = ["exec", "kamal-proxy", "kamal-proxy"];
    let deploy = ["deploy", "somebody-else", "--target", &target, "--host", "taken.test", "--health-check-path", "/up"];
    let (run, report) = site.under_load(&site.load(&authority, LOAD), || {
        let mut run = project.start(&["ship"])?;
        run.wait_for("the first cutover", |event| {
            event["event"] == "apply.step-started" && event["phase"] == "cutover" && event["host"] == "one"
        })?;
        second.engine(&[proxy.as_slice(), &deploy].concat())?;
        run.end()
    })?;
    println!("{report}");
    let run = run.expect(16)?;
    println!("{}", run.stderr);
    report.without_failure()?;
    assert!(report.target(&first.name)?.versions.contains_key("v2"), "the first host was cut over");
    assert!(!report.target(&second.name)?.versions.contains_key("v2"), "the second host was not");
    assert_eq!(site.versions(&authority)?, [["v1"], ["v1"]]);
    for (host, old) in [&first, &second].into_iter().zip(&old) {
        assert_eq!(look::only(host, "refused")?, *old, "{}", host.name);
    }
    assert!(run.stderr.contains("taken") || run.stderr.contains("conflict"), "the proxy's words are shown: {run}");

    second.engine(&[proxy.as_slice(), &["remove", "somebody-else"]].concat())?;
    project.ship()?;
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);
    Ok(())
}

#[test]
fn a_ship_without_a_change_is_one_exec_per_host_and_changes_nothing() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "same")?;
    project.ship()?;
    let hosts = pair(&site)?;
    let states = hosts.iter().map(State::of).collect::<Outcome<Vec<_>>>()?;
    let sessions = hosts.iter().map(Host::ssh_sessions).collect::<Result<Vec<_>, _>>()?;

    let run = project.ship()?;
    println!("unchanged ship in {:.2}s", run.took.as_secs_f64());
    let summary = run.summary()?;
    assert_eq!(summary["result"], "unchanged");
    assert_eq!(summary["blob_bytes_sent"], 0);
    for (server, (host, before)) in SERVERS.into_iter().zip(hosts.iter().zip(&sessions)) {
        assert_eq!(summary["execs"][server], 1, "{server}");
        let after = host.ssh_sessions()?;
        assert_eq!(after.sessions - before.sessions, 1, "sessions that sshd of {} logged", host.name);
    }
    for (host, before) in hosts.iter().zip(states) {
        assert_eq!(State::of(host)?, before, "{}", host.name);
    }
    Ok(())
}

/// The negative control of the tests above, and what jiji makes of it: the old ones are dead, and the ship brings the service back.
#[test]
fn where_the_old_ones_died_requests_fail_until_the_ship_replaces_them() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "wrong")?;
    let authority = project.authority();
    let hosts = pair(&site)?;
    project.ship()?;
    let before = hosts.iter().map(|host| Ok(look::only(host, "wrong")?.name)).collect::<Outcome<Vec<_>>>()?;
    project.set_version("v2")?;
    let full = site.load(&authority, LOAD);
    let control = site.lab.negative_control::<Box<dyn std::error::Error + Send + Sync>>(&full, || {
        // Stopped before the ship begins, so that it does not depend on how fast the route moves.
        for (host, name) in hosts.iter().zip(&before) {
            host.engine(&["stop", "--time", "5", name])?;
        }
        let run = project.ship()?;
        println!("the ship over dead containers took {:.1}s", run.took.as_secs_f64());
        Ok(())
    })?;
    println!("negative control, the old one stopped before the route: {control}");
    for target in &control.targets {
        assert!(target.failed() > 0, "{}", target.name);
    }
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);
    for host in &hosts {
        look::only(host, "wrong")?;
    }
    Ok(())
}
