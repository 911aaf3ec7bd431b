//! The builds of `jiji-host` that this program carries.
//!
//! `cargo xtask` builds them first and embeds them by way of `build.rs`; a plain `cargo build` embeds none. Which one a server needs,
//! and sending it there, is the rest of [`crate::fleet`].

/// Architecture as `uname -m` says it, and the program.
static BINARIES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/host_binaries.rs"));

/// The static `jiji-host` for an architecture (`x86_64`, `aarch64`), if this program carries it.
pub fn host_binary(architecture: &str) -> Option<&'static [u8]> {
    BINARIES.iter().find(|(name, _)| *name == architecture).map(|(_, bytes)| *bytes)
}

/// The architectures that this program carries a `jiji-host` for.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    BINARIES.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_is_a_program() {
        for architecture in architectures() {
            let bytes = host_binary(architecture).expect("it is in the table");
            assert!(bytes.starts_with(b"\x7fELF"), "{architecture}");
        }
        assert_eq!(host_binary("pdp11"), None);
    }
}
