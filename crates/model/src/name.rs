//! Names that were checked once at the edge and are trusted after.
//!
//! Each type has one grammar, tight enough that a value is safe as a file name, a container name and a DNS label wherever the type
//! is used for one. Nothing is repaired: a text that does not fit is an error that says what would.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {kind} `{text}`: {rule}")]
pub struct ParseNameError {
    /// What the text was to be, for people: "project name".
    pub kind: &'static str,
    /// What was given.
    pub text: String,
    /// The grammar, for people.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$meta:meta])* $type:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            /// Checks a text against the grammar.
            ///
            /// # Errors
            /// [`ParseNameError`] when it does not fit.
            pub fn new(text: impl Into<String>) -> Result<Self, ParseNameError> {
                let text = text.into();
                let check: fn(&str) -> bool = $check;
                if check(&text) { Ok(Self(text)) } else { Err(ParseNameError { kind: $kind, text, rule: $rule }) }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        // A name is ordered and hashed as its text is.
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = ParseNameError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A project: the scope of releases, journals and leases.
    ProjectName, "project name", "expected 1 to 40 of a-z, 0-9, `-` and `_`, beginning and ending with a letter or digit",
    |text| words(text, 40)
);
name!(
    /// A service of a project.
    ServiceName, "service name", "expected 1 to 40 of a-z, 0-9, `-` and `_`, beginning and ending with a letter or digit",
    |text| words(text, 40)
);
name!(
    /// A server as the project calls it: a key under `servers`. What SSH connects to is [`crate::project::Server::address`].
    HostName, "server name", "expected 1 to 63 of a-z, 0-9, `-` and `.`, beginning and ending with a letter or digit",
    |text| edged(text, 63) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
);
name!(
    /// A secret's name, which is an environment variable's.
    SecretName, "secret name", "expected an environment variable's name: A-Z, a-z, 0-9 and `_`, not beginning with a digit",
    |text| (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !text.as_bytes()[0].is_ascii_digit()
);
name!(
    /// A container's name. Docker 20.10 refuses names of one character.
    ContainerName, "container name", "expected 2 to 128 of A-Z, a-z, 0-9, `-`, `_` and `.`, beginning with a letter or digit",
    |text| (2..=128).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
);
name!(
    /// An absolute, normal path: no `.` or `..` parts, no double slash, no NUL or line break.
    AbsPath, "absolute path", "expected `/` and normal parts, without `.`, `..`, empty parts or control characters",
    |text| text == "/" || (text.starts_with('/')
        && text.len() <= 4096
        && !text.chars().any(char::is_control)
        && text[1..].split('/').all(|part| !matches!(part, "" | "." | "..")))
);
name!(
    /// A plugin's name, also the stem of its file.
    PluginName, "plugin name", "expected 1 to 64 of a-z, 0-9 and `-`, beginning and ending with a letter or digit",
    |text| edged(text, 64) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
);
name!(
    /// A repository on a registry, without the registry (distribution-spec, "Pulling manifests"; 255 is what clients add to it).
    RepositoryName, "repository name",
    "expected at most 255 of a-z, 0-9 and single `.`, `_`, `__` or dashes between them, in parts separated by `/`",
    |text| text.len() <= 255 && text.split('/').all(repository_part)
);
name!(
    /// A tag of a repository (distribution-spec, "Pulling manifests").
    TagName, "tag", "expected 1 to 128 of A-Z, a-z, 0-9, `_`, `.` and `-`, beginning with a letter, digit or `_`",
    |text| (1..=128).contains(&text.len())
        && (text.as_bytes()[0].is_ascii_alphanumeric() || text.as_bytes()[0] == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
);

impl AbsPath {
    /// Whether `self` is `root` or lies below it.
    pub fn is_within(&self, root: &Self) -> bool {
        root.0 == "/" || self.0 == root.0 || self.0.strip_prefix(&root.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn repository_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    edged(part, 255)
        && part.bytes().all(|b| alphanumeric(b) || matches!(b, b'-' | b'_' | b'.'))
        && part
            .split(|c: char| c.is_ascii_alphanumeric())
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn edged(text: &str, longest: usize) -> bool {
    let bytes = text.as_bytes();
    (1..=longest).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
}

fn words(text: &str, longest: usize) -> bool {
    edged(text, longest)
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_or_an_argument_are_refused() {
        for text in ["", ".", "..", "a/b", "a b", "-a", "a-", "a\nb", "Ü", &"a".repeat(64)] {
            assert!(ProjectName::new(text).is_err(), "{text:?}");
            assert!(HostName::new(text).is_err(), "{text:?}");
        }
        assert!(HostName::new("fra-1.example").is_ok());
        assert!(SecretName::new("1A").is_err());
    }

    #[test]
    fn repositories_and_tags_follow_the_distribution_specification() {
        for text in ["a", "library/debian", "a--b/c__d/e.f_g", "0/1"] {
            assert!(RepositoryName::new(text).is_ok(), "{text:?}");
        }
        for text in ["", "/", "a/", "A", "a..b", "a___b", "-a", "a/../b", "a._b", "a%2fb", "a:b", &"a".repeat(256)] {
            assert!(RepositoryName::new(text).is_err(), "{text:?}");
        }
        assert!(TagName::new("_v1.0-RC").is_ok());
        for text in ["", ".", "..", "-a", "a/b", "a:b", "sha256:0", &"a".repeat(129)] {
            assert!(TagName::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_path_is_within_a_root_by_whole_parts() {
        let path = |text| AbsPath::new(text).expect("a normal path");
        assert!(path("/var/lib/jiji/x").is_within(&path("/var/lib/jiji")));
        assert!(!path("/var/lib/jiji2").is_within(&path("/var/lib/jiji")));
        assert!(path("/x").is_within(&path("/")));
        for text in ["/a/../b", "/a//b", "/a/", "a", "/a\nb"] {
            assert!(AbsPath::new(text).is_err(), "{text:?}");
        }
    }
}
