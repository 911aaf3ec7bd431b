//! The laboratory's own processes, which the `lab` program becomes. Nobody else has business here.

use std::{ffi::OsString, path::Path};

use crate::{LabError, handle, keeper, load, machine, relay};

/// Keeps the lab in `dir` until it is told to end, or with `owned` until standard input ends.
pub fn keep(dir: &Path, owned: bool) -> Result<(), LabError> {
    keeper::keep(dir, owned)
}

/// Is the first process of a host, for ever.
pub fn machine(orders: &Path) -> Result<(), LabError> {
    machine::live(orders)
}

/// Becomes a command in a control group.
pub fn stage(group: &Path, argv: &[OsString]) -> Result<(), LabError> {
    handle::stage(group, argv)
}

/// Becomes a command on a host.
pub fn enter(lab: &Path, host: &str, argv: &[OsString]) -> Result<(), LabError> {
    handle::enter(lab, host, argv)
}

/// Relays connections to hosts, for ever.
pub fn relay(order: &Path) -> Result<(), LabError> {
    relay::serve(order)
}

/// Puts load on targets until it is over or standard input ends.
pub fn loader(order: &Path) -> Result<(), LabError> {
    load::serve(order)
}
