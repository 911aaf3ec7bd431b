//! Under construction.

pub mod contents;
pub mod context;
pub mod copy;
pub mod dockerfile;
pub mod execute;
pub mod image;
pub mod layer;
pub mod rootfs;
pub mod trees;
mod write;
