//! What a user's own Podman needs of a host, and the ways out.
//!
//! Nothing of it is asked where the engine is root's.

use jiji_model::name::HostName;
use jiji_model::observation::{EngineFacts, FitnessFacts, ROOTLESS_PROGRAMS, RootlessFacts};
use jiji_model::plan::{Action, Plan, Word};

use super::finding::{Packages, Severity, Unfit};
use super::{packages, version};

/// How many subordinate ids a user needs: an image's files and processes may belong to any of the numbers of 16 bits.
const IDS: u64 = 65_536;

/// The first kernel whose own overlay file system a user may mount as Podman needs it (storage.conf(5), `mount_program`).
const OVERLAY: [u32; 2] = [5, 13];

/// The first Podman whose networks with a bridge reach out by pasta, unless it was told slirp4netns (containers.conf(5),
/// `default_rootless_network_cmd`).
const PASTA: u32 = 5;

/// The program that only root may run for what jiji's plugins do with it: it leads connections elsewhere.
const OF_ROOT: &str = "nft";

/// What is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// The user has too few subordinate ids.
    #[error("`{file}` gives `{user}` {have} of the {IDS} ids that images need")]
    Ids {
        /// The file.
        file: &'static str,
        /// The user.
        user: String,
        /// How many there are.
        have: u64,
    },
    /// A program by which Podman does what is root's to do.
    #[error("`{program}` is not installed")]
    Program {
        /// The program.
        program: &'static str,
        /// Its package.
        package: &'static str,
        /// How packages are installed there.
        packages: Packages,
    },
    /// Systemd ends what the user runs when they log out.
    #[error("what `{user}` runs ends when `{user}` logs out")]
    Lingering {
        /// The user.
        user: String,
    },
    /// The containers' network has no way out.
    #[error("`{user}` cannot open `/dev/net/tun`, which the containers' network needs")]
    Tun {
        /// The user.
        user: String,
    },
    /// Every layer would be copied.
    #[error("kernel {release} lets no user lay one file system over another, so Podman copies every layer whole")]
    Overlay {
        /// The kernel's release.
        release: String,
        /// How packages are installed there.
        packages: Packages,
    },
    /// Nobody tells what memory containers hold.
    #[error("containers get no control groups of their own, so nobody tells how much memory they hold")]
    Groups,
}

impl Lack {
    pub(super) fn severity(&self) -> Severity {
        match self {
            Self::Overlay { .. } | Self::Groups => Severity::Warning,
            _ => Severity::Refusal,
        }
    }

    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Ids { .. } => "rootless_ids",
            Self::Program { .. } => "rootless_program",
            Self::Lingering { .. } => "rootless_lingering",
            Self::Tun { .. } => "rootless_tun",
            Self::Overlay { .. } => "rootless_overlay",
            Self::Groups => "rootless_groups",
        }
    }

    pub(super) fn hint(&self) -> String {
        match self {
            Self::Ids { user, .. } => format!(
                "`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` there, as root, with numbers that no other line \
                 of those files has; then `podman system migrate` as `{user}`"
            ),
            Self::Program { package, packages, .. } => packages.install(package),
            Self::Lingering { user } => format!("`loginctl enable-linger {user}` there"),
            Self::Tun { .. } => "`modprobe tun` there, as root; the file's mode is 666".to_owned(),
            Self::Overlay { packages, .. } => packages.install("fuse-overlayfs"),
            Self::Groups => {
                "with control groups of version 2, systemd passes them on (`Delegate=` in systemd.resource-control(5))"
                    .to_owned()
            }
        }
    }
}

/// Judges a host by what its user's own engine needs, where it is a user's own.
pub(super) fn judge(fitness: &FitnessFacts, engine: Option<&EngineFacts>, add: &mut impl FnMut(Unfit)) {
    let Some(facts) = &fitness.rootless else { return };
    for lack in lacks(fitness, facts, engine) {
        add(Unfit::Rootless(lack));
    }
}

fn lacks(fitness: &FitnessFacts, facts: &RootlessFacts, engine: Option<&EngineFacts>) -> Vec<Lack> {
    let user = || facts.user.clone();
    let packages = packages(&fitness.distribution);
    let has = |program: &str| facts.programs.iter().any(|have| have == program);
    let mut lacks = Vec::new();
    for (file, have) in [("/etc/subuid", facts.subordinate_users), ("/etc/subgid", facts.subordinate_groups)] {
        if let Some(have) = have.filter(|have| *have < IDS) {
            lacks.push(Lack::Ids { file, user: user(), have });
        }
    }
    let maps = if packages == Packages::Apt { "uidmap" } else { "shadow-utils" };
    let [newuidmap, newgidmap, slirp, pasta, fuse] = ROOTLESS_PROGRAMS;
    let mut needed = vec![(newuidmap, maps), (newgidmap, maps)];
    let old = engine.is_some_and(|engine| version(&engine.version).first().is_some_and(|major| *major < PASTA));
    if old {
        needed.push((slirp, "slirp4netns"));
    } else if !has(slirp) {
        // A newer one can be told to use either.
        needed.push((pasta, "passt"));
    }
    for (program, package) in needed {
        if !has(program) {
            lacks.push(Lack::Program { program, package, packages });
        }
    }
    if facts.lingers == Some(false) {
        lacks.push(Lack::Lingering { user: user() });
    }
    if !facts.tun {
        lacks.push(Lack::Tun { user: user() });
    }
    let release = version(&fitness.kernel);
    if !release.is_empty() && release[..] < OVERLAY[..] && !has(fuse) {
        lacks.push(Lack::Overlay { release: fitness.kernel.clone(), packages });
    }
    if !facts.memory_control {
        lacks.push(Lack::Groups);
    }
    lacks
}

/// Finds programs of a plan that root alone may run for what they are to do.
pub(super) fn programs(plan: &Plan, host: &HostName, facts: &RootlessFacts, add: &mut impl FnMut(Unfit)) {
    let of_root = plan.steps.iter().filter(|step| step.host == *host).any(|step| match &step.action {
        Action::Run { argv, .. } => argv.first().is_some_and(|word| *word == Word::lit(OF_ROOT)),
        _ => false,
    });
    if of_root {
        add(Unfit::NeedsRoot { program: OF_ROOT.to_owned(), user: facts.user.clone() });
    }
}
