//! What is read: manifests, blobs, lists.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{Query, Request};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use jiji_model::digest::Digest;
use jiji_model::image::INDEX;
use jiji_model::name::RepositoryName;
use jiji_store::Store;
use serde_json::{Value, json};

use crate::Inner;
use crate::manifest;
use crate::names::{Membership, Names};
use crate::refusal::Refusal;
use crate::route::Version;
use crate::stream;

/// How many tags or repositories are listed at once where the client does not say.
const PAGE: usize = 1000;

pub(crate) fn base() -> Response {
    json_response(StatusCode::OK, &json!({}))
}

pub(crate) fn catalog(names: &Names, uri: &Uri) -> Result<Response, Refusal> {
    let (shown, link) = page(names.repositories()?, uri, "/v2/_catalog")?;
    Ok(with_link(json_response(StatusCode::OK, &json!({"repositories": shown})), link))
}

pub(crate) fn tags(names: &Names, repository: &RepositoryName, uri: &Uri) -> Result<Response, Refusal> {
    let tags = names.tags(repository)?.ok_or_else(|| Refusal::NameUnknown(repository.to_string()))?;
    let (shown, link) = page(tags, uri, &format!("/v2/{repository}/tags/list"))?;
    Ok(with_link(json_response(StatusCode::OK, &json!({"name": repository, "tags": shown})), link))
}

pub(crate) fn manifest(
    inner: &Inner,
    repository: &RepositoryName,
    version: &Version,
    method: &Method,
) -> Result<Response, Refusal> {
    let unknown = |version: String| Refusal::ManifestUnknown(format!("{repository} has no {version}"));
    let digest = match version {
        Version::Tag(tag) => inner.names.resolve(repository, tag)?.ok_or_else(|| unknown(format!("tag {tag}")))?.digest,
        Version::Digest(digest) => *digest,
    };
    let media_type = match inner.names.manifest(repository, &digest)? {
        Membership::Absent => return Err(unknown(digest.to_string())),
        Membership::Recorded(descriptor) => Some(descriptor.media_type),
        Membership::Everything => None,
    };
    let found = manifest::read(&inner.store, &digest)?.ok_or_else(|| unknown(digest.to_string()))?;
    let media_type = media_type.unwrap_or(found.descriptor.media_type);
    let media_type = HeaderValue::try_from(media_type).map_err(|error| Refusal::internal(&error))?;
    let mut response = described(&digest, found.bytes.len() as u64, media_type);
    if *method == Method::GET {
        *response.body_mut() = Body::from(found.bytes);
    }
    Ok(response)
}

pub(crate) fn blob(store: &Store, digest: &Digest, request: &Request) -> Result<Response, Refusal> {
    let (file, size) = store.open_blob(digest)?;
    let mut response = described(digest, size, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let (offset, length) = match wanted(request.headers(), size)? {
        None => (0, size),
        Some((first, last)) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_RANGE, text_value(format!("bytes {first}-{last}/{size}")));
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(last - first + 1));
            (first, last - first + 1)
        }
    };
    if *request.method() == Method::GET {
        *response.body_mut() = stream::from_file(file, offset, length).map_err(|error| Refusal::internal(&error))?;
    }
    Ok(response)
}

pub(crate) fn referrers(
    inner: &Inner,
    repository: &RepositoryName,
    subject: &Digest,
    uri: &Uri,
) -> Result<Response, Refusal> {
    let query = query(uri)?;
    let wanted = query.get("artifactType");
    let mut found = Vec::new();
    for digest in inner.names.manifests(repository)? {
        let Some(manifest) = manifest::read(&inner.store, &digest)? else {
            continue;
        };
        let refers = manifest.subject().and_then(|text| text.parse::<Digest>().ok()).as_ref() == Some(subject);
        if refers && wanted.is_none_or(|kind| manifest.artifact_type() == Some(kind)) {
            found.push(manifest.referrer());
        }
    }
    let mut response =
        json_response(StatusCode::OK, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": found}));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
    if wanted.is_some() {
        response.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// The parameters of a request.
pub(crate) fn query(uri: &Uri) -> Result<BTreeMap<String, String>, Refusal> {
    Query::try_from_uri(uri)
        .map(|Query(parameters)| parameters)
        .map_err(|error| Refusal::UploadInvalid(format!("the query cannot be read: {error}")))
}

pub(crate) fn text_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("names, digests and digits are a header's value")
}

pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn with_link(mut response: Response, link: Option<HeaderValue>) -> Response {
    if let Some(link) = link {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// A response without a body yet, with what it says of the content.
fn described(digest: &Digest, size: u64, media_type: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, media_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    headers.insert("docker-content-digest", text_value(digest.to_string()));
    headers.insert(header::ETAG, text_value(format!("\"{digest}\"")));
    response
}

/// The part of a list that a request wants, and where the next one is (spec.md, "Listing Tags").
fn page<T: AsRef<str> + serde::Serialize>(
    all: Vec<T>,
    uri: &Uri,
    path: &str,
) -> Result<(Vec<T>, Option<HeaderValue>), Refusal> {
    let query = query(uri)?;
    let most = match query.get("n") {
        Some(text) => text.parse().map_err(|_| Refusal::SizeInvalid(format!("n={text} is not a number")))?,
        None => PAGE,
    };
    let rest = all.into_iter().filter(|name| query.get("last").is_none_or(|last| name.as_ref() > last.as_str()));
    let mut shown: Vec<T> = rest.take(most.min(PAGE).saturating_add(1)).collect();
    let more = shown.len() > most.min(PAGE);
    shown.truncate(most.min(PAGE));
    let link = shown
        .last()
        .filter(|_| more)
        .map(|last| text_value(format!("<{path}?n={}&last={}>; rel=\"next\"", most.min(PAGE), last.as_ref())));
    Ok((shown, link))
}

/// The one range that a request wants, first and last byte, or none for everything. Several ranges at once are answered with
/// everything, which RFC 9110 allows (section 14.2).
fn wanted(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, Refusal> {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let refused = Refusal::RangeNotSatisfiable { size };
    match (first.trim(), last.trim()) {
        ("", last) => match number(last) {
            Some(count) if count > 0 && size > 0 => Ok(Some((size.saturating_sub(count), size - 1))),
            Some(_) => Err(refused),
            None => Ok(None),
        },
        (first, last) => match (number(first), last, number(last)) {
            (Some(first), "", _) if first < size => Ok(Some((first, size - 1))),
            (Some(first), _, Some(last)) if first <= last && first < size => Ok(Some((first, last.min(size - 1)))),
            (Some(first), "", _) | (Some(first), _, Some(_)) if first >= size => Err(refused),
            _ => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_str(text).expect("a value"))]);
            wanted(&headers, 10)
        };
        let refused = Err(Refusal::RangeNotSatisfiable { size: 10 });
        for (text, range) in [
            ("bytes=0-0", Ok(Some((0, 0)))),
            ("bytes=2-5", Ok(Some((2, 5)))),
            ("bytes=2-", Ok(Some((2, 9)))),
            ("bytes=2-99", Ok(Some((2, 9)))),
            ("bytes=-3", Ok(Some((7, 9)))),
            ("bytes=-99", Ok(Some((0, 9)))),
            ("bytes=10-", refused.clone()),
            ("bytes=10-11", refused.clone()),
            ("bytes=-0", refused),
            ("bytes=5-2", Ok(None)),
            ("bytes=0-1,4-5", Ok(None)),
            ("items=0-1", Ok(None)),
            ("bytes=a-b", Ok(None)),
        ] {
            assert_eq!(read(text), range, "{text}");
        }
        assert_eq!(wanted(&HeaderMap::new(), 10), Ok(None));
    }

    #[test]
    fn a_long_list_is_turned_page_by_page() {
        let all = || vec!["a", "b", "c"];
        let uri = |text: &str| text.parse::<Uri>().expect("a path");
        let (shown, link) = page(all(), &uri("/x?n=2"), "/x").expect("a page");
        assert_eq!(
            (shown, link.expect("more")),
            (vec!["a", "b"], text_value("</x?n=2&last=b>; rel=\"next\"".to_owned()))
        );
        let (shown, link) = page(all(), &uri("/x?n=2&last=b"), "/x").expect("a page");
        assert_eq!((shown, link), (vec!["c"], None));
        assert!(page(all(), &uri("/x?n=x"), "/x").is_err());
        assert_eq!(page(all(), &uri("/x?n=0"), "/x").expect("a page").0, Vec::<&str>::new());
    }
}
