//! The entries of a tar that may be hostile, one after the other, with bounds that the tar library has not: it reads names and PAX headers into
//! memory whatever their length, and a compressed layer of a few kilobytes can hold one of many gigabytes.
//!
//! The bounds are on what is read between two entries, and so depend on nothing that a header says.
//!
//! PAX records are read here as well: the library takes the next line feed for a record's end (tar 0.4.46, `pax.rs`), but names may have one,
//! and so may a capability, whose bits 1 and 3 together are one.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io::{self, Read};
use std::rc::Rc;

use crate::UnpackLimits;

/// What the headers of one entry may take, in bytes: Go's `archive/tar`, and with it Docker, takes no more than this for one of them either.
const HEADERS: u64 = 1 << 20;
/// What the headers of all entries may take besides 4 KiB for each, in bytes: long names are kept in memory.
const ALL_HEADERS: u64 = 16 << 20;
/// A header's block.
const BLOCK: u64 = 512;

/// A tar that counts what is read of it.
#[derive(Debug)]
pub struct Counted<R> {
    inner: R,
    at: Rc<Cell<u64>>,
    /// Where reading ends in an error.
    stop: Rc<Cell<u64>>,
    /// What was read from a position on.
    heard: Rc<RefCell<Heard>>,
}

/// The headers of one entry, as they were read.
#[derive(Debug, Default)]
struct Heard {
    /// Where they begin; nothing is kept where there is none.
    from: Option<u64>,
    bytes: Vec<u8>,
}

impl Heard {
    /// Keeps of what was read at a position that which is not before the beginning.
    fn hear(&mut self, at: u64, read: &[u8]) {
        let Some(from) = self.from else { return };
        let skipped = usize::try_from(from.saturating_sub(at)).unwrap_or(usize::MAX);
        self.bytes.extend_from_slice(read.get(skipped..).unwrap_or_default());
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.stop.get().saturating_sub(self.at.get());
        if left == 0 && !buffer.is_empty() {
            return Err(invalid("the headers of an entry are longer than 1 MiB, or those of all longer than 16 MiB"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.heard.borrow_mut().hear(self.at.get(), &buffer[..count]);
        self.at.set(self.at.get() + count as u64);
        Ok(count)
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A PAX record's key and value.
type Record = (Vec<u8>, Vec<u8>);

/// What the headers before an entry's own say of it.
#[derive(Debug, Default)]
struct Extended {
    records: Vec<Record>,
    /// Whether there are records that are none.
    is_malformed: bool,
    /// Whether its name, and its link's, are in headers of GNU's, which the library reads and which count before records.
    has_name: bool,
    has_link: bool,
}

impl Extended {
    /// Reads the headers up to the entry's own.
    fn of(mut headers: &[u8]) -> Self {
        let mut extended = Self::default();
        while let Some((block, rest)) = headers.split_first_chunk::<{ BLOCK as usize }>() {
            let header = tar::Header::from_byte_slice(block);
            let kind = header.entry_type();
            let size = header.entry_size().ok().and_then(|size| usize::try_from(size).ok());
            let Some(content) = size.and_then(|size| rest.get(..size)) else { break };
            match kind {
                tar::EntryType::XHeader => extended.read(content),
                tar::EntryType::GNULongName => extended.has_name = true,
                tar::EntryType::GNULongLink => extended.has_link = true,
                tar::EntryType::XGlobalHeader => {}
                _ => break,
            }
            headers = rest.get(content.len().next_multiple_of(block.len())..).unwrap_or_default();
        }
        extended
    }

    /// Reads records: each its own length in decimal, a blank, `key=value`, a line feed.
    fn read(&mut self, mut content: &[u8]) {
        while !content.is_empty() {
            let Some((record, rest)) = first_record(content) else {
                self.is_malformed = true;
                return;
            };
            self.records.push(record);
            content = rest;
        }
    }

    fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.records.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_slice())
    }
}

/// A record's key and value, and what comes after it.
fn first_record(content: &[u8]) -> Option<(Record, &[u8])> {
    let blank = content.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&content[..blank]).ok()?.parse().ok()?;
    let (record, rest) = content.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((record[..equals].to_vec(), record[equals + 1..].to_vec()), rest))
}

/// An entry of a tar: its header, its names and what PAX records say, and its content to read.
pub struct Entry<'a, R: Read> {
    inner: tar::Entry<'a, Counted<R>>,
    extended: Extended,
}

impl<R: Read> Entry<'_, R> {
    /// The header.
    pub fn header(&self) -> &tar::Header {
        self.inner.header()
    }

    /// The content's size.
    pub fn size(&self) -> u64 {
        self.inner.size()
    }

    /// Where its content begins in the archive.
    pub fn raw_file_position(&self) -> u64 {
        self.inner.raw_file_position()
    }

    /// The name.
    pub fn path_bytes(&self) -> Cow<'_, [u8]> {
        let own = self.extended.value(b"path").filter(|_| !self.extended.has_name);
        own.map_or_else(|| self.inner.path_bytes(), Cow::Borrowed)
    }

    /// What a link leads to.
    pub fn link_name_bytes(&self) -> Option<Cow<'_, [u8]>> {
        let own = self.extended.value(b"linkpath").filter(|_| !self.extended.has_link);
        own.map(Cow::Borrowed).or_else(|| self.inner.link_name_bytes())
    }

    /// What PAX records say: keys and values.
    ///
    /// # Errors
    /// When they are broken.
    pub fn records(&self) -> io::Result<impl Iterator<Item = (&[u8], &[u8])>> {
        if self.extended.is_malformed {
            return Err(invalid("malformed pax records before an entry"));
        }
        Ok(self.extended.records.iter().map(|(key, value)| (key.as_slice(), value.as_slice())))
    }
}

impl<R: Read> Read for Entry<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

/// Shows each entry to `visit`, and gives the rest of the archive, after its last entry.
///
/// # Errors
/// What `visit` says, and where the archive is broken, or its headers or entries are more than is bearable.
pub fn each_entry<R: Read, E: From<io::Error>>(
    archive: R,
    limits: UnpackLimits,
    mut visit: impl FnMut(&mut Entry<'_, R>) -> Result<(), E>,
) -> Result<R, E> {
    let (at, stop) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(u64::MAX)));
    let heard = Rc::new(RefCell::new(Heard::default()));
    let (own, end) = (Rc::clone(&at), Rc::clone(&stop));
    let mut archive = tar::Archive::new(Counted { inner: archive, at: own, stop: end, heard: Rc::clone(&heard) });
    let mut entries = archive.entries()?;
    // What is left of the entry before, which the library reads over.
    let mut rest = 0_u64;
    let (mut count, mut headers) = (0_u64, 0_u64);
    loop {
        let begin = at.get();
        let most = HEADERS.min(ALL_HEADERS.saturating_sub(headers)) + 8 * BLOCK;
        stop.set(begin.saturating_add(rest).saturating_add(most));
        // The library reads over the rest of a block as well.
        let headers_at = begin.saturating_add(rest).next_multiple_of(BLOCK);
        *heard.borrow_mut() = Heard { from: Some(headers_at), bytes: Vec::new() };
        let next = entries.next();
        stop.set(u64::MAX);
        let extended = Extended::of(&std::mem::take(&mut *heard.borrow_mut()).bytes);
        let Some(entry) = next else { break };
        let mut entry = Entry { inner: entry?, extended };
        headers += (at.get() - begin).saturating_sub(rest).saturating_sub(8 * BLOCK);
        count += 1;
        if count > limits.entries {
            return Err(invalid("it has more entries than any image").into());
        }
        let content = at.get();
        let size = stored(&entry)?;
        visit(&mut entry)?;
        rest = size.saturating_sub(at.get() - content);
    }
    Ok(archive.into_inner().inner)
}

/// How many bytes an entry takes in the archive. A sparse file's size is not that; what a PAX header says of one may differ from the header, and the
/// less counts.
fn stored<R: Read>(entry: &Entry<'_, R>) -> io::Result<u64> {
    if entry.header().entry_type() != tar::EntryType::GNUSparse {
        return Ok(entry.size());
    }
    let mut size = entry.header().entry_size()?;
    for (_, value) in entry.records()?.filter(|(key, _)| *key == b"size") {
        let own = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        size = size.min(own.unwrap_or(0));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(records: &[(&str, &[u8])], content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).expect("to memory");
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, "short", content).expect("to memory");
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        builder.append_data(&mut header, "after", &b"end"[..]).expect("to memory");
        builder.into_inner().expect("to memory")
    }

    /// Name, link, records, content.
    type Seen = (Vec<u8>, Option<Vec<u8>>, Vec<Record>, Vec<u8>);

    fn seen(archive: &[u8]) -> io::Result<Vec<Seen>> {
        let mut all = Vec::new();
        each_entry(archive, UnpackLimits::default(), |entry| {
            let records = entry.records()?.map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            let (path, link) = (entry.path_bytes().into_owned(), entry.link_name_bytes().map(Cow::into_owned));
            let mut content = Vec::new();
            // Not all of it: the rest is read over.
            entry.by_ref().take(2).read_to_end(&mut content)?;
            all.push((path, link, records, content));
            Ok::<_, io::Error>(())
        })?;
        Ok(all)
    }

    #[test]
    fn a_value_of_a_record_may_hold_line_feeds() {
        // cap_dac_override and cap_fowner, in the version that images have: bits 1 and 3, so the fifth byte is a line feed.
        let capability = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let name = b"caf\xe9\n12 path=other\nline";
        for length in [0, 1, 511, 512, 513, 5000] {
            let records: [(&str, &[u8]); 3] =
                [("SCHILY.xattr.security.capability", &capability), ("path", name), ("uid", b"7")];
            let all = seen(&tar(&records, &vec![b'x'; length])).expect("read");
            assert_eq!(all.len(), 2, "{length}");
            assert_eq!(all[0].0, name);
            let said: Vec<(&[u8], &[u8])> = all[0].2.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            assert_eq!(said, records.map(|(key, value)| (key.as_bytes(), value)));
            assert_eq!((all[1].0.as_slice(), all[1].2.len(), all[1].3.as_slice()), (&b"after"[..], 0, &b"en"[..]));
        }
    }

    #[test]
    fn a_link_may_lead_to_a_name_with_a_line_feed() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("linkpath", &b"to\nthis"[..])]).expect("to memory");
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "link", "this").expect("to memory");
        let all = seen(&builder.into_inner().expect("to memory")).expect("read");
        assert_eq!(all[0].1.as_deref(), Some(&b"to\nthis"[..]));
    }

    #[test]
    fn long_names_of_gnu_are_read_as_before() {
        let long = "d/".repeat(100) + "file";
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        builder.append_data(&mut header, &long, &b"text"[..]).expect("to memory");
        let all = seen(&builder.into_inner().expect("to memory")).expect("read");
        assert_eq!(all[0].0, long.as_bytes());
    }

    #[test]
    fn broken_records_are_an_error() {
        for content in [&b"9 path=a\n"[..], b"x path=a\n", b"9999 path=a\n", b"7 path\n", b"2 \n", b"0 path=a\n"] {
            let mut extended = Extended::default();
            extended.read(content);
            assert!(extended.is_malformed == (content != b"9 path=a\n"), "{content:?}");
        }
    }
}
