//! What writers and a collector leave that are killed in the middle.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_store::{Store, StoreError};

const ROOT: &str = "JIJI_STORE_TEST_ROOT";

fn content(number: u32) -> Vec<u8> {
    (0..200_000_u32).map(|place| (place.wrapping_mul(number + 7) >> 3) as u8).collect()
}

/// Not a test of its own: writes to the store that the environment names until it is killed.
#[test]
fn a_writer_without_end() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let store = Store::open(root).expect("a store");
    for number in 0.. {
        let bytes = content(number % 50);
        let digest = Digest::of(&bytes);
        store.remove(&digest).expect("removed");
        let mut writer = store.writer().expect("begun");
        bytes.chunks(10_000).for_each(|chunk| writer.write_all(chunk).expect("written"));
        writer.finish(Some(digest)).expect("finished");
        store.record_action(&digest, &bytes[..5000]).expect("recorded");
        let tree = store.new_tree().expect("begun");
        std::fs::write(tree.path().join("file"), &bytes).expect("written");
        // The other writer may be using or removing the same one.
        for result in [store.remove_tree(&digest).map(drop), tree.publish(&digest).map(drop)] {
            assert!(matches!(result, Ok(()) | Err(StoreError::Busy { .. } | StoreError::Missing { .. })), "{result:?}");
        }
        let received = Digest::of(&bytes[1..]);
        store.remove(&received).expect("removed");
        let mut part = match store.receive(&received, bytes.len() as u64 - 1) {
            Err(StoreError::Busy { .. }) => continue,
            begun => begun.expect("begun"),
        };
        let rest = &bytes[1 + usize::try_from(part.offset()).expect("it fits")..];
        rest.chunks(10_000).for_each(|chunk| part.append(chunk).expect("appended"));
        part.finish().expect("finished");
    }
}

/// Not a test of its own: collects in the store that the environment names until it is killed.
#[test]
fn a_collector_without_end() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let store = Store::open(root).expect("a store");
    for number in 0_u64.. {
        store.shrink(number % 8 * 1_000_000).expect("shrunk");
    }
}

fn check(root: &Path) {
    let store = Store::open(root).expect("opened");
    assert_eq!(store.verify().expect("verified").damaged, []);
    assert_eq!(std::fs::read_dir(root.join("tmp")).expect("listed").count(), 0, "what the dead left is swept");
    for key in store.actions().expect("listed") {
        let value = store.action(&key).expect("read").expect("there");
        assert_eq!(value.len(), 5000, "an action is whole or not there");
    }
    for name in store.trees().expect("listed") {
        let tree = store.tree(&name).expect("looked").expect("there");
        let bytes = std::fs::read(tree.path().join("file")).expect("read");
        assert_eq!(Digest::of(bytes), name, "a tree is whole or not there");
    }
}

#[test]
fn a_store_whose_writers_and_collector_are_killed_again_and_again_stays_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("store");
    let program = std::env::current_exe().expect("this program");
    for round in 0..20_u64 {
        let roles = ["a_writer_without_end", "a_writer_without_end", "a_collector_without_end"];
        let processes = roles.map(|role| {
            Command::new(&program)
                .args(["--exact", role, "--test-threads=1"])
                .env(ROOT, &root)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("started")
        });
        std::thread::sleep(Duration::from_millis(40 + round * 7));
        for mut process in processes {
            assert!(process.try_wait().expect("asked").is_none(), "it ended by itself");
            process.kill().expect("killed");
            process.wait().expect("ended");
        }
        check(&root);
    }
    let store = Store::open(&root).expect("opened");
    store.put(b"it can be used").expect("stored");
    assert_eq!(store.usage().expect("measured").holders, 1, "the dead hold nothing");
}
