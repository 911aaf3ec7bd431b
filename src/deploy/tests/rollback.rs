//! Going back, on small fleets.

use std::collections::BTreeMap;

use jiji_model::name::{HostName, SecretName};
use jiji_model::observation::{Observation, Want};
use jiji_model::plan::Plan;
use jiji_model::project::Project;

use super::shop;
use super::world::{Machine, World, host, image, images, project, service, service_name};
use crate::deploy::{
    Answers, Histories, PlanError, Refused, Sameness, Seeds, Target, Trust, assemble, choose, history, history_want,
    release_wants, rollback, rollback_wants, secrets_of, target,
};

/// Asks hosts more.
fn ask(world: &World, observation: &mut Observation, wants: impl Fn(&HostName) -> Vec<Want>) {
    for (host, machine) in &world.0 {
        let answers = wants(host).into_iter().map(|want| (want.id, machine.answer(&want.query)));
        observation.hosts.entry(host.clone()).or_default().extend(answers);
    }
}

fn look(world: &World, project: &Project) -> Observation {
    let mut observation = world.observe(project, &BTreeMap::new(), &Seeds::new());
    ask(world, &mut observation, |_| vec![history_want("shop")]);
    observation
}

fn histories(world: &World, project: &Project) -> Histories {
    history(&look(world, project)).expect("all told")
}

/// What each host shall run to go back to `wanted`.
fn back(world: &World, project: &Project, wanted: Option<&str>) -> Result<(Target, Observation), Refused> {
    let mut observation = look(world, project);
    let choice = choose(&history(&observation).expect("all told"), wanted).map_err(|error| Refused(vec![error]))?;
    ask(world, &mut observation, |host| release_wants("shop", &choice, host));
    let target = target(project, &choice, &observation)?;
    ask(world, &mut observation, |host| rollback_wants(&target, host));
    Ok((target, observation))
}

fn plan(world: &World, project: &Project, wanted: Option<&str>) -> Plan {
    let (target, observation) = back(world, project, wanted).unwrap_or_else(|refused| panic!("{refused}"));
    let desired = rollback("shop", &target, 2, &|_, _| Trust::Looks, &observation);
    let desired = desired.unwrap_or_else(|refused| panic!("{refused}"));
    assemble(&desired, &Seeds::new(), &Answers::new(), &observation).expect("a plan").plan
}

fn number(world: &World, project: &Project, wanted: Option<&str>) -> Result<u64, PlanError> {
    choose(&histories(world, project), wanted).map(|choice| choice.number)
}

#[test]
fn a_rollback_runs_what_an_earlier_release_ran_without_bringing_its_image_again() {
    let project = shop();
    let mut world = World::of(&["one", "two"]);
    let first = world.ship(&project, &images(&project, "1"));
    world.ship(&project, &images(&project, "2"));
    let plan = plan(&world, &project, None);
    assert!(plan.images.is_empty(), "the engine still has it");
    let now = &plan.releases[&host("one")][&service_name("web")];
    let then = &first.releases[&host("one")][&service_name("web")];
    assert_eq!((now.image.id(), now.spec), (then.image.id(), then.spec));
    assert_ne!((&now.container, now.address), (&then.container, then.address));
    world.apply(&plan);
    assert_eq!(number(&world, &project, None), Ok(2), "and back again");
}

#[test]
fn an_image_that_was_pruned_is_brought_again() {
    let project = shop();
    let mut world = World::of(&["one", "two"]);
    for version in ["1", "2", "3"] {
        world.ship(&project, &images(&project, version));
    }
    let old = image("shop/web", "1", "amd64");
    assert!(!world.machine("one").images.contains(&old.id()), "the third ship pruned it");
    let plan = plan(&world, &project, Some("1"));
    assert_eq!(plan.images.len(), 1);
    assert_eq!((plan.images[0].image.id(), plan.images[0].hosts.len()), (old.id(), 2));
    world.apply(&plan);
    assert!(world.machine("two").images.contains(&old.id()));
}

#[test]
fn a_host_that_was_replaced_by_an_empty_one_gets_what_the_others_ran() {
    let project = shop();
    let mut world = World::of(&["one", "two"]);
    world.ship(&project, &images(&project, "1"));
    world.ship(&project, &images(&project, "2"));
    *world.machine("two") = Machine::default();
    let (target, _) = back(&world, &project, None).expect("a target");
    assert_eq!(target.adopted[&host("two")][&service_name("web")], host("one"));
    let plan = plan(&world, &project, None);
    let web = |name: &str| &plan.releases[&host(name)][&service_name("web")];
    assert_eq!(web("two").image.id(), image("shop/web", "1", "amd64").id());
    assert_eq!(web("two").spec, web("one").spec);
    assert_eq!(plan.images[0].hosts, [host("two")]);
}

#[test]
fn what_no_other_host_ran_cannot_be_told_for_an_empty_one() {
    let project = project(&["one", "two"], &[("web", service(&["one"])), ("api", service(&["two"]))]);
    let mut world = World::of(&["one", "two"]);
    world.ship(&project, &images(&project, "1"));
    world.ship(&project, &images(&project, "2"));
    *world.machine("two") = Machine::default();
    let refused = back(&world, &project, Some("1")).expect_err("nobody knows");
    assert_eq!(
        refused.to_string(),
        "go to release 1 with `api` on `two`: it remembers nothing, and no other host ran it"
    );
    assert!(refused.hints()[0].contains("jiji deploy"));
}

#[test]
fn a_release_is_named_by_its_number_or_the_beginning_of_a_digest_or_a_transaction() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    let named = |world: &World, name: &str| number(world, &project, Some(name));
    assert_eq!(number(&world, &project, None), Err(PlanError::NoRelease));
    let plans: Vec<Plan> =
        ["1", "2", "1"].into_iter().map(|version| world.ship(&project, &images(&project, version))).collect();
    let manifest = |version| image("shop/web", version, "amd64").manifest.digest;
    assert_eq!(named(&world, "2"), Ok(2));
    assert_eq!(named(&world, &manifest("2").hex()[..8]), Ok(2));
    assert_eq!(named(&world, &manifest("2").to_string()), Ok(2));
    assert_eq!(named(&world, &manifest("1").hex()[..12]), Ok(3), "the newest that ran it");
    assert_eq!(named(&world, &plans[0].digest().hex()[..8]), Ok(1));
    assert_eq!(named(&world, "9").expect_err("unknown").to_string(), "find release `9`: hosts remember 3, 2, 1");
    assert!(matches!(named(&world, "fff"), Err(PlanError::UnknownRelease { .. })), "too short to mean something");
}

#[test]
fn a_beginning_of_several_releases_is_refused_with_their_numbers() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    world.ship(&project, &images(&project, "1"));
    world.ship(&project, &images(&project, "2"));
    for (release, id) in world.machine("one").history.iter_mut().zip(["c0ffee01-2", "c0ffee02-1"]) {
        release.transaction = id.to_owned();
    }
    let named = |name: &str| number(&world, &project, Some(name));
    assert_eq!(named("c0ffee").expect_err("ambiguous").to_string(), "find release `c0ffee`: it may be 2, 1");
    assert_eq!(named("c0ffee01"), Ok(2));
}

#[test]
fn without_a_name_only_what_every_host_remembers_is_good() {
    let project = shop();
    let mut world = World::of(&["one", "two"]);
    for version in ["1", "2", "3"] {
        world.ship(&project, &images(&project, version));
    }
    assert_eq!(number(&world, &project, None), Ok(2));
    // Two came back from a backup and knows its last release alone.
    world.machine("two").history.truncate(1);
    assert_eq!(number(&world, &project, None), Err(PlanError::NoRelease));
    assert_eq!(number(&world, &project, Some("2")), Ok(2), "but by name");
}

#[test]
fn a_host_that_a_release_did_not_change_counts_with_the_one_before() {
    let only_one = service(&["one"]);
    let mut project = project(&["one", "two"], &[("web", service(&["one", "two"])), ("api", only_one)]);
    project.services.get_mut(&service_name("api")).expect("it is there").proxy = None;
    let mut world = World::of(&["one", "two"]);
    let first = images(&project, "1");
    world.ship(&project, &first);
    let mut second = first.clone();
    second.insert(service_name("api"), vec![image("shop/api", "2", "amd64")]);
    let plan = world.ship(&project, &second);
    assert_eq!(plan.hosts(), [host("one")]);
    let choice = choose(&histories(&world, &project), None).expect("an earlier release");
    assert_eq!((choice.number, choice.own[&host("two")]), (1, 1));
}

#[test]
fn whether_secrets_are_those_of_the_release_is_told_by_their_keyed_digests() {
    let mut project = shop();
    let web = project.services.get_mut(&service_name("web")).expect("it is there");
    web.environment.secrets.push(SecretName::new("DATABASE_URL").expect("a name"));
    let mut world = World::of(&["one", "two"]);
    world.ship(&project, &images(&project, "1"));
    world.machine("two").mac = "mac of the second value".to_owned();
    world.ship(&project, &images(&project, "2"));
    let (target, observation) = back(&world, &project, None).expect("a target");
    let told: Vec<_> =
        secrets_of(&target, &observation).into_iter().map(|(host, _, _, same)| (host.to_string(), same)).collect();
    assert_eq!(told, [("one".to_owned(), Sameness::Same), ("two".to_owned(), Sameness::Differ)]);
}
