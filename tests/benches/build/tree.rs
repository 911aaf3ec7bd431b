//! Contexts made of text that is the same in every run and compresses about as sources do.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use jiji_e2e::Outcome;

/// Files in a directory.
const PER_DIRECTORY: usize = 100;

/// Random numbers (xorshift64*), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// About so many bytes of lines: words of a vocabulary, of which few are common, and now and then a number.
    fn text(&mut self, bytes: usize, out: &mut Vec<u8>) {
        out.clear();
        while out.len() < bytes {
            let word = self.next();
            let rank = (word % 4096).min(word >> 12 & 4095).min(word >> 24 & 4095);
            match word >> 56 {
                0..12 => out.extend_from_slice(format!("{word:x}").as_bytes()),
                12..40 => out.push(b'\n'),
                _ => {
                    let mut letters = (rank + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    for _ in 0..2 + rank % 7 {
                        out.push(b'a' + u8::try_from(letters % 26).unwrap_or_default());
                        letters /= 26;
                    }
                }
            }
            out.push(b' ');
        }
    }
}

/// Makes `count` files of about `bytes` each below a directory that is not there yet.
///
/// # Errors
/// When one cannot be written.
pub fn make(root: &Path, count: usize, bytes: usize) -> Outcome {
    let mut random = Random(0x6a69_6a69 ^ count as u64);
    let mut text = Vec::new();
    for number in 0..count {
        let dir = root.join(format!("d{}", number / PER_DIRECTORY));
        if number.is_multiple_of(PER_DIRECTORY) {
            fs::create_dir_all(&dir)?;
        }
        random.text(bytes, &mut text);
        let mut file = BufWriter::new(fs::File::create(dir.join(format!("f{number}.txt")))?);
        file.write_all(&text)?;
        file.flush()?;
    }
    Ok(())
}

/// Gives one file of a tree another content.
///
/// # Errors
/// When it cannot be written.
pub fn change(root: &Path, round: usize) -> Outcome {
    Ok(fs::write(root.join("d0/f7.txt"), format!("changed in round {round}\n"))?)
}

/// Looks at every file once, as any builder has to that trusts sizes and times: how many there are.
///
/// # Errors
/// When a directory cannot be read.
pub fn walk(dir: &Path) -> Outcome<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        count += if metadata.is_dir() { walk(&entry.path())? } else { 1 };
    }
    Ok(count)
}

/// Files of a tree, one after the other in memory: the first `most` bytes.
///
/// # Errors
/// When one cannot be read.
pub fn bytes(dir: &Path, most: usize) -> Outcome<Vec<u8>> {
    let mut all = Vec::with_capacity(most);
    let mut dirs: Vec<_> = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    dirs.sort_by_key(fs::DirEntry::file_name);
    for dir in dirs {
        for file in fs::read_dir(dir.path())? {
            all.extend_from_slice(&fs::read(file?.path())?);
            if all.len() >= most {
                all.truncate(most);
                return Ok(all);
            }
        }
    }
    Ok(all)
}
