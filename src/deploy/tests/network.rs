//! The plan of a private network.

use jiji_model::mesh::SCOPE;
use jiji_model::name::{AbsPath, HostName};
use jiji_model::observation::{NetworkFacts, Observation};
use jiji_model::plan::{Action, NETWORK, Phase, Step};

use super::world::{World, host, images, lines, project, service};
use crate::deploy::{PlanError, network_plan, network_wants, numbered};

fn observed(world: &World) -> Observation {
    let mut observation = Observation::default();
    for (host, machine) in &world.0 {
        let answers = network_wants().into_iter().map(|want| (want.id, machine.answer(&want.query)));
        observation.hosts.insert(host.clone(), answers.collect());
    }
    observation
}

fn key(host: &HostName) -> Step {
    let path = AbsPath::new("/var/lib/jiji/network/jiji0.key").expect("a path");
    Step::new(host, Phase::Boot, "make a key", Action::KeypairEnsure { path })
}

fn in_network(world: &mut World, name: &str, subnet: &str) {
    world.machine(name).network = Some(NetworkFacts {
        name: NETWORK.to_owned(),
        subnet: Some(subnet.to_owned()),
        gateway: None,
        used: Vec::new(),
    });
}

#[test]
fn fresh_servers_are_numbered_and_get_what_a_ship_would_give_them() {
    let world = World::of(&["one", "two"]);
    let observation = observed(&world);
    let numbered = numbered(&observation).expect("numbers");
    assert_eq!(numbered.servers[&host("two")], (1, "amd64".to_owned()));
    let steps = [key(&host("one")), key(&host("two"))];
    let plan = network_plan(&numbered, &steps, &observation).expect("a plan");
    assert_eq!(plan.scope, SCOPE);
    assert!(plan.releases.values().all(std::collections::BTreeMap::is_empty), "it runs nothing");
    insta::assert_snapshot!(lines(&plan), @r"
    one boot: store the roster of servers
    one boot: make network jiji
    one boot: make a key
    two boot: store the roster of servers
    two boot: make network jiji
    two boot: make a key
    ");
}

#[test]
fn servers_that_run_something_keep_their_numbers_and_nothing_else_is_to_be_done() {
    let shop = project(&["one", "two"], &[("web", service(&["one", "two"]))]);
    let mut world = World::of(&["one", "two"]);
    world.ship(&shop, &images(&shop, "1"));
    let observation = observed(&world);
    let numbered = numbered(&observation).expect("numbers");
    assert!(network_plan(&numbered, &[], &observation).expect("a plan").is_empty());
    let plan = network_plan(&numbered, &[key(&host("two"))], &observation).expect("a plan");
    assert_eq!((plan.hosts(), plan.steps.len()), (vec![host("two")], 1));
}

#[test]
fn containers_in_another_network_are_refused_by_name_before_anything_is_done() {
    let mut world = World::of(&["one", "two"]);
    in_network(&mut world, "two", "172.20.0.0/16");
    let refused = numbered(&observed(&world)).expect_err("it cannot be moved");
    assert!(matches!(&refused.0[..], [PlanError::Network { host: two, .. }] if *two == host("two")), "{refused}");
}
