//! A user's own Podman: where jiji and Podman keep things then, and what such a Podman needs of a host.
//!
//! Everything is read from files, as [`crate::fitness`] does; nothing is judged.

use std::fs;
use std::path::{Path, PathBuf};

use jiji_model::observation::{ROOTLESS_PROGRAMS, RootlessFacts};

use crate::command;

/// Where jiji keeps what it keeps, for this user. The line that starts this program says the same in a shell's words
/// (`src/fleet/bootstrap.rs`).
pub fn root() -> PathBuf {
    data_home().join("jiji")
}

/// Where Podman keeps this user's images unless it was told otherwise (containers-storage.conf(5)).
pub fn storage() -> PathBuf {
    data_home().join("containers/storage")
}

/// `$XDG_DATA_HOME`, which counts only where it is absolute (XDG Base Directory Specification).
fn data_home() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    variable("XDG_DATA_HOME").unwrap_or_else(|| variable("HOME").unwrap_or(PathBuf::from("/")).join(".local/share"))
}

/// What a user's own Podman needs of this host. `path`: where programs are looked for.
pub fn facts(path: &str) -> RootlessFacts {
    let uid = rustix::process::geteuid().as_raw();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let user = name(&read("/etc/passwd"), uid).or_else(|| std::env::var("USER").ok()).unwrap_or(uid.to_string());
    let subordinate = |file| {
        // Where a directory service gives them, the files say nothing.
        (!elsewhere(&read("/etc/nsswitch.conf"))).then(|| subordinate(&read(file), &user, uid))
    };
    let installed = |program: &&str| command::find(program, path).is_ok();
    RootlessFacts {
        subordinate_users: subordinate("/etc/subuid"),
        subordinate_groups: subordinate("/etc/subgid"),
        programs: ROOTLESS_PROGRAMS.iter().filter(|program| installed(program)).map(|&name| name.to_owned()).collect(),
        tun: fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok(),
        // sd_booted(3) looks for this directory, systemd-logind for that file.
        lingers: Path::new("/run/systemd/system")
            .is_dir()
            .then(|| Path::new("/var/lib/systemd/linger").join(&user).exists()),
        memory_control: memory_control(uid),
        user: command::one_line(&user),
    }
}

/// The name of a user in the form of passwd(5).
fn name(passwd: &str, uid: u32) -> Option<String> {
    let mut users = passwd.lines().map(|line| line.split(':'));
    users.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>() == Ok(uid)).then(|| name.to_owned())
    })
}

/// How many ids a file in the form of subuid(5) gives a user, by name or number.
fn subordinate(text: &str, user: &str, uid: u32) -> u64 {
    let of_user = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        (owner == user || owner.parse::<u32>() == Ok(uid)).then(|| fields.nth(1)?.parse::<u64>().ok())?
    };
    text.lines().filter_map(of_user).fold(0, u64::saturating_add)
}

/// Whether nsswitch.conf(5) has somebody else than files tell subordinate ids.
fn elsewhere(nsswitch: &str) -> bool {
    let line = nsswitch.lines().find_map(|line| line.trim().strip_prefix("subid:"));
    line.is_some_and(|services| services.split_ascii_whitespace().any(|service| service != "files"))
}

/// Whether control groups are of version 2 and systemd gives this user's the memory controller (`Delegate=` in systemd.resource-control(5)).
fn memory_control(uid: u32) -> bool {
    let group = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers");
    fs::read_to_string(group).is_ok_and(|controllers| controllers.split_ascii_whitespace().any(|name| name == "memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_counted_by_name_and_by_number() {
        let text = "root:1:5\nann:100000:65536\n1000:300000:10\nannex:1:7\nann:x\n\n";
        assert_eq!(subordinate(text, "ann", 1000), 65_546);
        assert_eq!(subordinate(text, "bob", 1001), 0);
        assert_eq!(
            name("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n", 1000).as_deref(),
            Some("ann")
        );
        assert_eq!(name("root:x:0:0::/root:/bin/sh\n", 1000), None);
    }

    #[test]
    fn a_directory_service_may_tell_them_instead() {
        assert!(elsewhere("passwd: files sss\nsubid: sss\n"));
        assert!(!elsewhere("passwd: files sss\nsubid: files\n"));
        assert!(!elsewhere("passwd: files sss\n"));
    }
}
