//! The server against the words of the distribution specification, request by request.

use axum::body::Body;
use axum::response::Response;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use jiji_model::digest::Digest;
use jiji_model::image::MANIFEST;
use jiji_registry_shim::Registry;
use jiji_store::Store;
use serde_json::{Value, json};

struct Server {
    registry: Registry,
    store: Store,
    _dir: tempfile::TempDir,
}

impl Server {
    fn read_write() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        let registry = Registry::read_write(store.clone(), &dir.path().join("names")).expect("names");
        Self { registry, store, _dir: dir }
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.registry.answer(request.body(Body::from(body.to_vec())).expect("a request")).await;
        Answer::of(response).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], b"").await
    }

    /// Pushes a blob with one request.
    async fn push_blob(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let answer = self.ask(Method::POST, &format!("/v2/a/b/blobs/uploads/?digest={digest}"), &[], content).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        digest
    }

    /// Pushes a manifest of an empty configuration and says its digest.
    async fn push_manifest(&self, version: &str, extra: Value) -> (Answer, Digest) {
        let config = self.push_blob(b"{}").await;
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
            "layers": [],
        });
        if let (Some(manifest), Value::Object(extra)) = (manifest.as_object_mut(), extra) {
            manifest.extend(extra);
        }
        let bytes = manifest.to_string();
        let path = format!("/v2/a/b/manifests/{version}");
        (self.ask(Method::PUT, &path, &[("content-type", MANIFEST)], bytes.as_bytes()).await, Digest::of(&bytes))
    }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes().to_vec();
        Self { status: parts.status, headers: parts.headers, body }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().expect("a code").to_owned()
    }
}

#[tokio::test]
async fn a_blob_in_one_request_is_read_whole_and_in_part() {
    let server = Server::read_write();
    assert_eq!(server.get("/v2/").await.header("docker-distribution-api-version"), "registry/2.0");
    let digest = server.push_blob(b"0123456789").await;
    let path = format!("/v2/a/b/blobs/{digest}");
    let answer = server.get(&path).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"0123456789"[..]));
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    let answer = server.ask(Method::HEAD, &path, &[], b"").await;
    assert_eq!((answer.status, answer.header("content-length"), answer.body.len()), (StatusCode::OK, "10", 0));
    let answer = server.ask(Method::GET, &path, &[("range", "bytes=3-5")], b"").await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::PARTIAL_CONTENT, &b"345"[..]));
    assert_eq!(answer.header("content-range"), "bytes 3-5/10");
    let answer = server.ask(Method::GET, &path, &[("range", "bytes=10-")], b"").await;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(answer.header("content-range"), "bytes */10");
}

#[tokio::test]
async fn a_blob_in_chunks_is_taken_in_order_only() {
    let server = Server::read_write();
    let begun = server.ask(Method::POST, "/v2/a/b/blobs/uploads/", &[], b"").await;
    assert_eq!(begun.status, StatusCode::ACCEPTED);
    let at = begun.header("location").to_owned();
    let answer = server.ask(Method::PATCH, &at, &[("content-range", "0-2")], b"abc").await;
    assert_eq!((answer.status, answer.header("range")), (StatusCode::ACCEPTED, "0-2"));
    let answer = server.ask(Method::PATCH, &at, &[("content-range", "5-7")], b"xyz").await;
    assert_eq!((answer.status, answer.header("range")), (StatusCode::RANGE_NOT_SATISFIABLE, "0-2"));
    let answer = server.get(&at).await;
    assert_eq!((answer.status, answer.header("range")), (StatusCode::NO_CONTENT, "0-2"));
    let digest = Digest::of(b"abcdef");
    let answer = server.ask(Method::PUT, &format!("{at}?digest={digest}"), &[("content-range", "3-5")], b"def").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::CREATED, &*format!("/v2/a/b/blobs/{digest}")));
    assert_eq!(server.store.read(&digest, 6).expect("stored"), b"abcdef");
    assert_eq!(server.get(&at).await.code(), "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn wrong_digests_and_foreign_algorithms_are_refused_and_leave_nothing() {
    let server = Server::read_write();
    let other = Digest::of(b"other");
    let answer = server.ask(Method::POST, &format!("/v2/a/blobs/uploads/?digest={other}"), &[], b"this").await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    let begun = server.ask(Method::POST, "/v2/a/blobs/uploads/", &[], b"").await;
    let at = begun.header("location").to_owned();
    assert_eq!(server.ask(Method::PUT, &format!("{at}?digest=sha512:00"), &[], b"").await.code(), "DIGEST_INVALID");
    assert_eq!(server.ask(Method::PUT, &at, &[], b"").await.code(), "DIGEST_INVALID");
    assert_eq!(server.ask(Method::DELETE, &at, &[], b"").await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get(&format!("/v2/a/blobs/{other}")).await.code(), "BLOB_UNKNOWN");
    assert_eq!(server.store.blobs().expect("listed").count(), 0);
}

#[tokio::test]
async fn a_known_blob_is_mounted_and_an_unknown_one_begins_an_upload() {
    let server = Server::read_write();
    let digest = server.push_blob(b"x").await;
    let path = format!("/v2/c/blobs/uploads/?mount={digest}&from=a/b");
    assert_eq!(server.ask(Method::POST, &path, &[], b"").await.status, StatusCode::CREATED);
    let path = format!("/v2/c/blobs/uploads/?mount={}&from=a/b", Digest::of(b"y"));
    assert_eq!(server.ask(Method::POST, &path, &[], b"").await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_manifest_is_had_by_tag_and_digest_in_its_own_repository_alone() {
    let server = Server::read_write();
    let (answer, digest) = server.push_manifest("v1", json!({})).await;
    assert_eq!((answer.status, answer.header("docker-content-digest")), (StatusCode::CREATED, &*digest.to_string()));
    for version in ["v1".to_owned(), digest.to_string()] {
        let answer = server.get(&format!("/v2/a/b/manifests/{version}")).await;
        assert_eq!((answer.header("content-type"), Digest::of(&answer.body)), (MANIFEST, digest));
    }
    assert_eq!(server.get("/v2/a/b/tags/list").await.json(), json!({"name": "a/b", "tags": ["v1"]}));
    assert_eq!(server.get(&format!("/v2/other/manifests/{digest}")).await.code(), "MANIFEST_UNKNOWN");
    assert_eq!(server.get("/v2/other/tags/list").await.code(), "NAME_UNKNOWN");
    let answer = server.ask(Method::DELETE, &format!("/v2/a/b/manifests/{digest}"), &[], b"").await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(server.get("/v2/a/b/manifests/v1").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_manifest_that_is_wrong_or_lacks_a_blob_is_refused() {
    let server = Server::read_write();
    let (answer, _) = server.push_manifest(&Digest::of(b"else").to_string(), json!({})).await;
    assert_eq!(answer.code(), "DIGEST_INVALID");
    let missing = json!({"layers": [{"mediaType": "x/y", "digest": Digest::of(b"missing"), "size": 7}]});
    let (answer, _) = server.push_manifest("v1", missing).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"));
    let answer = server.ask(Method::PUT, "/v2/a/manifests/v1", &[], b"no JSON").await;
    assert_eq!(answer.code(), "MANIFEST_INVALID");
    let answer = server.ask(Method::PUT, "/v2/a/manifests/v1", &[], &vec![b' '; 5 * 1024 * 1024]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn referrers_are_found_by_their_subject_and_kind() {
    let server = Server::read_write();
    let (_, subject) = server.push_manifest("v1", json!({})).await;
    let refers = json!({
        "artifactType": "application/x.signature",
        "annotations": {"by": "us"},
        "subject": {"mediaType": MANIFEST, "digest": subject, "size": 1},
    });
    let (answer, digest) = server.push_manifest("sig", refers).await;
    assert_eq!(answer.header("oci-subject"), subject.to_string());
    let found = server.get(&format!("/v2/a/b/referrers/{subject}")).await.json();
    assert_eq!(found["manifests"][0]["digest"], digest.to_string());
    assert_eq!(found["manifests"][0]["annotations"]["by"], "us");
    let answer = server.get(&format!("/v2/a/b/referrers/{subject}?artifactType=application/x.other")).await;
    assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    assert_eq!(answer.json()["manifests"], json!([]));
}

#[tokio::test]
async fn a_read_only_server_gives_everything_and_takes_nothing() {
    let server = Server::read_write();
    let (_, digest) = server.push_manifest("v1", json!({})).await;
    let blob = server.push_blob(b"layer").await;
    let registry = Registry::read_only(server.store.clone());
    let repository = "shop/web".parse().expect("a name");
    registry.name(&repository, &"live".parse().expect("a tag"), &digest).expect("named");
    assert!(registry.name(&repository, &"bad".parse().expect("a tag"), &blob).is_err());
    let server = Server { registry, ..server };
    assert_eq!(Digest::of(&server.get("/v2/shop/web/manifests/live").await.body), digest);
    assert_eq!(server.get(&format!("/v2/any/manifests/{digest}")).await.header("content-type"), MANIFEST);
    assert_eq!(server.get(&format!("/v2/any/blobs/{blob}")).await.body, b"layer");
    for (method, path) in [
        (Method::POST, "/v2/a/blobs/uploads/".to_owned()),
        (Method::PUT, "/v2/shop/web/manifests/live".to_owned()),
        (Method::DELETE, format!("/v2/shop/web/manifests/{digest}")),
        (Method::DELETE, format!("/v2/shop/web/blobs/{blob}")),
    ] {
        let answer = server.ask(method, &path, &[], b"{}").await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"), "{path}");
    }
}
