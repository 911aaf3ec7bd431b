use proptest::prelude::*;

use super::*;
use crate::build::layer::Entry;
use crate::build::rootfs::Content;

type Entries = BTreeMap<TarPath, Found>;

fn file(size: u64) -> Found {
    Found { entry: Entry::file(0o644, size), content: Content::None }
}

/// Files with the directories above them, some of which are another's than root.
fn tree(files: impl IntoIterator<Item = (String, Found)>) -> Entries {
    let mut entries = Entries::new();
    for (path, found) in files {
        let path = TarPath::normal(path);
        for parent in path.parents() {
            let mut directory = Found::directory(0o755);
            directory.entry.uid = u32::try_from(parent.as_bytes().len() % 3).expect("small");
            entries.insert(parent, directory);
        }
        entries.insert(path, found);
    }
    entries
}

/// Layers that there were not before.
fn new(before: &[Entries], after: &[Entries]) -> usize {
    after.iter().filter(|layer| !before.contains(layer)).count()
}

/// Up to two directories and a file, of which some are packages.
fn path() -> impl Strategy<Value = String> {
    let directory = prop::sample::select(vec!["a", "b", "site-packages", "node_modules", "@scope", "__pycache__"]);
    let name = prop::sample::select(vec![
        "x.py",
        "x-1.0.json",
        "y.tar.gz",
        ".env",
        "z",
        "libx.so.1",
        "libx.so.2",
        "w@3",
        "u-v.html",
    ]);
    (prop::collection::vec(directory, 0..4), name).prop_map(|(directories, name)| {
        directories.into_iter().chain([name]).map(|part| format!("/{part}")).collect::<String>()
    })
}

fn files(sizes: std::ops::Range<u64>) -> impl Strategy<Value = Vec<(String, u64)>> {
    prop::collection::btree_map(path(), sizes, 1..40).prop_map(|files| files.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn layers_put_upon_each_other_are_what_one_would_be(
        files in files(0..8 << 20),
        linked in prop::collection::vec((path(), any::<prop::sample::Index>()), 0..4),
        empty in prop::collection::vec("/(a|b)/empty[0-9]", 0..3),
        most in 1..=MOST,
    ) {
        let mut entries = tree(files.iter().map(|(path, size)| (path.clone(), file(*size))));
        for (path, to) in linked {
            // A file stands under the first of its names.
            let (path, to) = (TarPath::normal(path + ".linked"), TarPath::normal(&to.get(&files).0));
            if path > to {
                let link = Found { entry: Entry { node: Node::Hardlink(to), ..Entry::file(0o644, 0) }, content: Content::None };
                entries.extend(tree([(path.to_string(), link)]));
            }
        }
        for path in empty {
            entries.extend(tree([(format!("{path}/x"), Found::directory(0o700))]));
        }
        let layers = pack(entries.clone(), most);
        prop_assert!(layers.len() <= most);
        let mut union = Entries::new();
        for layer in &layers {
            prop_assert!(!layer.is_empty());
            for (path, found) in layer {
                prop_assert!(path.parents().iter().all(|parent| layer.contains_key(parent)), "{}", path);
                if let Node::Hardlink(to) = &found.entry.node {
                    prop_assert!(layer.contains_key(to), "{} is in another layer than {}", path, to);
                }
                if let Some(other) = union.insert(path.clone(), found.clone()) {
                    prop_assert_eq!(&other, found);
                    prop_assert!(found.is_directory(), "{} is in two layers", path);
                }
            }
        }
        prop_assert_eq!(union, entries);
    }

    #[test]
    fn another_content_changes_one_layer(
        files in files(0..8 << 20),
        which in any::<prop::sample::Index>(),
        most in 1..=MOST,
    ) {
        let before = tree(files.iter().map(|(path, size)| (path.clone(), file(*size))));
        let mut after = before.clone();
        let path = TarPath::normal(&which.get(&files).0);
        after.get_mut(&path).expect("there").content = Content::Bytes(b"changed".to_vec());
        prop_assert_eq!(new(&pack(before, most), &pack(after, most)), 1);
    }

    #[test]
    fn one_more_or_fewer_small_file_changes_one_layer(
        files in files(0..4096),
        which in any::<prop::sample::Index>(),
        most in 1..=MOST,
    ) {
        let less = files.iter().filter(|(path, _)| *path != which.get(&files).0);
        let less = pack(tree(less.map(|(path, size)| (path.clone(), file(*size)))), most);
        let more = pack(tree(files.iter().map(|(path, size)| (path.clone(), file(*size)))), most);
        prop_assert_eq!(new(&less, &more), 1);
        prop_assert!(new(&more, &less) <= 1);
    }

    /// A unit that becomes one of the largest, or ceases to be, takes or leaves the place of one other.
    #[test]
    fn one_more_or_fewer_file_of_any_size_moves_one_other_unit_at_most(
        files in files(0..8 << 20),
        which in any::<prop::sample::Index>(),
        most in 1..=MOST,
    ) {
        let less = files.iter().filter(|(path, _)| *path != which.get(&files).0);
        let less = pack(tree(less.map(|(path, size)| (path.clone(), file(*size)))), most);
        let more = pack(tree(files.iter().map(|(path, size)| (path.clone(), file(*size)))), most);
        prop_assert!(new(&less, &more) <= 3 && new(&more, &less) <= 3);
    }
}

#[test]
fn what_changes_together_is_one_unit() {
    let same = |paths: &[&str]| {
        let units: BTreeSet<Unit> = paths.iter().map(|path| unit(&TarPath::normal(path))).collect();
        assert_eq!(units.len(), 1, "{paths:?}");
        units.into_iter().next().expect("one")
    };
    let different = [
        same(&[
            "/venv/lib/python3.12/site-packages/flask/json/tag.py",
            "/venv/lib/python3.12/site-packages/flask/__pycache__/app.cpython-312.pyc",
            "/venv/lib/python3.12/site-packages/Flask-3.0.3.dist-info/METADATA",
            "/venv/lib/python3.12/site-packages/flask",
        ]),
        same(&["/venv/lib/python3.12/site-packages/numpy/x", "/venv/lib/python3.12/site-packages/numpy.libs/y.so"]),
        same(&["/app/server.py", "/app/__pycache__/server.cpython-312.pyc", "/app/server.html"]),
        same(&["/app/routes.py"]),
        same(&["/app/node_modules/@babel/core/lib/a.js", "/app/node_modules/@babel/core/node_modules/b/b.js"]),
        same(&["/app/node_modules/@babel/parser/lib/a.js"]),
        same(&["/app/node_modules/.pnpm/react@18.0.0/node_modules/react/a.js", "/app/node_modules/.pnpm/react@19/b"]),
        same(&["/usr/lib/libssl.so.3", "/usr/lib/libssl.so", "/usr/lib/libssl-3.so"]),
        same(&["/usr/lib/libcrypto.so.3"]),
        same(&["/app/lib/spring-core-6.1.2.jar", "/app/lib/spring-core-6.1.3.jar"]),
        same(&["/app/.env", "/app/.env.local"]),
        same(&["/app/vendor"]),
    ];
    assert_eq!(different.iter().collect::<BTreeSet<_>>().len(), different.len());
}

/// Where files go is a format: digests of images depend on it. Other rules are another [`RULES`].
#[test]
fn entries_go_where_they_have_gone() {
    let entries = tree(
        [
            ("/app/server.py", 10),
            ("/app/routes.py", 10),
            ("/app/__pycache__/routes.cpython-312.pyc", 10),
            ("/venv/lib/site-packages/flask/app.py", 100),
            ("/venv/lib/site-packages/flask-3.0.dist-info/METADATA", 100),
            ("/venv/lib/site-packages/torch/lib.so", 300 << 20),
            ("/venv/lib/site-packages/numpy/core.so", 30 << 20),
            ("/venv/lib/site-packages/scipy/core.so", 20 << 20),
        ]
        .map(|(path, size)| (path.to_owned(), file(size))),
    );
    let shown = |layers: Vec<Entries>| {
        let line = |layer: &Entries| {
            let files = layer.iter().filter(|(_, found)| !found.is_directory()).map(|(path, _)| path.to_string());
            files.collect::<Vec<_>>().join(" ")
        };
        layers.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(shown(pack(entries.clone(), 4)), @"
    /venv/lib/site-packages/numpy/core.so
    /venv/lib/site-packages/torch/lib.so
    /app/__pycache__/routes.cpython-312.pyc /app/routes.py
    /app/server.py /venv/lib/site-packages/flask/app.py /venv/lib/site-packages/flask-3.0.dist-info/METADATA /venv/lib/site-packages/scipy/core.so
    ");
    assert_eq!(pack(entries.clone(), 1), [entries]);
    assert_eq!(pack(Entries::new(), 4), [Entries::new()]);
}
