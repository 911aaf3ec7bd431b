//! `jiji` dies at every named step of a transaction, and the next ship brings the fleet to one state without a dropped request.

use std::path::Path;
use std::time::Duration;

use jiji_e2e::{Outcome, Project, Run, Shared, Site, look};
use jiji_lab::Engines;

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// SIGABRT: how a program with abort points dies at one.
const ABORTED: i32 = 6;

/// Where it dies, and which way the next run must settle what it left.
const POINTS: [(&str, &str); 10] = [
    ("begun", "revert"),
    ("booted", "revert"),
    ("prepared", "revert"),
    ("before-cutover-1", "revert"),
    ("between-cutovers", "revert"),
    ("cut-over", "revert"),
    ("settled-one", "commit"),
    ("settled", "commit"),
    ("drained", "commit"),
    ("concluded-one", "commit"),
];

/// A project whose hosts are cut over one after the other, so that there is something between two cutovers.
fn one_by_one<'a>(site: &'a Site, name: &str) -> Outcome<Project<'a>> {
    let project = Project::new(site, name)?;
    project.edit("\nplugins:\n", "\nrollout:\n  max_parallel: 1\n\nplugins:\n")?;
    Ok(project)
}

/// Deletes everything that the operator has but the project and the store.
fn forget(project: &Project<'_>) -> Outcome {
    let empty = |dir: &Path| -> Outcome {
        std::fs::remove_dir_all(dir)?;
        Ok(std::fs::create_dir(dir)?)
    };
    empty(&project.home())?;
    empty(&project.dir().join("run"))?;
    for entry in std::fs::read_dir(project.cache().join("jiji"))? {
        let path = entry?.path();
        if path.ends_with("store") {
            continue;
        }
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
    }
    Ok(())
}

#[test]
fn after_a_death_at_any_step_the_next_ship_makes_all_hosts_agree_without_a_failed_request() -> Outcome {
    let site = LAB.take()?;
    let project = one_by_one(&site, "crash")?;
    let authority = project.authority();
    project.ship()?;
    let load = site.brisk_load(&authority, Duration::from_secs(600));
    let ((), report) = site.under_load(&load, || {
        for (number, (point, way)) in (2..).zip(POINTS) {
            let version = format!("v{number}");
            project.set_version(&version)?;
            let died = Run::of(project.command(&["ship", "--json"])?.env("JIJI_ABORT_AT", point))?;
            assert_eq!(died.signal(), Some(ABORTED), "at {point}: {died}");
            forget(&project)?;

            let run = project.ship()?;
            let settled: Vec<_> = run.events_of("apply.settling").map(|event| &event["data"]["decision"]).collect();
            assert_eq!(settled, [way], "at {point}: {run}");
            for host in site.hosts() {
                let container = look::only(&host, "crash")?;
                let routes = look::routes(&host)?;
                assert!(routes.contains(&container.address), "at {point}, {}: {routes}", host.name);
            }
            let status = project.run(&["status"])?.expect(0)?;
            for server in ["one", "two"] {
                let open = &status.events[0]["hosts"][server]["records"]["transaction"]["concluded"];
                assert_ne!(*open, false, "at {point}, {server}: {status}");
            }
            println!(
                "{point:>17}: died after {:.1}s, then {way} and shipped in {:.1}s",
                died.took.as_secs_f64(),
                run.took.as_secs_f64()
            );
        }
        Ok(())
    })?;
    println!("{report}");
    report.without_failure()?;
    let last = format!("v{}", POINTS.len() + 1);
    assert_eq!(site.versions(&authority)?, [[last.clone()], [last]]);
    Ok(())
}

#[test]
fn a_run_that_is_killed_in_the_middle_of_a_cutover_is_settled_by_the_next() -> Outcome {
    let site = LAB.take()?;
    let project = one_by_one(&site, "killed")?;
    let authority = project.authority();
    project.ship()?;
    project.set_version("v2")?;
    let (run, report) = site.under_load(&site.brisk_load(&authority, Duration::from_secs(150)), || {
        let mut run = project.start(&["ship"])?;
        run.wait_for("the second host's cutover", |event| {
            event["event"] == "apply.step-started" && event["phase"] == "cutover" && event["host"] == "two"
        })?;
        jiji_lab::command::run(&mut jiji_lab::command::command("kill", ["-KILL", &run.pid().to_string()]))?;
        assert_eq!(run.end()?.signal(), Some(9));
        forget(&project)?;
        project.ship()
    })?;
    println!("shipped again in {:.1}s: {report}", run.took.as_secs_f64());
    report.without_failure()?;
    assert_eq!(site.versions(&authority)?, [["v2"], ["v2"]]);
    for host in site.hosts() {
        look::only(&host, "killed")?;
    }
    Ok(())
}
