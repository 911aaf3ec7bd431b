//! The session's secrets: keyed digest and redaction.
//!
//! Values live here and in the environment of the engine's own command line, nowhere else: no file, no argument, no journal. Whatever
//! text leaves this host passes [`Secrets::redact`] first.

use std::collections::BTreeMap;

use jiji_model::name::SecretName;
use jiji_model::plan::LABEL_SECRETS;
use jiji_model::secret::Secret;
use jiji_model::transaction::{Release, Seal};
use sha2::{Digest as _, Sha256};

use crate::place::{self, Durability, Place, PlaceError};

/// What stands in a value's place.
pub const REDACTED: &str = "[redacted]";

/// Values shorter than this are redacted only where they stand alone: an `a` everywhere would leave nothing to read.
const SHORT: usize = 4;

/// Secrets by name.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    values: BTreeMap<SecretName, Secret>,
    /// What is to be replaced, the longest first, so that no value survives as a part of another.
    needles: Vec<Secret>,
}

impl Secrets {
    /// Takes values in.
    pub fn add(&mut self, values: BTreeMap<SecretName, Secret>) {
        self.values.extend(values);
        let mut needles: Vec<String> = Vec::new();
        for value in self.values.values().map(Secret::reveal) {
            needles.push(value.to_owned());
            // A log shows a value of several lines line by line, and JSON shows it escaped.
            needles.extend(value.lines().filter(|line| line.trim().len() >= 8).map(str::to_owned));
            let json = serde_json::Value::from(value).to_string();
            needles.push(json.trim_matches('"').to_owned());
        }
        needles.retain(|needle| !needle.is_empty());
        needles.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        self.needles = needles.into_iter().map(Secret::new).collect();
    }

    /// A value.
    pub fn get(&self, name: &SecretName) -> Option<&Secret> {
        self.values.get(name)
    }

    /// A text with every value replaced.
    pub fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for needle in self.needles.iter().map(Secret::reveal) {
            if text.contains(needle) {
                text = if needle.len() < SHORT { redact_alone(&text, needle) } else { text.replace(needle, REDACTED) };
            }
        }
        text
    }

    /// The keyed digest of secrets: HMAC-SHA256 under the host's key over a constant label, then each name and value with its length
    /// before it, in the order of the names. 64 hexadecimal digits.
    ///
    /// # Errors
    /// The first name whose value was not sent.
    pub fn mac<'a>(&self, key: &[u8; 32], names: &'a [SecretName]) -> Result<String, &'a SecretName> {
        let mut names: Vec<&SecretName> = names.iter().collect();
        names.sort();
        names.dedup();
        let mut message = Vec::new();
        let mut add = |text: &str| {
            message.extend_from_slice(&(text.len() as u64).to_be_bytes());
            message.extend_from_slice(text.as_bytes());
        };
        add(LABEL_SECRETS);
        for name in names {
            let value = self.values.get(name).ok_or(name)?;
            add(name.as_str());
            add(value.reveal());
        }
        let mac = hmac_sha256(key, &message);
        Ok(jiji_model::digest::Digest::from_bytes(mac).hex())
    }
}

fn redact_alone(text: &str, needle: &str) -> String {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut end = 0;
    for (start, _) in text.match_indices(needle) {
        let after = &text[start + needle.len()..];
        if start >= end && !text[..start].ends_with(word) && !after.starts_with(word) {
            out.push_str(&text[end..start]);
            out.push_str(REDACTED);
            end = start + needle.len();
        }
    }
    out.push_str(&text[end..]);
    out
}

/// HMAC (RFC 2104) with SHA-256 and a key no longer than a block.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |byte: u8| block.map(|b| b ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

/// What shows a later change of a release's record.
pub fn seal(key: &[u8; 32], release: &Release) -> Seal {
    Seal { key: key_id(key), mac: jiji_model::digest::Digest::from_bytes(hmac_sha256(key, &release.sealed())).hex() }
}

/// Which key it is, without a word about it: of a keyed digest of a constant, the first 16 hexadecimal digits.
pub fn key_id(key: &[u8; 32]) -> String {
    jiji_model::digest::Digest::from_bytes(hmac_sha256(key, b"jiji.key")).hex()[..16].to_owned()
}

/// The host's key, where it has one.
///
/// # Errors
/// [`PlaceError`] when the file is not a key.
pub fn host_key(place: &Place) -> Result<Option<[u8; 32]>, PlaceError> {
    let path = place.host_key();
    let Some(bytes) = place::read(&path, 64)? else {
        return Ok(None);
    };
    bytes
        .as_slice()
        .try_into()
        .map(Some)
        .map_err(|_| PlaceError::Record { reason: format!("{} bytes, expected 32", bytes.len()), path })
}

/// The host's key, made now where there is none.
///
/// # Errors
/// [`PlaceError`].
pub fn ensure_host_key(place: &Place) -> Result<[u8; 32], PlaceError> {
    if let Some(key) = host_key(place)? {
        return Ok(key);
    }
    let _lock = place.lock_shared_things()?;
    if let Some(key) = host_key(place)? {
        return Ok(key);
    }
    let mut key = [0; 32];
    let path = place.host_key();
    getrandom::fill(&mut key).map_err(|error| place::failed("draw", &path)(std::io::Error::other(error)))?;
    place::write(&path, &key, 0o600, Durability::Synced)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secrets(values: &[(&str, &str)]) -> Secrets {
        let mut secrets = Secrets::default();
        let named = |(name, value): &(&str, &str)| (SecretName::new(*name).expect("a name"), Secret::new(*value));
        secrets.add(values.iter().map(named).collect());
        secrets
    }

    fn names(names: &[&str]) -> Vec<SecretName> {
        names.iter().map(|name| SecretName::new(*name).expect("a name")).collect()
    }

    #[test]
    fn the_mac_is_the_one_of_rfc_4231() {
        // Test cases 1 and 2.
        let hex = |mac| jiji_model::digest::Digest::from_bytes(mac).hex();
        assert_eq!(
            hex(hmac_sha256(&[0x0b; 20], b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hex(hmac_sha256(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_mac_changes_with_a_value_a_name_a_key_and_a_boundary_and_not_with_the_order() {
        let key = [1; 32];
        let one = secrets(&[("A", "bc"), ("AB", "c")]);
        let a = one.mac(&key, &names(&["A"])).expect("sent");
        let ab = one.mac(&key, &names(&["AB"])).expect("sent");
        let both = one.mac(&key, &names(&["A", "AB"])).expect("sent");
        assert!(a != ab && ab != both);
        assert_eq!(one.mac(&key, &names(&["AB", "A", "A"])).expect("sent"), both);
        assert_ne!(one.mac(&[2; 32], &names(&["A"])).expect("sent"), a);
        assert_ne!(secrets(&[("A", "bd")]).mac(&key, &names(&["A"])).expect("sent"), a);
        assert_eq!(one.mac(&key, &names(&["X"])), Err(&names(&["X"])[0]));
    }

    #[test]
    fn values_are_replaced_whole_by_line_and_as_json_and_short_ones_where_they_stand_alone() {
        let secrets =
            secrets(&[("A", "hunter2"), ("B", "hunter2-and-more"), ("C", "first line\nsecond line"), ("D", "ab")]);
        assert_eq!(secrets.redact("x hunter2-and-more hunter2"), "x [redacted] [redacted]");
        assert_eq!(secrets.redact("| second line |"), "| [redacted] |");
        assert_eq!(secrets.redact(r#"{"c":"first line\nsecond line"}"#), r#"{"c":"[redacted]"}"#);
        assert_eq!(secrets.redact("ab cab ab"), "[redacted] cab [redacted]");
    }

    #[test]
    fn the_key_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::new(dir.path().join("jiji"));
        assert_eq!(host_key(&place).expect("looked"), None);
        assert!(!place.root().exists());
        let key = ensure_host_key(&place).expect("made");
        assert_eq!(ensure_host_key(&place).expect("kept"), key);
        let mode = std::fs::metadata(place.host_key()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    proptest! {
        #[test]
        fn no_value_of_four_bytes_or_more_survives(value in "[a-z]{4,12}", before in "[a-z ]{0,8}", after in "[a-z ]{0,8}") {
            // The replacement itself is no leak.
            prop_assume!(!REDACTED.contains(&value));
            let redacted = secrets(&[("A", &value)]).redact(&format!("{before}{value}{after}"));
            prop_assert!(!redacted.replace(REDACTED, " ").contains(&value));
        }
    }
}
