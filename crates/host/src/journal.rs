//! What a transaction did on this host, written before and after it is done.
//!
//! One JSON entry per line, appended and synced: before what it announces is done, and before anybody is told what it tells. That a step has
//! ended may become lasting with the entry after it. Whoever loses it with the host's power finds the step begun, as after a death between
//! its effect and its entry. A process that dies while it writes leaves a torn last line: it announces nothing, so
//! it is left out when reading and cut off before the next append. The transitions themselves are [`jiji_model::transaction::journal`]'s.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiji_model::digest::canonical_json;
use jiji_model::plan::Step;
use jiji_model::transaction::journal::ReplayError;
use jiji_model::transaction::{Begin, Entry, Transaction};

use crate::abort;
use crate::place::{self, Durability, PlaceError, failed};

/// Most bytes of a journal: a plan of one host and two lines per step.
const LIMIT: u64 = 64 * 1024 * 1024;

/// A journal that is open for writing, and the state it tells.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    transaction: Transaction,
    /// The last entry, where it is written and not synced.
    unsynced: Option<Entry>,
}

/// Reads the transaction off a journal; none where there is no journal. Writes nothing.
///
/// # Errors
/// [`PlaceError::Newer`] when a newer jiji wrote it, [`PlaceError::Record`] when it is no journal.
pub fn read(path: &Path) -> Result<Option<Transaction>, PlaceError> {
    Ok(read_whole(path)?.map(|(transaction, _)| transaction))
}

/// The transaction, and how many bytes of the file tell it.
fn read_whole(path: &Path) -> Result<Option<(Transaction, u64)>, PlaceError> {
    let broken = |reason: String| PlaceError::Record { path: path.to_owned(), reason };
    let Some(bytes) = place::read(path, LIMIT)? else {
        return Ok(None);
    };
    let mut entries = Vec::new();
    let mut whole = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let torn = whole + line.len() == bytes.len();
        match serde_json::from_slice::<Entry>(line) {
            Ok(entry) if line.ends_with(b"\n") => entries.push(entry),
            // It was not synced, so nothing that it announces was done.
            _ if torn && !line.ends_with(b"\n") => break,
            // A power cut can leave blocks of zeros in place of what was not synced.
            Err(_) if torn && line.contains(&0) => break,
            Err(error) => {
                return Err(match newer(line) {
                    true => PlaceError::Newer { path: path.to_owned() },
                    false => broken(error.to_string()),
                });
            }
            Ok(_) => break,
        }
        whole += line.len();
    }
    match Transaction::replay(entries) {
        Ok(transaction) => Ok(transaction.map(|transaction| (transaction, whole as u64))),
        Err(ReplayError::Newer { .. }) => Err(PlaceError::Newer { path: path.to_owned() }),
        Err(error) => Err(broken(error.to_string())),
    }
}

/// Whether a line that this jiji cannot read is the beginning of a journal of a later format.
fn newer(line: &[u8]) -> bool {
    /// What every version of a beginning has.
    #[derive(serde::Deserialize)]
    struct Head {
        entry: String,
        version: u32,
    }
    serde_json::from_slice::<Head>(line).is_ok_and(|head| head.entry == "begin" && head.version > Begin::VERSION)
}

impl Journal {
    /// Begins a journal in place of the last one, which is concluded or is not there.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn begin(path: &Path, begin: Begin) -> Result<Self, PlaceError> {
        let entry = Entry::Begin(Box::new(begin.clone()));
        place::write(path, &line(&entry), 0o600, Durability::Synced)?;
        Self::open_with(path, Transaction::new(begin), None)
    }

    /// Opens a journal for writing; none where there is none. Cuts a torn last line off.
    ///
    /// # Errors
    /// As [`read`].
    pub fn open(path: &Path) -> Result<Option<Self>, PlaceError> {
        read_whole(path)?.map(|(transaction, whole)| Self::open_with(path, transaction, Some(whole))).transpose()
    }

    fn open_with(path: &Path, transaction: Transaction, whole: Option<u64>) -> Result<Self, PlaceError> {
        let mut file = OpenOptions::new().write(true).mode(0o600).open(path).map_err(failed("open", path))?;
        if let Some(whole) = whole.filter(|whole| file.metadata().is_ok_and(|metadata| metadata.len() > *whole)) {
            file.set_len(whole).and_then(|()| file.sync_all()).map_err(failed("cut the torn line off", path))?;
        }
        file.seek(std::io::SeekFrom::End(0)).map_err(failed("seek in", path))?;
        Ok(Self { path: path.to_owned(), file, transaction, unsynced: None })
    }

    /// The state that the entries tell.
    pub fn transaction(&self) -> &Transaction {
        &self.transaction
    }

    /// What an entry is about, as abort points name it.
    fn place(&self, entry: &Entry) -> String {
        let (word, id) = match entry {
            Entry::Begin(_) => return "begin".to_owned(),
            Entry::Settled(settlement) => return format!("settled {:?}", settlement.decision).to_lowercase(),
            Entry::Concluded => return "concluded".to_owned(),
            Entry::Started { step } => ("started", step),
            Entry::Ended { step, .. } => ("ended", step),
            Entry::UndoStarted { step } => ("undo-started", step),
            Entry::UndoEnded { step, .. } => ("undo-ended", step),
        };
        let step = self.transaction.begin.steps.iter().find(|step| step.id == *id);
        step.map_or_else(|| word.to_owned(), |step| place_of(step, word))
    }

    /// Appends an entry, syncs it with all before it, and takes it into the state.
    ///
    /// # Errors
    /// [`PlaceError`]; the entry may or may not be there then.
    pub fn append(&mut self, entry: Entry) -> Result<(), PlaceError> {
        self.write(&entry)?;
        self.sync_at(&entry)?;
        self.take(entry)
    }

    /// Appends an entry that need not outlast the host's power until the next one or [`Self::sync`], and takes it into the state.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_unsynced(&mut self, entry: Entry) -> Result<(), PlaceError> {
        self.write(&entry)?;
        self.unsynced = Some(entry.clone());
        self.take(entry)
    }

    /// Syncs what was appended without.
    ///
    /// # Errors
    /// [`PlaceError`]; the entries may or may not outlast the host's power then.
    pub fn sync(&mut self) -> Result<(), PlaceError> {
        match self.unsynced.take() {
            Some(entry) => self.sync_at(&entry),
            None => Ok(()),
        }
    }

    fn write(&mut self, entry: &Entry) -> Result<(), PlaceError> {
        let text = line(entry);
        abort::torn(|| self.place(entry), &mut || {
            // What cannot be written even so is torn all the more.
            let _ = (&self.file).write_all(&text[..text.len() / 2]);
        });
        (&self.file).write_all(&text).map_err(failed("write", &self.path))?;
        abort::point("written", || self.place(entry));
        Ok(())
    }

    fn sync_at(&mut self, entry: &Entry) -> Result<(), PlaceError> {
        self.file.sync_data().map_err(failed("sync", &self.path))?;
        self.unsynced = None;
        abort::point("synced", || self.place(entry));
        Ok(())
    }

    fn take(&mut self, entry: Entry) -> Result<(), PlaceError> {
        self.transaction
            .apply(entry)
            .map_err(|step| PlaceError::Record { path: self.path.clone(), reason: format!("unknown step `{step}`") })
    }
}

/// What happens to a step, as abort points name it: titles have digests and versions in them, their first words do not.
pub(crate) fn place_of(step: &Step, word: &str) -> String {
    let title = step.title.split(' ').next().unwrap_or_default();
    format!("{word} {} {title}", step.phase)
}

fn line(entry: &Entry) -> Vec<u8> {
    let mut line = canonical_json(entry);
    line.push(b'\n');
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use jiji_model::digest::Digest;
    use jiji_model::name::HostName;
    use jiji_model::plan::{Action, Phase};
    use jiji_model::transaction::{Outcome, StepState};

    use super::*;

    pub(crate) fn begin(steps: Vec<Step>) -> Begin {
        Begin {
            version: Begin::VERSION,
            transaction: "t1".into(),
            scope: "shop".into(),
            fencing: 1,
            who: "a@b".into(),
            command: "ship".into(),
            at_s: 0,
            plan: Digest::of("plan"),
            hosts: vec![HostName::new("one").expect("a name")],
            addresses: BTreeMap::new(),
            host: HostName::new("one").expect("a name"),
            steps,
            services: BTreeMap::new(),
        }
    }

    pub(crate) fn note(phase: Phase, title: &str) -> Step {
        let text = title.to_owned();
        Step::new(&HostName::new("one").expect("a name"), phase, title, Action::Note { text })
    }

    fn started(step: &Step) -> Entry {
        Entry::Started { step: step.id.clone() }
    }

    fn ended(step: &Step) -> Entry {
        Entry::Ended { step: step.id.clone(), outcome: Outcome::Done { output: None } }
    }

    #[test]
    fn a_journal_cut_anywhere_tells_a_beginning_of_what_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let step = note(Phase::Prepare, "do it");
        let mut journal = Journal::begin(&path, begin(vec![step.clone()])).expect("begun");
        let head = fs::metadata(&path).expect("there").len();
        journal.append(started(&step)).expect("appended");
        let middle = fs::metadata(&path).expect("there").len();
        journal.append(ended(&step)).expect("appended");
        let bytes = fs::read(&path).expect("read");
        for cut in 0..=bytes.len() {
            fs::write(&path, &bytes[..cut]).expect("written");
            let state = read(&path).expect("a journal").map(|transaction| transaction.states[0].clone());
            let cut = cut as u64;
            let expected = match cut {
                cut if cut < head => None,
                cut if cut < middle => Some(StepState::Pending),
                cut if cut < bytes.len() as u64 => Some(StepState::Unknown),
                _ => Some(StepState::Ended(Outcome::Done { output: None })),
            };
            assert_eq!(state, expected, "cut at {cut}");
            // What is appended after a torn line stands on a line of its own.
            if let Some(mut journal) = Journal::open(&path).expect("opened") {
                journal.append(Entry::Concluded).expect("appended");
                assert!(read(&path).expect("a journal").expect("a transaction").concluded);
            }
        }
    }

    #[test]
    fn a_journal_of_a_newer_jiji_and_a_damaged_one_are_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        fs::write(&path, "{\"entry\":\"begin\",\"version\":2,\"new\":[]}\n").expect("written");
        assert!(matches!(read(&path), Err(PlaceError::Newer { .. })));
        fs::write(&path, "{\"entry\":\"nonsense\"}\n{}\n").expect("written");
        assert!(matches!(read(&path), Err(PlaceError::Record { .. })));
        assert!(matches!(Journal::open(&path), Err(PlaceError::Record { .. })));
        fs::write(&path, vec![0; 512]).expect("written");
        assert_eq!(read(&path).expect("nothing was synced"), None);
    }
}
