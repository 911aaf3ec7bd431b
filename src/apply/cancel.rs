//! A person who wants to stop: once reverts, twice lets go.

use std::sync::Arc;

use tokio::sync::watch;

/// Asks a running transaction to stop. Clones are one handle.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<watch::Sender<u8>>);

/// Whoever asks once wants everything reverted in order.
pub(super) const REVERT: u8 = 1;
/// Whoever asks twice does not want to wait for it.
pub(super) const DETACH: u8 = 2;

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Cancel {
    /// Asks to stop. The first time, what was not decided is reverted and what was decided is finished; the second time the hosts are
    /// left as they are, and the next command that reaches them settles what is open.
    pub fn request(&self) {
        self.0.send_modify(|level| *level = level.saturating_add(1));
    }

    /// Whether somebody asked to stop.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() >= REVERT
    }

    /// Waits until somebody asks to stop.
    pub async fn requested(&self) {
        self.reached(REVERT).await;
    }

    /// Waits until it was asked for `level` times.
    pub(super) async fn reached(&self, level: u8) {
        // This handle keeps the sender, so the wait ends with the value alone.
        let _ = self.0.subscribe().wait_for(|now| *now >= level).await;
    }
}
