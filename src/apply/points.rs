//! Named places in a transaction at which a test lets the operator die. Nothing in a release build.

/// Where to die, in builds that can.
#[derive(Debug, Clone, Default)]
pub(super) struct Points {
    #[cfg(any(test, feature = "abort-points"))]
    at: Option<String>,
}

impl Points {
    #[cfg(any(test, feature = "abort-points"))]
    pub(super) fn at(name: Option<String>) -> Self {
        Self { at: name }
    }

    /// Whether `name` is the place, so that hosts go one by one there.
    pub(super) fn is(&self, name: &str) -> bool {
        #[cfg(any(test, feature = "abort-points"))]
        {
            self.at.as_deref() == Some(name)
        }
        #[cfg(not(any(test, feature = "abort-points")))]
        {
            let _ = name;
            false
        }
    }

    /// Dies here, if `name` is the place: the process with the feature, the future in this crate's own tests. With the feature and
    /// `trace:FILE` in place of a name, the file gets a line for every place that is passed, so that a test asks for them.
    pub(super) async fn pass(&self, name: &str) {
        #[cfg(all(feature = "abort-points", not(test)))]
        if let Some(path) = self.at.as_deref().and_then(|at| at.strip_prefix("trace:"))
            && let Ok(mut trace) = std::fs::OpenOptions::new().create(true).append(true).open(path)
        {
            // A trace that cannot be written misses places, which the test sees.
            let _ = std::io::Write::write_all(&mut trace, format!("{name}\n").as_bytes());
        }
        if self.is(name) {
            #[cfg(all(feature = "abort-points", not(test)))]
            std::process::abort();
            #[cfg(not(all(feature = "abort-points", not(test))))]
            std::future::pending::<()>().await;
        }
    }
}
