//! What many ships in a row leave: the sample that every change has to pass.
//!
//! `cargo xtask sweep deploys` makes many more, by hand. They have a lab of their own, since they count everything that is on a host.

use jiji_e2e::deploys::{self, Deploys};
use jiji_e2e::{Outcome, Shared};
use jiji_lab::Engines;

static LAB: Shared = Shared::new(2, Engines::Mixed);

/// Requests per second and host: enough to hit every gap, and few enough that a busy machine keeps up.
const RATE: f64 = 100.0;

#[test]
fn ships_in_a_row_under_load_fail_no_request_and_leave_nothing() -> Outcome {
    let site = LAB.take()?;
    let order = Deploys { count: 5, rate: RATE, project: "many".to_owned(), hosts: 2 };
    let shown = deploys::run(&site, &order)?;
    println!("{shown}");
    assert!(shown.grown.is_empty(), "{:#?}", shown.grown);
    Ok(())
}
