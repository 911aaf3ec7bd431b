//! What a transaction needs of a host, so that it can be driven against hosts that a test plays.

use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_model::name::HostName;
use jiji_model::protocol::{Reply, Request};
use jiji_store::Store;

use crate::fleet::{BlobProgress, FleetError, Listener, Session};

/// One host, connected.
pub trait HostLink: Send + Sync {
    /// The host.
    fn host(&self) -> &HostName;

    /// How ssh reached it, as `ssh://[USER@]HOST[:PORT]`; none where no ssh was needed.
    fn address(&self) -> Option<&str>;

    /// Asks, and waits for the answer as long as the host says something at least every `patience`. A refusal is an error.
    fn ask(&self, request: Request, patience: Duration) -> impl Future<Output = Result<Reply, FleetError>> + Send;

    /// Asks already what the next calls of [`Self::ask`] are to ask, in this order, so that the host does not wait for this end between
    /// two answers. Only for what the host refuses unless all before it went well, or what changes nothing: once something else is asked,
    /// a phase at work is interrupted, and the answers to the rest are dropped. A host that is lost says so at the next `ask`.
    fn ask_ahead(&self, requests: Vec<Request>) -> impl Future<Output = ()> + Send;

    /// Sends what has no answer.
    fn tell(&self, request: Request) -> impl Future<Output = Result<(), FleetError>> + Send;

    /// Brings blobs from the store to the host.
    fn send_blobs(
        &self,
        store: &Store,
        blobs: &[(Digest, u64)],
        progress: &(dyn Fn(BlobProgress) + Send + Sync),
    ) -> impl Future<Output = Result<BlobProgress, FleetError>> + Send;

    /// Who hears what the host tells, from now on.
    fn listen(&self, listener: Listener);
}

impl HostLink for Session {
    fn host(&self) -> &HostName {
        self.host()
    }

    fn address(&self) -> Option<&str> {
        self.address()
    }

    async fn ask(&self, request: Request, patience: Duration) -> Result<Reply, FleetError> {
        self.ask(request, patience).await
    }

    async fn ask_ahead(&self, requests: Vec<Request>) {
        self.ask_ahead(requests).await;
    }

    async fn tell(&self, request: Request) -> Result<(), FleetError> {
        self.tell(request).await
    }

    async fn send_blobs(
        &self,
        store: &Store,
        blobs: &[(Digest, u64)],
        progress: &(dyn Fn(BlobProgress) + Send + Sync),
    ) -> Result<BlobProgress, FleetError> {
        self.send_blobs(store, blobs, progress).await
    }

    fn listen(&self, listener: Listener) {
        self.listen(listener);
    }
}
