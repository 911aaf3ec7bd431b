//! Images of services and plugins: built, taken from a registry by what the lock says, and pushed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_model::event::{Record, Sink};
use jiji_model::image::{Image, Platform};
use jiji_model::name::{RepositoryName, SecretName, ServiceName, TagName};
use jiji_model::project::{Build, Registry, Source as ImageSource};
use jiji_model::reference::Reference;

use super::needs::{self, Needs};
use super::{Ship, ShipError, Source};
use crate::build::execute::Local;
use crate::build::{
    BuildError, BuildRequest, Builder, Built, Changes, Checked, DEFAULT_EPOCH, Elsewhere, Registries, ServiceImage,
    services,
};
use crate::deploy::{Images, SavedError, Seeds};
use crate::lockfile::{BaseKey, Target};
use crate::plugin::Proxy;
use crate::registry::{Depth, Push, Repository};
use crate::secrets::Redactor;

/// After which a clock says another second.
const ANOTHER_SECOND: std::time::Duration = std::time::Duration::from_millis(1100);

/// The reference with a digest that a plugin is told for each of its images, by architecture in Go's words.
pub(super) type Pins = BTreeMap<String, BTreeMap<String, Reference>>;

/// What a push did for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Where the image is now.
    pub reference: Reference,
    /// Bytes that were sent.
    pub sent_bytes: u64,
}

/// Hands on what a build says without the values of secrets: a step may print those that it mounts.
struct Redacting {
    sink: Arc<dyn Sink>,
    redactor: Redactor,
}

impl Sink for Redacting {
    fn emit(&self, record: Record) {
        let text = self.redactor.redact(&record.text);
        self.sink.emit(Record { text, ..record });
    }
}

impl Ship {
    /// The images of all services for these platforms, built or found.
    ///
    /// # Errors
    /// The first that failed. Those before it are in the store.
    pub async fn images(&self, source: Source, platforms: &[Platform]) -> Result<Images, ShipError> {
        self.images_of(source, platforms, |_| true).await
    }

    /// The images of those services that `wanted` names.
    ///
    /// # Errors
    /// As [`Self::images`].
    pub async fn images_of(
        &self,
        source: Source,
        platforms: &[Platform],
        wanted: impl Fn(&ServiceName) -> bool,
    ) -> Result<Images, ShipError> {
        let mut images = Images::new();
        for platform in platforms {
            let names = self.project.services.keys().filter(|name| wanted(name));
            let (order, needs) = match source {
                Source::Build => self.order(names, platform)?,
                Source::Lock => (names.cloned().collect(), Needs::new()),
            };
            let mut made = BTreeMap::new();
            for name in order {
                let image = match (&self.project.services[&name].source, source) {
                    (ImageSource::Build(build), Source::Build) => {
                        let from = self.given_services(needs.get(&name), &made);
                        self.build(self.request(&name, build, platform, from)).await?
                    }
                    (ImageSource::Build(_), Source::Lock) => self.built(&name, platform).await?,
                    // Whoever takes from it pulls what it needs.
                    (ImageSource::Image(_), _) if !wanted(&name) => continue,
                    (ImageSource::Image(text), _) => self.pulled(&name, text, platform).await?,
                };
                if wanted(&name) {
                    images.entry(name.clone()).or_default().push(image.clone());
                }
                made.insert(name, image);
            }
        }
        Ok(images)
    }

    /// Services in the order in which they are built, with those whose images they are made from.
    fn order<'a>(
        &'a self,
        wanted: impl IntoIterator<Item = &'a ServiceName>,
        platform: &Platform,
    ) -> Result<(Vec<ServiceName>, Needs), ShipError> {
        needs::order(self.project.services.keys(), wanted, &mut |name| match &self.project.services[name].source {
            ImageSource::Image(_) => Ok(BTreeSet::new()),
            ImageSource::Build(build) => services(&self.request(name, build, platform, BTreeMap::new()))
                .map_err(|cause| ShipError::Build { service: name.clone(), cause: Box::new(cause) }),
        })
    }

    /// The images of these services, for a recipe that names them.
    fn given_services(
        &self,
        names: Option<&BTreeSet<String>>,
        made: &BTreeMap<ServiceName, Image>,
    ) -> BTreeMap<String, ServiceImage> {
        let image = |name: &String| {
            let (name, service) = self.project.services.iter().find(|(service, _)| service.as_str() == name)?;
            match &service.source {
                ImageSource::Image(text) => Some(ServiceImage::Named(text.clone())),
                ImageSource::Build(_) => made.get(name).cloned().map(ServiceImage::Built),
            }
        };
        let names = names.into_iter().flatten();
        names.filter_map(|name| Some((name.clone(), image(name)?))).collect()
    }

    fn target(&self, service: &ServiceName, platform: &Platform) -> Target {
        Target { service: service.clone(), environment: self.project.environment.clone(), platform: platform.clone() }
    }

    pub(super) fn repository(&self, service: &ServiceName) -> RepositoryName {
        // Names of projects and services may hold runs of separators that a repository's may not; the digest of the name is none.
        let name = format!("{}/{service}", self.project.name);
        RepositoryName::new(name.clone()).unwrap_or_else(|_| {
            let name = format!("jiji/{}", Digest::of(name).short());
            RepositoryName::new(name).expect("hexadecimal digits are a repository's name")
        })
    }

    fn request(
        &self,
        service: &ServiceName,
        build: &Build,
        platform: &Platform,
        services: BTreeMap<String, ServiceImage>,
    ) -> BuildRequest {
        let context = self.root.join(&build.context);
        let given = |name: &SecretName| Some((name.to_string(), self.secrets.get(name)?.clone()));
        let secrets = build.secrets.iter().filter_map(given).collect();
        BuildRequest {
            target: self.target(service, platform),
            repository: self.repository(service),
            file: context.join(&build.file),
            frontend: build.frontend,
            file_name: Path::new(&build.context)
                .join(&build.file)
                .components()
                .filter(|part| *part != Component::CurDir)
                .collect::<PathBuf>()
                .display()
                .to_string(),
            context,
            args: build.args.clone(),
            secrets,
            ssh: build
                .ssh
                .iter()
                .filter_map(|id| Some((id.clone(), self.given.agents.get(id).or(self.given.agent.as_ref())?.clone())))
                .chain(self.given.agents.clone())
                .collect(),
            contexts: build
                .contexts
                .iter()
                .map(|(name, context)| (name.clone(), context.clone().below(&self.root)))
                .chain(self.given.contexts.clone())
                .collect(),
            services,
            stage: build.target.clone(),
            platform: platform.clone(),
            epoch: DEFAULT_EPOCH,
            compression: build.compression,
            locked: self.locked,
            renew: self.renew,
            explain: self.explain,
            threads: self.threads,
        }
    }

    async fn build(&self, request: BuildRequest) -> Result<Image, ShipError> {
        let service = request.target.service.clone();
        self.sink.emit(Record::new("build.started", format!("building {service}")).service(&service));
        let (Built { image, steps }, changes) = self.build_now(request).await?;
        if !self.locked {
            self.lock.update_build(|section| changes.apply(section))?;
        }
        let text = format!(
            "built {service} {}, {} of {} steps from the cache",
            image.manifest.digest.short(),
            steps.cached,
            steps.total
        );
        let data = serde_json::json!({
            "image": image.manifest.digest, "size": image.size(), "steps": steps.total, "cached": steps.cached,
        });
        self.sink.emit(Record::new("build.done", text).service(&service).with(data));
        Ok(image)
    }

    /// Builds, and says what the lock should say of it.
    async fn build_now(&self, request: BuildRequest) -> Result<(Built, Changes), ShipError> {
        let mut section = self.lock.read()?.build;
        let service = request.target.service.clone();
        let work = move |builder: &Builder<'_>| {
            let built = builder.build(&request, &mut section)?;
            Ok((built, Changes::of(&request.target, &section)))
        };
        self.with_builder(service, work).await
    }

    /// Does something with a builder, on a thread that may block.
    async fn with_builder<T: Send + 'static>(
        &self,
        service: ServiceName,
        work: impl FnOnce(&Builder<'_>) -> Result<T, BuildError> + Send + 'static,
    ) -> Result<T, ShipError> {
        let (store, client) = (self.store.clone(), self.client.clone());
        let sink = Redacting { sink: Arc::clone(&self.sink), redactor: self.secrets.redactor() };
        let (handle, threads) = (tokio::runtime::Handle::current(), self.threads);
        let task = tokio::task::spawn_blocking(move || {
            work(&Builder {
                store: &store,
                sources: &Registries::new(&client, handle),
                executor: &Local::new(threads),
                events: &sink,
            })
        });
        let done = task.await.map_err(|_| ShipError::Thread)?;
        done.map_err(|cause| ShipError::Build { service, cause: Box::new(cause) })
    }

    /// Builds those services that `wanted` names, each step twice, the second time elsewhere, and says what differs. `today` is how this day
    /// is written. Services that they are made from are built once.
    ///
    /// # Errors
    /// The first that failed.
    pub async fn check(
        &self,
        platform: &Platform,
        wanted: impl Fn(&ServiceName) -> bool,
        today: &[String],
    ) -> Result<BTreeMap<ServiceName, Checked>, ShipError> {
        let names = self.project.services.keys().filter(|name| wanted(name));
        let (order, needs) = self.order(names, platform)?;
        let (mut checked, mut made) = (BTreeMap::new(), BTreeMap::new());
        for name in order {
            let ImageSource::Build(build) = &self.project.services[&name].source else { continue };
            let request = self.request(&name, build, platform, self.given_services(needs.get(&name), &made));
            if !wanted(&name) {
                made.insert(name, self.build_now(request).await?.0.image);
                continue;
            }
            self.sink.emit(Record::new("build.started", format!("checking {name}")).service(&name));
            let (section, today, threads) = (self.lock.read()?.build, today.to_vec(), self.threads);
            let work = move |builder: &Builder<'_>| {
                let elsewhere = Elsewhere { executor: &Local::new(threads).elsewhere(), wait: ANOTHER_SECOND, today };
                builder.check(&request, &section, &elsewhere)
            };
            let done = self.with_builder(name.clone(), work).await?;
            made.insert(name.clone(), done.image.clone());
            checked.insert(name, done);
        }
        Ok(checked)
    }

    /// The image that was built last, as the lock says: from the store, or from the registry it was pushed to.
    async fn built(&self, service: &ServiceName, platform: &Platform) -> Result<Image, ShipError> {
        let lock = self.lock.read()?;
        let digest = lock.build.images.get(&self.target(service, platform));
        let not_built = || ShipError::NotBuilt { service: service.clone() };
        let digest = digest.ok_or_else(not_built)?;
        let from = self.built_from(service, digest)?.ok_or_else(not_built)?;
        let image = self.client.pull(&from, digest, platform, &self.store, Depth::ManifestOnly).await?;
        Ok(Image { repository: self.repository(service).to_string(), ..image })
    }

    /// Where an image that was built is to be had: in the registry that it was pushed to or, without one, in the store. None where nobody
    /// has it.
    pub(super) fn built_from(&self, service: &ServiceName, digest: &Digest) -> Result<Option<Reference>, ShipError> {
        let repository = self.repository(service);
        Ok(match &self.project.builder.registry {
            Some(registry) => Some(pushed_to(registry, &repository)),
            // No registry is asked: the store has it, or nobody has.
            None if self.store.has(digest)?.is_none() => None,
            None => Some(Reference { registry: "localhost".to_owned(), repository, tag: None, digest: None }),
        })
    }

    /// The image of a registry that a service names.
    async fn pulled(&self, service: &ServiceName, text: &str, platform: &Platform) -> Result<Image, ShipError> {
        let reference: Reference =
            text.parse().map_err(|cause| ShipError::Reference { service: service.clone(), cause })?;
        let digest = self.pinned(&reference, platform).await?;
        let image = self.client.pull(&reference, &digest, platform, &self.store, Depth::ManifestOnly).await?;
        Ok(Image { repository: reference.repository.to_string(), ..image })
    }

    /// What a reference means: its digest, what the lock says, or what the registry says now, which the lock says from then on.
    async fn pinned(&self, reference: &Reference, platform: &Platform) -> Result<Digest, ShipError> {
        if let Some(digest) = reference.digest {
            return Ok(digest);
        }
        let key = base_key(reference, platform);
        if let Some(digest) = self.lock.read()?.build.bases.get(&key) {
            return Ok(*digest);
        }
        if self.locked {
            return Err(ShipError::NotLocked { reference: key.reference });
        }
        let digest = self.client.resolve(reference, platform).await?;
        let lock = self.lock.update_build(|section| {
            section.bases.entry(key.clone()).or_insert(digest);
        })?;
        Ok(lock.build.bases.get(&key).copied().unwrap_or(digest))
    }

    /// Whether a reference may mean what a kept plan says: the digest that it has itself or in the lock, and where it has none, any.
    pub(super) async fn agrees(
        &self,
        reference: &Reference,
        platform: &Platform,
        found: Digest,
    ) -> Result<(), ShipError> {
        let known = match reference.digest {
            Some(digest) => Some(digest),
            None => self.lock.read()?.build.bases.get(&base_key(reference, platform)).copied(),
        };
        let Some(known) = known.filter(|known| *known != found) else { return Ok(()) };
        // An index's digest names an image too.
        let image = self.client.pull(reference, &known, platform, &self.store, Depth::ManifestOnly).await?;
        if image.manifest.digest == found {
            return Ok(());
        }
        Err(SavedError::Pinned { reference: reference.to_string(), found, pinned: known }.into())
    }

    /// The images that the proxy plugin runs, for these platforms: what it is told, and what hosts are brought. Those of a `kept` plan are
    /// taken where it has them.
    pub(super) async fn seeds(
        &self,
        proxy: &Proxy,
        platforms: &[Platform],
        kept: Option<&Seeds>,
    ) -> Result<(Pins, Seeds), ShipError> {
        let (mut pins, mut seeds) = (Pins::new(), Seeds::new());
        for platform in platforms {
            for (name, reference) in proxy.images() {
                let digest = match kept.and_then(|kept| seeded(kept, reference, platform)) {
                    Some(digest) => {
                        self.agrees(reference, platform, digest).await?;
                        digest
                    }
                    None => self.pinned(reference, platform).await?,
                };
                let image = self.client.pull(reference, &digest, platform, &self.store, Depth::ManifestOnly).await?;
                // An index's digest names an image too; the plugin is told the image's own.
                let at = reference.at(image.manifest.digest);
                let image = Image { repository: reference.repository.to_string(), ..image };
                seeds.entry(at.to_string()).or_default().push(image);
                pins.entry(platform.architecture.clone()).or_default().insert(name.clone(), at);
            }
        }
        Ok((pins, seeds))
    }

    /// Where an image can be had: from the registry that names it, or from the one it was pushed to.
    pub(super) fn origin(&self, image: &Image, seeds: &Seeds) -> Option<Reference> {
        let of_plugin = seeds.iter().find(|(_, images)| images.iter().any(|seed| seed.id() == image.id()));
        if let Some(reference) = of_plugin.and_then(|(reference, _)| reference.parse().ok()) {
            return Some(reference);
        }
        let of_service = self.project.services.values().find_map(|service| match &service.source {
            ImageSource::Image(text) => {
                text.parse::<Reference>().ok().filter(|reference| reference.repository.as_str() == image.repository)
            }
            ImageSource::Build(_) => None,
        });
        let pushed = || {
            let registry = self.project.builder.registry.as_ref()?;
            Some(pushed_to(registry, &RepositoryName::new(image.repository.clone()).ok()?))
        };
        of_service.or_else(pushed)
    }

    /// Pushes built images to the project's registry: what it lacks.
    ///
    /// # Errors
    /// [`ShipError::NoRegistry`], and what the registry says.
    pub async fn push(&self, images: &Images) -> Result<BTreeMap<ServiceName, Vec<Pushed>>, ShipError> {
        let registry = self.project.builder.registry.as_ref().ok_or(ShipError::NoRegistry)?;
        let mut pushed: BTreeMap<ServiceName, Vec<Pushed>> = BTreeMap::new();
        for (service, images) in images {
            if !matches!(self.project.services[service].source, ImageSource::Build(_)) {
                continue;
            }
            for image in images {
                let reference = pushed_to(registry, &self.repository(service));
                let to = Repository { server: registry.server.clone(), name: reference.repository.clone() };
                // A tag for people and for the registry's own garbage collection, which takes what no tag names.
                let tag = TagName::new(image.manifest.digest.short()).expect("hexadecimal digits are a tag");
                let push = Push { image, to: &to, tag: Some(&tag), bases: &[] };
                let report = self.client.push(push, &self.store).await?;
                let text = match report.sent_bytes {
                    0 => format!("{reference} has {service} already"),
                    sent => format!("pushed {service} to {reference}, {}", jiji_model::event::bytes(sent)),
                };
                self.sink.emit(Record::new("push.done", text).service(service).with(serde_json::json!({
                    "sent_bytes": report.sent_bytes, "sent": report.sent, "present": report.present,
                })));
                let done = Pushed { reference: reference.at(image.manifest.digest), sent_bytes: report.sent_bytes };
                pushed.entry(service.clone()).or_default().push(done);
            }
        }
        Ok(pushed)
    }
}

/// Under what the lock has a reference, spelled as builds spell it: no tag means `latest`.
fn base_key(reference: &Reference, platform: &Platform) -> BaseKey {
    let latest = || TagName::new("latest").expect("it is a tag");
    let spelled = Reference { tag: Some(reference.tag.clone().unwrap_or_else(latest)), ..reference.clone() };
    BaseKey { reference: spelled.to_string(), platform: platform.clone() }
}

/// The digest of the image that seeds have for a reference.
fn seeded(seeds: &Seeds, wanted: &Reference, platform: &Platform) -> Option<Digest> {
    let mut found = seeds.iter().filter(|(reference, _)| {
        reference
            .parse::<Reference>()
            .is_ok_and(|found| found.registry == wanted.registry && found.repository == wanted.repository)
    });
    found.find_map(|(_, images)| {
        let image = images.iter().find(|image| image.platform == *platform)?;
        Some(image.manifest.digest)
    })
}

/// Where a project's registry has a repository of jiji's.
fn pushed_to(registry: &Registry, repository: &RepositoryName) -> Reference {
    let name = match &registry.namespace {
        Some(namespace) => {
            RepositoryName::new(format!("{namespace}/{repository}")).unwrap_or_else(|_| repository.clone())
        }
        None => repository.clone(),
    };
    Reference { registry: registry.server.authority.clone(), repository: name, tag: None, digest: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use jiji_model::secret::Secret;

    use super::*;

    struct Kept(Mutex<Vec<String>>);

    impl Sink for Kept {
        fn emit(&self, record: Record) {
            self.0.lock().expect("nobody panicked").push(record.text);
        }
    }

    #[test]
    fn a_secret_that_a_step_prints_is_not_told() {
        let name = SecretName::new("NPM_TOKEN").expect("a name");
        let kept = Arc::new(Kept(Mutex::default()));
        let sink: Arc<dyn Sink> = Arc::clone(&kept) as Arc<dyn Sink>;
        let redactor = Redactor::new(&BTreeMap::from([(name, Secret::new("hunter2hunter2"))]));
        Redacting { sink, redactor }.emit(Record::new("build.output", "token=hunter2hunter2 ok"));
        assert_eq!(*kept.0.lock().expect("nobody panicked"), ["token=[NPM_TOKEN] ok"]);
    }
}
