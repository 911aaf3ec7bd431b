//! The control groups of a lab: each part has one under `jiji-lab/NAME/PART` in every hierarchy, so that hosts do not see
//! each other's containers, and so that whatever still runs when a lab's owner died is found and ended.
//!
//! Machines may be on version 1 (also in the hybrid mode, whose empty version 2 tree crun refuses, so hosts are shown version
//! 1 alone) or on version 2.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::LabError;

/// A mounted hierarchy of control groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    /// Where the machine mounts it.
    pub mount: PathBuf,
    /// Its name below `/sys/fs/cgroup`, empty for version 2.
    pub name: String,
    /// The options that mount it again: `memory`, `none,name=systemd`; empty for version 2.
    pub options: String,
}

impl Hierarchy {
    /// Whether this is the one tree of version 2.
    pub(crate) fn unified(&self) -> bool {
        self.options.is_empty()
    }
}

/// The hierarchies that hosts use: all of version 1 if there are any with controllers, else the one of version 2.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>, LabError> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(LabError::file("read", path))?;
    Ok(parse_mountinfo(&text))
}

fn parse_mountinfo(text: &str) -> Vec<Hierarchy> {
    let mut first = Vec::new();
    let mut second = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else {
            continue;
        };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        match kind {
            "cgroup" => {
                let named = options.split(',').find(|word| word.starts_with("name="));
                let controllers: Vec<_> = options
                    .split(',')
                    .filter(|word| !matches!(*word, "rw" | "xattr" | "noprefix") && !word.contains('='))
                    .collect();
                let options = match named {
                    Some(name) if controllers.is_empty() => format!("none,{name}"),
                    _ => controllers.join(","),
                };
                let name = mount.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                first.push(Hierarchy { mount, name, options });
            }
            "cgroup2" => second.push(Hierarchy { mount, name: String::new(), options: String::new() }),
            _ => {}
        }
    }
    if first.is_empty() { second } else { first }
}

/// Makes the group in every hierarchy.
pub(crate) fn create(group: &Path) -> Result<(), LabError> {
    let mut tries = 0;
    loop {
        match create_once(group) {
            // The group of all labs goes with the last of them, and may go while this one comes.
            Err(LabError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound && tries < 100 => tries += 1,
            other => return other,
        }
    }
}

fn create_once(group: &Path) -> Result<(), LabError> {
    for hierarchy in hierarchies()? {
        let mut path = hierarchy.mount.clone();
        for part in group {
            let parent = path.clone();
            path.push(part);
            if hierarchy.unified() {
                // Controllers reach a child only if every ancestor passes them on; what cannot be passed is not missed.
                pass_controllers(&parent);
            }
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(LabError::file("create", &path)(error));
                }
                _ => {}
            }
            // A new group of the cpuset controller is empty and takes no process until it is given what its parent has.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let (Ok(ours), Ok(theirs)) =
                    (fs::read_to_string(path.join(file)), fs::read_to_string(parent.join(file)))
                    && ours.trim().is_empty()
                    && !hierarchy.unified()
                {
                    fs::write(path.join(file), theirs).map_err(LabError::file("write", path.join(file)))?;
                }
            }
        }
    }
    Ok(())
}

/// Passes all controllers of a version 2 group on to its children, as far as the kernel allows.
pub(crate) fn pass_controllers(group: &Path) {
    let Ok(controllers) = fs::read_to_string(group.join("cgroup.controllers")) else {
        return;
    };
    for controller in controllers.split_ascii_whitespace() {
        drop(fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")));
    }
}

/// Moves the calling process into the group.
pub(crate) fn enter(group: &Path) -> Result<(), LabError> {
    for hierarchy in hierarchies()? {
        let mut path = hierarchy.mount.join(group);
        // On version 2 a host's processes live in a leaf, see `machine`.
        if hierarchy.unified() && path.join("init").is_dir() {
            path.push("init");
        }
        let file = path.join("cgroup.procs");
        fs::write(&file, "0").map_err(LabError::file("enter", &file))?;
    }
    Ok(())
}

/// All processes in the group and the groups in it, as the machine numbers them.
pub(crate) fn processes(group: &Path) -> Result<Vec<u32>, LabError> {
    let mut found = Vec::new();
    for hierarchy in hierarchies()? {
        walk(&hierarchy.mount.join(group), &mut |dir| {
            if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
                found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            }
        });
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Ends every process in the group and removes it. Gives up on what is still there after five seconds.
pub(crate) fn destroy(group: &Path) -> Result<(), LabError> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let alive = processes(group)?;
        for pid in &alive {
            // A frozen group would never act on the signal.
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let mut left = false;
        for hierarchy in hierarchies()? {
            let root = hierarchy.mount.join(group);
            walk(&root, &mut |dir| {
                drop(fs::write(dir.join("freezer.state"), "THAWED"));
            });
            walk(&root, &mut |dir| drop(fs::remove_dir(dir)));
            left |= root.exists();
        }
        if !left || Instant::now() > deadline {
            // Fails while another lab is up, and so it should.
            if let Some(parent) = group.parent().filter(|parent| parent.components().next().is_some()) {
                hierarchies()?.iter().for_each(|hierarchy| drop(fs::remove_dir(hierarchy.mount.join(parent))));
            }
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Visits a group after all groups in it.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hybrid_mode_counts_as_version_1() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                    35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                    36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                    40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = parse_mountinfo(text);
        let options: Vec<_> = found.iter().map(|hierarchy| hierarchy.options.as_str()).collect();
        assert_eq!(options, ["memory", "cpu,cpuacct", "none,name=systemd"]);
        assert_eq!(found[1].name, "cpu,cpuacct");
    }

    #[test]
    fn version_2_alone_is_one_tree() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = parse_mountinfo(text);
        assert_eq!(found.len(), 1);
        assert!(found[0].unified());
    }
}
