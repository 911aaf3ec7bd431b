//! The client against servers: the project's own, an independent one, and hostile ones.

mod hostile;
mod independent;
mod own;
mod signed;

use std::sync::{Arc, Mutex};

use axum::Router;
use jiji_model::digest::{Digest, canonical_json};
use jiji_model::event::Record;
use jiji_model::image::{CONFIG, Descriptor, Image, LAYER_GZIP, MANIFEST, Platform};
use jiji_model::project::RegistryServer;
use jiji_model::reference::Reference;
use jiji_registry_shim::Registry;
use jiji_store::Store;
use serde_json::json;
use tempfile::TempDir;

use super::{Client, Repository, Setup};

/// A store of its own.
struct Place {
    store: Store,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        Self { store, dir }
    }

    fn has(&self, blob: &Descriptor) -> bool {
        self.store.has(&blob.digest).expect("looked") == Some(blob.size)
    }
}

fn put(store: &Store, media_type: &str, bytes: &[u8]) -> Descriptor {
    let digest = store.put(bytes).expect("stored");
    Descriptor { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 }
}

fn part(part: &Descriptor) -> serde_json::Value {
    json!({"mediaType": part.media_type, "digest": part.digest, "size": part.size})
}

/// An image of these layers, in the store. The registry's side never looks into layers, so they need be no tar.
fn image(store: &Store, layers: &[&[u8]]) -> Image {
    let layers: Vec<_> = layers.iter().map(|bytes| put(store, LAYER_GZIP, bytes)).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = put(store, CONFIG, &canonical_json(&config));
    let layer_parts: Vec<_> = layers.iter().map(part).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": part(&config), "layers": layer_parts});
    Image {
        repository: "shop/web".to_owned(),
        platform: Platform::linux_amd64(),
        manifest: put(store, MANIFEST, &canonical_json(&manifest)),
        config,
        layers,
    }
}

/// Serves a router on loopback for as long as the test's runtime lives, and says where.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let authority = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    authority
}

/// The project's own server over a store of its own.
async fn shim() -> (Place, String) {
    let place = Place::new();
    let registry = Registry::read_write(place.store.clone(), &place.dir.path().join("names")).expect("names");
    let authority = serve(jiji_registry_shim::router(registry)).await;
    (place, authority)
}

fn reference(authority: &str, rest: &str) -> Reference {
    format!("{authority}/{rest}").parse().expect("a reference")
}

fn repository(authority: &str, name: &str) -> Repository {
    Repository {
        server: RegistryServer { authority: authority.to_owned(), plain_http: true },
        name: name.parse().expect("a repository"),
    }
}

/// A client, and the names of the events that it emits.
fn watched(setup: Setup) -> (Client, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let client = Client::new(Setup {
        sink: Arc::new(move |record: Record| sink.lock().expect("a list").push(record.event)),
        ..setup
    });
    (client, seen)
}
