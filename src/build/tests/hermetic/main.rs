//! Builds with real steps: the same commit gives the same image, wherever and by whomever it is built, and other tools read it.
//!
//! A program of its own, and without a test harness, because a RUN step needs a helper process and this program is it. Needs root and a
//! static busybox; without them it says so and ends well.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test program reports to its terminal")]

mod network;
mod people;
mod project;
mod recipe;
mod recorded;
mod steps;
mod tools;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use jiji::build::execute::Caretaker;
use jiji_store::{Kind, Store};

use project::Project;

/// The first argument that makes this program build once and print the manifest's digest.
const CHILD: &str = "__build";

/// The first argument that makes this program remove everything from a store and print what was there and what is left.
const COLLECT: &str = "__collect";

const BUSYBOX: &str = "/bin/busybox";

fn main() -> ExitCode {
    jiji_sandbox::enter_if_requested();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, root, store, umask] = args.as_slice()
        && first == CHILD
    {
        let umask = u32::from_str_radix(umask, 8).expect("a umask");
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
        let store = Store::open_with(store, Arc::new(Caretaker::default())).expect("a store");
        let project = Project { root: root.into(), store };
        match project.build() {
            Ok(built) => println!("{}", built.image.manifest.digest),
            Err(error) => {
                // The outermost names the step, the innermost what went wrong.
                let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
                causes.for_each(|cause| println!("{cause}"));
                println!("{}", error.hint().unwrap_or_default());
            }
        }
        return ExitCode::SUCCESS;
    }
    if let [first, store] = args.as_slice()
        && first == COLLECT
    {
        let store = Store::open_with(store, Arc::new(Caretaker::default())).expect("a store");
        let taken = store.usage().expect("measured");
        let shrunk = store.shrink(0).expect("collected");
        println!("{} {} {}", taken.kinds[&Kind::Tree].count, taken.kinds[&Kind::Cache].count, shrunk.after);
        return ExitCode::SUCCESS;
    }
    if let Err(reason) = able() {
        eprintln!("SKIPPED: {reason}");
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    for (name, test) in [
        ("two_clones_give_the_same_image", people::two_clones_give_the_same_image as fn()),
        ("a_step_sees_the_same_machine_everywhere", steps::a_step_sees_the_same_machine_everywhere),
        (
            "a_layer_holds_what_a_step_changed_and_nothing_else",
            steps::a_layer_holds_what_a_step_changed_and_nothing_else,
        ),
        ("a_recipe_gives_the_layers_of_its_dockerfile", recipe::a_recipe_gives_the_layers_of_its_dockerfile),
        ("steps_run_in_layers_of_zstd", steps::steps_run_in_layers_of_zstd),
        ("a_recipe_begins_from_another_service", recipe::a_recipe_begins_from_another_service),
        ("packed_layers_are_one_tree_to_steps", recipe::packed_layers_are_one_tree_to_steps),
        ("a_stage_gives_files_to_another", steps::a_stage_gives_files_to_another),
        (
            "stages_that_do_not_need_each_other_run_side_by_side",
            steps::stages_that_do_not_need_each_other_run_side_by_side,
        ),
        ("a_failed_stage_ends_those_that_come_after_it", steps::a_failed_stage_ends_those_that_come_after_it),
        (
            "a_cache_that_is_mounted_twice_does_not_wait_for_itself",
            steps::a_cache_that_is_mounted_twice_does_not_wait_for_itself,
        ),
        ("what_is_mounted_is_in_no_layer", steps::what_is_mounted_is_in_no_layer),
        ("whoever_builds_the_image_is_the_same", people::whoever_builds_the_image_is_the_same),
        ("what_only_root_can_do_is_refused_to_others", people::what_only_root_can_do_is_refused_to_others),
        ("a_base_image_is_pulled_once_and_run_in", steps::a_base_image_is_pulled_once_and_run_in),
        ("a_failed_step_says_where_and_what_it_said", steps::a_failed_step_says_where_and_what_it_said),
        (
            "a_step_with_the_network_runs_once_and_gives_the_same",
            network::a_step_with_the_network_runs_once_and_gives_the_same,
        ),
        ("a_recorded_step_gets_the_same_from_then_on", recorded::a_recorded_step_gets_the_same_from_then_on),
        ("pip_installs_the_same_from_a_recording", recorded::pip_installs_the_same_from_a_recording),
        (
            "another_builder_puts_the_same_files_to_the_same_places",
            tools::another_builder_puts_the_same_files_to_the_same_places,
        ),
        ("other_tools_read_the_image", tools::other_tools_read_the_image),
    ] {
        if filter.is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn able() -> Result<(), String> {
    if !Path::new(BUSYBOX).exists() {
        return Err(format!("{BUSYBOX} is not there (Debian: busybox-static)"));
    }
    let room = tempfile::tempdir().map_err(|error| error.to_string())?;
    match jiji_sandbox::probe(&jiji_sandbox::Sandbox::new(), room.path()) {
        Ok(_) => Ok(()),
        Err(refusal) => Err(format!("{refusal}; {}", refusal.hint())),
    }
}
