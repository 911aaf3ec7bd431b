//! Runs programs of the machine and turns their failures into errors that show argv, status and the end of stderr.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use crate::LabError;

/// How much of a failed program's stderr an error carries, in bytes.
const STDERR_TAIL: usize = 2000;

/// Starts `program` with `args`, to be adjusted further.
pub fn command<S: AsRef<std::ffi::OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs the command to its end and gives its standard output; anything but exit code 0 is an error.
pub fn run(command: &mut Command) -> Result<Vec<u8>, LabError> {
    let output = output(command, None)?;
    check(command, output)
}

/// Like [`run`], with `input` on standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, LabError> {
    let output = output(command, Some(input))?;
    check(command, output)
}

/// Runs the command to its end and gives all it said, whatever its exit code.
pub fn output(command: &mut Command, input: Option<&[u8]>) -> Result<Output, LabError> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| LabError::NoProgram { program: program.clone(), source })?;
    // A program may end without reading its input; its exit code says more than the broken pipe.
    let writer = input.map(|bytes| {
        let mut stdin = child.stdin.take();
        let bytes = bytes.to_vec();
        std::thread::spawn(move || stdin.as_mut().map(|pipe| pipe.write_all(&bytes)))
    });
    let output = child.wait_with_output().map_err(LabError::system(format!("wait for `{program}`")))?;
    if let Some(writer) = writer {
        drop(writer.join());
    }
    Ok(output)
}

fn check(command: &Command, output: Output) -> Result<Vec<u8>, LabError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let start = output.stderr.len().saturating_sub(STDERR_TAIL);
    Err(LabError::Program {
        argv: argv(command),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr[start..]).trim().to_owned(),
    })
}

/// The argv of a command as one line, for messages.
pub fn argv(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
