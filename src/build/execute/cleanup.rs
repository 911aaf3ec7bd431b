//! What package managers leave behind besides what they were called for: lists, caches and logs with times and today's news in them. After a step
//! that had the network they are no change of the step's, so that whoever runs it again usually gets the same.
//!
//! Files of the image below that such a step alters stay as they were. What it removes is removed, and directories stay, since neither says
//! anything about the time. The list is in `docs/dockerfile.md`; [`VERSION`] is part of the step's key.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiji_sandbox::{Change, Changes, Kind, Node};

/// Raised when something else is cleaned up.
pub(in crate::build) const VERSION: u32 = 3;

/// How a place is cleaned up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The file, or the directory and all in it.
    Whole,
    /// All files in it and below.
    Files,
    /// The file, if it is compiled Python that knows its source by the time: times are the layer's, so it is never read again. Or that was
    /// compiled where nothing is any more.
    Stale,
}

/// Places of the image. `**` at the beginning is any directory, `*` any part of a name.
const PLACES: [(&str, How); 27] = [
    // What Node 22 and newer keep of npm's own compiled code.
    ("tmp/node-compile-cache", How::Whole),
    ("var/cache/apk", How::Files),
    ("var/cache/apt", How::Files),
    ("var/cache/dnf", How::Files),
    ("var/cache/ldconfig/aux-cache", How::Whole),
    ("var/cache/libdnf5", How::Files),
    ("var/cache/yum", How::Files),
    ("var/lib/apt/lists", How::Files),
    ("var/log/alternatives.log", How::Whole),
    ("var/log/apk.log", How::Whole),
    ("var/log/apt", How::Files),
    ("var/log/dnf*.log", How::Whole),
    ("var/log/dpkg.log", How::Whole),
    ("var/log/fontconfig.log", How::Whole),
    ("var/log/hawkey.log", How::Whole),
    ("var/log/yum.log", How::Whole),
    ("**/.cache/go-build", How::Whole),
    ("**/.cache/pip", How::Whole),
    ("**/.npm/_cacache", How::Whole),
    ("**/.npm/_logs", How::Whole),
    ("**/.npm/_update-notifier-last-checked", How::Whole),
    ("**/.cargo/.global-cache", How::Whole),
    ("**/.cargo/.package-cache", How::Whole),
    ("**/.cargo/.package-cache-mutate", How::Whole),
    ("**/.cargo/registry", How::Whole),
    ("**/.cargo/git", How::Whole),
    ("**/__pycache__/*.pyc", How::Stale),
];

/// What of `$CARGO_HOME` goes, wherever it is.
const CARGO: [&str; 5] = [".global-cache", ".package-cache", ".package-cache-mutate", "registry", "git"];

/// The changes of a step without what is cleaned up. `env` are its variables.
///
/// # Errors
/// When a file cannot be looked into.
pub(super) fn kept(changes: &Changes, env: &[(String, String)]) -> io::Result<Vec<Change>> {
    let mut places: Vec<(String, How)> = PLACES.iter().map(|(place, how)| ((*place).to_owned(), *how)).collect();
    let cargo = env.iter().find(|(name, value)| name == "CARGO_HOME" && value.starts_with('/'));
    if let Some((_, home)) = cargo {
        let home = home.trim_matches('/');
        places.extend(CARGO.iter().map(|name| (format!("{home}/{name}"), How::Whole)));
    }
    let stale = |path: &Path| -> io::Result<bool> {
        let mut compiled = Vec::new();
        changes.open(path)?.take(COMPILED).read_to_end(&mut compiled)?;
        Ok(is_stale(&compiled))
    };
    let mut kept = Vec::new();
    for change in changes {
        if !goes(change, &places, &stale)? {
            kept.push(change.clone());
        }
    }
    Ok(with_first_names(changes.list(), kept))
}

/// Whether a change is none of the step's.
fn goes(change: &Change, places: &[(String, How)], stale: &dyn Fn(&Path) -> io::Result<bool>) -> io::Result<bool> {
    let Change { path, kind } = change;
    let node = match kind {
        Kind::Whiteout => return Ok(false),
        Kind::Added(node, _) | Kind::Modified(node, _) => node,
    };
    let names: Vec<&[u8]> = path.iter().map(OsStrExt::as_bytes).collect();
    for (place, how) in places {
        let Some(below) = matches(place, &names) else { continue };
        let gone = match how {
            How::Whole => true,
            How::Files => *node != Node::Directory,
            How::Stale => below == 0 && matches!(node, Node::File { .. } | Node::HardLink { .. }) && stale(path)?,
        };
        if gone {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How far below a place a path is: 0 for the place itself. None where it is elsewhere.
fn matches(place: &str, names: &[&[u8]]) -> Option<usize> {
    let (anywhere, place) = match place.strip_prefix("**/") {
        Some(rest) => (true, rest),
        None => (false, place),
    };
    let parts: Vec<&[u8]> = place.split('/').map(str::as_bytes).collect();
    let last = names.len().checked_sub(parts.len())?;
    let at = |from: usize| parts.iter().zip(&names[from..]).all(|(part, name)| is_like(part, name));
    let from = if anywhere { (0..=last).find(|from| at(*from)) } else { at(0).then_some(0) };
    from.map(|from| names.len() - from - parts.len())
}

/// Whether a name is the pattern, in which one `*` may stand.
fn is_like(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.iter().position(|byte| *byte == b'*') {
        None => pattern == name,
        Some(at) => {
            let (before, after) = (&pattern[..at], &pattern[at + 1..]);
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        }
    }
}

/// How much of compiled Python is looked into: the name of its source is in the first code object, and comes with the last one at the latest.
const COMPILED: u64 = 64 << 20;

/// Where `pip install --target` compiles before it moves what it installed: `TMPDIR/pip-target-` and eight letters that are drawn (pip 25.3,
/// `commands/install.py`). The folder's name is in every code object.
const DRAWN: &[u8] = b"/pip-target-";

/// Whether compiled Python knows its source by the time (PEP 552: after the magic number, flags that are 0), or by a name that was drawn.
fn is_stale(compiled: &[u8]) -> bool {
    compiled.len() >= 8
        && compiled[2..4] == *b"\r\n"
        && (compiled[4..8] == [0; 4] || compiled.windows(DRAWN.len()).any(|window| window == DRAWN))
}

/// Where the first of several names of a file is gone, the first that is left stands for the file.
fn with_first_names(all: &[Change], kept: Vec<Change>) -> Vec<Change> {
    let sizes: BTreeMap<&Path, u64> = all
        .iter()
        .filter_map(|change| match &change.kind {
            Kind::Added(Node::File { size }, _) | Kind::Modified(Node::File { size }, _) => {
                Some((change.path.as_path(), *size))
            }
            _ => None,
        })
        .collect();
    let there: std::collections::BTreeSet<PathBuf> = kept.iter().map(|change| change.path.clone()).collect();
    let mut first: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let other = |mut change: Change| {
        let (Kind::Added(node, _) | Kind::Modified(node, _)) = &mut change.kind else { return change };
        if let Node::HardLink { to } = node
            && !there.contains(to)
            && let Some(size) = sizes.get(to.as_path())
        {
            *node = match first.get(to) {
                Some(name) => Node::HardLink { to: name.clone() },
                None => {
                    first.insert(to.clone(), change.path.clone());
                    Node::File { size: *size }
                }
            };
        }
        change
    };
    kept.into_iter().map(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiji_sandbox::Meta;

    fn added(path: &str, node: Node) -> Change {
        let meta = Meta { mode: 0o644, uid: 0, gid: 0, capability: None };
        Change { path: path.into(), kind: Kind::Added(node, meta) }
    }

    #[test]
    fn what_package_managers_leave_behind_goes_and_the_rest_stays() {
        let places: Vec<(String, How)> = PLACES.iter().map(|(place, how)| ((*place).to_owned(), *how)).collect();
        let stale = |path: &Path| Ok(path.ends_with("old.pyc"));
        let goes = |change: &Change| goes(change, &places, &stale).expect("looked at");
        let file = || Node::File { size: 1 };
        for (path, node, gone) in [
            ("var/lib/apt/lists/x_Release", file(), true),
            ("var/lib/apt/lists/partial", Node::Directory, false),
            ("var/lib/apt/lists/partial/x", file(), true),
            ("var/lib/apt/extended_states", file(), false),
            ("var/lib/dpkg/status", file(), false),
            ("var/log/dpkg.log", file(), true),
            ("var/log/dpkg.log.1", file(), false),
            ("var/log/apt/history.log", file(), true),
            ("var/log/dnf.librepo.log", file(), true),
            ("var/cache/ldconfig/aux-cache", file(), true),
            ("var/cache/ldconfig", Node::Directory, false),
            ("etc/ld.so.cache", file(), false),
            ("srv/var/log/dpkg.log", file(), false),
            ("root/.cache", Node::Directory, false),
            ("root/.cache/pip", Node::Directory, true),
            ("root/.cache/pip/http/a", file(), true),
            ("home/a/.cache/pip/selfcheck/a", file(), true),
            ("root/.npm/_logs/2026-01-01.log", file(), true),
            ("root/.npm/_cacache/index-v5/a", file(), true),
            ("app/node_modules/x", file(), false),
            ("usr/lib/__pycache__/a.old.pyc", file(), false),
            ("usr/lib/__pycache__/old.pyc", file(), true),
            ("usr/lib/old.pyc", file(), false),
            ("root/.cargo/registry/cache/x", file(), true),
            ("root/.cargo/bin/x", file(), false),
            ("var/log/fontconfig.log", file(), true),
            ("tmp/node-compile-cache/v24.11.1-x64/044af4fd", file(), true),
            ("tmp/other", file(), false),
            ("root/.cargo/.global-cache", file(), true),
        ] {
            assert_eq!(goes(&added(path, node)), gone, "{path}");
        }
        let removed = Change { path: "var/lib/apt/lists/x_Release".into(), kind: Kind::Whiteout };
        assert!(!goes(&removed), "what a step removes is removed");
    }

    #[test]
    fn the_first_name_that_is_left_stands_for_a_file() {
        let all = [
            added("root/.cache/pip/a", Node::File { size: 7 }),
            added("usr/b", Node::HardLink { to: "root/.cache/pip/a".into() }),
            added("usr/c", Node::HardLink { to: "root/.cache/pip/a".into() }),
            added("usr/d", Node::HardLink { to: "usr/kept".into() }),
        ];
        let kept = with_first_names(&all, all[1..].to_vec());
        let nodes: Vec<Node> = kept
            .into_iter()
            .map(|change| match change.kind {
                Kind::Added(node, _) => node,
                other => panic!("{other:?}"),
            })
            .collect();
        let link = |to: &str| Node::HardLink { to: to.into() };
        assert_eq!(nodes, [Node::File { size: 7 }, link("usr/b"), link("usr/kept")]);
    }

    #[test]
    fn compiled_python_is_stale_where_it_knows_a_time() {
        assert!(is_stale(&[0x2b, 0x0e, 0x0d, 0x0a, 0, 0, 0, 0, 1]));
        assert!(!is_stale(&[0x2b, 0x0e, 0x0d, 0x0a, 3, 0, 0, 0, 1]), "by its content");
        let of = |source: &str| {
            [&[0xa7, 0x0d, 0x0d, 0x0a, 3, 0, 0, 0, 1, 0xfa, 0x37][..], source.as_bytes(), b"\0\xf3"].concat()
        };
        assert!(is_stale(&of("/tmp/pip-target-5ay4z4jx/lib/python/flask/app.py")), "by a folder that pip drew");
        assert!(!is_stale(&of("/site/flask/app.py")));
        assert!(!is_stale(b"text of /tmp/pip-target-5ay4z4jx/, and of no program"));
        assert!(!is_stale(b"text of no program"));
        assert!(!is_stale(b""));
    }
}
