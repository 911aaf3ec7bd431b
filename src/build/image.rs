//! An image's configuration and manifest: canonical JSON, the same bytes for the same image.

use std::collections::BTreeMap;

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::image::{CONFIG, Descriptor, Image, LAYER_GZIP, LAYER_ZSTD, MANIFEST, Platform};
use jiji_model::name::RepositoryName;
use jiji_store::{Layer, Store, StoreError};
use serde_json::{Map, Value, json};

/// The longest configuration that is read, in bytes.
const CONFIG_LIMIT: u64 = 8 << 20;

/// `PATH` of an image that begins from nothing: what Docker gives it.
pub(in crate::build) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a base image cannot be built upon.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The store could not give its configuration.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its configuration is not one.
    #[error("read the configuration of the base image: {reason}")]
    Config {
        /// What is wrong with it.
        reason: String,
    },
    /// A layer that its manifest only points to.
    #[error("build from this image: its layer has the media type `{media_type}`")]
    Layer {
        /// The media type.
        media_type: String,
    },
}

/// An image while it is put together.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The platform it is for.
    pub platform: Platform,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// How many of them, from the lowest on, are those of an image that is taken as it is.
    taken: usize,
    /// `config` of the configuration: what a container is started with (image-spec, config.md).
    pub config: Map<String, Value>,
    /// `variant` of the base's platform, which readers compare.
    variant: Option<Value>,
    author: Option<Value>,
    history: Vec<Value>,
}

impl Draft {
    /// An image that begins from nothing.
    pub fn scratch(platform: Platform) -> Self {
        let env = json!([format!("PATH={DEFAULT_PATH}")]);
        let config = Map::from_iter([("Env".to_owned(), env), ("WorkingDir".to_owned(), json!("/"))]);
        Self { platform, layers: Vec::new(), taken: 0, config, variant: None, author: None, history: Vec::new() }
    }

    /// An image that begins from another, whose configuration is in the store.
    ///
    /// # Errors
    /// When it cannot be built upon.
    pub fn from_base(image: &Image, store: &Store) -> Result<Self, BaseError> {
        let bytes = store.read(&image.config.digest, CONFIG_LIMIT)?;
        let wrong = |reason: &str| BaseError::Config { reason: reason.to_owned() };
        let root: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(&error.to_string()))?;
        let config = match root.get("config") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(config)) => config.clone(),
            Some(_) => return Err(wrong("`config` is not an object")),
        };
        let diff_ids: Vec<Digest> = root
            .pointer("/rootfs/diff_ids")
            .and_then(|list| serde_json::from_value(list.clone()).ok())
            .ok_or_else(|| wrong("`rootfs.diff_ids` is not a list of digests"))?;
        if diff_ids.len() != image.layers.len() {
            return Err(wrong("it has not as many layers as its manifest"));
        }
        let layers = diff_ids.into_iter().zip(&image.layers);
        let layers = layers
            .map(|(diff_id, blob)| Ok(Layer { diff_id, blob: oci(blob)? }))
            .collect::<Result<Vec<_>, BaseError>>()?;
        let mut history = root.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
        let told = history.iter().filter(|entry| entry.get("empty_layer") != Some(&Value::Bool(true))).count();
        if told != layers.len() {
            // A history that does not fit the layers makes some readers refuse the image.
            history =
                layers.iter().map(|layer| json!({"created_by": format!("FROM layer {}", layer.diff_id)})).collect();
        }
        let mut draft = Self {
            platform: image.platform.clone(),
            taken: layers.len(),
            layers,
            config,
            variant: root
                .get("variant")
                .filter(|variant| variant.as_str().is_some_and(|text| !text.is_empty()))
                .cloned(),
            author: root.get("author").filter(|author| author.as_str().is_some_and(|text| !text.is_empty())).cloned(),
            history,
        };
        // What the classic builder left there is about the container that it built in.
        for key in [
            "Image",
            "Hostname",
            "Domainname",
            "AttachStdin",
            "AttachStdout",
            "AttachStderr",
            "Tty",
            "OpenStdin",
            "StdinOnce",
        ] {
            draft.config.remove(key);
        }
        Ok(draft)
    }

    /// The layers that were made here, lowest first.
    pub fn own_mut(&mut self) -> &mut [Layer] {
        &mut self.layers[self.taken..]
    }

    /// Sets who made the image.
    pub fn set_author(&mut self, author: &str) {
        self.author = Some(json!(author));
    }

    /// Notes an instruction in the history, and takes the layers that it gave. Each has an entry of its own there.
    pub fn record(&mut self, instruction: &str, layers: Vec<Layer>) {
        if layers.is_empty() {
            self.history.push(json!({"created_by": instruction, "empty_layer": true}));
        }
        self.history.extend(layers.iter().map(|_| json!({"created_by": instruction})));
        self.layers.extend(layers);
    }

    /// The `Env` list as names and values, in order.
    pub fn env(&self) -> Vec<(String, String)> {
        let list = self.config.get("Env").and_then(Value::as_array).into_iter().flatten();
        let pair = |entry: &Value| {
            let (name, value) = entry.as_str()?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        list.filter_map(pair).collect()
    }

    /// Sets a variable, in its place where it was there.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let mut env = self.env();
        match env.iter_mut().find(|(there, _)| there == name) {
            Some((_, there)) => value.clone_into(there),
            None => env.push((name.to_owned(), value.to_owned())),
        }
        let list: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.config.insert("Env".to_owned(), json!(list));
    }

    /// Sets one key of a map such as `Labels`.
    pub fn set_in(&mut self, map: &str, key: &str, value: Value) {
        let entry = self.config.entry(map).or_insert_with(|| json!({}));
        if !entry.is_object() {
            *entry = json!({});
        }
        if let Some(object) = entry.as_object_mut() {
            object.insert(key.to_owned(), value);
        }
    }

    /// Adds a trigger for the images that begin from this one.
    pub fn add_trigger(&mut self, text: &str) {
        let mut triggers = self.texts("OnBuild").unwrap_or_default();
        triggers.push(text.to_owned());
        self.config.insert("OnBuild".to_owned(), json!(triggers));
    }

    /// Takes the triggers away: they are for this image's successors, and not for theirs.
    pub fn take_triggers(&mut self) -> Vec<String> {
        let triggers = self.texts("OnBuild").unwrap_or_default();
        self.config.remove("OnBuild");
        triggers
    }

    /// A text of the configuration; empty where there is none.
    pub fn text(&self, key: &str) -> &str {
        self.config.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A list of texts of the configuration, or none.
    pub fn texts(&self, key: &str) -> Option<Vec<String>> {
        serde_json::from_value(self.config.get(key)?.clone()).ok()
    }

    /// Writes configuration and manifest into the store.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn finish(self, repository: &RepositoryName, epoch: u64, store: &Store) -> Result<Image, StoreError> {
        let created = created(epoch);
        let mut history = self.history;
        for entry in &mut history {
            if let Some(entry) = entry.as_object_mut() {
                entry.entry("created").or_insert_with(|| json!(created));
            }
        }
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| layer.diff_id).collect();
        let mut config = BTreeMap::from([
            ("architecture", json!(self.platform.architecture)),
            ("os", json!(self.platform.os)),
            ("created", json!(created)),
            ("config", Value::Object(self.config)),
            ("rootfs", json!({"type": "layers", "diff_ids": diff_ids})),
            ("history", Value::Array(history)),
        ]);
        config.extend(self.variant.map(|variant| ("variant", variant)));
        config.extend(self.author.map(|author| ("author", author)));
        let config = put(store, CONFIG, &canonical_json(&config))?;
        let layers: Vec<Descriptor> = self.layers.into_iter().map(|layer| layer.blob).collect();
        let describe =
            |blob: &Descriptor| json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(&config),
            "layers": layers.iter().map(describe).collect::<Vec<_>>(),
        });
        let manifest = put(store, MANIFEST, &canonical_json(&manifest))?;
        Ok(Image { repository: repository.to_string(), platform: self.platform, manifest, config, layers })
    }
}

fn put(store: &Store, media_type: &str, bytes: &[u8]) -> Result<Descriptor, StoreError> {
    let digest = store.put(bytes)?;
    Ok(Descriptor { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 })
}

/// The epoch as image-spec wants a time (RFC 3339).
fn created(epoch: u64) -> String {
    let seconds = i64::try_from(epoch).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// A layer's descriptor with the OCI name of its media type: an OCI manifest does not mix in Docker's names, and the bytes are the
/// same.
fn oci(blob: &Descriptor) -> Result<Descriptor, BaseError> {
    let media_type = match blob.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => LAYER_ZSTD,
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        known if known.starts_with("application/vnd.oci.image.layer.v1.tar") => known,
        other => return Err(BaseError::Layer { media_type: other.to_owned() }),
    };
    Ok(Descriptor { media_type: media_type.to_owned(), ..blob.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> RepositoryName {
        RepositoryName::new("shop/web").expect("a repository")
    }

    #[test]
    fn configuration_and_manifest_are_canonical_and_do_not_change() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let mut draft = Draft::scratch(Platform::linux_amd64());
        draft.set_env("B", "2");
        draft.set_env("A", "1");
        draft.set_env("B", "3");
        draft.set_in("Labels", "z", json!("1"));
        draft.set_in("Labels", "a", json!("<>"));
        draft.record("ENV B=2 A=1", Vec::new());
        let image = draft.finish(&repository(), 315_532_800, &store).expect("finished");
        let text = |digest| String::from_utf8(store.read(digest, 1 << 20).expect("stored")).expect("text");
        assert_eq!(
            text(&image.config.digest),
            concat!(
                r#"{"architecture":"amd64","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","#,
                r#""B=3","A=1"],"Labels":{"a":"<>","z":"1"},"WorkingDir":"/"},"created":"1980-01-01T00:00:00Z","#,
                r#""history":[{"created":"1980-01-01T00:00:00Z","created_by":"ENV B=2 A=1","empty_layer":true}],"#,
                r#""os":"linux","rootfs":{"diff_ids":[],"type":"layers"}}"#
            )
        );
        assert_eq!(
            text(&image.manifest.digest),
            format!(
                r#"{{"config":{{"digest":"{}","mediaType":"{CONFIG}","size":{}}},"layers":[],"mediaType":"{MANIFEST}","schemaVersion":2}}"#,
                image.config.digest, image.config.size
            )
        );
    }

    #[test]
    fn a_base_keeps_its_history_and_loses_what_is_about_a_build_container() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let blob = |media_type: &str, bytes: &[u8]| put(&store, media_type, bytes).expect("stored");
        let layer = blob("application/vnd.docker.image.rootfs.diff.tar.gzip", b"layer");
        let image = |config: Value| Image {
            repository: repository().to_string(),
            platform: Platform::linux_amd64(),
            manifest: blob(MANIFEST, b"{}"),
            config: blob(CONFIG, &canonical_json(&config)),
            layers: vec![layer.clone()],
        };
        let diff_id = Digest::of(b"tar");
        let base = image(json!({
            "config": {"Env": ["A=1"], "Hostname": "abc", "Image": "x", "Cmd": ["sh"]},
            "container": "abc", "docker_version": "1",
            "history": [{"created": "2020-01-01T00:00:00Z", "created_by": "ADD"}],
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }));
        let draft = Draft::from_base(&base, &store).expect("a base");
        assert_eq!(draft.env(), [("A".to_owned(), "1".to_owned())]);
        assert_eq!(draft.layers[0].blob.media_type, LAYER_GZIP);
        assert_eq!(draft.config.keys().collect::<Vec<_>>(), ["Cmd", "Env"]);
        let built = draft.finish(&repository(), 0, &store).expect("finished");
        let config: Value =
            serde_json::from_slice(&store.read(&built.config.digest, 1 << 20).expect("stored")).expect("JSON");
        assert_eq!(config["history"][0]["created"], "2020-01-01T00:00:00Z");
        assert_eq!(config["created"], "1970-01-01T00:00:00Z");
        assert!(config.get("container").is_none() && config.get("docker_version").is_none());

        let triggers = image(json!({"config": {"OnBuild": ["RUN x"]}, "rootfs": {"diff_ids": [diff_id]}}));
        let mut draft = Draft::from_base(&triggers, &store).expect("a base");
        assert_eq!(draft.take_triggers(), ["RUN x"]);
        assert!(draft.config.is_empty(), "they are not for the successors' successors");
        let short = image(json!({"rootfs": {"diff_ids": []}}));
        assert!(matches!(Draft::from_base(&short, &store), Err(BaseError::Config { .. })));
    }
}
