//! A session: frames in, frames out, asks in their order.
//!
//! One thread does the work. Two more move bytes between it and the pipes, so that an operator who does not read, or a step that takes its
//! time, blocks neither heartbeats nor blobs. While an ask is worked on, the reader takes in what needs no answer: heartbeats, blobs,
//! secrets, an interrupt. When the input ends, the step in hand is finished and journaled, and what was asked after it is left undone.

mod keeper;
mod receive;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Seek as _, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_model::protocol::{
    Ask, Decoder, Frame, FrameError, FrameKind, Hello, HostEvent, PIECE, RefusalKind, Reply, Request, Tell, VERSION,
    decode, decode_blob, decode_secrets, encode, encode_blob,
};
use jiji_model::transaction::Refused;
use tokio::sync::{Notify, OnceCell, mpsc};

use crate::Settings;
use crate::engine::{Engine, EngineError};
use crate::lease::{Held, LeaseError};
use crate::observe::{Observer, architecture, chain};
use crate::place::{Place, PlaceError};
use crate::secrets::Secrets;
use keeper::Keeper;
use receive::Receiver;

/// How long what was told last may take to be written, when the session ends.
const FLUSH: Duration = Duration::from_secs(10);

/// How long another session may take to receive a blob that was sent to both.
const BUSY: Duration = Duration::from_secs(120);

/// Time between two looks at whether the operator is still heard.
const LOOK: Duration = Duration::from_secs(1);

/// Why a session did not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The bytes that came are not frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Standard input could not be read.
    #[error("read standard input: {0}")]
    Input(io::Error),
    /// The runtime could not be started.
    #[error("start the runtime: {0}")]
    Runtime(io::Error),
    /// Nothing was heard of the operator for twice as long as its lease lasts.
    #[error("hear the operator: the line is silent, and its lease has expired")]
    Silent,
    /// A newer session or an administrator ended this one.
    #[error("go on: this session was told to end")]
    Ended,
}

/// Makes this process the leader of a process group of its own, so that a newer session can end it and nothing else with it.
pub fn lead_own_group() {
    // A session leader leads its group already and is refused.
    let _ = rustix::process::setpgid(None, None);
}

/// Speaks frames on `input` and `output` until the input ends.
///
/// # Errors
/// [`SessionError`] when it ended for another reason.
pub fn run(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    settings: Settings,
) -> Result<(), SessionError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SessionError::Runtime)?;
    let (bytes, chunks) = mpsc::channel(16);
    // The thread ends with the input; where a read never returns, with the process.
    std::thread::spawn(move || pump(input, &bytes));
    let (outbox, writer) = Outbox::over(output);
    let result = runtime.block_on(async {
        let session = Session::new(settings, outbox);
        // sudo may give this program a terminal that goes with the connection. The input ends then, which is what counts.
        let _hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        let ended = async {
            match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                Ok(mut signal) => signal.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            result = session.live(chunks) => result,
            _ = ended => {
                if session.lease.borrow().is_some() {
                    session.outbox.event(HostEvent::LeaseLost);
                }
                Err(SessionError::Ended)
            }
        }
    });
    // A blocked pipe must not keep what nobody hears.
    runtime.shutdown_background();
    writer.finish();
    result
}

fn pump(mut input: impl Read, chunks: &mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut block = vec![0; 128 * 1024];
    loop {
        let chunk = match input.read(&mut block) {
            Ok(0) => return,
            Ok(count) => Ok(block[..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let over = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || over {
            return;
        }
    }
}

/// Where frames for the operator go. They are written in their order by a thread of their own.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    frames: std::sync::mpsc::Sender<Vec<u8>>,
    closed: Arc<AtomicBool>,
}

/// The thread that writes.
struct Writer {
    done: std::sync::mpsc::Receiver<()>,
}

impl Outbox {
    fn over(mut output: impl Write + Send + 'static) -> (Self, Writer) {
        let (frames, queue) = std::sync::mpsc::channel::<Vec<u8>>();
        let (ended, done) = std::sync::mpsc::channel();
        let closed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&closed);
        std::thread::spawn(move || {
            for frame in queue {
                if output.write_all(&frame).and_then(|()| output.flush()).is_err() {
                    flag.store(true, Ordering::Relaxed);
                    break;
                }
            }
            // Nobody may wait for it any more.
            let _ = ended.send(());
        });
        (Self { frames, closed }, Writer { done })
    }

    fn tell(&self, tell: &Tell) {
        self.frame(encode(tell));
    }

    fn frame(&self, frame: Vec<u8>) {
        if self.frames.send(frame).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Tells of something that happened.
    pub(crate) fn event(&self, event: HostEvent) {
        self.tell(&Tell::Event(event));
    }

    /// Whether the operator's end was closed.
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Waits until what was told is written, for a while. The last [`Outbox`] must be gone.
    fn finish(self) {
        let _ = self.done.recv_timeout(FLUSH);
    }
}

/// A wish to stop, and whether it was heard.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    wanted: Cell<bool>,
    changed: Notify,
}

impl Stop {
    fn want(&self) {
        self.wanted.set(true);
        self.changed.notify_waiters();
    }

    /// Whether it is wished for.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.get()
    }

    /// Waits for the wish.
    pub(crate) async fn wanted(&self) {
        loop {
            let changed = self.changed.notified();
            if self.wanted.get() {
                return;
            }
            changed.await;
        }
    }
}

/// A refusal, as [`Reply::Refused`] says it.
#[derive(Debug)]
pub(crate) struct Refusal {
    why: RefusalKind,
    message: String,
}

impl Refusal {
    pub(crate) fn new(why: RefusalKind, message: impl Into<String>) -> Self {
        Self { why, message: message.into() }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::new(refused.why, refused.message)
    }
}

impl From<PlaceError> for Refusal {
    fn from(error: PlaceError) -> Self {
        let why = match error {
            PlaceError::Newer { .. } => RefusalKind::NewerFormat,
            _ => RefusalKind::Io,
        };
        Self::new(why, chain(&error))
    }
}

impl From<LeaseError> for Refusal {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Place(error) => error.into(),
            LeaseError::Lost { .. } => Self::new(RefusalKind::NoLease, chain(&error)),
            LeaseError::Survives { .. } | LeaseError::Locked | LeaseError::Proc(_) => {
                Self::new(RefusalKind::Io, chain(&error))
            }
        }
    }
}

impl From<jiji_store::StoreError> for Refusal {
    fn from(error: jiji_store::StoreError) -> Self {
        let why = match error {
            jiji_store::StoreError::Version { .. } => RefusalKind::NewerFormat,
            _ => RefusalKind::Io,
        };
        Self::new(why, chain(&error))
    }
}

/// Everything that one session knows. The reader and the worker share it; neither holds a borrow while it waits.
pub(crate) struct Session {
    settings: Settings,
    place: Place,
    outbox: Outbox,
    engine: OnceCell<Result<Option<Engine>, EngineError>>,
    secrets: RefCell<Rc<Secrets>>,
    receiver: RefCell<Receiver>,
    lease: RefCell<Option<Held>>,
    /// The input ended or the lease was lost: nothing new is begun.
    closing: Stop,
    /// Somebody wants the phase at work to stop.
    interrupt: Stop,
    /// How many runs were asked for and not answered.
    runs: Cell<usize>,
}

impl Session {
    fn new(settings: Settings, outbox: Outbox) -> Self {
        let place = if settings.rootless { Place::of_user(&settings.root) } else { Place::new(&settings.root) };
        Self {
            receiver: RefCell::new(Receiver::new(place.clone())),
            settings,
            place,
            outbox,
            engine: OnceCell::new(),
            secrets: RefCell::default(),
            lease: RefCell::default(),
            closing: Stop::default(),
            interrupt: Stop::default(),
            runs: Cell::new(0),
        }
    }

    async fn live(&self, chunks: mpsc::Receiver<io::Result<Vec<u8>>>) -> Result<(), SessionError> {
        self.outbox.tell(&Tell::Hello(Hello {
            protocol: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            architecture: architecture().to_owned(),
            root: rustix::process::geteuid().is_root(),
        }));
        let (asks, queue) = mpsc::unbounded_channel();
        let reading = async {
            let result = tokio::select! {
                result = self.read(chunks, asks) => result,
                () = self.closing.wanted() => Ok(()),
                () = self.given_up() => Err(SessionError::Silent),
            };
            self.closing.want();
            result
        };
        // Which engine there is takes a start of its command line. The first question comes a round trip later, and often a build later.
        let early = async {
            tokio::select! {
                _ = self.engine() => {}
                () = self.closing.wanted() => {}
            }
        };
        let (result, (), ()) = tokio::join!(reading, self.work(queue), early);
        if matches!(result, Err(SessionError::Silent))
            && let Some(held) = self.lease.take()
        {
            // It is void, and whoever looks next sees that; what is left of it says nothing to anybody.
            let _ = held.release();
        }
        result
    }

    /// Ends when a lease is held and its operator was not heard for so long that nobody is there. A line that went silent does not tell:
    /// sshd waits for an acknowledgement until TCP gives up, which takes a quarter of an hour (tcp_retries2 in tcp(7)), and where it has
    /// nothing to send, for good.
    async fn given_up(&self) {
        let mut silent = false;
        loop {
            let patience = self.lease.borrow().as_ref().map_or(LOOK, Held::patience);
            if patience.is_zero() && silent {
                return;
            }
            // Once more: where this process itself was frozen, what was said meanwhile is read only now.
            silent = patience.is_zero();
            // Looked at again and again: a clock that goes on while the machine sleeps is not this timer's.
            tokio::time::sleep(if silent { LOOK } else { patience.min(LOOK) }).await;
        }
    }

    async fn read(
        &self,
        mut chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
        asks: mpsc::UnboundedSender<Ask>,
    ) -> Result<(), SessionError> {
        let mut decoder = Decoder::default();
        while let Some(chunk) = chunks.recv().await {
            decoder.push(&chunk.map_err(SessionError::Input)?);
            while let Some(frame) = decoder.next_frame()? {
                self.take(&frame, &asks)?;
            }
        }
        Ok(())
    }

    /// Takes a frame in: does at once what needs no answer, and queues the rest.
    fn take(&self, frame: &Frame, asks: &mpsc::UnboundedSender<Ask>) -> Result<(), SessionError> {
        match frame.kind {
            FrameKind::Blob => {
                let (digest, offset, content) = decode_blob(&frame.payload)?;
                self.receiver.borrow_mut().append(&digest, offset, content);
            }
            FrameKind::Secrets => {
                let mut secrets = Secrets::clone(&self.secrets.borrow());
                secrets.add(decode_secrets(&frame.payload)?);
                self.secrets.replace(Rc::new(secrets));
            }
            FrameKind::Message => {
                let ask: Ask = decode(&frame.payload)?;
                match &ask.request {
                    Request::Heartbeat => {
                        self.heartbeat();
                        return Ok(());
                    }
                    Request::Interrupt => {
                        if self.runs.get() > 0 {
                            self.interrupt.want();
                        }
                        return Ok(());
                    }
                    Request::Run { .. } => self.runs.set(self.runs.get() + 1),
                    // The lengths must be known before the blobs that may follow at once.
                    Request::Offer { blobs } => self.receiver.borrow_mut().expect(blobs),
                    _ => {}
                }
                // The worker ends only after the reader.
                let _ = asks.send(ask);
            }
        }
        Ok(())
    }

    fn heartbeat(&self) {
        let mut lease = self.lease.borrow_mut();
        // Another failure does not end a lease that still runs: a disk may be full for a moment.
        if let Some(Err(LeaseError::Lost { .. })) = lease.as_mut().map(Held::heartbeat) {
            *lease = None;
            self.outbox.event(HostEvent::LeaseLost);
            self.closing.want();
        }
    }

    async fn work(&self, mut queue: mpsc::UnboundedReceiver<Ask>) {
        let mut keeper = Keeper::new(self);
        loop {
            let ask = tokio::select! {
                biased;
                () = self.closing.wanted() => return,
                ask = queue.recv() => ask,
            };
            let Some(Ask { id, request }) = ask else { return };
            let run = matches!(request, Request::Run { .. });
            let reply = self.answer(&mut keeper, request).await.unwrap_or_else(|refusal| Reply::Refused {
                why: refusal.why,
                message: self.secrets.borrow().redact(&refusal.message),
            });
            if run {
                self.runs.set(self.runs.get().saturating_sub(1));
                // Whoever wants one phase to stop wants none of those that were asked along with it.
                self.interrupt.wanted.set(self.interrupt.is_wanted() && self.runs.get() > 0);
            }
            self.outbox.tell(&Tell::Answer { id, reply });
            if self.outbox.is_closed() {
                self.closing.want();
            }
        }
    }

    async fn answer(&self, keeper: &mut Keeper<'_>, request: Request) -> Result<Reply, Refusal> {
        match request {
            Request::Observe { wants } => {
                let secrets = Rc::clone(&self.secrets.borrow());
                let observer = Observer {
                    settings: &self.settings,
                    place: &self.place,
                    engine: self.engine().await,
                    secrets: &secrets,
                };
                Ok(Reply::Facts(observer.look(wants).await))
            }
            Request::Offer { blobs } => {
                let digests: Vec<_> = blobs.into_iter().map(|(digest, _)| digest).collect();
                Ok(Reply::Blobs(self.receiver.borrow_mut().state(&digests)?))
            }
            Request::Received { digests } => {
                let begun = std::time::Instant::now();
                while begun.elapsed() < BUSY && !self.closing.is_wanted() && self.receiver.borrow_mut().is_waiting()? {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(Reply::Blobs(self.receiver.borrow_mut().state(&digests)?))
            }
            Request::Piece { digest, offset } => self.piece(&digest, offset),
            Request::Repair { scope, files, release } => {
                keeper.repair(&scope, &files, release.map(|release| *release)).await
            }
            Request::Acquire(request) => keeper.acquire(&request).await,
            Request::Begin(begin) => keeper.begin(*begin),
            Request::Run { phase } => keeper.run(phase).await,
            Request::Settle(settlement) => keeper.settle(settlement),
            Request::Undo => keeper.undo().await,
            Request::Conclude { release, retain, audit } => keeper.conclude(release.as_deref(), retain, audit).await,
            Request::Release => keeper.release(),
            // Never queued.
            Request::Heartbeat | Request::Interrupt => Ok(Reply::Done),
        }
    }

    /// Sends a piece of a blob. A session that only looks has opened no store, and this opens none: that would create and sweep it.
    fn piece(&self, digest: &Digest, offset: u64) -> Result<Reply, Refusal> {
        let path = self.place.store().join("blobs/sha256").join(digest.hex());
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                Refusal::new(RefusalKind::Absent, format!("send blob `{digest}`: it is not here"))
            }
            _ => Refusal::new(RefusalKind::Io, format!("send blob `{digest}`: {error}")),
        };
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        file.seek(io::SeekFrom::Start(offset)).map_err(failed)?;
        let mut piece = Vec::new();
        file.take(PIECE as u64).read_to_end(&mut piece).map_err(failed)?;
        self.outbox.frame(encode_blob(digest, offset, &piece));
        Ok(Reply::Done)
    }

    async fn engine(&self) -> &Result<Option<Engine>, EngineError> {
        self.engine.get_or_init(|| Engine::find(&self.settings)).await
    }
}
