//! Releases, audit log, addresses and roster: what stays after a transaction.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use jiji_model::digest::canonical_json;
use jiji_model::transaction::audit::{AuditEvent, AuditLine};
use jiji_model::transaction::{HostRecords, Release, ReleaseLine, Roster, roster};

use crate::abort;
use crate::place::{self, Durability, Place, PlaceError, Project, failed};
use crate::{journal, lease, secrets};

/// How many releases a host remembers at least: a record is a few kilobytes, and one that outlives its image can be gone back to by
/// bringing the image again.
const REMEMBERED: u32 = 20;

/// Everything that is kept of a project, and what it shares with others. Writes nothing.
///
/// # Errors
/// [`PlaceError`] when a record cannot be read.
pub fn observe(place: &Place, scope: &str) -> Result<HostRecords, PlaceError> {
    let project = place.project(scope)?;
    let transaction = journal::read(&project.journal())?;
    let releases = kept(&project)?;
    // A file that was lost or changed must not let a number be given twice.
    let begun = transaction.as_ref().map_or(0, |transaction| transaction.begin.fencing);
    let released = releases.first().map_or(0, |release| release.number);
    Ok(HostRecords {
        fencing: lease::fencing(&project)?.max(begun).max(released),
        lease: lease::observe(&project)?,
        transaction,
        releases,
        last_address: last_address(place)?,
        roster: place::read_record(&place.roster(), Roster::VERSION)?,
    })
}

/// A project's releases, the newest first.
///
/// # Errors
/// [`PlaceError`].
pub fn releases(project: &Project) -> Result<Vec<Release>, PlaceError> {
    let mut releases = Vec::new();
    for number in numbers(project)?.into_values() {
        releases.extend(place::read_record(&number, Release::VERSION)?);
    }
    releases.reverse();
    Ok(releases)
}

/// Those of a project's releases whose images and blobs the host keeps, the newest first.
///
/// # Errors
/// [`PlaceError`].
pub fn kept(project: &Project) -> Result<Vec<Release>, PlaceError> {
    let mut kept: Vec<Release> = Vec::new();
    for path in numbers(project)?.into_values().rev() {
        let retain = kept.first().and_then(|newest| newest.retain);
        if retain.is_some_and(|retain| kept.len() >= usize::try_from(retain).unwrap_or(usize::MAX)) {
            break;
        }
        kept.extend(place::read_record::<Release>(&path, Release::VERSION)?);
    }
    Ok(kept)
}

/// Every release that is remembered, the newest first, in short. One that is damaged is left out: drift is told apart from history.
///
/// # Errors
/// [`PlaceError`], [`PlaceError::Newer`] for one of a newer jiji.
pub fn history(project: &Project) -> Result<Vec<ReleaseLine>, PlaceError> {
    let mut lines = Vec::new();
    for path in numbers(project)?.into_values().rev() {
        match place::read_record::<Release>(&path, Release::VERSION) {
            Ok(release) => lines.extend(release.map(|release| release.line())),
            Err(PlaceError::Record { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lines)
}

/// The newest release up to number `at`.
///
/// # Errors
/// [`PlaceError`].
pub fn release_at(project: &Project, at: u64) -> Result<Option<Release>, PlaceError> {
    let numbers = numbers(project)?;
    match numbers.range(..=at).next_back() {
        Some((_, path)) => place::read_record(path, Release::VERSION),
        None => Ok(None),
    }
}

/// The releases' files by their numbers.
pub(crate) fn numbers(project: &Project) -> Result<BTreeMap<u64, std::path::PathBuf>, PlaceError> {
    let dir = project.releases();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed("list", &dir)(error)),
    };
    let mut numbers = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed("list", &dir))?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")?.parse().ok());
        if let Some(number) = number {
            numbers.insert(number, path);
        }
    }
    Ok(numbers)
}

/// Keeps a release under the host's seal, and of the older ones as many as make `retain` together, or more: the record of a release is
/// kept longer than its image.
///
/// # Errors
/// [`PlaceError`].
pub fn keep_release(place: &Place, project: &Project, release: &Release, retain: u32) -> Result<(), PlaceError> {
    let dir = project.releases();
    place::create_dir(&dir)?;
    let path = dir.join(format!("{}.json", release.number));
    let mut release = Release { retain: Some(retain.max(1)), seal: None, ..release.clone() };
    // A key that is damaged is told of by drift; a release that was decided is kept all the same.
    release.seal = secrets::ensure_host_key(place).ok().map(|key| secrets::seal(&key, &release));
    place::write(&path, &canonical_json(&release), 0o600, Durability::Synced)?;
    let remembered = usize::try_from(retain.max(REMEMBERED)).unwrap_or(usize::MAX);
    for path in numbers(project)?.into_values().rev().skip(remembered) {
        fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    place::sync_dir(&dir)
}

/// Adds a line to the audit log, unless the last line says the same: whoever was killed after it was written says it again.
///
/// # Errors
/// [`PlaceError`].
pub fn audit(project: &Project, event: AuditEvent) -> Result<(), PlaceError> {
    let path = project.audit();
    let last = last_line(&path)?;
    if let Some(line) = last.as_deref().and_then(|line| serde_json::from_slice::<AuditLine>(line).ok())
        && (&line.event.transaction, &line.event.result) == (&event.transaction, &event.result)
    {
        return Ok(());
    }
    let mut line = AuditLine::after(last.as_deref(), event);
    line.push(b'\n');
    let new = last.is_none();
    let mut file =
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed("open", &path))?;
    let place = || "audit".to_owned();
    abort::torn(place, &mut || {
        // What cannot be written even so is torn all the more.
        let _ = (&file).write_all(&line[..line.len() / 2]);
    });
    file.write_all(&line).map_err(failed("write", &path))?;
    abort::point("written", place);
    file.sync_all().map_err(failed("sync", &path))?;
    abort::point("synced", place);
    if new { place::sync_dir(project.dir()) } else { Ok(()) }
}

/// The last whole line of a file. A torn line at its end is cut off: it was not synced, so nothing followed from it.
fn last_line(path: &Path) -> Result<Option<Vec<u8>>, PlaceError> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    // An audit line is short; a megabyte holds the last one however long the log.
    let length = file.metadata().map_err(failed("look at", path))?.len();
    let from = length.saturating_sub(1024 * 1024);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut tail)).map_err(failed("read", path))?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |index| index + 1);
    if whole < tail.len() {
        file.set_len(from + whole as u64)
            .and_then(|()| file.sync_all())
            .map_err(failed("cut the torn line off", path))?;
    }
    let mut lines = tail[..whole].split(|byte| *byte == b'\n');
    Ok(lines.rfind(|line| !line.is_empty()).map(<[u8]>::to_vec))
}

/// The container address leased last on this host, by any project.
///
/// # Errors
/// [`PlaceError`].
pub fn last_address(place: &Place) -> Result<Option<Ipv4Addr>, PlaceError> {
    let path = place.last_address();
    let Some(bytes) = place::read(&path, 64)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes);
    text.trim()
        .parse()
        .map(Some)
        .map_err(|_| PlaceError::Record { reason: format!("`{}` is no address", text.trim()), path })
}

/// Remembers that an address was given to a container, before it is. Addresses that are kept for plugins do not count.
///
/// # Errors
/// [`PlaceError`].
pub fn remember_address(place: &Place, address: Ipv4Addr) -> Result<(), PlaceError> {
    let leased = |number| roster::addresses(number).any(|leased| leased == address);
    if !roster::number_of(address).is_some_and(leased) {
        return Ok(());
    }
    let _lock = place.lock_shared_things()?;
    if last_address(place).ok().flatten() == Some(address) {
        return Ok(());
    }
    place::write(&place.last_address(), format!("{address}\n").as_bytes(), 0o600, Durability::Synced)
}

#[cfg(test)]
mod tests {
    use jiji_model::digest::Digest;
    use jiji_model::transaction::audit::verify;

    use super::*;

    fn project() -> (tempfile::TempDir, Place, Project) {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::new(dir.path().join("jiji"));
        let project = place.project("shop").expect("a scope");
        (dir, place, project)
    }

    fn release(number: u64) -> Release {
        Release {
            version: Release::VERSION,
            number,
            transaction: format!("t{number}"),
            plan: Digest::of("plan"),
            who: "a@b".into(),
            command: "ship".into(),
            at_s: 0,
            services: BTreeMap::new(),
            retain: None,
            secrets: BTreeMap::new(),
            seal: None,
        }
    }

    fn event(transaction: &str) -> AuditEvent {
        AuditEvent {
            transaction: transaction.into(),
            fencing: 1,
            who: "a@b".into(),
            command: "ship".into(),
            result: "committed".into(),
            at_s: 0,
            services: Vec::new(),
        }
    }

    #[test]
    fn records_of_version_1_are_read_as_they_were_written() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1");
        let transaction = journal::read(&fixtures.join("journal")).expect("readable").expect("a transaction");
        assert!(transaction.concluded && transaction.begin.fencing == 32 && transaction.begin.steps.len() == 7);
        assert!(transaction.to_undo().is_empty());
        let lease: jiji_model::transaction::Lease =
            place::read_record(&fixtures.join("lease.json"), 1).expect("readable").expect("there");
        assert_eq!((lease.fencing, canonical_json(&lease)), (32, fs::read(fixtures.join("lease.json")).expect("read")));
        let release: Release = place::read_record(&fixtures.join("release.json"), 1).expect("readable").expect("there");
        assert_eq!(canonical_json(&release), fs::read(fixtures.join("release.json")).expect("read"));
        assert_eq!(verify(&fs::read(fixtures.join("audit.jsonl")).expect("read")), Ok(3));
    }

    #[test]
    fn looking_at_a_project_that_was_never_here_creates_nothing() {
        let (_dir, place, _) = project();
        assert_eq!(observe(&place, "shop").expect("looked"), HostRecords::default());
        assert!(!place.root().exists());
    }

    #[test]
    fn records_of_version_2_are_read_as_they_were_written() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v2/release.json");
        let release: Release = place::read_record(&path, Release::VERSION).expect("readable").expect("there");
        assert_eq!(canonical_json(&release), fs::read(path).expect("read"));
        assert_eq!((release.version, release.retain, release.secrets.len()), (2, Some(2), 1));
        let key = [7; 32];
        assert_eq!(release.seal, Some(secrets::seal(&key, &release)), "the fixture was sealed with this key");
        assert!(
            place::read_record::<Release>(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v2/release.json"), 1)
                .is_err()
        );
    }

    #[test]
    fn the_newest_releases_are_kept_by_number_and_not_by_name() {
        let (_dir, place, project) = project();
        project.create().expect("created");
        for number in (1..=30).rev().chain([31]) {
            keep_release(&place, &project, &release(number), 3).expect("kept");
        }
        let lines: Vec<u64> = history(&project).expect("read").iter().map(|line| line.number).collect();
        assert_eq!(lines, (12..=31).rev().collect::<Vec<_>>(), "twenty are remembered");
        let kept: Vec<u64> = kept(&project).expect("read").iter().map(|release| release.number).collect();
        assert_eq!(kept, [31, 30, 29], "the images of three are kept");
        assert_eq!(release_at(&project, 500).expect("read").map(|release| release.number), Some(31));
        assert_eq!(release_at(&project, 11).expect("read"), None);
    }

    #[test]
    fn a_number_is_not_given_twice_though_the_file_that_counts_was_lost() {
        let (_dir, place, project) = project();
        project.create().expect("created");
        keep_release(&place, &project, &release(7), 2).expect("kept");
        assert_eq!(observe(&place, "shop").expect("looked").fencing, 7);
    }

    #[test]
    fn a_change_to_a_sealed_release_shows() {
        let (_dir, place, project) = project();
        project.create().expect("created");
        keep_release(&place, &project, &release(7), 2).expect("kept");
        let mut kept = release_at(&project, 7).expect("read").expect("there");
        let key = secrets::host_key(&place).expect("readable").expect("made");
        assert_eq!(kept.seal, Some(secrets::seal(&key, &kept)));
        kept.who = "somebody@else".into();
        assert_ne!(kept.seal, Some(secrets::seal(&key, &kept)));
    }

    #[test]
    fn audit_lines_follow_from_each_other_are_not_doubled_and_survive_a_torn_one() {
        let (_dir, _, project) = project();
        project.create().expect("created");
        audit(&project, event("t1")).expect("added");
        audit(&project, event("t1")).expect("there already");
        let mut torn = fs::read(project.audit()).expect("read");
        torn.extend_from_slice(b"{\"version\":1,\"prev");
        fs::write(project.audit(), torn).expect("written");
        audit(&project, event("t2")).expect("added");
        assert_eq!(verify(&fs::read(project.audit()).expect("read")), Ok(2));
    }

    #[test]
    fn addresses_of_services_are_remembered_and_those_of_plugins_are_not() {
        let (_dir, place, _) = project();
        for (address, remembered) in [
            ([10, 210, 3, 130], None),
            ([127, 0, 0, 1], None),
            ([10, 210, 3, 140], Some([10, 210, 3, 140])),
            ([10, 210, 3, 131], Some([10, 210, 3, 140])),
        ] {
            remember_address(&place, address.into()).expect("remembered");
            assert_eq!(last_address(&place).expect("read"), remembered.map(Ipv4Addr::from));
        }
    }
}
