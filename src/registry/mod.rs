//! The client of OCI registries: resolves tags, pulls by digest, pushes what is missing.
//!
//! What comes from a registry is taken for hostile until it hashes to the digest that was asked for and is as long as was announced:
//! nothing else reaches the store. A tag is asked for in one place, [`Client::resolve`]; whoever calls it writes the digest to
//! `jiji.lock` and asks by digest from then on. Blobs are streamed with bounded memory and continued where a connection broke.
//!
//! This room knows the protocol and no more: what a layer holds is [`crate::build`]'s, what a plugin is [`crate::plugin`]'s, and the
//! server's side is `jiji_registry_shim`. Nothing here reads the user's files: credentials, mirrors and known servers are handed in.
//!
//! Authentication, blob transfer and manifest upload are `oci-distribution`'s. Three requests are made here instead, because there
//! it reads answers of any length into memory and cannot ask without a retry as GET: reading a manifest, asking for a manifest's
//! digest, and asking whether a registry wants authentication at all.

mod artifact;
mod blob;
mod client;
mod download;
mod error;
mod manifest;
mod pull;
mod push;
#[cfg(test)]
mod tests;
mod wire;

pub use artifact::Artifact;
pub use client::{Client, Credentials, Repository, Setup};
pub use download::{Answer, Asking};
pub use error::RegistryError;
pub use pull::Depth;
pub use push::{Push, PushReport};
