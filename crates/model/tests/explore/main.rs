//! Searches every way in which hosts, operators and faults can go together, with the rules that `apply` and `jiji-host` run.
//!
//! The rules are the functions of [`jiji_model::transaction`]; what is played here is what has no rule: processes that die between any
//! two durable things, lines that are cut, effects that come late. What is found has a test of its own in `found.rs`.

#![expect(clippy::print_stdout, reason = "what was explored is a measurement")]

mod host;
mod operator;
mod rules;
mod search;
mod world;

use rules::Rules;
use search::{Explored, explore};
use world::{Script, State};

const MOST: usize = 3_000_000;

fn holds(what: &str, start: State) -> Explored {
    let begun = std::time::Instant::now();
    let explored = explore(start, &Rules::default(), MOST);
    println!(
        "{what}: {} states, {} transitions, {} at rest, depth {}, {:.1}s",
        explored.states,
        explored.transitions,
        explored.resting,
        explored.depth,
        begun.elapsed().as_secs_f64()
    );
    if let Some((wrong, way)) = &explored.wrong {
        let way: Vec<_> = way.iter().map(|action| format!("  {action:?}")).collect();
        panic!("{what}: {wrong}\n{}", way.join("\n"));
    }
    explored
}

#[test]
fn one_ship_with_one_fault_on_two_hosts() {
    holds("2 hosts, ship, 1 fault", State::start(2, &[Script::Ship], 1));
}

#[test]
fn one_ship_and_an_abort_with_two_faults_on_two_hosts() {
    holds("2 hosts, ship and abort, 2 faults", State::start(2, &[Script::Ship, Script::Abort], 2));
}
