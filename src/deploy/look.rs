//! What the core asks of every host, and the answers in a form that planning can use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiji_model::image::{Image, ImageId};
use jiji_model::name::{HostName, SecretName, ServiceName};
use jiji_model::observation::{Answer, ContainerFacts, EngineFacts, HostFacts, NetworkFacts, Observation, Query, Want};
use jiji_model::plan::{LABEL_SCOPE, NETWORK};
use jiji_model::project::{Project, Service};
use jiji_model::transaction::{HostRecords, roster};

use super::{Images, PlanError, Seeds, preflight};

pub(super) const HOST: &str = "core.host";
const OURS: &str = "core.containers";
const SHARED: &str = "core.shared";
const NET: &str = "core.network";
pub(super) const RECORDS: &str = "core.records";
const IMAGES: &str = "core.images";
const SECRETS: &str = "core.secrets.";

/// What is not known where the engine does not answer.
pub(super) const ENGINE: &str = "its engine";

/// The scope of containers that projects share.
pub(super) const SHARED_SCOPE: &str = "*";

pub(super) fn want(id: impl Into<String>, query: Query) -> Want {
    Want { id: id.into(), query }
}

fn labelled(scope: &str) -> Query {
    Query::Containers { labels: BTreeMap::from([(LABEL_SCOPE.to_owned(), scope.to_owned())]) }
}

/// What the core asks of `host` before it plans. Secrets must have been sent before, where services have some.
pub fn wants(project: &Project, host: &HostName, images: &Images, seeds: &Seeds) -> Vec<Want> {
    let services: Vec<_> = project.services_on(host).collect();
    wants_for(project, &services, images, seeds)
}

/// The same for a host that runs these services: see [`Project::placement`].
pub fn wants_for(
    project: &Project,
    services: &[(&ServiceName, &Service)],
    images: &Images,
    seeds: &Seeds,
) -> Vec<Want> {
    let of_services = services.iter().filter_map(|(name, _)| images.get(*name)).flatten();
    let wanted: BTreeSet<ImageId> = of_services.chain(seeds.values().flatten()).map(Image::id).collect();
    let mut wants = wants_of(&project.scope(), wanted);
    wants.extend(
        services
            .iter()
            .filter(|(_, service)| !service.environment.secrets.is_empty())
            .map(|(name, service)| secrets_want(name, service.environment.secrets.clone())),
    );
    wants
}

/// What the core asks of every host, whatever runs there.
pub(super) fn wants_of(scope: &str, images: BTreeSet<ImageId>) -> Vec<Want> {
    let mut wants = vec![
        want(HOST, Query::Host),
        preflight::want(),
        want(OURS, labelled(scope)),
        want(SHARED, labelled(SHARED_SCOPE)),
        want(NET, Query::Network { name: NETWORK.to_owned() }),
        want(RECORDS, Query::Records { scope: scope.to_owned() }),
    ];
    if !images.is_empty() {
        wants.push(images_want(images));
    }
    wants
}

pub(super) fn images_want(images: BTreeSet<ImageId>) -> Want {
    let images = images.into_iter().collect();
    want(IMAGES, Query::Images { images })
}

pub(super) fn secrets_want(service: &ServiceName, mut names: Vec<SecretName>) -> Want {
    names.sort();
    names.dedup();
    want(format!("{SECRETS}{service}"), Query::SecretsMac { names })
}

/// Whether a want can be answered only after secrets were sent.
pub fn needs_secrets(want: &Want) -> bool {
    matches!(want.query, Query::SecretsMac { .. })
}

/// What is asked where nothing is to be planned: the host itself, and what projects share there.
pub(super) fn wants_of_host() -> Vec<Want> {
    vec![want(HOST, Query::Host), preflight::want(), want(SHARED, labelled(SHARED_SCOPE))]
}

/// The project's containers on a host, as far as they are known.
pub(super) fn own_containers<'a>(observation: &'a Observation, host: &HostName) -> &'a [ContainerFacts] {
    containers(observation.answer(host, OURS))
}

/// The containers that projects share on a host, as far as they are known.
pub(super) fn shared_containers<'a>(observation: &'a Observation, host: &HostName) -> &'a [ContainerFacts] {
    containers(observation.answer(host, SHARED))
}

fn containers(answer: Option<&Answer>) -> &[ContainerFacts] {
    match answer {
        Some(Answer::Containers(containers)) => containers,
        _ => &[],
    }
}

/// Whether a host's engine said that it has an image.
pub(super) fn has_image(answers: &BTreeMap<String, Answer>, image: &Image) -> bool {
    matches!(answers.get(IMAGES), Some(Answer::Images(images)) if images.contains(&image.id()))
}

/// The records of every host that answered with some: leases, transactions, releases.
pub fn records(observation: &Observation) -> BTreeMap<HostName, HostRecords> {
    let hosts = observation.hosts.iter();
    hosts
        .filter_map(|(host, answers)| match answers.get(RECORDS) {
            Some(Answer::Records(records)) => Some((host.clone(), (**records).clone())),
            _ => None,
        })
        .collect()
}

/// A host's architecture in Go's words, where it told it.
pub(super) fn architecture<'a>(observation: &'a Observation, host: &HostName) -> Option<&'a str> {
    match observation.answer(host, HOST) {
        Some(Answer::Host(facts)) => Some(&facts.architecture),
        _ => None,
    }
}

/// The keyed digest of a service's secrets as they were sent now.
pub(super) fn mac<'a>(observation: &'a Observation, host: &HostName, service: &ServiceName) -> Option<&'a str> {
    match observation.answer(host, &format!("{SECRETS}{service}")) {
        Some(Answer::Mac(mac)) => Some(mac),
        _ => None,
    }
}

/// One host as planning sees it.
pub(super) struct Look<'a> {
    pub(super) facts: &'a HostFacts,
    pub(super) engine: &'a EngineFacts,
    pub(super) ours: &'a [ContainerFacts],
    pub(super) shared: &'a [ContainerFacts],
    pub(super) network: Option<&'a NetworkFacts>,
    pub(super) records: &'a HostRecords,
    images: &'a [ImageId],
    answers: &'a BTreeMap<String, Answer>,
}

impl<'a> Look<'a> {
    pub(super) fn of(observation: &'a Observation, host: &HostName) -> Result<Self, PlanError> {
        let unknown = |what, answer: Option<&Answer>| PlanError::Unknown {
            host: host.clone(),
            what,
            cause: match answer {
                Some(Answer::Failed(cause)) => Some(cause.clone()),
                _ => None,
            },
        };
        let answers = observation.hosts.get(host).ok_or_else(|| unknown("everything about it", None))?;
        let facts = match answers.get(HOST) {
            Some(Answer::Host(facts)) => facts,
            other => return Err(unknown(ENGINE, other)),
        };
        // Without an engine the questions about containers have no answers, and those are not the reason.
        let engine = facts.engine.as_ref().ok_or_else(|| PlanError::NoEngine { host: host.clone() })?;
        let containers = |id| match answers.get(id) {
            Some(Answer::Containers(containers)) => Ok(containers.as_slice()),
            other => Err(unknown("what runs there", other)),
        };
        let network = match answers.get(NET) {
            Some(Answer::Network(network)) => Some(network),
            Some(Answer::Absent) => None,
            other => return Err(unknown("its network `jiji`", other)),
        };
        let records: &HostRecords = match answers.get(RECORDS) {
            Some(Answer::Records(records)) => records,
            other => return Err(unknown("what jiji recorded there", other)),
        };
        if let Some(transaction) = records.transaction.as_ref().filter(|open| open.is_open()) {
            return Err(PlanError::Open { host: host.clone(), transaction: transaction.begin.transaction.clone() });
        }
        let images = match answers.get(IMAGES) {
            Some(Answer::Images(images)) => images.as_slice(),
            None => &[],
            other => return Err(unknown("which images it has", other)),
        };
        Ok(Self {
            facts,
            engine,
            ours: containers(OURS)?,
            shared: containers(SHARED)?,
            network,
            records,
            images,
            answers,
        })
    }

    /// Whether the engine has an image.
    pub(super) fn has(&self, image: &Image) -> bool {
        self.images.contains(&image.id())
    }

    /// Those of the wanted images that the engine has.
    pub(super) fn images(&self) -> &'a [ImageId] {
        self.images
    }

    /// The keyed digest of a service's secrets as they were sent now.
    pub(super) fn secrets(&self, service: &ServiceName) -> Option<&str> {
        match self.answers.get(&format!("{SECRETS}{service}")) {
            Some(Answer::Mac(mac)) => Some(mac),
            _ => None,
        }
    }

    /// The number of the subnet that the host's network has already, or the subnet that is none of jiji's.
    pub(super) fn numbered(&self) -> Option<Result<u16, String>> {
        let subnet = self.network?.subnet.clone().unwrap_or_default();
        let first = subnet.strip_suffix("/25").and_then(|first| first.parse().ok());
        let number = first.and_then(roster::number_of).filter(|number| roster::subnet(*number) == subnet);
        Some(number.ok_or(subnet))
    }

    /// Addresses that somebody has.
    pub(super) fn used(&self) -> BTreeSet<Ipv4Addr> {
        let held = self.network.into_iter().flat_map(|network| &network.used);
        let containers = self.ours.iter().chain(self.shared);
        held.chain(containers.flat_map(|container| container.addresses.values())).copied().collect()
    }
}
