//! Whether a build gives the same again: every step once more, under other conditions, on top of what was there below it.
//!
//! A step that differs is compared with what it gave before, and what comes after it goes on from that, so that one careless step is one
//! finding and not one for each that follows. What is varied is what a machine and a checkout may vary: the context's directory, the
//! owners, modes, times and order of its files, the number of threads, and for RUN what [`Executor`]s can vary (another one is handed in)
//! and the clock, which goes on by itself.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use jiji_model::image::Image;
use jiji_model::project::NamedContext;
use jiji_store::Layer;

use super::compare::{self, Cause, Difference, Stratum};
use super::context::{self, ContextError};
use super::dockerfile::Place;
use super::error::BuildError;
use super::execute::Executor;
use super::layer::Node;
use super::rootfs::Content;
use super::stage::{Evaluation, Memory, Outcome, Traced};
use super::{BuildRequest, Builder};
use crate::lockfile::BuildSection;

/// An owner that no checkout has.
const STRANGER: u32 = 4321;

/// The conditions of the second time.
pub struct Elsewhere<'a> {
    /// Who runs RUN steps then.
    pub executor: &'a dyn Executor,
    /// How long to wait, so that a clock says something else.
    pub wait: Duration,
    /// How today is written: texts that a step can have from the clock alone. A file that holds one is suspected.
    pub today: Vec<String>,
}

/// What came of a check.
#[derive(Debug)]
pub struct Checked {
    /// The image, as it was built the first time.
    pub image: Image,
    /// How many steps were done again.
    pub steps: u32,
    /// What does not give the same, in the order of the Dockerfile; and what is suspected of it.
    pub findings: Vec<Finding>,
}

/// A step, or the image as a whole, that does not give the same.
#[derive(Debug)]
pub struct Finding {
    /// Where it stands; none for the image as a whole.
    pub place: Option<Place>,
    /// The instruction's first line.
    pub instruction: String,
    /// How the two results differ.
    pub differences: Vec<Difference>,
    /// Whether it gave the same both times, and is only suspected for what it wrote.
    pub suspected: bool,
}

impl Builder<'_> {
    /// Builds, and does every step again elsewhere. `lock` is what `jiji.lock` says.
    ///
    /// # Errors
    /// [`BuildError`], of either time.
    pub fn check(
        &self,
        request: &BuildRequest,
        lock: &BuildSection,
        elsewhere: &Elsewhere<'_>,
    ) -> Result<Checked, BuildError> {
        let request = &request.at_its_time()?;
        let file = request.read()?;
        let mut section = lock.clone();
        let first = Evaluation::new(self, request, &file, &mut section, Memory::Use)?.target()?;
        let Outcome { draft, trace, .. } = first;
        let image = draft.finish(&request.repository, request.epoch, self.store)?;

        let room = self.store.new_tree()?;
        let context = room.path().join("another/place");
        copy_context(&request.context, Some(&request.file), &context, request.threads)?;
        let mut contexts = request.contexts.clone();
        for (number, named) in contexts.values_mut().enumerate() {
            if let NamedContext::Directory(directory) = named {
                let to = room.path().join(format!("another/{number}"));
                copy_context(directory, None, &to, request.threads)?;
                *directory = to;
            }
        }
        std::thread::sleep(elsewhere.wait);
        let threads = if request.threads == 1 { 2 } else { 1 };
        let again =
            BuildRequest { context, contexts, threads, locked: false, renew: false, explain: false, ..request.clone() };
        let builder =
            Builder { store: self.store, sources: self.sources, executor: elsewhere.executor, events: self.events };
        let second = Evaluation::new(&builder, &again, &file, &mut section, Memory::Compare(&trace))?.target()?;
        let Outcome { draft, trace: trace_again, .. } = second;
        let steps = trace.values().map(Vec::len).sum::<usize>();

        let mut findings = Vec::new();
        let place = |step: &Traced| Some(file.text.place(step.at));
        for (one, other) in trace.values().flatten().zip(trace_again.values().flatten()) {
            let instruction = one.text.lines().next().unwrap_or_default().to_owned();
            let differences = self.differing(&one.layers, &other.layers)?;
            if !differences.is_empty() {
                findings.push(Finding { place: place(one), instruction, differences, suspected: false });
                continue;
            }
            let Some(layer) = other.layers.first().filter(|_| other.is_run) else { continue };
            let suspected: Vec<Difference> = compare::holding(layer, &elsewhere.today, self.store)?
                .into_iter()
                .map(|(path, text)| Difference {
                    stratum: Stratum::Bytes,
                    place: path.to_string(),
                    what: format!("holds today's date, `{text}`"),
                    cause: Some(Cause::Time),
                })
                .collect();
            if !suspected.is_empty() {
                findings.push(Finding { place: place(one), instruction, differences: suspected, suspected: true });
            }
        }
        let other = draft.finish(&request.repository, request.epoch, self.store)?;
        let differences = compare::images(&image, &other, self.store)?;
        if !differences.is_empty() {
            findings.push(Finding { place: None, instruction: String::new(), differences, suspected: false });
        }
        Ok(Checked { image, steps: u32::try_from(steps).unwrap_or(u32::MAX), findings })
    }

    /// How the layers of a step differ from those that it gave before, one by one.
    fn differing(&self, before: &[Layer], now: &[Layer]) -> Result<Vec<Difference>, BuildError> {
        let mut differences = Vec::new();
        let text =
            |layer: Option<&Layer>| layer.map_or_else(|| "nothing".to_owned(), |layer| layer.diff_id.to_string());
        for at in 0..before.len().max(now.len()) {
            let (ours, theirs) = (before.get(at), now.get(at));
            if ours.map(|layer| layer.diff_id) == theirs.map(|layer| layer.diff_id) {
                continue;
            }
            differences.push(Difference {
                stratum: Stratum::Layer,
                place: "diff_id".to_owned(),
                what: format!("{} → {}", text(ours), text(theirs)),
                cause: None,
            });
            differences.extend(compare::layers(ours, theirs, self.store)?);
        }
        Ok(differences)
    }
}

/// The files of a context as another checkout might have them: in another directory, written in the opposite order, of another owner, with
/// a strict mask and other times.
fn copy_context(root: &Path, dockerfile: Option<&Path>, to: &Path, threads: usize) -> Result<(), BuildError> {
    let tree = context::read(root, dockerfile, threads)?;
    let mut entries: Vec<_> = tree.entries().collect();
    entries.reverse();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| BuildError::Context(ContextError::Read { path, source })
    };
    fs::create_dir_all(to).map_err(failed(to))?;
    for (name, found) in entries {
        let path = name.below(to);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        match (&found.entry.node, &found.content) {
            (Node::Directory, _) => fs::create_dir_all(&path).map_err(failed(&path))?,
            (Node::Symlink(target), _) => {
                use std::os::unix::ffi::OsStrExt as _;
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path).map_err(failed(&path))?;
            }
            (Node::File { .. }, Content::Context(from)) => {
                let mut source = context::open(root, &from.path).map_err(failed(&from.path))?;
                let mut file = fs::File::create(&path).map_err(failed(&path))?;
                io::copy(&mut source, &mut file).map_err(failed(&path))?;
                let mode = if found.entry.mode & 0o100 == 0 { 0o600 } else { 0o700 };
                file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed(&path))?;
            }
            // A named pipe: whoever copies one has failed already.
            _ => continue,
        }
        // Only root can give files away; others check without it.
        let _ = std::os::unix::fs::lchown(&path, Some(STRANGER), Some(STRANGER));
    }
    let ignore = root.join(".dockerignore");
    if ignore.is_file() {
        fs::copy(&ignore, to.join(".dockerignore")).map_err(failed(&ignore))?;
    }
    Ok(())
}
