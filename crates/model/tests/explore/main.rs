//! Searches every way in which hosts, operators and faults can go together, with the rules that `apply` and `jiji-host` run.
//!
//! The rules are the functions of [`jiji_model::transaction`]; what is played here is what has no rule: processes that die between any
//! two durable things, lines that are cut, effects that come late. What was found by it is a
//! weakened rule here, so that it is found again.

#![expect(clippy::print_stdout, reason = "what was explored is a measurement")]

mod host;
mod operator;
mod rules;
mod search;
mod world;

use std::time::Instant;

use host::Reach;
use proptest::prelude::*;
use rules::Rules;
use search::{Action, explore, walk};
use world::{Script, State};

/// Most states that are searched before the bounds are taken for a mistake.
const MOST: usize = 20_000_000;

/// Wide bounds take minutes, and are for `cargo xtask sweep` and people.
fn wide() -> bool {
    std::env::var_os("JIJI_EXPLORE").is_some_and(|value| value == "wide")
}

fn shown(way: &[Action]) -> String {
    way.iter().map(|action| format!("\n  {action:?}")).collect()
}

/// Searches everything within the bounds; nothing may be wrong anywhere.
fn holds(hosts: usize, scripts: &[Script], faults: u8) {
    holds_from(&format!("{hosts} hosts, {scripts:?}, {faults} faults"), State::start(hosts, scripts, faults));
}

fn holds_from(what: &str, start: State) {
    let begun = Instant::now();
    let explored = explore(start, &Rules::default(), MOST);
    println!(
        "{what}: {} states, {} transitions, {} at rest and settled, depth {}, {:.1}s",
        explored.states,
        explored.transitions,
        explored.resting,
        explored.depth,
        begun.elapsed().as_secs_f64()
    );
    if let Some((wrong, way)) = &explored.wrong {
        panic!("{wrong}:{}", shown(way));
    }
    assert!(explored.resting > 1);
}

/// Searches with a rule weakened; the explorer must find what it guards against.
fn breaks(hosts: usize, scripts: &[Script], faults: u8, rules: Rules, due: &str) {
    breaks_from(State::start(hosts, scripts, faults), rules, due);
}

fn breaks_from(start: State, rules: Rules, due: &str) {
    let explored = explore(start, &rules, MOST);
    let Some((wrong, way)) = explored.wrong else { panic!("{rules:?} breaks nothing in {} states", explored.states) };
    println!("{rules:?}: {wrong} after {} states:{}", explored.states, shown(&way));
    assert_eq!(wrong, due, "{}", shown(&way));
}

#[test]
fn a_ship_alone_with_two_faults() {
    holds(2, &[Script::Ship], 2);
}

#[test]
fn a_ship_that_is_watched_with_one_fault() {
    holds(2, &[Script::Watched], 1);
}

#[test]
fn a_ship_on_three_hosts_with_one_fault() {
    holds(3, &[Script::Ship], 1);
}

#[test]
fn a_ship_and_somebody_who_aborts_it_with_one_fault() {
    holds(2, &[Script::Ship, Script::Abort], 1);
}

#[test]
fn a_host_alone_that_is_asked_ahead() {
    holds(1, &[Script::Ship], 3);
    holds(1, &[Script::Watched], 2);
    holds(1, &[Script::Ship, Script::Abort], 2);
    holds(1, &[Script::Ship, Script::Ship], 2);
}

#[test]
fn two_ships_with_one_fault() {
    holds(2, &[Script::Ship, Script::Ship], 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if wide() { 50_000 } else { 400 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// Beyond what can be searched whole: three hosts, three operators, five faults, and chance.
    #[test]
    fn walks_with_more_faults_than_can_be_searched(choices in proptest::collection::vec(any::<u16>(), 0..120)) {
        let scripts = [Script::Ship, Script::Abort, Script::Ship];
        if let Err((wrong, way)) = walk(State::start(3, &scripts, 5), &Rules::default(), &choices) {
            panic!("{wrong}:{}", shown(&way));
        }
    }
}

#[test]
fn wider_bounds_hold_too_where_they_are_asked_for() {
    if !wide() {
        println!("set JIJI_EXPLORE=wide and build with --release: it takes minutes and some GiB of memory");
        return;
    }
    holds(2, &[Script::Ship, Script::Abort], 2);
    holds(2, &[Script::Ship, Script::Ship], 2);
    holds(2, &[Script::Ship], 4);
    holds(3, &[Script::Ship], 2);
    holds(3, &[Script::Ship, Script::Abort], 1);
    holds(2, &[Script::Ship, Script::Abort, Script::Abort], 1);
    holds(3, &[Script::Ship, Script::Abort], 2);
}

/// A ship whose commit the first host recorded and the second did not, when its operator died.
fn decided_on_one(faults: u8) -> State {
    let mut state = State::start(2, &[Script::Ship, Script::Abort], faults + 1);
    let rules = Rules::default();
    let prepared = [Action::Look(0), Action::Acquire(0, Reach::Dies(0)), Action::Acquire(0, Reach::Dies(0))];
    let both = [Action::Serve(0, 0), Action::Serve(1, 0)];
    // Begun, prepared, cut over one after the other, told of the commit.
    let cut_over = both.iter().chain(&both).chain(&both).chain(&both[..1]);
    for action in prepared.iter().chain(cut_over).chain(&[Action::OperatorDies(0), Action::Leave(1, 0, Reach::Dies(0))])
    {
        state = state.after(*action, &rules);
    }
    state
}

#[test]
fn a_commit_that_one_host_alone_recorded_ends_one_way_whoever_is_reached_first() {
    holds_from("2 hosts, the commit on one, Abort", decided_on_one(2));
}

#[test]
fn a_lower_settlement_that_wins_is_found() {
    let rules = Rules { lower_wins: true, ..Rules::default() };
    breaks_from(decided_on_one(1), rules, "the next run cannot settle what was left");
}

#[test]
fn an_old_container_that_goes_before_the_decision_is_found() {
    let rules = Rules { remove_at_cutover: true, ..Rules::default() };
    breaks(2, &[Script::Ship], 1, rules, "requests go to a container that is gone");
}

#[test]
fn an_effect_that_comes_after_it_was_taken_back_is_found() {
    let rules = Rules { no_quiet: true, ..Rules::default() };
    breaks(2, &[Script::Ship], 2, rules, "requests go to a container that is gone");
    // A step that ran out of time may still take effect, although its end is known.
    let rules = Rules { quiet_for_unknown_only: true, ..Rules::default() };
    breaks(2, &[Script::Ship], 2, rules, "requests go to a container that is gone");
}

#[test]
fn a_candidate_that_goes_while_it_is_routed_is_found() {
    let rules = Rules { undo_all: true, ..Rules::default() };
    breaks(2, &[Script::Ship], 2, rules, "requests go to a container that is gone");
}

#[test]
fn going_on_without_a_host_that_may_not_know_the_decision_is_found() {
    let rules = Rules { go_on_without_all: true, ..Rules::default() };
    breaks(2, &[Script::Ship], 1, rules, "an old container was removed before every host had recorded the commit");
}

#[test]
fn a_session_that_nobody_ends_is_found() {
    let rules = Rules { no_guard: true, ..Rules::default() };
    breaks(2, &[Script::Ship, Script::Ship], 1, rules, "two writers on one host");
}

#[test]
fn evidence_from_before_the_leases_is_found() {
    let rules = Rules { stale_evidence: true, ..Rules::default() };
    breaks(
        2,
        &[Script::Ship, Script::Abort],
        1,
        rules,
        "an old container was removed before every host had recorded the commit",
    );
}

#[test]
fn phases_in_any_order_are_found() {
    let rules = Rules { no_order: true, drain_first: true, ..Rules::default() };
    breaks(2, &[Script::Ship], 0, rules, "requests go to a container that is gone");
}

#[test]
fn a_host_that_lost_power_and_starts_nothing_is_found() {
    let rules = Rules { no_start: true, ..Rules::default() };
    breaks(2, &[Script::Ship], 1, rules, "a transaction was concluded where what serves does not run");
    let rules = Rules { start_last: true, ..Rules::default() };
    breaks(2, &[Script::Ship], 1, rules, "a route was asked of what does not run");
}
