//! Where a transaction can be struck, as the program itself tells, and what strikes it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiji_lab::Host;

use crate::Outcome;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The operator's jiji aborts by itself, at one of its own points.
    Abort,
    /// `jiji-host` dies.
    Die,
    /// The operator's jiji is killed with SIGKILL.
    Kill,
    /// The same, and everything that it remembers is deleted.
    Forget,
    /// The same, and the candidate turns healthy a second later.
    Late,
    /// The SSH connection breaks.
    Cut,
    /// Nothing passes between operator and sshd any more, and nobody is told.
    Silence,
    /// The host loses power and comes back.
    Off,
    /// The container engine stops for two seconds in the middle of what it does.
    Freeze,
    /// The same, and the operator's jiji is killed meanwhile.
    FreezeKill,
}

impl Fault {
    /// The faults that can strike where a host holds still.
    pub const AT_HOSTS: [Self; 8] =
        [Self::Die, Self::Kill, Self::Forget, Self::Cut, Self::Silence, Self::Off, Self::Freeze, Self::FreezeKill];

    /// Its name in a case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Die => "die",
            Self::Kill => "kill",
            Self::Forget => "kill+forget",
            Self::Late => "kill+late",
            Self::Cut => "cut",
            Self::Silence => "silence",
            Self::Off => "off",
            Self::Freeze => "freeze",
            Self::FreezeKill => "freeze+kill",
        }
    }
}

/// What is done while it is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// A new version that is good.
    Update,
    /// A new version that is sick on the last host: everything is taken back.
    Revert,
    /// Settling what a run left that died after all had cut over: back.
    SettleBack,
    /// Settling what a run left that died after all had recorded the decision: forward.
    SettleForward,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Update, Self::Revert, Self::SettleBack, Self::SettleForward];

    /// Its name in a case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Revert => "revert",
            Self::SettleBack => "settle-back",
            Self::SettleForward => "settle-forward",
        }
    }

    /// Where the run dies whose transaction is settled here.
    pub fn left_at(self) -> Option<&'static str> {
        match self {
            Self::Update | Self::Revert => None,
            Self::SettleBack => Some("cut-over"),
            Self::SettleForward => Some("settled"),
        }
    }
}

/// One thing to try.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// What is done.
    pub scenario: Scenario,
    /// Which host, counted from 0; none for a point of the operator's.
    pub host: Option<usize>,
    /// The point's label.
    pub label: String,
    /// What goes wrong there.
    pub fault: Fault,
}

impl Case {
    /// Whether requests to its host may fail meanwhile, since the host itself goes away.
    pub fn strikes_host(&self) -> bool {
        self.fault == Fault::Off
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.host.map_or("operator", |place| crate::SERVERS[place]);
        write!(f, "{} {host} `{}` {}", self.scenario.name(), self.label, self.fault.name())
    }
}

/// The abort points of a host: its directory of orders, reached from outside.
pub struct Points {
    dir: PathBuf,
}

/// Where `jiji-host` of a test build looks for orders.
const DIR: &str = "run/jiji-abort-points";

impl Points {
    /// Those of a host that runs.
    ///
    /// # Errors
    /// When it does not run.
    pub fn of(host: &Host) -> Outcome<Self> {
        let dir = PathBuf::from(format!("/proc/{}/root", host.record()?.pid)).join(DIR);
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// Forgets all orders and the trace.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn clear(&self) -> Outcome {
        for name in ["at", "hit", "go", "trace"] {
            match fs::remove_file(self.dir.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes away the directory, so that nothing is traced any more.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self) -> Outcome {
        Ok(fs::remove_dir_all(&self.dir)?)
    }

    /// The labels that were passed since the last [`Points::clear`], in their order.
    pub fn trace(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("trace")).unwrap_or_default();
        let mut seen = std::collections::BTreeSet::new();
        text.lines().filter(|line| seen.insert((*line).to_owned())).map(str::to_owned).collect()
    }

    /// Says what is to happen at a label: `die` or `hold`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn arm(&self, order: &str, label: &str) -> Outcome {
        self.clear()?;
        // Whole at once: the program reads it at every point.
        fs::write(self.dir.join("at.new"), format!("{order} {label}\n"))?;
        Ok(fs::rename(self.dir.join("at.new"), self.dir.join("at"))?)
    }

    /// Whether the label was reached.
    pub fn is_hit(&self) -> bool {
        self.dir.join("hit").exists()
    }

    /// Waits until the label is reached, or `over` says that it never will.
    pub fn wait(&self, limit: Duration, mut over: impl FnMut() -> bool) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if self.is_hit() {
                return true;
            }
            if over() {
                return self.is_hit();
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        false
    }

    /// Lets go what holds.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn go(&self) -> Outcome {
        Ok(fs::write(self.dir.join("go"), b"")?)
    }
}

/// Numbers drawn from a seed (splitmix64), the same on every machine.
#[derive(Debug, Clone)]
pub struct Lot(pub u64);

impl Lot {
    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Puts things in an order by lot.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            let place = self.draw() % (last as u64 + 1);
            things.swap(last, usize::try_from(place).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_order() {
        let order = |seed| {
            let mut things: Vec<_> = (0..50).collect();
            Lot(seed).shuffle(&mut things);
            things
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
    }

    #[test]
    fn a_case_is_named_so_that_it_can_be_asked_for() {
        let label = "synced ended cutover route#1".to_owned();
        let case = Case { scenario: Scenario::Update, host: Some(1), label, fault: Fault::Forget };
        assert_eq!(case.to_string(), "update two `synced ended cutover route#1` kill+forget");
    }
}
