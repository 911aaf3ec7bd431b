//! Whole sessions over pipes, against an engine that runs nothing. What real engines do is tested in the laboratory.

mod history;
mod transaction;

use std::collections::BTreeMap;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use jiji_model::digest::Digest;
use jiji_model::name::SecretName;
use jiji_model::observation::{Answer, Query, Want};
use jiji_model::protocol::{
    Ask, Decoder, HostEvent, Reply, Request, Tell, decode, encode, encode_blob, encode_secrets,
};
use jiji_model::secret::Secret;
use jiji_model::transaction::{HostRecords, LeaseRequest};
use jiji_store::Store;

use super::{SessionError, run};
use crate::Settings;

/// A host: a root, and an engine.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = dir.path().join("engine");
        for kind in ["container", "image", "network"] {
            fs::create_dir_all(engine.join(kind)).expect("created");
        }
        fs::write(engine.join("docker"), include_str!("docker.sh")).expect("written");
        fs::set_permissions(engine.join("docker"), fs::Permissions::from_mode(0o755)).expect("made executable");
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("jiji")
    }

    fn engine(&self, name: &str) -> PathBuf {
        self.dir.path().join("engine").join(name)
    }

    fn session(&self) -> Operator {
        let (input, to_host) = std::io::pipe().expect("a pipe");
        let (from_host, output) = std::io::pipe().expect("a pipe");
        let path = format!("{}:{}", self.engine("").display(), crate::PATH);
        let engine = Some(jiji_model::project::Engine::Docker);
        let docker_socket = self.engine("docker.sock");
        let settings = Settings { root: self.root(), rootless: false, path, engine, docker_socket };
        let thread = std::thread::spawn(move || run(input, output, settings));
        let mut operator = Operator {
            to_host: Some(to_host),
            from_host,
            decoder: Decoder::default(),
            events: Vec::new(),
            asked: 0,
            thread,
        };
        assert!(matches!(operator.next(), Some(Tell::Hello(hello)) if hello.protocol == super::VERSION));
        operator
    }

    fn records(&self) -> HostRecords {
        crate::records::observe(&crate::place::Place::new(self.root()), "shop").expect("readable")
    }
}

/// The other end of a session.
struct Operator {
    to_host: Option<PipeWriter>,
    from_host: PipeReader,
    decoder: Decoder,
    events: Vec<HostEvent>,
    asked: u64,
    thread: JoinHandle<Result<(), SessionError>>,
}

impl Operator {
    fn send(&mut self, bytes: &[u8]) {
        self.to_host.as_mut().expect("open").write_all(bytes).expect("written");
    }

    fn say(&mut self, request: Request) {
        self.asked += 1;
        let ask = Ask { id: self.asked, request };
        self.send(&encode(&ask));
    }

    fn next(&mut self) -> Option<Tell> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("frames") {
                return Some(decode(&frame.payload).expect("a tell"));
            }
            let mut block = [0; 4096];
            match self.from_host.read(&mut block).expect("read") {
                0 => return None,
                count => self.decoder.push(&block[..count]),
            }
        }
    }

    /// The answer to the last ask.
    fn answer(&mut self) -> Reply {
        self.answer_before(0)
    }

    /// The answer to an ask after which so many others were made.
    fn answer_before(&mut self, others: u64) -> Reply {
        loop {
            match self.next().expect("the session lives") {
                Tell::Answer { id, reply } => {
                    assert_eq!(id, self.asked - others);
                    return reply;
                }
                Tell::Event(event) => self.events.push(event),
                Tell::Hello(_) => panic!("a second hello"),
            }
        }
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.say(request);
        self.answer()
    }

    fn observe(&mut self, query: Query) -> Answer {
        match self.ask(Request::Observe { wants: vec![Want { id: "x".into(), query }] }) {
            Reply::Facts(mut facts) if facts.len() == 1 => facts.remove(0).answer,
            other => panic!("expected a fact, got {other:?}"),
        }
    }

    fn secrets(&mut self, values: &[(&str, &str)]) {
        let named = |(name, value): &(&str, &str)| (SecretName::new(*name).expect("a name"), Secret::new(*value));
        let secrets: BTreeMap<_, _> = values.iter().map(named).collect();
        self.send(&encode_secrets(&secrets));
    }

    /// Closes the input and waits for the end. Gives what was told until then.
    fn end(mut self) -> (Result<(), SessionError>, Vec<HostEvent>) {
        self.to_host = None;
        while let Some(tell) = self.next() {
            if let Tell::Event(event) = tell {
                self.events.push(event);
            }
        }
        (self.thread.join().expect("no panic"), self.events)
    }
}

fn acquire(holder: &str, fencing: u64, ttl_ms: u64) -> Request {
    let scope = "shop".to_owned();
    Request::Acquire(LeaseRequest { scope, holder: holder.into(), who: "a@b".into(), fencing, ttl_ms })
}

/// Every file and directory below, with what would change if it was touched.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, (i64, i64, u64, u32)> {
    let mut found = BTreeMap::new();
    let Ok(metadata) = fs::symlink_metadata(path) else { return found };
    found.insert(path.to_owned(), (metadata.mtime(), metadata.mtime_nsec(), metadata.ino(), metadata.mode()));
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("listed") {
            found.extend(snapshot(&entry.expect("listed").path()));
        }
    }
    found
}

fn every_query() -> Vec<Query> {
    let name = || "shop-web-1".parse().expect("a name");
    let digest = Digest::of("x");
    vec![
        Query::Host,
        Query::Containers { labels: BTreeMap::new() },
        Query::Container { name: name() },
        Query::Exec { container: name(), argv: vec!["true".into()], timeout_ms: 1000 },
        Query::Logs { container: name(), lines: 10 },
        Query::File { path: "/etc/hostname".parse().expect("a path"), limit: 10 },
        Query::Network { name: "jiji".into() },
        Query::Images { images: vec![jiji_model::image::ImageId { manifest: digest, config: digest }] },
        Query::Blobs { digests: vec![digest] },
        Query::Http { address: [127, 0, 0, 1].into(), port: 1, path: "/".into(), host: None },
        Query::Records { scope: "shop".into() },
        Query::SecretsMac { names: Vec::new() },
    ]
}

#[test]
fn a_session_that_only_looks_leaves_every_file_untouched() {
    let machine = Machine::new();
    for round in 0..2 {
        let before = snapshot(&machine.root());
        assert_eq!(before.is_empty(), round == 0, "round {round}");
        let mut operator = machine.session();
        let wants = every_query().into_iter().enumerate();
        let wants = wants.map(|(index, query)| Want { id: index.to_string(), query }).collect();
        let Reply::Facts(facts) = operator.ask(Request::Observe { wants }) else { panic!("expected facts") };
        let ids: Vec<_> = facts.iter().map(|fact| fact.id.clone()).collect();
        assert_eq!(ids, (0..12).map(|index| index.to_string()).collect::<Vec<_>>());
        operator.end().0.expect("it ends well");
        assert_eq!(snapshot(&machine.root()), before);
        // And once more on a host where something is.
        transaction::one_that_works(&machine, round + 1);
    }
}

#[test]
fn queries_that_reach_beyond_the_host_are_not_answered() {
    let machine = Machine::new();
    let mut operator = machine.session();
    let http = Query::Http { address: [203, 0, 113, 7].into(), port: 80, path: "/".into(), host: None };
    assert!(matches!(operator.observe(http), Answer::Failed(_)));
    assert!(matches!(operator.observe(Query::Records { scope: "../x".into() }), Answer::Failed(_)));
    let unsent = Query::SecretsMac { names: vec!["KEY".parse().expect("a name")] };
    assert_eq!(operator.observe(unsent), Answer::Absent);
}

#[test]
fn facts_are_bounded_together() {
    let machine = Machine::new();
    let big = machine.dir.path().join("big");
    fs::write(&big, vec![b'x'; 300 * 1024]).expect("written");
    let path: jiji_model::name::AbsPath = big.display().to_string().parse().expect("a path");
    let want = |id: u32| Want { id: id.to_string(), query: Query::File { path: path.clone(), limit: u32::MAX } };
    let mut operator = machine.session();
    let Reply::Facts(facts) = operator.ask(Request::Observe { wants: (0..5).map(want).collect() }) else {
        panic!("expected facts")
    };
    let answered = facts.iter().filter(|fact| matches!(fact.answer, Answer::File(_))).count();
    assert_eq!((answered, facts.len()), (3, 5));
}

#[test]
fn blobs_come_in_parts_over_two_sessions_and_wrong_ones_are_told() {
    let machine = Machine::new();
    let content: Vec<u8> = (0..700_000u32).map(|number| number as u8).collect();
    let digest = Digest::of(&content);
    let offer = || Request::Offer { blobs: vec![(digest, 700_000), (Digest::of(""), 0)] };
    let state = |reply| match reply {
        Reply::Blobs(facts) => (facts[0].have, facts[0].complete),
        other => panic!("expected blobs, got {other:?}"),
    };
    let mut operator = machine.session();
    assert_eq!(state(operator.ask(offer())), (0, false));
    operator.send(&encode_blob(&digest, 0, &content[..300_000]));
    operator.end().0.expect("it ends well");
    let mut operator = machine.session();
    assert_eq!(operator.observe(Query::Blobs { digests: vec![digest] }), {
        let facts = jiji_model::observation::BlobFacts { digest, have: 300_000, complete: false };
        Answer::Blobs(vec![facts])
    });
    assert_eq!(state(operator.ask(offer())), (300_000, false));
    operator.send(&encode_blob(&digest, 200_000, &content[200_000..400_000]));
    operator.send(&encode_blob(&digest, 400_000, &content[400_000..]));
    let received = Request::Received { digests: vec![digest, Digest::of("")] };
    assert_eq!(state(operator.ask(received.clone())), (700_000, true));
    // Sent twice does no harm.
    operator.send(&encode_blob(&digest, 0, &content));
    assert_eq!(state(operator.ask(received)), (700_000, true));
    let wrong = Digest::of("right");
    operator.ask(Request::Offer { blobs: vec![(wrong, 5)] });
    operator.send(&encode_blob(&wrong, 0, b"wrong"));
    assert!(matches!(operator.ask(Request::Received { digests: vec![wrong] }), Reply::Refused { .. }));
    let again = operator.ask(Request::Received { digests: vec![wrong] });
    assert_eq!(state(again), (0, false));
}

#[test]
fn a_blob_that_came_whole_and_was_not_finished_is_finished_with_the_next_offer() {
    let machine = Machine::new();
    let digest = Digest::of("right");
    let store = Store::open(machine.root().join("store")).expect("a store");
    let left = |content: &[u8], size| {
        let mut part = store.receive(&digest, size).expect("begun");
        part.append(content).expect("appended");
    };
    let offered = || match machine.session().ask(Request::Offer { blobs: vec![(digest, 5)] }) {
        Reply::Blobs(facts) => (facts[0].have, facts[0].complete),
        other => panic!("expected blobs, got {other:?}"),
    };
    // Neither of these two could ever become whole by more bytes.
    left(b"wrong", 5);
    assert_eq!(offered(), (0, false));
    left(b"right and more", 100);
    assert_eq!(offered(), (0, false));
    left(b"right", 5);
    assert_eq!(offered(), (5, true));
}

#[test]
fn a_blob_that_is_sent_to_two_sessions_at_once_is_whole_for_both() {
    let machine = Machine::new();
    let content = vec![7; 400_000];
    let digest = Digest::of(&content);
    let (mut one, mut two) = (machine.session(), machine.session());
    let received = || Request::Received { digests: vec![digest] };
    for operator in [&mut one, &mut two] {
        operator.ask(Request::Offer { blobs: vec![(digest, 400_000)] });
        operator.send(&encode_blob(&digest, 0, &content[..200_000]));
        operator.ask(Request::Observe { wants: Vec::new() });
    }
    two.send(&encode_blob(&digest, 200_000, &content[200_000..]));
    two.say(received());
    one.send(&encode_blob(&digest, 200_000, &content[200_000..]));
    for reply in [one.ask(received()), two.answer()] {
        assert!(matches!(reply, Reply::Blobs(facts) if facts[0].complete));
    }
}

#[test]
fn bytes_that_are_no_frames_end_the_session() {
    let machine = Machine::new();
    let mut operator = machine.session();
    operator.send(&[0xff; 64]);
    assert!(matches!(operator.end().0, Err(SessionError::Frame(_))));
}
