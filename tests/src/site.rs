//! One laboratory for all tests of a program, one test at a time on it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiji_lab::images::Base;
use jiji_lab::load::{LoadSpec, Report};
use jiji_lab::{Engines, Host, Lab, LabError, Spec};

use crate::Outcome;

/// A laboratory with the images that projects name in its registry.
pub struct Site {
    /// The laboratory.
    pub lab: Lab,
    /// What deploy files take from the environment.
    pub variables: Vec<(String, String)>,
}

impl Site {
    /// Brings one up.
    ///
    /// # Errors
    /// When a part of it does not come up.
    pub fn up(hosts: usize, engines: Engines) -> Outcome<Self> {
        let lab = Lab::up(&Spec::new(hosts, engines))?;
        let mut variables = lab.record().variables();
        for image in [lab.base_image(Base::Python)?, lab.kamal_proxy_image()?] {
            variables.push((image.variable(), image.pinned));
        }
        Ok(Self { lab, variables })
    }

    /// The hosts in order.
    pub fn hosts(&self) -> Vec<Host> {
        self.lab.hosts()
    }

    /// A load on all hosts that lasts until it is stopped, and at most `limit`. Slow answers take up to two seconds, which is what
    /// a drain takes then.
    pub fn load(&self, authority: &str, limit: Duration) -> LoadSpec {
        let mut spec = LoadSpec::new(&self.lab, authority, limit);
        spec.mix.slow_most = 2.0;
        // Proxies, services, builds and the generator share the machine's cores. An answer that comes late is not one that is lost:
        // what is dropped is refused, reset, cut short or answered with an error, at once.
        spec.timeout = 60.0;
        spec
    }

    /// Runs a load while `work` is done, and gives both results. Requests are sent for more than a second before and after it.
    ///
    /// # Errors
    /// Those of `work`, and a generator that does not run.
    pub fn under_load<T>(&self, spec: &LoadSpec, work: impl FnOnce() -> Outcome<T>) -> Outcome<(T, Report)> {
        let mut load = self.lab.start_load(spec)?;
        load.wait(Duration::from_secs(20), |progress| progress.good + progress.failed > 800)?;
        let done = work()?;
        std::thread::sleep(Duration::from_millis(1200));
        Ok((done, load.stop()?))
    }

    /// Which versions answer now, by host: a short load, in which nothing may fail.
    ///
    /// # Errors
    /// When a request fails.
    pub fn versions(&self, authority: &str) -> Result<Vec<Vec<String>>, LabError> {
        let mut spec = self.load(authority, Duration::from_secs(1));
        spec.mix.slow = 0;
        let report = self.lab.baseline(&spec)?;
        Ok(report.targets.into_iter().map(|target| target.versions.into_keys().collect()).collect())
    }
}

/// The laboratory of a test program. It ends with the program.
pub struct Shared {
    hosts: usize,
    engines: Engines,
    site: Mutex<Option<Site>>,
}

/// The laboratory, for one test alone.
pub struct Guard<'a>(MutexGuard<'a, Option<Site>>);

impl std::ops::Deref for Guard<'_> {
    type Target = Site;

    fn deref(&self) -> &Site {
        self.0.as_ref().expect("a guard is made of a site that is up")
    }
}

impl Shared {
    /// One that is brought up by the first test that asks.
    pub const fn new(hosts: usize, engines: Engines) -> Self {
        Self { hosts, engines, site: Mutex::new(None) }
    }

    /// Waits until no other test uses it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn take(&self) -> Outcome<Guard<'_>> {
        // A test that failed is no reason for the others to: each ships a project of its own.
        let mut site = self.site.lock().unwrap_or_else(PoisonError::into_inner);
        if site.is_none() {
            *site = Some(Site::up(self.hosts, self.engines)?);
        }
        Ok(Guard(site))
    }
}
