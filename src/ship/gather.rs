//! Where the blobs of images come from that hosts lack: this machine's store, a registry, or another host that still has them.
//!
//! What a host has in its own store is not asked for: it takes it from there. Nothing is sent to hosts here, that is the transaction's; what
//! was gathered lies in this machine's store, verified, so that a run that is cut goes on from there.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::digest::Digest;
use jiji_model::event::{Record, bytes};
use jiji_model::image::{Descriptor, Image};
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, Observation, Query, Want};
use jiji_model::plan::PlannedImage;

use super::look::Wants;
use super::{Ship, ShipError};
use crate::deploy::Seeds;
use crate::fleet::{Fleet, FleetError};
use crate::registry::{Depth, RegistryError};

const BLOBS: &str = "core.blobs";

/// The blobs that each host has whole in its own store, of those that it was asked for.
type Stores = BTreeMap<HostName, BTreeSet<Digest>>;

impl Ship {
    /// Sees to it that for every image of a plan each blob is in this machine's store, or in that of every host that needs it.
    ///
    /// # Errors
    /// [`ShipError::NoBlob`] with everyone who was asked, and what a registry or a host says where nobody else has it.
    pub(super) async fn gather(&self, fleet: &Fleet, images: &[PlannedImage], seeds: &Seeds) -> Result<(), ShipError> {
        let mut lacking = BTreeSet::new();
        for blob in images.iter().flat_map(|planned| planned.image.blobs()) {
            if self.store.has(&blob.digest)?.is_none() {
                lacking.insert(blob.digest);
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let stores = self.stores(fleet, &lacking).await?;
        for planned in images {
            let lacks =
                |host: &HostName, blob: &Descriptor| stores.get(host).is_none_or(|whole| !whole.contains(&blob.digest));
            let needed: Vec<&Descriptor> = planned
                .image
                .blobs()
                .filter(|blob| lacking.contains(&blob.digest) && planned.hosts.iter().any(|host| lacks(host, blob)))
                .collect();
            if !needed.is_empty() {
                self.fetch(fleet, &stores, &planned.image, &needed, seeds).await?;
            }
        }
        Ok(())
    }

    async fn stores(&self, fleet: &Fleet, digests: &BTreeSet<Digest>) -> Result<Stores, ShipError> {
        let want = Want { id: BLOBS.to_owned(), query: Query::Blobs { digests: digests.iter().copied().collect() } };
        let wants: Wants = fleet.sessions.keys().map(|host| (host.clone(), vec![want.clone()])).collect();
        let mut observation = Observation::default();
        self.ask(fleet, &wants, &mut observation).await?;
        let whole = |host: &HostName| match observation.answer(host, BLOBS) {
            Some(Answer::Blobs(blobs)) => blobs.iter().filter(|blob| blob.complete).map(|blob| blob.digest).collect(),
            _ => BTreeSet::new(),
        };
        Ok(fleet.sessions.keys().map(|host| (host.clone(), whole(host))).collect())
    }

    async fn fetch(
        &self,
        fleet: &Fleet,
        stores: &Stores,
        image: &Image,
        needed: &[&Descriptor],
        seeds: &Seeds,
    ) -> Result<(), ShipError> {
        let mut refused: Option<RegistryError> = None;
        let origin = self.origin(image, seeds);
        if let Some(from) = &origin {
            let text = format!("fetching {} from {}", image.repository, from.registry);
            self.sink.emit(Record::new("registry.fetching", text));
            let pulled =
                self.client.pull(from, &image.manifest.digest, &image.platform, &self.store, Depth::WithLayers).await;
            refused = pulled.err();
        }
        for blob in needed {
            if self.store.has(&blob.digest)?.is_none() && !self.taken_from_a_host(fleet, stores, image, blob).await? {
                // What the registry said tells more than that nobody has it.
                if let Some(error) = refused {
                    return Err(error.into());
                }
                return Err(ShipError::NoBlob {
                    repository: image.repository.clone(),
                    digest: blob.digest,
                    image: image.manifest.digest,
                    registry: origin.map(|from| from.registry),
                    hosts: stores.keys().cloned().collect(),
                });
            }
        }
        Ok(())
    }

    /// Takes a blob from the first host that has it and sends it. False where none does.
    async fn taken_from_a_host(
        &self,
        fleet: &Fleet,
        stores: &Stores,
        image: &Image,
        blob: &Descriptor,
    ) -> Result<bool, ShipError> {
        let having = stores.iter().filter(|(_, whole)| whole.contains(&blob.digest)).map(|(host, _)| host);
        for host in having {
            let Some(session) = fleet.sessions.get(host) else { continue };
            let text = format!("fetching {} of {} from here", bytes(blob.size), image.repository);
            self.sink.emit(Record::new("fleet.fetching", text).on(host).with(serde_json::json!({"blob": blob.digest})));
            match session.fetch_blob(&self.store, &blob.digest, blob.size).await {
                Ok(_) => return Ok(true),
                Err(error) if error.is_lost() => {
                    return Err(ShipError::Unreachable(BTreeMap::from([(host.clone(), error)])));
                }
                // It was collected meanwhile, or is not what its name says: another host may have it.
                Err(error @ (FleetError::Refused { .. } | FleetError::Store { .. })) => {
                    tracing::debug!(%host, %error, "fetch a blob");
                }
                Err(error) => return Err(ShipError::Fleet(error)),
            }
        }
        Ok(false)
    }
}
