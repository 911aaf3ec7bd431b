//! argv in, exit code out.

fn main() -> std::process::ExitCode {
    // Before anything else, since the sandbox's helper must have a single thread.
    jiji_sandbox::enter_if_requested();
    jiji::cli::main()
}
