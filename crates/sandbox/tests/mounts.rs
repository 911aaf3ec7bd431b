//! What a step asks to be laid over its image.

mod image;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use image::{Image, needs_machines_root, needs_root};
use jiji_sandbox::{Content, Exit, Failure, Mount, RunError, Source, Step};

fn mount(target: &str, source: Source, read_only: bool) -> Mount {
    Mount { target: target.into(), source, read_only }
}

fn layers(layers: &[PathBuf], path: &str) -> Source {
    Source::Layers { layers: layers.to_vec(), path: path.into(), keep: None }
}

fn file(text: &str, mode: u32) -> Source {
    Source::File { content: Content(text.as_bytes().to_vec()), mode, uid: 1000, gid: 1000 }
}

fn with(image: &Image, script: &str, mounts: Vec<Mount>) -> Step {
    Step { mounts, ..image.step(script) }
}

/// A layer beside the image, with a file and a directory.
fn other(image: &Image) -> PathBuf {
    let layer = image.dir.path().join("other");
    fs::create_dir_all(layer.join("data/sub")).expect("created");
    fs::write(layer.join("data/one"), "one\n").expect("written");
    fs::write(layer.join("data/sub/two"), "two\n").expect("written");
    symlink("data/one", layer.join("link")).expect("linked");
    layer
}

#[test]
fn what_is_mounted_is_seen_and_is_no_change() {
    needs_machines_root!();
    let image = Image::new();
    let other = other(&image);
    let cache = image.dir.path().join("cache");
    fs::create_dir(&cache).expect("created");
    let mounts = vec![
        mount("/in/data", layers(std::slice::from_ref(&other), "/data"), true),
        mount("/in/file", layers(&[image.layers[0].clone(), other.clone()], "/link"), true),
        mount("/home/app/.cache", Source::Directory(cache.clone()), false),
        mount("/scratch", Source::Memory { size: Some(1 << 20) }, false),
        mount("/run/secrets/token", file("hunter2", 0o400), true),
        mount("/dev/pipes/script", file("#!/bin/sh\necho from the script\n", 0o755), true),
    ];
    let script = "cat /in/data/sub/two /in/file /run/secrets/token; echo; stat -c '%a %u %Y' /run/secrets/token; ls /in; /dev/pipes/script; \
        echo kept > /home/app/.cache/x; echo gone > /scratch/y; echo told > /told; \
        touch /in/data/z 2>/dev/null || echo read-only; mknod /scratch/n c 1 5 && cat /scratch/n 2>/dev/null || echo no devices";
    let mut step = with(&image, script, mounts);
    step.source_date_epoch = 315_532_800;
    let ran = image.run(&step).expect("the step begins");
    assert_eq!(ran.err, "");
    assert_eq!(ran.out, "two\none\nhunter2\n400 1000 315532800\ndata\nfile\nfrom the script\nread-only\nno devices\n");
    assert_eq!(ran.changed, ["+ told"]);
    assert_eq!(fs::read_to_string(cache.join("x")).expect("kept"), "kept\n");
    assert!(!other.join("data/z").exists() && !image.base("in").exists());
}

#[test]
fn what_is_kept_of_another_image_is_there_for_the_next_step() {
    needs_root!();
    let image = Image::new();
    let other = other(&image);
    let keep = image.dir.path().join("keep");
    fs::create_dir(&keep).expect("created");
    let source = || Source::Layers { layers: vec![other.clone()], path: "/data".into(), keep: Some(keep.clone()) };
    let run =
        |script: &str| image.run(&with(&image, script, vec![mount("/in", source(), false)])).expect("the step begins");
    let ran = run("cat /in/one; echo new > /in/one; rm -r /in/sub; mkdir /in/made; chown 7 /in/made");
    assert_eq!((ran.exit, ran.out.as_str(), ran.changed.len()), (Exit::Code(0), "one\n", 0), "{}", ran.err);
    let ran = run("ls /in; cat /in/one; stat -c %u /in/made");
    assert_eq!((ran.out.as_str(), ran.changed.len()), ("made\none\nnew\n7\n", 0), "{}", ran.err);
    assert_eq!(fs::read_to_string(other.join("data/one")).expect("there"), "one\n");
}

#[test]
fn a_socket_of_the_machine_can_be_mounted() {
    needs_root!();
    let image = Image::new();
    let socket = image.dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    let mounts = vec![mount("/run/agent", Source::Socket(socket.clone()), true)];
    let ran = image.run(&with(&image, "[ -S /run/agent ] && echo there", mounts)).expect("begins");
    assert_eq!((ran.out.as_str(), ran.changed.len()), ("there\n", 0), "{}", ran.err);
    fs::remove_file(&socket).expect("removed");
    fs::write(&socket, "").expect("written");
    let refused = image.run(&with(&image, "true", vec![mount("/run/agent", Source::Socket(socket), true)])).err();
    assert!(matches!(refused, Some(RunError::Failed(Failure::System { .. }))), "{refused:?}");
}

#[test]
fn what_is_written_to_files_of_another_image_goes_nowhere() {
    needs_root!();
    let image = Image::new();
    let other = other(&image);
    let mounts = vec![mount("/in", layers(std::slice::from_ref(&other), "/data"), false)];
    let ran =
        image.run(&with(&image, "echo new > /in/one; rm -r /in/sub; ls /in; cat /in/one", mounts)).expect("begins");
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Code(0), "one\nnew\n"));
    assert_eq!(ran.changed, [] as [&str; 0]);
    assert_eq!(fs::read_to_string(other.join("data/one")).expect("there"), "one\n");
}

#[test]
fn mount_points_that_the_image_removed_are_no_change_and_what_is_beside_them_is() {
    needs_root!();
    let mut image = Image::new();
    // A layer that removes `/home`: a mount point below it has to be made anew.
    let top = image.dir.path().join("top");
    fs::create_dir(&top).expect("created");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        top.join("home"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .expect("a whiteout");
    image.layers.push(top);
    let mounts = || {
        vec![
            mount("/home/app/.cache/pip", Source::Memory { size: None }, false),
            mount("/home/app/.token", file("x", 0o400), true),
        ]
    };
    let ran = image.run(&with(&image, "ls -A /home/app; touch /home/app/.cache/pip/x", mounts())).expect("begins");
    assert_eq!((ran.out.as_str(), ran.err.as_str()), (".cache\n.token\n", ""));
    assert_eq!(ran.changed, [] as [&str; 0]);
    let ran = image.run(&with(&image, "echo > /home/app/.cache/own", mounts())).expect("begins");
    assert_eq!(ran.changed, ["+ home", "+ home/app", "+ home/app/.cache", "+ home/app/.cache/own"]);
    // A step that puts a link where a mount point was does not make this side follow it.
    let outside = image.dir.path().join("outside");
    fs::create_dir_all(outside.join("pip")).expect("created");
    let script = format!(
        "umount /home/app/.cache/pip 2>/dev/null; mv /home/app /home/b; ln -s {} /home/app",
        image.dir.path().display()
    );
    image.run(&with(&image, &script, mounts())).expect("begins");
    assert!(outside.join("pip").exists());
}

#[test]
fn the_working_directory_may_be_one_that_is_mounted_over() {
    needs_root!();
    let image = Image::new();
    let other = other(&image);
    let mut step = with(&image, "cat one", vec![mount("/src", layers(&[other], "/data"), true)]);
    step.workdir = "/src".into();
    let ran = image.run(&step).expect("the step begins");
    assert_eq!((ran.out.as_str(), ran.changed.len()), ("one\n", 0));
}

#[test]
fn what_cannot_be_mounted_is_refused_with_its_path() {
    needs_root!();
    let image = Image::new();
    fs::create_dir_all(image.base("opt")).expect("created");
    symlink("/etc", image.base("opt/link")).expect("linked");
    fs::set_permissions(image.base("opt"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let refused =
        |target: &str, source: Source| match image.run(&with(&image, "true", vec![mount(target, source, true)])) {
            Err(RunError::Failed(failure)) => failure,
            Err(error) => panic!("{target}: {error}"),
            Ok(_) => panic!("{target} was mounted"),
        };
    let memory = || Source::Memory { size: None };
    for (target, source, link) in [
        ("/", memory(), false),
        ("/proc/x", memory(), false),
        ("/sys", memory(), false),
        ("/a/../b", memory(), false),
        ("/etc/motd", memory(), false),
        ("/etc/motd/x", memory(), false),
        ("/etc", file("x", 0o400), false),
        ("/opt/link", memory(), true),
        ("/opt/link/x", file("x", 0o400), true),
    ] {
        assert_eq!(refused(target, source), Failure::MountTarget { path: target.into(), link }, "{target}");
    }
    let other = other(&image);
    let gone = refused("/x", layers(std::slice::from_ref(&other), "/nowhere"));
    assert_eq!(gone, Failure::MountSource { path: "/nowhere".into(), errno: 2 });
    let out = refused("/x", layers(&[other], "/../../etc/shadow"));
    assert!(matches!(out, Failure::MountSource { .. }), "{out}");
}
