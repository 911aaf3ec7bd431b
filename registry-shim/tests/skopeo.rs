//! The server against a real client, over a real connection.

use std::path::Path;
use std::process::Command;

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::image::{CONFIG, Descriptor, Image, LAYER_GZIP, MANIFEST, Platform};
use jiji_registry_shim::{Registry, serve};
use jiji_store::Store;
use serde_json::json;

fn skopeo(arguments: &[&str]) {
    let out = Command::new("skopeo").args(arguments).output().expect("skopeo is installed");
    assert!(out.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn blob(store: &Store, media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: store.put(bytes).expect("stored"),
        size: bytes.len() as u64,
    }
}

/// An image whose layer is an empty tar in a stored gzip member, large enough not to travel in one piece.
fn image(store: &Store) -> Image {
    let tar = vec![0; 60_000];
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1, 0x60, 0xea, 0x9f, 0x15];
    gzip.extend_from_slice(&tar);
    gzip.extend_from_slice(&crc32(&tar).to_le_bytes());
    gzip.extend_from_slice(&60_000_u32.to_le_bytes());
    let layer = blob(store, LAYER_GZIP, &gzip);
    let config = canonical_json(&json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar)]},
    }));
    let config = blob(store, CONFIG, &config);
    let part = |part: &Descriptor| json!({"mediaType": part.media_type, "digest": part.digest, "size": part.size});
    let manifest = canonical_json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": part(&config),
        "layers": [part(&layer)],
    }));
    let manifest = blob(store, MANIFEST, &manifest);
    Image {
        repository: "shop/web".to_owned(),
        platform: Platform::linux_amd64(),
        manifest,
        config,
        layers: vec![layer],
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(u32::MAX, step)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_pulls_and_finds_the_same_manifest() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = Store::open(dir.path().join("made")).expect("a store");
    let image = image(&made);
    let layout = dir.path().join("layout");
    made.export_layout(&image, &layout, Some("v1")).expect("exported");

    let store = Store::open(dir.path().join("store")).expect("a store");
    let registry = Registry::read_write(store.clone(), &dir.path().join("names")).expect("names");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, registry, async move {
        let _ = stopped.await;
    }));

    let place = format!("docker://{address}/shop/web");
    let from = format!("oci:{}:v1", text(&layout));
    let back = format!("dir:{}", text(&dir.path().join("back")));
    let by_digest = format!("{place}@{}", image.manifest.digest);
    tokio::task::spawn_blocking(move || {
        skopeo(&["copy", "--dest-tls-verify=false", &from, &format!("{place}:v1")]);
        skopeo(&["copy", "--dest-tls-verify=false", &from, &format!("{place}:v2")]);
        skopeo(&["copy", "--src-tls-verify=false", &by_digest, &back]);
        skopeo(&["inspect", "--tls-verify=false", &format!("{place}:v2")]);
    })
    .await
    .expect("skopeo ran");

    let manifest = std::fs::read(dir.path().join("back/manifest.json")).expect("pulled");
    assert_eq!(Digest::of(manifest), image.manifest.digest);
    for blob in image.blobs() {
        assert_eq!(store.has(&blob.digest).expect("looked"), Some(blob.size));
    }
    stop.send(()).expect("still serving");
    server.await.expect("ended").expect("served");
}
