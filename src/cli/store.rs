//! `jiji store …`: what this machine's store holds, whether it is sound, and keeping it within its budget.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use jiji_model::event::{Record, bytes};
use jiji_store::{Kind, Share, Shrunk, Store, StoreError, Usage};
use serde_json::json;

use super::args::{self, BudgetArgs, Global, StoreCommand};
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::workplace;
use crate::build::execute::{self, Refusal, Support};
use crate::build::verify::{self, Damage, Verified};
use crate::report::{Report, Summary};

/// What a store may take on disk where nobody says otherwise: enough for the bases, layers and caches of some projects.
const BUDGET: u64 = 20 << 30;

/// The least part of the disk that is left to others where nobody says otherwise.
const PART: u64 = 4;

/// Runs one of the store's commands.
pub fn run(
    global: &Global,
    command: &StoreCommand,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let store = workplace::open_store(environment)?;
    match command {
        StoreCommand::Info(args) => {
            let budget = asked(args, environment, &store)?;
            let usage = store.usage().map_err(failed)?;
            let steps = execute::ability(&store);
            show(global, report, info_record(&usage, budget, &steps), &info(&usage, budget, &steps))
        }
        StoreCommand::Gc(args) => {
            let budget = asked(args, environment, &store)?.unwrap_or(u64::MAX);
            let shrunk = store.shrink(budget).map_err(failed)?;
            let record = collected(&shrunk, budget);
            let text = format!("{}\n", record.text);
            show(global, report, record, &text)
        }
        StoreCommand::Verify => {
            let verified = verify::verify(&store).map_err(failed)?;
            verdict(global, report, &verified)
        }
    }
}

/// What is done with the store after something was built.
pub struct Tidy {
    store: Store,
    budget: Option<u64>,
}

impl Tidy {
    /// Reads the budget before anything is built.
    ///
    /// # Errors
    /// Exit 2 where the budget that the environment names is none.
    pub fn prepare(store: &Store, environment: &Environment) -> Result<Self, Failure> {
        Ok(Self { store: store.clone(), budget: budget(environment, store)? })
    }

    /// Collects if the store is over its budget. That it cannot be done is told and keeps nothing from going on.
    pub fn after_build(&self, report: &Arc<dyn Report>) {
        let Some(budget) = self.budget else { return };
        // Measuring takes longer than a build that had nothing to do.
        if !self.store.has_grown() {
            return;
        }
        match self.store.shrink(budget) {
            Ok(shrunk) if shrunk.total().count == 0 => {}
            Ok(shrunk) => report.emit(collected(&shrunk, budget)),
            Err(error) => report.emit(Record::new("store.warning", format!("the store was not collected: {error}"))),
        }
    }
}

fn asked(args: &BudgetArgs, environment: &Environment, store: &Store) -> Result<Option<u64>, Failure> {
    match args.budget {
        Some(budget) => Ok(Some(budget)),
        None => budget(environment, store),
    }
}

/// What the store may take, or nothing where it may take all.
fn budget(environment: &Environment, store: &Store) -> Result<Option<u64>, Failure> {
    match environment.store_budget.as_deref() {
        Some("none") => Ok(None),
        Some(text) => args::size(text).map(Some).map_err(|reason| {
            Failure::text(Exit::Usage, format!("read `JIJI_STORE_BUDGET={text}`: {reason}"))
                .hint("`none` lets the store grow without end")
        }),
        None => {
            let disk = rustix::fs::statvfs(store.root()).ok();
            let disk = disk.map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize) / PART);
            Ok(Some(disk.filter(|part| *part > 0).map_or(BUDGET, |part| part.min(BUDGET))))
        }
    }
}

fn collected(shrunk: &Shrunk, budget: u64) -> Record {
    let Share { bytes: removed, .. } = shrunk.total();
    let what: Vec<String> =
        shrunk.removed.iter().map(|(kind, share)| format!("{} {}", share.count, noun(*kind, share.count))).collect();
    let mut text = match what.as_slice() {
        [] => format!("removed nothing: the store takes {}", bytes(shrunk.after)),
        what => format!("removed {}, {}: the store takes {}", what.join(", "), bytes(removed), bytes(shrunk.after)),
    };
    if budget != u64::MAX {
        let _ = write!(text, " of {}", bytes(budget));
    }
    if shrunk.after > budget && shrunk.held > 0 {
        let _ = write!(text, "; {} are in use", bytes(shrunk.held));
    }
    let removed: serde_json::Map<_, _> = shrunk.removed.iter().map(|(kind, share)| shared(*kind, share)).collect();
    Record::new("store.collected", text).with(json!({
        "removed": removed, "before": shrunk.before, "after": shrunk.after, "held": shrunk.held,
        "budget": (budget != u64::MAX).then_some(budget),
    }))
}

fn shared(kind: Kind, share: &Share) -> (String, serde_json::Value) {
    (kind.name().to_owned(), json!({"count": share.count, "bytes": share.bytes}))
}

fn noun(kind: Kind, count: u64) -> &'static str {
    let one = count == 1;
    match kind {
        Kind::Blob if one => "blob",
        Kind::Blob => "blobs",
        Kind::Partial if one => "beginning of a blob",
        Kind::Partial => "beginnings of blobs",
        Kind::Record if one => "record",
        Kind::Record => "records",
        Kind::Tree if one => "unpacked layer",
        Kind::Tree => "unpacked layers",
        Kind::Cache if one => "cache",
        Kind::Cache => "caches",
    }
}

fn time(time: Option<SystemTime>) -> Option<String> {
    let time = jiff::Timestamp::try_from(time?).ok()?;
    Some(format!("{time:.0}"))
}

/// Whether and as whom steps can be run here, with its cure where they cannot.
type Steps = Result<Support, Refusal>;

fn steps_data(steps: &Steps) -> serde_json::Value {
    match steps {
        Ok(support) => json!({
            "way": support.way.name(), "processes_bounded": support.processes_bounded, "memory_bounded": support.memory_bounded,
        }),
        Err(refusal) => json!({"refused": refusal.to_string(), "hint": refusal.hint()}),
    }
}

fn steps_text(steps: &Steps) -> String {
    match steps {
        Ok(support) => format!("RUN is run {}\n", support.way),
        Err(refusal) => format!("RUN cannot be run: failed to {refusal}\nhint: {}\n", refusal.hint()),
    }
}

fn info_record(usage: &Usage, budget: Option<u64>, steps: &Steps) -> Record {
    let kinds: serde_json::Map<_, _> = usage.kinds.iter().map(|(kind, share)| shared(*kind, share)).collect();
    let total = usage.total();
    let text = format!("the store takes {}", bytes(total.bytes));
    Record::new("store.info", text).with(json!({
        "kinds": kinds, "bytes": total.bytes, "budget": budget,
        "oldest_use": time(usage.oldest), "last_use": time(usage.newest),
        "held": {"count": usage.held.count, "bytes": usage.held.bytes}, "holders": usage.holders,
        "steps": steps_data(steps),
    }))
}

fn info(usage: &Usage, budget: Option<u64>, steps: &Steps) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    for (kind, share) in &usage.kinds {
        let _ = writeln!(out, "{:<20} {:>7} {:>11}", noun(*kind, 2), share.count, bytes(share.bytes));
    }
    let total = usage.total();
    let of = budget.map_or_else(String::new, |budget| format!(" of {}", bytes(budget)));
    let _ = writeln!(out, "{:<20} {:>7} {:>11}{of}", "together", total.count, bytes(total.bytes));
    if let (Some(oldest), Some(newest)) = (time(usage.oldest), time(usage.newest)) {
        let _ = writeln!(out, "used last {newest}, the oldest {oldest}");
    }
    if usage.holders > 0 {
        let who = if usage.holders == 1 { "1 process works".to_owned() } else { format!("{} work", usage.holders) };
        let _ = writeln!(out, "{who} with {} blobs, {}", usage.held.count, bytes(usage.held.bytes));
    }
    out + &steps_text(steps)
}

fn verdict(global: &Global, report: &Arc<dyn Report>, verified: &Verified) -> Result<Exit, Failure> {
    let Verified { blobs, bytes: size, records, damaged } = verified;
    let text = format!("{blobs} blobs, {}, and {records} records", bytes(*size));
    if damaged.is_empty() {
        let record = Record::new("store.verified", format!("verified {text}"));
        let record = record.with(json!({"blobs": blobs, "bytes": size, "records": records, "damaged": []}));
        return show(global, report, record, &format!("verified {text}\n"));
    }
    let list: Vec<_> = damaged.iter().map(damage).collect();
    if global.json {
        let record = Record::new("store.verified", format!("{} of {text} were damaged", damaged.len()));
        report.emit(record.with(json!({"blobs": blobs, "bytes": size, "records": records, "damaged": list})));
    }
    let lines: Vec<_> = damaged.iter().map(|damage| format!("removed {damage}")).collect();
    Err(Failure::text(Exit::Internal, format!("find the store sound: {} of {text} were damaged", damaged.len()))
        .detail(lines.join("\n"))
        .hint("build again: what was removed is made or fetched again. Look after the disk if this repeats"))
}

fn damage(damage: &Damage) -> serde_json::Value {
    match damage {
        Damage::Blob { digest, actual } => {
            json!({"kind": "blob", "digest": digest, "actual": actual, "done": "removed"})
        }
        Damage::Step { key, reason } => json!({"kind": "step", "key": key, "reason": reason, "done": "removed"}),
        Damage::Layer { diff_id, codec, reason } => {
            json!({"kind": "layer", "diff_id": diff_id, "codec": codec, "reason": reason, "done": "removed"})
        }
    }
}

fn show(global: &Global, report: &Arc<dyn Report>, record: Record, text: &str) -> Result<Exit, Failure> {
    if global.json {
        report.emit(record);
        report.summary(&Summary { result: Exit::Done.name().to_owned(), ..Summary::default() });
        return Ok(Exit::Done);
    }
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    Ok(Exit::Done)
}

fn failed(error: StoreError) -> Failure {
    Failure::new(Exit::Internal, &error)
}
