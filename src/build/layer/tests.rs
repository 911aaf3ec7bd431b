use std::io::Cursor;

use ::zstd::zstd_safe;
use jiji_model::image::LAYER_ZSTD;
use proptest::prelude::*;

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a store");
    (dir, store)
}

fn path(text: &str) -> TarPath {
    TarPath::normal(text)
}

/// A layer of these entries, whatever order they come in.
fn written(store: &Store, threads: usize, entries: impl IntoIterator<Item = (TarPath, Entry, Vec<u8>)>) -> Layer {
    written_as(Compression::Gzip, store, threads, entries)
}

fn form(compression: Compression, threads: usize) -> Form {
    Form { epoch: 315_532_800, compression, threads }
}

fn written_as(
    compression: Compression,
    store: &Store,
    threads: usize,
    entries: impl IntoIterator<Item = (TarPath, Entry, Vec<u8>)>,
) -> Layer {
    let sorted: BTreeMap<TarPath, (Entry, Vec<u8>)> =
        entries.into_iter().map(|(path, entry, content)| (path, (entry, content))).collect();
    let mut writer = LayerWriter::new(store, form(compression, threads)).expect("begun");
    for (path, (entry, content)) in &sorted {
        writer.file(path, entry, None, &mut Cursor::new(content)).expect("written");
    }
    writer.finish().expect("finished")
}

fn blob(store: &Store, layer: &Layer) -> Vec<u8> {
    store.read(&layer.blob.digest, 1 << 30).expect("stored")
}

fn unpacked(store: &Store, layer: &Layer) -> Vec<u8> {
    let mut tar = Vec::new();
    let compressed = blob(store, layer);
    match layer.blob.media_type.as_str() {
        LAYER_ZSTD => ::zstd::Decoder::new(&compressed[..]).expect("zstd").read_to_end(&mut tar).expect("zstd"),
        _ => flate2::read::MultiGzDecoder::new(&compressed[..]).read_to_end(&mut tar).expect("gzip"),
    };
    assert_eq!(Digest::of(&tar), layer.diff_id);
    tar
}

/// One of everything, with names and numbers that do not fit ustar.
fn everything() -> Vec<(TarPath, Entry, Vec<u8>)> {
    let with = |node: Node, mode: u32| Entry { node, ..Entry::directory(mode) };
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let very_long = "n".repeat(300);
    vec![
        (path("a"), Entry::directory(0o755), vec![]),
        (path("a/.wh.gone"), Entry::whiteout(), vec![]),
        (path("a/!first"), Entry::file(0o644, 5), b"hello".to_vec()),
        (path("a/link"), with(Node::Symlink(b"../x".to_vec()), 0o777), vec![]),
        (path("a/other"), with(Node::Hardlink(path("a/!first")), 0o644), vec![]),
        (path("a-b"), Entry { uid: 3_000_000, gid: 65534, ..Entry::file(0o4755, 512) }, vec![7; 512]),
        (path("null"), with(Node::Character { major: 1, minor: 3 }, 0o666), vec![]),
        (path("disk"), with(Node::Block { major: 8, minor: 0 }, 0o660), vec![]),
        (path("pipe"), with(Node::Fifo, 0o600), vec![]),
        (
            path("ping"),
            {
                let mut entry = Entry::file(0o755, 0);
                entry.xattrs.insert(
                    b"security.capability".to_vec(),
                    vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                );
                entry
            },
            vec![],
        ),
        (path(&long), Entry::file(0o644, 1), b"x".to_vec()),
        (path(&very_long), Entry::directory(0o700), vec![]),
        (path("ü"), Entry::file(0o644, 0), vec![]),
        (TarPath::normal(b"raw\xff"), Entry::file(0o644, 0), vec![]),
        (path("far"), with(Node::Symlink(very_long.clone().into_bytes()), 0o777), vec![]),
    ]
}

#[test]
fn the_digests_of_layer_format_2_do_not_change() {
    assert_eq!(LAYER_FORMAT, 2);
    let (_dir, store) = store();
    let digests = |entries: Vec<(TarPath, Entry, Vec<u8>)>| {
        let layers = Compression::ALL.map(|compression| written_as(compression, &store, 2, entries.clone()));
        assert_eq!(layers[0].diff_id, layers[1].diff_id);
        [layers[0].diff_id, layers[0].blob.digest, layers[1].blob.digest].map(|digest| digest.to_string())
    };
    assert_eq!(
        digests(everything()),
        [
            "sha256:5029b9d099121bdb936a750863ed5759a37ba48b8a95ad4ea1a9be5585ed03f3",
            "sha256:2128ea80a8a8bed0f998cf37bc53ec8e70873c830d3053aae19007006f5087ba",
            "sha256:4e612a066b435aee4a969b08db9a78afb3159e06ee0ec7ab2fc5cd92ba6fa940"
        ]
    );
    // 3 MiB and a bit, so several members.
    let numbers: Vec<u8> = (0..800_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    assert_eq!(
        digests(vec![(path("numbers"), Entry::file(0o644, numbers.len() as u64), numbers)]),
        [
            "sha256:531261321d7c9ab7130275860a1077cabd83850d896c21dfb360533d60dbb5bd",
            "sha256:a846ee4322beeabfd300636f747eab244dc65484da5ca78a0e2949c9d2670a2b",
            "sha256:cc861b7850d47a464068bc3e319aa31cc41b5df1fafe67d6f81f0a7781f814f2"
        ]
    );
    // Text, in which there is something to be found again.
    let lines: Vec<u8> = (0..60_000_u32).flat_map(|n| format!("{n} {} of lines\n", n * n % 977).into_bytes()).collect();
    assert_eq!(
        digests(vec![(path("lines"), Entry::file(0o644, lines.len() as u64), lines)]),
        [
            "sha256:218ede3ee53dd5a735221fe378b98273b741c23c4aed918432ac52e78e96705a",
            "sha256:128141cd7900261d674091aa1b94c3a6b30ec94842251535ccab713e906c7037",
            "sha256:97088b2a5288456d181c81649c1c63d51d79cb18ae67e6785aa59d8a2e85127e"
        ]
    );
}

#[test]
fn another_reader_finds_what_was_written() {
    let (_dir, store) = store();
    let tar = unpacked(&store, &written(&store, 2, everything()));
    assert_eq!(unpacked(&store, &written_as(Compression::Zstd, &store, 2, everything())), tar);
    assert_eq!(tar.len() % 512, 0);
    assert!(tar.ends_with(&[0; 1024]));
    assert_ne!(tar[tar.len() - 1536..tar.len() - 1024], [0; 512], "two zero blocks and no more");
    let mut archive = ::tar::Archive::new(&tar[..]);
    let mut expected: BTreeMap<TarPath, (Entry, Vec<u8>)> =
        everything().into_iter().map(|(path, entry, content)| (path, (entry, content))).collect();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let path = TarPath::normal(&*entry.path_bytes());
        let (known, content) = expected.remove(&path).unwrap_or_else(|| panic!("{path:?}"));
        let mut read = Vec::new();
        entry.read_to_end(&mut read).expect("content");
        assert_eq!(read, content, "{path:?}");
        assert_eq!(entry.header().mode().expect("a mode"), known.mode, "{path:?}");
        assert_eq!(entry.header().mtime().expect("a time"), 315_532_800);
        assert_eq!(entry.header().username_bytes(), Some(&b""[..]));
        let mut xattrs = BTreeMap::new();
        let mut uid = entry.header().uid().expect("a user");
        for record in entry.pax_extensions().expect("PAX").into_iter().flatten() {
            let record = record.expect("a record");
            match record.key_bytes() {
                b"uid" => uid = record.value().expect("text").parse().expect("a number"),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        xattrs.insert(name.to_vec(), record.value_bytes().to_vec());
                    }
                }
            }
        }
        assert_eq!((uid, &xattrs), (u64::from(known.uid), &known.xattrs), "{path:?}");
        if let Node::Symlink(target) = &known.node {
            assert_eq!(entry.link_name_bytes().as_deref(), Some(&target[..]));
        }
    }
    assert!(expected.is_empty(), "{expected:?}");
}

#[test]
fn every_member_says_nothing_about_this_machine() {
    let (_dir, store) = store();
    let zeros = vec![0; 3 << 20];
    let compressed = blob(&store, &written(&store, 2, [(path("zeros"), Entry::file(0o644, 3 << 20), zeros)]));
    let mut rest = &compressed[..];
    let mut members = 0;
    while !rest.is_empty() {
        assert_eq!(rest[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255], "no name, no time, an unknown system");
        let mut decoder = flate2::bufread::GzDecoder::new(rest);
        let length = io::copy(&mut decoder, &mut io::sink()).expect("a member");
        rest = decoder.into_inner();
        assert!(length == compress::PIECE as u64 || rest.is_empty());
        members += 1;
    }
    assert_eq!(members, 4);
}

#[test]
fn every_frame_says_how_long_it_is_and_nothing_else() {
    let (_dir, store) = store();
    let layer =
        written_as(Compression::Zstd, &store, 2, [(path("zeros"), Entry::file(0o644, 3 << 20), vec![0; 3 << 20])]);
    assert_eq!(layer.blob.media_type, LAYER_ZSTD);
    let compressed = blob(&store, &layer);
    let mut rest = &compressed[..];
    let mut contents = Vec::new();
    while !rest.is_empty() {
        // RFC 8878, 3.1.1.1.1: a size and no window of its own, no checksum, no dictionary.
        assert_eq!(rest[4] & 0b0011_1111, 0b0010_0000, "{:08b}", rest[4]);
        contents.push(zstd_safe::get_frame_content_size(rest).expect("a frame").expect("a size"));
        let length = zstd_safe::find_frame_compressed_size(rest).expect("a frame");
        rest = &rest[length..];
    }
    assert_eq!(contents, [1 << 20, 1 << 20, 1 << 20, 1536]);
    assert_eq!(zstd_safe::version_number(), 10_507, "the library that is linked");
}

#[test]
fn a_layer_that_is_compressed_otherwise_is_the_one_that_would_have_been_written() {
    let (_dir, store) = store();
    let entries = || everything().into_iter().chain([(path("zz"), Entry::file(0o644, 3 << 20), vec![b'z'; 3 << 20])]);
    let [gzip, zstd] = Compression::ALL.map(|compression| written_as(compression, &store, 2, entries()));
    for (from, to, compression) in [(&gzip, &zstd, Compression::Zstd), (&zstd, &gzip, Compression::Gzip)] {
        store.forget_layer(&to.diff_id, codec(compression)).expect("forgotten");
        let anew = known(&from.diff_id, compression, &store).expect("looked").expect("the other is known");
        assert_eq!(anew, *from);
        let tar = unpacked(&store, from);
        let anew = recompress(&mut &tar[..], &from.diff_id, form(compression, 3), &store).expect("compressed");
        assert_eq!(anew, *to);
        assert_eq!(known(&from.diff_id, compression, &store).expect("looked").as_ref(), Some(to), "and is known now");

        let other = recompress(&mut &tar[512..], &from.diff_id, form(compression, 1), &store).expect_err("cut");
        assert!(matches!(other, LayerError::Other { .. }) && other.hint().is_some(), "{other}");
    }
    assert_eq!(std::fs::read_dir(store.root().join("tmp")).expect("listed").count(), 0);
}

#[test]
fn content_that_changed_is_noticed() {
    let (_dir, store) = store();
    let cases: [(u64, &[u8], Option<Digest>); 3] =
        [(5, b"four", None), (3, b"four", None), (4, b"four", Some(Digest::of(b"five")))];
    for (size, content, expected) in cases {
        let mut writer = LayerWriter::new(&store, form(Compression::Gzip, 1)).expect("begun");
        let error = writer
            .file(&path("f"), &Entry::file(0o644, size), expected.as_ref(), &mut Cursor::new(content))
            .expect_err("another content");
        assert!(matches!(error, LayerError::Changed { .. }), "{error}");
    }
}

#[test]
fn a_layer_that_was_given_up_leaves_nothing() {
    let (dir, store) = store();
    let mut writer = LayerWriter::new(&store, form(Compression::Zstd, 2)).expect("begun");
    let big = vec![1; 5 << 20];
    writer.file(&path("f"), &Entry::file(0o644, 5 << 20), None, &mut Cursor::new(&big)).expect("written");
    drop(writer);
    assert_eq!(store.blobs().expect("listed").count(), 0);
    assert_eq!(std::fs::read_dir(dir.path().join("store/tmp")).expect("listed").count(), 0);
}

#[test]
fn paths_are_ordered_parents_first_and_whiteouts_before_siblings() {
    let mut paths: Vec<TarPath> = ["a/b", "a-b", "a", "a/.wh.c", "a/!x", "a/b/c", "b"].into_iter().map(path).collect();
    paths.sort();
    let texts: Vec<String> = paths.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["/a", "/a/.wh.c", "/a/!x", "/a/b", "/a/b/c", "/a-b", "/b"]);
    assert_eq!(path("a/b/c").parents(), [path("a"), path("a/b")]);
    assert_eq!(path("/a//../../b/./c/").as_bytes(), b"b/c");
    assert_eq!(path("a/b").whiteout(), path("a/.wh.b"));
    assert_eq!(path("b").whiteout(), path(".wh.b"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_depend_neither_on_the_order_of_entries_nor_on_the_number_of_cores(
        names in prop::collection::btree_set("[a-c!-]{1,3}(/[a-c]{1,2}){0,2}", 1..12),
        seed in any::<u64>(),
        length in 0..1_200_000_usize,
    ) {
        let (_dir, store) = store();
        let mut entries: Vec<_> = names
            .iter()
            .map(|name| (path(name), Entry::file(0o644, length as u64 / 8), vec![name.len() as u8; length / 8]))
            .collect();
        let first = Compression::ALL.map(|compression| written_as(compression, &store, 1, entries.clone()));
        let middle = seed as usize % entries.len();
        entries.rotate_left(middle);
        entries.reverse();
        for (compression, first) in Compression::ALL.into_iter().zip(&first) {
            prop_assert_eq!(&written_as(compression, &store, 2, entries.clone()), first);
            prop_assert_eq!(&written_as(compression, &store, 5, entries.clone()), first);
        }
    }
}
