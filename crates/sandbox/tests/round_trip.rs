//! A step's changes, written as a layer and unpacked on the same image, give what the step left, whatever the step did. Needs root.

mod image;

use std::fs;

use image::archive::{self, Archive, dir, file, hard_link, symlink};
use image::{Image, Ran, needs_machines_root, needs_root, sandbox};
use jiji_sandbox::UnpackLimits;
use proptest::prelude::*;

/// Prints everything under `/w`, and `/` itself, but times and what only the file system knows.
const LIST: &str =
    "(echo /; find /w) | sort | xargs stat -c '%n %f %u:%g %t,%T %N'; find /w -type f | sort | xargs md5sum";

fn base() -> Image {
    let mut image = Image::new();
    add(
        &mut image,
        Archive::new()
            .put(dir("w"))
            .put(dir("w/a").mode(0o700))
            .put(file("w/a/a", "1"))
            .put(file("w/a/b", "2"))
            .put(dir("w/a/c"))
            .put(file("w/a/c/a", "3"))
            .put(dir("w/b"))
            .put(dir("w/b/b").mode(0o1777).owner(5, 6))
            .put(file("w/b/b/c", "4").mode(0o4755))
            .put(hard_link("w/b/a", "w/b/b/c"))
            .put(symlink("w/c", "a")),
    );
    add(&mut image, Archive::new().put(file("w/a/.wh.b", "")).put(file("w/b/c", "5")));
    image
}

fn add(image: &mut Image, archive: Archive) {
    let to = image.dir.path().join(format!("layer{}", image.layers.len()));
    fs::create_dir(&to).expect("layer directory");
    sandbox().unpack(archive.bytes().as_slice(), &to, &image.layers, UnpackLimits::default()).expect("a fine layer");
    image.layers.push(to);
}

/// Runs a script, adds what it changed as a layer, and compares.
fn round_trip(image: &mut Image, script: &str) -> Ran {
    let ran = image.sh(&format!("({script}) >/dev/null 2>&1; {LIST}"));
    assert!(ran.exit.success(), "{}", ran.err);
    let changed = sandbox().changes(&ran.scratch.upper(), &image.layers).expect("changes");
    add(image, archive::of(&changed));
    let again = image.sh(LIST);
    assert!(again.out.contains("/w 41ed 0:0 0,0 /w"), "{}{}", again.out, again.err);
    assert_eq!(ran.out, again.out, "{script}\n{:?}", ran.changed);
    assert_eq!(again.changed, [] as [&str; 0]);
    ran
}

#[test]
fn directories_replaced_by_directories_lose_what_they_had() {
    needs_root!();
    let ran = round_trip(&mut base(), "rm -r /w/a; mkdir -m 700 /w/a; echo new > /w/a/new");
    assert_eq!(ran.changed, ["- w/a/a", "- w/a/c", "+ w/a/new"]);
}

#[test]
fn a_directory_within_a_new_one_is_new_too() {
    needs_root!();
    // The kernel marks only the outer one.
    let ran = round_trip(&mut base(), "rm -r /w/a; mkdir -p /w/a/c");
    assert_eq!(ran.changed, ["~ w/a", "- w/a/a", "- w/a/c/a"]);
}

#[test]
fn things_change_their_type() {
    needs_machines_root!();
    let ran = round_trip(
        &mut base(),
        "rm -r /w/a /w/c; echo file > /w/a; mkdir -p /w/c/d; rm /w/b/a; ln -s /etc /w/b/a; mkfifo /w/f; mknod /w/n c 1 3",
    );
    assert_eq!(ran.changed, ["~ w/a", "~ w/b/a", "~ w/c", "+ w/c/d", "+ w/f", "+ w/n"]);
}

#[test]
fn a_moved_directory_is_there_and_gone_from_where_it_was() {
    needs_root!();
    // The kernel refuses to rename a directory of a lower layer (EXDEV), so that programs copy it.
    let ran = round_trip(&mut base(), "mv /w/b /w/a/moved");
    assert_eq!(
        ran.changed,
        ["+ w/a/moved", "+ w/a/moved/a", "+ w/a/moved/b", "+ w/a/moved/b/c", "+ w/a/moved/c", "- w/b",]
    );
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    needs_root!();
    let mut image = base();
    let ran = round_trip(&mut image, "ln /w/a/a /w/linked; echo same > /w/x; ln /w/x /w/y; rm /w/x; ln /w/y /w/0");
    assert_eq!(ran.changed, ["+ w/0", "~ w/a/a", "+ w/linked", "+ w/y"]);
    let same = image.sh("test /w/a/a -ef /w/linked && test /w/0 -ef /w/y && echo same");
    assert_eq!(same.out, "same\n");
    // Two files with the same bytes become one: that is news although no byte changed.
    let mut image = base();
    round_trip(&mut image, "cp /w/a/a /w/twin");
    let ran = round_trip(&mut image, "ln -f /w/a/a /w/twin");
    assert_eq!(ran.changed, ["~ w/a/a", "~ w/twin"]);
    // Once they are, touching them is none.
    assert_eq!(round_trip(&mut image, "ln -f /w/a/a /w/twin").changed, [] as [&str; 0]);
}

#[test]
fn mode_owner_and_the_root_itself_are_changes() {
    needs_root!();
    let ran = round_trip(&mut base(), "chmod 711 /; chmod 600 /w/a/a; chown 1:2 /w/c -h; chown 3 /w/b/b; touch /w/b");
    assert_eq!(ran.changed, ["~ ", "~ w/a/a", "~ w/b/b", "~ w/c"]);
}

#[test]
fn names_need_not_be_text() {
    needs_root!();
    let image = base();
    let ran = image.sh("printf x > \"/w/$(printf '\\377\\n \\\\')\"; mkdir /w/'-rf *'; exit 0");
    let names: Vec<String> = ran.changed.iter().map(|name| name.escape_debug().to_string()).collect();
    assert_eq!(names, ["+ w/-rf *", "+ w/\u{fffd}\\n \\\\"]);
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| format!("/w/{}", names.join("/")))
}

fn command() -> impl Strategy<Value = String> {
    prop_oneof![
        (path(), 0..4_u8).prop_map(|(at, n)| format!("echo {n} > {at}")),
        path().prop_map(|at| format!("mkdir -p {at}")),
        path().prop_map(|at| format!("rm -rf {at}")),
        path().prop_map(|at| format!("rm -rf {at}; mkdir {at}")),
        (path(), path()).prop_map(|(from, to)| format!("mv -f {from} {to}")),
        (path(), path()).prop_map(|(from, to)| format!("cp -a {from} {to}")),
        (path(), path()).prop_map(|(from, to)| format!("ln -f {from} {to}")),
        (path(), path()).prop_map(|(to, at)| format!("ln -s {to} {at}")),
        (path(), prop::sample::select(vec!["700", "755", "644", "4755", "1777"]))
            .prop_map(|(at, mode)| format!("chmod {mode} {at}")),
        (path(), 0..3_u8).prop_map(|(at, id)| format!("chown -h {id}:{id} {at}")),
        path().prop_map(|at| format!("touch -h {at}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_step_survives_the_round_trip(first in prop::collection::vec(command(), 1..12), second in prop::collection::vec(command(), 1..8)) {
        if !image::is_able() {
            return Ok(());
        }
        let mut image = base();
        round_trip(&mut image, &first.join("; "));
        round_trip(&mut image, &second.join("; "));
    }
}
