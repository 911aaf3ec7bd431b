//! Transactions over whole sessions.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use jiji_model::image::{Descriptor, Image, ImageId, Platform};
use jiji_model::name::{ContainerName, HostName};
use jiji_model::plan::{Action, ContainerImage, ContainerSpec, Evidence, Phase, Repeat, Step, Word};
use jiji_model::probe::{ProbeResult, ProbeSpec};
use jiji_model::project::Check;
use jiji_model::protocol::{RefusalKind, RunReport};
use jiji_model::transaction::audit::AuditEvent;
use jiji_model::transaction::{Begin, Decision, Outcome, Release, Settlement, StepState};

use super::*;
use crate::journal::tests::{begin, note};

fn name() -> ContainerName {
    "shop-web-1".parse().expect("a name")
}

fn step(phase: Phase, title: &str, action: Action) -> Step {
    Step::new(&HostName::new("one").expect("a name"), phase, title, action)
}

/// An image that the engine has.
fn image(machine: &Machine) -> Image {
    let blob = |text: &str| Descriptor { media_type: "x".into(), digest: Digest::of(text), size: 1 };
    let image = Image {
        repository: "shop/web".into(),
        platform: Platform::linux_amd64(),
        manifest: blob("manifest"),
        config: blob("config"),
        layers: vec![blob("layer")],
    };
    let config = image.config.digest.to_string();
    let listed = format!("jiji.local/shop/web:{}", image.manifest.digest.short());
    let json = format!(r#"{{"Id":"{config}","RepoTags":["{listed}"]}}"#);
    fs::write(machine.engine("image").join(&config), json).expect("written");
    fs::write(machine.engine("runs"), config).expect("written");
    image
}

fn spec(id: ImageId) -> ContainerSpec {
    ContainerSpec {
        name: name(),
        image: ContainerImage::Seeded { id, repository: "shop/web".into() },
        network: "jiji".into(),
        address: Some(Ipv4Addr::new(10, 210, 0, 140)),
        env: BTreeMap::from([("KEY".into(), Word::Secret("KEY".parse().expect("a name")))]).into(),
        labels: BTreeMap::from([("jiji.scope".into(), "shop".into())]).into(),
        mounts: Vec::new(),
        publish: Vec::new(),
        entrypoint: None,
        command: None,
        user: None,
        restart: true,
        stop_timeout_s: 1,
    }
}

fn run_it(id: ImageId) -> Step {
    let mut run = step(Phase::Prepare, "run it", Action::ContainerRun(Box::new(spec(id))));
    run.undo = Some(Action::ContainerRemove { name: name() });
    run
}

fn exec(title: &str, argv: &[&str]) -> Step {
    let argv = argv.iter().map(|word| Word::lit(*word)).collect();
    step(
        Phase::Cutover,
        title,
        Action::ContainerExec { container: name(), argv, tolerate: vec!["not found here".into()] },
    )
}

fn wait(port: u16, deadline_ms: u32) -> Step {
    let probe = ProbeSpec {
        check: Check::Http { port, path: "/up".into() },
        interval_ms: 50,
        timeout_ms: 500,
        healthy_after: 1,
        deadline_ms,
        status_from: 200,
        status_to: 299,
    };
    let mut wait =
        step(Phase::Prepare, "wait for it", Action::WaitProbe { container: name(), network: "jiji".into(), probe });
    wait.evidence = vec![Evidence::Logs { container: name(), lines: 10 }, Evidence::State { container: name() }];
    wait
}

fn ran(reply: Reply) -> RunReport {
    match reply {
        Reply::Ran(report) => report,
        other => panic!("expected a report, got {other:?}"),
    }
}

fn refused(reply: Reply) -> RefusalKind {
    match reply {
        Reply::Refused { why, .. } => why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn settle(decision: Decision, fencing: u64) -> Request {
    Request::Settle(Settlement { decision, fencing })
}

fn conclude(begin: &Begin, decision: Decision) -> Request {
    let release = Release::of(begin);
    let audit = AuditEvent {
        transaction: begin.transaction.clone(),
        fencing: begin.fencing,
        who: begin.who.clone(),
        command: begin.command.clone(),
        result: "x".into(),
        at_s: 0,
        services: Vec::new(),
    };
    let release = (decision == Decision::Commit).then(|| Box::new(release));
    Request::Conclude { release, retain: 2, audit }
}

fn numbered(steps: Vec<Step>, fencing: u64) -> Begin {
    Begin { fencing, transaction: format!("t{fencing}"), ..begin(steps) }
}

/// A transaction that brings a container, from lease to release.
pub(super) fn one_that_works(machine: &Machine, fencing: u64) {
    let image = image(machine);
    let begin = numbered(
        vec![
            step(Phase::Boot, "network", {
                let (subnet, gateway) = ("10.210.0.128/25".into(), Ipv4Addr::new(10, 210, 0, 129));
                Action::NetworkEnsure { name: "jiji".into(), subnet, gateway }
            }),
            step(Phase::Prepare, "image", Action::ImageEnsure { image: image.clone() }),
            run_it(image.id()),
            exec("route it", &["true"]),
            note(Phase::Finalize, "done"),
        ],
        fencing,
    );
    let mut operator = machine.session();
    operator.secrets(&[("KEY", "hunter2\nand more of it")]);
    assert!(matches!(operator.ask(acquire("a", fencing, 60_000)), Reply::Lease(_)));
    assert_eq!(operator.ask(Request::Begin(Box::new(begin.clone()))), Reply::Done);
    for phase in [Phase::Boot, Phase::Prepare, Phase::Publish, Phase::Cutover] {
        let report = ran(operator.ask(Request::Run { phase }));
        assert!(report.failure.is_none(), "{report:?}");
    }
    assert_eq!(operator.ask(settle(Decision::Commit, fencing)), Reply::Done);
    for phase in [Phase::Withdraw, Phase::Drain, Phase::Finalize] {
        assert!(ran(operator.ask(Request::Run { phase })).failure.is_none());
    }
    // What is asked twice, because an answer was lost, is done once.
    for _ in 0..2 {
        assert_eq!(operator.ask(conclude(&begin, Decision::Commit)), Reply::Done);
    }
    assert_eq!(operator.ask(Request::Release), Reply::Done);
    operator.end().0.expect("it ends well");
}

fn leased(machine: &Machine, steps: Vec<Step>) -> (Operator, Begin) {
    let fencing = machine.records().fencing + 1;
    let begin = numbered(steps, fencing);
    let mut operator = machine.session();
    operator.secrets(&[("KEY", "hunter2")]);
    assert!(matches!(operator.ask(acquire("a", fencing, 60_000)), Reply::Lease(_)));
    assert_eq!(operator.ask(Request::Begin(Box::new(begin.clone()))), Reply::Done);
    (operator, begin)
}

#[test]
fn a_transaction_leaves_a_release_an_audit_line_and_a_concluded_journal() {
    let machine = Machine::new();
    for fencing in [1, 2] {
        one_that_works(&machine, fencing);
    }
    let records = machine.records();
    let numbers: Vec<_> = records.releases.iter().map(|release| release.number).collect();
    assert_eq!((records.fencing, numbers, records.lease), (2, vec![2, 1], None));
    assert_eq!(records.last_address, Some(Ipv4Addr::new(10, 210, 0, 140)));
    let last = records.transaction.expect("kept");
    assert!(last.concluded && last.begin.transaction == "t2");
    // The second time everything was so already.
    assert_eq!(last.states[..3], vec![StepState::Ended(Outcome::Unchanged); 3]);
    let audit = fs::read(machine.root().join("projects/shop/audit.jsonl")).expect("there");
    assert_eq!(jiji_model::transaction::audit::verify(&audit), Ok(2));
}

#[test]
fn a_secret_reaches_the_container_and_nothing_else() {
    let machine = Machine::new();
    one_that_works(&machine, 1);
    assert_eq!(fs::read_to_string(machine.engine("value")).expect("given"), "hunter2\nand more of it");
    let log = fs::read_to_string(machine.engine("log")).expect("there");
    assert!(log.contains("--env KEY ") && !log.contains("hunter2") && !log.contains("and more of it"), "{log}");
    for path in snapshot(&machine.root()).keys().filter(|path| path.is_file()) {
        let bytes = fs::read(path).expect("read");
        assert!(!String::from_utf8_lossy(&bytes).contains("hunter2"), "{}", path.display());
    }
    let mut operator = machine.session();
    operator.secrets(&[("KEY", "hunter2\nand more of it")]);
    let Answer::Container(container) = operator.observe(Query::Container { name: name() }) else { panic!("it runs") };
    let mac = Query::SecretsMac { names: vec!["KEY".parse().expect("a name")] };
    assert_eq!(operator.observe(mac), Answer::Mac(container.labels.get("jiji.secrets").expect("a label").clone()));
}

#[test]
fn a_candidate_that_is_not_healthy_fails_the_phase_with_its_timeline_and_its_log_and_is_taken_back() {
    let machine = Machine::new();
    let image = image(&machine);
    let steps = vec![run_it(image.id()), wait(1, 300), exec("route it", &["true"])];
    let (mut operator, begin) = leased(&machine, steps);
    let report = ran(operator.ask(Request::Run { phase: Phase::Prepare }));
    let failure = report.failure.expect("nothing listens on port 1");
    assert!(failure.cause.contains("nothing listens there"), "{}", failure.cause);
    assert!(failure.timeline.expect("it waited").made > 2);
    assert_eq!(failure.evidence.len(), 1);
    assert_eq!(failure.evidence[0].state.as_deref(), Some("running"));
    assert_eq!(failure.evidence[0].log, "the application says [redacted]\n");
    // What did not end well is in the way of what comes after.
    assert_eq!(refused(operator.ask(Request::Run { phase: Phase::Cutover })), RefusalKind::OutOfOrder);
    assert_eq!(refused(operator.ask(Request::Undo)), RefusalKind::OutOfOrder);
    assert_eq!(operator.ask(settle(Decision::Revert, 1)), Reply::Done);
    assert_eq!(refused(operator.ask(Request::Run { phase: Phase::Prepare })), RefusalKind::OutOfOrder);
    let report = ran(operator.ask(Request::Undo));
    assert!(report.failure.is_none() && report.steps.len() == 1);
    assert!(!machine.engine("container").join("shop-web-1").exists());
    assert_eq!(operator.ask(conclude(&begin, Decision::Revert)), Reply::Done);
    assert!(machine.records().releases.is_empty());
}

#[test]
fn a_container_that_ends_while_it_is_waited_for_ends_the_wait() {
    let machine = Machine::new();
    let image = image(&machine);
    let (mut operator, _) = leased(&machine, vec![run_it(image.id()), wait(1, 60_000)]);
    let begun = Instant::now();
    operator.say(Request::Run { phase: Phase::Prepare });
    let container = machine.engine("container").join("shop-web-1");
    while !container.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    let json = fs::read_to_string(&container).expect("read");
    fs::write(&container, json.replace(r#""running","Pid":7"#, r#""exited","ExitCode":3"#)).expect("written");
    let Reply::Ran(report) = operator.answer() else { panic!("expected a report") };
    let timeline = report.failure.expect("it ended").timeline.expect("it waited");
    let last = timeline.probes.last().map(|probe| probe.result.clone());
    assert_eq!(last, Some(ProbeResult::NotRunning { exit: Some(3), oom: false }));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_interrupt_ends_a_wait_and_no_further_step_begins() {
    let machine = Machine::new();
    let image = image(&machine);
    let (mut operator, _) =
        leased(&machine, vec![run_it(image.id()), wait(1, 60_000), note(Phase::Prepare, "after it")]);
    operator.say(Request::Run { phase: Phase::Prepare });
    while !operator.events.iter().any(|event| matches!(event, HostEvent::Probed { .. })) {
        match operator.next().expect("it lives") {
            Tell::Event(event) => operator.events.push(event),
            other => panic!("expected an event, got {other:?}"),
        }
    }
    let begun = Instant::now();
    let interrupt = Ask { id: 99, request: Request::Interrupt };
    operator.send(&encode(&interrupt));
    let report = ran(operator.answer());
    assert!(report.failure.expect("interrupted").cause.contains("interrupted"));
    assert!(report.steps.len() == 2 && begun.elapsed() < Duration::from_secs(5));
    // The next run is not interrupted.
    operator.send(&encode(&interrupt));
    assert_eq!(operator.ask(settle(Decision::Revert, 1)), Reply::Done);
    assert!(ran(operator.ask(Request::Undo)).failure.is_none());
}

#[test]
fn an_interrupt_stops_what_was_asked_along_with_the_phase_at_work() {
    let machine = Machine::new();
    let image = image(&machine);
    let steps = vec![run_it(image.id()), exec("slow", &["slow"]), note(Phase::Hold, "after it")];
    let (mut operator, _) = leased(&machine, steps);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.is_none());
    operator.say(Request::Run { phase: Phase::Cutover });
    operator.say(Request::Run { phase: Phase::Hold });
    operator.say(settle(Decision::Commit, 1));
    while !matches!(operator.next(), Some(Tell::Event(HostEvent::StepStarted { .. }))) {}
    operator.send(&encode(&Ask { id: 99, request: Request::Interrupt }));
    assert_eq!(ran(operator.answer_before(2)).steps.len(), 1, "the step at work goes on to its end");
    assert_eq!(ran(operator.answer_before(1)), RunReport { steps: Vec::new(), failure: None });
    assert_eq!(refused(operator.answer()), RefusalKind::OutOfOrder);
    // Nothing waits any more, so nothing is interrupted.
    assert_eq!(ran(operator.ask(Request::Run { phase: Phase::Hold })).steps.len(), 1);
}

#[test]
fn a_container_that_ends_while_it_is_removed_is_removed_all_the_same() {
    let machine = Machine::new();
    let image = image(&machine);
    let (mut operator, _) = leased(&machine, vec![run_it(image.id())]);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.is_none());
    fs::write(machine.engine("ends"), "").expect("written");
    assert_eq!(operator.ask(settle(Decision::Revert, 1)), Reply::Done);
    assert!(ran(operator.ask(Request::Undo)).failure.is_none());
    assert!(!machine.engine("ends").exists() && !machine.engine("container").join("shop-web-1").exists());
}

#[test]
fn when_the_input_ends_the_step_in_hand_is_finished_and_no_other_begins() {
    let machine = Machine::new();
    let image = image(&machine);
    let (mut operator, _) =
        leased(&machine, vec![run_it(image.id()), exec("slow", &["slow"]), exec("next", &["true"])]);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.is_none());
    operator.say(Request::Run { phase: Phase::Cutover });
    while !matches!(operator.next(), Some(Tell::Event(HostEvent::StepStarted { .. }))) {}
    operator.say(settle(Decision::Commit, 1));
    operator.end().0.expect("it ends well");
    let transaction = machine.records().transaction.expect("open");
    assert!(transaction.is_open() && transaction.settlement.is_none());
    assert_eq!(transaction.states[1..], [StepState::Ended(Outcome::Done { output: None }), StepState::Pending]);
    // The lease stays recorded. Its process, which is this test's, still runs; another session of it goes on.
    let mut operator = machine.session();
    assert!(matches!(operator.ask(acquire("a", 2, 60_000)), Reply::Lease(_)));
    assert_eq!(operator.ask(settle(Decision::Revert, 2)), Reply::Done);
    assert_eq!(ran(operator.ask(Request::Undo)).steps.len(), 1);
}

#[test]
fn what_may_run_only_once_is_not_run_again_when_its_end_is_unknown() {
    let machine = Machine::new();
    let mut once = note(Phase::Cutover, "once");
    once.repeat = Repeat::AtMostOnce;
    let (operator, _) = leased(&machine, vec![once.clone(), note(Phase::Cutover, "often")]);
    operator.end().0.expect("it ends well");
    let journal = machine.root().join("projects/shop/journal");
    let mut text = fs::read_to_string(&journal).expect("read");
    text.push_str(&format!("{{\"entry\":\"started\",\"step\":\"{}\"}}\n", once.id));
    fs::write(&journal, text).expect("written");
    let mut operator = machine.session();
    operator.ask(acquire("a", 2, 60_000));
    let failure = ran(operator.ask(Request::Run { phase: Phase::Cutover })).failure.expect("it is not run");
    assert!(failure.cause.contains("only once"), "{}", failure.cause);
}

#[test]
fn after_the_decision_a_failure_does_not_stop_what_does_not_depend_on_it() {
    let machine = Machine::new();
    let image = image(&machine);
    let late = |mut step: Step| {
        step.phase = Phase::Drain;
        step
    };
    let bad = late(exec("bad", &["false"]));
    let mut after = late(note(Phase::Drain, "after it"));
    after.after = vec![bad.id.clone()];
    let steps = vec![run_it(image.id()), bad, after, late(note(Phase::Drain, "apart"))];
    let (mut operator, _) = leased(&machine, steps);
    assert_eq!(refused(operator.ask(Request::Run { phase: Phase::Drain })), RefusalKind::OutOfOrder);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.is_none());
    operator.ask(settle(Decision::Commit, 1));
    let report = ran(operator.ask(Request::Run { phase: Phase::Drain }));
    assert!(report.failure.expect("the first").cause.contains("exit code 1"));
    assert_eq!(report.steps.iter().map(|step| step.outcome.is_ok()).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_failure_that_says_what_is_tolerated_is_as_good_as_done() {
    let machine = Machine::new();
    let image = image(&machine);
    let gone = exec("gone", &["sh", "-c", "echo it is not found here >&2; exit 1"]);
    let (mut operator, _) = leased(&machine, vec![run_it(image.id()), gone]);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.is_none());
    let report = ran(operator.ask(Request::Run { phase: Phase::Cutover }));
    assert_eq!(report.steps[0].outcome, Outcome::Unchanged);
}

#[test]
fn outputs_reach_later_steps_when_they_look_as_they_should() {
    let machine = Machine::new();
    let path = machine.dir.path().join("out").display().to_string();
    let run = |title: &str, text: &str| {
        let argv = vec![Word::lit("printf"), Word::lit(text)];
        step(Phase::Boot, title, Action::Run { argv, stdin: Vec::new() })
    };
    let (port, line) = (run("port", "8080\n"), run("line", "1\n2"));
    let write = |title: &str, from: &Step| {
        let output = Word::Output { step: from.id.clone(), kind: jiji_model::plan::OutputKind::Port };
        let content = vec![Word::lit("port="), output];
        step(Phase::Prepare, title, Action::File { path: path.parse().expect("a path"), mode: 0o600, content })
    };
    let (good, bad) = (write("good", &port), write("bad", &line));
    let (mut operator, _) = leased(&machine, vec![port, line, good, bad]);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Boot })).failure.is_none());
    let report = ran(operator.ask(Request::Run { phase: Phase::Prepare }));
    assert!(report.failure.expect("two lines are no port").cause.contains("it is no Port"));
    assert_eq!(fs::read_to_string(&path).expect("written"), "port=8080");
}

#[test]
fn a_secret_as_an_argument_is_refused() {
    let machine = Machine::new();
    let argv = vec![Word::lit("true"), Word::Secret("KEY".parse().expect("a name"))];
    let (mut operator, _) = leased(&machine, vec![step(Phase::Boot, "x", Action::Run { argv, stdin: Vec::new() })]);
    let failure = ran(operator.ask(Request::Run { phase: Phase::Boot })).failure.expect("refused");
    assert!(failure.cause.contains("arguments are no secret"), "{}", failure.cause);
}

#[test]
fn a_container_of_somebody_else_is_neither_replaced_nor_removed() {
    let machine = Machine::new();
    let image = image(&machine);
    let theirs = machine.engine("container").join("shop-web-1");
    fs::write(&theirs, r#"{"Id":"x","Name":"/shop-web-1","Image":"x","State":{"Status":"running"}}"#).expect("written");
    let (mut operator, _) = leased(&machine, vec![run_it(image.id())]);
    let failure = ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.expect("refused");
    assert!(failure.cause.contains("not started by jiji"), "{}", failure.cause);
    operator.ask(settle(Decision::Revert, 1));
    assert_eq!(ran(operator.ask(Request::Undo)).steps[0].outcome, Outcome::Unchanged);
    assert!(theirs.exists());
}

#[test]
fn an_engine_that_runs_another_image_fails_the_step_and_the_container_goes() {
    let machine = Machine::new();
    let image = image(&machine);
    fs::write(machine.engine("runs"), Digest::of("another").to_string()).expect("written");
    let (mut operator, _) = leased(&machine, vec![run_it(image.id())]);
    let failure = ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.expect("refused");
    assert!(failure.cause.contains("the engine runs image"), "{}", failure.cause);
    assert!(!machine.engine("container").join("shop-web-1").exists());
}

#[test]
fn a_network_with_another_subnet_is_a_failure_that_names_both() {
    let machine = Machine::new();
    one_that_works(&machine, 1);
    let action = Action::NetworkEnsure {
        name: "jiji".into(),
        subnet: "10.210.7.128/25".into(),
        gateway: Ipv4Addr::new(10, 210, 7, 129),
    };
    let (mut operator, _) = leased(&machine, vec![step(Phase::Boot, "network", action)]);
    let cause = ran(operator.ask(Request::Run { phase: Phase::Boot })).failure.expect("it differs").cause;
    assert!(cause.contains("10.210.7.128/25") && cause.contains("10.210.0.128/25"), "{cause}");
}

#[test]
fn without_the_lease_nothing_is_done_and_a_lost_one_ends_the_session() {
    let machine = Machine::new();
    let steps = || vec![note(Phase::Boot, "x")];
    let mut operator = machine.session();
    for request in [
        Request::Begin(Box::new(begin(steps()))),
        Request::Run { phase: Phase::Boot },
        settle(Decision::Commit, 1),
        Request::Undo,
        Request::Release,
    ] {
        assert_eq!(refused(operator.ask(request)), RefusalKind::NoLease);
    }
    assert!(!machine.root().exists());
    assert!(matches!(operator.ask(acquire("a", 1, 60_000)), Reply::Lease(_)));
    let wrong = Begin { fencing: 9, ..begin(steps()) };
    assert_eq!(refused(operator.ask(Request::Begin(Box::new(wrong)))), RefusalKind::OutOfOrder);
    let elsewhere = Begin { scope: "other".into(), ..begin(steps()) };
    assert_eq!(refused(operator.ask(Request::Begin(Box::new(elsewhere)))), RefusalKind::OutOfOrder);
    let other = step(Phase::Boot, "x", Action::Other { kind: "dance".into(), json: serde_json::Value::Null });
    let unknown = begin(vec![other]);
    assert_eq!(refused(operator.ask(Request::Begin(Box::new(unknown)))), RefusalKind::Unsupported);
    // Asked twice is begun once; another one must wait.
    for _ in 0..2 {
        assert_eq!(operator.ask(Request::Begin(Box::new(begin(steps())))), Reply::Done);
    }
    let second = Begin { transaction: "t2".into(), ..begin(steps()) };
    assert_eq!(refused(operator.ask(Request::Begin(Box::new(second)))), RefusalKind::OpenTransaction);
    // Somebody takes it.
    fs::remove_file(machine.root().join("projects/shop/lease.json")).expect("removed");
    assert_eq!(refused(operator.ask(Request::Run { phase: Phase::Boot })), RefusalKind::NoLease);
    operator.say(Request::Heartbeat);
    let mut lost = false;
    while let Some(tell) = operator.next() {
        lost |= matches!(tell, Tell::Event(HostEvent::LeaseLost));
    }
    assert!(lost);
}

#[test]
fn a_lease_lasts_while_the_operator_is_heard_also_in_the_middle_of_a_step() {
    let machine = Machine::new();
    let image = image(&machine);
    let begin = numbered(vec![run_it(image.id()), exec("slow", &["slow"]), exec("next", &["true"])], 1);
    let mut operator = machine.session();
    operator.secrets(&[("KEY", "hunter2")]);
    operator.ask(acquire("a", 1, 600));
    operator.ask(Request::Begin(Box::new(begin)));
    assert!(ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.is_none());
    operator.say(Request::Run { phase: Phase::Cutover });
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(150));
        operator.send(&encode(&Ask { id: 0, request: Request::Heartbeat }));
    }
    assert_eq!(ran(operator.answer()).steps.len(), 2);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(refused(operator.ask(settle(Decision::Commit, 1))), RefusalKind::NoLease);
}

#[test]
fn an_operator_who_is_not_heard_for_two_leases_is_given_up_once_the_step_in_hand_has_ended() {
    let machine = Machine::new();
    let image = image(&machine);
    let begin = numbered(vec![run_it(image.id()), exec("slow", &["slow"]), exec("next", &["true"])], 1);
    let mut operator = machine.session();
    operator.secrets(&[("KEY", "hunter2")]);
    // Long enough for what is asked at first, on a machine that is late.
    operator.ask(acquire("a", 1, 900));
    operator.ask(Request::Begin(Box::new(begin)));
    assert!(ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.is_none());
    let begun = Instant::now();
    operator.say(Request::Run { phase: Phase::Cutover });
    // The line stays open, and nothing comes.
    while operator.next().is_some() {}
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
    let Operator { thread, to_host, .. } = operator;
    assert!(matches!(thread.join().expect("no panic"), Err(SessionError::Silent)));
    drop(to_host);
    assert!(!machine.root().join("projects/shop/lease.json").exists());
    let transaction = machine.records().transaction.expect("open");
    assert!(transaction.is_open() && transaction.states[2] == StepState::Pending, "{:?}", transaction.states);
}

#[test]
fn a_candidate_stays_while_what_routes_to_it_could_not_be_taken_back() {
    let machine = Machine::new();
    let image = image(&machine);
    let mut route = exec("route it", &["true"]);
    route.undo = Some(exec("route back", &["false"]).action);
    let (mut operator, begin) = leased(&machine, vec![run_it(image.id()), route]);
    for phase in [Phase::Prepare, Phase::Cutover] {
        assert!(ran(operator.ask(Request::Run { phase })).failure.is_none());
    }
    assert_eq!(operator.ask(settle(Decision::Revert, 1)), Reply::Done);
    let report = ran(operator.ask(Request::Undo));
    assert!(report.failure.expect("it cannot be routed back").cause.contains("exit code 1"));
    assert_eq!(report.steps.len(), 1);
    assert!(machine.engine("container").join("shop-web-1").exists());
    assert_eq!(refused(operator.ask(conclude(&begin, Decision::Revert))), RefusalKind::OutOfOrder);
}

#[test]
fn what_ran_out_of_time_is_taken_back_only_after_it_can_take_effect_no_more() {
    let machine = Machine::new();
    let image = image(&machine);
    let mut route = exec("route it", &["false"]);
    route.undo = Some(exec("route back", &["true"]).action);
    route.quiet_ms = 400;
    let (mut operator, _) = leased(&machine, vec![run_it(image.id()), route]);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Prepare })).failure.is_none());
    assert!(ran(operator.ask(Request::Run { phase: Phase::Cutover })).failure.is_some());
    assert_eq!(operator.ask(settle(Decision::Revert, 1)), Reply::Done);
    let begun = Instant::now();
    assert!(ran(operator.ask(Request::Undo)).failure.is_none());
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[test]
fn a_newer_settlement_holds_and_records_of_a_newer_jiji_are_left_alone() {
    let machine = Machine::new();
    let (operator, _) = leased(&machine, vec![note(Phase::Boot, "x")]);
    operator.end().0.expect("it ends well");
    let mut operator = machine.session();
    operator.ask(acquire("a", 5, 60_000));
    // Nothing is committed before everything that comes before it was done.
    assert_eq!(refused(operator.ask(settle(Decision::Commit, 1))), RefusalKind::OutOfOrder);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Boot })).failure.is_none());
    assert_eq!(refused(operator.ask(settle(Decision::Commit, 6))), RefusalKind::OutOfOrder);
    assert_eq!(operator.ask(settle(Decision::Commit, 1)), Reply::Done);
    assert_eq!(operator.ask(settle(Decision::Revert, 5)), Reply::Done);
    // A lower one is refused, so that nobody takes it for recorded.
    assert_eq!(refused(operator.ask(settle(Decision::Commit, 4))), RefusalKind::OutOfOrder);
    let settled = machine.records().transaction.expect("open").settlement;
    assert_eq!(settled, Some(Settlement { decision: Decision::Revert, fencing: 5 }));
    operator.end().0.expect("it ends well");
    let journal = machine.root().join("projects/shop/journal");
    fs::write(&journal, "{\"entry\":\"begin\",\"version\":2}\n").expect("written");
    let mut operator = machine.session();
    assert_eq!(refused(operator.ask(acquire("b", 9, 60_000))), RefusalKind::NewerFormat);
    assert!(matches!(operator.observe(Query::Records { scope: "shop".into() }), Answer::Failed(_)));
    let fencing = fs::read_to_string(machine.root().join("projects/shop/fencing")).expect("read");
    assert_eq!(fencing, "5\n");
}

#[test]
fn what_must_run_to_be_taken_back_is_started_after_a_loss_of_power_and_waited_for() {
    let machine = Machine::new();
    one_that_works(&machine, 1);
    let mut route = exec("route it", &["true"]);
    let here = machine.engine("");
    // Only what runs takes commands, and not the first one.
    let script =
        format!("cd {} && test -f started.shop-web-1 && mv first second || {{ touch first; exit 1; }}", here.display());
    route.undo = Some(exec("route back", &["sh", "-c", &script]).action);
    let stop = step(Phase::Drain, "stop it", Action::ContainerStop { name: name(), timeout_s: 1 });
    let (mut operator, _) = leased(&machine, vec![route, stop]);
    assert!(ran(operator.ask(Request::Run { phase: Phase::Cutover })).failure.is_none());
    operator.end().0.expect("it ends well");
    let container = machine.engine("container").join("shop-web-1");
    let json = fs::read_to_string(&container).expect("read");
    fs::write(&container, json.replace(r#""running","Pid":7"#, r#""exited","ExitCode":0"#)).expect("written");

    let mut operator = machine.session();
    operator.ask(acquire("a", 3, 60_000));
    assert_eq!(operator.ask(settle(Decision::Revert, 3)), Reply::Done);
    let report = ran(operator.ask(Request::Undo));
    assert!(report.failure.is_none(), "{report:?}");
    let revived = HostEvent::Revived { container: "shop-web-1".into(), cause: None };
    assert_eq!(operator.events.iter().filter(|event| **event == revived).count(), 1, "{:?}", operator.events);
    assert!(fs::read_to_string(&container).expect("read").contains("running"));
}
