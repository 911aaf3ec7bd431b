//! What strikes a fleet in the middle of a transaction: the sample that every change has to pass.
//!
//! `cargo xtask sweep` runs all of it, by hand and for long.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiji_e2e::sweep::{Order, Sweep};
use jiji_e2e::{Outcome, Shared};
use jiji_lab::Engines;

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// Requests per second and host: enough to hit every gap, and few enough that the time goes into cases.
const RATE: f64 = 100.0;

/// What is drawn where nobody says otherwise: the same for every change, so that a failure is the change's own.
const SEED: u64 = 20_261_128;

/// What is drawn: by `JIJI_SWEEP_SEED`, a number or `clock`.
fn seed() -> Outcome<u64> {
    match std::env::var("JIJI_SWEEP_SEED") {
        Ok(text) if text == "clock" => Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(SEED),
    }
}

#[test]
fn whatever_strikes_at_a_step_that_is_drawn_the_next_run_makes_all_hosts_agree_without_a_failed_request() -> Outcome {
    let site = LAB.take()?;
    let sweep = Sweep::new(&site, "crash", 2)?;
    let order = Order {
        points: Some(6),
        seed: seed()?,
        only: Vec::new(),
        without: Vec::new(),
        all_hosts: false,
        rate: RATE,
        time: Some(Duration::from_secs(90)),
        passed: None,
    };
    let summary = sweep.run(&order)?;
    println!("{summary}");
    assert!(summary.labels > 200, "the program names {} points", summary.labels);
    assert!(summary.run.values().map(|(count, _)| count).sum::<usize>() > 0, "no case was run in time");
    assert!(summary.wrong.is_empty(), "seed {}", order.seed);
    Ok(())
}
