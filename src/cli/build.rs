//! `jiji build` and `jiji push`: images into the store, a directory, a registry.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiji_model::name::ServiceName;

use super::args::{BuildArgs, Global, PushArgs};
use super::compare;
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
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
    let mut ship = ready::ship(&place, environment, "build", report)?;
    ship.locked = args.locked;
    ship.set_offline(args.offline);
    ship.renew = args.no_cache;
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

fn export(store: &jiji_store::Store, image: &jiji_model::image::Image, directory: &Path) -> Result<(), Failure> {
    // Readers such as umoci find an image in a layout by a name alone.
    store.export_layout(image, directory, Some("latest")).map_err(|error| Failure::new(Exit::Internal, &error))
}

fn line(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))
}
