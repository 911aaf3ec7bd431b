use std::io::Cursor;

use jiji_model::image::{Compression, LAYER_GZIP};
use jiji_store::Store;

use super::*;
use crate::build::layer::{Form, LayerWriter};

fn path(text: &str) -> TarPath {
    TarPath::normal(text)
}

fn link(target: &str) -> Entry {
    Entry { node: Node::Symlink(target.as_bytes().to_vec()), ..Entry::directory(0o777) }
}

fn layer(store: &Store, entries: &[(&str, Entry, &str)]) -> jiji_store::Layer {
    let sorted: BTreeMap<TarPath, _> = entries.iter().map(|(name, entry, text)| (path(name), (entry, text))).collect();
    let mut writer =
        LayerWriter::new(store, Form { epoch: 0, compression: Compression::Gzip, threads: 1 }).expect("begun");
    for (path, (entry, text)) in sorted {
        writer.file(&path, entry, None, &mut Cursor::new(text.as_bytes())).expect("written");
    }
    writer.finish().expect("finished")
}

fn list(tree: &Tree) -> Vec<String> {
    tree.entries().map(|(path, _)| path.to_string()).collect()
}

#[test]
fn layers_cover_and_remove_what_is_below() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let file = || Entry::file(0o644, 0);
    let below = layer(
        &store,
        &[
            ("a", Entry::directory(0o700), ""),
            ("a/x", file(), ""),
            ("a/y", file(), ""),
            ("b", Entry::directory(0o755), ""),
            ("b/deep", Entry::directory(0o755), ""),
            ("b/deep/z", file(), ""),
            ("c", Entry::directory(0o755), ""),
            ("c/old", file(), ""),
            ("etc/passwd", Entry::file(0o644, 39), "root:x:0:0::/:/bin/sh\napp:x:10:20::/:/\n"),
            ("etc/group", Entry::file(0o644, 13), "staff:x:50:\n\n"),
        ],
    );
    let above = layer(
        &store,
        &[
            ("a", Entry::directory(0o711), ""),
            ("a/.wh.x", Entry::whiteout(), ""),
            ("b", file(), ""),
            ("c/.wh..wh..opq", Entry::whiteout(), ""),
            ("c/new", file(), ""),
            ("c/twin", Entry { node: Node::Hardlink(path("c/new")), ..file() }, ""),
        ],
    );
    let layers = Layers::new(&store);
    let tree = layers.tree(&[below.clone(), above.clone()]).expect("a tree");
    assert_eq!(list(&tree), ["/a", "/a/y", "/b", "/c", "/c/new", "/c/twin", "/etc", "/etc/group", "/etc/passwd"]);
    assert_eq!(tree.get(&path("a")).expect("there").entry.mode, 0o711);
    assert_eq!(tree.get(&path("c/twin")).expect("there").content, Content::Layer(above.diff_id, path("c/new")));
    assert_eq!(tree.get(&path("a/y")).expect("there").content, Content::Layer(below.diff_id, path("a/y")));
    assert_eq!((tree.accounts().user("app"), tree.accounts().group("staff")), (Some((10, 20)), Some(50)));
    // The second time, the layers are not read again.
    store.remove(&below.blob.digest).expect("removed");
    store.remove(&above.blob.digest).expect("removed");
    let again = layers.tree(&[below, above]).expect("remembered");
    assert_eq!((list(&again), again.accounts()), (list(&tree), tree.accounts()));
    assert!(again.entries().eq(tree.entries()));
}

#[test]
fn links_are_followed_inside_of_the_root() {
    let entries = [
        ("bin", link("usr/bin")),
        ("usr", Entry::directory(0o755)),
        ("usr/bin", Entry::directory(0o755)),
        ("usr/lib", link("/lib/../usr/bin")),
        ("up", link("../../../usr")),
        ("one", link("two")),
        ("two", link("one")),
        ("dangling", link("nowhere/else")),
    ];
    let found = |entry| Found { entry, content: Content::None };
    let tree = Tree::new(entries.into_iter().map(|(name, entry)| (path(name), found(entry))).collect());
    for (from, to) in [
        ("bin/x/y", "usr/bin/x/y"),
        ("usr/lib", "usr/bin"),
        ("up/bin", "usr/bin"),
        ("dangling/f", "nowhere/else/f"),
        ("plain", "plain"),
        ("", ""),
    ] {
        assert_eq!(tree.resolve(&path(from)), Ok(path(to)), "{from}");
    }
    assert_eq!(tree.resolve(&path("one")), Err(TooManyLinks(path("one"))));
}

#[test]
fn a_layer_that_is_no_layer_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let digest = store.put(b"no tar").expect("stored");
    let blob = |media_type: &str| jiji_model::image::Descriptor { media_type: media_type.to_owned(), digest, size: 6 };
    let layers = Layers::new(&store);
    let error = layers.tree(&[jiji_store::Layer { diff_id: digest, blob: blob(LAYER_GZIP) }]).expect_err("no gzip");
    assert!(matches!(error, IndexError::Read { .. }), "{error}");
    let error =
        layers.tree(&[jiji_store::Layer { diff_id: digest, blob: blob("application/x-thing") }]).expect_err("no layer");
    assert!(matches!(error, IndexError::MediaType { .. }), "{error}");
}
