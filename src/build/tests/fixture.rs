//! A project in a directory, a base image in the store, and an executor that does as its commands say.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::event::Record;
use jiji_model::image::{CONFIG, Compression, Descriptor, Image, MANIFEST, Platform};
use jiji_model::name::{RepositoryName, ServiceName};
use jiji_model::project::{Frontend, NamedContext};
use jiji_model::reference::Reference;
use jiji_model::secret::Secret;
use jiji_store::{Layer, Store};
use serde_json::{Value, json};

use super::super::execute::{Canceller, ExecuteError, Executor, Exit, Ran, RunStep, Stream};
use super::super::layer::{Entry, Form, LayerWriter, Node, TarPath};
use super::super::rootfs::Layers;
use super::super::{Answer, Asking, BuildError, BuildRequest, Builder, Built, DEFAULT_EPOCH, Sources};
use crate::lockfile::{BuildSection, Target};
use crate::registry::{Depth, RegistryError};

/// A file of xz with another window, which the first block's header says: bits 0 of its exponent and the rest (xz-file-format 1.2.0, 5.3.1).
pub(in crate::build) fn with_window(mut xz: Vec<u8>, property: u8) -> Vec<u8> {
    let header = 12..12 + usize::from(xz[12]) * 4;
    assert_eq!(xz[header.start + 2..header.start + 4], [0x21, 1], "LZMA2 with one byte of properties");
    xz[header.start + 4] = property;
    let mut sum = flate2::Crc::new();
    sum.update(&xz[header.clone()]);
    xz[header.end..header.end + 4].copy_from_slice(&sum.sum().to_le_bytes());
    xz
}

/// The manifest of the one image that the registry has. Its own digest is not the point here.
pub(super) static IMAGE: LazyLock<Digest> = LazyLock::new(|| Digest::of("the base image"));

pub(super) struct Fixture {
    dir: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) lock: Mutex<BuildSection>,
    args: Mutex<BTreeMap<String, String>>,
    secrets: Mutex<BTreeMap<String, Secret>>,
    ssh: Mutex<BTreeMap<String, std::path::PathBuf>>,
    contexts: Mutex<BTreeMap<String, NamedContext>>,
    stage: Mutex<Option<String>>,
    recipe: AtomicBool,
    locked: AtomicBool,
    offline: AtomicBool,
    compression: Mutex<Compression>,
    base: Mutex<Value>,
    more: Mutex<Option<String>>,
    ran: Mutex<Vec<RunStep>>,
    asked: Mutex<Vec<String>>,
    events: Mutex<Vec<Record>>,
    said: Mutex<String>,
}

impl Fixture {
    pub(super) fn new(dockerfile: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        fs::create_dir(dir.path().join("context")).expect("created");
        let fixture = Self {
            dir,
            store,
            lock: Mutex::default(),
            args: Mutex::default(),
            secrets: Mutex::default(),
            ssh: Mutex::default(),
            contexts: Mutex::default(),
            stage: Mutex::default(),
            recipe: AtomicBool::new(false),
            locked: AtomicBool::new(false),
            offline: AtomicBool::new(false),
            compression: Mutex::default(),
            base: Mutex::new(json!({"Env": ["BASE=yes"], "Cmd": ["base"]})),
            more: Mutex::default(),
            ran: Mutex::default(),
            asked: Mutex::default(),
            events: Mutex::default(),
            said: Mutex::default(),
        };
        fixture.dockerfile(dockerfile);
        for (name, text) in files {
            fixture.write(name, text);
        }
        fixture
    }

    /// Where the context and the Dockerfile lie.
    pub(super) fn place(&self) -> &Path {
        self.dir.path()
    }

    /// The names in all layers.
    pub(super) fn names(&self, built: &Built) -> Vec<String> {
        (0..built.image.layers.len()).flat_map(|layer| self.layer(built, layer)).collect()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("context").join(name)
    }

    /// The Dockerfile lies beside the context, so that `COPY .` does not take it.
    pub(super) fn dockerfile(&self, text: &str) {
        fs::write(self.dir.path().join("Dockerfile"), text).expect("written");
    }

    /// The same as a recipe, which is built from then on.
    pub(super) fn recipe(&self, text: &str) {
        fs::write(self.dir.path().join("image.toml"), text).expect("written");
        self.recipe.store(true, Ordering::Relaxed);
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        self.write_bytes(name, text.as_bytes());
    }

    pub(super) fn write_bytes(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("created");
        fs::write(path, bytes).expect("written");
    }

    pub(super) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("removed");
    }

    /// Adds an empty file to the one image that the registry has.
    pub(super) fn layer_of_base(&self, name: &str) {
        *locked(&self.more) = Some(name.to_owned());
    }

    pub(super) fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).expect("a mode");
    }

    pub(super) fn touch(&self, name: &str, seconds: u64) {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let file = fs::File::options().write(true).open(self.path(name)).expect("opened");
        file.set_modified(time).expect("touched");
    }

    pub(super) fn arg(&self, name: &str, value: &str) {
        locked(&self.args).insert(name.to_owned(), value.to_owned());
    }

    pub(super) fn secret(&self, name: &str, value: &str) {
        locked(&self.secrets).insert(name.to_owned(), Secret::new(value));
    }

    /// Says what a name stands for; a directory is one beside the context.
    pub(super) fn context(&self, name: &str, context: &str) {
        let context: NamedContext = context.parse().expect("a context");
        locked(&self.contexts).insert(name.to_owned(), context.below(self.place()));
    }

    pub(super) fn agent(&self, id: &str, socket: &Path) {
        locked(&self.ssh).insert(id.to_owned(), socket.to_owned());
    }

    pub(super) fn stage(&self, name: &str) {
        *locked(&self.stage) = Some(name.to_owned());
    }

    /// Sets what the configuration of the one image that the registry has says of containers.
    pub(super) fn base(&self, config: Value) {
        *locked(&self.base) = config;
    }

    /// Whether steps may not use the network.
    pub(super) fn offline(&self, offline: bool) {
        self.offline.store(offline, Ordering::Relaxed);
    }

    pub(super) fn locked(&self, locked: bool) {
        self.locked.store(locked, Ordering::Relaxed);
    }

    pub(super) fn compression(&self, compression: Compression) {
        *locked(&self.compression) = compression;
    }

    pub(super) fn target(&self) -> Target {
        Target {
            service: ServiceName::new("web").expect("a service"),
            environment: None,
            platform: Platform::linux_amd64(),
        }
    }

    pub(super) fn build(&self) -> Result<Built, BuildError> {
        let (frontend, file) = match self.recipe.load(Ordering::Relaxed) {
            true => (Frontend::Recipe, "image.toml"),
            false => (Frontend::Dockerfile, "Dockerfile"),
        };
        let request = BuildRequest {
            target: self.target(),
            repository: RepositoryName::new("shop/web").expect("a repository"),
            context: self.dir.path().join("context"),
            file: self.dir.path().join(file),
            frontend,
            file_name: file.to_owned(),
            args: locked(&self.args).clone(),
            secrets: locked(&self.secrets).clone(),
            ssh: locked(&self.ssh).clone(),
            contexts: locked(&self.contexts).clone(),
            services: BTreeMap::new(),
            stage: locked(&self.stage).clone(),
            platform: Platform::linux_amd64(),
            epoch: DEFAULT_EPOCH,
            compression: *locked(&self.compression),
            locked: self.locked.load(Ordering::Relaxed),
            renew: false,
            explain: true,
            threads: 2,
        };
        let sink = Watching(&self.events);
        let builder = Builder { store: &self.store, sources: self, executor: self, events: &sink };
        builder.build(&request, &mut locked(&self.lock))
    }

    pub(super) fn built(&self) -> Built {
        self.build().unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
    }

    pub(super) fn fails(&self) -> BuildError {
        match self.build() {
            Err(error) => error,
            Ok(built) => panic!("built {built:?}"),
        }
    }

    /// The steps that ran since this was asked last.
    pub(super) fn ran(&self) -> Vec<RunStep> {
        std::mem::take(&mut *locked(&self.ran))
    }

    /// What the registry was asked since this was asked last.
    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *locked(&self.asked))
    }

    pub(super) fn events(&self) -> Vec<String> {
        self.events.lock().expect("nobody panicked").iter().map(|record| record.event.clone()).collect()
    }

    /// What was said by events of this name.
    pub(super) fn told(&self, event: &str) -> Vec<String> {
        let events = locked(&self.events);
        events.iter().filter(|record| record.event == event).map(|record| record.text.clone()).collect()
    }

    /// The same since this was asked last.
    pub(super) fn take_told(&self, event: &str) -> Vec<String> {
        let told = self.told(event);
        let events: Vec<Record> = locked(&self.events).drain(..).collect();
        locked(&self.said).push_str(&json!(events).to_string());
        told
    }

    /// All that events had said when they were asked for, as JSON.
    pub(super) fn said(&self) -> String {
        locked(&self.said).clone()
    }

    pub(super) fn config(&self, built: &Built) -> Value {
        let bytes = self.store.read(&built.image.config.digest, 1 << 20).expect("stored");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    fn tar(&self, built: &Built, layer: usize) -> Vec<u8> {
        let mut tar = Vec::new();
        let mut reader = Layers::new(&self.store).open(&built.image.layers[layer]).expect("stored");
        reader.read_to_end(&mut tar).expect("a layer");
        tar
    }

    /// The names in a layer.
    pub(super) fn layer(&self, built: &Built, layer: usize) -> Vec<String> {
        let tar = self.tar(built, layer);
        let mut archive = tar::Archive::new(&tar[..]);
        let entries = archive.entries().expect("a tar");
        entries.map(|entry| String::from_utf8_lossy(&entry.expect("an entry").path_bytes()).into_owned()).collect()
    }

    /// The names in a layer, each with its mode.
    pub(super) fn modes(&self, built: &Built, layer: usize) -> Vec<String> {
        let tar = self.tar(built, layer);
        let mut archive = tar::Archive::new(&tar[..]);
        let line = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let entry = entry.expect("an entry");
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            format!("{name} {:o}", entry.header().mode().expect("a mode"))
        };
        archive.entries().expect("a tar").map(line).collect()
    }

    /// A file of a layer.
    pub(super) fn file(&self, built: &Built, layer: usize, name: &str) -> String {
        let tar = self.tar(built, layer);
        let mut archive = tar::Archive::new(&tar[..]);
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            if &*entry.path_bytes() == name.as_bytes() {
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                return text;
            }
        }
        panic!("no {name}");
    }

    fn layer_of(&self, entries: &[(&str, Entry, &[u8])], compression: Compression) -> Layer {
        let form = Form { epoch: DEFAULT_EPOCH, compression, threads: 1 };
        let mut writer = LayerWriter::new(&self.store, form).expect("begun");
        for (name, entry, content) in entries {
            writer.file(&TarPath::normal(name), entry, None, &mut Cursor::new(content)).expect("written");
        }
        writer.finish().expect("finished")
    }
}

/// What a test keeps of a build, which has several threads.
pub(super) fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Watching<'a>(&'a Mutex<Vec<Record>>);

impl jiji_model::event::Sink for Watching<'_> {
    fn emit(&self, record: Record) {
        self.0.lock().expect("nobody panicked").push(record);
    }
}

impl Executor for Fixture {
    /// Writes the command to `/ran`; `nothing` changes nothing, `fail` and `offline` fail.
    fn run(
        &self,
        step: &RunStep,
        _: &Store,
        _: &Canceller,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Ran, ExecuteError> {
        locked(&self.ran).push(step.clone());
        let command = step.argv.last().map(String::as_str).unwrap_or_default();
        match command {
            "nothing" => return Ok(Ran::Changed(None)),
            "fail" => {
                output(Stream::Out, b"said before it failed");
                return Ok(Ran::Failed(Exit::Code(3)));
            }
            "offline" => {
                output(Stream::Err, b"curl: (6) Could not resolve host: example.com");
                return Ok(Ran::Failed(Exit::Code(3)));
            }
            _ => {}
        }
        let said = command.split('#').next().unwrap_or_default().trim().as_bytes();
        let layer = self.layer_of(&[("ran", Entry::file(0o644, said.len() as u64), said)], step.compression);
        Ok(Ran::Changed(Some(layer)))
    }
}

impl Sources for Fixture {
    fn reachable(&self, what: &dyn Fn() -> String) -> Result<(), RegistryError> {
        match self.offline.load(Ordering::Relaxed) {
            true => Err(RegistryError::Offline { what: what() }),
            false => Ok(()),
        }
    }

    /// A URL has what the context has under its file's name.
    fn fetch(&self, url: &str, store: &Store) -> Result<(Digest, u64), RegistryError> {
        locked(&self.asked).push(format!("fetch {url}"));
        let name = url.rsplit('/').next().unwrap_or_default();
        let Ok(bytes) = fs::read(self.path(name)) else {
            return Err(RegistryError::NotFound { registry: "example.com".to_owned(), what: format!("`{url}`") });
        };
        Ok((store.put(&bytes)?, bytes.len() as u64))
    }

    fn ask(&self, asking: &Asking<'_>, store: &Store) -> Result<Answer, RegistryError> {
        let body = self.fetch(asking.url, store)?;
        Ok(Answer { status: 200, kind: None, location: None, body: Some(body) })
    }

    fn resolve(&self, reference: &Reference, _: &Platform) -> Result<Digest, RegistryError> {
        locked(&self.asked).push(format!("resolve {reference}"));
        if reference.repository.as_str() != "library/base" {
            return Err(RegistryError::NotFound { registry: reference.registry.clone(), what: reference.to_string() });
        }
        Ok(*IMAGE)
    }

    fn pull(
        &self,
        reference: &Reference,
        digest: &Digest,
        platform: &Platform,
        store: &Store,
        _: Depth,
    ) -> Result<Image, RegistryError> {
        locked(&self.asked).push(format!("pull {reference}"));
        assert_eq!(digest, &*IMAGE);
        let link = Entry { node: Node::Symlink(b"usr/bin".to_vec()), ..Entry::directory(0o777) };
        let more = locked(&self.more).clone();
        let mut entries: Vec<(&str, Entry, &[u8])> =
            vec![("bin", link, b""), ("usr", Entry::directory(0o755), b""), ("usr/bin", Entry::directory(0o755), b"")];
        entries.extend(more.iter().map(|name| (name.as_str(), Entry::file(0o644, 0), &b""[..])));
        entries.sort_by_key(|(name, ..)| TarPath::normal(name));
        let layer = self.layer_of(&entries, Compression::Gzip);
        let config = canonical_json(&json!({
            "architecture": "amd64", "os": "linux",
            "config": *locked(&self.base),
            "history": [{"created_by": "base"}],
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        }));
        let blob = |media_type: &str, bytes: &[u8]| {
            let digest = store.put(bytes)?;
            Ok::<_, RegistryError>(Descriptor { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 })
        };
        Ok(Image {
            repository: reference.repository.to_string(),
            platform: platform.clone(),
            manifest: blob(MANIFEST, b"{}")?,
            config: blob(CONFIG, &config)?,
            layers: vec![layer.blob],
        })
    }
}
