//! Who may change a project here.
//!
//! The rules are [`jiji_model::transaction::lease`]'s; here are the files, the lock around them, and the end of the older session: a lease
//! that is granted while its last holder's process still runs (it froze, or its line was cut) first ends that process and everything it
//! started, so that no step of the old one comes after a look of the new one.

use std::time::{Duration, Instant};

use jiji_model::digest::canonical_json;
use jiji_model::observation::LeaseFacts;
use jiji_model::transaction::lease::{Gone, Moment, decide, given_up_ms, guard, is_held, live};
use jiji_model::transaction::{Lease, LeaseDecision, LeaseRequest};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::abort;
use crate::clock::{self, Process};
use crate::place::{self, Durability, Lock, PlaceError, Project};

/// How long an older session gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long the kernel gets to end processes after SIGKILL. One that waits for a disk takes as long as the disk.
const END: Duration = Duration::from_secs(10);

/// How long the lock of the records may be held by somebody else. Who holds it does nothing that takes longer, unless it froze.
const LOCKED: Duration = Duration::from_secs(2);

/// Time between two tries to take it.
const AGAIN: Duration = Duration::from_millis(10);

/// A lease that this session holds.
#[derive(Debug)]
pub struct Held {
    project: Project,
    lease: Lease,
    ttl_ms: u64,
}

/// Why a lease could not be taken or used.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The records could not be read or written.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The older session did not end.
    #[error("end the older session, process {pid}: it still runs")]
    Survives {
        /// Its process.
        pid: i32,
    },
    /// Somebody who is not the lease's holder holds the lock of the records, and does not go on.
    #[error("take the lock of the records: another process has held it for {} seconds", LOCKED.as_secs())]
    Locked,
    /// A newer holder has it, or it expired.
    #[error("use the lease: {why}")]
    Lost {
        /// What happened to it.
        why: &'static str,
    },
    /// The kernel does not say which boot or process this is.
    #[error("read /proc: {0}")]
    Proc(#[from] std::io::Error),
}

/// The highest fencing number granted here. 0: none.
///
/// # Errors
/// [`PlaceError`] when the file holds no number.
pub fn fencing(project: &Project) -> Result<u64, PlaceError> {
    let path = project.fencing();
    let Some(bytes) = place::read(&path, 32)? else {
        return Ok(0);
    };
    let text = String::from_utf8_lossy(&bytes);
    text.trim().parse().map_err(|_| PlaceError::Record { reason: format!("`{}` is no number", text.trim()), path })
}

/// The lease that stands recorded.
///
/// # Errors
/// [`PlaceError`].
pub fn recorded(project: &Project) -> Result<Option<Lease>, PlaceError> {
    place::read_record(&project.lease(), Lease::VERSION)
}

/// The lease that stands recorded, with whether it counts. Writes nothing.
///
/// # Errors
/// [`PlaceError`].
pub fn observe(project: &Project) -> Result<Option<LeaseFacts>, PlaceError> {
    let Some(lease) = recorded(project)? else {
        return Ok(None);
    };
    let boot_id = clock::boot_id().map_err(place::failed("read", "/proc/sys/kernel/random/boot_id".as_ref()))?;
    let now_ms = clock::boottime_ms();
    let live = live(&lease, &boot_id, now_ms, session(&lease, &boot_id).is_some());
    let age_ms = (lease.boot_id == boot_id && lease.granted_ms > 0).then(|| now_ms.saturating_sub(lease.granted_ms));
    Ok(Some(LeaseFacts { lease, live, age_ms }))
}

/// The process of a lease's session, if it runs.
fn session(lease: &Lease, boot_id: &str) -> Option<Process> {
    clock::process(lease.session).filter(|process| process.start == lease.session_start && lease.boot_id == boot_id)
}

/// Asks for the lease. Only a grant changes anything.
///
/// # Errors
/// [`LeaseError`].
pub async fn acquire(project: Project, request: &LeaseRequest) -> Result<Result<Held, LeaseDecision>, LeaseError> {
    let boot_id = clock::boot_id()?;
    let this = clock::this_process()?;
    let begun = Instant::now();
    let mut ended = false;
    let (lease, _lock) = loop {
        // An asker who is refused leaves nothing behind.
        let known = project.dir().is_dir();
        let lock = if known { project.try_lock()? } else { None };
        let locked = known && lock.is_none();
        if locked && begun.elapsed() < LOCKED {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        // A holder that froze may have the lock. Its lease can be read without it, and whoever may take that may end the holder.
        let current = recorded(&project)?;
        let old = current.as_ref().and_then(|lease| session(lease, &boot_id));
        let moment = Moment { boot_id: &boot_id, now_ms: clock::boottime_ms(), session: (this.pid, this.start) };
        let current = current.as_ref().map(|lease| (lease, old.is_some()));
        let lease = match decide(request, current, fencing(&project)?, &moment) {
            LeaseDecision::Granted(lease) => lease,
            refused => return Ok(Err(refused)),
        };
        let old = old.filter(|old| *old != this);
        if locked && (ended || old.is_none()) {
            return Err(LeaseError::Locked);
        }
        if let Some(old) = old {
            end(old).await?;
            ended = true;
        }
        match lock {
            Some(lock) => break (lease, lock),
            None if !known => break (lease, project.lock()?),
            // What the old holder had in hand is read again, now under the lock.
            None => {}
        }
    };
    place::write(&project.fencing(), format!("{}\n", lease.fencing).as_bytes(), 0o600, Durability::Synced)?;
    place::write(&project.lease(), &canonical_json(&lease), 0o600, Durability::Synced)?;
    Ok(Ok(Held { project, lease, ttl_ms: request.ttl_ms }))
}

/// Ends an older session and everything it started: SIGTERM, a while, SIGKILL.
async fn end(old: Process) -> Result<(), LeaseError> {
    let mut all = vec![old];
    all.extend(clock::descendants(old.pid));
    let gone = |all: &[Process]| {
        all.iter().all(|process| clock::process(process.pid).map(|now| now.start) != Some(process.start))
    };
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, END)] {
        for process in clock::descendants(old.pid) {
            if !all.contains(&process) {
                all.push(process);
            }
        }
        for process in
            all.iter().filter(|process| clock::process(process.pid).map(|now| now.start) == Some(process.start))
        {
            if let Some(pid) = Pid::from_raw(process.pid) {
                // Each is in a group that it leads, or in its parent's. That it is gone by now is what is wanted.
                let _ = kill_process_group(pid, signal);
                let _ = kill_process(pid, signal);
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < patience {
            if gone(&all) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Err(LeaseError::Survives { pid: old.pid })
}

fn lost(gone: Gone) -> LeaseError {
    let why = match gone {
        Gone::Taken => "a newer holder took it",
        Gone::Expired => "it expired, the operator was not heard for too long",
    };
    LeaseError::Lost { why }
}

impl Held {
    /// The lease as recorded.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The project's records.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// Holds the records' lock and checks that the lease is still this session's and has not expired.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] when it is not.
    pub fn guard(&self) -> Result<Lock, LeaseError> {
        let lock = self.project.lock()?;
        guard(&self.lease, recorded(&self.project)?.as_ref(), clock::boottime_ms()).map_err(lost)?;
        Ok(lock)
    }

    /// How long it takes from now until the operator is given up, if nothing is heard meanwhile; zero once that is so.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(given_up_ms(&self.lease, self.ttl_ms).saturating_sub(clock::boottime_ms()))
    }

    fn check(&self) -> Result<(), LeaseError> {
        let ours = is_held(&self.lease, recorded(&self.project)?.as_ref());
        if ours { Ok(()) } else { Err(lost(Gone::Taken)) }
    }

    /// The operator is alive: the lease lasts another while.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] when a newer holder has it. One that merely expired revives: nobody took it.
    pub fn heartbeat(&mut self) -> Result<(), LeaseError> {
        let _lock = self.project.lock()?;
        self.check()?;
        let lease = Lease { expires_ms: clock::boottime_ms().saturating_add(self.ttl_ms), ..self.lease.clone() };
        // After a reboot the lease is void anyway, so it needs no sync.
        place::write(&self.project.lease(), &canonical_json(&lease), 0o600, Durability::UntilReboot)?;
        self.lease = lease;
        Ok(())
    }

    /// Gives the lease back. The fencing number stays.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] when there is nothing to give back.
    pub fn release(self) -> Result<(), LeaseError> {
        let _lock = self.project.lock()?;
        self.check()?;
        let path = self.project.lease();
        abort::point("kept", || "lease".to_owned());
        std::fs::remove_file(&path).map_err(place::failed("remove", &path))?;
        abort::point("released", || "lease".to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;

    use super::*;
    use crate::place::Place;

    fn request(holder: &str, fencing: u64) -> LeaseRequest {
        LeaseRequest { scope: "shop".into(), holder: holder.into(), who: "a@b".into(), fencing, ttl_ms: 10_000 }
    }

    fn project() -> (tempfile::TempDir, Project) {
        let dir = tempfile::tempdir().expect("a directory");
        let project = Place::new(dir.path().join("jiji")).project("shop").expect("a scope");
        (dir, project)
    }

    /// The lease of a session that runs and whose time is up.
    fn expired(pid: i32) -> Lease {
        Lease {
            version: Lease::VERSION,
            holder: "a".into(),
            who: "a@b".into(),
            fencing: 1,
            boot_id: clock::boot_id().expect("readable"),
            granted_ms: 0,
            expires_ms: 0,
            session: pid,
            session_start: clock::process(pid).expect("runs").start,
        }
    }

    #[tokio::test]
    async fn a_lease_is_held_renewed_and_given_back_and_its_number_stays() {
        let (_dir, project) = project();
        assert!(observe(&project).expect("looked").is_none() && !project.dir().exists());
        let mut held = acquire(project.clone(), &request("a", 3)).await.expect("asked").expect("granted");
        assert!(observe(&project).expect("looked").is_some_and(|facts| facts.live));
        let other = acquire(project.clone(), &request("b", 4)).await.expect("asked");
        assert!(matches!(other, Err(LeaseDecision::Held(_))));
        let before = held.lease().expires_ms;
        std::thread::sleep(Duration::from_millis(5));
        held.heartbeat().expect("beats");
        assert!(recorded(&project).expect("read").expect("there").expires_ms > before);
        held.guard().expect("ours");
        held.release().expect("given back");
        assert!(observe(&project).expect("looked").is_none());
        assert_eq!(fencing(&project).expect("read"), 3);
        let stale = acquire(project.clone(), &request("b", 3)).await.expect("asked");
        assert!(matches!(stale, Err(LeaseDecision::Stale { highest: 3 })));
    }

    #[tokio::test]
    async fn a_holder_whose_lease_was_taken_can_do_nothing_more() {
        let (_dir, project) = project();
        let brief = LeaseRequest { ttl_ms: 0, ..request("a", 1) };
        let mut old = acquire(project.clone(), &brief).await.expect("asked").expect("granted");
        assert!(matches!(old.guard(), Err(LeaseError::Lost { .. })));
        old.heartbeat().expect("nobody took it");
        let new = acquire(project.clone(), &request("b", 2)).await.expect("asked").expect("granted");
        for lost in [old.guard().map(drop), old.heartbeat(), old.release()] {
            assert!(matches!(lost, Err(LeaseError::Lost { .. })));
        }
        new.guard().expect("the newer holder's is untouched");
    }

    #[tokio::test]
    async fn a_holder_that_froze_with_the_lock_in_hand_is_ended_all_the_same() {
        let (_dir, project) = project();
        project.create().expect("created");
        let lock = project.dir().join("lock");
        let mut frozen = std::process::Command::new("sh")
            .args(["-c", "exec 9>\"$1\"; flock 9; kill -STOP $$", "sh"])
            .arg(&lock)
            .process_group(0)
            .spawn()
            .expect("started");
        let pid = i32::try_from(frozen.id()).expect("a number");
        while project.try_lock().expect("tried").is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let lease = Lease { expires_ms: u64::MAX, ..expired(pid) };
        let write = |lease: &Lease| std::fs::write(project.lease(), canonical_json(lease)).expect("written");
        write(&lease);
        let held = acquire(project.clone(), &request("b", 2)).await.expect("asked");
        assert!(matches!(held, Err(LeaseDecision::Held(_))), "it has not expired");
        write(&expired(pid));
        let reaper = std::thread::spawn(move || frozen.wait());
        let held = acquire(project.clone(), &request("b", 2)).await.expect("asked").expect("granted");
        assert_eq!(held.lease().fencing, 2);
        assert!(!reaper.join().expect("waited").expect("ended").success());

        let other = project.clone();
        let _lock = other.lock().expect("locked");
        // Nobody who may be ended holds it: that is told, not waited for.
        write(&Lease { session_start: 1, ..lease });
        assert!(matches!(acquire(project, &request("c", 3)).await, Err(LeaseError::Locked)));
    }

    #[tokio::test]
    async fn a_newer_holder_ends_an_older_session_and_what_it_started() {
        let (_dir, project) = project();
        project.create().expect("created");
        // A shell that ignores SIGTERM, with a child in a group of its own.
        let mut old = std::process::Command::new("sh")
            .args(["-c", "trap '' TERM; setsid sleep 60 & wait; sleep 60"])
            .process_group(0)
            .spawn()
            .expect("started");
        let pid = i32::try_from(old.id()).expect("a number");
        let mut children = Vec::new();
        for _ in 0..1000 {
            children = clock::descendants(pid);
            if !children.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let child = children[0];
        std::fs::write(project.lease(), canonical_json(&expired(pid))).expect("written");
        let reaper = std::thread::spawn(move || old.wait());
        acquire(project, &request("b", 2)).await.expect("asked").expect("granted");
        assert_eq!((clock::process(pid), clock::process(child.pid)), (None, None));
        reaper.join().expect("joined").expect("reaped");
    }
}
