//! Small changes, each of which is one request of Docker's daemon.
//!
//! The command line makes the same request, and to start it takes longer than the daemon takes for the change. So where looks go through
//! the socket, these do too. Whatever the daemon answers but success, the command line is asked after all: what it says is for people,
//! and each of these changes may be made twice.

use std::time::{Duration, Instant};

use hyper::Method;
use jiji_model::project::Engine as Kind;

use super::{Engine, EngineError};
use crate::command::Output;

/// The least time that the command line gets where the daemon took all of it.
const LEAST: Duration = Duration::from_secs(1);

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// An image gets a name.
    Tag {
        /// The image's id.
        image: &'a str,
        /// `REPOSITORY:TAG`.
        name: &'a str,
    },
    /// A name of an image goes; with the last one, or by its id, the image.
    RemoveImage(&'a str),
    /// A container is asked to end, and killed where it does not.
    Stop {
        /// Its name.
        container: &'a str,
        /// After how long it is killed.
        seconds: u32,
    },
    /// A container goes, at once, with the volumes that have no name: nobody could find them again.
    RemoveContainer(&'a str),
}

impl Change<'_> {
    /// The command's first word.
    fn verb(self) -> &'static str {
        match self {
            Self::Tag { .. } => "tag",
            Self::RemoveImage(_) => "rmi",
            Self::Stop { .. } => "stop",
            Self::RemoveContainer(_) => "rm",
        }
    }

    /// The words of the command.
    fn argv(self, engine: &Engine) -> Vec<String> {
        let seconds;
        let words: Vec<&str> = match self {
            Self::Tag { image, name } => vec![image, name],
            Self::RemoveImage(name) => vec![name],
            Self::Stop { container, seconds: given } => {
                seconds = given.to_string();
                vec!["-t", &seconds, container]
            }
            // Docker kills what still runs, Podman would first wait as long as the container may take to stop.
            Self::RemoveContainer(name) if engine.kind == Kind::Podman && engine.at_least(4) => {
                vec!["--force", "--volumes", "--time", "0", name]
            }
            Self::RemoveContainer(name) => vec!["--force", "--volumes", name],
        };
        [self.verb()].into_iter().chain(words).map(str::to_owned).collect()
    }

    /// The request (docs.docker.com, "Engine API": `ImageTag`, `ImageDelete`, `ContainerStop`, `ContainerDelete`). None where a word would
    /// have to be escaped.
    fn request(self) -> Option<(Method, String)> {
        Some(match self {
            Self::Tag { image, name } => {
                let (repository, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
                let path = format!("/images/{}/tag?repo={}&tag={}", plain(image)?, plain(repository)?, plain(tag)?);
                (Method::POST, path)
            }
            Self::RemoveImage(name) => (Method::DELETE, format!("/images/{}", plain(name)?)),
            Self::Stop { container, seconds } => {
                (Method::POST, format!("/containers/{}/stop?t={seconds}", plain(container)?))
            }
            Self::RemoveContainer(name) => (Method::DELETE, format!("/containers/{}?force=true&v=true", plain(name)?)),
        })
    }
}

/// A name that stands for itself in a path and in a query.
fn plain(name: &str) -> Option<&str> {
    let itself = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '/' | '@');
    let parts = || name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
    (name.chars().all(itself) && parts()).then_some(name)
}

impl Engine {
    /// Makes a change. How it ends is no error here.
    ///
    /// # Errors
    /// [`EngineError::Command`] when the command line is needed and cannot be started.
    pub async fn change(&self, change: Change<'_>, limit: Duration) -> Result<Output, EngineError> {
        let begun = Instant::now();
        if let (Some(socket), Some((method, path))) = (&self.socket, change.request())
            && tokio::time::timeout(limit, socket.change(method, &path)).await.is_ok_and(|done| done.is_ok())
        {
            return Ok(Output { exit: Some(0), timed_out: false, stdout: vec![], stderr: vec![], truncated: false });
        }
        let left = limit.saturating_sub(begun.elapsed()).max(LEAST);
        Ok(self.command(change.argv(self)).timeout(left).run().await?)
    }

    /// Makes a change that must succeed.
    ///
    /// # Errors
    /// [`EngineError::Failed`] when it does not.
    pub async fn must_change(&self, change: Change<'_>) -> Result<(), EngineError> {
        let output = self.change(change, super::LOOK).await?;
        if output.ok() { Ok(()) } else { Err(self.failure(change.verb(), &output)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: Change<'_>) -> Option<String> {
        change.request().map(|(method, path)| format!("{method} {path}"))
    }

    #[test]
    fn a_change_is_the_request_that_the_command_line_makes() {
        let image = "sha256:61767e1117f543c42708614be";
        let due = [
            (
                Change::Tag { image, name: "jiji.local/shop/web:0123" },
                "POST /images/sha256:61767e1117f543c42708614be/tag?repo=jiji.local/shop/web&tag=0123",
            ),
            (
                Change::RemoveImage("127.0.0.1:33507/shop/web@sha256:61"),
                "DELETE /images/127.0.0.1:33507/shop/web@sha256:61",
            ),
            (Change::Stop { container: "shop-web-1", seconds: 10 }, "POST /containers/shop-web-1/stop?t=10"),
            (Change::RemoveContainer("shop-web-1"), "DELETE /containers/shop-web-1?force=true&v=true"),
        ];
        for (change, due) in due {
            assert_eq!(request(change).as_deref(), Some(due));
        }
    }

    #[test]
    fn a_name_that_would_be_another_request_goes_to_the_command_line() {
        for name in ["", "..", "a/../b", "a//b", "a?force=1", "a b", "a%2f", "a&t=1", "a#b"] {
            assert_eq!(request(Change::RemoveContainer(name)), None, "{name}");
            assert_eq!(request(Change::Tag { image: "sha256:61", name }), None, "{name}");
        }
        assert_eq!(request(Change::Tag { image: "sha256:61", name: "127.0.0.1:33507/shop/web" }), None);
    }
}
