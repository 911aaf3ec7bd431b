//! `cargo xtask test [AREA]`: everything that a change has to pass, in under 35 minutes from nothing on two cores.
//!
//! A part that fails does not keep the others from running, except that nothing is driven that does not compile. The parts in their
//! order: `format`, `lint`, `unit`, `plugins`, then the end-to-end tests, one area for each file of `tests/`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Instant;

use crate::error::Error;
use crate::process::{as_root, cargo, root, run, target};
use crate::product::{self, For, Product};
use crate::setup::{self, Level, Setup};

/// What to test.
#[derive(clap::Args)]
pub struct Args {
    /// One part alone: format, lint, unit, plugins, lab, e2e, or the name of one end-to-end area
    area: Option<String>,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
    /// Arguments for the test programs, such as a test's name
    #[arg(last = true)]
    rest: Vec<String>,
}

const PARTS: [&str; 6] = ["format", "lint", "unit", "plugins", "lab", "e2e"];

struct Run {
    results: Vec<(String, bool, f64)>,
}

impl Run {
    fn part(&mut self, name: &str, work: impl FnOnce() -> Result<(), Error>) -> bool {
        say(&format!("\n== {name}"));
        let start = Instant::now();
        let result = work();
        if let Err(error) = &result {
            say(&format!("error: failed to {error}"));
        }
        self.results.push((name.to_owned(), result.is_ok(), start.elapsed().as_secs_f64()));
        result.is_ok()
    }
}

/// Tests everything, or one part.
///
/// # Errors
/// When a part fails, with the names of all that did.
pub fn run_all(args: &Args) -> Result<(), Error> {
    let areas = areas()?;
    let area = args.area.as_deref();
    if let Some(name) = area.filter(|name| !PARTS.contains(name) && !areas.contains(&(*name).to_owned())) {
        let known = PARTS.iter().map(|part| (*part).to_owned()).chain(areas).collect();
        return Err(Error::Unknown { kind: "area", name: name.to_owned(), known });
    }
    let wants = |part: &str| area.is_none_or(|area| area == part);
    let hosts = !matches!(area, Some("format" | "lint" | "unit" | "plugins"));
    let setup = setup::ensure(if hosts { Level::Lab } else { Level::Unit }, args.yes)?;
    let mut all = Run { results: Vec::new() };
    if wants("format") {
        all.part("format", || run(cargo().args(["fmt", "--all", "--check"])));
    }
    if wants("lint") {
        all.part("lint", product::lint);
    }
    if wants("unit") {
        all.part("unit", || unit(&setup, &args.rest));
    }
    if wants("plugins") {
        all.part("plugins", || plugins(&args.rest).and_then(|()| crate::plugins::compare()));
    }
    if hosts {
        let mut built = None;
        let compiled = all.part("build", || {
            built = Some(product::build(&setup, For::Tests)?);
            Ok(())
        });
        if let (true, Some(product)) = (compiled, built) {
            drive(&mut all, args, &setup, &product)?;
        }
    }
    summary(&all)
}

fn unit(setup: &Setup, rest: &[String]) -> Result<(), Error> {
    let packages = ["--workspace", "--exclude", "jiji-e2e", "--exclude", "jiji-lab"];
    let mut command = cargo();
    command.env("PATH", setup.path()).arg("test").args(packages).arg("--no-fail-fast").arg("--").args(rest);
    run(&mut command)
}

/// The default plugins are a workspace of their own; their logic is tested natively.
fn plugins(rest: &[String]) -> Result<(), Error> {
    let manifest = root().join("plugins/Cargo.toml");
    if !manifest.is_file() {
        return Ok(());
    }
    let place = target().join("plugins");
    run(cargo()
        .args(["test", "--no-fail-fast", "--manifest-path"])
        .arg(manifest)
        .env("CARGO_TARGET_DIR", place)
        .arg("--")
        .args(rest))
}

/// Runs what needs hosts: the laboratory's own tests and the end-to-end tests.
fn drive(all: &mut Run, args: &Args, setup: &Setup, product: &Product) -> Result<(), Error> {
    let area = args.area.as_deref();
    let mut packages = Vec::new();
    if area.is_none_or(|area| area == "lab") {
        packages.push(("jiji-lab", root().join("tests/lab")));
    }
    if area.is_none_or(|area| area != "lab") {
        packages.push(("jiji-e2e", product::tests_dir()));
    }
    for (package, dir) in packages {
        let mut programs = BTreeMap::new();
        all.part(&format!("build {package}"), || {
            let built = product::executables(cargo().args(["test", "--no-run", "--package", package]))?;
            // Programs are built along with the tests and are none.
            programs.extend(built.into_iter().filter(|(name, _)| !PROGRAMS.contains(&name.as_str())));
            Ok(())
        });
        for (name, program) in programs {
            if package == "jiji-e2e" && area.is_some_and(|area| area != "e2e" && area != name) {
                continue;
            }
            let name = if package == "jiji-lab" { format!("lab {name}") } else { name };
            all.part(&name, || {
                let mut command = as_root(&program);
                command.arg("--show-output").args(&args.rest).current_dir(&dir);
                command.env("JIJI_BIN", &product.jiji).env("JIJI_LAB_BIN", &product.lab).env("PATH", setup.path());
                // cargo sets these for the tests that it runs itself.
                command.env("CARGO_MANIFEST_DIR", &dir);
                run(&mut command)
            });
        }
    }
    Ok(())
}

/// Programs that are built along with the tests.
const PROGRAMS: [&str; 3] = ["lab", "jiji-matrix", "jiji-sweep"];

/// The end-to-end areas: the files of `tests/` that its manifest names as tests.
fn areas() -> Result<Vec<String>, Error> {
    let path = product::tests_dir().join("Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    Ok(names(&text, "[[test]]"))
}

/// The names in a manifest's tables of one kind.
pub fn names(manifest: &str, table: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut within = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            within = line.trim() == table;
        } else if let Some(name) = line.strip_prefix("name").filter(|_| within) {
            names.push(name.trim_start_matches([' ', '=']).trim().trim_matches('"').to_owned());
        }
    }
    names
}

fn summary(all: &Run) -> Result<(), Error> {
    say("");
    for (name, passed, seconds) in &all.results {
        say(&format!("{:>8.1}s  {}  {name}", seconds, if *passed { "passed" } else { "FAILED" }));
    }
    let failed: Vec<String> =
        all.results.iter().filter(|(_, passed, _)| !passed).map(|(name, _, _)| name.clone()).collect();
    if failed.is_empty() { Ok(()) } else { Err(Error::Tests { failed }) }
}

fn say(text: &str) {
    // Nobody to tell is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_the_tests_that_the_manifest_names() {
        let manifest =
            "[package]\nname = \"x\"\n\n[[test]]\nname = \"ship\"\npath = \"ship.rs\"\n[dependencies]\nname = \"no\"\n";
        assert_eq!(names(manifest, "[[test]]"), ["ship"]);
    }
}
