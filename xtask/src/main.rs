//! The one door for development.
fn main() {}
