//! A host on which nobody becomes root: a user's own Podman, and what is said where it lacks something.
//!
//! Health checks pass although nothing of the host leads to the containers; requests come in by the ports that are published.

use std::time::Duration;

use jiji_e2e::{Outcome, Project, Run, Shared, Site, look};
use jiji_lab::{Engines, Host, Spec};

static LAB: Shared = Shared::of(|| Spec::new(1, Engines::Podman).rootless(1));

/// The longest load of one change.
const LOAD: Duration = Duration::from_secs(90);

/// Where everything of jiji's lies.
const ROOT: &str = "/home/deploy/.local/share/jiji";

const SERVER: &str = "  one:\n    host: ${LAB_HOST_1}\n";

const PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

fn says(run: &Run, due: &[&str]) {
    for due in due {
        assert!(run.stderr.contains(due), "`{due}` is to be said: {run}");
    }
}

fn only_host(site: &Site) -> Outcome<Host> {
    site.hosts().pop().ok_or_else(|| "one host is due".into())
}

/// A project on that host as its user.
fn own<'a>(site: &'a Site, name: &str) -> Outcome<Project<'a>> {
    let project = Project::new(site, name)?;
    project.spread(1)?;
    project.edit(SERVER, &format!("{SERVER}    rootless: true\n"))?;
    Ok(project)
}

fn write(host: &Host, path: &str, text: &str) -> Outcome {
    host.exec(&["sh", "-c", "printf %s \"$1\" > \"$2\"", "write", text, path])?;
    Ok(())
}

#[test]
fn a_user_without_sudo_ships_goes_back_and_mends_under_load_without_a_failed_request() -> Outcome {
    let site = LAB.take()?;
    let host = only_host(&site)?;
    let project = own(&site, "own")?;
    let authority = project.authority();
    println!("first ship in {:.1}s", project.ship()?.took.as_secs_f64());
    let first = look::only(&host, "own")?;
    assert_eq!(host.exec(&["stat", "-c", "%U %a", ROOT])?.trim(), "deploy 700");
    assert!(!host.output(&["test", "-e", "/var/lib/jiji"])?.status.success(), "nothing is root's");

    let before = host.ssh_sessions()?;
    let run = project.ship()?;
    assert_eq!(run.summary()?["result"], "unchanged");
    assert_eq!(host.ssh_sessions()?.sessions - before.sessions, 1, "one exec");

    let quiet = site.lab.baseline(&site.load(&authority, Duration::from_secs(3)))?;
    println!("baseline: {quiet}");
    project.set_version("v2")?;
    let (run, report) = site.under_load(&site.brisk_load(&authority, LOAD), || project.ship())?;
    println!("ship in {:.1}s: {report}", run.took.as_secs_f64());
    report.without_failure()?;
    report.cutover(&host.name, run.cutover("one")?, "v1", "v2")?;
    assert_ne!(look::only(&host, "own")?.address, first.address, "both ran beside each other");

    let (run, report) =
        site.under_load(&site.brisk_load(&authority, LOAD), || project.run(&["rollback"])?.expect(0))?;
    println!("rollback in {:.1}s: {report}", run.took.as_secs_f64());
    report.without_failure()?;
    assert_eq!(site.versions(&authority)?, [["v1"]], "the old version answers again");

    // Somebody stops the container.
    let name = look::only(&host, "own")?.name;
    host.engine(&["stop", "--time", "1", &name])?;
    let found = project.run(&["drift"])?.expect(13)?;
    assert!(found.stdout.contains("exited") || found.stderr.contains("exited"), "{found}");
    project.run(&["drift", "--fix"])?.expect(0)?;
    assert_eq!(site.versions(&authority)?, [["v1"]]);
    project.run(&["drift"])?.expect(0)?;
    project.run(&["status"])?.expect(0)?;

    // Of what jiji and the engine have running nothing is root's.
    let all = host.exec(&["ps", "-e", "-o", "user=", "-o", "args="])?;
    let roots = all.lines().filter(|line| line.starts_with("root "));
    let theirs: Vec<_> = roots.filter(|line| line.contains("/jiji/bin/") || line.contains("conmon")).collect();
    assert!(theirs.is_empty(), "{theirs:#?}");
    assert!(all.lines().any(|line| line.starts_with("deploy ") && line.contains("conmon")), "{all}");
    Ok(())
}

#[test]
fn a_version_that_is_not_healthy_is_explained_and_the_old_one_stays() -> Outcome {
    let site = LAB.take()?;
    let host = only_host(&site)?;
    let project = own(&site, "sick")?;
    project.ship()?;
    let before = look::only(&host, "sick")?;
    project.set_version("v2")?;
    project.edit("        path: /up\n", "        path: /nowhere\n        deploy_timeout: 3s\n")?;
    let run = project.show(&["ship"])?.expect(7)?;
    println!("{}", run.stderr);
    says(&run, &["GET /nowhere", "404"]);
    assert_eq!(look::only(&host, "sick")?, before);
    assert_eq!(site.versions(&project.authority())?, [["v1"]]);
    Ok(())
}

#[test]
fn what_the_host_lacks_is_told_with_the_line_that_gives_it_and_nothing_is_begun() -> Outcome {
    let site = LAB.take()?;
    let host = only_host(&site)?;
    let project = own(&site, "lacks")?;
    // First contact brings jiji-host, which is not what this is about.
    project.run(&["server", "check"])?.expect(0)?;
    drop(host.engine(&["rm", "--force", "--time", "1", "kamal-proxy"])?);
    let ids = String::from_utf8(host.read_file("/etc/subuid")?)?;
    write(&host, PORTS, "1024")?;
    let ports = project.show(&["ship"]);
    write(&host, "/etc/subuid", "root:100000:65536\n")?;
    let nobody = project.show(&["ship"]);
    write(&host, "/etc/subuid", &ids)?;
    write(&host, PORTS, "80")?;
    says(
        &ports?.expect(15)?,
        &[
            "nothing was changed",
            "port 80: a user who is not root may listen on 1024 and above alone",
            "net.ipv4.ip_unprivileged_port_start=80",
            "sysctl --system",
        ],
    );
    says(&nobody?.expect(15)?, &["`/etc/subuid` gives `deploy` 0 of the 65536 ids", "usermod --add-subuids"]);

    project.ship()?;
    look::only(&host, "lacks")?;

    // Another proxy in the place of one that runs: root alone leads connections.
    let image = "      image: ${LAB_KAMAL_PROXY}\n";
    project.edit(image, &format!("{image}      https_port: 8443\n"))?;
    let before = look::only(&host, "lacks")?;
    let upgrade = project.show(&["proxy", "upgrade"])?.expect(15)?;
    says(&upgrade, &["`nft` is to be run there", "as `deploy`", "podman rm --force kamal-proxy"]);
    assert_eq!(look::only(&host, "lacks")?, before);
    host.engine(&["rm", "--force", "--time", "1", "kamal-proxy"])?;
    project.ship()?;
    assert_eq!(site.versions(&project.authority())?, [["v1"]], "as the hint says");
    // The other tests' projects have a proxy with other ports.
    host.engine(&["rm", "--force", "--time", "1", "kamal-proxy"])?;
    Ok(())
}

#[test]
fn what_a_user_without_root_cannot_have_is_refused_before_anything_is_looked_at() -> Outcome {
    let site = LAB.take()?;
    let host = only_host(&site)?;
    let plain = Project::new(&site, "plain")?;
    plain.spread(1)?;
    let sudo = plain.show(&["status"])?.expect(15)?;
    says(&sudo, &["become root on `one` as `deploy`", "deploy ALL=(root) NOPASSWD: ALL"]);

    let sessions = host.ssh_sessions()?;
    let docker = own(&site, "docker")?;
    docker.edit("    rootless: true\n", "    rootless: true\n    engine: docker\n")?;
    says(&docker.show(&["status"])?.expect(2)?, &["without root the engine is Podman", "engine: podman"]);
    let two = own(&site, "two")?;
    two.edit("    rootless: true\n", "    rootless: true\n  two:\n    host: elsewhere\n")?;
    says(&two.show(&["status"])?.expect(2)?, &["servers.one.rootless", "for a project of one server"]);
    assert_eq!(host.ssh_sessions()?, sessions);
    Ok(())
}
