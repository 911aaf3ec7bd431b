//! The way through the user's ssh.
//!
//! ssh itself connects, so that the user's configuration, agent, jump hosts and known hosts count as they do by hand. A master
//! connection per server carries the sessions; it ends with this process, and by itself soon after where this process was killed. No
//! part of it ever asks anything: what would need an answer fails.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiji_model::name::HostName;
use openssh::{ControlPersist, KnownHosts, SessionBuilder, Stdio};

use super::error::FleetError;
use super::pipes::{End, Pipes, Stderr};
use super::target::SshTarget;

/// Seconds that a master lives on without a session, where nobody closes it.
const IDLE_S: NonZeroUsize = NonZeroUsize::new(20).expect("not zero");

/// Seconds between questions to a silent server, and how many may stay without answer.
const ALIVE_S: u64 = 5;
const ALIVE_MOST: u32 = 3;

/// Bytes that the directory of control sockets may have in its path: a socket's name has 108 (unix(7)), of which openssh and ssh
/// append `/.ssh-connectionXXXXXX/master.` and 16 random letters to the directory of one process.
const LONGEST: usize = 107 - "/.ssh-connectionXXXXXX/master.0123456789abcdef".len() - "/4194304-18446744073-9".len();

/// The directory for the control sockets of this process. Removed when dropped.
#[derive(Debug)]
pub(super) struct ControlDirectory {
    path: PathBuf,
}

impl ControlDirectory {
    /// Makes this process's directory below `root`, and sweeps away those of processes that are gone, with their masters.
    pub(super) async fn open(root: &Path) -> Result<Self, FleetError> {
        if root.as_os_str().len() > LONGEST {
            return Err(FleetError::ControlPath { path: root.to_owned(), limit: LONGEST });
        }
        let failed =
            |source: io::Error| FleetError::ControlDirectory { path: root.to_owned(), source: Arc::new(source) };
        make_private(root).map_err(failed)?;
        sweep(root).await;
        let process = std::process::id();
        let start = start_time(process).unwrap_or_default();
        let mut number = 0;
        let path = loop {
            let path = root.join(format!("{process}-{start}-{number}"));
            if !path.exists() {
                break path;
            }
            number += 1;
        };
        make_private(&path).map_err(failed)?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlDirectory {
    fn drop(&mut self) {
        // What stays behind is swept by the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A directory that only this user can enter, since who can reach a control socket can use the connection.
fn make_private(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::getuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may enter it (expected mode 0700)"));
    }
    Ok(())
}

/// When a process started, in clock ticks since boot (proc(5), `stat`, field 22): with its number, a name that is not used again.
fn start_time(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

async fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let mut numbers = name.to_str().unwrap_or_default().split('-').map(str::parse::<u64>);
        let (Some(Ok(process)), Some(Ok(start)), Some(Ok(_))) = (numbers.next(), numbers.next(), numbers.next()) else {
            continue;
        };
        if u32::try_from(process).ok().and_then(start_time) == Some(start) {
            continue;
        }
        for connection in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            let socket = connection.path().join("master");
            if socket.exists() {
                let master = openssh::Session::resume_mux(socket.into_boxed_path(), None);
                let closed = tokio::time::timeout(Duration::from_secs(2), master.close()).await;
                tracing::debug!(connection = ?connection.path(), ok = matches!(closed, Ok(Ok(()))), "close a master that was left behind");
            }
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// The ssh configuration for one server: this program's rules first, since ssh takes the first value that it finds (ssh_config(5)), then
/// the user's. ssh hands the file on to the ssh that it starts for a jump host, so the rules hold there too.
fn configuration(target: &SshTarget) -> Result<String, FleetError> {
    let mut text = String::from("BatchMode yes\nStrictHostKeyChecking yes\n");
    writeln!(text, "ServerAliveInterval {ALIVE_S}\nServerAliveCountMax {ALIVE_MOST}").expect("a String takes all");
    if !target.keys.is_empty() {
        text.push_str("IdentitiesOnly yes\n");
        for key in &target.keys {
            writeln!(text, "IdentityFile \"{key}\"").expect("a String takes all");
        }
    }
    match &target.config {
        // Its content and not an Include: ssh asks of included files that nobody else may write to them, and not of one that is named.
        Some(path) => text.push_str(
            &fs::read_to_string(path)
                .map_err(|source| FleetError::Config { path: path.clone(), source: Arc::new(source) })?,
        ),
        None => text.push_str("Include ~/.ssh/config\nInclude /etc/ssh/ssh_config\n"),
    }
    Ok(text)
}

/// A connection to a server, on which programs can be started.
pub(super) struct Connection {
    session: Arc<openssh::Session>,
    host: HostName,
}

impl Connection {
    pub(super) async fn open(
        host: &HostName,
        target: &SshTarget,
        control: &ControlDirectory,
    ) -> Result<Self, FleetError> {
        let path = control.path().join(format!("{host}.conf"));
        fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                let text = configuration(target).map_err(io::Error::other)?;
                io::Write::write_all(&mut file, text.as_bytes())
            })
            .map_err(|source| match source.downcast::<FleetError>() {
                Ok(error) => error,
                Err(source) => FleetError::ControlDirectory { path: path.clone(), source: Arc::new(source) },
            })?;
        let mut builder = SessionBuilder::default();
        builder
            .known_hosts_check(KnownHosts::Strict)
            .control_directory(control.path())
            .control_persist(ControlPersist::IdleFor(IDLE_S))
            .config_file(&path)
            .connect_timeout(target.connect_timeout)
            .jump_hosts(&target.jump);
        if let Some(user) = &target.user {
            builder.user(user.clone());
        }
        if let Some(port) = target.port {
            builder.port(port);
        }
        // ssh's own timeout is for each address and each jump; this one is for the sum.
        let longest =
            target.connect_timeout * (2 + u32::try_from(target.jump.len()).unwrap_or(0)) + Duration::from_secs(10);
        let unreachable =
            |cause: String| FleetError::Unreachable { host: host.clone(), address: target.address.clone(), cause };
        let session = match tokio::time::timeout(longest, builder.connect_mux(&target.address)).await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return Err(unreachable(chain(&error))),
            Err(_) => {
                return Err(unreachable(format!("no connection within {} seconds", longest.as_secs())));
            }
        };
        Ok(Self { session: Arc::new(session), host: host.clone() })
    }

    /// Starts one of the bootstrap's lines.
    pub(super) async fn start(&self, line: &str) -> Result<Pipes, FleetError> {
        let failed = |error: openssh::Error| FleetError::NotStarted { host: self.host.clone(), cause: chain(&error) };
        let mut child = Arc::clone(&self.session)
            .arc_raw_command(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .await
            .map_err(failed)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin().take(), child.stdout().take(), child.stderr().take())
        else {
            return Err(FleetError::NotStarted { host: self.host.clone(), cause: "ssh gave no pipes".to_owned() });
        };
        Ok(Pipes {
            stdin: Box::pin(stdin),
            stdout: Box::pin(stdout),
            stderr: Stderr::follow(stderr),
            end: End::Ssh { child: Box::new(child), session: Arc::clone(&self.session) },
        })
    }
}

/// An error with its causes on one line. What ssh says is the last of them.
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
        let text = configuration(&target()).expect("text");
        insta::assert_snapshot!(text, @r#"
        BatchMode yes
        StrictHostKeyChecking yes
        ServerAliveInterval 5
        ServerAliveCountMax 3
        IdentitiesOnly yes
        IdentityFile "~/.ssh/one"
        IdentityFile "/k/two"
        Include ~/.ssh/config
        Include /etc/ssh/ssh_config
        "#);
    }

    #[tokio::test]
    async fn directories_of_dead_processes_are_swept_and_those_of_live_ones_stay() {
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        let root = dir.path().join("s");
        make_private(&root).expect("made");
        let dead = root.join("4194304-1-0");
        let reused = root.join(format!("{}-1-0", std::process::id()));
        for path in [&dead, &reused] {
            fs::create_dir(path).expect("made");
        }
        let control = ControlDirectory::open(&root).await.expect("opened");
        let again = ControlDirectory::open(&root).await.expect("opened");
        assert!(!dead.exists() && !reused.exists() && control.path().exists());
        assert_ne!(control.path(), again.path());
    }

    #[tokio::test]
    async fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("set");
        assert!(matches!(ControlDirectory::open(dir.path()).await, Err(FleetError::ControlDirectory { .. })));
        assert!(matches!(
            ControlDirectory::open(Path::new(&format!("/tmp/{}", "a".repeat(60)))).await,
            Err(FleetError::ControlPath { .. })
        ));
    }
}
