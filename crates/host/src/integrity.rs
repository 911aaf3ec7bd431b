//! Whether what jiji keeps on this host is as jiji wrote it, and what is done about what is not.
//!
//! A record that was changed, torn or removed shows in one of these: it cannot be read; its seal under the host's key does not fit; it
//! contradicts another record of the same transaction; the audit log's chain is broken. Looking changes nothing. [`set_aside`] moves what
//! is damaged out of the way, and only that, so that nothing is lost for whoever wants to know what happened. Which containers, images
//! and routes are due is not judged here: that is the operator's, from what this host and the others remember.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiji_model::digest::Digest;
use jiji_model::observation::{Damage, IntegrityFacts, ProgramFacts, RecordFile};
use jiji_model::transaction::audit::{AuditLine, verify};
use jiji_model::transaction::{Decision, HostRecords, Release, Roster, Transaction};

use crate::place::{self, Place, PlaceError, Project, failed};
use crate::{clock, journal, lease, records, secrets};

/// Most bytes of an audit log that are verified.
const AUDIT: u64 = 64 * 1024 * 1024;

/// The name of the directory for what was set aside.
const ASIDE: &str = "aside";

/// What a look found so far.
struct Findings(Vec<Damage>);

impl Findings {
    fn add(&mut self, file: RecordFile, reason: impl Into<String>) {
        self.0.push(Damage { file, reason: reason.into() });
    }

    /// What was read; none where it is damaged, which is noted. What a newer jiji wrote is no damage but an error.
    fn whole<T>(&mut self, file: RecordFile, read: Result<T, PlaceError>) -> Result<Option<T>, PlaceError> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(PlaceError::Record { reason, .. }) => {
                self.add(file, reason);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Looks at everything that is kept of a project and of the host. Writes nothing.
///
/// # Errors
/// [`PlaceError`] when something cannot be read at all, or a newer jiji wrote it.
pub fn look(place: &Place, scope: &str) -> Result<IntegrityFacts, PlaceError> {
    let project = place.project(scope)?;
    let mut found = Findings(Vec::new());
    let lease = found.whole(RecordFile::Lease, lease::observe(&project))?.flatten();
    let fencing = found.whole(RecordFile::Fencing, lease::fencing(&project))?;
    let transaction = found.whole(RecordFile::Journal, journal::read(&project.journal()))?.flatten();
    let roster = found.whole(RecordFile::Roster, place::read_record(&place.roster(), Roster::VERSION))?.flatten();
    let last_address = found.whole(RecordFile::LastAddress, records::last_address(place))?.flatten();
    let mut releases = releases(place, &project, &mut found)?;
    let (transaction, decided) = last(transaction, &releases, &mut found);
    let newest = releases.first().or(decided.as_deref());
    let begun = transaction.as_ref().map_or(0, |transaction| transaction.begin.fencing);
    let given = newest.map_or(0, |release| release.number).max(begun);
    if let Some(fencing) = fencing.filter(|fencing| *fencing < given) {
        found.add(RecordFile::Fencing, format!("it says {fencing}, and {given} was given"));
    }
    audit(&project, releases.first(), &mut found)?;
    if let Some(retain) = releases.first().and_then(|newest| newest.retain) {
        releases.truncate(usize::try_from(retain).unwrap_or(usize::MAX));
    }
    Ok(IntegrityFacts {
        records: HostRecords {
            fencing: fencing.unwrap_or(0).max(given),
            lease,
            transaction,
            releases,
            last_address,
            roster,
        },
        damaged: found.0,
        decided,
        mode: fs::metadata(place.root()).ok().map(|metadata| metadata.permissions().mode() & 0o7777),
        programs: programs(&place.root().join("bin")),
    })
}

/// The releases that are whole, the newest first.
fn releases(place: &Place, project: &Project, found: &mut Findings) -> Result<Vec<Release>, PlaceError> {
    let key = found.whole(RecordFile::Key, secrets::host_key(place))?;
    // One that is damaged is noted once, and nothing can be told by it.
    let readable = key.is_some();
    let key = key.flatten();
    let mut releases: Vec<Release> = Vec::new();
    for (number, path) in records::numbers(project)?.into_iter().rev() {
        let file = RecordFile::Release(number);
        let Some(release) = found.whole(file, place::read_record::<Release>(&path, Release::VERSION))?.flatten() else {
            continue;
        };
        if release.number != number {
            found.add(file, format!("it says that it is release {}", release.number));
            continue;
        }
        match (&release.seal, &key) {
            (Some(seal), Some(key)) if seal.key == secrets::key_id(key) => {
                let due = secrets::seal(key, &release);
                if *seal != due {
                    found.add(file, "it was changed after it was written");
                    continue;
                }
            }
            // An older release may have been sealed with a key that is gone by now. The newest shows which one is due.
            (Some(_), Some(_)) if releases.is_empty() => {
                found.add(RecordFile::Key, format!("it is not the key that release {number} was sealed with"));
            }
            (Some(_), None) if releases.is_empty() && readable => {
                found.add(RecordFile::Key, format!("it is gone, and release {number} was sealed with it"));
            }
            _ => {}
        }
        releases.push(release);
    }
    Ok(releases)
}

/// Compares the last transaction with the release that it made. Gives the transaction where its journal is to be believed, and the
/// release that it decided where that is to be made good.
fn last(
    transaction: Option<Transaction>,
    releases: &[Release],
    found: &mut Findings,
) -> (Option<Transaction>, Option<Box<Release>>) {
    let Some(transaction) = transaction else { return (None, None) };
    let begin = &transaction.begin;
    let committed = transaction.settlement.is_some_and(|settlement| settlement.decision == Decision::Commit);
    if !transaction.concluded || !committed {
        return (Some(transaction), None);
    }
    let made = releases.iter().find(|release| release.number == begin.fencing);
    match made {
        Some(made) if made.transaction == begin.transaction && made.services == begin.services => {}
        Some(made) if made.seal.is_some() => {
            found.add(
                RecordFile::Journal,
                format!("it says something else than release {}, which it made", made.number),
            );
            return (None, None);
        }
        // Version 1 had no seal: which of the two was changed nobody can tell, and the release is what was meant to stay.
        Some(_) => {}
        None => {
            let file = RecordFile::Release(begin.fencing);
            if !found.0.iter().any(|damage| damage.file == file) {
                found.add(file, "it is gone, and the journal says that it was made");
            }
            let decided = Box::new(Release::of(begin));
            return (Some(transaction), Some(decided));
        }
    }
    (Some(transaction), None)
}

/// Verifies the audit log.
fn audit(project: &Project, newest: Option<&Release>, found: &mut Findings) -> Result<(), PlaceError> {
    let Some(log) = place::read(&project.audit(), AUDIT)? else {
        if let Some(newest) = newest {
            found.add(RecordFile::Audit, format!("it is gone, and release {} was made", newest.number));
        }
        return Ok(());
    };
    // A torn last line was never synced; the next one that is written cuts it off.
    let whole = log.iter().rposition(|byte| *byte == b'\n').map_or(0, |index| index + 1);
    let log = &log[..whole];
    if let Err(line) = verify(log) {
        found.add(RecordFile::Audit, format!("line {line} does not follow from the one before it"));
        return Ok(());
    }
    let tells = |newest: &Release| {
        let lines = log.split(|byte| *byte == b'\n').rev();
        lines
            .filter_map(|line| serde_json::from_slice::<AuditLine>(line).ok())
            .any(|line| line.event.transaction == newest.transaction)
    };
    if let Some(newest) = newest.filter(|newest| !tells(newest)) {
        found.add(RecordFile::Audit, format!("it does not tell of release {}", newest.number));
    }
    Ok(())
}

/// Programs that are not what their names say, or that others may change or run.
fn programs(dir: &Path) -> Vec<ProgramFacts> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let is_digest = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let metadata = entry.metadata().ok().filter(|metadata| is_digest && metadata.is_file())?;
        let mode = metadata.permissions().mode() & 0o7777;
        let sha256 = Digest::of(fs::read(entry.path()).ok()?);
        (sha256.hex() != name || mode != 0o700).then_some(ProgramFacts { name, sha256, mode })
    };
    let mut programs: Vec<_> = entries.filter_map(of).collect();
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    programs
}

/// Moves those of `files` that are damaged into a directory beside them, where jiji reads nothing. Whatever is whole stays.
///
/// # Errors
/// [`PlaceError`].
pub fn set_aside(place: &Place, scope: &str, files: &[RecordFile]) -> Result<(), PlaceError> {
    let project = place.project(scope)?;
    let _lock = project.lock()?;
    let damaged: BTreeMap<RecordFile, PathBuf> = look(place, scope)?
        .damaged
        .into_iter()
        .filter(|damage| files.contains(&damage.file))
        .map(|damage| (damage.file, path(place, &project, damage.file)))
        .collect();
    let shared = |file: &RecordFile| matches!(file, RecordFile::Key | RecordFile::Roster | RecordFile::LastAddress);
    let _shared = if damaged.keys().any(shared) { Some(place.lock_shared_things()?) } else { None };
    for (file, from) in damaged {
        let dir = if shared(&file) { place.root() } else { project.dir() }.join(ASIDE);
        place::create_dir(&dir)?;
        let name = file.to_string().replace('/', "-");
        let to = dir.join(format!("{name}.{}", clock::wall_clock_s()));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(failed("set aside", &from))?,
        }
        place::sync_dir(&dir)?;
        place::sync_dir(from.parent().unwrap_or(place.root()))?;
    }
    Ok(())
}

fn path(place: &Place, project: &Project, file: RecordFile) -> PathBuf {
    match file {
        RecordFile::Lease => project.lease(),
        RecordFile::Fencing => project.fencing(),
        RecordFile::Journal => project.journal(),
        RecordFile::Release(number) => project.releases().join(format!("{number}.json")),
        RecordFile::Audit => project.audit(),
        RecordFile::Roster => place.roster(),
        RecordFile::LastAddress => place.last_address(),
        RecordFile::Key => place.host_key(),
    }
}

#[cfg(test)]
mod tests {
    use jiji_model::name::HostName;
    use jiji_model::transaction::audit::AuditEvent;
    use jiji_model::transaction::{Begin, Entry, Settlement};

    use super::*;
    use crate::journal::Journal;

    /// A host on which release 7 was made.
    fn shipped() -> (tempfile::TempDir, Place, Project) {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::new(dir.path().join("jiji"));
        let project = place.project("shop").expect("a scope");
        project.create().expect("created");
        let host = HostName::new("one").expect("a name");
        let begin = Begin {
            version: Begin::VERSION,
            transaction: "t7".into(),
            scope: "shop".into(),
            fencing: 7,
            who: "ann@laptop".into(),
            command: "ship".into(),
            at_s: 1,
            plan: Digest::of("plan"),
            hosts: vec![host.clone()],
            addresses: BTreeMap::new(),
            host,
            steps: Vec::new(),
            services: BTreeMap::new(),
        };
        let mut journal = Journal::begin(&project.journal(), begin.clone()).expect("begun");
        let settlement = Settlement { decision: Decision::Commit, fencing: 7 };
        journal.append(Entry::Settled(settlement)).expect("settled");
        records::keep_release(&place, &project, &Release::of(&begin), 2).expect("kept");
        let event = AuditEvent {
            transaction: "t7".into(),
            fencing: 7,
            who: "ann@laptop".into(),
            command: "ship".into(),
            result: "committed".into(),
            at_s: 1,
            services: Vec::new(),
        };
        records::audit(&project, event).expect("told");
        journal.append(Entry::Concluded).expect("concluded");
        fs::write(project.fencing(), "7\n").expect("written");
        (dir, place, project)
    }

    fn damaged(place: &Place) -> Vec<RecordFile> {
        look(place, "shop").expect("looked").damaged.into_iter().map(|damage| damage.file).collect()
    }

    fn edit(path: &Path, from: &str, to: &str) {
        let text = fs::read_to_string(path).expect("read");
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).expect("written");
    }

    #[test]
    fn what_jiji_wrote_is_whole_and_a_host_without_anything_too() {
        let (_dir, place, _) = shipped();
        let facts = look(&place, "shop").expect("looked");
        assert_eq!((facts.damaged, facts.programs, facts.mode), (Vec::new(), Vec::new(), Some(0o700)));
        assert_eq!(facts.records, records::observe(&place, "shop").expect("read"));
        let empty = tempfile::tempdir().expect("a directory");
        let place = Place::new(empty.path().join("jiji"));
        assert_eq!(look(&place, "shop").expect("looked"), IntegrityFacts::default());
        assert!(!place.root().exists(), "looking creates nothing");
    }

    /// A record, and what is done to it.
    type Tampering<'a> = (RecordFile, &'a dyn Fn(&Place, &Project));

    #[test]
    fn each_record_that_was_changed_is_named() {
        let release = |project: &Project| project.releases().join("7.json");
        let cases: [Tampering<'_>; 10] = [
            (RecordFile::Release(7), &|_, project| edit(&release(project), "ann@laptop", "bob@laptop")),
            (RecordFile::Release(7), &|_, project| fs::remove_file(release(project)).expect("removed")),
            (RecordFile::Release(7), &|_, project| fs::write(release(project), "{").expect("written")),
            (RecordFile::Journal, &|_, project| edit(&project.journal(), r#""fencing":7"#, r#""fencing":"x""#)),
            (RecordFile::Journal, &|_, project| edit(&project.journal(), "t7", "t8")),
            (RecordFile::Audit, &|_, project| edit(&project.audit(), "sha256:e3", "sha256:e4")),
            (RecordFile::Audit, &|_, project| fs::remove_file(project.audit()).expect("removed")),
            (RecordFile::Fencing, &|_, project| fs::remove_file(project.fencing()).expect("removed")),
            (RecordFile::Key, &|place, _| fs::write(place.host_key(), [7; 32]).expect("written")),
            (RecordFile::Lease, &|_, project| fs::write(project.lease(), "mine").expect("written")),
        ];
        for (number, (file, tamper)) in cases.into_iter().enumerate() {
            let (_dir, place, project) = shipped();
            tamper(&place, &project);
            assert_eq!(damaged(&place), [file], "case {number}");
            set_aside(&place, "shop", &[]).expect("nothing was asked for");
            assert_eq!(damaged(&place), [file], "case {number}");
        }
    }

    #[test]
    fn a_release_that_is_gone_is_told_by_the_journal_that_made_it() {
        let (_dir, place, project) = shipped();
        fs::write(project.releases().join("7.json"), "{").expect("written");
        set_aside(&place, "shop", &[RecordFile::Release(7)]).expect("set aside");
        let facts = look(&place, "shop").expect("looked");
        assert_eq!(facts.damaged.len(), 1, "now it is gone: {:?}", facts.damaged);
        let decided = facts.decided.expect("the journal tells it");
        assert_eq!((decided.number, decided.transaction.as_str()), (7, "t7"));
        records::keep_release(&place, &project, &decided, 2).expect("kept");
        assert_eq!(damaged(&place), []);
        assert_eq!(fs::read_dir(project.dir().join(ASIDE)).expect("listed").count(), 1, "nothing is lost");
    }

    #[test]
    fn only_what_is_damaged_is_set_aside() {
        let (_dir, place, project) = shipped();
        edit(&project.audit(), "sha256:e3", "sha256:e4");
        let all = [RecordFile::Audit, RecordFile::Journal, RecordFile::Release(7), RecordFile::Key];
        set_aside(&place, "shop", &all).expect("set aside");
        assert!(!project.audit().exists() && project.journal().exists() && place.host_key().exists());
        assert_eq!(damaged(&place), [RecordFile::Audit], "it is gone now, and a release was made");
    }

    #[test]
    fn a_program_with_other_bytes_or_another_mode_is_named() {
        let (_dir, place, _) = shipped();
        let bin = place.root().join("bin");
        fs::create_dir(&bin).expect("made");
        let put = |bytes: &str, mode| {
            let path = bin.join(Digest::of("program").hex());
            fs::write(&path, bytes).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            look(&place, "shop").expect("looked").programs.len()
        };
        assert_eq!([put("program", 0o700), put("program", 0o777), put("other", 0o700)], [0, 1, 1]);
    }
}
