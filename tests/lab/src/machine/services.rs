//! The services of a host, started again when they end, as an init system would.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{WaitOptions, wait};

use crate::{Engine, LabError};

/// How long services have to answer after they were started.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a service that ended stays down.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// The path of services and of commands that are run on a host.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What makes systemd start Podman's containers when the machine boots.
const AT_BOOT: &str = "/etc/systemd/system/default.target.wants/podman-restart.service";

/// Where services write what they think: files of the machine, opened before they are out of reach.
pub(super) struct Logs {
    dir: PathBuf,
    sshd: File,
    dockerd: File,
    podman: File,
}

impl Logs {
    /// Opens the files in the host's directory, to be appended to.
    pub(super) fn open(dir: &Path) -> Result<Self, LabError> {
        let open = |name: &str| {
            let path = dir.join(name);
            File::options().create(true).append(true).open(&path).map_err(LabError::file("open", path))
        };
        Ok(Self {
            dir: dir.to_owned(),
            sshd: open("sshd.log")?,
            dockerd: open("dockerd.log")?,
            podman: open("podman.log")?,
        })
    }
}

/// A service: its argv, its log, its process.
struct Service {
    argv: &'static [&'static str],
    log: File,
    pid: i32,
}

impl Service {
    fn start(argv: &'static [&'static str], log: File) -> Result<Self, LabError> {
        let mut service = Self { argv, log, pid: 0 };
        service.spawn()?;
        Ok(service)
    }

    fn spawn(&mut self) -> Result<(), LabError> {
        let log = self.log.try_clone().map_err(LabError::system("share a log"))?;
        let log_too = self.log.try_clone().map_err(LabError::system("share a log"))?;
        let child = Command::new(self.argv[0])
            .args(&self.argv[1..])
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .map_err(|source| LabError::NoProgram { program: self.argv[0].to_owned(), source })?;
        self.pid = i32::try_from(child.id()).unwrap_or(0);
        Ok(())
    }
}

/// All services of a host.
pub(super) struct Services(Vec<Service>);

impl Services {
    /// Starts sshd and, where the engine has one, its daemon; returns when both answer.
    pub(super) fn start(engine: Engine, logs: Logs) -> Result<Self, LabError> {
        let deadline = Instant::now() + START_LIMIT;
        let late = |what: &str, log: &str| LabError::NotReady {
            what: what.to_owned(),
            seconds: START_LIMIT.as_secs(),
            log: logs.dir.join(log),
        };
        let sshd = logs.sshd.try_clone().map_err(LabError::system("share a log"))?;
        let dockerd = logs.dockerd.try_clone().map_err(LabError::system("share a log"))?;
        let mut services =
            vec![Service::start(&["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/lab_sshd_config"], sshd)?];
        if engine == Engine::Docker {
            services.push(Service::start(&["/usr/sbin/dockerd"], dockerd)?);
            until(deadline, docker_answers).ok_or_else(|| late("dockerd", "dockerd.log"))?;
        }
        until(deadline, || TcpStream::connect(("127.0.0.1", 22)).is_ok()).ok_or_else(|| late("sshd", "sshd.log"))?;
        if engine == Engine::Podman && Path::new(AT_BOOT).is_symlink() {
            // What that unit does (podman-restart.service, ExecStart), while others may log in already, as on a machine that boots.
            start_containers(&logs)?;
        }
        Ok(Self(services))
    }

    /// Buries orphans for ever, and starts services again that ended.
    pub(super) fn supervise(mut self) -> Result<(), LabError> {
        loop {
            let (pid, _status) = match wait(WaitOptions::empty()) {
                Ok(Some(ended)) => ended,
                Ok(None) => continue,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(LabError::system("wait for children")(error)),
            };
            if let Some(service) = self.0.iter_mut().find(|service| service.pid == pid.as_raw_nonzero().get()) {
                std::thread::sleep(RESTART_PAUSE);
                // A daemon that was killed leaves the number of a process that is now another one's.
                drop(fs::remove_file("/run/docker.pid"));
                service.spawn()?;
            }
        }
    }
}

/// Starts what is to run always, and waits for nothing. Whoever waits for children buries it.
fn start_containers(logs: &Logs) -> Result<(), LabError> {
    const ARGV: [&str; 5] = ["/usr/bin/podman", "start", "--all", "--filter", "restart-policy=always"];
    let log = logs.podman.try_clone().map_err(LabError::system("share a log"))?;
    Service { argv: &ARGV, log, pid: 0 }.spawn()
}

fn until(deadline: Instant, mut ready: impl FnMut() -> bool) -> Option<()> {
    loop {
        if ready() {
            return Some(());
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn docker_answers() -> bool {
    let Ok(mut socket) = UnixStream::connect("/run/docker.sock") else {
        return false;
    };
    let mut answer = String::new();
    socket.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && socket.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").is_ok()
        && socket.read_to_string(&mut answer).is_ok()
        && answer.contains("200 OK")
}
