//! How much the store takes, and making it smaller: what was used longest ago goes first.
//!
//! Blobs, unpacked layers, caches, records and beginnings of blobs are all alike here: bytes on disk and a time of last use, which is the
//! modification time of a file that nobody changes otherwise. The order of going is a matter of taste and a clock may disturb it; that
//! nothing goes which is in use is a matter of [leases](crate::lease) and locks.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiji_model::digest::Digest;

use crate::blob::name_of;
use crate::lease;
use crate::place::Hands;
use crate::tree::SIZE;
use crate::{Store, StoreError, failed, place};

/// How many things go while the gate is held: those who ask for a blob wait so long.
const BATCH: usize = 64;

/// What something in the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A blob.
    Blob,
    /// The beginning of a blob.
    Partial,
    /// What a step gave, or how a layer was compressed.
    Record,
    /// An unpacked layer.
    Tree,
    /// What steps keep for their successors.
    Cache,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Blob, Self::Partial, Self::Record, Self::Tree, Self::Cache];

    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blob => "blobs",
            Self::Partial => "partial",
            Self::Record => "records",
            Self::Tree => "layers",
            Self::Cache => "caches",
        }
    }
}

/// How many of something, and what they take on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub count: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Share {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What is in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// By kind.
    pub kinds: BTreeMap<Kind, Share>,
    /// When what was used longest ago was used.
    pub oldest: Option<SystemTime>,
    /// When something was used last.
    pub newest: Option<SystemTime>,
    /// The blobs that running processes work with.
    pub held: Share,
    /// How many such processes there are.
    pub holders: u64,
}

impl Usage {
    /// All kinds together.
    pub fn total(&self) -> Share {
        let add = |sum: Share, one: &Share| Share { count: sum.count + one.count, bytes: sum.bytes + one.bytes };
        self.kinds.values().fold(Share::default(), add)
    }
}

/// What was collected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shrunk {
    /// What went, by kind.
    pub removed: BTreeMap<Kind, Share>,
    /// Bytes on disk before.
    pub before: u64,
    /// Bytes on disk after.
    pub after: u64,
    /// Bytes of what would have gone had it not been in use.
    pub held: u64,
}

impl Shrunk {
    /// All that went together.
    pub fn total(&self) -> Share {
        Usage { kinds: self.removed.clone(), ..Usage::default() }.total()
    }
}

/// One thing in the store.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    used: SystemTime,
    kind: Kind,
    path: PathBuf,
    bytes: u64,
}

impl Store {
    /// What is in the store.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let (leased, holders) = self.leased()?;
        let mut usage = Usage { holders, ..Usage::default() };
        for kind in Kind::ALL {
            usage.kinds.insert(kind, Share::default());
        }
        for item in self.items()? {
            usage.kinds.entry(item.kind).or_default().add(item.bytes);
            usage.oldest = Some(usage.oldest.map_or(item.used, |oldest| oldest.min(item.used)));
            usage.newest = Some(usage.newest.map_or(item.used, |newest| newest.max(item.used)));
            if item.kind == Kind::Blob && digest_of(&item.path).is_some_and(|digest| leased.contains(&digest)) {
                usage.held.add(item.bytes);
            }
        }
        Ok(usage)
    }

    /// Makes the store take no more than `budget` bytes on disk, by removing what was used longest ago and is not in use: no blob that
    /// a running process asked for, no unpacked layer and no cache of a running step. Waits for another collector.
    ///
    /// Killed at any moment it leaves a store that is whole: things go one by one, and whoever needs one sees that it is gone.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn shrink(&self, budget: u64) -> Result<Shrunk, StoreError> {
        let path = self.root().join("collector");
        let alone = place::lock_file(&path)?;
        alone.lock().map_err(failed("lock", &path))?;
        self.sweep()?;
        let mut shrunk = Shrunk::default();
        let mut items = self.items()?;
        shrunk.before = items.iter().map(|item| item.bytes).sum();
        shrunk.after = shrunk.before;
        // Nobody trusts what a former boot unpacked: it goes whatever the budget.
        let (worthless, mut worth): (Vec<Item>, Vec<Item>) = items
            .drain(..)
            .partition(|item| item.kind == Kind::Tree && !crate::tree::is_of_this_boot(&item.path).unwrap_or(true));
        worth.sort();
        let gate = lease::open_gate(self.root())?;
        for batch in worthless.chunks(BATCH) {
            self.take(batch, 0, &gate, &mut shrunk)?;
        }
        for batch in worth.chunks(BATCH) {
            if shrunk.after <= budget {
                break;
            }
            self.take(batch, budget, &gate, &mut shrunk)?;
        }
        Ok(shrunk)
    }

    /// Removes of these, in their order, what is not in use, until the store is within `budget`.
    fn take(&self, items: &[Item], budget: u64, gate: &fs::File, shrunk: &mut Shrunk) -> Result<(), StoreError> {
        let path = self.root().join("gate");
        // What is large is moved away under the gate and removed after it.
        let mut moved = Vec::new();
        gate.lock().map_err(failed("lock", &path))?;
        let mut under_gate = || {
            let (leased, _) = self.leased()?;
            for item in items {
                if shrunk.after <= budget {
                    break;
                }
                let leased =
                    item.kind == Kind::Blob && digest_of(&item.path).is_some_and(|name| leased.contains(&name));
                // It may have been used since it was listed, by a process that is gone again.
                let used = used(item.kind, &item.path).map_err(failed("look at", &item.path))?;
                if leased
                    || used.is_some_and(|used| used != item.used)
                    || (used.is_some() && !self.unlink(item, &mut moved)?)
                {
                    shrunk.held += item.bytes;
                    continue;
                }
                shrunk.after = shrunk.after.saturating_sub(item.bytes);
                if used.is_some() {
                    shrunk.removed.entry(item.kind).or_default().add(item.bytes);
                }
            }
            Ok(())
        };
        let done = under_gate();
        gate.unlock().map_err(failed("unlock", &path))?;
        for scratch in moved {
            let (scratch, _lock): (place::Scratch, fs::File) = scratch;
            scratch.remove()?;
        }
        done
    }

    /// Takes one thing out of its place. False if it is in use, or gone already.
    fn unlink(&self, item: &Item, moved: &mut Vec<(place::Scratch, fs::File)>) -> Result<bool, StoreError> {
        let look = |error| failed("look at", &item.path)(error);
        match item.kind {
            Kind::Blob | Kind::Record => crate::blob::remove_file(&item.path),
            Kind::Partial => self.hands().remove_abandoned(&item.path).map_err(failed("remove", &item.path)),
            Kind::Tree | Kind::Cache => {
                let Some(_lock) = place::lock_unused(&item.path).map_err(look)? else { return Ok(false) };
                let (scratch, lock) = place::temp_dir(&self.tmp(), self.hands())?;
                fs::rename(&item.path, scratch.path().join("removed")).map_err(failed("rename", &item.path))?;
                moved.push((scratch, lock));
                Ok(true)
            }
        }
    }

    /// Everything in the store but what is being written.
    fn items(&self) -> Result<Vec<Item>, StoreError> {
        let mut items = Vec::new();
        for (dir, kind) in [
            ("blobs/sha256", Kind::Blob),
            ("partial", Kind::Partial),
            ("actions", Kind::Record),
            ("layers", Kind::Record),
            ("trees", Kind::Tree),
            ("caches", Kind::Cache),
        ] {
            let dir = self.root().join(dir);
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("list", &dir)(error)),
            };
            for entry in entries {
                let path = entry.map_err(failed("list", &dir))?.path();
                if let Some((used, bytes)) = measured(kind, &path, self.hands()).map_err(failed("look at", &path))? {
                    items.push(Item { used, kind, path, bytes });
                }
            }
        }
        Ok(items)
    }
}

/// When something was used last and what it takes, or none where it is gone.
fn measured(kind: Kind, path: &Path, hands: &Hands) -> io::Result<Option<(SystemTime, u64)>> {
    let Some(used) = used(kind, path)? else { return Ok(None) };
    let bytes = match kind {
        Kind::Blob | Kind::Partial | Kind::Record => there(fs::symlink_metadata(path))?.map(|meta| on_disk(&meta)),
        Kind::Tree => match fs::read_to_string(path.join(SIZE)).ok().and_then(|text| text.parse().ok()) {
            Some(bytes) => Some(bytes),
            None => there(hands.disk_usage(path))?,
        },
        Kind::Cache => there(hands.disk_usage(path))?,
    };
    Ok(bytes.map(|bytes| (used, bytes)))
}

/// When something was used last, or none where it is gone.
fn used(kind: Kind, path: &Path) -> io::Result<Option<SystemTime>> {
    // A directory's own time is that of its last entry, which is not its use.
    let inside;
    let path = match kind {
        Kind::Tree => {
            inside = path.join("boot");
            &inside
        }
        _ => path,
    };
    there(fs::symlink_metadata(path).and_then(|meta| meta.modified()))
}

fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn on_disk(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

fn digest_of(path: &Path) -> Option<Digest> {
    path.file_name().and_then(name_of)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::CacheUse;

    fn aged(path: &Path, days: u64) {
        let time = SystemTime::now() - Duration::from_secs(days * 86_400);
        fs::File::open(path).and_then(|file| file.set_modified(time)).expect("aged");
    }

    /// A store that nobody has open, with blobs of 8 KiB that were used so many days ago.
    fn store_of(days: &[u64]) -> (tempfile::TempDir, Vec<Digest>) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let digests = days
            .iter()
            .enumerate()
            .map(|(number, days)| {
                let digest = store.put(&vec![u8::try_from(number).expect("few"); 8192]).expect("stored");
                aged(&store.blob_path(&digest), *days);
                digest
            })
            .collect();
        (dir, digests)
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_asked_for_is_young() {
        let (dir, blobs) = store_of(&[4, 1, 3, 2]);
        drop(Store::open(dir.path()).expect("a store").open_blob(&blobs[0]).expect("used"));
        let store = Store::open(dir.path()).expect("a store");
        let before = store.usage().expect("measured");
        let each = before.kinds[&Kind::Blob].bytes / 4;
        assert!(each > 0, "{before:?}");
        let shrunk = store.shrink(2 * each).expect("shrunk");
        assert_eq!(shrunk.removed, BTreeMap::from([(Kind::Blob, Share { count: 2, bytes: 2 * each })]));
        assert_eq!((shrunk.before, shrunk.after, shrunk.held), (4 * each, 2 * each, 0));
        let left: Vec<bool> = blobs.iter().map(|blob| store.blob_path(blob).exists()).collect();
        assert_eq!(left, [true, true, false, false]);
        assert_eq!(store.shrink(2 * each).expect("shrunk").total(), Share::default());
    }

    #[test]
    fn what_another_process_asked_for_stays_whatever_the_budget() {
        let (dir, blobs) = store_of(&[1, 2]);
        let building = Store::open(dir.path()).expect("a store");
        assert!(building.has(&blobs[1]).expect("looked").is_some());
        let tree = building.new_tree().expect("begun").publish(&Digest::of("tree")).expect("published");
        let cache = building.cache(&Digest::of("cache"), CacheUse::Shared).expect("made");
        let collector = Store::open(dir.path()).expect("a store");
        let shrunk = collector.shrink(0).expect("shrunk");
        assert_eq!(shrunk.removed.keys().collect::<Vec<_>>(), [&Kind::Blob]);
        assert!(shrunk.held > 0 && shrunk.after > 0, "{shrunk:?}");
        assert!(building.open_blob(&blobs[1]).is_ok() && building.has(&blobs[0]).expect("looked").is_none());
        assert!(tree.path().is_dir() && cache.path().is_dir());
        let usage = collector.usage().expect("measured");
        assert_eq!((usage.holders, usage.held.count), (1, 1));
        drop((building, tree, cache));
        let shrunk = collector.shrink(0).expect("shrunk");
        assert_eq!((shrunk.after, shrunk.held), (0, 0));
        assert_eq!(collector.usage().expect("measured").total(), Share::default());
    }

    #[test]
    fn a_tree_of_a_former_boot_goes_whatever_the_budget() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        for name in ["old", "new"] {
            drop(store.new_tree().expect("begun").publish(&Digest::of(name)).expect("published"));
        }
        let old = dir.path().join("trees").join(Digest::of("old").hex());
        fs::write(old.join("boot"), "another boot").expect("written");
        let shrunk = store.shrink(u64::MAX).expect("shrunk");
        assert_eq!(shrunk.removed[&Kind::Tree].count, 1);
        assert!(!old.exists() && store.tree(&Digest::of("new")).expect("looked").is_some());
    }

    #[test]
    fn builders_and_collectors_at_once_never_lose_what_a_builder_has() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        std::thread::scope(|scope| {
            let builders: Vec<_> = (0..3_u8)
                .map(|number| {
                    scope.spawn(move || {
                        for round in 0..30_u8 {
                            let store = Store::open(root).expect("a store");
                            let made: Vec<Digest> = (0..8)
                                .map(|blob| store.put(&[[number, round, blob], [0, round / 3, blob]].concat()))
                                .collect::<Result<_, _>>()
                                .expect("stored");
                            let name = Digest::of([round]);
                            drop(store.new_tree().expect("begun").publish(&name).expect("published"));
                            drop(store.cache(&name, CacheUse::Shared).expect("made"));
                            for digest in &made {
                                store.open_blob(digest).expect("it is in use");
                            }
                        }
                    })
                })
                .collect();
            let building = || builders.iter().any(|builder| !builder.is_finished());
            scope.spawn(move || {
                let store = Store::open(root).expect("a store");
                for _ in 0..200 {
                    store.shrink(0).expect("shrunk");
                }
            });
            while building() {
                Store::open(root).expect("a store").shrink(0).expect("shrunk");
            }
        });
    }
}
