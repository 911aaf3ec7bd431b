//! `jiji version`: the version of this program and of what it speaks.

use std::io::Write;

use super::args::Global;
use super::exit::Exit;
use super::failure::Failure;

/// Prints the version on standard output.
pub fn run(global: &Global) -> Result<Exit, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let line = if global.json {
        serde_json::json!({
            "version": version,
            "protocol": jiji_model::protocol::VERSION,
            "layer_format": jiji_model::image::LAYER_FORMAT,
            "lock": crate::lockfile::VERSION,
        })
        .to_string()
    } else {
        format!("jiji {version}")
    };
    writeln!(std::io::stdout(), "{line}")
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    Ok(Exit::Done)
}
