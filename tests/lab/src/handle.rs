//! What a test holds: a [`Lab`] and its [`Host`]s.

use std::{
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::{
    Engine, HostRecord, LabError, Record, RegistryRecord, Sessions, Spec, Traffic, cgroup,
    command::{self, command},
    keeper::{self, Answer, Request},
    machine, program, spec, state,
};

/// How long a lab may take to end before it is ended by force.
const DOWN_LIMIT: Duration = Duration::from_secs(20);

/// A lab that is up. One that was made by [`Lab::up`] ends when this is dropped, and also when the process that made it is
/// killed; one that was found by [`Lab::attach`] goes on.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    record: Record,
    keeper: Option<Child>,
}

impl Lab {
    /// Builds a lab and waits until every part of it answers. First removes what labs left whose owners are dead.
    pub fn up(spec: &Spec) -> Result<Self, LabError> {
        Self::start(spec, true)
    }

    /// Builds a lab that outlives this process: `lab down` ends it.
    pub fn up_detached(spec: &Spec) -> Result<Self, LabError> {
        Self::start(spec, false)
    }

    fn start(spec: &Spec, owned: bool) -> Result<Self, LabError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        spec.check()?;
        let program = program::find(spec.program.as_deref())?;
        let record = state::allocate(spec, &program)?;
        let dir = record.dir.clone();
        let result = Self::spawn(&record.program, &dir, owned);
        if result.is_err() {
            // The keeper cleans up after itself; if it could not, its maker does.
            let lock = state::lock(dir.parent().unwrap_or(&dir))?;
            state::remove(&record)?;
            drop(lock);
        }
        result
    }

    fn spawn(program: &Path, dir: &Path, owned: bool) -> Result<Self, LabError> {
        let log_path = dir.join("keeper.log");
        let log = std::fs::File::create(&log_path).map_err(LabError::file("create", &log_path))?;
        // A session of its own: neither Ctrl-C nor a closed terminal ends the lab before its owner does.
        let mut command = if owned { Command::new(program) } else { command("setsid", [program]) };
        command.arg("keep").arg(dir).args(owned.then_some("--owned"));
        if owned {
            command.process_group(0);
        }
        command.stdin(if owned { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped()).stderr(log);
        let mut child =
            command.spawn().map_err(|source| LabError::NoProgram { program: program.display().to_string(), source })?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(LabError::system("hear the keeper"))?;
        }
        match serde_json::from_str(&line) {
            Ok(Answer::Ok) => {}
            Ok(Answer::Failed(message)) => {
                drop(child.wait());
                return Err(LabError::Keeper { message });
            }
            Err(_) => {
                drop(child.kill());
                drop(child.wait());
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                return Err(LabError::Keeper { message: format!("it ended without a word: {}", log.trim()) });
            }
        }
        let record = Record::load(dir)?;
        Ok(Self { dir: dir.to_owned(), record, keeper: owned.then_some(child) })
    }

    /// Finds a lab that is up: by name, or the only one.
    pub fn attach(state: Option<&Path>, name: Option<&str>) -> Result<Self, LabError> {
        let record = state::find(&spec::state_dir(state), name)?;
        Ok(Self { dir: record.dir.clone(), record, keeper: None })
    }

    /// All labs that are up.
    pub fn all(state: Option<&Path>) -> Vec<Self> {
        state::records(&spec::state_dir(state))
            .into_iter()
            .filter(|record| record.owner.alive())
            .map(|record| Self { dir: record.dir.clone(), record, keeper: None })
            .collect()
    }

    /// Removes what labs left whose owners are dead; gives their names.
    pub fn sweep(state: Option<&Path>) -> Result<Vec<String>, LabError> {
        let state = spec::state_dir(state);
        let lock = state::lock(&state)?;
        state::sweep(&state, &lock)
    }

    /// Ends the lab: every process, mount, network and file of it.
    pub fn down(mut self) -> Result<(), LabError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), LabError> {
        match self.keeper.take() {
            Some(mut keeper) => {
                drop(keeper.stdin.take());
                let deadline = Instant::now() + DOWN_LIMIT;
                while keeper.try_wait().map_err(LabError::system("wait for the keeper"))?.is_none() {
                    if Instant::now() > deadline {
                        drop(keeper.kill());
                        drop(keeper.wait());
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            None => {
                // The keeper answers when all is gone but itself.
                if let Err(error) = keeper::ask(&self.dir, &Request::Down)
                    && self.record.owner.alive()
                {
                    return Err(error);
                }
                let deadline = Instant::now() + DOWN_LIMIT;
                while self.record.owner.alive() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        if self.dir.exists() {
            let _lock = state::lock(self.dir.parent().unwrap_or(&self.dir))?;
            state::remove(&self.record)?;
        }
        Ok(())
    }

    /// What is written down about the lab.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> Vec<Host> {
        self.record.hosts.iter().map(|host| Host::new(self, host)).collect()
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> Result<Host, LabError> {
        Ok(Host::new(self, self.record.host(name)?))
    }

    /// The ssh client's configuration that knows all hosts by name.
    pub fn ssh_config(&self) -> &Path {
        &self.record.ssh_config
    }

    /// The independent registry, spoken to in plain HTTP from hosts and operator.
    pub fn registry(&self) -> Result<&RegistryRecord, LabError> {
        self.record
            .registry
            .as_ref()
            .ok_or_else(|| LabError::Spec { reason: "this lab was made without a registry".to_owned() })
    }

    /// The directory of the operator's files; its `home` is the operator's HOME.
    pub fn operator_home(&self) -> &Path {
        &self.record.operator.home
    }

    /// A command that runs where the operator is: its network, its HOME, its ssh, and nothing else of this process's
    /// environment.
    pub fn operator_command(&self, program: impl AsRef<Path>) -> Command {
        let operator = &self.record.operator;
        let mut command = command("nsenter", [format!("--net=/proc/{}/ns/net", operator.pid), "--".to_owned()]);
        command.arg(program.as_ref());
        command
            .env_clear()
            .env("HOME", &operator.home)
            .env("PATH", format!("{}:{}", operator.bin.display(), machine::PATH))
            .env("USER", "root")
            .env("LANG", "C.UTF-8");
        command
    }

    /// The `lab` program that keeps this lab.
    pub fn program(&self) -> &Path {
        &self.record.program
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keeper.is_some() {
            // A failure to end leaves files that the next lab removes.
            drop(self.end());
        }
    }
}

/// A host of a lab.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) lab: PathBuf,
    pub(crate) program: PathBuf,
    /// Its name, for ssh too.
    pub name: String,
    /// Its container engine.
    pub engine: Engine,
    /// Its address on the lab's network.
    pub address: Ipv4Addr,
    /// Whether the engine is a user's own.
    pub rootless: bool,
}

impl Host {
    fn new(lab: &Lab, host: &HostRecord) -> Self {
        Self {
            lab: lab.dir.clone(),
            program: lab.record.program.clone(),
            name: host.name.clone(),
            engine: host.engine,
            address: host.address,
            rootless: host.rootless,
        }
    }

    /// What is written down about the host now; it changes when the host is killed and booted.
    pub fn record(&self) -> Result<HostRecord, LabError> {
        Record::load(&self.lab)?.host(&self.name).cloned()
    }

    /// A command that runs on the host as root, not through ssh.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("enter").arg(&self.lab).arg(&self.name).arg("--").args(argv);
        command
    }

    /// Runs a command on the host as root, not through ssh, and gives its standard output; anything but exit code 0 is an
    /// error.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Result<String, LabError> {
        let out = command::run(&mut self.command(argv))?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// Like [`Host::exec`], but gives all that the command said and its exit code.
    pub fn output<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Result<Output, LabError> {
        command::output(&mut self.command(argv), None)
    }

    /// The path of the engine's command on the host.
    pub fn engine_cli(&self) -> &'static str {
        if self.rootless { machine::USERS_PODMAN } else { self.engine.cli() }
    }

    /// Runs the engine's command on the host with these arguments.
    pub fn engine<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Result<String, LabError> {
        let out = command::run(self.command(&[self.engine_cli()]).args(args))?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// Writes a file on the host, with its directories.
    pub fn write_file(&self, path: &str, contents: &[u8]) -> Result<(), LabError> {
        if let Some(parent) = Path::new(path).parent() {
            self.exec(&[Path::new("mkdir"), Path::new("-p"), parent])?;
        }
        command::run_with_input(&mut self.command(&["cp", "/dev/stdin", path]), contents).map(drop)
    }

    /// Reads a file of the host.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, LabError> {
        command::run(&mut self.command(&["cat", path]))
    }

    /// Removes a file or directory of the host, if it is there.
    pub fn remove_file(&self, path: &str) -> Result<(), LabError> {
        self.exec(&["rm", "-rf", "--", path]).map(drop)
    }

    /// What the host's sshd saw since the lab is up.
    pub fn ssh_sessions(&self) -> Result<Sessions, LabError> {
        let path = self.record()?.dir.join("sshd.log");
        let log = std::fs::read_to_string(&path).map_err(LabError::file("read", path))?;
        Ok(Sessions::count(&log))
    }

    /// What the relay in front of the host's sshd carried since the lab is up; only in a lab with a round trip time.
    pub fn ssh_traffic(&self) -> Result<Traffic, LabError> {
        let path = self.record()?.dir.join("relay.json");
        let text = std::fs::read(&path).map_err(LabError::file("read", path))?;
        serde_json::from_slice(&text).map_err(LabError::json("the relay's count"))
    }
}

/// Becomes a command on a host; returns only on failure. This is what [`Host::command`] runs.
pub(crate) fn enter(lab: &Path, name: &str, argv: &[std::ffi::OsString]) -> Result<(), LabError> {
    let record = Record::load(lab)?;
    let host = record.host(name)?;
    if host.pid == 0 {
        return Err(LabError::Keeper { message: format!("host `{name}` is off") });
    }
    cgroup::enter(&record.cgroup(name))?;
    let mut command = command("nsenter", ["--target", &host.pid.to_string()]);
    command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]).args(argv);
    let term = std::env::var_os("TERM");
    command.env_clear().env("PATH", machine::PATH).env("HOME", "/root").env("USER", "root").env("LANG", "C.UTF-8");
    if let Some(term) = term {
        command.env("TERM", term);
    }
    let source = command.exec();
    Err(LabError::NoProgram { program: "nsenter".to_owned(), source })
}

/// Becomes a command in a control group; returns only on failure. This is how parts of a lab are started.
pub(crate) fn stage(group: &Path, argv: &[std::ffi::OsString]) -> Result<(), LabError> {
    cgroup::enter(group)?;
    let (program, args) =
        argv.split_first().ok_or_else(|| LabError::Spec { reason: "no command to become".to_owned() })?;
    let source = Command::new(program).args(args).exec();
    Err(LabError::NoProgram { program: program.to_string_lossy().into_owned(), source })
}
