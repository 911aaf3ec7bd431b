//! The proxy on real hosts: routes that it lost are put back by a ship that changes nothing else, and TLS with certificates that are
//! handed in, under load.

use std::path::Path;
use std::time::{Duration, Instant};

use jiji_e2e::look;
use jiji_e2e::secrecy::Sentinel;
use jiji_e2e::{Outcome, Project, Shared, Site};
use jiji_lab::command::{command, run};
use jiji_lab::{Engines, Host};

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// Where the proxy keeps its state.
const STATE: &str = "/var/lib/jiji/plugins/proxy-kamal";

/// What the proxy of a host says of one service; none where it does not know it.
fn route(host: &Host, service: &str) -> Outcome<Option<Vec<String>>> {
    let routes = look::routes(host)?;
    let rows = routes.lines().map(|row| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    Ok(rows.into_iter().find(|row| row.first().is_some_and(|name| name == service)))
}

/// Waits until the proxy of a host answers.
fn proxy_answers(host: &Host) -> Outcome<String> {
    let begun = Instant::now();
    loop {
        match look::routes(host) {
            Ok(routes) => return Ok(routes),
            Err(error) if begun.elapsed() > Duration::from_secs(20) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Ends the proxy's process as a crash does. The engine starts it again.
fn kill_proxy(host: &Host) -> Outcome {
    let pid = host.engine(&["inspect", "--format", "{{.State.Pid}}", "kamal-proxy"])?;
    host.exec(&["kill", "-9", pid.trim()])?;
    Ok(())
}

/// Damage to a proxy, and whether it forgets its routes by it.
type Damage = (&'static str, fn(&Host) -> Outcome, bool);

const DAMAGES: [Damage; 5] = [
    ("killed", kill_proxy, false),
    (
        "killed after its state was emptied",
        |host| {
            host.write_file(&format!("{STATE}/kamal-proxy.state"), b"")?;
            kill_proxy(host)
        },
        true,
    ),
    (
        "killed after its state was torn",
        |host| {
            let path = format!("{STATE}/kamal-proxy.state");
            let whole = host.read_file(&path)?;
            host.write_file(&path, &whole[..whole.len() / 2])?;
            kill_proxy(host)
        },
        true,
    ),
    (
        "removed with its state",
        |host| {
            host.engine(&["rm", "--force", "kamal-proxy"])?;
            host.remove_file(&format!("{STATE}/kamal-proxy.state"))?;
            Ok(())
        },
        true,
    ),
    (
        "stopped",
        |host| {
            host.engine(&["stop", "kamal-proxy"])?;
            Ok(())
        },
        false,
    ),
];

#[test]
fn a_ship_without_a_change_puts_back_what_the_proxy_lost() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "held")?;
    let authority = project.authority();
    project.ship()?;
    let hosts = site.hosts();
    let before = hosts.iter().map(|host| route(host, "held-web")).collect::<Outcome<Vec<_>>>()?;
    let containers = hosts.iter().map(|host| look::only(host, "held")).collect::<Outcome<Vec<_>>>()?;
    for (what, damage, forgets) in DAMAGES {
        for host in &hosts {
            damage(host)?;
        }
        let again = what.starts_with("killed");
        if again {
            for (host, before) in hosts.iter().zip(&before) {
                let routes = proxy_answers(host)?;
                assert_eq!(route(host, "held-web")? != *before, forgets, "{}: {what}: {routes}", host.name);
            }
        }
        let run = project.ship()?;
        let result = run.summary()?["result"].clone();
        println!("{what}: {result} in {:.1}s", run.took.as_secs_f64());
        assert_eq!(result, if again && !forgets { "unchanged" } else { "shipped" }, "{what}: {run}");
        for ((host, before), container) in hosts.iter().zip(&before).zip(&containers) {
            assert_eq!(route(host, "held-web")?, *before, "{}: {what}", host.name);
            assert_eq!(look::only(host, "held")?, *container, "{}: {what}: the service went on", host.name);
        }
        assert_eq!(site.versions(&authority)?, [["v1"], ["v1"]], "{what}");
        assert_eq!(project.ship()?.summary()?["result"], "unchanged", "{what}: and then nothing is left to do");
    }
    Ok(())
}

/// An authority, and certificates of it for a host name.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Outcome<Self> {
        let own = Self { dir: tempfile::tempdir()? };
        own.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=authority",
            "-keyout",
            "authority.key",
            "-out",
            "authority.pem",
        ])?;
        Ok(own)
    }

    fn openssl(&self, args: &[&str]) -> Outcome<Vec<u8>> {
        Ok(run(command("openssl", args.iter().copied()).current_dir(self.dir.path()))?)
    }

    fn read(&self, name: &str) -> Outcome<String> {
        Ok(std::fs::read_to_string(self.dir.path().join(name))?)
    }

    /// A new key and a certificate for it: chain and key as PEM.
    fn issue(&self, host: &str) -> Outcome<(String, String)> {
        let subject = format!("/CN={host}");
        std::fs::write(self.dir.path().join("names"), format!("subjectAltName=DNS:{host}\n"))?;
        self.openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            "key.pem",
            "-out",
            "request.pem",
        ])?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "authority.pem",
            "-CAkey",
            "authority.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "names",
            "-out",
            "chain.pem",
        ])?;
        Ok((self.read("chain.pem")?, self.read("key.pem")?))
    }
}

/// The certificate that a host shows for a name, as PEM.
fn shown(site: &Site, host: &Host, name: &str) -> Outcome<String> {
    let at = format!("{}:443", host.address);
    let args = ["s_client", "-connect", &at, "-servername", name, "-showcerts"];
    let output = jiji_lab::command::output(site.lab.operator_command("openssl").args(args), Some(b""))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let begin = text.find("-----BEGIN CERTIFICATE-----").ok_or("no certificate was shown")?;
    let end = "-----END CERTIFICATE-----\n";
    let length = text[begin..].find(end).ok_or("half a certificate was shown")? + end.len();
    Ok(text[begin..begin + length].to_owned())
}

/// Files of certificates on a host: mode, owner, path.
fn files(host: &Host) -> Outcome<Vec<String>> {
    let found = host.exec(&["find", &format!("{STATE}/certificates"), "-type", "f", "-printf", "%m %U %p\\n"])?;
    let mut files: Vec<String> = found.lines().map(str::to_owned).collect();
    files.sort();
    Ok(files)
}

fn with_certificate(project: &Project<'_>, (chain, key): &(String, String)) -> Outcome {
    let write = |name: &str, text: &str| std::fs::write(project.dir().join(name), text);
    write("chain.pem", chain)?;
    write("key.pem", key)?;
    Ok(())
}

/// Ships with what [`with_certificate`] wrote.
fn ship(project: &Project<'_>) -> Outcome<jiji_e2e::Run> {
    let read = |name: &str| std::fs::read_to_string(Path::new(project.dir()).join(name));
    let mut jiji = project.command(&["ship", "--json"])?;
    jiji.env("TLS_CHAIN", read("chain.pem")?).env("TLS_KEY", read("key.pem")?);
    jiji_e2e::Run::of(&mut jiji)
}

#[test]
fn a_certificate_that_is_handed_in_is_spoken_and_renewed_under_load() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "sealed")?;
    let authority = project.authority();
    let issuer = Authority::new()?;
    let first = issuer.issue(&authority)?;
    project.edit(
        "      host: sealed.test\n",
        "      host: sealed.test\n      certificate: { chain: TLS_CHAIN, key: TLS_KEY }\n",
    )?;
    with_certificate(&project, &first)?;
    let key = first.1.lines().nth(1).ok_or("a key has lines")?.to_owned();
    let watch = Sentinel::of(&key).watch_arguments();
    ship(&project)?.expect(0)?;
    for host in site.hosts() {
        assert_eq!(shown(&site, &host, &authority)?, first.0, "{}", host.name);
        let files = files(&host)?;
        assert!(files.len() == 2 && files.iter().all(|file| file.starts_with("600 0 ")), "{files:?}");
    }
    assert_eq!(ship(&project)?.summary()?["result"], "unchanged");

    // A new version, then a renewed certificate, each under load. Half of the requests begin with a handshake, and all share two cores
    // with what they test: less than without TLS.
    let load = |seconds: u64| {
        let mut load = site.load(&authority, Duration::from_secs(seconds)).over_tls(&issuer.read("authority.pem")?);
        load.rate = 30.0;
        Outcome::Ok(load)
    };
    let under_load = |what: &str, pems: &(String, String)| {
        with_certificate(&project, pems)?;
        let mut running = site.lab.start_load(&load(150)?)?;
        running.wait(Duration::from_secs(30), |progress| progress.good + progress.failed > 60)?;
        let run = ship(&project)?.expect(0)?;
        std::thread::sleep(Duration::from_millis(1200));
        let report = running.stop()?;
        println!("{what} in {:.1}s: {report}", run.took.as_secs_f64());
        report.without_failure()?;
        Outcome::Ok(report)
    };
    println!("baseline: {}", site.lab.baseline(&load(3)?)?);
    project.set_version("v2")?;
    let report = under_load("a new version", &first)?;
    for target in &report.targets {
        assert!(target.versions.contains_key("v1") && target.versions.contains_key("v2"), "{report}");
    }
    let second = issuer.issue(&authority)?;
    under_load("a renewed certificate", &second)?;
    for host in site.hosts() {
        assert_eq!(shown(&site, &host, &authority)?, second.0, "{}", host.name);
        assert_eq!(files(&host)?.len(), 2, "{}: those of the old one are gone", host.name);
    }

    // One whose key is another's: the proxy refuses it, and goes on with the one before.
    with_certificate(&project, &(issuer.issue(&authority)?.0, second.1.clone()))?;
    let refused = ship(&project)?.expect(16)?;
    assert!(refused.stderr.contains("unable to load certificate"), "{refused}");
    for host in site.hosts() {
        assert_eq!(shown(&site, &host, &authority)?, second.0, "{}", host.name);
        assert_eq!(files(&host)?.len(), 2, "{}", host.name);
    }
    with_certificate(&project, &second)?;
    assert_eq!(ship(&project)?.summary()?["result"], "unchanged", "what was reverted is as it was");

    // A proxy that starts anew reads them again.
    for host in site.hosts() {
        kill_proxy(&host)?;
        proxy_answers(&host)?;
        assert_eq!(shown(&site, &host, &authority)?, second.0, "{}", host.name);
    }
    let (arguments, rounds) = watch.end()?;
    assert!(arguments.is_empty() && rounds > 100, "{arguments:?} in {rounds} rounds");
    Ok(())
}

#[test]
fn another_proxy_takes_over_while_requests_go_on() -> Outcome {
    let site = LAB.take()?;
    let project = Project::new(&site, "renewed")?;
    let authority = project.authority();
    project.ship()?;
    let hosts = site.hosts();
    let id = |host: &Host| host.engine(&["inspect", "--format", "{{.Id}}", "kamal-proxy"]);
    let before = hosts.iter().map(id).collect::<Result<Vec<_>, _>>()?;
    let routes = hosts.iter().map(look::routes).collect::<Outcome<Vec<_>>>()?;
    assert_eq!(project.run(&["proxy", "upgrade"])?.expect(0)?.summary()?["result"], "unchanged");

    // One more port of the host for HTTPS: another specification. A ship does not replace the proxy by itself.
    let image = "      image: ${LAB_KAMAL_PROXY}\n";
    project.edit(image, &format!("{image}      https_port: 8443\n"))?;
    let refused = project.show(&["ship"])?.expect(11)?;
    assert!(refused.stderr.contains("jiji proxy upgrade"), "{refused}");

    // A rate that leaves requests far below the 10 s that the proxy gives those under way when it stops.
    let mut load = site.load(&authority, Duration::from_secs(150));
    load.rate = 60.0;
    let mut running = site.lab.start_load(&load)?;
    running.wait(Duration::from_secs(30), |progress| progress.good + progress.failed > 120)?;
    let run = project.show(&["proxy", "upgrade"])?.expect(0)?;
    std::thread::sleep(Duration::from_millis(1200));
    let report = running.stop()?;
    println!("upgrade in {:.1}s: {report}\n{}", run.took.as_secs_f64(), run.stderr);
    for target in &report.targets {
        // New connections never meet it. One that is kept may be closed in the moment in which a request is sent on it.
        let fresh = target.failures.iter().filter(|failure| failure.fresh).count();
        assert_eq!((fresh, target.failures.len() as u64), (0, target.failed()), "{report}");
        assert!(target.failed() < 20, "{report}");
    }
    assert_eq!(run.stderr.lines().filter(|line| line.contains("connections that were kept")).count(), 4, "{run}");
    for ((host, before), routes) in hosts.iter().zip(&before).zip(&routes) {
        assert_ne!(id(host)?, *before, "{}", host.name);
        assert_eq!(look::routes(host)?, *routes, "{}", host.name);
        assert!(host.engine(&["ps", "--all"])?.lines().all(|line| !line.contains("bridge")), "{}", host.name);
        assert!(!host.exec(&["nft", "list", "ruleset"])?.contains("jiji_proxy"), "{}", host.name);
    }
    assert_eq!(site.versions(&authority)?, [["v1"], ["v1"]]);
    assert_eq!(project.ship()?.summary()?["result"], "unchanged");
    Ok(())
}
