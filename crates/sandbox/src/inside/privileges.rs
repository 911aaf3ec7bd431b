//! What the command may ask of the kernel: Docker's default capabilities, and not the system calls that a build never needs and
//! an escape does.
//!
//! `no_new_privs` is not set: a `USER` that calls `sudo` is common in Dockerfiles, and what it can become is the step's root, who
//! is bounded by the same capabilities and the same filter.

use std::collections::BTreeMap;

use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, Uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use super::accounts::User;
use crate::step::{Network, Source};
use crate::sys;
use crate::wire::{Doing, During as _, Failure, Run};

/// Docker's default (moby, oci/caps/defaults.go).
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// What a step may ask of the kernel.
pub(super) struct Rights {
    kept: CapabilitySet,
    filters: Vec<BpfProgram>,
    /// Whether names of sockets that are no files are this step's alone.
    scoped: bool,
}

impl Rights {
    /// A step with the machine's network can neither listen to others' packets nor stand in for a service of the machine, and the names of
    /// sockets that are no files (unix(7), "abstract") are the network's: some of the machine's own services do what anybody says who
    /// reaches them there (CVE-2020-15257). Landlock closes that door since Linux 6.12; before, such a step has no sockets of that family, unless
    /// it is given one.
    pub(super) fn of(run: &Run) -> Result<Self, Failure> {
        let given = run.mounts.iter().any(|mount| matches!(mount.source, Source::Socket(_)));
        let (kept, families, scoped) = match run.network {
            Network::None => (KEPT, &FAMILIES[..], false),
            Network::Machine => {
                let kept = KEPT.difference(CapabilitySet::NET_RAW.union(CapabilitySet::NET_BIND_SERVICE));
                let scoped = sys::landlock_version() >= SCOPES;
                (kept, if scoped || given { &OF_THE_MACHINE[..] } else { &OF_THE_MACHINE[1..] }, scoped)
            }
        };
        Ok(Self { kept, filters: filters(families)?, scoped })
    }
}

/// Makes this process the step's user with the step's rights. The filters go in while it may still add them. A namespace of one user sets no
/// groups: there is one, and nobody has another.
pub(super) fn become_user(user: &User, rights: &Rights, sets_groups: bool) -> Result<(), Failure> {
    if rights.scoped {
        sys::scope_abstract_sockets().during(Doing::Privileges)?;
    }
    bound(rights.kept)?;
    let groups: Vec<Gid> = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    if sets_groups {
        rustix::thread::set_thread_groups(&groups).during(Doing::Privileges)?;
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).during(Doing::Privileges)?;
    install(&rights.filters)?;
    // From root to another user the kernel takes all capabilities away by itself.
    rustix::thread::set_thread_res_uid(uid, uid, uid).during(Doing::Privileges)?;
    if user.uid == 0 {
        hold(rights.kept)?;
    }
    Ok(())
}

/// Leaves this process, the first of the sandbox, no rights at all.
pub(super) fn give_up(rights: &Rights) -> Result<(), Failure> {
    bound(CapabilitySet::empty())?;
    install(&rights.filters)?;
    hold(CapabilitySet::empty())
}

/// No program started from here on can have more than `kept`, be it setuid or not.
fn bound(kept: CapabilitySet) -> Result<(), Failure> {
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::empty()).during(Doing::Privileges)?;
    rustix::thread::clear_ambient_capability_set().during(Doing::Privileges)?;
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        // The first number that the kernel does not know ends the list.
        match rustix::thread::capability_is_in_bounding_set(one) {
            Ok(true) if !kept.contains(one) => {
                rustix::thread::remove_capability_from_bounding_set(one).during(Doing::Privileges)?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    Ok(())
}

fn hold(kept: CapabilitySet) -> Result<(), Failure> {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).during(Doing::Privileges)
}

fn install(filters: &[BpfProgram]) -> Result<(), Failure> {
    filters.iter().try_for_each(|filter| sys::seccomp(filter)).during(Doing::Privileges)
}

/// Namespace flags of clone(2) and unshare(2) (linux/sched.h): time, mount, cgroup, uts, ipc, user, pid, net.
const NAMESPACE_FLAGS: [u64; 8] =
    [0x0000_0080, 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// Address families a step may use: unix, inet, inet6, netlink, packet. The others reach beyond the network namespace (vsock,
/// bluetooth) or into parts of the kernel that builds have no business in.
const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];
/// The same with the machine's network: packet would reach below it.
const OF_THE_MACHINE: [u64; 4] = [1, 2, 10, 16];
/// The version of Landlock that knows of sockets whose names are no files (Linux 6.12).
const SCOPES: i64 = 6;

/// Answered with "not permitted": mounts, namespaces, other processes' kernels, clocks, modules, keys, and what has been a way out.
const DENIED: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_acct,
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// `kexec_file_load(2)`, which libc does not know on every architecture.
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: libc::c_long = 320;
/// As above; the number all newer architectures share (asm-generic/unistd.h).
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: libc::c_long = 294;

/// `open_tree_attr(2)`, Linux 6.15; the same number on every architecture.
const OPEN_TREE_ATTR: libc::c_long = 467;

/// The first number above all that were judged here (Linux 6.18). A kernel's newer calls do not exist for a step, nor do those of
/// the x32 interface, whose numbers have bit 30 set.
const UNJUDGED: u32 = 470;

/// The filters, to be added one after the other. A program for another processor interface (32-bit on a 64-bit machine) is
/// killed at its first call.
fn filters(families: &[u64]) -> Result<Vec<BpfProgram>, Failure> {
    compile(families).map_err(|_| Failure::System { doing: Doing::Privileges, errno: libc::EINVAL })
}

fn compile(families: &[u64]) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let equal = |arg, value| SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let bit = |arg, flag| SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), flag);
    let rule = |condition| SeccompRule::new(vec![condition?]);
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|&number| (number, Vec::new())).collect();
    let flags = |skip: usize| NAMESPACE_FLAGS.iter().skip(skip).map(|&flag| rule(bit(0, flag)));
    denied.insert(libc::SYS_unshare, flags(0).collect::<Result<_, _>>()?);
    // The lowest byte of clone's flags is a signal.
    denied.insert(libc::SYS_clone, flags(1).collect::<Result<_, _>>()?);
    // Input forged into a terminal's queue.
    let terminal = [libc::TIOCSTI, libc::TIOCLINUX].map(|request| rule(equal(1, u64::from(request as u32))));
    denied.insert(libc::SYS_ioctl, terminal.into_iter().collect::<Result<_, _>>()?);
    let families =
        families.iter().map(|&family| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family));
    denied.insert(libc::SYS_socket, vec![SeccompRule::new(families.collect::<Result<_, _>>()?)?]);

    // Its flags lie in memory, where a filter cannot look; a C library that finds it missing uses clone.
    let missing = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let mut missing = program(missing, libc::ENOSYS)?;
    missing.splice(0..0, newer_are_missing());
    Ok(vec![program(denied, libc::EPERM)?, missing])
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: libc::c_int,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let errno = u32::try_from(errno).expect("error numbers are positive");
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), architecture)?.try_into()
}

/// Load the number; below [`UNJUDGED`] skip one; answer ENOSYS.
fn newer_are_missing() -> [sock_filter; 3] {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    [
        op(LOAD_WORD, 0, 0, 0),
        op(JUMP_IF_AT_LEAST, 0, 1, UNJUDGED),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_for_this_machine() {
        for families in [&FAMILIES[..], &OF_THE_MACHINE, &OF_THE_MACHINE[1..]] {
            let filters = filters(families).expect("the rules are constants");
            assert_eq!(filters.len(), 2);
            assert!(filters.iter().all(|filter| filter.len() < 4096));
        }
    }

    #[test]
    fn fourteen_capabilities_are_kept() {
        assert_eq!(KEPT.bits().count_ones(), 14);
    }
}
