//! Whether hosts are fit for a plan: asks the last thing that must be known, and refuses before anything is begun.

use jiji_model::name::HostName;
use jiji_model::observation::Observation;

use super::look::Wants;
use super::{Ship, ShipError};
use crate::deploy::preflight::{self, Finding, Now, Severity};
use crate::deploy::{Assembled, Desired, Images, PlanError, Refused};
use crate::fleet::Fleet;

impl Ship {
    /// The operator's clock, right after a look.
    pub(super) fn now(&self) -> Now {
        Now((self.clock)())
    }

    /// Refuses a plan that hosts are not fit for, with everything that is wrong with each; warnings become notes. Where containers are to
    /// publish ports, hosts are asked who has them, which a fleet that is as it should be never needs.
    pub(super) async fn fit(
        &self,
        fleet: &Fleet,
        desired: &Desired,
        assembled: &mut Assembled,
        observation: &mut Observation,
        now: Now,
    ) -> Result<(), ShipError> {
        let wants = |host: &HostName| Some((host.clone(), vec![preflight::ports_want(&assembled.plan, host)?]));
        let wants: Wants = fleet.sessions.keys().filter_map(wants).collect();
        if !wants.is_empty() {
            self.ask(fleet, &wants, observation).await?;
        }
        let mut findings = preflight::hosts(&self.project, observation, now);
        findings.extend(preflight::plan(&assembled.plan, desired, observation));
        let notes = refuse(findings, Vec::new())?;
        assembled.notes.extend(notes.into_iter().map(|finding| (finding.host, finding.what.to_string())));
        Ok(())
    }

    /// What there is to say where no plan could be made: what is wrong with hosts first, since a plan may fail for that alone.
    pub(super) fn unfit(&self, images: &Images, observation: &Observation, refused: Refused, now: Now) -> ShipError {
        let (more, errors) = preflight::of_errors(refused.0.clone());
        let mut findings = preflight::hosts(&self.project, observation, now);
        findings.extend(preflight::without_plan(&self.project, images, observation));
        findings.extend(more);
        match refuse(findings, errors) {
            Ok(_) => ShipError::Refused(refused),
            Err(error) => error,
        }
    }
}

/// The warnings, or the error that all findings are together.
fn refuse(mut findings: Vec<Finding>, errors: Vec<PlanError>) -> Result<Vec<Finding>, ShipError> {
    findings.sort_by(|one, other| one.host.cmp(&other.host));
    if findings.iter().all(|finding| finding.what.severity() == Severity::Warning) {
        return Ok(findings);
    }
    Err(ShipError::Unfit { findings, errors })
}
