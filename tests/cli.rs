//! The command line without hosts: what was typed wrong, what is missing, what cannot be reached.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiji_e2e::{Outcome, Run, jiji_bin};

/// A directory with an operator's home and a project in it.
struct Place(tempfile::TempDir);

impl Place {
    /// A project with this deploy.yml, whose one image needs nothing but a file.
    fn new(deploy: &str) -> Outcome<Self> {
        let place = Self(tempfile::Builder::new().prefix("e2e-").tempdir()?);
        std::fs::create_dir_all(place.root().join(".jiji"))?;
        std::fs::write(place.root().join(".jiji/deploy.yml"), deploy)?;
        std::fs::write(place.root().join("Dockerfile"), "FROM scratch\nCOPY word /word\nCMD [\"/word\"]\n")?;
        std::fs::write(place.root().join("word"), "word\n")?;
        Ok(place)
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("project")
    }

    fn command(&self, args: &[&str]) -> Outcome<Command> {
        let mut command = Command::new(jiji_bin()?);
        command.args(args).current_dir(self.root()).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.0.path()).env("CI", "true");
        command.env("XDG_RUNTIME_DIR", self.0.path());
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Outcome<Run> {
        Run::of(&mut self.command(args)?)
    }

    /// Whether anything was written into the project's directory.
    fn untouched(&self) -> bool {
        !self.root().join("jiji.lock").exists()
    }
}

const PROJECT: &str = "project: small
servers:
  one:
    host: one.invalid
services:
  web:
    build: .
    hosts: [one]
";

/// Two services of which one is made from the other, and comes before it by name.
const MADE_OF_ANOTHER: &str = "project: small
servers:
  one:
    host: one.invalid
services:
  app:
    build:
      recipe: app.toml
    hosts: [one]
  words:
    build:
      recipe: words.toml
    hosts: [one]
";

const APP: &str = "[inputs]
words = { service = \"words\" }

[[layers]]
from = \"words:/word\"
to = \"/srv/word\"
";

const WORDS: &str = "[[layers]]\nfrom = \"./word\"\nto = \"/\"\n";

/// Puts a program of this machine with the libraries that it loads into a directory.
fn carry(program: &str, to: &Path) -> Outcome {
    let libraries = Run::of(Command::new("ldd").arg(program))?;
    for path in libraries.stdout.split_whitespace().filter(|word| word.starts_with('/')).chain([program]) {
        let to = to.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().ok_or("a file has a directory")?)?;
        std::fs::copy(path, to)?;
    }
    Ok(())
}

/// An agent of the test's own, until it is dropped.
struct Agent(std::process::Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn contexts_and_agents_are_named_on_the_command_line() -> Outcome {
    let place = Place::new(PROJECT)?;
    let beside = |name: &str| place.root().parent().map(|parent| parent.join(name)).ok_or("a project has a place");
    let (system, words) = (beside("system")?, beside("words")?);
    std::fs::create_dir_all(&words)?;
    std::fs::write(words.join("word"), "of the context\n")?;
    carry("/bin/busybox", &system)?;
    carry("/usr/bin/ssh-add", &system)?;
    std::os::unix::fs::symlink("busybox", system.join("bin/sh"))?;
    let steps = "FROM system\nCOPY --from=words word /word\n\
                 RUN --network=default --mount=type=ssh,required=true /usr/bin/ssh-add -l > /keys\n\
                 RUN grep -q 'of a test (ED25519)' /keys && grep -q 'of the context' /word\n";
    std::fs::write(place.root().join("Dockerfile"), steps)?;
    let (key, socket) = (beside("key")?, beside("agent")?);
    Run::of(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "of a test", "-f"]).arg(&key))?
        .expect(0)?;
    let agent =
        Agent(Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(std::process::Stdio::null()).spawn()?);
    let begun = std::time::Instant::now();
    while !socket.exists() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "the agent does not listen");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Run::of(Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket))?.expect(0)?;

    let contexts = [format!("system={}", system.display()), format!("words={}", words.display())];
    let [named_system, named_words] = contexts.each_ref().map(|context| ["--build-context", context.as_str()]);
    let named = |ssh: &str| -> Outcome<Run> {
        let mut args = vec!["build"];
        args.extend(named_system.iter().chain(&named_words));
        args.extend(["--ssh", ssh]);
        place.run(&args)
    };
    let built = named(&format!("default={}", socket.display()))?.expect(0)?;
    // Without the agent the step is known all the same, and where it is not it is told what is missing.
    drop(agent);
    assert_eq!(named(&format!("default={}", socket.display()))?.expect(0)?.stdout, built.stdout);
    says(&named("default")?.expect(2)?, &["`--ssh ID=SOCKET`"]);
    let without = place.run(&["build", "--offline", named_system[0], named_system[1]])?;
    assert!(!without.status.success());
    says(&without, &["docker.io/library/words"]);
    let wrong = place.run(&["build", "--build-context", "words"])?.expect(2)?;
    says(&wrong, &["expected `NAME=CONTEXT`"]);
    Ok(())
}

/// A server on this machine that gives everybody one text, and `404` for `/none`, until the test is over.
fn server(text: &'static str) -> Outcome<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, asked) = (listener.local_addr()?.to_string(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or_default();
            let status = if request[..read].starts_with(b"GET /none ") { "404 Not Found" } else { "200 OK" };
            let number = count.fetch_add(1, Ordering::SeqCst);
            let text = format!("{text} {}", if number < 2 { "first" } else { "later" });
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
        }
    });
    Ok((address, asked))
}

#[test]
fn what_a_recorded_step_asked_for_is_pinned_and_given_again() -> Outcome {
    let place = Place::new(PROJECT)?;
    let (address, asked) = server("said")?;
    carry("/bin/busybox", &place.root().join("system"))?;
    std::os::unix::fs::symlink("busybox", place.root().join("system/bin/sh"))?;
    let dockerfile = |above: &str| {
        let steps = format!(
            "FROM scratch\nCOPY system /\n{above}RUN --network=record busybox wget -q -O /got http://{address}/file && \\\n \
             ! busybox wget -q -O /none http://{address}/none\nRUN grep -q 'said first' /got\n"
        );
        std::fs::write(place.root().join("Dockerfile"), steps)
    };
    dockerfile("")?;
    let built = place.run(&["build"])?.expect(0)?;
    let lock = std::fs::read_to_string(place.root().join("jiji.lock"))?;
    assert!(lock.matches("[[recorded]]").count() == 2 && lock.contains("status = 404"), "{lock}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    // What is above changed, and nobody may be asked: the step is done again and gets what it got.
    dockerfile("RUN echo above > /above\n")?;
    place.run(&["build", "--offline"])?.expect(0)?;
    dockerfile("")?;
    let again = place.run(&["build", "--offline", "--no-cache"])?.expect(0)?;
    assert_eq!((again.stdout, asked.load(Ordering::SeqCst)), (built.stdout, 2));
    place.run(&["build", "--check"])?.expect(0)?;

    let file = format!("http://{address}/file");
    let shown = place.run(&["pins", "show"])?.expect(0)?;
    assert!(shown.stdout.contains(&file), "{shown}");
    let moved = place.run(&["pins", "diff"])?;
    assert!(!moved.status.success() && moved.stdout.contains("1 of 2 moved"), "{moved}");
    let updated = place.run(&["pins", "update", &file])?.expect(0)?;
    assert!(updated.stdout.contains("1 of 1 updated"), "{updated}");
    // The step is done again with what is pinned now, though its key and its layer are known.
    let other = place.run(&["build", "--explain"])?.expect(3)?;
    says(&other, &["jiji.lock says another answer to a URL that it asked for", "grep -q 'said first'"]);
    Ok(())
}

#[test]
fn a_recipe_takes_from_the_image_of_another_service() -> Outcome {
    let place = Place::new(MADE_OF_ANOTHER)?;
    let write = |name: &str, text: &str| std::fs::write(place.root().join(name), text);
    let lock = || std::fs::read_to_string(place.root().join("jiji.lock"));
    write("app.toml", APP)?;
    write("words.toml", WORDS)?;
    let app = place.run(&["build", "app"])?.expect(0)?;
    assert!(app.stdout.starts_with("app@sha256:") && app.stdout.lines().count() == 1, "only what was asked for: {app}");
    says(&app, &["built words", "built app"]);
    let locked = lock()?;
    let both = place.run(&["build", "--locked"])?.expect(0)?;
    assert!(both.stdout.starts_with(&app.stdout), "{both}");
    let other = Place::new(MADE_OF_ANOTHER)?;
    for name in ["app.toml", "words.toml", "word", "jiji.lock"] {
        std::fs::copy(place.root().join(name), other.root().join(name))?;
    }
    assert_eq!(other.run(&["build", "--locked", "app"])?.expect(0)?.stdout, app.stdout, "with nothing in its store");
    place.run(&["build", "--check", "app"])?.expect(0)?;
    assert_eq!(lock()?, locked);

    write("word", "another\n")?;
    says(&place.run(&["build", "--locked", "app"])?.expect(4)?, &["`words`"]);
    assert_ne!(place.run(&["build", "app"])?.expect(0)?.stdout, app.stdout);
    assert_ne!(lock()?, locked);

    write("words.toml", &APP.replace("words", "app").replace("/srv/word", "/"))?;
    says(&place.run(&["build", "app"])?.expect(2)?, &["made from itself", "app → words → app"]);
    // What the wanted stage does not need is no circle.
    write("words.toml", &format!("[inputs]\nidle = {{ service = \"app\" }}\n\n{WORDS}"))?;
    place.run(&["build", "app"])?.expect(0)?;
    write("app.toml", &APP.replace("\"words\" }", "\"gone\" }"))?;
    says(&place.run(&["build", "app"])?, &["take from the service `gone`", "app.toml:2:", "`services` in deploy.yml"]);
    Ok(())
}

fn says(run: &Run, due: &[&str]) {
    for due in due {
        assert!(run.stderr.contains(due), "`{due}` is to be said: {run}");
    }
}

#[test]
fn the_version_is_one_line_and_with_json_an_object() -> Outcome {
    let place = Place::new(PROJECT)?;
    let run = place.run(&["version"])?.expect(0)?;
    assert_eq!(run.stdout, format!("jiji {}\n", env!("CARGO_PKG_VERSION")));
    let run = place.run(&["version", "--json"])?.expect(0)?;
    assert_eq!(run.events[0]["version"], env!("CARGO_PKG_VERSION"));
    assert!(run.events[0]["protocol"].is_number(), "{run}");
    Ok(())
}

#[test]
fn what_was_typed_wrong_is_exit_2_and_nothing_on_standard_output() -> Outcome {
    let place = Place::new(PROJECT)?;
    for (args, due) in [
        (&["shipp"][..], "shipp"),
        (&["ship", "--no-such-option"], "--no-such-option"),
        (&[], "Usage"),
        (&["build", "no-such-service"], "no-such-service"),
        (&["build", "--output", "tar:x"], "oci:DIR"),
        (&["-C", "/no/such/directory", "ship"], "/no/such/directory"),
        (&["-e", "no-such-environment", "plan"], "no-such-environment"),
    ] {
        let run = place.run(args)?.expect(2)?;
        says(&run, &[due]);
        assert_eq!(run.stdout, "", "{run}");
    }
    assert!(place.untouched());
    Ok(())
}

#[test]
fn help_is_an_answer_on_standard_output() -> Outcome {
    let place = Place::new(PROJECT)?;
    for args in [&["--help"][..], &["ship", "--help"], &["plugin", "install", "--help"]] {
        let run = place.run(args)?.expect(0)?;
        assert!(run.stdout.contains("Usage: jiji"), "{run}");
        assert_eq!(run.stderr, "", "{run}");
    }
    Ok(())
}

#[test]
fn every_mistake_in_the_configuration_is_shown_at_its_place_with_a_hint() -> Outcome {
    let place = Place::new(
        "project: small
servers:
  one:
    hots: one.invalid
services:
  web:
    build: .
    hosts: [two]
    retain: none
",
    )?;
    let run = place.run(&["ship"])?.expect(2)?;
    says(&run, &["deploy.yml:4:5", "hots", "deploy.yml:8", "two", "deploy.yml:9", "retain", "hint: "]);
    let json = place.run(&["ship", "--json"])?.expect(2)?;
    assert_eq!(json.summary()?["exit"], 2, "{json}");
    assert!(place.untouched());
    Ok(())
}

#[test]
fn an_unset_variable_is_named_with_its_place() -> Outcome {
    let place = Place::new(&PROJECT.replace("one.invalid", "${NO_SUCH_VARIABLE}"))?;
    let run = place.run(&["ship"])?.expect(2)?;
    says(&run, &["NO_SUCH_VARIABLE", "deploy.yml:4:"]);
    Ok(())
}

#[test]
fn a_missing_secret_is_exit_12_and_says_who_asks_for_it() -> Outcome {
    let place = Place::new(&format!("{PROJECT}    environment:\n      secrets: [FIRST_KEY, SECOND_KEY]\n"))?;
    let run = place.run(&["ship"])?.expect(12)?;
    says(&run, &["FIRST_KEY", "SECOND_KEY", "web", "hint: "]);
    assert!(place.untouched(), "nothing was built for it");
    Ok(())
}

#[test]
fn a_host_that_refuses_the_connection_is_exit_6_and_is_named() -> Outcome {
    let place = Place::new(&format!("ssh:\n  config: ssh_config\n{PROJECT}"))?;
    // A port that was free a moment ago refuses connections.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let config =
        format!("Host one.invalid\n  HostName 127.0.0.1\n  Port {port}\n  BatchMode yes\n  ConnectTimeout 5\n");
    std::fs::write(place.root().join("ssh_config"), config)?;
    for command in ["status", "ship", "plan"] {
        let run = place.run(&[command])?.expect(6)?;
        says(&run, &["`one`", "refused"]);
    }
    Ok(())
}

#[test]
fn what_of_a_dockerfile_is_not_supported_is_exit_3_at_its_line() -> Outcome {
    let place = Place::new(PROJECT)?;
    std::fs::write(
        place.root().join("Dockerfile"),
        "FROM scratch\nCOPY word /word\nRUN --device=nvidia.com/gpu true\n",
    )?;
    let run = place.run(&["build"])?.expect(3)?;
    says(&run, &["Dockerfile:3", "--device"]);
    Ok(())
}

#[test]
fn a_build_prints_the_image_and_writes_a_layout_that_others_read() -> Outcome {
    let place = Place::new(PROJECT)?;
    let run = place.run(&["build", "--output", "oci:layout"])?.expect(0)?;
    let digest = run.stdout.trim().strip_prefix("web@").ok_or(format!("the image's name is due: {run}"))?.to_owned();
    let layout = format!("oci:{}", place.root().join("layout").display());
    let seen = Run::of(Command::new("skopeo").args(["inspect", "--format", "{{.Digest}}", &layout]))?.expect(0)?;
    assert_eq!(seen.stdout.trim(), digest);
    let again = place.run(&["build", "--locked"])?.expect(0)?;
    assert_eq!(again.stdout, run.stdout, "the same again");

    std::fs::write(place.root().join("word"), "another\n")?;
    let other = place.run(&["build", "--locked"])?.expect(4)?;
    says(&other, &["jiji.lock"]);
    assert!(Path::new(&place.root().join("jiji.lock")).exists());
    Ok(())
}
