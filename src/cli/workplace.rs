//! What a command works with: the project's directory, its configuration, the store, the lock, and how the run is shown.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiji_model::project::Project;
use jiji_store::Store;

use super::args::{Cli, Command, Global, Progress};
use super::environment::{self, Environment};
use super::exit::Exit;
use super::failure::Failure;
use crate::build::execute::Caretaker;
use crate::config::{self, ConfigErrors, Loaded};
use crate::lockfile::LockFile;
use crate::report::{Report, ndjson::Ndjson, terminal::Terminal};

/// Everything a command of a project needs.
pub struct Workplace {
    /// The project's directory.
    pub root: PathBuf,
    /// The configuration.
    pub loaded: Loaded,
    /// The content-addressed store.
    pub store: Store,
    /// `jiji.lock`.
    pub lock: LockFile,
}

impl Workplace {
    /// Finds and reads the project that `global` means.
    ///
    /// # Errors
    /// Exit 2 where there is none or its configuration is wrong, exit 1 where the store cannot be opened.
    pub fn open(global: &Global, environment: &Environment) -> Result<Self, Failure> {
        let root = root(global)?;
        let loaded = load(&root, global.environment.as_deref())?;
        let store = open_store(environment)?;
        let lock = LockFile::of_project(&root);
        Ok(Self { root, loaded, store, lock })
    }

    /// The project.
    pub fn project(&self) -> &Project {
        &self.loaded.project
    }
}

/// The project's directory: what was typed, or the nearest one upwards.
///
/// # Errors
/// Exit 2 where there is none.
pub fn root(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(root) = &global.project {
        if root.join(config::FILE).exists() {
            return absolute(root);
        }
        let message = format!("find `{}` in `{}`", config::FILE, root.display());
        return Err(Failure::text(Exit::Usage, message).hint("`-C` names the directory that holds `.jiji`"));
    }
    let here = std::env::current_dir()
        .map_err(|error| Failure::text(Exit::Usage, format!("tell the current directory: {error}")))?;
    config::find_root(&here).ok_or_else(|| {
        let message = format!("find `{}` in `{}` or above it", config::FILE, here.display());
        Failure::text(Exit::Usage, message).hint("go into a project, or name one with `-C DIR`")
    })
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::text(Exit::Usage, format!("tell the path of `{}`: {error}", path.display())))
}

/// Reads and checks the configuration below `root`.
///
/// # Errors
/// Exit 2 with every error at its place.
pub fn load(root: &Path, environment: Option<&str>) -> Result<Loaded, Failure> {
    let sources = config::find(root, environment).map_err(|errors| wrong(&errors))?;
    config::load(sources, &environment::variable, environment).map_err(|errors| wrong(&errors))
}

fn wrong(errors: &ConfigErrors) -> Failure {
    let mut failure = Failure::new(Exit::Usage, errors);
    let several = errors.errors().len() > 1;
    for error in errors.errors() {
        if several {
            failure = failure.detail(format!("\n{error}"));
        }
        if let Some(place) = &error.place {
            failure = failure.detail(place.excerpt());
        }
        match error.hint() {
            Some(hint) if several => failure = failure.detail(format!("hint: {hint}")),
            Some(hint) => failure = failure.hint(hint),
            None => {}
        }
    }
    if errors.more() > 0 {
        failure = failure.detail(format!("\nand {} more", errors.more()));
    }
    failure
}

/// Opens the user's store.
///
/// # Errors
/// Exit 1 where it cannot be opened.
pub fn open_store(environment: &Environment) -> Result<Store, Failure> {
    Store::open_with(environment.cache.join("store"), Arc::new(Caretaker::default()))
        .map_err(|error| Failure::new(Exit::Internal, &error))
}

/// How this run is shown.
///
/// # Errors
/// Exit 2 where a terminal was asked for and there is none.
pub fn report(cli: &Cli, environment: &Environment) -> Result<Arc<dyn Report>, Failure> {
    let Cli { global, command } = cli;
    if global.json {
        return Ok(Arc::new(Ndjson::new(std::io::stdout())));
    }
    let progress = match command {
        Command::Build(args) => args.progress,
        _ => Progress::Auto,
    };
    let terminal = std::io::stderr().is_terminal();
    let moving = match progress {
        Progress::Auto => terminal && !environment.ci,
        Progress::Plain => false,
        Progress::Tty if terminal => true,
        Progress::Tty => {
            let failure = Failure::text(Exit::Usage, "show progress on a terminal: standard error is none");
            return Err(failure.hint("`--progress=plain` writes one line per event"));
        }
    };
    let shown = Terminal::new(moving, environment.color && terminal, global.quiet, global.verbose);
    Ok(Arc::new(if progress == Progress::Plain { shown.plain() } else { shown }))
}
