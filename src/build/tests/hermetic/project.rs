//! A project whose base is this machine's busybox, and what its image holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiji::build::execute::Local;
use jiji::build::{Answer, Asking, BuildError, BuildRequest, Builder, Built, DEFAULT_EPOCH, Sources};
use jiji::lockfile::{LockFile, Target};
use jiji::registry::{Depth, RegistryError};
use jiji_model::digest::Digest;
use jiji_model::event::Silent;
use jiji_model::image::{Compression, Image, Platform};
use jiji_model::name::{RepositoryName, ServiceName};
use jiji_model::project::Frontend;
use jiji_model::reference::Reference;
use jiji_model::secret::Secret;
use jiji_store::Store;

use crate::BUSYBOX;

/// No test here has a base image.
pub(crate) struct Nowhere;

impl Sources for Nowhere {
    fn reachable(&self, _: &dyn Fn() -> String) -> Result<(), RegistryError> {
        Ok(())
    }

    fn fetch(&self, url: &str, _: &Store) -> Result<(Digest, u64), RegistryError> {
        Err(RegistryError::NotFound { registry: "nowhere".to_owned(), what: url.to_owned() })
    }

    fn ask(&self, asking: &Asking<'_>, _: &Store) -> Result<Answer, RegistryError> {
        Err(RegistryError::NotFound { registry: "nowhere".to_owned(), what: asking.url.to_owned() })
    }

    fn resolve(&self, reference: &Reference, _: &Platform) -> Result<Digest, RegistryError> {
        Err(RegistryError::NotFound { registry: reference.registry.clone(), what: reference.to_string() })
    }

    fn pull(
        &self,
        reference: &Reference,
        _: &Digest,
        _: &Platform,
        _: &Store,
        _: Depth,
    ) -> Result<Image, RegistryError> {
        Err(RegistryError::NotFound { registry: reference.registry.clone(), what: reference.to_string() })
    }
}

/// The one secret that tests have.
pub(crate) fn secrets() -> BTreeMap<String, Secret> {
    BTreeMap::from([("token".to_owned(), Secret::new("hunter2"))])
}

pub(crate) struct Project {
    pub(crate) root: PathBuf,
    pub(crate) store: Store,
}

pub(crate) fn platform() -> Platform {
    if cfg!(target_arch = "aarch64") { Platform::linux_arm64() } else { Platform::linux_amd64() }
}

impl Project {
    pub(crate) fn build(&self) -> Result<Built, BuildError> {
        self.build_from(&Nowhere)
    }

    pub(crate) fn build_stage(&self, stage: Option<&str>) -> Result<Built, BuildError> {
        self.build_stage_from(stage, &Nowhere)
    }

    pub(crate) fn build_from(&self, sources: &dyn Sources) -> Result<Built, BuildError> {
        self.build_stage_from(None, sources)
    }

    pub(crate) fn build_stage_from(&self, stage: Option<&str>, sources: &dyn Sources) -> Result<Built, BuildError> {
        self.build_as(&BuildRequest { stage: stage.map(str::to_owned), ..self.request() }, sources)
    }

    pub(crate) fn request(&self) -> BuildRequest {
        let target =
            Target { service: ServiceName::new("web").expect("a service"), environment: None, platform: platform() };
        BuildRequest {
            target,
            repository: RepositoryName::new("shop/web").expect("a repository"),
            context: self.root.clone(),
            file: self.root.join("Dockerfile"),
            frontend: Frontend::Dockerfile,
            file_name: "Dockerfile".to_owned(),
            args: Default::default(),
            secrets: secrets(),
            ssh: Default::default(),
            contexts: Default::default(),
            services: Default::default(),
            stage: None,
            platform: platform(),
            epoch: DEFAULT_EPOCH,
            compression: Compression::Gzip,
            locked: false,
            renew: false,
            explain: false,
            threads: 2,
        }
    }

    pub(crate) fn build_as(&self, request: &BuildRequest, sources: &dyn Sources) -> Result<Built, BuildError> {
        let lock_file = LockFile::of_project(&self.root);
        let mut lock = lock_file.read().expect("a lock").build;
        let executor = Local::new(2);
        let builder = Builder { store: &self.store, sources, executor: &executor, events: &Silent };
        let built = builder.build(request, &mut lock)?;
        let changes = jiji::build::Changes::of(&request.target, &lock);
        lock_file.update_build(|section| changes.apply(section)).expect("written");
        Ok(built)
    }

    pub(crate) fn built(&self) -> Built {
        self.build().unwrap_or_else(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            panic!("{error}: {source:?} {:?}", error.evidence())
        })
    }
}

/// A project in `dir` whose base is this machine's busybox.
pub(crate) fn project(dir: &Path, steps: &str) -> Project {
    let root = dir.join("project");
    fs::create_dir_all(root.join("base/bin")).expect("created");
    fs::create_dir_all(root.join("base/etc")).expect("created");
    fs::copy(BUSYBOX, root.join("base/bin/busybox")).expect("copied");
    std::os::unix::fs::symlink("busybox", root.join("base/bin/sh")).expect("linked");
    fs::write(root.join("base/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:7:8:app:/:/bin/sh\n")
        .expect("written");
    fs::write(root.join("base/etc/group"), "root:x:0:\napp:x:8:\n").expect("written");
    let dockerfile = format!("FROM scratch AS base\nCOPY base /\nRUN busybox --install -s /bin\n{steps}");
    fs::write(root.join("Dockerfile"), dockerfile).expect("written");
    Project { root, store: Store::open(dir.join("store")).expect("a store") }
}

/// Puts one of this machine's programs into the base of a project, with the libraries that it loads.
pub(crate) fn with_program(project: &Project, path: &str) {
    with_libraries(project, path);
    put(project, path);
}

/// Puts the libraries that one of this machine's programs or libraries loads into the base of a project.
pub(crate) fn with_libraries(project: &Project, path: &str) {
    let libraries = run("ldd", &[path]);
    libraries.split_whitespace().filter(|word| word.starts_with('/')).for_each(|library| put(project, library));
}

fn put(project: &Project, path: &str) {
    let to = project.root.join("base").join(path.trim_start_matches('/'));
    fs::create_dir_all(to.parent().expect("a parent")).expect("created");
    fs::copy(path, to).unwrap_or_else(|error| panic!("{path}: {error}"));
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    run_in(Path::new("/"), program, args)
}

pub(crate) fn run_in(dir: &Path, program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub(crate) fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("SKIPPED: {program} is not there");
    }
    there
}

/// The text of a file in the last layer that has it.
pub(crate) fn file(project: &Project, built: &Built, name: &str) -> String {
    use std::io::Read as _;
    for layer in built.image.layers.iter().rev() {
        let tar = jiji::build::rootfs::Layers::new(&project.store).open(layer).expect("stored");
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            if entry.path().expect("a path").as_ref() == Path::new(name) {
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                return text;
            }
        }
    }
    panic!("no {name}")
}

/// The same in all layers, lowest first.
pub(crate) fn all_layers(project: &Project, built: &Built) -> Vec<String> {
    let up_to = |count: usize| {
        let mut image = built.image.clone();
        image.layers.truncate(count);
        Built { image, ..built.clone() }
    };
    (1..=built.image.layers.len()).flat_map(|count| last_layer(project, &up_to(count))).collect()
}

/// Names, modes, owners and times in the last layer.
pub(crate) fn last_layer(project: &Project, built: &Built) -> Vec<String> {
    let layer = built.image.layers.last().expect("a layer");
    let (blob, _) = project.store.open_blob(&layer.digest).expect("stored");
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(blob));
    let line = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let entry = entry.expect("an entry");
        let header = entry.header();
        assert_eq!(header.mtime().expect("a time"), DEFAULT_EPOCH);
        let link = entry.link_name_bytes().map(|name| format!(" -> {}", String::from_utf8_lossy(&name)));
        format!(
            "{} {:o} {}{}",
            String::from_utf8_lossy(&entry.path_bytes()),
            header.mode().expect("a mode"),
            header.uid().expect("a user"),
            link.unwrap_or_default()
        )
    };
    archive.entries().expect("a tar").map(line).collect()
}
