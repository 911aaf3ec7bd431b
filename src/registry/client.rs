//! The client, and what it is told at its start.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiji_model::event::{Record, Silent, Sink};
use jiji_model::name::RepositoryName;
use jiji_model::project::RegistryServer;
use jiji_model::reference::Reference;
use jiji_model::secret::Secret;

use super::error::RegistryError;
use super::wire::Wire;

/// A user name and its password or token.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: Secret,
}

/// How credentials are looked up: by the registry's `HOST[:PORT]`.
pub type CredentialLookup = dyn Fn(&str) -> Option<Credentials> + Send + Sync;

/// What a client is told at its start.
#[derive(Clone)]
pub struct Setup {
    /// Credentials by `HOST[:PORT]`; `docker.io` for Docker Hub.
    pub credentials: Arc<CredentialLookup>,
    /// Where a registry's content may be had from instead, in order, before the registry itself is asked.
    pub mirrors: BTreeMap<String, Vec<RegistryServer>>,
    /// Registries of which it is known how to speak to them. Others are spoken to with TLS, and with plain HTTP on loopback.
    pub servers: Vec<RegistryServer>,
    /// Where events go.
    pub sink: Arc<dyn Sink>,
}

impl Default for Setup {
    /// No credentials, no mirrors, nobody watching.
    fn default() -> Self {
        Self { credentials: Arc::new(|_| None), mirrors: BTreeMap::new(), servers: Vec::new(), sink: Arc::new(Silent) }
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").field("mirrors", &self.mirrors).field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// A repository on a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repository {
    /// The server.
    pub server: RegistryServer,
    /// The repository's name there.
    pub name: RepositoryName,
}

/// Speaks to registries. Clones share connections and tokens.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
    offline: bool,
}

struct Inner {
    wire: Wire,
    mirrors: BTreeMap<String, Vec<RegistryServer>>,
    servers: Vec<RegistryServer>,
    sink: Arc<dyn Sink>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("mirrors", &self.mirrors).field("servers", &self.servers).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that has not spoken to anybody yet.
    pub fn new(setup: Setup) -> Self {
        let Setup { credentials, mirrors, servers, sink } = setup;
        Self { inner: Arc::new(Inner { wire: Wire::new(credentials), mirrors, servers, sink }), offline: false }
    }

    /// The same client, which asks nobody: what the store lacks is an error that names it.
    #[must_use]
    pub fn offline(self, offline: bool) -> Self {
        Self { offline, ..self }
    }

    /// Whether somebody may be asked for this.
    ///
    /// # Errors
    /// [`RegistryError::Offline`].
    pub fn online(&self, what: impl FnOnce() -> String) -> Result<(), RegistryError> {
        if self.offline { Err(RegistryError::Offline { what: what() }) } else { Ok(()) }
    }

    /// The repository that a reference names, without mirrors.
    pub fn repository(&self, reference: &Reference) -> Repository {
        let known = self.inner.servers.iter().find(|server| server.authority == reference.registry);
        let server = known.cloned().unwrap_or_else(|| RegistryServer {
            authority: reference.registry.clone(),
            plain_http: is_loopback(&reference.registry),
        });
        Repository { server, name: reference.repository.clone() }
    }

    /// Where a reference's content may be had from: the mirrors in order, then the registry itself.
    pub(super) fn places(&self, reference: &Reference) -> Vec<Repository> {
        let mirrors = self.inner.mirrors.get(&reference.registry).into_iter().flatten();
        let mirrors = mirrors.map(|server| Repository { server: server.clone(), name: reference.repository.clone() });
        mirrors.chain([self.repository(reference)]).collect()
    }

    pub(super) fn wire(&self) -> &Wire {
        &self.inner.wire
    }

    pub(super) fn emit(&self, record: Record) {
        self.inner.sink.emit(record);
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(authority: &str, plain_http: bool) -> RegistryServer {
        RegistryServer { authority: authority.to_owned(), plain_http }
    }

    #[test]
    fn only_loopback_and_what_is_known_is_spoken_to_without_tls() {
        let client = Client::new(Setup { servers: vec![server("lab:5000", true)], ..Setup::default() });
        for (reference, plain) in [
            ("127.0.0.1:5000/a", true),
            ("127.9.9.9/a", true),
            ("[::1]:5000/a", true),
            ("localhost/a", true),
            ("lab:5000/a", true),
            ("lab:5001/a", false),
            ("ghcr.io/a", false),
            ("debian", false),
            ("localhost.example.org/a", false),
        ] {
            let reference = reference.parse().expect("a reference");
            assert_eq!(client.repository(&reference).server.plain_http, plain, "{reference}");
        }
    }

    #[test]
    fn mirrors_come_before_the_registry_itself() {
        let mirrors = BTreeMap::from([("docker.io".to_owned(), vec![server("m1", false), server("m2", true)])]);
        let client = Client::new(Setup { mirrors, ..Setup::default() });
        let places = client.places(&"debian:12".parse().expect("a reference"));
        let authorities: Vec<_> = places.iter().map(|place| place.server.authority.as_str()).collect();
        assert_eq!(authorities, ["m1", "m2", "docker.io"]);
        assert_eq!(places[0].name.as_str(), "library/debian");
        assert_eq!(client.places(&"ghcr.io/a".parse().expect("a reference")).len(), 1);
    }
}
