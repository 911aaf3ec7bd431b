//! Plans of large fleets: what grows with the fleet, counted and never timed.

use std::sync::OnceLock;

use jiji_store::Store;

use super::*;
use crate::lockfile::PluginSection;

#[path = "../../../benches/fleet.rs"]
mod fleet;

use fleet::{Fleet, Shape};

/// The default plugins. An unoptimized compiler takes seconds for them, so it does it once.
fn plugins(project: &Project) -> Plugins {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a directory")).path();
    let store = Store::open(dir.join("store")).expect("a store");
    let compiled = dir.join("compiled");
    Plugins::load(&project.plugins, &PluginSection::new(), &store, Some(&compiled)).expect("the defaults load")
}

/// What a fleet shows that ships a project of which every second service has a new image.
fn rehearse(hosts: usize) -> Rehearsed {
    let shape = Shape { hosts, services: 6, per_host: 2 };
    let one = fleet::project(Shape { hosts: 1, services: 6, per_host: 6 });
    let old = fleet::images(&one, |_| false);
    let first = Rehearsal::new(&one, &old, plugins(&one), fleet::seeds(), 1);
    let first = first.plan(&fleet::hosts(&one), fleet::empty).expect("a plan");
    let project = fleet::project(shape);
    let fleet = Fleet::shipped(&project, &first.planned.plan);
    let all = fleet::hosts(&project);
    let unchanged = Rehearsal::new(&project, &old, plugins(&project), fleet::seeds(), 2);
    let unchanged = unchanged.plan(&all, |host, wants| fleet.answer(host, wants)).expect("a plan");
    assert!(unchanged.planned.plan.is_empty(), "{:?}", unchanged.planned.changes.steps);
    let new = fleet::images(&project, |number| number % 2 == 0);
    let changed = Rehearsal::new(&project, &new, plugins(&project), fleet::seeds(), 2);
    changed.plan(&all, |host, wants| fleet.answer(host, wants)).expect("a plan")
}

#[test]
fn a_fleet_of_twice_the_size_takes_twice_the_steps_and_twice_the_calls() {
    let [few, more, many] = [6, 12, 24].map(rehearse);
    assert_eq!((few.rounds, few.planned.plan.hosts().len()), (1, 6), "hosts are asked once");
    for (smaller, larger) in [(&few, &more), (&more, &many)] {
        assert_eq!(larger.calls, smaller.calls * 2);
        assert_eq!(larger.planned.plan.steps.len(), smaller.planned.plan.steps.len() * 2);
        assert_eq!(larger.planned.plan.releases.len(), smaller.planned.plan.releases.len() * 2);
        assert_eq!(larger.planned.plan.images.len(), smaller.planned.plan.images.len());
    }
    // One service of two changes: image, container, health and route, and the old one is stopped and removed with its image.
    assert_eq!(few.planned.plan.steps.len(), 6 * 7);
}

#[test]
fn a_plan_does_not_depend_on_how_many_threads_make_it() {
    let shape = Shape { hosts: 40, services: 4, per_host: 1 };
    let project = fleet::project(shape);
    let images = fleet::images(&project, |_| false);
    let plan = |threads| {
        let rehearsal = Rehearsal::new(&project, &images, plugins(&project), fleet::seeds(), threads);
        rehearsal.plan(&fleet::hosts(&project), fleet::empty).expect("a plan").planned.plan
    };
    assert_eq!(plan(1), plan(3));
}

#[test]
fn what_hosts_say_alike_is_kept_once_and_a_host_that_says_a_wrong_digest_changes_nobody_else() {
    let project = fleet::project(Shape { hosts: 3, services: 2, per_host: 2 });
    let one = fleet::project(Shape { hosts: 1, services: 2, per_host: 2 });
    let old = fleet::images(&one, |_| false);
    let first = Rehearsal::new(&one, &old, plugins(&one), fleet::seeds(), 1);
    let first = first.plan(&fleet::hosts(&one), fleet::empty).expect("a plan");
    let fleet = Fleet::shipped(&project, &first.planned.plan);
    let query = jiji_model::observation::Query::Records { scope: project.scope() };
    let want = Want { id: "core.records".to_owned(), query };
    let mut observation = Observation::default();
    for (number, host) in project.servers.keys().enumerate() {
        // As they come from a host: nothing is shared with another's.
        let told = serde_json::to_string(&fleet.answer(host, std::slice::from_ref(&want))).expect("JSON");
        let told = if number == 1 { told.replace("jiji.service", "jiji.other") } else { told };
        observation.add(host, serde_json::from_str(&told).expect("facts"));
    }
    let labels: Vec<_> = observation
        .hosts
        .values()
        .map(|answers| match &answers["core.records"] {
            jiji_model::observation::Answer::Records(records) => {
                let service = records.releases[0].services.values().next().expect("a service");
                service.container_spec.labels.clone()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(labels[0].is_same(&labels[2]));
    assert!(labels[1].contains_key("jiji.other") && !labels[0].contains_key("jiji.other"));
}
