//! `cargo xtask plugins`: builds the guests of `plugins/` anew, the default ones into `plugins/dist/` and the tests' ones to where the
//! tests expect them.
//!
//! What is built is committed, so that a plain build of jiji needs no wasm toolchain. No path of the building machine gets into the
//! bytes; the same compiler gives the same bytes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::process::{cargo, command, output, root, run, target};
use crate::setup;

const TARGET: &str = "wasm32-unknown-unknown";

/// A guest and where its component goes.
const GUESTS: [(&str, &str); 4] = [
    ("health-probe", "plugins/dist/health-probe.wasm"),
    ("mesh-wireguard", "plugins/dist/mesh-wireguard.wasm"),
    ("proxy-kamal", "plugins/dist/proxy-kamal.wasm"),
    ("hostile", "src/plugin/fixtures/hostile.wasm"),
];

/// Guests that are no part of the plugins' workspace, each in `examples/` with its own lock file.
const APART: [(&str, &str); 2] = [
    ("proxy-caddy", "examples/proxy-caddy/dist/proxy-caddy.wasm"),
    ("proxy-edge", "examples/proxy-edge/dist/proxy-edge.wasm"),
];

/// The digests of what is in `plugins/dist/`.
const SUMS: &str = "plugins/dist/SHA256SUMS";

/// The compiler that made what is committed: another one may give other bytes.
const COMPILER: &str = "plugins/dist/COMPILER";

fn compiler() -> Result<String, Error> {
    output(command("rustc").arg("--version"))
}

/// Compares what is committed with a fresh build, where this compiler is the one that made it and knows wasm.
///
/// # Errors
/// When a component differs.
pub fn compare() -> Result<(), Error> {
    if std::fs::read_to_string(root().join(COMPILER)).ok() == Some(compiler()?) && setup::add_target(TARGET) {
        build(&Args { check: true })
    } else {
        Ok(())
    }
}

/// How the guests are built.
#[derive(clap::Args)]
pub struct Args {
    /// Change nothing; fail if a committed component differs
    #[arg(long)]
    check: bool,
}

/// Builds the guests.
///
/// # Errors
/// When one does not compile, or with `--check` one differs.
pub fn build(args: &Args) -> Result<(), Error> {
    if !setup::add_target(TARGET) {
        let hint = "rustup brings it; without rustup, install the standard library of that target".to_owned();
        return Err(Error::Missing { things: vec![format!("the Rust target {TARGET}")], hint });
    }
    let manifest = root().join("plugins/Cargo.toml");
    let place = target().join("plugins");
    let compile = |manifest: &Path, names: &[(&str, &str)]| {
        let mut guests = cargo();
        guests.args(["build", "--release", "--locked", "--target", TARGET, "--manifest-path"]).arg(manifest);
        for (name, _) in names {
            guests.args(["--package", name]);
        }
        guests.env("CARGO_TARGET_DIR", &place).env("CARGO_ENCODED_RUSTFLAGS", remapped());
        // A developer's setting for quicker builds gives other bytes.
        guests.env("CARGO_INCREMENTAL", "0");
        run(&mut guests)
    };
    compile(&manifest, &GUESTS)?;
    for (name, committed) in APART {
        compile(&root().join("examples").join(name).join("Cargo.toml"), &[(name, committed)])?;
    }
    let mut differing = Vec::new();
    for (name, committed) in GUESTS.into_iter().chain(APART) {
        let module = place.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
        let fresh = place.join(format!("{name}.wasm"));
        let mut encode = cargo();
        encode.args(["run", "--quiet", "--locked", "--package", "encode", "--manifest-path"]).arg(&manifest);
        run(encode.env("CARGO_TARGET_DIR", &place).arg("--").arg(&module).arg(&fresh))?;
        let committed = root().join(committed);
        let built = std::fs::read(&fresh).map_err(Error::file("read", &fresh))?;
        if std::fs::read(&committed).is_ok_and(|bytes| bytes == built) {
            continue;
        }
        differing.push(name.to_owned());
        if !args.check {
            std::fs::write(&committed, built).map_err(Error::file("write", &committed))?;
        }
    }
    if args.check {
        return if differing.is_empty() { Ok(()) } else { Err(Error::Tests { failed: differing }) };
    }
    sums()
}

/// Writes the digests anew.
fn sums() -> Result<(), Error> {
    let mut sha256sum = command("sha256sum");
    sha256sum.current_dir(root().join("plugins/dist"));
    for (name, committed) in GUESTS {
        if committed.starts_with("plugins/dist/") {
            sha256sum.arg(format!("{name}.wasm"));
        }
    }
    for (file, text) in [(SUMS, output(&mut sha256sum)?), (COMPILER, compiler()?)] {
        let path = root().join(file);
        std::fs::write(&path, text).map_err(Error::file("write", &path))?;
    }
    Ok(())
}

/// Compiler flags that replace this machine's paths, in cargo's form for flags with spaces. What comes from a registry keeps its name
/// and version alone.
fn remapped() -> OsString {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.and_then(|home| std::fs::read_dir(home.join("registry/src")).ok());
    let mut paths: Vec<PathBuf> = sources.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.push(root());
    let mut flags = OsString::new();
    for path in paths {
        if !flags.is_empty() {
            flags.push("\u{1f}");
        }
        flags.push("--remap-path-prefix=");
        flags.push(path);
        flags.push("=/crates");
    }
    flags
}
