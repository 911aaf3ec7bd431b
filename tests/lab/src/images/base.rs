//! The base images: which packages they are made of, what is left out, and the digests that come out.
//!
//! A changed pin or rule changes the digest, and with it the one in the Dockerfiles under `examples/`.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    cache::Cache,
    deb::Package,
    layer::{self, Node, Tree},
    layout::{self, Config},
};
use crate::LabError;

/// A base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Busybox alone, with `/bin/sh`.
    Busybox,
    /// Python's interpreter and standard library, the C library they need, and busybox.
    Python,
}

impl Base {
    /// All base images.
    pub const ALL: [Self; 2] = [Self::Busybox, Self::Python];

    /// The name in the registry, with its tag.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox:1.35",
            Self::Python => "python:3.11",
        }
    }

    /// The digest of the manifest: what Dockerfiles pin.
    pub fn digest(self) -> &'static str {
        match self {
            Self::Busybox => "sha256:9a6dac17562a849212e67f9d641db5e2f78506d82bac2584dd89703f843c2229",
            Self::Python => "sha256:4ca96f89756fba45bd6ab836f9f071dd490ef57919cce8eb4877b713d026c363",
        }
    }

    fn packages(self) -> &'static [Package] {
        match self {
            Self::Busybox => &[BUSYBOX],
            Self::Python => &PYTHON,
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Busybox => "/bin/sh",
            Self::Python => "/usr/bin/python3",
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

const BUSYBOX: Package = Package {
    name: "busybox-static",
    version: "1:1.35.0-4+deb12u1+b1",
    sha256: "3d3fdbe91d4660c873e14b092c213fe81c1da6362daa236eb25d0171eb108744",
};

/// All from the main archive, where a version stays until the next point release, not from the security archive.
const PYTHON: [Package; 7] = [
    BUSYBOX,
    Package {
        name: "libc6",
        version: "2.36-9+deb12u14",
        sha256: "ba4f88f73dbc3ae9055f3c20f4523bfdbaf1ad13ff95e258924f77d20b4fbedf",
    },
    Package {
        name: "libexpat1",
        version: "2.5.0-1+deb12u2",
        sha256: "2255e62fc22a86d2c544b8a3f516da9aee19383ad5742722ab4ce7f66a30dbc8",
    },
    Package {
        name: "zlib1g",
        version: "1:1.2.13.dfsg-1",
        sha256: "d7dd1d1411fedf27f5e27650a6eff20ef294077b568f4c8c5e51466dc7c08ce4",
    },
    Package {
        name: "libpython3.11-minimal",
        version: "3.11.2-6+deb12u8",
        sha256: "f3beaa03994ffedacf73c43a0843d53b062d347115d8af65bee2034552a4e6f9",
    },
    Package {
        name: "libpython3.11-stdlib",
        version: "3.11.2-6+deb12u8",
        sha256: "890b3540dad8a1ccc0deeca025db735bcc82629a76adacbe3b50fcc06ed528ca",
    },
    Package {
        name: "python3.11-minimal",
        version: "3.11.2-6+deb12u8",
        sha256: "4aba533f7cc5e7b93b7ff24482840e96813f5bcde9cce028395b65a0d799ccee",
    },
];

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
    for package in base.packages() {
        for (path, node) in package.files(cache)? {
            if !LEFT_OUT.iter().any(|prefix| path.starts_with(prefix)) {
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
    if base == Base::Python {
        for name in ["python3", "python"] {
            tree.insert(format!("usr/bin/{name}"), Node::Link { target: "python3.11".to_owned() });
        }
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
    let config = Config {
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        command: vec![base.command().to_owned()],
    };
    layout::write(dir, &tree, &config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_images_come_out_with_the_digests_that_dockerfiles_pin() {
        let cache = Cache::open().expect("a cache");
        let mut built = Vec::new();
        for base in Base::ALL {
            let dir = tempfile::tempdir().expect("a directory");
            let actual = write(&cache, base, dir.path()).expect("packages that Debian serves");
            built.push((base.name(), actual));
        }
        assert_eq!(built, Base::ALL.map(|base| (base.name(), base.digest().to_owned())));
    }
}
