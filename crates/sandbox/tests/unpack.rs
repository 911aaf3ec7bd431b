//! Layers from archives: what they say must be what a step sees, and a hostile one must reach nothing else. Needs root, for owners,
//! devices and overlayfs's attributes.

mod image;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use image::archive::{Archive, dir, file, hard_link, symlink};
use image::{Image, needs_machines_root, needs_root, sandbox};
use jiji_sandbox::{UnpackError, UnpackLimits, Unpacked};
use proptest::prelude::*;

/// Unpacks one more layer on an image.
fn add(image: &mut Image, archive: Archive) -> Result<Unpacked, UnpackError> {
    let to = image.dir.path().join(format!("layer{}", image.layers.len()));
    fs::create_dir(&to).expect("layer directory");
    let unpacked = sandbox().unpack(archive.bytes().as_slice(), &to, &image.layers, UnpackLimits::default())?;
    image.layers.push(to);
    Ok(unpacked)
}

fn image_with(layers: impl IntoIterator<Item = Archive>) -> Image {
    let mut image = Image::new();
    for layer in layers {
        add(&mut image, layer).expect("a fine layer");
    }
    image
}

#[test]
fn what_an_archive_says_is_what_a_step_sees() {
    needs_root!();
    let image = image_with([Archive::new()
        .put(dir("a").mode(0o750).owner(3, 4).mtime(11))
        .put(file("a/f", "text").mode(0o4711).owner(5, 6).mtime(12))
        .put(hard_link("a/h", "a/f"))
        .put(symlink("a/s", "../etc/motd").mtime(13))
        .put(file("./b/c/d", "implied").mtime(14))
        .put(file("/abs", "olute"))]);
    let ran = image.sh("cd /a; stat -c '%n %a %u:%g %Y %h %F' . f h s /b /b/c /b/c/d; cat f s /b/c/d /abs");
    assert_eq!(
        ran.out,
        ". 750 3:4 11 2 directory\nf 4711 5:6 12 2 regular file\nh 4711 5:6 12 2 regular file\n\
         s 777 0:0 13 1 symbolic link\n/b 755 0:0 0 3 directory\n/b/c 755 0:0 0 2 directory\n/b/c/d 644 0:0 14 1 regular file\n\
         textwelcome\nimpliedolute\n",
        "{}",
        ran.err
    );
}

#[test]
fn marks_of_deletion_hide_what_is_below_and_nothing_of_their_own_layer() {
    needs_root!();
    let image = image_with([
        Archive::new()
            .put(file("d/one", "1"))
            .put(file("d/two", "2"))
            .put(file("o/one", "1"))
            .put(dir("r"))
            .put(file("r/old", "old"))
            .put(file("keep/x", "x")),
        Archive::new()
            .put(file("d/.wh.one", ""))
            .put(file("o/new", "n"))
            .put(file("o/.wh..wh..opq", ""))
            .put(file(".wh.r", ""))
            .put(file("r/young", "young"))
            .put(file(".wh.never", ""))
            .put(file("fresh/.wh.nothing", ""))
            .put(file("keep/.wh..wh.plnk", "")),
    ]);
    let ran = image.sh("ls /d /o /r /keep /fresh; ls / | grep never; ls -la /fresh | wc -l");
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("/d:\ntwo\n\n/fresh:\n\n/keep:\nx\n\n/o:\nnew\n\n/r:\nyoung\n3\n", "")
    );
}

#[test]
fn marks_that_have_nothing_left_to_hide_are_not_listed() {
    needs_root!();
    let image = image_with([
        Archive::new().put(file("o/one", "1")).put(file("o/p/two", "2")),
        // In every order of the marks, and the outer after the inner.
        Archive::new().put(file("o/p/.wh.two", "")).put(file("o/.wh.one", "")).put(file("o/.wh..wh..opq", "")),
        Archive::new().put(file("x/a", "")).put(file("x/p/b", "")),
        Archive::new().put(file("x/.wh.a", "")).put(file("x/p/.wh.b", "")).put(file(".wh.x", "")),
    ]);
    let ran = image.sh("ls -la /o /o/p /x /x/p >/dev/null; ls /o/p /x/p");
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("/o/p:\n\n/x/p:\n", ""));
}

#[test]
fn an_opaque_root_hides_everything_below() {
    needs_root!();
    let mut image = Image::new();
    let busybox = fs::read("/bin/busybox").expect("busybox");
    let layer = Archive::new().put(file("bin/sh", &busybox).mode(0o755)).put(file(".wh..wh..opq", ""));
    add(&mut image, layer).expect("a fine layer");
    let ran = image.sh("for f in /*; do echo $f; done; for f in /etc/*; do echo $f; done");
    assert_eq!(ran.out, "/bin\n/dev\n/proc\n/sys\n/etc/*\n", "{}", ran.err);
}

#[test]
fn parents_that_a_layer_does_not_mention_keep_what_they_have() {
    needs_root!();
    let image = image_with([
        Archive::new().put(dir("p").mode(0o1711).owner(7, 8).mtime(99)).put(dir("p/q").mode(0o700).owner(9, 9)),
        Archive::new().put(file("p/q/new", "x")),
    ]);
    let ran = image.sh("stat -c '%a %u:%g %Y' /p /p/q; stat -c %a /");
    assert_eq!(ran.out, "1711 7:8 99\n700 9:9 0\n755\n", "{}", ran.err);
}

#[test]
fn a_path_through_a_link_below_goes_where_the_link_goes() {
    needs_root!();
    let image = image_with([
        Archive::new().put(dir("usr")).put(dir("usr/lib")).put(symlink("lib", "usr/lib")).put(symlink("loop", "loop")),
        Archive::new().put(file("lib/new", "x")),
        Archive::new().put(hard_link("lib/again", "lib/new")),
    ]);
    let ran = image.sh("readlink /lib; ls /usr/lib; cat /usr/lib/again");
    assert_eq!(ran.out, "usr/lib\nagain\nnew\nx\n", "{}", ran.err);
    let mut image = image;
    let refused = add(&mut image, Archive::new().put(file("loop/x", "x"))).err();
    assert!(matches!(refused, Some(UnpackError::NoDirectory { .. })), "{refused:?}");
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    needs_root!();
    let image = image_with([Archive::new()
        .put(file("x", "file"))
        .put(dir("x"))
        .put(file("x/in", "1"))
        .put(file("x/in", "2"))
        .put(dir("y"))
        .put(file("y/in", "gone"))
        .put(symlink("y", "x"))
        .put(file("y/through", "3"))]);
    let ran = image.sh("cat /x/in /x/through; readlink /y");
    assert_eq!(ran.out, "23x\n", "{}", ran.err);
}

#[test]
fn no_name_leads_out_of_the_directory() {
    needs_root!();
    let names = ["../out", "a/../../out", "..", "a/..", "/../out"];
    for name in names {
        let mut image = Image::new();
        let refused = add(&mut image, Archive::new().put(file(name, "out"))).err();
        assert!(matches!(refused, Some(UnpackError::Outside { .. })), "{name}: {refused:?}");
        assert!(!image.dir.path().join("out").exists());
    }
    for name in [".wh...", ".wh..", ".wh.", "a/.wh..."] {
        let mut image = Image::new();
        let refused = add(&mut image, Archive::new().put(file(name, ""))).err();
        assert!(matches!(refused, Some(UnpackError::Outside { .. })), "{name}: {refused:?}");
        assert!(image.base("etc/motd").exists());
    }
}

#[test]
fn links_out_of_the_directory_are_links_within_the_image() {
    needs_root!();
    let mut image = Image::new();
    let outside = image.dir.path().join("outside");
    fs::create_dir(&outside).expect("a directory of the host");
    fs::write(outside.join("secret"), "the host's").expect("a file of the host");
    let climb = PathBuf::from("../../../../../../..").join(outside.strip_prefix("/").expect("absolute"));
    let layer = Archive::new()
        .put(symlink("abs", outside.to_str().expect("utf-8")))
        .put(symlink("rel", climb.to_str().expect("utf-8")))
        .put(file("abs/one", "1"))
        .put(file("rel/two", "2"))
        .put(file("abs/.wh.secret", ""));
    add(&mut image, layer).expect("a fine layer");
    let left: Vec<_> = fs::read_dir(&outside).expect("outside").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["secret"]);
    let within = image.layers[1].join(outside.strip_prefix("/").expect("absolute"));
    assert_eq!(fs::read_to_string(within.join("one")).expect("within"), "1");
    assert_eq!(fs::read_to_string(within.join("two")).expect("within"), "2");

    for to in [outside.join("secret"), climb.join("secret"), PathBuf::from("abs/secret")] {
        let layer = Archive::new().put(symlink("abs", outside.to_str().expect("utf-8")));
        let refused = add(&mut image, layer.put(hard_link("stolen", to.to_str().expect("utf-8")))).err();
        assert!(matches!(refused, Some(UnpackError::NoTarget { .. } | UnpackError::Outside { .. })), "{refused:?}");
        fs::remove_dir_all(image.dir.path().join("layer2")).expect("half a layer");
    }
}

#[test]
fn a_hard_link_to_a_lower_layers_file_takes_it_along() {
    needs_root!();
    let image = image_with([
        Archive::new().put(file("a/f", "below").mode(0o640).owner(1, 2).mtime(5)),
        Archive::new().put(hard_link("g", "a/f")),
    ]);
    let ran = image.sh("cat /g; stat -c ' %a %u:%g %h %Y' /g /a/f");
    assert_eq!(ran.out, "below 640 1:2 2 5\n 640 1:2 2 5\n", "{}", ran.err);
}

#[test]
fn overlayfs_marks_in_an_archive_are_not_taken_over() {
    needs_root!();
    let layer = Archive::new()
        .put(dir("etc").attribute("trusted.overlay.opaque", b"y"))
        .put(dir("moved").attribute("trusted.overlay.redirect", b"/etc"))
        .put(file("cap", "x").attribute("security.capability", &CAPABILITY))
        .put(file("marked", "x").attribute("user.note", b"x"));
    let image = image_with([layer]);
    let top = &image.layers[1];
    let attributes = |path: &str| {
        let output = std::process::Command::new("getfattr")
            .args(["-d", "-m", "-", "--absolute-names"])
            .arg(top.join(path))
            .output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    for path in ["etc", "moved", "marked"] {
        assert!(!attributes(path).contains("overlay") && !attributes(path).contains("user.note"), "{path}");
    }
    let ran = image.sh("cat /etc/motd; ls /moved");
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("welcome\n", ""));
    // A step's own capability is reported, and the attribute is what the archive said.
    let ran = image.sh("mv /cap /cap2");
    let changes = sandbox().changes(&ran.scratch.upper(), &image.layers).expect("changes");
    let moved = changes.list().iter().find(|change| change.path == Path::new("cap2")).expect("moved");
    let jiji_sandbox::Kind::Added(_, meta) = &moved.kind else { panic!("{moved:?}") };
    assert_eq!(meta.capability.as_deref(), Some(CAPABILITY.as_slice()));
}

/// `cap_net_bind_service=ep`, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn devices_are_made_and_the_one_that_means_deletion_is_refused() {
    needs_machines_root!();
    let mut image = Image::new();
    let layer = Archive::new().put(image::archive::char_device("null", 1, 3)).put(image::archive::fifo("pipe"));
    add(&mut image, layer).expect("a fine layer");
    let null = fs::symlink_metadata(image.layers[1].join("null")).expect("device");
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(image.sh("cat /null; test -p /pipe && echo pipe").out, "pipe\n");
    let refused = add(&mut image, Archive::new().put(image::archive::char_device("etc/motd", 0, 0))).err();
    assert!(matches!(refused, Some(UnpackError::Type { .. })), "{refused:?}");
}

#[test]
fn an_archive_that_is_too_large_or_none_is_refused() {
    needs_root!();
    let image = Image::new();
    let to = image.dir.path().join("to");
    fs::create_dir(&to).expect("directory");
    let layer = Archive::new().put(file("a", "12345")).put(file("b", "67890")).bytes();
    let go = |limits, bytes: &[u8]| sandbox().unpack(bytes, &to, &image.layers, limits).err();
    let refused = go(UnpackLimits { bytes: 9, entries: 9 }, &layer);
    assert!(matches!(refused, Some(UnpackError::TooLarge { .. })), "{refused:?}");
    let refused = go(UnpackLimits { bytes: 99, entries: 1 }, &layer);
    assert!(matches!(refused, Some(UnpackError::TooLarge { .. })), "{refused:?}");
    let refused = go(UnpackLimits::default(), &layer[..700]);
    assert!(matches!(refused, Some(UnpackError::Archive(_))), "{refused:?}");
    let mut damaged = layer.clone();
    damaged[3] ^= 0x55;
    let refused = go(UnpackLimits::default(), &damaged);
    assert!(matches!(refused, Some(UnpackError::Archive(_))), "{refused:?}");
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    needs_root!();
    let image = Image::new();
    fs::set_permissions(image.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let to = image.dir.path().join("to");
    fs::create_dir(&to).expect("directory");
    let refused = sandbox().unpack(std::io::empty(), &to, &image.layers, UnpackLimits::default()).err();
    assert!(matches!(refused, Some(UnpackError::Exposed { .. })), "{refused:?}");
}

#[test]
fn an_archive_is_read_to_its_end() {
    needs_root!();
    let image = Image::new();
    let to = image.dir.path().join("to");
    fs::create_dir(&to).expect("directory");
    let mut bytes = Archive::new().put(file("a", "x")).bytes();
    bytes.extend([0; 10_240]);
    let mut left = bytes.as_slice();
    sandbox().unpack(left.by_ref(), &to, &image.layers, UnpackLimits::default()).expect("a fine layer");
    assert!(left.is_empty());
}

fn some_entry() -> impl Strategy<Value = image::archive::Entry> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "a/b",
        "a/b/c",
        "b/a",
        "./a",
        "/a",
        "../a",
        "a/../../b",
        ".wh.a",
        "a/.wh.b",
        "a/.wh..wh..opq",
        ".wh..wh..opq",
        "a/",
        "etc/motd",
        "etc",
        "bin/x",
        "",
    ]);
    let to = prop::sample::select(vec!["a", "b", "/", "..", "../../..", "/etc", "a/b", "bin", "/proc/self/root", ""]);
    (name, to, 0..6_u8).prop_map(|(name, to, kind)| match kind {
        0 | 1 => file(name, to),
        2 => dir(name),
        3 => symlink(name, to),
        4 => hard_link(name, to),
        _ => image::archive::fifo(name),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_archive_reaches_out_of_its_directory_or_below(
        entries in prop::collection::vec(some_entry(), 0..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        if !image::is_able() {
            return Ok(());
        }
        let image = Image::new();
        let to = image.dir.path().join("to");
        fs::create_dir(&to).expect("directory");
        let mut bytes = entries.into_iter().fold(Archive::new(), Archive::put).bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let look = |dir: &Path| {
            let found = std::process::Command::new("find").arg(dir).args(["-printf", "%p %y %m %s %T@ %l\\n"]).output();
            String::from_utf8_lossy(&found.expect("find").stdout).into_owned()
        };
        let before = look(&image.layers[0]);
        // Whatever it says: it is about this directory alone.
        let _ = sandbox().unpack(bytes.as_slice(), &to, &image.layers, UnpackLimits { bytes: 1 << 20, entries: 100 });
        prop_assert_eq!(before, look(&image.layers[0]));
        let mut left: Vec<_> = fs::read_dir(image.dir.path()).expect("test directory").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        prop_assert_eq!(left, ["base", "to"]);
    }
}
