//! What is known of files, and the form in which it is remembered.
//!
//! A build with nothing to do asks for the files in the order in which they were asked for before, which is the order in which they are remembered:
//! each is found where the one before it ended. Only who finds another there has an index made.

use std::collections::HashMap;

use jiji_model::digest::Digest;

use super::Stat;

/// The version of the remembered form. Another one is not looked at.
pub(super) const VERSION: u32 = 2;

/// How the remembered form begins.
const HEAD: &[u8] = b"jiji file digests 2\n";

/// Longer paths cannot be opened (`PATH_MAX`).
const LONGEST: usize = 4096;

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct One {
    pub(super) stat: Stat,
    pub(super) digest: Digest,
    /// As how many files were asked for before it, if this build asked for it.
    pub(super) turn: Option<u32>,
    /// Whether it may be remembered: it had been quiet when it was read.
    pub(super) quiet: bool,
}

/// What is known of files, by their paths.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The paths, one after the other.
    paths: Vec<u8>,
    /// Where each path begins and ends in them.
    files: Vec<(usize, usize, One)>,
    /// The file that is expected to be asked for next.
    next: usize,
    /// Where each file is, once that was needed.
    index: Option<HashMap<Vec<u8>, usize>>,
}

impl Known {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    fn path(&self, at: usize) -> Option<&[u8]> {
        let (begin, end, _) = self.files.get(at)?;
        self.paths.get(*begin..*end)
    }

    /// What is known of the file at a path.
    pub(super) fn find(&mut self, path: &[u8]) -> Option<&mut One> {
        let at = match self.path(self.next) {
            Some(expected) if expected == path => self.next,
            _ => *self.index().get(path)?,
        };
        self.next = at + 1;
        self.files.get_mut(at).map(|(_, _, one)| one)
    }

    /// Knows this of a file from now on.
    pub(super) fn put(&mut self, path: &[u8], one: One) {
        if let Some(at) = self.index().get(path).copied() {
            self.files[at].2 = one;
            return;
        }
        let (begin, at) = (self.paths.len(), self.files.len());
        self.paths.extend_from_slice(path);
        self.files.push((begin, self.paths.len(), one));
        self.index().insert(path.to_vec(), at);
    }

    fn index(&mut self) -> &mut HashMap<Vec<u8>, usize> {
        let Self { paths, files, index, .. } = self;
        index.get_or_insert_with(|| {
            files.iter().enumerate().map(|(at, (begin, end, _))| (paths[*begin..*end].to_vec(), at)).collect()
        })
    }

    /// The remembered form of those that were asked for and may be remembered: a head, then for each file, in the order in which they were asked
    /// for, how many bytes of the path before it begins with too, how many follow (16 bits each) and these, the seven numbers of its [`Stat`] (64
    /// bits each) and its digest. All numbers have the lowest byte first. A context of ten thousand files is read in less than a millisecond, which JSON is not.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut kept: Vec<_> = self
            .files
            .iter()
            .filter_map(|(begin, end, one)| Some((one.turn.filter(|_| one.quiet)?, &self.paths[*begin..*end], one)))
            .filter(|(_, path, _)| path.len() <= LONGEST)
            .collect();
        kept.sort_unstable_by_key(|(turn, ..)| *turn);
        let mut bytes = HEAD.to_vec();
        let mut before: &[u8] = &[];
        for (_, path, one) in kept {
            let same = before.iter().zip(path).take_while(|(one, other)| one == other).count();
            for length in [same, path.len() - same] {
                bytes.extend(u16::try_from(length).expect("paths are shorter than 4097 bytes").to_le_bytes());
            }
            bytes.extend(&path[same..]);
            bytes.extend(one.stat.0.iter().flat_map(|number| number.to_le_bytes()));
            bytes.extend(one.digest.as_bytes());
            before = path;
        }
        bytes
    }

    /// What was written; none where it is anything else.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(HEAD)?;
        let mut known = Self::default();
        let mut begin = 0;
        while !rest.is_empty() {
            let shared = usize::from(u16::from_le_bytes(*take(&mut rest)?));
            let length = usize::from(u16::from_le_bytes(*take(&mut rest)?));
            let (own, after) = rest.split_at_checked(length)?;
            rest = after;
            let end = known.paths.len();
            if shared > end - begin || shared + length > LONGEST {
                return None;
            }
            known.paths.extend_from_within(begin..begin + shared);
            known.paths.extend_from_slice(own);
            let mut stat = [0; 7];
            for number in &mut stat {
                *number = i64::from_le_bytes(*take(&mut rest)?);
            }
            let digest = Digest::from_bytes(*take(&mut rest)?);
            known.files.push((end, known.paths.len(), One { stat: Stat(stat), digest, turn: None, quiet: true }));
            begin = end;
        }
        Some(known)
    }
}

fn take<'a, const LENGTH: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; LENGTH]> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(number: i64, turn: Option<u32>) -> One {
        let stat = Stat([number, -1, 2, i64::MAX, 4, 5, 6]);
        One { stat, digest: Digest::of(number.to_string()), turn, quiet: true }
    }

    fn told(known: &Known) -> Vec<(Vec<u8>, Stat, Digest)> {
        let path = |at: usize| known.path(at).expect("there").to_vec();
        known.files.iter().enumerate().map(|(at, (_, _, one))| (path(at), one.stat, one.digest)).collect()
    }

    #[test]
    fn what_is_remembered_is_read_as_it_was_written_and_what_is_damaged_is_not_believed() {
        let mut known = Known::default();
        let files = [(&b"/c/b"[..], 3), (b"/c/a/one", 1), (b"/c/a/o\xff\n", 2)];
        for (turn, (path, number)) in (0..).zip(files) {
            known.put(path, one(number, Some(turn)));
        }
        let due = told(&known);
        let bytes = known.write();
        assert_eq!(told(&Known::read(&bytes).expect("a record")), due);
        assert!(bytes.len() < files.len() * 120, "{}", bytes.len());
        for length in 0..bytes.len() {
            let cut = Known::read(&bytes[..length]);
            assert!(cut.is_none_or(|known| known.files.len() < 3), "{length}");
        }
        assert!(Known::read(b"{}").is_none());
        // A path that begins with more of the one before it than that has.
        let lie = [HEAD, &[1, 0, 0, 0], &[0; 88]].concat();
        assert!(Known::read(&lie).is_none());
    }

    #[test]
    fn files_are_found_in_any_order_and_kept_in_the_order_in_which_they_were_asked_for() {
        let mut known = Known::default();
        for (turn, number) in [(0, 10), (1, 11), (2, 12), (3, 13)] {
            known.put(format!("/{number}").as_bytes(), one(number, Some(turn)));
        }
        let mut known = Known::read(&known.write()).expect("a record");
        assert!(known.index.is_none());
        let size = |known: &mut Known, path: &str| known.find(path.as_bytes()).map(|one| one.stat.0[0]);
        assert_eq!((size(&mut known, "/10"), size(&mut known, "/11")), (Some(10), Some(11)));
        assert!(known.index.is_none(), "they came as they were expected");
        // One is gone, one is new, and one comes late.
        assert_eq!(
            (size(&mut known, "/13"), size(&mut known, "/1"), size(&mut known, "/12")),
            (Some(13), None, Some(12))
        );
        for (turn, path) in (0..).zip(["/13", "/10", "/12"]) {
            known.find(path.as_bytes()).expect("known").turn = Some(turn);
        }
        known.put(b"/14", one(14, Some(3)));
        known.put(b"/15", One { quiet: false, ..one(15, Some(4)) });
        known.put(b"/13", one(23, Some(0)));
        let sizes: Vec<i64> =
            told(&Known::read(&known.write()).expect("a record")).iter().map(|file| file.1.0[0]).collect();
        assert_eq!(sizes, [23, 10, 12, 14]);
    }
}
