//! Where everything lies on a server, and how it is written: whole, synced, or not at all.
//!
//! Version 1 of the layout, below the root ([`crate::ROOT`], mode 0700):
//!
//! | path | content |
//! | --- | --- |
//! | `bin/SHA256` | `jiji-host` itself, put there by the operator |
//! | `host.key` | 32 random bytes for the keyed digest of secrets, mode 0600 |
//! | `lock` | held while one of the small records that projects share is changed |
//! | `engine.lock` | held while the engine's networks and images are changed |
//! | `last-address` | the container address leased last |
//! | `registry-port` | the port of 127.0.0.1 from which the engine pulls |
//! | `roster.json` | servers and their numbers |
//! | `network/NAME.json`, `NAME.key`, `NAME.nft` | an interface of the mesh as it was told, its private key (mode 0600), its table of nftables as it was made |
//! | `network/jiji-host` | the program that brings interfaces up after a reboot |
//! | `store/` | blobs on their way to the engine, and those of what runs |
//! | `projects/SCOPE/lock` | held while one of the records below is changed |
//! | `projects/SCOPE/fencing` | the highest fencing number granted, in decimal |
//! | `projects/SCOPE/lease.json` | the lease, until it is given back |
//! | `projects/SCOPE/journal` | the open transaction, or the last one; one JSON entry per line |
//! | `projects/SCOPE/releases/NUMBER.json` | what ran |
//! | `aside/`, `projects/SCOPE/aside/` | damaged records that were set aside; read by nobody |
//! | `projects/SCOPE/audit.jsonl` | what happened |
//! | `.jiji-PID-START-RANDOM`, beside any of them | content whose file has its name yet to come; swept with the next lease where that process is gone |
//!
//! Reading never creates anything.
//!
//! Plans, records and plugins name paths below [`crate::ROOT`], whoever is at work. Where everything is a user's own, what they name there
//! lies below the user's root instead ([`Place::locate`]): so a plan says the same wherever it is made, and grants hold as they are.

use std::borrow::Cow;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiji_model::name::AbsPath;
use jiji_model::plan::ContainerSpec;
use jiji_model::project::MountSource;

use crate::{ROOT, abort, clock};

/// Why something could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A scope that is no directory's name.
    #[error("use scope `{scope}`: expected 1 to 120 of a-z, 0-9, `-`, `_` and `.`, beginning with a letter or digit")]
    Scope {
        /// The scope.
        scope: String,
    },
    /// A record that is not what it should be.
    #[error("read `{path}`: {reason}")]
    Record {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A record of a newer jiji.
    #[error("read `{path}`: its format is newer than this jiji's")]
    Newer {
        /// Its file.
        path: PathBuf,
    },
    /// A path that no command line and no record can hold.
    #[error("use `{path}`: it is no absolute path in UTF-8")]
    Unnameable {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{action} `{path}`: {source}")]
    Io {
        /// What was tried, an imperative.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Names an I/O error after what was tried and where.
pub(crate) fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PlaceError + 'a {
    move |source| PlaceError::Io { action, path: path.to_owned(), source }
}

/// The root of everything.
#[derive(Debug, Clone)]
pub struct Place {
    root: PathBuf,
    /// Whether what is named below [`ROOT`] lies below `root`.
    moved: bool,
}

impl Place {
    /// Everything lies below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), moved: false }
    }

    /// Everything lies below `root`, a directory of a user's own, also what plans name below [`ROOT`].
    pub fn of_user(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), moved: true }
    }

    /// Where a path lies that a plan or a question names.
    pub fn locate(&self, path: &AbsPath) -> PathBuf {
        let path = Path::new(path.as_str());
        match path.strip_prefix(ROOT) {
            // Without a last slash where the root itself is meant.
            Ok(below) if self.moved && below.as_os_str().is_empty() => self.root.clone(),
            Ok(below) if self.moved => self.root.join(below),
            _ => path.to_owned(),
        }
    }

    /// A specification whose mounts lie where they do here.
    ///
    /// # Errors
    /// [`PlaceError::Unnameable`] when such a path cannot be given to an engine.
    pub fn located<'a>(&self, spec: &'a ContainerSpec) -> Result<Cow<'a, ContainerSpec>, PlaceError> {
        if !self.moved {
            return Ok(Cow::Borrowed(spec));
        }
        let mut spec = spec.clone();
        for mount in &mut spec.mounts {
            if let MountSource::Bind(path) = &mount.source {
                let at = self.locate(path);
                let named = at.to_str().and_then(|at| AbsPath::new(at).ok());
                mount.source = MountSource::Bind(named.ok_or(PlaceError::Unnameable { path: at })?);
            }
        }
        Ok(Cow::Owned(spec))
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The key for the keyed digest of secrets.
    pub fn host_key(&self) -> PathBuf {
        self.root.join("host.key")
    }

    /// The container address leased last.
    pub fn last_address(&self) -> PathBuf {
        self.root.join("last-address")
    }

    /// The port from which the engine pulls.
    pub fn registry_port(&self) -> PathBuf {
        self.root.join("registry-port")
    }

    /// The roster of servers.
    pub fn roster(&self) -> PathBuf {
        self.root.join("roster.json")
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// All projects.
    pub fn projects(&self) -> PathBuf {
        self.root.join("projects")
    }

    /// Every project of which something is kept.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub fn all_projects(&self) -> Result<Vec<Project>, PlaceError> {
        let path = self.projects();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &path)(error)),
        };
        let project = |entry: fs::DirEntry| self.project(entry.file_name().to_str()?).ok();
        Ok(entries.flatten().filter_map(project).collect())
    }

    /// What is kept of one project.
    ///
    /// # Errors
    /// [`PlaceError::Scope`] when the scope is no directory's name.
    pub fn project(&self, scope: &str) -> Result<Project, PlaceError> {
        let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = scope.as_bytes();
        if (1..=120).contains(&bytes.len())
            && named(bytes[0])
            && bytes.iter().all(|b| named(*b) || matches!(b, b'-' | b'_' | b'.'))
        {
            Ok(Project { dir: self.projects().join(scope) })
        } else {
            Err(PlaceError::Scope { scope: scope.chars().take(130).collect() })
        }
    }

    /// Creates the root where there is none.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub fn create(&self) -> Result<(), PlaceError> {
        create_dir(&self.root)
    }

    /// Waits for and holds the lock under which the engine's networks and images are changed, until the result is dropped. It may be
    /// held for as long as a pull takes.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub async fn lock_engine(&self) -> Result<Lock, PlaceError> {
        self.create()?;
        let path = self.root.join("engine.lock");
        loop {
            if let Some(lock) = Lock::try_take(&path)? {
                return Ok(lock);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Waits for and holds the lock of the small records that projects share, until the result is dropped.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub fn lock_shared_things(&self) -> Result<Lock, PlaceError> {
        self.create()?;
        Lock::take(&self.root.join("lock"))
    }
}

/// What is kept of one project.
#[derive(Debug, Clone)]
pub struct Project {
    dir: PathBuf,
}

impl Project {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The highest fencing number granted.
    pub fn fencing(&self) -> PathBuf {
        self.dir.join("fencing")
    }

    /// The lease.
    pub fn lease(&self) -> PathBuf {
        self.dir.join("lease.json")
    }

    /// The journal.
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// The releases.
    pub fn releases(&self) -> PathBuf {
        self.dir.join("releases")
    }

    /// The audit log.
    pub fn audit(&self) -> PathBuf {
        self.dir.join("audit.jsonl")
    }

    /// Creates the directory where there is none.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub fn create(&self) -> Result<(), PlaceError> {
        if !self.dir.is_dir() {
            let projects = self.dir.parent().unwrap_or(Path::new("/"));
            create_dir(projects.parent().unwrap_or(Path::new("/")))?;
            create_dir(projects)?;
            create_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Holds the lock of the project's records, until the result is dropped; none where somebody else holds it.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub fn try_lock(&self) -> Result<Option<Lock>, PlaceError> {
        self.create()?;
        Lock::try_take(&self.dir.join("lock"))
    }

    /// Waits for and holds the lock of the project's records, until the result is dropped.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub fn lock(&self) -> Result<Lock, PlaceError> {
        self.create()?;
        Lock::take(&self.dir.join("lock"))
    }
}

/// A held file lock. It ends with this value, or with the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    fn open(path: &Path) -> Result<File, PlaceError> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        options.open(path).map_err(failed("open", path))
    }

    fn take(path: &Path) -> Result<Self, PlaceError> {
        let file = Self::open(path)?;
        file.lock().map_err(failed("lock", path))?;
        Ok(Self { _file: file })
    }

    fn try_take(path: &Path) -> Result<Option<Self>, PlaceError> {
        let file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(failed("lock", path)(error)),
        }
    }
}

/// Creates a directory of mode 0700, and its parents with the usual mode, and makes its name durable.
pub(crate) fn create_dir(path: &Path) -> Result<(), PlaceError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(failed("create", parent))?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(failed("create", path)),
    }?;
    sync_dir(parent)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), PlaceError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync", path))
}

/// Whether a write must outlive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Yes: synced before its name appears, and the name after.
    Synced,
    /// No: after a reboot it counts for nothing anyway.
    UntilReboot,
}

/// A file's name as abort points name it: releases are numbered and tell only what they are.
fn named(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if name.starts_with(|first: char| first.is_ascii_digit()) { "release".to_owned() } else { name }
}

/// What the name of a file begins with that has its own name yet to come. With the process that writes it, so that one whose writer died
/// can be told: its number alone is another's after a reboot.
const UNNAMED: &str = ".jiji-";

fn unnamed() -> io::Result<String> {
    let this = clock::this_process()?;
    Ok(format!("{UNNAMED}{}-{}-", this.pid, this.start))
}

/// Whether a file of this name was left by a writer that is gone.
fn is_left(name: &str) -> bool {
    let mut parts = name.strip_prefix(UNNAMED).unwrap_or_default().split('-');
    let pid = parts.next().and_then(|pid| pid.parse::<i32>().ok());
    let start = parts.next().and_then(|start| start.parse::<u64>().ok());
    match (pid, start, parts.next()) {
        (Some(pid), Some(start), Some(_)) => clock::process(pid).is_none_or(|now| now.start != start),
        _ => false,
    }
}

/// Removes from a directory what writers left there that were killed before they gave it its name. One that cannot be removed does no harm.
pub(crate) fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_left)) {
        let _ = fs::remove_file(entry.path());
    }
}

/// Writes a file so that `path` holds its old content or its new content, whatever happens.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32, durability: Durability) -> Result<(), PlaceError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let file = unnamed().and_then(|prefix| tempfile::Builder::new().prefix(&prefix).tempfile_in(parent));
    let mut file = file.map_err(failed("create a file in", parent))?;
    file.write_all(content).map_err(failed("write", path))?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", path))?;
    // Heartbeats come by the clock, so no test could name the places of what they write.
    let place = |stage| {
        if durability == Durability::Synced {
            abort::point(stage, || named(path));
        }
    };
    place("unsynced");
    if durability == Durability::Synced {
        file.as_file().sync_all().map_err(failed("sync", path))?;
    }
    place("unnamed");
    file.persist(path).map_err(|error| failed("create", path)(error.error))?;
    place("named");
    match durability {
        Durability::Synced => sync_dir(parent),
        Durability::UntilReboot => Ok(()),
    }
}

/// Reads a file of at most `limit` bytes; none where there is none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, PlaceError> {
    use std::io::Read as _;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(PlaceError::Record { path: path.to_owned(), reason: format!("more than {limit} bytes") });
    }
    Ok(Some(bytes))
}

/// Reads a JSON record that carries a `version`; none where there is none.
pub(crate) fn read_record<T: serde::de::DeserializeOwned>(path: &Path, newest: u32) -> Result<Option<T>, PlaceError> {
    /// What every version of a record has.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Some(bytes) = read(path, 16 * 1024 * 1024)? else {
        return Ok(None);
    };
    let unreadable = |error: serde_json::Error| PlaceError::Record { path: path.to_owned(), reason: error.to_string() };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if version > newest {
        return Err(PlaceError::Newer { path: path.to_owned() });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_cannot_leave_the_projects_directory() {
        let place = Place::new("/x");
        for scope in ["", ".", "..", "a/b", "../a", "A", "-a", "a\n", &"a".repeat(121)] {
            assert!(place.project(scope).is_err(), "{scope:?}");
        }
        assert_eq!(place.project("shop.prod").expect("a scope").dir(), Path::new("/x/projects/shop.prod"));
    }

    #[test]
    fn what_plans_name_below_jijis_root_lies_below_a_users_own() {
        let path = |text: &str| AbsPath::new(text).expect("a path");
        let (of_root, of_user) = (Place::new("/var/lib/jiji"), Place::of_user("/home/a b/jiji"));
        for (named, at) in [
            ("/var/lib/jiji", "/home/a b/jiji"),
            ("/var/lib/jiji/plugins/x", "/home/a b/jiji/plugins/x"),
            ("/var/lib/jiji2/x", "/var/lib/jiji2/x"),
            ("/srv/data", "/srv/data"),
        ] {
            assert_eq!(of_root.locate(&path(named)), Path::new(named));
            assert_eq!(of_user.locate(&path(named)).as_os_str(), at);
        }
    }

    #[test]
    fn reading_creates_nothing_and_writing_leaves_no_other_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        assert!(read(&path, 10).expect("read").is_none());
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
        for content in ["one", "two"] {
            write(&path, content.as_bytes(), 0o640, Durability::Synced).expect("written");
        }
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"two"[..]));
        assert!(matches!(read(&path, 2), Err(PlaceError::Record { .. })));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn what_a_writer_left_that_died_is_swept_and_what_one_that_lives_is_at_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let this = clock::this_process().expect("readable");
        let mine = format!("{}x", unnamed().expect("readable"));
        // Of another process of that number, of an earlier jiji, and somebody else's.
        let left = format!("{UNNAMED}{}-{}-x", this.pid, this.start + 1);
        for name in [&*mine, &*left, ".jiji-abcdef", "7-8-x"] {
            fs::write(dir.path().join(name), "").expect("written");
        }
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 3);
        assert!(!dir.path().join(left).exists());
    }

    #[test]
    fn a_record_of_a_newer_jiji_is_told_from_a_broken_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        let check = |content: &str| {
            fs::write(&path, content).expect("written");
            read_record::<jiji_model::transaction::Roster>(&path, 1)
        };
        assert!(matches!(check(r#"{"version":2,"new":1}"#), Err(PlaceError::Newer { .. })));
        assert!(matches!(check("{"), Err(PlaceError::Record { .. })));
        assert!(matches!(check(r#"{"version":1,"servers":{}}"#), Ok(Some(_))));
    }
}
