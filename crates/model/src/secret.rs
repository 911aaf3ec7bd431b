//! Values that cannot be printed.
//!
//! A [`Secret`] has no `Display` and no `Serialize`; its `Debug` says `[redacted]`. It leaves the process in one way only: the
//! protocol's [`crate::protocol::encode_secrets`], which writes to a host's standard input.

use std::fmt;

/// A secret value. Comparing two is constant in time only in the sense that nobody outside can ask for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a value into custody.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// Gives the value out. Call this only where the value goes to the one place that needs it, and never into an argument vector, a
    /// log, an error, a plan or a file that outlives the step.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A secret that a project asks for, and where it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The secret's name.
    pub name: crate::name::SecretName,
    /// What needs it: the keys that lead there, `services.web.environment.secrets`.
    pub by: String,
    /// The place, for people: `.jiji/deploy.yml:14:12`.
    pub place: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_never_holds_the_value() {
        assert_eq!(format!("{:?}", Some(Secret::new("hunter2"))), "Some([redacted])");
    }
}
