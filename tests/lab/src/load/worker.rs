//! The generator's process: sends what is due when it is due, and says what it saw.

use std::{
    cell::RefCell,
    fs,
    io::Write,
    path::Path,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::oneshot,
    task::LocalSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    LoadSpec, Mix,
    client::{Client, Plan},
    report::{Failure, FailureKind, Progress, Report, RequestKind},
    tally::{self, Tally},
};
use crate::LabError;

/// Requests to one target under way at once, beyond which the generator says that it is saturated.
const MOST_UNDER_WAY: usize = 4000;

/// What the process says, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// Counts so far.
    Progress(Progress),
    /// The run is over.
    Report(Report),
}

/// Runs the load that the file orders, until it is over or standard input ends; says what it saw on standard output.
pub(crate) fn serve(order: &Path) -> Result<(), LabError> {
    let text = fs::read(order).map_err(LabError::file("read", order))?;
    let spec: LoadSpec = serde_json::from_slice(&text).map_err(LabError::json("the load's order"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LabError::system("start the load generator"))?;
    let (stop, stopped) = oneshot::channel();
    std::thread::spawn(move || {
        drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
        // The run may be over already.
        let _ = stop.send(());
    });
    let report = LocalSet::new().block_on(&runtime, run(spec, stopped))?;
    say(&Word::Report(report))
}

fn say(word: &Word) -> Result<(), LabError> {
    let line = serde_json::to_string(word).map_err(LabError::json("what the load saw"))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(LabError::system("tell what the load saw"))
}

/// One target: its connections, its counts, its requests under way.
struct Lane {
    client: Client,
    random: Random,
    issued: u64,
    under_way: Rc<RefCell<usize>>,
}

async fn run(spec: LoadSpec, mut stopped: oneshot::Receiver<()>) -> Result<Report, LabError> {
    let tallies: Rc<RefCell<Vec<Tally>>> =
        Rc::new(RefCell::new(spec.targets.iter().map(|target| Tally::new(target.name.clone())).collect()));
    let mut lanes: Vec<Lane> = (1..)
        .zip(&spec.targets)
        .map(|(place, target)| {
            Ok(Lane {
                client: Client::new(target.clone())?,
                random: Random(spec.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(place)),
                issued: 0,
                under_way: Rc::default(),
            })
        })
        .collect::<Result<_, LabError>>()?;
    let timeout = Duration::from_secs_f64(spec.timeout);
    let start = Instant::now();
    let started = unix_time();
    let end = Duration::from_secs_f64(spec.seconds);
    let mut worst_lag = Duration::ZERO;
    let mut told = Duration::ZERO;
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let seconds = loop {
        tokio::select! {
            biased;
            _ = &mut stopped => break start.elapsed(),
            _ = tick.tick() => {}
        }
        let now = start.elapsed();
        if now >= end {
            break end;
        }
        for (place, lane) in lanes.iter_mut().enumerate() {
            loop {
                #[expect(clippy::cast_precision_loss, reason = "a count of requests of a bounded run")]
                let due = Duration::from_secs_f64(lane.issued as f64 / spec.rate);
                if due > now {
                    break;
                }
                lane.issued += 1;
                worst_lag = worst_lag.max(now - due);
                let plan = lane.random.plan(&spec.mix);
                tallies.borrow_mut()[place].sent(start.elapsed());
                if *lane.under_way.borrow() >= MOST_UNDER_WAY {
                    tallies.borrow_mut()[place].count(FailureKind::Saturated);
                    continue;
                }
                *lane.under_way.borrow_mut() += 1;
                let (client, under_way, tallies) =
                    (lane.client.clone(), Rc::clone(&lane.under_way), Rc::clone(&tallies));
                tokio::task::spawn_local(async move {
                    let sent = started + start.elapsed().as_secs_f64();
                    let result = client.send(&plan, timeout).await;
                    let ended = start.elapsed();
                    let tally = &mut tallies.borrow_mut()[place];
                    match result {
                        Ok(version) => {
                            let at_once = plan.kind != RequestKind::Slow;
                            tally.good(version, sent, at_once.then(|| ended.saturating_sub(due)));
                        }
                        Err(failed) => tally.failed(Failure {
                            sent,
                            ended: started + ended.as_secs_f64(),
                            request: plan.kind,
                            fresh: plan.fresh,
                            kind: failed.kind,
                            status: failed.status,
                            version: failed.version,
                            detail: failed.detail,
                        }),
                    }
                    *under_way.borrow_mut() -= 1;
                });
            }
        }
        if now.saturating_sub(told) >= Duration::from_millis(100) {
            told = now;
            let progress = tally::progress(&tallies.borrow());
            say(&Word::Progress(progress))?;
        }
    };
    // Every request has its own time limit, so this ends.
    while lanes.iter().any(|lane| *lane.under_way.borrow() > 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let tallies = tallies.take();
    Ok(tally::report(tallies, started, seconds.as_secs_f64(), worst_lag))
}

/// Seconds since 1970.
pub(super) fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A sequence that looks random and is the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next() % u64::from(limit.max(1))).unwrap_or(0)
    }

    fn plan(&mut self, mix: &Mix) -> Plan {
        let mut pick = self.below(mix.get + mix.post + mix.chunked + mix.slow);
        let mut kind = RequestKind::Get;
        for (candidate, share) in [
            (RequestKind::Get, mix.get),
            (RequestKind::Post, mix.post),
            (RequestKind::Chunked, mix.chunked),
            (RequestKind::Slow, mix.slow),
        ] {
            kind = candidate;
            if pick < share {
                break;
            }
            pick -= share;
        }
        let fresh = self.below(100) < mix.fresh_percent;
        let amount = match kind {
            RequestKind::Post => self.below(16 * 1024) as usize,
            RequestKind::Chunked => 1 + self.below(20) as usize,
            RequestKind::Get | RequestKind::Slow => 0,
        };
        let millis = if kind == RequestKind::Slow {
            let least = milliseconds(mix.slow_least);
            u64::from(least + self.below(milliseconds(mix.slow_most).saturating_sub(least) + 1))
        } else {
            0
        };
        Plan { kind, fresh, amount, millis, in_chunks: kind == RequestKind::Post && self.below(2) == 0 }
    }
}

fn milliseconds(seconds: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few thousand; less than none is none"
    )]
    let millis = (seconds * 1000.0) as u32;
    millis
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_shared_out_as_the_mix_says() {
        let mut random = Random(7);
        let plans: Vec<Plan> = (0..10_000).map(|_| random.plan(&Mix::default())).collect();
        let count = |kind| plans.iter().filter(|plan| plan.kind == kind).count();
        assert!((5700..6300).contains(&count(RequestKind::Get)));
        assert!((1800..2200).contains(&count(RequestKind::Post)));
        assert!((1500..1900).contains(&count(RequestKind::Chunked)));
        assert!((230..370).contains(&count(RequestKind::Slow)));
        let fresh = plans.iter().filter(|plan| plan.fresh).count();
        assert!((4700..5300).contains(&fresh));
        assert!(plans.iter().all(|plan| plan.kind != RequestKind::Slow || (1000..=5000).contains(&plan.millis)));
    }
}
