//! What was damaged is set aside before a lease, and blobs go back to the operator.

use std::fs;
use std::io::Read as _;

use jiji_model::digest::Digest;
use jiji_model::observation::{Answer, Query, RecordFile};
use jiji_model::protocol::{FrameKind, PIECE, RefusalKind, Reply, Request, Tell, decode, decode_blob};
use jiji_model::transaction::{LeaseDecision, Release};

use super::transaction::one_that_works;
use super::{Machine, acquire};

fn repair(files: &[RecordFile], release: Option<Release>) -> Request {
    Request::Repair { scope: "shop".into(), files: files.to_vec(), release: release.map(Box::new) }
}

fn damaged(machine: &Machine) -> Vec<RecordFile> {
    match machine.session().observe(Query::Integrity { scope: "shop".into() }) {
        Answer::Integrity(facts) => facts.damaged.into_iter().map(|damage| damage.file).collect(),
        other => panic!("expected facts, got {other:?}"),
    }
}

#[test]
fn a_journal_that_cannot_be_read_refuses_a_lease_until_it_is_set_aside() {
    let machine = Machine::new();
    one_that_works(&machine, 1);
    let journal = machine.root().join("projects/shop/journal");
    fs::write(&journal, "{\n{\n").expect("written");
    let mut operator = machine.session();
    assert!(matches!(operator.ask(acquire("b", 2, 60_000)), Reply::Refused { .. }));
    assert_eq!(operator.ask(repair(&[RecordFile::Journal, RecordFile::Audit], None)), Reply::Done);
    assert!(matches!(operator.ask(acquire("b", 2, 60_000)), Reply::Lease(LeaseDecision::Granted(_))));
    assert!(!journal.exists() && machine.root().join("projects/shop/audit.jsonl").exists(), "only what is damaged");

    // While somebody is at work nobody else repairs anything.
    let mut other = machine.session();
    let Reply::Refused { why, .. } = other.ask(repair(&[RecordFile::Audit], None)) else { panic!("refused") };
    assert_eq!(why, RefusalKind::NoLease);
}

#[test]
fn a_release_that_was_lost_is_kept_again_with_its_secrets_digest_and_one_that_is_there_stays() {
    let machine = Machine::new();
    one_that_works(&machine, 1);
    let before = machine.records().releases;
    let path = machine.root().join("projects/shop/releases/1.json");
    fs::remove_file(&path).expect("removed");
    assert_eq!(damaged(&machine), [RecordFile::Release(1)]);
    let lost = Release { secrets: Default::default(), retain: None, seal: None, ..before[0].clone() };
    assert_eq!(machine.session().ask(repair(&[], Some(lost.clone()))), Reply::Done);
    assert_eq!(damaged(&machine), []);
    let again = machine.records().releases;
    assert_eq!((&again[0].services, &again[0].secrets), (&before[0].services, &before[0].secrets));
    let other = Release { who: "mallory@nowhere".into(), ..lost };
    assert_eq!(machine.session().ask(repair(&[], Some(other))), Reply::Done);
    assert_eq!(machine.records().releases, again);
}

#[test]
fn a_blob_is_sent_back_in_pieces_and_one_that_is_not_there_is_refused() {
    let machine = Machine::new();
    one_that_works(&machine, 1);
    let blobs = machine.root().join("store/blobs/sha256");
    fs::create_dir_all(&blobs).expect("made");
    let content: Vec<u8> = (0..PIECE + 5).map(|index| u8::try_from(index % 251).expect("small")).collect();
    let digest = Digest::of(&content);
    fs::write(blobs.join(digest.hex()), &content).expect("written");
    let mut operator = machine.session();
    let mut got = Vec::new();
    while got.len() < content.len() {
        operator.say(Request::Piece { digest, offset: got.len() as u64 });
        let mut answered = false;
        while !answered {
            match operator.decoder.next_frame().expect("frames") {
                Some(frame) if frame.kind == FrameKind::Blob => {
                    let (of, offset, piece) = decode_blob(&frame.payload).expect("a piece");
                    assert_eq!((of, offset), (digest, got.len() as u64));
                    got.extend_from_slice(piece);
                }
                Some(frame) => {
                    let tell: Tell = decode(&frame.payload).expect("a tell");
                    answered = matches!(tell, Tell::Answer { reply: Reply::Done, .. });
                }
                None => {
                    let mut block = vec![0; 64 * 1024];
                    let count = operator.from_host.read(&mut block).expect("read");
                    operator.decoder.push(&block[..count]);
                }
            }
        }
    }
    assert!(got == content);
    let Reply::Refused { why, .. } = operator.ask(Request::Piece { digest: Digest::of("gone"), offset: 0 }) else {
        panic!("refused")
    };
    assert_eq!(why, RefusalKind::Absent);
}
