//! Runs one command as if it were alone on a machine that never changes, and tells what it changed.
//!
//! A step sees the image it starts from and nothing else of this machine: no network unless it is given, no foreign process, no file of
//! the host, a fixed name, clock zone, umask, number of processors. It may do to its own files whatever root may do in a container; what it did
//! is read afterwards from the scratch directory, as a sorted list of changes against the layers below.
//!
//! This crate knows nothing of Dockerfiles, images, digests or stores: directories come in, changes go out. What a step may cost
//! and what its changes mean is decided by `build`; where directories lie is the store's. The only system calls that create
//! namespaces are here.
//!
//! ```no_run
//! use jiji_sandbox::{Sandbox, Scratch, Step};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! jiji_sandbox::enter_if_requested(); // the first statement of main, before any thread exists
//! let scratch = Scratch::new(&Sandbox::new(), "/var/cache/work".as_ref())?;
//! let step = Step::new(["/bin/sh", "-c", "echo hello > /greeting"], vec!["/var/cache/base".into()]);
//! let outcome = jiji_sandbox::run(&step, &scratch, &mut |_stream, line| println!("{}", String::from_utf8_lossy(line)))?;
//! assert!(outcome.exit.success());
//! for change in jiji_sandbox::changes(&scratch.upper(), &step.layers)? {
//!     println!("{change:?}");
//! }
//! # Ok(()) }
//! ```
//!
//! Rooms: [`Step`] and [`Exit`] are the words; `run` is this side of the wall, `helper` the door, `inside` the other side;
//! `changes` and `unpack` read and write layer directories, `entries` reads tars; [`probe()`] says what this machine can do. `sys` holds every `unsafe`
//! line of the crate.

mod cgroup;
mod changes;
mod deputy;
mod entries;
mod errands;
mod helper;
mod inside;
mod merged;
mod mount_points;
mod namespace;
mod probe;
mod run;
mod scratch;
mod step;
mod sys;
mod unpack;
mod ways;
mod wire;

pub use changes::{Change, ChangeError, Changes, Kind, Meta, Node, changes};
pub use deputy::Reader;
pub use entries::{Entry, each_entry};
pub use helper::enter_if_requested;
pub use probe::{Obstacle, Refusal, Support, probe};
pub use run::{Canceller, RunError, Sandbox, run};
pub use scratch::Scratch;
pub use step::{Content, Exit, Limits, Mount, Network, Outcome, PROXY_PORT, Source, Step, Stream, VERSION};
pub use unpack::{UnpackError, UnpackLimits, Unpacked, unpack};
pub use ways::{Ids, Range, Way, Whose};
pub use wire::{Action, Doing, Failure, receive_listener};
