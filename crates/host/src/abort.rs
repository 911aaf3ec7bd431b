//! Places at which a test can make this process die, as a crash or a power cut would, or wait while the test does something to others.
//!
//! Only with the feature `abort-points`, which no release build has. Without the directory [`DIR`] on the host nothing happens there
//! either. With it, every place that is passed is written to its file `trace`, a line each, so that a test asks the program itself where
//! it can die. The file `at` says what to do where: `die LABEL` or `hold LABEL`. Before it does so it renames `at` to `hit`; one that
//! holds goes on when the file `go` appears, or after a minute.
//!
//! A label is a stage, what it is about, and which time this process passes the two: `synced started cutover route#1`. Stages of an entry
//! of the journal are `torn` (half of the line is written, as after a power cut; only to die at), `written`, `synced`; those of a record
//! that is replaced whole are `unsynced`, `unnamed`, `named`.

#[cfg(feature = "abort-points")]
pub(crate) use with_points::{point, torn};

/// Where tests put what they want.
#[cfg(feature = "abort-points")]
const DIR: &str = "/run/jiji-abort-points";

#[cfg(feature = "abort-points")]
mod with_points {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Write as _;
    use std::path::Path;
    use std::sync::{Mutex, PoisonError};
    use std::time::{Duration, Instant};

    use super::DIR;

    /// How often each place was passed.
    static PASSED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

    /// Passes a place: dies or waits here, if this is where the test wants it.
    pub(crate) fn point(stage: &str, what: impl FnOnce() -> String) {
        pass(stage, what, None);
    }

    /// The same for a place at which only half of something is written, which `half` does. Nobody waits here.
    pub(crate) fn torn(what: impl FnOnce() -> String, half: &mut dyn FnMut()) {
        pass("torn", what, Some(half));
    }

    fn pass(stage: &str, what: impl FnOnce() -> String, half: Option<&mut dyn FnMut()>) {
        let dir = Path::new(DIR);
        if !dir.is_dir() {
            return;
        }
        let place = format!("{stage} {}", what());
        let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
        let times = passed.entry(place.clone()).or_default();
        *times += 1;
        let label = format!("{place}#{times}");
        if let Ok(mut trace) = fs::OpenOptions::new().create(true).append(true).open(dir.join("trace")) {
            // A trace that cannot be written misses places, which the test sees.
            let _ = trace.write_all(format!("{label}\n").as_bytes());
        }
        let at = fs::read_to_string(dir.join("at")).unwrap_or_default();
        let Some((order, wanted)) = at.trim_end().split_once(' ') else { return };
        if wanted != label || fs::rename(dir.join("at"), dir.join("hit")).is_err() {
            return;
        }
        match (order, half) {
            ("hold", None) => {
                let begun = Instant::now();
                while !dir.join("go").exists() && begun.elapsed() < Duration::from_secs(60) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            (_, half) => {
                if let Some(half) = half {
                    half();
                }
                std::process::abort();
            }
        }
    }
}

/// Passes a place; nothing, without the feature.
#[cfg(not(feature = "abort-points"))]
pub(crate) fn point(_: &str, _: impl FnOnce() -> String) {}

/// Passes a place; nothing, without the feature.
#[cfg(not(feature = "abort-points"))]
pub(crate) fn torn(_: impl FnOnce() -> String, _: &mut dyn FnMut()) {}
