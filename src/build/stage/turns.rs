//! One at a time for each name: what two stages want at once is done once, and the second finds it done.
//!
//! Without turns a step that two stages share would run twice, and where it does not give the same twice, the image would have one result
//! and `jiji.lock` the other. Other processes are not kept out: they have stores' records for that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who is at what.
#[derive(Debug)]
pub(in crate::build) struct Turns<K> {
    names: Mutex<BTreeMap<K, Arc<Mutex<()>>>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { names: Mutex::default() }
    }
}

impl<K: Ord> Turns<K> {
    /// Does `work` when nobody else is at the same name.
    pub(in crate::build) fn take<T>(&self, name: K, work: impl FnOnce() -> T) -> T {
        let own = Arc::clone(held(&self.names).entry(name).or_default());
        let _turn = held(&own);
        work()
    }
}

/// A lock whatever became of who had it last: what is behind these locks is whole after every statement.
pub(in crate::build) fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
