//! `cargo xtask demo`: two real hosts, one ship of `examples/hello`, and what the proxies answer afterwards.
//!
//! The work is done by a second process in a process group of its own. A Ctrl-C ends the first at once; the second sees its standard
//! input end and takes the laboratory down, so that nothing is left running either way.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::error::Error;
use crate::process::{as_root, command, output, root, run, target};
use crate::product::{self, For};
use crate::setup::{self, Level};

/// How the demonstration is run.
#[derive(clap::Args)]
pub struct Args {
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

/// The second process's arguments.
#[derive(clap::Args)]
pub struct ShowArgs {
    /// The `jiji` program
    jiji: PathBuf,
    /// The laboratory's program
    lab: PathBuf,
}

/// Builds everything and shows it.
///
/// # Errors
/// When something does not build or the ship does not do what it is to do.
pub fn demo(args: &Args) -> Result<(), Error> {
    let start = Instant::now();
    let setup = setup::ensure(Level::Lab, args.yes)?;
    say("building jiji, jiji-host and the laboratory");
    let product = product::build(&setup, For::People)?;
    let own = std::env::current_exe().map_err(Error::file("find", "/proc/self/exe"))?;
    let mut second = as_root(own);
    second.arg("demo-show").arg(&product.jiji).arg(&product.lab).env("PATH", setup.path());
    let mut child = second
        .process_group(0)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|cause| Error::Start { program: "demo-show".to_owned(), cause })?;
    let kept = child.stdin.take();
    let status = child.wait().map_err(|cause| Error::Start { program: "demo-show".to_owned(), cause })?;
    drop(kept);
    if !status.success() {
        return Err(Error::Demo { reason: format!("it ended with {status}") });
    }
    say(&format!("done in {:.0}s; nothing is left running", start.elapsed().as_secs_f64()));
    Ok(())
}

/// What `lab up --json` prints, as far as it is used here.
#[derive(Deserialize)]
struct Lab {
    name: String,
    env: PathBuf,
    hosts: Vec<Host>,
}

#[derive(Deserialize)]
struct Host {
    name: String,
    engine: String,
    address: String,
}

static ENDED: AtomicBool = AtomicBool::new(false);

/// The second process: laboratory up, ship, answers, laboratory down.
///
/// # Errors
/// When a part does not do what it is to do. The laboratory is taken down all the same.
pub fn show(args: &ShowArgs) -> Result<(), Error> {
    std::thread::spawn(|| {
        let mut end = [0; 1];
        while std::io::stdin().read(&mut end).is_ok_and(|read| read > 0) {}
        ENDED.store(true, Ordering::SeqCst);
    });
    say("bringing up two hosts, one with Podman, one with Docker");
    let up = ["up", "--hosts", "2", "--engine", "mixed", "--json"];
    let text = output(command(&args.lab).args(up))?;
    let lab: Lab = serde_json::from_str(&text)
        .map_err(|error| Error::Answer { program: "lab up".to_owned(), reason: error.to_string() })?;
    let shown = ship(args, &lab);
    say("taking the hosts down");
    let down = run(command(&args.lab).args(["down", "--name", &lab.name]));
    shown.and(down)
}

fn ship(args: &ShowArgs, lab: &Lab) -> Result<(), Error> {
    // A copy, so that the lock file of a laboratory does not get into the checkout.
    let project = target().join("demo").join("hello");
    let _ = std::fs::remove_dir_all(&project);
    std::fs::create_dir_all(&project).map_err(Error::file("create", &project))?;
    run(command("cp").args(["-R", "--"]).arg(root().join("examples/hello/.")).arg(&project))?;
    say("\n$ jiji ship        (in examples/hello)");
    let mut ship = in_lab(lab, &args.jiji);
    ship.arg("ship").current_dir(&project).env("HELLO_KEY", "a secret of the demonstration");
    attended(&mut ship)?;
    say("\n$ jiji status");
    let mut status = in_lab(lab, &args.jiji);
    attended(status.arg("status").current_dir(&project).env("HELLO_KEY", "a secret of the demonstration"))?;
    say("\nwhat kamal-proxy answers on each host:");
    let own = std::env::current_exe().map_err(Error::file("find", "/proc/self/exe"))?;
    for host in &lab.hosts {
        let mut ask = in_lab(lab, &own);
        let answer = output(ask.args(["demo-ask", &host.address, "hello.test"]))?;
        say(&format!("  {} ({}, http://{}/): {}", host.name, host.engine, host.address, answer.trim()));
        if !answer.starts_with("200") {
            return Err(Error::Demo { reason: format!("`{}` does not serve hello.test", host.name) });
        }
    }
    Ok(())
}

/// A program where the laboratory's operator is, with the laboratory's variables. The shell's text is fixed; what varies are its
/// arguments.
fn in_lab(lab: &Lab, program: &Path) -> Command {
    let mut command = command("sh");
    command.args(["-c", r#". "$1"; shift; in_lab "$@""#, "sh"]).arg(&lab.env).arg(program);
    command
}

/// Runs a command, and ends it when the person has ended the demonstration.
fn attended(command: &mut Command) -> Result<(), Error> {
    let failed = |cause| Error::Start { program: "jiji".to_owned(), cause };
    let mut child = command.stdin(Stdio::null()).spawn().map_err(failed)?;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return if status.success() {
                Ok(())
            } else {
                Err(Error::Demo { reason: format!("jiji ended with {status}") })
            };
        }
        if ENDED.load(Ordering::SeqCst) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Demo { reason: "it was interrupted".to_owned() });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One question of the demonstration.
#[derive(clap::Args)]
pub struct AskArgs {
    /// The proxy's address
    address: String,
    /// The host name that is asked for
    host: String,
}

/// Asks a proxy for `/` over HTTP and prints status, version and the body's beginning in a line.
///
/// # Errors
/// When nothing answers.
pub fn ask(args: &AskArgs) -> Result<(), Error> {
    let failed = |cause| Error::Start { program: format!("http://{}/", args.address), cause };
    let mut stream = TcpStream::connect((args.address.as_str(), 80)).map_err(failed)?;
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).map_err(failed)?;
    stream.set_write_timeout(limit).map_err(failed)?;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", args.host);
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer).map_err(failed)?;
    say(&summary(&String::from_utf8_lossy(&answer)));
    Ok(())
}

fn summary(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().split_once(' ').map_or("nothing", |(_, status)| status);
    let version = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("x-version"))
        .map_or("none", |(_, version)| version.trim());
    let body: String = body.trim().chars().take(120).filter(|c| !c.is_control()).collect();
    format!("{status}, version {version}: {body}")
}

fn say(text: &str) {
    // Nobody to tell is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_in_one_line() {
        let answer = "HTTP/1.1 200 OK\r\nServer: x\r\nX-Version: 7\r\n\r\nhello\n";
        assert_eq!(summary(answer), "200 OK, version 7: hello");
        assert_eq!(summary(""), "nothing, version none: ");
    }
}
