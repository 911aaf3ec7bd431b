//! argv in, exit code out.

fn main() -> std::process::ExitCode {
    jiji::cli::main()
}
