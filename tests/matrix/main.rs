//! What `cargo xtask matrix` runs: the same projects under many conditions, and whether each keeps its digest. By hand, for long.
//!
//! It goes into namespaces of its own, where there is no network but loopback; what packages and images it needs comes into the laboratory's
//! cache before. The sample that every change has to pass is in `tests/matrix.rs`.

use std::process::ExitCode;

use clap::Parser;
use jiji_e2e::Outcome;
use jiji_e2e::matrix::{self, Order, PROJECTS, VARIATIONS};

/// Build the same projects under many conditions: each has to keep its digest.
#[derive(Parser)]
#[command(bin_name = "cargo xtask matrix", about)]
struct Args {
    /// Only this project; may be given several times
    #[arg(long = "project", value_name = "NAME", value_parser = names(PROJECTS.iter().map(|project| project.name)))]
    projects: Vec<String>,
    /// Only this variation; may be given several times
    #[arg(long = "variation", value_name = "NAME", value_parser = names(VARIATIONS.iter().map(|variation| variation.name)))]
    variations: Vec<String>,
    /// Show what there is and build nothing
    #[arg(long)]
    list: bool,
}

fn names(names: impl Iterator<Item = &'static str>) -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(names)
}

#[expect(clippy::print_stderr, reason = "a program for people: this is where it speaks")]
fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a program for people: this is where it speaks")]
fn run(args: &Args) -> Outcome<ExitCode> {
    let order = Order { projects: args.projects.clone(), variations: args.variations.clone() };
    if args.list {
        for variation in order.variations() {
            println!("{:<16} {}", variation.name, variation.what);
        }
        let projects: Vec<&str> = order.projects().map(|project| project.name).collect();
        println!("{} variations of {}", order.variations().count(), projects.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    let projects: Vec<_> = order.projects().collect();
    if let Some(code) = matrix::world::enter(&projects)? {
        return Ok(code);
    }
    let world = matrix::world::World::new(&projects)?;
    let summary = matrix::run(&world, &order, &mut |line| println!("{line}"))?;
    print!("\n{summary}");
    Ok(if summary.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
