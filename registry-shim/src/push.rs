//! What is written: blobs in one or many requests, and manifests.

use std::io::Write as _;
use std::sync::{Arc, PoisonError};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiji_model::digest::Digest;
use jiji_model::name::RepositoryName;

use crate::Inner;
use crate::manifest::{self, Manifest};
use crate::pull::{query, text_value};
use crate::refusal::Refusal;
use crate::route::{self, Version};
use crate::stream::{self, Blocks};
use crate::upload::{Upload, Uploads, range};

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// `POST …/blobs/uploads/`: mounts, takes a whole blob at once, or begins an upload.
pub(crate) async fn begin(
    inner: &Inner,
    uploads: &Uploads,
    repository: &RepositoryName,
    request: Request,
) -> Result<Response, Refusal> {
    let query = query(request.uri())?;
    if let Some(text) = query.get("mount") {
        let digest = route::digest(text)?;
        if inner.store.has(&digest)?.is_some() {
            return Ok(created_blob(repository, &digest));
        }
    }
    match query.get("digest") {
        Some(text) => {
            let digest = route::digest(text)?;
            let upload = uploads.begin(&inner.store, repository)?;
            take_last(uploads, repository, &upload, request, digest).await
        }
        None => {
            let upload = uploads.begin(&inner.store, repository)?;
            Ok(stands(&upload, StatusCode::ACCEPTED))
        }
    }
}

/// `GET …/blobs/uploads/ID`: how much is here.
pub(crate) fn progress(uploads: &Uploads, repository: &RepositoryName, id: &str) -> Result<Response, Refusal> {
    Ok(stands(uploads.find(repository, id)?.as_ref(), StatusCode::NO_CONTENT))
}

/// `PATCH …/blobs/uploads/ID`: takes a chunk.
pub(crate) async fn append(
    uploads: &Uploads,
    repository: &RepositoryName,
    id: &str,
    request: Request,
) -> Result<Response, Refusal> {
    let upload = uploads.find(repository, id)?;
    let chunk = Chunk::of(request.headers())?;
    let sink = Arc::clone(&upload);
    run(request.into_body(), move |blocks| take(&sink, blocks, chunk)).await?;
    Ok(stands(&upload, StatusCode::ACCEPTED))
}

/// `PUT …/blobs/uploads/ID?digest=…`: takes what is left and makes it a blob.
pub(crate) async fn finish(
    uploads: &Uploads,
    repository: &RepositoryName,
    id: &str,
    request: Request,
) -> Result<Response, Refusal> {
    let upload = uploads.find(repository, id)?;
    let query = query(request.uri())?;
    let digest = query.get("digest").ok_or_else(|| Refusal::DigestInvalid("the digest is missing".to_owned()))?;
    let digest = route::digest(digest)?;
    take_last(uploads, repository, &upload, request, digest).await
}

/// `DELETE …/blobs/uploads/ID`.
pub(crate) fn cancel(uploads: &Uploads, repository: &RepositoryName, id: &str) -> Result<Response, Refusal> {
    let upload = uploads.find(repository, id)?;
    uploads.forget(&upload.id);
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `PUT …/manifests/VERSION`.
pub(crate) async fn put_manifest(
    inner: &Inner,
    repository: &RepositoryName,
    version: &Version,
    request: Request,
) -> Result<Response, Refusal> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or(text).trim().to_owned());
    let bytes = run(request.into_body(), |mut blocks| {
        let mut bytes = Vec::new();
        while let Some(block) = blocks.next() {
            if (bytes.len() + block.len()) as u64 > manifest::LIMIT {
                return Err(Refusal::ManifestTooLarge);
            }
            bytes.extend_from_slice(&block);
        }
        if blocks.whole() { Ok(bytes) } else { Err(Refusal::SizeInvalid("the manifest is cut off".to_owned())) }
    })
    .await?;
    let mut manifest = Manifest::parse(bytes).map_err(Refusal::ManifestInvalid)?;
    if let Some(content_type) = content_type {
        if manifest.own_media_type().is_some_and(|own| own != content_type) {
            return Err(Refusal::ManifestInvalid(format!("it was sent as {content_type} and says otherwise")));
        }
        manifest.descriptor.media_type = content_type;
    }
    let digest = manifest.descriptor.digest;
    let tag = match version {
        Version::Digest(expected) if *expected != digest => {
            return Err(Refusal::DigestInvalid(format!("the manifest is {digest}")));
        }
        Version::Digest(_) => None,
        Version::Tag(tag) => Some(tag),
    };
    for needed in manifest.needs() {
        let blob = route::digest(needed)?;
        if inner.store.has(&blob)?.is_none() {
            return Err(Refusal::ManifestBlobUnknown(needed.to_owned()));
        }
    }
    inner.store.put(&manifest.bytes)?;
    inner.names.add(repository, tag, &manifest.descriptor)?;
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, text_value(format!("/v2/{repository}/manifests/{digest}")));
    headers.insert(CONTENT_DIGEST, text_value(digest.to_string()));
    if let Some(subject) = manifest.subject() {
        // A subject that is no digest of ours has no referrers here, and so no such header.
        if let Ok(subject) = subject.parse::<Digest>() {
            headers.insert("oci-subject", text_value(subject.to_string()));
        }
    }
    Ok(response)
}

/// `DELETE …/manifests/VERSION`. The blobs stay: the store's owner collects them.
pub(crate) fn delete_manifest(
    inner: &Inner,
    repository: &RepositoryName,
    version: &Version,
) -> Result<Response, Refusal> {
    let removed = match version {
        Version::Tag(tag) => inner.names.remove_tag(repository, tag)?,
        Version::Digest(digest) => inner.names.remove_manifest(repository, digest)?,
    };
    if removed {
        Ok(empty(StatusCode::ACCEPTED))
    } else {
        Err(Refusal::ManifestUnknown(format!("{repository} has no such manifest")))
    }
}

async fn take_last(
    uploads: &Uploads,
    repository: &RepositoryName,
    upload: &Arc<Upload>,
    request: Request,
    digest: Digest,
) -> Result<Response, Refusal> {
    let chunk = Chunk::of(request.headers())?;
    let sink = Arc::clone(upload);
    let taken = run(request.into_body(), move |blocks| {
        take(&sink, blocks, chunk)?;
        let writer = sink.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        writer.ok_or(Refusal::UploadUnknown)?.finish(Some(digest)).map_err(Refusal::from)
    })
    .await;
    match taken {
        Ok(_) => {
            uploads.forget(&upload.id);
            Ok(created_blob(repository, &digest))
        }
        // Bytes that came can be gone on with; bytes that are wrong cannot.
        Err(refusal) => {
            if upload.writer.lock().is_ok_and(|writer| writer.is_none()) {
                uploads.forget(&upload.id);
            }
            Err(refusal)
        }
    }
}

/// Writes a request's bytes at the end of an upload.
fn take(upload: &Upload, mut blocks: Blocks, chunk: Chunk) -> Result<(), Refusal> {
    let mut slot = upload.writer.lock().unwrap_or_else(PoisonError::into_inner);
    let writer = slot.as_mut().ok_or(Refusal::UploadUnknown)?;
    let start = writer.written();
    if chunk.first.is_some_and(|first| first != start) {
        return Err(Refusal::ChunkOutOfOrder { offset: start });
    }
    while let Some(block) = blocks.next() {
        if chunk.length.is_some_and(|length| writer.written() - start + block.len() as u64 > length) {
            return Err(Refusal::SizeInvalid("the chunk is longer than its range".to_owned()));
        }
        writer.write_all(&block).map_err(|error| Refusal::internal(&error))?;
        upload.stands_at(writer.written());
    }
    if !blocks.whole() {
        return Err(Refusal::SizeInvalid("the chunk is cut off".to_owned()));
    }
    if chunk.length.is_some_and(|length| writer.written() - start != length) {
        return Err(Refusal::SizeInvalid("the chunk is shorter than its range".to_owned()));
    }
    Ok(())
}

/// What a request says of its bytes' place.
#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    first: Option<u64>,
    length: Option<u64>,
}

impl Chunk {
    /// Reads `Content-Range: FIRST-LAST` (spec.md, "Pushing a blob in chunks"; `bytes FIRST-LAST/…` is what HTTP would write).
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let Some(value) = headers.get(header::CONTENT_RANGE) else {
            return Ok(Self::default());
        };
        let read = |text: &str| {
            let text = text.trim_start_matches("bytes").trim();
            let (first, last) = text.split('/').next()?.split_once('-')?;
            let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
            Some(Self { first: Some(first), length: Some(last.checked_sub(first)?.checked_add(1)?) })
        };
        value
            .to_str()
            .ok()
            .and_then(read)
            .ok_or_else(|| Refusal::UploadInvalid("the chunk's range cannot be read".to_owned()))
    }
}

async fn run<T: Send + 'static>(
    body: Body,
    sink: impl FnOnce(Blocks) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    stream::into_sink(body, sink).await.map_err(|error| Refusal::internal(&error))?
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    if status == StatusCode::NO_CONTENT {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

fn created_blob(repository: &RepositoryName, digest: &Digest) -> Response {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, text_value(format!("/v2/{repository}/blobs/{digest}")));
    headers.insert(CONTENT_DIGEST, text_value(digest.to_string()));
    response
}

fn stands(upload: &Upload, status: StatusCode) -> Response {
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, upload.location());
    headers.insert(header::RANGE, range(upload.offset()));
    headers.insert(UPLOAD_ID, text_value(upload.id.clone()));
    response
}
