//! Under construction.

pub mod context;
pub mod copy;
pub mod dockerfile;
pub mod layer;
pub mod rootfs;
