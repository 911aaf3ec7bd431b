//! The same commit gives the same image wherever and by whomever it is built, and others accept what was built.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiji_e2e::{Outcome, Project, Run, Shared, jiji_bin, look};
use jiji_lab::Engines;
use jiji_lab::command::{command, run, run_with_input};
use serde_json::Value;

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// Runs git in a directory, and with nobody's configuration.
fn git(dir: &Path, args: &[&str]) -> Outcome {
    let who = ["-c", "user.name=e2e", "-c", "user.email=e2e@lab.test", "-c", "init.defaultBranch=main"];
    run(command("git", who).arg("-C").arg(dir).args(args).env("GIT_CONFIG_GLOBAL", "/dev/null"))?;
    Ok(())
}

/// The library that shows a program another time.
fn faketime() -> Outcome<PathBuf> {
    for dir in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"] {
        let path = Path::new(dir).join("faketime/libfaketime.so.1");
        if path.is_file() {
            return Ok(path);
        }
    }
    Err("libfaketime is not installed; `cargo xtask test` brings it".into())
}

/// Somebody who clones and builds.
struct Builder<'a> {
    name: &'a str,
    /// Where the clone lies, below the test's directory.
    place: &'a str,
    umask: &'a str,
    /// Variables that differ from one to the other.
    variables: &'a [(&'a str, &'a str)],
}

impl Builder<'_> {
    /// Clones, then builds with a home and a store of its own. Gives the run and the clone's directory.
    fn build(&self, project: &Project<'_>, prepare: impl FnOnce(&Path) -> Outcome) -> Outcome<(Run, PathBuf)> {
        let own = project.dir().join(self.name);
        let clone = own.join(self.place);
        std::fs::create_dir_all(clone.parent().ok_or("a place below the directory")?)?;
        let umask = format!("umask {}; exec \"$@\"", self.umask);
        let origin = project.root();
        run(command("sh", ["-c", &umask, "sh", "git", "clone", "--quiet"]).arg(&origin).arg(&clone))?;
        prepare(&clone)?;
        let mut build = project.command(&[])?;
        // The program behind a shell that sets the mask: the command's own arguments are its tail.
        let program = build.get_args().map(std::ffi::OsStr::to_owned).collect::<Vec<_>>();
        let mut shell = Command::new(build.get_program());
        let (jiji, before) = program.split_last().ok_or("a command with arguments")?;
        assert_eq!(Path::new(jiji), jiji_bin()?);
        shell.args(before).args(["sh", "-c", &umask, "sh"]).arg(jiji);
        shell.args(["build", "--json", "--output", "oci:../layout"]).current_dir(&clone);
        shell.env_clear();
        for (name, value) in build.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        shell.env("HOME", own.join("home")).env("XDG_CACHE_HOME", own.join("cache"));
        shell.envs(self.variables.iter().copied());
        build.env_clear();
        Ok((Run::of(&mut shell)?.expect(0)?, clone))
    }
}

/// Every file of a layout.
fn files(dir: &Path) -> Outcome<BTreeMap<PathBuf, Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                all.insert(path.strip_prefix(dir)?.to_owned(), std::fs::read(&path)?);
            }
        }
    }
    Ok(all)
}

fn built(run: &Run) -> Outcome<String> {
    let event = run.events_of("build.done").next().ok_or_else(|| format!("nothing was built: {run}"))?;
    assert_eq!(event["data"]["cached"], 0, "built from nothing: {run}");
    Ok(event["data"]["image"].as_str().ok_or("no digest")?.to_owned())
}

#[test]
fn two_clones_of_a_commit_give_one_image_that_everybody_accepts_and_every_host_runs() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "reproduce")?;
    git(&project.root(), &["init", "--quiet"])?;
    git(&project.root(), &["add", "--all"])?;
    git(&project.root(), &["commit", "--quiet", "--message", "A service"])?;

    let one = Builder {
        name: "first",
        place: "clone",
        umask: "022",
        variables: &[("TZ", "UTC"), ("LC_ALL", "C"), ("USER", "root")],
    };
    let (first, first_clone) = one.build(&project, |_| Ok(()))?;

    let library = faketime()?.display().to_string();
    let other = Builder {
        name: "second",
        place: "deep/er/another-name",
        umask: "077",
        variables: &[
            ("TZ", "Pacific/Chatham"),
            ("LC_ALL", "tr_TR.UTF-8"),
            ("LANG", "tr_TR.UTF-8"),
            ("USER", "somebody"),
            ("SOURCE_DATE_EPOCH", "1"),
            ("LD_PRELOAD", &library),
            ("FAKETIME", "+1900d"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ],
    };
    let (second, second_clone) = other.build(&project, |clone| {
        run(command("find", [clone]).args([
            "-exec",
            "touch",
            "--no-dereference",
            "--date=2001-02-03T04:05:06.789",
            "{}",
            "+",
        ]))?;
        run(command("chown", ["-R", "4321:1234"]).arg(clone))?;
        Ok(())
    })?;
    let year = |run: &Run| run.events[0]["time"].as_str().and_then(|time| time[..4].parse::<u32>().ok()).unwrap_or(0);
    assert!(year(&second) >= year(&first) + 5, "the second build's clock is another one: {second}");

    let digest = built(&first)?;
    assert_eq!(built(&second)?, digest);
    let layouts = [first_clone, second_clone].map(|clone| clone.with_file_name("layout"));
    let [here, there] = [files(&layouts[0])?, files(&layouts[1])?];
    assert_eq!(here.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>());
    for (path, bytes) in &here {
        assert!(there[path] == *bytes, "{} differs", path.display());
    }
    println!("{digest}: {} files of the layouts are equal to the byte", here.len());

    let layout = layouts[1].display();
    let seen = run(&mut command("skopeo", ["inspect", "--format", "{{.Digest}}", &format!("oci:{layout}")]))?;
    assert_eq!(String::from_utf8(seen)?.trim(), digest);
    let bundle = project.dir().join("bundle");
    run(command("umoci", ["unpack", "--image", &format!("{layout}:latest")]).arg(&bundle))?;
    assert_eq!(std::fs::read(bundle.join("rootfs/app/version.txt"))?, b"v1\n");

    let [podman, _] = <[_; 2]>::try_from(site.hosts()).map_err(|_| "two hosts are due")?;
    let tar = run(command("tar", ["-c", "-C"]).arg(&layouts[0]).arg("."))?;
    podman.exec(&["mkdir", "-p", "/var/lib/layout"])?;
    run_with_input(&mut podman.command(&["tar", "-x", "-C", "/var/lib/layout"]), &tar)?;
    let said = podman.engine(&["run", "--rm", "oci:/var/lib/layout", "python3", "/app/server.py", "--check"])?;
    assert_eq!(said.trim(), "hello v1: checked");

    let manifest: Value =
        serde_json::from_slice(&here[&Path::new("blobs/sha256").join(digest.trim_start_matches("sha256:"))])?;
    let config = manifest["config"]["digest"].as_str().ok_or("a manifest names its configuration")?;
    let shipped = project.ship()?;
    assert_eq!(shipped.image("web")?, digest, "a third build, shipped");
    for host in site.hosts() {
        let container = look::only(&host, "reproduce")?;
        assert_eq!(container.config, config, "{}", host.name);
        if let Some(manifest) = container.manifest {
            assert_eq!(manifest, digest, "{}", host.name);
        }
    }
    Ok(())
}
