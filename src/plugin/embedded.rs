//! The default plugins, so that an installed jiji needs no toolchain for WebAssembly and no download. `cargo xtask plugins` rebuilds
//! them from `plugins/`.

/// Name and component of each.
const EMBEDDED: [(&str, &[u8]); 3] = [
    ("health-probe", include_bytes!("../../plugins/dist/health-probe.wasm")),
    ("mesh-wireguard", include_bytes!("../../plugins/dist/mesh-wireguard.wasm")),
    ("proxy-kamal", include_bytes!("../../plugins/dist/proxy-kamal.wasm")),
];

/// The embedded plugins: name and component.
pub fn embedded() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    EMBEDDED.into_iter()
}

#[cfg(test)]
mod tests {
    use jiji_model::digest::Digest;

    #[test]
    fn the_embedded_plugins_are_those_that_were_recorded() {
        let recorded: Vec<_> = include_str!("../../plugins/dist/SHA256SUMS").lines().collect();
        let embedded: Vec<_> =
            super::embedded().map(|(name, bytes)| format!("{}  {name}.wasm", Digest::of(bytes).hex())).collect();
        assert_eq!(recorded, embedded, "run `cargo xtask plugins` and commit what it writes");
    }

    #[test]
    fn the_embedded_plugins_tell_nothing_of_the_machine_that_built_them() {
        for (name, bytes) in super::embedded() {
            for home in [&b"/home/"[..], b"/root/", b"/Users/", b".cargo", b"registry/src"] {
                let found = bytes.windows(home.len()).position(|window| window == home);
                // The proxy's own home directory in its container is meant.
                let found = found.filter(|at| !bytes[*at..].starts_with(b"/home/kamal-proxy"));
                assert_eq!(found, None, "`{}` in {name}", String::from_utf8_lossy(home));
            }
        }
    }
}
