//! An OCI Distribution server over a [`Store`]: what container engines pull from, and what pushes to it.
//!
//! It serves two masters. On a server, `jiji-host` serves the blobs that the operator streamed, on loopback and for as long as its
//! session lasts: read-only, by digest, and by the few tags that the session names. As the program `registry-shim` it is a small
//! registry of its own, with pushes and with tags kept in files.
//!
//! Blobs are the store's and so belong to all repositories at once: who knows a digest may read it under any name. There is no
//! authentication and no TLS, so it belongs on loopback or inside a mesh. The client's side is the root package's `registry`.
//!
//! Followed: the OCI distribution specification 1.1, and what Docker 20.10 and Podman 4.3 expect beyond it.

mod manifest;
mod names;
mod pull;
mod push;
mod refusal;
mod route;
mod stream;
mod upload;

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, Method};
use jiji_model::digest::Digest;
use jiji_model::name::{RepositoryName, TagName};
use jiji_store::Store;
use tokio::net::TcpListener;

pub use names::NamesError;

use crate::names::Names;
use crate::refusal::Refusal;
use crate::route::Target;
use crate::upload::Uploads;

/// What is served, and what is allowed. Clones share it.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    names: Names,
    uploads: Option<Uploads>,
}

impl Registry {
    /// Serves all blobs of a store and nothing that changes it. Manifests are served by digest under every repository name, and by
    /// the tags that [`Registry::name`] gives.
    pub fn read_only(store: Store) -> Self {
        Self { inner: Arc::new(Inner { store, names: Names::in_memory(), uploads: None }) }
    }

    /// Serves a store, takes pushes into it, and keeps tags in files below `names`, which is created where it is missing.
    ///
    /// # Errors
    /// [`NamesError`] when the directory is of a newer jiji or cannot be used.
    pub fn read_write(store: Store, names: &Path) -> Result<Self, NamesError> {
        let names = Names::on_disk(names)?;
        Ok(Self { inner: Arc::new(Inner { store, names, uploads: Some(Uploads::default()) }) })
    }

    /// Lets `repository:tag` stand for a manifest that is in the store.
    ///
    /// # Errors
    /// [`NamesError::NotAManifest`] when the store has no manifest of that digest, [`NamesError`] otherwise when the tag cannot be
    /// written.
    pub fn name(&self, repository: &RepositoryName, tag: &TagName, digest: &Digest) -> Result<(), NamesError> {
        let manifest =
            manifest::read(&self.inner.store, digest)?.ok_or(NamesError::NotAManifest { digest: *digest })?;
        self.inner.names.add(repository, Some(tag), &manifest.descriptor)
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request) -> Response {
        let head_only = request.method() == Method::HEAD;
        let mut response = self.dispatch(request).await.unwrap_or_else(|refusal| refusal.into_response(head_only));
        // Docker tells a registry of version 2 by this header.
        let version = HeaderValue::from_static("registry/2.0");
        response.headers_mut().insert("docker-distribution-api-version", version);
        response
    }

    async fn dispatch(&self, request: Request) -> Result<Response, Refusal> {
        let target = Target::read(request.uri().path())?;
        let method = request.method().clone();
        let reading = matches!(method, Method::GET | Method::HEAD);
        match (target, self.inner.uploads.as_ref()) {
            (Target::Base, _) if reading => Ok(pull::base()),
            (Target::Catalog, _) if reading => pull::catalog(&self.inner.names, request.uri()),
            (Target::Tags { repository }, _) if reading => pull::tags(&self.inner.names, &repository, request.uri()),
            (Target::Manifest { repository, version }, _) if reading => {
                pull::manifest(&self.inner, &repository, &version, &method)
            }
            (Target::Blob { digest, .. }, _) if reading => pull::blob(&self.inner.store, &digest?, &request),
            (Target::Referrers { repository, digest }, _) if reading => {
                pull::referrers(&self.inner, &repository, &digest?, request.uri())
            }
            (Target::Manifest { repository, version }, Some(_)) => match method {
                Method::PUT => push::put_manifest(&self.inner, &repository, &version, request).await,
                Method::DELETE => push::delete_manifest(&self.inner, &repository, &version),
                _ => Err(Refusal::Unsupported),
            },
            (Target::Uploads { repository }, Some(uploads)) if method == Method::POST => {
                push::begin(&self.inner, uploads, &repository, request).await
            }
            (Target::Upload { repository, id }, Some(uploads)) => match method {
                Method::GET | Method::HEAD => push::progress(uploads, &repository, &id),
                Method::PATCH => push::append(uploads, &repository, &id, request).await,
                Method::PUT => push::finish(uploads, &repository, &id, request).await,
                Method::DELETE => push::cancel(uploads, &repository, &id),
                _ => Err(Refusal::Unsupported),
            },
            _ => Err(Refusal::Unsupported),
        }
    }
}

/// Serves until `stop` is ready, then ends the connections that are idle and waits for the others.
///
/// # Errors
/// What the listener reports.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(registry)).with_graceful_shutdown(stop).await
}

/// The server as a part of a larger one.
pub fn router(registry: Registry) -> Router {
    Router::new()
        .fallback(|State(registry): State<Registry>, request: Request| async move { registry.answer(request).await })
        .with_state(registry)
}
