//! What can go wrong with a registry.

use jiji_model::digest::Digest;
use jiji_model::image::Platform;
use jiji_store::StoreError;

/// Why a registry's content could not be had or sent. `what` names the thing that was asked for: `manifest web:v1`, `blob sha256:…`.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No answer came: name resolution, connection, TLS, or a time limit.
    #[error("reach `{registry}` for {what}")]
    Unreachable {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// TLS connections cannot be set up on this machine, for lack of root certificates most often.
    #[error("set up TLS connections")]
    Tls {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry wants other credentials, or some.
    #[error("sign in to `{registry}` for {what}: {}", if *.with_credentials { "the credentials are refused" } else { "it wants credentials" })]
    Unauthorized {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// Whether credentials were known.
        with_credentials: bool,
    },
    /// The credentials are known and do not allow this.
    #[error("get leave from `{registry}` for {what}: {message}")]
    Denied {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// The registry's words.
        message: String,
    },
    /// The registry does not have it.
    #[error("find {what} on `{registry}`")]
    NotFound {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants fewer requests.
    #[error("ask `{registry}` for {what}: too many requests")]
    RateLimited {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Another answer than the protocol has.
    #[error("get {what} from `{registry}`: it answers {status}{}", words(.message))]
    Refused {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// HTTP status; 400 where the client library reports an error by its code alone.
        status: u16,
        /// The registry's words, perhaps none.
        message: String,
    },
    /// The registry sent other bytes than the digest that was asked for.
    #[error("verify {what} from `{registry}`: expected `{expected}`, got `{actual}`")]
    DigestMismatch {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// The digest that was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The registry sent, or announced, another length than the manifest says.
    #[error("verify `{digest}` from `{registry}`: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// `HOST[:PORT]`.
        registry: String,
        /// The blob.
        digest: Digest,
        /// The length in the manifest, in bytes.
        expected: u64,
        /// What came, in bytes: at least so many, where the sending was cut off.
        actual: u64,
    },
    /// The connection broke, again and again.
    #[error("receive `{digest}` from `{registry}`: {received} of {size} bytes came")]
    Interrupted {
        /// `HOST[:PORT]`.
        registry: String,
        /// The blob.
        digest: Digest,
        /// What came, in bytes. It is kept for the next time.
        received: u64,
        /// The blob's length, in bytes.
        size: u64,
    },
    /// Longer than is ever taken.
    #[error("take {what} from `{registry}`: longer than {limit} bytes")]
    TooLarge {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A manifest or configuration is not what its specification says.
    #[error("read {what} from `{registry}`: {reason}")]
    Malformed {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A kind of content that jiji does not take.
    #[error("take {what} from `{registry}`: media type `{media_type}` is not supported")]
    Unsupported {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its media type.
        media_type: String,
    },
    /// The image is not made for the platform that was asked for.
    #[error("find {what} for {platform} on `{registry}`: it is made for {available}")]
    NoPlatform {
        /// `HOST[:PORT]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// The platform that was asked for.
        platform: Platform,
        /// The platforms there are.
        available: String,
    },
    /// A blob that is to be pushed is neither in the store, nor on the registry, nor on one that a base came from.
    #[error("find `{digest}` to push it to `{registry}`")]
    NothingToPush {
        /// `HOST[:PORT]`.
        registry: String,
        /// The blob.
        digest: Digest,
    },
    /// It is not in the store, and nobody may be asked.
    #[error("find {what} without asking anybody: the store does not have it")]
    Offline {
        /// What is missing.
        what: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn words(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl RegistryError {
    /// What a person can do, where it is not said by the error itself.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => Some(
                "check the name, the network, and whether the registry speaks plain HTTP (`http://HOST:PORT`); `SSL_CERT_FILE` names certificates of one's own",
            ),
            Self::Tls { .. } => Some("install the system's root certificates (package `ca-certificates`)"),
            Self::Unauthorized { with_credentials: false, .. } => Some(
                "set `builder.registry.username` and `password` in deploy.yml; registries say this of what does not exist, too",
            ),
            Self::Unauthorized { with_credentials: true, .. } | Self::Denied { .. } => {
                Some("check the user name, the secret, and what the account may do with this repository")
            }
            Self::NotFound { .. } => {
                Some("check the repository and the tag; a digest that is gone was deleted on the registry")
            }
            Self::RateLimited { .. } => Some("wait, sign in, or name a mirror under `builder.registry.mirrors`"),
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => {
                Some("the registry or something before it changed the content; nothing of it was kept")
            }
            Self::Interrupted { .. } => Some("run the command again: what came is kept and the rest is asked for"),
            Self::Offline { .. } => Some("run once without `--offline`: what is fetched stays in the store"),
            Self::NothingToPush { .. } => Some("build again with the base's layers in the store"),
            Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::Unsupported { .. }
            | Self::NoPlatform { .. }
            | Self::Store(_) => None,
        }
    }

    /// Whether the same request may go well a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::RateLimited { .. } | Self::Interrupted { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }
}
