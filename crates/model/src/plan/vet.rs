//! The one choke point between what a plugin asks for and what may happen.
//!
//! [`vet`] looks at a plugin's steps whole, before the first effect of any of them. It answers with every refusal at once. The core's
//! own steps are not vetted against grants, only for their form ([`vet_form`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Action, ContainerImage, ContainerSpec, Evidence, Grants, LABEL_SCOPE, NETWORK, Step, Word};
use crate::mesh::Interface;
use crate::name::{AbsPath, HostName, PluginName};
use crate::observation::{Query, Want};
use crate::project::{Check as ProbeCheck, MountSource};
use crate::transaction::roster::{CLUSTER, number_of};

/// Most steps that one plugin may answer with in one call.
pub const MAX_STEPS: usize = 256;
/// Most bytes of text in one step.
pub const MAX_STEP_BYTES: usize = 256 * 1024;
/// Longest timeout of a step in milliseconds.
pub const MAX_TIMEOUT_MS: u32 = 15 * 60 * 1000;
/// Most wants that one plugin may have in one round, for each service that it is asked about.
pub const MAX_WANTS: usize = 64;

/// One reason not to run a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step `{step}`: {reason}")]
pub struct Refusal {
    /// The step's title, or the want's id.
    pub step: String,
    /// What is wrong with it, for people.
    pub reason: String,
    /// Whether a grant would allow it; otherwise the form itself is wrong.
    pub grantable: bool,
}

/// Checks the steps that a plugin answered with for `hosts` against what it was granted.
///
/// # Errors
/// Every refusal, in the order of the steps.
pub fn vet(
    steps: &[Step],
    plugin: &PluginName,
    grants: &Grants,
    hosts: &BTreeSet<HostName>,
) -> Result<(), Vec<Refusal>> {
    let mut refusals = form(steps, hosts);
    for step in steps {
        let mut check = Check { step, plugin, grants, refusals: &mut refusals };
        check.action(&step.action);
        if let Some(undo) = &step.undo {
            check.action(undo);
        }
        for evidence in &step.evidence {
            let (Evidence::Logs { container, .. } | Evidence::State { container }) = evidence;
            check.readable(container.as_str());
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

/// Checks the form of any steps: known hosts, unique ids, acyclic edges, sizes.
///
/// # Errors
/// Every refusal.
pub fn vet_form(steps: &[Step], hosts: &BTreeSet<HostName>) -> Result<(), Vec<Refusal>> {
    let refusals = form(steps, hosts);
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

/// Checks what a plugin wants to know that is asked about so many services; 0 where it is asked about none.
///
/// # Errors
/// Every refusal.
pub fn vet_wants(wants: &[Want], grants: &Grants, services: usize) -> Result<(), Vec<Refusal>> {
    let mut refusals = Vec::new();
    let most = MAX_WANTS.saturating_mul(services.max(1));
    if wants.len() > most {
        refusals.push(refusal("wants", format!("{} wants in one round, at most {most}", wants.len()), false));
    }
    for want in wants {
        let allowed = match &want.query {
            Query::Host
            | Query::Containers { .. }
            | Query::Container { .. }
            | Query::Network { .. }
            | Query::Images { .. } => Ok(()),
            Query::Exec { container, argv, .. } => {
                if exec_granted(grants, container.as_str(), argv.iter().map(String::as_str)) {
                    Ok(())
                } else {
                    Err(format!("run `{}` in container `{container}`", argv.join(" ")))
                }
            }
            Query::Logs { container, .. } => {
                if grants.containers.iter().any(|name| name == container.as_str()) {
                    Ok(())
                } else {
                    Err(format!("read the log of container `{container}`"))
                }
            }
            Query::File { path, .. } => path_granted(grants, path).map_err(|()| format!("read `{path}`")),
            Query::PublicKey { path } => path_granted(grants, path).map_err(|()| format!("tell the key of `{path}`")),
            Query::Interface { name } if grants.interfaces.contains(name) => Ok(()),
            Query::Interface { name } => Err(format!("look at interface `{name}`")),
            Query::Http { address, .. } if reachable(*address) => Ok(()),
            Query::Http { address, .. } => {
                let reason = format!("`GET` from {address}, which is not this host's");
                refusals.push(refusal(&want.id, reason, false));
                continue;
            }
            Query::Blobs { .. }
            | Query::Records { .. }
            | Query::SecretsMac { .. }
            | Query::History { .. }
            | Query::Release { .. }
            | Query::Integrity { .. }
            | Query::Compare { .. } => Err("read jiji's own records".to_owned()),
            Query::Fitness | Query::Ports { .. } => Err("look at the host's processes and disks".to_owned()),
        };
        if let Err(what) = allowed {
            refusals.push(refusal(&want.id, format!("not granted: {what}"), true));
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

fn refusal(step: &str, reason: impl Into<String>, grantable: bool) -> Refusal {
    Refusal { step: step.to_owned(), reason: reason.into(), grantable }
}

fn form(steps: &[Step], hosts: &BTreeSet<HostName>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if steps.len() > MAX_STEPS * hosts.len().max(1) {
        refusals.push(refusal("plan", format!("{} steps for {} hosts", steps.len(), hosts.len()), false));
    }
    let mut ids = BTreeMap::new();
    for (index, step) in steps.iter().enumerate() {
        let mut refuse = |reason: String| refusals.push(refusal(&step.title, reason, false));
        if !hosts.contains(&step.host) {
            refuse(format!("unknown host `{}`", step.host));
        }
        if step.timeout_ms == 0 || step.timeout_ms > MAX_TIMEOUT_MS {
            refuse(format!("timeout of {} ms, expected 1 to {MAX_TIMEOUT_MS}", step.timeout_ms));
        }
        if json_length(step).is_none_or(|length| length > MAX_STEP_BYTES) {
            refuse(format!("more than {MAX_STEP_BYTES} bytes"));
        }
        if step.title.chars().any(char::is_control) {
            refuse("control characters in the title".to_owned());
        }
        if let Some(earlier) = ids.insert(step.id.as_str(), index) {
            refuse(format!("same id as step {}", earlier + 1));
        }
    }
    // Edges lead to steps that stand earlier in the list, so there is no cycle to look for.
    for (index, step) in steps.iter().enumerate() {
        for after in &step.after {
            if ids.get(after.as_str()).is_none_or(|&earlier| earlier >= index) {
                refusals.push(refusal(
                    &step.title,
                    format!("waits for `{after}`, which no earlier step has as its id"),
                    false,
                ));
            }
        }
    }
    refusals
}

/// How many bytes a value is as JSON, without writing it anywhere; none where it is none.
pub fn json_length<T: serde::Serialize>(value: &T) -> Option<usize> {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).ok().map(|()| count.0)
}

fn exec_granted<'a>(grants: &Grants, container: &str, argv: impl Iterator<Item = &'a str> + Clone) -> bool {
    grants.exec.iter().any(|grant| {
        let mut argv = argv.clone();
        grant.container == container
            && !grant.argv.is_empty()
            && grant.argv.iter().all(|want| argv.next() == Some(want))
    })
}

/// Whether a plugin may have an address asked: this host's own services and containers, and nothing behind them.
fn reachable(address: Ipv4Addr) -> bool {
    address.is_loopback() || number_of(address).is_some()
}

fn path_granted(grants: &Grants, path: &AbsPath) -> Result<(), ()> {
    if grants.paths.iter().any(|root| path.is_within(root)) { Ok(()) } else { Err(()) }
}

struct Check<'a> {
    step: &'a Step,
    plugin: &'a PluginName,
    grants: &'a Grants,
    refusals: &'a mut Vec<Refusal>,
}

impl Check<'_> {
    fn deny(&mut self, what: impl std::fmt::Display) {
        self.refusals.push(refusal(&self.step.title, format!("not granted: {what}"), true));
    }

    fn wrong(&mut self, what: impl Into<String>) {
        self.refusals.push(refusal(&self.step.title, what, false));
    }

    fn container(&mut self, name: &str) {
        if !self.grants.containers.iter().any(|granted| granted == name) {
            self.deny(format_args!("manage container `{name}`"));
        }
    }

    /// The plugin's own container, or the service's that the step is for: its log is evidence.
    fn readable(&mut self, name: &str) {
        if self.step.service.is_none() {
            self.container(name);
        }
    }

    fn path(&mut self, path: &AbsPath) {
        if path_granted(self.grants, path).is_err() {
            self.deny(format_args!("write `{path}`"));
        }
    }

    fn words<'w>(&mut self, words: impl IntoIterator<Item = &'w Word>) {
        for word in words {
            match word {
                Word::Lit(text) => {
                    if text.contains('\0') {
                        self.wrong("NUL in a word");
                    }
                }
                Word::Secret(name) => {
                    if !self.grants.secrets.contains(name) {
                        self.deny(format_args!("use secret `{name}`"));
                    }
                }
                Word::Output { .. } => {}
            }
        }
    }

    fn argv(words: &[Word]) -> Vec<&str> {
        // A word whose text is not known yet matches no granted text.
        words.iter().map(|word| if let Word::Lit(text) = word { text.as_str() } else { "\0" }).collect()
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Note { .. } => {}
            Action::NetworkEnsure { .. } => self.deny("change networks"),
            Action::ImageEnsure { .. } => self.deny("seed images"),
            Action::ImageRemove { .. } => self.deny("remove images"),
            Action::ContainerRun(spec) => self.run_container(spec),
            Action::ContainerStart { name } | Action::ContainerStop { name, .. } | Action::ContainerRemove { name } => {
                self.container(name.as_str())
            }
            Action::ContainerExec { container, argv, .. } => {
                self.words(argv);
                self.exec(container.as_str(), &Self::argv(argv));
            }
            Action::WaitProbe { container, probe, .. } | Action::Hold { container, probe, .. } => {
                self.container(container.as_str());
                if let ProbeCheck::Exec { argv } = &probe.check {
                    self.exec(container.as_str(), &argv.iter().map(String::as_str).collect::<Vec<_>>());
                }
            }
            Action::VolumeEnsure { name } => self.volume(name),
            Action::Directory { path, mode } => {
                self.path(path);
                self.mode(*mode);
            }
            Action::File { path, mode, content } => {
                self.path(path);
                self.mode(*mode);
                self.words(content);
            }
            Action::Remove { path } => self.path(path),
            Action::HttpWait { address, probe } => {
                if !reachable(*address) {
                    self.wrong(format!("`GET` from {address}, which is not this host's"));
                }
                if !matches!(probe.check, ProbeCheck::Http { .. }) {
                    self.wrong("an HTTP wait whose check is not HTTP");
                }
            }
            Action::KeypairEnsure { path } => self.path(path),
            Action::InterfaceEnsure(interface) => self.interface(interface),
            Action::InterfaceRemove { name } => self.interface_name(name),
            Action::Run { argv, stdin } => {
                self.words(argv.iter().chain(stdin));
                let plain = Self::argv(argv);
                let granted = self.grants.run.iter().any(|grant| {
                    !grant.is_empty()
                        && grant.len() <= plain.len()
                        && grant.iter().zip(&plain).all(|(want, have)| want == have)
                });
                if !granted {
                    self.deny(format_args!("run `{}` on the host", plain.join(" ").replace('\0', "…")));
                }
            }
            Action::Other { kind, .. } => self.wrong(format!("unknown action `{kind}`")),
        }
    }

    fn interface_name(&mut self, name: &str) {
        if !self.grants.interfaces.iter().any(|granted| granted == name) {
            self.deny(format_args!("manage interface `{name}`"));
        }
    }

    fn interface(&mut self, interface: &Interface) {
        self.interface_name(&interface.name);
        self.path(&interface.key);
        if !self.grants.udp_ports.contains(&interface.port) {
            self.deny(format_args!("open UDP port {}", interface.port));
        }
        if let Some(fault) = interface.fault() {
            self.wrong(fault);
        }
        // Whatever a plugin takes for the mesh's addresses: a host is never cut off from others.
        if let Some(foreign) = interface.cluster.iter().find(|all| !CLUSTER.iter().any(|own| own.contains(all))) {
            self.wrong(format!("{foreign} is none of the mesh's addresses"));
        }
    }

    fn exec(&mut self, container: &str, argv: &[&str]) {
        if !exec_granted(self.grants, container, argv.iter().copied()) {
            self.deny(format_args!("run `{}` in container `{container}`", argv.join(" ").replace('\0', "…")));
        }
    }

    fn mode(&mut self, mode: u32) {
        if mode & !0o777 != 0 {
            self.wrong(format!("mode {mode:o} has bits beyond the permissions"));
        }
    }

    fn volume(&mut self, name: &str) {
        if !self.grants.volumes.iter().any(|granted| granted == name) {
            self.deny(format_args!("use volume `{name}`"));
        }
    }

    fn image(&mut self, reference: &str) {
        match reference.split_once('@') {
            Some((repository, digest)) if digest.parse::<crate::digest::Digest>().is_ok() => {
                if !self.grants.images.iter().any(|granted| granted == repository) {
                    self.deny(format_args!("run image `{repository}`"));
                }
            }
            _ => self.wrong(format!("image `{reference}` is not pinned by digest")),
        }
    }

    fn run_container(&mut self, spec: &ContainerSpec) {
        self.container(spec.name.as_str());
        self.words(spec.env.values());
        match &spec.image {
            ContainerImage::Pinned { reference } => self.image(reference),
            ContainerImage::Seeded { .. } => self.deny("run a service's image"),
        }
        if spec.network != NETWORK {
            self.deny(format_args!("join network `{}`", spec.network));
        }
        if spec
            .labels
            .keys()
            .any(|key| key.starts_with("jiji.") && key != LABEL_SCOPE && key != super::LABEL_PLUGIN)
            || spec
                .labels
                .get(super::LABEL_PLUGIN)
                .is_some_and(|name| name != self.plugin.as_str())
            // Only the core says that a container belongs to a project.
            || spec.labels.get(LABEL_SCOPE).is_some_and(|scope| scope != "*")
        {
            self.wrong("labels of `jiji.` are the core's");
        }
        for publish in &spec.publish {
            if !self.grants.ports.contains(&publish.host_port) {
                self.deny(format_args!("publish port {}", publish.host_port));
            }
        }
        for mount in &spec.mounts {
            match &mount.source {
                MountSource::Volume(name) => self.volume(name),
                MountSource::Bind(path) => self.path(path),
                MountSource::Tmpfs => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ContainerName;
    use crate::plan::{ExecGrant, Phase};

    fn host() -> HostName {
        HostName::new("one").expect("a name")
    }

    fn check(action: Action, grants: &Grants) -> Result<(), Vec<Refusal>> {
        let step = Step::new(&host(), Phase::Cutover, "do it", action);
        vet(&[step], &PluginName::new("p").expect("a name"), grants, &BTreeSet::from([host()]))
    }

    fn exec(argv: &[&str]) -> Action {
        Action::ContainerExec {
            container: ContainerName::new("kamal-proxy").expect("a name"),
            argv: argv.iter().map(|text| Word::lit(*text)).collect(),
            tolerate: Vec::new(),
        }
    }

    fn exec_grant(argv: &[&str]) -> Grants {
        let argv = argv.iter().map(|text| (*text).to_owned()).collect();
        Grants { exec: vec![ExecGrant { container: "kamal-proxy".to_owned(), argv }], ..Grants::default() }
    }

    #[test]
    fn a_command_inside_its_grant_passes_and_one_outside_is_refused() {
        let grants = exec_grant(&["kamal-proxy", "deploy"]);
        assert_eq!(check(exec(&["kamal-proxy", "deploy", "web"]), &grants), Ok(()));
        for argv in [&["kamal-proxy", "stop"][..], &["kamal-proxy"], &["sh", "-c", "kamal-proxy deploy"]] {
            let refusals = check(exec(argv), &grants).expect_err("outside the grant");
            assert!(refusals[0].grantable, "{refusals:?}");
        }
    }

    #[test]
    fn an_empty_grant_of_arguments_grants_nothing() {
        assert!(check(exec(&["sh"]), &exec_grant(&[])).is_err());
        let run = Action::Run { argv: vec![Word::lit("rm")], stdin: Vec::new() };
        assert!(check(run, &Grants { run: vec![Vec::new()], ..Grants::default() }).is_err());
    }

    #[test]
    fn a_secret_cannot_stand_where_a_granted_text_should() {
        let mut action = exec(&["kamal-proxy", "deploy"]);
        if let Action::ContainerExec { argv, .. } = &mut action {
            argv[1] = Word::Secret("X".parse().expect("a name"));
        }
        let mut grants = exec_grant(&["kamal-proxy", "deploy"]);
        grants.secrets.push("X".parse().expect("a name"));
        assert!(check(action, &grants).is_err());
    }

    #[test]
    fn a_probe_that_runs_a_command_needs_the_commands_grant() {
        let probe = |argv: &[&str]| Action::WaitProbe {
            container: ContainerName::new("kamal-proxy").expect("a name"),
            network: NETWORK.to_owned(),
            probe: crate::probe::ProbeSpec {
                check: ProbeCheck::Exec { argv: argv.iter().map(|text| (*text).to_owned()).collect() },
                interval_ms: 100,
                timeout_ms: 100,
                healthy_after: 1,
                deadline_ms: 100,
                status_from: 200,
                status_to: 299,
            },
        };
        let mut grants = exec_grant(&["kamal-proxy", "list"]);
        grants.containers.push("kamal-proxy".to_owned());
        assert_eq!(check(probe(&["kamal-proxy", "list"]), &grants), Ok(()));
        assert!(check(probe(&["sh", "-c", "true"]), &grants).is_err());
    }

    #[test]
    fn only_addresses_of_the_host_itself_can_be_asked() {
        let want = |address: &str| Want {
            id: "x".to_owned(),
            query: Query::Http {
                address: address.parse().expect("an address"),
                port: 80,
                path: "/".to_owned(),
                host: None,
            },
        };
        assert_eq!(
            vet_wants(&[want("127.0.0.1"), want("10.210.3.140"), want("10.213.9.140")], &Grants::default(), 0),
            Ok(())
        );
        for address in ["169.254.169.254", "10.0.0.1", "0.0.0.0", "203.0.113.7"] {
            assert!(vet_wants(&[want(address)], &Grants::default(), 0).is_err(), "{address}");
        }
    }

    #[test]
    fn an_undo_is_vetted_like_the_step_itself() {
        let mut step = Step::new(&host(), Phase::Cutover, "do it", Action::Note { text: String::new() });
        step.undo = Some(exec(&["sh"]));
        let plugin = PluginName::new("p").expect("a name");
        assert!(vet(&[step], &plugin, &Grants::default(), &BTreeSet::from([host()])).is_err());
    }

    #[test]
    fn images_of_plugins_must_be_pinned_by_digest() {
        let grants = Grants {
            images: vec!["r.example/proxy".to_owned()],
            containers: vec!["proxy".to_owned()],
            ..Grants::default()
        };
        let run = |reference: &str| {
            Action::ContainerRun(Box::new(ContainerSpec {
                name: ContainerName::new("proxy").expect("a name"),
                image: ContainerImage::Pinned { reference: reference.to_owned() },
                network: NETWORK.to_owned(),
                address: None,
                env: BTreeMap::new().into(),
                labels: BTreeMap::new().into(),
                mounts: Vec::new(),
                publish: Vec::new(),
                entrypoint: None,
                command: None,
                user: None,
                restart: true,
                stop_timeout_s: 10,
            }))
        };
        let digest = crate::digest::Digest::of("x");
        assert_eq!(check(run(&format!("r.example/proxy@{digest}")), &grants), Ok(()));
        assert!(check(run("r.example/proxy:v1"), &grants).is_err());
        assert!(check(run(&format!("r.example/other@{digest}")), &grants).is_err());
    }

    fn interface(change: impl Fn(&mut Interface)) -> Action {
        let cidr = |text: &str| text.parse().expect("a network");
        let mut interface = Interface {
            version: Interface::VERSION,
            name: "jiji0".to_owned(),
            key: AbsPath::new("/var/lib/jiji/network/key").expect("a path"),
            addresses: vec![cidr("10.210.0.1/32")],
            port: 51820,
            mtu: 1420,
            containers: cidr("10.210.0.128/25"),
            cluster: CLUSTER.to_vec(),
            peers: Vec::new(),
        };
        change(&mut interface);
        Action::InterfaceEnsure(Box::new(interface))
    }

    #[test]
    fn an_interface_needs_its_name_its_port_and_its_keys_place_granted_and_stays_in_the_mesh() {
        let grants = Grants {
            paths: vec![AbsPath::new("/var/lib/jiji/network").expect("a path")],
            interfaces: vec!["jiji0".to_owned()],
            udp_ports: vec![51820],
            ..Grants::default()
        };
        assert_eq!(check(interface(|_| {}), &grants), Ok(()));
        for (change, grantable) in [
            (&(|it: &mut Interface| it.name = "eth0".to_owned()) as &dyn Fn(&mut Interface), true),
            (&|it: &mut Interface| it.port = 53, true),
            (&|it: &mut Interface| it.key = AbsPath::new("/etc/shadow").expect("a path"), true),
            (&|it: &mut Interface| it.cluster.push("192.0.2.0/24".parse().expect("a network")), false),
            (&|it: &mut Interface| it.addresses.push("192.0.2.1/32".parse().expect("a network")), false),
        ] {
            let refusals = check(interface(change), &grants).expect_err("beyond the grants");
            assert!(refusals.iter().all(|refusal| refusal.grantable == grantable), "{refusals:?}");
        }
        assert!(check(Action::InterfaceRemove { name: "eth0".to_owned() }, &grants).is_err());
        assert!(check(Action::KeypairEnsure { path: AbsPath::new("/root/key").expect("a path") }, &grants).is_err());
        let look = |name: &str| Want { id: "x".to_owned(), query: Query::Interface { name: name.to_owned() } };
        assert_eq!(vet_wants(&[look("jiji0")], &grants, 0), Ok(()));
        assert!(vet_wants(&[look("eth0")], &grants, 0).is_err());
    }

    #[test]
    fn edges_must_lead_backwards_and_ids_be_unique() {
        let note = |text: &str| Step::new(&host(), Phase::Boot, text, Action::Note { text: String::new() });
        let (mut first, mut second) = (note("a"), note("b"));
        let hosts = BTreeSet::from([host()]);
        second.after = vec![first.id.clone()];
        assert_eq!(vet_form(&[first.clone(), second.clone()], &hosts), Ok(()));
        first.after = vec![second.id.clone()];
        assert!(vet_form(&[first.clone(), second], &hosts).is_err());
        first.after.clear();
        assert!(vet_form(&[first.clone(), first], &hosts).is_err());
    }

    #[test]
    fn a_want_for_jijis_own_records_is_refused() {
        let want = Want { id: "x".to_owned(), query: Query::Records { scope: "shop".to_owned() } };
        assert!(vet_wants(&[want], &Grants::default(), 0).is_err());
    }
}
