//! Plans of small fleets.

mod drift;
mod network;
mod properties;
mod rollback;
mod saved;
pub(in crate::deploy) mod world;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiji_model::digest::{CanonicalJson, Digest};
use jiji_model::name::{ContainerName, SecretName};
use jiji_model::observation::{NetworkFacts, Query};
use jiji_model::plan::{
    Action, ContainerImage, ContainerSpec, LABEL_PLUGIN, LABEL_SCOPE, NETWORK, Phase, Publish, Step, Word,
};
use jiji_model::probe::ProbeSpec;
use jiji_model::project::{Check, Project};
use jiji_model::transaction::roster::{Entry, Roster};

use super::{Answers, Change, EnvKind, HostAnswers, PlanError, Reason, Seeds, assemble, changes, desired, wants};
use world::{World, host, image, images, lines, project, service, service_name};

fn shop() -> Project {
    project(&["one", "two"], &[("web", service(&["one", "two"]))])
}

/// What a change says of `web` on host `one`.
fn change(world: &World, project: &Project, version: &str) -> Change {
    let images = images(project, version);
    let observation = world.observe(project, &images, &Seeds::new());
    let desired = desired(project, &images, &observation).expect("a plan");
    desired.hosts[&host("one")].services[&service_name("web")].change.clone()
}

fn why(world: &World, project: &Project, version: &str) -> Vec<Reason> {
    match change(world, project, version) {
        Change::Replace { why, .. } => why,
        other => panic!("expected a replacement, got {other:?}"),
    }
}

/// The errors that a plan is refused with.
fn refused(world: &World, project: &Project) -> Vec<PlanError> {
    let images = images(project, "1");
    let observation = world.observe(project, &images, &Seeds::new());
    desired(project, &images, &observation).expect_err("refused").0
}

#[test]
fn the_core_asks_each_host_once_for_everything() {
    let mut project = shop();
    let web = project.services.get_mut(&service_name("web")).expect("it is there");
    web.environment.secrets.push(SecretName::new("DATABASE_URL").expect("a name"));
    let wants = wants(&project, &host("one"), &images(&project, "1"), &Seeds::new());
    let ids: Vec<_> = wants.iter().map(|want| want.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "core.host",
            "core.fitness",
            "core.containers",
            "core.shared",
            "core.network",
            "core.records",
            "core.images",
            "core.secrets.web"
        ]
    );
    assert!(matches!(&wants[7].query, Query::SecretsMac { names } if names.len() == 1));
}

#[test]
fn a_first_ship_makes_the_network_runs_candidates_and_stops_nothing() {
    let project = shop();
    let world = World::of(&["one", "two"]);
    let plan = world.plan(&project, &images(&project, "1"));
    insta::assert_snapshot!(lines(&plan), @r#"
    one boot: store the roster of servers
    one boot: make network jiji
    two boot: store the roster of servers
    two boot: make network jiji
    one prepare: take image shop/web@#1
    one prepare: run shop-web-#2 (has an undo)
    two prepare: take image shop/web@#1
    two prepare: run shop-web-#3 (has an undo)
    "#);
    assert_eq!(plan.images.len(), 1);
    assert_eq!(plan.images[0].hosts, [host("one"), host("two")]);
    let address = plan.releases[&host("two")][&service_name("web")].address;
    assert_eq!(address, Some(Ipv4Addr::new(10, 210, 1, 140)));
}

#[test]
fn a_second_version_takes_over_from_the_first_and_the_third_removes_the_images_of_the_first() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    world.ship(&project, &images(&project, "1"));
    let second = world.ship(&project, &images(&project, "2"));
    insta::assert_snapshot!(lines(&second), @r#"
    one prepare: take image shop/web@#1
    one prepare: run shop-web-#2 (has an undo)
    one drain: stop shop-web-#3
    one finalize: remove shop-web-#3
    "#);
    let third = world.ship(&project, &images(&project, "3"));
    insta::assert_snapshot!(lines(&third), @r#"
    one prepare: take image shop/web@#1
    one prepare: run shop-web-#2 (has an undo)
    one drain: stop shop-web-#3
    one finalize: remove shop-web-#3
    one finalize: remove image shop/web@#4
    "#);
}

#[test]
fn an_unchanged_ship_is_an_empty_plan() {
    let project = shop();
    let mut world = World::of(&["one", "two"]);
    let images = images(&project, "1");
    world.ship(&project, &images);
    let plan = world.plan(&project, &images);
    assert!(plan.is_empty() && plan.images.is_empty() && plan.releases.is_empty(), "{plan:?}");
}

#[test]
fn each_difference_is_a_reason_of_its_own() {
    let mut project = project(&["one"], &[("web", service(&["one"]))]);
    let web = project.services.get_mut(&service_name("web")).expect("it is there");
    web.environment.secrets.push(SecretName::new("TOKEN").expect("a name"));
    let mut world = World::of(&["one"]);
    assert_eq!(why(&world, &project, "1"), [Reason::First]);
    world.ship(&project, &images(&project, "1"));
    assert!(matches!(change(&world, &project, "1"), Change::Unchanged { .. }));
    assert_eq!(why(&world, &project, "2"), [Reason::Image]);

    let mut other = world.clone();
    other.machine("one").mac = "mac of another value".to_owned();
    assert_eq!(why(&other, &project, "1"), [Reason::Secrets]);

    let mut other = world.clone();
    other.machine("one").containers[0].state = "exited".to_owned();
    assert_eq!(why(&other, &project, "1"), [Reason::NotRunning]);
    other.machine("one").containers.clear();
    assert_eq!(why(&other, &project, "1"), [Reason::NotRunning]);

    let mut other = world.clone();
    let facts = &mut other.machine("one").containers[0];
    facts.addresses.insert(NETWORK.to_owned(), Ipv4Addr::new(10, 210, 0, 200));
    assert_eq!(why(&other, &project, "1"), [Reason::Address]);

    // Somebody made the container anew by hand, with the same name and another image.
    let mut other = world.clone();
    other.machine("one").containers[0].config = Some(Digest::of("else"));
    assert_eq!(why(&other, &project, "1"), [Reason::Image]);

    let web = project.services.get_mut(&service_name("web")).expect("it is there");
    web.environment.clear.insert("MODE".to_owned(), "fast".to_owned());
    assert_eq!(why(&world, &project, "1"), [Reason::Specification]);
}

#[test]
fn an_engine_that_knows_configurations_alone_is_believed() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    world.ship(&project, &images(&project, "1"));
    world.machine("one").containers[0].manifest = None;
    assert!(matches!(change(&world, &project, "1"), Change::Unchanged { .. }));
}

#[test]
fn a_service_that_left_the_configuration_is_stopped_and_removed() {
    let both = project(&["one"], &[("web", service(&["one"])), ("worker", service(&["one"]))]);
    let mut both = both;
    both.services.get_mut(&service_name("worker")).expect("it is there").proxy = None;
    let mut world = World::of(&["one"]);
    world.ship(&both, &images(&both, "1"));
    let alone = project(&["one"], &[("web", service(&["one"]))]);
    let plan = world.plan(&alone, &images(&alone, "1"));
    insta::assert_snapshot!(lines(&plan), @r#"
    one drain: stop shop-worker-#1
    one finalize: remove shop-worker-#1
    "#);
    assert_eq!(plan.releases[&host("one")].len(), 1);
}

#[test]
fn what_a_crash_left_beside_the_running_container_is_cleaned_up() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    world.ship(&project, &images(&project, "1"));
    let mut stale = world.machine("one").containers[0].clone();
    stale.name = "shop-web-stale".to_owned();
    world.machine("one").containers.push(stale);
    let plan = world.plan(&project, &images(&project, "1"));
    insta::assert_snapshot!(lines(&plan), @r#"
    one drain: stop shop-web-stale
    one finalize: remove shop-web-stale
    "#);
}

#[test]
fn an_address_rests_before_it_is_leased_again() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    let mut addresses = Vec::new();
    for version in 0..120 {
        let plan = world.ship(&project, &images(&project, &version.to_string()));
        addresses.extend(plan.releases[&host("one")][&service_name("web")].address);
    }
    // 115 addresses, each in its turn.
    assert_eq!(addresses[..3].iter().map(|address| address.octets()[3]).collect::<Vec<_>>(), [140, 141, 142]);
    assert_eq!(addresses[114].octets()[3], 254);
    assert_eq!(addresses[115].octets()[3], 140);
    world.machine("one").network.as_mut().expect("made").used =
        (140..=254).map(|last| Ipv4Addr::new(10, 210, 0, last)).collect();
    let error = refused(&world, &project).remove(0);
    assert!(matches!(error, PlanError::NoAddress { .. }), "{error}");
}

#[test]
fn a_hosts_number_is_its_networks_whatever_other_projects_call_it() {
    let project = shop();
    let mut world = World::of(&["one", "two"]);
    let entry = |number| Entry { number, removed: false };
    world.machine("one").records.roster =
        Some(Roster { servers: BTreeMap::from([(host("prod"), entry(4))]), ..Roster::default() }.into());
    world.machine("one").network = Some(NetworkFacts {
        name: NETWORK.to_owned(),
        subnet: Some("10.210.4.128/25".to_owned()),
        gateway: None,
        used: Vec::new(),
    });
    let images = images(&project, "1");
    let observation = world.observe(&project, &images, &Seeds::new());
    let desired = desired(&project, &images, &observation).expect("a plan");
    assert_eq!(desired.hosts[&host("one")].number, 4);
    assert_eq!(desired.hosts[&host("two")].number, 5);
    assert_eq!(desired.roster.servers.len(), 3);
}

#[test]
fn everything_that_is_in_the_way_is_said_at_once() {
    let mut project = shop();
    project.services.insert(service_name("blog"), service(&["two"]));
    let mut world = World::of(&["one", "two"]);
    world.machine("one").engine = None;
    world.machine("two").network = Some(NetworkFacts {
        name: NETWORK.to_owned(),
        subnet: Some("172.18.0.0/16".to_owned()),
        gateway: None,
        used: Vec::new(),
    });
    let errors = refused(&world, &project);
    let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(text, @r#"
    plan for `two`: `blog` and `web` both want `*/`
    plan for `one`: it has no container engine, or two and no choice between them
    plan for `two`: its network `jiji` has the subnet `172.18.0.0/16`, which is none of jiji's
    "#);
}

#[test]
fn a_service_without_an_image_for_the_hosts_architecture_is_refused() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let world = World::of(&["one"]);
    let images = BTreeMap::from([(service_name("web"), vec![image("shop/web", "1", "arm64")])]);
    let observation = world.observe(&project, &images, &Seeds::new());
    let errors = desired(&project, &images, &observation).expect_err("refused").0;
    assert!(matches!(&errors[..], [PlanError::NoImage { .. }]), "{errors:?}");
}

const PROXY: &str = "registry.example/kamal-proxy@sha256:aa";

/// What a proxy plugin answers for a host.
fn answers(name: &str, to: &str) -> Answers {
    let one = host(name);
    let spec = ContainerSpec {
        name: ContainerName::new("kamal-proxy").expect("a name"),
        image: ContainerImage::Pinned { reference: PROXY.to_owned() },
        network: NETWORK.to_owned(),
        address: Some(Ipv4Addr::new(10, 210, 0, 130)),
        env: BTreeMap::new().into(),
        labels: BTreeMap::from([
            (LABEL_SCOPE.to_owned(), "*".to_owned()),
            (LABEL_PLUGIN.to_owned(), "proxy-kamal".to_owned()),
        ])
        .into(),
        mounts: Vec::new(),
        publish: vec![Publish { address: None, host_port: 80, container_port: 80 }],
        entrypoint: None,
        command: None,
        user: None,
        restart: true,
        stop_timeout_s: 10,
    };
    let boot = Step::new(&one, Phase::Boot, "run kamal-proxy", Action::ContainerRun(Box::new(spec)));
    let exec = |to: &str| Action::ContainerExec {
        container: ContainerName::new("kamal-proxy").expect("a name"),
        argv: vec![Word::lit("kamal-proxy"), Word::lit("deploy"), Word::lit(to)],
        tolerate: Vec::new(),
    };
    let mut route = Step::new(&one, Phase::Cutover, "route web", exec(to));
    route.service = Some(service_name("web"));
    route.undo = Some(exec("old"));
    route.after = vec![boot.id.clone()];
    let probe = ProbeSpec {
        check: Check::Http { port: 8080, path: "/up".to_owned() },
        interval_ms: 500,
        timeout_ms: 500,
        healthy_after: 1,
        deadline_ms: 30_000,
        status_from: 200,
        status_to: 299,
    };
    let answers = HostAnswers {
        steps: vec![boot, route],
        probes: BTreeMap::from([(service_name("web"), probe)]),
        routes: BTreeMap::from([(service_name("web"), CanonicalJson::of(&serde_json::json!({"to": to})))]),
        replaces: false,
    };
    BTreeMap::from([(one, answers)])
}

fn seeds() -> Seeds {
    BTreeMap::from([(PROXY.to_owned(), vec![image("kamal-proxy", "0.9.2", "amd64")])])
}

#[test]
fn a_plugins_pinned_image_is_brought_by_jiji_and_its_steps_keep_their_phases() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    let assembled = world.plan_with(&project, &images(&project, "1"), &seeds(), &answers("one", "new"));
    let plan = assembled.plan;
    insta::assert_snapshot!(lines(&plan), @r#"
    one boot: store the roster of servers
    one boot: make network jiji
    one boot: take image kamal-proxy@#1
    one boot: run kamal-proxy
    one prepare: take image shop/web@#2
    one prepare: run shop-web-#3 (has an undo)
    one prepare: wait until shop-web-#3 is healthy
    one cutover: route web (has an undo)
    "#);
    assert_eq!(plan.images.len(), 2);
    let route = plan.releases[&host("one")][&service_name("web")].route.clone();
    assert_eq!(route, Some(CanonicalJson::of(&serde_json::json!({"to": "new"}))));
    world.apply(&plan);

    // The proxy stands now: nobody takes its image again, and the route does not wait for what is not there.
    let assembled = world.plan_with(&project, &images(&project, "2"), &seeds(), &answers("one", "newer"));
    insta::assert_snapshot!(lines(&assembled.plan), @r#"
    one prepare: take image shop/web@#1
    one prepare: run shop-web-#2 (has an undo)
    one prepare: wait until shop-web-#2 is healthy
    one cutover: route web (has an undo)
    one drain: stop shop-web-#3
    one finalize: remove shop-web-#3
    "#);
    assert!(assembled.plan.steps.iter().all(|step| step.after.is_empty()));
    assert!(assembled.notes.is_empty());

    // And it is never made anew under requests.
    world.machine("one").containers.iter_mut().for_each(|facts| {
        facts.labels.insert(jiji_model::plan::LABEL_SPEC.to_owned(), "sha256:other".to_owned());
    });
    let assembled = world.plan_with(&project, &images(&project, "3"), &seeds(), &answers("one", "newest"));
    assert!(!lines(&assembled.plan).contains("run kamal-proxy"));
    assert_eq!(assembled.notes.len(), 1);
}

#[test]
fn a_plugins_image_that_nobody_brought_is_refused() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let world = World::of(&["one"]);
    let images = images(&project, "1");
    let observation = world.observe(&project, &images, &Seeds::new());
    let desired = desired(&project, &images, &observation).expect("a plan");
    let errors = assemble(&desired, &Seeds::new(), &answers("one", "new"), &observation).expect_err("refused").0;
    assert!(matches!(&errors[..], [PlanError::NoSeed { .. }]), "{errors:?}");
}

#[test]
fn a_plan_shows_what_changes_without_any_value() {
    let mut project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    world.ship(&project, &images(&project, "1"));
    let web = project.services.get_mut(&service_name("web")).expect("it is there");
    web.environment.clear.insert("MODE".to_owned(), "s3cr3t-looking".to_owned());
    web.environment.secrets.push(SecretName::new("TOKEN").expect("a name"));
    web.command = Some(vec!["serve".to_owned()]);
    let images = images(&project, "2");
    let observation = world.observe(&project, &images, &Seeds::new());
    let desired = desired(&project, &images, &observation).expect("a plan");
    let plan = assemble(&desired, &Seeds::new(), &Answers::new(), &observation).expect("a plan").plan;
    let bytes = BTreeMap::from([(host("one"), 1_002_000)]);
    let changes = changes(&desired, &plan, bytes);
    let web = &changes.hosts[&host("one")][0];
    let env: Vec<_> = web.env.iter().map(|change| (change.name.as_str(), change.kind, change.secret)).collect();
    assert_eq!(env, [("MODE", EnvKind::Added, false), ("TOKEN", EnvKind::Added, true)]);
    assert_eq!(web.parts, ["command"]);
    assert_ne!(web.from, web.to);
    assert_eq!(web.removed.len(), 1);
    assert_eq!(changes.bytes[&host("one")], 1_002_000);
    let json = serde_json::to_string(&changes).expect("JSON");
    assert!(!json.contains("s3cr3t"), "{json}");
}
