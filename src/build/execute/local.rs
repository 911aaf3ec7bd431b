//! Steps in this machine's sandbox, and what they changed as a layer.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use jiji_model::digest::Digest;
use jiji_sandbox::{
    Canceller, Change, Changes, Kind, Limits, Mount, Refusal, Sandbox, Scratch, Source, Step, Support, Way,
};
use jiji_store::{Cache, CacheUse, Layer, Store};

use super::agent::Agent;
use super::{ExecuteError, Executor, Network, Ran, RunStep, StepMount, StepSource, Stream, cleanup};
use crate::build::copy::with_parents;
use crate::build::layer::{Entry, Form, Node, TarPath, WHITEOUT};
use crate::build::rootfs::{Content, Found, Layers};
use crate::build::trees::Trees;
use crate::build::write::write_layer;

/// Bytes of memory that must be free for a step to write there.
const PLENTY: u64 = 2 << 30;

/// Runs steps on this machine.
#[derive(Debug, Clone)]
pub struct Local {
    sandbox: Sandbox,
    threads: usize,
    elsewhere: bool,
}

impl Local {
    /// Steps run with this very program as the sandbox's helper: it must begin with [`jiji_sandbox::enter_if_requested`]. Layers
    /// are compressed on `threads` cores.
    pub fn new(threads: usize) -> Self {
        Self { sandbox: Sandbox::new(), threads, elsewhere: false }
    }

    /// Takes another program of the same build as the helper.
    #[must_use]
    pub fn with_helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.sandbox = self.sandbox.with_helper(program);
        self
    }

    /// Runs steps as if on another machine, and where that can be, in memory: there directories list their files in another order.
    #[must_use]
    pub fn elsewhere(mut self) -> Self {
        self.sandbox = self.sandbox.elsewhere();
        self.elsewhere = true;
        self
    }
}

impl Executor for Local {
    fn run(
        &self,
        step: &RunStep,
        store: &Store,
        canceller: &Canceller,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Ran, ExecuteError> {
        let here = std::env::consts::ARCH;
        let architecture = match here {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        if step.platform.architecture != architecture {
            return Err(ExecuteError::Platform { wanted: step.platform.clone(), here });
        }
        if let Ok(way) = self.sandbox.way() {
            tracing::debug!(%way, "run a step");
        }
        let trees = Trees::of(&step.layers, store, &self.sandbox)?;
        // Work room on the store's file system, which is closed to other users; gone when this returns.
        let room = store.new_tree()?;
        let mut layers = trees.paths();
        if layers.is_empty() {
            let empty = room.path().join("empty");
            std::fs::create_dir(&empty).map_err(ExecuteError::Scratch)?;
            layers.push(empty);
        }
        let memory = if self.elsewhere { in_memory(&self.sandbox) } else { None };
        let scratch = memory.as_ref().map_or(room.path(), |memory| memory.path().to_owned());
        let scratch = Scratch::new(&self.sandbox, &scratch).map_err(ExecuteError::Scratch)?;
        let mut held = Held::default();
        let mounts = held.mounts(&step.mounts, store, &self.sandbox, &room.path())?;
        let secrets = step.secrets.iter().map(|(name, value)| (name.into(), value.reveal().into()));
        let request = Step {
            argv: step.argv.iter().map(Into::into).collect(),
            env: step.env.iter().map(|(name, value)| (name.into(), value.into())).chain(secrets).collect(),
            user: step.user.clone(),
            workdir: PathBuf::from(&step.workdir),
            layers,
            mounts,
            network: match step.network {
                Network::Machine => jiji_sandbox::Network::Machine,
                Network::None | Network::Recorded => jiji_sandbox::Network::None,
            },
            proxy: step.proxy.clone(),
            source_date_epoch: step.epoch,
            limits: Limits::default(),
        };
        let outcome = self.sandbox.clone().cancelled_by(canceller.clone()).run(&request, &scratch, output)?;
        if !outcome.exit.success() {
            return Ok(Ran::Failed(outcome.exit));
        }
        let changes = self.sandbox.changes(&scratch.upper(), &request.layers)?;
        Ok(Ran::Changed(self.layer(&changes, step, store)?))
    }
}

/// Tries whether and as whom steps can be run on this machine, with the file system of a store; takes some milliseconds.
///
/// # Errors
/// [`Refusal`], which names the cure.
pub fn ability(store: &Store) -> Result<Support, Refusal> {
    let lost = |error: jiji_store::StoreError| {
        Refusal::Untried(Box::new(jiji_sandbox::RunError::Start(io::Error::other(error))))
    };
    let room = store.new_tree().map_err(lost)?;
    jiji_sandbox::probe(&Sandbox::new(), &room.path())
}

/// Removes and measures unpacked layers and caches, whose files have owners of their own, in the way in which steps are run.
#[derive(Debug, Clone, Default)]
pub struct Caretaker(Sandbox);

impl Caretaker {
    /// Takes another program of the same build as the helper.
    #[must_use]
    pub fn with_helper(self, program: impl Into<PathBuf>) -> Self {
        Self(self.0.with_helper(program))
    }
}

impl jiji_store::Caretaker for Caretaker {
    fn remove(&self, dir: &Path) -> io::Result<()> {
        self.0.remove(dir)
    }

    fn measure(&self, dir: &Path) -> io::Result<u64> {
        self.0.measure(dir)?.ok_or(io::ErrorKind::PermissionDenied.into())
    }
}

/// A directory in memory, closed to others, if there is plenty.
fn in_memory(sandbox: &Sandbox) -> Option<tempfile::TempDir> {
    const TMPFS: u64 = 0x0102_1994; // TMPFS_MAGIC, linux/magic.h
    let place = "/dev/shm";
    let kind = rustix::fs::statfs(place).ok()?;
    let free = kind.f_bavail.saturating_mul(u64::try_from(kind.f_bsize).ok()?);
    let fits = u64::try_from(kind.f_type).ok()? == TMPFS && free >= PLENTY;
    let dir = fits.then(|| tempfile::Builder::new().prefix("jiji-").tempdir_in(place).ok()).flatten()?;
    // In a user namespace overlayfs needs an attribute that memory has since Linux 6.6.
    let marked = rustix::fs::setxattr(dir.path(), "user.jiji", b"", rustix::fs::XattrFlags::empty()).is_ok();
    (marked || matches!(sandbox.way(), Ok(Way::Root))).then_some(dir)
}

/// What a step's mounts need while it runs.
#[derive(Default)]
struct Held {
    trees: Vec<Trees>,
    caches: Vec<(Digest, Cache)>,
    agents: Vec<Agent>,
}

impl Held {
    /// What is mounted, in its order. Caches are taken in the order of their names: two steps that want the same two would otherwise wait for
    /// each other for ever.
    fn mounts(
        &mut self,
        mounts: &[StepMount],
        store: &Store,
        sandbox: &Sandbox,
        room: &Path,
    ) -> Result<Vec<Mount>, ExecuteError> {
        let mut order: Vec<usize> = (0..mounts.len()).collect();
        order.sort_by_key(|at| match &mounts[*at].source {
            StepSource::Cache { id, .. } => Some(id.as_str()),
            _ => None,
        });
        let taken = order.into_iter().map(|at| Ok((at, self.mount(&mounts[at], store, sandbox, room)?)));
        let mut taken = taken.collect::<Result<Vec<_>, ExecuteError>>()?;
        taken.sort_by_key(|(at, _)| *at);
        Ok(taken.into_iter().map(|(_, mount)| mount).collect())
    }

    fn mount(
        &mut self,
        mount: &StepMount,
        store: &Store,
        sandbox: &Sandbox,
        room: &Path,
    ) -> Result<Mount, ExecuteError> {
        let source = match &mount.source {
            StepSource::Layers { layers, path } => {
                let trees = Trees::of(layers, store, sandbox)?;
                let source = Source::Layers { layers: trees.paths(), path: PathBuf::from(path), keep: None };
                self.trees.push(trees);
                source
            }
            StepSource::Cache { id, from: Some((layers, path)), sharing, .. } => {
                let below: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
                let mut name = serde_json::json!({"cache-mount": 1, "id": id, "from": below, "source": path});
                if let Some(owners) = sandbox.way().map_err(jiji_sandbox::RunError::from)?.mark() {
                    name["owners"] = owners.into();
                }
                let name = Digest::of_json(&name);
                let trees = Trees::of(layers, store, sandbox)?;
                // What is kept is one overlay's upper directory, which the kernel gives to one mount at a time.
                let sharing = if *sharing == CacheUse::Shared { CacheUse::Locked } else { *sharing };
                let again = self.caches.iter().any(|(held, _)| *held == name);
                let cache = store.cache(&name, if again { CacheUse::Private } else { sharing })?;
                let (layers, path) = (trees.paths(), PathBuf::from(path));
                let source = Source::Layers { layers, path, keep: Some(cache.path().to_owned()) };
                self.trees.push(trees);
                self.caches.push((name, cache));
                source
            }
            StepSource::Cache { id, from: None, sharing, mode, owner } => {
                let mut name = serde_json::json!({"cache-mount": 1, "id": id});
                if let Some(owners) = sandbox.way().map_err(jiji_sandbox::RunError::from)?.mark() {
                    name["owners"] = owners.into();
                }
                let name = Digest::of_json(&name);
                // The same cache twice in one step is one directory: waiting for the lock would be waiting for itself.
                if let Some((_, cache)) = self.caches.iter().find(|(held, _)| *held == name) {
                    let source = Source::Directory(cache.path().to_owned());
                    return Ok(Mount { target: PathBuf::from(&mount.target), source, read_only: mount.read_only });
                }
                let cache = store.cache(&name, *sharing)?;
                if cache.is_new() {
                    let failed = |source| ExecuteError::Cache { id: id.clone(), source };
                    sandbox.give(cache.path(), owner.0, owner.1, *mode).map_err(failed)?;
                }
                let source = Source::Directory(cache.path().to_owned());
                self.caches.push((name, cache));
                source
            }
            StepSource::Agent { socket, mode, owner } => {
                let failed = |source| ExecuteError::Agent { path: socket.clone(), source };
                let path = room.join(format!("agent-{}", self.agents.len()));
                self.agents.push(Agent::start(socket, &path, *mode, *owner).map_err(failed)?);
                Source::Socket(path)
            }
            StepSource::Memory { size } => Source::Memory { size: *size },
            StepSource::Secret { value, mode, owner } => Source::File {
                content: jiji_sandbox::Content(value.reveal().as_bytes().to_vec()),
                mode: *mode,
                uid: owner.0,
                gid: owner.1,
            },
            StepSource::Script(text) => {
                Source::File { content: jiji_sandbox::Content(text.as_bytes().to_vec()), mode: 0o755, uid: 0, gid: 0 }
            }
        };
        Ok(Mount { target: PathBuf::from(&mount.target), source, read_only: mount.read_only })
    }
}

impl Local {
    fn layer(&self, changes: &Changes, step: &RunStep, store: &Store) -> Result<Option<Layer>, ExecuteError> {
        let kept = match step.network {
            Network::None => changes.list().to_vec(),
            Network::Machine | Network::Recorded => cleanup::kept(changes, &step.env).map_err(ExecuteError::Cleanup)?,
        };
        let entries = entries(&kept);
        if entries.is_empty() {
            return Ok(None);
        }
        let below = Layers::new(store).tree(&step.layers)?;
        let entries = with_parents(entries, &below);
        let open = |content: &Content, _: u64| -> io::Result<Box<dyn Read>> {
            match content {
                Content::Path(path) => Ok(Box::new(changes.open(path)?)),
                _ => Ok(Box::new(io::empty())),
            }
        };
        let form = Form { epoch: step.epoch, compression: step.compression, threads: self.threads };
        Ok(Some(write_layer(&entries, form, store, &|_| None, &open)?))
    }
}

/// The entries of a layer that makes these changes. A file's content is named by its path in the changes.
fn entries(changes: &[Change]) -> BTreeMap<TarPath, Found> {
    let mut entries = BTreeMap::new();
    // The names of each file that has several, by the name that the changes call the first.
    let mut names: BTreeMap<PathBuf, Vec<TarPath>> = BTreeMap::new();
    for Change { path, kind } in changes {
        let name = TarPath::normal(path.as_os_str().as_bytes());
        // The root's own mode and owner are the engine's, and a name that would remove another cannot be said.
        if name.is_root() || name.name().starts_with(WHITEOUT) {
            continue;
        }
        let (node, meta) = match kind {
            Kind::Whiteout => {
                entries.insert(name.whiteout(), Found { entry: Entry::whiteout(), content: Content::None });
                continue;
            }
            Kind::Added(node, meta) | Kind::Modified(node, meta) => (node, meta),
        };
        let mut content = Content::None;
        let node = match node {
            jiji_sandbox::Node::Directory => Node::Directory,
            jiji_sandbox::Node::File { size } => {
                content = Content::Path(path.clone());
                Node::File { size: *size }
            }
            jiji_sandbox::Node::HardLink { to } => {
                names.entry(to.clone()).or_default().push(name.clone());
                Node::Hardlink(TarPath::normal(to.as_os_str().as_bytes()))
            }
            jiji_sandbox::Node::Symlink { to } => Node::Symlink(to.as_bytes().to_vec()),
            jiji_sandbox::Node::CharDevice { major, minor } => Node::Character { major: *major, minor: *minor },
            jiji_sandbox::Node::BlockDevice { major, minor } => Node::Block { major: *major, minor: *minor },
            jiji_sandbox::Node::Fifo => Node::Fifo,
        };
        let capability = meta.capability.iter().map(|value| (b"security.capability".to_vec(), value.clone()));
        let xattrs = capability.collect();
        let entry = Entry { node, mode: meta.mode, uid: meta.uid, gid: meta.gid, xattrs };
        entries.insert(name, Found { entry, content });
    }
    // Which of its names a file stands under depends on the order of layers alone: the first.
    for (first, mut others) in names {
        let first = TarPath::normal(first.as_os_str().as_bytes());
        others.sort();
        let Some(lowest) = others.first().filter(|lowest| **lowest < first).cloned() else { continue };
        let Some(file) = entries.get(&first).cloned() else { continue };
        for name in others.into_iter().chain([first]) {
            if let Some(found) = entries.get_mut(&name) {
                found.entry.node = Node::Hardlink(lowest.clone());
                found.content = Content::None;
            }
        }
        entries.insert(lowest, file);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiji_sandbox::Meta;

    #[test]
    fn the_file_of_several_names_stands_under_the_first_in_the_order_of_layers() {
        let meta = || Meta { mode: 0o644, uid: 1, gid: 2, capability: None };
        let change = |path: &str, node| Change { path: path.into(), kind: Kind::Added(node, meta()) };
        // By bytes `a-b` comes before `a/b`, by parts after it.
        let changes = [
            change("a", jiji_sandbox::Node::Directory),
            change("a-b", jiji_sandbox::Node::File { size: 3 }),
            change("a/b", jiji_sandbox::Node::HardLink { to: "a-b".into() }),
            change("c", jiji_sandbox::Node::HardLink { to: "a-b".into() }),
            Change { path: "gone".into(), kind: Kind::Whiteout },
            Change { path: "".into(), kind: Kind::Modified(jiji_sandbox::Node::Directory, meta()) },
        ];
        let seen: Vec<_> = entries(&changes)
            .into_iter()
            .map(|(path, found)| (path.to_string(), found.entry.node, found.content))
            .collect();
        let first = TarPath::normal("a/b");
        assert_eq!(
            seen,
            [
                ("/.wh.gone".to_owned(), Node::File { size: 0 }, Content::None),
                ("/a".to_owned(), Node::Directory, Content::None),
                ("/a/b".to_owned(), Node::File { size: 3 }, Content::Path("a-b".into())),
                ("/a-b".to_owned(), Node::Hardlink(first.clone()), Content::None),
                ("/c".to_owned(), Node::Hardlink(first), Content::None),
            ]
        );
    }
}
