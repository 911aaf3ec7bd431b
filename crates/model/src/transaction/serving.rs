//! Which containers must run once a transaction is settled, told from its journal alone.
//!
//! A host that lost power may start nothing again by itself (Podman does not), or something that was on its way out. Whoever settles the
//! transaction there first starts what serves the way that it was settled; without it a route cannot be taken back, because the proxy
//! that is asked does not run, and what is routed to does not either.

use std::collections::BTreeSet;

use crate::plan::{Action, Step};

use super::{Decision, Transaction};

/// A container of the project, or one that projects share, as it stands on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing<'c> {
    /// Its name.
    pub name: &'c str,
    /// Whether projects share it: a proxy.
    pub shared: bool,
    /// Whether it is there and nothing of it runs.
    pub stopped: bool,
    /// Whether it was made to be started again by the engine. One that was not ends when its work is done.
    pub restarts: bool,
}

/// The containers that must run, and do not, before anything else is done about a transaction: of those that stand here, in their order,
/// what projects share last, so that it finds what it routes to. None while nothing is settled.
///
/// - It is to be reverted: what ran when it began, which is what it would have stopped later or left alone. A candidate stays stopped,
///   also where its undo has not come yet.
/// - It is committed: what it leaves running. What it has stopped, or is about to, stays stopped.
/// - What projects share, unless the transaction takes it away.
pub fn to_start<'c>(open: &Transaction, containers: &[Standing<'c>]) -> Vec<&'c str> {
    let Some(settlement) = open.settlement.filter(|_| open.is_open()) else { return Vec::new() };
    let (serves, goes) = match settlement.decision {
        Decision::Revert => before(open),
        Decision::Commit => after(open),
    };
    let due = |container: &&Standing<'c>| {
        let wanted = container.shared || serves.contains(container.name);
        container.stopped && container.restarts && wanted && !goes.contains(container.name)
    };
    let (shared, own): (Vec<&Standing<'c>>, Vec<&Standing<'c>>) =
        containers.iter().filter(due).partition(|container| container.shared);
    own.into_iter().chain(shared).map(|container| container.name).collect()
}

/// What ran when it began, and what a revert removes.
fn before(open: &Transaction) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let goes = open.begin.steps.iter().filter_map(|step| ends(step.undo.as_ref()?)).collect();
    let later = open.begin.steps.iter().filter(|step| !step.phase.before_decided());
    let stopped = later.filter_map(|step| match &step.action {
        Action::ContainerStop { name, .. } => Some(name.as_str()),
        _ => None,
    });
    // A candidate is among the services too; it goes.
    (stopped.chain(services(open)).collect(), goes)
}

/// What runs once it is committed, and what does not any more.
fn after(open: &Transaction) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let mut serves: BTreeSet<&str> = services(open).collect();
    let mut goes = BTreeSet::new();
    for Step { action, .. } in &open.begin.steps {
        // What is said last of a container counts: one may be stopped for another of its name.
        if let Some(name) = ends(action) {
            serves.remove(name);
            goes.insert(name);
        }
        let begins = match action {
            Action::ContainerRun(spec) => Some(spec.name.as_str()),
            Action::ContainerStart { name } => Some(name.as_str()),
            _ => None,
        };
        if let Some(name) = begins {
            goes.remove(name);
            serves.insert(name);
        }
    }
    (serves, goes)
}

fn services(open: &Transaction) -> impl Iterator<Item = &str> {
    open.begin.services.values().map(|service| service.container.as_str())
}

/// The container that does not run after an action.
fn ends(action: &Action) -> Option<&str> {
    match action {
        Action::ContainerStop { name, .. } | Action::ContainerRemove { name } => Some(name.as_str()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::Digest;
    use crate::name::{ContainerName, HostName};
    use crate::plan::{ContainerImage, ContainerSpec, NETWORK, Phase};
    use crate::transaction::{Begin, Settlement};

    fn name(name: &str) -> ContainerName {
        ContainerName::new(name).expect("a name")
    }

    fn run(container: &str) -> Action {
        Action::ContainerRun(Box::new(ContainerSpec {
            name: name(container),
            image: ContainerImage::Pinned { reference: String::new() },
            network: NETWORK.to_owned(),
            address: None,
            env: BTreeMap::new().into(),
            labels: BTreeMap::new().into(),
            mounts: Vec::new(),
            publish: Vec::new(),
            entrypoint: None,
            command: None,
            user: None,
            restart: true,
            stop_timeout_s: 1,
        }))
    }

    fn stop(container: &str) -> Action {
        Action::ContainerStop { name: name(container), timeout_s: 1 }
    }

    fn remove(container: &str) -> Action {
        Action::ContainerRemove { name: name(container) }
    }

    fn transaction(steps: Vec<(Phase, Action, Option<Action>)>, decision: Option<Decision>) -> Transaction {
        let host = HostName::new("one").expect("a name");
        let step = |(phase, action, undo)| Step { undo, ..Step::new(&host, phase, "step", action) };
        let mut open = Transaction::new(Begin {
            version: Begin::VERSION,
            transaction: "t".into(),
            scope: "shop".into(),
            fencing: 4,
            who: "a@b".into(),
            command: "ship".into(),
            at_s: 0,
            plan: Digest::of("plan"),
            hosts: vec![host.clone()],
            addresses: BTreeMap::new(),
            host: host.clone(),
            steps: steps.into_iter().map(step).collect(),
            services: BTreeMap::new(),
        });
        open.settlement = decision.map(|decision| Settlement { decision, fencing: 4 });
        open
    }

    fn update(decision: Option<Decision>) -> Transaction {
        transaction(
            vec![
                (Phase::Prepare, run("web-2"), Some(remove("web-2"))),
                (Phase::Drain, stop("web-1"), None),
                (Phase::Finalize, remove("web-1"), None),
                (Phase::Finalize, remove("web-0"), None),
            ],
            decision,
        )
    }

    /// All that could stand there after a loss of power, the proxy first.
    fn all<'c>(shared: &'c [&'c str], own: &'c [&'c str]) -> Vec<Standing<'c>> {
        let standing = |shared| move |name: &&'c str| Standing { name, shared, stopped: true, restarts: true };
        shared.iter().map(standing(true)).chain(own.iter().map(standing(false))).collect()
    }

    #[test]
    fn a_revert_needs_what_ran_before_and_a_commit_what_runs_after() {
        let here = all(&["proxy"], &["web-0", "web-1", "web-2", "other"]);
        for (decision, due) in [
            (None, &[][..]),
            (Some(Decision::Revert), &["web-1", "proxy"]),
            (Some(Decision::Commit), &["web-2", "proxy"]),
        ] {
            assert_eq!(to_start(&update(decision), &here), due, "{decision:?}");
        }
    }

    #[test]
    fn what_runs_what_is_not_there_and_what_ends_by_itself_is_not_started() {
        let mut here = all(&["proxy"], &["web-1"]);
        here[0].stopped = false;
        here[1].restarts = false;
        assert!(to_start(&update(Some(Decision::Revert)), &here).is_empty());
        assert!(to_start(&update(Some(Decision::Revert)), &[]).is_empty());
    }

    #[test]
    fn nothing_is_started_for_a_transaction_that_was_concluded() {
        let mut over = update(Some(Decision::Commit));
        over.concluded = true;
        assert!(to_start(&over, &all(&["proxy"], &["web-1", "web-2"])).is_empty());
    }

    #[test]
    fn a_proxy_that_bridges_an_upgrade_goes_either_way_and_its_successor_stays() {
        let upgrade = |decision| {
            let steps = vec![
                (Phase::Prepare, run("bridge"), Some(remove("bridge"))),
                (Phase::Withdraw, stop("proxy"), None),
                (Phase::Withdraw, run("proxy"), None),
                (Phase::Drain, stop("bridge"), None),
                (Phase::Finalize, remove("bridge"), None),
            ];
            transaction(steps, Some(decision))
        };
        let here = all(&["bridge", "proxy"], &[]);
        assert_eq!(to_start(&upgrade(Decision::Revert), &here), ["proxy"]);
        assert_eq!(to_start(&upgrade(Decision::Commit), &here), ["proxy"]);
    }
}
