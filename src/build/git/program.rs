//! The `git` program: started with fixed settings, watched, and ended with all that it started.

use std::io::{Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiji_model::commit::Commit;
use jiji_sandbox::Canceller;
use rustix::process::{Pid, Signal};

use super::Repository;
use super::error::GitError;

/// The most that a repository may take on the disk, in bytes.
const DISK: u64 = 16 << 30;
/// The most that is read of a list, in bytes.
const LIST: u64 = 256 << 20;
/// How long git may talk to a server.
const MINUTES: u64 = 30;
/// How often one looks after it.
const LOOK: Duration = Duration::from_millis(50);
/// How often that is when it ends by itself at the latest, after it closed what it writes to.
const CLOSED: u32 = 100;
/// How much of what it says is kept.
const SAID: usize = 4096;

/// Settings that count over those of the machine and the user, who may say where repositories and passwords are: no other transports than these,
/// no hooks, no work in the background, nobody is asked.
const SETTINGS: [&str; 14] = [
    "protocol.allow=never",
    "protocol.http.allow=always",
    "protocol.https.allow=always",
    "protocol.ssh.allow=always",
    "protocol.git.allow=always",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.askPass=",
    "core.sshCommand=ssh -oBatchMode=yes",
    "fetch.recurseSubmodules=false",
    "transfer.bundleURI=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
];

/// Variables of whoever builds that would lead git elsewhere.
const LEADING: [&str; 12] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DIR",
    "GIT_EXTERNAL_DIFF",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_TEMPLATE_DIR",
    "GIT_TRACE",
    "GIT_WORK_TREE",
];

/// A place where one commit is fetched to.
pub(super) struct Git<'a> {
    dir: PathBuf,
    canceller: &'a Canceller,
}

impl<'a> Git<'a> {
    /// Nothing is there yet.
    pub(super) fn new(room: &Path, canceller: &'a Canceller) -> Result<Self, GitError> {
        let dir = room.join("git");
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, canceller })
    }

    /// A `git` that reads objects.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.arg("--git-dir").arg(&self.dir).args(args).current_dir(&self.dir);
        for name in LEADING {
            command.env_remove(name);
        }
        command
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "true")
            .env("SSH_ASKPASS_REQUIRE", "never")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        command
    }

    /// What a reference means now.
    pub(super) fn resolve(&self, repository: &Repository) -> Result<Commit, GitError> {
        let doing = Doing { text: "look into", url: &repository.url };
        let names = match &repository.reference {
            None => vec!["HEAD".to_owned()],
            Some(reference) if reference.starts_with("refs/") => vec![format!("{reference}^{{}}"), reference.clone()],
            // As git-checkout(1): a branch first, and of a tag with a text the commit it is on.
            Some(name) => {
                vec![format!("refs/heads/{name}"), format!("refs/tags/{name}^{{}}"), format!("refs/tags/{name}")]
            }
        };
        let mut args = vec!["ls-remote", "--", &repository.url];
        args.extend(names.iter().map(String::as_str));
        let listed = self.talk(&args, &doing)?;
        let listed = String::from_utf8_lossy(&listed);
        let lines: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
        let found = names.iter().find_map(|name| lines.iter().find(|(_, own)| own == name));
        found.and_then(|(commit, _)| commit.parse().ok()).ok_or_else(|| GitError::NoReference {
            reference: repository.reference.clone().unwrap_or_else(|| "HEAD".to_owned()),
            url: repository.url.clone(),
        })
    }

    /// Fetches one commit without its history.
    pub(super) fn fetch(&self, repository: &Repository, commit: &Commit) -> Result<(), GitError> {
        let doing = Doing { text: "fetch", url: &repository.url };
        let format = if commit.is_sha256() { "--object-format=sha256" } else { "--object-format=sha1" };
        self.read(&["init", "--quiet", "--bare", "--template=", format])?;
        let fetch = |what: &str| {
            let args = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-auto-gc", "--", &repository.url, what];
            self.talk(&args, &doing)
        };
        match (fetch(commit.as_str()), &repository.reference) {
            (Ok(_), _) => {}
            // Some servers give what they name, and no commit by itself.
            (Err(GitError::Failed { .. }), Some(reference)) if reference != commit.as_str() => {
                fetch(reference)?;
            }
            (Err(error), _) => return Err(error),
        }
        let wanted = format!("{commit}^{{commit}}");
        let found = self.read(&["rev-parse", "--quiet", "--verify", "--end-of-options", &wanted]);
        match found {
            Ok(found) if String::from_utf8_lossy(&found).trim() == commit.as_str() => Ok(()),
            _ => Err(GitError::NoReference { reference: commit.to_string(), url: repository.url.clone() }),
        }
    }

    /// What a `git` that asks nobody prints.
    pub(super) fn read(&self, args: &[&str]) -> Result<Vec<u8>, GitError> {
        let (status, out, said) = self.run(args, None)?;
        if status.success() { Ok(out) } else { Err(GitError::Read { said }) }
    }

    /// A file that git wrote beside its objects.
    pub(super) fn take_file(&self, name: &str) -> Result<Vec<u8>, GitError> {
        let mut bytes = Vec::new();
        std::fs::File::open(self.dir.join(name))?.take(LIST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIST {
            Err(GitError::TooLarge { what: "its index is longer than 256 MiB" })
        } else {
            Ok(bytes)
        }
    }

    fn talk(&self, args: &[&str], doing: &Doing<'_>) -> Result<Vec<u8>, GitError> {
        let (status, out, said) = self.run(args, Some(doing))?;
        if status.success() {
            return Ok(out);
        }
        let said = match status.signal() {
            Some(signal) => format!("it was killed by signal {signal}"),
            None => said,
        };
        Err(GitError::Failed { doing: doing.text, url: doing.url.to_owned(), said })
    }

    fn run(&self, args: &[&str], doing: Option<&Doing<'_>>) -> Result<(ExitStatus, Vec<u8>, String), GitError> {
        let mut child = Running::start(self.command(args))?;
        let out = child.reader(|child| child.stdout.take(), LIST)?;
        let said = child.reader(|child| child.stderr.take(), LIST)?;
        let end = Instant::now() + Duration::from_secs(60 * MINUTES);
        let (mut looks, mut closed) = (0_u32, 0_u32);
        let status = loop {
            if let Some(status) = child.0.try_wait()? {
                break status;
            }
            if self.canceller.is_cancelled_within(LOOK) {
                return Err(GitError::Cancelled);
            }
            looks += 1;
            if looks.is_multiple_of(20) && size(&self.dir) > DISK {
                return Err(GitError::TooLarge { what: "it takes more than 16 GiB" });
            }
            // It closed an end, or said more than is read: then it has a moment to end by itself.
            if out.is_finished() || said.is_finished() {
                closed += 1;
                if closed > CLOSED {
                    child.end();
                }
            }
            if Instant::now() > end {
                let (doing, url) = doing.map_or(("read", ""), |doing| (doing.text, doing.url));
                return Err(GitError::TimedOut { doing, url: url.to_owned(), minutes: MINUTES });
            }
        };
        let out = joined(out)?.ok_or(GitError::TooLarge { what: "its list is longer than 256 MiB" })?;
        let said = joined(said)?.unwrap_or_default();
        Ok((status, out, shown(&said)))
    }
}

/// What is done, for errors.
struct Doing<'a> {
    text: &'static str,
    url: &'a str,
}

/// A program that does not outlive this, nor does what it started.
pub(super) struct Running(pub(super) Child);

impl Running {
    pub(super) fn start(mut command: Command) -> Result<Self, GitError> {
        command.spawn().map(Self).map_err(GitError::Program)
    }

    /// Reads one of its ends on a thread of its own; none where that is longer than `most`.
    fn reader<R: Read + Send + 'static>(
        &mut self,
        end: impl FnOnce(&mut Child) -> Option<R>,
        most: u64,
    ) -> Result<Reader, GitError> {
        let end = end(&mut self.0).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        let read = move || {
            let mut bytes = Vec::new();
            end.take(most + 1).read_to_end(&mut bytes)?;
            Ok((bytes.len() as u64 <= most).then_some(bytes))
        };
        Ok(std::thread::Builder::new().name("git".to_owned()).spawn(read)?)
    }

    fn end(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It has a group of its own; it is waited for afterwards, so the number is nobody else's.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.end();
            let _ = self.0.wait();
        }
    }
}

type Reader = JoinHandle<std::io::Result<Option<Vec<u8>>>>;

fn joined(reader: Reader) -> Result<Option<Vec<u8>>, GitError> {
    match reader.join() {
        Ok(read) => Ok(read?),
        Err(_) => Err(std::io::Error::other("a thread that reads ended").into()),
    }
}

/// The end of what a program said, on one line and without what steers terminals.
fn shown(said: &[u8]) -> String {
    let end = &said[said.len().saturating_sub(SAID)..];
    let text = String::from_utf8_lossy(end);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines[lines.len().saturating_sub(4)..].join("; ");
    let text: String = text.chars().map(|ch| if ch.is_control() { '\u{fffd}' } else { ch }).collect();
    if text.is_empty() { "it failed without a word".to_owned() } else { text }
}

/// What a directory takes, as far as it can be seen.
fn size(dir: &Path) -> u64 {
    let mut sum = 0_u64;
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => pending.push(entry.path()),
                Ok(metadata) => sum = sum.saturating_add(metadata.len()),
                Err(_) => {}
            }
        }
    }
    sum
}

/// Objects, one after the other, in the order in which they are asked for.
pub(super) struct Objects {
    running: Running,
    out: std::io::BufReader<std::process::ChildStdout>,
}

impl Objects {
    /// Asks for these.
    pub(super) fn of(git: &Git<'_>, names: Vec<String>) -> Result<Self, GitError> {
        let mut command = git.command(&["cat-file", "--batch"]);
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        let mut running = Running::start(command)?;
        let (input, out) = (running.0.stdin.take(), running.0.stdout.take());
        let (mut input, out) = input.zip(out).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        std::thread::Builder::new().name("git".to_owned()).spawn(move || {
            // Where it fails the reader meets an end.
            names.iter().all(|name| input.write_all(format!("{name}\n").as_bytes()).is_ok())
        })?;
        Ok(Self { running, out: std::io::BufReader::with_capacity(128 * 1024, out) })
    }

    /// The next: its kind, its length, and a reader of its bytes that must be read to its end, with [`Self::close`] after it.
    pub(super) fn next(&mut self) -> Result<(String, u64), GitError> {
        let mut head = Vec::new();
        std::io::BufRead::read_until(&mut (&mut self.out).take(200), b'\n', &mut head)?;
        let head = String::from_utf8_lossy(&head);
        let mut words = head.split_whitespace().skip(1);
        match (words.next(), words.next().and_then(|size| size.parse().ok())) {
            (Some(kind), Some(size)) => Ok((kind.to_owned(), size)),
            _ => Err(GitError::Read { said: format!("`{}` is no object", head.trim().escape_debug()) }),
        }
    }

    /// The bytes of the object that came last.
    pub(super) fn bytes(&mut self, size: u64) -> impl Read + '_ {
        (&mut self.out).take(size)
    }

    /// After an object.
    pub(super) fn close(&mut self) -> Result<(), GitError> {
        let mut end = [0];
        self.out.read_exact(&mut end)?;
        if end == *b"\n" { Ok(()) } else { Err(GitError::Read { said: "an object is longer than it says".to_owned() }) }
    }

    /// Waits for its end.
    pub(super) fn finish(mut self) -> Result<(), GitError> {
        match self.running.0.wait()?.success() {
            true => Ok(()),
            false => Err(GitError::Read { said: "it failed at the end".to_owned() }),
        }
    }
}
