//! Up again after a reboot: a unit of systemd, where there is one, that brings up what the host was told last.
//!
//! The unit runs a copy of this program that lies beside the specification, since the one that a session runs is replaced by the next jiji's.
//! Where there is no systemd, nothing is installed, and whoever starts the host runs the same command.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{ARGUMENT_UP, Mesh, MeshError};
use crate::place::{self, Durability, failed};

/// The unit.
const UNIT: &str = "jiji-mesh.service";

/// Where an administrator's units lie (systemd.unit(5)).
const UNITS: &str = "/etc/systemd/system";

/// What is there where systemd runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// The words before [`ARGUMENT_UP`] where this program is `jiji`, which has `jiji-host` inside.
fn words() -> &'static str {
    if std::env::args().nth(1).as_deref() == Some("host") { "host " } else { "" }
}

fn text(program: &Path) -> String {
    // After the firewalls and engines, which build their chains when they start.
    format!(
        "[Unit]\n\
         Description=The mesh between this server and others (jiji)\n\
         Wants=network-online.target\n\
         After=network-online.target nftables.service ufw.service firewalld.service docker.service podman.service\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         # An implementation of userspace goes on by itself.\n\
         KillMode=process\n\
         ExecStart={} {}{ARGUMENT_UP}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        program.display(),
        words()
    )
}

fn has_systemd() -> bool {
    Path::new(SYSTEMD).is_dir()
}

fn path() -> PathBuf {
    Path::new(UNITS).join(UNIT)
}

fn program(mesh: &Mesh<'_>) -> PathBuf {
    mesh.dir().join("jiji-host")
}

/// Whether an interface would come up after a reboot, as far as this program can see to it.
pub(super) fn is_there(mesh: &Mesh<'_>) -> Result<bool, MeshError> {
    let program = program(mesh);
    if !program.is_file() {
        return Ok(false);
    }
    if !has_systemd() {
        return Ok(true);
    }
    let wanted = Path::new(UNITS).join("multi-user.target.wants").join(UNIT);
    let unit = place::read(&path(), 64 * 1024)?;
    Ok(wanted.is_symlink() && unit.is_some_and(|unit| unit == text(&program).as_bytes()))
}

/// Sees to it.
pub(super) async fn install(mesh: &Mesh<'_>) -> Result<(), MeshError> {
    let program = program(mesh);
    let own = std::env::current_exe().map_err(failed("find", Path::new("/proc/self/exe")))?;
    if own != program {
        let bytes = fs::read(&own).map_err(failed("read", &own))?;
        if fs::read(&program).ok().as_ref() != Some(&bytes) {
            place::write(&program, &bytes, 0o700, Durability::Synced)?;
        }
    }
    if !has_systemd() || is_there(mesh)? {
        return Ok(());
    }
    let path = path();
    place::write(&path, text(&program).as_bytes(), 0o644, Durability::Synced)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed("set the mode of", &path))?;
    mesh.must("systemctl", &["daemon-reload"], Vec::new()).await?;
    mesh.must("systemctl", &["enable", UNIT], Vec::new()).await?;
    Ok(())
}

/// No unit is left, unless another interface needs it.
pub(super) async fn remove(mesh: &Mesh<'_>, name: &str) -> Result<(), MeshError> {
    let others = fs::read_dir(mesh.dir()).into_iter().flatten().flatten().filter_map(|entry| {
        let file = entry.file_name();
        file.to_str()?.strip_suffix(".json").filter(|other| *other != name).map(str::to_owned)
    });
    if others.count() > 0 {
        return Ok(());
    }
    if has_systemd() && path().exists() {
        mesh.must("systemctl", &["disable", UNIT], Vec::new()).await?;
        let path = path();
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        mesh.must("systemctl", &["daemon-reload"], Vec::new()).await?;
    }
    let program = program(mesh);
    match fs::remove_file(&program) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &program)(error).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_runs_the_copy_that_lies_beside_the_specification() {
        let text = text(Path::new("/var/lib/jiji/network/jiji-host"));
        assert!(text.contains("\nExecStart=/var/lib/jiji/network/jiji-host mesh-up\n"), "{text}");
        assert!(text.contains("\nWantedBy=multi-user.target\n"), "{text}");
    }
}
