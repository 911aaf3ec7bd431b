//! Time since boot, and which process is which.
//!
//! Leases expire by `CLOCK_BOOTTIME`, which no administrator sets back and which counts the time a machine sleeps; the wall clock is
//! shown to people and trusted by nobody. A process is told from a later one of the same number by its start time.

use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

/// The kernel's id of this boot (proc(5), `/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// When /proc is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Milliseconds since boot, suspended time counted.
pub fn boottime_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1000 + u64::try_from(time.tv_nsec).unwrap_or_default() / 1_000_000
}

/// Milliseconds since 1970 by this machine's own clock.
pub fn wall_clock_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Seconds since 1970 by this machine's own clock.
pub fn wall_clock_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A process as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// The number of the process that started it.
    pub parent: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

/// The running process with this number; none where there is none or where it ended and was not reaped yet.
pub fn process(pid: i32) -> Option<Process> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// This process.
///
/// # Errors
/// When /proc is not there.
pub fn this_process() -> io::Result<Process> {
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    process(pid).ok_or_else(|| io::Error::other("this process is not in /proc"))
}

/// All processes that `pid` started, and those that they started, as far as they still hang together.
pub fn descendants(pid: i32) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let all: Vec<Process> =
        entries.filter_map(|entry| process(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for child in all.iter().filter(|process| process.parent == parent) {
            parents.push(child.pid);
            found.push(*child);
        }
    }
    found
}

/// Reads proc(5) `/proc/PID/stat`: the name is in parentheses and may hold anything, so fields are counted from the last one.
fn parse_stat(text: &str) -> Option<Process> {
    let pid = text.split(' ').next()?.parse().ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(Process { pid, parent, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_and_spaces_is_read_past() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 11 12\n";
        assert_eq!(parse_stat(text), Some(Process { pid: 42, parent: 7, start: 98765 }));
        assert_eq!(parse_stat(&text.replace(" S ", " Z ")), None);
    }

    #[test]
    fn this_process_runs_and_a_child_is_its_descendant() {
        let this = this_process().expect("there is /proc");
        assert_eq!(process(this.pid), Some(this));
        let mut child = std::process::Command::new("sleep").arg("10").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a number");
        assert!(descendants(this.pid).iter().any(|process| process.pid == pid));
        child.kill().expect("killed");
        assert!(process(pid).is_none_or(|process| process.pid == pid));
        child.wait().expect("reaped");
        assert_eq!(process(pid), None);
    }

    #[test]
    fn time_since_boot_grows_and_there_is_a_boot_id() {
        let before = boottime_ms();
        assert!(before > 0 && boottime_ms() >= before);
        assert_eq!(boot_id().expect("readable").len(), 36);
    }
}
