//! Where an image is to be had: registry, repository, and a tag or digest.
//!
//! The grammar is the one that Docker gave people (distribution's `reference` package): `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`,
//! where the first part is a registry only if it has a dot, a colon or is `localhost`, and what names no registry is Docker Hub's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, ParseDigestError};
use crate::name::{ParseNameError, RepositoryName, TagName};

/// The registry of references that name none.
pub const DOCKER_HUB: &str = "docker.io";

/// A place to have an image from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `HOST[:PORT]`.
    pub registry: String,
    /// The repository, `library/` added where Docker Hub's names leave it out.
    pub repository: RepositoryName,
    /// The tag. Beside a digest it is for people only.
    pub tag: Option<TagName>,
    /// The digest of a manifest or index: what counts where it is given.
    pub digest: Option<Digest>,
}

/// Why a text is not a [`Reference`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// The registry is not a host name or address with an optional port.
    #[error("read image reference `{text}`: `{registry}` is not a registry's `HOST[:PORT]`")]
    Registry {
        /// The whole text.
        text: String,
        /// The part.
        registry: String,
    },
    /// The repository or the tag does not fit its grammar.
    #[error("read image reference `{text}`: {reason}")]
    Name {
        /// The whole text.
        text: String,
        /// What does not fit.
        reason: ParseNameError,
    },
    /// The digest does not fit its grammar.
    #[error("read image reference `{text}`: {reason}")]
    Digest {
        /// The whole text.
        text: String,
        /// What does not fit.
        reason: ParseDigestError,
    },
}

impl Reference {
    /// What to ask the registry for: the digest, else the tag, else `latest`.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_string(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same place with a digest instead of a tag.
    pub fn at(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad_name = |reason| ParseReferenceError::Name { text: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|reason| ParseReferenceError::Digest { text: text.to_owned(), reason })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
            _ => (DOCKER_HUB, rest),
        };
        if !is_authority(registry) {
            return Err(ParseReferenceError::Registry { text: text.to_owned(), registry: registry.to_owned() });
        }
        let (path, tag) = match path.split_once(':') {
            Some((path, tag)) => (path, Some(TagName::new(tag).map_err(bad_name)?)),
            None => (path, None),
        };
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        let path = match registry {
            DOCKER_HUB if !path.contains('/') && !path.is_empty() => format!("library/{path}"),
            _ => path.to_owned(),
        };
        let repository = RepositoryName::new(path).map_err(bad_name)?;
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// `HOST[:PORT]`, where the host is a name, an IPv4 address, or an IPv6 address in brackets.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rfind(':') {
        Some(colon) if !text[colon..].contains(']') => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    };
    let host_fits = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            host.len() <= 253
                && host.split('.').all(|label| {
                    (1..=63).contains(&label.len())
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                })
        }
    };
    host_fits
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

impl Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_names_no_registry_is_docker_hubs() {
        for (text, full) in [
            ("debian", "docker.io/library/debian"),
            ("debian:12", "docker.io/library/debian:12"),
            ("acme/web", "docker.io/acme/web"),
            ("docker.io/debian", "docker.io/library/debian"),
            ("index.docker.io/acme/web", "docker.io/acme/web"),
            ("localhost/web", "localhost/web"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("127.0.0.1:5000/web", "127.0.0.1:5000/web"),
            ("[::1]:5000/web:1", "[::1]:5000/web:1"),
            ("ghcr.io/acme/web:v1", "ghcr.io/acme/web:v1"),
        ] {
            assert_eq!(read(text).to_string(), full);
            assert_eq!(read(full), read(text), "reading what was written gives the same");
        }
    }

    #[test]
    fn a_digest_counts_more_than_the_tag_beside_it() {
        let digest = Digest::of(b"x");
        let reference = read(&format!("ghcr.io/acme/web:v1@{digest}"));
        assert_eq!(reference.version(), digest.to_string());
        assert_eq!(reference.to_string(), format!("ghcr.io/acme/web:v1@{digest}"));
        assert_eq!(read("web:v2").version(), "v2");
        assert_eq!(read("web").version(), "latest");
        assert_eq!(read("web:v2").at(digest).to_string(), format!("docker.io/library/web@{digest}"));
    }

    #[test]
    fn what_could_reach_another_place_is_refused() {
        for text in [
            "",
            "/",
            ":",
            "@",
            "a b",
            "Web",
            "web:",
            "web@sha256:12",
            "web:a/b",
            "http://a.b/c",
            "user@host/web",
            "-a.b/c",
            "a.b:0/c",
            "a.b:99999/c",
            "a.b:/c",
            "a..b/c",
            "a.b/../c",
            "a.b/c?x=y",
            "a.b/c#d",
            "[::g]/c",
            "a.b\n/c",
            "a.b:+1/c",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
