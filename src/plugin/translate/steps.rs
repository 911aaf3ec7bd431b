//! Steps of plugins.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiji_model::name::{AbsPath, ContainerName, HostName, PluginName, SecretName, ServiceName};
use jiji_model::plan::vet::Refusal;
use jiji_model::plan::{
    Action, ContainerImage, ContainerSpec, Evidence, LABEL_PLUGIN, LABEL_SCOPE, OutputKind, Phase, Publish, Repeat,
    Step, Word,
};
use jiji_model::project::{Mount, MountSource};

use super::super::bindings::types;
use super::super::text::sentence;
use super::{probe, wrong};

/// Whose steps are translated, and for what.
pub(in super::super) struct StepsOf<'a> {
    pub(in super::super) plugin: &'a PluginName,
    pub(in super::super) host: &'a HostName,
    pub(in super::super) service: Option<&'a ServiceName>,
    /// Containers whose logs and state may be evidence beside the plugin's own: those of the service.
    pub(in super::super) containers: &'a [ContainerName],
    /// The plugin's own containers.
    pub(in super::super) own: &'a [String],
}

/// Translates a plugin's whole answer, or says everything in it that is none.
pub(in super::super) fn steps(of: &StepsOf<'_>, steps: &[types::Step]) -> Result<Vec<Step>, Vec<Refusal>> {
    let mut out: Vec<Step> = Vec::with_capacity(steps.len());
    let mut refusals = Vec::new();
    for step in steps {
        let title = sentence(&step.title);
        match of.step(&title, step, &out) {
            Ok(step) => out.push(step),
            Err(reason) => {
                refusals.push(wrong(&title, reason));
                // Later steps may refer to this one by its index.
                let note = Action::Note { text: title.clone() };
                out.push(Step::new(of.host, Phase::Boot, title, note));
            }
        }
    }
    if refusals.is_empty() { Ok(out) } else { Err(refusals) }
}

type Refused<T> = Result<T, String>;

impl StepsOf<'_> {
    fn step(&self, title: &str, step: &types::Step, earlier: &[Step]) -> Refused<Step> {
        let action = self.action(&step.action, earlier)?;
        let mut out = Step::new(self.host, phase(step.phase), title, action);
        out.service = self.service.cloned();
        out.after =
            step.after.iter().map(|index| at(earlier, *index).map(|step| step.id.clone())).collect::<Refused<_>>()?;
        out.timeout_ms = step.timeout_ms;
        out.repeat = if step.repeatable { Repeat::Repeatable } else { Repeat::AtMostOnce };
        out.quiet_ms = step.quiet_ms.min(jiji_model::plan::vet::MAX_TIMEOUT_MS);
        out.undo = step.undo.as_ref().map(|undo| self.action(undo, earlier)).transpose()?;
        out.evidence = step.evidence.iter().map(|evidence| self.evidence(evidence)).collect::<Refused<_>>()?;
        out.labels = shown(&step.labels);
        Ok(out)
    }

    fn evidence(&self, evidence: &types::Evidence) -> Refused<Evidence> {
        let (types::Evidence::Logs((name, _)) | types::Evidence::State(name)) = evidence;
        let container = container(name)?;
        if !self.own.contains(name) && !self.containers.contains(&container) {
            return Err(format!("evidence from container `{container}`, which is not its own nor the service's"));
        }
        Ok(match evidence {
            types::Evidence::Logs((_, lines)) => Evidence::Logs { container, lines: (*lines).min(1_000) },
            types::Evidence::State(_) => Evidence::State { container },
        })
    }

    fn action(&self, action: &types::Action, earlier: &[Step]) -> Refused<Action> {
        let words = |list: &[types::Word]| list.iter().map(|one| word(one, earlier)).collect::<Refused<Vec<_>>>();
        Ok(match action {
            types::Action::ContainerRun(spec) => Action::ContainerRun(Box::new(self.container(spec, earlier)?)),
            types::Action::ContainerStart(name) => Action::ContainerStart { name: container(name)? },
            types::Action::ContainerStop(stop) => {
                Action::ContainerStop { name: container(&stop.name)?, timeout_s: stop.timeout_s }
            }
            types::Action::ContainerRemove(name) => Action::ContainerRemove { name: container(name)? },
            types::Action::ContainerExec(exec) => Action::ContainerExec {
                container: container(&exec.container)?,
                argv: words(&exec.argv)?,
                tolerate: exec.tolerate.iter().map(|text| tolerated(text)).collect::<Refused<_>>()?,
            },
            types::Action::WaitProbe(wait) => Action::WaitProbe {
                container: container(&wait.container)?,
                network: wait.network.clone(),
                probe: probe(&wait.probe)?,
            },
            types::Action::VolumeEnsure(name) => Action::VolumeEnsure { name: name.clone() },
            types::Action::Directory(directory) => {
                Action::Directory { path: path(&directory.path)?, mode: directory.mode }
            }
            types::Action::File(file) => {
                Action::File { path: path(&file.path)?, mode: file.mode, content: words(&file.content)? }
            }
            types::Action::Remove(text) => Action::Remove { path: path(text)? },
            types::Action::HttpWait(wait) => {
                Action::HttpWait { address: address(&wait.address)?, probe: probe(&wait.probe)? }
            }
            types::Action::Run(run) => Action::Run { argv: words(&run.argv)?, stdin: words(&run.stdin)? },
            types::Action::Note(text) => Action::Note { text: sentence(text) },
            types::Action::Other(other) => return Err(format!("unknown action `{}`", other.kind)),
        })
    }

    fn container(&self, spec: &types::ContainerSpec, earlier: &[Step]) -> Refused<ContainerSpec> {
        if let Some((key, _)) = spec.more.first() {
            return Err(format!("unknown part `{key}` of a container"));
        }
        if let Some((key, _)) = spec.labels.iter().find(|(key, _)| key.starts_with("jiji.")) {
            return Err(format!("label `{key}`: labels of `jiji.` are the core's"));
        }
        if let Some((key, _)) = spec.env.iter().find(|(key, _)| key.is_empty() || key.contains(['=', '\0', '\n'])) {
            return Err(format!("environment variable `{key}`"));
        }
        if spec.command.iter().flatten().chain(&spec.entrypoint).chain(&spec.user).any(|text| text.contains('\0')) {
            return Err("NUL in a container's command".to_owned());
        }
        let mut labels = shown(&spec.labels);
        labels.insert(LABEL_PLUGIN.to_owned(), self.plugin.to_string());
        labels.insert(LABEL_SCOPE.to_owned(), "*".to_owned());
        Ok(ContainerSpec {
            name: container(&spec.name)?,
            image: ContainerImage::Pinned { reference: spec.image.clone() },
            network: spec.network.clone(),
            address: spec.address.as_deref().map(address).transpose()?,
            env: spec
                .env
                .iter()
                .map(|(key, value)| Ok((key.clone(), word(value, earlier)?)))
                .collect::<Refused<_>>()?,
            labels: labels.into(),
            mounts: spec.mounts.iter().map(mount).collect::<Refused<_>>()?,
            publish: spec
                .publish
                .iter()
                .map(|publish| {
                    Ok(Publish {
                        address: publish.address.as_deref().map(address).transpose()?,
                        host_port: publish.host_port,
                        container_port: publish.container_port,
                    })
                })
                .collect::<Refused<_>>()?,
            entrypoint: spec.entrypoint.clone(),
            command: spec.command.clone(),
            user: spec.user.clone(),
            restart: spec.restart,
            stop_timeout_s: spec.stop_timeout_s.min(600),
        })
    }
}

pub(super) fn phase(phase: types::Phase) -> Phase {
    match phase {
        types::Phase::Boot => Phase::Boot,
        types::Phase::Prepare => Phase::Prepare,
        types::Phase::Publish => Phase::Publish,
        types::Phase::Cutover => Phase::Cutover,
        types::Phase::Withdraw => Phase::Withdraw,
        types::Phase::Drain => Phase::Drain,
        types::Phase::Finalize => Phase::Finalize,
    }
}

fn at(earlier: &[Step], index: u32) -> Refused<&Step> {
    usize::try_from(index)
        .ok()
        .and_then(|index| earlier.get(index))
        .ok_or_else(|| format!("refers to step {index}, which is not an earlier one"))
}

fn word(word: &types::Word, earlier: &[Step]) -> Refused<Word> {
    Ok(match word {
        types::Word::Lit(text) => Word::Lit(text.clone()),
        types::Word::Secret(name) => Word::Secret(SecretName::new(name.clone()).map_err(|error| error.to_string())?),
        types::Word::Output(output) => Word::Output {
            step: at(earlier, output.step)?.id.clone(),
            kind: match output.kind {
                types::OutputKind::WgPublicKey => OutputKind::WgPublicKey,
                types::OutputKind::Ip => OutputKind::Ip,
                types::OutputKind::Port => OutputKind::Port,
                types::OutputKind::Digest => OutputKind::Digest,
            },
        },
    })
}

/// An empty text is in every output: it would make all failures successes.
fn tolerated(text: &str) -> Refused<String> {
    if text.len() < 4 {
        return Err(format!("tolerates `{text}`, which says too little"));
    }
    Ok(text.to_owned())
}

fn container(name: &str) -> Refused<ContainerName> {
    ContainerName::new(name).map_err(|error| error.to_string())
}

fn path(text: &str) -> Refused<AbsPath> {
    AbsPath::new(text).map_err(|error| error.to_string())
}

fn address(text: &str) -> Refused<Ipv4Addr> {
    text.parse().map_err(|_| format!("`{text}` is not an IPv4 address"))
}

fn mount(mount: &types::Mount) -> Refused<Mount> {
    Ok(Mount {
        source: match &mount.source {
            types::MountSource::Volume(name) => MountSource::Volume(name.clone()),
            types::MountSource::Bind(text) => MountSource::Bind(path(text)?),
            types::MountSource::Tmpfs => MountSource::Tmpfs,
        },
        target: path(&mount.target)?,
        read_only: mount.read_only,
    })
}

fn shown(labels: &[(String, String)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (sentence(key), sentence(value))).collect()
}
