//! `jiji build` and `jiji push`: images into the store, a directory, a registry.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiji_model::event::Record;
use jiji_model::image::Image;
use jiji_model::name::ServiceName;
use jiji_model::project::Engine;

use super::args::{BuildArgs, Global, LoadInto, PushArgs};
use super::compare;
use super::environment::{self, Environment};
use super::exit::Exit;
use super::failure::Failure;
use super::load::Local;
use super::ready;
use super::ship_failure;
use super::store::Tidy;
use super::workplace::Workplace;
use crate::report::Report;
use crate::ship::{Source, native};

/// Builds services and prints each image's name, one line each.
pub async fn build(
    global: &Global,
    args: &BuildArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    let wanted = services(&place, &args.services)?;
    let output = args.output.as_deref().map(output).transpose()?;
    let engine = args.load.map(engine).transpose()?;
    let mut ship = ready::ship(&place, environment, "build", report)?;
    ship.locked = args.locked;
    ship.set_offline(args.offline);
    ship.renew = args.no_cache;
    ship.explain = args.explain;
    ship.given.contexts = args.build_context.iter().cloned().collect();
    for text in &args.ssh {
        let (id, socket) = agent(text, environment)?;
        ship.given.agents.insert(id, socket);
    }
    let tidy = Tidy::prepare(&place.store, environment)?;
    if args.check {
        let checked = compare::check(&ship, |name| wanted.contains(name)).await;
        tidy.after_build(report);
        return compare::checked(global, &checked?, report);
    }
    let images = ship.images_of(Source::Build, &[native()], |name| wanted.contains(name)).await;
    // Also after a build that failed: what it had finished is in the store.
    tidy.after_build(report);
    let images = images.map_err(|error| ship_failure::of(&error, &ship.secrets))?;
    let several = images.len() > 1;
    for (service, images) in &images {
        for image in images {
            if let Some(output) = &output {
                let directory = if several { output.join(service.as_str()) } else { output.clone() };
                export(&ship.store, image, &directory)?;
            }
            if let Some(engine) = &engine {
                load(engine, &ship.store, service, image, report)?;
            }
            if !global.json {
                line(&format!("{service}@{}", image.manifest.digest))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Pushes what the lock names and prints where each image is.
pub async fn push(
    global: &Global,
    args: &PushArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    let wanted = services(&place, &args.services)?;
    let ship = ready::ship(&place, environment, "push", report)?;
    let shown = |error| ship_failure::of(&error, &ship.secrets);
    let images = ship.images_of(Source::Lock, &[native()], |name| wanted.contains(name)).await.map_err(shown)?;
    for pushed in ship.push(&images).await.map_err(shown)?.into_values().flatten() {
        if !global.json {
            line(&pushed.reference.to_string())?;
        }
    }
    Ok(Exit::Done)
}

/// `ID[=SOCKET]`, where the socket is that of the user's agent if none is said.
fn agent(text: &str, environment: &Environment) -> Result<(String, PathBuf), Failure> {
    if let Some((id, socket)) = text.split_once('=') {
        return Ok((id.to_owned(), PathBuf::from(socket)));
    }
    let socket = environment.agent.clone().ok_or_else(|| {
        Failure::text(Exit::Usage, format!("hand on the agent `{text}`: `SSH_AUTH_SOCK` is not set"))
            .hint("start one with `eval $(ssh-agent)`, or name its socket: `--ssh ID=SOCKET`")
    })?;
    Ok((text.to_owned(), socket))
}

/// The services that were named, or all.
fn services(place: &Workplace, named: &[String]) -> Result<BTreeSet<ServiceName>, Failure> {
    let known = &place.project().services;
    if named.is_empty() {
        return Ok(known.keys().cloned().collect());
    }
    let find = |name: &String| match known.keys().find(|service| service.as_str() == name) {
        Some(service) => Ok(service.clone()),
        None => {
            let names: Vec<_> = known.keys().map(|service| format!("`{service}`")).collect();
            let failure = Failure::text(Exit::Usage, format!("find service `{name}` in the project"));
            Err(failure.hint(format!("there are {}", names.join(", "))))
        }
    };
    named.iter().map(find).collect()
}

fn output(text: &str) -> Result<PathBuf, Failure> {
    match text.strip_prefix("oci:").filter(|path| !path.is_empty()) {
        Some(path) => Ok(PathBuf::from(path)),
        None => {
            Err(Failure::text(Exit::Usage, format!("read `--output {text}`"))
                .hint("`oci:DIR` writes an OCI image layout"))
        }
    }
}

/// The engine to load images into.
fn engine(wanted: LoadInto) -> Result<Local, Failure> {
    let wanted = match wanted {
        LoadInto::Auto => None,
        LoadInto::Podman => Some(Engine::Podman),
        LoadInto::Docker => Some(Engine::Docker),
    };
    let path = environment::variable("PATH").unwrap_or_default();
    Local::find(wanted, &path).map_err(|error| error.failure())
}

fn load(
    engine: &Local,
    store: &jiji_store::Store,
    service: &ServiceName,
    image: &Image,
    report: &Arc<dyn Report>,
) -> Result<(), Failure> {
    // With a registry's host in it the name is the same in both engines: Podman would take `localhost` for one without, Docker its hub.
    let reference = format!("localhost/{}:latest", image.repository);
    engine.load(image, &reference, store).map_err(|error| error.failure())?;
    let text = format!("loaded {service} into {} as {reference}", engine.engine());
    let data = serde_json::json!({
        "engine": engine.engine(), "reference": reference, "image": image.manifest.digest, "config": image.config.digest,
    });
    report.emit(Record::new("build.loaded", text).service(service).with(data));
    Ok(())
}

fn export(store: &jiji_store::Store, image: &Image, directory: &Path) -> Result<(), Failure> {
    // Readers such as umoci find an image in a layout by a name alone.
    store.export_layout(image, directory, Some("latest")).map_err(|error| Failure::new(Exit::Internal, &error))
}

fn line(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))
}
