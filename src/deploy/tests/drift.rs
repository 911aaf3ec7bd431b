//! What differs on small fleets, and what mends it.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::digest::Digest;
use jiji_model::name::HostName;
use jiji_model::observation::{Damage, LeaseFacts, Observation, ProgramFacts, RecordFile, Want};
use jiji_model::plan::{Action, LABEL_ADDRESS, LABEL_SCOPE, Phase, Plan, Step};
use jiji_model::project::Project;
use jiji_model::transaction::{Lease, Release};

use super::shop;
use super::world::{Machine, World, host, image, images, lines, service_name};
use crate::deploy::{
    Answers, Expected, Finding, Kind, PlanError, Proxied, Refused, Seeds, Trust, assemble_with, believe, compare_wants,
    distrusted, drift_wants, expected, findings, mend, recorded, repairs, rollback,
};

fn ask(world: &World, observation: &mut Observation, wants: impl Fn(&HostName) -> Vec<Want>) {
    for (host, machine) in &world.0 {
        let answers: Vec<_> = wants(host).into_iter().map(|want| (want.id, machine.answer(&want.query))).collect();
        observation.hosts.entry(host.clone()).or_default().extend(answers);
    }
}

/// Two hosts to which versions 1 and 2 were shipped.
fn shipped() -> (World, Project) {
    let project = shop();
    let mut world = World::of(&["one", "two"]);
    for version in ["1", "2"] {
        world.ship(&project, &images(&project, version));
    }
    for machine in world.0.values_mut() {
        for facts in &mut machine.containers {
            let address = facts.addresses.values().next().expect("an address").to_string();
            facts.labels.insert(LABEL_ADDRESS.to_owned(), address);
        }
    }
    (world, project)
}

fn look(world: &World, project: &Project) -> Result<(Expected, Observation), Refused> {
    let mut observation = Observation::default();
    ask(world, &mut observation, |_| drift_wants("shop"));
    believe(&mut observation).expect("all told");
    let expected = expected(project, &observation)?;
    let seen = observation.clone();
    ask(world, &mut observation, |host| compare_wants(&expected, &Seeds::new(), &seen, host));
    Ok((expected, observation))
}

fn found_with(world: &World, project: &Project, proxied: &BTreeMap<HostName, Proxied>) -> Vec<Finding> {
    let (expected, observation) = look(world, project).expect("looked");
    findings("shop", &expected, &observation, proxied).expect("compared")
}

/// `HOST KIND` of everything that differs.
fn kinds(world: &World, project: &Project) -> Vec<String> {
    let found = found_with(world, project, &BTreeMap::new());
    found.iter().map(|finding| format!("{} {}", finding.host, finding.kind.name())).collect()
}

fn mended(world: &World, project: &Project) -> Plan {
    let (expected, observation) = look(world, project).expect("looked");
    let found = findings("shop", &expected, &observation, &BTreeMap::new()).expect("compared");
    let replaced = distrusted(&found, &expected);
    let trust = |host: &HostName, service: &_| match replaced.contains(&(host.clone(), Clone::clone(service))) {
        true => Trust::Never,
        false => Trust::Blind,
    };
    let desired = rollback("shop", &expected.target, 3, &trust, &observation).expect("a plan");
    let extra = mend(&found, &observation, &desired);
    assemble_with(&desired, &Seeds::new(), &Answers::new(), &observation, &extra).expect("a plan").plan
}

#[test]
fn hosts_as_they_were_left_differ_in_nothing_and_those_never_shipped_to_cannot_be_compared() {
    let (world, project) = shipped();
    assert_eq!(kinds(&world, &project), Vec::<String>::new());
    assert!(mended(&world, &project).is_empty());
    let refused = look(&World::of(&["one"]), &project).expect_err("nothing to compare with");
    assert_eq!(refused.0, [PlanError::NothingShipped]);
}

#[test]
fn a_container_that_is_gone_stopped_or_renamed_is_replaced_and_a_stray_one_goes() {
    let (mut world, project) = shipped();
    world.machine("one").containers[0].name = "mine".to_owned();
    let mut stray = world.machine("two").containers[0].clone();
    stray.name = "stray".to_owned();
    stray.labels = [(LABEL_SCOPE.to_owned(), "shop".to_owned())].into_iter().collect();
    stray.addresses.clear();
    world.machine("two").containers[0].state = "exited".to_owned();
    world.machine("two").containers.push(stray);
    assert_eq!(kinds(&world, &project), ["one container-renamed", "two container-stopped", "two container-extra"]);
    let plan = mended(&world, &project);
    insta::assert_snapshot!(lines(&plan), @r#"
    one prepare: take image shop/web@#1
    one prepare: run shop-web-#2 (has an undo)
    two prepare: take image shop/web@#1
    two prepare: run shop-web-#3 (has an undo)
    one drain: stop mine
    two drain: stop stray
    one finalize: remove mine
    two finalize: remove stray
    two finalize: remove shop-web-#4
    "#);
    world.apply(&plan);
    assert_eq!(kinds(&world, &project), Vec::<String>::new());
}

#[test]
fn an_image_that_is_kept_for_a_rollback_is_brought_again_and_mending_pushes_none_out() {
    let (mut world, project) = shipped();
    let old = image("shop/web", "1", "amd64");
    world.machine("two").images.remove(&old.id());
    assert_eq!(kinds(&world, &project), ["two image-missing"]);
    let plan = mended(&world, &project);
    assert_eq!((plan.images[0].image.id(), &plan.images[0].hosts[..]), (old.id(), &[host("two")][..]));
    assert!(plan.steps.iter().all(|step| !matches!(step.action, Action::ImageRemove { .. })));
    world.apply(&plan);
    assert_eq!(kinds(&world, &project), Vec::<String>::new());
}

#[test]
fn a_release_that_was_lost_is_what_the_journal_says_or_what_other_hosts_ran() {
    let (mut world, project) = shipped();
    let newest = world.machine("two").records.releases.remove(0);
    let damage = Damage { file: RecordFile::Release(newest.number), reason: "it is gone".to_owned() };
    world.machine("two").integrity.damaged = vec![damage];
    let of_two = |world: &World| {
        let (expected, observation) = look(world, &project).expect("looked");
        let web = expected.target.hosts[&host("two")].services[&service_name("web")].clone();
        (web, expected.target.adopted.contains_key(&host("two")), repairs(Some(&expected), &observation))
    };
    // No journal: the release before it is not what was decided last.
    let (web, adopted, _) = of_two(&world);
    assert!(adopted && web.image.id() == image("shop/web", "2", "amd64").id());
    // A journal that tells it.
    world.machine("two").integrity.decided = Some(Box::new(newest.clone()));
    let (web, adopted, repairs) = of_two(&world);
    assert_eq!((web, adopted), (newest.services[&service_name("web")].clone(), false));
    assert_eq!(repairs[&host("two")], (vec![RecordFile::Release(newest.number)], Some(newest)));
}

#[test]
fn an_empty_host_in_anothers_place_is_made_what_the_others_ran() {
    let (mut world, project) = shipped();
    *world.machine("two") = Machine::default();
    let all: BTreeSet<String> = kinds(&world, &project).into_iter().collect();
    let due = ["two container-missing", "two network", "two release", "two roster"];
    assert_eq!(all, due.map(str::to_owned).into());
    world.apply(&mended(&world, &project));
    assert_eq!(kinds(&world, &project), Vec::<String>::new());
}

#[test]
fn records_and_files_are_told_apart_and_their_host_takes_part_in_the_mending() {
    let (mut world, project) = shipped();
    let lease = Lease {
        version: Lease::VERSION,
        holder: "x".into(),
        who: "mallory@nowhere".into(),
        fencing: 1,
        boot_id: "gone".into(),
        granted_ms: 0,
        expires_ms: 0,
        session: 1,
        session_start: 1,
    };
    let one = world.machine("one");
    one.records.lease = Some(LeaseFacts { lease, live: false, age_ms: None });
    one.records.roster.as_mut().expect("stored").to_mut().servers.clear();
    let damage = |file| Damage { file, reason: "changed".to_owned() };
    one.integrity.damaged = [RecordFile::Audit, RecordFile::Fencing].map(damage).to_vec();
    let program = ProgramFacts { name: "0".repeat(64), sha256: Digest::of("other"), mode: 0o700 };
    one.integrity.programs = vec![program];
    assert_eq!(kinds(&world, &project), ["one lease", "one fencing", "one audit", "one roster", "one program"]);
    let plan = mended(&world, &project);
    assert_eq!(plan.hosts(), [host("one")], "the other one is left alone");
    assert!(plan.releases.contains_key(&host("one")));
    let titles: Vec<_> = plan.steps.iter().map(|step| step.title.as_str()).collect();
    assert!(titles.contains(&"write the records anew") && titles[0] == "store the roster of servers", "{titles:?}");
}

#[test]
fn a_route_is_the_plugins_to_judge_and_what_it_refuses_is_left_to_people() {
    let (world, project) = shipped();
    let (expected, observation) = look(&world, &project).expect("looked");
    let desired = recorded("shop", &expected, &observation).expect("as decided");
    assert_eq!(desired.hosts.len(), 2);
    let note = Action::Note { text: "route".to_owned() };
    let mut route = Step::new(&host("one"), Phase::Cutover, "route shop-web to 10.210.0.141:8080", note);
    route.service = Some(service_name("web"));
    let refused = Proxied::Refused { message: "somebody has shop.test".to_owned(), hint: Some("remove it".to_owned()) };
    let proxied = BTreeMap::from([(host("one"), Proxied::Steps(vec![route])), (host("two"), refused)]);
    let found = found_with(&world, &project, &proxied);
    let told: Vec<_> = found.iter().map(|finding| (finding.kind, finding.fixable, finding.fix.as_str())).collect();
    assert_eq!(
        told,
        [(Kind::Route, true, "does: route shop-web to 10.210.0.141:8080"), (Kind::Route, false, "cannot: remove it")]
    );
    assert!(distrusted(&found, &expected).is_empty(), "no container is replaced for a route");
}

#[test]
fn a_release_of_which_only_another_host_knows_is_not_taken_for_an_older_one() {
    let (mut world, project) = shipped();
    // Two lost its newest release and its journal; one's journal says that two took part.
    let newest: Release = world.machine("one").records.releases[0].clone();
    world.machine("two").records.releases.remove(0);
    let begin = jiji_model::transaction::Begin {
        version: jiji_model::transaction::Begin::VERSION,
        transaction: newest.transaction.clone(),
        scope: "shop".into(),
        fencing: newest.number,
        who: newest.who.clone(),
        command: newest.command.clone(),
        at_s: 0,
        plan: newest.plan,
        hosts: vec![host("one"), host("two")],
        addresses: BTreeMap::new(),
        host: host("one"),
        steps: Vec::new(),
        services: newest.services.clone(),
    };
    let mut transaction = jiji_model::transaction::Transaction::new(begin);
    let decision = jiji_model::transaction::Decision::Commit;
    transaction.settlement = Some(jiji_model::transaction::Settlement { decision, fencing: newest.number });
    transaction.concluded = true;
    world.machine("one").records.transaction = Some(transaction);
    let (expected, _) = look(&world, &project).expect("looked");
    assert!(expected.target.adopted.contains_key(&host("two")));
}

#[test]
fn a_service_that_no_host_remembers_is_left_to_people() {
    let (mut world, mut project) = shipped();
    let mut api = super::world::service(&["three"]);
    api.proxy = None;
    project.services.insert(service_name("api"), api);
    world.0.insert(host("three"), Machine::default());
    let found = found_with(&world, &project, &BTreeMap::new());
    let of_three: Vec<_> = found.iter().filter(|finding| finding.kind == Kind::Release).collect();
    assert_eq!(of_three.len(), 1);
    assert!(!of_three[0].fixable && of_three[0].fix.contains("jiji deploy"), "{found:?}");
}
