//! Under construction.

pub mod embedded;
