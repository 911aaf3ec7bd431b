//! The way to hosts: a user with sudo, a jump host, keys and agents, host keys that are new or changed, and what is said when it fails.
//!
//! One host lets in no root but the user `deploy`, who has sudo; the other is reached through it alone.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiji_e2e::{Outcome, Project, Run, Running, Shared, Site, look};
use jiji_lab::{Engines, Host, Spec, command};

static LAB: Shared = Shared::of(|| Spec::new(2, Engines::Mixed).sudo(1).behind(2, 1));

/// The line that sudo needs, as the message names it.
const SUDOERS: &str = "deploy ALL=(root) NOPASSWD: ALL";

fn says(run: &Run, due: &[&str]) {
    for due in due {
        assert!(run.stderr.contains(due), "`{due}` is to be said: {run}");
    }
}

/// The user with sudo, and the one behind it.
fn pair(site: &Site) -> Outcome<[Host; 2]> {
    site.hosts().try_into().map_err(|hosts| format!("two hosts are due, not {hosts:?}").into())
}

/// A project that is not shipped, and whose ssh configuration can be changed.
struct Reach<'a> {
    project: Project<'a>,
}

impl<'a> Reach<'a> {
    fn new(site: &'a Site, name: &str) -> Outcome<Self> {
        let reach = Self { project: Project::new(site, name)? };
        reach.project.edit("config: ${LAB_SSH_CONFIG}\n", &format!("config: {}\n", reach.config().display()))?;
        reach.configure(site, |text| text)?;
        Ok(reach)
    }

    /// Beside the project, as an operator's own file would be.
    fn config(&self) -> PathBuf {
        self.project.dir().join("ssh_config")
    }

    fn known_hosts(&self) -> PathBuf {
        self.project.dir().join("known_hosts")
    }

    /// Writes the lab's configuration as changed.
    fn configure(&self, site: &Site, change: impl Fn(String) -> String) -> Outcome {
        Ok(std::fs::write(self.config(), change(std::fs::read_to_string(site.lab.ssh_config())?))?)
    }

    fn status(&self, more: &[&str]) -> Outcome<Run> {
        self.project.show(&[&["status"], more].concat())
    }
}

#[test]
fn a_user_with_sudo_and_a_host_behind_a_jump_host_are_shipped_to_in_one_exec_each() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "reach")?;
    let [first, second] = pair(&site)?;
    project.ship()?;
    for host in [&first, &second] {
        look::only(host, "reach")?;
        assert_eq!(host.exec(&["stat", "-c", "%U %a", "/var/lib/jiji"])?.trim(), "root 700", "{}", host.name);
    }
    let before = [first.ssh_sessions()?, second.ssh_sessions()?];
    let run = project.ship()?;
    println!("unchanged through sudo and a jump host in {:.2}s", run.took.as_secs_f64());
    assert_eq!(run.summary()?["result"], "unchanged");
    let after = [first.ssh_sessions()?, second.ssh_sessions()?];
    assert_eq!(after[0].sessions - before[0].sessions, 1, "one exec, and none for the way through");
    assert_eq!(after[1].sessions - before[1].sessions, 1);
    assert_eq!(after[0].connections - before[0].connections, 2, "its own and the way to the other");
    Ok(())
}

#[test]
fn without_the_sudoers_line_it_is_refused_and_the_line_that_is_named_is_enough() -> Outcome {
    let site = LAB.take()?;
    let reach = Reach::new(&site, "sudoers")?;
    let [first, _] = pair(&site)?;
    let was = first.read_file("/etc/sudoers.d/lab")?;
    first.remove_file("/etc/sudoers.d/lab")?;
    let run = reach.status(&[])?;
    first.write_file("/etc/sudoers.d/jiji", format!("{SUDOERS}\n").as_bytes())?;
    let allowed = reach.status(&[])?;
    first.remove_file("/etc/sudoers.d/jiji")?;
    first.exec(&["chmod", "000", "/usr/bin/sudo"])?;
    let missing = reach.status(&[])?;
    first.exec(&["chmod", "4755", "/usr/bin/sudo"])?;
    first.write_file("/etc/sudoers.d/lab", &was)?;
    says(&run.expect(15)?, &["become root on `one` as `deploy`", "a password is required", SUDOERS, "visudo"]);
    allowed.expect(0)?;
    says(&missing.expect(15)?, &["`sudo` is not installed", "apt install sudo", SUDOERS]);
    Ok(())
}

/// The fingerprint of a host's key, as its administrator would print it.
fn fingerprint(host: &Host) -> Outcome<String> {
    let text = host.exec(&["ssh-keygen", "-l", "-f", "/etc/ssh/lab_host_key"])?;
    Ok(text.split(' ').nth(1).ok_or("no fingerprint")?.to_owned())
}

#[test]
fn an_unknown_host_key_is_refused_with_its_fingerprint_and_a_changed_one_whatever_is_said() -> Outcome {
    let site = LAB.take()?;
    let reach = Reach::new(&site, "keys")?;
    let [first, second] = pair(&site)?;
    let known = reach.known_hosts();
    let lab = site.lab.ssh_config().with_file_name("known_hosts");
    reach.configure(&site, |text| text.replace(&lab.display().to_string(), &known.display().to_string()))?;

    let run = reach.status(&[])?.expect(6)?;
    says(&run, &[&fingerprint(&first)?, &first.name, "is not known", "--accept-new", &known.display().to_string()]);
    assert!(!known.exists(), "looking at a key is not believing it");

    let run = reach.status(&["--accept-new"])?.expect(0)?;
    says(&run, &["pinned the host key", &first.name, &second.name]);
    let pinned = std::fs::read_to_string(&known)?;
    reach.status(&[])?.expect(0)?;
    assert_eq!(std::fs::read_to_string(&known)?, pinned, "nothing is pinned twice");

    // The jump host is known, and the one behind it answers with another key than it did.
    let other = site.hosts()[0].record()?.dir.join("host_key.pub");
    let other = std::fs::read_to_string(other)?.split(' ').nth(1).ok_or("no key")?.to_owned();
    let lines = pinned.lines().map(|line| match line.starts_with(&second.name) {
        true => format!("{} ssh-ed25519 {other}\n", second.name),
        false => format!("{line}\n"),
    });
    let changed: String = lines.collect();
    assert_ne!(changed, pinned, "the second host's key is named by its name");
    std::fs::write(&known, &changed)?;
    for more in [&[][..], &["--accept-new"]] {
        let run = reach.status(more)?.expect(6)?;
        says(&run, &["has changed", &second.name, &fingerprint(&second)?, "known_hosts:", "ssh-keygen -R"]);
        assert_eq!(std::fs::read_to_string(&known)?, changed);
    }
    Ok(())
}

/// An ssh-agent that ends with the test.
struct Agent(Child, PathBuf);

impl Agent {
    fn start(dir: &Path) -> Outcome<Self> {
        let socket = dir.join("agent");
        let child = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn()?;
        let agent = Self(child, socket);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !agent.1.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_key_with_a_passphrase_works_from_the_agent_and_is_never_asked_for() -> Outcome {
    let site = LAB.take()?;
    let reach = Reach::new(&site, "agent")?;
    let key = reach.project.dir().join("id");
    let made = ["-q", "-t", "ed25519", "-N", "a passphrase", "-C", "agent", "-f"];
    command::run(command::command("ssh-keygen", made).arg(&key))?;
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    for host in site.hosts() {
        let mut keys = host.read_file("/etc/ssh/lab_authorized_keys")?;
        keys.extend(public.bytes());
        host.write_file("/etc/ssh/lab_authorized_keys", &keys)?;
    }
    let own = site.lab.ssh_config().with_file_name("id_ed25519");
    reach.configure(&site, |text| text.replace(&own.display().to_string(), &key.display().to_string()))?;

    // Nothing to read a passphrase from, and a program that would be asked for it were anybody to ask.
    let asked = reach.project.dir().join("asked");
    let askpass = reach.project.dir().join("askpass");
    std::fs::write(&askpass, format!("#!/bin/sh\ntouch {}\necho 'a passphrase'\n", asked.display()))?;
    command::run(command::command("chmod", ["755"]).arg(&askpass))?;
    let status = |agent: Option<&Agent>| -> Outcome<Run> {
        let mut command = reach.project.command(&["status"])?;
        command.env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force").env("DISPLAY", ":0");
        command.envs(agent.map(|agent| ("SSH_AUTH_SOCK", &agent.1)));
        Run::of(&mut command)
    };
    let refused = status(None)?.expect(6)?;
    says(&refused, &["permission denied", "deploy", "ssh-add"]);
    assert!(!asked.exists(), "nobody is asked");

    let agent = Agent::start(reach.project.dir())?;
    let mut add = Command::new("ssh-add");
    add.arg(&key).env("SSH_AUTH_SOCK", &agent.1).env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force");
    command::run(&mut add)?;
    std::fs::remove_file(&asked)?;
    status(Some(&agent))?.expect(0)?;
    assert!(!asked.exists());
    Ok(())
}

#[test]
fn a_project_cannot_run_a_program_here_and_the_users_own_configuration_can() -> Outcome {
    let site = LAB.take()?;
    let reach = Reach::new(&site, "proposal")?;
    let [_, second] = pair(&site)?;
    let mark = reach.project.dir().join("it-ran");
    let own = format!("config: {}\n", reach.config().display());
    let inside = reach.project.root().join(".jiji/ssh_config");
    reach.project.edit(&own, &format!("config: {}\n", inside.display()))?;
    let lab = std::fs::read_to_string(site.lab.ssh_config())?;
    for line in [
        format!("ProxyCommand touch {}", mark.display()),
        format!("Match exec \"touch {}\"", mark.display()),
        format!("KnownHostsCommand /usr/bin/touch {}", mark.display()),
        "UserKnownHostsFile known_hosts".to_owned(),
    ] {
        std::fs::write(&inside, format!("{line}\n{lab}"))?;
        let run = reach.status(&[])?.expect(2)?;
        says(&run, &["line 1", line.split(' ').next().unwrap_or_default(), "~/.ssh/config"]);
        assert!(!mark.exists(), "{line}");
    }

    // The same from the machine's own configuration, for which the project names no file.
    reach.project.edit(&format!("ssh:\n  config: {}\n", inside.display()), "")?;
    let way = site.lab.ssh_config().display();
    let script = format!("#!/bin/sh\ntouch {}\nexec /usr/bin/ssh -F {way} -W \"$1:$2\" podman-1\n", mark.display());
    let proxy = reach.project.dir().join("proxy");
    std::fs::write(&proxy, script)?;
    command::run(command::command("chmod", ["755"]).arg(&proxy))?;
    let system = reach.project.dir().join("system_config");
    let jump = "    ProxyJump podman-1\n";
    assert!(lab.contains(jump), "the second host is behind the first: {lab}");
    std::fs::write(&system, lab.replace(jump, &format!("    ProxyCommand {} %h %p\n", proxy.display())))?;
    let command = reach.project.command(&["status"])?;
    // In a mount namespace of its own, so that nobody else sees it.
    let script = "mount --bind \"$0\" /etc/ssh/ssh_config && exec \"$@\"";
    let inner: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut wrapped = Command::new(command.get_program());
    wrapped.args(&inner[..2]).args(["unshare", "--mount", "--", "sh", "-c", script]).arg(&system).args(&inner[2..]);
    wrapped.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped.current_dir(reach.project.root());
    drop(command);
    let run = Run::of(&mut wrapped)?.expect(0)?;
    assert!(mark.exists(), "the way to {} led through the user's command: {run}", second.name);
    Ok(())
}

#[test]
fn every_way_not_to_arrive_is_told_apart() -> Outcome {
    let site = LAB.take()?;
    let reach = Reach::new(&site, "endings")?;
    let [first, second] = pair(&site)?;
    // Each is one host's alone: the other is left out.
    reach.project.edit("    hosts: [one, two]\n", "    hosts: [one]\n")?;
    let with = |change: &dyn Fn(String) -> String| -> Outcome<Run> {
        reach.configure(&site, change)?;
        reach.status(&[])?.expect(6)
    };
    let address = format!("HostName {}", first.address);
    let user = "    User deploy\n";
    says(&with(&|text| text.replacen(user, "    User root\n", 1))?, &["as `root@", "permission denied", "ssh.user"]);
    let run = with(&|text| text.replacen(&address, "HostName nowhere.invalid", 1))?;
    says(&run, &["nowhere.invalid", "no such name", "servers.one.host"]);
    let run = with(&|text| text.replacen(&address, &format!("{address}\n    Port 23"), 1))?;
    says(&run, &["Connection refused"]);
    // Behind a jump host that is not there.
    let run = with(&|text| text.replacen(user, &format!("{user}    ProxyJump nobody@{}:23\n", second.address), 1))?;
    says(&run, &["Connection refused"]);

    reach.configure(&site, |text| text)?;
    reach.project.edit("  config: ", "  connect_timeout: 2s\n  config: ")?;
    first.cut_link()?;
    let run = reach.status(&[]);
    first.restore_link()?;
    let run = run?.expect(6)?;
    says(&run, &["no answer within 2 seconds", "connect_timeout"]);
    assert!(run.took < Duration::from_secs(10), "{run}");
    Ok(())
}

/// The processes of ssh that a project's runs left: their configuration lies in its directory.
fn masters(project: &Project<'_>) -> Outcome<Vec<String>> {
    let place = project.dir().display().to_string();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let title = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title).replace('\0', " ");
        if title.contains("ssh ") && title.contains(&place) {
            found.push(title);
        }
    }
    Ok(found)
}

#[test]
fn a_killed_run_leaves_masters_that_the_next_one_ends_and_an_ended_one_leaves_none() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "masters")?;
    project.show(&["status"])?.expect(0)?;
    assert_eq!(masters(&project)?, Vec::<String>::new());

    let [_, second] = pair(&site)?;
    assert!(second.freeze("dockerd")? > 0, "an engine that does not answer");
    let killed = (|| -> Outcome<Vec<String>> {
        let run = Running::start(&mut project.command(&["status"])?)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let both = |titles: &[String]| titles.iter().filter(|title| title.contains(" -M ")).count() == 2;
        // Let in, and so in the background, once their sockets are there.
        let sockets = || {
            project.dir().join("run/jiji").read_dir().is_ok_and(|mut runs| {
                runs.any(|run| {
                    run.is_ok_and(|run| {
                        [1, 2].iter().all(|number| run.path().join(format!("master-{number}")).exists())
                    })
                })
            })
        };
        while !(both(&masters(&project)?) && sockets()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        // Dropped: killed without a chance to clean up.
        drop(run);
        masters(&project)
    })();
    second.thaw("dockerd")?;
    assert!(!killed?.is_empty(), "what a killed run leaves");
    project.show(&["status"])?.expect(0)?;
    assert_eq!(masters(&project)?, Vec::<String>::new(), "the next run ended them");
    let left: Vec<_> = std::fs::read_dir(project.dir().join("run/jiji"))?.flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn ctrl_c_is_for_jiji_alone_and_what_is_behind_a_jump_host_is_reverted_in_order() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "terminal")?;
    project.edit("GREETING: hello\n", "GREETING: hello\n        UNHEALTHY_IF: /etc/hello/sick\n")?;
    project.edit("    retain: 2\n", "    retain: 2\n    volumes: [\"/etc/hello:/etc/hello:ro\"]\n")?;
    project.edit("interval: 200ms\n", "interval: 200ms\n        deploy_timeout: 100s\n")?;
    let hosts = pair(&site)?;
    for host in &hosts {
        host.exec(&["mkdir", "-p", "/etc/hello"])?;
    }
    project.ship()?;
    for host in &hosts {
        host.write_file("/etc/hello/sick", b"for now\n")?;
    }
    project.set_version("v2")?;
    // A terminal sends the signal to the whole group that it waits for.
    let mut run = Running::start(project.command(&["ship", "--json"])?.process_group(0))?;
    run.wait_for("a probe", |event| event["event"] == "apply.probed")?;
    command::run(&mut command::command("kill", ["-INT", "--", &format!("-{}", run.pid())]))?;
    let run = run.end()?.expect(14)?;
    says(&run, &["the old version serves"]);
    for host in &hosts {
        host.remove_file("/etc/hello/sick")?;
        look::only(host, "terminal")?;
    }
    assert_eq!(site.versions(&project.authority())?, [["v1"], ["v1"]]);
    project.run(&["status"])?.expect(0)?;
    Ok(())
}
