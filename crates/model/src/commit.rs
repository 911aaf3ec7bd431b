//! The name of a commit of a git repository.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The whole hexadecimal name of a commit: of SHA-1 or SHA-256, in small letters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commit(String);

/// A text that names no commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not 40 or 64 hexadecimal digits in small letters")]
pub struct ParseCommitError {
    /// The text, or its beginning.
    pub text: String,
}

impl Commit {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a name of SHA-256.
    pub fn is_sha256(&self) -> bool {
        self.0.len() == 64
    }

    /// Enough of it to tell it from others by eye.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for Commit {
    type Err = ParseCommitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good =
            matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if good { Ok(Self(text.to_owned())) } else { Err(ParseCommitError { text: text.chars().take(80).collect() }) }
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

impl Serialize for Commit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Commit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_written_out_in_small_letters() {
        let name = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(name.parse::<Commit>().expect("a commit").to_string(), name);
        assert!("a".repeat(64).parse::<Commit>().expect("a commit").is_sha256());
        for other in ["", "0123456", &"A".repeat(40), &"g".repeat(40), &"a".repeat(41), "main"] {
            assert!(other.parse::<Commit>().is_err(), "{other}");
        }
    }
}
