#![expect(
    unsafe_code,
    reason = "these system calls have no safe wrapper: they are unsafe by their nature (fork, exec, unshare) or missing from rustix"
)]
//! The system calls that Rust cannot vouch for, each behind a function that can be called safely where its documentation says so.
//!
//! No decision is taken here and nothing is retried. Whatever `rustix` offers safely is called from where it is needed instead.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_int, c_ulong, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;

use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use seccompiler::sock_filter;

/// On which side of a fork one is.
pub(crate) enum Fork {
    /// In the new process.
    Child,
    /// In the old one, with the new one's id.
    Parent(Pid),
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Splits this process in two. Only for a process with one thread: then the child may do what its parent might have done.
pub(crate) fn fork() -> io::Result<Fork> {
    debug_assert!(is_single_threaded(), "the helper never starts a thread");
    // SAFETY: with a single thread no lock can be held by a thread that does not exist in the child, which is all that makes
    // code after fork() unsafe.
    let pid = checked(unsafe { libc::fork() }.into())?;
    Ok(match Pid::from_raw(i32::try_from(pid).expect("a process id fits")) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Whether this process has one thread, as far as /proc can tell.
pub(crate) fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

/// Moves this process (its children, for the pid namespace) into new namespaces. Only for a process with one thread.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: what makes unshare unsafe is a descriptor table that is no longer shared with threads that count on it; `FILES` is
    // never passed.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes (`MOUNT_ATTR_*`) of the mount that `mount` refers to; `recursive` includes those below it. Linux 5.12.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, set: u64) -> io::Result<()> {
    let attr = MountAttr { set, clear: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid C string, `attr` has the layout of `struct mount_attr` (linux/mount.h) and the size passed is
    // its own; the kernel only reads both.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Adds a seccomp filter to this thread. Needs CAP_SYS_ADMIN, or no_new_privs set before.
///
/// `seccompiler::apply_filter` is not used because it always sets no_new_privs, which would break `sudo` within a step.
pub(crate) fn seccomp(filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` describes `filter` exactly (seccompiler's and libc's sock_filter are both the kernel's), and the kernel
    // copies it without writing.
    checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })?;
    Ok(())
}

/// The version of Landlock that the kernel has; 0 where it has none.
pub(crate) fn landlock_version() -> i64 {
    const VERSION: c_int = 1; // LANDLOCK_CREATE_RULESET_VERSION (linux/landlock.h)
    // SAFETY: with this flag the kernel reads no memory and answers a number.
    checked(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<c_void>(), 0_usize, VERSION) })
        .unwrap_or(0)
}

/// `struct landlock_ruleset_attr`, linux/landlock.h.
#[repr(C)]
struct LandlockRuleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// From here on this process and all that it starts reach no socket whose name is no file but those of their own. Needs CAP_SYS_ADMIN, or
/// no_new_privs set before. Linux 6.12.
pub(crate) fn scope_abstract_sockets() -> io::Result<()> {
    const ABSTRACT_SOCKETS: u64 = 1; // LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
    let rules = LandlockRuleset { handled_access_fs: 0, handled_access_net: 0, scoped: ABSTRACT_SOCKETS };
    // SAFETY: `rules` has the layout of the kernel's structure and the size passed is its own; the kernel only reads it. What it answers
    // is a new descriptor that nobody else owns.
    let ruleset = unsafe {
        let size = size_of::<LandlockRuleset>();
        let fd = checked(libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size, 0))?;
        OwnedFd::from_raw_fd(c_int::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?)
    };
    // SAFETY: plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
    Ok(())
}

/// Adds a seccomp filter to this thread, and gives the descriptor that tells of the calls for which it says `SECCOMP_RET_USER_NOTIF`.
pub(crate) fn seccomp_listener(filter: &[sock_filter]) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: as in `seccomp`.
    let fd =
        checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })?;
    // SAFETY: with this flag the call gives a new descriptor, which nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor fits")) })
}

/// A system call that a filter told of: its number and arguments.
pub(crate) fn next_call(listener: BorrowedFd<'_>) -> io::Result<(c_int, [u64; 6])> {
    // SAFETY: an all-zero seccomp_notif is valid and what the kernel demands; it writes nothing but this one.
    unsafe {
        let mut call: libc::seccomp_notif = std::mem::zeroed();
        checked(libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call).into())?;
        Ok((call.data.nr, call.data.args))
    }
}

/// Turns off address space randomization for what this process executes.
pub(crate) fn no_randomize() -> io::Result<()> {
    // SAFETY: personality() takes and returns plain numbers.
    checked(unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as c_ulong) }.into())?;
    Ok(())
}

/// Gives every signal its default disposition and unblocks all: an ignored or blocked signal would be inherited by the command.
pub(crate) fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default disposition installs no code. Errors (SIGKILL, SIGSTOP, the C library's own two) change nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: `set` is written by sigemptyset before it is read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Brings up the loopback interface of this network namespace; `socket` is any internet or netlink socket in it.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid; the name fits with its terminating zero, and the flags are the union's member for
    // SIOCGIFFLAGS and SIOCSIFFLAGS, which read and write nothing but this ifreq.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        let at: *mut c_void = (&raw mut request).cast();
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, at).into())?;
        (*at.cast::<libc::ifreq>()).ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, at).into())?;
    }
    Ok(())
}

/// Marks all descriptors from `first` on to be closed at the next exec.
pub(crate) fn close_on_exec_from(first: c_int) -> io::Result<()> {
    // SAFETY: this closes nothing now, so no owner of a descriptor is betrayed.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Becomes another program. Returns only on failure.
pub(crate) fn exec(path: &CStr, argv: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both lists are null-terminated and borrow strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Err(io::Error::last_os_error())
}
