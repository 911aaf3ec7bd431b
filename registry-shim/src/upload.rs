//! Uploads that are under way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use jiji_model::name::RepositoryName;
use jiji_store::{BlobWriter, Store};

use crate::refusal::Refusal;

/// How many uploads may be open at once. Each holds a file descriptor.
const MOST: usize = 512;
/// How long an upload that nobody goes on with is kept.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// The open uploads. A restart forgets them: clients begin again.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    open: Mutex<BTreeMap<String, Arc<Upload>>>,
}

/// One upload.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) id: String,
    repository: RepositoryName,
    /// Locked while a request's bytes are written; none once it was finished.
    pub(crate) writer: Mutex<Option<BlobWriter>>,
    /// How many bytes are here: readable while they are written.
    offset: AtomicU64,
    touched: Mutex<Instant>,
}

impl Uploads {
    /// Begins an upload.
    pub(crate) fn begin(&self, store: &Store, repository: &RepositoryName) -> Result<Arc<Upload>, Refusal> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, upload| upload.idle() < KEPT);
        if open.len() >= MOST {
            return Err(Refusal::TooManyUploads);
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| Refusal::internal(&error))?;
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let upload = Arc::new(Upload {
            id: id.clone(),
            repository: repository.clone(),
            writer: Mutex::new(Some(store.writer()?)),
            offset: AtomicU64::new(0),
            touched: Mutex::new(Instant::now()),
        });
        open.insert(id, Arc::clone(&upload));
        Ok(upload)
    }

    /// Finds an upload.
    pub(crate) fn find(&self, repository: &RepositoryName, id: &str) -> Result<Arc<Upload>, Refusal> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(id).filter(|upload| upload.repository == *repository).cloned().ok_or(Refusal::UploadUnknown)
    }

    /// Forgets an upload.
    pub(crate) fn forget(&self, id: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Upload {
    /// How many bytes came.
    pub(crate) fn offset(&self) -> u64 {
        self.offset.load(Ordering::Acquire)
    }

    /// Notes that bytes came.
    pub(crate) fn stands_at(&self, offset: u64) {
        self.offset.store(offset, Ordering::Release);
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle(&self) -> Duration {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Where the client goes on.
    pub(crate) fn location(&self) -> HeaderValue {
        let location = format!("/v2/{}/blobs/uploads/{}", self.repository, self.id);
        HeaderValue::try_from(location).expect("names and digits are a header's value")
    }
}

/// How much of an upload is here, as the `Range` header says it: the last byte's number, inclusive, and `0-0` also for nothing
/// (distribution's server does the same, and its clients know).
pub(crate) fn range(offset: u64) -> HeaderValue {
    HeaderValue::try_from(format!("0-{}", offset.saturating_sub(1))).expect("digits are a header's value")
}
