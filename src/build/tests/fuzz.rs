//! Readers of what strangers write, on inputs that nobody would think of: pieces of real ones, damaged at random. Whatever comes, they end, with a
//! value or an error. `FUZZ_SECONDS` says how long each goes on, `FUZZ_SEED` draws the same again.

use std::collections::BTreeMap;
use std::io::{Cursor, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiji_model::digest::Digest;
use jiji_sandbox::{UnpackLimits, each_entry};

use super::super::archive::Archive;
use super::super::dockerfile::{self, Kind, expand};
use super::super::recipe;
use crate::lockfile::LockFile;

/// Seconds for each reader, where nothing else is said: 40 for all.
const SECONDS: u64 = 10;
/// More than any input of these sizes may take.
const LONG: Duration = Duration::from_secs(10);

/// Random numbers that a seed draws again (xorshift64*).
struct Lot(u64);

impl Lot {
    fn draw(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or(0) % below.max(1)
    }

    /// A real input, damaged some times.
    fn damaged(&mut self, real: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = real[self.draw(real.len())].clone();
        for _ in 0..=self.draw(8) {
            let at = self.draw(bytes.len() + 1);
            let end = (at + self.draw(64)).min(bytes.len());
            match self.draw(7) {
                0 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = u8::try_from(self.draw(256)).unwrap_or(0);
                    }
                }
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let piece = bytes[at..end].to_vec();
                    let to = self.draw(bytes.len() + 1);
                    bytes.splice(to..to, piece);
                }
                3 => bytes.truncate(at),
                4 => {
                    let other = &real[self.draw(real.len())];
                    let from = self.draw(other.len() + 1);
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
                5 => {
                    let word = words[self.draw(words.len())].repeat(1 + self.draw(300));
                    bytes.splice(at..at, word);
                }
                _ => {
                    let word = words[self.draw(words.len())];
                    bytes.splice(at..at, word.iter().copied());
                }
            }
        }
        bytes
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Reads damaged inputs until the time is over.
fn fuzz(real: &[Vec<u8>], words: &[&[u8]], read: impl Fn(&[u8])) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let seed = number("FUZZ_SEED", now).max(1);
    let mut lot = Lot(seed);
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", SECONDS));
    let mut count = 0_u64;
    while Instant::now() < end {
        let input = lot.damaged(real, words);
        let begun = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| read(&input)));
        let shown = || String::from_utf8_lossy(&input[..input.len().min(4000)]).into_owned();
        assert!(ended.is_ok(), "FUZZ_SEED={seed}, input {count}: {}", shown());
        assert!(begun.elapsed() < LONG, "FUZZ_SEED={seed}, input {count} took {:?}: {}", begun.elapsed(), shown());
        count += 1;
    }
    println!("{count} inputs, FUZZ_SEED={seed}");
}

#[test]
fn any_dockerfile_is_read_or_refused() {
    let real = [
        include_str!("../dockerfile/golden/lines.toml"),
        include_str!("../dockerfile/golden/heredocs.toml"),
        include_str!("../dockerfile/golden/expansion.toml"),
        "# escape=`\nARG V=1\nFROM --platform=linux/amd64 scratch AS a\nENV A=\"${V:-x}\" B='$A' C=${A%%x*}\nCOPY --from=a --chmod=u+x <<EOF <<-\"B\" a* /x/\n$A\nEOF\n\tB\n\
         RUN --mount=type=cache,target=/c,id=$V <<E\nx\nE\nHEALTHCHECK --interval=1s CMD [\"a\", \"b\"]\nONBUILD COPY . /\nEXPOSE 1-9/udp\nVOLUME [\"/x\"]\n",
    ];
    let real: Vec<Vec<u8>> = real.iter().map(|text| text.as_bytes().to_vec()).collect();
    let words: Vec<&[u8]> = [
        "${", "}", "$", "\"", "'", "\\", "\\\n", "<<EOF", "<<-", "\nEOF\n", "FROM ", "\nRUN ", "--mount=", "[", "]",
        "#", "\r", "\u{85}", "é", ":-", "//", "*", "\n", "\0",
    ]
    .iter()
    .map(|word| word.as_bytes())
    .collect();
    let environment = BTreeMap::from([("A".to_owned(), "aab*c".to_owned()), ("V".to_owned(), "1".to_owned())]);
    fuzz(&real, &words, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        // One with a stage before it, so that more of it is looked at.
        for input in [bytes.to_vec(), [b"FROM scratch\n", bytes].concat()] {
            let Ok(file) = dockerfile::parse("Dockerfile", &input) else { continue };
            if let Ok(text) = recipe::from_dockerfile(&file) {
                let read = recipe::parse("image.toml", text.as_bytes());
                assert!(read.is_ok(), "what is written can be read: {:?}\n{text}", read.err());
            }
            for instruction in file.stages.iter().flat_map(|stage| &stage.instructions) {
                if let Kind::Env(pairs) | Kind::Label(pairs) = &instruction.kind {
                    for pair in pairs {
                        let _ = expand(&pair.value.text, file.escape, &environment);
                    }
                }
            }
        }
        for line in text.lines().take(50) {
            let _ = expand(line, '\\', &environment);
            let _ = dockerfile::mount(line, &|text| expand(text, '\\', &environment));
        }
    });
}

#[test]
fn any_recipe_is_read_or_refused() {
    let real = [
        "[inputs]\na = { image = \"x\" }\nb = { path = \".\", only = [\"*\"], exclude = [\"y\"] }\nc = { url = \"https://x.test/y\", unpack = true }\n",
        "[steps.d]\non = \"a\"\nput = [{ from = \"./x\", to = \"/y\" }]\nsee = { \"/b\" = \"b\", \"/e\" = \"e:/x\" }\ncache = { \"/c\" = \"c\" }\nsecrets = [\"S\"]\nout = \"/o\"\nrun = [\"x\"]\n",
        "[steps.e]\non = \"d\"\nenv = { A = '$' }\nnetwork = true\nrun = \"\"\"\nx\n\"\"\"\n[[layers]]\nfrom = \"e\"\nto = \"/\"\nmode = \"644\"\n[image]\non = \"a\"\nports = [1, \"2/udp\"]\ncommand = []\n",
    ];
    let mut real: Vec<Vec<u8>> = real.iter().map(|text| text.as_bytes().to_vec()).collect();
    real.push(real.concat());
    let words = [
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "\"\"\"",
        "=",
        "\n",
        ":/",
        "./",
        "[steps.",
        "[[layers]]",
        "é",
        "\0",
        "a",
        "e",
        ".",
    ];
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    fuzz(&real, &words, |bytes| drop(recipe::parse("image.toml", bytes)));
}

#[test]
fn any_tar_is_read_or_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(5);
    for name in ["a".to_owned(), format!("{}b", "long/".repeat(60)), ".wh.c".to_owned()] {
        builder.append_data(&mut header.clone(), name, &b"hello"[..]).expect("appended");
    }
    builder.append_pax_extensions([("path", &b"pax"[..]), ("size", b"5")]).expect("appended");
    builder.append_data(&mut header.clone(), "p", &b"hello"[..]).expect("appended");
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "l", "a").expect("appended");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_cksum();
    builder.append(&header, &b""[..]).expect("appended");
    let real = vec![builder.into_inner().expect("a tar")];
    let words: Vec<&[u8]> = vec![
        &[0; 512],
        b"0",
        b"7777",
        b"\x80\xff\xff\xff",
        b"\0",
        b"ustar",
        b"x",
        b"L",
        b"S",
        b"30 path=",
        b"99999999999 size=1\n",
    ];
    let limits = UnpackLimits { bytes: 1 << 20, entries: 1000 };
    fuzz(&real, &words, |bytes| {
        // With the checksums right, or most would end there.
        let mut right = bytes.to_vec();
        for block in right.chunks_exact_mut(512) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        for input in [bytes, &right] {
            let _ = each_entry(Cursor::new(input), limits, |entry| {
                let _ = super::super::rootfs::entry_of(entry)?;
                let _ = entry.path_bytes();
                Ok::<_, std::io::Error>(())
            });
        }
    });
}

#[test]
fn any_compressed_archive_is_read_or_refused() {
    let mut header = tar::Header::new_gnu();
    header.set_path("a").expect("a name");
    header.set_size(9000);
    header.set_cksum();
    let content = b"some content of a file ".repeat(500);
    let tar = [header.as_bytes(), &content[..9216], &[0; 1024]].concat();
    let bzip2 = {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(&tar).expect("written");
        encoder.finish().expect("finished")
    };
    let xz = |check, filters: Vec<lzma_rust2::FilterConfig>| {
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.check_type = check;
        options.filters = filters;
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).expect("begun");
        encoder.write_all(&tar).expect("written");
        encoder.finish().expect("finished")
    };
    let real = vec![
        xz(lzma_rust2::CheckType::None, Vec::new()),
        xz(lzma_rust2::CheckType::Crc32, vec![lzma_rust2::FilterConfig::new_bcj_x86(0)]),
        xz(lzma_rust2::CheckType::Sha256, vec![lzma_rust2::FilterConfig::new_delta(4)]),
        bzip2,
    ];
    let words: Vec<&[u8]> =
        vec![b"\xfd7zXZ\0", b"YZ", b"BZh9", b"1AY&SY", &[0x17, 0x72, 0x45, 0x38], &[0; 4], &[0xff; 4], &[0x21, 1, 40]];
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    let limits = UnpackLimits { bytes: 1 << 20, entries: 1000 };
    fuzz(&real, &words, |bytes| {
        std::fs::write(&path, bytes).expect("written");
        let file = std::fs::File::open(&path).expect("opened");
        let _ = Archive::open(file, &Digest::of(bytes), dir.path(), limits);
    });
}

#[test]
fn any_lock_is_read_or_refused() {
    let real = vec![include_bytes!("../../lockfile/fixtures/v1.lock").to_vec()];
    let words: Vec<&[u8]> = [
        "[",
        "]",
        "[[run]]\n",
        "\"",
        "'''",
        "=",
        "{",
        "}",
        ".",
        "\n",
        "sha256:",
        "1979-05-27",
        "inf",
        "\\u0000",
        "é",
        ",",
    ]
    .iter()
    .map(|word| word.as_bytes())
    .collect();
    let dir = tempfile::tempdir().expect("a directory");
    let lock = LockFile::of_project(dir.path());
    fuzz(&real, &words, |bytes| {
        std::fs::write(lock.path(), bytes).expect("written");
        // What can be read can be written again.
        if lock.read().is_ok() {
            lock.update_build(|section| section.urls.clear()).expect("written");
            lock.read().expect("read again");
        }
    });
}
