//! Why a request is refused, in the words of the specification (spec.md, "Error Codes").

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use jiji_store::StoreError;
use serde_json::json;

use crate::names::NamesError;

/// What a client hears instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such path.
    NotFound,
    NameInvalid(String),
    NameUnknown(String),
    ManifestUnknown(String),
    ManifestInvalid(String),
    ManifestBlobUnknown(String),
    ManifestTooLarge,
    BlobUnknown(String),
    UploadUnknown,
    UploadInvalid(String),
    /// The chunk does not begin where the upload stands.
    ChunkOutOfOrder {
        offset: u64,
    },
    /// The range lies outside of the blob of this length.
    RangeNotSatisfiable {
        size: u64,
    },
    DigestInvalid(String),
    SizeInvalid(String),
    Unsupported,
    TooManyUploads,
    /// The store failed: not the client's fault.
    Internal(String),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing { digest } => Self::BlobUnknown(digest.to_string()),
            StoreError::Mismatch { .. } => Self::DigestInvalid(error.to_string()),
            other => Self::internal(&other),
        }
    }
}

impl From<NamesError> for Refusal {
    fn from(error: NamesError) -> Self {
        Self::internal(&error)
    }
}

impl Refusal {
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self::Internal(text)
    }

    fn words(&self) -> (StatusCode, &'static str, &str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND", "no such path"),
            Self::NameInvalid(text) => (StatusCode::BAD_REQUEST, "NAME_INVALID", text),
            Self::NameUnknown(text) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN", text),
            Self::ManifestUnknown(text) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", text),
            Self::ManifestInvalid(text) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID", text),
            Self::ManifestBlobUnknown(text) => (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", text),
            Self::ManifestTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", "a manifest has at most 4 MiB"),
            Self::BlobUnknown(text) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN", text),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload"),
            Self::UploadInvalid(text) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", text),
            Self::ChunkOutOfOrder { .. } => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                "BLOB_UPLOAD_INVALID",
                "the chunk does not begin where the upload stands",
            ),
            Self::RangeNotSatisfiable { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", "the range lies outside of the blob")
            }
            Self::DigestInvalid(text) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID", text),
            Self::SizeInvalid(text) => (StatusCode::BAD_REQUEST, "SIZE_INVALID", text),
            Self::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry does not do that"),
            Self::TooManyUploads => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many uploads are open"),
            Self::Internal(text) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", text),
        }
    }

    pub(crate) fn into_response(self, head_only: bool) -> Response {
        let (status, code, message) = self.words();
        let body = json!({"errors": [{"code": code, "message": message, "detail": null}]}).to_string();
        let mut response = Response::new(if head_only { Body::empty() } else { Body::from(body) });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::ChunkOutOfOrder { offset } => {
                headers.insert(header::RANGE, crate::upload::range(offset));
            }
            Self::RangeNotSatisfiable { size } => {
                let range = HeaderValue::try_from(format!("bytes */{size}")).expect("digits are a header's value");
                headers.insert(header::CONTENT_RANGE, range);
            }
            _ => {}
        }
        response
    }
}
