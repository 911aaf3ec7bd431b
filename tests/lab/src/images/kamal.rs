//! The real kamal-proxy, built from its Go module, in an image that buildah makes from scratch around the binary.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{cache::Cache, layout, tool};
use crate::{
    LabError,
    command::{command, run},
};

/// The image's name in the registry: the version is the module's.
pub(super) const NAME: &str = "kamal-proxy:v0.9.2";

/// Its name below `tests/tools`.
const TOOL: &str = "kamal-proxy";

/// The program in the module that `tests/tools/kamal-proxy/go.mod` pins.
const PROGRAM: &str = "github.com/basecamp/kamal-proxy/cmd/kamal-proxy";

/// The layout of the image in the cache, built if it is not there, and the digest of its manifest.
pub(super) fn build(cache: &Cache) -> Result<(PathBuf, String), LabError> {
    let key = tool::key(TOOL)?;
    let binary = tool::programs(cache, TOOL, &[PROGRAM])?;
    let layout = cache.directory(&format!("kamal-proxy-image-{key}"), |dir| assemble(cache, &binary, dir))?;
    let digest = layout::digest(&layout)?;
    Ok((layout, digest))
}

fn assemble(cache: &Cache, binary: &Path, dir: &Path) -> Result<(), LabError> {
    // A storage of its own, so that the machine's stays as it is.
    let storage = cache.path("buildah.new");
    let buildah = |args: &[&str]| {
        let mut command = command("buildah", ["--root"]);
        command.arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        command.args(["--storage-driver", "vfs"]).args(args);
        command
    };
    let result = (|| {
        let out = run(&mut buildah(&["from", "scratch"]))?;
        let container = String::from_utf8_lossy(&out).trim().to_owned();
        // Directories that the program needs and a scratch image lacks.
        let tree = storage.join("tree");
        for name in ["tmp", "state", "run", "root"] {
            let path = tree.join(name);
            fs::create_dir_all(&path).map_err(LabError::file("create", &path))?;
        }
        let target = tree.join("kamal-proxy");
        fs::copy(binary.join("kamal-proxy"), &target).map_err(LabError::file("copy", &target))?;
        run(buildah(&["copy", "--quiet", &container]).arg(&tree).arg("/"))?;
        run(&mut buildah(&[
            "config",
            "--env",
            "HOME=/state",
            "--env",
            "XDG_RUNTIME_DIR=/tmp",
            "--env",
            "PATH=/",
            "--port",
            "80",
            "--port",
            "443",
            "--entrypoint",
            "[\"/kamal-proxy\"]",
            "--cmd",
            "run",
            &container,
        ]))?;
        let commit = ["commit", "--quiet", "--rm", "--timestamp", "0", "--format", "oci", &container];
        run(buildah(&commit).arg(format!("oci:{}:latest", dir.display()))).map(drop)
    })();
    drop(fs::remove_dir_all(&storage));
    result
}
