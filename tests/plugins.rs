//! Plugins that must be stopped, and one by somebody else that carries a ship.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiji_e2e::look::{self, State};
use jiji_e2e::secrecy::hex;
use jiji_e2e::{Outcome, Project, Shared, Site};
use jiji_lab::Engines;
use jiji_lab::command::{run, run_with_input};
use sha2::{Digest, Sha256};

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// A plugin that does what its settings say a plugin must not do.
const HOSTILE: &str = "../src/plugin/fixtures/hostile.wasm";
/// A plugin by somebody else.
const EDGE: &str = "../examples/proxy-edge/dist/proxy-edge.wasm";
/// The port that it is told to listen on.
const PORT: u16 = 8088;

fn component(path: &str) -> Outcome<Vec<u8>> {
    Ok(std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))?)
}

/// Puts a component beside the project, and gives its path.
fn file(project: &Project<'_>, name: &str, bytes: &[u8]) -> Outcome<PathBuf> {
    let path = project.dir().join(name);
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// Chooses a proxy plugin with these settings, as YAML's flow style.
fn choose(project: &Project<'_>, name: &str, settings: &str) -> Outcome {
    project.edit(
        "    settings:\n      image: ${LAB_KAMAL_PROXY}\n",
        &format!("    name: {name}\n    settings: {settings}\n"),
    )
}

/// Pushes a component to the lab's registry in the layout that plugins come in, under a tag. Gives its reference.
fn push(site: &Site, name: &str, tag: &str, component: &[u8]) -> Outcome<String> {
    let address = &site.lab.registry()?.address;
    let base = format!("http://{address}/v2/{name}");
    let digest = |bytes: &[u8]| format!("sha256:{}", hex(&Sha256::digest(bytes)));
    let curl = |args: &[&str], body: &[u8]| -> Outcome<String> {
        let mut command = site.lab.operator_command("curl");
        command.args(["-sS", "--fail", "--max-time", "20"]).args(args);
        Ok(String::from_utf8(run_with_input(&mut command, body)?)?)
    };
    let config = br#"{"created":"1970-01-01T00:00:00Z","architecture":"wasm","os":"wasip2","layerDigests":[]}"#;
    for bytes in [config.as_slice(), component] {
        let place = curl(
            &["-X", "POST", "-o", "/dev/null", "-w", "%header{location}", &format!("{base}/blobs/uploads/")],
            b"",
        )?;
        let place = format!("{place}&digest={}", digest(bytes));
        let octets = "Content-Type: application/octet-stream";
        curl(&["-X", "PUT", "-H", octets, "--data-binary", "@-", &place], bytes)?;
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.wasm.config.v0+json", "digest": digest(config), "size": config.len(),
        },
        "layers": [{"mediaType": "application/wasm", "digest": digest(component), "size": component.len()}],
    });
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    let place = format!("{base}/manifests/{tag}");
    curl(&["-X", "PUT", "-H", kind, "--data-binary", "@-", &place], manifest.to_string().as_bytes())?;
    Ok(format!("lab.test/{name}:{tag}"))
}

/// The same component with one more custom section: other bytes that do the same.
fn changed(component: &[u8]) -> Vec<u8> {
    // Section 0 of five bytes: a name of one letter and three bytes.
    [component, &[0, 5, 1, b'x', 1, 2, 3]].concat()
}

#[test]
fn a_plugin_that_goes_beyond_its_grants_or_its_limits_is_stopped_before_any_effect() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "hostile")?;
    let path = file(&project, "hostile.wasm", &component(HOSTILE)?)?;
    choose(&project, "hostile", "{do: nothing}")?;
    let path = path.display().to_string();
    let refused = project.show(&["plugin", "install", &path])?.expect(11)?;
    assert!(refused.stdout.contains("tool"), "what it asks for is shown: {refused}");
    assert!(!refused.stdout.contains('\u{1b}'), "its colours are not: {refused}");
    project.show(&["plugin", "install", &path, "--accept"])?.expect(0)?;
    let before = site.hosts().iter().map(State::of).collect::<Outcome<Vec<_>>>();
    // The first contact brings jiji-host; what counts is what comes after.
    let before = match before {
        Ok(before) => before,
        Err(_) => {
            project.run(&["status"])?.expect(0)?;
            site.hosts().iter().map(State::of).collect::<Outcome<Vec<_>>>()?
        }
    };
    let mut doing = "nothing";
    for (what, due) in [
        ("outside", "sh"),
        ("undo-outside", "sh"),
        ("want-outside", "/etc/shadow"),
        ("loop", "fuel"),
        ("memory", "memory"),
        ("panic", "hostile"),
        ("rounds", "hostile"),
    ] {
        project.edit(&format!("{{do: {doing}}}"), &format!("{{do: {what}}}"))?;
        doing = what;
        let run = project.show(&["ship"])?.expect(11)?;
        println!("{what}: {}", run.stderr.lines().find(|line| line.starts_with("error")).unwrap_or_default());
        assert!(run.stderr.contains(due) && run.stderr.contains("hostile"), "{what}: {run}");
        assert!(run.took < Duration::from_secs(60), "{what} is stopped in time: {run}");
    }
    for (host, before) in site.hosts().iter().zip(before) {
        assert_eq!(State::of(host)?, before, "{}: nothing was done", host.name);
    }
    Ok(())
}

#[test]
fn a_plugin_by_somebody_else_from_a_file_or_a_registry_carries_a_ship_and_no_other_bytes_do() -> Outcome {
    let site = LAB.take()?;
    let bytes = component(EDGE)?;
    let tag = push(&site, "plugins/edge", "1", &bytes)?;
    for (name, from_registry) in [("edge-file", false), ("edge-registry", true)] {
        let project = Project::new(&site, name)?;
        choose(&project, "proxy-edge", &format!("{{image: \"${{LAB_KAMAL_PROXY}}\", port: {PORT}}}"))?;
        let source = match from_registry {
            true => tag.clone(),
            false => file(&project, "edge.wasm", &bytes)?.display().to_string(),
        };
        let unknown = project.show(&["ship"])?.expect(11)?;
        assert!(unknown.stderr.contains("proxy-edge"), "not installed yet: {unknown}");
        project.show(&["plugin", "install", &source, "--accept"])?.expect(0)?;
        let lock = std::fs::read_to_string(project.root().join("jiji.lock"))?;
        assert!(lock.contains(&hex(&Sha256::digest(&bytes))), "the lock pins it: {lock}");

        project.ship()?;
        project.set_version("v2")?;
        let mut spec = site.load(&project.authority(), Duration::from_secs(150));
        for target in &mut spec.targets {
            target.address.set_port(PORT);
        }
        let (_, report) = site.under_load(&spec, || project.ship())?;
        println!("{name}: {report}");
        report.without_failure()?;
        for target in &report.targets {
            assert!(target.versions.contains_key("v1") && target.versions.contains_key("v2"), "{report}");
        }
        for host in site.hosts() {
            look::only(&host, name)?;
            host.engine(&["inspect", "edge"])?;
        }
        assert_eq!(project.ship()?.summary()?["result"], "unchanged");

        // Other bytes from the same source.
        let lock = std::fs::read_to_string(project.root().join("jiji.lock"))?;
        let source = match from_registry {
            true => push(&site, "plugins/edge", "1", &changed(&bytes))?,
            false => file(&project, "edge.wasm", &changed(&bytes))?.display().to_string(),
        };
        let refused = project.show(&["plugin", "install", &source, "--accept"])?.expect(11)?;
        assert!(refused.stderr.contains("hint: "), "what moved is said: {refused}");
        assert_eq!(std::fs::read_to_string(project.root().join("jiji.lock"))?, lock, "the lock stays");
        assert_eq!(project.ship()?.summary()?["result"], "unchanged", "a ship asks for no plugin");

        // Other bytes in the store.
        let digest = hex(&Sha256::digest(&bytes));
        let found = run(jiji_lab::command::command("find", [project.cache()]).args(["-name", &digest]))?;
        let stored = String::from_utf8(found)?;
        let stored = Path::new(stored.lines().next().ok_or("the store has the plugin under its digest")?);
        run(jiji_lab::command::command("chmod", ["u+w"]).arg(stored))?;
        std::fs::write(stored, changed(&bytes))?;
        run(jiji_lab::command::command("rm", ["-rf"]).arg(project.cache().join("jiji/plugins")))?;
        let refused = project.show(&["ship"])?;
        assert!(matches!(refused.code(), Some(11 | 1)), "changed bytes carry no ship: {refused}");
        println!("{name}: {}", refused.stderr.lines().find(|line| line.starts_with("error")).unwrap_or_default());
    }
    Ok(())
}
