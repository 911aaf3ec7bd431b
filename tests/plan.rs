//! A plan is shown, kept, and applied on another machine; once the fleet has moved or the file was changed, it is refused.

use jiji_e2e::look::{self, State};
use jiji_e2e::secrecy::Sentinel;
use jiji_e2e::{Outcome, Project, Run, Shared, Site};
use jiji_lab::{Engines, Host};
use serde_json::{Value, json};

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// The same project with the lab's registry to push to.
fn with_registry(project: &Project<'_>, site: &Site) -> Outcome {
    let address = &site.lab.registry()?.address;
    let registry = format!("builder:\n  registry:\n    server: http://{address}\n");
    project.edit("builder:\n", &registry)
}

fn states(site: &Site) -> Outcome<Vec<State>> {
    site.hosts().iter().map(State::of).collect()
}

fn says(run: &Run, due: &[&str]) {
    for due in due {
        assert!(run.stderr.contains(due), "`{due}` is to be said: {run}");
    }
}

/// The container of a project that runs on a host.
fn container(host: &Host, project: &str) -> Outcome<String> {
    Ok(look::only(host, project)?.name)
}

#[test]
fn a_plan_is_shown_kept_and_applied_on_a_machine_that_never_had_the_sources() -> Outcome {
    let site = LAB.take()?;
    let mut project = Project::new(&site, "kept")?;
    with_registry(&project, &site)?;
    let secret = Sentinel::new("plan");
    project.secret = secret.value().to_owned();
    project.ship()?;

    let unchanged = project.run(&["plan", "--detailed-exitcode"])?.expect(0)?;
    let view: Value = serde_json::from_str(unchanged.stdout.lines().last().unwrap_or_default())?;
    assert_eq!((&view["changed"], &view["total"]["steps"]), (&json!(false), &json!(0)), "{unchanged}");

    // A version of this test alone: blobs that another project brought to a host are not missing there.
    project.set_version("v21")?;
    project.edit("GREETING: hello\n", "GREETING: hello\n        COLOR: green-as-grass\n")?;
    let before = states(&site)?;
    let shown = project.show(&["plan"])?.expect(0)?;
    let markdown = project.show(&["plan", "--markdown", "--detailed-exitcode"])?.expect(17)?;
    let json = project.run(&["plan", "--out", "kept.plan"])?.expect(0)?;
    assert!(states(&site)? == before, "a plan changes nothing on hosts");

    let view: Value = serde_json::from_str(json.stdout.lines().last().unwrap_or_default())?;
    println!("{}", shown.stdout);
    assert_eq!(view["total"]["changed"], 2, "{json}");
    let hosts = view["hosts"].as_array().ok_or("hosts")?;
    for host in hosts {
        let web = &host["services"][0];
        assert_eq!((&web["service"], &web["change"]), (&json!("web"), &json!("changes")), "{json}");
        let colour = json!([{"name": "COLOR", "change": "added", "secret": false}]);
        assert_eq!(web["env"], colour, "a variable is told by its name: {json}");
        assert_eq!((&web["route"]["change"], &web["route"]["at"][0]), (&json!("moved"), &json!("kept.test/")));
        // The layer with the sources is new; what it stands on is there.
        let bytes = host["bytes"].as_u64().unwrap_or_default();
        assert!((1..200_000).contains(&bytes), "{bytes} bytes to send");
        assert!(host["steps"].as_array().is_some_and(|steps| steps.len() >= 5), "{json}");
    }
    let digest = view["digest"].as_str().ok_or("a digest")?.to_owned();
    for form in [&shown, &markdown] {
        for due in ["+ COLOR", "kept.test/", "web", " steps", digest.as_str()] {
            assert!(form.stdout.contains(due), "`{due}` is to be shown: {form}");
        }
        assert!(!form.stdout.contains("green-as-grass"), "a value is shown: {form}");
    }
    assert!(markdown.stdout.starts_with("<!-- jiji plan kept -->\n### jiji plan for `kept`: 2 of 2 hosts to change\n"));
    let file = std::fs::read(project.root().join("kept.plan"))?;
    assert!(!secret.is_in(&file), "the plan file holds the secret");
    for run in [&shown, &markdown, &json] {
        assert!(!secret.is_in(run.stdout.as_bytes()) && !secret.is_in(run.stderr.as_bytes()), "`{}`", run.argv);
    }

    // Another machine: no sources, no store, and at first no secret.
    let mut other = project.elsewhere()?;
    std::fs::write(other.root().join("kept.plan"), &file)?;
    other.secret = String::new();
    says(&other.run(&["apply", "kept.plan"])?.expect(12)?, &["HELLO_KEY"]);
    other.secret = "another value".to_owned();
    let run = other.run(&["apply", "kept.plan"])?.expect(15)?;
    says(&run, &["one: secrets of `web` have other values", "two: secrets of `web` have other values"]);
    other.secret = secret.value().to_owned();
    let wrong = format!("sha256:{}", "0".repeat(64));
    says(&other.run(&["apply", "kept.plan", "--digest", &wrong])?.expect(15)?, &[&digest]);

    // A stranger's hand in the file: the step is well formed, and is not what the configuration gives.
    let mut evil: Value = serde_json::from_slice(&file)?;
    let steps = evil["plan"]["steps"].as_array_mut().ok_or("steps")?;
    let run = steps.iter_mut().find(|step| step["action"]["container_run"].is_object()).ok_or("a container is run")?;
    run["action"]["container_run"]["mounts"] =
        json!([{"source": {"bind": "/etc"}, "target": "/host", "read_only": false}]);
    std::fs::write(other.root().join("evil.plan"), evil.to_string())?;
    says(&other.run(&["apply", "evil.plan"])?.expect(15)?, &["planning again gives another", "run kept-web-"]);
    std::fs::write(other.root().join("cut.plan"), &file[..file.len() / 2])?;
    other.run(&["apply", "cut.plan"])?.expect(2)?;
    assert!(states(&site)? == before, "what was refused changed nothing");

    let applied = other.run(&["apply", "kept.plan", "--digest", &digest])?.expect(0)?;
    assert_eq!(applied.summary()?["result"], "applied");
    assert_eq!(site.versions(&project.authority())?, [["v21"], ["v21"]]);
    assert!(!secret.is_in(applied.stdout.as_bytes()) && !secret.is_in(applied.stderr.as_bytes()));
    println!("applied elsewhere in {:.1}s", applied.took.as_secs_f64());

    let again = other.run(&["apply", "kept.plan"])?.expect(15)?;
    says(&again, &["2 hosts moved since it was made", "one: another transaction ran", "its newest release was"]);
    Ok(())
}

#[test]
fn a_plan_is_refused_once_a_container_or_a_route_moved_and_where_its_image_is_nowhere() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "stale")?;
    project.ship()?;
    let [one, two] = <[Host; 2]>::try_from(site.hosts()).map_err(|_| "two hosts are due")?;
    project.set_version("v2")?;
    project.run(&["plan", "--out", "stale.plan"])?.expect(0)?;

    // Without a registry the images are in the store of the machine that built them and nowhere else.
    let other = project.elsewhere()?;
    std::fs::copy(project.root().join("stale.plan"), other.root().join("stale.plan"))?;
    says(&other.run(&["apply", "stale.plan"])?.expect(15)?, &["not in this machine's store, and no registry is known"]);

    let old = container(&one, "stale")?;
    one.engine(&["stop", "--time", "1", &old])?;
    let run = project.run(&["apply", "stale.plan"])?.expect(15)?;
    says(&run, &[&format!("one: container `{old}` has changed")]);
    one.engine(&["start", &old])?;
    // By hand, the proxy is told to route a second name to the same container: an undo would have to keep it.
    let target = format!("--target={}:8080", look::only(&two, "stale")?.address);
    let by_hand = ["exec", "kamal-proxy", "kamal-proxy", "deploy", "stale-web", &target];
    two.engine(&[&by_hand[..], &["--host=stale.test", "--host=by-hand.test"]].concat())?;
    let run = project.run(&["apply", "stale.plan"])?.expect(15)?;
    says(&run, &["1 host moved since it was made", "two: the proxy routes `web` otherwise"]);

    project.run(&["ship"])?.expect(0)?;
    assert_eq!(site.versions(&project.authority())?, [["v2"], ["v2"]]);
    Ok(())
}
