//! What makes two builds of one source differ, told from two contents of one file.
//!
//! A guess from what stands there, and nothing that anything else depends on: the classes are those that the people of
//! reproducible-builds.org meet again and again.

/// What makes such a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The clock.
    Time,
    /// The time that gzip writes.
    GzipTime,
    /// The time of a source that Python writes.
    PythonTime,
    /// The times of an archive's members.
    ArchiveTime,
    /// The order in which a directory is listed, or threads come to their end.
    Order,
    /// Something drawn.
    Random,
    /// A mask of modes.
    Mode,
    /// Who built.
    Owner,
    /// Another compressor, or another version of one.
    Compression,
    /// Nothing that is known here.
    Unknown,
}

impl Cause {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::GzipTime => "time in gzip",
            Self::PythonTime => "time in Python's cache",
            Self::ArchiveTime => "times in an archive",
            Self::Order => "order",
            Self::Random => "random",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Compression => "compression",
            Self::Unknown => "unknown",
        }
    }

    /// What a person can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Time => {
                "take `SOURCE_DATE_EPOCH`, which every step has, instead of the clock: `date -u -d \"@$SOURCE_DATE_EPOCH\"`"
            }
            Self::GzipTime => "`gzip -n` leaves the time out",
            Self::PythonTime => {
                "`ENV PYTHONDONTWRITEBYTECODE=1`, or `python3 -m compileall --invalidation-mode unchecked-hash`"
            }
            Self::ArchiveTime => {
                "`touch -d @$SOURCE_DATE_EPOCH` what goes in, and `ar D`, `zip -X` or `tar --sort=name --mtime=@$SOURCE_DATE_EPOCH`"
            }
            Self::Order => "sort what is written: `find … | sort`; directories list their files in no order",
            Self::Random => {
                "seed what is drawn, and name files by what is in them: not `mktemp`, `$RANDOM` or an identifier of the build"
            }
            Self::Mode => "say the mode: `chmod`, `install -m`",
            Self::Owner => "say the owner: `chown`, `install -o -g`",
            Self::Compression => {
                "the same version of jiji with the same `build.compression` writes the same bytes; other tools compress otherwise"
            }
            Self::Unknown => "run the step twice by hand and look at what the program says of reproducible builds",
        }
    }
}

/// The cause that two contents of one file show.
pub(super) fn of(path: &str, one: &[u8], other: &[u8]) -> Cause {
    let both = |magic: &[u8]| one.starts_with(magic) && other.starts_with(magic);
    let differs = |from: usize, to: usize| one.get(from..to) != other.get(from..to);
    if both(&[0x1f, 0x8b]) && differs(4, 8) {
        return Cause::GzipTime;
    }
    if path.ends_with(".pyc") && differs(8, 12) {
        return Cause::PythonTime;
    }
    if both(b"!<arch>\n") || (both(b"PK\x03\x04") && differs(10, 14)) {
        return Cause::ArchiveTime;
    }
    if is_order(one, other) {
        return Cause::Order;
    }
    let at = one.iter().zip(other).position(|(a, b)| a != b).unwrap_or(one.len().min(other.len()));
    let words = (word_at(one, at), word_at(other, at));
    if looks_like_time(words.0) && looks_like_time(words.1) || is_binary_time(one, other, at) {
        return Cause::Time;
    }
    let runs = (run_at(one, at, u8::is_ascii_alphanumeric), run_at(other, at, u8::is_ascii_alphanumeric));
    let drawn = |word: &[u8]| word.len() >= 6;
    let digits = one.iter().zip(other).filter(|(a, b)| a != b).count();
    if (runs.0 != runs.1 && drawn(runs.0) && drawn(runs.1))
        || (one.len() == other.len() && one.len() >= 16 && digits * 4 > one.len() * 3)
    {
        return Cause::Random;
    }
    Cause::Unknown
}

/// The same lines, or the same bytes, in another order.
fn is_order(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let sorted = |bytes: &[u8]| {
        let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort_unstable();
        lines
    };
    let words = |bytes: &[u8]| {
        let mut words: Vec<Vec<u8>> = bytes.split(u8::is_ascii_whitespace).map(<[u8]>::to_vec).collect();
        words.sort_unstable();
        words
    };
    let lines = one.iter().filter(|byte| **byte == b'\n').count();
    (lines > 1 && sorted(one) == sorted(other)) || words(one) == words(other)
}

/// What surrounds a byte up to the next space, quote or control character.
fn word_at(bytes: &[u8], at: usize) -> &[u8] {
    run_at(bytes, at, |byte| byte.is_ascii_alphanumeric() || b":-+./_".contains(byte))
}

fn run_at(bytes: &[u8], at: usize, part: impl Fn(&u8) -> bool) -> &[u8] {
    let at = at.min(bytes.len());
    let start = bytes[..at].iter().rposition(|byte| !part(byte)).map_or(0, |before| before + 1);
    let end = bytes[at..].iter().position(|byte| !part(byte)).map_or(bytes.len(), |after| at + after);
    &bytes[start..end]
}

/// A date, a time of day, or seconds (with or without a fraction) since 1970.
fn looks_like_time(word: &[u8]) -> bool {
    let shape: Vec<u8> = word.iter().map(|byte| if byte.is_ascii_digit() { b'9' } else { *byte }).collect();
    let has = |pattern: &[u8]| shape.windows(pattern.len()).any(|window| window == pattern);
    if has(b"9999-99-99") || has(b"99:99") || has(b"9999/99/99") {
        return true;
    }
    word.split(|byte| !byte.is_ascii_digit()).any(|run| {
        let seconds = std::str::from_utf8(run.get(..10).unwrap_or_default()).ok().and_then(|text| text.parse().ok());
        matches!(run.len(), 10 | 13 | 16 | 19) && seconds.is_some_and(is_of_our_time)
    })
}

/// Seconds since 1970 of the years 2017 to 2065.
fn is_of_our_time(seconds: u32) -> bool {
    (1_500_000_000..3_000_000_000).contains(&seconds)
}

/// Four bytes that are no text and both say a time, not a year apart.
fn is_binary_time(one: &[u8], other: &[u8], at: usize) -> bool {
    (at.saturating_sub(3)..=at).any(|from| {
        let number = |bytes: &[u8]| bytes.get(from..from + 4).and_then(|four| four.try_into().ok());
        let (Some(one), Some(other)) = (number(one), number(other)) else { return false };
        let is_text = |four: &[u8; 4]| four.iter().all(u8::is_ascii_graphic);
        if is_text(&one) || is_text(&other) {
            return false;
        }
        [u32::from_le_bytes, u32::from_be_bytes].into_iter().any(|read: fn([u8; 4]) -> u32| {
            let (one, other) = (read(one), read(other));
            is_of_our_time(one) && is_of_our_time(other) && one.abs_diff(other) < 31_536_000
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_causes_are_told_apart() {
        for (path, one, other, cause) in [
            ("now", &b"at 13:04:11 UTC"[..], &b"at 13:04:12 UTC"[..], Cause::Time),
            ("day", b"2026-11-28", b"2026-11-29", Cause::Time),
            ("epoch", b"t=1795871234;", b"t=1795871299;", Cause::Time),
            ("nano", b"1795871234123456789", b"1795871299123456789", Cause::Time),
            ("bin", b"\0\0\x10\x20\x30\x60\0", b"\0\0\x11\x20\x30\x60\0", Cause::Time),
            ("a.gz", b"\x1f\x8b\x08\0\x01\0\0\0x", b"\x1f\x8b\x08\0\x02\0\0\0x", Cause::GzipTime),
            ("a.pyc", b"magic..\0timeSIZE", b"magic..\0emitSIZE", Cause::PythonTime),
            ("a.a", b"!<arch>\na", b"!<arch>\nb", Cause::ArchiveTime),
            ("list", b"b\na\nc\n", b"a\nb\nc\n", Cause::Order),
            ("words", b"x y z", b"z y x", Cause::Order),
            ("tmp", b"/tmp/tmp.aXb83kQz", b"/tmp/tmp.Ok38sPqR", Cause::Random),
            ("id", b"id=4f9a3c77", b"id=00c1d2e3", Cause::Random),
            ("cpus", b"4\n", b"8\n", Cause::Unknown),
        ] {
            assert_eq!(of(path, one, other), cause, "{path}");
        }
    }
}
