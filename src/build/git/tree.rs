//! A commit's files as a tar: what the objects say, in the order of git, with nothing of this machine in it.
//!
//! With `.git` asked for, there is one that says which commit it is and has its objects, uncompressed: a packed one would depend on
//! the version of git, and history, remotes and tags are not there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use jiji_model::digest::Digest;
use jiji_sandbox::UnpackLimits;
use jiji_store::Store;
use tar::{Builder, EntryType, Header};

use super::Wanted;
use super::error::GitError;
use super::program::{Git, Objects};

/// The longest text of a link, in bytes: what Linux takes.
const LINK: u64 = 4096;
/// The longest path, in bytes: what Linux takes.
const PATH: usize = 4096;

/// A file as a tree names it.
struct File {
    path: Vec<u8>,
    kind: Kind,
    object: String,
    size: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Program,
    Link,
}

/// Writes the archive into the store: its digest and length.
pub(super) fn archive(git: &Git<'_>, wanted: &Wanted<'_>, store: &Store) -> Result<(Digest, u64), GitError> {
    let commit = wanted.commit.as_str();
    let tree = match wanted.directory {
        None => format!("{commit}^{{tree}}"),
        Some(directory) => format!("{commit}:{directory}"),
    };
    let missing = || GitError::NoDirectory {
        directory: wanted.directory.unwrap_or("/").to_owned(),
        commit: wanted.commit.clone(),
    };
    let kind = git.read(&["cat-file", "-t", &tree]).map_err(|_| missing())?;
    if kind != b"tree\n" {
        return Err(missing());
    }
    let files = list(&git.read(&["ls-tree", "-r", "-l", "-z", "--full-tree", &tree])?)?;
    let mut builder = Builder::new(store.writer()?);
    if wanted.keep_git {
        keep_git(git, wanted, &mut builder)?;
    }
    let mut objects = Objects::of(git, files.iter().map(|file| file.object.clone()).collect())?;
    let mut made = BTreeSet::new();
    for file in &files {
        directories(&file.path, &mut made, &mut builder)?;
        let (kind, size) = objects.next()?;
        if kind != "blob" || size != file.size {
            return Err(GitError::Read { said: format!("`{}` is not what its tree says", file.object) });
        }
        let path = Path::new(OsStr::from_bytes(&file.path));
        match file.kind {
            Kind::Link => {
                let mut text = Vec::new();
                objects.bytes(size).read_to_end(&mut text)?;
                let mut header = header(EntryType::Symlink, 0o777, 0);
                builder.append_link(&mut header, path, OsStr::from_bytes(&text))?;
            }
            Kind::Plain | Kind::Program => {
                let mode = if file.kind == Kind::Program { 0o755 } else { 0o644 };
                let mut header = header(EntryType::Regular, mode, size);
                builder.append_data(&mut header, path, objects.bytes(size))?;
            }
        }
        objects.close()?;
    }
    objects.finish()?;
    Ok(builder.into_inner()?.finish(None)?)
}

/// Reads what `git ls-tree -r -l -z` prints.
fn list(printed: &[u8]) -> Result<Vec<File>, GitError> {
    let limits = UnpackLimits::default();
    let mut files = Vec::new();
    let mut bytes = 0_u64;
    for line in printed.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let tab = line.iter().position(|byte| *byte == b'\t');
        let (head, path) = line.split_at(tab.unwrap_or(line.len()));
        let path = path.get(1..).unwrap_or_default().to_vec();
        let shown = || String::from_utf8_lossy(&path).into_owned();
        let head = String::from_utf8_lossy(head);
        let words: Vec<&str> = head.split_whitespace().collect();
        let [mode, _, object, size] = words[..] else {
            return Err(GitError::Read { said: format!("`{}` is no line of a tree", head.escape_debug()) });
        };
        let kind = match mode {
            "100755" => Kind::Program,
            "120000" => Kind::Link,
            "160000" => return Err(GitError::Submodule { path: shown() }),
            // Also 100664, which old versions wrote.
            mode if mode.starts_with("100") => Kind::Plain,
            _ => return Err(GitError::Name { path: shown() }),
        };
        let part = |part: &[u8]| part.is_empty() || part == b"." || part == b".." || part.eq_ignore_ascii_case(b".git");
        if path.len() > PATH || path.split(|byte| *byte == b'/').any(part) {
            return Err(GitError::Name { path: shown() });
        }
        let size: u64 = size.parse().map_err(|_| GitError::Read { said: format!("`{object}` has no length") })?;
        if kind == Kind::Link && size > LINK {
            return Err(GitError::Name { path: shown() });
        }
        bytes = bytes.saturating_add(size);
        if files.len() as u64 >= limits.entries || bytes > limits.bytes {
            return Err(GitError::TooLarge { what: "it has more than 4 million files or 64 GiB" });
        }
        files.push(File { path, kind, object: object.to_owned(), size });
    }
    Ok(files)
}

/// The directories above a path that are not there yet.
fn directories<W: Write>(path: &[u8], made: &mut BTreeSet<PathBuf>, builder: &mut Builder<W>) -> io::Result<()> {
    let path = Path::new(OsStr::from_bytes(path));
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).collect();
    above.reverse();
    for directory in above {
        if made.insert(directory.to_owned()) {
            builder.append_data(&mut header(EntryType::Directory, 0o755, 0), directory, io::empty())?;
        }
    }
    Ok(())
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// A `.git` that knows this one commit.
fn keep_git<W: Write>(git: &Git<'_>, wanted: &Wanted<'_>, builder: &mut Builder<W>) -> Result<(), GitError> {
    let commit = wanted.commit.as_str();
    let mut made = BTreeSet::new();
    let mut put = |name: &str, content: &[u8], builder: &mut Builder<W>| -> Result<(), GitError> {
        let path = format!(".git/{name}");
        directories(path.as_bytes(), &mut made, builder)?;
        let mut header = header(EntryType::Regular, 0o644, content.len() as u64);
        Ok(builder.append_data(&mut header, &path, content)?)
    };
    let version = u8::from(wanted.commit.is_sha256());
    let format = if wanted.commit.is_sha256() { "[extensions]\n\tobjectFormat = sha256\n" } else { "" };
    let config = format!("[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n{format}");
    put("HEAD", format!("{commit}\n").as_bytes(), builder)?;
    put("config", config.as_bytes(), builder)?;
    git.read(&["read-tree", commit])?;
    let index = git.take_file("index")?;
    put("index", &index, builder)?;
    // Without a directory of this name it is no repository to git.
    directories(b".git/refs/heads/x", &mut BTreeSet::from([PathBuf::from(".git")]), builder)?;

    let listed = git.read(&["rev-list", "--objects", "--no-object-names", commit])?;
    let names: BTreeSet<String> = String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect();
    let limits = UnpackLimits::default();
    if names.len() as u64 > limits.entries {
        return Err(GitError::TooLarge { what: "it has more than 4 million objects" });
    }
    let mut objects = Objects::of(git, names.iter().cloned().collect())?;
    let mut bytes = 0_u64;
    for name in &names {
        let (kind, size) = objects.next()?;
        bytes = bytes.saturating_add(size);
        if bytes > limits.bytes || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) || name.len() < 40 {
            return Err(GitError::TooLarge { what: "it has more than 64 GiB" });
        }
        if kind == "commit" && name == commit {
            let mut content = Vec::new();
            objects.bytes(size.min(OBJECT)).read_to_end(&mut content)?;
            if size > OBJECT {
                return Err(GitError::TooLarge { what: "its commit is longer than 16 MiB" });
            }
            if content.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"parent ")) {
                put("shallow", format!("{commit}\n").as_bytes(), builder)?;
            }
            put(&place(name), &stored(&kind, &content), builder)?;
        } else {
            let mut content = Vec::new();
            if size > LARGE {
                return Err(GitError::TooLarge { what: "with `.git` none of its files can be longer than 256 MiB" });
            }
            objects.bytes(size).read_to_end(&mut content)?;
            put(&place(name), &stored(&kind, &content), builder)?;
        }
        objects.close()?;
    }
    objects.finish()
}

/// The longest commit, in bytes.
const OBJECT: u64 = 16 << 20;
/// The longest object that is kept in a `.git`, in bytes: it is in memory.
const LARGE: u64 = 256 << 20;

fn place(name: &str) -> String {
    format!("objects/{}/{}", &name[..2], &name[2..])
}

/// An object as git keeps one by itself: in zlib's format, without being compressed (RFC 1950 and 1951, 3.2.4).
fn stored(kind: &str, content: &[u8]) -> Vec<u8> {
    let object = [format!("{kind} {}\0", content.len()).as_bytes(), content].concat();
    let mut out = vec![0x78, 0x01];
    let mut blocks = object.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        out.push(u8::from(blocks.peek().is_none()));
        let length = u16::try_from(block.len()).expect("a chunk of 65535 bytes at most");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&adler(&object).to_be_bytes());
    out
}

/// Adler-32 (RFC 1950, 8.2).
fn adler(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1_u32, 0_u32);
    // So many sums of bytes fit into 32 bits.
    for block in bytes.chunks(5552) {
        for byte in block {
            a += u32::from(*byte);
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    b << 16 | a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_may_name_files_and_nothing_that_leads_away() {
        let line = |mode: &str, path: &str| format!("{mode} blob {} {:>7}\t{path}\0", "a".repeat(40), 5);
        let files = list(
            [line("100644", "a"), line("100755", "b/c\n"), line("120000", "l"), line("100664", "old")]
                .concat()
                .as_bytes(),
        );
        assert_eq!(files.expect("read").len(), 4);
        for path in
            ["../x", "a/../b", "/a", "a//b", ".", "a/.git/hooks/post-checkout", ".GIT/config", &"a/".repeat(3000)]
        {
            assert!(matches!(list(line("100644", path).as_bytes()), Err(GitError::Name { .. })), "{path}");
        }
        let submodule = format!("160000 commit {} -\tsub\0", "a".repeat(40));
        assert!(matches!(list(submodule.as_bytes()), Err(GitError::Submodule { .. })));
        let long = format!("120000 blob {} 5000\tl\0", "a".repeat(40));
        assert!(matches!(list(long.as_bytes()), Err(GitError::Name { .. })));
        let large = format!("100644 blob {} {}\tl\0", "a".repeat(40), u64::MAX / 2);
        assert!(matches!(list(large.as_bytes()), Err(GitError::TooLarge { .. })));
        for odd in ["nonsense", "100644 blob x\ta", "100644 blob x y\ta"] {
            assert!(list(format!("{odd}\0").as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn an_object_that_is_not_compressed_can_be_read_by_others() {
        for length in [0, 1, 70_000] {
            let content = vec![b'x'; length];
            let mut read = Vec::new();
            let packed = stored("blob", &content);
            flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut read).expect("zlib");
            assert_eq!(read, [format!("blob {length}\0").as_bytes(), &content].concat());
        }
    }
}
