//! Makes sure that what the tests and the demonstration need is there.
//!
//! On Debian and Ubuntu it installs what is missing, as root or by `sudo -n`, after it has printed the list and asked once. No daemon
//! of the machine's own is started. Elsewhere it says what is missing and ends. Nothing is installed that is there already, whoever
//! brought it.

mod apt;
mod go;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use crate::error::Error;
use crate::process::{cargo, command, find, output, root, run, succeeds};

/// The target that `jiji-host` is built for on this machine's architecture, where it can be had.
pub fn musl() -> &'static str {
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-musl" } else { "x86_64-unknown-linux-musl" }
}

/// How much is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// To build.
    Build,
    /// To run the tests that need no hosts too.
    Unit,
    /// To bring up laboratories too.
    Lab,
    /// To build in all the places that the matrix has.
    Matrix,
}

/// A program that must be there and the package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

const BUILD: &[Tool] = &[tool("cc", "gcc"), tool("git", "git")];

const LAB: &[Tool] = &[
    tool("apt-get", "apt"),
    tool("buildah", "buildah"),
    tool("busybox", "busybox-static"),
    tool("crun", "crun"),
    tool("curl", "curl"),
    tool("docker", "docker.io"),
    tool("docker-registry", "docker-registry"),
    tool("dockerd", "docker.io"),
    tool("dpkg-deb", "dpkg"),
    tool("faketime", "faketime"),
    tool("ip", "iproute2"),
    tool("iptables", "iptables"),
    tool("losetup", "mount"),
    tool("mkfs.ext4", "e2fsprogs"),
    tool("newuidmap", "uidmap"),
    tool("nft", "nftables"),
    tool("nsenter", "util-linux"),
    tool("podman", "podman"),
    tool("setcap", "libcap2-bin"),
    tool("skopeo", "skopeo"),
    tool("slirp4netns", "slirp4netns"),
    tool("ssh", "openssh-client"),
    tool("sshd", "openssh-server"),
    tool("sudo", "sudo"),
    tool("umoci", "umoci"),
    tool("unshare", "util-linux"),
    tool("wg", "wireguard-tools"),
    tool("wireguard-go", "wireguard-go"),
];

const MATRIX: &[Tool] = &[
    tool("apt-ftparchive", "apt-utils"),
    tool("mkfs.btrfs", "btrfs-progs"),
    tool("mkfs.xfs", "xfsprogs"),
    tool("mmdebstrap", "mmdebstrap"),
];

/// Programs that lie where no path leads.
const FILES: &[(&[&str], &str)] = &[
    (&["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"], "netavark"),
    (&["/usr/lib/podman/aardvark-dns", "/usr/libexec/podman/aardvark-dns"], "aardvark-dns"),
];

/// What a run may count on afterwards.
#[derive(Debug, Default)]
pub struct Setup {
    /// Directories that go before the path: programs that were brought for this checkout alone.
    pub paths: Vec<PathBuf>,
    /// Whether the musl target is there. Without it `jiji-host` is built static against glibc.
    pub musl: bool,
}

impl Setup {
    /// The path with this checkout's own programs first.
    pub fn path(&self) -> std::ffi::OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = self.paths.iter().cloned().chain(std::env::split_paths(&path));
        std::env::join_paths(all).unwrap_or(path)
    }
}

/// Looks for everything and installs what is missing.
///
/// # Errors
/// When something is missing that cannot be installed, or the person declines.
pub fn ensure(level: Level, yes: bool) -> Result<Setup, Error> {
    apt::sweep();
    let mut packages: Vec<&'static str> = Vec::new();
    let tools = BUILD.iter().chain(LAB.iter().filter(|_| level >= Level::Lab));
    let tools = tools.chain(MATRIX.iter().filter(|_| level == Level::Matrix));
    packages.extend(tools.filter(|tool| find(tool.program).is_none()).map(|tool| tool.package));
    if level >= Level::Lab {
        let absent = FILES.iter().filter(|(paths, _)| !paths.iter().any(|path| std::path::Path::new(path).exists()));
        packages.extend(absent.map(|(_, package)| *package));
    }
    let go = if level >= Level::Unit { go::find() } else { go::Go::OnPath };
    if go == go::Go::Missing && find("pip3").is_none() {
        packages.push("python3-pip");
    }
    packages.sort_unstable();
    packages.dedup();

    let components: Vec<&str> = ["fmt", "clippy"]
        .into_iter()
        .filter(|name| level >= Level::Unit && !succeeds(cargo().args([name, "--version"])))
        .collect();
    let musl = has_target(musl())?;
    let rustup = find("rustup").is_some();

    let mut list: Vec<String> = packages.iter().map(|package| format!("the package {package}")).collect();
    list.extend(components.iter().map(|name| format!("cargo {name}, by rustup")));
    if !musl && rustup {
        list.push(format!("the Rust target {}, by rustup", self::musl()));
    }
    if go == go::Go::Missing {
        list.push(format!("Go {} or newer, by pip, below target/", go::NEEDED));
    }
    if !list.is_empty() {
        if !packages.is_empty() && !apt::is_here() {
            return Err(Error::Missing {
                things: list,
                hint: "this is neither Debian nor Ubuntu: install them by hand and start again".to_owned(),
            });
        }
        if !components.is_empty() && !rustup {
            let things = components.iter().map(|name| format!("cargo {name}")).collect();
            let hint = "install the components of your Rust toolchain".to_owned();
            return Err(Error::Missing { things, hint });
        }
        ask(&list, yes)?;
    }
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    for name in components {
        let component = if name == "fmt" { "rustfmt" } else { name };
        run(command("rustup").args(["component", "add", component]))?;
    }
    let musl = musl || (rustup && add_target(self::musl()));
    let mut setup = Setup { paths: Vec::new(), musl };
    setup.paths.extend(go::ensure(go)?);
    Ok(setup)
}

/// Whether the standard library of a target is installed.
fn has_target(target: &str) -> Result<bool, Error> {
    let sysroot = output(command("rustc").args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(sysroot.trim()).join("lib/rustlib").join(target).join("lib").is_dir())
}

/// Brings the standard library of a target, unless it is there; says whether it is there now.
pub fn add_target(target: &str) -> bool {
    has_target(target).unwrap_or(false)
        || (find("rustup").is_some() && run(command("rustup").args(["target", "add", target])).is_ok())
}

fn ask(list: &[String], yes: bool) -> Result<(), Error> {
    let yes = yes || std::env::var("CI").is_ok_and(|value| value == "true");
    if !yes && !std::io::stdin().is_terminal() {
        let hint = "`--yes` or CI=true lets this command install them".to_owned();
        return Err(Error::Missing { things: list.to_vec(), hint });
    }
    let mut out = std::io::stderr().lock();
    // Nobody to tell is no reason to stop.
    let _ = writeln!(out, "these are missing and will be installed:\n  {}", list.join("\n  "));
    if yes {
        return Ok(());
    }
    let _ = write!(out, "go on? [y/N] ");
    let _ = out.flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Error::file("read", "the answer"))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Error::Declined) }
}

/// Where programs that were brought for this checkout alone lie.
fn own_tools() -> PathBuf {
    root().join("target/tools")
}
