//! The process that keeps a lab: makes its namespaces, starts its parts, boots hosts again when asked, and ends it all.
//!
//! Every part is its child and dies with it (parent-death signals and pid namespaces), so a keeper that is killed leaves
//! files and empty control groups only. It speaks with its maker by one line on standard output and, for a lab that a test
//! owns, ends when standard input does. Everyone else asks at the socket `control` in the lab's directory.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    HostRecord, LabError, Owner, Record, cgroup,
    command::{command, run},
    machine::Orders,
    net, relay, ssh, state,
};

/// How long the hosts have to boot.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// How long a namespace's holder or a server of the lab has to be there.
const PART_LIMIT: Duration = Duration::from_secs(20);

/// What the keeper tells its maker when it is done with starting.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It is done.
    Ok,
    /// It is not possible, and why.
    Failed(String),
}

/// What others ask of the keeper, one line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Kill the first process of a host, and so all of it, without a warning.
    Kill(String),
    /// Boot a host that is off.
    Boot(String),
    /// End the lab.
    Down,
}

/// The socket of a lab's keeper.
pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("control")
}

/// Asks the keeper of a lab.
pub(crate) fn ask(dir: &Path, request: &Request) -> Result<(), LabError> {
    let gone = |source: std::io::Error| LabError::Keeper { message: source.to_string() };
    let mut stream = UnixStream::connect(socket(dir)).map_err(gone)?;
    let mut line = serde_json::to_string(request).map_err(LabError::json("a request"))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(gone)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(gone)?;
    match serde_json::from_str(&answer).map_err(LabError::json("the keeper's answer"))? {
        Answer::Ok => Ok(()),
        Answer::Failed(message) => Err(LabError::Keeper { message }),
    }
}

/// The whole life of a keeper. With `owned`, the end of standard input is the end of the lab.
pub(crate) fn keep(dir: &Path, owned: bool) -> Result<(), LabError> {
    let mut record = Record::load(dir)?;
    record.owner = Owner::of(std::process::id())
        .ok_or_else(|| LabError::Keeper { message: "/proc does not show this process".to_owned() })?;
    record.save()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LabError::system("start the keeper"))?;
    runtime.block_on(async {
        let mut keeper = Keeper { record, parts: Vec::new(), machines: Vec::new() };
        let result = match keeper.build() {
            Ok(()) => match UnixListener::bind(socket(dir)).map_err(LabError::file("listen at", socket(dir))) {
                Ok(listener) => {
                    say(&Answer::Ok);
                    keeper.serve(listener, owned).await
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let waiting = result.as_ref().ok().map(|waiting| waiting.as_ref());
        let end = keeper.tear_down();
        match (waiting, &result) {
            (Some(Some(_)), _) => {}
            (_, Err(error)) => say(&Answer::Failed(error.to_string())),
            _ => {}
        }
        if let Ok(Some(mut stream)) = result {
            reply(&mut stream, &end).await;
            return end;
        }
        result.map(drop).and(end)
    })
}

/// Tells the maker. It may be gone already, which is its own affair.
fn say(answer: &Answer) {
    let line = serde_json::to_string(answer).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

async fn reply(stream: &mut tokio::net::UnixStream, result: &Result<(), LabError>) {
    let answer = match result {
        Ok(()) => Answer::Ok,
        Err(error) => Answer::Failed(error.to_string()),
    };
    let mut line = serde_json::to_string(&answer).unwrap_or_default();
    line.push('\n');
    drop(stream.write_all(line.as_bytes()).await);
}

struct Keeper {
    record: Record,
    /// Holders of namespaces and servers of the lab.
    parts: Vec<Child>,
    /// The parent of each host's first process, in the order of the hosts.
    machines: Vec<Option<Child>>,
}

/// A host between its first process's start and its being ready.
struct Booting {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Keeper {
    fn build(&mut self) -> Result<(), LabError> {
        ssh::write_files(&self.record)?;
        self.network()?;
        self.write_env()?;
        if self.record.registry.is_some() {
            self.start_registry()?;
        }
        let mut booting = Vec::new();
        for index in 0..self.record.hosts.len() {
            booting.push(self.start_host(index)?);
        }
        let deadline = Instant::now() + BOOT_LIMIT;
        for (index, host) in booting.into_iter().enumerate() {
            let child = self.await_host(index, host, deadline)?;
            self.machines.push(Some(child));
        }
        if let Some(rtt) = self.record.rtt_ms {
            self.start_relays(rtt)?;
        }
        self.record.ready = true;
        self.record.save()
    }

    fn network(&mut self) -> Result<(), LabError> {
        self.record.bridge_pid = self.hold_network("bridge")?;
        self.record.operator.pid = self.hold_network("operator")?;
        let mut addresses = vec![Record::address(self.record.number, 1)];
        addresses.extend(
            self.record.hosts.iter().filter(|host| host.ssh_address != host.address).map(|host| host.ssh_address),
        );
        net::make_bridge(self.record.bridge_pid, &addresses)?;
        net::attach(self.record.bridge_pid, self.record.operator.pid, self.record.operator.address)?;
        self.record.save()
    }

    /// A command whose process dies with the keeper and lives in the control group of that part.
    fn part(&self, part: &str) -> Result<Command, LabError> {
        let group = self.record.cgroup(part);
        cgroup::create(&group)?;
        let mut command = command("setpriv", ["--pdeathsig", "KILL", "--"]);
        command.arg(&self.record.program).arg("stage").arg(&group).arg("--");
        command.env_clear().env("PATH", crate::machine::PATH).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    }

    fn spawn(&mut self, mut command: Command) -> Result<u32, LabError> {
        let child = command
            .spawn()
            .map_err(|source| LabError::NoProgram { program: crate::command::argv(&command), source })?;
        let pid = child.id();
        self.parts.push(child);
        Ok(pid)
    }

    /// Starts a process that does nothing but be in a new network namespace.
    fn hold_network(&mut self, part: &str) -> Result<u32, LabError> {
        let mut command = self.part(part)?;
        command.args(["unshare", "--net", "--", "sleep", "infinity"]);
        let pid = self.spawn(command)?;
        let ours = fs::read_link("/proc/self/ns/net").map_err(LabError::system("read the own namespace"))?;
        let apart = || fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs != ours);
        self.until(part, PART_LIMIT, apart)?;
        Ok(pid)
    }

    fn until(&self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<(), LabError> {
        let deadline = Instant::now() + limit;
        while !ready() {
            if Instant::now() > deadline {
                return Err(LabError::NotReady {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                    log: self.record.dir.join("keeper.log"),
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn log(&self, name: &str) -> Result<fs::File, LabError> {
        let path = self.record.dir.join(name);
        fs::File::options().create(true).append(true).open(&path).map_err(LabError::file("open", path))
    }

    /// Where a server of the lab runs that everyone on the bridge may reach.
    fn on_bridge(&self, part: &str) -> Result<Command, LabError> {
        let mut command = self.part(part)?;
        command.args(["nsenter", &format!("--net=/proc/{}/ns/net", self.record.bridge_pid), "--"]);
        let log = self.log(&format!("{part}.log"))?;
        let same = log.try_clone().map_err(LabError::system("share a log"))?;
        command.stdout(log).stderr(same);
        Ok(command)
    }

    fn start_registry(&mut self) -> Result<(), LabError> {
        let Some(registry) = self.record.registry.clone() else {
            return Ok(());
        };
        fs::create_dir_all(&registry.storage).map_err(LabError::file("create", &registry.storage))?;
        let config = self.record.dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: \
             {}\n  delete:\n    enabled: true\nhttp:\n  addr: {}\n",
            registry.storage.display(),
            registry.address
        );
        ssh::write(&config, &text, 0o644)?;
        let mut command = self.on_bridge("registry")?;
        command.args(["docker-registry", "serve"]).arg(&config);
        self.spawn(command)?;
        self.listens("the registry", &registry.address)
    }

    /// Waits until someone on the bridge listens at the address.
    fn listens(&self, what: &str, address: &str) -> Result<(), LabError> {
        let port = address.rsplit(':').next().unwrap_or_default().to_owned();
        let bridge = self.record.bridge_pid.to_string();
        self.until(what, PART_LIMIT, || {
            let mut ss =
                command("nsenter", ["--target", &bridge, "--net", "--", "ss", "-Hltn", &format!("sport = :{port}")]);
            run(&mut ss).is_ok_and(|out| String::from_utf8_lossy(&out).contains(address))
        })
    }

    fn start_relays(&mut self, rtt_ms: f64) -> Result<(), LabError> {
        let order = relay::Order {
            rtt_ms,
            lines: self
                .record
                .hosts
                .iter()
                .filter(|host| host.ssh_address != host.address)
                .map(|host| relay::Line {
                    listen: (host.ssh_address, 22).into(),
                    target: (host.address, 22).into(),
                    traffic: host.dir.join("relay.json"),
                })
                .collect(),
        };
        let path = self.record.dir.join("relay.order.json");
        let text = serde_json::to_string(&order).map_err(LabError::json("the relay's order"))?;
        ssh::write(&path, &text, 0o644)?;
        let mut command = self.on_bridge("relay")?;
        command.arg(&self.record.program).arg("relay").arg(&path);
        self.spawn(command)?;
        for host in self.record.hosts.iter().filter(|host| host.ssh_address != host.address) {
            self.listens("the relay", &format!("{}:22", host.ssh_address))?;
        }
        Ok(())
    }

    /// Starts the first process of a host and gives it a network.
    fn start_host(&mut self, index: usize) -> Result<Booting, LabError> {
        let host = self.record.hosts[index].clone();
        let orders = self.write_orders(&host)?;
        make_disk(&host.dir.join("disk.img"), self.record.disk)?;
        let mut command = self.part(&host.name)?;
        command.args([
            "unshare",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
            "--fork",
            "--kill-child",
            "--",
        ]);
        command.arg(&self.record.program).arg("machine").arg(&orders);
        let log = host.dir.join("machine.log");
        let stderr = fs::File::create(&log).map_err(LabError::file("create", &log))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command
            .spawn()
            .map_err(|source| LabError::NoProgram { program: crate::command::argv(&command), source })?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(LabError::Keeper { message: "a host without pipes".to_owned() });
        };
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let first = hear(&lines, Instant::now() + PART_LIMIT, &host)?;
        let pid =
            first.strip_prefix("pid ").and_then(|number| number.parse().ok()).ok_or_else(|| LabError::Keeper {
                message: format!("host `{}` says `{first}` where its process number was due", host.name),
            })?;
        net::attach(self.record.bridge_pid, pid, host.address)?;
        if host.through.is_some() {
            net::refuse_ssh(pid, self.record.operator.address)?;
        }
        writeln!(stdin, "go").map_err(LabError::system("tell a host to go on"))?;
        let entry = &mut self.record.hosts[index];
        entry.pid = pid;
        entry.boots += 1;
        self.record.save()?;
        Ok(Booting { child, stdin, lines })
    }

    fn await_host(&self, index: usize, booting: Booting, deadline: Instant) -> Result<Child, LabError> {
        let host = &self.record.hosts[index];
        let Booting { child, stdin, lines } = booting;
        let word = hear(&lines, deadline, host)?;
        drop(stdin);
        match word.strip_prefix("failed ") {
            None => Ok(child),
            Some(message) => Err(LabError::Keeper { message: format!("host `{}` failed to {message}", host.name) }),
        }
    }

    fn write_orders(&self, host: &HostRecord) -> Result<PathBuf, LabError> {
        let key = self.record.dir.join("ssh/id_ed25519.pub");
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random)
            .map_err(|error| LabError::Keeper { message: format!("no randomness for a boot id: {error}") })?;
        let hex = format!("{:032x}", u128::from_be_bytes(random));
        let boot_id = format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..]);
        let orders = Orders {
            name: host.name.clone(),
            engine: host.engine,
            user: host.user.clone(),
            rootless: host.rootless,
            dir: host.dir.clone(),
            state: self.record.dir.parent().unwrap_or(&self.record.dir).to_owned(),
            authorized_key: fs::read_to_string(&key).map_err(LabError::file("read", &key))?,
            hosts: self.record.hosts.iter().map(|host| (host.name.clone(), host.address)).collect(),
            registry: self.record.registry.as_ref().map(|registry| registry.address.clone()),
            binds: self.record.binds.clone(),
            boot_id,
        };
        let path = host.dir.join("machine.json");
        let text = serde_json::to_string_pretty(&orders).map_err(LabError::json("a host's orders"))?;
        ssh::write(&path, &text, 0o644)?;
        Ok(path)
    }

    /// Writes the file that a person sources.
    fn write_env(&self) -> Result<(), LabError> {
        let record = &self.record;
        let names: String =
            record.variables().iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        let text = format!(
            "# To be sourced in a POSIX shell: `ssh HOST`, `jiji ...` and `in_lab COMMAND` then run where the operator of the lab\n\
             # `{name}` is. JIJI names the program to run as jiji.\n\
             export JIJI_LAB_STATE='{state}'\n\
             {names}\
             in_lab() {{\n    nsenter --net=/proc/{pid}/ns/net -- env HOME='{home}' PATH='{bin}':\"$PATH\" SSH_AUTH_SOCK= \"$@\"\n}}\n\
             ssh() {{ in_lab ssh \"$@\"; }}\n\
             scp() {{ in_lab scp \"$@\"; }}\n\
             jiji() {{ in_lab \"${{JIJI:-jiji}}\" \"$@\"; }}\n",
            name = record.name,
            state = record.dir.parent().unwrap_or(&record.dir).display(),
            pid = record.operator.pid,
            home = record.operator.home.display(),
            bin = record.operator.bin.display(),
        );
        ssh::write(&record.env, &text, 0o644)
    }

    /// Answers until the lab is to end; returns whoever asked for that and waits to hear that it is done.
    async fn serve(&mut self, listener: UnixListener, owned: bool) -> Result<Option<tokio::net::UnixStream>, LabError> {
        let listen = |kind: SignalKind| signal(kind).map_err(LabError::system("listen for signals"));
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let (owner_gone, mut owner) = tokio::sync::mpsc::channel::<()>(1);
        if owned {
            std::thread::spawn(move || {
                let _held = owner_gone;
                drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
            });
        } else {
            // Never let go, so never heard of.
            std::mem::forget(owner_gone);
        }
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(None),
                _ = interrupt.recv() => return Ok(None),
                _ = owner.recv() => return Ok(None),
                stream = listener.accept() => {
                    let Ok((mut stream, _)) = stream else { continue };
                    let mut line = String::new();
                    let mut reader = tokio::io::BufReader::new(&mut stream);
                    let read = tokio::time::timeout(Duration::from_secs(5), reader.read_line(&mut line)).await;
                    if !matches!(read, Ok(Ok(_))) {
                        continue;
                    }
                    let result = match serde_json::from_str(&line) {
                        Ok(Request::Down) => return Ok(Some(stream)),
                        Ok(Request::Kill(name)) => self.kill_host(&name),
                        Ok(Request::Boot(name)) => self.boot_host(&name),
                        Err(error) => Err(LabError::json("a request")(error)),
                    };
                    reply(&mut stream, &result).await;
                }
            }
        }
    }

    fn index(&self, name: &str) -> Result<usize, LabError> {
        let found = self.record.hosts.iter().position(|host| host.name == name);
        found.ok_or_else(|| LabError::NoSuchHost { name: name.to_owned() })
    }

    fn kill_host(&mut self, name: &str) -> Result<(), LabError> {
        let index = self.index(name)?;
        if let Some(mut child) = self.machines[index].take() {
            kill(self.record.hosts[index].pid);
            // Its parent ends when it did.
            drop(child.wait());
        }
        self.record.hosts[index].pid = 0;
        cgroup::destroy(&self.record.cgroup(name))?;
        self.record.save()
    }

    fn boot_host(&mut self, name: &str) -> Result<(), LabError> {
        let index = self.index(name)?;
        if self.machines[index].is_some() {
            return Err(LabError::Keeper { message: format!("host `{name}` is on") });
        }
        // The same disk must never be attached twice, and the dead host's is let go of a moment after its end.
        let image = self.record.hosts[index].dir.join("disk.img");
        self.until("the disk of a dead host", PART_LIMIT, || {
            run(command("losetup", ["--associated"]).arg(&image)).is_ok_and(|out| out.is_empty())
        })?;
        let booting = self.start_host(index)?;
        let child = self.await_host(index, booting, Instant::now() + BOOT_LIMIT)?;
        self.machines[index] = Some(child);
        Ok(())
    }

    fn tear_down(&mut self) -> Result<(), LabError> {
        for host in &self.record.hosts {
            kill(host.pid);
        }
        let result = state::lock(self.record.dir.parent().unwrap_or(&self.record.dir))
            .and_then(|_lock| state::remove(&self.record));
        for mut child in self.parts.drain(..).chain(self.machines.drain(..).flatten()) {
            drop(child.kill());
            drop(child.wait());
        }
        result
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn hear(lines: &mpsc::Receiver<String>, deadline: Instant, host: &HostRecord) -> Result<String, LabError> {
    lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).map_err(|_| LabError::NotReady {
        what: format!("host `{}`", host.name),
        seconds: BOOT_LIMIT.as_secs(),
        log: host.dir.join("machine.log"),
    })
}

/// Makes a host's disk if it has none: a sparse file with a file system.
fn make_disk(image: &Path, size: u64) -> Result<(), LabError> {
    if image.exists() {
        return Ok(());
    }
    let file = fs::File::create(image).map_err(LabError::file("create", image))?;
    file.set_len(size).map_err(LabError::file("size", image))?;
    run(command("mkfs.ext4", ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(image))
        .map(drop)
}
