//! `cargo xtask bench build`: jiji beside buildah and BuildKit on the same contexts, beside a plain walk of them, and beside the compressor alone. Goals
//! are set by buildah; without BuildKit, which is built from its Go module, its rows are left out.
//!
//! Every figure is a median of several runs, each with whatever the case says is cold removed before. Pushes go to the lab's registry, into
//! a repository of their own each time, so that nobody finds a blob there. Memory is the most that the process ever had resident.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "rows are what it is for, and people wait long for them"
)]

mod buildah;
mod buildkit;
mod tree;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use buildah::Buildah;
use buildkit::BuildKit;
use jiji_e2e::{Outcome, Project, Site};
use jiji_lab::{Engines, Spec};
use serde_json::json;

/// The Dockerfile of all contexts: what is measured is the builder and no base image.
const DOCKERFILE: &str = "FROM scratch\nCOPY files /files\n";

/// Files of the contexts that nothing changes in.
const COUNTS: [usize; 3] = [1_000, 10_000, 100_000];

/// The context on which builders are set beside each other.
const MANY: usize = 10_000;

/// About so many bytes has a file of these.
const SMALL: usize = 3_000;

/// How much the layer compressor gets at once: a member of layer format 2.
const MEMBER: usize = 1 << 20;

/// Its level.
const LEVEL: i32 = 4;

/// Of how much its own speed is measured.
const SAMPLE: usize = 256 << 20;

const MIB: f64 = 1_048_576.0;

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn timed(work: impl FnOnce() -> Outcome) -> Outcome<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Runs a command to its end and tells the most memory that it had, in MiB.
fn watched(command: &mut Command) -> Outcome<f64> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut most: f64 = 0.0;
    loop {
        if let Ok(status) = fs::read_to_string(format!("/proc/{}/status", child.id())) {
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = peak.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
            most = most.max(kib.unwrap_or_default() / 1024.0);
        }
        if let Some(status) = child.try_wait()? {
            return if status.success() { Ok(most) } else { Err("a build failed".into()) };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn row(name: &str, unit: &str, ours: f64, peer: Option<(f64, &str)>, goal: Option<f64>) {
    let row = json!({
        "name": name, "unit": unit, "ours": ours, "peer": peer.map(|peer| peer.0), "peer_name": peer.map(|peer| peer.1), "goal": goal
    });
    println!("{row}");
}

/// A project that builds `files` beside its Dockerfile, and pushes into the lab's registry.
fn project<'a>(site: &'a Site, name: &str, files: &Path) -> Outcome<Project<'a>> {
    let project = Project::new(site, name)?;
    let context = project.root().join("context");
    fs::create_dir(&context)?;
    fs::write(context.join("Dockerfile"), DOCKERFILE)?;
    fs::rename(files, context.join("files"))?;
    project.spread(1)?;
    project.edit("build: .\n", "build: context\n")?;
    project.edit("builder:\n", "builder:\n  registry:\n    server: http://${LAB_REGISTRY}\n")?;
    Ok(project)
}

fn build(project: &Project<'_>) -> Outcome {
    project.run(&["build"])?.expect(0).map(drop)
}

/// Where nothing changed.
fn unchanged(site: &Site, place: &Path) -> Outcome {
    let mut before: Option<(usize, f64, f64)> = None;
    for count in COUNTS {
        let files = place.join("files");
        tree::make(&files, count, SMALL)?;
        let project = project(site, "noop", &files)?;
        let context = project.root().join("context");
        build(&project)?;
        let ours = median((0..7).map(|_| timed(|| build(&project))).collect::<Outcome<Vec<_>>>()?);
        let walk = median((0..7).map(|_| timed(|| tree::walk(&context).map(drop))).collect::<Outcome<Vec<_>>>()?);
        eprintln!("unchanged, {count} files: {ours:.3} s, a walk {walk:.4} s");
        let name = format!("unchanged, {count} files");
        row(&name, "s", ours, Some((walk, "walk")), (count == MANY).then_some(0.040));
        if let Some((fewer, theirs, _)) = before {
            #[expect(clippy::cast_precision_loss, reason = "a count of files")]
            let growth = ours / theirs / (count as f64 / fewer as f64);
            row(&format!("growth for each file from {fewer} to {count}"), "times", growth, None, Some(1.0));
        }
        before = Some((count, ours, walk));
        if count == MANY {
            let buildah = Buildah::new(site)?;
            buildah.build(&context)?;
            let peer = median((0..3).map(|_| timed(|| buildah.build(&context))).collect::<Outcome<Vec<_>>>()?);
            row(&name, "s", ours, Some((peer, "buildah")), Some(peer / 40.0));
            changed(site, &project, &buildah)?;
            buildah.end()?;
            beside_buildkit(site, &project, ours)?;
        }
    }
    Ok(())
}

/// Where one file of many changed: build and push.
fn changed(site: &Site, project: &Project<'_>, buildah: &Buildah<'_>) -> Outcome {
    let registry = &site.lab.registry()?.address;
    let context = project.root().join("context");
    project.run(&["push"])?.expect(0)?;
    buildah.push(&format!("{registry}/theirs/many"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..3 {
        tree::change(&context.join("files"), round)?;
        ours.push(timed(|| {
            build(project)?;
            project.run(&["push"])?.expect(0).map(drop)
        })?);
        theirs.push(timed(|| {
            buildah.build(&context)?;
            buildah.push(&format!("{registry}/theirs/many"))
        })?);
    }
    eprintln!("one file changed: {ours:?}, buildah {theirs:?}");
    let (ours, theirs) = (median(ours), median(theirs));
    row("one of 10,000 files changed, build and push", "s", ours, Some((theirs, "buildah")), Some(theirs / 8.0));
    Ok(())
}

/// A BuildKit that remembers nothing. None where it cannot be had.
fn buildkit(site: &Site) -> Option<BuildKit<'_>> {
    BuildKit::new(site).inspect_err(|error| eprintln!("no BuildKit: {error}")).ok()
}

/// BuildKit where nothing changed, which took `unchanged` here, and where one file of many changed.
fn beside_buildkit(site: &Site, project: &Project<'_>, unchanged: f64) -> Outcome {
    let Some(buildkit) = buildkit(site) else { return Ok(()) };
    let name = format!("{}/buildkit/many", site.lab.registry()?.address);
    let context = project.root().join("context");
    buildkit.build(&context, &name, true)?;
    let peer = median((0..3).map(|_| timed(|| buildkit.build(&context, &name, false))).collect::<Outcome<Vec<_>>>()?);
    row(&format!("unchanged, {MANY} files"), "s", unchanged, Some((peer, "BuildKit")), None);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 3..6 {
        tree::change(&context.join("files"), round)?;
        ours.push(timed(|| {
            build(project)?;
            project.run(&["push"])?.expect(0).map(drop)
        })?);
        theirs.push(timed(|| buildkit.build(&context, &name, true))?);
    }
    eprintln!("one file changed: {ours:?}, BuildKit {theirs:?}");
    row("one of 10,000 files changed, build and push", "s", median(ours), Some((median(theirs), "BuildKit")), None);
    buildkit.end()
}

/// Another builder on a context of 1 GiB that it has not seen, several times: build and push.
fn cold_peer(place: &Path, who: &str, mut work: impl FnMut(&Path, usize) -> Outcome<f64>) -> Outcome<f64> {
    let (files, context) = (place.join("files"), place.join("context"));
    let mut theirs = Vec::new();
    for round in 0..2 {
        fs::create_dir(&context)?;
        fs::write(context.join("Dockerfile"), DOCKERFILE)?;
        fs::rename(&files, context.join("files"))?;
        theirs.push(work(&context, round)?);
        eprintln!("1 GiB, {who}: {theirs:?}");
        fs::rename(context.join("files"), &files)?;
        fs::remove_dir_all(&context)?;
    }
    Ok(median(theirs))
}

/// What two cores compress, in seconds for each MiB.
fn compressor(bytes: &[u8]) -> Outcome<f64> {
    let level = libdeflater::CompressionLvl::new(LEVEL).map_err(|_| "a level that there is not")?;
    let halves: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(2)).collect();
    let seconds = timed(|| {
        std::thread::scope(|threads| {
            let working: Vec<_> = halves
                .iter()
                .map(|half| {
                    threads.spawn(move || -> Outcome {
                        let mut compressor = libdeflater::Compressor::new(level);
                        let mut out = vec![0; compressor.gzip_compress_bound(MEMBER)];
                        for member in half.chunks(MEMBER) {
                            compressor.gzip_compress(member, &mut out)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            working.into_iter().try_for_each(|one| one.join().map_err(|_| "a thread panicked")?)
        })
    })?;
    #[expect(clippy::cast_precision_loss, reason = "some hundred MiB")]
    let mib = bytes.len() as f64 / MIB;
    Ok(seconds / mib)
}

/// A context of 1 GiB that nobody has seen.
fn cold(site: &Site, place: &Path) -> Outcome {
    let registry = &site.lab.registry()?.address;
    let files = place.join("files");
    tree::make(&files, 1024, 1 << 20)?;
    let compressing = compressor(&tree::bytes(&files, SAMPLE)?)? * 1024.0;
    let (mut built, mut pushed, mut peak) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        let project = project(site, &format!("cold-{round}"), &files)?;
        let mut command = project.command(&["build", "--json"])?;
        let begun = Instant::now();
        peak.push(watched(&mut command)?);
        built.push(begun.elapsed().as_secs_f64());
        pushed.push(timed(|| project.run(&["push"])?.expect(0).map(drop))?);
        eprintln!("1 GiB: {built:?} + {pushed:?}, {peak:?} MiB; the compressor alone {compressing:.1}");
        fs::rename(project.root().join("context/files"), &files)?;
    }
    let mut zstd = Vec::new();
    for round in 0..3 {
        let project = project(site, &format!("cold-zstd-{round}"), &files)?;
        project.edit("build: context\n", "build:\n      context: context\n      compression: zstd\n")?;
        zstd.push(timed(|| {
            build(&project)?;
            project.run(&["push"])?.expect(0).map(drop)
        })?);
        fs::rename(project.root().join("context/files"), &files)?;
    }
    eprintln!("1 GiB in zstd: {zstd:?}");
    let theirs = cold_peer(place, "buildah", |context, round| {
        let buildah = Buildah::new(site)?;
        let seconds = timed(|| {
            buildah.build(context)?;
            buildah.push(&format!("{registry}/theirs/cold-{round}"))
        })?;
        buildah.end()?;
        Ok(seconds)
    })?;
    let (built, pushed, zstd) = (median(built), median(pushed), median(zstd));
    if let Some(first) = buildkit(site) {
        first.end()?;
        let peer = cold_peer(place, "BuildKit", |context, round| {
            let buildkit = BuildKit::new(site)?;
            let seconds = timed(|| buildkit.build(context, &format!("{registry}/buildkit/cold-{round}"), true))?;
            buildkit.end()?;
            Ok(seconds)
        })?;
        row("1 GiB, cold, build and push", "s", built + pushed, Some((peer, "BuildKit")), None);
    }
    row("1 GiB, cold, build and push", "s", built + pushed, Some((theirs, "buildah")), Some(theirs / 4.0));
    row("1 GiB in zstd, cold, build and push", "s", zstd, Some((theirs, "buildah, gzip")), None);
    row("1 GiB, cold, build", "s", built, Some((compressing, "compressor")), Some(compressing / 0.85));
    row("1 GiB in 1,024 files, memory", "MiB", median(peak), None, Some(200.0));
    fs::remove_dir_all(&files)?;
    one_file(site, place)
}

/// A layer of one file of 1 GiB: memory must not follow it.
fn one_file(site: &Site, place: &Path) -> Outcome {
    let files = place.join("files");
    tree::make(&files, 1, 1 << 30)?;
    let project = project(site, "large", &files)?;
    let mut command = project.command(&["build", "--json"])?;
    row("1 GiB in one file, memory", "MiB", watched(&mut command)?, None, Some(200.0));
    Ok(())
}

fn main() -> Outcome {
    let site = Site::of(&Spec::new(1, Engines::Podman))?;
    let place = tempfile::Builder::new().prefix("bench-").tempdir()?;
    unchanged(&site, place.path())?;
    cold(&site, place.path())
}
