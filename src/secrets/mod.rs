//! Gets the values of the secrets that a project names, and keeps them out of everything that is shown.
//!
//! Nothing here knows where values lie: a lookup is handed in, which the command line fills from its environment. A value never
//! leaves as a text except through [`Secret::reveal`], and [`Redactor`] blots known values out of what hosts send back. Which secrets
//! are needed is said by [`crate::config`]; they travel to hosts in the protocol alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiji_model::name::SecretName;
use jiji_model::secret::{Asked, Secret};

mod redact;

pub use redact::Redactor;

/// Secrets that were asked for and have no value: every one of them, with every place that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingSecrets {
    missing: BTreeMap<SecretName, Missing>,
}

/// Why one secret has no value, and who asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is wrong with it.
    pub lack: Lack,
    /// The places that ask for it, in the order of the configuration.
    pub asked: Vec<Asked>,
}

/// What is wrong with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// It has no value.
    #[error("is not set")]
    Unset,
    /// Its value is the empty text, which is hardly ever meant.
    #[error("is empty")]
    Empty,
    /// Its value holds a zero byte, which no environment can hold.
    #[error("holds a zero byte")]
    ZeroByte,
}

impl MissingSecrets {
    /// The secrets, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&SecretName, &Missing)> {
        self.missing.iter()
    }

    /// What to do about it, in one line.
    pub fn hint(&self) -> String {
        let names: Vec<String> = self.missing.keys().map(|name| format!("{name}=…")).collect();
        format!("set them where jiji runs: {}", names.join(" "))
    }
}

impl fmt::Display for MissingSecrets {
    /// A first line, then a line for each place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missing.len() {
            1 => f.write_str("get a secret")?,
            number => write!(f, "get {number} secrets")?,
        }
        for (name, missing) in &self.missing {
            write!(f, "\n  `{name}` {}", missing.lack)?;
            for asked in &missing.asked {
                write!(f, "\n    needed by `{}` ({})", asked.by, asked.place)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for MissingSecrets {}

/// The values of a project's secrets.
#[derive(Debug, Clone, Default)]
pub struct Secrets(BTreeMap<SecretName, Secret>);

impl Secrets {
    /// Gets every secret that is asked for.
    ///
    /// # Errors
    /// [`MissingSecrets`] with all that have no value. The command line ends with exit code 12.
    pub fn from_lookup(asked: &[Asked], lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, MissingSecrets> {
        let names: BTreeSet<&SecretName> = asked.iter().map(|asked| &asked.name).collect();
        let mut secrets = BTreeMap::new();
        let mut missing = BTreeMap::new();
        for name in names {
            let lack = match lookup(name.as_str()) {
                None => Lack::Unset,
                Some(value) if value.is_empty() => Lack::Empty,
                Some(value) if value.contains('\0') => Lack::ZeroByte,
                Some(value) => {
                    secrets.insert(name.clone(), Secret::new(value));
                    continue;
                }
            };
            let asked = asked.iter().filter(|asked| asked.name == *name).cloned().collect();
            missing.insert(name.clone(), Missing { lack, asked });
        }
        if missing.is_empty() { Ok(Self(secrets)) } else { Err(MissingSecrets { missing }) }
    }

    /// Gets those secrets that are asked for and have a value, for who needs to know only later which of them must.
    pub fn available(asked: &[Asked], lookup: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut secrets = Self::default();
        secrets.look_up(asked.iter().map(|asked| &asked.name), lookup);
        secrets
    }

    /// Gets more secrets, such as those that an earlier release had. Gives the names of those that have no value.
    pub fn look_up<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a SecretName>,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Vec<SecretName> {
        let mut missing = Vec::new();
        for name in names {
            if self.0.contains_key(name) {
                continue;
            }
            match lookup(name.as_str()).filter(|value| !value.is_empty() && !value.contains('\0')) {
                Some(value) => {
                    self.0.insert(name.clone(), Secret::new(value));
                }
                None => missing.push(name.clone()),
            }
        }
        missing
    }

    /// The value of a secret.
    pub fn get(&self, name: &SecretName) -> Option<&Secret> {
        self.0.get(name)
    }

    /// All values by name, as the protocol's encoder takes them.
    pub fn values(&self) -> &BTreeMap<SecretName, Secret> {
        &self.0
    }

    /// What blots these values out of texts.
    pub fn redactor(&self) -> Redactor {
        Redactor::new(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, by: &str, place: &str) -> Asked {
        Asked { name: SecretName::new(name).expect("a secret's name"), by: by.to_owned(), place: place.to_owned() }
    }

    #[test]
    fn all_missing_secrets_are_told_at_once_with_every_place() {
        let wanted = [
            asked("REGISTRY_PASSWORD", "builder.registry.password", ".jiji/deploy.yml:5:15"),
            asked("DATABASE_URL", "services.web.environment.secrets", ".jiji/deploy.yml:14:17"),
            asked("DATABASE_URL", "services.worker.environment.secrets", ".jiji/deploy.yml:21:17"),
            asked("THERE", "environment.secrets", ".jiji/deploy.yml:9:9"),
        ];
        let lookup = |name: &str| match name {
            "THERE" => Some("value".to_owned()),
            "REGISTRY_PASSWORD" => Some(String::new()),
            _ => None,
        };
        let missing = Secrets::from_lookup(&wanted, &lookup).expect_err("two are missing");
        insta::assert_snapshot!(format!("failed to {missing}\nhint: {}", missing.hint()), @r"
        failed to get 2 secrets
          `DATABASE_URL` is not set
            needed by `services.web.environment.secrets` (.jiji/deploy.yml:14:17)
            needed by `services.worker.environment.secrets` (.jiji/deploy.yml:21:17)
          `REGISTRY_PASSWORD` is empty
            needed by `builder.registry.password` (.jiji/deploy.yml:5:15)
        hint: set them where jiji runs: DATABASE_URL=… REGISTRY_PASSWORD=…
        ");
    }

    #[test]
    fn a_secret_that_is_asked_for_twice_is_looked_up_once() {
        let wanted = [asked("A", "x", "f:1:1"), asked("A", "y", "f:2:1")];
        let count = std::cell::Cell::new(0);
        let lookup = |_: &str| {
            count.set(count.get() + 1);
            Some("hunter2".to_owned())
        };
        let secrets = Secrets::from_lookup(&wanted, &lookup).expect("it is there");
        assert_eq!((secrets.values().len(), count.get()), (1, 1));
        assert_eq!(format!("{secrets:?}"), r#"Secrets({"A": [redacted]})"#);
    }
}
