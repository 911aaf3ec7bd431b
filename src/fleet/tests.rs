//! Sessions against hosts that this process plays, and against the real `jiji-host` over pipes.

use std::collections::BTreeMap;
use std::future::pending;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_model::name::{HostName, SecretName};
use jiji_model::observation::{Answer, BlobFacts, Query, Want};
use jiji_model::plan::Phase;
use jiji_model::protocol::{
    self, Ask, Decoder, FrameKind, Hello, HostEvent, RefusalKind, Reply, Request, Tell, decode_blob, encode,
};
use jiji_model::secret::Secret;
use jiji_model::transaction::{Lease, LeaseDecision, LeaseRequest};
use jiji_store::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::pipes::{End, Pipes, Stderr};
use super::{FleetError, LostCause, Session};

fn one() -> HostName {
    HostName::new("one").expect("a name")
}

/// The host's end of a session.
struct Played {
    input: DuplexStream,
    output: DuplexStream,
    stderr: DuplexStream,
    decoder: Decoder,
}

impl Played {
    /// The next frame: an ask or a piece of a blob.
    async fn frame(&mut self) -> protocol::Frame {
        let mut block = vec![0; 64 * 1024];
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("frames") {
                return frame;
            }
            let count = self.input.read(&mut block).await.expect("open");
            if count == 0 {
                pending::<()>().await;
            }
            self.decoder.push(&block[..count]);
        }
    }

    async fn ask(&mut self) -> Ask {
        let frame = self.frame().await;
        assert_eq!(frame.kind, FrameKind::Message);
        protocol::decode(&frame.payload).expect("an ask")
    }

    async fn tell(&mut self, tell: Tell) {
        self.output.write_all(&encode(&tell)).await.expect("open");
    }

    async fn reply(&mut self, id: u64, reply: Reply) {
        self.tell(Tell::Answer { id, reply }).await;
    }
}

fn hello() -> Tell {
    Tell::Hello(Hello {
        protocol: protocol::VERSION,
        version: "0".to_owned(),
        architecture: "amd64".to_owned(),
        root: true,
    })
}

/// A session with a played host that has greeted. Pipes hold as much as real ones do.
async fn session() -> (Session, Played) {
    let (stdin, input) = tokio::io::duplex(64 * 1024);
    let (output, stdout) = tokio::io::duplex(64 * 1024);
    let (stderr, errors) = tokio::io::duplex(1024);
    let mut played = Played { input, output, stderr, decoder: Decoder::default() };
    played.tell(hello()).await;
    let pipes =
        Pipes { stdin: Box::pin(stdin), stdout: Box::pin(stdout), stderr: Stderr::follow(errors), end: End::Played };
    (Session::begin(&one(), pipes, Vec::new(), 1, 0).await.expect("greeted"), played)
}

const PATIENCE: Duration = Duration::from_secs(5);

fn observe() -> Request {
    Request::Observe { wants: Vec::new() }
}

#[tokio::test]
async fn answers_reach_who_asked_and_events_reach_who_listens() {
    let (session, mut played) = session().await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    session.listen(Arc::new(move |event| ear.lock().expect("free").push(event)));
    let host = async {
        let first = played.ask().await;
        let second = played.ask().await;
        assert_eq!((first.id, second.id), (1, 2));
        played.tell(Tell::Event(HostEvent::StepStarted { step: "s".to_owned(), undo: false })).await;
        played.reply(first.id, Reply::Facts(Vec::new())).await;
        played.reply(second.id, Reply::Done).await;
    };
    let (facts, done, ()) =
        tokio::join!(session.ask(observe(), PATIENCE), session.ask(Request::Release, PATIENCE), host);
    assert_eq!((facts.expect("answered"), done.expect("answered")), (Reply::Facts(Vec::new()), Reply::Done));
    assert_eq!(heard.lock().expect("free").len(), 1);
    let counters = session.counters();
    assert_eq!(counters.execs, 1);
    assert!(counters.sent > 20 && counters.received > 20, "{counters:?}");
}

#[tokio::test]
async fn what_was_asked_ahead_is_not_asked_again_and_what_is_not_wanted_any_more_is_interrupted() {
    let (session, mut played) = session().await;
    let run = |phase| Request::Run { phase };
    session.ask_ahead(vec![observe(), run(Phase::Boot), run(Phase::Prepare)]).await;
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(played.ask().await);
    }
    assert_eq!(asked[2].request, run(Phase::Prepare));
    for ask in &asked {
        played.reply(ask.id, Reply::Done).await;
    }
    for request in [observe(), run(Phase::Boot)] {
        assert_eq!(session.ask(request, PATIENCE).await.expect("answered ahead"), Reply::Done);
    }
    // Something else: the third answer is nobody's.
    let host = async {
        assert_eq!(played.ask().await.request, Request::Interrupt);
        let undo = played.ask().await;
        assert_eq!(undo.request, Request::Undo);
        played.reply(undo.id, Reply::Facts(Vec::new())).await;
    };
    let (undone, ()) = tokio::join!(session.ask(Request::Undo, PATIENCE), host);
    assert_eq!(undone.expect("answered"), Reply::Facts(Vec::new()));
    let host = async {
        let again = played.ask().await;
        assert_eq!(again.request, run(Phase::Prepare), "asked as if it never had been");
        played.reply(again.id, Reply::Done).await;
    };
    let (prepared, ()) = tokio::join!(session.ask(run(Phase::Prepare), PATIENCE), host);
    assert_eq!(prepared.expect("answered"), Reply::Done);
}

#[tokio::test]
async fn a_refusal_is_an_error_that_says_what_was_asked() {
    let (session, mut played) = session().await;
    let host = async {
        let ask = played.ask().await;
        let message = "another run took the lease".to_owned();
        played.reply(ask.id, Reply::Refused { why: RefusalKind::NoLease, message }).await;
    };
    let (end, ()) = tokio::join!(session.ask(Request::Undo, PATIENCE), host);
    let error = end.expect_err("refused");
    assert_eq!(error.to_string(), "take steps back on `one`: another run took the lease");
    assert!(!error.is_lost());
}

#[tokio::test]
async fn a_host_that_says_nothing_is_lost_and_one_that_tells_of_its_work_is_not() {
    let (session, mut played) = session().await;
    let patience = Duration::from_millis(200);
    let host = async {
        let ask = played.ask().await;
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(70)).await;
            played.tell(Tell::Event(HostEvent::StepStarted { step: "s".to_owned(), undo: false })).await;
        }
        played.reply(ask.id, Reply::Done).await;
    };
    let (end, ()) = tokio::join!(session.ask(Request::Undo, patience), host);
    end.expect("it told of its work all the time");
    let error = session.ask(Request::Undo, patience).await.expect_err("it says nothing");
    assert!(matches!(&error, FleetError::Lost { cause: LostCause::Silent { .. }, .. }), "{error}");
    // Nothing after that can be trusted.
    assert!(session.ask(observe(), PATIENCE).await.expect_err("over").is_lost());
}

#[tokio::test]
async fn a_session_that_ends_tells_all_who_wait_with_the_hosts_last_words() {
    let (session, mut played) = session().await;
    let host = async {
        played.ask().await;
        played.ask().await;
        played.stderr.write_all(b"noise\njiji-host: out of memory\n").await.expect("open");
        // The words reach the other end before the end does.
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(played);
    };
    let (first, second, ()) =
        tokio::join!(session.ask(observe(), PATIENCE), session.ask(Request::Undo, PATIENCE), host);
    let error = first.expect_err("lost");
    assert_eq!(error.to_string(), "observe on `one`: the connection ended (`jiji-host: out of memory`)");
    assert!(second.expect_err("lost").is_lost());
}

#[tokio::test]
async fn what_is_not_the_protocol_ends_the_session() {
    let (session, mut played) = session().await;
    let host = async {
        played.ask().await;
        played.output.write_all(b"Segmentation fault\n").await.expect("open");
        played
    };
    let (end, _played) = tokio::join!(session.ask(observe(), PATIENCE), host);
    assert!(matches!(end, Err(FleetError::Lost { cause: LostCause::Garbled(_), .. })));
}

#[tokio::test]
async fn a_lease_is_kept_alive_until_it_is_given_back() {
    let (session, mut played) = session().await;
    let request = LeaseRequest {
        scope: "shop".to_owned(),
        holder: "run".to_owned(),
        who: "ann@laptop".to_owned(),
        fencing: 1,
        ttl_ms: 1000,
    };
    let lease = Lease {
        version: Lease::VERSION,
        holder: "run".to_owned(),
        who: "ann@laptop".to_owned(),
        fencing: 1,
        boot_id: "boot".to_owned(),
        granted_ms: 0,
        expires_ms: 1,
        session: 1,
        session_start: 1,
    };
    let host = async {
        let ask = played.ask().await;
        played.reply(ask.id, Reply::Lease(LeaseDecision::Granted(lease))).await;
        for _ in 0..3 {
            assert_eq!(played.ask().await.request, Request::Heartbeat);
        }
        loop {
            let ask = played.ask().await;
            if ask.request == Request::Release {
                played.reply(ask.id, Reply::Done).await;
                break;
            }
        }
        tokio::time::timeout(Duration::from_millis(150), played.ask()).await
    };
    let operator = async {
        session.ask(Request::Acquire(request), PATIENCE).await.expect("granted");
        tokio::time::sleep(Duration::from_millis(300)).await;
        session.ask(Request::Release, PATIENCE).await.expect("given back");
    };
    let ((), after) = tokio::join!(operator, host);
    assert!(after.is_err(), "no sign of life without a lease");
}

#[tokio::test]
async fn blobs_go_only_where_they_are_missing_and_a_talking_host_blocks_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a store");
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (large, small) = (store.put(&content).expect("stored"), store.put(b"small").expect("stored"));
    let (session, mut played) = session().await;
    let host = async {
        let ask = played.ask().await;
        assert!(matches!(&ask.request, Request::Offer { blobs } if blobs.len() == 2));
        let facts = vec![
            BlobFacts { digest: large, have: 1_000_000, complete: false },
            BlobFacts { digest: small, have: 5, complete: true },
        ];
        played.reply(ask.id, Reply::Blobs(facts)).await;
        // It does not read while it talks, and talks more than a pipe holds.
        for _ in 0..5_000 {
            played.tell(Tell::Event(HostEvent::StepStarted { step: "s".to_owned(), undo: false })).await;
        }
        let mut came = content[..1_000_000].to_vec();
        loop {
            let frame = played.frame().await;
            if frame.kind == FrameKind::Blob {
                let (digest, offset, piece) = decode_blob(&frame.payload).expect("a piece");
                assert_eq!((digest, offset), (large, came.len() as u64));
                came.extend_from_slice(piece);
                continue;
            }
            let ask: Ask = protocol::decode(&frame.payload).expect("an ask");
            assert_eq!(ask.request, Request::Received { digests: vec![large] });
            assert_eq!(Digest::of(&came), large);
            let facts = vec![BlobFacts { digest: large, have: 3_000_000, complete: true }];
            played.reply(ask.id, Reply::Blobs(facts)).await;
            break;
        }
    };
    let last = AtomicU64::new(0);
    let progress = |progress: super::BlobProgress| last.store(progress.sent, Ordering::Relaxed);
    let blobs = [(large, 3_000_000), (small, 5)];
    let (sent, ()) = tokio::join!(session.send_blobs(&store, &blobs, &progress), host);
    let sent = sent.expect("sent");
    assert_eq!((sent.blobs, sent.bytes, sent.sent), (1, 2_000_000, 2_000_000));
    assert_eq!(last.load(Ordering::Relaxed), 2_000_000);
}

#[tokio::test]
async fn a_blob_that_neither_end_has_is_an_error_and_not_a_wait() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a store");
    let digest = Digest::of("nobody has it");
    let (session, mut played) = session().await;
    let host = async {
        let ask = played.ask().await;
        played.reply(ask.id, Reply::Blobs(vec![BlobFacts { digest, have: 0, complete: false }])).await;
    };
    let blobs = [(digest, 9)];
    let (sent, ()) = tokio::join!(session.send_blobs(&store, &blobs, &|_| {}), host);
    assert!(matches!(sent, Err(FleetError::Store { .. })));
}

/// The real `jiji-host`, in a thread, over pipes of the system.
async fn real(root: &std::path::Path) -> Session {
    let (input, stdin) = std::io::pipe().expect("a pipe");
    let (stdout, output) = std::io::pipe().expect("a pipe");
    let settings = jiji_host::Settings {
        root: root.to_owned(),
        // No engine: what is spoken about here needs none.
        path: "/nonexistent".to_owned(),
        ..jiji_host::Settings::default()
    };
    std::thread::spawn(move || jiji_host::run(input, output, settings));
    let stdin = tokio::net::unix::pipe::Sender::from_owned_fd(stdin.into()).expect("a pipe");
    let stdout = tokio::net::unix::pipe::Receiver::from_owned_fd(stdout.into()).expect("a pipe");
    let pipes = Pipes {
        stdin: Box::pin(stdin),
        stdout: Box::pin(stdout),
        stderr: Stderr::follow(tokio::io::empty()),
        end: End::Played,
    };
    Session::begin(&one(), pipes, Vec::new(), 1, 0).await.expect("it greets")
}

#[tokio::test]
async fn the_real_host_answers_keeps_blobs_and_tells_changed_secrets_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path().join("operator")).expect("a store");
    let mut writer = store.writer().expect("begun");
    for number in 0..40_000_u32 {
        writer.write_all(&Digest::of(number.to_be_bytes()).as_bytes()[..]).expect("written");
    }
    let (digest, size) = writer.finish(None).expect("stored");
    let root = dir.path().join("host");

    let session = real(&root).await;
    let sent = session.send_blobs(&store, &[(digest, size)], &|_| {}).await.expect("sent");
    assert_eq!((sent.blobs, sent.sent), (1, size));
    let again = session.send_blobs(&store, &[(digest, size)], &|_| {}).await.expect("looked");
    assert_eq!((again.blobs, again.sent), (0, 0));

    let name = SecretName::new("TOKEN").expect("a name");
    let want = |id: &str, query| Want { id: id.to_owned(), query };
    let wants = vec![
        want("records", Query::Records { scope: "shop".to_owned() }),
        want("mac", Query::SecretsMac { names: vec![name.clone()] }),
    ];
    let secrets = BTreeMap::from([(name, Secret::new("hunter2"))]);
    session.send_secrets(&secrets).await.expect("sent");
    let facts = session.observe(wants).await.expect("answered");
    assert_eq!(facts.len(), 2);
    assert!(matches!(&facts[0].answer, Answer::Records(records) if records.fencing == 0), "{facts:?}");
    assert!(matches!(&facts[1].answer, Answer::Mac(_) | Answer::Absent), "{facts:?}");

    let error = session.ask(Request::Run { phase: Phase::Boot }, PATIENCE).await.expect_err("no lease");
    assert!(matches!(error, FleetError::Refused { .. }), "{error}");
    session.close().await;

    // What was received stays for the next session.
    let session = real(&root).await;
    let again = session.send_blobs(&store, &[(digest, size)], &|_| {}).await.expect("looked");
    assert_eq!(again.blobs, 0);
}
