//! The frames between the operator and `jiji-host`.
//!
//! One SSH exec carries a whole ship. Both directions are a sequence of frames: a 4-byte big-endian length, one byte of [`FrameKind`], then as
//! many bytes as the length says. [`FrameKind::Message`] is JSON ([`Ask`] to the host, [`Tell`] from it); [`FrameKind::Blob`] is 32 bytes of
//! digest, 8 bytes of big-endian offset and content; [`FrameKind::Secrets`] is what [`encode_secrets`] writes. A frame is at most
//! [`MAX_FRAME`] bytes. The host answers asks in their order.
//!
//! `jiji-host` is started as `jiji-host exec`, or as `jiji-host exec --engine docker|podman` ([`OPTION_ENGINE`]) where the configuration
//! chooses; without a choice it takes the one engine that is installed and answers with none where both are. Its standard output
//! carries frames from the first byte on, its standard error is for people, and it ends when its standard input does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::{ContainerName, SecretName};
use crate::observation::{BlobFacts, Fact, RecordFile, Want};
use crate::plan::Phase;
use crate::probe::{Probe, Timeline};
use crate::secret::Secret;
use crate::transaction::audit::AuditEvent;
use crate::transaction::{Begin, LeaseDecision, LeaseRequest, Outcome, Release, Settlement};

/// Version of the protocol. The operator sends the `jiji-host` of its own version, so the two always agree; the number is checked all the
/// same.
pub const VERSION: u32 = 1;

/// The argument that starts a session.
pub const ARGUMENT_EXEC: &str = "exec";

/// The option before the engine's name that the configuration chooses.
pub const OPTION_ENGINE: &str = "--engine";

/// The option that says that everything is done as this user, with a Podman of their own.
pub const OPTION_ROOTLESS: &str = "--rootless";

/// Longest frame in bytes, without its 5-byte head.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Content bytes in a blob frame as the operator sends them.
pub const BLOB_CHUNK: usize = 256 * 1024;

/// Most content bytes of a piece that a host sends: few turns on the wire, and no more in memory than that.
pub const PIECE: usize = 2 * 1024 * 1024;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// JSON.
    Message = 0,
    /// A piece of a blob.
    Blob = 1,
    /// Secrets.
    Secrets = 2,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it holds.
    pub kind: FrameKind,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Why bytes are not frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A length beyond [`MAX_FRAME`].
    #[error("read a frame: {length} bytes, at most {MAX_FRAME}")]
    TooLong {
        /// The length.
        length: usize,
    },
    /// A kind that this version does not know.
    #[error("read a frame: unknown kind {kind}")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// A message that is not of the protocol.
    #[error("read a message")]
    Message(#[source] serde_json::Error),
    /// A blob or secrets frame that is too short or not in its form.
    #[error("read a frame: malformed {what}")]
    Malformed {
        /// Which kind of frame.
        what: &'static str,
    },
}

/// Takes bytes as they come and gives frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > MAX_FRAME {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// [`FrameError`] when the bytes are not frames; nothing after that can be trusted.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some((head, rest)) = rest.split_at_checked(5) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong { length });
        }
        let kind = match head[4] {
            0 => FrameKind::Message,
            1 => FrameKind::Blob,
            2 => FrameKind::Secrets,
            kind => return Err(FrameError::UnknownKind { kind }),
        };
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame { kind, payload: payload.to_vec() };
        self.start += 5 + length;
        Ok(Some(frame))
    }
}

fn frame(kind: FrameKind, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(5 + length);
    out.extend_from_slice(&u32::try_from(length).expect("frames are far shorter than 4 GiB").to_be_bytes());
    out.push(kind as u8);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// The bytes of a message frame.
///
/// # Panics
/// Never for the types of this module: they have string keys.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    frame(FrameKind::Message, &[&serde_json::to_vec(message).expect("protocol types are JSON")])
}

/// Reads a message frame's payload.
///
/// # Errors
/// [`FrameError::Message`] when it is none.
pub fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(FrameError::Message)
}

/// The bytes of a blob frame.
pub fn encode_blob(digest: &Digest, offset: u64, content: &[u8]) -> Vec<u8> {
    frame(FrameKind::Blob, &[digest.as_bytes(), &offset.to_be_bytes(), content])
}

/// Reads a blob frame's payload: digest, offset, content.
///
/// # Errors
/// [`FrameError::Malformed`] when it is too short.
pub fn decode_blob(payload: &[u8]) -> Result<(Digest, u64, &[u8]), FrameError> {
    let malformed = || FrameError::Malformed { what: "blob" };
    let (digest, rest) = payload.split_first_chunk::<32>().ok_or_else(malformed)?;
    let (offset, content) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
    Ok((Digest::from_bytes(*digest), u64::from_be_bytes(*offset), content))
}

/// The bytes of a secrets frame: the one way in which a [`Secret`] leaves a process.
pub fn encode_secrets(secrets: &BTreeMap<SecretName, Secret>) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, secret) in secrets {
        for text in [name.as_str(), secret.reveal()] {
            payload.extend_from_slice(&u32::try_from(text.len()).expect("a secret is short").to_be_bytes());
            payload.extend_from_slice(text.as_bytes());
        }
    }
    frame(FrameKind::Secrets, &[&payload])
}

/// Reads a secrets frame's payload.
///
/// # Errors
/// [`FrameError::Malformed`] when it is not in its form. The error holds nothing of it.
pub fn decode_secrets(mut payload: &[u8]) -> Result<BTreeMap<SecretName, Secret>, FrameError> {
    fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (text, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        *rest = after;
        std::str::from_utf8(text).ok()
    }
    let malformed = || FrameError::Malformed { what: "secrets" };
    let mut secrets = BTreeMap::new();
    while !payload.is_empty() {
        let name = text(&mut payload).and_then(|name| SecretName::new(name).ok()).ok_or_else(malformed)?;
        let value = text(&mut payload).ok_or_else(malformed)?;
        secrets.insert(name, Secret::new(value));
    }
    Ok(secrets)
}

/// What the operator sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Repeated in the answer. Grows by one.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What may be asked of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Look, change nothing. Answered by [`Reply::Facts`].
    Observe {
        /// What to look at.
        wants: Vec<Want>,
    },
    /// These blobs would be sent: which are missing? Answered by [`Reply::Blobs`]. Blob frames follow.
    Offer {
        /// The blobs with their lengths in bytes.
        blobs: Vec<(Digest, u64)>,
    },
    /// All blob frames were sent: are these whole now? Answered by [`Reply::Blobs`].
    Received {
        /// The blobs.
        digests: Vec<Digest>,
    },
    /// Send a piece of a blob of this host's own store, at most [`PIECE`] bytes: one blob frame comes, then [`Reply::Done`]. Without the
    /// blob no frame comes and it is refused.
    Piece {
        /// The blob.
        digest: Digest,
        /// Where the piece begins.
        offset: u64,
    },
    /// Records that are damaged are set aside, and this release is kept where the host has none of its number. Whatever is whole stays as
    /// it is. Refused while somebody else holds the lease. Answered by [`Reply::Done`].
    Repair {
        /// The project's scope.
        scope: String,
        /// The records.
        files: Vec<RecordFile>,
        /// The release.
        release: Option<Box<Release>>,
    },
    /// Take the lease. Answered by [`Reply::Lease`].
    Acquire(LeaseRequest),
    /// The operator is alive: the lease lasts. Not answered.
    Heartbeat,
    /// A transaction begins here; another one that is open is an error. Needs the lease. Answered by [`Reply::Done`].
    Begin(Box<Begin>),
    /// Run what is left of a phase. Before *decided*, the first failure stops it. Needs the lease. Answered by [`Reply::Ran`].
    Run {
        /// The phase.
        phase: Phase,
    },
    /// Somebody wants to stop: the step at work goes on to its end, but a wait for health ends at once and counts as failed, and no
    /// further step of the phase begins, nor of another that was asked already. Taken while a [`Self::Run`] is worked on or waits, whose
    /// answer then comes; at any other time it means nothing. Not answered.
    Interrupt,
    /// Record a settlement. Needs the lease. Answered by [`Reply::Done`].
    Settle(Settlement),
    /// Take back what was done, the last step first, once what was begun can take effect no more. What an undo that failed was built on
    /// is left as it is; every other one is tried. Needs the lease and a settled revert, so that no step can follow. Answered by
    /// [`Reply::Ran`].
    Undo,
    /// Nothing is left to do: keep the release, if there is one, write the audit line, close the journal. Needs the lease. Answered by
    /// [`Reply::Done`].
    Conclude {
        /// What runs now; none after a revert.
        release: Option<Box<Release>>,
        /// How many releases to keep.
        retain: u32,
        /// For the audit log.
        audit: AuditEvent,
    },
    /// Give the lease back. Answered by [`Reply::Done`].
    Release,
}

/// What the host sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Tell {
    /// First of all.
    Hello(Hello),
    /// The answer to an [`Ask`].
    Answer {
        /// The ask's id.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Something happened while an ask was worked on.
    Event(HostEvent),
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`].
    pub protocol: u32,
    /// Version of `jiji-host`.
    pub version: String,
    /// Machine architecture in Go's words.
    pub architecture: String,
    /// Whether it runs as root.
    pub root: bool,
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// To [`Request::Observe`].
    Facts(Vec<Fact>),
    /// To [`Request::Offer`] and [`Request::Received`].
    Blobs(Vec<BlobFacts>),
    /// To [`Request::Acquire`].
    Lease(LeaseDecision),
    /// It is done and recorded.
    Done,
    /// To [`Request::Run`] and [`Request::Undo`].
    Ran(RunReport),
    /// It was refused or failed before it had an effect.
    Refused {
        /// Why.
        why: RefusalKind,
        /// For people.
        message: String,
    },
}

/// Why a host refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The lease is not, or no longer, this session's.
    NoLease,
    /// Another transaction is open here.
    OpenTransaction,
    /// No transaction is open here.
    NoTransaction,
    /// What was asked does not fit the transaction's state.
    OutOfOrder,
    /// A record here was written by a newer jiji.
    NewerFormat,
    /// The plan has an action that this host does not know or cannot do.
    Unsupported,
    /// A file could not be read or written.
    Io,
    /// The host does not have what was asked for.
    Absent,
}

/// What running or undoing did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunReport {
    /// The steps that were run, in order.
    pub steps: Vec<StepReport>,
    /// The failure that stopped it; after *decided* and when undoing, the first of possibly several.
    pub failure: Option<Box<StepFailure>>,
}

/// One step's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepReport {
    /// The step's id.
    pub step: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Milliseconds it took.
    pub took_ms: u32,
}

/// Why a step failed, with what a person needs to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepFailure {
    /// The step's id.
    pub step: String,
    /// What went wrong, a lowercase fragment.
    pub cause: String,
    /// The probes, where it waited for health.
    pub timeline: Option<Timeline>,
    /// What its `evidence` asked for.
    pub evidence: Vec<EvidenceFound>,
}

/// Evidence of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceFound {
    /// The container it is about.
    pub container: ContainerName,
    /// `running`, `exited` and so on; none where it is gone.
    pub state: Option<String>,
    /// Exit code, where it ended.
    pub exit: Option<i32>,
    /// Whether the kernel ended it for memory.
    pub oom: bool,
    /// The end of its log, at most 16 KiB, secrets of this session replaced.
    pub log: String,
}

/// Something that happened on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HostEvent {
    /// A step begins.
    StepStarted {
        /// Its id.
        step: String,
        /// Whether it is being undone.
        undo: bool,
    },
    /// A step ended.
    StepEnded {
        /// Its id.
        step: String,
        /// Whether it was undone.
        undo: bool,
        /// How it ended.
        outcome: Outcome,
        /// Milliseconds it took.
        took_ms: u32,
    },
    /// A probe was made.
    Probed {
        /// The step that waits.
        step: String,
        /// The probe.
        probe: Probe,
    },
    /// A container that must run for how the transaction was settled did not, as after a loss of power, and was started.
    Revived {
        /// Its name.
        container: String,
        /// Why it could not be started, where that is so.
        cause: Option<String>,
    },
    /// The lease is lost: a newer holder took it. The session ends.
    LeaseLost,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_survive_any_split() {
        let asks: Vec<_> = (0..3).map(|id| Ask { id, request: Request::Heartbeat }).collect();
        let bytes: Vec<u8> = asks.iter().flat_map(encode).collect();
        for size in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.push(chunk);
                while let Some(frame) = decoder.next_frame().expect("frames") {
                    read.push(decode::<Ask>(&frame.payload).expect("an ask"));
                }
            }
            assert_eq!(read, asks);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_or_of_an_unknown_kind_is_refused_from_its_head() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff; 5]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong { .. })));
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 0, 9]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::UnknownKind { kind: 9 })));
    }

    proptest! {
        #[test]
        fn secrets_of_any_text_arrive_whole(values in proptest::collection::btree_map("[A-Z_][A-Z0-9_]{0,20}", ".*", 0..5)) {
            let secrets: BTreeMap<_, _> = values
                .into_iter()
                .map(|(name, value)| (SecretName::new(name).expect("a name"), Secret::new(value)))
                .collect();
            let bytes = encode_secrets(&secrets);
            prop_assert_eq!(decode_secrets(&bytes[5..]).expect("secrets"), secrets);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                let _ = decode::<Ask>(&frame.payload);
                let _ = decode_blob(&frame.payload);
                let _ = decode_secrets(&frame.payload);
            }
        }
    }
}
