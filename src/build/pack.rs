//! The entries of one layer as several layers, so that a change of one file changes one of them and the others need not be sent again.
//!
//! Where an entry goes is told by its path, and by which units are the largest; never by what was built before, so every machine
//! packs alike. A unit is what changes together: a package where packages lie side by side (`site-packages/flask` with its
//! `flask-3.0.dist-info`), elsewhere the files of a directory that share their name up to its first dot or its version. The largest units are
//! layers of their own, half of all that there may be; the others are dealt by the digests of their names. How large a unit is counts by
//! powers of two, so that one that grows a little keeps its place. `docs/design/images.md` says what was rejected.
//!
//! Each layer has the directories that its entries are in, all with the same mode and owner. [`RULES`] is in the keys of steps: other rules,
//! other layers.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use super::layer::{Node, TarPath};
use super::rootfs::Found;

/// The version of the rules by which entries are dealt.
pub const RULES: u32 = 1;

/// How many layers one may become: 127 are as many as an image can have, and each takes a request of whoever pulls it.
pub const MOST: usize = 64;

/// The least bytes of a unit that is a layer of its own: below, the request takes longer than the bytes.
const ALONE: u64 = 1 << 20;

/// Directories in which packages lie side by side.
const SHELVES: [&[u8]; 6] = [b"site-packages", b"dist-packages", b"node_modules", b".pnpm", b"gems", b"vendor"];

/// What an entry takes in a tar besides its content.
const HEADER: u64 = 512;

/// What changes together, by its name.
type Unit = Vec<u8>;

/// Deals entries to at most so many layers. All directories above an entry must be among them. There is at least one layer, which is empty
/// where there are no entries.
pub fn pack(entries: BTreeMap<TarPath, Found>, most: usize) -> Vec<BTreeMap<TarPath, Found>> {
    let leaves = leaves(&entries);
    let places = places(&entries, &leaves, most);
    let mut layers: BTreeMap<usize, BTreeMap<TarPath, Found>> = BTreeMap::new();
    for (path, unit) in leaves {
        let Some(found) = entries.get(&path) else { continue };
        let layer = layers.entry(places[&unit]).or_default();
        for parent in path.parents() {
            if let Some(directory) = entries.get(&parent).filter(|_| !layer.contains_key(&parent)) {
                layer.insert(parent, directory.clone());
            }
        }
        layer.insert(path, found.clone());
    }
    if layers.is_empty() { vec![entries] } else { layers.into_values().collect() }
}

/// What is not above something else, with its unit. A directory with something in it goes where that goes.
fn leaves(entries: &BTreeMap<TarPath, Found>) -> Vec<(TarPath, Unit)> {
    let mut leaves = Vec::with_capacity(entries.len());
    let mut after = entries.keys().skip(1);
    for (path, found) in entries {
        let next = after.next();
        if found.is_directory() && next.is_some_and(|next| next.is_below(path)) {
            continue;
        }
        // The names of one file stay in one layer.
        let of = match &found.entry.node {
            Node::Hardlink(to) => to,
            _ => path,
        };
        leaves.push((path.clone(), unit(of)));
    }
    leaves
}

/// The number of each unit's layer: the largest by name, and then those that the others are dealt to.
fn places(entries: &BTreeMap<TarPath, Found>, leaves: &[(TarPath, Unit)], most: usize) -> BTreeMap<Unit, usize> {
    let most = most.max(1);
    let mut sizes: BTreeMap<&Unit, u64> = BTreeMap::new();
    for (path, unit) in leaves {
        let size = match entries.get(path).map(|found| &found.entry.node) {
            Some(Node::File { size }) => size.saturating_add(HEADER),
            _ => HEADER,
        };
        let sum = sizes.entry(unit).or_default();
        *sum = sum.saturating_add(size);
    }
    let mut large: Vec<(&Unit, u64)> =
        sizes.iter().filter(|(_, size)| **size >= ALONE).map(|(unit, size)| (*unit, *size)).collect();
    large.sort_by_key(|(unit, size)| (std::cmp::Reverse(size.ilog2()), *unit));
    let alone: BTreeSet<&Unit> = large.into_iter().take(most / 2).map(|(unit, _)| unit).collect();
    let dealt = (most - most / 2) as u64;
    let place = |unit: &Unit| match alone.iter().position(|own| *own == unit) {
        Some(at) => at,
        None => most / 2 + usize::try_from(number(unit) % dealt).unwrap_or_default(),
    };
    sizes.keys().map(|unit| ((*unit).clone(), place(unit))).collect()
}

/// A number that depends on a unit's name alone.
fn number(unit: &[u8]) -> u64 {
    let digest: [u8; 32] = Sha256::digest(unit).into();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The unit that a path belongs to, by its path alone.
fn unit(path: &TarPath) -> Unit {
    let parts: Vec<&[u8]> = path.parts().collect();
    let is_shelf = |part: &&[u8]| SHELVES.contains(part);
    // The first shelf of which something is known; `node_modules/.pnpm` is a shelf on a shelf.
    let package = parts.iter().position(is_shelf).and_then(|first| {
        let next = parts[first..].iter().position(|part| !is_shelf(part))? + first;
        let scoped = parts[next - 1] == b"node_modules" && parts[next].first() == Some(&b'@');
        let name = if scoped && next + 1 < parts.len() { next + 1 } else { next };
        Some((&parts[..name], parts[name]))
    });
    let (above, name) = package.unwrap_or_else(|| {
        let (name, above) = parts.split_last().map_or((&b""[..], &parts[..]), |(name, above)| (*name, above));
        // Where Python keeps what it compiled: with what it was compiled from.
        (above.strip_suffix(&[&b"__pycache__"[..]]).unwrap_or(above), name)
    });
    [above.join(&b'/'), stem(name).to_ascii_lowercase()].join(&b'/')
}

/// A name without what comes after its first dot, or its version: `libx.so.1`, `flask-3.0.dist-info`, `react@18`. All of it where nothing
/// would be left.
fn stem(name: &[u8]) -> &[u8] {
    let ends = |at: &usize| match name[*at] {
        b'.' => true,
        b'-' | b'@' => name.get(at + 1).is_some_and(u8::is_ascii_digit),
        _ => false,
    };
    (1..name.len()).find(ends).map_or(name, |end| &name[..end])
}

#[cfg(test)]
mod tests;
