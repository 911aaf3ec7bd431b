//! Places at which a test can make this process die, as a power cut would.
//!
//! Only with the feature `abort-points`, which no release build has. `JIJI_HOST_ABORT_AT=POINT:TITLE` names a point and the beginning of
//! a step's title.

/// Dies here, if this is where the test wants it.
#[cfg(feature = "abort-points")]
pub(super) fn point(name: &str, title: &str) {
    let wanted = std::env::var("JIJI_HOST_ABORT_AT").unwrap_or_default();
    let (point, prefix) = wanted.split_once(':').unwrap_or((wanted.as_str(), ""));
    if point == name && title.starts_with(prefix) {
        std::process::abort();
    }
}

/// Dies here, if this is where the test wants it: never, without the feature.
#[cfg(not(feature = "abort-points"))]
pub(super) fn point(_: &str, _: &str) {}
