//! Archives that ADD unpacks: their headers as entries of a layer, their files read where they lie.
//!
//! Nothing is unpacked on this machine. An archive is written out without its compression into a file that has no name, its headers
//! are read, and a layer takes each file's bytes from there. So no entry can reach a place outside, whatever it is called: what it is
//! called is checked where it is read, and where it goes is decided by [`super::copy`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_sandbox::{UnpackLimits, each_entry};
use sha2::{Digest as _, Sha256};

use super::layer::{Node, TarPath};
use super::rootfs::{Content, Found, entry_of};

/// The blocks that a tar is made of.
const BLOCK: usize = 512;
/// How far back xz may look, in bytes: `xz -9` looks 64 MiB back (xz(1), "-0 ... -9"). bzip2 needs 4 MiB at most by its format.
const WINDOW: u32 = 64 << 20;
/// What else the reader of xz needs, in KiB: 104 by its own account.
const BESIDES: u32 = 1024;

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read, or is broken.
    #[error("read the archive")]
    Read(#[from] io::Error),
    /// What it was compressed with wants more memory than any archive needs.
    #[error("unpack the archive: a window of more than {} MiB was used to compress it with xz", WINDOW >> 20)]
    Window,
    /// An entry is called so that it would come to lie elsewhere.
    #[error("unpack `{name}` of the archive: the name leads out of it")]
    Climbs {
        /// The entry's name.
        name: String,
    },
    /// An entry is a file with holes.
    #[error("unpack `{name}` of the archive: it is a sparse file")]
    Sparse {
        /// The entry's name.
        name: String,
    },
    /// An entry is another name of a file that is not in the archive.
    #[error("unpack `{name}` of the archive: it is a link to `{to}`, which is not a file before it")]
    Link {
        /// The entry's name.
        name: String,
        /// What it links to.
        to: String,
    },
    /// It holds more than any image.
    #[error("unpack the archive: it holds more than {bytes} bytes or {entries} entries")]
    TooLarge {
        /// The most bytes.
        bytes: u64,
        /// The most entries.
        entries: u64,
    },
    /// It changed after its digest was taken.
    #[error("read the archive: it changed meanwhile")]
    Changed,
}

impl ArchiveError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Window => "compress it with `xz -9` or less, or COPY it and unpack it in a RUN step",
            Self::Climbs { .. } => "COPY it and unpack it in a RUN step if the names are meant",
            Self::Sparse { .. } => "pack it without `--sparse`",
            Self::Changed => "build again when nothing writes to the context",
            Self::Read(_) | Self::Link { .. } | Self::TooLarge { .. } => return None,
        })
    }
}

/// An archive that was read.
#[derive(Debug)]
pub struct Archive {
    /// What is in it: names relative to where it is unpacked, later entries over earlier ones.
    pub entries: BTreeMap<TarPath, Found>,
    tar: Arc<File>,
}

impl Archive {
    /// Reads a file as an archive; none where it is none, compressed or not. `digest` is what the file hashes to, `room` a directory on
    /// a file system with room for its content.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(file: File, digest: &Digest, room: &Path, limits: UnpackLimits) -> Result<Option<Self>, ArchiveError> {
        let mut source = BufReader::with_capacity(128 * 1024, Hashing { inner: file, hash: Sha256::new() });
        let Some(mut reader) = decompressed(&mut source)? else { return Ok(None) };
        let mut first = Vec::with_capacity(BLOCK);
        match reader.by_ref().take(BLOCK as u64).read_to_end(&mut first) {
            Ok(_) if is_header(&first) => {}
            // What is too large to be looked into may be an archive.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Err(ArchiveError::Window),
            // Something else that is compressed, or begins as if it were.
            Ok(_) | Err(_) => return Ok(None),
        }
        let mut tar = tempfile::tempfile_in(room)?;
        tar.write_all(&first)?;
        // Headers and padding come on top of the content.
        let most = limits.bytes.saturating_add(limits.entries.saturating_mul(2 * BLOCK as u64));
        let too_large = ArchiveError::TooLarge { bytes: limits.bytes, entries: limits.entries };
        let written = io::copy(&mut reader.by_ref().take(most), &mut tar).map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => ArchiveError::Window,
            _ => ArchiveError::Read(error),
        })?;
        if written == most {
            return Err(too_large);
        }
        drop(reader);
        io::copy(&mut source, &mut io::sink())?;
        let actual = Digest::from_bytes(source.into_inner().hash.finalize().into());
        if actual != *digest {
            return Err(ArchiveError::Changed);
        }
        let entries = read(&tar, digest, limits.entries)?.ok_or(too_large)?;
        Ok(Some(Self { entries, tar: Arc::new(tar) }))
    }

    /// A file of it, by what [`Content::Part`] says.
    pub fn part(&self, offset: u64, size: u64) -> Part {
        Part { tar: Arc::clone(&self.tar), offset, left: size }
    }
}

/// The bytes of a file that lies in an archive.
#[derive(Debug)]
pub struct Part {
    tar: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.tar.read_at(&mut buffer[..most], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// The content without its compression; none where it is too short for anything. What it is told by are its first bytes.
fn decompressed<'a, R: io::BufRead>(source: &'a mut R) -> Result<Option<Box<dyn Read + 'a>>, ArchiveError> {
    let head = source.fill_buf()?;
    Ok(Some(match head {
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(source)?),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, (WINDOW >> 10) + BESIDES))
        }
        head if head.len() < BLOCK => return Ok(None),
        _ => Box::new(source),
    }))
}

/// Whether a block is the header of a tar: its checksum says so.
fn is_header(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(block) else { return false };
    let header = tar::Header::from_byte_slice(block);
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    block.iter().any(|byte| *byte != 0) && header.cksum().is_ok_and(|said| said == sum)
}

/// Reads the headers. None where there are more than `most`.
fn read(tar: &File, digest: &Digest, most: u64) -> Result<Option<BTreeMap<TarPath, Found>>, ArchiveError> {
    let mut entries: BTreeMap<TarPath, Found> = BTreeMap::new();
    let mut count = 0;
    io::Seek::rewind(&mut &*tar)?;
    let bounds = UnpackLimits { bytes: u64::MAX, entries: u64::MAX };
    each_entry(BufReader::new(tar), bounds, |entry| {
        count += 1;
        if count > most {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let name = || String::from_utf8_lossy(&raw).into_owned();
        if raw.split(|byte| *byte == b'/').any(|part| part == b"..") {
            return Err(ArchiveError::Climbs { name: name() });
        }
        let path = TarPath::normal(&raw);
        let Some(known) = entry_of(entry)? else { return Ok(()) };
        if entry.header().entry_type() == tar::EntryType::GNUSparse {
            return Err(ArchiveError::Sparse { name: name() });
        }
        if path.is_root() {
            return Ok(());
        }
        let content = match &known.node {
            Node::File { .. } => Content::Part { of: *digest, offset: entry.raw_file_position() },
            Node::Hardlink(to) => {
                let file = entries
                    .get(to)
                    .filter(|found: &&Found| matches!(found.entry.node, Node::File { .. } | Node::Hardlink(_)));
                if file.is_none() || *to == path {
                    return Err(ArchiveError::Link { name: name(), to: to.to_string() });
                }
                Content::None
            }
            _ => Content::None,
        };
        // What was there is replaced; of a directory everything in it, unless it is a directory again.
        if known.node != Node::Directory {
            let later =
                entries.range(path.clone()..).map(|(later, _)| later).filter(|later: &&TarPath| **later != path);
            let below: Vec<TarPath> = later.take_while(|later| later.is_below(&path)).cloned().collect();
            for gone in below {
                entries.remove(&gone);
            }
        }
        entries.insert(path, Found { entry: known, content });
        Ok::<_, ArchiveError>(())
    })?;
    Ok((count <= most).then_some(entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::fixture::with_window;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let mut header = tar::Header::new_gnu();
            let content = if *kind == tar::EntryType::Regular { text.as_bytes() } else { b"" };
            header.set_size(content.len() as u64);
            header.set_mode(0o640);
            header.set_uid(3);
            header.set_gid(4);
            header.set_entry_type(*kind);
            if content.is_empty() && !text.is_empty() {
                header.set_link_name(text).expect("a link's text");
            }
            // The library refuses names that are tested here.
            header.as_gnu_mut().expect("GNU").name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, content).expect("appended");
        }
        builder.into_inner().expect("finished")
    }

    fn open(bytes: &[u8], limits: UnpackLimits) -> Result<Option<Archive>, ArchiveError> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).expect("written");
        Archive::open(File::open(&path).expect("opened"), &Digest::of(bytes), dir.path(), limits)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.lzma_options.dict_size = 1 << 20;
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).expect("begun");
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    #[test]
    fn an_archive_is_told_by_its_content_and_read_where_it_lies() {
        let tar = archive(&[
            ("./", tar::EntryType::Directory, ""),
            ("./a/", tar::EntryType::Directory, ""),
            ("a/one", tar::EntryType::Regular, "first"),
            ("a/one", tar::EntryType::Regular, "second"),
            ("a/twin", tar::EntryType::Link, "a/one"),
            ("link", tar::EntryType::Symlink, "../../etc/passwd"),
            ("/rooted", tar::EntryType::Regular, "r"),
        ]);
        let (first, second) = tar.split_at(700);
        for bytes in [
            tar.clone(),
            gzip(&tar),
            zstd::encode_all(&tar[..], 1).expect("compressed"),
            bzip2(&tar),
            [bzip2(first), bzip2(second)].concat(),
            xz(&tar),
            with_window(xz(&tar), 28),
            [xz(first), vec![0; 8], xz(second)].concat(),
        ] {
            let archive = open(&bytes, UnpackLimits::default()).expect("read").expect("an archive");
            let names: Vec<String> = archive.entries.keys().map(ToString::to_string).collect();
            assert_eq!(names, ["/a", "/a/one", "/a/twin", "/link", "/rooted"]);
            let one = &archive.entries[&TarPath::normal("a/one")];
            assert_eq!((one.entry.mode, one.entry.uid, one.entry.gid), (0o640, 3, 4));
            let Content::Part { offset, .. } = one.content else { panic!("{one:?}") };
            let mut text = String::new();
            archive.part(offset, 6).read_to_string(&mut text).expect("read");
            assert_eq!(text, "second");
            assert_eq!(
                archive.entries[&TarPath::normal("a/twin")].entry.node,
                Node::Hardlink(TarPath::normal("a/one"))
            );
        }
        for other in [
            &b""[..],
            b"text",
            &[0; 2048],
            &gzip(b"{}"),
            &gzip(&[0; 2048]),
            &vec![b'x'; 4096],
            b"\x1f\x8b\x08broken",
            &bzip2(b"{}"),
            &xz(b"{}"),
            b"\xfd7zXZ\0\0broken",
            b"BZh91AY&SYbroken",
        ] {
            assert!(open(other, UnpackLimits::default()).expect("read").is_none());
        }
        let changed = archive_error(Archive::open(
            tempfile::tempfile()
                .and_then(|mut file| file.write_all(&tar).and_then(|()| io::Seek::rewind(&mut file)).map(|()| file))
                .expect("a file"),
            &Digest::of("another"),
            &std::env::temp_dir(),
            UnpackLimits::default(),
        ));
        assert!(matches!(changed, ArchiveError::Changed), "{changed}");
    }

    fn archive_error(result: Result<Option<Archive>, ArchiveError>) -> ArchiveError {
        result.expect_err("it is refused")
    }

    #[test]
    fn hostile_archives_are_refused() {
        let file = tar::EntryType::Regular;
        let refused =
            |entries: &[(&str, tar::EntryType, &str)]| archive_error(open(&archive(entries), UnpackLimits::default()));
        for name in ["../x", "a/../../x", "/..", "a/.."] {
            assert!(matches!(refused(&[(name, file, "x")]), ArchiveError::Climbs { .. }), "{name}");
        }
        let link = tar::EntryType::Link;
        for to in ["/etc/passwd", "gone", "../x", "a"] {
            assert!(matches!(refused(&[("a", link, to)]), ArchiveError::Link { .. }), "{to}");
        }
        assert!(matches!(
            refused(&[("d/", tar::EntryType::Directory, ""), ("a", link, "d")]),
            ArchiveError::Link { .. }
        ));
        assert!(matches!(
            refused(&[("a", tar::EntryType::GNUSparse, "")]),
            ArchiveError::Sparse { .. } | ArchiveError::Read(_)
        ));
        let many = archive(&[("a", file, "x"), ("b", file, "x"), ("c", file, "x")]);
        let few = |bytes, entries| archive_error(open(&gzip(&many), UnpackLimits { bytes, entries }));
        assert!(matches!(few(1 << 20, 2), ArchiveError::TooLarge { entries: 2, .. }));
        assert!(matches!(few(16, 1), ArchiveError::TooLarge { .. }));
        let mut cut = many.clone();
        cut.truncate(700);
        assert!(matches!(archive_error(open(&cut, UnpackLimits::default())), ArchiveError::Read(_)));
    }

    /// What the programs that people use write: `xz -9e --check=sha256` (5.4.1) and `bzip2 -9` (1.0.8) of a file `a`.
    #[test]
    fn archives_of_other_programs_are_read() {
        for bytes in [&include_bytes!("tests/data/a.tar.xz")[..], include_bytes!("tests/data/a.tar.bz2")] {
            let archive = open(bytes, UnpackLimits::default()).expect("read").expect("an archive");
            let found = &archive.entries[&TarPath::normal("a")];
            assert_eq!((found.entry.uid, found.entry.gid, &found.entry.node), (3, 4, &Node::File { size: 6 }));
        }
    }

    #[test]
    fn compressed_archives_that_mean_harm_are_refused() {
        let file = tar::EntryType::Regular;
        let zeros = {
            let mut header = tar::Header::new_gnu();
            header.set_path("zeros").expect("a name");
            header.set_size(64 << 20);
            header.set_entry_type(file);
            header.set_cksum();
            [header.as_bytes().to_vec(), vec![0; (64 << 20) + 1024]].concat()
        };
        let good = archive(&[("a", file, "x")]);
        let cut = |mut bytes: Vec<u8>, less: usize| {
            bytes.truncate(bytes.len() - less);
            bytes
        };
        let damaged = |mut bytes: Vec<u8>, from_end: usize| {
            let at = bytes.len() - from_end;
            bytes[at] ^= 0x55;
            bytes
        };
        let noise: Vec<u8> = (0..4_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let long = [good[..1024].to_vec(), noise].concat();
        let limits = UnpackLimits { bytes: 1 << 20, entries: 10 };
        let wide = UnpackLimits::default();
        for (name, bytes, limits, due) in [
            ("a bomb of bzip2", bzip2(&zeros), limits, "TooLarge"),
            ("a bomb of xz", xz(&zeros), limits, "TooLarge"),
            ("a bomb of zstd", zstd::encode_all(&zeros[..], 1).expect("compressed"), limits, "TooLarge"),
            ("a bomb of gzip", gzip(&zeros), limits, "TooLarge"),
            ("a window of xz of 96 MiB", with_window(xz(&good), 29), wide, "Window"),
            ("a window of xz of 4 GiB", with_window(xz(&good), 40), wide, "Window"),
            ("a large window in the second stream", [xz(&good), with_window(xz(&good), 40)].concat(), wide, "Window"),
            ("bzip2 cut short", cut(bzip2(&long), 100), wide, "Read"),
            ("bzip2 with a wrong sum", damaged(bzip2(&long), 3), wide, "Read"),
            ("bzip2 with something after it", [bzip2(&good), b"BZh9nothing".to_vec()].concat(), wide, "Read"),
            ("xz cut short", cut(xz(&long), 100), wide, "Read"),
            ("xz without its index", cut(xz(&good), 20), wide, "Read"),
            ("xz with a wrong sum of its content", damaged(xz(&long), 32), wide, "Read"),
            ("xz with a wrong end", damaged(xz(&good), 1), wide, "Read"),
            ("xz with something after it", [xz(&good), b"more".to_vec()].concat(), wide, "Read"),
            ("xz with crooked padding", [xz(&good), vec![0; 3]].concat(), wide, "Read"),
        ] {
            match open(&bytes, limits) {
                Err(error) => assert!(format!("{error:?}").starts_with(due), "{name}: {error:?}"),
                Ok(read) => panic!("{name}: {read:?}"),
            }
        }
    }
}
