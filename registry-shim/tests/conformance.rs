//! The server against the specification's own conformance program, built from its Go module.
//!
//! Two things stay off. SHA-512: jiji knows content by SHA-256 alone (`jiji_model::digest`). Sparse manifests, off by default there
//! too: a manifest is taken when its blobs are here, so that a push that was cut off is not taken for a whole one.

use std::path::{Path, PathBuf};
use std::process::Command;

use jiji_registry_shim::{Registry, serve};
use jiji_store::Store;

const PROGRAM: &str = "github.com/opencontainers/distribution-spec/conformance";

/// Builds the program that `tests/tools/distribution-conformance/go.mod` pins; Go's own cache makes the second time cheap.
fn program() -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tools/distribution-conformance");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("distribution-conformance");
    let built = Command::new("go")
        .args(["build", "-trimpath", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(PROGRAM)
        .current_dir(tool)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .output()
        .expect("go 1.24 or newer is installed");
    assert!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn the_specifications_own_program_finds_no_failure() {
    let program = tokio::task::spawn_blocking(program).await.expect("built");
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a store");
    let registry = Registry::read_write(store, &dir.path().join("names")).expect("names");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(serve(listener, registry, std::future::pending()));

    let mut conformance = Command::new(program);
    conformance.current_dir(dir.path()).env("OCI_REGISTRY", address).env("OCI_RESULTS_DIR", dir.path().join("results"));
    for (name, value) in [
        ("OCI_VERSION", "1.1"),
        ("OCI_TLS", "disabled"),
        ("OCI_DATA_SHA512", "false"),
        ("OCI_API_BLOBS_DIGEST_HEADER", "true"),
        ("OCI_API_MANIFESTS_DIGEST_HEADER", "true"),
        ("OCI_API_BLOBS_UPLOAD_CANCEL", "true"),
    ] {
        conformance.env(name, value);
    }
    let out = tokio::task::spawn_blocking(move || conformance.output()).await.expect("ran").expect("started");
    let text = String::from_utf8_lossy(&out.stdout);
    let summary = text.find("OCI Conformance Result").map_or(&*text, |start| &text[start..]);
    let failed: Vec<_> =
        text.lines().take_while(|line| *line != "Configuration:").filter(|line| line.ends_with("FAIL")).collect();
    assert!(out.status.success() && failed.is_empty(), "{failed:#?}\n{summary}");
    assert!(summary.contains("OCI Conformance Result: Pass"), "{summary}");
}
