//! The map of jiji: which room does what, so that a newcomer knows where to enter.
pub mod apply;
pub mod audit;
pub mod build;
pub mod cli;
pub mod config;
pub mod deploy;
pub mod fleet;
pub mod lockfile;
pub mod plugin;
pub mod registry;
pub mod report;
pub mod secrets;
pub mod ship;
mod side_by_side;

#[cfg(test)]
mod architecture;
