//! Calls that this machine's root could make, and the root of a user namespace cannot: device nodes, and users that the namespace does not
//! have.
//!
//! The kernel would refuse them, and a step that takes no notice (`mknod … || true`) would leave something else than it does with root. So
//! the first such call ends the step, and says which it was.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::accounts::User;
use crate::sys;
use crate::wire::{self, Action, Doing, During as _, Failure};

/// Calls that give a file an owner, and which argument is the user; the group follows.
const OWNERS: &[(libc::c_long, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, 1),
    (libc::SYS_fchown, 1),
    (libc::SYS_fchownat, 2),
];

/// Calls that make a node, and which argument is the mode.
const NODES: &[(libc::c_long, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1),
    (libc::SYS_mknodat, 2),
];

/// Calls that become users, and how many of them they name.
const USERS: &[(libc::c_long, u8)] =
    &[(libc::SYS_setuid, 1), (libc::SYS_setreuid, 2), (libc::SYS_setresuid, 3), (libc::SYS_setfsuid, 1)];

/// The same of groups.
const GROUPS: &[(libc::c_long, u8)] =
    &[(libc::SYS_setgid, 1), (libc::SYS_setregid, 2), (libc::SYS_setresgid, 3), (libc::SYS_setfsgid, 1)];

/// "Leave it as it is".
const NOBODY: u64 = u32::MAX as u64;

/// The highest user and group of a namespace of one user, whose groups can be set by nobody.
pub(super) const NONE_BUT_ROOT: (u32, u32) = (0, 0);

/// Makes sure that the namespace has the user as whom a step begins. `highest` are the user and the group with the highest number there are.
pub(super) fn there_is(highest: (u32, u32), user: &User) -> Result<(), Failure> {
    let groups = user.groups.iter().chain([&user.gid]).copied().find(|&group| group > highest.1);
    match Some(user.uid).filter(|&uid| uid > highest.0).or(groups) {
        Some(id) => Err(Failure::OnlyRoot { action: Action::Become { id } }),
        None => Ok(()),
    }
}

/// Adds the filter to this process and those that it will start, and hands what tells of the calls to the helper.
pub(super) fn lay(highest: (u32, u32), tell: &UnixStream) -> Result<(), Failure> {
    let filter = compile(highest).map_err(|_| Failure::System { doing: Doing::Privileges, errno: libc::EINVAL })?;
    let listener = sys::seccomp_listener(&filter).during(Doing::Privileges)?;
    wire::send_fd(tell, listener.as_fd()).during(Doing::Privileges)
}

/// The call that is to be told of, if it is still there.
pub(crate) fn only_root(listener: BorrowedFd<'_>) -> Option<Action> {
    let (number, arguments) = sys::next_call(listener).ok()?;
    let number = libc::c_long::from(number);
    let id = |first: u8, count: u8| {
        let ids = arguments.iter().skip(first.into()).take(count.into());
        // The highest is the one that is too high.
        ids.map(|&id| id as u32).filter(|&id| id != u32::MAX).max().unwrap_or_default()
    };
    let of =
        |list: &[(libc::c_long, u8)]| list.iter().find(|(known, _)| *known == number).map(|(_, argument)| *argument);
    Some(match (of(OWNERS), of(USERS).or(of(GROUPS))) {
        (Some(first), _) => Action::Own { id: id(first, 2) },
        (_, Some(count)) => Action::Become { id: id(0, count) },
        _ if number == libc::SYS_setgroups => Action::Groups,
        _ => Action::Device,
    })
}

fn compile((user, group): (u32, u32)) -> Result<BpfProgram, BackendError> {
    let condition =
        |argument, operator, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    let above = |argument: u8, highest: u32| -> Result<SeccompRule, BackendError> {
        let (too_high, one) = (SeccompCmpOp::Gt, SeccompCmpOp::Ne);
        SeccompRule::new(vec![condition(argument, too_high, highest.into())?, condition(argument, one, NOBODY)?])
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for &(number, argument) in NODES {
        let kinds = [libc::S_IFCHR, libc::S_IFBLK].map(|kind| {
            let is = SeccompCmpOp::MaskedEq(libc::S_IFMT.into());
            SeccompRule::new(vec![condition(argument, is, kind.into())?])
        });
        rules.insert(number, kinds.into_iter().collect::<Result<_, _>>()?);
    }
    for &(number, first) in OWNERS {
        rules.insert(number, vec![above(first, user)?, above(first + 1, group)?]);
    }
    for (list, highest) in [(USERS, user), (GROUPS, group)] {
        for &(number, count) in list {
            rules.insert(number, (0..count).map(|argument| above(argument, highest)).collect::<Result<_, _>>()?);
        }
    }
    if (user, group) == NONE_BUT_ROOT {
        rules.insert(libc::SYS_setgroups, Vec::new());
    }
    // The library knows no name for telling somebody else, so another action stands for it.
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trace(0), architecture)?;
    let mut program: BpfProgram = filter.try_into()?;
    const RETURN: u16 = 0x06;
    for instruction in &mut program {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRACE {
            instruction.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_tells_and_traces_nothing() {
        let program = compile((65_536, 65_536)).expect("the rules are constants");
        assert!(program.iter().any(|one| one.code == 0x06 && one.k == libc::SECCOMP_RET_USER_NOTIF));
        assert!(program.iter().all(|one| one.code != 0x06 || one.k != libc::SECCOMP_RET_TRACE));
    }
}
