//! A cgroup of the step's own, for the number of its processes and their memory.
//!
//! Both versions of the kernel's interface are in use, often mixed, and in a container there may be none that can be written to.
//! What cannot be had is left out and said so: the sandbox keeps a step from seeing and reaching this machine without it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use crate::step::Limits;

/// What a directory of a dead process is recognized by.
const PREFIX: &str = "jiji-run-";

/// Longer than anybody takes from making a directory to entering it, on a machine that has much to do.
const MOMENT: Duration = Duration::from_secs(600);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The cgroups of one step. Dropped, they are removed; whatever is in them must be dead by then.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    dirs: Vec<PathBuf>,
    pub(crate) processes: bool,
    pub(crate) memory: bool,
}

impl Cgroups {
    /// Creates what this machine allows.
    pub(crate) fn create(limits: &Limits) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let places = places(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let mut created = Self::default();
        for place in places {
            if place.controllers.iter().all(|&controller| created.has(controller)) {
                continue;
            }
            created.add(&place, limits);
        }
        created
    }

    fn has(&self, controller: Controller) -> bool {
        match controller {
            Controller::Pids => self.processes,
            Controller::Memory => self.memory,
        }
    }

    fn add(&mut self, place: &Place, limits: &Limits) {
        sweep(&place.parent, namespace(), SystemTime::now());
        if place.unified {
            pass_on(&place.parent);
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = place.parent.join(format!("{PREFIX}{}-{}-{number}", namespace(), std::process::id()));
        if fs::create_dir(&dir).is_err() {
            return;
        }
        let set = |file: &str, value: String| fs::write(dir.join(file), value).is_ok();
        let mut bounds = false;
        for controller in &place.controllers {
            match controller {
                // One more for the helper, one for the first process.
                Controller::Pids if set("pids.max", (limits.processes.saturating_add(2)).to_string()) => {
                    (self.processes, bounds) = (true, true);
                }
                Controller::Memory => {
                    let file = if place.unified { "memory.max" } else { "memory.limit_in_bytes" };
                    if limits.memory.is_some_and(|bytes| set(file, bytes.to_string())) {
                        (self.memory, bounds) = (true, true);
                    }
                }
                Controller::Pids => {}
            }
        }
        if bounds {
            self.dirs.push(dir);
        } else {
            // Bounds nothing; should it stay, the next step sweeps it.
            let _ = fs::remove_dir(&dir);
        }
    }

    /// The files a process writes `0` into to be bound.
    pub(crate) fn entrances(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs"))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // The kernel may take a moment to see that the last process has left.
            for _ in 0..50 {
                match fs::remove_dir(dir) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// Version 2: lets children have the controllers, which most machines do already. Each on its own, since one that this machine lacks
/// would keep the others away. What was refused is told by the limits that cannot be set.
fn pass_on(parent: &Path) {
    let file = parent.join("cgroup.subtree_control");
    let on = fs::read_to_string(&file).unwrap_or_default();
    for name in ["pids", "memory"] {
        if !on.split_whitespace().any(|known| known == name) {
            let _ = fs::write(&file, format!("+{name}"));
        }
    }
}

/// The namespace in which this process's number means it: containers share cgroups that do not share processes.
fn namespace() -> u64 {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_str().and_then(|text| text.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()).unwrap_or_default()
}

/// Removes what processes left that were killed before they could. Of those of another namespace nobody here can tell whether they live: what is
/// older than the moment between making a directory and entering it can go, and cannot where somebody is in it.
fn sweep(parent: &Path, namespace: u64, now: SystemTime) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let mut numbers = rest.split('-').map(str::parse::<u64>);
        let (Some(Ok(of)), Some(Ok(pid))) = (numbers.next(), numbers.next()) else { continue };
        let is_left = if of == namespace {
            !Path::new("/proc").join(pid.to_string()).exists()
        } else {
            let made = entry.metadata().and_then(|meta| meta.modified());
            made.is_ok_and(|made| now.duration_since(made).is_ok_and(|age| age > MOMENT))
        };
        if is_left {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Pids,
    Memory,
}

/// A directory in which a cgroup can be made, and what it can bound.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    parent: PathBuf,
    controllers: Vec<Controller>,
    unified: bool,
}

/// Reads where cgroups are mounted and which ones this process is in.
///
/// Version 1 allows a child of one's own cgroup. Version 2 allows no processes beside children that have controllers, so there it
/// is a sibling; at the root, which is exempt, a child.
fn places(mountinfo: &str, own: &str) -> Vec<Place> {
    let mut places: Vec<Place> = mountinfo.lines().filter_map(|line| place(line, own)).collect();
    places.sort_by_key(|place| place.unified);
    places
}

fn place(line: &str, own: &str) -> Option<Place> {
    // 36 35 98:0 ROOT MOUNTPOINT options - TYPE source SUPEROPTIONS (proc_pid_mountinfo(5))
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, mountpoint) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    let unified = kind == "cgroup2";
    let known = |name: &str| match name {
        "pids" => Some(Controller::Pids),
        "memory" => Some(Controller::Memory),
        _ => None,
    };
    let (controllers, key): (Vec<_>, _) = match kind {
        "cgroup2" => (vec![Controller::Pids, Controller::Memory], ""),
        "cgroup" => {
            let name = options.split(',').find(|name| known(name).is_some())?;
            (options.split(',').filter_map(known).collect(), name)
        }
        _ => return None,
    };
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let names = fields.next()?;
        names.split(',').any(|name| name == key).then(|| fields.next())?
    })?;
    let below = Path::new(path).strip_prefix(root).ok()?;
    let below = if unified { below.parent().unwrap_or(below) } else { below };
    Some(Place {
        parent: Path::new(std::ffi::OsStr::from_bytes(mountpoint.as_bytes())).join(below),
        controllers,
        unified,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_one_is_a_child_and_version_two_a_sibling() {
        let mounts = "30 20 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      31 20 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
                      32 20 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      33 20 0:29 / / rw - ext4 /dev/vda rw\n";
        let own = "8:pids:/a/b\n1:cpu:/\n0::/user.slice/session.scope\n";
        let expected = vec![
            Place { parent: "/sys/fs/cgroup/pids/a/b".into(), controllers: vec![Controller::Pids], unified: false },
            Place {
                parent: "/sys/fs/cgroup/unified/user.slice".into(),
                controllers: vec![Controller::Pids, Controller::Memory],
                unified: true,
            },
        ];
        assert_eq!(places(mounts, own), expected);
    }

    #[test]
    fn what_a_process_of_another_namespace_has_just_made_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        // No process has this number: `pid_max` is 2^22 at most.
        let (mine, others, dead) = (namespace(), namespace() + 1, 1 << 23);
        assert_ne!(mine, 0, "a namespace of processes");
        let own = std::process::id();
        let names = [
            format!("{PREFIX}{mine}-{own}-0"),
            format!("{PREFIX}{mine}-{dead}-0"),
            format!("{PREFIX}{others}-{dead}-0"),
            // Made before namespaces were in the name.
            format!("{PREFIX}{dead}-0"),
            "user.slice".to_owned(),
        ];
        names.iter().for_each(|name| fs::create_dir(dir.path().join(name)).expect("created"));
        let there = || names.each_ref().map(|name| dir.path().join(name).exists());
        sweep(dir.path(), mine, SystemTime::now());
        assert_eq!(there(), [true, false, true, true, true]);
        sweep(dir.path(), mine, SystemTime::now() + 2 * MOMENT);
        assert_eq!(there(), [true, false, false, false, true]);
    }

    #[test]
    fn a_mount_of_another_part_of_the_tree_is_no_place() {
        let mounts = "31 20 0:27 /docker/x /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n";
        assert_eq!(places(mounts, "8:pids:/elsewhere\n"), vec![]);
        assert_eq!(places(mounts, "8:pids:/docker/x/y\n")[0].parent, Path::new("/sys/fs/cgroup/pids/y"));
    }
}
