//! The search for a value that must be nowhere.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use jiji_lab::Host;

use crate::Outcome;

/// A value in the forms in which it could be written down.
#[derive(Debug, Clone)]
pub struct Sentinel {
    value: String,
    forms: Vec<Vec<u8>>,
}

impl Sentinel {
    /// A value that nothing else has by chance. It is long enough that a part of it says enough.
    pub fn new(name: &str) -> Self {
        let value = format!("sentinel-{name}-{}-Zq7/+pW==x", std::process::id());
        let mut forms = vec![value.clone().into_bytes(), hex(value.as_bytes()).into_bytes()];
        // Base64 of a text that holds it shows one of three rows of letters, by where in the text it begins.
        for skip in 0..3 {
            let whole = &value.as_bytes()[skip..];
            let whole = &whole[..whole.len() / 3 * 3];
            forms.push(base64(whole));
        }
        Self { value, forms }
    }

    /// The value itself.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether these bytes hold it in any form.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form))
    }

    /// Files below a directory of this machine that hold it.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn files_below(&self, dir: &Path) -> Outcome<Vec<String>> {
        let mut found = Vec::new();
        let mut open = vec![dir.to_owned()];
        while let Some(next) = open.pop() {
            for entry in std::fs::read_dir(&next)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    open.push(entry.path());
                } else if kind.is_file() && self.is_in(&std::fs::read(entry.path())?) {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        Ok(found)
    }

    /// Files of a host that hold it, but for those in which an engine keeps what its containers run with.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn files_on(&self, host: &Host) -> Outcome<Vec<String>> {
        let patterns: Vec<_> = self.forms.iter().map(|form| String::from_utf8_lossy(form).into_owned()).collect();
        let mut argv = vec!["grep", "-r", "-l", "-s", "-a", "-F", "-D", "skip", "-f", "/dev/stdin"];
        argv.extend([
            "/etc",
            "/home",
            "/root",
            "/run",
            "/tmp",
            "/var/cache",
            "/var/lib",
            "/var/log",
            "/var/spool",
            "/var/tmp",
        ]);
        let output = jiji_lab::command::output(&mut host.command(&argv), Some(patterns.join("\n").as_bytes()))?;
        let all = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(all.lines().filter(|path| !engines_own(path)).map(str::to_owned).collect())
    }

    /// The command lines of processes on a host in whose environment it is. Those of the container are due.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn environments_on(&self, host: &Host) -> Outcome<BTreeSet<String>> {
        let pids = host.exec(&["ls", "/proc"])?;
        let mut found = BTreeSet::new();
        for pid in pids.split_whitespace().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            // It may have ended.
            let Ok(environment) = host.read_file(&format!("/proc/{pid}/environ")) else { continue };
            if self.is_in(&environment) {
                let argv = host.read_file(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
                found.insert(String::from_utf8_lossy(&argv).replace('\0', " ").trim().to_owned());
            }
        }
        Ok(found)
    }

    /// Watches the argument vectors of all processes of the machine, of its labs' hosts and of their containers.
    pub fn watch_arguments(&self) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (sentinel, ended, count) = (self.clone(), Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let mut found = BTreeSet::new();
            while !ended.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
                    let Ok(argv) = std::fs::read(entry.path().join("cmdline")) else { continue };
                    if sentinel.is_in(&argv) {
                        found.insert(String::from_utf8_lossy(&argv).replace('\0', " "));
                    }
                }
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
            found
        });
        Watch { stop, rounds, thread }
    }
}

/// Whether an engine keeps there what it runs a container with: its specification with its environment.
fn engines_own(path: &str) -> bool {
    [
        "/var/lib/containers/storage/overlay-containers/",
        "/run/containers/storage/overlay-containers/",
        "/var/lib/containers/storage/libpod/",
        "/run/crun/",
        "/var/lib/docker/containers/",
        "/var/lib/docker/containerd/",
        "/run/docker/",
        "/var/run/docker/",
    ]
    .iter()
    .any(|own| path.starts_with(own))
}

/// A watch that goes on until it is ended.
pub struct Watch {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Watch {
    /// Ends it: argument vectors that held the value, and how often all processes were looked at.
    ///
    /// # Errors
    /// When the watch itself failed.
    pub fn end(self) -> Outcome<(BTreeSet<String>, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let found = self.thread.join().map_err(|_| "the watch of arguments panicked")?;
        Ok((found, self.rounds.load(Ordering::Relaxed)))
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Base64 of whole groups of three bytes (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks_exact(3).map(|group| u32::from_be_bytes([0, group[0], group[1], group[2]]));
    groups.flat_map(|group| [18, 12, 6, 0].map(|shift| LETTERS[(group >> shift) as usize & 63])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_plain_in_hexadecimal_and_in_base64_wherever_it_begins() {
        let sentinel = Sentinel::new("test");
        assert!(sentinel.is_in(format!("a {} b", sentinel.value()).as_bytes()));
        assert!(sentinel.is_in(hex(format!("x{}", sentinel.value()).as_bytes()).as_bytes()));
        for before in ["", "a", "ab", "abc"] {
            let mut text = format!("{before}{}", sentinel.value());
            while text.len() % 3 != 0 {
                text.push('!');
            }
            assert!(sentinel.is_in(&base64(text.as_bytes())), "{before}");
        }
        assert!(!sentinel.is_in(b"sentinel-test"));
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        assert_eq!(base64(b"foobar"), b"Zm9vYmFy");
    }
}
