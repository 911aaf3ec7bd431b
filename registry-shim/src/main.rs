//! `registry-shim --root DIR --listen ADDR [--read-only]`: a small OCI registry in one process.
//!
//! Prints one line with the address it listens on, so that port 0 may be asked for, and ends on SIGTERM or SIGINT.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use jiji_registry_shim::Registry;
use jiji_store::Store;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: registry-shim --root DIR --listen ADDR [--read-only]";

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("error: failed to {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("read the command line: {0}\n{USAGE}")]
struct Usage(String);

#[derive(Debug, thiserror::Error)]
#[error("{action}")]
struct Failed {
    action: String,
    source: std::io::Error,
}

fn run(mut words: impl Iterator<Item = OsString>) -> Result<(), Box<dyn std::error::Error>> {
    let (mut root, mut listen, mut read_only) = (None, None, false);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| Usage(format!("{} needs a value", word.display())));
        match word.to_str() {
            Some("--root") => root = Some(PathBuf::from(value()?)),
            Some("--listen") => listen = Some(value()?.to_string_lossy().into_owned()),
            Some("--read-only") => read_only = true,
            _ => return Err(Usage(format!("unknown word {}", word.display())).into()),
        }
    }
    let root = root.ok_or_else(|| Usage("--root is missing".to_owned()))?;
    let listen = listen.ok_or_else(|| Usage("--listen is missing".to_owned()))?;
    let store = Store::open(root.join("store"))?;
    let registry = match read_only {
        true => Registry::read_only(store),
        false => Registry::read_write(store, &root.join("names"))?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Failed { action: "start".to_owned(), source })?;
    runtime.block_on(async {
        let failed = |source| Failed { action: format!("listen on `{listen}`"), source };
        let listener = tokio::net::TcpListener::bind(&listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        writeln!(std::io::stdout(), "listening on {address}").map_err(failed)?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        jiji_registry_shim::serve(listener, registry, stop).await.map_err(failed)?;
        Ok(())
    })
}
