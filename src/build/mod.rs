//! Under construction.

pub mod dockerfile;
pub mod layer;
