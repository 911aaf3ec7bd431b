//! The sandbox's helper as a program of its own; it is started by [`jiji_sandbox::Sandbox`] and of no use by hand.

fn main() -> std::process::ExitCode {
    jiji_sandbox::enter_if_requested();
    std::process::ExitCode::from(2)
}
