//! What package managers fetch in the projects: real wheels, npm's own archives and Debian packages, brought once by the machine's own clients
//! into the laboratory's cache, and laid out as their registries do.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use jiji_lab::command::{command, run};
use jiji_lab::{LabError, images};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Project;
use super::world::INDEX;
use crate::Outcome;

/// Whose packages a project wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packages {
    /// `requirements.txt`, with hashes.
    Pip,
    /// `package-lock.json`.
    Npm,
    /// These Debian packages and what they need.
    Apt(&'static [&'static str]),
}

impl Packages {
    /// The directory below the index in which they are served.
    fn place(self) -> &'static str {
        match self {
            Self::Pip => "simple",
            Self::Npm => "npm",
            Self::Apt(_) => "apt",
        }
    }

    /// The file that names them, and its content.
    fn list(self, project: &Project) -> Outcome<(PathBuf, Vec<u8>)> {
        let path = match self {
            Self::Pip => project.source().join("requirements.txt"),
            Self::Npm => project.source().join("package-lock.json"),
            Self::Apt(names) => return Ok((PathBuf::new(), names.join(" ").into_bytes())),
        };
        let content = std::fs::read(&path).map_err(|error| format!("read `{}`: {error}", path.display()))?;
        Ok((path, content))
    }

    /// The directory in the cache that has them.
    fn brought(self, project: &Project) -> Outcome<PathBuf> {
        let (path, list) = self.list(project)?;
        // Asked before the cache is locked, which it locks itself.
        let node = (self == Self::Npm).then(images::node).transpose()?;
        let mut key = String::new();
        for byte in &Sha256::digest(&list)[..8] {
            write!(key, "{byte:02x}")?;
        }
        let name = format!("packages-{}-{key}", self.place());
        Ok(images::kept(&name, |dir| {
            match (self, node) {
                (Self::Pip, _) => pip(&path, dir),
                (Self::Npm, Some(node)) => npm(&list, &node, dir),
                (Self::Npm, None) => Ok(()),
                (Self::Apt(names), _) => apt(names, dir),
            }
            .map_err(|error| LabError::Spec { reason: format!("bring packages of `{}`: {error}", project.name) })
        })?)
    }
}

/// Brings what these projects fetch into the cache: where it is, and below which directory of the index it is to be served.
pub fn gather(wanted: &[&'static Project]) -> Outcome<Vec<(&'static str, PathBuf)>> {
    let mut places: Vec<(&'static str, PathBuf)> = Vec::new();
    for project in wanted {
        if let Some(packages) =
            project.packages.filter(|packages| places.iter().all(|(place, _)| *place != packages.place()))
        {
            places.push((packages.place(), packages.brought(project)?));
        }
    }
    Ok(places)
}

/// `simple/NAME/FILE.whl`; the directory's listing is its index.
fn pip(requirements: &Path, dir: &Path) -> Outcome {
    let all = dir.join("all");
    run(command("python3", ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--require-hashes", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11"])
        .args(["--platform", "manylinux2014_x86_64", "--requirement"])
        .arg(requirements)
        .arg("--dest")
        .arg(&all)
        .env("PIP_ROOT_USER_ACTION", "ignore"))?;
    for entry in std::fs::read_dir(&all)? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        let name = file.split('-').next().unwrap_or_default().to_lowercase().replace('_', "-");
        let place = dir.join(name);
        std::fs::create_dir_all(&place)?;
        std::fs::rename(entry.path(), place.join(file))?;
    }
    Ok(std::fs::remove_dir(&all)?)
}

/// `npm/NAME/` says what versions there are, `npm/-/FILE.tgz` are their archives. Only what this platform installs.
fn npm(lock: &[u8], node: &Path, dir: &Path) -> Outcome {
    let lock: Value = serde_json::from_slice(lock)?;
    let packages = lock["packages"].as_object().ok_or("a lock without packages")?;
    let mut names = Vec::new();
    for (path, about) in packages {
        let Some(name) = path.rsplit_once("node_modules/").map(|(_, name)| name) else { continue };
        let is_for =
            |key: &str, value: &str| about[key].as_array().is_none_or(|all| all.iter().any(|one| one == value));
        if is_for("os", "linux") && is_for("cpu", "x64") {
            names.push(format!("{name}@{}", about["version"].as_str().ok_or("a package without a version")?));
        }
    }
    let archives = dir.join("-");
    std::fs::create_dir(&archives)?;
    let program = node.join("bin/node");
    run(command("chmod", ["u+x"]).arg(&program))?;
    let said = run(command(&program.to_string_lossy(), [node.join("lib/node_modules/npm/bin/npm-cli.js")])
        .args(["pack", "--json", "--pack-destination"])
        .arg(&archives)
        .args(&names))?;
    let packed: Vec<Value> = serde_json::from_slice(&said)?;
    for package in packed {
        let name = package["name"].as_str().ok_or("a package without a name")?;
        let version = package["version"].as_str().ok_or("a package without a version")?;
        let file = package["filename"].as_str().ok_or("a package without a file")?.replace('@', "").replace('/', "-");
        let dist = json!({
            "tarball": format!("http://{INDEX}/npm/-/{file}"), "integrity": package["integrity"], "shasum": package["shasum"]
        });
        let mut versions = serde_json::Map::new();
        versions.insert(version.to_owned(), json!({"name": name, "version": version, "dist": dist}));
        let about = json!({"name": name, "dist-tags": {"latest": version}, "versions": versions});
        let place = dir.join(name);
        std::fs::create_dir_all(&place)?;
        std::fs::write(place.join("index.html"), about.to_string())?;
    }
    Ok(())
}

/// A repository without directories: the packages, their list and its hash.
fn apt(names: &[&str], dir: &Path) -> Outcome {
    std::fs::create_dir(dir.join("partial"))?;
    let archives = format!("Dir::Cache::archives={}/", dir.display());
    // As if nothing were installed, so that all that they need comes along.
    run(command("apt-get", ["install", "--download-only", "--yes", "--quiet", "--no-install-recommends"])
        .args(["-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=root", "-o", &archives])
        .args(names))?;
    for name in ["partial", "lock"] {
        run(command("rm", ["-rf"]).arg(dir.join(name)))?;
    }
    let list = run(command("apt-ftparchive", ["packages", "."]).current_dir(dir))?;
    std::fs::write(dir.join("Packages"), list)?;
    let release = run(command("apt-ftparchive", ["release", "."]).current_dir(dir))?;
    Ok(std::fs::write(dir.join("Release"), release)?)
}
