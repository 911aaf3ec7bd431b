//! As whom steps are run, so that files get the owners that an image names, and a step can become any of its users.
//!
//! This machine's root needs nothing for it. Everybody else needs a user namespace whose users are ones of this machine that nobody
//! else is: an ordinary user those that `/etc/subuid` and `/etc/subgid` set aside for him, the root of a container the container's own.
//! Here it is decided which way is taken; [`crate::namespace`] takes it.

use std::fmt;
use std::fs;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::probe::Refusal;

/// The least number of subordinate ids that an image can be expected to do with: those of every distribution are below it, and `nobody` is
/// its last but one.
const ENOUGH: u32 = 65_536;

/// As whom steps are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// As this machine's root, who can give files any owner.
    Root,
    /// In a user namespace that has these users and groups.
    Namespace(Ids),
}

/// Whose users a namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those that `/etc/subuid` and `/etc/subgid` set aside for the user, and the user himself as root.
    Subordinate,
    /// All that the namespace around it has, under the same numbers.
    Same,
    /// The user himself as root, and nobody else.
    Own,
}

/// The users and groups of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Whose they are.
    pub whose: Whose,
    /// Users, ascending.
    pub users: Vec<Range>,
    /// Groups, ascending.
    pub groups: Vec<Range>,
}

/// Numbers that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first of them in the namespace.
    pub inside: u32,
    /// The first of them outside.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

impl Way {
    /// A name that programs can tell it by.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Namespace(Ids { whose: Whose::Subordinate, .. }) => "subordinate-ids",
            Self::Namespace(Ids { whose: Whose::Same, .. }) => "user-namespace",
            Self::Namespace(Ids { whose: Whose::Own, .. }) => "single-id",
        }
    }

    /// What directories that were filled this way have to be told apart by: another way gives their files other owners.
    pub fn mark(&self) -> Option<String> {
        let ranges = |ranges: &[Range]| {
            let each = ranges.iter().map(|range| format!("{}:{}:{}", range.inside, range.outside, range.count));
            each.collect::<Vec<_>>().join(",")
        };
        match self {
            Self::Root => None,
            Self::Namespace(ids) => Some(format!("users {} groups {}", ranges(&ids.users), ranges(&ids.groups))),
        }
    }

    /// The highest user and group there are, where it is not the machine's own.
    pub(crate) fn highest(&self) -> Option<(u32, u32)> {
        let highest = |ranges: &[Range]| ranges.last().map_or(0, |range| range.inside + (range.count - 1));
        match self {
            Self::Root => None,
            Self::Namespace(ids) => Some((highest(&ids.users), highest(&ids.groups))),
        }
    }

    /// The way that this process can take.
    ///
    /// # Errors
    /// [`Refusal`] where there is none. What the kernel says when it is tried is another matter.
    pub(crate) fn of_this_process() -> Result<Self, Refusal> {
        let own = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        let (users, groups) = (own_ranges(&own("uid_map")), own_ranges(&own("gid_map")));
        if rustix::process::geteuid().is_root() {
            let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
            // In a user namespace overlayfs keeps its marks elsewhere, and not every id is one.
            if held.contains(CapabilitySet::SYS_ADMIN) && is_whole(&users) {
                return Ok(Self::Root);
            }
            if !held.contains(CapabilitySet::SETUID.union(CapabilitySet::SETGID)) {
                return Err(Refusal::NoIds);
            }
            let (users, groups) = (but_the_last(users), but_the_last(groups));
            return Ok(Self::Namespace(Ids { whose: Whose::Same, users, groups }));
        }
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let name = name_of(uid, &read("/etc/passwd"));
        let subordinate = |path: &str, own: u32| -> Result<Vec<Range>, Refusal> {
            let listed = listed(&read(path), &name, uid);
            let mut ranges = vec![Range { inside: 0, outside: own, count: 1 }];
            let mut next = 1_u32;
            for (outside, count) in listed {
                let count = count.min(u32::MAX - 1 - next);
                ranges.push(Range { inside: next, outside, count });
                next += count;
            }
            if next <= ENOUGH {
                return Err(Refusal::NoSubordinateIds { user: name.clone(), found: next - 1 });
            }
            Ok(ranges)
        };
        let found = subordinate("/etc/subuid", uid).and_then(|users| Ok((users, subordinate("/etc/subgid", gid)?)));
        match found {
            Ok((users, groups)) => Ok(Self::Namespace(Ids { whose: Whose::Subordinate, users, groups })),
            // Nobody can drop a group without a right that this namespace's root does not have, and a step would see it.
            Err(_) if has_one_group(gid) => {
                let one = |outside| vec![Range { inside: 0, outside, count: 1 }];
                Ok(Self::Namespace(Ids { whose: Whose::Own, users: one(uid), groups: one(gid) }))
            }
            Err(refusal) => Err(refusal),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |ids: &Ids| ids.users.iter().map(|range| u64::from(range.count)).sum::<u64>();
        match self {
            Self::Root => f.write_str("as root"),
            Self::Namespace(ids) => match ids.whose {
                Whose::Subordinate => write!(f, "in a user namespace of {} subordinate users", number(ids)),
                Whose::Same => write!(f, "in a user namespace of this container's {} users", number(ids)),
                Whose::Own => f.write_str("in a user namespace of one user, where all files are root's"),
            },
        }
    }
}

/// Whether this process is in a user namespace in which not every user of the machine is.
pub(crate) fn in_user_namespace() -> bool {
    !is_whole(&own_ranges(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default()))
}

/// The kernel's text of a user namespace that was never mapped: the machine's own.
fn is_whole(ranges: &[Range]) -> bool {
    *ranges == [Range { inside: 0, outside: 0, count: u32::MAX }]
}

/// The ids that this process's namespace has, each for itself: the second number of `uid_map` is that in the namespace around, which is
/// not ours to speak of.
fn own_ranges(map: &str) -> Vec<Range> {
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let (inside, _, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Range { inside, outside: inside, count })
    });
    let mut ranges: Vec<Range> = ranges.collect();
    ranges.sort_by_key(|range: &Range| range.inside);
    ranges
}

/// The same ids again, but for the machine's last one, which nothing has: a namespace of less than all can be told from the machine's own.
fn but_the_last(mut ranges: Vec<Range>) -> Vec<Range> {
    for range in &mut ranges {
        range.count = range.count.min(u32::MAX - 1);
    }
    ranges
}

/// Whether this process's groups are that one alone, and it is told so: a step sees its groups, which nobody can set where there is one.
fn has_one_group(gid: u32) -> bool {
    is_one_group(&fs::read_to_string("/proc/self/status").unwrap_or_default(), gid)
}

fn is_one_group(status: &str, gid: u32) -> bool {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| groups.split_whitespace().eq([gid.to_string()]))
}

/// The user's name, or the number where it has none.
fn name_of(uid: u32, passwd: &str) -> String {
    let number = uid.to_string();
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries.find(|fields| fields.get(2) == Some(&number.as_str()));
    entry.map_or(number, |fields| fields[0].to_owned())
}

/// What is set aside for a user, named by name or number (subuid(5)).
fn listed(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if owner != name && owner != number {
            return None;
        }
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        // An id of the user's own among them would be mapped twice, which the kernel refuses.
        let holds_own = uid >= first && uid - first < count;
        (count > 0 && first.checked_add(count).is_some() && !holds_own).then_some((first, count))
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text =
            "root:1:5\nanna:100000:65536\n1001:300000:10\nanna:x:5\nanna:4294967290:100\nannabel:5:5\nanna:1000:10\n";
        assert_eq!(listed(text, "anna", 1001), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(listed(text, "berta", 7), []);
    }

    #[test]
    fn a_user_is_named_by_name_where_there_is_one() {
        let passwd = "root:x:0:0::/root:/bin/sh\nanna:x:1001:1001::/home/anna:/bin/sh\n";
        assert_eq!(name_of(1001, passwd), "anna");
        assert_eq!(name_of(1002, passwd), "1002");
    }

    #[test]
    fn only_a_map_that_nobody_wrote_is_the_machines_own() {
        assert!(is_whole(&own_ranges("         0          0 4294967295\n")));
        assert!(!is_whole(&but_the_last(own_ranges("0 0 4294967295\n"))));
        assert!(!is_whole(&own_ranges("         0     100000      65536\n")));
        assert!(!is_whole(&own_ranges("0 1000 1\n1 100000 65536\n")));
        let same = own_ranges("1 100000 65536\n0 1000 1\n");
        assert_eq!(same, [Range { inside: 0, outside: 0, count: 1 }, Range { inside: 1, outside: 1, count: 65_536 }]);
    }

    #[test]
    fn one_group_is_neither_none_nor_several() {
        for (groups, one) in [("1000", true), ("", false), ("0", false), ("4 1000", false), ("1000 1000", false)] {
            assert_eq!(is_one_group(&format!("Gid:\t1000\t1000\nGroups:\t{groups} \n"), 1000), one, "{groups}");
        }
        assert!(!is_one_group("", 1000));
    }

    #[test]
    fn a_mark_tells_ways_apart() {
        let ids = |outside| {
            let ranges = vec![Range { inside: 0, outside, count: 1 }];
            Way::Namespace(Ids { whose: Whose::Subordinate, users: ranges.clone(), groups: ranges })
        };
        assert_eq!(Way::Root.mark(), None);
        assert_eq!(ids(7).mark().as_deref(), Some("users 0:7:1 groups 0:7:1"));
        assert_ne!(ids(7).mark(), ids(8).mark());
    }
}
