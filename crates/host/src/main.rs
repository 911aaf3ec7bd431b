//! The program on a server: `jiji-host exec` speaks frames on standard input and output until the input ends; `jiji-host mesh-up` is what
//! runs after a reboot.

use std::process::ExitCode;

use jiji_host::Settings;
use jiji_model::protocol::{ARGUMENT_EXEC, OPTION_ENGINE, OPTION_ROOTLESS};

#[expect(clippy::print_stderr, reason = "standard error is this program's only way to speak to people")]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(count) = jiji_host::reach::asked(&args) {
        return match jiji_host::reach::give(count) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: give sockets: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if args == [jiji_host::mesh::ARGUMENT_UP] {
        return match jiji_host::mesh::up(&Settings::default()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: failed to {error}");
                ExitCode::FAILURE
            }
        };
    }
    let Some(settings) = Settings::from_arguments(&args) else {
        eprintln!(
            "usage: jiji-host {ARGUMENT_EXEC} [{OPTION_ENGINE} docker|podman] [{OPTION_ROOTLESS}] [--root DIRECTORY]"
        );
        return ExitCode::from(2);
    };
    jiji_host::session::lead_own_group();
    match jiji_host::run(std::io::stdin(), std::io::stdout(), settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
