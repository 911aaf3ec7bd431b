//! Against the project's own server.

use std::collections::BTreeMap;

use axum::extract::{Request, State};
use axum::response::Response;
use jiji_model::image::INDEX;
use jiji_model::project::RegistryServer;
use reqwest::StatusCode;

use super::*;
use crate::registry::{Answer, Asking, Depth, Push, PushReport, RegistryError};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_once_resolved_and_pulled_back() {
    let (made, (server, at)) = (Place::new(), shim().await);
    let image = image(&made.store, &[b"base", &vec![7; 9_000_000]]);
    let (client, seen) = watched(Setup::default());
    let (to, tag) = (repository(&at, "shop/web"), "v1".parse().expect("a tag"));
    let push = Push { image: &image, to: &to, tag: Some(&tag), bases: &[] };
    let report = client.push(push, &made.store).await.expect("pushed");
    let sent_bytes = image.size() - image.manifest.size;
    let expected =
        PushReport { manifest: image.manifest.digest, sent: 3, sent_bytes, mounted: 0, present: 0, unchanged: false };
    assert_eq!(report, expected);
    assert_eq!(seen.lock().expect("a list").len(), 3);
    let again = client.push(push, &made.store).await.expect("pushed");
    assert_eq!(again, PushReport { sent: 0, sent_bytes: 0, unchanged: true, ..expected });

    let place = Place::new();
    let platform = Platform::linux_amd64();
    let tagged = reference(&at, "shop/web:v1");
    let digest = client.resolve(&tagged, &platform).await.expect("resolved");
    assert_eq!(digest, image.manifest.digest);
    let pulled = client.pull(&tagged, &digest, &platform, &place.store, Depth::ManifestOnly).await.expect("pulled");
    assert_eq!(pulled, image);
    assert!(!place.has(&image.layers[0]));
    client.pull(&tagged, &digest, &platform, &place.store, Depth::WithLayers).await.expect("pulled");
    assert!(image.blobs().all(|blob| place.has(blob)));
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_missing_layer_is_sent_and_another_repositorys_is_mounted() {
    let (made, (_server, at)) = (Place::new(), shim().await);
    let client = Client::new(Setup::default());
    let (base, web) = (repository(&at, "base"), repository(&at, "web"));
    let old = image(&made.store, &[b"base layer"]);
    client.push(Push { image: &old, to: &base, tag: None, bases: &[] }, &made.store).await.expect("pushed");
    // The base was pulled without its layers, so the store of this build lacks one.
    let new = image(&made.store, &[b"base layer", b"own layer"]);
    made.store.remove(&new.layers[0].digest).expect("removed");
    let bases = [reference(&at, "base")];
    let report =
        client.push(Push { image: &new, to: &web, tag: None, bases: &bases }, &made.store).await.expect("pushed");
    // This server has one set of blobs for all repositories, so it says that it has what another one would mount.
    assert_eq!((report.present + report.mounted, report.sent), (1, 2));
    assert_eq!(report.sent_bytes, new.layers[1].size + new.config.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_the_store_lacks_is_fetched_from_where_the_base_came_from() {
    let (made, (_origin, origin), (target, at)) = (Place::new(), shim().await, shim().await);
    let client = Client::new(Setup::default());
    let image = image(&made.store, &[b"base layer"]);
    let to = repository(&origin, "base");
    client.push(Push { image: &image, to: &to, tag: None, bases: &[] }, &made.store).await.expect("pushed");
    made.store.remove(&image.layers[0].digest).expect("removed");
    let to = repository(&at, "web");
    let lost = client.push(Push { image: &image, to: &to, tag: None, bases: &[] }, &made.store).await;
    assert!(matches!(lost, Err(RegistryError::NothingToPush { .. })), "{lost:?}");
    assert!(!target.has(&image.manifest), "a manifest goes after its blobs");
    let bases = [reference(&origin, "base")];
    client.push(Push { image: &image, to: &to, tag: None, bases: &bases }, &made.store).await.expect("pushed");
    assert!(image.blobs().all(|blob| target.has(blob)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_costs_no_request() {
    let place = Place::new();
    let image = image(&place.store, &[b"layer"]);
    // Nobody listens there.
    let nowhere = reference("127.0.0.1:1", "shop/web");
    let client = Client::new(Setup::default());
    let pulled = client
        .pull(&nowhere, &image.manifest.digest, &image.platform, &place.store, Depth::WithLayers)
        .await
        .expect("pulled");
    assert_eq!(pulled, image);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_followed_to_the_platform_and_no_further() {
    let (made, (server, at)) = (Place::new(), shim().await);
    let image = image(&made.store, &[b"layer"]);
    let client = Client::new(Setup::default());
    let to = repository(&at, "web");
    client.push(Push { image: &image, to: &to, tag: None, bases: &[] }, &made.store).await.expect("pushed");
    let mut entry = part(&image.manifest);
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let index = canonical_json(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}));
    let name = "web".parse().expect("a name");
    let digest = server.store.put(&index).expect("stored");
    let registry = Registry::read_only(server.store.clone());
    registry.name(&name, &"multi".parse().expect("a tag"), &digest).expect("named");
    let at = serve(jiji_registry_shim::router(registry)).await;

    let tagged = reference(&at, "web:multi");
    let found = client.resolve(&tagged, &Platform::linux_amd64()).await.expect("resolved");
    assert_eq!(found, image.manifest.digest);
    let pulled = client.pull(&tagged, &digest, &Platform::linux_amd64(), &made.store, Depth::WithLayers).await;
    assert_eq!(pulled.expect("pulled by the index's digest").manifest, image.manifest);
    let none = client.resolve(&tagged, &Platform::linux_arm64()).await;
    assert!(
        matches!(&none, Err(RegistryError::NoPlatform { available, .. }) if available == "linux/amd64"),
        "{none:?}"
    );
    // An image asked for by its own digest must be for the platform, too.
    let wrong = client.pull(&tagged, &found, &Platform::linux_arm64(), &made.store, Depth::ManifestOnly).await;
    assert!(matches!(wrong, Err(RegistryError::NoPlatform { .. })), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_and_passed_over_when_it_fails() {
    let (made, (_mirror, mirror), (_origin, origin)) = (Place::new(), shim().await, shim().await);
    let image = image(&made.store, &[b"layer"]);
    let plain = Client::new(Setup::default());
    let to = repository(&mirror, "library/web");
    plain.push(Push { image: &image, to: &to, tag: None, bases: &[] }, &made.store).await.expect("pushed");

    let known = |authority: &str| RegistryServer { authority: authority.to_owned(), plain_http: true };
    let mirrors =
        BTreeMap::from([("docker.io".to_owned(), vec![known("127.0.0.1:1"), known(&origin), known(&mirror)])]);
    let (client, seen) = watched(Setup { mirrors, ..Setup::default() });
    let place = Place::new();
    let hub = "web".parse().expect("a reference");
    let pulled = client.pull(&hub, &image.manifest.digest, &image.platform, &place.store, Depth::WithLayers).await;
    assert_eq!(pulled.expect("pulled").layers, image.layers);
    let seen = seen.lock().expect("a list").clone();
    assert_eq!(seen[..2], ["registry.mirror-passed-over", "registry.mirror-passed-over"]);
    assert_eq!(seen.len(), 4, "two blobs from the mirror that has them: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_had_as_an_artifact_with_its_blob() {
    let (server, at) = shim().await;
    let layer = put(&server.store, "application/wasm", b"\0asm");
    let config = put(&server.store, "application/vnd.wasm.config.v0+json", b"{}");
    let manifest = canonical_json(
        &json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": part(&config), "layers": [part(&layer)]}),
    );
    let digest = server.store.put(&manifest).expect("stored");
    let registry = Registry::read_only(server.store.clone());
    registry.name(&"p/proxy".parse().expect("a name"), &"1".parse().expect("a tag"), &digest).expect("named");
    let at = (serve(jiji_registry_shim::router(registry)).await, at).0;

    let (client, place) = (Client::new(Setup::default()), Place::new());
    let artifact = client.pull_artifact(&reference(&at, "p/proxy:1")).await.expect("pulled");
    assert_eq!((artifact.digest, &artifact.manifest), (digest, &manifest));
    assert_eq!(artifact.config.media_type, "application/vnd.wasm.config.v0+json");
    let blob = client.artifact_blob(&artifact, &artifact.layers[0], 100, &place.store).await.expect("fetched");
    assert_eq!(blob, b"\0asm");
    let large = client.artifact_blob(&artifact, &artifact.layers[0], 3, &place.store).await;
    assert!(matches!(large, Err(RegistryError::TooLarge { limit: 3, .. })), "{large:?}");
    let (plugin, platform) = (reference(&at, "p/proxy"), Platform::linux_amd64());
    let image = client.pull(&plugin, &digest, &platform, &place.store, Depth::WithLayers).await;
    assert!(matches!(image, Err(RegistryError::Unsupported { .. })), "an artifact is no image");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_and_who_is_not_there_are_told_apart() {
    let (_server, at) = shim().await;
    let client = Client::new(Setup::default());
    let missing = client.resolve(&reference(&at, "web:v1"), &Platform::linux_amd64()).await;
    assert!(matches!(missing, Err(RegistryError::NotFound { .. })), "{missing:?}");
    let nobody = client.resolve(&reference("127.0.0.1:1", "web:v1"), &Platform::linux_amd64()).await;
    let error = nobody.expect_err("nobody listens");
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
    assert_eq!(error.to_string(), "reach `127.0.0.1:1` for a greeting");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_of_one_image_at_once_share_the_store() {
    let (made, (_server, at)) = (Place::new(), shim().await);
    let image = image(&made.store, &[&vec![1; 3_000_000], &vec![2; 3_000_000]]);
    let client = Client::new(Setup::default());
    let to = repository(&at, "web");
    client.push(Push { image: &image, to: &to, tag: None, bases: &[] }, &made.store).await.expect("pushed");
    let place = Place::new();
    let (reference, digest) = (reference(&at, "web"), image.manifest.digest);
    let pull = || client.pull(&reference, &digest, &image.platform, &place.store, Depth::WithLayers);
    let (one, two) = tokio::join!(pull(), pull());
    assert_eq!(
        (one.expect("pulled"), two.expect("pulled").layers),
        (Image { repository: "web".to_owned(), ..image.clone() }, image.layers.clone())
    );
    assert!(image.blobs().all(|blob| place.has(blob)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_too_long_for_one_request_is_sent_in_pieces() {
    let (made, server) = (Place::new(), Place::new());
    let registry = Registry::read_write(server.store.clone(), &server.dir.path().join("names")).expect("names");
    let limited = async |State(registry): State<Registry>, request: Request| {
        let length = request.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > 5_000_000) {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            return response;
        }
        registry.answer(request).await
    };
    let at = serve(Router::new().fallback(limited).with_state(registry)).await;
    let image = image(&made.store, &[&vec![9; 11_000_000]]);
    let to = repository(&at, "web");
    let push = Push { image: &image, to: &to, tag: None, bases: &[] };
    let report = Client::new(Setup::default()).push(push, &made.store).await.expect("pushed");
    assert_eq!(report.sent, 2);
    assert!(image.blobs().all(|blob| server.has(blob)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_the_disk_lost_some_of_is_had_again() {
    let (made, (_server, at)) = (Place::new(), shim().await);
    let image = image(&made.store, &[b"layer"]);
    let client = Client::new(Setup::default());
    let to = repository(&at, "web");
    client.push(Push { image: &image, to: &to, tag: None, bases: &[] }, &made.store).await.expect("pushed");
    std::fs::write(made.store.blob_path(&image.layers[0].digest), b"la").expect("cut");
    let (web, digest) = (reference(&at, "web"), image.manifest.digest);
    client.pull(&web, &digest, &image.platform, &made.store, Depth::WithLayers).await.expect("pulled");
    assert_eq!(made.store.read(&image.layers[0].digest, 10).expect("read"), b"layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_url_has_is_taken_into_the_store_and_what_it_lacks_is_told() {
    let router = Router::new()
        .route("/tool", axum::routing::get(|| async { "bytes" }))
        .route("/moved", axum::routing::get(|| async { axum::response::Redirect::temporary("/tool") }))
        .route("/broken", axum::routing::get(|| async { StatusCode::INTERNAL_SERVER_ERROR }));
    let authority = serve(router).await;
    let place = Place::new();
    let client = Client::new(Setup::default());
    for path in ["tool", "moved"] {
        let got = client.download(&format!("http://{authority}/{path}"), &place.store).await.expect("fetched");
        assert_eq!(got, (Digest::of("bytes"), 5), "{path}");
        assert_eq!(place.store.has(&got.0).expect("looked"), Some(5));
    }
    let gone = client.download(&format!("http://{authority}/gone"), &place.store).await.expect_err("not there");
    assert!(matches!(&gone, RegistryError::NotFound { registry, .. } if *registry == authority), "{gone}");
    let broken = client.download(&format!("http://{authority}/broken"), &place.store).await.expect_err("broken");
    assert!(matches!(broken, RegistryError::Refused { status: 500, .. }), "{broken}");
    let nobody = client.download("http://127.0.0.1:1/x", &place.store).await.expect_err("nobody is there");
    assert!(matches!(nobody, RegistryError::Unreachable { .. }), "{nobody}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_is_told_where_something_is_unless_that_is_a_place_for_a_moment() {
    use axum::http::HeaderMap;
    use axum::routing::get;
    let place = Place::new();
    let seen = |headers: &HeaderMap| headers.get("authorization").map(|value| value.to_str().expect("text").to_owned());
    let other =
        Router::new().route("/file", get(move |headers: HeaderMap| async move { format!("{:?}", seen(&headers)) }));
    let other = serve(other).await;
    let (signed, plain) = (format!("http://{other}/file?signature=1"), format!("http://{other}/file"));
    let moved = |to: String| get(move || async move { (StatusCode::FOUND, [("location", to)]) });
    let app = Router::new()
        .route("/signed", moved(signed))
        .route("/plain", moved(plain.clone()))
        .route("/near", moved("../own?x".to_owned()))
        .route("/round", moved("/round?again".to_owned()))
        .route("/none", get(|| async { StatusCode::NOT_FOUND }))
        .route(
            "/own",
            get(move |headers: HeaderMap| async move {
                format!(
                    "{:?} {:?}",
                    seen(&headers),
                    headers.get("accept").map(|value| value.to_str().expect("text").to_owned())
                )
            }),
        );
    let at = serve(app).await;
    let client = Client::new(Setup::default());
    let ask = async |path: &str| {
        let url = format!("http://{at}/{path}");
        let asking = Asking { url: &url, accept: Some("text/plain"), authorization: Some("Bearer x") };
        client.ask(&asking, &place.store).await
    };
    let said = |answer: &Answer| {
        answer
            .body
            .map(|(digest, _)| String::from_utf8(place.store.read(&digest, 1 << 20).expect("stored")).expect("text"))
    };
    let own = ask("own").await.expect("answered");
    assert_eq!(said(&own).as_deref(), Some(r#"Some("Bearer x") Some("text/plain")"#));
    assert_eq!((own.status, own.kind.as_deref()), (200, Some("text/plain; charset=utf-8")));
    assert_eq!(said(&ask("near").await.expect("answered")), said(&own));
    // Who stands behind another host is not told who asks.
    assert_eq!(said(&ask("signed").await.expect("answered")).as_deref(), Some("None"));
    let there = ask("plain").await.expect("answered");
    assert_eq!((there.status, there.location, there.body), (302, Some(plain), None));
    assert_eq!(ask("none").await.expect("answered").status, 404);
    let round = ask("round").await.expect_err("without end");
    assert!(round.to_string().contains("more than 10 times"), "{round}");
}
