//! The other side of the wall: the sandbox's first process builds it, starts the command, and reaps.
//!
//! Everything here runs as pid 1 of the new namespaces, or as the command's process before it becomes the command. It trusts the
//! request and nothing that the image holds: names in the image are resolved below its root by the kernel (`openat2`), mounts are
//! attached to descriptors, never to paths.

mod accounts;
mod devices;
mod fixed;
mod kernel_files;
mod mounts;
mod overlay;
mod place;
mod privileges;
mod spawn;
mod tripwires;

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{DumpableBehavior, Signal, WaitOptions};

use crate::helper::NAMESPACES;
use crate::step::{Network, PROXY_PORT};
use crate::sys::{self, Fork};
use crate::wire::{self, Doing, During as _, Failure, Reply, Run};

pub(crate) use tripwires::only_root;

/// The name every step's machine has.
const HOST_NAME: &[u8] = b"localhost";
/// What Linux calls a domain that was never set.
const DOMAIN_NAME: &[u8] = b"(none)";

/// Tries the mounts that a machine may refuse, in namespaces that go with this process.
pub(crate) fn probe(scratch: &OsStr) -> Result<(), Failure> {
    sys::unshare(NAMESPACES).during(Doing::Namespaces)?;
    let (answers, answer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during(Doing::Fork)?;
    // `/proc` is mounted by a process of the pid namespace that it shows.
    match sys::fork().during(Doing::Fork)? {
        Fork::Child => {
            let failed = try_mounts(Path::new(scratch)).err();
            let code = i32::from(failed.is_some_and(|failure| wire::send(&mut File::from(answer), &failure).is_err()));
            #[expect(clippy::exit, reason = "it was forked for this alone")]
            std::process::exit(code)
        }
        Fork::Parent(child) => {
            drop(answer);
            let failed = wire::receive::<Failure>(&mut File::from(answers)).ok();
            rustix::process::waitpid(Some(child), WaitOptions::empty()).during(Doing::Fork)?;
            failed.map_or(Ok(()), Err)
        }
    }
}

fn try_mounts(scratch: &Path) -> Result<(), Failure> {
    private()?;
    overlay::mount(&[scratch.join("below").as_os_str()], scratch)?;
    name_the_machine()?;
    // Filters of containers let these pass for those alone who may administrate them.
    sys::no_randomize().during(Doing::Fixed)?;
    devices::new("proc", &[], devices::data_only()).during(Doing::Proc)?;
    // As a container's own is: one that can be written to would show more.
    let attributes = devices::data_only() | MountAttrFlags::MOUNT_ATTR_RDONLY;
    devices::new("sysfs", &[], attributes).during(Doing::Sys).map(drop)
}

/// Builds the sandbox and runs the command. Never returns.
pub(crate) fn first_process(run: &Run, gate: OwnedFd, report: OwnedFd, tell: UnixStream) -> ! {
    let mut report = File::from(report);
    let reply = begin(gate).and_then(|()| build(run)).and_then(|place| spawn::command(run, place, tell));
    let reply = reply.unwrap_or_else(Reply::Failed);
    let code = i32::from(wire::send(&mut report, &reply).is_err());
    #[expect(clippy::exit, reason = "the sandbox ends with its first process")]
    std::process::exit(code)
}

/// Ties this process's life to the helper's.
fn begin(gate: OwnedFd) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).during(Doing::Fork)?;
    // Nobody in the sandbox may look into this process: /proc/1 then belongs to nobody they can be.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).during(Doing::Fork)?;
    let mut byte = [0];
    match rustix::io::read(&gate, &mut byte).during(Doing::Fork)? {
        0 => Err(rustix::io::Errno::PIPE).during(Doing::Fork),
        _ => Ok(()),
    }
}

/// What the command's process still needs once the image is the root directory.
pub(crate) struct Place {
    /// The working directory.
    pub(crate) workdir: OwnedFd,
    /// Who the command runs as.
    pub(crate) user: accounts::User,
}

fn build(run: &Run) -> Result<Place, Failure> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    private()?;
    if run.network == Network::None {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).during(Doing::Loopback)?;
        sys::loopback_up(socket.as_fd()).during(Doing::Loopback)?;
        if let Some(proxy) = &run.proxy {
            hand_over_listener(Path::new(proxy)).during(Doing::Proxy)?;
        }
    }
    name_the_machine()?;

    let scratch = Path::new(&run.scratch);
    let mounts = mounts::prepare(run)?;
    place::prepare(scratch, run, &mounts)?;
    let mut layers = vec![scratch.join("below").into_os_string()];
    layers.extend(run.layers.iter().cloned());
    let layers: Vec<&OsStr> = layers.iter().map(|layer| layer.as_os_str()).collect();
    let root = overlay::mount(&layers, scratch)?;

    let user = accounts::resolve(root.as_fd(), run.user.as_deref())?;
    let mut workdir = place::workdir(root.as_fd(), Path::new(&run.workdir))?;
    devices::fill(root.as_fd(), run.highest)?;
    kernel_files::mount_proc(root.as_fd(), run.network)?;
    kernel_files::mount_sys(root.as_fd(), scratch, run.network)?;
    place::bind_etc(root.as_fd(), scratch)?;
    if !mounts.is_empty() {
        mounts::attach_all(&mounts, root.as_fd())?;
        // Something may lie over it by now.
        workdir = place::workdir(root.as_fd(), Path::new(&run.workdir))?;
    }

    rustix::process::fchdir(&root).during(Doing::Pivot)?;
    // Root and old root may be the same directory: the old one is then stacked on the new and comes off with the unmount
    // (pivot_root(2), "pivot_root(".", ".")").
    rustix::process::pivot_root(".", ".").during(Doing::Pivot)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during(Doing::Pivot)?;
    rustix::process::chdir("/").during(Doing::Pivot)?;
    Ok(Place { workdir, user })
}

/// Listens where the step finds its proxy, and gives that to whoever serves it. Their descriptor is the only one that stays.
fn hand_over_listener(to: &Path) -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PROXY_PORT))?;
    wire::send_fd(&UnixStream::connect(to)?, listener.as_fd())
}

fn name_the_machine() -> Result<(), Failure> {
    rustix::system::sethostname(HOST_NAME).during(Doing::HostName)?;
    rustix::system::setdomainname(DOMAIN_NAME).during(Doing::HostName)
}

pub(crate) fn private() -> Result<(), Failure> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).during(Doing::Private)
}
