//! Packages of Debian and Ubuntu.
//!
//! Packages with daemons start them when they are installed, unless a policy says no; the policy is put in place for the time of
//! the installation. Its text says who put it there, so that one that was left by a killed run is removed by the next.

use std::path::Path;

use crate::error::Error;
use crate::process::{as_root, find, is_root, run, succeeds};

const POLICY: &str = "/usr/sbin/policy-rc.d";
const MARK: &str = "# Put here by `cargo xtask` while it installs packages, so that no daemon starts.";

/// Whether this machine has apt.
pub fn is_here() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let known = release.lines().filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")));
    find("apt-get").is_some()
        && known.flat_map(|ids| ids.trim_matches('"').split(' ')).any(|id| matches!(id, "debian" | "ubuntu"))
}

/// Installs packages and starts no daemon.
///
/// # Errors
/// When this is not root and sudo asks for a password, or apt fails.
pub fn install(packages: &[&str]) -> Result<(), Error> {
    if !is_root() && !succeeds(as_root("true").args::<_, &str>([])) {
        let things = packages.iter().map(|package| format!("the package {package}")).collect();
        let hint = "start again as root, or let sudo run without a password".to_owned();
        return Err(Error::Missing { things, hint });
    }
    let _policy = Policy::put()?;
    // A list of packages that is weeks old names files that are no longer served.
    run(noninteractive().args(["apt-get", "update", "--quiet"]))?;
    let options = ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends"];
    run(noninteractive().args(options).args(packages))
}

fn noninteractive() -> std::process::Command {
    let mut command = as_root("env");
    command.arg("DEBIAN_FRONTEND=noninteractive");
    command
}

/// Removes a policy that a killed run left.
pub fn sweep() {
    if std::fs::read_to_string(POLICY).is_ok_and(|text| text.contains(MARK)) {
        remove();
    }
}

fn remove() {
    succeeds(as_root("rm").args(["-f", POLICY]));
}

/// The policy, there as long as this value lives.
struct Policy {
    ours: bool,
}

impl Policy {
    /// Puts the policy in place, unless the machine has one of its own.
    fn put() -> Result<Self, Error> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        // 101 is "action forbidden by policy" (invoke-rc.d(8)).
        let text = format!("#!/bin/sh\n{MARK}\nexit 101\n");
        let file = std::env::temp_dir().join(format!("jiji-policy-rc.d.{}", std::process::id()));
        std::fs::write(&file, text).map_err(Error::file("write", &file))?;
        let policy = Self { ours: true };
        let installed = run(as_root("install").args(["-m", "0755"]).arg(&file).arg(POLICY));
        let _ = std::fs::remove_file(&file);
        installed.map(|()| policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours {
            remove();
        }
    }
}
