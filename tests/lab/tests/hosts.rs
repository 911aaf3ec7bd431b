//! Whole journeys with real hosts. They need root and the packages that `cargo xtask test` installs.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use jiji_lab::{Engine, Engines, Host, Lab, Spec, command};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn spec(hosts: usize, engines: Engines) -> Spec {
    Spec::new(hosts, engines).program(env!("CARGO_BIN_EXE_lab"))
}

/// An image with busybox alone, as a tar that both engines import.
fn busybox_tar() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("bin"))?;
    std::fs::copy("/bin/busybox", dir.path().join("bin/busybox"))?;
    Ok(command::run(command::command("tar", ["-c", "."]).current_dir(dir.path()))?)
}

fn ssh(lab: &Lab, host: &Host, words: &[&str]) -> Result<String, jiji_lab::LabError> {
    let out = command::run(lab.operator_command("ssh").arg(&host.name).args(words))?;
    Ok(String::from_utf8_lossy(&out).trim().to_owned())
}

fn fetch(lab: &Lab, url: &str) -> Result<Vec<u8>, jiji_lab::LabError> {
    command::run(lab.operator_command("curl").args(["-sS", "--fail", "--max-time", "5", url]))
}

#[test]
fn a_host_lets_in_a_user_with_sudo_and_another_is_reached_through_it_alone() -> Outcome {
    let lab = Lab::up(&spec(2, Engines::Podman).sudo(1).behind(2, 1))?;
    let [first, second] = &lab.hosts()[..] else { return Err("two hosts are due".into()) };
    assert_eq!(ssh(&lab, first, &["id", "-un"])?, "deploy");
    assert_eq!(ssh(&lab, first, &["sudo", "-n", "id", "-un"])?, "root");
    assert!(ssh(&lab, first, &["-l", "root", "true"]).is_err(), "root is not let in");
    first.remove_file("/etc/sudoers.d/lab")?;
    assert!(ssh(&lab, first, &["sudo", "-n", "true"]).is_err(), "sudo is for those who are listed");

    let before = (first.ssh_sessions()?, second.ssh_sessions()?);
    assert_eq!(ssh(&lab, second, &["hostname"])?, second.name);
    assert_eq!(second.ssh_sessions()?.sessions - before.1.sessions, 1);
    assert_eq!(first.ssh_sessions()?.connections - before.0.connections, 1, "the way leads through the first");
    assert_eq!(first.ssh_sessions()?.sessions, before.0.sessions, "and starts nothing there");
    let mut around = lab.operator_command("ssh");
    around.args(["-o", "ProxyJump=none", &second.name, "true"]);
    assert!(command::run(&mut around).is_err(), "there is no way around");
    lab.down()?;
    Ok(())
}

#[test]
fn both_engines_run_containers_that_the_operator_reaches() -> Outcome {
    let lab = Lab::up(&spec(2, Engines::Mixed))?;
    let image = busybox_tar()?;
    let registry = lab.registry()?.address.clone();
    for host in lab.hosts() {
        let before = host.ssh_sessions()?;
        assert_eq!(ssh(&lab, &host, &["hostname"])?, host.name);
        assert_eq!(ssh(&lab, &host, &["id", "-u"])?, "0");
        let seen = host.ssh_sessions()?;
        assert_eq!(seen.sessions - before.sessions, 2);
        assert_eq!(seen.connections - before.connections, 2);

        let name = format!("{registry}/{}:1", host.name);
        command::run_with_input(&mut host.command(&[host.engine_cli(), "import", "-", &name]), &image)?;
        let argv = ["run", "-d", "--name", "web", "-p", "80:80", &name, "/bin/busybox", "httpd", "-f", "-h", "/bin"];
        host.engine(&argv)?;
        let url = format!("http://{}/busybox", host.address);
        let deadline = Instant::now() + Duration::from_secs(5);
        let body = loop {
            match fetch(&lab, &url) {
                Ok(body) => break body,
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        assert_eq!(body.len() as u64, std::fs::metadata("/bin/busybox")?.len());
        host.engine(&["push", &name])?;
        let tags = fetch(&lab, &format!("http://{registry}/v2/{}/tags/list", host.name))?;
        assert!(String::from_utf8_lossy(&tags).contains("\"1\""));
    }
    lab.down()?;
    Ok(())
}

#[test]
fn a_host_has_a_root_a_disk_and_a_boot_id_of_its_own() -> Outcome {
    let lab = Lab::up(&spec(2, Engines::Podman))?;
    let hosts = lab.hosts();
    hosts[0].write_file("/etc/lab-marker/unhealthy", b"on this host only\n")?;
    assert_eq!(hosts[0].read_file("/etc/lab-marker/unhealthy")?, b"on this host only\n");
    assert!(hosts[1].read_file("/etc/lab-marker/unhealthy").is_err());
    assert!(!Path::new("/etc/lab-marker").exists(), "the machine itself is not touched");
    let boot = |host: &Host| host.exec(&["cat", "/proc/sys/kernel/random/boot_id"]);
    assert_ne!(boot(&hosts[0])?, boot(&hosts[1])?);

    hosts[0].fill_disk(1 << 20)?;
    let full = hosts[0].output(&["dd", "if=/dev/zero", "of=/var/lib/big", "bs=1M", "count=8"])?;
    assert!(!full.status.success());
    assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"));
    hosts[0].free_filled_disk()?;
    hosts[0].exec(&["dd", "if=/dev/zero", "of=/var/lib/big", "bs=1M", "count=8"])?;
    assert!(hosts[1].free_disk()? > 1 << 30);
    Ok(())
}

#[test]
fn a_cut_line_a_dead_host_and_a_frozen_process_look_like_that_to_the_operator() -> Outcome {
    let lab = Lab::up(&spec(1, Engines::Docker))?;
    let host = lab.host("docker-1")?;
    assert_eq!(host.engine, Engine::Docker);
    let reach = |seconds: &str| {
        command::run(lab.operator_command("ssh").args(["-o", &format!("ConnectTimeout={seconds}"), "docker-1", "true"]))
    };
    reach("5")?;

    host.cut_link()?;
    let start = Instant::now();
    let cut = reach("1").expect_err("the line is cut").to_string();
    assert!(cut.contains("timed out") || cut.contains("No route"), "{cut}");
    assert!(start.elapsed() < Duration::from_secs(5));
    host.restore_link()?;
    reach("5")?;

    host.exec(&["mkdir", "-p", "/var/lib/jiji"])?;
    host.write_file("/var/lib/jiji/kept", b"over the reboot")?;
    let boot_id = host.exec(&["cat", "/proc/sys/kernel/random/boot_id"])?;
    host.kill()?;
    assert_eq!(host.record()?.pid, 0);
    assert!(reach("1").is_err());
    host.boot()?;
    reach("5")?;
    assert_eq!(host.read_file("/var/lib/jiji/kept")?, b"over the reboot");
    assert_ne!(host.exec(&["cat", "/proc/sys/kernel/random/boot_id"])?, boot_id);
    host.engine(&["info"])?;

    assert!(host.freeze("dockerd")? >= 1);
    let frozen = host.output(&["timeout", "1", host.engine_cli(), "ps"])?;
    assert_eq!(frozen.status.code(), Some(124));
    host.thaw("dockerd")?;
    host.engine(&["ps"])?;
    Ok(())
}

#[test]
fn a_round_trip_time_is_felt_and_counted() -> Outcome {
    let lab = Lab::up(&spec(1, Engines::Podman).rtt(Duration::from_millis(50)))?;
    let host = lab.host("podman-1")?;
    let start = Instant::now();
    ssh(&lab, &host, &["true"])?;
    // Connect, banner, key exchange, authentication and the session itself: at least six round trips.
    assert!(start.elapsed() > Duration::from_millis(300), "{:?}", start.elapsed());
    std::thread::sleep(Duration::from_millis(100));
    let traffic = host.ssh_traffic()?;
    assert_eq!(traffic.connections, 1);
    assert!(traffic.turns >= 5, "{traffic:?}");
    assert!(traffic.sent > 1000 && traffic.received > 1000, "{traffic:?}");
    Ok(())
}

/// Everything that a lab could leave: processes, control groups, attached disks, files.
fn remains(state: &Path) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(entries) = std::fs::read_dir(state) {
        found.extend(
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_dir())
                .map(|path| path.display().to_string()),
        );
    }
    let disks = command::run(&mut Command::new("losetup")).unwrap_or_default();
    let state_text = state.display().to_string();
    found.extend(String::from_utf8_lossy(&disks).lines().filter(|line| line.contains(&state_text)).map(str::to_owned));
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let argv = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let argv = String::from_utf8_lossy(&argv).replace('\0', " ");
        if argv.contains(&state_text) {
            found.push(argv);
        }
    }
    found
}

#[test]
fn a_lab_whose_keeper_was_killed_is_swept_by_the_next_one() -> Outcome {
    let state = tempfile::tempdir_in("/var/tmp")?;
    let at = |spec: Spec| Spec { state: Some(state.path().to_owned()), ..spec };
    let first = Lab::up_detached(&at(spec(2, Engines::Mixed).name("first")))?;
    let host = first.host("docker-2")?;
    command::run_with_input(&mut host.command(&[host.engine_cli(), "import", "-", "bb"]), &busybox_tar()?)?;
    host.engine(&["run", "-d", "--name", "idle", "bb", "/bin/busybox", "sleep", "1000"])?;
    let keeper = first.record().owner.pid.to_string();
    command::run(&mut command::command("kill", ["-KILL", &keeper]))?;
    // A killed process takes a moment to be gone.
    while first.record().owner.alive() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(first.record().dir.exists());

    let second = Lab::up(&at(spec(1, Engines::Podman).name("second")))?;
    assert!(!first.record().dir.exists(), "the first lab's files are gone");
    assert!(remains(state.path()).iter().all(|what| !what.contains("first")), "{:?}", remains(state.path()));
    second.down()?;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(remains(state.path()), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_lab_ends_when_the_process_that_made_it_is_killed() -> Outcome {
    let state = tempfile::tempdir_in("/var/tmp")?;
    // This test is its own owner: it runs itself with a variable set, and kills that.
    if let Some(place) = std::env::var_os("LAB_TEST_OWNER_STATE") {
        let _lab = Lab::up(&Spec { state: Some(place.into()), ..spec(1, Engines::Podman) })?;
        std::thread::sleep(Duration::from_secs(120));
        return Ok(());
    }
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_lab_ends_when_the_process_that_made_it_is_killed"])
        .env("LAB_TEST_OWNER_STATE", state.path())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !Lab::all(Some(state.path())).first().is_some_and(|lab| lab.record().ready) {
        assert!(Instant::now() < deadline, "the owner never had a lab");
        std::thread::sleep(Duration::from_millis(50));
    }
    owner.kill()?;
    owner.wait()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !remains(state.path()).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", remains(state.path()));
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn several_labs_are_up_at_once_and_do_not_see_each_other() -> Outcome {
    let one = Lab::up(&spec(1, Engines::Podman))?;
    let two = Lab::up(&spec(1, Engines::Podman))?;
    assert_ne!(one.record().name, two.record().name);
    let (first, second) = (one.host("podman-1")?, two.host("podman-1")?);
    assert_ne!(first.address, second.address);
    ssh(&one, &first, &["true"])?;
    ssh(&two, &second, &["true"])?;
    let (here, there) = (one.registry()?.address.clone(), two.registry()?.address.clone());
    fetch(&one, &format!("http://{here}/v2/"))?;
    assert!(fetch(&one, &format!("http://{there}/v2/")).is_err());
    fetch(&two, &format!("http://{there}/v2/"))?;
    Ok(())
}
