//! The plugin's steps against the real Caddy on loopback, where there is one on the PATH.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proxy_caddy::Plugin;
use proxy_caddy::bindings::exports::jiji::proxy::proxy::{
    Guest, RouteInput, RouteOptions, Routing, Turns, UnrouteInput,
};
use proxy_caddy::bindings::jiji::plan::types::*;

struct Caddy {
    dir: PathBuf,
    http: u16,
    admin: u16,
    child: Option<Child>,
}

impl Drop for Caddy {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Caddy {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("caddy");
        let dir = self.dir.join("etc");
        command
            .args(args)
            .current_dir(&dir)
            .env("HOME", &self.dir)
            .env("XDG_CONFIG_HOME", &self.dir)
            .env("XDG_DATA_HOME", &self.dir);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Does one action as a host would, with the container's paths and ports replaced by the test's.
    fn perform(&mut self, action: &Action) -> bool {
        match action {
            Action::Directory(directory) => std::fs::create_dir_all(self.here(&directory.path)).is_ok(),
            Action::File(file) => {
                let Word::Lit(text) = &file.content[0] else { panic!("{file:?}") };
                // Ports that a test may have, which the container's own network gives.
                let ports = format!("{{\n\tadmin 127.0.0.1:{}\n\thttp_port {}\n", self.admin, self.http);
                let text =
                    if file.path.ends_with("Caddyfile") { text.replacen("{\n", &ports, 1) } else { text.clone() };
                std::fs::write(self.here(&file.path), text).is_ok()
            }
            Action::Remove(path) => {
                let path = self.here(path);
                std::fs::remove_file(&path).is_ok() || !path.exists()
            }
            Action::ContainerRun(spec) => {
                let args: Vec<String> = spec.command.iter().flatten().map(|arg| self.inside(arg)).collect();
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                self.child = Some(self.command(&args).spawn().expect("caddy starts"));
                true
            }
            Action::ContainerExec(exec) => {
                let args: Vec<String> = exec
                    .argv
                    .iter()
                    .map(|word| match word {
                        Word::Lit(text) => self.inside(text),
                        word => panic!("{word:?}"),
                    })
                    .collect();
                self.caddy(&args)
            }
            Action::WaitProbe(wait) => {
                let Check::Exec(argv) = &wait.probe.check else { panic!("{wait:?}") };
                let args: Vec<String> = argv.iter().map(|arg| self.inside(arg)).collect();
                let until = Instant::now() + Duration::from_secs(20);
                while !self.caddy(&args) {
                    assert!(Instant::now() < until, "caddy answers");
                    std::thread::sleep(Duration::from_millis(100));
                }
                true
            }
            action => panic!("{action:?}"),
        }
    }

    fn caddy(&self, argv: &[String]) -> bool {
        let args: Vec<&str> = argv[1..].iter().map(String::as_str).collect();
        self.command(&args).status().expect("caddy runs").success()
    }

    fn here(&self, path: &str) -> PathBuf {
        PathBuf::from(path.replace("/state", &self.dir.join("etc").to_string_lossy()))
    }

    fn inside(&self, text: &str) -> String {
        text.replace("/etc/caddy", &self.dir.join("etc").to_string_lossy())
    }

    fn settle(&self, ask: impl Fn(Vec<Fact>) -> Result<Turn, Fault>) -> Vec<Step> {
        let mut facts: Vec<Fact> = Vec::new();
        loop {
            match ask(facts.clone()).expect("an answer") {
                Turn::Done(steps) => return steps,
                Turn::Observe(wants) => facts.extend(wants.iter().map(|want| Fact {
                    id: want.id.clone(),
                    answer: match &want.query {
                        Query::File(file) => match std::fs::read_to_string(self.here(&file.path)) {
                            Ok(text) => {
                                Answer::File(FileFacts { sha256: String::new(), mode: 0, size: 0, content: Some(text) })
                            }
                            Err(_) => Answer::Absent,
                        },
                        _ => Answer::Absent,
                    },
                })),
            }
        }
    }

    fn all(&mut self, steps: &[Step]) {
        for step in steps {
            assert!(self.perform(&step.action), "{}", step.title);
        }
    }

    fn undo(&mut self, steps: &[Step]) {
        for step in steps.iter().rev() {
            if let Some(undo) = &step.undo {
                assert!(self.perform(undo), "undo: {}", step.title);
            }
        }
    }

    fn get(&self) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.http)) else { return "refused".to_owned() };
        write!(stream, "GET / HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }
}

fn context() -> Context {
    Context {
        host: Server { name: "one".to_owned(), architecture: "amd64".to_owned(), labels: Vec::new() },
        network: Network { name: "jiji".to_owned(), subnet: String::new(), gateway: String::new() },
        address: "10.210.0.130".to_owned(),
        state_dir: "/state".to_owned(),
        settings: "{}".to_owned(),
        images: vec![ImageRef { name: "caddy".to_owned(), reference: "r/caddy@sha256:0".to_owned() }],
    }
}

fn input(port: u16) -> RouteInput {
    let route = Routing {
        service: "shop-web".to_owned(),
        options: RouteOptions {
            hosts: vec!["web.example".to_owned()],
            path_prefix: "/".to_owned(),
            ssl: false,
            certificate: None,
            drain_timeout_ms: 1_000,
            health: None,
            labels: Vec::new(),
        },
        targets: vec![Instance { container: "c".to_owned(), address: "127.0.0.1".to_owned(), port }],
        previous: Vec::new(),
    };
    RouteInput { context: context(), routes: vec![route] }
}

/// The answer for a single service.
fn only(turns: Result<Turns, Fault>) -> Result<Turn, Fault> {
    turns.map(|turns| match turns {
        Turns::Observe(wants) => Turn::Observe(wants),
        Turns::Done(mut lists) => Turn::Done(lists.remove(0)),
    })
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// An application that answers with its name. It ends with the test's process.
fn application(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}", name.len());
        }
    });
    port
}

#[test]
fn a_service_moves_to_a_new_target_and_back() {
    if Command::new("caddy").arg("version").stdout(Stdio::null()).status().is_err() {
        eprintln!("not run: there is no caddy on the PATH");
        return;
    }
    let dir = std::env::temp_dir().join(format!("jiji-caddy-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("etc")).expect("a directory");
    let mut caddy = Caddy { dir, http: free_port(), admin: free_port(), child: None };
    let boot = caddy.settle(|facts| Plugin::boot(context(), facts));
    caddy.all(&boot);

    let (old, new) = (application("old"), application("new"));
    let first = caddy.settle(|facts| only(Plugin::route(input(old), facts)));
    caddy.all(&first);
    assert_eq!(caddy.get(), "old");
    assert_eq!(caddy.settle(|facts| only(Plugin::route(input(old), facts))), []);

    let second = caddy.settle(|facts| only(Plugin::route(input(new), facts)));
    caddy.all(&second);
    assert_eq!(caddy.get(), "new");
    for _ in 0..2 {
        caddy.undo(&second);
        assert_eq!(caddy.get(), "old");
    }
    // Killed between the file and the reload: the next time does it again.
    assert!(caddy.perform(&second[1].action));
    let again = caddy.settle(|facts| only(Plugin::route(input(new), facts)));
    caddy.all(&again);
    assert_eq!(caddy.get(), "new");

    let unroute = || UnrouteInput { context: context(), services: vec!["shop-web".to_owned()] };
    let gone = caddy.settle(|facts| only(Plugin::unroute(unroute(), facts)));
    caddy.all(&gone);
    assert_ne!(caddy.get(), "new");
    assert_eq!(caddy.settle(|facts| only(Plugin::unroute(unroute(), facts))), []);
}
