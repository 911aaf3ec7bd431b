//! Against servers that lie, break off, and never end.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use reqwest::StatusCode;

use super::*;
use crate::registry::{Depth, RegistryError};

/// How a server treats the layer.
#[derive(Debug, Clone, Copy)]
enum Manner {
    OtherBytes,
    Truncated,
    Longer,
    AnnouncedLonger,
    /// Breaks the connection after half of what is left, every time; serves ranges.
    BreaksOften,
    /// As `BreaksOften` once, and answers ranges with everything.
    IgnoresRanges,
    EndlessManifest,
    OtherManifest,
    Refuses(StatusCode),
}

struct Server {
    manner: Manner,
    image: Image,
    store: Store,
    asked: AtomicU64,
}

impl Server {
    fn answer(&self, request: &Request) -> Response {
        let path = request.uri().path();
        let digest = path.rsplit('/').next().and_then(|last| last.parse::<Digest>().ok());
        let bytes = digest.and_then(|digest| self.store.read(&digest, u64::MAX).ok());
        match (digest, bytes) {
            _ if path == "/v2/" => Response::new(Body::empty()),
            (_, _) if matches!(self.manner, Manner::Refuses(_)) => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                let Manner::Refuses(status) = self.manner else { unreachable!("it was matched") };
                let mut response =
                    Response::new(Body::from("{\"errors\":[{\"code\":\"X\",\"message\":\"no \\u0007way\"}]}"));
                *response.status_mut() = status;
                response
            }
            (Some(digest), Some(bytes)) if digest == self.image.layers[0].digest => self.layer(bytes, request),
            (Some(digest), Some(mut bytes)) => {
                if digest == self.image.manifest.digest {
                    match self.manner {
                        Manner::OtherManifest => bytes.push(b' '),
                        Manner::EndlessManifest => return Response::new(endless()),
                        _ => {}
                    }
                }
                Response::new(Body::from(bytes))
            }
            _ => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
        }
    }

    fn layer(&self, mut bytes: Vec<u8>, request: &Request) -> Response {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let from = request.headers().get("range").and_then(|value| value.to_str().ok());
        let from: usize =
            from.and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
        match self.manner {
            Manner::OtherBytes => bytes[0] ^= 1,
            Manner::Longer => return Response::new(endless()),
            Manner::AnnouncedLonger => bytes.push(0),
            Manner::Truncated => {
                let half = bytes.len() / 2;
                bytes.truncate(half);
                let stream = stream::iter([Ok::<_, std::io::Error>(Bytes::from(bytes))]);
                return Response::new(Body::from_stream(stream));
            }
            Manner::BreaksOften => {
                let rest = bytes.split_off(from);
                let mut response = broken(&rest, rest.len() > 100_000);
                if from > 0 {
                    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                }
                return response;
            }
            Manner::IgnoresRanges => return broken(&bytes, asked == 0),
            _ => {}
        }
        Response::new(Body::from(bytes))
    }
}

/// All of the bytes announced, and half of them sent where it breaks.
fn broken(bytes: &[u8], breaks: bool) -> Response {
    let half = Bytes::copy_from_slice(&bytes[..bytes.len() / 2]);
    let rest = Bytes::copy_from_slice(&bytes[bytes.len() / 2..]);
    let second = async move {
        // Else the server never sends the first half.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        if breaks { Err(std::io::Error::other("broken off")) } else { Ok(rest) }
    };
    let halves = stream::iter([Ok(half)]).chain(stream::once(second));
    let mut response = Response::new(Body::from_stream(halves));
    response.headers_mut().insert("content-length", bytes.len().into());
    response
}

fn endless() -> Body {
    let chunk = Bytes::from(vec![b' '; 65536]);
    Body::from_stream(stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone())))
}

struct Pulled {
    result: Result<Image, RegistryError>,
    place: Place,
    layer: Descriptor,
    asked: u64,
}

/// Pulls an image of one layer of 400,000 bytes from a server of this manner.
async fn pull(manner: Manner) -> Pulled {
    let made = Place::new();
    let content: Vec<u8> = (0..400_000_u32).map(|number| (number % 251) as u8).collect();
    let image = image(&made.store, &[&content]);
    let server = Arc::new(Server { manner, image: image.clone(), store: made.store.clone(), asked: AtomicU64::new(0) });
    let router = Router::new()
        .fallback(|State(server): State<Arc<Server>>, request: Request| async move { server.answer(&request) })
        .with_state(Arc::clone(&server));
    let at = serve(router).await;
    let (client, place) = (Client::new(Setup::default()), Place::new());
    let (reference, digest) = (reference(&at, "web"), image.manifest.digest);
    let result = client.pull(&reference, &digest, &image.platform, &place.store, Depth::WithLayers).await;
    Pulled { result, place, layer: image.layers[0].clone(), asked: server.asked.load(Ordering::Relaxed) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_other_bytes_is_refused_and_not_kept() {
    let pulled = pull(Manner::OtherBytes).await;
    assert!(
        matches!(&pulled.result, Err(RegistryError::DigestMismatch { expected, .. }) if *expected == pulled.layer.digest)
    );
    assert!(!pulled.place.has(&pulled.layer));
    assert_eq!(pulled.place.store.partial(&pulled.layer.digest).expect("looked"), 0);
    assert_eq!(pulled.asked, 1, "wrong bytes are not asked for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_layer_is_refused() {
    let pulled = pull(Manner::Truncated).await;
    assert!(!pulled.place.has(&pulled.layer));
    let error = pulled.result.expect_err("truncated");
    assert!(matches!(error, RegistryError::Interrupted { received: 200_000, size: 400_000, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_longer_than_announced_is_cut_off() {
    for (manner, what) in [(Manner::Longer, "endless"), (Manner::AnnouncedLonger, "one byte more")] {
        let pulled = pull(manner).await;
        let size = |error: &RegistryError| {
            matches!(error, RegistryError::SizeMismatch { expected: 400_000, actual: 400_001, .. })
        };
        assert!(pulled.result.as_ref().is_err_and(size), "{what}: {:?}", pulled.result);
        assert!(!pulled.place.has(&pulled.layer));
        assert_eq!(pulled.place.store.partial(&pulled.layer.digest).expect("looked"), 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_continued_where_it_broke() {
    let pulled = pull(Manner::BreaksOften).await;
    pulled.result.expect("pulled");
    assert!(pulled.place.has(&pulled.layer));
    assert_eq!(pulled.asked, 3, "400,000, then 200,000, then 100,000 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_asked_for_everything_again() {
    let pulled = pull(Manner::IgnoresRanges).await;
    pulled.result.expect("pulled");
    assert!(pulled.place.has(&pulled.layer));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_other_or_never_ends_is_refused() {
    let pulled = pull(Manner::OtherManifest).await;
    assert!(matches!(pulled.result, Err(RegistryError::DigestMismatch { .. })), "{:?}", pulled.result);
    let pulled = pull(Manner::EndlessManifest).await;
    assert!(matches!(pulled.result, Err(RegistryError::TooLarge { .. })), "{:?}", pulled.result);
    assert_eq!(pulled.place.store.blobs().expect("listed").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_carry_their_status_and_clean_words() {
    let pulled = pull(Manner::Refuses(StatusCode::IM_A_TEAPOT)).await;
    let error = pulled.result.expect_err("refused").to_string();
    assert!(error.starts_with("get manifest `web:sha256:") && error.ends_with("it answers 418: no way"), "{error}");
    assert_eq!(pulled.asked, 1, "a refusal is not asked again");
    let pulled = pull(Manner::Refuses(StatusCode::FORBIDDEN)).await;
    assert!(matches!(pulled.result, Err(RegistryError::Denied { .. })), "{:?}", pulled.result);
    let pulled = pull(Manner::Refuses(StatusCode::BAD_GATEWAY)).await;
    assert!(matches!(pulled.result, Err(RegistryError::Refused { status: 502, .. })), "{:?}", pulled.result);
    assert_eq!(pulled.asked, 3, "a failing server is asked again");
}
