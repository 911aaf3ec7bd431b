//! A sample of the matrix (`cargo xtask matrix`): three projects under a few conditions of the builder's world have one digest each, and a
//! step that reads the clock is caught.

use std::process::Command;

use jiji_e2e::Outcome;
use jiji_e2e::matrix::{PROJECTS as ALL, VARIATIONS as EVERY};

const PROJECTS: [&str; 3] = ["copy", "static", "recipe-static"];

const VARIATIONS: [&str; 5] = ["folder", "one-processor", "subordinate-ids", "tmpfs", "offline"];

#[test]
fn conditions_change_no_digest_and_a_step_that_reads_the_clock_is_caught() -> Outcome {
    let mut matrix = Command::new(env!("CARGO_BIN_EXE_jiji-matrix"));
    matrix.args(PROJECTS.map(|name| format!("--project={name}")));
    matrix.args(VARIATIONS.map(|name| format!("--variation={name}")));
    let output = matrix.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
    for project in PROJECTS {
        let same = said.lines().any(|line| line.starts_with(project) && line.contains(" in 5 of 5, 0 refused"));
        assert!(same, "{project} in five of five");
    }
    let caught = said.lines().filter(|line| line.starts_with("the clock is caught: ")).count();
    assert_eq!(caught, 2, "by `--check` and by `--locked`");
    Ok(())
}

#[test]
fn the_documentation_lists_what_is_built_and_varied() -> Outcome {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reproducible.md"))?;
    for project in &ALL {
        assert!(page.contains(&format!("\n| `{}` | ", project.name)), "{}", project.name);
    }
    for variation in &EVERY {
        let due = format!("\n| `{}` | {} |\n", variation.name, variation.what);
        assert!(page.contains(&due), "{due}");
    }
    Ok(())
}
