//! Tests of the building itself: who calls whom, and what is absent where.
//!
//! The rules stand in `ARCHITECTURE.md`, which is read here, so that what people are told and what is checked cannot part. Tests are
//! exempt: they may stand wherever they see best.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A source file: its path from the root, and its code without comments, texts and tests.
struct File {
    path: String,
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All source files below a directory that are no tests.
fn files(below: &str) -> Vec<File> {
    let mut found = Vec::new();
    let mut open = vec![root().join(below)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !matches!(name, "tests" | "target") {
                    open.push(path);
                }
            } else if name.ends_with(".rs") && !matches!(name, "tests.rs" | "architecture.rs") {
                let text = std::fs::read_to_string(&path).expect("a source file is text");
                found.push(File { path: relative(&path), code: without_tests(&code(&text)) });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(!found.is_empty(), "there is no code below `{below}`");
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Rust code with comments and the insides of texts blanked out.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c));
    while at < chars.len() {
        let c = chars[at];
        let raw = (c == 'r'
            && !at.checked_sub(1).is_some_and(|before| chars[before].is_alphanumeric() || chars[before] == '_'))
        .then(|| chars[at + 1..].iter().take_while(|c| **c == '#').count())
        .filter(|hashes| chars.get(at + 1 + hashes) == Some(&'"'));
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                if starts(at, "/*") {
                    depth += 1;
                    at += 2;
                } else if starts(at, "*/") {
                    depth -= 1;
                    at += 2;
                } else {
                    at += 1;
                }
                if depth == 0 || at >= chars.len() {
                    break;
                }
            }
        } else if let Some(hashes) = raw {
            let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            at += 2 + hashes;
            while at < chars.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
            out.push_str("\"\"");
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            out.push_str("\"\"");
        } else if c == '\'' && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'')) {
            // A character, not a lifetime.
            at += if chars.get(at + 1) == Some(&'\\') { 3 } else { 2 };
            while at < chars.len() && chars[at] != '\'' {
                at += 1;
            }
            at += 1;
            out.push_str("' '");
        } else {
            out.push(c);
            at += 1;
        }
    }
    out
}

/// Code without the modules that are compiled for tests alone.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let end = item.find([';', '{']).unwrap_or(item.len());
        let mut length = end + 1;
        if item[end..].starts_with('{') {
            let mut depth = 0_usize;
            for (offset, c) in item[end..].char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                length = end + offset + 1;
                if depth == 0 {
                    break;
                }
            }
        }
        rest = item.get(length..).unwrap_or_default();
    }
    out + rest
}

/// Whether a word stands in code, not as a part of a longer one.
fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

/// The table of `ARCHITECTURE.md`: each room and what it may call.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page is there");
    let (_, section) = text.split_once("## Who may call whom").expect("the page has the table");
    let section = section.split("\n## ").next().unwrap_or_default();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|');
            let room = names(cells.next().unwrap_or_default()).remove(0);
            (room, names(cells.next().unwrap_or_default()).into_iter().collect())
        })
        .collect()
}

/// The rooms of the library.
fn rooms() -> BTreeSet<String> {
    let entries = std::fs::read_dir(root().join("src")).expect("the library is there");
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect()
}

/// The rooms of the library that a file calls, by `crate::` or by as many `super::` as lead to the root.
fn calls(file: &File, rooms: &BTreeSet<String>) -> BTreeSet<String> {
    let depth = file.path.split('/').count() - usize::from(file.path.ends_with("/mod.rs")) - 1;
    let mut found = BTreeSet::new();
    for prefix in ["crate::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in file.code.match_indices(&prefix) {
            if file.code[..at].ends_with("super::")
                || file.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            {
                continue;
            }
            let rest = &file.code[at + prefix.len()..];
            let listed: Vec<&str> = match rest.strip_prefix('{') {
                Some(list) => top_level(list),
                None => vec![rest],
            };
            for text in listed {
                let word: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if rooms.contains(&word) {
                    found.insert(word);
                }
            }
        }
    }
    found
}

/// The parts of a `use` list up to its closing brace.
fn top_level(list: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&list[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// The project's own crates: the name in the table, the directory.
const CRATES: [(&str, &str); 7] = [
    ("model", "crates/model"),
    ("store", "crates/store"),
    ("sandbox", "crates/sandbox"),
    ("host", "crates/host"),
    ("registry-shim", "registry-shim"),
    ("lab", "tests/lab"),
    ("xtask", "xtask"),
];

#[test]
fn rooms_of_the_library_call_only_whom_they_may() {
    let table = table();
    let rooms = rooms();
    let mut wrong = Vec::new();
    for room in &rooms {
        let name = format!("src/{room}");
        let Some(may) = table.get(&name) else {
            wrong.push(format!("`{name}` does not stand in the table of ARCHITECTURE.md"));
            continue;
        };
        for file in files(&name) {
            for called in calls(&file, &rooms).into_iter().filter(|called| called != room) {
                if !may.contains(&format!("src/{called}")) {
                    wrong.push(format!("{} calls `src/{called}`", file.path));
                }
            }
            for (called, _) in CRATES {
                let word = format!("jiji_{}", called.replace('-', "_"));
                if has_word(&file.code, &word) && !may.contains(called) {
                    wrong.push(format!("{} calls `{called}`", file.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_depend_only_on_whom_they_may_call() {
    let table = table();
    let mut wrong = Vec::new();
    for (name, dir) in CRATES {
        let may = &table[name];
        let manifest = std::fs::read_to_string(root().join(dir).join("Cargo.toml")).expect("a crate has a manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for dependency in dependencies.lines().filter_map(|line| line.strip_prefix("jiji-")) {
            let called: String = dependency.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
            if !may.contains(&called) {
                wrong.push(format!("{dir} depends on `{called}`"));
            }
        }
        if dependencies.contains("wasmtime") {
            wrong.push(format!("{dir} depends on wasmtime"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_names_only_rooms_that_are_there() {
    let known: BTreeSet<String> = rooms()
        .into_iter()
        .map(|room| format!("src/{room}"))
        .chain(CRATES.iter().map(|(name, _)| (*name).to_owned()))
        .collect();
    for (room, may) in table() {
        for name in may.iter().chain([&room]) {
            assert!(known.contains(name), "there is no room `{name}`");
        }
    }
}

/// Fails where one of the words stands in a file that is not among the exceptions.
fn assert_absent(words: &[&str], below: &[&str], exceptions: &[&str]) {
    let mut wrong = Vec::new();
    for file in below.iter().flat_map(|below| files(below)) {
        if exceptions.iter().any(|exception| file.path.starts_with(exception)) {
            continue;
        }
        for word in words.iter().filter(|word| has_word(&file.code, word)) {
            wrong.push(format!("{} has `{word}`", file.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_library_knows_no_environment_no_terminal_and_no_wall_clock() {
    let environment =
        ["env::var", "env::var_os", "env::vars", "env::current_dir", "env::args", "env::temp_dir", "home_dir"];
    assert_absent(&environment, &["src"], &["src/cli/", "src/main.rs"]);
    let clock = ["SystemTime::now", "Timestamp::now", "Zoned::now"];
    assert_absent(&clock, &["src"], &["src/cli/", "src/report/"]);
    let terminal =
        ["println!", "print!", "eprintln!", "eprint!", "io::stdout", "io::stderr", "io::stdin", "IsTerminal"];
    assert_absent(&terminal, &["src"], &["src/cli/", "src/report/"]);
}

#[test]
fn each_thing_of_the_world_is_known_to_one_room() {
    assert_absent(&["wasmtime"], &["src", "crates", "registry-shim"], &["src/plugin/"]);
    assert_absent(&["openssh"], &["src", "crates", "registry-shim"], &["src/fleet/"]);
    assert_absent(&["oci_distribution"], &["src", "crates", "registry-shim"], &["src/registry/"]);
    assert_absent(&["unshare", "setns"], &["src", "crates", "registry-shim"], &["crates/sandbox/"]);
}

#[test]
fn unsafe_code_stands_where_it_is_allowed_and_nowhere_else() {
    assert_absent(&["unsafe"], &["src", "crates", "registry-shim", "xtask"], &["crates/sandbox/", "src/plugin/cache"]);
}

#[test]
fn no_room_is_named_after_nothing() {
    let mut names: Vec<PathBuf> = Vec::new();
    for below in ["src", "crates", "registry-shim", "tests", "xtask"] {
        names.extend(files(below).into_iter().map(|file| PathBuf::from(file.path)));
    }
    for path in names {
        for part in path.components().filter_map(|part| Path::new(part.as_os_str()).file_stem()?.to_str()) {
            assert!(!matches!(part, "utils" | "util" | "common" | "helpers" | "misc"), "{}", path.display());
        }
    }
}

#[test]
fn comments_texts_and_tests_are_no_code() {
    let text = "use crate::a; // crate::b\n/* crate::c /* crate::d */ */ let x = \"crate::e \\\" crate::f\"; let y = r#\"crate::g\"#;\n\
        let z = '\"'; let l: &'static str = \"\";\n#[cfg(test)]\nmod tests { use crate::h; fn f() { } }\nuse crate::{i::{j}, k};\n";
    let file = File { path: "src/room/mod.rs".to_owned(), code: without_tests(&code(text)) };
    let names = "abcdefghijk".chars().map(String::from).collect();
    assert_eq!(calls(&file, &names).into_iter().collect::<Vec<_>>(), ["a", "i", "k"]);
    let file = File { path: "src/room/inner.rs".to_owned(), code: "super::a super::super::b".to_owned() };
    assert_eq!(calls(&file, &names).into_iter().collect::<Vec<_>>(), ["b"]);
}
