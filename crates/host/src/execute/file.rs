//! Files and directories of the host.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use jiji_model::transaction::Outcome;

use super::{ActionError, DONE};
use crate::place::{self, Durability, failed};

/// A directory exists with this mode. Parents that are missing get the usual one.
pub(super) fn directory(path: &Path, mode: u32) -> Result<Outcome, ActionError> {
    let is_so = |metadata: &fs::Metadata| metadata.is_dir() && metadata.permissions().mode() & 0o7777 == mode;
    if fs::metadata(path).is_ok_and(|metadata| is_so(&metadata)) {
        return Ok(Outcome::Unchanged);
    }
    fs::create_dir_all(path).map_err(failed("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", path))?;
    place::sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    Ok(DONE)
}

/// A file has this content and mode, written beside and renamed.
pub(super) fn write(path: &Path, mode: u32, content: &[u8]) -> Result<Outcome, ActionError> {
    let limit = content.len() as u64;
    let same = |metadata: &fs::Metadata| {
        metadata.is_file()
            && metadata.permissions().mode() & 0o7777 == mode
            && metadata.len() == limit
            && matches!(place::read(path, limit), Ok(Some(found)) if found == content)
    };
    // The link itself, not what it leads to: a link in the file's place is replaced.
    if fs::symlink_metadata(path).is_ok_and(|metadata| same(&metadata)) {
        return Ok(Outcome::Unchanged);
    }
    place::write(path, content, mode, Durability::Synced)?;
    Ok(DONE)
}

/// A file or an empty directory is gone.
pub(super) fn remove(path: &Path) -> Result<Outcome, ActionError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Unchanged),
        Err(error) => return Err(failed("look at", path)(error).into()),
    };
    let removed = if metadata.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.map_err(failed("remove", path))?,
    }
    place::sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn path(dir: &tempfile::TempDir, name: &str) -> PathBuf {
        dir.path().join(name)
    }

    #[test]
    fn what_is_so_already_is_unchanged_and_what_is_gone_may_be_removed_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let (folder, file) = (path(&dir, "a/b"), path(&dir, "a/b/c"));
        assert_eq!(directory(&folder, 0o750).expect("made"), DONE);
        assert_eq!(directory(&folder, 0o750).expect("there"), Outcome::Unchanged);
        assert_eq!(directory(&folder, 0o700).expect("changed"), DONE);
        for (mode, content, outcome) in [
            (0o644, "x", DONE),
            (0o644, "x", Outcome::Unchanged),
            (0o600, "x", DONE),
            (0o600, "y", DONE),
            (0o600, "", DONE),
        ] {
            assert_eq!(write(&file, mode, content.as_bytes()).expect("written"), outcome, "{mode:o} {content}");
            assert_eq!(fs::read_to_string(&file).expect("read"), content);
        }
        assert!(remove(&folder).is_err(), "it is not empty");
        assert_eq!(remove(&file).expect("removed"), DONE);
        assert_eq!(remove(&file).expect("gone"), Outcome::Unchanged);
        assert_eq!(remove(&folder).expect("removed"), DONE);
    }

    #[test]
    fn a_link_in_a_files_place_is_replaced_and_what_it_leads_to_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let (link, other) = (path(&dir, "link"), path(&dir, "other"));
        fs::write(&other, "mine").expect("written");
        std::os::unix::fs::symlink(&other, &link).expect("linked");
        write(&link, 0o600, b"mine").expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_file());
        write(&link, 0o600, b"new").expect("written");
        assert_eq!(fs::read_to_string(&other).expect("read"), "mine");
    }
}
