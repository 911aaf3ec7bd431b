//! Containers that are broken in the ways in which people break them, on both engines: the message names the cause and the cure.

use jiji_e2e::{Outcome, Project, Run, Shared, Site, look};
use jiji_lab::Engines;

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// A service with one fault, which `FAULT` chooses.
const SERVER: &str = r##"
import http.server, os, sys, time

FAULT = os.environ.get("FAULT", "")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, body, location = {
            "tls": (301, "", "https://shop.test/up"),
            "login": (302, "", "/login"),
            "host": (400, f"Invalid HTTP_HOST header: '{self.headers['Host']}'", ""),
            "private": (401, "who are you", ""),
            "path": (404, "no such page", ""),
            "error": (500, "no database", ""),
        }.get(FAULT, (200, "up", ""))
        body = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        print(f"{time.time():.3f} {self.command} {self.path} {args[1]}", flush=True)


print("starting", flush=True)
if FAULT == "variable":
    os.environ["DATABASE_URL"]
if FAULT.startswith("exit"):
    os._exit(int(FAULT[4:]))
if FAULT == "slow":
    time.sleep(10)
address = ("127.0.0.1" if FAULT == "loopback" else "0.0.0.0", 9000 if FAULT == "port" else 8080)
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"##;

const DOCKERFILE: &str = "\
FROM lab.test/python:3.11@sha256:4ca96f89756fba45bd6ab836f9f071dd490ef57919cce8eb4877b713d026c363
WORKDIR /app
COPY server.py foreign ./
USER 65534
CMD [\"python3\", \"/app/server.py\"]
";

/// A project of that service, whose containers are given up after `deadline`.
fn project<'a>(site: &'a Site, name: &str, fault: &str, deadline: &str) -> Outcome<Project<'a>> {
    let project = Project::new(site, name)?;
    std::fs::write(project.root().join("server.py"), SERVER)?;
    std::fs::write(project.root().join("Dockerfile"), DOCKERFILE)?;
    // The head of a program for another processor, and nothing after it.
    let foreign = project.root().join("foreign");
    std::fs::write(&foreign, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0\x01\0\0\0")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&foreign, mode)?;
    project.edit("        GREETING: hello\n      secrets: [HELLO_KEY]\n", &format!("        FAULT: \"{fault}\"\n"))?;
    project.edit("interval: 200ms\n", &format!("interval: 200ms\n        deploy_timeout: {deadline}\n"))?;
    Ok(project)
}

/// How one fault is told.
struct Case {
    /// Where: one on each engine at a time.
    host: &'static str,
    fault: &'static str,
    /// The command, where it is not the image's.
    command: &'static str,
    /// What the message says.
    due: &'static [&'static str],
}

const fn case(host: &'static str, fault: &'static str, due: &'static [&'static str]) -> Case {
    Case { host, fault, command: "", due }
}

const ABSENT: Case = Case {
    host: "one",
    fault: "absent",
    command: "[no-such-program]",
    due: &["exit code 127 (its command was not found)", "on its PATH"],
};

const FOREIGN: Case =
    Case { host: "one", fault: "foreign", command: "[/app/foreign]", due: &["exec format error", "`linux/"] };

/// In pairs, one of each host.
const CASES: [Case; 14] = [
    case("one", "tls", &["redirects to `https://shop.test/up` (301)", "by plain HTTP", "301  to https://shop.test/up"]),
    case("two", "host", &["refuses the Host header (400)", "Invalid HTTP_HOST header", "ALLOWED_HOSTS"]),
    case("one", "private", &["answers 401: `who are you`", "asks for a login"]),
    case("two", "path", &["`GET /up` on port 8080 answers 404: `no such page`", "name one in `healthcheck.path`"]),
    case("one", "error", &["answers 500: `no database`", "its last log lines", "GET /up 500  ("]),
    case("two", "port", &["nothing listens on port 8080", "listens on `0.0.0.0:9000`", "`proxy.app_port: 9000`"]),
    case("one", "loopback", &["port 8080 is bound to loopback", "`127.0.0.1:8080`", "`0.0.0.0:8080`"]),
    case("two", "variable", &["`DATABASE_URL` is missing", "`environment.secrets`", "KeyError: 'DATABASE_URL'"]),
    case("one", "exit139", &["exit code 139 (SIGSEGV: it crashed)", "C library"]),
    case("two", "exit0", &["exit code 0 (it ended by itself)", "foreground"]),
    ABSENT,
    Case { host: "two", ..FOREIGN },
    FOREIGN,
    Case { host: "two", ..ABSENT },
];

/// Ships it to one host, which must fail for its health and leave nothing.
fn broken(site: &Site, case: &Case) -> Outcome<Run> {
    let name = format!("{}-{}", case.fault, case.host);
    let project = project(site, &name, case.fault, "4s")?;
    project.edit("hosts: [one, two]", &format!("hosts: [{}]", case.host))?;
    if !case.command.is_empty() {
        project.edit("    retain: 2\n", &format!("    retain: 2\n    command: {}\n", case.command))?;
    }
    let run = project.show(&["ship"])?;
    for host in site.hosts() {
        let left = look::running(&host, &name)?;
        if !left.is_empty() {
            return Err(format!("{}: {left:?} is left", host.name).into());
        }
    }
    Ok(run)
}

/// What a run said of its failure.
fn screen(run: &Run) -> &str {
    run.stderr.find("\nerror: failed to ").map_or("", |from| &run.stderr[from + 1..])
}

/// Everything that is wrong with a message.
fn wrong(case: &Case, run: &Run) -> Vec<String> {
    let screen = screen(run);
    let (host, place) = (format!("`{}`", case.host), format!("\n  {}: ", case.host));
    let shared = [host.as_str(), &place, "all hosts were reverted", "hint: "];
    let missing = case.due.iter().chain(&shared).filter(|due| !screen.contains(**due));
    let mut wrong: Vec<String> = missing.map(|due| format!("{}: `{due}` is due", case.fault)).collect();
    if run.code() != Some(7) {
        wrong.push(format!("{}: exit code 7 is due", case.fault));
    }
    if screen.lines().count() > 24 {
        wrong.push(format!("{}: it is {} lines long", case.fault, screen.lines().count()));
    }
    if !wrong.is_empty() {
        wrong.push(run.to_string());
    }
    wrong
}

#[test]
fn every_fault_is_named_with_its_cure_on_one_screen() -> Outcome {
    let site = LAB.take()?;
    let site: &Site = &site;
    // Brings what projects share, so that the others need not wait for each other.
    project(site, "whole", "", "20s")?.ship()?;
    let mut complaints = Vec::new();
    for pair in CASES.chunks(2) {
        let ended: Vec<Outcome<Run>> = std::thread::scope(|scope| {
            let running: Vec<_> = pair.iter().map(|case| scope.spawn(move || broken(site, case))).collect();
            running.into_iter().map(|one| one.join().map_err(|_| "a thread panicked")?).collect()
        });
        for (case, run) in pair.iter().zip(ended) {
            let run = run?;
            println!("\n== {} on {}, {:.1}s\n{}", case.fault, case.host, run.took.as_secs_f64(), screen(&run));
            complaints.extend(wrong(case, &run));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

#[test]
fn a_slow_start_is_told_with_the_time_that_it_needs_and_in_json() -> Outcome {
    let site = LAB.take()?;
    // It answers two seconds after its deadline and is watched for four: the machine may be late by as much either way.
    let project = project(&site, "slow", "slow", "8s")?;
    let run = project.run(&["ship"])?.expect(7)?;
    let error = run.events.iter().find(|event| event["event"] == "error").ok_or("an error is due")?;
    println!("{error:#}");
    let steps = error["data"]["steps"].as_array().ok_or("steps are due")?;
    let step = steps.first().ok_or("a step is due")?;
    assert_eq!(step["service"], "web");
    assert!(step["timeline"]["healthy_at_ms"].as_u64().is_some_and(|at| at > 8_000), "{step}");
    assert_eq!(step["timeline"]["met"][0]["result"], "refused", "{step}");
    assert!(step["explanation"].as_str().is_some_and(|text| text.starts_with("starts too slowly")), "{step}");
    assert!(step["hint"].as_str().is_some_and(|text| text.contains("healthcheck.deploy_timeout: ")), "{step}");
    assert_eq!(step["containers"][0]["log"][0], "starting", "{step}");
    Ok(())
}

#[test]
fn one_that_ignores_sigterm_is_named_when_it_is_stopped() -> Outcome {
    let site = LAB.take()?;
    let project = project(&site, "deaf", "", "20s")?;
    // A shell that is the first process passes no signal on.
    project.edit("    retain: 2\n", "    retain: 2\n    command: [sh, -c, \"python3 /app/server.py; true\"]\n")?;
    project.edit("    stop_timeout: 5s\n", "    stop_timeout: 1s\n")?;
    project.ship()?;
    project.edit("FAULT: \"\"\n", "FAULT: \"none\"\n")?;
    let run = project.show(&["ship"])?.expect(0)?;
    let said: Vec<_> = run.stderr.lines().filter(|line| line.contains("SIGTERM")).collect();
    println!("{}", said.join("\n"));
    assert_eq!(said.len(), 2, "one line for each host: {run}");
    for line in said {
        assert!(line.contains("was killed after 1s") && line.contains("`exec`"), "{line}");
    }
    Ok(())
}
