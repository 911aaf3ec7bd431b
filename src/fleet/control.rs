//! The directory of ssh's control sockets: one for each process, private to this user, swept when its process is gone.
//!
//! A control socket is a way into a server for whoever can reach it, and a master connection that a killed process left behind is one
//! that nobody closes. So the directory is refused where others may enter it, and the next run closes what dead ones left; until then
//! a master ends by itself, a while after its last session (`super::ssh`).

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

use super::error::FleetError;

/// The socket of the master with this number.
const MASTER: &str = "master-";

/// Bytes that the directory of control sockets may have in its path: a socket's name has 108 (unix(7)), and ssh binds to one with a dot
/// and 16 random letters at its end before it renames it.
const LONGEST: usize = 107 - "/master-1048576.0123456789abcdef".len() - "/4194304-18446744073-9".len();

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

    /// The control socket of the connection with this number.
    pub(super) fn socket(&self, number: usize) -> PathBuf {
        self.path.join(format!("{MASTER}{number}"))
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
        for socket in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            if socket.file_name().to_str().is_some_and(|name| name.starts_with(MASTER)) {
                end(&socket.path()).await;
            }
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Asks the master behind a socket to end, sessions and all. One that is gone already is as good.
pub(super) async fn end(socket: &Path) {
    let mut command = Command::new("ssh");
    // No configuration: there is nothing to connect to, and a destination is needed for the form alone.
    command.args(["-F", "none", "-O", "exit", "-S"]).arg(socket).args(["--", "master"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_secs(5), async { command.status().await }).await;
    tracing::debug!(?socket, ?ended, "end a master");
}

#[cfg(test)]
mod tests {
    use super::*;

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
