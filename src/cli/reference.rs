//! The command reference in `docs/commands.md`, made from the definitions in [`super::args`].

use std::fmt::Write as _;

use clap::CommandFactory as _;

use super::args::Cli;
use super::exit::Exit;

/// The reference as Markdown.
pub fn reference() -> String {
    let mut out = String::from("# Commands\n\nMade from the program's own definitions by `cargo xtask docs`.\n");
    let mut command = Cli::command().term_width(100).disable_version_flag(true);
    command.build();
    page(&mut out, &mut command, "jiji");
    // Writing to a String does not fail.
    let _ = writeln!(out, "\n## Exit codes\n\n| code | name in events | meaning |\n| --- | --- | --- |");
    for exit in Exit::ALL {
        let _ = writeln!(out, "| {} | `{}` | {} |", exit.code(), exit.name(), exit.meaning());
    }
    out
}

fn page(out: &mut String, command: &mut clap::Command, name: &str) {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = writeln!(out, "\n## `{name}`\n\n```text\n{}\n```", help.join("\n").trim_end());
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
        .map(|inner| inner.get_name().to_owned())
        .collect();
    for inner in names {
        if let Some(found) = command.find_subcommand_mut(&inner) {
            page(out, found, &format!("{name} {inner}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_reference_in_docs_is_the_definitions() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
        let fresh = super::reference();
        if std::env::var_os("JIJI_WRITE_DOCS").is_some() {
            std::fs::write(&path, &fresh).expect("docs can be written");
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == fresh, "run `cargo xtask docs` and commit what it writes");
    }
}
