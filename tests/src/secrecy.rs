//! The search for a value that must be nowhere.
//!
//! Every project of the suite ships the value of [`suite`]. What a run says is searched for it when the run ends, the operator's files
//! when the project goes, and hosts when the laboratory is given back, so every test of every area is a test of this as well.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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

/// The secret of every project of this program that has none of its own.
pub fn suite() -> &'static Sentinel {
    static SUITE: OnceLock<Sentinel> = OnceLock::new();
    SUITE.get_or_init(|| Sentinel::new("suite"))
}

impl Sentinel {
    /// A value that nothing else has by chance. It is long enough that a part of it says enough.
    pub fn new(name: &str) -> Self {
        Self::of(&format!("sentinel-{name}-{}-Zq7/+pW==x", std::process::id()))
    }

    /// A value that is given.
    pub fn of(value: &str) -> Self {
        let value = value.to_owned();
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

    /// Where it is on a host though it must not: files of jiji and of the engine, layers and configurations of images, logs of containers.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn places_on(&self, host: &Host) -> Outcome<Vec<String>> {
        const SCRIPT: &str = r#"
            grep -r -l -s -a -F -D skip -f - /var/lib/jiji /root /home /run /var/lib/containers/storage /var/lib/docker < "$2"
            for id in $("$1" ps --all --quiet); do "$1" logs "$id" 2>&1 | grep -q -a -F -f "$2" && echo "log of $id"; done
            for id in $("$1" images --all --quiet --no-trunc | sort -u); do
                "$1" image inspect "$id" | grep -q -a -F -f "$2" && echo "image $id"
            done
            exit 0
        "#;
        let patterns: Vec<_> = self.forms.iter().map(|form| String::from_utf8_lossy(form).into_owned()).collect();
        // Where it is searched for it must not be, and argument vectors are watched.
        let list = "/dev/shm/jiji-sentinel";
        host.write_file(list, patterns.join("\n").as_bytes())?;
        let found = host.exec(&["sh", "-c", SCRIPT, "search", host.engine_cli(), list]);
        host.remove_file(list)?;
        Ok(found?.lines().filter(|path| !engines_own(path)).map(str::to_owned).collect())
    }

    /// Where it is below a directory of the operator's.
    ///
    /// # Errors
    /// When it cannot be searched.
    pub fn places_below(&self, dir: &Path) -> Outcome<Vec<String>> {
        let patterns: Vec<_> = self.forms.iter().map(|form| String::from_utf8_lossy(form).into_owned()).collect();
        let mut grep = jiji_lab::command::command("grep", ["-r", "-l", "-s", "-a", "-F", "-D", "skip", "-f", "-"]);
        let output = jiji_lab::command::output(grep.arg(dir), Some(patterns.join("\n").as_bytes()))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
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
        let shared = Arc::new(Watched::default());
        let (sentinel, watched) = (self.clone(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            // A process is looked at in its first moments, in which it may become another program, and now and then later on.
            let mut known: BTreeMap<OsString, u32> = BTreeMap::new();
            while !watched.stop.load(Ordering::Relaxed) {
                let mut alive = BTreeMap::new();
                for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
                    let name = entry.file_name();
                    if !name.as_encoded_bytes()[0].is_ascii_digit() {
                        continue;
                    }
                    let looks = known.get(&name).map_or(0, |looks| looks + 1);
                    alive.insert(name, looks);
                    if looks > EARLY && !looks.is_multiple_of(EARLY) {
                        continue;
                    }
                    let Ok(argv) = std::fs::read(entry.path().join("cmdline")) else { continue };
                    if sentinel.is_in(&argv) {
                        let mut found = watched.found.lock().unwrap_or_else(PoisonError::into_inner);
                        found.insert(String::from_utf8_lossy(&argv).replace('\0', " "));
                    }
                }
                known = alive;
                watched.rounds.fetch_add(1, Ordering::Relaxed);
                // A program that is started with arguments lives for some ten milliseconds, and looking takes a tenth of a processor.
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Watch { shared, thread: Some(thread) }
    }
}

/// How often a process is looked at when it is new.
const EARLY: u32 = 20;

/// Whether an engine keeps there what it runs a container with: its specification with its environment.
fn engines_own(path: &str) -> bool {
    [
        "/var/lib/containers/storage/overlay-containers/",
        "/run/containers/storage/overlay-containers/",
        "/var/lib/containers/storage/libpod/",
        "/run/crun/",
        "/home/deploy/.local/share/containers/storage/overlay-containers/",
        "/home/deploy/.local/share/containers/storage/libpod/",
        "/var/lib/docker/containers/",
        "/var/lib/docker/containerd/",
        "/run/docker/",
        "/var/run/docker/",
    ]
    .iter()
    .any(|own| path.starts_with(own))
}

/// What a watch and its thread share.
#[derive(Default)]
struct Watched {
    stop: AtomicBool,
    rounds: AtomicU64,
    found: Mutex<BTreeSet<String>>,
}

/// A watch that goes on until it is ended.
pub struct Watch {
    shared: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Argument vectors that held the value, until now.
    pub fn found(&self) -> BTreeSet<String> {
        self.shared.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it: argument vectors that held the value, and how often all processes were looked at.
    ///
    /// # Errors
    /// When the watch itself failed.
    pub fn end(mut self) -> Outcome<(BTreeSet<String>, u64)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| "the watch of arguments panicked")?;
        }
        Ok((self.found(), self.shared.rounds.load(Ordering::Relaxed)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
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
