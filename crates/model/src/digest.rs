//! SHA-256 names of content.
//!
//! A [`Digest`] is always SHA-256 and always printed as `sha256:` and 64 lower-case hexadecimal digits, the form of the OCI image
//! specification (descriptor.md, "Digests"). Other algorithms are refused, so that one content has one name.

mod canonical;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How the text of a digest begins.
const PREFIX: &str = "sha256:";

/// The SHA-256 of some bytes: jiji's only kind of name for content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(bytes.as_ref()).into())
    }

    /// The digest of a value's canonical JSON: keys sorted, no white space.
    ///
    /// # Panics
    /// When the value cannot be JSON (a map with keys that are not strings): a mistake in the type, not in the data.
    pub fn of_json<T: Serialize>(value: &T) -> Self {
        Self::of(canonical_json(value))
    }

    /// Takes 32 raw bytes as a digest that somebody computed.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits, without the algorithm: a safe file name.
    pub fn hex(&self) -> String {
        self.with_text(|text| text[PREFIX.len()..].to_owned())
    }

    /// The whole text, without room of its own on the heap: keys and plans hold tens of thousands of digests.
    fn with_text<T>(&self, work: impl FnOnce(&str) -> T) -> T {
        let mut text = [0; PREFIX.len() + 64];
        let (prefix, digits) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = [byte >> 4, byte & 15].map(|half| b"0123456789abcdef"[usize::from(half)]);
        }
        work(std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }

    /// The first 12 hexadecimal digits: enough for a person, never for a machine.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

/// Canonical JSON: keys sorted, no white space, UTF-8. What digests of records are taken over.
///
/// # Panics
/// As [`Digest::of_json`].
pub fn canonical_json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    canonical::write(&mut out, value).expect("the type has string keys");
    out
}

/// Canonical JSON that is kept as its text: a record that is carried along whole, and read by those alone who need what is in it.
#[derive(Clone, PartialEq, Eq)]
pub struct CanonicalJson(Box<str>);

impl CanonicalJson {
    /// A value's canonical JSON.
    ///
    /// # Panics
    /// As [`Digest::of_json`].
    pub fn of<T: Serialize>(value: &T) -> Self {
        let text = String::from_utf8(canonical_json(value)).expect("JSON is UTF-8");
        Self(text.into_boxed_str())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads it as a value of some type.
    ///
    /// # Errors
    /// When it is none of that type.
    pub fn read<'de, T: Deserialize<'de>>(&'de self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }
}

impl fmt::Debug for CanonicalJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for CanonicalJson {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: serde_json::Value = self.read().map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CanonicalJson {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(|value| Self::of(&value))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.short())
    }
}

/// Why a text is not a [`Digest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// The text does not begin with `sha256:`.
    #[error("read digest `{text}`: only `sha256:` is supported")]
    Algorithm {
        /// What was given.
        text: String,
    },
    /// What follows the algorithm is not 64 lower-case hexadecimal digits.
    #[error("read digest `{text}`: expected 64 lower-case hexadecimal digits")]
    Digits {
        /// What was given.
        text: String,
    },
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or_else(|| ParseDigestError::Algorithm { text: text.to_owned() })?;
        let bad = || ParseDigestError::Digits { text: text.to_owned() };
        if digits.len() != 64 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of(b"")));
    }

    #[test]
    fn other_algorithms_upper_case_and_short_texts_are_refused() {
        for text in ["sha512:00", "sha256:00", &format!("sha256:{}", "A".repeat(64)), "", "sha256:", &"a".repeat(64)] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn canonical_json_that_is_kept_as_text_is_written_as_what_it_says() {
        let kept: CanonicalJson = serde_json::from_str(r#"{ "b": [1], "a": {"d": null, "c": "x"} }"#).expect("JSON");
        assert_eq!(kept.as_str(), r#"{"a":{"c":"x","d":null},"b":[1]}"#);
        assert_eq!(serde_json::to_string(&kept).expect("JSON"), kept.as_str());
        assert_eq!(kept.read::<serde_json::Value>().expect("JSON")["b"], serde_json::json!([1]));
    }

    #[test]
    fn canonical_json_sorts_keys_at_every_depth() {
        let value = serde_json::json!({"b": {"z": 1, "a": [true]}, "a": null});
        assert_eq!(canonical_json(&value), br#"{"a":null,"b":{"a":[true],"z":1}}"#);
    }
}
