//! The laboratory: several real hosts on one machine, with real parts and an honest load.
//!
//! A lab is a bridge in a network namespace of its own, hosts on it (each a set of namespaces with a private root, a real
//! sshd and a real Podman or Docker), an operator's namespace from which a deploy tool is driven, and an independent
//! registry. Everything dies with the process that keeps the lab; what files remain, the next [`Lab::up`] removes.
//!
//! The laboratory never links the program it examines: what it says about that program, it says as a stranger.
//!
//! Where to enter: [`Spec`] says what to build, [`Lab`] and [`Host`] are what a test holds; the keeper (one process per lab)
//! is in `keeper`, the first process of a host in `machine`, the images the lab builds in [`images`], the load generator in
//! [`load`].

pub mod images;
pub mod load;

mod cgroup;
mod error;
mod faults;
mod handle;
mod keeper;
mod machine;
mod net;
mod program;
mod record;
mod relay;
mod spec;
mod ssh;
mod state;

pub mod command;
pub mod process;

pub use error::LabError;
pub use handle::{Host, Lab};
pub use record::{HostRecord, OperatorRecord, Owner, Record, RegistryRecord};
pub use relay::Traffic;
pub use spec::{Engine, Engines, Spec, parse_behind, parse_duration};
pub use ssh::Sessions;
