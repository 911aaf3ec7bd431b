//! A path in an image, as bytes.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The beginning of the name of a file that removes another in a lower layer (image-spec, layer.md, "Whiteouts").
pub const WHITEOUT: &[u8] = b".wh.";

/// A path below the image's root: normal parts joined by `/`, no slash at its ends; empty for the root itself.
///
/// Names are bytes: two names that look the same in some encoding are two names. The order is the order of layers: parts are compared
/// one by one, a directory comes before what is in it, and whiteouts before the other names of their directory, which the image
/// specification recommends.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TarPath(Vec<u8>);

impl TarPath {
    /// The root.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Takes a path's normal parts: `.` and empty parts fall away, `..` takes the part before it away and stops at the root.
    pub fn normal(path: impl AsRef<[u8]>) -> Self {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in path.as_ref().split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        Self(parts.join(&b'/'))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The parts, from the root on.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// The last part; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// The directory it is in; none for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
        Some(Self(self.0[..end].to_vec()))
    }

    /// All directories that it is in, from the root's child down.
    pub fn parents(&self) -> Vec<Self> {
        let mut parents: Vec<Self> = std::iter::successors(self.parent(), Self::parent).collect();
        parents.pop();
        parents.reverse();
        parents
    }

    /// Whether it is in a directory, at any depth. Nothing is below itself.
    pub fn is_below(&self, directory: &Self) -> bool {
        match self.0.strip_prefix(directory.0.as_slice()) {
            Some(rest) if directory.is_root() => !rest.is_empty(),
            Some(rest) => rest.first() == Some(&b'/'),
            None => false,
        }
    }

    /// The path as seen from a directory it is below; itself where it is not.
    pub fn relative_to(&self, directory: &Self) -> Self {
        match self.0.strip_prefix(directory.0.as_slice()) {
            Some(rest) if self.is_below(directory) => Self(rest.strip_prefix(b"/").unwrap_or(rest).to_vec()),
            _ => self.clone(),
        }
    }

    /// The path of a name in this directory.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() && !name.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// The whiteout of this path.
    pub fn whiteout(&self) -> Self {
        let name = [WHITEOUT, self.name()].concat();
        self.parent().unwrap_or_default().join(&name)
    }

    /// The path on this machine, below `root`.
    pub fn below(&self, root: &Path) -> PathBuf {
        if self.is_root() { root.to_owned() } else { root.join(OsStr::from_bytes(&self.0)) }
    }
}

/// With how many bytes both begin.
fn common(one: &[u8], other: &[u8]) -> usize {
    let blocks = one.as_chunks::<16>().0.iter().zip(other.as_chunks::<16>().0).take_while(|(one, other)| one == other);
    let blocks = blocks.count() * 16;
    blocks + one[blocks..].iter().zip(&other[blocks..]).take_while(|(one, other)| one == other).count()
}

/// The part that a path begins with.
fn first(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'/').next().unwrap_or_default()
}

impl Ord for TarPath {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.is_root() || other.is_root() {
            return self.0.len().cmp(&other.0.len());
        }
        // The parts before the one in which they differ are the same.
        let same = common(&self.0, &other.0);
        let begin = self.0[..same].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (ours, theirs) = (first(&self.0[begin..]), first(&other.0[begin..]));
        let key = |part: &[u8]| !part.starts_with(WHITEOUT);
        // Where even these are the same one path ends with it, and the other is below.
        let order = key(ours).cmp(&key(theirs)).then_with(|| ours.cmp(theirs));
        order.then_with(|| self.0.len().cmp(&other.0.len()))
    }
}

impl PartialOrd for TarPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TarPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for TarPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Part by part, as the order is told.
    fn by_parts(one: &TarPath, other: &TarPath) -> Ordering {
        let key =
            |path: &TarPath| path.parts().map(|part| (!part.starts_with(WHITEOUT), part.to_vec())).collect::<Vec<_>>();
        key(one).cmp(&key(other))
    }

    proptest! {
        #[test]
        fn paths_are_ordered_part_by_part(
            before in "[a/]{0,40}",
            one in "(a|b|/|-|\\.wh\\.){0,8}",
            other in "(a|b|/|-|\\.wh\\.){0,8}",
        ) {
            let [one, other] = [one, other].map(|rest| TarPath::normal(format!("{before}{rest}")));
            prop_assert_eq!(one.cmp(&other), by_parts(&one, &other));
        }
    }
}
