//! Programs of the host: exact arguments, a timeout, a bounded output.
//!
//! No shell is in between. Every program gets a process group of its own, so that what it started ends with it when its time is up or
//! when nobody waits for it any more.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

/// How long a pipe is read after its program ended: something it left behind may hold the other end forever.
const AFTERGLOW: Duration = Duration::from_millis(500);

/// A program to run.
#[derive(Clone)]
pub struct Command {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    timeout: Duration,
    stdout_limit: usize,
    stderr_limit: usize,
    merged: bool,
}

impl std::fmt::Debug for Command {
    /// Without the environment and the input, which may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.program, self.args)
    }
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; none where a signal or the timeout ended it.
    pub exit: Option<i32>,
    /// Whether its time was up.
    pub timed_out: bool,
    /// The beginning of its standard output.
    pub stdout: Vec<u8>,
    /// The end of its standard error.
    pub stderr: Vec<u8>,
    /// Whether either was cut.
    pub truncated: bool,
}

impl Output {
    /// Whether it ended with 0.
    pub fn ok(&self) -> bool {
        self.exit == Some(0)
    }

    /// Standard output as text, what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// What it said on standard error, in one line for people, without escape sequences.
    pub fn complaint(&self) -> String {
        one_line(&String::from_utf8_lossy(&self.stderr))
    }

    /// How it ended, for people.
    pub fn ending(&self) -> String {
        match (self.exit, self.timed_out) {
            (_, true) => "did not end in time".to_owned(),
            (Some(code), _) => format!("exit code {code}"),
            (None, _) => "ended by a signal".to_owned(),
        }
    }
}

/// Why a program did not run.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is in none of the directories.
    #[error("find program `{program}` in `{path}`")]
    NotFound {
        /// The program.
        program: String,
        /// The directories.
        path: String,
    },
    /// The operating system refused.
    #[error("run `{program}`: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The file that `program` means: itself where it is a path, else the first executable of that name in `path`.
///
/// # Errors
/// [`CommandError::NotFound`].
pub fn find(program: &str, path: &str) -> Result<PathBuf, CommandError> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs = |file: &Path| {
        fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![PathBuf::from(program)]
    } else {
        path.split(':').map(|dir| Path::new(dir).join(program)).collect()
    };
    candidates
        .into_iter()
        .find(|file| file.is_absolute() && runs(file))
        .ok_or_else(|| CommandError::NotFound { program: program.to_owned(), path: path.to_owned() })
}

impl Command {
    /// A program with no arguments, a minute of time, and output of at most 1 MiB and 16 KiB.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Vec::new(),
            timeout: Duration::from_secs(60),
            stdout_limit: 1024 * 1024,
            stderr_limit: 16 * 1024,
            merged: false,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Gives it something to read.
    #[must_use]
    pub fn stdin(mut self, content: Vec<u8>) -> Self {
        self.stdin = content;
        self
    }

    /// Bounds its time.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Bounds what is kept of its output and of its complaints, in bytes.
    #[must_use]
    pub fn limits(mut self, stdout: usize, stderr: usize) -> Self {
        (self.stdout_limit, self.stderr_limit) = (stdout, stderr);
        self
    }

    /// Takes standard output and standard error as one stream, in the order in which they are written, and keeps the end of it.
    #[must_use]
    pub fn merged(mut self) -> Self {
        self.merged = true;
        self
    }

    /// Runs it to its end. Dropping the future ends it.
    ///
    /// # Errors
    /// [`CommandError::Start`] when it cannot be started; how it ends is no error here.
    pub async fn run(self) -> Result<Output, CommandError> {
        let start = |source| CommandError::Start { program: self.program.clone(), source };
        let (merged, outputs) = if self.merged {
            let (reader, writer) = io::pipe().map_err(start)?;
            let reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(start)?;
            (Some(reader), (Stdio::from(writer.try_clone().map_err(start)?), Stdio::from(writer)))
        } else {
            (None, (Stdio::piped(), Stdio::piped()))
        };
        // A statement of its own: its end closes this process's copies of the writing ends.
        let mut child = tokio::process::Command::new(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(outputs.0)
            .stderr(outputs.1)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let mut group = Group(child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut out = if self.merged { Kept::tail(self.stdout_limit) } else { Kept::head(self.stdout_limit) };
        let mut err = Kept::tail(self.stderr_limit);
        let (exit, timed_out) = {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A program that does not read all it is given has its reasons; its exit code tells.
                    let _ = stdin.write_all(&self.stdin).await;
                }
                std::future::pending::<()>().await
            };
            let read = async {
                tokio::join!(
                    async {
                        match merged {
                            Some(merged) => out.fill(Some(merged)).await,
                            None => out.fill(stdout).await,
                        }
                    },
                    err.fill(stderr)
                );
            };
            tokio::pin!(read);
            let mut read_all = false;
            let status = {
                tokio::pin!(feed);
                let end = tokio::time::timeout(self.timeout, child.wait());
                tokio::pin!(end);
                loop {
                    tokio::select! {
                        status = &mut end => break status,
                        () = &mut read, if !read_all => read_all = true,
                        () = &mut feed => {}
                    }
                }
            };
            match status {
                Ok(status) => {
                    if !read_all {
                        let _ = tokio::time::timeout(AFTERGLOW, &mut read).await;
                    }
                    // What it left running in its group on purpose (a container's monitor) is not ours to end.
                    group.0 = None;
                    (status.map_err(start)?.code(), false)
                }
                Err(_) => {
                    group.kill();
                    let _ = child.wait().await;
                    (None, true)
                }
            }
        };
        Ok(Output { exit, timed_out, truncated: out.cut || err.cut, stdout: out.bytes, stderr: err.bytes })
    }
}

/// A process group that ends with this value.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            // It may be gone already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What is kept of a stream that is read to its end.
struct Kept {
    bytes: Vec<u8>,
    limit: usize,
    head: bool,
    cut: bool,
}

impl Kept {
    fn head(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, head: true, cut: false }
    }

    fn tail(limit: usize) -> Self {
        Self { head: false, ..Self::head(limit) }
    }

    async fn fill(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut block = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut block).await {
            self.add(&block[..count]);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.head {
            let room = self.limit - self.bytes.len();
            self.cut |= bytes.len() > room;
            self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        } else {
            self.bytes.extend_from_slice(bytes);
            if self.bytes.len() > self.limit {
                self.cut = true;
                self.bytes.drain(..self.bytes.len() - self.limit);
            }
        }
    }
}

/// Text of a program or an application made fit for people: escape sequences gone, other control characters but line breaks and tabs
/// replaced.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // ECMA-48: CSI sequences end with a byte from 0x40 to 0x7e; other escapes are one byte long.
                if chars.next() == Some('[') {
                    while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {}
                }
            }
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The last lines of a text that say something, in one line of at most 1000 characters.
pub fn one_line(text: &str) -> String {
    let text = plain(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined = lines.join("; ");
    let count = joined.chars().count();
    if count > 1000 {
        let end: String = joined.chars().skip(count - 1000).collect();
        format!("… {end}")
    } else {
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        Command::new(find("sh", crate::PATH).expect("there is a shell")).args(["-c", script])
    }

    #[tokio::test]
    async fn a_program_gets_its_words_and_its_input_and_its_output_is_bounded() {
        let command = sh("cat; printf '%s|' \"$0\" \"$@\"; echo oops >&2; exit 3").args(["a b", "$(x)", "'\n"]);
        let output = command.stdin(b"in ".to_vec()).run().await.expect("it starts");
        assert_eq!(output.text(), "in a b|$(x)|'\n|");
        assert_eq!((output.exit, output.complaint().as_str()), (Some(3), "oops"));
        let output = sh("yes").limits(10, 10).timeout(Duration::from_millis(200)).run().await.expect("it starts");
        assert_eq!(
            (output.stdout.as_slice(), output.truncated, output.timed_out),
            (&b"y\ny\ny\ny\ny\n"[..], true, true)
        );
    }

    #[tokio::test]
    async fn both_streams_as_one_keep_their_order_and_their_end() {
        let script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done";
        let output = sh(script).merged().run().await.expect("it starts");
        assert_eq!(output.text(), "out1\nerr1\nout2\nerr2\nout3\nerr3\n");
        let output = sh(script).merged().limits(10, 0).run().await.expect("it starts");
        assert_eq!((output.text().as_str(), output.truncated), ("out3\nerr3\n", true));
    }

    #[tokio::test]
    async fn what_a_program_started_ends_with_its_time() {
        let output = sh("sleep 30 & echo $!; wait").timeout(Duration::from_millis(300)).run().await.expect("it starts");
        assert!(output.timed_out);
        let pid = output.text().trim().parse().expect("a number");
        for _ in 0..100 {
            if crate::clock::process(pid).is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{pid} still runs");
    }

    #[tokio::test]
    async fn a_pipe_that_somebody_keeps_open_does_not_keep_us() {
        let begun = std::time::Instant::now();
        let output = sh("sleep 5 & echo done").run().await.expect("it starts");
        assert_eq!(output.text(), "done\n");
        assert!(begun.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn text_for_people_has_no_escape_sequences_and_no_bells() {
        assert_eq!(plain("\u{1b}[31mred\u{1b}[0m\r\nx\u{7}"), "red\nx\u{fffd}");
        assert_eq!(one_line("a\n\n  b \n"), "a; b");
    }

    #[test]
    fn programs_are_found_in_the_given_directories_only() {
        assert!(find("sh", "/nonexistent:/bin").is_ok());
        assert!(matches!(find("sh", "/nonexistent"), Err(CommandError::NotFound { .. })));
        assert!(find("./sh", "/bin").is_err());
    }
}
