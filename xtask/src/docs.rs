//! `cargo xtask docs`: writes what the documentation takes from the code, so that the two cannot part.
//!
//! The pages are written by the tests that otherwise compare them: the test program links jiji, which this one does not.

use crate::error::Error;
use crate::process::{cargo, run};

/// Writes the pages.
///
/// # Errors
/// When jiji does not compile or a page cannot be written.
pub fn write() -> Result<(), Error> {
    run(cargo().args(["test", "--quiet", "--package", "jiji", "--lib", "in_docs"]).env("JIJI_WRITE_DOCS", "1"))
}
