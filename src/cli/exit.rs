//! The exit codes: one number per kind of ending, documented in `docs/exit-codes.md` and kept for ever.

/// How a run of jiji ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// A defect of jiji, or something of the operator's machine that no other number fits.
    Internal = 1,
    /// Wrong arguments or configuration.
    Usage = 2,
    /// An image could not be built.
    Build = 3,
    /// `--locked`, and what was built is not what `jiji.lock` says.
    Locked = 4,
    /// A registry refused, or sent something else than was asked for.
    Registry = 5,
    /// A host could not be reached.
    Unreachable = 6,
    /// A new version was not healthy; everything was reverted.
    Unhealthy = 7,
    /// A revert failed.
    RevertFailed = 8,
    /// It is not known how the transaction stands on some host.
    InDoubt = 9,
    /// Somebody else holds the lease.
    Held = 10,
    /// A plugin was refused or failed.
    Plugin = 11,
    /// A secret is not available.
    Secret = 12,
    /// Hosts differ from what was shipped.
    Drift = 13,
    /// Interrupted; everything was reverted.
    Interrupted = 14,
    /// Refused before any effect.
    Refused = 15,
    /// It failed for another cause; everything was reverted.
    Reverted = 16,
    /// A plan has changes, and it was asked to tell so by the exit code.
    Changes = 17,
    /// What should be equal differs.
    Differs = 18,
}

impl Exit {
    /// All codes in order.
    pub const ALL: [Self; 19] = [
        Self::Done,
        Self::Internal,
        Self::Usage,
        Self::Build,
        Self::Locked,
        Self::Registry,
        Self::Unreachable,
        Self::Unhealthy,
        Self::RevertFailed,
        Self::InDoubt,
        Self::Held,
        Self::Plugin,
        Self::Secret,
        Self::Drift,
        Self::Interrupted,
        Self::Refused,
        Self::Reverted,
        Self::Changes,
        Self::Differs,
    ];

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::Build => "build_failed",
            Self::Locked => "lock_mismatch",
            Self::Registry => "registry",
            Self::Unreachable => "unreachable",
            Self::Unhealthy => "unhealthy_reverted",
            Self::RevertFailed => "revert_failed",
            Self::InDoubt => "in_doubt",
            Self::Held => "lease_held",
            Self::Plugin => "plugin",
            Self::Secret => "secret_missing",
            Self::Drift => "drift",
            Self::Interrupted => "interrupted",
            Self::Refused => "refused",
            Self::Reverted => "reverted",
            Self::Changes => "changes",
            Self::Differs => "differs",
        }
    }

    /// What it means, one line.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Internal => "internal error",
            Self::Usage => "wrong arguments or configuration",
            Self::Build => "an image could not be built",
            Self::Locked => "`--locked`, and the result differs from `jiji.lock`",
            Self::Registry => "a registry refused or sent something else",
            Self::Unreachable => "a host could not be reached",
            Self::Unhealthy => "a new version was not healthy, all reverted",
            Self::RevertFailed => "a revert failed",
            Self::InDoubt => "a host's state is not known",
            Self::Held => "somebody else holds the lease",
            Self::Plugin => "a plugin was refused or failed",
            Self::Secret => "a secret is not available",
            Self::Drift => "hosts differ from what was shipped",
            Self::Interrupted => "interrupted, all reverted",
            Self::Refused => "refused before any effect",
            Self::Reverted => "failed for another cause, all reverted",
            Self::Changes => "`jiji plan --detailed-exitcode`, and something would change",
            Self::Differs => "`jiji build --check`, `jiji diff` or `jiji pins diff`, and something differs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_its_place_in_the_table() {
        for (number, exit) in Exit::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(exit.code()), number);
        }
    }

    #[test]
    fn every_code_stands_on_the_page() {
        let page = include_str!("../../docs/exit-codes.md");
        let numbers: Vec<u8> =
            page.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok()).collect();
        assert_eq!(numbers, Exit::ALL.map(Exit::code));
    }
}
