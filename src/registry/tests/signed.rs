//! Against a server that wants tokens, as the large registries do (distribution, "Token Authentication Specification").

use axum::extract::{Request, State};
use axum::response::Response;
use jiji_model::secret::Secret;
use reqwest::StatusCode;

use super::*;
use crate::registry::{Credentials, Depth, Push, RegistryError};

#[derive(Clone)]
struct Gate {
    registry: Registry,
    log: Arc<Mutex<Vec<String>>>,
}

async fn answer(State(gate): State<Gate>, request: Request) -> Response {
    let [allowed, host] = ["authorization", "host"]
        .map(|name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned());
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    gate.log.lock().expect("a list").push(format!("{} {path}", request.method()));
    if path == "/token" {
        // alice:wonderland may push, anybody may pull.
        let known = allowed == "Basic YWxpY2U6d29uZGVybGFuZA==";
        let pushes = query.contains("push");
        if !known && (pushes || !allowed.is_empty()) {
            return refused(&host);
        }
        return Response::new(format!("{{\"token\":\"{}\"}}", if known { "alice" } else { "guest" }).into());
    }
    let reads = matches!(request.method().as_str(), "GET" | "HEAD");
    if path != "/v2/" && (allowed == "Bearer alice" || (reads && allowed == "Bearer guest")) {
        return gate.registry.answer(request).await;
    }
    refused(&host)
}

fn refused(host: &str) -> Response {
    let mut response = Response::new("{}".into());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"gate\"");
    response.headers_mut().insert("www-authenticate", challenge.parse().expect("a header"));
    response
}

async fn gate() -> (Place, String, Arc<Mutex<Vec<String>>>) {
    let place = Place::new();
    let registry = Registry::read_write(place.store.clone(), &place.dir.path().join("names")).expect("names");
    let log = Arc::new(Mutex::new(Vec::new()));
    let gate = Gate { registry, log: Arc::clone(&log) };
    (place, serve(Router::new().fallback(answer).with_state(gate)).await, log)
}

fn signed_in(password: &'static str) -> Client {
    let credentials =
        Arc::new(move |_: &str| Some(Credentials { username: "alice".to_owned(), password: Secret::new(password) }));
    Client::new(Setup { credentials, ..Setup::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_had_for_strangers_and_for_users() {
    let (made, (_server, at, log)) = (Place::new(), gate().await);
    let image = image(&made.store, &[b"layer"]);
    let to = repository(&at, "shop/web");
    let push = Push { image: &image, to: &to, tag: None, bases: &[] };

    let stranger = Client::new(Setup::default()).push(push, &made.store).await;
    assert!(matches!(stranger, Err(RegistryError::Unauthorized { with_credentials: false, .. })), "{stranger:?}");
    let wrong = signed_in("looking-glass").push(push, &made.store).await;
    assert!(matches!(wrong, Err(RegistryError::Unauthorized { with_credentials: true, .. })), "{wrong:?}");
    assert!(!format!("{wrong:?}").contains("looking-glass"));
    let alice = signed_in("wonderland");
    assert_eq!(alice.push(push, &made.store).await.expect("pushed").sent, 2);

    log.lock().expect("a list").clear();
    assert!(alice.push(push, &made.store).await.expect("unchanged").unchanged);
    assert_eq!(log.lock().expect("a list").len(), 1, "a second push with a token at hand is one request");
    let grown = super::image(&made.store, &[b"layer", b"one more"]);
    log.lock().expect("a list").clear();
    alice.push(Push { image: &grown, ..push }, &made.store).await.expect("pushed");
    let asked = log.lock().expect("a list").clone();
    let count = |what: &str| asked.iter().filter(|line| line.starts_with(what)).count();
    assert_eq!((count("HEAD"), count("POST"), count("PUT"), asked.len()), (4, 2, 3, 9), "{asked:#?}");

    let (client, place) = (Client::new(Setup::default()), Place::new());
    let (reference, digest) = (reference(&at, "shop/web"), image.manifest.digest);
    client.pull(&reference, &digest, &image.platform, &place.store, Depth::WithLayers).await.expect("pulled");
    assert!(image.blobs().all(|blob| place.has(blob)));
}
