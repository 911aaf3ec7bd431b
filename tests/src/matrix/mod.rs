//! The same projects built under many conditions of the builder's world: one digest for each project, or something is wrong.
//!
//! Everything is real: the `jiji` of `JIJI_BIN`, a registry and package indexes on loopback, other users, file systems and kernels'
//! namespaces. It happens in namespaces of its own ([`world`]), so that nothing but loopback can be reached and nothing is left.
//! What is built is in [`projects`], what is varied in [`variation`]; both are lists, and `docs/reproducible.md` says the same to people.

mod packages;
mod places;
mod projects;
mod variation;
pub mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Outcome, Run};

pub use projects::{CLOCK, PROJECTS, Project};
pub use variation::{VARIATIONS, Variation};

use places::{Conditions, Room};
use world::World;

/// What to build, and how.
pub struct Order {
    /// Only projects of these names; all without.
    pub projects: Vec<String>,
    /// Only variations of these names; all without.
    pub variations: Vec<String>,
}

impl Order {
    fn wants(names: &[String], name: &str) -> bool {
        names.is_empty() || names.iter().any(|wanted| wanted == name)
    }

    /// What is ordered of the projects.
    pub fn projects(&self) -> impl Iterator<Item = &'static Project> {
        PROJECTS.iter().filter(|project| Self::wants(&self.projects, project.name))
    }

    /// What is ordered of the variations.
    pub fn variations(&self) -> impl Iterator<Item = &'static Variation> {
        VARIATIONS.iter().filter(|variation| Self::wants(&self.variations, variation.name))
    }
}

/// How a project came out under a variation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// With the digest that it has.
    Same(Duration),
    /// Not at all, as the documentation says of this way of building.
    Refused,
    /// With another digest, or not at all: what was wrong.
    Wrong(String),
}

/// A project's column of the table.
pub struct Column {
    /// The project.
    pub name: &'static str,
    /// The digest of its first build.
    pub digest: String,
    /// What each variation gave, by its name.
    pub cells: BTreeMap<&'static str, Cell>,
}

/// What came out.
#[derive(Default)]
pub struct Summary {
    /// Each project.
    pub columns: Vec<Column>,
    /// How the step that reads the clock was caught; what was wrong where it was not.
    pub clock: Vec<Result<String, String>>,
}

impl Summary {
    /// Whether all is as it must be.
    pub fn is_right(&self) -> bool {
        let wrong = |cell: &Cell| matches!(cell, Cell::Wrong(_));
        self.clock.iter().all(Result::is_ok) && !self.columns.iter().any(|column| column.cells.values().any(wrong))
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |name: &str| name.len().max(9);
        write!(f, "{:<16}", "")?;
        for column in &self.columns {
            write!(f, "  {:>1$}", column.name, width(column.name))?;
        }
        writeln!(f)?;
        for variation in &VARIATIONS {
            if !self.columns.iter().any(|column| column.cells.contains_key(variation.name)) {
                continue;
            }
            write!(f, "{:<16}", variation.name)?;
            for column in &self.columns {
                let cell = match column.cells.get(variation.name) {
                    Some(Cell::Same(took)) => format!("{:.1} s", took.as_secs_f64()),
                    Some(Cell::Refused) => "refused".to_owned(),
                    Some(Cell::Wrong(_)) => "WRONG".to_owned(),
                    None => "-".to_owned(),
                };
                write!(f, "  {cell:>0$}", width(column.name))?;
            }
            writeln!(f)?;
        }
        for column in &self.columns {
            let count = |is: fn(&Cell) -> bool| column.cells.values().filter(|cell| is(cell)).count();
            let same = count(|cell| matches!(cell, Cell::Same(_)));
            let refused = count(|cell| matches!(cell, Cell::Refused));
            writeln!(f, "{}: {} in {same} of {}, {refused} refused", column.name, column.digest, column.cells.len())?;
            for (name, cell) in &column.cells {
                if let Cell::Wrong(what) = cell {
                    let first = what.lines().next().unwrap_or_default();
                    writeln!(f, "WRONG: {} under {name}: {first}", column.name)?;
                }
            }
        }
        for caught in &self.clock {
            match caught {
                Ok(how) => writeln!(f, "the clock is caught: {how}")?,
                Err(what) => writeln!(f, "WRONG: the clock: {what}")?,
            }
        }
        Ok(())
    }
}

/// A project with the build that all others are compared with.
pub struct Subject<'a> {
    world: &'a World,
    project: &'static Project,
    /// The repository that everybody clones.
    origin: PathBuf,
    /// Where it was built first, with its store and its lock.
    first: Room,
    digest: String,
    took: Duration,
}

/// The digest that a build says, and the steps that it took from its store.
fn built(run: &Run) -> Outcome<(String, u64)> {
    let event = run.events_of("build.done").next().ok_or_else(|| format!("nothing was built: {run}"))?;
    let digest = event["data"]["image"].as_str().ok_or_else(|| format!("no digest: {run}"))?;
    Ok((digest.to_owned(), event["data"]["cached"].as_u64().unwrap_or_default()))
}

impl<'a> Subject<'a> {
    /// Builds it for the first time.
    fn new(world: &'a World, project: &'static Project) -> Outcome<Self> {
        let place = world.dir().join(project.name);
        let origin = place.join("origin");
        project.write(&origin)?;
        let first = Room::new(&place.join("first"), &Conditions::default())?;
        first.arrive(&origin, &Conditions::default())?;
        let conditions = Conditions { args: vec!["--output".into(), "oci:../layout".into()], ..Conditions::default() };
        let run = first.build(world, &conditions)?.expect(0)?;
        let (digest, _) = built(&run)?;
        Ok(Self { world, project, origin, digest, took: run.took, first })
    }

    /// A place of its own for a variation. It goes with the value.
    fn room(&self, name: &str, conditions: &Conditions) -> Outcome<Room> {
        Room::new(&self.world.dir().join(self.project.name).join(name), conditions)
    }

    /// Builds under conditions in a store of its own.
    fn build_under(&self, name: &str, conditions: &Conditions) -> Outcome<Cell> {
        let room = self.room(name, conditions)?;
        room.arrive(&self.origin, conditions)?;
        let mut conditions = conditions.clone();
        conditions.args.extend(["--output".into(), "oci:../layout".into()]);
        let run = room.build(self.world, &conditions)?;
        if conditions.person.is_alone() && self.project.has_owners {
            let said = format!("{}{}", run.stdout, run.stderr);
            let refused = run.code() == Some(3) && said.contains("as root");
            return if refused { Ok(Cell::Refused) } else { Err(format!("a refusal was due: {run}").into()) };
        }
        let cell = self.same(&run.expect(0)?)?;
        if let Cell::Wrong(what) = cell {
            let shown = self.difference(&room.layout())?;
            return Ok(Cell::Wrong(format!("{what}\n{shown}")));
        }
        Ok(cell)
    }

    fn same(&self, run: &Run) -> Outcome<Cell> {
        let (digest, _) = built(run)?;
        Ok(if digest == self.digest { Cell::Same(run.took) } else { Cell::Wrong(digest) })
    }

    /// What `jiji diff` says of an image and the first.
    fn difference(&self, other: &Path) -> Outcome<String> {
        let words = [self.first.layout(), other.to_owned()].map(|path| format!("oci:{}", path.display()));
        let run =
            Run::of(&mut self.first.jiji(self.world, &Conditions::default(), &["diff", &words[0], &words[1]])?)?;
        Ok(run.stdout)
    }
}

/// Builds what is ordered and compares. What is under way is told line by line.
///
/// # Errors
/// When something else goes wrong than a build: no registry, no packages, no room.
pub fn run(world: &World, order: &Order, told: &mut dyn FnMut(&str)) -> Outcome<Summary> {
    let mut summary = Summary::default();
    for project in order.projects() {
        let subject = Subject::new(world, project)?;
        told(&format!("{}: {} in {:.1} s", project.name, subject.digest, subject.took.as_secs_f64()));
        let mut column = Column { name: project.name, digest: subject.digest.clone(), cells: BTreeMap::new() };
        for variation in order.variations() {
            let cell = variation.build(&subject).unwrap_or_else(|error| Cell::Wrong(error.to_string()));
            match &cell {
                Cell::Same(took) => {
                    told(&format!("{} {}: the same, {:.1} s", project.name, variation.name, took.as_secs_f64()))
                }
                Cell::Refused => told(&format!("{} {}: refused, as it must be", project.name, variation.name)),
                Cell::Wrong(what) => told(&format!("{} {}: WRONG: {what}", project.name, variation.name)),
            }
            column.cells.insert(variation.name, cell);
        }
        summary.columns.push(column);
        drop(subject);
    }
    summary.clock = clock(world)?;
    Ok(summary)
}

/// A step that reads the clock: `--check` finds it, and `--locked` does wherever what it gave is not in the store.
fn clock(world: &World) -> Outcome<Vec<Result<String, String>>> {
    let subject = Subject::new(world, &CLOCK)?;
    let caught = |run: Run, code: i32, said: &[&str]| {
        let all = format!("{}{}", run.stdout, run.stderr);
        let shown = said.iter().all(|said| all.contains(said));
        let how = run.argv.rsplit('/').next().unwrap_or_default().to_owned();
        if run.code() == Some(code) && shown { Ok(format!("`{how}` ends with {code}")) } else { Err(run.to_string()) }
    };
    let plain = Conditions::default();
    let mut check = subject.first.jiji(world, &plain, &["build", "--check"])?;
    let checked = caught(Run::of(&mut check)?, 18, &["Dockerfile:3", "built"]);

    let room = subject.room("locked", &plain)?;
    room.arrive(&subject.origin, &plain)?;
    room.take_lock(&subject.first)?;
    let mut locked = room.jiji(world, &plain, &["build", "--locked"])?;
    let locked = caught(Run::of(&mut locked)?, 4, &["built"]);
    Ok(vec![checked, locked])
}
