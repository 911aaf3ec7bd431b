//! One conversation with one `jiji-host`: asks and answers, events, the heartbeat, and what to do when nothing comes.
//!
//! A task writes and a task reads, so a host that answers while it is being sent a blob blocks nobody, and an ask that is given up
//! leaves no half frame behind. Messages overtake pieces of blobs that wait to be written. Answers come in the order of the asks; when
//! one does not come in time, nothing after it can be trusted, so the session is over.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_model::name::{HostName, SecretName};
use jiji_model::protocol::{self, Ask, Decoder, FrameError, FrameKind, Hello, HostEvent, Reply, Request, Tell};
use jiji_model::secret::Secret;
use jiji_model::transaction::LeaseDecision;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::error::{FleetError, LostCause};
use super::pipes::{End, Pipes};

/// How long an answer may take where nothing else is said. Every frame of the host begins the time anew.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long the greeting may take.
const GREETING: Duration = Duration::from_secs(20);

/// How long a session may take to end once its input has.
const LEAVE: Duration = Duration::from_secs(5);

/// Time between two signs of life while a lease is held.
const HEARTBEAT: Duration = if cfg!(test) { Duration::from_millis(40) } else { Duration::from_secs(3) };

/// Pieces of blobs that wait to be written: what a slow line makes this process hold in memory, for each host.
const WAITING: usize = 4;

/// Hears what a host tells while it works.
pub type Listener = Arc<dyn Fn(HostEvent) + Send + Sync>;

/// A session with `jiji-host` on one host.
pub struct Session {
    shared: Arc<Shared>,
    hello: Hello,
    address: Option<String>,
    execs: u32,
    messages: Option<mpsc::Sender<Item>>,
    blobs: Option<mpsc::Sender<Item>>,
    ahead: Mutex<Ahead>,
    heartbeat: Mutex<Option<JoinHandle<()>>>,
    end: Option<End>,
}

/// What has passed through a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Programs that were started on the host: 1, or 2 at first contact.
    pub execs: u32,
    /// Bytes sent to the host, `jiji-host` itself counted.
    pub sent: u64,
    /// Bytes that came from it.
    pub received: u64,
}

struct Shared {
    host: HostName,
    sent: AtomicU64,
    received: AtomicU64,
    state: Mutex<State>,
    listener: Mutex<Option<Listener>>,
}

/// A piece of a blob that was asked for.
struct Piece {
    digest: Digest,
    offset: u64,
    content: Option<Vec<u8>>,
}

struct State {
    pending: HashMap<u64, oneshot::Sender<Reply>>,
    piece: Option<Piece>,
    lost: Option<LostCause>,
    /// When the host was last heard, or last took a piece of a blob.
    active: Instant,
}

/// What was asked before its turn, in order, each with where its answer comes.
type Ahead = VecDeque<(Request, oneshot::Receiver<Reply>)>;

/// Something to write.
enum Item {
    Ask(Request, Option<oneshot::Sender<Reply>>),
    Frame(Vec<u8>),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session for all who wait. The first cause stays.
    fn lose(&self, cause: LostCause) {
        let mut state = self.state();
        state.lost.get_or_insert(cause);
        state.pending.clear();
    }

    fn lost(&self, doing: &'static str) -> FleetError {
        let cause = self.state().lost.clone();
        FleetError::Lost { host: self.host.clone(), doing, cause: cause.unwrap_or(LostCause::Left) }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("host", &self.shared.host)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Begins a session on pipes whose next byte is the greeting's first; `early` are bytes that were read already. `execs` and `sent`
    /// is what it took to come this far.
    pub(super) async fn begin(
        host: &HostName,
        pipes: Pipes,
        early: Vec<u8>,
        execs: u32,
        sent: u64,
    ) -> Result<Self, FleetError> {
        let Pipes { stdin, mut stdout, stderr, end } = pipes;
        let mut decoder = Decoder::default();
        decoder.push(&early);
        let mut received = early.len() as u64;
        let greeting = tokio::time::timeout(GREETING, async {
            let mut block = vec![0; 8192];
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => return Ok(frame),
                    Ok(None) => {}
                    Err(error) => return Err(error.to_string()),
                }
                match stdout.read(&mut block).await {
                    Ok(count @ 1..) => {
                        received += count as u64;
                        decoder.push(&block[..count]);
                    }
                    Ok(0) => {
                        // What it said before it ended may still be on its way.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        let said = stderr.text();
                        return Err(match said.lines().rev().find(|line| !line.trim().is_empty()) {
                            Some(line) => format!("it ended with `{}`", line.trim()),
                            None => "it ended at once".to_owned(),
                        });
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
        })
        .await;
        let not_started = |cause: String| FleetError::NotStarted { host: host.clone(), cause };
        let frame = greeting
            .map_err(|_| not_started(format!("no greeting within {} seconds", GREETING.as_secs())))?
            .map_err(not_started)?;
        let hello = match protocol::decode::<Tell>(&frame.payload) {
            Ok(Tell::Hello(hello)) => hello,
            Ok(_) | Err(_) => return Err(not_started("it did not greet".to_owned())),
        };
        if hello.protocol != protocol::VERSION {
            return Err(FleetError::Version { host: host.clone(), theirs: hello.protocol });
        }
        let shared = Arc::new(Shared {
            host: host.clone(),
            sent: AtomicU64::new(sent),
            received: AtomicU64::new(received),
            state: Mutex::new(State { pending: HashMap::new(), piece: None, lost: None, active: Instant::now() }),
            listener: Mutex::new(None),
        });
        let (messages, next_message) = mpsc::channel(16);
        let (blobs, next_blob) = mpsc::channel(WAITING);
        tokio::spawn(write(Arc::clone(&shared), stdin, next_message, next_blob));
        tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let cause = match read(&shared, stdout, decoder).await {
                    Ok(()) => LostCause::Closed { stderr: stderr.text() },
                    Err(error) => LostCause::Garbled(Arc::new(error)),
                };
                shared.lose(cause);
            }
        });
        Ok(Self {
            shared,
            hello,
            address: None,
            execs,
            messages: Some(messages),
            blobs: Some(blobs),
            ahead: Mutex::default(),
            heartbeat: Mutex::new(None),
            end: Some(end),
        })
    }

    /// The server.
    pub fn host(&self) -> &HostName {
        &self.shared.host
    }

    /// The same, with what reached it.
    #[must_use]
    pub(super) fn reached_at(mut self, address: Option<String>) -> Self {
        self.address = address;
        self
    }

    /// What reached it, as [`super::Target::url`] writes it; none for this machine.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// What the host said first.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// What has passed so far.
    pub fn counters(&self) -> Counters {
        Counters {
            execs: self.execs,
            sent: self.shared.sent.load(Ordering::Relaxed),
            received: self.shared.received.load(Ordering::Relaxed),
        }
    }

    /// Who hears what the host tells, from now on.
    pub fn listen(&self, listener: Listener) {
        *self.shared.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }

    /// Asks, and waits for the answer. A refusal is an error. Without a frame from the host for `patience`, the session is over.
    ///
    /// Once a lease was granted, the host is told regularly that this end is alive, until the lease is given back.
    ///
    /// # Errors
    /// [`FleetError::Lost`], after which it is unknown what the host did, and [`FleetError::Refused`].
    pub async fn ask(&self, request: Request, patience: Duration) -> Result<Reply, FleetError> {
        let doing = doing(&request);
        let releases = matches!(request, Request::Release);
        let reply = match self.asked_ahead(&request).await {
            Some(answered) => self.answer(answered, patience, doing).await?,
            None => self.exchange(self.messages.as_ref(), request, patience).await?,
        };
        match &reply {
            Reply::Refused { why, message } => {
                return Err(FleetError::Refused {
                    host: self.shared.host.clone(),
                    doing,
                    why: *why,
                    message: message.clone(),
                });
            }
            Reply::Lease(LeaseDecision::Granted(_)) => self.keep_alive(),
            _ if releases => self.stop_heartbeat(),
            _ => {}
        }
        Ok(reply)
    }

    /// Asks already what the next calls of [`Self::ask`] are to ask, in this order. Those get the answers; once something else is asked,
    /// the answers to the rest are dropped, and a phase that the host is at is interrupted.
    pub async fn ask_ahead(&self, requests: Vec<Request>) {
        self.drop_ahead().await;
        for request in requests {
            let (answer, answered) = oneshot::channel();
            let doing = doing(&request);
            if self.queue(self.messages.as_ref(), Item::Ask(request.clone(), Some(answer)), doing).await.is_err() {
                // Whoever asks for it is told.
                return;
            }
            self.ahead().push_back((request, answered));
        }
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the answer to `request` comes, if that is what was asked ahead.
    async fn asked_ahead(&self, request: &Request) -> Option<oneshot::Receiver<Reply>> {
        let answered = {
            let mut ahead = self.ahead();
            let is_next = ahead.front().is_some_and(|(next, _)| next == request);
            if is_next { ahead.pop_front() } else { None }
        };
        if answered.is_none() {
            self.drop_ahead().await;
        }
        answered.map(|(_, answered)| answered)
    }

    /// Nobody will ask for what is left of what was asked ahead.
    async fn drop_ahead(&self) {
        let left = std::mem::take(&mut *self.ahead());
        if left.iter().any(|(request, _)| matches!(request, Request::Run { .. })) {
            // A host that does not take it is told of by whoever asks next.
            let _ = self.tell(Request::Interrupt).await;
        }
    }

    /// Asks for a piece of a blob of the host's store. One at a time: who asks for another meanwhile gets what was asked for last.
    pub(super) async fn ask_piece(&self, digest: Digest, offset: u64) -> Result<Vec<u8>, FleetError> {
        self.shared.state().piece = Some(Piece { digest, offset, content: None });
        let replied = self.ask(Request::Piece { digest, offset }, PATIENCE).await;
        let piece = self.shared.state().piece.take();
        replied?;
        let doing = "send a blob back";
        piece
            .and_then(|piece| piece.content)
            .ok_or_else(|| FleetError::Unexpected { host: self.shared.host.clone(), doing })
    }

    /// Asks after all pieces of blobs that wait.
    pub(super) async fn ask_after_blobs(&self, request: Request, patience: Duration) -> Result<Reply, FleetError> {
        self.exchange(self.blobs.as_ref(), request, patience).await
    }

    /// Sends what has no answer.
    ///
    /// # Errors
    /// [`FleetError::Lost`].
    pub async fn tell(&self, request: Request) -> Result<(), FleetError> {
        let doing = doing(&request);
        self.queue(self.messages.as_ref(), Item::Ask(request, None), doing).await
    }

    /// Sends secrets, before the first ask that needs them.
    ///
    /// # Errors
    /// [`FleetError::Lost`].
    pub async fn send_secrets(&self, secrets: &BTreeMap<SecretName, Secret>) -> Result<(), FleetError> {
        let frame = Item::Frame(protocol::encode_secrets(secrets));
        self.queue(self.messages.as_ref(), frame, "send secrets").await
    }

    /// Sends a piece of a blob. Waits while [`WAITING`] others wait.
    pub(super) async fn send_piece(&self, frame: Vec<u8>) -> Result<(), FleetError> {
        self.queue(self.blobs.as_ref(), Item::Frame(frame), "send blobs").await
    }

    async fn queue(
        &self,
        queue: Option<&mpsc::Sender<Item>>,
        item: Item,
        doing: &'static str,
    ) -> Result<(), FleetError> {
        let lost = || self.shared.lost(doing);
        if self.shared.state().lost.is_some() {
            return Err(lost());
        }
        let send = async { queue.ok_or_else(lost)?.send(item).await.map_err(|_| lost()) };
        self.patiently(send, PATIENCE, doing).await?
    }

    async fn exchange(
        &self,
        queue: Option<&mpsc::Sender<Item>>,
        request: Request,
        patience: Duration,
    ) -> Result<Reply, FleetError> {
        let doing = doing(&request);
        let (answer, answered) = oneshot::channel();
        self.queue(queue, Item::Ask(request, Some(answer)), doing).await?;
        self.answer(answered, patience, doing).await
    }

    async fn answer(
        &self,
        answered: oneshot::Receiver<Reply>,
        patience: Duration,
        doing: &'static str,
    ) -> Result<Reply, FleetError> {
        self.patiently(answered, patience, doing).await?.map_err(|_| self.shared.lost(doing))
    }

    /// Waits for `future` as long as something passes at least every `patience`.
    async fn patiently<F: Future>(
        &self,
        future: F,
        patience: Duration,
        doing: &'static str,
    ) -> Result<F::Output, FleetError> {
        let begun = Instant::now();
        tokio::pin!(future);
        loop {
            let until = self.shared.state().active.max(begun) + patience;
            match tokio::time::timeout_at(until, &mut future).await {
                Ok(output) => return Ok(output),
                Err(_) if self.shared.state().active.max(begun) + patience > Instant::now() => {}
                Err(_) => {
                    self.shared.lose(LostCause::Silent { seconds: patience.as_secs() });
                    return Err(self.shared.lost(doing));
                }
            }
        }
    }

    fn keep_alive(&self) {
        let mut heartbeat = self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        if heartbeat.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Some(messages) = self.messages.clone() else { return };
        *heartbeat = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                if messages.send(Item::Ask(Request::Heartbeat, None)).await.is_err() {
                    return;
                }
            }
        }));
    }

    fn stop_heartbeat(&self) {
        if let Some(task) = self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }

    /// Ends the session: the host's input ends, and it gets some seconds to finish.
    pub async fn close(mut self) {
        self.leave();
        if let Some(end) = self.end.take() {
            end.wait(LEAVE).await;
        }
    }

    fn leave(&mut self) {
        self.stop_heartbeat();
        self.messages = None;
        self.blobs = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What a request is, as an imperative that fits before "on `HOST`".
fn doing(request: &Request) -> &'static str {
    match request {
        Request::Observe { .. } => "observe",
        Request::Offer { .. } => "offer blobs",
        Request::Received { .. } => "verify blobs",
        Request::Piece { .. } => "send a blob back",
        Request::Repair { .. } => "repair records",
        Request::Acquire(_) => "take the lease",
        Request::Heartbeat => "keep the lease",
        Request::Begin(_) => "begin the transaction",
        Request::Run { .. } => "run steps",
        Request::Interrupt => "interrupt steps",
        Request::Settle(_) => "settle the transaction",
        Request::Undo => "take steps back",
        Request::Conclude { .. } => "conclude the transaction",
        Request::Release => "give the lease back",
    }
}

/// Writes what is queued, messages before pieces of blobs, until both queues end or the pipe breaks.
async fn write(
    shared: Arc<Shared>,
    mut stdin: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
    mut messages: mpsc::Receiver<Item>,
    mut blobs: mpsc::Receiver<Item>,
) {
    let mut next = 0;
    loop {
        let (item, bulk) = tokio::select! {
            biased;
            Some(item) = messages.recv() => (item, false),
            Some(item) = blobs.recv() => (item, true),
            else => break,
        };
        let bytes = match item {
            Item::Frame(bytes) => bytes,
            Item::Ask(request, answer) => {
                next += 1;
                if let Some(answer) = answer {
                    let mut state = shared.state();
                    if state.lost.is_some() {
                        continue;
                    }
                    state.pending.insert(next, answer);
                }
                protocol::encode(&Ask { id: next, request })
            }
        };
        if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
            // Why the pipe broke is told by the end of what the host writes, which the reader waits for; were it to wait for ever, the
            // patience of those who ask ends it.
            break;
        }
        shared.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if bulk {
            shared.state().active = Instant::now();
        }
    }
    let _ = stdin.shutdown().await;
}

/// Reads frames until the pipe ends.
async fn read(
    shared: &Shared,
    mut stdout: std::pin::Pin<Box<dyn tokio::io::AsyncRead + Send>>,
    mut decoder: Decoder,
) -> Result<(), FrameError> {
    let mut block = vec![0; 64 * 1024];
    loop {
        while let Some(frame) = decoder.next_frame()? {
            shared.state().active = Instant::now();
            if frame.kind == FrameKind::Blob {
                let (digest, offset, content) = protocol::decode_blob(&frame.payload)?;
                let mut state = shared.state();
                // One that nobody asked for is not of the protocol.
                let Some(piece) = state.piece.as_mut().filter(|piece| (piece.digest, piece.offset) == (digest, offset))
                else {
                    return Err(FrameError::Malformed { what: "blob" });
                };
                piece.content = Some(content.to_vec());
                continue;
            }
            if frame.kind != FrameKind::Message {
                return Err(FrameError::Malformed { what: "answer" });
            }
            match protocol::decode::<Tell>(&frame.payload)? {
                Tell::Hello(_) => return Err(FrameError::Malformed { what: "greeting" }),
                Tell::Answer { id, reply } => {
                    // Whoever asked may have stopped waiting.
                    if let Some(answer) = shared.state().pending.remove(&id) {
                        let _ = answer.send(reply);
                    }
                }
                Tell::Event(event) => {
                    if event == HostEvent::LeaseLost {
                        shared.lose(LostCause::LeaseLost);
                    }
                    let listener = shared.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    if let Some(listener) = listener {
                        listener(event);
                    }
                }
            }
        }
        match stdout.read(&mut block).await {
            Ok(count @ 1..) => {
                shared.received.fetch_add(count as u64, Ordering::Relaxed);
                decoder.push(&block[..count]);
            }
            Ok(0) | Err(_) => return Ok(()),
        }
    }
}
