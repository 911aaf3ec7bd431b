//! Blots the values of secrets out of texts that come from elsewhere: log tails, command output, error messages.
//!
//! This is the second line of defence. The first is that values are not put where they could come back from; an application that
//! prints its own environment is what this is for. Besides the value itself its usual disguises are known: standard and URL-safe
//! base64 of the whole value, percent-encoding, JSON escapes, and each line of a value that has several.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiji_model::name::SecretName;
use jiji_model::secret::Secret;

/// Values shorter than this are left alone: blotting `1` out of a log would leave no log.
const SHORTEST: usize = 4;

/// Knows values and takes them out of texts. Its `Debug` shows none.
#[derive(Clone)]
pub struct Redactor {
    /// What is searched for, longest first, and what it is replaced with.
    needles: Vec<(String, String)>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} texts)", self.needles.len())
    }
}

impl Redactor {
    /// A redactor for these values.
    pub fn new(secrets: &BTreeMap<SecretName, Secret>) -> Self {
        let mut needles = BTreeMap::new();
        for (name, secret) in secrets {
            for text in disguises(secret.reveal()) {
                if text.len() >= SHORTEST {
                    needles.entry(text).or_insert_with(|| format!("[{name}]"));
                }
            }
        }
        let mut needles: Vec<(String, String)> = needles.into_iter().collect();
        needles.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Self { needles }
    }

    /// The text with every known value replaced by the secret's name in brackets.
    pub fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (needle, name) in &self.needles {
            if text.contains(needle.as_str()) {
                text = text.replace(needle.as_str(), name);
            }
        }
        text
    }
}

fn disguises(value: &str) -> BTreeSet<String> {
    let mut texts: BTreeSet<String> = BTreeSet::new();
    texts.insert(value.to_owned());
    texts.insert(value.trim().to_owned());
    let lines = value.lines().map(str::trim).filter(|line| line.len() >= 2 * SHORTEST);
    texts.extend(lines.map(str::to_owned));
    texts.insert(base64(value.as_bytes(), *b"+/"));
    texts.insert(base64(value.as_bytes(), *b"-_"));
    texts.insert(percent(value));
    let json = serde_json::Value::from(value).to_string();
    texts.insert(json.trim_matches('"').to_owned());
    texts.insert(format!("{value:?}").trim_matches('"').to_owned());
    texts
}

/// Base64 (RFC 4648) without padding, so that it is found with and without.
fn base64(bytes: &[u8], last: [u8; 2]) -> String {
    let letter = |six: u32| match six {
        0..26 => b'A' + six as u8,
        26..52 => b'a' + (six - 26) as u8,
        52..62 => b'0' + (six - 52) as u8,
        62 => last[0],
        _ => last[1],
    };
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let three = chunk.iter().fold(0_u32, |three, byte| three << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(letter(three >> (18 - 6 * place) & 63)));
        }
    }
    text
}

/// Percent-encoding of all but the unreserved characters (RFC 3986, section 2.3), as connection strings have it.
fn percent(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redactor(values: &[(&str, &str)]) -> Redactor {
        let secrets = values
            .iter()
            .map(|(name, value)| (SecretName::new(*name).expect("a secret's name"), Secret::new(*value)))
            .collect();
        Redactor::new(&secrets)
    }

    #[test]
    fn a_value_is_blotted_out_in_its_disguises_too() {
        let redactor =
            redactor(&[("TOKEN", "p@ss\"wörd/1"), ("KEY", "-----BEGIN-----\nMIIEvQIBADANBg\n-----END-----\n")]);
        for text in [
            "value p@ss\"wörd/1 end",
            "basic cEBzcyJ3w7ZyZC8x end",
            "postgres://u:p%40ss%22w%C3%B6rd%2F1@db",
            r#"{"token":"p@ss\"wörd/1"}"#,
            "key line MIIEvQIBADANBg alone",
        ] {
            let redacted = redactor.redact(text);
            assert!(redacted.contains("[TOKEN]") || redacted.contains("[KEY]"), "{redacted}");
        }
        assert_eq!(redactor.redact("nothing here"), "nothing here");
        assert!(!format!("{redactor:?}").contains("p@ss"));
    }

    #[test]
    fn a_value_within_another_leaves_nothing_of_the_longer_one() {
        let redactor = redactor(&[("SHORT", "abcd"), ("LONG", "abcdefgh")]);
        assert_eq!(redactor.redact("abcdefgh abcd"), "[LONG] [SHORT]");
    }

    #[test]
    fn base64_is_the_rfcs() {
        let cases = [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("fooba", "Zm9vYmE")];
        for (text, encoded) in cases {
            assert_eq!(base64(text.as_bytes(), *b"+/"), encoded);
        }
    }

    proptest! {
        #[test]
        fn a_value_is_never_left_in_a_text(before in ".{0,30}", value in "[a-zA-Z0-9!-/]{8,30}", after in ".{0,30}") {
            let redacted = redactor(&[("S", &value)]).redact(&format!("{before}{value}{after}"));
            prop_assert!(!redacted.contains(&value));
        }
    }
}
