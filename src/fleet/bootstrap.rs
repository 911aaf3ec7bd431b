//! The one line of shell: what is run on a server before `jiji-host` can be.
//!
//! Its text is fixed; only digests, a length and an engine's name are put in, all of them this program's own words. A first line starts
//! `jiji-host` by its digest and answers in a marked line what it found; where the program is missing a second one takes it on standard
//! input, verifies it and starts it. The marked line is looked for behind whatever a login shell prints, and what follows its end is the
//! protocol's first frame.

use std::collections::BTreeMap;

use jiji_model::digest::Digest;
use jiji_model::project::Engine;
use jiji_model::protocol::{ARGUMENT_EXEC, OPTION_ENGINE, OPTION_ROOTLESS};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What a marked line begins with.
const MARK: &str = "jiji-bootstrap 1 ";

/// Most bytes that a login shell may print before the marked line.
const MOST_NOISE: usize = 64 * 1024;

/// Where everything lies on a server.
pub(super) const DIRECTORY: &str = "/var/lib/jiji";

/// Where everything of a user's own lies, for people. In the lines, `$XDG_DATA_HOME` counts before it, as in `jiji-host`.
pub(super) const USERS_DIRECTORY: &str = "~/.local/share/jiji";

/// Puts a user's own directory into `d`.
const FIND_USERS: &str = "case $XDG_DATA_HOME in /*) d=$XDG_DATA_HOME;; *) d=$HOME/.local/share;; esac; d=$d/jiji";

/// The builds of `jiji-host` that can be sent to servers, by architecture in Go's words.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    builds: BTreeMap<&'static str, HostProgram>,
}

/// One build of `jiji-host`.
#[derive(Debug, Clone)]
pub struct HostProgram {
    /// Its name on servers.
    pub digest: Digest,
    /// The executable.
    pub bytes: std::borrow::Cow<'static, [u8]>,
}

/// Architectures in Go's words, with the words of `uname -m`.
const ARCHITECTURES: [(&str, [&str; 2]); 2] = [("amd64", ["x86_64", "amd64"]), ("arm64", ["aarch64", "arm64"])];

/// Go's word for what `uname -m` says, where jiji knows it.
fn architecture(machine: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|(_, machines)| machines.contains(&machine)).map(|(name, _)| *name)
}

impl Programs {
    /// The builds that this program carries.
    pub fn embedded() -> Self {
        super::embedded::architectures().fold(Self::default(), |programs, name| {
            match super::embedded::host_binary(name) {
                Some(bytes) => programs.with(name, bytes),
                None => programs,
            }
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.builds.is_empty()
    }

    /// Adds a build, for an architecture in Go's words or those of `uname -m`. One that jiji does not know is left out.
    #[must_use]
    pub fn with(mut self, architecture: &str, bytes: impl Into<std::borrow::Cow<'static, [u8]>>) -> Self {
        if let Some(name) = self::architecture(architecture) {
            let bytes = bytes.into();
            let digest = Digest::of(&bytes);
            self.builds.insert(name, HostProgram { digest, bytes });
        }
        self
    }

    /// The build for what `uname -m` says.
    pub(super) fn for_machine(&self, machine: &str) -> Option<&HostProgram> {
        self.builds.get(architecture(machine)?)
    }
}

/// How `jiji-host` is to work on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manner {
    /// The engine that the configuration chooses.
    pub(super) engine: Option<Engine>,
    /// Whether everything is done as the user who logs in.
    pub(super) rootless: bool,
}

impl Manner {
    /// The arguments that say so.
    pub(super) fn arguments(self) -> Vec<String> {
        let engine = self.engine.map(|engine| [OPTION_ENGINE.to_owned(), engine.to_string()]);
        let rootless = self.rootless.then(|| OPTION_ROOTLESS.to_owned());
        let options = engine.into_iter().flatten().chain(rootless);
        std::iter::once(ARGUMENT_EXEC.to_owned()).chain(options).collect()
    }
}

/// The line that starts `jiji-host` where it is installed.
pub(super) fn first_line(programs: &Programs, manner: Manner) -> String {
    let mut cases = String::new();
    for (name, machines) in ARCHITECTURES {
        if let Some(program) = programs.builds.get(name) {
            cases.push_str(&format!("{}) h={};; ", machines.join("|"), program.digest.hex()));
        }
    }
    let arguments = manner.arguments().join(" ");
    if manner.rootless {
        return format!(
            "sh -c 'm=$(uname -m); u=$(id -u); h=; case $m in {cases}esac; \
             if [ \"$u\" = 0 ]; then echo \"{MARK}root $m $u\"; exit 1; fi; \
             {FIND_USERS}; b=$d/bin/$h; \
             if [ -n \"$h\" ] && [ -x \"$b\" ]; then echo \"{MARK}ready $m $u\"; exec \"$b\" {arguments}; fi; \
             echo \"{MARK}missing $m $u\"; exit 127'"
        );
    }
    format!(
        "sh -c 'm=$(uname -m); u=$(id -u); h=; case $m in {cases}esac; \
         if [ \"$u\" = 0 ]; then s=; else s=\"sudo -n\"; \
         command -v sudo >/dev/null || {{ echo \"{MARK}sudo-missing $m $u $(id -un)\"; exit 1; }}; \
         $s true || {{ echo \"{MARK}no-sudo $m $u $(id -un)\"; exit 1; }}; fi; \
         b={DIRECTORY}/bin/$h; \
         if [ -n \"$h\" ] && $s test -x $b; then echo \"{MARK}ready $m $u\"; exec $s $b {arguments}; fi; \
         echo \"{MARK}missing $m $u\"; exit 127'"
    )
}

/// The line that takes `jiji-host` on standard input, installs it and starts it. `root`: whether the user is root.
pub(super) fn second_line(program: &HostProgram, root: bool, manner: Manner) -> String {
    let (hex, size) = (program.digest.hex(), program.bytes.len());
    let arguments = manner.arguments().join(" ");
    let sudo = if root || manner.rootless { "" } else { "sudo -n " };
    let find = if manner.rootless { FIND_USERS.to_owned() } else { format!("d={DIRECTORY}") };
    // A temporary name of its own for each process, so that two operators at first contact do not write into one file; `sync` before
    // the rename, so that a name never stands for less than its content after a power cut.
    format!(
        "{sudo}sh -c 'umask 077; {find}; d=$d/bin; t=$d/tmp.$$; \
         mkdir -p \"$d\" && head -c {size} > \"$t\" || {{ echo \"{MARK}not-written\"; rm -f \"$t\"; exit 1; }}; \
         c=$(sha256sum < \"$t\"); c=${{c%% *}}; \
         if [ \"$c\" != {hex} ]; then echo \"{MARK}damaged\"; rm -f \"$t\"; exit 1; fi; \
         chmod 700 \"$t\" && {{ sync \"$t\" 2>/dev/null || sync; }} && mv -f \"$t\" \"$d/{hex}\" || \
         {{ echo \"{MARK}not-written\"; rm -f \"$t\"; exit 1; }}; \
         echo \"{MARK}ready\"; exec \"$d/{hex}\" {arguments}'"
    )
}

/// What the marked line said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// `jiji-host` is being started.
    Ready(Machine),
    /// It is not installed.
    Missing(Machine),
    /// The user of this name cannot become root.
    NoSudo(String),
    /// Nor can this one, since there is no `sudo`.
    SudoMissing(String),
    /// The user is root, where everything was to be done as a user who is not.
    Root,
    /// What was sent arrived with other bytes.
    Damaged,
    /// It could not be written.
    NotWritten,
}

/// What the first line tells of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// What `uname -m` says.
    pub(super) machine: String,
    /// Whether the user is root.
    pub(super) root: bool,
}

fn read_mark(line: &str) -> Option<Found> {
    let mut words = line.trim_end().split(' ');
    let word = words.next()?;
    let machine = Machine { machine: words.next().unwrap_or_default().to_owned(), root: words.next() == Some("0") };
    let user = words.next().unwrap_or_default().to_owned();
    match word {
        "ready" => Some(Found::Ready(machine)),
        "missing" => Some(Found::Missing(machine)),
        "no-sudo" => Some(Found::NoSudo(user)),
        "sudo-missing" => Some(Found::SudoMissing(user)),
        "root" => Some(Found::Root),
        "damaged" => Some(Found::Damaged),
        "not-written" => Some(Found::NotWritten),
        _ => None,
    }
}

/// Reads up to the end of the marked line. Gives what it says and what came after it, or what came instead.
pub(super) async fn read_until_mark(stdout: &mut (impl AsyncRead + Unpin)) -> Result<(Found, Vec<u8>), String> {
    let mut read = Vec::new();
    let mut block = vec![0; 8192];
    loop {
        if let Some((found, rest)) = find_mark(&read) {
            return Ok((found, rest));
        }
        if read.len() > MOST_NOISE {
            break;
        }
        match stdout.read(&mut block).await {
            Ok(0) | Err(_) => break,
            Ok(count) => read.extend_from_slice(&block[..count]),
        }
    }
    let text: String =
        String::from_utf8_lossy(&read).chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    Err(text.trim().to_owned())
}

fn find_mark(read: &[u8]) -> Option<(Found, Vec<u8>)> {
    let mark = MARK.as_bytes();
    let start = read.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let length = read[start..].iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&read[start..start + length]).ok()?;
    Some((read_mark(line)?, read[start + length + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOTS: Manner = Manner { engine: None, rootless: false };
    const USERS: Manner = Manner { engine: Some(Engine::Podman), rootless: true };

    fn manner(engine: Option<Engine>) -> Manner {
        Manner { engine, ..ROOTS }
    }

    fn programs() -> Programs {
        Programs::default().with("amd64", &b"x"[..]).with("arm64", &b"y"[..])
    }

    #[tokio::test]
    async fn the_mark_is_found_behind_what_a_login_shell_prints_and_frames_follow_it() {
        let mut output: &[u8] = b"Welcome\nLast login: never\njiji-bootstrap 1 ready x86_64 0\n\0\0\0\x02\0{}";
        let (found, rest) = read_until_mark(&mut output).await.expect("a mark");
        let machine = Machine { machine: "x86_64".to_owned(), root: true };
        assert_eq!((found, &rest[..]), (Found::Ready(machine), &b"\0\0\0\x02\0{}"[..]));
        let mut output: &[u8] = b"This account is \x07currently not available.\n";
        assert_eq!(read_until_mark(&mut output).await, Err("This account is  currently not available.".to_owned()));
    }

    #[test]
    fn the_lines_hold_nothing_but_their_own_words_and_survive_any_login_shell() {
        let programs = programs();
        let build = programs.for_machine("aarch64").expect("a build");
        for line in [
            first_line(&programs, manner(Some(Engine::Podman))),
            second_line(build, false, ROOTS),
            first_line(&programs, USERS),
            second_line(build, false, USERS),
        ] {
            // One pair of single quotes and no line break: sh, bash, zsh, fish and csh all pass it on as one word.
            assert_eq!(line.matches('\'').count(), 2, "{line}");
            assert!(!line.contains('\n') && !line.contains('\\'), "{line}");
        }
    }

    /// Runs a line as sshd would: through a shell, with this input, and with `programs` before all others.
    fn run_with(line: &str, input: &[u8], programs: Option<&std::path::Path>) -> (String, String) {
        use std::io::Write as _;
        let path = std::env::var("PATH").unwrap_or_default();
        let path = programs.map_or(path.clone(), |programs| format!("{}:{path}", programs.display()));
        let mut child = std::process::Command::new("sh")
            .args(["-c", line])
            .env("PATH", path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("sh runs");
        // A line that refuses reads nothing.
        let _ = child.stdin.take().expect("piped").write_all(input);
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (text(output.stdout), text(output.stderr))
    }

    fn run(line: &str, input: &[u8]) -> (String, String) {
        run_with(line, input, None)
    }

    #[test]
    fn a_user_who_is_not_root_goes_through_sudo_or_is_told() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join("programs");
        std::fs::create_dir(&bin).expect("made");
        let program = |name: &str, text: &str| {
            let path = bin.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
        };
        let there = |line: String| line.replace(DIRECTORY, &dir.path().display().to_string());
        let script = b"#!/bin/sh\necho started $@; cat\n";
        let programs = Programs::default().with("amd64", &script[..]).with("arm64", &script[..]);
        let build = programs.for_machine("x86_64").expect("a build");
        let (first, second) = (there(first_line(&programs, ROOTS)), there(second_line(build, false, ROOTS)));

        program("id", "case $1 in -un) echo ann;; *) echo 1000;; esac");
        program("sudo", "echo 'sudo: a password is required' >&2; exit 1");
        let (out, err) = run_with(&first, b"", Some(&bin));
        assert!(out.starts_with("jiji-bootstrap 1 no-sudo ") && out.ends_with(" 1000 ann\n"), "{out}");
        assert!(err.contains("a password is required"), "{err}");

        program("sudo", "[ \"$1\" = -n ] || exit 1; shift; echo \"sudo $1\" >&2; exec \"$@\"");
        let (out, _) = run_with(&first, b"", Some(&bin));
        assert!(out.starts_with("jiji-bootstrap 1 missing ") && out.ends_with(" 1000\n"), "{out}");
        let (out, err) = run_with(&second, script, Some(&bin));
        assert_eq!((out.as_str(), err.as_str()), ("jiji-bootstrap 1 ready\nstarted exec\n", "sudo sh\n"));
        let (out, err) = run_with(&first, b"frames", Some(&bin));
        assert!(out.ends_with("started exec\nframes"), "{out}{err}");
        assert_eq!(err.lines().count(), 3, "whether it may, the look, and the program: {err}");
    }

    #[test]
    fn a_users_own_lies_below_the_home_directory_and_root_has_none() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join("programs");
        let home = dir.path().join("ann\u{2019}s home");
        std::fs::create_dir(&bin).expect("made");
        std::fs::create_dir(&home).expect("made");
        let program = |name: &str, text: &str| {
            let path = bin.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
        };
        let own = |line: String, data: &str| format!("HOME=\"{}\" XDG_DATA_HOME=\"{data}\" {line}", home.display());
        program("sudo", "echo sudo >&2; exit 1");
        let script = b"#!/bin/sh\necho started $@; cat\n";
        let programs = Programs::default().with("amd64", &script[..]).with("arm64", &script[..]);
        let build = programs.for_machine("x86_64").expect("a build");
        let (first, second) = (first_line(&programs, USERS), second_line(build, false, USERS));

        program("id", "echo 0");
        let (out, err) = run_with(&own(first.clone(), ""), b"", Some(&bin));
        assert!(out.starts_with("jiji-bootstrap 1 root ") && err.is_empty(), "{out}{err}");

        program("id", "echo 1000");
        let data = home.join("data");
        for (data, at) in [
            ("", home.join(".local/share")),
            ("relative", home.join(".local/share")),
            (data.to_str().expect("text"), data.clone()),
        ] {
            let at = at.join("jiji");
            drop(std::fs::remove_dir_all(&at));
            let (out, err) = run_with(&own(first.clone(), data), b"", Some(&bin));
            assert!(out.starts_with("jiji-bootstrap 1 missing "), "{out}{err}");
            let started = "started exec --engine podman --rootless\n";
            let (out, err) = run_with(&own(second.clone(), data), script, Some(&bin));
            assert_eq!((out, err), (format!("jiji-bootstrap 1 ready\n{started}"), String::new()));
            let (out, err) = run_with(&own(first.clone(), data), b"frames", Some(&bin));
            assert!(out.ends_with(&format!("{started}frames")) && err.is_empty(), "{out}{err}");
            let mode = std::fs::metadata(&at).expect("made").permissions().mode() & 0o7777;
            assert_eq!(mode, 0o700, "{}", at.display());
        }
    }

    #[test]
    fn a_missing_program_is_installed_by_the_second_line_and_started_by_the_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let there = |line: String| line.replace(DIRECTORY, &dir.path().display().to_string());
        let script = b"#!/bin/sh\necho started $@; cat\n";
        let programs = Programs::default().with("amd64", &script[..]).with("arm64", &script[..]);
        let build = programs.for_machine("x86_64").expect("a build").clone();
        let first = there(first_line(&programs, manner(Some(Engine::Docker))));
        let root = rustix::process::getuid().is_root();

        let (out, err) = run(&first, b"");
        if !root && out.contains("no-sudo") {
            return;
        }
        assert!(out.starts_with("jiji-bootstrap 1 missing "), "{out}{err}");

        let second = there(second_line(&build, root, ROOTS));
        let (out, err) = run(&second, b"#!/bin/sh\necho evil___ $@; cat\n");
        assert_eq!(out, "jiji-bootstrap 1 damaged\n", "{err}");
        let (out, err) = run(&second, script);
        assert_eq!(out, "jiji-bootstrap 1 ready\nstarted exec\n", "{err}");

        let (out, err) = run(&first, b"frames");
        let mut lines = out.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with("jiji-bootstrap 1 ready ")), "{out}{err}");
        assert_eq!(lines.collect::<Vec<_>>(), ["started exec --engine docker", "frames"]);
        let names: Vec<_> = std::fs::read_dir(dir.path().join("bin"))
            .expect("listed")
            .map(|entry| entry.expect("read").file_name())
            .collect();
        assert_eq!(names, [std::ffi::OsString::from(build.digest.hex())]);
    }
}
