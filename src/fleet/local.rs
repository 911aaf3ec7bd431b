//! The way to this machine: a child process instead of ssh.

use std::ffi::OsString;
use std::process::Stdio;

use jiji_model::name::HostName;
use tokio::process::Command;

use super::bootstrap::Manner;
use super::error::FleetError;
use super::pipes::{End, Pipes, Stderr};

/// Starts `jiji-host` here: `program` with what makes it `jiji-host`, through `sudo -n` where this user is not root and should be.
pub(super) fn start(host: &HostName, program: &[OsString], manner: Manner) -> Result<Pipes, FleetError> {
    let not_started = |cause: String| FleetError::NotStarted { host: host.clone(), cause };
    let mut argv: Vec<OsString> = Vec::new();
    match (rustix::process::getuid().is_root(), manner.rootless) {
        (true, true) => return Err(FleetError::IsRoot { host: host.clone() }),
        (false, false) => argv.extend(["sudo", "-n", "--"].map(OsString::from)),
        _ => {}
    }
    argv.extend_from_slice(program);
    argv.extend(manner.arguments().into_iter().map(OsString::from));
    let mut words = argv.iter();
    let mut command = Command::new(words.next().expect("a program was given"));
    command
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A process group of its own: Ctrl-C in the terminal is for the operator's end, which reverts in order.
        .process_group(0);
    let mut child = command.spawn().map_err(|error| not_started(error.to_string()))?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(not_started("the system gave no pipes".to_owned()));
    };
    Ok(Pipes {
        stdin: Box::pin(stdin),
        stdout: Box::pin(stdout),
        stderr: Stderr::follow(stderr),
        end: End::Local(Box::new(child)),
    })
}
