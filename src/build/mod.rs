//! Under construction.

pub mod context;
pub mod dockerfile;
pub mod layer;
pub mod rootfs;
