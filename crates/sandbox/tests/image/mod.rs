//! A root file system of busybox and a few accounts, and steps run in it.
#![allow(dead_code, reason = "each test file is a program of its own and uses its part")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

pub mod archive;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use jiji_sandbox::{Exit, Kind, Outcome, Refusal, RunError, Sandbox, Scratch, Step, Stream, probe};

/// Leaves the test where it cannot be run, saying so.
macro_rules! needs_root {
    () => {
        if !$crate::image::is_able() {
            return;
        }
    };
}
pub(crate) use needs_root;

/// Leaves a test of what only this machine's root can do, or see from outside, where somebody else runs it.
macro_rules! needs_machines_root {
    () => {
        $crate::image::needs_root!();
        if *$crate::image::sandbox().way().expect("able") != jiji_sandbox::Way::Root {
            return;
        }
    };
}
#[allow(unused_imports, reason = "each test file is a program of its own and uses its part")]
pub(crate) use needs_machines_root;

/// Whether this user may run steps; if not, says why. Another refusal than that is a failure.
pub fn is_able() -> bool {
    static ABLE: OnceLock<bool> = OnceLock::new();
    *ABLE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory for the test");
        match probe(&sandbox(), dir.path()) {
            Ok(_) => true,
            Err(
                refusal @ (Refusal::NoIds
                | Refusal::NoSubordinateIds { .. }
                | Refusal::NoTool { .. }
                | Refusal::NoNamespaces { .. }),
            ) => {
                eprintln!("SKIPPED: {refusal}; {}", refusal.hint());
                false
            }
            Err(refusal) => panic!("{refusal}; {}", refusal.hint()),
        }
    })
}

/// The sandbox with the crate's own program as the helper: a test's main belongs to its harness.
pub fn sandbox() -> Sandbox {
    let own = std::env::var_os(HELPER).map(PathBuf::from);
    Sandbox::new().with_helper(own.unwrap_or_else(|| env!("CARGO_BIN_EXE_jiji-sandbox").into()))
}

/// Names a copy of the helper that a user who is not root can reach.
pub const HELPER: &str = "JIJI_SANDBOX_TEST_HELPER";

pub struct Image {
    pub dir: tempfile::TempDir,
    pub layers: Vec<PathBuf>,
}

/// What a step did.
pub struct Ran {
    pub exit: Exit,
    pub out: String,
    pub err: String,
    /// `+ path`, `~ path` or `- path`.
    pub changed: Vec<String>,
    pub outcome: Outcome,
    pub scratch: Scratch,
}

impl Image {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("jiji-sandbox-test-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .expect("a directory for the test");
        let base = dir.path().join("base");
        for sub in ["bin", "etc", "root", "tmp", "home/app"] {
            fs::create_dir_all(base.join(sub)).expect("base directory");
        }
        fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).expect("mode");
        fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode");
        fs::copy("/bin/busybox", base.join("bin/busybox")).expect("busybox-static is installed");
        for name in include_str!("applets").split_whitespace() {
            symlink("busybox", base.join("bin").join(name)).expect("link");
        }
        let etc = [
            ("passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
            ("group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"),
            ("motd", "welcome\n"),
        ];
        for (name, text) in etc {
            fs::write(base.join("etc").join(name), text).expect("account file");
        }
        let layers = vec![base];
        Self { dir, layers }
    }

    /// The path of something in the image's lowest layer.
    pub fn base(&self, path: impl AsRef<Path>) -> PathBuf {
        self.layers[0].join(path)
    }

    pub fn step(&self, script: &str) -> Step {
        Step::new(["/bin/sh", "-c", script], self.layers.clone())
    }

    pub fn sh(&self, script: &str) -> Ran {
        self.run(&self.step(script)).expect("the step begins")
    }

    pub fn run(&self, step: &Step) -> Result<Ran, RunError> {
        self.run_in(&sandbox(), step)
    }

    pub fn run_in(&self, sandbox: &Sandbox, step: &Step) -> Result<Ran, RunError> {
        let scratch = Scratch::new(sandbox, self.dir.path()).expect("scratch");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let outcome = sandbox.run(step, &scratch, &mut |stream, line| {
            let to = if stream == Stream::Out { &mut out } else { &mut err };
            to.extend_from_slice(line);
            to.push(b'\n');
        })?;
        let changed = sandbox.changes(&scratch.upper(), &step.layers).expect("changes");
        let changed = changed.list().iter().map(|change| {
            let sign = match change.kind {
                Kind::Added(..) => '+',
                Kind::Modified(..) => '~',
                Kind::Whiteout => '-',
            };
            format!("{sign} {}", change.path.display())
        });
        Ok(Ran {
            exit: outcome.exit,
            out: String::from_utf8_lossy(&out).into_owned(),
            err: String::from_utf8_lossy(&err).into_owned(),
            changed: changed.collect(),
            outcome,
            scratch,
        })
    }
}

pub fn argv(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
