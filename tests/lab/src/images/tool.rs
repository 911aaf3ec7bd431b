//! Programs of Go modules that `tests/tools` pins, built once. The Go command is the one on the path, or the one that `JIJI_LAB_GO` names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    cache::{Cache, checkout},
    sha256_hex,
};
use crate::{
    LabError,
    command::{command, run},
};

/// The module of a tool.
fn module(tool: &str) -> PathBuf {
    checkout().join("tests/tools").join(tool)
}

/// What tells a tool's pins from others.
pub(super) fn key(tool: &str) -> Result<String, LabError> {
    let mut pins = Vec::new();
    for file in ["go.mod", "go.sum"] {
        let path = module(tool).join(file);
        pins.extend(fs::read(&path).map_err(LabError::file("read", &path))?);
    }
    Ok(sha256_hex(&pins)[..16].to_owned())
}

/// The directory in the cache with these programs of a tool, built if they are not there.
pub(super) fn programs(cache: &Cache, tool: &str, packages: &[&str]) -> Result<PathBuf, LabError> {
    cache.directory(&format!("{tool}-{}", key(tool)?), |dir| compile(&module(tool), packages, dir))
}

fn compile(module: &Path, packages: &[&str], dir: &Path) -> Result<(), LabError> {
    // Go 1.25.5 or newer; one that is older but not ancient fetches it by itself.
    let go = std::env::var("JIJI_LAB_GO").unwrap_or_else(|_| "go".to_owned());
    run(command(&go, ["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"])
        // With a slash it is a directory, into which each goes under its name.
        .arg(dir.join(""))
        .args(packages)
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly"))
    .map(drop)
}
