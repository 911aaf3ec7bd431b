//! The entries of a tar that may be hostile, one after the other, with bounds that the tar library has not: it reads names and PAX headers into
//! memory whatever their length, and a compressed layer of a few kilobytes can hold one of many gigabytes.
//!
//! The bounds are on what is read between two entries, and so depend on nothing that a header says.

use std::cell::Cell;
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
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.stop.get().saturating_sub(self.at.get());
        if left == 0 && !buffer.is_empty() {
            return Err(invalid("the headers of an entry are longer than 1 MiB, or those of all longer than 16 MiB"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.at.set(self.at.get() + count as u64);
        Ok(count)
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Shows each entry to `visit`, and gives the rest of the archive, after its last entry.
///
/// # Errors
/// What `visit` says, and where the archive is broken, or its headers or entries are more than is bearable.
pub fn each_entry<R: Read, E: From<io::Error>>(
    archive: R,
    limits: UnpackLimits,
    mut visit: impl FnMut(&mut tar::Entry<'_, Counted<R>>) -> Result<(), E>,
) -> Result<R, E> {
    let (at, stop) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(u64::MAX)));
    let mut archive = tar::Archive::new(Counted { inner: archive, at: Rc::clone(&at), stop: Rc::clone(&stop) });
    let mut entries = archive.entries()?;
    // What is left of the entry before, which the library reads over.
    let mut rest = 0_u64;
    let (mut count, mut headers) = (0_u64, 0_u64);
    loop {
        let begin = at.get();
        let most = HEADERS.min(ALL_HEADERS.saturating_sub(headers)) + 8 * BLOCK;
        stop.set(begin.saturating_add(rest).saturating_add(most));
        let next = entries.next();
        stop.set(u64::MAX);
        let Some(entry) = next else { break };
        let mut entry = entry?;
        headers += (at.get() - begin).saturating_sub(rest).saturating_sub(8 * BLOCK);
        count += 1;
        if count > limits.entries {
            return Err(invalid("it has more entries than any image").into());
        }
        let content = at.get();
        let size = stored(&mut entry)?;
        visit(&mut entry)?;
        rest = size.saturating_sub(at.get() - content);
    }
    Ok(archive.into_inner().inner)
}

/// How many bytes an entry takes in the archive. A sparse file's size is not that; what a PAX header says of one may differ from the header, and the
/// less counts.
fn stored<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<u64> {
    if entry.header().entry_type() != tar::EntryType::GNUSparse {
        return Ok(entry.size());
    }
    let mut size = entry.header().entry_size()?;
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        if record.key_bytes() == b"size" {
            let own = record.value().ok().and_then(|value| value.parse().ok());
            size = size.min(own.unwrap_or(0));
        }
    }
    Ok(size)
}
