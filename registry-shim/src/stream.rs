//! Bytes between files and connections: blocking file I/O on its own threads, a bounded number of blocks in between.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;

/// How much is read from a file at once, in bytes.
const BLOCK: usize = 256 * 1024;
/// How many blocks may wait for a slow peer.
const WAITING: usize = 4;

/// `length` bytes of a file from `offset` on, as a body. A file that ends too early breaks the connection, so that the peer does not
/// take what it got for the whole.
pub(crate) fn from_file(mut file: File, offset: u64, length: u64) -> io::Result<Body> {
    file.seek(SeekFrom::Start(offset))?;
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut rest = length;
        while rest > 0 {
            let mut block = vec![0; usize::try_from(rest).unwrap_or(BLOCK).min(BLOCK)];
            rest -= block.len() as u64;
            let block = file.read_exact(&mut block).map(|()| Bytes::from(block));
            let failed = block.is_err();
            if sender.blocking_send(block).is_err() || failed {
                return;
            }
        }
    });
    Ok(Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|block| (block, receiver))
    })))
}

/// Hands the blocks of a body to `sink`, which runs where it may block and says what it made of them.
///
/// The sink sees the end of the blocks also when the peer goes away in the middle or this future is dropped; then
/// [`Blocks::whole`] is false.
pub(crate) async fn into_sink<T: Send + 'static>(
    body: Body,
    sink: impl FnOnce(Blocks) -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let working = tokio::task::spawn_blocking(move || sink(Blocks { receiver, whole: false }));
    let mut blocks = body.into_data_stream();
    loop {
        let message = match blocks.next().await {
            Some(Ok(block)) => Message::Block(block),
            Some(Err(_)) => break,
            None => Message::End,
        };
        let last = matches!(message, Message::End);
        // A sink that ended early has its reason: that is the answer.
        if sender.send(message).await.is_err() || last {
            break;
        }
    }
    drop(sender);
    working.await
}

enum Message {
    Block(Bytes),
    End,
}

/// The blocks of a body, for a thread that may block.
pub(crate) struct Blocks {
    receiver: mpsc::Receiver<Message>,
    whole: bool,
}

impl Blocks {
    /// The next block.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        match self.receiver.blocking_recv() {
            Some(Message::Block(block)) => Some(block),
            Some(Message::End) => {
                self.whole = true;
                None
            }
            None => None,
        }
    }

    /// Whether the body came to its end, rather than the peer going away. Known after the last block.
    pub(crate) fn whole(&self) -> bool {
        self.whole
    }
}
