use std::path::Path;

use super::*;

/// What the first layer format wrote.
const FIXTURE: &str = include_str!("fixtures/v1.lock");

/// The same as it is written now.
fn written() -> String {
    FIXTURE.replacen("layer-format = 1\n", "layer-format = 2\n", 1)
}

fn parse(text: &str) -> Result<Lock, LockfileError> {
    format::parse(text, Path::new("jiji.lock"))
}

fn render(lock: &Lock) -> String {
    format::render(lock, Path::new("jiji.lock")).expect("the lock can be written")
}

fn target(service: &str) -> Target {
    Target {
        service: ServiceName::new(service).expect("a service name"),
        environment: None,
        platform: Platform::linux_amd64(),
    }
}

#[test]
fn the_fixture_of_version_1_is_read_and_written_back_with_the_layer_format_of_now_alone() {
    let lock = parse(FIXTURE).expect("the fixture is a lock");
    assert_eq!(lock.build.bases.len(), 2);
    assert_eq!(lock.plugins.len(), 1);
    assert_eq!(render(&lock), written());
}

#[test]
fn the_order_of_entries_does_not_reach_the_text() {
    let (head, tail) = FIXTURE.split_once("[[image]]\nservice = \"web\"\nplatform").expect("the fixture has an image");
    let (image, rest) = tail.split_once("\n[[image]]").expect("the fixture has two images");
    let (other, rest) = rest.split_once("\n[[run]]").expect("the fixture has a run");
    let swapped = format!("{head}[[image]]{other}\n[[image]]\nservice = \"web\"\nplatform{image}\n[[run]]{rest}");
    assert_ne!(swapped, FIXTURE);
    assert_eq!(render(&parse(&swapped).expect("still a lock")), written());
}

#[test]
fn a_newer_version_is_refused_whatever_it_holds() {
    let error = parse("version = 2\nunheard-of = true\n").expect_err("too new");
    assert!(matches!(error, LockfileError::NewerVersion { found: 2, .. }), "{error}");
    let error = parse("version = 1\nlayer-format = 9\n").expect_err("too new");
    assert!(matches!(error, LockfileError::NewerLayerFormat { found: 9, .. }), "{error}");
}

#[test]
fn an_unknown_key_is_refused_with_its_place() {
    let text = FIXTURE.replace("diff-id = ", "diff_id = ");
    let error = parse(&text).expect_err("unknown key");
    let LockfileError::Syntax { line, column, message, .. } = &error else { panic!("{error}") };
    assert_eq!((*line, *column), (31, 1), "{error}");
    assert!(message.contains("diff_id"), "{message}");
}

#[test]
fn two_entries_for_one_thing_are_refused() {
    let base = FIXTURE.lines().skip(5).take(4).collect::<Vec<_>>().join("\n");
    let error = parse(&format!("{FIXTURE}\n{base}\n")).expect_err("twice");
    assert!(matches!(error, LockfileError::Duplicate { section: "base", .. }), "{error}");
}

#[test]
fn grants_that_toml_cannot_say_are_refused() {
    let mut lock = parse(FIXTURE).expect("the fixture is a lock");
    let pin = lock.plugins.values_mut().next().expect("the fixture has a plugin");
    pin.grants.insert("root".to_owned(), serde_json::Value::Null);
    let error = format::render(&lock, Path::new("jiji.lock")).expect_err("null");
    assert!(matches!(error, LockfileError::Grants { what: "a null", .. }), "{error}");
}

#[test]
fn a_project_without_a_lock_has_the_empty_one_and_gets_no_file_for_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let file = LockFile::of_project(root.path());
    assert_eq!(file.read().expect("no file is no error"), Lock::default());
    file.update_build(|_| ()).expect("nothing to do");
    assert!(!file.path().exists());
}

#[test]
fn writers_of_different_sections_do_not_lose_each_others_entries() {
    let root = tempfile::tempdir().expect("a directory");
    let file = LockFile::of_project(root.path());
    let pin = parse(FIXTURE).expect("the fixture is a lock").plugins.into_values().next().expect("it has a plugin");
    std::thread::scope(|scope| {
        for n in 0..8u8 {
            let (file, pin) = (&file, &pin);
            scope.spawn(move || {
                let name = PluginName::new(format!("p{n}")).expect("a plugin name");
                file.update_plugins(|plugins| drop(plugins.insert(name, pin.clone()))).expect("written");
            });
            scope.spawn(move || {
                let runs = BTreeMap::from([(Digest::of([n]), Digest::of([n, n]))]);
                file.update_build(|build| build.record(&target(&format!("s{n}")), Digest::of([n]), &runs))
                    .expect("written");
            });
        }
    });
    let lock = file.read().expect("a lock");
    assert_eq!((lock.plugins.len(), lock.build.images.len(), lock.build.runs.len()), (8, 8, 8));
    assert_eq!(std::fs::read_dir(root.path()).expect("a directory").count(), 1, "no temporary file is left");
}

#[test]
fn a_new_build_of_a_target_forgets_its_old_steps_and_keeps_the_others() {
    let mut build = BuildSection::default();
    let step = |n: u8| BTreeMap::from([(Digest::of([n]), Digest::of([n, n]))]);
    build.record(&target("web"), Digest::of([0]), &step(1));
    build.record(&target("job"), Digest::of([0]), &step(2));
    build.record(&target("web"), Digest::of([9]), &step(3));
    assert_eq!(build.run(&Digest::of([1])), None);
    assert_eq!(build.run(&Digest::of([2])), Some(Digest::of([2, 2])));
    assert_eq!(build.run(&Digest::of([3])), Some(Digest::of([3, 3])));
    assert_eq!(build.images[&target("web")], Digest::of([9]));
}

#[test]
fn an_update_that_changes_nothing_leaves_the_file_alone() {
    let root = tempfile::tempdir().expect("a directory");
    let file = LockFile::of_project(root.path());
    let inode = || {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(file.path()).expect("the file is there").ino()
    };
    std::fs::write(file.path(), written()).expect("written");
    let before = inode();
    file.update_build(|_| ()).expect("nothing to do");
    assert_eq!(inode(), before);
}
