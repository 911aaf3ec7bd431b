//! The way through the user's ssh.
//!
//! ssh itself connects, so that the user's configuration, agent, jump hosts and known hosts count as they do by hand. A master
//! connection carries the sessions of one server; the pool ([`super::pool`]) closes it, and where this process was killed it ends by
//! itself soon after. No part of it ever asks anything: what would need an answer fails, and [`super::diagnose`] says why.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use jiji_model::name::HostName;
use tokio::process::Command;

use super::control::{self, ControlDirectory};
use super::diagnose;
use super::error::FleetError;
use super::named;
use super::pipes::{End, Pipes, Stderr};
use super::target::{ConfigFile, SshTarget};

/// Seconds that a master lives on without a session, where nobody closes it.
const IDLE_S: u32 = 20;

/// Seconds between questions to a silent server, and how many may stay without answer.
const ALIVE_S: u64 = 5;
const ALIVE_MOST: u32 = 3;

/// Whether a host key that nobody has vouched for is believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HostKeys {
    /// No: it must be in the known hosts.
    #[default]
    Known,
    /// Once: it is written to the user's known hosts and must be the same ever after.
    AcceptNew,
}

/// Rules that hold before the user's own, since ssh takes the first value that it finds (ssh_config(5)): nothing is asked, nothing of
/// this machine is lent to a server, nothing but what jiji starts is run, and what ssh says can be read.
const RULES: &str = "\
BatchMode yes
ClearAllForwardings yes
ForwardAgent no
ForwardX11 no
PermitLocalCommand no
RemoteCommand none
RequestTTY no
UpdateHostKeys no
LogLevel INFO
";

/// The ssh configuration for one server: this program's rules, then the user's. ssh hands the file on to the ssh that it starts for a
/// jump host, so the rules hold there too.
pub(super) fn configuration(target: &SshTarget, keys: HostKeys) -> Result<String, FleetError> {
    let mut text = RULES.to_owned();
    let check = match keys {
        HostKeys::Known => "yes",
        HostKeys::AcceptNew => "accept-new",
    };
    // For each address and each jump; the sum is bounded by whoever waits.
    let timeout = target.connect_timeout.as_secs().max(1);
    write!(
        text,
        "StrictHostKeyChecking {check}\nConnectTimeout {timeout}\n\
         ServerAliveInterval {ALIVE_S}\nServerAliveCountMax {ALIVE_MOST}\n"
    )
    .expect("a String takes all");
    if !target.keys.is_empty() {
        text.push_str("IdentitiesOnly yes\n");
        for key in &target.keys {
            writeln!(text, "IdentityFile \"{key}\"").expect("a String takes all");
        }
    }
    match &target.config {
        // Its content and not an Include: it was read and checked, and is not read again.
        Some(ConfigFile::Project(path)) => text.push_str(&named::read(path)?),
        Some(ConfigFile::Person(path)) => text.push_str(
            &fs::read_to_string(path)
                .map_err(|source| FleetError::Config { path: path.clone(), source: Arc::new(source) })?,
        ),
        None => text.push_str("Include ~/.ssh/config\nInclude /etc/ssh/ssh_config\n"),
    }
    Ok(text)
}

/// Writes a file that this user alone may read.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), FleetError> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| FleetError::ControlDirectory { path: path.to_owned(), source: Arc::new(source) })
}

/// `ssh` with this configuration, and what leads to the server. The destination goes after whatever else is added.
pub(super) fn ssh(target: &SshTarget, configuration: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.arg("-F").arg(configuration);
    if let Some(port) = target.port {
        command.arg("-p").arg(port.to_string());
    }
    if let Some(user) = &target.user {
        command.arg("-l").arg(user);
    }
    if !target.jump.is_empty() {
        command.arg("-J").arg(target.jump.join(","));
    }
    // Away from what a terminal sends to whom it waits for: Ctrl-C is for this program to hear, and what it reverts it reverts through
    // these. The master leaves that group by itself when it goes into the background; the ssh that it starts for a jump host does not.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command
}

/// A connection to a server, on which programs can be started.
pub(super) struct Connection {
    session: openssh::Session,
    socket: PathBuf,
    /// Host keys that were believed for the first time, such as `ED25519 SHA256:… of h`.
    pub(super) pinned: Vec<String>,
}

impl Connection {
    /// Connects. `number` is one that no other connection of the directory has.
    pub(super) async fn open(
        host: &HostName,
        target: &SshTarget,
        keys: HostKeys,
        control: &ControlDirectory,
        number: usize,
    ) -> Result<Self, FleetError> {
        let path = |kind: &str| control.path().join(format!("{number}.{kind}"));
        let (conf, log) = (path("conf"), path("log"));
        write_private(&conf, &configuration(target, keys)?)?;
        write_private(&log, "")?;
        let before = match keys {
            HostKeys::Known => None,
            HostKeys::AcceptNew => Some(diagnose::known(target, &conf).await),
        };
        let failed = |source: io::Error| FleetError::ControlDirectory { path: log.clone(), source: Arc::new(source) };
        // A file and no pipe: the master keeps it open for as long as it lives, and so does the ssh of a jump host.
        let heard = fs::OpenOptions::new().append(true).open(&log).map_err(failed)?;
        let socket = control.socket(number);
        let mut command = ssh(target, &conf);
        command.args(["-M", "-N", "-f", "-o", &format!("ControlPersist={IDLE_S}s"), "-S"]).arg(&socket);
        command.arg("--").arg(&target.address).stderr(heard);
        let longest =
            target.connect_timeout * (2 + u32::try_from(target.jump.len()).unwrap_or(0)) + Duration::from_secs(10);
        let ended = match command.spawn() {
            Err(source) => return Err(FleetError::NoSsh { source: Arc::new(source) }),
            // It goes into the background once it is let in.
            Ok(mut child) => tokio::time::timeout(longest, child.wait()).await,
        };
        let said = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        match ended {
            Ok(Ok(status)) if status.success() => {
                let session = openssh::Session::resume_mux(socket.clone().into_boxed_path(), None);
                let pinned = match before {
                    None => Vec::new(),
                    // By the file and not by what ssh says, since a jump host's key is pinned by another ssh, which nobody hears.
                    Some(before) => {
                        let now = diagnose::known(target, &conf).await;
                        now.into_iter().filter(|key| !before.contains(key)).collect()
                    }
                };
                Ok(Self { session, socket, pinned })
            }
            Ok(_) => Err(diagnose::explain(host, target, &conf, &said).await),
            Err(_) => Err(FleetError::TimedOut {
                host: host.clone(),
                address: target.address.clone(),
                seconds: longest.as_secs(),
            }),
        }
    }

    /// Whether the other end still answers.
    pub(super) async fn alive(&self) -> bool {
        matches!(tokio::time::timeout(Duration::from_secs(5), self.session.check()).await, Ok(Ok(())))
    }

    /// Ends the master.
    pub(super) async fn close(self) {
        control::end(&self.socket).await;
    }

    /// Starts one of the bootstrap's lines.
    pub(super) async fn start(self: &Arc<Self>, host: &HostName, line: &str) -> Result<Pipes, FleetError> {
        let failed = |error: openssh::Error| FleetError::NotStarted { host: host.clone(), cause: chain(&error) };
        let mut child = openssh::Session::to_raw_command(Held(Arc::clone(self)), line)
            .stdin(openssh::Stdio::piped())
            .stdout(openssh::Stdio::piped())
            .stderr(openssh::Stdio::piped())
            .spawn()
            .await
            .map_err(failed)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin().take(), child.stdout().take(), child.stderr().take())
        else {
            return Err(FleetError::NotStarted { host: host.clone(), cause: "ssh gave no pipes".to_owned() });
        };
        Ok(Pipes {
            stdin: Box::pin(stdin),
            stdout: Box::pin(stdout),
            stderr: Stderr::follow(stderr),
            end: End::Ssh(Box::new(child)),
        })
    }
}

/// A connection that something is done on, and that stays open for as long as this lives.
#[derive(Clone)]
pub(super) struct Held(Arc<Connection>);

impl std::ops::Deref for Held {
    type Target = openssh::Session;

    fn deref(&self) -> &openssh::Session {
        &self.0.session
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {}", more.trim());
        }
        source = error.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> SshTarget {
        SshTarget {
            address: "h".to_owned(),
            user: None,
            port: None,
            jump: Vec::new(),
            keys: vec!["~/.ssh/one".to_owned(), "/k/two".to_owned()],
            config: None,
            connect_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_rules_stand_before_the_users_own_configuration() {
        let text = configuration(&target(), HostKeys::Known).expect("text");
        insta::assert_snapshot!(text, @r#"
        BatchMode yes
        ClearAllForwardings yes
        ForwardAgent no
        ForwardX11 no
        PermitLocalCommand no
        RemoteCommand none
        RequestTTY no
        UpdateHostKeys no
        LogLevel INFO
        StrictHostKeyChecking yes
        ConnectTimeout 1
        ServerAliveInterval 5
        ServerAliveCountMax 3
        IdentitiesOnly yes
        IdentityFile "~/.ssh/one"
        IdentityFile "/k/two"
        Include ~/.ssh/config
        Include /etc/ssh/ssh_config
        "#);
        let text = configuration(&target(), HostKeys::AcceptNew).expect("text");
        assert!(text.contains("\nStrictHostKeyChecking accept-new\n"));
    }
}
