//! Who may change a project on a host, until when.
//!
//! A lease is kept per host and project and changed only under a file lock. It expires by the time since boot, never by the wall clock, and
//! belongs to one session of `jiji-host`: when that process is gone, so is the lease. Its fencing number only grows.

use serde::{Deserialize, Serialize};

/// A lease as recorded on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Format of this record, [`Lease::VERSION`].
    pub version: u32,
    /// A random id of the run of jiji that holds it.
    pub holder: String,
    /// `user@machine`, for people.
    pub who: String,
    /// The fencing number.
    pub fencing: u64,
    /// The boot in which it was granted; in another one it is void.
    pub boot_id: String,
    /// `CLOCK_BOOTTIME` milliseconds at which it was granted; 0 in records of a jiji that did not write it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub granted_ms: u64,
    /// `CLOCK_BOOTTIME` milliseconds at which it expires.
    pub expires_ms: u64,
    /// Process group of the session that holds it.
    pub session: i32,
    /// Start time of that process in clock ticks since boot, so that a reused number is not taken for it.
    pub session_start: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Lease {
    /// The version that this jiji writes and reads.
    pub const VERSION: u32 = 1;
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The project's scope.
    pub scope: String,
    /// Random id of the run of jiji.
    pub holder: String,
    /// `user@machine`, for people.
    pub who: String,
    /// Fencing number: higher than any that the fleet has seen.
    pub fencing: u64,
    /// Milliseconds until it expires without a heartbeat.
    pub ttl_ms: u64,
}

/// The time and process that a decision is made in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment<'a> {
    /// The kernel's id of this boot.
    pub boot_id: &'a str,
    /// `CLOCK_BOOTTIME` in milliseconds.
    pub now_ms: u64,
    /// The asking session's process group and start time.
    pub session: (i32, u64),
}

/// What a host answers to a [`LeaseRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseDecision {
    /// Granted, and written.
    Granted(Lease),
    /// Somebody else holds it.
    Held(Lease),
    /// The number is not higher than one already granted here.
    Stale {
        /// The highest number granted.
        highest: u64,
    },
}

/// Whether a recorded lease still counts. `session_alive` tells whether the process that holds it runs.
pub fn live(lease: &Lease, boot_id: &str, now_ms: u64, session_alive: bool) -> bool {
    session_alive && lease.boot_id == boot_id && now_ms < lease.expires_ms
}

/// Decides a request. `current` comes with whether its session's process is alive; `highest` is the highest number ever granted here.
pub fn decide(
    request: &LeaseRequest,
    current: Option<(&Lease, bool)>,
    highest: u64,
    moment: &Moment<'_>,
) -> LeaseDecision {
    if let Some((lease, alive)) = current
        && lease.holder != request.holder
        && live(lease, moment.boot_id, moment.now_ms, alive)
    {
        return LeaseDecision::Held(lease.clone());
    }
    let renewed = current.filter(|(lease, _)| lease.holder == request.holder && lease.fencing == request.fencing);
    if request.fencing <= highest && renewed.is_none() {
        return LeaseDecision::Stale { highest };
    }
    LeaseDecision::Granted(Lease {
        version: Lease::VERSION,
        holder: request.holder.clone(),
        who: request.who.clone(),
        fencing: request.fencing,
        boot_id: moment.boot_id.to_owned(),
        granted_ms: renewed.map_or(moment.now_ms, |(lease, _)| lease.granted_ms),
        expires_ms: moment.now_ms.saturating_add(request.ttl_ms),
        session: moment.session.0,
        session_start: moment.session.1,
    })
}

/// Why a lease that was held cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// A newer holder took it, or it was given back.
    Taken,
    /// It expired. It revives when the operator is heard again before somebody takes it.
    Expired,
}

/// Whether `held` is still what stands recorded: the same run, the same number, the same session.
pub fn is_held(held: &Lease, recorded: Option<&Lease>) -> bool {
    recorded.is_some_and(|recorded| {
        (&recorded.holder, recorded.fencing, recorded.session, recorded.session_start)
            == (&held.holder, held.fencing, held.session, held.session_start)
    })
}

/// Whether the session that holds `held` may change something at `now_ms`, by what stands recorded.
///
/// # Errors
/// [`Gone`] when it may not.
pub fn guard(held: &Lease, recorded: Option<&Lease>, now_ms: u64) -> Result<(), Gone> {
    if !is_held(held, recorded) {
        Err(Gone::Taken)
    } else if now_ms >= held.expires_ms {
        Err(Gone::Expired)
    } else {
        Ok(())
    }
}

/// When a session that holds `held` gives its operator up, who was not heard for twice `ttl_ms` by then: a line that went silent tells
/// nobody. Until it does, an operator who comes back revives the lease.
pub fn given_up_ms(held: &Lease, ttl_ms: u64) -> u64 {
    held.expires_ms.saturating_add(ttl_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(holder: &str, fencing: u64) -> LeaseRequest {
        LeaseRequest { scope: "shop".into(), holder: holder.into(), who: "a@b".into(), fencing, ttl_ms: 1000 }
    }

    fn moment(now_ms: u64) -> Moment<'static> {
        Moment { boot_id: "boot", now_ms, session: (7, 1) }
    }

    fn granted(decision: LeaseDecision) -> Lease {
        match decision {
            LeaseDecision::Granted(lease) => lease,
            other => panic!("expected a grant, got {other:?}"),
        }
    }

    #[test]
    fn a_live_lease_is_held_against_others_and_renewed_by_its_holder() {
        let lease = granted(decide(&request("a", 1), None, 0, &moment(0)));
        assert!(matches!(decide(&request("b", 2), Some((&lease, true)), 1, &moment(999)), LeaseDecision::Held(_)));
        let renewed = granted(decide(&request("a", 1), Some((&lease, true)), 1, &moment(500)));
        assert_eq!((renewed.granted_ms, renewed.expires_ms), (0, 1500));
    }

    #[test]
    fn an_expired_lease_a_dead_session_and_another_boot_free_it() {
        let lease = granted(decide(&request("a", 1), None, 0, &moment(0)));
        granted(decide(&request("b", 2), Some((&lease, true)), 1, &moment(1000)));
        granted(decide(&request("b", 2), Some((&lease, false)), 1, &moment(1)));
        let rebooted = Moment { boot_id: "other", now_ms: 1, session: (7, 1) };
        granted(decide(&request("b", 2), Some((&lease, true)), 1, &rebooted));
    }

    #[test]
    fn an_operator_is_given_up_once_the_lease_has_been_void_for_as_long_as_it_lasts() {
        let lease = granted(decide(&request("a", 1), None, 0, &moment(500)));
        assert_eq!((lease.expires_ms, given_up_ms(&lease, 1000)), (1500, 2500));
        assert_eq!(given_up_ms(&lease, u64::MAX), u64::MAX);
    }

    #[test]
    fn a_number_that_does_not_grow_is_refused() {
        assert_eq!(decide(&request("b", 3), None, 3, &moment(0)), LeaseDecision::Stale { highest: 3 });
    }
}
