//! Asks Docker through its socket, where its command line would do the same.
//!
//! To start the command line costs more than ten times what the daemon takes for an answer. What is printed by `docker inspect` is the
//! daemon's JSON as it is, so a look gives the same bytes either way. Where somebody chose another daemon, everything goes through the
//! command line: see [`Socket::of`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::Settings;

/// Most bytes of an answer.
const LIMIT: usize = 16 * 1024 * 1024;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a Docker daemon listens.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
}

/// Why the socket gave no answer. Whoever asks goes on with the command line, which says for people what is wrong.
#[derive(Debug)]
pub struct NoAnswer;

impl Socket {
    /// The socket that the command line would use by itself. None where it was told otherwise: `DOCKER_HOST` and `DOCKER_CONTEXT` count
    /// first, then `currentContext` in its configuration (docs.docker.com, "Docker contexts").
    pub fn of(settings: &Settings) -> Option<Self> {
        if ["DOCKER_HOST", "DOCKER_CONTEXT"]
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|text| !text.is_empty()))
        {
            return None;
        }
        let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let dir = dir.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".docker")));
        let config = dir.map(|dir| std::fs::read(dir.join("config.json")));
        let by_itself = match config {
            None | Some(Err(_)) => true,
            Some(Ok(text)) => is_default(&text),
        };
        by_itself.then(|| Self { path: settings.docker_socket.clone() })
    }

    /// `GET` of a path. None where the daemon has no such thing.
    ///
    /// # Errors
    /// [`NoAnswer`] when it does not answer, or with something else than JSON.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, NoAnswer> {
        tokio::time::timeout(PATIENCE, self.ask(Method::GET, path)).await.map_err(|_| NoAnswer)?
    }

    /// The ids of the containers that these filters (`KEY=VALUE`, as of `docker ps --filter`) let through, running or not.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn containers(&self, filters: &[String]) -> Result<Vec<String>, NoAnswer> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Row {
            id: String,
        }
        let path = format!("/containers/json?all=true&filters={}", query(filters).ok_or(NoAnswer)?);
        let rows = self.get(&path).await?.ok_or(NoAnswer)?;
        let rows: Vec<Row> = serde_json::from_value(rows).map_err(|_| NoAnswer)?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }

    /// With which code a container ends, however long that takes.
    ///
    /// # Errors
    /// [`NoAnswer`], also where there is no such container.
    pub async fn wait(&self, container: &str) -> Result<i32, NoAnswer> {
        if !plain(container) {
            return Err(NoAnswer);
        }
        let answer = self.ask(Method::POST, &format!("/containers/{container}/wait")).await?.ok_or(NoAnswer)?;
        answer["StatusCode"].as_i64().and_then(|code| i32::try_from(code).ok()).ok_or(NoAnswer)
    }

    /// Makes a change, however long that takes. What is so already is well too (304).
    ///
    /// # Errors
    /// [`NoAnswer`], also where the daemon refuses.
    pub async fn change(&self, method: Method, path: &str) -> Result<(), NoAnswer> {
        let (status, _) = self.send(method, path).await?;
        if status.is_success() || status == StatusCode::NOT_MODIFIED { Ok(()) } else { Err(NoAnswer) }
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Option<Value>, NoAnswer> {
        match self.send(method, path).await? {
            (StatusCode::OK, body) => serde_json::from_slice(&body).map(Some).map_err(|_| NoAnswer),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            _ => Err(NoAnswer),
        }
    }

    async fn send(&self, method: Method, path: &str) -> Result<(StatusCode, bytes::Bytes), NoAnswer> {
        let stream = UnixStream::connect(&self.path).await.map_err(|_| NoAnswer)?;
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "docker")
            .header(hyper::header::CONNECTION, "close")
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|_| NoAnswer)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| NoAnswer)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|_| NoAnswer)?;
            let status = response.status();
            let body = http_body_util::Limited::new(response.into_body(), LIMIT);
            Ok((status, body.collect().await.map_err(|_| NoAnswer)?.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::pin!(connection);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection may end together with the answer.
            ended = &mut connection => match ended {
                Ok(()) => answer.await,
                Err(_) => Err(NoAnswer),
            },
        }
    }

    /// The things of one kind (`container`, `image`, `network`) that have these names or ids, in their order, as `inspect` prints them.
    ///
    /// # Errors
    /// [`NoAnswer`], also where a name is none that a path can hold as it is.
    pub async fn inspect(&self, kind: &str, names: &[String]) -> Result<Vec<Value>, NoAnswer> {
        let mut found = Vec::new();
        for name in names {
            if !plain(name) {
                return Err(NoAnswer);
            }
            let path = match kind {
                "network" => format!("/networks/{name}"),
                kind => format!("/{kind}s/{name}/json"),
            };
            found.extend(self.get(&path).await?);
        }
        Ok(found)
    }
}

/// Whether a configuration of the command line names no context, or the one that it has by itself.
fn is_default(config: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        #[serde(default)]
        current_context: String,
    }
    // One that cannot be read is the command line's to complain about.
    serde_json::from_slice::<Config>(config)
        .is_ok_and(|config| config.current_context.is_empty() || config.current_context == "default")
}

/// Filters as the daemon's API wants them: a JSON object of lists, every byte that is not a letter or a digit escaped. None where one has no
/// value.
fn query(filters: &[String]) -> Option<String> {
    let mut lists: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for filter in filters {
        let (key, value) = filter.split_once('=')?;
        lists.entry(key).or_default().push(value);
    }
    let mut text = String::new();
    for byte in serde_json::to_vec(&lists).ok()? {
        if byte.is_ascii_alphanumeric() {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes all");
        }
    }
    Some(text)
}

/// Whether a name stands for itself in a path. `.` and `..` do not, and nor does what has to be escaped.
fn plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_taken_where_the_command_line_would_take_it() {
        assert!(is_default(br#"{"auths":{"example.org":{}}}"#));
        assert!(is_default(br#"{"currentContext":"default"}"#));
        assert!(!is_default(br#"{"currentContext":"elsewhere"}"#));
        assert!(!is_default(b"{"));
    }

    #[test]
    fn filters_are_one_escaped_object_of_lists() {
        let filters = ["label=a.b=c".to_owned(), "label=d=*".to_owned()];
        let escaped = query(&filters).expect("filters");
        assert_eq!(escaped, "%7B%22label%22%3A%5B%22a%2Eb%3Dc%22%2C%22d%3D%2A%22%5D%7D");
        assert_eq!(query(&["running".to_owned()]), None);
    }

    #[test]
    fn a_name_that_would_be_another_path_is_not_put_into_one() {
        assert!(plain("shop-web-0a1b2c3d") && plain("sha256:00ff"));
        for name in ["", "..", "a/b", "a?b", "a b", "a%2f"] {
            assert!(!plain(name), "{name}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_none_and_a_socket_without_a_daemon_is_no_answer() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let dir = tempfile::tempdir().expect("a directory");
        let socket = Socket { path: dir.path().join("docker.sock") };
        assert!(socket.get("/containers/x/json").await.is_err());
        let listener = tokio::net::UnixListener::bind(&socket.path).expect("bound");
        let daemon = async {
            for answer in
                ["200 OK\r\nContent-Length: 10\r\n\r\n{\"Id\":\"a\"}", "404 Not Found\r\nContent-Length: 0\r\n\r\n"]
            {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.expect("a request");
                assert!(
                    request[..read].starts_with(b"GET /containers/"),
                    "{}",
                    String::from_utf8_lossy(&request[..read])
                );
                stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.expect("written");
            }
        };
        let names = ["a".to_owned(), "b".to_owned()];
        let (found, ()) = tokio::join!(socket.inspect("container", &names), daemon);
        assert_eq!(found.expect("answers"), [serde_json::json!({"Id": "a"})]);
        drop(listener);
        std::fs::remove_file(&socket.path).expect("removed");
        assert!(socket.inspect("container", &names).await.is_err());
    }
}
