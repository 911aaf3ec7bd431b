//! Under construction.

pub mod dockerfile;
