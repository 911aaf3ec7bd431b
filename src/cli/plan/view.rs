//! What a plan shows, as plain data: the one source of all its forms, and itself the JSON document.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::deploy::{EnvKind, Reason, RouteKind, ServiceChange};
use crate::ship::Planned;

/// What a ship would change. Written by `jiji plan --json` as one object on standard output.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(title = "jiji plan --json", deny_unknown_fields)]
pub struct View {
    /// Version of this document: 1. A field that is added does not change it; one that goes or means something else does.
    pub v: u32,
    /// The project, and after a dot its environment.
    pub project: String,
    /// The plan's name: what `jiji apply FILE --digest` compares.
    pub digest: String,
    /// Whether anything changes.
    pub changed: bool,
    /// All hosts together.
    pub total: Total,
    /// The images of services, by service: one manifest digest for each platform.
    pub images: BTreeMap<String, Vec<String>>,
    /// Each host, in the order of names.
    pub hosts: Vec<HostView>,
    /// What was left alone.
    pub notes: Vec<Note>,
}

/// Sums.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Total {
    /// Hosts that were looked at.
    pub hosts: usize,
    /// Hosts with steps.
    pub changed: usize,
    /// Steps on all hosts.
    pub steps: usize,
    /// Bytes of images to send to all hosts.
    pub bytes: u64,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HostView {
    /// The server's name.
    pub host: String,
    /// Bytes of images to send: of the blobs that it lacks.
    pub bytes: u64,
    /// Services that stay as they are.
    pub unchanged: usize,
    /// Services that change.
    pub services: Vec<ServiceView>,
    /// What would be done, in order.
    pub steps: Vec<StepView>,
}

/// A service that changes on a host.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ServiceView {
    /// The service.
    pub service: String,
    /// What happens to it.
    pub change: Kind,
    /// Why a container is replaced: `first`, `image`, `specification`, `secrets`, `not_running`, `address`.
    pub why: Vec<String>,
    /// Manifest digest of the image it ran.
    pub from: Option<String>,
    /// Manifest digest of the image it will run.
    pub to: Option<String>,
    /// The container that will run it.
    pub container: Option<String>,
    /// Variables that change. Values are not told.
    pub env: Vec<EnvView>,
    /// Other parts of the container's specification that change, such as `command`.
    pub parts: Vec<String>,
    /// Its route, where that changes.
    pub route: Option<RouteView>,
    /// Containers that go.
    pub removed: Vec<String>,
}

/// What happens to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It has not run there.
    Starts,
    /// A new container takes over.
    Changes,
    /// It runs as it should, and left-over containers of it go, or its route is put right.
    Tidied,
    /// It goes.
    Goes,
}

/// A variable that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct EnvView {
    /// Its name.
    pub name: String,
    /// `added`, `changed`, `removed`; `possible` for secrets of which at least one has another value, since hosts keep one keyed digest
    /// for all of a container.
    pub change: String,
    /// Whether its value is a secret's.
    pub secret: bool,
}

/// How a route changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RouteView {
    /// `added`, `moved`, `changed`, `removed`.
    pub change: String,
    /// What is routed: host and path; `*/` for everything.
    pub at: Vec<String>,
    /// Whether the proxy speaks TLS for it.
    pub tls: bool,
    /// Where requests go, `ADDRESS:PORT`.
    pub to: Vec<String>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct StepView {
    /// `boot`, `prepare`, `publish`, `cutover`, `withdraw`, `drain`, `finalize`.
    pub phase: String,
    /// What is done.
    pub title: String,
}

/// What was left alone on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Note {
    /// The server's name.
    pub host: String,
    /// A sentence.
    pub text: String,
}

impl View {
    /// What `planned` shows.
    pub fn of(project: &str, planned: &Planned) -> Self {
        let changes = &planned.changes;
        let hosts: Vec<HostView> = changes
            .hosts
            .iter()
            .map(|(host, services)| {
                let shown: Vec<ServiceView> = services.iter().filter_map(service).collect();
                let steps = changes.steps.get(host).into_iter().flatten();
                HostView {
                    host: host.to_string(),
                    bytes: changes.bytes.get(host).copied().unwrap_or_default(),
                    unchanged: services.len() - shown.len(),
                    services: shown,
                    steps: steps
                        .map(|(phase, title)| StepView { phase: phase.to_string(), title: title.clone() })
                        .collect(),
                }
            })
            .collect();
        let images = planned.images.iter().map(|(service, images)| {
            (service.to_string(), images.iter().map(|image| image.manifest.digest.to_string()).collect())
        });
        let note = |(host, text): &(_, String)| Note { host: ToString::to_string(host), text: text.clone() };
        Self {
            v: 1,
            project: project.to_owned(),
            digest: planned.plan.digest().to_string(),
            changed: !planned.plan.is_empty(),
            total: Total {
                hosts: hosts.len(),
                changed: hosts.iter().filter(|host| !host.steps.is_empty()).count(),
                steps: hosts.iter().map(|host| host.steps.len()).sum(),
                bytes: hosts.iter().map(|host| host.bytes).sum(),
            },
            images: images.collect(),
            hosts,
            notes: planned.notes.iter().map(note).collect(),
        }
    }

    /// The document, one line.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("texts and numbers are JSON");
        text.push('\n');
        text
    }

    /// Hosts to which the same happens, together, in the order of their first. What differs from host to host in any case (names and
    /// addresses of containers) does not count.
    pub fn alike(&self) -> Vec<Vec<&HostView>> {
        let mut groups: Vec<Vec<&HostView>> = Vec::new();
        let mut index: BTreeMap<String, usize> = BTreeMap::new();
        for host in &self.hosts {
            let key = host.key();
            let at = *index.entry(key).or_insert(groups.len());
            match groups.get_mut(at) {
                Some(group) => group.push(host),
                None => groups.push(vec![host]),
            }
        }
        groups
    }
}

impl HostView {
    fn key(&self) -> String {
        let services: Vec<ServiceView> = self
            .services
            .iter()
            .map(|service| ServiceView {
                container: None,
                removed: vec![String::new(); service.removed.len()],
                route: service.route.as_ref().map(|route| RouteView { to: Vec::new(), ..route.clone() }),
                ..service.clone()
            })
            .collect();
        let phases: Vec<&str> = self.steps.iter().map(|step| step.phase.as_str()).collect();
        serde_json::to_string(&(services, phases, self.bytes, self.unchanged)).expect("texts and numbers are JSON")
    }
}

/// A service as it is shown; none where nothing of it changes.
fn service(change: &ServiceChange) -> Option<ServiceView> {
    let kind = match (&change.to, &change.from) {
        (None, _) => Kind::Goes,
        (Some(_), None) => Kind::Starts,
        (Some(_), Some(_)) if !change.why.is_empty() => Kind::Changes,
        (Some(_), Some(_)) if !change.removed.is_empty() || change.route.is_some() => Kind::Tidied,
        (Some(_), Some(_)) => return None,
    };
    let image = |id: &Option<jiji_model::image::ImageId>| id.as_ref().map(|id| id.manifest.to_string());
    let why = |reason: &Reason| match reason {
        Reason::First => "first",
        Reason::Image => "image",
        Reason::Specification => "specification",
        Reason::Secrets => "secrets",
        Reason::NotRunning => "not_running",
        Reason::Address => "address",
        Reason::Tampered => "tampered",
    };
    Some(ServiceView {
        service: change.service.to_string(),
        change: kind,
        why: change.why.iter().map(|reason| why(reason).to_owned()).collect(),
        from: image(&change.from),
        to: image(&change.to),
        container: change.container.as_ref().map(ToString::to_string),
        env: change
            .env
            .iter()
            .map(|env| EnvView {
                name: env.name.clone(),
                change: match env.kind {
                    EnvKind::Added => "added",
                    EnvKind::Changed => "changed",
                    EnvKind::Removed => "removed",
                    EnvKind::Possible => "possible",
                }
                .to_owned(),
                secret: env.secret,
            })
            .collect(),
        parts: change.parts.iter().map(|part| (*part).to_owned()).collect(),
        route: change.route.as_ref().map(|route| RouteView {
            change: match route.kind {
                RouteKind::Added => "added",
                RouteKind::Moved => "moved",
                RouteKind::Changed => "changed",
                RouteKind::Removed => "removed",
            }
            .to_owned(),
            at: route.at.clone(),
            tls: route.tls,
            to: route.to.clone(),
        }),
        removed: change.removed.iter().map(ToString::to_string).collect(),
    })
}

/// The sign that stands before a variable's name.
pub fn sign(change: &str) -> char {
    match change {
        "added" => '+',
        "removed" => '-',
        "changed" => '~',
        _ => '?',
    }
}

/// Twelve digits of a digest, for people.
pub fn short(digest: &str) -> &str {
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    digits.get(..12).unwrap_or(digits)
}

/// `1 step`, `2 steps`.
pub fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// Names of hosts, the first few of many.
pub fn hosts(group: &[&HostView], shown: usize) -> Vec<String> {
    let mut names: Vec<String> = group.iter().take(shown).map(|host| host.host.clone()).collect();
    if group.len() > shown {
        names.push(format!("{} more", group.len() - shown));
    }
    names
}

/// What happens to a service, in words: `changes (image, secrets)`.
pub fn words(service: &ServiceView) -> String {
    let what = match service.change {
        Kind::Starts => "starts",
        Kind::Changes => "changes",
        Kind::Tidied => "stays, and is tidied up",
        Kind::Goes => "goes",
    };
    let why: Vec<String> = service
        .why
        .iter()
        .filter(|reason| *reason != "first")
        .map(|reason| match reason.as_str() {
            "specification" if !service.parts.is_empty() => service.parts.join(", "),
            "specification" if service.env.iter().any(|env| env.change != "possible") => "environment".to_owned(),
            other => other.replace('_', " "),
        })
        .collect();
    if why.is_empty() { what.to_owned() } else { format!("{what} ({})", why.join(", ")) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_schema_of_a_plan_in_docs_is_the_definitions() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plan.schema.json");
        let mut fresh = serde_json::to_string_pretty(&schemars::schema_for!(super::View)).expect("a schema is JSON");
        fresh.push('\n');
        if std::env::var_os("JIJI_WRITE_DOCS").is_some() {
            std::fs::write(&path, &fresh).expect("docs can be written");
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == fresh, "run `cargo xtask docs` and commit what it writes");
    }
}
