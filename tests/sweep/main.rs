//! What `cargo xtask sweep` runs: deaths and faults at every step of a transaction, or many ships in a row. By hand, for long.
//!
//! The samples of it that every change has to pass are in `tests/sweep.rs` and `tests/deploys.rs`.

use std::time::Duration;

use clap::{Parser, Subcommand};
use jiji_e2e::deploys::{self, Deploys};
use jiji_e2e::sweep::{Order, Sweep};
use jiji_e2e::{Outcome, Site};
use jiji_lab::{Engines, Spec, parse_duration};

/// Strike a transaction at every step, on real hosts under load.
#[derive(Parser)]
#[command(bin_name = "cargo xtask sweep", about)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Container engines: podman, docker or mixed
    #[arg(long, global = true, default_value = "mixed")]
    engine: Engines,
    /// How many hosts
    #[arg(long, global = true, default_value_t = 3)]
    hosts: usize,
    /// Requests per second and host meanwhile
    #[arg(long, global = true)]
    rate: Option<f64>,
    /// Run at most so many cases
    #[arg(long)]
    points: Option<usize>,
    /// What is drawn, and in which order; drawn by the clock otherwise
    #[arg(long)]
    seed: Option<u64>,
    /// Run only cases whose name has this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Run no case whose name has this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    without: Vec<String>,
    /// Run every case on every host, and not on one drawn by the seed
    #[arg(long)]
    all_hosts: bool,
    /// The number of a host that lets in no root, but a user with sudo; may be given several times
    #[arg(long, global = true, value_name = "N")]
    sudo: Vec<usize>,
    /// Leave out the cases that this file lists, and add those that pass: a sweep that was ended goes on where it was
    #[arg(long, value_name = "FILE")]
    passed: Option<std::path::PathBuf>,
    /// Begin no case after so long, like 20m
    #[arg(long, value_parser = parse_duration)]
    time: Option<Duration>,
    /// Show the cases and run none
    #[arg(long)]
    list: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Ship many times in a row under load, and look for what piles up
    Deploys {
        /// How many ships
        #[arg(long, default_value_t = 100)]
        count: usize,
    },
}

#[expect(clippy::print_stderr, reason = "a program for people: this is where it speaks")]
fn main() -> std::process::ExitCode {
    match run(&Args::parse()) {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a program for people: this is where it speaks")]
fn run(args: &Args) -> Outcome<bool> {
    let spec = args.sudo.iter().fold(Spec::new(args.hosts, args.engine), |spec, number| spec.sudo(*number));
    let site = Site::of(&spec)?;
    if let Some(Command::Deploys { count }) = args.command {
        let order = Deploys { count, rate: args.rate.unwrap_or(500.0), project: "many".to_owned(), hosts: args.hosts };
        let shown = deploys::run(&site, &order)?;
        print!("{shown}");
        site.keeps_the_secret()?;
        return Ok(shown.grown.is_empty());
    }
    let sweep = Sweep::new(&site, "sweep", args.hosts)?;
    if args.list {
        let cases = sweep.list()?;
        for case in &cases {
            println!("{case}");
        }
        println!("{} cases", cases.len());
        return Ok(true);
    }
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let order = Order {
        points: args.points,
        seed: args.seed.unwrap_or(clock),
        only: args.only.clone(),
        without: args.without.clone(),
        all_hosts: args.all_hosts,
        rate: args.rate.unwrap_or(100.0),
        time: args.time,
        passed: args.passed.clone(),
    };
    let summary = sweep.run(&order)?;
    print!("{summary}");
    site.keeps_the_secret()?;
    Ok(summary.wrong.is_empty())
}
