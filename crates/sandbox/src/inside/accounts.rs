//! Who the command runs as: `USER` looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The rules are Docker's (the `USER` instruction's reference): names first, then numbers, which need no entry; a user named
//! without a group gets its own group and all that list it; a group named outright is the only one. The group is always among the
//! supplementary ones as well, lest a program that drops its group by setgid(2) escapes a rule that names it (CVE-2022-36109).

use std::fs::File;
use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::place::IN_IMAGE;
use crate::wire::{Failure, absolute};

/// Larger account files than this are not account files.
const LIMIT: u64 = 4 << 20;

/// A user as the kernel knows it, and its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, ascending.
    pub(crate) groups: Vec<u32>,
    /// What `HOME` says.
    pub(crate) home: String,
}

/// Finds the user in the image below `root`.
pub(super) fn resolve(root: BorrowedFd<'_>, wanted: Option<&str>) -> Result<User, Failure> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    lookup(wanted.unwrap_or("0"), &passwd, &group)
}

/// Reads a file of the image; one that is missing is an empty one.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String, Failure> {
    let odd = || Failure::OddAccounts { path: absolute(Path::new(path)) };
    // Non-blocking, since the image may have put a fifo there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(root, path, flags, Mode::empty(), IN_IMAGE) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        other => File::from(other.map_err(|_| odd())?),
    };
    let stat = rustix::fs::fstat(&file).map_err(|_| odd())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(odd());
    }
    let mut text = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut text).map_err(|_| odd())?;
    if text.len() as u64 > LIMIT {
        return Err(odd());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn lookup(wanted: &str, passwd: &str, group: &str) -> Result<User, Failure> {
    let (name, group_name) = match wanted.split_once(':') {
        None => (wanted, None),
        Some((name, "")) => (name, None),
        Some((name, group)) => (name, Some(group)),
    };
    let name = if name.is_empty() { "0" } else { name };
    // name:password:uid:gid:comment:home:shell
    let people: Vec<Vec<&str>> = passwd.lines().map(|line| line.split(':').collect()).collect();
    let number = |fields: &[&str], at: usize| fields.get(at).and_then(|field| id(field));
    let entry = people.iter().find(|fields| fields[0] == name && number(fields, 2).is_some());
    let entry = entry.or_else(|| {
        let uid = id(name)?;
        people.iter().find(|fields| number(fields, 2) == Some(uid))
    });
    let uid = entry.and_then(|fields| number(fields, 2)).or_else(|| id(name));
    let uid = uid.ok_or_else(|| Failure::UnknownUser { name: name.to_owned() })?;
    let own_group = entry.and_then(|fields| number(fields, 3)).unwrap_or(0);
    let home = entry.and_then(|fields| fields.get(5)).filter(|home| !home.is_empty());
    let home = home.map_or_else(|| "/".to_owned(), |home| (*home).to_owned());

    // name:password:gid:members
    let groups: Vec<Vec<&str>> = group.lines().map(|line| line.split(':').collect()).collect();
    if let Some(wanted) = group_name {
        let found = groups.iter().find(|fields| fields[0] == wanted).and_then(|fields| number(fields, 2));
        let gid = found.or_else(|| id(wanted));
        let gid = gid.ok_or_else(|| Failure::UnknownGroup { name: wanted.to_owned() })?;
        return Ok(User { uid, gid, groups: vec![gid], home });
    }
    let listed = |fields: &&Vec<&str>| {
        let name = entry.map(|entry| entry[0]);
        fields.get(3).is_some_and(|members| members.split(',').any(|member| Some(member) == name))
    };
    let mut supplementary: Vec<u32> = groups.iter().filter(listed).filter_map(|fields| number(fields, 2)).collect();
    supplementary.push(own_group);
    supplementary.sort_unstable();
    supplementary.dedup();
    Ok(User { uid, gid: own_group, groups: supplementary, home })
}

/// A user or group number. The kernel keeps the highest for "nobody in particular".
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n\n7:x:3:3::/seven:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\nvideo:x:44:app\nodd:x:zz:app\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        User { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        assert_eq!(lookup("app", PASSWD, GROUP), Ok(user(1000, 1001, &[10, 44, 1001], "/home/app")));
        assert_eq!(lookup("1000", PASSWD, GROUP), Ok(user(1000, 1001, &[10, 44, 1001], "/home/app")));
    }

    #[test]
    fn a_named_group_is_the_only_one() {
        assert_eq!(lookup("app:video", PASSWD, GROUP), Ok(user(1000, 44, &[44], "/home/app")));
        assert_eq!(lookup("app:4", PASSWD, GROUP), Ok(user(1000, 4, &[4], "/home/app")));
    }

    #[test]
    fn numbers_need_no_entry_and_names_do() {
        assert_eq!(lookup("4242", PASSWD, GROUP), Ok(user(4242, 0, &[0], "/")));
        assert_eq!(lookup("4242:4243", "", ""), Ok(user(4242, 4243, &[4243], "/")));
        assert!(matches!(lookup("ghost", PASSWD, GROUP), Err(Failure::UnknownUser { name }) if name == "ghost"));
        assert!(matches!(lookup("app:ghosts", PASSWD, GROUP), Err(Failure::UnknownGroup { name }) if name == "ghosts"));
        assert!(lookup("4294967295", PASSWD, GROUP).is_err());
        assert!(lookup("+1", PASSWD, GROUP).is_err());
    }

    #[test]
    fn a_user_whose_name_is_a_number_is_found_by_name_first() {
        assert_eq!(lookup("7", PASSWD, GROUP), Ok(user(3, 3, &[3], "/seven")));
    }
}
