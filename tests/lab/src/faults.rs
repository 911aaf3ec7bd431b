//! What goes wrong with real hosts, on demand: a cut line, a dead host, a frozen process, a full disk.

use std::{fs, str::FromStr};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Host, LabError, Record, cgroup,
    keeper::{self, Request},
    net,
};

impl Host {
    /// Cuts the host's line: packets are lost in both directions and nobody is told.
    pub fn cut_link(&self) -> Result<(), LabError> {
        net::set_link(Record::load(&self.lab)?.bridge_pid, self.address, false)
    }

    /// Restores a cut line.
    pub fn restore_link(&self) -> Result<(), LabError> {
        net::set_link(Record::load(&self.lab)?.bridge_pid, self.address, true)
    }

    /// Kills the host: every process of it ends at once, as when the power fails. Its disk stays.
    pub fn kill(&self) -> Result<(), LabError> {
        keeper::ask(&self.lab, &Request::Kill(self.name.clone()))
    }

    /// Boots a host that was killed, with the same disk, address and keys, and a new boot id.
    pub fn boot(&self) -> Result<(), LabError> {
        keeper::ask(&self.lab, &Request::Boot(self.name.clone()))
    }

    /// The processes on the host with this name (as in `/proc/PID/comm`, at most 15 bytes), in containers too, by the
    /// machine's numbers.
    pub fn processes(&self, name: &str) -> Result<Vec<u32>, LabError> {
        let record = Record::load(&self.lab)?;
        let named =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
        Ok(cgroup::processes(&record.cgroup(&self.name))?.into_iter().filter(named).collect())
    }

    /// The processes on the host whose program lies below a directory of it, by the machine's numbers.
    pub fn processes_below(&self, directory: &str) -> Result<Vec<u32>, LabError> {
        let record = Record::load(&self.lab)?;
        // The link is told as the process's own mounts have it; one that has ended has none.
        let below = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(directory));
        Ok(cgroup::processes(&record.cgroup(&self.name))?.into_iter().filter(below).collect())
    }

    /// Sends a signal to every process of that name on the host; says to how many.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<usize, LabError> {
        let mut reached = 0;
        for pid in self.processes(name)? {
            let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
                continue;
            };
            match kill_process(pid, signal) {
                Ok(()) => reached += 1,
                // It ended by itself in between.
                Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(LabError::system(format!("signal `{name}`"))(error)),
            }
        }
        Ok(reached)
    }

    /// Stops every process of that name in the middle of what it does; says how many.
    pub fn freeze(&self, name: &str) -> Result<usize, LabError> {
        self.signal(name, Signal::STOP)
    }

    /// Lets frozen processes go on.
    pub fn thaw(&self, name: &str) -> Result<usize, LabError> {
        self.signal(name, Signal::CONT)
    }

    /// Bytes that are free on the host's disk.
    pub fn free_disk(&self) -> Result<u64, LabError> {
        let out = self.exec(&["stat", "--file-system", "--format=%a %S", "/var/lib"])?;
        let mut words = out.split_ascii_whitespace().map(u64::from_str);
        match (words.next(), words.next()) {
            (Some(Ok(blocks)), Some(Ok(size))) => Ok(blocks * size),
            _ => Err(LabError::Spec { reason: format!("stat says `{out}`") }),
        }
    }

    /// Fills the host's disk until only so many bytes are left.
    pub fn fill_disk(&self, leave: u64) -> Result<(), LabError> {
        let size = self.free_disk()?.saturating_sub(leave);
        if size > 0 {
            self.exec(&["fallocate", "--length", &size.to_string(), FILLER])?;
        }
        Ok(())
    }

    /// Frees what [`Host::fill_disk`] took.
    pub fn free_filled_disk(&self) -> Result<(), LabError> {
        self.remove_file(FILLER)
    }
}

/// The file that fills a host's disk.
const FILLER: &str = "/var/lib/lab-filler";
