//! `jiji diff` and `jiji build --check`: what differs between two images, or between two times of one build.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_model::event::Record;
use jiji_model::image::{Descriptor, Image, MANIFEST, Platform};
use jiji_model::name::ServiceName;
use jiji_model::reference::Reference;
use jiji_store::Store;
use serde_json::json;

use super::args::{DiffArgs, Global};
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::ready;
use super::ship_failure;
use super::workplace::{self, Workplace};
use crate::build::compare::{self, Difference};
use crate::build::{Checked, Finding};
use crate::registry::{Client, Depth, Setup};
use crate::report::{Report, Summary};
use crate::ship::{Ship, native};

/// Compares two images.
pub async fn diff(
    global: &Global,
    args: &DiffArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let store = workplace::open_store(environment)?;
    let client = client(global, environment, report);
    let one = image(&args.one, &store, &client).await?;
    let other = image(&args.other, &store, &client).await?;
    let differences = compare::images(&one, &other, &store).map_err(|error| {
        let hint = "its layers are fetched where the image is named by its registry";
        Failure::new(Exit::Internal, &error).hint(hint)
    })?;
    let equal = differences.is_empty();
    let exit = if equal { Exit::Done } else { Exit::Differs };
    let text = match equal {
        true => format!("equal: {}", one.manifest.digest),
        false => format!("{} differences", differences.len()),
    };
    if global.json {
        let data = json!({
            "one": one.manifest.digest, "other": other.manifest.digest,
            "differences": differences.iter().map(fields).collect::<Vec<_>>(),
        });
        report.emit(Record::new("diff.done", text).with(data));
        report.summary(&summary(exit));
        return Ok(exit);
    }
    let mut out = String::new();
    if equal {
        let _ = writeln!(out, "{text}");
    }
    for line in compare::lines(&differences) {
        let _ = writeln!(out, "{line}");
    }
    print(&out)?;
    Ok(exit)
}

/// A client with the project's credentials, or with none where there is no project.
fn client(global: &Global, environment: &Environment, report: &Arc<dyn Report>) -> Client {
    match Workplace::open(global, environment) {
        Ok(place) => ready::client(&place, &ready::secrets(&place).unwrap_or_default(), report),
        Err(_) => Client::new(Setup { sink: ready::sink(report), ..Setup::default() }),
    }
}

/// The image that a text names, with all its blobs in the store.
async fn image(text: &str, store: &Store, client: &Client) -> Result<Image, Failure> {
    let platform = native();
    if let Some(dir) = text.strip_prefix("oci:") {
        let image = store.import_layout(Path::new(dir), None, &platform);
        return image.map_err(|error| Failure::new(Exit::Usage, &error));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        return compare::stored(&digest, &nameless(digest, platform), store).map_err(|error| {
            Failure::new(Exit::Usage, &error).hint("`sha256:…` alone names a manifest of this machine's store")
        });
    }
    let reference: Reference = text.parse().map_err(|error| {
        Failure::new(Exit::Usage, &error).hint("an image is `oci:DIR`, `sha256:…`, or a registry's reference")
    })?;
    let fetched = async {
        let digest = match reference.digest {
            Some(digest) => digest,
            None => client.resolve(&reference, &platform).await?,
        };
        client.pull(&reference, &digest, &platform, store, Depth::WithLayers).await
    };
    fetched.await.map_err(|error| {
        let failure = Failure::new(Exit::Registry, &error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

fn nameless(digest: Digest, platform: Platform) -> Image {
    let unknown = || Descriptor { media_type: MANIFEST.to_owned(), digest, size: 0 };
    Image { repository: "stored".to_owned(), platform, manifest: unknown(), config: unknown(), layers: Vec::new() }
}

/// Builds each step twice.
pub async fn check(
    ship: &Ship,
    wanted: impl Fn(&ServiceName) -> bool,
) -> Result<BTreeMap<ServiceName, Checked>, Failure> {
    let checked = ship.check(&native(), wanted, &today()).await;
    checked.map_err(|error| ship_failure::of(&error, &ship.secrets))
}

/// How programs write this day.
fn today() -> Vec<String> {
    // In UTC, as steps see it.
    let now = jiff::Timestamp::now();
    ["%Y-%m-%d", "%Y/%m/%d", "%d %b %Y", "%b %e, %Y", "%a %b %e"].map(|form| now.strftime(form).to_string()).to_vec()
}

/// Shows what a check found.
pub fn checked(
    global: &Global,
    checked: &BTreeMap<ServiceName, Checked>,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let differs = checked.values().flat_map(|checked| &checked.findings).any(|finding| !finding.suspected);
    let exit = if differs { Exit::Differs } else { Exit::Done };
    let mut out = String::new();
    for (service, Checked { image, steps, findings }) in checked {
        let bad = findings.iter().filter(|finding| !finding.suspected).count();
        let text = match bad {
            0 => format!("{service}@{}: {steps} steps gave the same twice", image.manifest.digest),
            1 => format!("{service}@{}: 1 of {steps} steps does not give the same", image.manifest.digest),
            bad => format!("{service}@{}: {bad} of {steps} steps do not give the same", image.manifest.digest),
        };
        let _ = writeln!(out, "{text}");
        if global.json {
            let findings: Vec<_> = findings.iter().map(found).collect();
            let data = json!({"image": image.manifest.digest, "steps": steps, "findings": findings});
            report.emit(Record::new("build.verdict", text).service(service).with(data));
        }
        for Finding { place, differences, suspected, .. } in findings {
            if let Some(place) = place {
                let _ = writeln!(out, "{}", place.excerpt());
            }
            if *suspected {
                let _ = writeln!(out, "  gave the same twice, and may not on another day:");
            }
            for line in compare::lines(differences) {
                let _ = writeln!(out, "  {line}");
            }
        }
    }
    if global.json {
        report.summary(&summary(exit));
    } else {
        print(&out)?;
    }
    Ok(exit)
}

fn found(finding: &Finding) -> serde_json::Value {
    json!({
        "instruction": finding.instruction,
        "line": finding.place.as_ref().map(|place| place.line),
        "suspected": finding.suspected,
        "differences": finding.differences.iter().map(fields).collect::<Vec<_>>(),
    })
}

fn fields(difference: &Difference) -> serde_json::Value {
    json!({
        "stratum": difference.stratum.name(),
        "place": difference.place,
        "what": difference.what,
        "cause": difference.cause.map(|cause| cause.name()),
        "hint": difference.cause.map(|cause| cause.hint()),
    })
}

fn summary(exit: Exit) -> Summary {
    Summary { result: exit.name().to_owned(), exit: exit.code(), ..Summary::default() }
}

fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))
}
