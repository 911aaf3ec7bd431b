//! Zero by hand before zero by a tool: the real kamal-proxy, driven by hand on both engines under an honest load.
//!
//! Were this not zero, no design on top of it could be. `LAB_ROUNDS` asks for more cutovers than the few of a quick run.

#![expect(clippy::print_stdout, reason = "a journey prints what it counted")]

use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use jiji_lab::{
    Engines, Host, Lab, Spec, command,
    load::{LoadSpec, Report, unix_time},
};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// One host with its proxy and its versions of the example.
struct Site {
    host: Host,
    /// The third byte of its containers' network.
    number: usize,
    image: String,
}

impl Site {
    /// The address of a version's container: versions are numbered, addresses used in turn.
    fn address(&self, version: usize) -> String {
        format!("10.210.{}.{}", self.number, 140 + version % 100)
    }

    /// A hardware address made of the container's own. Docker does so by itself; Podman draws one by lot, and the proxy goes
    /// on sending to the one that an address had before, for as long as its neighbour table says.
    fn hardware_address(&self, version: usize) -> String {
        format!("02:42:0a:d2:{:02x}:{:02x}", self.number, 140 + version % 100)
    }

    /// Starts a version and waits until it is healthy; nothing routes to it.
    fn start(&self, version: usize, more: &[&str]) -> Outcome {
        let (name, address) = (format!("web-v{version}"), self.address(version));
        let hardware = self.hardware_address(version);
        let env = format!("HELLO_VERSION=v{version}");
        let mut argv = vec![
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            "jiji",
            "--ip",
            &address,
            "--mac-address",
            &hardware,
            "-e",
            &env,
        ];
        argv.extend(more);
        argv.push(&self.image);
        self.host.engine(&argv)?;
        let up = format!("http://{address}:8080/up");
        let deadline = Instant::now() + Duration::from_secs(20);
        // Without `--fail`: that it answers is enough, whatever it says of its health.
        while !self.host.output(&["curl", "-s", "-o", "/dev/null", "--max-time", "2", &up])?.status.success() {
            if Instant::now() > deadline {
                return Err(format!("{name} never answered").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn stop(&self, version: usize) -> Outcome {
        let name = format!("web-v{version}");
        self.host.engine(&["stop", "-t", "10", &name])?;
        self.host.engine(&["rm", &name])?;
        Ok(())
    }

    /// `kamal-proxy deploy`, started and not waited for.
    fn start_deploy(&self, version: usize) -> Outcome<Child> {
        let target = format!("{}:8080", self.address(version));
        let mut command = self.host.command(&[
            self.host.engine_cli(),
            "exec",
            "kamal-proxy",
            "/kamal-proxy",
            "deploy",
            "web",
            "--target",
            &target,
            "--host",
            "hello.test",
            "--health-check-path",
            "/up",
            "--health-check-interval",
            "200ms",
            "--deploy-timeout",
            "3s",
            "--drain-timeout",
            "10s",
        ]);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// Whether `list`, without its colours, shows this version as the target.
    fn routed(&self, version: usize) -> Outcome<bool> {
        let listed = self.host.engine(&["exec", "kamal-proxy", "/kamal-proxy", "list"])?;
        Ok(listed.contains(&format!("{}:8080", self.address(version))))
    }

    fn await_routed(&self, version: usize, limit: Duration) -> Outcome<f64> {
        let deadline = Instant::now() + limit;
        while !self.routed(version)? {
            if Instant::now() > deadline {
                return Err(format!("v{version} was not routed in time").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(unix_time())
    }

    /// Routes to a version; returns when the drain is over too. Gives the time at which `list` first showed it.
    fn route(&self, version: usize) -> Outcome<f64> {
        let child = self.start_deploy(version)?;
        let seen = self.await_routed(version, Duration::from_secs(10));
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("deploy: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
        }
        seen
    }

    /// Kills `kamal-proxy deploy` itself, in its container.
    fn kill_deploy(&self) -> Outcome {
        for pid in self.host.processes("kamal-proxy")? {
            let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if argv.split(|byte| *byte == 0).any(|word| word == b"deploy") {
                command::run(&mut command::command("kill", ["-KILL", &pid.to_string()]))?;
                return Ok(());
            }
        }
        Err("there is no deploy to kill".into())
    }
}

/// Does the same on all hosts at once.
fn everywhere<T: Send>(sites: &[Site], work: impl Fn(&Site) -> Outcome<T> + Sync) -> Outcome<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = sites.iter().map(|site| scope.spawn(|| work(site))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?).collect()
    })
}

fn build(lab: &Lab, builder: &Host) -> Outcome<String> {
    let registry = &lab.registry()?.address;
    let name = format!("{registry}/hello:1");
    let context = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/hello");
    let tar = command::run(&mut command::command("tar", ["-c", "-C", context, "."]))?;
    builder.exec(&["mkdir", "-p", "/var/lib/hello"])?;
    command::run_with_input(&mut builder.command(&["tar", "-x", "-C", "/var/lib/hello"]), &tar)?;
    builder.exec(&["podman", "build", "--quiet", "--tag", &name, "/var/lib/hello"])?;
    builder.exec(&["podman", "push", "--quiet", &name])?;
    Ok(name)
}

fn set_up(lab: &Lab) -> Outcome<Vec<Site>> {
    lab.base_image(jiji_lab::images::Base::Python)?;
    let proxy = lab.kamal_proxy_image()?.reference;
    let hosts = lab.hosts();
    let image = build(lab, &hosts[0])?;
    let sites: Vec<Site> = (1..).zip(hosts).map(|(number, host)| Site { host, number, image: image.clone() }).collect();
    everywhere(&sites, |site| {
        let (subnet, gateway) = (format!("10.210.{}.128/25", site.number), format!("10.210.{}.129", site.number));
        site.host.engine(&["network", "create", "--subnet", &subnet, "--gateway", &gateway, "jiji"])?;
        site.host.exec(&["mkdir", "-p", "/var/lib/lab-proxy", "/etc/hello"])?;
        let own = format!("10.210.{}.130", site.number);
        site.host.engine(&[
            "run",
            "-d",
            "--name",
            "kamal-proxy",
            "--network",
            "jiji",
            "--ip",
            &own,
            "-p",
            "80:80",
            "-v",
            "/var/lib/lab-proxy:/state",
            &proxy,
        ])?;
        site.start(1, &[])?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while site.routed(1).is_err() {
            if Instant::now() > deadline {
                return Err("the proxy never answered".into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        site.route(1).map(drop)
    })?;
    Ok(sites)
}

/// Cutovers one after the other, each to a version that never ran before.
fn cutovers(lab: &Lab, sites: &[Site], first: usize, rounds: usize) -> Outcome<Report> {
    let mut load = lab.start_load(&LoadSpec::new(lab, "hello.test", Duration::from_secs(3600)))?;
    load.wait(Duration::from_secs(10), |progress| progress.good > 600)?;
    let mut times = Vec::new();
    for version in first + 1..=first + rounds {
        times.push((
            version,
            everywhere(sites, |site| {
                site.start(version, &[])?;
                let time = site.route(version)?;
                site.stop(version - 1)?;
                Ok(time)
            })?,
        ));
    }
    thread::sleep(Duration::from_millis(1200));
    let report = load.stop()?;
    println!("{rounds} cutovers per host: {report}");
    report.without_failure()?;
    for (version, times) in times {
        for (site, time) in sites.iter().zip(times) {
            report.cutover(&site.host.name, time, &format!("v{}", version - 1), &format!("v{version}"))?;
        }
    }
    Ok(report)
}

/// A cutover and the way back while the old version still runs.
fn revert(lab: &Lab, sites: &[Site], old: usize) -> Outcome {
    let mut load = lab.start_load(&LoadSpec::new(lab, "hello.test", Duration::from_secs(120)))?;
    load.wait(Duration::from_secs(10), |progress| progress.good > 600)?;
    let new = old + 1;
    let times = everywhere(sites, |site| {
        site.start(new, &[])?;
        site.route(new)?;
        let time = site.route(old)?;
        site.stop(new)?;
        Ok(time)
    })?;
    thread::sleep(Duration::from_millis(1200));
    let report = load.stop()?;
    println!("cutover and revert: {report}");
    report.without_failure()?;
    for (site, time) in sites.iter().zip(times) {
        report.cutover(&site.host.name, time, &format!("v{new}"), &format!("v{old}"))?;
    }
    Ok(())
}

/// `kamal-proxy deploy` is killed after the route and before the drain's end: the proxy goes on by itself.
fn killed_between_route_and_drain(lab: &Lab, sites: &[Site], old: usize) -> Outcome {
    let mut load = lab.start_load(&LoadSpec::new(lab, "hello.test", Duration::from_secs(120)))?;
    load.wait(Duration::from_secs(10), |progress| progress.good > 600)?;
    let new = old + 1;
    let times = everywhere(sites, |site| {
        site.start(new, &[])?;
        let mut child = site.start_deploy(new)?;
        let time = site.await_routed(new, Duration::from_secs(10))?;
        site.kill_deploy()?;
        let status = child.wait()?;
        assert!(!status.success(), "the client was killed");
        assert!(status.code() == Some(137) || status.signal() == Some(9), "{status}");
        assert!(site.routed(new)?, "the proxy keeps the route of a client that died");
        // Who does not know the outcome waits for the drain's time before it stops anything.
        thread::sleep(Duration::from_secs(10));
        site.stop(old)?;
        Ok(time)
    })?;
    thread::sleep(Duration::from_millis(1200));
    let report = load.stop()?;
    println!("client killed between route and drain: {report}");
    report.without_failure()?;
    for (site, time) in sites.iter().zip(times) {
        report.cutover(&site.host.name, time, &format!("v{old}"), &format!("v{new}"))?;
    }
    Ok(())
}

/// A killed client's health gate goes on: the candidate is routed as soon as it is healthy, though nobody waits for it.
fn a_pending_gate_outlives_its_client(sites: &[Site], old: usize) -> Outcome {
    let new = old + 1;
    everywhere(sites, |site| {
        let sick = "/etc/hello/sick";
        let volume = ["-v", "/etc/hello:/etc/hello:ro", "-e", "UNHEALTHY_IF=/etc/hello/sick"];
        site.host.write_file(sick, b"until removed\n")?;
        site.start(new, &volume)?;

        // It stays sick: when the gate's time is over, the old one is still routed.
        let mut child = site.start_deploy(new)?;
        thread::sleep(Duration::from_millis(500));
        site.kill_deploy()?;
        child.wait()?;
        thread::sleep(Duration::from_millis(3500));
        assert!(site.routed(old)? && !site.routed(new)?, "a gate that is over routes nothing");

        // It gets well within the gate's time, after the client died.
        let mut child = site.start_deploy(new)?;
        thread::sleep(Duration::from_millis(500));
        site.kill_deploy()?;
        child.wait()?;
        assert!(site.routed(old)?);
        site.host.remove_file(sick)?;
        site.await_routed(new, Duration::from_secs(3))?;

        site.route(old)?;
        site.stop(new)
    })?;
    println!("a pending gate outlives its client: seen on both hosts");
    Ok(())
}

/// What must not be done: the old version is stopped before the route.
fn stopped_before_the_route(lab: &Lab, sites: &[Site], old: usize) -> Outcome {
    let spec = LoadSpec::new(lab, "hello.test", Duration::from_secs(60));
    let report = lab.negative_control::<Box<dyn std::error::Error + Send + Sync>>(&spec, || {
        thread::sleep(Duration::from_secs(1));
        everywhere(sites, |site| {
            site.start(old + 1, &[])?;
            site.stop(old)?;
            site.route(old + 1).map(drop)
        })?;
        Ok(())
    })?;
    println!("negative control, the old one stopped before the route: {report}");
    for target in &report.targets {
        assert!(target.failed() > 0, "{}", target.name);
    }
    Ok(())
}

/// What is not recommended: the old version is stopped as soon as the new one is routed, in the middle of the drain. The
/// example finishes what is under way, so this says how much of the safety is the application's.
fn stopped_in_the_drain(lab: &Lab, sites: &[Site], old: usize) -> Outcome {
    let mut load = lab.start_load(&LoadSpec::new(lab, "hello.test", Duration::from_secs(60)))?;
    load.wait(Duration::from_secs(10), |progress| progress.good > 600)?;
    everywhere(sites, |site| {
        site.start(old + 1, &[])?;
        let child = site.start_deploy(old + 1)?;
        site.await_routed(old + 1, Duration::from_secs(10))?;
        site.stop(old)?;
        child.wait_with_output()?;
        Ok(())
    })?;
    thread::sleep(Duration::from_millis(1200));
    println!("the old one stopped in the drain: {}", load.stop()?);
    Ok(())
}

#[test]
fn the_real_proxy_driven_by_hand_drops_nothing_on_either_engine() -> Outcome {
    let rounds = std::env::var("LAB_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let lab = Lab::up(&Spec::new(2, Engines::Mixed).program(env!("CARGO_BIN_EXE_lab")))?;
    let sites = set_up(&lab)?;
    let quiet = lab.baseline(&LoadSpec::new(&lab, "hello.test", Duration::from_secs(5)))?;
    println!("baseline: {quiet}");
    cutovers(&lab, &sites, 1, rounds)?;
    let now = 1 + rounds;
    revert(&lab, &sites, now)?;
    killed_between_route_and_drain(&lab, &sites, now)?;
    a_pending_gate_outlives_its_client(&sites, now + 1)?;
    stopped_in_the_drain(&lab, &sites, now + 1)?;
    stopped_before_the_route(&lab, &sites, now + 2)?;
    lab.down()?;
    Ok(())
}
