use std::os::unix::fs::symlink;

use super::ignore::Above;
use super::*;
use crate::build::layer::TarPath;

fn path(text: &str) -> TarPath {
    TarPath::normal(text)
}

#[test]
fn ignore_rules_mean_what_they_mean_in_docker() {
    let cases: &[(&str, &str, bool)] = &[
        ("a", "a", true),
        ("a", "a/b/c", true),
        ("a", "ab", false),
        ("a", "x/a", false),
        ("/a/", "a/b", true),
        ("*/a", "x/a", true),
        ("*/a", "x/y/a", false),
        ("**/a", "a", true),
        ("**/a", "x/y/a/b", true),
        ("**/*.md", "x/y/z.md", true),
        ("x/**", "x/y", true),
        ("x/**", "x", false),
        ("x/**/z", "x/z", true),
        ("x/**/z", "x/a/b/z", true),
        ("a?c", "abc", true),
        ("a?c", "a/c", false),
        ("[a-c]x", "bx", true),
        ("[^a-c]x", "bx", false),
        ("a\\*", "a*", true),
        ("a\\*", "ab", false),
        ("a.b", "axb", false),
        ("*\n!keep", "keep", false),
        ("*\n!keep", "keep/all", false),
        ("*\n!keep", "other", true),
        ("*\n!a/b", "a/b/c", false),
        ("!a\na", "a", true),
        ("a\n!a/b\na/b/c", "a/b/c", true),
        ("a\n!a/b\na/b/c", "a/b/d", false),
        ("#a", "#a", false),
        (" #a", "#a", true),
        ("./a/../b", "b", true),
        ("!.git\n!jiji.lock\n!.jiji", ".git/config", true),
        ("!**/.git", "sub/.git", true),
        ("", "jiji.lock", true),
        ("", ".jiji/deploy.yml", true),
        ("", ".gitignore", false),
        (".", "a", false),
        ("../a", "a", false),
        ("/../a", "a", true),
        ("**a", "x/ya", true),
    ];
    for (rules, text, expected) in cases {
        let ignore = Ignore::parse(rules).unwrap_or_else(|bad| panic!("{bad:?}"));
        assert_eq!(ignore.leaves_out(&path(text)), *expected, "{rules:?} and {text}");
    }
    assert_eq!(Ignore::parse("a\n[b").map(|_| ()), Err(BadRule { line: 2, text: "[b".to_owned() }));
    assert_eq!(Ignore::parse("!").map(|_| ()), Err(BadRule { line: 1, text: "!".to_owned() }));
}

/// moby/patternmatcher's cases, kept as data.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    cases: Vec<(Vec<String>, String, bool)>,
    refused: Vec<String>,
    file: GoldenFile,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenFile {
    text: String,
    rules: Vec<String>,
}

#[test]
fn ignore_rules_leave_out_what_they_leave_out_in_docker() {
    let Golden { cases, refused, file } =
        toml::from_str(include_str!("golden/ignore.toml")).unwrap_or_else(|error| panic!("{error}"));
    assert!(cases.len() > 90, "{} cases", cases.len());
    for (rules, text, expected) in cases {
        let ignore = Ignore::parse(&rules.join("\n")).unwrap_or_else(|bad| panic!("{bad:?}"));
        let text = path(&text);
        assert_eq!(ignore.leaves_out(&text), expected, "{rules:?} and {text}");
        // A walk asks every directory once, on its way down.
        let above = text.parents().iter().fold(Above::default(), |above, parent| ignore.above(&above, parent));
        assert_eq!(ignore.leaves_out_in(&above, &text), expected, "{rules:?} and {text} in a walk");
    }
    for rule in refused {
        assert!(Ignore::parse(&rule).is_err(), "{rule}");
    }
    let read = Ignore::parse(&file.text).expect("rules");
    assert_eq!(read, Ignore::parse(&file.rules.join("\n")).expect("rules"));
    assert!(read.leaves_out(&path("a/file/here/x")) && !read.leaves_out(&path("here")));
}

#[test]
fn a_context_says_nothing_about_the_checkout() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("a mode");
    };
    fs::create_dir_all(root.join("src/empty")).expect("created");
    fs::create_dir(root.join(".git")).expect("created");
    for name in ["src/run", "src/text", ".git/index", "jiji.lock", "Dockerfile"] {
        fs::write(root.join(name), name).expect("written");
    }
    symlink("/etc/passwd", root.join("link")).expect("linked");
    fs::hard_link(root.join("src/text"), root.join("twin")).expect("linked");
    mode("src/run", 0o4711);
    mode("src/text", 0o600);
    mode("src", 0o700);
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).expect("bound");

    let tree = read(root, Some(&root.join("Dockerfile")), 2).expect("a context");
    let seen: Vec<String> =
        tree.entries().map(|(path, found)| format!("{path} {:o} {:?}", found.entry.mode, found.entry.node)).collect();
    assert_eq!(
        seen,
        [
            "/Dockerfile 644 File { size: 10 }",
            "/link 777 Symlink([47, 101, 116, 99, 47, 112, 97, 115, 115, 119, 100])",
            "/src 755 Directory",
            "/src/empty 755 Directory",
            "/src/run 755 File { size: 7 }",
            "/src/text 644 File { size: 8 }",
            "/twin 644 File { size: 8 }",
        ]
    );
}

#[test]
fn a_context_is_the_same_on_any_number_of_cores() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    for number in 0..200_u32 {
        // Names on both sides of those that are whiteouts, of directories and of what begins as these do.
        let place = format!("d{}/{}/.wh.x", number % 7, ["a", "a.b", "a-b", ".wh.z", "Z"][number as usize % 5]);
        fs::create_dir_all(root.join(&place)).expect("created");
        fs::write(root.join(&place).join(format!("f{number}")), "").expect("written");
        fs::write(root.join(format!("d{}.txt", number % 9)), "").expect("written");
    }
    fs::write(root.join(".dockerignore"), "d1\nd2\nd3/a*\n!d2/Z/.wh.x/f1*\n!d3/a.b\n").expect("written");
    let one = read(root, None, 1).expect("a context");
    let paths: Vec<&TarPath> = one.entries().map(|(path, _)| path).collect();
    let expected: Vec<&TarPath> = std::collections::BTreeSet::from_iter(paths.clone()).into_iter().collect();
    assert_eq!(paths, expected);
    let has = |text: &str| one.has(&path(text));
    assert!(!has("d1") && has("d2/Z/.wh.x/f149") && !has("d2/a") && !has("d3/a/.wh.x") && has("d3/a.b/.wh.x"));
    for threads in [2, 3, 16] {
        let other = read(root, None, threads).expect("a context");
        assert!(other.entries().eq(one.entries()), "{threads}");
    }
}

#[test]
fn an_ignore_file_beside_the_dockerfile_counts_instead_of_the_contexts() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    fs::create_dir(root.join("docker")).expect("created");
    fs::write(root.join(".dockerignore"), "a").expect("written");
    fs::write(root.join("docker/web"), "").expect("written");
    fs::write(root.join("docker/web.dockerignore"), "b\ndocker\n!docker/web").expect("written");
    fs::write(root.join("a"), "").expect("written");
    fs::write(root.join("b"), "").expect("written");
    let tree = read(root, Some(&root.join("docker/web")), 2).expect("a context");
    let seen: Vec<String> = tree.entries().map(|(path, _)| path.to_string()).collect();
    assert_eq!(seen, ["/.dockerignore", "/a", "/docker", "/docker/web"]);
}

#[test]
fn a_context_that_cannot_be_read_says_where() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("written");
    assert!(matches!(read(&file, Some(&file), 2), Err(ContextError::NotADirectory { .. })));
    let error = read(&dir.path().join("nothing"), Some(&file), 2).expect_err("nothing there");
    assert!(error.to_string().contains("nothing"), "{error}");
    fs::write(dir.path().join(".dockerignore"), "ok\n[").expect("written");
    let error = read(dir.path(), Some(&file), 2).expect_err("a bad rule");
    assert!(error.to_string().contains(".dockerignore:2"), "{error}");
}
