//! Finds the `lab` program, which keeps labs, is the first process of hosts, relays and puts on load.
//!
//! A test binary is not that program, so it looks beside itself or is told.

use std::path::{Path, PathBuf};

use crate::LabError;

/// The `lab` program: the one that is named, else `JIJI_LAB_BIN`, else this very program if it is `lab`, else one that lies
/// above the running test.
pub(crate) fn find(named: Option<&Path>) -> Result<PathBuf, LabError> {
    if let Some(path) = named {
        return absolute(path);
    }
    if let Some(path) = std::env::var_os("JIJI_LAB_BIN") {
        return absolute(Path::new(&path));
    }
    let own = std::env::current_exe().map_err(|_| LabError::NoLabProgram)?;
    if own.file_name().is_some_and(|name| name == "lab") {
        return Ok(own);
    }
    own.ancestors().skip(1).take(4).map(|dir| dir.join("lab")).find(|path| path.is_file()).ok_or(LabError::NoLabProgram)
}

fn absolute(path: &Path) -> Result<PathBuf, LabError> {
    std::fs::canonicalize(path).map_err(|_| LabError::NoLabProgram)
}
