//! Embeds the builds of `jiji-host` that lie in the directory `JIJI_HOST_BINARIES`: `jiji-host-x86_64`, `jiji-host-aarch64`.
//!
//! Without the variable nothing is embedded: the library and its unit tests need no second build, and `jiji` says by itself what it
//! lacks (see `fleet::embedded`).

use std::fmt::Write as _;
use std::path::PathBuf;

const VARIABLE: &str = "JIJI_HOST_BINARIES";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let mut table = "&[\n".to_owned();
    if let Some(directory) = std::env::var_os(VARIABLE).filter(|directory| !directory.is_empty()) {
        for architecture in ["x86_64", "aarch64"] {
            let name = format!("jiji-host-{architecture}");
            let path = PathBuf::from(&directory).join(&name);
            println!("cargo::rerun-if-changed={}", path.display());
            if path.is_file() {
                // A copy, so that no path of the building machine gets into the program.
                std::fs::copy(&path, out.join(&name))?;
                writeln!(table, "    ({architecture:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))),")?;
            }
        }
    }
    table.push_str("]\n");
    std::fs::write(out.join("host_binaries.rs"), table)?;
    Ok(())
}
