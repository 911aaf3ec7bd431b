//! What is the same for every step on every machine: resource limits, processors, address layout.

use rustix::process::{Resource, Rlimit};
use rustix::thread::CpuSet;

use crate::sys;
use crate::wire::{Doing, During as _, Failure};

/// Soft and hard limits; `None` is infinity.
///
/// The soft limit of open files is what programs loop over and the value that everything is tested with; the hard one is
/// below what small machines allow and enough for linkers and bundlers, which raise theirs.
const LIMITS: [(Resource, Option<u64>, Option<u64>); 12] = [
    (Resource::As, None, None),
    (Resource::Core, Some(0), Some(0)),
    (Resource::Cpu, None, None),
    (Resource::Data, None, None),
    (Resource::Fsize, None, None),
    (Resource::Locks, None, None),
    (Resource::Memlock, Some(64 << 10), Some(64 << 10)),
    (Resource::Msgqueue, Some(819_200), Some(819_200)),
    (Resource::Nofile, Some(1024), Some(16_384)),
    // Counted per user of the machine, not of the sandbox: what the cgroup is for.
    (Resource::Nproc, None, None),
    (Resource::Rss, None, None),
    (Resource::Stack, Some(8 << 20), None),
];

/// Applies all of it to this process.
pub(super) fn apply(cpus: u32) -> Result<(), Failure> {
    for (resource, soft, hard) in LIMITS {
        let allowed = rustix::process::getrlimit(resource).maximum;
        // A limit of the machine's own that is lower stays: only a more privileged process could raise it.
        let lower = |wanted: Option<u64>| match (wanted, allowed) {
            (Some(wanted), Some(allowed)) => Some(wanted.min(allowed)),
            (wanted, allowed) => wanted.or(allowed),
        };
        let limit = Rlimit { current: lower(soft), maximum: lower(hard) };
        rustix::process::setrlimit(resource, limit).during(Doing::Fixed)?;
    }
    take_cpus(cpus)?;
    sys::no_randomize().during(Doing::Fixed)
}

/// Stays on `wanted` of the processors that this process may use; which ones differs, so that steps side by side do not all
/// share the first.
fn take_cpus(wanted: u32) -> Result<(), Failure> {
    let allowed = rustix::thread::sched_getaffinity(None).during(Doing::Fixed)?;
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    if usable.len() < wanted as usize {
        return Err(Failure::TooFewCpus { wanted, usable: u32::try_from(usable.len()).unwrap_or(u32::MAX) });
    }
    let here = rustix::thread::sched_getcpu();
    let first = usable.iter().position(|&cpu| cpu == here).unwrap_or(0);
    let mut chosen = CpuSet::new();
    for cpu in usable.iter().cycle().skip(first).take(wanted as usize) {
        chosen.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &chosen).during(Doing::Fixed)
}
