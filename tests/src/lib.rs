//! What the end-to-end tests share: a laboratory with its images, a project on it, runs of the real `jiji`, and looks at hosts.
//!
//! The tests know `jiji` as a person does: by its command line, its exit codes, its NDJSON and what it leaves on hosts. They link
//! nothing of it. The program's path comes in `JIJI_BIN`; `cargo xtask test` builds it with abort points and hands it in.
//!
//! Where to enter: [`Shared`] is a laboratory for one test program, [`Project`] a copy of `examples/hello` that can be changed and
//! shipped, [`Run`] what a run of `jiji` said, [`look`] what a host has, [`secrecy`] the search for a value that must be nowhere, [`census`] what must not pile
//! up, [`deploys`] many ships in a row, [`sweep`] a death or a fault at every step, [`matrix`] the same build under many
//! conditions.

pub mod census;
pub mod deploys;
pub mod look;
pub mod matrix;
pub mod secrecy;
pub mod sweep;

mod project;
mod run;
mod site;

pub use project::{Project, copy_tree, jiji_bin};
pub use run::{Run, Running};
pub use site::{SERVERS, Shared, Site};

/// How a test ends: with everything that can go wrong on the way to its assertions.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
