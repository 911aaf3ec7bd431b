//! Plans that are kept and applied later.

use jiji_model::plan::Plan;
use serde_json::{Value, json};

use super::*;
use crate::deploy::saved::VERSION;
use crate::deploy::{Basis, Images, Origin, Saved, SavedError, basis};

const FIXTURE: &[u8] = include_bytes!("../fixtures/plan-v1.json");

/// A project with everything that a plan can hold.
fn shop_with_secret() -> Project {
    let mut project = shop();
    let web = project.services.get_mut(&service_name("web")).expect("it is there");
    web.environment.clear.insert("MODE".to_owned(), "production".to_owned());
    web.environment.secrets.push(SecretName::new("TOKEN").expect("a name"));
    project
}

fn plan_of(world: &World, project: &Project, images: &Images) -> (Basis, Plan) {
    let observation = world.observe(project, images, &seeds());
    let desired = desired(project, images, &observation).expect("a plan");
    let mut answers = answers("one", "new");
    answers.extend(super::answers("two", "new"));
    let plan = assemble(&desired, &seeds(), &answers, &observation).expect("a plan").plan;
    (basis(&desired, &answers, &observation).expect("all answered"), plan)
}

fn kept(world: &World, project: &Project, version: &str) -> Saved {
    let images = images(project, version);
    let (basis, plan) = plan_of(world, project, &images);
    let origin = Origin { jiji: "0.1.0".to_owned(), who: "ann@laptop".to_owned(), at_s: 1_795_000_000 };
    let plugins = BTreeMap::from([("proxy-kamal".parse().expect("a name"), Digest::of("its bytes"))]);
    Saved::new(origin, project, plugins, (images, seeds()), basis, plan)
}

/// What becomes of a kept plan when the fleet is `now`.
fn verify(saved: &Saved, now: &World, project: &Project) -> Result<(), SavedError> {
    let (basis, again) = plan_of(now, project, &saved.images);
    saved.verify(&basis, &again)
}

fn shipped() -> (World, Project) {
    let project = shop_with_secret();
    let mut world = World::of(&["one", "two"]);
    let images = images(&project, "1");
    let (_, plan) = plan_of(&world, &project, &images);
    world.apply(&plan);
    (world, project)
}

#[test]
fn a_plan_of_version_1_is_read_and_written_as_it_was() {
    let saved = Saved::parse(FIXTURE).expect("readable");
    assert_eq!(saved.to_bytes().expect("short"), FIXTURE);
    assert_eq!((saved.jiji.as_str(), saved.plan.steps.len()), ("0.1.0", 12));
    assert_eq!(saved.check(&shop_with_secret()), Ok(()));
}

#[test]
fn a_kept_plan_holds_while_nothing_moves_and_what_changes_all_the_time_moves_nothing() {
    let (world, project) = shipped();
    let saved = Saved::parse(&kept(&world, &project, "2").to_bytes().expect("short")).expect("readable");
    assert_eq!(verify(&saved, &world, &project), Ok(()));
    let mut now = world.clone();
    for facts in &mut now.machine("one").containers {
        facts.id = "made anew".to_owned();
        facts.started = Some("later".to_owned());
    }
    now.machine("one").network.as_mut().expect("it is there").used.push(Ipv4Addr::new(10, 210, 0, 250));
    assert_eq!(verify(&saved, &now, &project), Ok(()));
}

/// What a refusal says of host `one` after `change`.
fn moved(change: impl FnOnce(&mut World)) -> String {
    let (world, project) = shipped();
    let saved = kept(&world, &project, "2");
    let mut now = world;
    change(&mut now);
    match verify(&saved, &now, &project).expect_err("it moved") {
        SavedError::Moved(moved) => {
            assert_eq!(moved.keys().collect::<Vec<_>>(), [&host("one")]);
            moved[&host("one")].join("; ")
        }
        other => panic!("expected that something moved, got {other:?}"),
    }
}

#[test]
fn whoever_is_refused_is_told_what_moved() {
    let gone = moved(|world| world.machine("one").containers.retain(|facts| facts.name != "kamal-proxy"));
    assert!(gone.starts_with("container `kamal-proxy` is gone"), "{gone}");
    let stopped = moved(|world| {
        for facts in &mut world.machine("one").containers {
            if facts.name.starts_with("shop-web") {
                facts.state = "exited".to_owned();
            }
        }
    });
    assert!(stopped.starts_with("container `shop-web-") && stopped.ends_with("` has changed"), "{stopped}");
    let label = moved(|world| {
        world.machine("one").containers[0].labels.insert("by".to_owned(), "hand".to_owned());
    });
    assert!(label.ends_with("` has changed"), "{label}");
    let network = moved(|world| world.machine("one").network.as_mut().expect("it is there").gateway = None);
    assert_eq!(network, "the network `jiji` is there otherwise");
    let roster = moved(|world| {
        let roster = world.machine("one").records.roster.as_mut().expect("it is there");
        roster.to_mut().servers.insert(host("three"), Entry { number: 7, removed: true });
    });
    assert!(roster.contains("the roster of servers is another"), "{roster}");
    let lease = moved(|world| world.machine("one").records.fencing += 1);
    assert_eq!(lease, "somebody took its lease: the number was 1 and is 2");
    let release = moved(|world| world.machine("one").records.releases[0].number = 9);
    assert_eq!(release, "its newest release was 1 and is 9");
    let record = moved(|world| world.machine("one").records.releases[0].who = "bob@desk".to_owned());
    assert_eq!(record, "the records of its releases are others");
    let address = moved(|world| {
        world.machine("one").records.last_address = Some(Ipv4Addr::new(10, 210, 0, 200));
    });
    assert_eq!(address, "another project gave out container addresses");
    let secret = moved(|world| world.machine("one").mac = "mac of another value".to_owned());
    assert_eq!(secret, "secrets of `web` have other values");
    let engine = moved(|world| world.machine("one").engine = Some(jiji_model::project::Engine::Docker));
    assert_eq!(engine, "its engine was podman and is docker");
}

#[test]
fn an_image_that_is_gone_and_a_route_that_moved_are_told() {
    let (world, project) = shipped();
    let images = images(&project, "1");
    let (basis, _) = plan_of(&world, &project, &images);
    let mut now = world.clone();
    now.machine("one").images.clear();
    let lines = &basis.moved(&plan_of(&now, &project, &images).0)[&host("one")];
    assert_eq!(lines.len(), 2, "the service's and the proxy's");
    assert!(lines[0].starts_with("image ") && lines[0].ends_with(" is gone from its engine"), "{lines:?}");

    let observation = world.observe(&project, &images, &seeds());
    let desired = desired(&project, &images, &observation).expect("a plan");
    let mut other = answers("one", "elsewhere");
    other.extend(answers("two", "new"));
    let other = crate::deploy::basis(&desired, &other, &observation).expect("all answered");
    assert_eq!(basis.moved(&other)[&host("one")], ["the proxy routes `web` otherwise"]);
}

#[test]
fn a_step_that_was_changed_in_the_file_is_refused_though_nothing_moved() {
    let (world, project) = shipped();
    let mut tampered: Value =
        serde_json::from_slice(&kept(&world, &project, "2").to_bytes().expect("short")).expect("JSON");
    let steps = tampered["plan"]["steps"].as_array_mut().expect("steps");
    let run = steps.iter_mut().find(|step| step["action"]["container_run"].is_object()).expect("a container is run");
    run["action"]["container_run"]["mounts"] =
        json!([{"source": {"bind": "/"}, "target": "/host", "read_only": false}]);
    let saved = Saved::parse(tampered.to_string().as_bytes()).expect("its form is right");
    assert_eq!(saved.check(&project), Ok(()));
    let error = verify(&saved, &world, &project).expect_err("it is another plan");
    assert!(matches!(&error, SavedError::Differs { differences, .. } if differences.len() == 1), "{error}");
    assert!(error.to_string().contains("one: `run shop-web-"), "{error}");
}

#[test]
fn a_step_more_an_image_less_and_another_record_are_differences() {
    let (world, project) = shipped();
    let saved = kept(&world, &project, "2");
    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut saved = saved.clone();
        change(&mut saved.plan);
        verify(&saved, &world, &project).expect_err("it is another plan").to_string()
    };
    let more = refused(&|plan| {
        let action = Action::Note { text: "evil".to_owned() };
        plan.steps.push(Step::new(&host("two"), Phase::Finalize, "say something", action));
    });
    assert!(more.ends_with("two: the file alone has `say something`"), "{more}");
    assert!(refused(&|plan| drop(plan.steps.remove(0))).contains("the file lacks `"));
    assert!(refused(&|plan| plan.steps.swap(0, 1)).ends_with("the order of its steps is otherwise in the file"));
    assert!(refused(&|plan| plan.images.clear()).contains("the images that hosts are brought"));
    assert!(refused(&|plan| plan.releases.clear()).contains("what is recorded of the release"));
    assert!(refused(&|plan| plan.retain = 9).contains("how many releases stay"));
}

#[test]
fn a_plan_of_other_sources_servers_or_secrets_is_refused_before_any_host_is_asked() {
    let (world, project) = shipped();
    let saved = kept(&world, &project, "2");
    assert_eq!(saved.check(&project), Ok(()));

    let mut other = project.clone();
    other.environment = Some("staging".to_owned());
    assert!(matches!(saved.check(&other), Err(SavedError::Project { .. })));

    let mut other = project.clone();
    other.services.get_mut(&service_name("web")).expect("it is there").hosts = vec![host("one")];
    assert_eq!(saved.check(&other), Err(SavedError::Hosts(vec![host("two")])));

    let mut other = project.clone();
    other.services.get_mut(&service_name("web")).expect("it is there").environment.secrets.clear();
    assert!(matches!(saved.check(&other), Err(SavedError::Secrets(names)) if names.len() == 1));

    let mut other = project.clone();
    other.services.get_mut(&service_name("web")).expect("it is there").command = Some(vec!["other".to_owned()]);
    assert_eq!(saved.check(&other), Err(SavedError::Configuration));

    // How a server is reached is the operator's own affair.
    let mut other = project;
    other.servers.get_mut(&host("one")).expect("it is there").address = "192.0.2.1".to_owned();
    assert_eq!(saved.check(&other), Ok(()));

    let none = BTreeMap::new();
    assert!(matches!(saved.check_plugins(&none), Err(SavedError::Plugin { .. })));
    assert_eq!(saved.is(&saved.plan.digest().to_string()), Ok(()));
    assert!(matches!(saved.is("sha256:00"), Err(SavedError::OtherPlan { .. })));
}

#[test]
fn what_is_no_plan_of_this_version_is_refused() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(FIXTURE).expect("JSON");
        change(&mut value);
        Saved::parse(value.to_string().as_bytes()).expect_err("refused")
    };
    assert_eq!(with(&|value| value["version"] = json!(VERSION + 1)), SavedError::Newer { version: VERSION + 1 });
    // A newer one is told from a broken one whatever else it has.
    let newer = br#"{"format":"jiji-plan","version":2,"unheard of":[]}"#;
    assert_eq!(Saved::parse(newer), Err(SavedError::Newer { version: 2 }));
    assert_eq!(with(&|value| value["plan"]["version"] = json!(2)), SavedError::Newer { version: 2 });
    let syntax = |error: SavedError| matches!(error, SavedError::Syntax { .. });
    assert!(syntax(with(&|value| value["version"] = json!(0))));
    assert!(syntax(with(&|value| value["format"] = json!("other"))));
    assert!(syntax(with(&|value| value["more"] = json!(1))));
    assert!(syntax(with(&|value| value["plan"]["more"] = json!(1))));
    assert!(syntax(with(&|value| value["plan"]["steps"][0]["more"] = json!(1))));
    assert!(syntax(with(&|value| value["basis"]["one"]["more"] = json!(1))));
    assert!(syntax(with(&|value| value["plan"]["steps"][0]["host"] = json!("../etc"))));
    assert!(syntax(with(&|value| drop(value.as_object_mut().expect("an object").remove("basis")))));
    for bytes in [&b""[..], b"null", b"[]", b"\xff", b"{}", &FIXTURE[..FIXTURE.len() / 2]] {
        assert!(Saved::parse(bytes).is_err_and(syntax));
    }
}

#[test]
fn nothing_of_a_hostile_file_reaches_a_terminal_as_it_is() {
    let evil = "\u{1b}]0;owned\u{7}";
    let text = format!(r#"{{"format":"jiji-plan","version":1,"{}":1}}"#, "\\u001b]0;owned");
    let error = Saved::parse(text.as_bytes()).expect_err("refused").to_string();
    assert!(!error.chars().any(|c| c.is_control()), "{error:?}");
    let (world, project) = shipped();
    let mut saved = kept(&world, &project, "2");
    saved.basis.0.get_mut(&host("one")).expect("it is there").containers.insert(evil.to_owned(), Digest::of("x"));
    let error = verify(&saved, &world, &project).expect_err("moved").to_string();
    assert!(!error.chars().any(|c| c.is_control() && c != '\n'), "{error:?}");
    let mut saved = kept(&world, &project, "2");
    saved.plan.steps[0].title = evil.to_owned();
    assert!(matches!(saved.check(&project), Err(SavedError::Form(_))));
}
