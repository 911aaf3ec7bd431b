//! Connections of one process: each server has one, however many sessions run on it; few are begun at once; few stay open unused.
//!
//! sshd drops connections at random once ten are not yet authenticated (`MaxStartups 10:30:100`, sshd_config(5)). To servers of their
//! own that is no matter, but a whole fleet behind one jump host meets a single sshd: so there is a bound for each jump host, and a
//! wider one for this machine, whose processors make the keys. A connection that nobody uses any more stays for the next who wants the
//! same server, until more than a few are unused: then the one goes that was used least recently.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiji_model::name::HostName;
use tokio::sync::{OnceCell, Semaphore};

use super::control::ControlDirectory;
use super::diagnose;
use super::error::FleetError;
use super::ssh::{Connection, HostKeys};
use super::target::SshTarget;

/// How often a connection that was dropped at once is tried again, and how long after; longer each time.
const RETRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// How many connections are kept open at most, begun at most, and begun at most through one jump host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Handshakes of this process at once.
    pub starts: usize,
    /// Handshakes through one and the same jump host at once: below the ten that sshd takes.
    pub starts_through_jump: usize,
    /// Connections that stay open though nobody uses them.
    pub unused: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { starts: 30, starts_through_jump: 8, unused: 16 }
    }
}

/// The connections of one process.
pub(super) struct Pool {
    control: ControlDirectory,
    keys: HostKeys,
    bounds: Bounds,
    starts: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    through: HashMap<String, Arc<Semaphore>>,
    /// How often somebody asked.
    asked: usize,
}

type Slot = Arc<OnceCell<Arc<Connection>>>;

struct Entry {
    target: SshTarget,
    slot: Slot,
    /// When it was asked for last, in [`State::asked`].
    used: usize,
}

impl Pool {
    pub(super) fn new(control: ControlDirectory, keys: HostKeys, bounds: Bounds) -> Self {
        Self { control, keys, bounds, starts: Semaphore::new(bounds.starts.max(1)), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a server: the one that is open, or a new one.
    pub(super) async fn get(&self, host: &HostName, target: &SshTarget) -> Result<Arc<Connection>, FleetError> {
        let (slot, number) = self.slot(target, None);
        let fresh = !slot.initialized();
        let connection = self.fill(host, target, &slot, number).await?;
        // A server may have been started anew since.
        let connection = if fresh || connection.alive().await {
            connection
        } else {
            let (slot, number) = self.slot(target, Some(&slot));
            self.fill(host, target, &slot, number).await?
        };
        self.trim().await;
        Ok(connection)
    }

    /// The place of a server's connection, and a number of its own. A place that is known to be `stale` is emptied.
    fn slot(&self, target: &SshTarget, stale: Option<&Slot>) -> (Slot, usize) {
        let mut state = self.state();
        state.asked += 1;
        let now = state.asked;
        let entry = match state.entries.iter_mut().position(|entry| entry.target == *target) {
            Some(index) => &mut state.entries[index],
            None => {
                state.entries.push(Entry { target: target.clone(), slot: Slot::default(), used: now });
                state.entries.last_mut().expect("one was just pushed")
            }
        };
        if stale.is_some_and(|stale| Arc::ptr_eq(stale, &entry.slot)) {
            entry.slot = Slot::default();
        }
        entry.used = now;
        (Arc::clone(&entry.slot), now)
    }

    async fn fill(
        &self,
        host: &HostName,
        target: &SshTarget,
        slot: &Slot,
        number: usize,
    ) -> Result<Arc<Connection>, FleetError> {
        let opened = slot.get_or_try_init(|| async {
            // Through the narrow gate first: who waits there takes no place at the wide one.
            let through = self.through(target);
            let _through = match &through {
                Some(gate) => gate.acquire().await.ok(),
                None => None,
            };
            let _start = self.starts.acquire().await.ok();
            let mut tries = 0;
            loop {
                let opened = Connection::open(host, target, self.keys, &self.control, number).await;
                match opened {
                    // Others than this process may keep an sshd busy.
                    Err(error) if diagnose::worth_a_retry(&error) && tries < RETRIES => tries += 1,
                    opened => return opened.map(Arc::new),
                }
                tokio::time::sleep(PAUSE * tries).await;
            }
        });
        opened.await.map(Arc::clone)
    }

    /// The gate of the first jump host that the project names. Those of the user's own configuration are not known here.
    fn through(&self, target: &SshTarget) -> Option<Arc<Semaphore>> {
        let jump = target.jump.first()?;
        let most = self.bounds.starts_through_jump.max(1);
        Some(Arc::clone(self.state().through.entry(jump.clone()).or_insert_with(|| Arc::new(Semaphore::new(most)))))
    }

    /// Closes connections that nobody uses, but for the [`Bounds::unused`] that were used last.
    pub(super) async fn trim(&self) {
        let excess = surplus(&mut self.state().entries, self.bounds.unused);
        close(excess).await;
    }

    /// Closes all that nobody uses.
    pub(super) async fn close(&self) {
        let all = surplus(&mut self.state().entries, 0);
        close(all).await;
    }
}

/// Takes the unused entries out that are more than `most`, the least recently used first.
fn surplus(entries: &mut Vec<Entry>, most: usize) -> Vec<Entry> {
    let unused = |entry: &Entry| entry.slot.get().is_some_and(|connection| Arc::strong_count(connection) == 1);
    let gone = least_recent(entries.iter().filter(|entry| unused(entry)).map(|entry| entry.used).collect(), most);
    entries.extract_if(.., |entry| gone.contains(&entry.used)).collect()
}

/// Of these times, those that are more than `most`, the earliest.
fn least_recent(mut used: Vec<usize>, most: usize) -> Vec<usize> {
    used.sort_unstable();
    used.truncate(used.len().saturating_sub(most));
    used
}

async fn close(entries: Vec<Entry>) {
    let connections = entries.into_iter().filter_map(|entry| Arc::into_inner(entry.slot)?.into_inner());
    let masters = connections.filter_map(Arc::into_inner).map(Connection::close);
    futures_util::future::join_all(masters).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_unused_connections_those_go_that_were_used_least_recently() {
        assert_eq!(least_recent(vec![7, 2, 9, 4], 2), [2, 4]);
        assert_eq!(least_recent(vec![7, 2], 2), Vec::<usize>::new());
        assert_eq!(least_recent(vec![7, 2], 0), [2, 7]);
    }

    #[tokio::test]
    async fn a_fleet_behind_one_jump_host_meets_its_sshd_a_few_at_a_time() {
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        let control = ControlDirectory::open(&dir.path().join("s")).await.expect("opened");
        let bounds = Bounds { starts: 4, starts_through_jump: 2, unused: 1 };
        let pool = Pool::new(control, HostKeys::Known, bounds);
        let target = |address: &str, jump: &[&str]| SshTarget {
            address: address.to_owned(),
            user: None,
            port: None,
            jump: jump.iter().map(|jump| (*jump).to_owned()).collect(),
            keys: Vec::new(),
            config: None,
            connect_timeout: Duration::from_secs(1),
        };
        let gate = pool.through(&target("one", &["bastion", "inner"])).expect("it goes through one");
        let other = pool.through(&target("two", &["bastion"])).expect("it goes through one");
        assert!(Arc::ptr_eq(&gate, &other), "the first jump host is the one that is met");
        assert_eq!(gate.available_permits(), 2);
        assert!(pool.through(&target("three", &[])).is_none());
        let (one, first) = pool.slot(&target("one", &[]), None);
        let (again, second) = pool.slot(&target("one", &[]), None);
        assert!(Arc::ptr_eq(&one, &again) && first < second, "one server is one connection");
        let (fresh, _) = pool.slot(&target("one", &[]), Some(&one));
        assert!(!Arc::ptr_eq(&one, &fresh), "one that is gone is not used again");
    }
}
