//! The keys and configuration with which the operator reaches hosts, and how often it did.
//!
//! SSH is encrypted and multiplexed, so sessions cannot be counted on the wire: they are counted in sshd's VERBOSE log.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use crate::{
    LabError, Record,
    command::{command, run},
};

/// The user besides root that every host has; it may use `sudo -n` unless the host lets nobody become root.
pub(crate) const USER: &str = "deploy";

/// What an sshd saw since its host was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Sessions {
    /// Connections that authenticated.
    pub connections: u64,
    /// Sessions in them: commands, shells and subsystems. One SSH exec is one session.
    pub sessions: u64,
}

impl Sessions {
    /// Counts in the text of an sshd's VERBOSE log.
    pub(crate) fn count(log: &str) -> Self {
        let mut seen = Self::default();
        for line in log.lines() {
            if line.starts_with("Accepted publickey for ") {
                seen.connections += 1;
            } else if line.starts_with("Starting session: ") {
                seen.sessions += 1;
            }
        }
        seen
    }
}

/// Makes the client's key, one host key each, and the configuration that knows them.
pub(crate) fn write_files(record: &Record) -> Result<(), LabError> {
    let dir = record.dir.join("ssh");
    let client = dir.join("id_ed25519");
    make_key(&client, "operator")?;
    let mut known = String::new();
    let mut config = format!("# All hosts of the lab `{}`. Written by the laboratory.\n", record.name);
    for host in &record.hosts {
        let key = host.dir.join("host_key");
        make_key(&key, &host.name)?;
        let public = key.with_extension("pub");
        let public = fs::read_to_string(&public).map_err(LabError::file("read", &public))?;
        let mut words = public.split_ascii_whitespace();
        let (kind, blob) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        known.push_str(&format!("{},{} {kind} {blob}\n", host.name, host.ssh_address));
        config.push_str(&format!(
            "\nHost {name}\n    HostName {address}\n    HostKeyAlias {name}\n    User {user}\n",
            name = host.name,
            address = host.ssh_address,
            user = host.user
        ));
        if let Some(through) = &host.through {
            config.push_str(&format!("    ProxyJump {through}\n"));
        }
    }
    config.push_str(&format!(
        "\nHost *\n    IdentityFile {dir}/id_ed25519\n    IdentitiesOnly yes\n    UserKnownHostsFile \
         {dir}/known_hosts\n    GlobalKnownHostsFile none\n    StrictHostKeyChecking yes\n    PasswordAuthentication no\n    \
         BatchMode yes\n    ConnectTimeout 10\n",
        dir = dir.display()
    ));
    write(&dir.join("known_hosts"), &known, 0o644)?;
    write(&record.ssh_config, &config, 0o644)?;
    for program in ["ssh", "scp", "sftp"] {
        // The last -F counts, so a tool that brings its own configuration still has its way.
        let text = format!("#!/bin/sh\nexec /usr/bin/{program} -F '{}' \"$@\"\n", record.ssh_config.display());
        write(&record.operator.bin.join(program), &text, 0o755)?;
    }
    Ok(())
}

fn make_key(path: &Path, comment: &str) -> Result<(), LabError> {
    run(command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(path)).map(drop)
}

pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), LabError> {
    fs::write(path, text).map_err(LabError::file("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(LabError::file("set the mode of", path))
}

/// What the sshd of a host reads that lets in this user alone, and root only by that name.
pub(crate) fn sshd_config(user: &str) -> String {
    let root = if user == "root" { "prohibit-password" } else { "no" };
    format!("{SSHD_CONFIG}PermitRootLogin {root}\n")
}

const SSHD_CONFIG: &str = "\
# Written by the laboratory.
Port 22
HostKey /etc/ssh/lab_host_key
AuthorizedKeysFile /etc/ssh/lab_authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
LogLevel VERBOSE
Subsystem sftp internal-sftp
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_and_connections_are_counted_apart() {
        let log = "Server listening on 0.0.0.0 port 22.\n\
                   Connection from 10.231.0.2 port 40172 on 10.231.0.11 port 22 rdomain \"\"\n\
                   Accepted key ED25519 SHA256:x found at /etc/ssh/lab_authorized_keys:1\n\
                   Accepted publickey for root from 10.231.0.2 port 40172 ssh2: ED25519 SHA256:x\n\
                   Starting session: command for root from 10.231.0.2 port 40172 id 0\n\
                   Starting session: command for root from 10.231.0.2 port 40172 id 1\n\
                   Close session: user root from 10.231.0.2 port 40172 id 0\n";
        assert_eq!(Sessions::count(log), Sessions { connections: 1, sessions: 2 });
    }
}
