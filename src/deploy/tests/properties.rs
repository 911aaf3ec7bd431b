//! What holds for any history of a project.

use std::collections::BTreeSet;

use jiji_model::plan::vet::vet_form;
use jiji_model::plan::{Action, Phase};
use proptest::prelude::*;

use super::world::{World, host, image, project, service, service_name};
use crate::deploy::Images;

const HOSTS: [&str; 3] = ["one", "two", "three"];
const SERVICES: [&str; 3] = ["api", "web", "worker"];

/// A service at one time: which hosts run it (bits), the version of its image, a value of its environment, how many releases stay.
type At = (u8, u8, u8, u32);

fn version(services: &[Option<At>]) -> (jiji_model::project::Project, Images) {
    let mut wanted = Vec::new();
    let mut images = Images::new();
    for (name, at) in SERVICES.iter().zip(services) {
        let Some((hosts, version, value, retain)) = at else { continue };
        let on: Vec<_> =
            HOSTS.iter().enumerate().filter(|(bit, _)| hosts & (1 << bit) != 0).map(|(_, host)| *host).collect();
        if on.is_empty() {
            continue;
        }
        let mut service = service(&on);
        service.proxy = None;
        service.retain = *retain;
        service.environment.clear.insert("VALUE".to_owned(), value.to_string());
        wanted.push((*name, service));
        images.insert(service_name(name), vec![image(&format!("shop/{name}"), &version.to_string(), "amd64")]);
    }
    (project(&HOSTS, &wanted), images)
}

fn history() -> impl Strategy<Value = Vec<Vec<Option<At>>>> {
    let at = proptest::option::weighted(0.8, (1u8..8, 0u8..4, 0u8..2, 1u32..4));
    proptest::collection::vec(proptest::collection::vec(at, 3), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_fleet_that_was_planned_has_nothing_left_to_plan(history in history()) {
        let mut world = World::of(&HOSTS);
        for services in &history {
            let (project, images) = version(services);
            let plan = world.plan(&project, &images);
            prop_assert_eq!(&plan, &world.plan(&project, &images), "a plan is a function");
            prop_assert_eq!(vet_form(&plan.steps, &HOSTS.iter().map(|name| host(name)).collect::<BTreeSet<_>>()), Ok(()));
            world.apply(&plan);
            let again = world.plan(&project, &images);
            prop_assert!(again.is_empty(), "{again:?}");
            for (host, machine) in &world.0 {
                let running = machine.containers.iter().filter(|facts| facts.running()).count();
                prop_assert_eq!(running, project.services_on(host).count());
                prop_assert_eq!(machine.containers.len(), running);
            }
        }
    }

    #[test]
    fn everything_before_the_decision_can_be_taken_back(history in history()) {
        let mut world = World::of(&HOSTS);
        for services in &history {
            let (project, images) = version(services);
            let plan = world.plan(&project, &images);
            let mut there_and_back = world.clone();
            let before: Vec<_> = World::ordered(&plan).into_iter().filter(|step| step.phase.before_decided()).collect();
            for step in &before {
                there_and_back.0.get_mut(&step.host).expect("known").act(&step.action);
            }
            for step in before.iter().rev() {
                if let Some(undo) = &step.undo {
                    there_and_back.0.get_mut(&step.host).expect("known").act(undo);
                }
            }
            for (host, machine) in &world.0 {
                prop_assert_eq!(&there_and_back.0[host].containers, &machine.containers);
            }
            for step in &before {
                let changes_what_runs = matches!(step.action, Action::ContainerRun(_));
                prop_assert!(step.undo.is_some() || !changes_what_runs, "{}", step.title);
                let stops = matches!(step.action, Action::ContainerStop { .. } | Action::ContainerRemove { .. });
                prop_assert!(!stops, "{}", step.title);
            }
            world.apply(&plan);
        }
    }

    #[test]
    fn two_containers_never_have_one_name_or_address(history in history()) {
        let mut world = World::of(&HOSTS);
        for services in &history {
            let (project, images) = version(services);
            let plan = world.plan(&project, &images);
            // While both run.
            for step in World::ordered(&plan).into_iter().filter(|step| step.phase <= Phase::Cutover) {
                world.0.get_mut(&step.host).expect("known").act(&step.action);
            }
            for machine in world.0.values() {
                let names: BTreeSet<_> = machine.containers.iter().map(|facts| &facts.name).collect();
                let addresses: BTreeSet<_> = machine.containers.iter().map(|facts| &facts.addresses).collect();
                prop_assert_eq!(names.len(), machine.containers.len());
                prop_assert_eq!(addresses.len(), machine.containers.len());
            }
            world.apply(&plan);
        }
    }
}
