//! What a run of `jiji` said and how it ended.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Outcome, secrecy};

/// The longest that any run may take. A run beyond it is a failure of its own.
const LIMIT: Duration = Duration::from_secs(180);

/// A run that has ended.
#[derive(Debug)]
pub struct Run {
    /// What was run.
    pub argv: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Events, where `--json` was asked for.
    pub events: Vec<Value>,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn of(command: &mut Command) -> Outcome<Self> {
        Running::start(command)?.end()
    }

    /// The exit code; none where a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The same if it ended with this code, else everything that it said.
    ///
    /// # Errors
    /// When it ended otherwise.
    pub fn expect(self, code: i32) -> Outcome<Self> {
        if self.code() == Some(code) {
            return Ok(self);
        }
        Err(format!("exit code {code} was due: {self}").into())
    }

    /// The last event's fields.
    ///
    /// # Errors
    /// When there is no summary.
    pub fn summary(&self) -> Outcome<&Value> {
        match self.events.last() {
            Some(event) if event["event"] == "summary" => Ok(&event["data"]),
            _ => Err(format!("no summary at the end: {self}").into()),
        }
    }

    /// Events of this name.
    pub fn events_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["event"] == name)
    }

    /// When events of this name came, in seconds since 1970 by the run's own clock.
    pub fn time_of<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = Outcome<f64>> {
        self.events.iter().filter(move |event| event["event"] == name).map(time)
    }

    /// When a host was cut over, in seconds since 1970: the end of its last step of that phase that was not an undo.
    ///
    /// # Errors
    /// When there is no such event.
    pub fn cutover(&self, server: &str) -> Outcome<f64> {
        let event = self
            .events_of("apply.step-ended")
            .filter(|event| event["phase"] == "cutover" && event["host"] == server && event["data"]["undo"] == false)
            .last()
            .ok_or_else(|| format!("`{server}` was not cut over: {self}"))?;
        time(event)
    }

    /// The manifest digest of a service's image, as the summary says.
    ///
    /// # Errors
    /// When there is none.
    pub fn image(&self, service: &str) -> Outcome<String> {
        let digest = self.summary()?["images"][service][0].as_str();
        Ok(digest.ok_or_else(|| format!("no image of `{service}`: {self}"))?.to_owned())
    }
}

/// An event's time in seconds since 1970.
fn time(event: &Value) -> Outcome<f64> {
    let text = event["time"].as_str().ok_or("an event without a time")?;
    let time: jiff::Timestamp = text.parse()?;
    Ok(time.as_duration().as_secs_f64())
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "`{}` ended with {} after {:.1}s", self.argv, self.status, self.took.as_secs_f64())?;
        let last = |text: &str, lines: usize| {
            let all: Vec<_> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        writeln!(f, "standard output, its end:\n{}", last(&self.stdout, 30))?;
        writeln!(f, "standard error, its end:\n{}", last(&self.stderr, 60))
    }
}

/// A run that goes on.
pub struct Running {
    argv: String,
    child: Child,
    started: Instant,
    limit: Duration,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    stdout: String,
    events: Vec<Value>,
}

impl Running {
    /// Starts a command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Outcome<Self> {
        Self::start_with(command, None)
    }

    /// Starts a command with this text on standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with(command: &mut Command, input: Option<&str>) -> Outcome<Self> {
        let argv = jiji_lab::command::argv(command);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("start `{argv}`: {error}"))?;
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes())?;
        }
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut stderr = child.stderr.take().ok_or("no standard error")?;
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What came until then is what there is to say.
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let started = Instant::now();
        Ok(Self {
            argv,
            child,
            started,
            limit: LIMIT,
            lines,
            stderr: Some(stderr),
            stdout: String::new(),
            events: Vec::new(),
        })
    }

    /// The same, which may take so long.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn take(&mut self, line: &str) -> Option<&Value> {
        self.stdout.push_str(line);
        self.stdout.push('\n');
        let event = serde_json::from_str(line).ok().filter(Value::is_object)?;
        self.events.push(event);
        self.events.last()
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// When it does not come in time, with all that came.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Outcome {
        let deadline = self.started + self.limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if self.take(&line).is_some_and(&wanted) {
                        return Ok(());
                    }
                }
                Err(_) => return Err(format!("{what} never came; it said:\n{}", self.stdout).into()),
            }
        }
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Kills it with SIGKILL, and waits until it is gone. It may have ended a moment before.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(mut self) -> Outcome<Run> {
        self.child.kill()?;
        self.end()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(mut self) -> Outcome<Run> {
        let deadline = self.started + self.limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.take(&line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.child.kill()?;
                    break;
                }
            }
        }
        let status = self.child.wait()?;
        let stderr = self.stderr.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let took = self.started.elapsed();
        if took >= self.limit {
            let said = format!("{}\n{stderr}", self.stdout);
            return Err(format!("`{}` did not end in {} s; it said:\n{said}", self.argv, self.limit.as_secs()).into());
        }
        let (argv, stdout, events) =
            (std::mem::take(&mut self.argv), std::mem::take(&mut self.stdout), std::mem::take(&mut self.events));
        for (name, text) in [("standard output", &stdout), ("standard error", &stderr)] {
            if secrecy::suite().is_in(text.as_bytes()) {
                return Err(format!("`{argv}` said the secret on its {name}").into());
            }
        }
        Ok(Run { argv, status, stdout, stderr, events, took })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is only waited for again.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
