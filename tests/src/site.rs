//! One laboratory for all tests of a program, one test at a time on it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiji_lab::images::Base;
use jiji_lab::load::{LoadSpec, Report};
use jiji_lab::{Engines, Host, Lab, LabError, Spec};

use crate::Outcome;
use crate::secrecy::{self, Watch};

/// Servers' names in deploy.yml, in the order of the lab's hosts.
pub const SERVERS: [&str; 5] = ["one", "two", "three", "four", "five"];

/// A laboratory with the images that projects name in its registry.
pub struct Site {
    /// The laboratory.
    pub lab: Lab,
    /// What deploy files take from the environment.
    pub variables: Vec<(String, String)>,
    /// Watches that the suite's secret is in no argument vector.
    watch: Watch,
}

impl Site {
    /// Brings one up.
    ///
    /// # Errors
    /// When a part of it does not come up.
    pub fn up(hosts: usize, engines: Engines) -> Outcome<Self> {
        Self::of(&Spec::new(hosts, engines))
    }

    /// Brings up what a specification asks for.
    ///
    /// # Errors
    /// When a part of it does not come up.
    pub fn of(spec: &Spec) -> Outcome<Self> {
        let lab = Lab::up(spec)?;
        let mut variables = lab.record().variables();
        for image in [lab.base_image(Base::Python)?, lab.kamal_proxy_image()?] {
            variables.push((image.variable(), image.pinned));
        }
        Ok(Self { lab, variables, watch: secrecy::suite().watch_arguments() })
    }

    /// Refuses a laboratory in which the suite's secret is anywhere but where containers have it.
    ///
    /// # Errors
    /// When it is, with all places, or when a host that is up does not answer.
    pub fn keeps_the_secret(&self) -> Outcome {
        let mut places: Vec<String> = self.watch.found().into_iter().map(|argv| format!("arguments: {argv}")).collect();
        for host in self.hosts().into_iter().filter(|host| host.record().is_ok_and(|record| record.pid != 0)) {
            let found = secrecy::suite().places_on(&host)?;
            places.extend(found.into_iter().map(|place| format!("{}: {place}", host.name)));
        }
        if places.is_empty() { Ok(()) } else { Err(format!("the secret is where it must not be: {places:#?}").into()) }
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

    /// The same where many runs follow each other: slow answers take up to half a second, and so do drains, on one host after the other.
    pub fn brisk_load(&self, authority: &str, limit: Duration) -> LoadSpec {
        let mut spec = self.load(authority, limit);
        (spec.mix.slow_least, spec.mix.slow_most) = (0.2, 0.5);
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
    spec: Asked,
    site: Mutex<Option<Site>>,
}

/// What laboratory a program asks for.
enum Asked {
    Plain(usize, Engines),
    Of(fn() -> Spec),
}

/// The laboratory, for one test alone.
pub struct Guard<'a>(MutexGuard<'a, Option<Site>>);

impl std::ops::Deref for Guard<'_> {
    type Target = Site;

    fn deref(&self) -> &Site {
        self.0.as_ref().expect("a guard is made of a site that is up")
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // A test that fails says so itself.
        if let Some(site) = self.0.as_ref().filter(|_| !std::thread::panicking()) {
            site.keeps_the_secret().expect("the secret is kept");
        }
    }
}

impl Shared {
    /// One that is brought up by the first test that asks.
    pub const fn new(hosts: usize, engines: Engines) -> Self {
        Self { spec: Asked::Plain(hosts, engines), site: Mutex::new(None) }
    }

    /// The same, of another make.
    pub const fn of(spec: fn() -> Spec) -> Self {
        Self { spec: Asked::Of(spec), site: Mutex::new(None) }
    }

    /// Waits until no other test uses it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn take(&self) -> Outcome<Guard<'_>> {
        // A test that failed is no reason for the others to: each ships a project of its own.
        let mut site = self.site.lock().unwrap_or_else(PoisonError::into_inner);
        if site.is_none() {
            let spec = match self.spec {
                Asked::Plain(hosts, engines) => Spec::new(hosts, engines),
                Asked::Of(spec) => spec(),
            };
            *site = Some(Site::of(&spec)?);
        }
        Ok(Guard(site))
    }
}
