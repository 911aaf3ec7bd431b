//! Making the proxy run: one container that is never touched while it runs as it should.

use crate::bindings::jiji::plan::types::{
    Action, Answer, Check, ContainerFacts, ContainerSpec, Context, Directory, Evidence, Fault, Mount, MountSource,
    Phase, ProbeSpec, Publish, Step, Turn, WaitProbe, Word,
};
use crate::settings::Settings;
use crate::{
    CONTAINER, Facts, IMAGE, PROGRAM, STATE_IN_CONTAINER, WANT_CONTAINER, WANT_LIST, fault, say, settings_of,
    want_container, want_list,
};

/// The container's label that says with which ports it was started. The shared ground of all projects on a host: who disagrees is told
/// so, instead of two projects replacing the proxy in turn.
pub const LABEL_SETTINGS: &str = "proxy-kamal.settings";
/// The container's label that says which image it was started from.
pub const LABEL_IMAGE: &str = "proxy-kamal.image";

/// The control socket lies in `$XDG_RUNTIME_DIR` (internal/server/config.go), which an image built from scratch need not have. In memory
/// it is gone with the container; the proxy also removes one that a killed process left (`startCommandHandler` in
/// internal/server/server.go).
const RUNTIME: &str = "/run/kamal-proxy";

pub fn boot(context: &Context, facts: &Facts<'_>) -> Result<Turn, Fault> {
    let settings = settings_of(context)?;
    let (Some(container), Some(list)) = (facts.get(WANT_CONTAINER), facts.get(WANT_LIST)) else {
        return Ok(Turn::Observe(vec![want_container(), want_list()]));
    };
    let answers = matches!(list, Answer::Command(command) if command.exit == Some(0));
    let spec = specification(context, &settings)?;
    // One that runs and does not answer serves nobody: it may be starting, or failing again and again under another specification.
    let serving = match container {
        Answer::Container(container) => {
            let serving = container.state == "running" && answers;
            check_ours(container, &spec, serving)?;
            serving
        }
        Answer::Absent => false,
        Answer::Failed(reason) => {
            return Err(fault(
                "cannot-look",
                format!("look at container `{CONTAINER}`: {reason}"),
                "is the container engine of the host running?",
            ));
        }
        _ => return Err(fault("bad-fact", format!("unexpected answer about container `{CONTAINER}`"), "report this")),
    };
    let mut steps = Vec::new();
    if !serving {
        steps.push(step(
            format!("make `{}`", context.state_dir),
            Action::Directory(Directory { path: context.state_dir.clone(), mode: 0o700 }),
        ));
        steps.push(step(format!("run {CONTAINER}"), Action::ContainerRun(spec)));
        steps.push(step(
            format!("wait until {CONTAINER} answers"),
            Action::WaitProbe(WaitProbe {
                container: CONTAINER.to_owned(),
                network: context.network.name.clone(),
                probe: ProbeSpec {
                    check: Check::Exec(vec![PROGRAM.to_owned(), "list".to_owned()]),
                    interval_ms: 200,
                    timeout_ms: 5_000,
                    healthy_after: 1,
                    deadline_ms: 20_000,
                    status_from: 200,
                    status_to: 299,
                },
            }),
        ));
    }
    Ok(Turn::Done(steps))
}

fn check_ours(container: &ContainerFacts, spec: &ContainerSpec, serving: bool) -> Result<(), Fault> {
    let have = |key: &str| label(&container.labels, key);
    let want = |key: &str| label(&spec.labels, key);
    let Some(started_with) = have(LABEL_SETTINGS) else {
        return Err(not_ours());
    };
    if !serving {
        return Ok(());
    }
    if Some(started_with) != want(LABEL_SETTINGS) {
        return Err(fault(
            "other-settings",
            format!(
                "`{CONTAINER}` runs with {started_with}, and the settings say {}",
                want(LABEL_SETTINGS).unwrap_or("nothing")
            ),
            "`jiji proxy upgrade` replaces it while requests go on",
        ));
    }
    if have(LABEL_IMAGE) != want(LABEL_IMAGE) {
        // An update of jiji must not surprise anybody's requests.
        say("the proxy runs another image than the settings name and is left alone; `jiji proxy upgrade` replaces it");
    }
    Ok(())
}

/// That another tool has the container's name.
pub fn not_ours() -> Fault {
    fault(
        "not-ours",
        format!("a container `{CONTAINER}` is there that this plugin did not start"),
        "another tool manages it; let one of the two go, or remove the container at a time when requests may fail",
    )
}

/// Whether a container was started with the image and the settings of a specification.
pub fn same(have: &[(String, String)], want: &[(String, String)]) -> bool {
    [LABEL_SETTINGS, LABEL_IMAGE].iter().all(|key| label(have, key) == label(want, key))
}

pub fn label<'a>(labels: &'a [(String, String)], key: &str) -> Option<&'a str> {
    labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

pub fn specification(context: &Context, settings: &Settings) -> Result<ContainerSpec, Fault> {
    let Some(image) = context.images.iter().find(|image| image.name == IMAGE) else {
        return Err(fault("no-image", format!("the image `{IMAGE}` was not resolved"), "report this"));
    };
    let lit = |text: &str| Word::Lit(text.to_owned());
    let publish = |host_port, container_port| Publish { address: None, host_port, container_port };
    let tmpfs = |target: &str| Mount { source: MountSource::Tmpfs, target: target.to_owned(), read_only: false };
    Ok(ContainerSpec {
        name: CONTAINER.to_owned(),
        image: image.reference.clone(),
        network: context.network.name.clone(),
        address: Some(context.address.clone()),
        env: vec![("HOME".to_owned(), lit("/home/kamal-proxy")), ("XDG_RUNTIME_DIR".to_owned(), lit(RUNTIME))],
        labels: vec![
            (LABEL_IMAGE.to_owned(), image.reference.clone()),
            (
                LABEL_SETTINGS.to_owned(),
                format!("http_port {}, https_port {}", settings.http_port, settings.https_port),
            ),
        ],
        mounts: vec![
            Mount {
                source: MountSource::Bind(context.state_dir.clone()),
                target: STATE_IN_CONTAINER.to_owned(),
                read_only: false,
            },
            tmpfs(RUNTIME),
            // Bodies beyond the memory buffer go to temporary files, and an image built from scratch has no /tmp.
            tmpfs("/tmp"),
        ],
        publish: vec![publish(settings.http_port, 80), publish(settings.https_port, 443)],
        // By its name on the image's PATH, whatever entry point the image has.
        entrypoint: Some(PROGRAM.to_owned()),
        command: Some(vec!["run".to_owned()]),
        // Upstream's image has a user of its own, whom a directory of the host does not belong to.
        user: Some("0:0".to_owned()),
        restart: true,
        stop_timeout_s: 10,
        more: Vec::new(),
    })
}

fn step(title: String, action: Action) -> Step {
    Step {
        phase: Phase::Boot,
        title,
        action,
        after: Vec::new(),
        timeout_ms: 60_000,
        repeatable: true,
        quiet_ms: 0,
        undo: None,
        evidence: vec![Evidence::State(CONTAINER.to_owned()), Evidence::Logs((CONTAINER.to_owned(), 20))],
        labels: Vec::new(),
    }
}
