//! `lab`: builds laboratories and lets people play in them.
//!
//! The commands that are not shown in the help are the laboratory's own processes.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people: this is where it speaks")]

use std::{ffi::OsString, io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use jiji_lab::{
    Engines, Lab, LabError, Record, Spec,
    images::Image,
    load::{LEAST_RATE, LoadSpec, Target},
    parse_behind, parse_duration,
};

/// Several real hosts on one machine.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    /// The directory in which labs lie [default: /var/tmp/jiji-lab]
    #[arg(long, global = true, env = "JIJI_LAB_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Build a lab and leave it running
    Up {
        /// How many hosts
        #[arg(long, default_value_t = 2)]
        hosts: usize,
        /// Their container engines: podman, docker or mixed
        #[arg(long, default_value = "mixed")]
        engine: Engines,
        /// The round trip time between operator and hosts, like 50ms
        #[arg(long, value_parser = parse_duration)]
        rtt: Option<std::time::Duration>,
        /// The lab's name
        #[arg(long)]
        name: Option<String>,
        /// A directory that hosts see as it is; may be given several times
        #[arg(long, value_name = "DIR")]
        bind: Vec<PathBuf>,
        /// The number of a host that lets in no root, but a user with sudo; may be given several times
        #[arg(long, value_name = "N")]
        sudo: Vec<usize>,
        /// The number of a host on which nobody becomes root: the user has a Podman of their own; may be given several times
        #[arg(long, value_name = "N")]
        rootless: Vec<usize>,
        /// A host that ssh reaches through another alone, like 3=1; may be given several times
        #[arg(long, value_name = "N=M", value_parser = parse_behind)]
        behind: Vec<(usize, usize)>,
        /// Leave the registry empty instead of putting the lab's images into it
        #[arg(long)]
        bare: bool,
        /// Print the record of the lab as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command on a host, as root
    Exec {
        /// The lab, if there are several
        #[arg(long)]
        name: Option<String>,
        /// The host
        host: String,
        /// The command and its arguments
        #[arg(required = true, last = true)]
        argv: Vec<OsString>,
    },
    /// Show the labs that are up
    Status {
        /// Print their records as JSON
        #[arg(long)]
        json: bool,
    },
    /// End a lab
    Down {
        /// The lab, if there are several
        #[arg(long)]
        name: Option<String>,
        /// End all labs of the state directory
        #[arg(long)]
        all: bool,
    },
    /// Put an honest load on the hosts' proxies and say what failed
    Load {
        /// The lab, if there are several
        #[arg(long)]
        name: Option<String>,
        /// The Host header under which the service is reached
        #[arg(long, default_value = "hello.test")]
        host: String,
        /// Requests per second and host
        #[arg(long, default_value_t = LEAST_RATE)]
        rate: f64,
        /// How long, like 30s
        #[arg(long, value_parser = parse_duration, default_value = "30s")]
        duration: std::time::Duration,
        /// Where requests go instead of port 80 of every host; may be given several times
        #[arg(long, value_name = "ADDRESS:PORT")]
        target: Vec<std::net::SocketAddr>,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep a lab
    #[command(hide = true)]
    Keep {
        dir: PathBuf,
        #[arg(long)]
        owned: bool,
    },
    /// Be the first process of a host
    #[command(hide = true)]
    Machine { orders: PathBuf },
    /// Become a command in a control group
    #[command(hide = true)]
    Stage {
        group: PathBuf,
        #[arg(required = true, last = true)]
        argv: Vec<OsString>,
    },
    /// Become a command on a host
    #[command(hide = true)]
    Enter {
        dir: PathBuf,
        host: String,
        #[arg(required = true, last = true)]
        argv: Vec<OsString>,
    },
    /// Relay connections to hosts
    #[command(hide = true)]
    Relay { order: PathBuf },
    /// Put load on targets
    #[command(hide = true)]
    Loader { order: PathBuf },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode, LabError> {
    let state = args.state.as_deref();
    match args.command {
        Order::Up { hosts, engine, rtt, name, bind, sudo, rootless, behind, bare, json } => {
            let ways = Spec { sudo, rootless, behind, ..Spec::new(hosts, engine) };
            let spec = Spec { name, rtt, state: args.state, binds: bind, ..ways };
            let lab = Lab::up_detached(&spec)?;
            let images = if bare { Vec::new() } else { fill(&lab)? };
            if json {
                print_json(&Up { lab: lab.record(), images: &images })?;
            } else {
                print_up(lab.record(), &images);
            }
        }
        Order::Exec { name, host, argv } => {
            let lab = Lab::attach(state, name.as_deref())?;
            jiji_lab::process::enter(&lab.record().dir, &host, &argv)?;
        }
        Order::Status { json } => {
            let labs = Lab::all(state);
            if json {
                print_json(&labs.iter().map(Lab::record).collect::<Vec<_>>())?;
            } else {
                labs.iter().try_for_each(print_status)?;
            }
        }
        Order::Down { name, all } => {
            if all {
                Lab::all(state).into_iter().try_for_each(Lab::down)?;
                Lab::sweep(state)?;
            } else {
                Lab::attach(state, name.as_deref())?.down()?;
            }
        }
        Order::Load { name, host, rate, duration, target, json } => {
            let lab = Lab::attach(state, name.as_deref())?;
            let mut spec = LoadSpec { rate, ..LoadSpec::new(&lab, &host, duration) };
            if !target.is_empty() {
                let named = |address: std::net::SocketAddr| Target {
                    name: address.to_string(),
                    address,
                    authority: host.clone(),
                    authorities: None,
                };
                spec.targets = target.into_iter().map(named).collect();
            }
            let report = lab.load(&spec)?;
            if json {
                print_json(&report)?
            } else {
                print!("{report}")
            }
            if report.failed() > 0 {
                return Ok(ExitCode::FAILURE);
            }
        }
        Order::Keep { dir, owned } => jiji_lab::process::keep(&dir, owned)?,
        Order::Machine { orders } => jiji_lab::process::machine(&orders)?,
        Order::Stage { group, argv } => jiji_lab::process::stage(&group, &argv)?,
        Order::Enter { dir, host, argv } => jiji_lab::process::enter(&dir, &host, &argv)?,
        Order::Relay { order } => jiji_lab::process::relay(&order)?,
        Order::Loader { order } => jiji_lab::process::loader(&order)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What `lab up --json` prints.
#[derive(serde::Serialize)]
struct Up<'a> {
    #[serde(flatten)]
    lab: &'a Record,
    images: &'a [Image],
}

/// Puts the lab's images into its registry, and the proxy's into the file that people source. A lab whose images cannot be
/// had is of no use, so it ends.
fn fill(lab: &Lab) -> Result<Vec<Image>, LabError> {
    let images = lab.images().inspect_err(|_| {
        if let Ok(lab) = Lab::attach(lab.record().dir.parent(), Some(&lab.record().name)) {
            drop(lab.down());
        }
    })?;
    let path = &lab.record().env;
    let lines: String =
        images.iter().map(|image| format!("export {}='{}'\n", image.variable(), image.pinned)).collect();
    std::fs::File::options()
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(lines.as_bytes()))
        .map_err(|source| LabError::File { action: "write", path: path.clone(), source })?;
    Ok(images)
}

fn print_json(value: &impl serde::Serialize) -> Result<(), LabError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|source| LabError::Json { what: "the record to print".to_owned(), source })?;
    println!("{text}");
    Ok(())
}

fn print_up(record: &Record, images: &[Image]) {
    println!("lab {} is up", record.name);
    for host in &record.hosts {
        let through = host.through.as_ref().map_or_else(String::new, |name| format!(", through {name}"));
        println!("  {:12} {:15} {:6} {}{through}", host.name, host.address, host.engine.name(), host.user);
    }
    if let Some(registry) = &record.registry {
        println!("  {:12} {}", "registry", registry.address);
    }
    for image in images {
        println!("  {:12} {}", "image", image.reference);
    }
    println!("  {:12} {}", "ssh config", record.ssh_config.display());
    println!();
    println!("in a shell as root, for `ssh HOST`, `jiji ...` and `in_lab COMMAND`:");
    println!("  eval \"$(cat {})\"", record.env.display());
}

fn print_status(lab: &Lab) -> Result<(), LabError> {
    let record = lab.record();
    let state = if record.ready { "up" } else { "starting" };
    println!("lab {} is {state} (keeper {})", record.name, record.owner.pid);
    for host in lab.hosts() {
        let now = host.record()?;
        let state = if now.pid == 0 { "off" } else { "on" };
        let seen = host.ssh_sessions().unwrap_or_default();
        println!(
            "  {:12} {:15} {:6} {:3} ssh: {} connections, {} sessions",
            now.name,
            now.address,
            now.engine.name(),
            state,
            seen.connections,
            seen.sessions
        );
    }
    Ok(())
}
