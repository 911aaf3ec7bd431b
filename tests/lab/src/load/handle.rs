//! What a test holds of a running load.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    LoadSpec,
    report::{Progress, Report},
    worker::{self, Word},
};
use crate::{Lab, LabError};

/// Seconds since 1970, by the clock that reports use: the time of an event, to be compared with a [`Report`].
pub fn unix_time() -> f64 {
    worker::unix_time()
}

/// A load that runs. Dropped without [`Load::stop`] it ends without a report.
#[derive(Debug)]
pub struct Load {
    child: Child,
    order: PathBuf,
    progress: Arc<Mutex<Progress>>,
    reader: Option<JoinHandle<Result<Report, LabError>>>,
}

impl Lab {
    /// Starts a load where the operator is, and returns when the first requests are answered.
    pub fn start_load(&self, spec: &LoadSpec) -> Result<Load, LabError> {
        let order = tempfile::Builder::new()
            .prefix("load-")
            .suffix(".json")
            .tempfile_in(&self.record().dir)
            .map_err(LabError::file("create", &self.record().dir))?
            .into_temp_path()
            .keep()
            .map_err(|error| LabError::Load { reason: error.to_string() })?;
        let text = serde_json::to_vec(spec).map_err(LabError::json("the load's order"))?;
        std::fs::write(&order, text).map_err(LabError::file("write", &order))?;
        let mut command = self.operator_command(self.program());
        command.arg("loader").arg(&order).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|source| LabError::NoProgram { program: crate::command::argv(&command), source })?;
        let Some(stdout) = child.stdout.take() else {
            return Err(LabError::Load { reason: "the generator has no standard output".to_owned() });
        };
        let progress = Arc::new(Mutex::new(Progress::default()));
        let shared = Arc::clone(&progress);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let line = line.map_err(LabError::system("hear the load generator"))?;
                match serde_json::from_str(&line).map_err(LabError::json("what the load saw"))? {
                    Word::Progress(now) => *shared.lock().unwrap_or_else(PoisonError::into_inner) = now,
                    Word::Report(report) => return Ok(report),
                }
            }
            Err(LabError::Load { reason: "the generator ended without a report".to_owned() })
        });
        let mut load = Load { child, order, progress, reader: Some(reader) };
        load.wait(Duration::from_secs(20), |progress| progress.good + progress.failed > 0)?;
        Ok(load)
    }

    /// Runs a load to its end.
    pub fn load(&self, spec: &LoadSpec) -> Result<Report, LabError> {
        self.start_load(spec)?.finish()
    }

    /// Runs a load without any change beside it and refuses one in which anything failed.
    pub fn baseline(&self, spec: &LoadSpec) -> Result<Report, LabError> {
        let report = self.load(spec)?;
        report.without_failure()?;
        Ok(report)
    }

    /// Runs a load while `wrong` does something that must fail requests, and refuses one in which nothing failed.
    pub fn negative_control<E: From<LabError>>(
        &self,
        spec: &LoadSpec,
        wrong: impl FnOnce() -> Result<(), E>,
    ) -> Result<Report, E> {
        let load = self.start_load(spec)?;
        wrong()?;
        std::thread::sleep(Duration::from_secs(1));
        let report = load.stop()?;
        report.with_failures()?;
        Ok(report)
    }
}

impl Load {
    /// Counts so far, a tenth of a second old at most.
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the counts are as asked.
    pub fn wait(&mut self, limit: Duration, mut until: impl FnMut(&Progress) -> bool) -> Result<(), LabError> {
        let deadline = Instant::now() + limit;
        loop {
            if until(&self.progress()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(LabError::Load { reason: format!("not seen in time: {:?}", self.progress()) });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops sending, waits for what is under way, and gives the report.
    pub fn stop(mut self) -> Result<Report, LabError> {
        drop(self.child.stdin.take());
        self.take_report()
    }

    /// Waits until the run is over by itself and gives the report.
    pub fn finish(mut self) -> Result<Report, LabError> {
        self.take_report()
    }

    fn take_report(&mut self) -> Result<Report, LabError> {
        let gone = || LabError::Load { reason: "the generator's reader is gone".to_owned() };
        self.reader.take().ok_or_else(gone)?.join().map_err(|_| gone())?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.order));
    }
}
