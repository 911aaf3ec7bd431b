//! Looks once at every file of a directory that may be copied, on several cores: what is remembered of a file is believed because of its size
//! and times alone, so that this is what a build with nothing to do takes its time for.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::ignore::{Above, Ignore};
use super::{ContextError, look};
use crate::build::layer::{Entry, TarPath, WHITEOUT};
use crate::build::rootfs::{Content, Found};

/// A name in a directory.
struct Child {
    path: TarPath,
    found: Found,
    /// A directory that is there only if something in it was brought back.
    left_out: bool,
}

/// What a directory holds, in the order of layers.
type Listing = Vec<Child>;

/// Everything below `root` that `ignore` does not leave out, looked at on at most `threads` cores.
pub(super) fn walk(root: &Path, ignore: &Ignore, threads: usize) -> Result<BTreeMap<TarPath, Found>, ContextError> {
    let queue = Queue::new();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| queue.work(root, ignore));
        }
        queue.work(root, ignore);
    });
    let mut state = queue.end();
    if let Some(error) = state.failed {
        return Err(error);
    }
    let mut entries = Vec::with_capacity(state.listed.values().map(Vec::len).sum());
    assemble(&TarPath::root(), &mut state.listed, &mut entries);
    // They are in order, which is what makes this quick.
    Ok(BTreeMap::from_iter(entries))
}

/// Directories that are still to be listed, and what was found in the others.
struct Queue {
    state: Mutex<State>,
    /// Rung when there is something to do, and when there will be nothing any more.
    bell: Condvar,
}

struct State {
    waiting: Vec<(TarPath, Above)>,
    /// How many are being listed.
    busy: usize,
    listed: HashMap<TarPath, Listing>,
    failed: Option<ContextError>,
}

impl Queue {
    fn new() -> Self {
        let waiting = vec![(TarPath::root(), Above::default())];
        Self {
            state: Mutex::new(State { waiting, busy: 0, listed: HashMap::new(), failed: None }),
            bell: Condvar::new(),
        }
    }

    fn held(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(self) -> State {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists directories until all are listed or one cannot be.
    fn work(&self, root: &Path, ignore: &Ignore) {
        while let Some((directory, above)) = self.next() {
            let mut below = Vec::new();
            let listing = list(root, &directory, ignore, &above, &mut below);
            let mut state = self.held();
            state.busy -= 1;
            match listing {
                Ok(listing) => {
                    state.waiting.append(&mut below);
                    state.listed.insert(directory, listing);
                }
                Err(error) => {
                    state.waiting.clear();
                    state.failed.get_or_insert(error);
                }
            }
            drop(state);
            self.bell.notify_all();
        }
    }

    fn next(&self) -> Option<(TarPath, Above)> {
        let mut state = self.held();
        loop {
            if state.failed.is_some() {
                return None;
            }
            if let Some(next) = state.waiting.pop() {
                state.busy += 1;
                return Some(next);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What is in one directory; `below` becomes the directories in it that have to be listed, too.
fn list(
    root: &Path,
    directory: &TarPath,
    ignore: &Ignore,
    above: &Above,
    below: &mut Vec<(TarPath, Above)>,
) -> Result<Listing, ContextError> {
    let path = directory.below(root);
    let failed = |source| ContextError::Read { path: path.clone(), source };
    let mut listing = Vec::new();
    for child in fs::read_dir(&path).map_err(failed)? {
        let child = child.map_err(failed)?;
        let name = directory.join(child.file_name().as_bytes());
        let kind = child.file_type().map_err(failed)?;
        let left_out = ignore.leaves_out_in(above, &name);
        if kind.is_dir() {
            if left_out && ignore.is_final(&name) {
                continue;
            }
            below.push((name.clone(), ignore.above(above, &name)));
            let found = Found { entry: Entry::directory(0o755), content: Content::None };
            listing.push(Child { path: name, found, left_out });
        } else if !left_out && !kind.is_socket() {
            let file = child.path();
            let failed = |source| ContextError::Read { path: file.clone(), source };
            let metadata = child.metadata().map_err(failed)?;
            let found = look(&file, &metadata).map_err(failed)?;
            listing.push(Child { path: name, found, left_out });
        }
    }
    // The order of paths is that of their last parts where all others are the same.
    let key = |child: &Child| !child.path.name().starts_with(WHITEOUT);
    listing
        .sort_unstable_by(|one, other| key(one).cmp(&key(other)).then_with(|| one.path.name().cmp(other.path.name())));
    Ok(listing)
}

/// Puts what a directory holds, and what the directories in it hold, after each other in the order of layers.
fn assemble(directory: &TarPath, listed: &mut HashMap<TarPath, Listing>, entries: &mut Vec<(TarPath, Found)>) {
    for Child { path, found, left_out } in listed.remove(directory).unwrap_or_default() {
        if !found.is_directory() {
            entries.push((path, found));
            continue;
        }
        let before = entries.len();
        entries.push((path.clone(), found));
        assemble(&path, listed, entries);
        if left_out && entries.len() == before + 1 {
            entries.truncate(before);
        }
    }
}
