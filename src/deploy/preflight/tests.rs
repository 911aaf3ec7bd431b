//! Judgements on hosts as values.

use std::net::{IpAddr, Ipv4Addr};

use jiji_model::event::bytes;
use jiji_model::name::ContainerName;
use jiji_model::observation::{EngineFacts, RootlessFacts};
use jiji_model::plan::{ContainerImage, Phase, Publish, Step};

use super::*;
use crate::deploy::tests::world::{World, host, image, images, project, service};
use crate::deploy::{Answers, HostAnswers, Seeds, desired};

const NOW: Now = Now(1_000_000);

fn texts(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| format!("{}: {}", finding.host, finding.what)).collect()
}

/// What hosts alone come to.
fn judge(world: &World, project: &Project) -> Vec<Finding> {
    let observation = world.observe(project, &images(project, "v1"), &Seeds::new());
    hosts(project, &observation, NOW)
}

/// What a ship of this version comes to.
fn ship(world: &World, project: &Project, version: &str) -> Vec<Finding> {
    let images = images(project, version);
    let observation = world.observe(project, &images, &Seeds::new());
    let desired = desired(project, &images, &observation).expect("desired");
    let assembled = world.plan_with(project, &images, &Seeds::new(), &Answers::new());
    plan(&assembled.plan, &desired, &observation)
}

#[test]
fn a_host_with_room_for_everything_is_fit() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let world = World::of(&["one"]);
    assert_eq!(judge(&world, &project), []);
    assert_eq!(ship(&world, &project, "v1"), []);
}

#[test]
fn an_engine_that_is_missing_silent_ambiguous_or_old_is_told_from_the_others() {
    let mut project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    let machine = world.machine("one");
    machine.engine = None;
    machine.fitness.installed = Vec::new();
    let findings = judge(&world, &project);
    assert_eq!(texts(&findings), ["one: engine: Docker and Podman are both not installed"]);
    assert_eq!(findings[0].what.hint(), "`apt-get install podman` there, or `apt-get install docker.io` there");

    project.builder.engine = Some(Engine::Docker);
    world.machine("one").fitness.installed = vec![Engine::Podman];
    world.machine("one").fitness.distribution = vec!["fedora".to_owned()];
    let findings = judge(&world, &project);
    assert_eq!(texts(&findings), ["one: engine: Docker, which the project names, is not installed"]);
    assert_eq!(findings[0].what.hint(), "`dnf install docker` there");

    world.machine("one").fitness.installed = vec![Engine::Docker, Engine::Podman];
    world.machine("one").fitness.engine_problem = Some("cannot connect to the daemon".to_owned());
    assert_eq!(texts(&judge(&world, &project)), ["one: engine: cannot connect to the daemon"]);

    project.builder.engine = None;
    assert_eq!(judge(&world, &project)[0].what, Unfit::TwoEngines);

    for (kind, version, fit) in [
        (Engine::Docker, "20.10.24+dfsg1", true),
        (Engine::Docker, "19.03.15", false),
        (Engine::Docker, "28.0.1", true),
        (Engine::Podman, "4.3.1", true),
        (Engine::Podman, "3.4.4", false),
        (Engine::Podman, "5.0.0-dev", true),
    ] {
        let mut observation = world.observe(&project, &images(&project, "v1"), &Seeds::new());
        if let Some(Answer::Host(facts)) =
            observation.hosts.get_mut(&host("one")).and_then(|one| one.get_mut(look::HOST))
        {
            facts.engine = Some(EngineFacts { kind, version: version.to_owned() });
        }
        assert_eq!(hosts(&project, &observation, NOW).is_empty(), fit, "{kind} {version}");
    }
}

#[test]
fn layers_in_zstd_are_for_engines_that_read_them() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut images = images(&project, "v1");
    let judge = |images: &Images, kind: Engine, version: &str| {
        let mut observation = World::of(&["one"]).observe(&project, images, &Seeds::new());
        let answers = observation.hosts.get_mut(&host("one")).expect("it was looked at");
        let Some(Answer::Host(facts)) = answers.get_mut(look::HOST) else { panic!("it said what it is") };
        facts.engine = Some(EngineFacts { kind, version: version.to_owned() });
        let desired = desired(&project, images, &observation).expect("desired");
        let assembled = World::of(&["one"]).plan_with(&project, images, &Seeds::new(), &Answers::new());
        let found = plan(&assembled.plan, &desired, &observation);
        assert_eq!(texts(&without_plan(&project, images, &observation)), texts(&found));
        found
    };
    assert_eq!(judge(&images, Engine::Docker, "20.10.24+dfsg1"), []);
    for image in images.values_mut().flatten() {
        image.layers[0].media_type = LAYER_ZSTD.to_owned();
    }
    for (kind, version) in [(Engine::Docker, "23.0.0"), (Engine::Docker, "28.0.1"), (Engine::Podman, "4.3.1")] {
        assert_eq!(judge(&images, kind, version), [], "{kind} {version}");
    }
    let [finding] = &judge(&images, Engine::Docker, "20.10.24+dfsg1")[..] else { panic!("it cannot read them") };
    assert_eq!(
        finding.what.to_string(),
        "engine: docker 20.10.24+dfsg1 cannot read layers compressed with zstd, which `shop/web` has: 23.0 is the first that can"
    );
    assert_eq!((finding.what.severity(), finding.what.code()), (Severity::Refusal, "engine_zstd"));
    assert!(finding.what.hint().contains("`compression: zstd`"), "{}", finding.what.hint());
}

#[test]
fn a_clock_that_is_off_an_old_kernel_and_containers_that_stay_down_are_warnings() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    let fitness = &mut world.machine("one").fitness;
    fitness.wall_clock_ms = NOW.0 + 3_600_000;
    fitness.kernel = "3.10.0-1160.el7.x86_64".to_owned();
    fitness.starts_at_boot = Some(false);
    let findings = judge(&world, &project);
    assert_eq!(
        texts(&findings),
        [
            "one: kernel: 3.10.0-1160.el7.x86_64 is older than 4.18, the oldest that was tried",
            "one: engine: Podman does not start containers again when the machine boots",
            "one: clock: 60 min ahead of this machine's",
        ]
    );
    assert!(findings.iter().all(|finding| finding.what.severity() == Severity::Warning));
    world.machine("one").fitness.wall_clock_ms = NOW.0 - 20_000;
    world.machine("one").fitness.kernel = "6.1.0".to_owned();
    world.machine("one").fitness.starts_at_boot = Some(true);
    assert_eq!(judge(&world, &project), []);
}

#[test]
fn images_must_fit_into_the_engines_storage_and_jijis_own_directory() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    // The image has one layer of 1,000,000 bytes.
    let fitness = &mut world.machine("one").fitness;
    fitness.state_disk.free = ROOM + 3_999_999;
    fitness.engine_disk.free = fitness.state_disk.free;
    let [finding] = &ship(&world, &project, "v1")[..] else { panic!("they are one file system") };
    assert_eq!(
        finding.what.to_string(),
        format!(
            "disk: {} free in /var/lib/jiji and /var/lib/containers/storage (one file system), about {} needed",
            bytes(ROOM + 3_999_999),
            bytes(ROOM + 4_000_000)
        )
    );
    world.machine("one").fitness.state_disk.free += 1;
    world.machine("one").fitness.engine_disk.free += 1;
    assert_eq!(ship(&world, &project, "v1"), []);

    let fitness = &mut world.machine("one").fitness;
    fitness.engine_disk.device = 2;
    fitness.engine_disk.free = ROOM + 2_999_999;
    fitness.state_disk.free = ROOM + 999_999;
    fitness.state_disk.files_free = Some(3);
    let findings = ship(&world, &project, "v1");
    assert_eq!(findings.len(), 3, "{findings:?}");
    assert_eq!(findings[1].what, Unfit::Files { path: "/var/lib/jiji".to_owned(), files: 3 });
}

#[test]
fn a_full_disk_is_no_matter_where_nothing_is_to_be_done() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    world.ship(&project, &images(&project, "v1"));
    world.machine("one").fitness.engine_disk.free = 0;
    world.machine("one").fitness.state_disk.free = 0;
    assert_eq!(ship(&world, &project, "v1"), []);
    assert_eq!(ship(&world, &project, "v2").len(), 1);
}

#[test]
fn old_and_new_must_fit_into_memory_together() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    world.ship(&project, &images(&project, "v1"));
    let machine = world.machine("one");
    machine.containers[0].memory = Some(600 << 20);
    machine.fitness.memory_available = 500 << 20;
    let [finding] = &ship(&world, &project, "v2")[..] else { panic!("one service is replaced") };
    assert_eq!(
        finding.what.to_string(),
        "memory: 500.0 MiB available, 600.0 MiB held by what runs of `web` and needed once more while old and new run together"
    );
    world.machine("one").fitness.memory_available = 600 << 20;
    assert_eq!(ship(&world, &project, "v2"), []);
    world.machine("one").fitness.memory_available = 0;
    world.machine("one").containers[0].memory = None;
    assert_eq!(ship(&world, &project, "v2"), [], "what is not known is no reason");
}

fn proxy(publish: &[(Option<Ipv4Addr>, u16)]) -> ContainerSpec {
    ContainerSpec {
        name: ContainerName::new("kamal-proxy").expect("a name"),
        image: ContainerImage::Pinned { reference: "proxy@sha256:x".to_owned() },
        network: "jiji".to_owned(),
        address: None,
        env: BTreeMap::new().into(),
        labels: BTreeMap::new().into(),
        mounts: Vec::new(),
        publish: publish
            .iter()
            .map(|(address, port)| Publish { address: *address, host_port: *port, container_port: *port })
            .collect(),
        entrypoint: None,
        command: None,
        user: None,
        restart: true,
        stop_timeout_s: 10,
    }
}

#[test]
fn a_port_is_free_taken_or_the_containers_own() {
    let world = World::of(&["one"]);
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let observation = world.observe(&project, &images(&project, "v1"), &Seeds::new());
    let fitness = fitness(&observation, &host("one")).expect("facts");
    let taken = |port, address: Option<Ipv4Addr>, container: Option<&str>| PortFacts {
        port,
        address: address.map(IpAddr::V4),
        process: Some((812, "nginx".to_owned())),
        container: container.map(str::to_owned),
    };
    let judge = |spec: &ContainerSpec, facts: &[PortFacts], fitness: &FitnessFacts| {
        let mut found = Vec::new();
        ports(spec, fitness, facts, &mut |what| found.push(what.to_string()));
        found
    };
    let spec = proxy(&[(None, 80), (None, 443)]);
    assert_eq!(judge(&spec, &[], fitness), Vec::<String>::new());
    assert_eq!(
        judge(&spec, &[taken(80, None, None), taken(443, Some(Ipv4Addr::LOCALHOST), Some("web"))], fitness),
        [
            "port 80: `nginx` (process 812) has it, and `kamal-proxy` is to publish it",
            "port 443: container `web` has it, and `kamal-proxy` is to publish it",
        ]
    );
    assert_eq!(judge(&spec, &[taken(80, None, Some("kamal-proxy"))], fitness), Vec::<String>::new());
    let inside = proxy(&[(Some(Ipv4Addr::new(10, 0, 0, 1)), 80)]);
    assert_eq!(judge(&inside, &[taken(80, Some(Ipv4Addr::LOCALHOST), None)], fitness), Vec::<String>::new());
    let user = FitnessFacts { uid: 1000, ..fitness.clone() };
    assert_eq!(judge(&spec, &[], &user)[0], "port 80: a user who is not root may listen on 1024 and above alone");
}

#[test]
fn the_lowest_port_is_the_one_that_the_host_should_allow() {
    let world = World::of(&["one"]);
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let observation = world.observe(&project, &images(&project, "v1"), &Seeds::new());
    let fitness = fitness(&observation, &host("one")).expect("facts");
    let mut hints = Vec::new();
    let user = FitnessFacts { uid: 1000, ..fitness.clone() };
    ports(&proxy(&[(None, 443), (None, 80)]), &user, &[], &mut |what: Unfit| hints.push(what.hint()));
    assert_eq!(hints.len(), 2);
    assert!(hints.iter().all(|hint| hint.contains("ip_unprivileged_port_start=80`")), "{hints:?}");
}

/// What a user's own Podman needs, all of it.
fn own() -> RootlessFacts {
    RootlessFacts {
        user: "ann".to_owned(),
        subordinate_users: Some(65_536),
        subordinate_groups: None,
        programs: ["newuidmap", "newgidmap", "slirp4netns"].map(str::to_owned).to_vec(),
        tun: true,
        lingers: None,
        memory_control: true,
    }
}

#[test]
fn what_a_users_own_podman_lacks_is_told_with_the_command_that_gives_it() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    let told = |world: &World| -> Vec<(String, Severity, String)> {
        let findings = judge(world, &project).into_iter();
        findings.map(|found| (found.what.to_string(), found.what.severity(), found.what.hint())).collect()
    };
    world.machine("one").fitness.rootless = Some(own());
    assert_eq!(told(&world), []);
    world.machine("one").fitness.rootless = Some(RootlessFacts {
        subordinate_groups: Some(10),
        programs: vec!["newgidmap".to_owned()],
        tun: false,
        lingers: Some(false),
        memory_control: false,
        ..own()
    });
    world.machine("one").fitness.kernel = "5.10.0-30-amd64".to_owned();
    let told = told(&world);
    let due = [
        ("`/etc/subgid` gives `ann` 10 of the 65536 ids", Severity::Refusal, "--add-subgids 100000-165535 ann`"),
        ("`newuidmap` is not installed", Severity::Refusal, "apt-get install uidmap"),
        ("`slirp4netns` is not installed", Severity::Refusal, "apt-get install slirp4netns"),
        ("what `ann` runs ends when `ann` logs out", Severity::Refusal, "`loginctl enable-linger ann`"),
        ("`ann` cannot open `/dev/net/tun`", Severity::Refusal, "modprobe tun"),
        ("kernel 5.10.0-30-amd64 lets no user", Severity::Warning, "apt-get install fuse-overlayfs"),
        ("containers get no control groups", Severity::Warning, "Delegate="),
    ];
    assert_eq!(told.len(), due.len(), "{told:#?}");
    for ((text, severity, hint), due) in told.iter().zip(due) {
        assert!(text.starts_with("rootless: ") && text.contains(due.0) && hint.contains(due.2), "{text}: {hint}");
        assert_eq!(*severity, due.1, "{text}");
    }
}

#[test]
fn ports_are_asked_for_only_where_a_container_is_to_publish_some() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let world = World::of(&["one"]);
    let images = images(&project, "v1");
    assert_eq!(ports_want(&world.plan(&project, &images), &host("one")), None);
    let run = Step::new(
        &host("one"),
        Phase::Boot,
        "run kamal-proxy".to_owned(),
        Action::ContainerRun(Box::new(proxy(&[(None, 443), (None, 80)]))),
    );
    let answers = Answers::from([(host("one"), HostAnswers { steps: vec![run], ..HostAnswers::default() })]);
    let seeds = Seeds::from([("proxy@sha256:x".to_owned(), vec![image("proxy", "v1", "amd64")])]);
    let plan = world.plan_with(&project, &images, &seeds, &answers).plan;
    let want = ports_want(&plan, &host("one")).expect("it publishes two");
    assert_eq!(want.query, Query::Ports { ports: vec![80, 443] });
}

#[test]
fn without_a_plan_the_projects_images_are_what_must_fit_and_other_errors_stay() {
    let project = project(&["one"], &[("web", service(&["one"]))]);
    let mut world = World::of(&["one"]);
    world.machine("one").engine = None;
    world.machine("one").fitness.engine_disk.free = ROOM;
    world.machine("one").fitness.state_disk.free = ROOM;
    let images = images(&project, "v1");
    let observation = world.observe(&project, &images, &Seeds::new());
    let refused = desired(&project, &images, &observation).expect_err("no engine");
    let (findings, others) = of_errors(refused.0);
    assert_eq!((findings, others), (Vec::new(), Vec::new()), "the engine is told by `hosts`");
    assert!(matches!(without_plan(&project, &images, &observation)[..], [Finding { what: Unfit::Disk { .. }, .. }]));
}
