//! Whole transactions over hosts in memory, with every way to die.

mod fake;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_model::event::{Record, Silent};
use jiji_model::image::{Descriptor, Image, ImageId, Platform};
use jiji_model::name::{ContainerName, HostName, ServiceName};
use jiji_model::plan::{
    Action, ContainerImage, ContainerSpec, NETWORK, Phase, Plan, PlannedImage, PlannedService, Step, Word,
};
use jiji_model::probe::ProbeSpec;
use jiji_model::project::{Check, Rollout};
use jiji_model::transaction::{Decision, HostRecords};
use jiji_store::Store;

use super::{ABORT_POINTS, Applied, ApplyError, Cancel, Options, Settled, apply, settle_open, wait_until_free};
use fake::{Doom, Link, World};

const OLD: &str = "web-old";
const NEW: &str = "web-new";

fn container(name: &str) -> ContainerName {
    ContainerName::new(name).expect("a name")
}

fn route(to: &str) -> Action {
    Action::ContainerExec {
        container: container("proxy"),
        argv: vec![Word::lit("route"), Word::lit(to)],
        tolerate: Vec::new(),
    }
}

fn image() -> Image {
    let blob = |text: &str, media_type: &str| Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(text),
        size: 100,
    };
    Image {
        repository: "shop/web".to_owned(),
        platform: Platform::linux_amd64(),
        manifest: blob("manifest", jiji_model::image::MANIFEST),
        config: blob("config", jiji_model::image::CONFIG),
        layers: Vec::new(),
    }
}

fn spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        name: container(name),
        image: ContainerImage::Seeded {
            id: ImageId { manifest: Digest::of("manifest"), config: Digest::of("config") },
            repository: "shop/web".to_owned(),
        },
        network: NETWORK.to_owned(),
        address: None,
        env: BTreeMap::new().into(),
        labels: BTreeMap::new().into(),
        mounts: Vec::new(),
        publish: Vec::new(),
        entrypoint: None,
        command: None,
        user: None,
        restart: true,
        stop_timeout_s: 10,
    }
}

fn plan(hosts: &[HostName]) -> Plan {
    let mut steps = Vec::new();
    let mut releases = BTreeMap::new();
    let service = ServiceName::new("web").expect("a name");
    for host in hosts {
        let step = |phase, title: &str, action| {
            let mut step = Step::new(host, phase, title, action);
            step.service = Some(service.clone());
            step
        };
        let mut run = step(Phase::Prepare, "run web-new", Action::ContainerRun(Box::new(spec(NEW))));
        run.undo = Some(Action::ContainerRemove { name: container(NEW) });
        let probe = ProbeSpec {
            check: Check::Http { port: 80, path: "/up".to_owned() },
            interval_ms: 500,
            timeout_ms: 500,
            healthy_after: 1,
            deadline_ms: 5000,
            status_from: 200,
            status_to: 299,
        };
        let hold =
            Action::Hold { container: container(NEW), network: NETWORK.to_owned(), probe: probe.clone(), for_ms: 1000 };
        let wait = Action::WaitProbe { container: container(NEW), network: NETWORK.to_owned(), probe };
        let mut cutover = step(Phase::Cutover, "route web to web-new", route(NEW));
        cutover.undo = Some(route(OLD));
        let stop = Action::ContainerStop { name: container(OLD), timeout_s: 10 };
        steps.extend([
            step(Phase::Boot, "boot", Action::Note { text: "boot".to_owned() }),
            run,
            step(Phase::Prepare, "wait until web-new is healthy", wait),
            cutover,
            step(Phase::Hold, "watch web-new", hold),
            step(Phase::Withdraw, "withdraw", Action::Note { text: "withdraw".to_owned() }),
            step(Phase::Drain, "stop web-old", stop),
            step(Phase::Finalize, "remove web-old", Action::ContainerRemove { name: container(OLD) }),
        ]);
        let planned = PlannedService {
            image: image().into(),
            container: container(NEW),
            address: None,
            spec: spec(NEW).digest(),
            container_spec: spec(NEW),
            probe: None,
            route: None,
        };
        releases.insert(host.clone(), BTreeMap::from([(service.clone(), planned.into())]));
    }
    Plan {
        version: Plan::VERSION,
        scope: "shop".to_owned(),
        steps,
        images: vec![PlannedImage { image: image(), hosts: hosts.to_vec() }],
        retain: 5,
        rollout: Rollout::default(),
        releases,
    }
}

/// A fleet in memory, each host serving the old version.
struct Lab {
    worlds: BTreeMap<HostName, Arc<Mutex<World>>>,
    doom: Arc<Mutex<Doom>>,
    _dir: tempfile::TempDir,
    store: Store,
}

impl Lab {
    fn of(names: &[&str]) -> Self {
        let world = || {
            let mut world = World::default();
            world.containers.insert(OLD.to_owned(), true);
            world.routed = Some(OLD.to_owned());
            world
        };
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        let host = |name: &&str| HostName::new(*name).expect("a name");
        Self {
            worlds: names.iter().map(|name| (host(name), Arc::new(Mutex::new(world())))).collect(),
            doom: Arc::default(),
            _dir: dir,
            store,
        }
    }

    fn hosts(&self) -> Vec<HostName> {
        self.worlds.keys().cloned().collect()
    }

    fn with<T>(&self, host: &str, change: impl FnOnce(&mut World) -> T) -> T {
        let host = HostName::new(host).expect("a name");
        change(&mut self.worlds[&host].lock().expect("no test panics while it holds a lock"))
    }

    /// Connections to the hosts that live.
    fn links(&self) -> BTreeMap<HostName, Link> {
        let worlds = self.worlds.iter();
        let alive = worlds.filter(|(_, world)| !world.lock().expect("free").dead);
        alive.map(|(host, world)| (host.clone(), Link::to(host, world, &self.doom))).collect()
    }

    fn seen(&self, links: &BTreeMap<HostName, Link>) -> BTreeMap<HostName, HostRecords> {
        let hosts = links.keys();
        hosts.map(|host| (host.clone(), self.worlds[host].lock().expect("free").records())).collect()
    }

    async fn ship_with(&self, options: &Options, cancel: &Cancel) -> Result<Applied, ApplyError> {
        let links = self.links();
        let seen = self.seen(&links);
        apply(&plan(&self.hosts()), &seen, &links, &self.store, options, cancel, &Silent).await
    }

    async fn ship(&self) -> Result<Applied, ApplyError> {
        self.ship_with(&options(), &Cancel::default()).await
    }

    /// A ship that may never end because its operator dies. None: it died.
    async fn ship_mortal(&self, options: &Options) -> Option<Result<Applied, ApplyError>> {
        let cancel = Cancel::default();
        let ship = self.ship_with(options, &cancel);
        // Nothing here waits for anything but a dead operator.
        tokio::time::timeout(Duration::from_millis(60), ship).await.ok()
    }

    /// What the next run does first.
    async fn settle(&self) -> Result<Vec<Settled>, ApplyError> {
        *self.doom.lock().expect("free") = Doom::default();
        let links = self.links();
        let seen = self.seen(&links);
        settle_open("shop", &seen, &links, &options(), &Cancel::default(), &Silent).await
    }

    /// Checks what must hold whenever nothing is under way: no request was lost, no journal is open, and all hosts run the same.
    fn agree(&self, context: &str) -> String {
        let mut routed = Vec::new();
        for (host, world) in &self.worlds {
            let world = world.lock().expect("free");
            assert!(!world.outage, "{context}: {host} lost requests: {:?}", world.log);
            assert!(
                !world.transaction.as_ref().is_some_and(|last| last.is_open()),
                "{context}: {host} is still open: {:?}",
                world.log
            );
            let to = world.routed.clone().expect("something is always routed");
            assert_eq!(world.containers.get(&to), Some(&true), "{context}: {host}");
            if to == OLD {
                assert_eq!(world.containers.len(), 1, "{context}: {host} keeps a candidate: {:?}", world.log);
            }
            assert_eq!(
                world.releases.len(),
                usize::from(to == NEW),
                "{context}: {host} has the wrong releases: {:?}",
                world.log
            );
            routed.push(to);
        }
        routed.dedup();
        assert_eq!(routed.len(), 1, "{context}: hosts differ");
        routed.remove(0)
    }
}

fn earlier() -> jiji_model::transaction::Release {
    jiji_model::transaction::Release {
        version: 1,
        number: 0,
        transaction: "before".to_owned(),
        plan: Digest::of("before"),
        who: String::new(),
        command: "ship".to_owned(),
        at_s: 0,
        services: BTreeMap::new(),
        retain: None,
        secrets: BTreeMap::new(),
        seal: None,
    }
}

fn options() -> Options {
    Options::new("run", "ann@laptop", "ship", 7)
}

#[tokio::test]
async fn every_host_is_prepared_before_any_is_cut_over_and_nothing_old_stops_before_the_decision() {
    let lab = Lab::of(&["one", "two"]);
    let applied = lab.ship().await.expect("shipped");
    assert_eq!((applied.number, applied.left.len()), (1, 0));
    assert_eq!(applied.sent.values().sum::<u64>(), 400);
    assert_eq!(lab.agree("shipped"), NEW);
    let log = lab.with("two", |world| world.log.join("\n"));
    insta::assert_snapshot!(log, @r"
    begin
    run boot
    boot
    run prepare
    run web-new
    wait web-new
    run cutover
    route web-new
    run hold
    hold web-new
    settle Commit
    run withdraw
    withdraw
    run drain
    stop web-old
    run finalize
    remove web-old
    conclude
    ");
    let releases = lab.with("one", |world| world.releases.clone());
    assert_eq!((releases.len(), releases[0].number), (1, 1));
}

#[tokio::test]
async fn an_unhealthy_second_host_reverts_the_first_and_the_error_shows_what_it_answered() {
    let lab = Lab::of(&["one", "two"]);
    lab.with("two", |world| world.unhealthy = true);
    let error = lab.ship().await.expect_err("unhealthy");
    assert_eq!(error.exit_code(), 7);
    assert_eq!(lab.agree("reverted"), OLD);
    assert!(!lab.with("one", |world| world.log.contains(&"run cutover".to_owned())));
    let shown = format!("{error}\n{}", error.hints().join("\n"));
    insta::assert_snapshot!(shown, @r"
    wait until web-new is healthy on `two`: not healthy within 5 seconds; all hosts were reverted
    the old version serves; mend the cause and run `jiji ship` again
    ");
    let failures = error.failures();
    let found = &failures[0].found;
    assert_eq!((failures.len(), failures[0].host.as_str(), failures[0].undo), (1, "two", false));
    assert_eq!(found.timeline.as_ref().map(|timeline| timeline.made), Some(10));
    assert_eq!(found.evidence[0].log, "starting\ncannot reach the database\n");
}

#[tokio::test]
async fn a_version_that_sickens_while_it_is_watched_is_taken_back_on_all_hosts() {
    let lab = Lab::of(&["one", "two"]);
    lab.with("two", |world| world.sickens = true);
    let error = lab.ship().await.expect_err("it sickened");
    assert_eq!(error.exit_code(), 7, "{error}");
    assert_eq!(lab.agree("reverted"), OLD);
    assert!(lab.with("one", |world| world.log.contains(&"undo route web-old".to_owned())));
}

#[tokio::test]
async fn nobody_watches_on_once_another_host_is_sick() {
    let lab = Lab::of(&["one", "two"]);
    lab.with("one", |world| world.sickens = true);
    let error = lab.ship().await.expect_err("it sickened");
    assert_eq!(lab.agree("reverted"), OLD);
    assert!(lab.with("two", |world| world.interrupted), "its watch was stopped");
    let sick: Vec<_> = error.failures().iter().map(|failure| failure.host.to_string()).collect();
    assert_eq!(sick, ["one"], "who was stopped was not sick");
}

#[tokio::test]
async fn canaries_are_cut_over_first_and_a_refused_batch_keeps_the_next_ones_as_they_are() {
    let lab = Lab::of(&["one", "three", "two"]);
    lab.with("two", |world| world.refuses_routes = true);
    let host = |name: &str| HostName::new(name).expect("a name");
    let rollout = Rollout { canary: vec![host("two")], wait_ms: 1, ..Rollout::default() };
    let plan = Plan { rollout, ..plan(&lab.hosts()) };
    let links = lab.links();
    let seen = lab.seen(&links);
    let cancel = Cancel::default();
    let error = apply(&plan, &seen, &links, &lab.store, &options(), &cancel, &Silent).await.expect_err("refused");
    assert_eq!(error.exit_code(), 16, "{error}");
    assert_eq!(lab.agree("reverted"), OLD);
    for other in ["one", "three"] {
        assert!(!lab.with(other, |world| world.log.contains(&"run cutover".to_owned())), "{other}");
    }
}

#[tokio::test]
async fn a_host_alone_is_asked_ahead_and_goes_no_further_than_what_failed() {
    type Trouble = fn(&mut World);
    let all = ["begin", "run boot", "run prepare", "run cutover", "run hold"];
    let ways: [(Trouble, u8, &[&str]); 3] = [
        (|world| world.unhealthy = true, 7, &all[..3]),
        (|world| world.refuses_routes = true, 16, &all[..4]),
        (|world| world.sickens = true, 7, &all),
    ];
    for (trouble, code, ran) in ways {
        let lab = Lab::of(&["one"]);
        lab.with("one", trouble);
        let error = lab.ship().await.expect_err("it fails");
        assert_eq!(error.exit_code(), code, "{error}");
        assert_eq!(lab.agree("reverted"), OLD);
        let log = lab.with("one", |world| world.log.clone());
        let asked = |line: &&str| *line == "begin" || Phase::ALL.iter().any(|phase| *line == format!("run {phase}"));
        let asked: Vec<&str> = log.iter().map(String::as_str).filter(asked).collect();
        assert_eq!(asked, ran, "{log:?}");
    }
}

#[tokio::test]
async fn asking_to_stop_between_two_batches_reverts_those_that_were_cut_over() {
    let lab = Lab::of(&["one", "two"]);
    let rollout = Rollout { max_parallel: Some(1), wait_ms: 60_000, ..Rollout::default() };
    let plan = Plan { rollout, ..plan(&lab.hosts()) };
    let links = lab.links();
    let seen = lab.seen(&links);
    let (options, cancel) = (options(), Cancel::default());
    let sink = |record: Record| {
        if record.event == "apply.pausing" {
            cancel.request();
        }
    };
    let error = apply(&plan, &seen, &links, &lab.store, &options, &cancel, &sink).await.expect_err("interrupted");
    assert_eq!(error.exit_code(), 14, "{error}");
    assert_eq!(lab.agree("reverted"), OLD);
    assert!(lab.with("one", |world| world.log.contains(&"undo route web-old".to_owned())));
}

#[tokio::test]
async fn whoever_waits_for_a_lease_goes_on_as_soon_as_it_is_free() {
    let lab = Lab::of(&["one", "two"]);
    let (links, others) = (lab.links(), lab.links());
    let two = HostName::new("two").expect("a name");
    let request = jiji_model::transaction::LeaseRequest {
        scope: "shop".to_owned(),
        holder: "other".to_owned(),
        who: "bob@desk".to_owned(),
        fencing: 1,
        ttl_ms: 60_000,
    };
    let ask = |request| super::HostLink::ask(&others[&two], request, Duration::from_secs(1));
    ask(jiji_model::protocol::Request::Acquire(request)).await.expect("granted");
    let (options, cancel) = (options(), Cancel::default());
    let until = |ms| tokio::time::Instant::now() + Duration::from_millis(ms);
    let wait = |until| wait_until_free("shop", &links, &options, until, &cancel, &Silent);
    assert!(!wait(until(20)).await.expect("asked"), "somebody is at work");
    let free = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        ask(jiji_model::protocol::Request::Release).await.expect("given back");
    };
    let (free_now, ()) = tokio::join!(wait(until(20_000)), free);
    assert!(free_now.expect("asked"));
}

#[tokio::test]
async fn a_refused_route_on_the_second_host_takes_the_first_ones_cutover_back() {
    let lab = Lab::of(&["one", "two"]);
    lab.with("two", |world| world.refuses_routes = true);
    let error = lab.ship().await.expect_err("refused");
    assert_eq!(error.exit_code(), 16);
    assert_eq!(lab.agree("reverted"), OLD);
    assert!(lab.with("one", |world| world.log.contains(&"undo route web-old".to_owned())));
}

#[tokio::test]
async fn a_revert_that_fails_is_said_and_taken_up_by_the_next_run() {
    let lab = Lab::of(&["one", "two"]);
    lab.with("two", |world| world.unhealthy = true);
    lab.with("one", |world| world.cannot_undo = true);
    let error = lab.ship().await.expect_err("unhealthy");
    assert_eq!(error.exit_code(), 8, "{error}");
    let error = lab.settle().await.expect_err("it still cannot be taken back");
    assert_eq!(error.exit_code(), 8, "{error}");
    lab.with("one", |world| world.cannot_undo = false);
    let settled = lab.settle().await.expect("settled");
    assert_eq!(settled[0].decision, Decision::Revert);
    assert_eq!(lab.agree("settled"), OLD);
}

#[tokio::test]
async fn a_host_where_something_happened_since_the_look_is_not_touched_and_nor_is_any_other() {
    let lab = Lab::of(&["one", "two"]);
    let links = lab.links();
    let seen = lab.seen(&links);
    lab.ship().await.expect("another run ships first");
    for host in ["one", "two"] {
        lab.with(host, |world| world.log.clear());
    }
    let store = &lab.store;
    let cancel = Cancel::default();
    let late = apply(&plan(&lab.hosts()), &seen, &links, store, &options(), &cancel, &Silent).await;
    let error = late.expect_err("it moved");
    assert_eq!(error.exit_code(), 15, "{error}");
    assert!(lab.with("one", |world| world.log.is_empty()));
    assert!(lab.with("one", |world| world.records().lease.is_none()));
}

#[tokio::test]
async fn a_lease_that_somebody_else_prolongs_is_not_waited_for() {
    let lab = Lab::of(&["one"]);
    let links = lab.links();
    let other = lab.links();
    let one = HostName::new("one").expect("a name");
    let hold = |ttl_ms| {
        super::HostLink::ask(
            &other[&one],
            jiji_model::protocol::Request::Acquire(jiji_model::transaction::LeaseRequest {
                scope: "shop".to_owned(),
                holder: "other".to_owned(),
                who: "bob@desk".to_owned(),
                fencing: 1,
                ttl_ms,
            }),
            Duration::from_secs(1),
        )
    };
    hold(10).await.expect("granted");
    let seen = lab.seen(&links);
    let (options, cancel, plan) = (options(), Cancel::default(), plan(&lab.hosts()));
    let ship = apply(&plan, &seen, &links, &lab.store, &options, &cancel, &Silent);
    let prolong = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        hold(1000).await.expect("prolonged");
    };
    let (ended, ()) = tokio::join!(ship, prolong);
    let error = ended.expect_err("held");
    assert_eq!(error.exit_code(), 10, "{error}");
    assert_eq!(error.to_string(), "take the lease of `one`: bob@desk holds it");
}

#[tokio::test]
async fn asking_to_stop_cuts_a_wait_short_and_reverts() {
    let lab = Lab::of(&["one", "two"]);
    lab.with("two", |world| world.slow = true);
    let cancel = Cancel::default();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        cancel.request();
    };
    let options = options();
    let (ended, ()) = tokio::join!(lab.ship_with(&options, &cancel), stop);
    let error = ended.expect_err("interrupted");
    assert_eq!(error.exit_code(), 14, "{error}");
    assert_eq!(lab.agree("interrupted"), OLD);
}

#[tokio::test]
async fn asking_twice_lets_go_and_the_next_run_settles() {
    let lab = Lab::of(&["one", "two"]);
    lab.with("two", |world| world.slow = true);
    let cancel = Cancel::default();
    cancel.request();
    let error = lab.ship_with(&options(), &cancel).await.expect_err("stopped");
    assert!(matches!(error, ApplyError::Stopped), "{error}");
    let cancel = Cancel::default();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        cancel.request();
        cancel.request();
    };
    let options = options();
    let (ended, ()) = tokio::join!(lab.ship_with(&options, &cancel), stop);
    let error = ended.expect_err("detached");
    assert_eq!(error.exit_code(), 9, "{error}");
    lab.settle().await.expect("settled");
    assert_eq!(lab.agree("settled"), OLD);
}

#[tokio::test]
async fn steps_name_themselves_in_events_with_their_host_service_and_phase() {
    let lab = Lab::of(&["one"]);
    let records = Mutex::new(Vec::new());
    let sink = |record: Record| records.lock().expect("free").push(record);
    let links = lab.links();
    let seen = lab.seen(&links);
    let cancel = Cancel::default();
    apply(&plan(&lab.hosts()), &seen, &links, &lab.store, &options(), &cancel, &sink).await.expect("shipped");
    let shown: Vec<_> = records
        .lock()
        .expect("free")
        .iter()
        .map(|record| {
            let phase = record.phase.map(|phase| phase.to_string()).unwrap_or_default();
            format!("{}|{phase}|{}", record.event, record.text)
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
    apply.leased||
    apply.sending||sending 200 B of 200 B
    apply.sent||sent 2 blobs, 200 B
    apply.begun||
    apply.phase|boot|preparing the host
    apply.step-started|boot|boot
    apply.step-ended|boot|boot
    apply.phase|prepare|starting candidates
    apply.step-started|prepare|run web-new
    apply.step-ended|prepare|run web-new
    apply.step-started|prepare|wait until web-new is healthy
    apply.step-ended|prepare|wait until web-new is healthy
    apply.phase|cutover|moving traffic
    apply.step-started|cutover|route web to web-new
    apply.step-ended|cutover|route web to web-new
    apply.phase|hold|watching the new version
    apply.step-started|hold|watch web-new
    apply.step-ended|hold|watch web-new
    apply.settled||
    apply.phase|withdraw|withdrawing old routes
    apply.step-started|withdraw|withdraw
    apply.step-ended|withdraw|withdraw
    apply.phase|drain|stopping old containers
    apply.step-started|drain|stop web-old
    apply.step-ended|drain|stop web-old
    apply.phase|finalize|removing old containers and images
    apply.step-started|finalize|remove web-old
    apply.step-ended|finalize|remove web-old
    apply.concluded||committed
    ");
}

#[tokio::test]
async fn an_operator_killed_at_any_ask_leaves_a_fleet_that_the_next_run_settles_alike() {
    for (names, after) in
        [["one", "two"].as_slice(), &["one"]].into_iter().flat_map(|names| [(names, false), (names, true)])
    {
        let mut asks = 0;
        let mut seen = Vec::new();
        loop {
            asks += 1;
            let lab = Lab::of(names);
            *lab.doom.lock().expect("free") = Doom { asks: Some(asks), after };
            let ended = lab.ship_mortal(&options()).await;
            let context = format!("{} hosts, killed at ask {asks}, after: {after}", names.len());
            lab.settle().await.unwrap_or_else(|error| panic!("{context}: {error}"));
            seen.push(lab.agree(&context));
            if let Some(ended) = ended {
                ended.expect("it was not killed");
                break;
            }
        }
        // Once decided, always decided.
        let first_new = seen.iter().position(|version| version == NEW).expect("the last one ends well");
        assert!(seen[first_new..].iter().all(|version| version == NEW), "{seen:?}");
        assert!(seen.len() > 7 * names.len(), "{} places to die", seen.len());
    }
}

#[tokio::test]
async fn an_operator_killed_at_a_named_point_is_settled_by_the_next_run() {
    for point in ABORT_POINTS {
        let lab = Lab::of(&["one", "two"]);
        let killed = lab.ship_mortal(&options().abort_at(Some(point.to_owned()))).await;
        assert!(killed.is_none(), "{point} is never passed");
        lab.settle().await.expect("settled");
        let decided = ABORT_POINTS.iter().position(|name| *name == "settled-one");
        let here = ABORT_POINTS.iter().position(|name| *name == point);
        let expected = if here >= decided { NEW } else { OLD };
        assert_eq!(lab.agree(point), expected, "{point}");
    }
}

#[tokio::test]
async fn a_host_that_dies_at_any_move_agrees_with_the_others_once_it_is_back() {
    for (victim, others) in [("one", ["two", "three"].as_slice()), ("two", &["one", "three"]), ("one", &[])] {
        for moves in 1.. {
            let lab = Lab::of(&[&[victim], others].concat());
            lab.with(victim, |world| world.dies_in = Some(moves));
            let ended = lab.ship().await;
            let context = format!("{victim} of {} dies at move {moves}", others.len() + 1);
            if lab.with(victim, |world| !world.dead) {
                ended.expect("nobody died");
                assert!(moves > 20);
                break;
            }
            match ended {
                // It had said everything that it had to say.
                Ok(_) => {}
                Err(error) => assert!(matches!(error.exit_code(), 6 | 9), "{context}: {error}"),
            }
            match lab.settle().await {
                Ok(_) => {}
                // The others recorded the commit, and nobody can know whether it did: both versions are kept until it is back.
                Err(ApplyError::Waiting { away, .. }) => assert_eq!(away, [HostName::new(victim).expect("a name")]),
                Err(error) => panic!("{context}, without it: {error}"),
            }
            for (host, world) in &lab.worlds {
                let world = world.lock().expect("free");
                assert!(!world.outage, "{context}, without it: {host} lost requests: {:?}", world.log);
            }
            lab.with(victim, World::revive);
            lab.settle().await.unwrap_or_else(|error| panic!("{context}, with it: {error}"));
            lab.agree(&context);
        }
    }
}

#[tokio::test]
async fn a_host_that_alone_knew_the_decision_follows_the_rest_when_it_comes_back() {
    let lab = Lab::of(&["one", "two"]);
    let killed = lab.ship_mortal(&options().abort_at(Some("settled-one".to_owned()))).await;
    assert!(killed.is_none());
    lab.with("one", |world| world.dead = true);
    let settled = lab.settle().await.expect("settled without it");
    assert_eq!(settled[0].decision, Decision::Revert);
    assert_eq!(settled[0].away, [HostName::new("one").expect("a name")]);
    lab.with("one", World::revive);
    lab.settle().await.expect("settled with it");
    assert_eq!(lab.agree("back"), OLD);
}

#[tokio::test]
async fn nothing_old_goes_while_a_host_may_not_know_the_decision_and_nobody_is_asked_for_it() {
    let lab = Lab::of(&["one", "two"]);
    // The second host dies as it is told of the decision.
    lab.with("two", |world| world.dies_at = Some("settle Commit".to_owned()));
    let error = lab.ship().await.expect_err("one host is lost");
    assert_eq!(error.exit_code(), 9, "{error}");
    lab.with("one", |world| assert_eq!((world.routed.as_deref(), world.containers.len()), (Some(NEW), 2)));
    // Without it both versions stay.
    let error = lab.settle().await.expect_err("it must be reached first");
    assert!(matches!(&error, ApplyError::Waiting { away, .. } if away.len() == 1), "{error}");
    assert!(lab.with("one", |world| world.records().lease.is_none() && world.containers.len() == 2));
    // A host that was taken out of the project is not waited for.
    let links = lab.links();
    let seen = lab.seen(&links);
    let alone = Options { project: Some(links.keys().cloned().collect()), ..options() };
    settle_open("shop", &seen, &links, &alone, &Cancel::default(), &Silent).await.expect("settled");
    lab.with("one", |world| assert_eq!((world.containers.len(), world.releases.len()), (1, 1)));
}

#[tokio::test]
async fn a_host_that_alone_recorded_the_commit_follows_the_rest_even_when_they_shipped_since() {
    let lab = Lab::of(&["one", "two"]);
    lab.with("two", |world| world.releases.push(earlier()));
    let killed = lab.ship_mortal(&options().abort_at(Some("settled-one".to_owned()))).await;
    assert!(killed.is_none());
    lab.with("one", |world| world.dead = true);
    lab.settle().await.expect("taken back without it");
    // The other host alone ships something else, which writes its journal over.
    let two = HostName::new("two").expect("a name");
    let (links, cancel) = (lab.links(), Cancel::default());
    let seen = lab.seen(&links);
    apply(&plan(std::slice::from_ref(&two)), &seen, &links, &lab.store, &options(), &cancel, &Silent)
        .await
        .expect("shipped");
    lab.with("one", World::revive);
    let settled = lab.settle().await.expect("settled with it");
    assert_eq!(settled[0].decision, Decision::Revert);
    assert_eq!(lab.with("one", |world| world.routed.clone()).as_deref(), Some(OLD));
}
