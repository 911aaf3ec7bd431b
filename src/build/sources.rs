//! Where base images and fetched files come from.

use jiji_model::digest::Digest;
use jiji_model::image::{Image, Platform};
use jiji_model::reference::Reference;
use jiji_store::Store;

pub use crate::registry::{Answer, Asking};
use crate::registry::{Client, Depth, RegistryError};

/// Gives what a build begins from, to several stages at once: base images, and files that ADD names by a URL.
pub trait Sources: Sync {
    /// What a tag means for a platform: the digest of one image's manifest. Asked once, and then written to `jiji.lock`.
    ///
    /// # Errors
    /// When the registry does not say.
    fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Digest, RegistryError>;

    /// Takes the image with this digest into the store. What the store has is not asked for.
    ///
    /// # Errors
    /// When the registry does not give it, or gives something else.
    fn pull(
        &self,
        reference: &Reference,
        digest: &Digest,
        platform: &Platform,
        store: &Store,
        depth: Depth,
    ) -> Result<Image, RegistryError>;

    /// Whether a step may use the network, for what the store lacks.
    ///
    /// # Errors
    /// When nobody may be asked: `what` is then named.
    fn reachable(&self, what: &dyn Fn() -> String) -> Result<(), RegistryError>;

    /// Takes what a URL has into the store: its digest and length in bytes.
    ///
    /// # Errors
    /// When it cannot be had.
    fn fetch(&self, url: &str, store: &Store) -> Result<(Digest, u64), RegistryError>;

    /// Asks for a URL as a step that is recorded does. What it has is taken into the store.
    ///
    /// # Errors
    /// When there is no answer.
    fn ask(&self, asking: &Asking<'_>, store: &Store) -> Result<Answer, RegistryError>;
}

/// Registries, through a client.
#[derive(Debug)]
pub struct Registries<'a> {
    client: &'a Client,
    runtime: tokio::runtime::Handle,
}

impl<'a> Registries<'a> {
    /// Waits for the client on `runtime`. A build blocks its thread, so it must not be one of the runtime's own: run the build with
    /// `spawn_blocking`.
    pub fn new(client: &'a Client, runtime: tokio::runtime::Handle) -> Self {
        Self { client, runtime }
    }
}

impl Sources for Registries<'_> {
    fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Digest, RegistryError> {
        self.runtime.block_on(self.client.resolve(reference, platform))
    }

    fn pull(
        &self,
        reference: &Reference,
        digest: &Digest,
        platform: &Platform,
        store: &Store,
        depth: Depth,
    ) -> Result<Image, RegistryError> {
        self.runtime.block_on(self.client.pull(reference, digest, platform, store, depth))
    }

    fn reachable(&self, what: &dyn Fn() -> String) -> Result<(), RegistryError> {
        self.client.online(what)
    }

    fn fetch(&self, url: &str, store: &Store) -> Result<(Digest, u64), RegistryError> {
        self.runtime.block_on(self.client.download(url, store))
    }

    fn ask(&self, asking: &Asking<'_>, store: &Store) -> Result<Answer, RegistryError> {
        self.runtime.block_on(self.client.ask(asking, store))
    }
}
