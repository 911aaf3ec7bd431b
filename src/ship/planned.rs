//! A plan that is shown, kept, and applied later.

use std::collections::BTreeMap;
use std::time::Instant;

use jiji_model::digest::Digest;
use jiji_model::image::Image;
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, Observation, Query, Want};
use jiji_model::plan::Plan;
use jiji_model::project::Source as ImageSource;
use jiji_model::reference::Reference;

use super::look::{Wants, platforms};
use super::pipeline::{Durations, since};
use super::{Planned, Ship, ShipError, Shipped, Source, native};
use crate::deploy::{self, Images, Origin, Saved, SavedError};
use crate::fleet::Fleet;
use crate::registry::Depth;

/// The id of the question which blobs hosts have.
const BLOBS: &str = "plan.blobs";

impl Ship {
    /// What a ship would change, without changing anything on hosts. With `keep`, also in a form in which it can be applied later; what it
    /// needs is pushed then, where there is a registry.
    ///
    /// # Errors
    /// As [`Self::ship`].
    pub async fn plan(&self, keep: Option<Origin>) -> Result<Planned, ShipError> {
        let here = [native()];
        let (fleet, images) = tokio::join!(self.connect(), self.images(Source::Build, &here));
        let fleet = fleet?;
        let planned = match images {
            Ok(images) => self.planned(&fleet, images, keep).await,
            Err(error) => Err(error),
        };
        fleet.close().await;
        planned
    }

    async fn planned(&self, fleet: &Fleet, mut images: Images, keep: Option<Origin>) -> Result<Planned, ShipError> {
        self.complete(fleet, Source::Build, &mut images).await?;
        let ready = self.ready(&platforms(fleet), None).await?;
        let looked = self.look(fleet, &ready, &images, false).await?;
        let bytes = self.missing_bytes(fleet, &looked.assembled.plan).await?;
        let changes = deploy::changes(&looked.desired, &looked.assembled.plan, bytes);
        let saved = match keep {
            Some(origin) => {
                self.pushed(&images).await?;
                let basis = deploy::basis(&looked.desired, &looked.answers, &looked.observation)?;
                let plan = looked.assembled.plan.clone();
                let digests = ready.plugins.digests();
                Some(Saved::new(origin, &self.project, digests, (images.clone(), ready.seeds), basis, plan))
            }
            None => None,
        };
        let deploy::Assembled { plan, notes } = looked.assembled;
        Ok(Planned { changes, plan, images, notes, saved })
    }

    /// Bytes that have to be sent to each host: of the blobs that its engine needs and its own store lacks.
    async fn missing_bytes(&self, fleet: &Fleet, plan: &Plan) -> Result<BTreeMap<HostName, u64>, ShipError> {
        let mut blobs: BTreeMap<HostName, BTreeMap<Digest, u64>> = BTreeMap::new();
        for planned in &plan.images {
            for host in &planned.hosts {
                let of_host = blobs.entry(host.clone()).or_default();
                of_host.extend(planned.image.blobs().map(|blob| (blob.digest, blob.size)));
            }
        }
        let wants: Wants = blobs
            .iter()
            .map(|(host, blobs)| {
                let query = Query::Blobs { digests: blobs.keys().copied().collect() };
                (host.clone(), vec![Want { id: BLOBS.to_owned(), query }])
            })
            .collect();
        let mut observation = Observation::default();
        if !wants.is_empty() {
            self.ask(fleet, &wants, &mut observation).await?;
        }
        Ok(blobs
            .into_iter()
            .map(|(host, blobs)| {
                let there = match observation.answer(&host, BLOBS) {
                    Some(Answer::Blobs(facts)) => facts.as_slice(),
                    _ => &[],
                };
                let mut missing = blobs;
                for fact in there {
                    match missing.get_mut(&fact.digest) {
                        Some(_) if fact.complete => {
                            missing.remove(&fact.digest);
                        }
                        Some(size) => *size = size.saturating_sub(fact.have),
                        None => {}
                    }
                }
                (host, missing.into_values().sum())
            })
            .collect())
    }

    /// Applies a plan that was kept: looks at the fleet, plans again with the plan's images, and goes on only where nothing moved and the
    /// same came of it.
    ///
    /// # Errors
    /// [`ShipError::Saved`] before any effect; else as [`Self::ship`].
    pub async fn apply_saved(&self, saved: &Saved) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let mut durations = Durations::new();
        saved.check(&self.project)?;
        self.unless_stopped(self.check_images(saved)).await?;
        let fleet = self.unless_stopped(self.connect()).await?;
        let shipped = self.once_free(&fleet, async || self.deliver_saved(&fleet, saved, &mut durations).await).await;
        self.end(fleet, shipped, durations, start).await
    }

    async fn deliver_saved(
        &self,
        fleet: &Fleet,
        saved: &Saved,
        durations: &mut Durations,
    ) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let ready = self.ready(&platforms(fleet), Some(&saved.seeds)).await?;
        saved.check_plugins(&ready.plugins.digests())?;
        let looked = self.look(fleet, &ready, &saved.images, false).await?;
        let basis = deploy::basis(&looked.desired, &looked.answers, &looked.observation)?;
        saved.verify(&basis, &looked.assembled.plan)?;
        durations.insert("look", since(start));
        let shipped = self.apply(fleet, &ready, looked, durations).await?;
        Ok(Shipped { images: saved.images.clone(), ..shipped })
    }

    /// Whether the images of a kept plan are what it says, and can be had: every manifest is read from the store or a registry.
    async fn check_images(&self, saved: &Saved) -> Result<(), ShipError> {
        for (name, images) in &saved.images {
            let Some(service) = self.project.services.get(name) else { continue };
            for image in images {
                let from = match &service.source {
                    ImageSource::Build(_) => {
                        self.built_from(name, &image.manifest.digest)?.ok_or_else(|| ShipError::NoBlob {
                            repository: image.repository.clone(),
                            digest: image.manifest.digest,
                            image: image.manifest.digest,
                            registry: None,
                            hosts: Vec::new(),
                        })?
                    }
                    ImageSource::Image(text) => {
                        let reference: Reference =
                            text.parse().map_err(|cause| ShipError::Reference { service: name.clone(), cause })?;
                        self.agrees(&reference, &image.platform, image.manifest.digest).await?;
                        reference
                    }
                };
                let digest = image.manifest.digest;
                let found = self.client.pull(&from, &digest, &image.platform, &self.store, Depth::ManifestOnly).await?;
                let repository = match &service.source {
                    ImageSource::Build(_) => self.repository(name).to_string(),
                    ImageSource::Image(_) => from.repository.to_string(),
                };
                if (Image { repository, ..found }) != *image {
                    return Err(SavedError::Image { service: name.clone(), digest }.into());
                }
            }
        }
        Ok(())
    }
}
