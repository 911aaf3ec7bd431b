//! Where the matrix happens: namespaces in which nothing but loopback can be reached, with a registry and package indexes, and users who
//! have subordinate ids or none.
//!
//! Nothing here cleans up after itself: processes end with the namespace of processes, mounts with that of mounts.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use jiji_lab::command::{command, run};
use jiji_lab::images::{Base, Layout};

use super::{Project, packages};
use crate::{Outcome, jiji_bin};

/// The variable that says that this process is inside.
const INSIDE: &str = "JIJI_MATRIX_INSIDE";

/// Where the registry listens. The namespace is new, so every number is free, and the same number makes the same digests.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// Where packages are served.
pub const INDEX: &str = "127.0.0.1:8000";

/// Users that this machine does not know otherwise: one has subordinate ids, the other has none.
pub const STRANGER: u32 = 54_321;
/// The one who has none.
pub const ALONE: u32 = 54_322;

/// Brings what these projects need into the cache, then goes into namespaces of its own with this very program, and gives how that ended;
/// none where this is inside.
///
/// # Errors
/// When something cannot be had, this is not root, or unshare is not there.
pub fn enter(wanted: &[&'static Project]) -> Outcome<Option<ExitCode>> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(None);
    }
    bases(wanted)?;
    packages::gather(wanted)?;
    let mut unshare =
        command("unshare", ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    unshare.arg("--").arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Ok(Some(if unshare.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// The inside, with all that is served in it.
pub struct World {
    dir: tempfile::TempDir,
    jiji: PathBuf,
    served: Vec<Child>,
}

impl World {
    /// Serves what these projects need: what [`enter`] brought into the cache.
    ///
    /// # Errors
    /// When something cannot be served.
    pub fn new(wanted: &[&'static Project]) -> Outcome<Self> {
        // Below /var/tmp: a real disk, which /tmp need not be.
        let dir = tempfile::Builder::new().prefix("jiji-matrix-").tempdir_in("/var/tmp")?;
        run(&mut command("chmod", [Path::new("755"), dir.path()]))?;
        run(&mut command("ip", ["link", "set", "lo", "up"]))?;
        accounts(dir.path())?;
        let jiji = dir.path().join("bin/jiji");
        std::fs::create_dir(dir.path().join("bin"))?;
        std::fs::copy(jiji_bin()?, &jiji)?;
        let mut world = Self { dir, jiji, served: Vec::new() };
        world.serve_images(wanted)?;
        world.serve_packages(wanted)?;
        Ok(world)
    }

    /// A directory that goes with this.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The program, where everybody may run it.
    pub fn jiji(&self) -> &Path {
        &self.jiji
    }

    fn serve_images(&mut self, wanted: &[&'static Project]) -> Outcome {
        let storage = self.dir.path().join("registry");
        let config = self.dir.path().join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {REGISTRY}\n",
            storage.display()
        );
        std::fs::write(&config, text)?;
        self.serve(command("docker-registry", ["serve"]).arg(&config), REGISTRY)?;
        for layout in bases(wanted)? {
            run(command(
                "skopeo",
                ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"],
            )
            .arg(format!("oci:{}:latest", layout.dir.display()))
            .arg(format!("docker://{REGISTRY}/{}", layout.name)))?;
        }
        Ok(())
    }

    fn serve_packages(&mut self, wanted: &[&'static Project]) -> Outcome {
        let root = self.dir.path().join("index");
        std::fs::create_dir(&root)?;
        for (name, place) in packages::gather(wanted)? {
            std::os::unix::fs::symlink(place, root.join(name))?;
        }
        let port = INDEX.rsplit(':').next().unwrap_or_default();
        let args = ["-m", "http.server", "--bind", "127.0.0.1", "--directory"];
        self.serve(command("python3", args).arg(root).arg(port), INDEX)
    }

    fn serve(&mut self, command: &mut Command, address: &str) -> Outcome {
        let log = std::fs::File::create(self.dir.path().join(format!("{}.log", self.served.len())))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().map_err(|error| format!("start {:?}: {error}", command.get_program()))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let begun = loop {
            if TcpStream::connect(address).is_ok() {
                break Ok(());
            }
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                break Err(format!("{:?} does not listen at {address}", command.get_program()));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.served.push(child);
        Ok(begun?)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.served {
            drop(child.kill());
            drop(child.wait());
        }
        // Files of steps may belong to anybody, and the directory itself is removed with what is left.
        drop(run(command("sh", ["-c", "rm -rf \"$1\"/*", "sh"]).arg(self.dir.path())));
    }
}

/// The images that projects are built on.
fn bases(wanted: &[&'static Project]) -> Outcome<Vec<Layout>> {
    let mut names: Vec<Base> = wanted.iter().flat_map(|project| project.bases).copied().collect();
    // What reads the clock is always built.
    names.push(Base::Busybox);
    names.dedup();
    let mut layouts = Vec::new();
    for base in Base::ALL.into_iter().filter(|base| names.contains(base)) {
        layouts.push(Layout::of(base)?);
    }
    if wanted.iter().any(|project| project.on_debian) {
        layouts.push(Layout::debian()?);
    }
    Ok(layouts)
}

/// Puts the strangers into the accounts of this machine, as far as this namespace of mounts sees them.
fn accounts(dir: &Path) -> Outcome {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let group = std::fs::read_to_string("/etc/group")?;
    let files = [
        (
            "/etc/passwd",
            format!(
                "{passwd}stranger:x:{STRANGER}:{STRANGER}::/nowhere:/bin/sh\nalone:x:{ALONE}:{ALONE}::/nowhere:/bin/sh\n"
            ),
        ),
        ("/etc/group", format!("{group}stranger:x:{STRANGER}:\nalone:x:{ALONE}:\n")),
        ("/etc/subuid", "stranger:1900000000:65536\n".to_owned()),
        ("/etc/subgid", "stranger:1900000000:65536\n".to_owned()),
    ];
    for (path, text) in files {
        let copy = dir.join(path.trim_start_matches("/etc/"));
        std::fs::write(&copy, text)?;
        if !Path::new(path).exists() {
            std::fs::write(path, "")?;
        }
        run(command("mount", ["--bind"]).arg(&copy).arg(path))?;
    }
    Ok(())
}
