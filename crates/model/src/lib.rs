//! The words that every room of jiji shares, and the pure rules that go with them.
//!
//! Nothing here does I/O, reads a clock or draws randomness: a value of these types means the same on the operator's machine and on
//! a server. Rooms that act (`store`, `fleet`, `apply`, `jiji-host`) meet in these words and nowhere else.
//!
//! | room | what it holds |
//! | --- | --- |
//! | [`digest`] | SHA-256 names of content |
//! | [`commit`] | names of commits of git repositories |
//! | [`name`] | names that were checked once at the edge and are trusted after |
//! | [`reference`] | where an image is to be had: registry, repository, tag or digest |
//! | [`secret`] | values that cannot be printed |
//! | [`project`] | a validated deployment: servers, services, builder |
//! | [`image`] | what identifies an image, and the blobs it is made of |
//! | [`observation`] | what may be asked of a host, and what it answers |
//! | [`plan`] | steps, phases, words, and what a plugin is allowed to ask for |
//! | [`probe`] | health probes as data, and the timeline they leave |
//! | [`mesh`] | the interface between servers, and what a host tells of it |
//! | [`route`] | how requests reach a service: what a proxy plugin is asked for |
//! | [`shared`] | values that many records hold and that lie in memory once |
//! | [`transaction`] | lease, journal, settlement, release and audit records, and their transitions |
//! | [`protocol`] | the frames between the operator and `jiji-host` |
//! | [`log`] | logs made short, for evidence |
//! | [`event`] | the envelope of everything that people and machines watch |

pub mod commit;
pub mod digest;
pub mod event;
pub mod image;
pub mod log;
pub mod mesh;
pub mod name;
pub mod observation;
pub mod plan;
pub mod probe;
pub mod project;
pub mod protocol;
pub mod reference;
pub mod route;
pub mod secret;
pub mod shared;
pub mod transaction;
