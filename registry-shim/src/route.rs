//! Which thing a path means. Repository names contain slashes, so the paths are read from their ends.

use jiji_model::digest::Digest;
use jiji_model::name::{RepositoryName, TagName};

use crate::refusal::Refusal;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/NAME/tags/list`
    Tags { repository: RepositoryName },
    /// `/v2/NAME/manifests/TAG` or `/v2/NAME/manifests/DIGEST`
    Manifest { repository: RepositoryName, version: Version },
    /// `/v2/NAME/blobs/DIGEST`. A digest that is none is refused only by those who use it.
    Blob { digest: Result<Digest, Refusal> },
    /// `/v2/NAME/blobs/uploads/`
    Uploads { repository: RepositoryName },
    /// `/v2/NAME/blobs/uploads/ID`
    Upload { repository: RepositoryName, id: String },
    /// `/v2/NAME/referrers/DIGEST`
    Referrers { repository: RepositoryName, digest: Result<Digest, Refusal> },
}

/// Which manifest of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Tag(TagName),
    Digest(Digest),
}

impl Target {
    /// Reads a request's path, still percent-encoded.
    pub(crate) fn read(path: &str) -> Result<Self, Refusal> {
        let path = decode(path).ok_or(Refusal::NotFound)?;
        let rest = path.strip_prefix("/v2").ok_or(Refusal::NotFound)?;
        match rest {
            "" | "/" => return Ok(Self::Base),
            "/_catalog" => return Ok(Self::Catalog),
            _ => {}
        }
        let rest = rest.strip_prefix('/').ok_or(Refusal::NotFound)?;
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags { repository: repository(name)? });
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads").or_else(|| rest.strip_suffix("/blobs/uploads/")) {
            return Ok(Self::Uploads { repository: repository(name)? });
        }
        let (front, last) = rest.rsplit_once('/').ok_or(Refusal::NotFound)?;
        if let Some(name) = front.strip_suffix("/blobs/uploads") {
            return Ok(Self::Upload { repository: repository(name)?, id: last.to_owned() });
        }
        if let Some(name) = front.strip_suffix("/manifests") {
            return Ok(Self::Manifest { repository: repository(name)?, version: version(last)? });
        }
        if let Some(name) = front.strip_suffix("/blobs") {
            repository(name)?;
            return Ok(Self::Blob { digest: digest(last) });
        }
        if let Some(name) = front.strip_suffix("/referrers") {
            return Ok(Self::Referrers { repository: repository(name)?, digest: digest(last) });
        }
        Err(Refusal::NotFound)
    }
}

fn repository(text: &str) -> Result<RepositoryName, Refusal> {
    RepositoryName::new(text).map_err(|error| Refusal::NameInvalid(error.to_string()))
}

/// Reads a digest that a client wrote.
pub(crate) fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error: jiji_model::digest::ParseDigestError| Refusal::DigestInvalid(error.to_string()))
}

fn version(text: &str) -> Result<Version, Refusal> {
    if text.contains(':') {
        return digest(text).map(Version::Digest);
    }
    // A tag that cannot exist is a manifest that does not.
    TagName::new(text).map(Version::Tag).map_err(|error| Refusal::ManifestUnknown(error.to_string()))
}

/// Resolves percent-encoding. None if it is broken or not UTF-8.
fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let pair = [rest.next()?, rest.next()?];
                if !pair.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RepositoryName {
        RepositoryName::new(text).expect("a repository name")
    }

    #[test]
    fn every_path_of_the_specification_means_what_it_says() {
        let digest = Digest::of(b"x");
        let encoded = digest.to_string().replace(':', "%3A");
        for (path, target) in [
            ("/v2/".to_owned(), Target::Base),
            ("/v2".to_owned(), Target::Base),
            ("/v2/_catalog".to_owned(), Target::Catalog),
            ("/v2/a/b/tags/list".to_owned(), Target::Tags { repository: name("a/b") }),
            (format!("/v2/a/blobs/{digest}"), Target::Blob { digest: Ok(digest) }),
            (format!("/v2/a/blobs/{encoded}"), Target::Blob { digest: Ok(digest) }),
            ("/v2/a/blobs/uploads/".to_owned(), Target::Uploads { repository: name("a") }),
            ("/v2/a/blobs/uploads".to_owned(), Target::Uploads { repository: name("a") }),
            ("/v2/a/blobs/uploads/7f".to_owned(), Target::Upload { repository: name("a"), id: "7f".to_owned() }),
            (
                "/v2/manifests/tags/manifests/v1".to_owned(),
                Target::Manifest {
                    repository: name("manifests/tags"),
                    version: Version::Tag(TagName::new("v1").expect("a tag")),
                },
            ),
            (
                format!("/v2/a/manifests/{digest}"),
                Target::Manifest { repository: name("a"), version: Version::Digest(digest) },
            ),
            (format!("/v2/a/referrers/{digest}"), Target::Referrers { repository: name("a"), digest: Ok(digest) }),
        ] {
            assert_eq!(Target::read(&path), Ok(target), "{path}");
        }
    }

    #[test]
    fn a_path_that_leaves_the_names_is_refused() {
        for path in ["/", "/v1/", "/v2x", "/v2/a", "/v2/a/manifests", "/v2/a/%zz/b", "/v2/a/%"] {
            assert_eq!(Target::read(path), Err(Refusal::NotFound), "{path}");
        }
        for path in ["/v2/../manifests/x", "/v2/A/tags/list", "/v2/a%2f..%2fb/blobs/uploads/", "/v2//manifests/x"] {
            assert!(matches!(Target::read(path), Err(Refusal::NameInvalid(_))), "{path}");
        }
    }
}
