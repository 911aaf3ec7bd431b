//! The plugin against the real kamal-proxy v0.9.2 on loopback, when `JIJI_KAMAL_PROXY` names its binary.
//!
//! What a container's engine would run is run directly, with a home and a runtime directory of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proxy_kamal::Plugin;
use proxy_kamal::bindings::exports::jiji::proxy::proxy::{
    Guest, HealthPath, RouteInput, RouteOptions, Routing, Turns, UnrouteInput,
};
use proxy_kamal::bindings::jiji::plan::types::*;

/// A kamal-proxy that ends with the test.
struct Proxy {
    binary: PathBuf,
    home: PathBuf,
    http: u16,
    child: Child,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// What a command did.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Proxy {
    /// None, and a line that says so, where there is no binary to test with.
    fn start(test: &str) -> Option<Self> {
        let Some(binary) = std::env::var_os("JIJI_KAMAL_PROXY") else {
            eprintln!("{test}: not run, JIJI_KAMAL_PROXY names no kamal-proxy v0.9.2");
            return None;
        };
        let home = std::env::temp_dir().join(format!("jiji-kamal-{}-{test}", std::process::id()));
        std::fs::create_dir_all(home.join(".config/kamal-proxy")).expect("a directory");
        let (http, https) = (free_port(), free_port());
        let child = Command::new(&binary)
            .args(["run", "--http-port", &http.to_string(), "--https-port", &https.to_string()])
            .env_clear()
            .env("HOME", &home)
            .env("XDG_RUNTIME_DIR", &home)
            .stdout(Stdio::null())
            .spawn()
            .expect("kamal-proxy starts");
        let proxy = Self { binary: binary.into(), home, http, child };
        let until = Instant::now() + Duration::from_secs(10);
        while proxy.run(&["list"]).code != 0 {
            assert!(Instant::now() < until, "kamal-proxy answers");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(proxy)
    }

    fn run(&self, args: &[&str]) -> Ran {
        let out = Command::new(&self.binary)
            .args(args)
            .env_clear()
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", &self.home)
            .output()
            .expect("kamal-proxy runs");
        Ran {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    fn state_dir(&self) -> PathBuf {
        self.home.join(".config/kamal-proxy")
    }

    fn state(&self) -> String {
        std::fs::read_to_string(self.state_dir().join("kamal-proxy.state")).unwrap_or_default()
    }

    fn answer(&self, query: &Query) -> Answer {
        match query {
            Query::Exec(exec) => {
                let args: Vec<&str> = exec.argv[1..].iter().map(String::as_str).collect();
                let ran = self.run(&args);
                Answer::Command(CommandFacts {
                    exit: Some(ran.code),
                    stdout: ran.stdout,
                    stderr: ran.stderr,
                    truncated: false,
                })
            }
            Query::File(file) => match std::fs::read_to_string(&file.path) {
                Ok(content) => Answer::File(FileFacts {
                    sha256: String::new(),
                    mode: 0o600,
                    size: content.len() as u64,
                    content: Some(content),
                }),
                Err(_) => Answer::Absent,
            },
            query => panic!("{query:?}"),
        }
    }

    /// Does what a host does with an exec step.
    fn perform(&self, action: &Action) -> Result<(), String> {
        let Action::ContainerExec(exec) = action else { panic!("{action:?}") };
        let argv: Vec<&str> = exec
            .argv
            .iter()
            .map(|word| match word {
                Word::Lit(text) => text.as_str(),
                word => panic!("{word:?}"),
            })
            .collect();
        assert_eq!(argv[0], "kamal-proxy");
        let ran = self.run(&argv[1..]);
        if ran.code == 0 || exec.tolerate.iter().any(|text| ran.stderr.contains(text)) {
            return Ok(());
        }
        Err(ran.stderr)
    }

    fn settle(&self, ask: impl Fn(Vec<Fact>) -> Result<Turn, Fault>) -> Result<Vec<Step>, Fault> {
        let mut facts: Vec<Fact> = Vec::new();
        loop {
            match ask(facts.clone())? {
                Turn::Done(steps) => return Ok(steps),
                Turn::Observe(wants) => facts
                    .extend(wants.iter().map(|want| Fact { id: want.id.clone(), answer: self.answer(&want.query) })),
            }
        }
    }

    fn context(&self) -> Context {
        Context {
            host: Server { name: "one".to_owned(), architecture: "amd64".to_owned(), labels: Vec::new() },
            network: Network { name: "jiji".to_owned(), subnet: String::new(), gateway: String::new() },
            address: String::new(),
            state_dir: self.state_dir().to_string_lossy().into_owned(),
            settings: "{}".to_owned(),
            images: Vec::new(),
        }
    }

    fn route(&self, route: &Routing) -> Result<Vec<Step>, Fault> {
        self.route_with("{}", route)
    }

    fn route_with(&self, settings: &str, route: &Routing) -> Result<Vec<Step>, Fault> {
        self.settle(|facts| {
            let context = Context { settings: settings.to_owned(), ..self.context() };
            only(Plugin::route(RouteInput { context, routes: vec![route.clone()] }, facts))
        })
    }

    /// Routes and expects that this settles it.
    fn routed(&self, input: &Routing) -> Step {
        self.routed_with("{}", input)
    }

    fn routed_with(&self, settings: &str, input: &Routing) -> Step {
        let mut steps = self.route_with(settings, input).expect("an answer");
        assert_eq!(steps.len(), 1, "{steps:?}");
        self.perform(&steps[0].action).expect("deployed");
        assert_eq!(
            self.route_with(settings, input).expect("an answer"),
            [],
            "what was deployed is what was wanted:\n{}",
            self.state()
        );
        steps.remove(0)
    }

    fn get(&self, host: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).expect("connected");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        format!("{} {body}", &answer[9..12])
    }

    fn input(&self, service: &str, port: u16) -> Routing {
        Routing {
            service: service.to_owned(),
            options: RouteOptions {
                hosts: vec![format!("{service}.example")],
                path_prefix: "/".to_owned(),
                ssl: false,
                certificate: None,
                drain_timeout_ms: 1_000,
                health: Some(HealthPath { port, path: "/up".to_owned() }),
                labels: Vec::new(),
            },
            targets: vec![instance(port)],
            previous: Vec::new(),
        }
    }
}

fn instance(port: u16) -> Instance {
    Instance { container: "c".to_owned(), address: "127.0.0.1".to_owned(), port }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// An application that answers `/up` with 200 and everything with its name and the path. It ends with the test's process.
fn application(name: &'static str, healthy: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(&stream).lines();
                let first = lines.next().and_then(Result::ok).unwrap_or_default();
                while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
                let path = first.split(' ').nth(1).unwrap_or("/").to_owned();
                let status = if healthy { "200 OK" } else { "500 No" };
                let body = format!("{name} {path}");
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = (&stream).write_all((head + &body).as_bytes());
            });
        }
    });
    port
}

fn undo(step: &Step) -> &Action {
    step.undo.as_ref().expect("an undo")
}

#[test]
fn a_service_moves_to_a_new_target_and_back() {
    let Some(proxy) = Proxy::start("moves") else { return };
    let (old, new) = (application("old", true), application("new", true));
    let first = proxy.routed(&proxy.input("web", old));
    assert_eq!(proxy.get("web.example", "/x"), "200 old /x");
    let mut input = proxy.input("web", new);
    input.previous = vec![instance(old)];
    let second = proxy.routed(&input);
    assert_eq!(proxy.get("web.example", "/x"), "200 new /x");
    proxy.perform(undo(&second)).expect("put back");
    assert_eq!(proxy.get("web.example", "/x"), "200 old /x");
    proxy.perform(undo(&second)).expect("an undo may run twice");
    proxy.perform(undo(&first)).expect("removed");
    proxy.perform(undo(&first)).expect("what is gone is as good as removed");
    assert!(proxy.get("web.example", "/x").starts_with("404"));
    if let Some(dir) = std::env::var_os("JIJI_KAMAL_FIXTURES") {
        record(&proxy, Path::new(&dir), old, new);
    }
}

#[test]
fn a_target_that_is_not_healthy_is_refused_and_the_old_one_serves_on() {
    let Some(proxy) = Proxy::start("refused") else { return };
    let (old, new) = (application("old", true), application("new", false));
    proxy.routed(&proxy.input("web", old));
    let steps = proxy.route(&Routing { previous: vec![instance(old)], ..proxy.input("web", new) }).expect("an answer");
    let error = proxy.perform(&steps[0].action).expect_err("refused");
    assert!(error.contains("target failed to become healthy within configured timeout (3s)"), "{error}");
    assert_eq!(proxy.get("web.example", "/"), "200 old /");
    proxy.perform(undo(&steps[0])).expect("an undo after a failure changes nothing");
    assert_eq!(proxy.get("web.example", "/"), "200 old /");
}

#[test]
fn a_dead_target_is_replaced_and_can_be_put_back() {
    let Some(proxy) = Proxy::start("dead") else { return };
    let (new, sick) = (application("new", true), application("sick", false));
    // Routed to a port where nobody listens, as a target is that was healthy once.
    let dead = free_port();
    let target = format!("--target=127.0.0.1:{dead}");
    let ran = proxy.run(&["deploy", "web", &target, "--host=web.example", "--force=true"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let steps = proxy.route(&proxy.input("web", sick)).expect("an answer");
    proxy.perform(&steps[0].action).expect("let go");
    proxy.perform(&steps[1].action).expect_err("the gate stands, also without anything to fall back to");
    proxy.perform(undo(&steps[1])).expect("a dead target is put back all the same");
    proxy.perform(undo(&steps[0])).expect("put back once more");
    assert!(proxy.state().contains(&dead.to_string()), "{}", proxy.state());
    let steps = proxy.route(&proxy.input("web", new)).expect("an answer");
    for step in &steps {
        proxy.perform(&step.action).expect("routed");
    }
    assert_eq!(proxy.get("web.example", "/x"), "200 new /x");
}

#[test]
fn an_undo_brings_back_options_that_somebody_set_by_hand() {
    let Some(proxy) = Proxy::start("by-hand") else { return };
    let (old, new) = (application("old", true), application("new", true));
    let target = format!("--target=127.0.0.1:{old}");
    let ran = proxy.run(&[
        "deploy",
        "web",
        &target,
        "--host=web.example",
        "--host=www.example",
        "--buffer-requests",
        "--buffer-responses",
        "--max-request-body=1000",
        "--max-response-body=2000",
        "--buffer-memory=5000",
        "--log-request-header=X-One",
        "--log-response-header=X-Two",
        "--target-timeout=1500ms",
        "--writer-affinity-timeout=3s",
        "--canonical-host=www.example",
        "--health-check-interval=300ms",
        "--health-check-timeout=400ms",
        "--health-check-host=probe.example",
        "--read-target-websockets",
        "--scope-cookie-paths",
        "--forward-headers=false",
        "--strip-path-prefix=false",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let before = proxy.state();
    let step = proxy.routed(&Routing { previous: vec![instance(old)], ..proxy.input("web", new) });
    assert_ne!(proxy.state(), before);
    proxy.perform(undo(&step)).expect("put back");
    assert_eq!(proxy.state(), before);
}

#[test]
fn tls_wildcards_and_path_prefixes_settle_like_the_rest() {
    let Some(proxy) = Proxy::start("tls") else { return };
    let port = application("app", true);
    let mut root = proxy.input("root", port);
    root.options.ssl = true;
    proxy.routed(&root);
    let mut below = proxy.input("api", port);
    below.options.hosts = vec!["root.example".to_owned()];
    below.options.path_prefix = "/api/".to_owned();
    below.options.ssl = true;
    proxy.routed(&below);
    let mut all = proxy.input("all", port);
    all.options.hosts = Vec::new();
    proxy.routed(&all);
    assert_eq!(proxy.get("other.example", "/x"), "200 app /x");
    let mut prefix = proxy.input("p", port);
    prefix.options.path_prefix = "/p".to_owned();
    proxy.routed(&prefix);
    assert_eq!(proxy.get("p.example", "/p/x"), "200 app /x");
    proxy.routed_with(r#"{"strip_path_prefix":false}"#, &prefix);
    assert_eq!(proxy.get("p.example", "/p/x"), "200 app /p/x");
    // A service that was there before its neighbours came is still as it should be.
    assert_eq!(proxy.route(&root).expect("an answer"), []);
}

#[test]
fn a_taken_host_is_known_before_the_proxy_refuses_it() {
    let Some(proxy) = Proxy::start("taken") else { return };
    let port = application("app", true);
    proxy.routed(&proxy.input("one", port));
    let mut two = proxy.input("two", port);
    two.options.hosts = vec!["one.example".to_owned()];
    let fault = proxy.route(&two).expect_err("taken");
    assert_eq!(fault.code, "route-taken");
    let target = format!("--target=127.0.0.1:{port}");
    let ran = proxy.run(&["deploy", "two", &target, "--host=one.example"]);
    assert!(ran.stderr.contains("host settings conflict with another service"), "{}", ran.stderr);
}

#[test]
fn a_torn_state_file_is_applied_again() {
    let Some(proxy) = Proxy::start("torn") else { return };
    let port = application("app", true);
    let input = proxy.input("web", port);
    proxy.routed(&input);
    let path = proxy.state_dir().join("kamal-proxy.state");
    let whole = proxy.state();
    for torn in [&whole[..whole.len() / 2], ""] {
        std::fs::write(&path, torn).expect("written");
        proxy.routed(&input);
        assert_eq!(proxy.state(), whole);
    }
}

#[test]
fn unroute_removes_and_then_has_nothing_to_do() {
    let Some(proxy) = Proxy::start("unroute") else { return };
    let port = application("app", true);
    let input = proxy.input("web", port);
    proxy.routed(&input);
    let unroute = || {
        proxy.settle(|facts| {
            let input = UnrouteInput { context: proxy.context(), services: vec!["web".to_owned()] };
            only(Plugin::unroute(input, facts))
        })
    };
    let steps = unroute().expect("an answer");
    proxy.perform(&steps[0].action).expect("removed");
    assert!(proxy.get("web.example", "/").starts_with("404"));
    assert_eq!(unroute().expect("an answer"), []);
}

/// The answer for a single service.
fn only(turns: Result<Turns, Fault>) -> Result<Turn, Fault> {
    turns.map(|turns| match turns {
        Turns::Observe(wants) => Turn::Observe(wants),
        Turns::Done(mut lists) => Turn::Done(lists.remove(0)),
    })
}

/// Writes what the real proxy prints and keeps, for the native tests.
fn record(proxy: &Proxy, dir: &Path, one: u16, two: u16) {
    let home = proxy.home.to_string_lossy().into_owned();
    let fixed = |text: String| {
        text.replace(&one.to_string(), "18001").replace(&two.to_string(), "18002").replace(&home, "/home/kamal-proxy")
    };
    std::fs::write(dir.join("list-empty.txt"), proxy.run(&["list"]).stdout).expect("written");
    proxy.routed(&proxy.input("shop-web", one));
    let mut all = proxy.input("api", two);
    all.options.hosts = vec!["a.example".to_owned(), "b.example".to_owned()];
    all.options.path_prefix = "/api".to_owned();
    proxy.routed(&all);
    let mut rest = proxy.input("rest", two);
    rest.options.hosts = Vec::new();
    rest.options.ssl = false;
    proxy.routed(&rest);
    std::fs::write(dir.join("list.txt"), fixed(proxy.run(&["list"]).stdout)).expect("written");
    std::fs::write(dir.join("kamal-proxy.state"), fixed(proxy.state())).expect("written");
    std::fs::write(dir.join("remove-absent.txt"), proxy.run(&["remove", "nobody"]).stderr).expect("written");
}
