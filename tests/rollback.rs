//! `jiji rollback` on two real hosts, one with Podman and one with Docker: after images were pruned, after a host was replaced by an empty
//! one, after a ship that failed and one that was killed.

use std::time::Duration;

use jiji_e2e::{Outcome, Project, Run, Shared, Site, look};
use jiji_lab::{Engines, Host};

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// The servers' names in deploy.yml, in the order of the lab's hosts.
const SERVERS: [&str; 2] = ["one", "two"];

/// Two hosts in the order of [`SERVERS`].
fn pair(site: &Site) -> Outcome<[Host; 2]> {
    site.hosts().try_into().map_err(|hosts| format!("two hosts are due, not {hosts:?}").into())
}

/// Takes a project's images out of a host's engine, whatever runs: as a `prune --all` by somebody would, once the container is gone.
fn prune(host: &Host, project: &str) -> Outcome {
    let listed = host.engine(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
    let keep = look::only(host, project)?.config;
    for name in listed.lines().filter(|name| name.starts_with(&format!("jiji.local/{project}/"))) {
        let id = host.engine(&["image", "inspect", "--format", "{{.Id}}", name])?;
        if !keep.ends_with(id.trim().trim_start_matches("sha256:")) {
            host.engine(&["rmi", "--force", name])?;
        }
    }
    Ok(())
}

/// Empties a host as if it were a new one: no container, no image, no network of jiji's, no record.
fn replace(host: &Host) -> Outcome {
    let ids = host.engine(&["ps", "--all", "--quiet"])?;
    let ids: Vec<&str> = ids.split_whitespace().collect();
    if !ids.is_empty() {
        host.engine(&[&["rm", "--force", "--volumes"], ids.as_slice()].concat())?;
    }
    host.engine(&["network", "rm", "jiji"])?;
    host.engine(&["image", "prune", "--all", "--force"])?;
    host.exec(&["find", "/var/lib/jiji", "-mindepth", "1", "-delete"])?;
    Ok(())
}

/// Everything that this machine has of images.
fn forget_store(project: &Project<'_>) -> Outcome {
    Ok(std::fs::remove_dir_all(project.cache().join("jiji/store"))?)
}

/// The names that a host's engine lists for a project's images.
fn listed(host: &Host, project: &str) -> Outcome<Vec<String>> {
    let listed = host.engine(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
    let mut names: Vec<String> =
        listed.lines().filter(|name| name.starts_with(&format!("jiji.local/{project}/"))).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

#[test]
fn what_one_project_prunes_another_with_the_same_content_keeps() -> Outcome {
    let site = LAB.take()?;
    let hosts = pair(&site)?;
    let [keeper, pruner] = [Project::new(&site, "keeper")?, Project::new(&site, "pruner")?];
    for version in ["v1", "v2"] {
        keeper.set_version(version)?;
        keeper.ship()?;
    }
    let before = [listed(&hosts[0], "keeper")?, listed(&hosts[1], "keeper")?];
    // The first one's image of `v1` has no container, and the third of these prunes it.
    for version in ["v1", "v2", "v3", "v4"] {
        pruner.set_version(version)?;
        pruner.ship()?;
    }
    for (host, before) in hosts.iter().zip(&before) {
        assert_eq!(before.len(), 2, "{}: {before:?}", host.name);
        assert_eq!(listed(host, "keeper")?, *before, "{}", host.name);
        assert_eq!(listed(host, "pruner")?.len(), 2, "{}", host.name);
    }
    keeper.run(&["rollback"])?.expect(0)?;
    assert_eq!(site.versions(&keeper.authority())?, [["v1"], ["v1"]]);
    // And who prunes last takes the content along.
    for version in ["v5", "v6", "v7"] {
        keeper.set_version(version)?;
        keeper.ship()?;
    }
    for host in &hosts {
        assert_eq!(listed(host, "keeper")?.len(), 2, "{}", host.name);
        let nameless = host.engine(&["images", "--quiet", "--filter", "dangling=true"])?;
        assert_eq!(nameless.trim(), "", "{}", host.name);
    }
    Ok(())
}

/// The number of the newest release, as `jiji releases` tells it.
fn newest(project: &Project<'_>) -> Outcome<u64> {
    let listed = project.run(&["releases"])?.expect(0)?;
    listed.events[0]["releases"][0]["number"].as_u64().ok_or_else(|| format!("no release is listed: {listed}").into())
}

fn rolled_back_to(run: &Run) -> Vec<u64> {
    run.events_of("ship.rollback").filter_map(|event| event["data"]["release"].as_u64()).collect()
}

#[test]
fn a_release_is_gone_back_to_after_its_image_was_pruned_everywhere_it_can_be_had_from() -> Outcome {
    let site = LAB.take()?;
    let mut project = Project::new(&site, "pruned")?;
    let authority = project.authority();
    let hosts = pair(&site)?;
    // Versions that no other project here has: an image that one of them runs is not removed.
    project.set_version("p1")?;
    let first = project.ship()?;
    for version in ["p2", "p3"] {
        project.set_version(version)?;
        project.ship()?;
    }
    let listed = project.run(&["releases"])?.expect(0)?;
    let releases = listed.events[0]["releases"].as_array().ok_or("a list")?.clone();
    let numbers: Vec<u64> = releases.iter().filter_map(|release| release["number"].as_u64()).collect();
    assert_eq!(numbers.len(), 3, "{listed}");
    for server in SERVERS {
        assert_eq!(releases[0]["hosts"][server], serde_json::json!({"current": true, "images": true}));
        assert_eq!(releases[2]["hosts"][server], serde_json::json!({"current": false, "images": false}), "`retain: 2`");
    }
    let people = project.show(&["history"])?.expect(0)?;
    println!("{}", people.stdout);
    assert!(people.stdout.contains("one (pruned), two (pruned)"), "{people}");

    // By the beginning of its image's digest, from this machine's store, with another value of the secret, under load.
    project.secret = "another value".to_owned();
    let image = first.image("web")?;
    let (run, report) = site.under_load(&site.brisk_load(&authority, Duration::from_secs(150)), || {
        project.run(&["rollback", &image[..19]])
    })?;
    let run = run.expect(0)?;
    println!("rolled back in {:.1}s under load: {report}", run.took.as_secs_f64());
    report.without_failure()?;
    assert_eq!(rolled_back_to(&run), [numbers[2]]);
    assert_eq!(run.image("web")?, image);
    assert!(run.summary()?["blob_bytes_sent"].as_u64().is_some_and(|sent| sent > 0), "{run}");
    let told: Vec<_> = run.events_of("rollback.secrets").map(|event| &event["data"]["values"]).collect();
    assert_eq!(told, ["differ"], "the release ran with another value: {run}");
    assert_eq!(site.versions(&authority)?, [["p1"], ["p1"]]);

    // Somebody pruned the engines, and this machine lost its store: the hosts' own stores have what they retain.
    for host in &hosts {
        prune(host, "pruned")?;
    }
    forget_store(&project)?;
    let run = project.run(&["rollback"])?.expect(0)?;
    assert_eq!(rolled_back_to(&run), [numbers[0]], "the last one that ran something else");
    assert_eq!(run.summary()?["blob_bytes_sent"], 0, "{run}");
    assert_eq!(site.versions(&authority)?, [["p3"], ["p3"]]);

    // One host lost its store too: the other one has it.
    for host in &hosts {
        prune(host, "pruned")?;
    }
    hosts[0].exec(&["rm", "-r", "/var/lib/jiji/store/blobs"])?;
    forget_store(&project)?;
    let run = project.run(&["rollback"])?.expect(0)?;
    assert!(run.events_of("fleet.fetching").all(|event| event["host"] == "two"), "{run}");
    assert!(run.events_of("fleet.fetching").count() > 0, "{run}");
    assert_eq!(site.versions(&authority)?, [["p1"], ["p1"]]);

    // Nobody has it: nothing happens, and the sources of that version bring it back.
    for host in &hosts {
        prune(host, "pruned")?;
        host.exec(&["rm", "-r", "/var/lib/jiji/store/blobs"])?;
    }
    forget_store(&project)?;
    let before = newest(&project)?;
    let run = project.show(&["rollback", &numbers[1].to_string()])?.expect(15)?;
    println!("{}", run.stderr);
    for due in ["not in this machine's store, no registry is known", "`one`, `two`", "jiji build", "hint: "] {
        assert!(run.stderr.contains(due), "the message shows `{due}`: {run}");
    }
    assert_eq!((newest(&project)?, site.versions(&authority)?), (before, vec![vec!["p1".to_owned()]; 2]));
    project.set_version("p2")?;
    project.run(&["build"])?.expect(0)?;
    project.run(&["rollback", &numbers[1].to_string()])?.expect(0)?;
    assert_eq!(site.versions(&authority)?, [["p2"], ["p2"]]);
    Ok(())
}

#[test]
fn a_host_that_was_replaced_by_an_empty_one_is_rolled_back_with_the_others() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "replaced")?;
    let authority = project.authority();
    project.ship()?;
    project.set_version("v2")?;
    project.ship()?;
    for (server, host) in SERVERS.into_iter().zip(pair(&site)?) {
        replace(&host)?;
        let run = project.run(&["rollback"])?.expect(0)?;
        let adopted: Vec<_> = run.events_of("rollback.adopted").map(|event| &event["host"]).collect();
        assert_eq!(adopted, [server], "{run}");
        assert_eq!(site.versions(&authority)?, [["v1"], ["v1"]]);
        for host in site.hosts() {
            look::only(&host, "replaced")?;
        }
        println!("replaced `{server}`, rolled back in {:.1}s", run.took.as_secs_f64());
        // The other engine is the new host next, with v1 as the last good release again.
        project.set_version("v3")?;
        project.ship()?;
    }
    Ok(())
}

#[test]
fn after_a_ship_that_failed_or_was_killed_a_rollback_goes_to_the_last_good_release() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "failed")?;
    let authority = project.authority();
    project.ship()?;
    project.set_version("v2")?;
    project.ship()?;
    let good = newest(&project)?;

    // Killed after the routes moved, before it was decided: to take that back is the rollback.
    project.set_version("v3")?;
    let died = Run::of(project.command(&["ship", "--json"])?.env("JIJI_ABORT_AT", "cut-over"))?;
    assert_eq!(died.signal(), Some(6), "{died}");
    assert_eq!(site.versions(&authority)?, [["v3"], ["v3"]], "it was routed");
    let run = project.run(&["rollback"])?.expect(0)?;
    assert_eq!(rolled_back_to(&run), [good], "{run}");
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);

    // Failed, and so taken back by itself: the release before goes one further.
    project.edit("path: /up\n", "path: /nowhere\n")?;
    project.edit("interval: 200ms\n", "interval: 200ms\n        deploy_timeout: 2s\n")?;
    project.run(&["ship"])?.expect(7)?;
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);
    let run = project.run(&["rollback"])?.expect(0)?;
    assert!(rolled_back_to(&run)[0] < good, "{run}");
    assert_eq!(site.versions(&authority)?, [["v1"], ["v1"]]);
    for host in site.hosts() {
        look::only(&host, "failed")?;
    }
    let unknown = project.show(&["rollback", "9999"])?.expect(15)?;
    assert!(unknown.stderr.contains("hosts remember") && unknown.stderr.contains("jiji releases"), "{unknown}");
    Ok(())
}
