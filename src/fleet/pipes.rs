//! A running `jiji-host` seen as three pipes and an end, however it was started.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::ssh::Held;

/// How much of what a host writes to standard error is kept, in bytes.
const KEPT: usize = 8 * 1024;

/// The pipes of a program on a host.
pub(super) struct Pipes {
    pub(super) stdin: Pin<Box<dyn AsyncWrite + Send>>,
    pub(super) stdout: Pin<Box<dyn AsyncRead + Send>>,
    pub(super) stderr: Stderr,
    pub(super) end: End,
}

/// What must be let go of when a session ends.
pub(super) enum End {
    /// The program behind ssh, which holds its connection open.
    Ssh(Box<openssh::Child<Held>>),
    /// A child of this process.
    Local(Box<tokio::process::Child>),
    /// A host that this process plays.
    #[cfg(test)]
    Played,
}

impl End {
    /// Waits until the program has ended, but not for long: it ends by itself when its standard input does, and may have a step to
    /// finish first.
    pub(super) async fn wait(self, longest: Duration) {
        match self {
            Self::Ssh(child) => {
                // How it ended says nothing that its last answer did not.
                let _ = tokio::time::timeout(longest, child.wait()).await;
            }
            Self::Local(mut child) => {
                let _ = tokio::time::timeout(longest, child.wait()).await;
            }
            #[cfg(test)]
            Self::Played => {}
        }
    }
}

/// The end of what a host writes to standard error.
#[derive(Clone, Default)]
pub(super) struct Stderr(Arc<Mutex<Vec<u8>>>);

impl Stderr {
    /// Reads a pipe until it ends and keeps the last [`KEPT`] bytes.
    pub(super) fn follow(mut pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let this = Self::default();
        let kept = this.clone();
        tokio::spawn(async move {
            let mut block = vec![0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut block).await {
                let mut kept = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&block[..count]);
                let excess = kept.len().saturating_sub(KEPT);
                kept.drain(..excess);
            }
        });
        this
    }

    /// What was kept, control characters but line breaks replaced.
    pub(super) fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
    }
}
