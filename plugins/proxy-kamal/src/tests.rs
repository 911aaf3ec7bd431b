//! The logic, natively, on what the real proxy prints and keeps (`fixtures/`, written by `tests/real.rs`).

use crate::bindings::exports::jiji::plan::meta::Guest as _;
use crate::bindings::exports::jiji::proxy::proxy::{
    Certificate, Guest as _, HealthPath, RouteInput, RouteOptions, Routing, Turns, UnrouteInput,
};
use crate::bindings::jiji::plan::types::*;
use crate::{Plugin, boot, live, settings, state};

const LIST: &str = include_str!("fixtures/list.txt");
const STATE: &str = include_str!("fixtures/kamal-proxy.state");

fn context(settings: &str) -> Context {
    Context {
        host: Server { name: "one".to_owned(), architecture: "amd64".to_owned(), labels: Vec::new() },
        network: Network {
            name: "jiji".to_owned(),
            subnet: "10.210.0.128/25".to_owned(),
            gateway: "10.210.0.129".to_owned(),
        },
        address: "10.210.0.130".to_owned(),
        state_dir: "/var/lib/jiji/plugins/proxy-kamal".to_owned(),
        settings: settings.to_owned(),
        images: vec![ImageRef {
            name: "kamal-proxy".to_owned(),
            reference: format!("docker.io/basecamp/kamal-proxy@sha256:{}", "0".repeat(64)),
        }],
    }
}

/// `shop-web` as it is in the fixtures, but to another port.
fn input(port: u16) -> Routing {
    Routing {
        service: "shop-web".to_owned(),
        options: RouteOptions {
            hosts: vec!["shop-web.example".to_owned()],
            path_prefix: "/".to_owned(),
            ssl: false,
            certificate: None,
            drain_timeout_ms: 30_000,
            health: Some(HealthPath { port: 18001, path: "/up".to_owned() }),
            labels: Vec::new(),
        },
        targets: vec![Instance { container: "c".to_owned(), address: "127.0.0.1".to_owned(), port }],
        previous: Vec::new(),
    }
}

/// The same with an instance that serves now.
fn serving(port: u16) -> Routing {
    let previous = vec![Instance { container: "b".to_owned(), address: "127.0.0.1".to_owned(), port: 18001 }];
    Routing { previous, ..input(port) }
}

fn fact(id: &str, answer: Answer) -> Fact {
    Fact { id: id.to_owned(), answer }
}

fn command(exit: i32, stdout: &str) -> Answer {
    Answer::Command(CommandFacts {
        exit: Some(exit),
        stdout: stdout.to_owned(),
        stderr: String::new(),
        truncated: false,
    })
}

fn file(content: &str) -> Answer {
    Answer::File(FileFacts {
        sha256: String::new(),
        mode: 0o600,
        size: content.len() as u64,
        content: Some(content.to_owned()),
    })
}

fn running(labels: &[(String, String)], state: &str) -> Answer {
    Answer::Container(ContainerFacts {
        id: "1".to_owned(),
        name: "kamal-proxy".to_owned(),
        manifest: None,
        config: None,
        state: state.to_owned(),
        exit: None,
        oom: false,
        started: None,
        addresses: Vec::new(),
        labels: labels.to_vec(),
    })
}

fn steps(turn: Result<Turn, Fault>) -> Vec<Step> {
    match turn {
        Ok(Turn::Done(steps)) => steps,
        other => panic!("{other:?}"),
    }
}

/// What the plugin says of all routes of a host.
fn ask(routes: Vec<Routing>, facts: Vec<Fact>) -> Result<Turns, Fault> {
    Plugin::route(RouteInput { context: context("{}"), routes }, facts)
}

/// What it says of a single one.
fn only(turns: Result<Turns, Fault>) -> Result<Turn, Fault> {
    turns.map(|turns| match turns {
        Turns::Observe(wants) => Turn::Observe(wants),
        Turns::Done(mut lists) => {
            assert_eq!(lists.len(), 1, "{lists:?}");
            Turn::Done(lists.remove(0))
        }
    })
}

fn ask_one(route: Routing, facts: Vec<Fact>) -> Result<Turn, Fault> {
    only(ask(vec![route], facts))
}

fn route(wish: Routing, list: &str, state: &str) -> Vec<Step> {
    steps(ask_one(wish, vec![fact("list", command(0, list)), fact("state", file(state)), fact("mark", Answer::Absent)]))
}

fn argv(action: &Action) -> Vec<String> {
    let Action::ContainerExec(exec) = action else { panic!("{action:?}") };
    let words = exec.argv.iter().map(|word| match word {
        Word::Lit(text) => text.clone(),
        word => panic!("{word:?}"),
    });
    words.collect()
}

#[test]
fn the_list_is_read_with_its_colours_and_without() {
    let bare = LIST.replace('\u{1b}', "");
    let replaced = LIST.replace('\u{1b}', "\u{fffd}");
    for text in [LIST, &bare, &replaced] {
        let lives = live::read(&command(0, text)).expect("a table");
        let all: Vec<_> =
            lives.iter().map(|live| (live.service.as_str(), live.hosts.len(), live.targets[0].as_str())).collect();
        assert_eq!(
            all,
            [("api", 2, "127.0.0.1:18002"), ("rest", 0, "127.0.0.1:18002"), ("shop-web", 1, "127.0.0.1:18001")]
        );
        assert_eq!(lives[0].paths, ["/api"]);
    }
    assert_eq!(live::read(&command(0, include_str!("fixtures/list-empty.txt"))), Some(Vec::new()));
    assert_eq!(live::read(&command(1, LIST)), None);
    assert_eq!(live::read(&Answer::Failed("no such container".to_owned())), None);
}

#[test]
fn every_piece_of_the_state_file_is_read_or_the_whole_is_not() {
    let saved = state::read(&file(STATE));
    assert_eq!(saved["api"].options.hosts, ["a.example", "b.example"]);
    assert_eq!(saved["rest"].options.hosts, Vec::<String>::new());
    assert_eq!(saved.get("nobody"), None);
    for end in 0..STATE.trim_end().len() {
        assert!(state::read(&file(&STATE[..end])).is_empty(), "torn at {end}");
    }
    let without = STATE.replace("\"forward_headers\":true", "\"forward_headers\":null");
    assert!(state::read(&file(&without)).is_empty());
}

#[test]
fn an_entry_of_the_state_file_that_cannot_be_read_hides_no_other() {
    let odd = STATE.replacen("\"forward_headers\":true", "\"forward_headers\":null", 1);
    let (saved, whole) = (state::read(&file(&odd)), state::read(&file(STATE)));
    assert_eq!(saved.len() + 1, whole.len());
    assert!(saved.iter().all(|(name, entry)| whole[name] == *entry));
    let nameless = STATE.replacen("{\"name\":\"shop-web\"", "{\"name\":7", 1);
    assert_eq!(state::read(&file(&nameless)).len() + 1, whole.len());
}

#[test]
fn what_is_routed_already_needs_no_step() {
    assert_eq!(route(input(18001), LIST, STATE), []);
    assert_eq!(route(serving(18001), LIST, STATE), []);
    assert_eq!(route(serving(18002), LIST, STATE).len(), 1, "another target");
    assert_eq!(route(input(18001), LIST, "").len(), 1, "a torn state file");
    assert_eq!(route(input(18001), "", STATE).len(), 1, "a proxy that forgot it");
    let mut options = serving(18001);
    options.options.health = None;
    assert_eq!(route(options, LIST, STATE).len(), 1, "another option");
}

#[test]
fn an_undo_goes_to_what_was_live_with_the_options_it_had() {
    let mut wish = serving(18002);
    wish.options.hosts = vec!["new.example".to_owned()];
    let steps = route(wish, LIST, STATE);
    let undo = argv(steps[0].undo.as_ref().expect("an undo"));
    assert!(undo.contains(&"--target=127.0.0.1:18001".to_owned()), "{undo:?}");
    assert!(undo.contains(&"--host=shop-web.example".to_owned()), "{undo:?}");
    assert!(argv(&steps[0].action).contains(&"--host=new.example".to_owned()));
}

#[test]
fn an_undo_knows_the_previous_instances_where_the_proxy_forgot_them() {
    let mut wish = input(18002);
    assert_eq!(
        argv(route(wish.clone(), "", "")[0].undo.as_ref().expect("an undo")),
        ["kamal-proxy", "remove", "shop-web"]
    );
    wish.previous = vec![Instance { container: "b".to_owned(), address: "127.0.0.9".to_owned(), port: 80 }];
    let steps = route(wish, "", "");
    assert!(argv(steps[0].undo.as_ref().expect("an undo")).contains(&"--target=127.0.0.9:80".to_owned()));
}

#[test]
fn a_target_that_is_dead_is_let_go_before_the_gate_and_put_back_without_one() {
    // The core names no previous instance: none of those that ran before runs now.
    let steps = route(input(18002), LIST, STATE);
    let [let_go, gated] = &steps[..] else { panic!("{steps:?}") };
    for (step, forced) in [(let_go, true), (gated, false)] {
        let argv = argv(&step.action);
        assert!(argv.contains(&"--target=127.0.0.1:18002".to_owned()), "{argv:?}");
        assert_eq!(argv.contains(&"--force=true".to_owned()), forced, "{argv:?}");
        assert_eq!(argv.iter().any(|flag| flag.starts_with("--deploy-timeout=")), !forced, "{argv:?}");
        let undo = self::argv(step.undo.as_ref().expect("an undo"));
        assert!(undo.contains(&"--target=127.0.0.1:18001".to_owned()), "{undo:?}");
        assert!(undo.contains(&"--force=true".to_owned()), "{undo:?}");
    }
    assert!(argv(&let_go.action).contains(&"--drain-timeout=1s".to_owned()), "its requests are cancelled soon");
    assert!(argv(&gated.action).contains(&"--drain-timeout=30s".to_owned()));
}

#[test]
fn a_first_route_is_gated() {
    let steps = route(input(18002), "", "");
    assert_eq!(steps.len(), 1);
    assert!(argv(&steps[0].action).contains(&"--deploy-timeout=3s".to_owned()));
}

#[test]
fn a_deploy_sends_every_option_and_never_forces_while_something_serves() {
    let steps = route(serving(18002), LIST, STATE);
    let undo = argv(steps[0].undo.as_ref().expect("an undo"));
    assert!(undo.contains(&"--deploy-timeout=10s".to_owned()), "{undo:?}");
    let argv = argv(&steps[0].action);
    assert_eq!(
        argv,
        [
            "kamal-proxy",
            "deploy",
            "shop-web",
            "--target=127.0.0.1:18002",
            "--deploy-timeout=3s",
            "--drain-timeout=30s",
            "--host=shop-web.example",
            "--path-prefix=/",
            "--strip-path-prefix=true",
            "--tls=false",
            "--writer-affinity-timeout=1s",
            "--read-target-websockets=false",
            "--health-check-path=/up",
            "--health-check-port=18001",
            "--health-check-interval=500ms",
            "--health-check-timeout=2s",
            "--target-timeout=30s",
            "--buffer-requests=false",
            "--buffer-responses=false",
            "--buffer-memory=1048576",
            "--forward-headers=true",
            "--scope-cookie-paths=false",
        ]
    );
    assert!(steps[0].timeout_ms > 40_000, "the command returns after the drain");
}

#[test]
fn tls_needs_hosts_and_no_wildcards_and_hosts_need_no_quotes() {
    let ask = |hosts: &[&str], ssl: bool| {
        let mut wish = input(18002);
        wish.options.hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        wish.options.ssl = ssl;
        ask_one(wish, vec![fact("list", command(0, "")), fact("state", Answer::Absent), fact("mark", Answer::Absent)])
    };
    for (hosts, ssl) in [
        (&[][..], true),
        (&["*.example"], true),
        (&["a,b"], false),
        (&["a b"], false),
        (&["\"a"], false),
        (&[""], false),
    ] {
        assert_eq!(ask(hosts, ssl).map_err(|fault| fault.code), Err("bad-route".to_owned()), "{hosts:?}");
    }
    assert!(ask(&["*.example"], false).is_ok());
    let steps = steps(ask(&["a.example"], true));
    let argv = argv(&steps[0].action);
    assert!(
        argv.contains(&"--tls=true".to_owned()) && argv.contains(&"--forward-headers=false".to_owned()),
        "{argv:?}"
    );
}

#[test]
fn a_host_that_another_service_has_is_a_fault_before_any_step() {
    let ask = |host: &str, path: &str| {
        let mut wish = input(18002);
        wish.options.hosts = vec![host.to_owned()];
        wish.options.path_prefix = path.to_owned();
        ask_one(wish, vec![fact("list", command(0, LIST)), fact("state", file(STATE)), fact("mark", Answer::Absent)])
            .map(|_| ())
            .map_err(|fault| fault.code)
    };
    assert_eq!(ask("b.example", "/api/"), Err("route-taken".to_owned()));
    assert_eq!(ask("b.example", "/"), Ok(()));
    assert_eq!(ask("c.example", "/api"), Ok(()));
}

#[test]
fn questions_come_first_and_without_targets_nothing_else() {
    let Ok(Turn::Observe(wants)) = ask_one(input(1), Vec::new()) else { panic!("no questions") };
    assert_eq!(wants.len(), 3);
    let mut empty = input(1);
    empty.targets.clear();
    assert_eq!(route(empty, LIST, STATE), []);
}

#[test]
fn unroute_asks_the_proxy_only_for_what_it_routes() {
    let ask = |service: &str, list: Answer| {
        let input = UnrouteInput { context: context("{}"), services: vec![service.to_owned()] };
        steps(only(Plugin::unroute(input, vec![fact("list", list), fact("state", file(STATE))])))
    };
    assert_eq!(ask("nobody", command(0, LIST)), []);
    let known = ask("api", command(0, LIST));
    assert_eq!((known.len(), known[0].phase), (1, Phase::Withdraw));
    assert_eq!(ask("api", command(1, "")).len(), 1, "a proxy that does not answer may come back");
}

#[test]
fn a_proxy_that_runs_is_left_alone_and_one_that_does_not_is_run() {
    let boot_with = |settings: &str, container: Answer, list: Answer| {
        Plugin::boot(context(settings), vec![fact("container", container), fact("list", list)])
    };
    let first = steps(boot_with("{}", Answer::Absent, Answer::Failed("absent".to_owned())));
    let Action::ContainerRun(spec) = &first[1].action else { panic!("{first:?}") };
    assert_eq!(spec.entrypoint.as_deref(), Some("kamal-proxy"));
    assert!(matches!(spec.mounts[1].source, MountSource::Tmpfs), "a socket must not outlive its process");
    let labels = spec.labels.clone();
    let up = || command(0, LIST);

    assert_eq!(steps(boot_with("{}", running(&labels, "running"), up())), []);
    let silent = steps(boot_with("{}", running(&labels, "running"), command(1, "")));
    assert_eq!(silent.len(), 3, "one that fails again and again under another specification is replaced");
    assert_eq!(steps(boot_with("{}", running(&labels, "exited"), command(1, ""))).len(), 3);
    let other_image = boot_with("{}", running(&labels[1..], "running"), up());
    assert_eq!(steps(other_image), [], "an update of jiji interrupts nobody");

    let code = |turn: Result<Turn, Fault>| turn.map(|_| ()).map_err(|fault| fault.code);
    let other_port = boot_with(r#"{"http_port":8080}"#, running(&labels, "running"), up());
    assert_eq!(code(other_port), Err("other-settings".to_owned()));
    let stopped = boot_with(r#"{"http_port":8080}"#, running(&labels, "exited"), up());
    assert_eq!(steps(stopped).len(), 3, "one that is stopped interrupts nobody");
    let foreign = boot_with("{}", running(&[], "running"), up());
    assert_eq!(code(foreign), Err("not-ours".to_owned()));
    let blind = boot_with("{}", Answer::Failed("no engine".to_owned()), up());
    assert_eq!(code(blind), Err("cannot-look".to_owned()));
    assert!(labels.iter().any(|(key, _)| key == boot::LABEL_SETTINGS));
}

#[test]
fn settings_change_what_is_needed() {
    let needs = Plugin::check_settings(r#"{"http_port":8080,"image":"127.0.0.1:5000/kamal-proxy:lab"}"#.to_owned())
        .expect("good");
    assert!(
        needs.grants.contains(&Grant::Port(8080))
            && needs.grants.contains(&Grant::Image("127.0.0.1:5000/kamal-proxy".to_owned()))
    );
    assert_eq!(needs.images[0].reference, "127.0.0.1:5000/kamal-proxy:lab");
    for (bad, faults) in
        [("[]", 1), (r#"{"a":1,"http_port":"x"}"#, 2), (r#"{"http_port":443}"#, 1), (r#"{"image":""}"#, 1)]
    {
        assert_eq!(Plugin::check_settings(bad.to_owned()).map_err(|faults| faults.len()), Err(faults), "{bad}");
    }
    serde_json::from_str::<serde_json::Value>(settings::SCHEMA).expect("the schema is JSON");
}

#[test]
fn a_repository_is_a_reference_without_tag_and_digest() {
    for (reference, repository) in [
        ("a", "a"),
        ("a:1", "a"),
        ("h:5/a", "h:5/a"),
        ("h:5/a:1", "h:5/a"),
        ("h:5/a:1@sha256:00", "h:5/a"),
        ("docker.io/b/a@sha256:00", "docker.io/b/a"),
    ] {
        assert_eq!(settings::repository(reference), repository);
    }
}

#[test]
fn durations_are_what_go_reads() {
    for (nanoseconds, text) in [(0, "0s"), (1_000_000_000, "1s"), (1_500_000_000, "1500ms"), (1, "1ns")] {
        assert_eq!(state::duration(nanoseconds), text);
    }
}

/// A route of `shop-web` with a certificate of this digest.
fn certified(digest: char) -> Routing {
    let mut wish = input(18001);
    wish.options.ssl = true;
    wish.options.certificate = Some(Certificate {
        chain: "TLS_CHAIN".to_owned(),
        key: "TLS_KEY".to_owned(),
        digest: Some(digest.to_string().repeat(64)),
    });
    wish
}

/// The state file as the proxy writes it with the certificate of this digest.
fn state_with(digest: char) -> String {
    let name = format!("/home/kamal-proxy/.config/kamal-proxy/certificates/shop-web/{}", digest.to_string().repeat(16));
    let mut state: serde_json::Value = serde_json::from_str(STATE).expect("JSON");
    let services = state.as_array_mut().expect("a list");
    let service = services.iter_mut().find(|service| service["name"] == "shop-web").expect("it is there");
    service["options"]["tls_enabled"] = true.into();
    service["options"]["tls_certificate_path"] = format!("{name}.chain.pem").into();
    service["options"]["tls_private_key_path"] = format!("{name}.key.pem").into();
    service["target_options"]["forward_headers"] = false.into();
    state.to_string()
}

fn pem(sha256: &str, mode: u32) -> Answer {
    Answer::File(FileFacts { sha256: sha256.to_owned(), mode, size: 1, content: None })
}

fn certified_steps(wish: Routing, state: &str, chain: Answer, key: Answer) -> Vec<Step> {
    let facts = vec![
        fact("list", command(0, LIST)),
        fact("state", file(state)),
        fact("mark", Answer::Absent),
        fact("certificate-chain shop-web", chain),
        fact("certificate-key shop-web", key),
    ];
    steps(ask_one(wish, facts))
}

#[test]
fn a_certificate_is_written_for_its_owner_alone_before_the_route_and_its_values_are_words() {
    let all = certified_steps(certified('a'), STATE, Answer::Absent, Answer::Absent);
    let files: Vec<_> = all.iter().filter(|step| step.phase == Phase::Prepare).collect();
    assert_eq!(files.len(), 4);
    let Action::File(key) = &files[3].action else { panic!("{:?}", files[3]) };
    assert_eq!(key.path, "/var/lib/jiji/plugins/proxy-kamal/certificates/shop-web/aaaaaaaaaaaaaaaa.key.pem");
    assert_eq!((key.mode, &key.content[..]), (0o600, &[Word::Secret("TLS_KEY".to_owned())][..]));
    assert_eq!(files[3].undo, Some(Action::Remove(key.path.clone())));
    let argv = argv(&all[4].action);
    let path = "/home/kamal-proxy/.config/kamal-proxy/certificates/shop-web/aaaaaaaaaaaaaaaa";
    assert!(argv.contains(&format!("--tls-certificate-path={path}.chain.pem")), "{argv:?}");
    assert!(argv.contains(&format!("--tls-private-key-path={path}.key.pem")), "{argv:?}");
}

#[test]
fn a_certificate_that_is_there_needs_nothing_and_a_renewed_or_open_one_is_routed_anew() {
    let chain = || pem(&"a".repeat(64), 0o600);
    let key = || pem("", 0o600);
    assert_eq!(certified_steps(certified('a'), &state_with('a'), chain(), key()), []);
    for (chain, key) in [
        (Answer::Absent, key()),
        (chain(), Answer::Absent),
        (pem(&"b".repeat(64), 0o600), key()),
        (chain(), pem("", 0o644)),
    ] {
        let again = certified_steps(certified('a'), &state_with('a'), chain, key);
        assert_eq!(again.len(), 5, "{again:?}");
        assert!(again.iter().all(|step| step.phase != Phase::Prepare || step.undo.is_none()), "they are in use");
    }
    let renewed = certified_steps(certified('b'), &state_with('a'), Answer::Absent, Answer::Absent);
    let removed: Vec<_> =
        renewed.iter().filter(|step| step.phase == Phase::Finalize).map(|step| &step.action).collect();
    let old = "/var/lib/jiji/plugins/proxy-kamal/certificates/shop-web/aaaaaaaaaaaaaaaa";
    assert_eq!(removed, [&Action::Remove(format!("{old}.chain.pem")), &Action::Remove(format!("{old}.key.pem"))]);
    let undo = argv(renewed[4].undo.as_ref().expect("an undo"));
    assert!(undo.iter().any(|flag| flag.ends_with("aaaaaaaaaaaaaaaa.key.pem")), "{undo:?}");
}

#[test]
fn each_route_has_its_steps_at_its_place_and_what_all_need_is_made_once() {
    let named = |name: &str| Routing {
        service: name.to_owned(),
        options: RouteOptions { hosts: vec![format!("{name}.example")], ..certified('a').options },
        ..certified('a')
    };
    let routes = vec![named("one"), input(18001), named("two")];
    let mut facts = vec![fact("list", command(0, LIST)), fact("state", file(STATE)), fact("mark", Answer::Absent)];
    let Ok(Turns::Observe(wants)) = ask(routes.clone(), facts.clone()) else { panic!("certificates are looked at") };
    let ids: std::collections::BTreeSet<_> = wants.iter().map(|want| want.id.clone()).collect();
    assert_eq!(ids.len(), wants.len(), "each question has an id of its own");
    facts.extend(wants[3..].iter().map(|want| fact(&want.id, Answer::Absent)));
    let Ok(Turns::Done(lists)) = ask(routes, facts) else { panic!("an answer") };
    assert_eq!(lists.iter().map(Vec::len).collect::<Vec<_>>(), [5, 0, 4], "the first makes the directory of all");
    let all: Vec<_> = lists.iter().flatten().map(|step| format!("{:?}", (&step.title, &step.action))).collect();
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len(), "no step stands twice: it would be one step to the core");
}

#[test]
fn files_of_others_are_never_removed() {
    for path in ["/etc/ssl/key.pem", "/home/kamal-proxy/.config/kamal-proxy/certificates/shop-web/../../x.pem"] {
        let state = state_with('a')
            .replace("/home/kamal-proxy/.config/kamal-proxy/certificates/shop-web/aaaaaaaaaaaaaaaa.key.pem", path);
        let renewed = certified_steps(certified('b'), &state, Answer::Absent, Answer::Absent);
        assert_eq!(renewed.iter().filter(|step| step.phase == Phase::Finalize).count(), 1, "{path}");
    }
}

#[test]
fn automatic_certificates_are_for_one_server_and_wildcards_need_one_handed_in() {
    let mut several = input(18002);
    several.options.ssl = true;
    several.options.labels = vec![("servers".to_owned(), "2".to_owned())];
    let facts = || {
        vec![
            fact("list", command(0, "")),
            fact("state", Answer::Absent),
            fact("mark", Answer::Absent),
            fact("certificate-chain shop-web", Answer::Absent),
            fact("certificate-key shop-web", Answer::Absent),
        ]
    };
    assert_eq!(ask_one(several, facts()).map_err(|fault| fault.code), Err("bad-route".to_owned()));
    let mut wildcard = certified('a');
    wildcard.options.hosts = vec!["*.shop.example".to_owned()];
    assert!(ask_one(wildcard, facts()).is_ok());
}

fn upgrade_with(settings: &str, container: Answer, list: &str, state: &str, mark: Answer) -> Result<Turn, Fault> {
    let facts = vec![
        fact("container", container),
        fact("list", command(0, list)),
        fact("state", file(state)),
        fact("mark", mark),
        fact("bridge", Answer::Absent),
    ];
    Plugin::upgrade(context(settings), facts)
}

/// The labels of a proxy that was started with no settings.
fn labels() -> Vec<(String, String)> {
    let facts = vec![fact("container", Answer::Absent), fact("list", Answer::Failed("absent".to_owned()))];
    let first = steps(Plugin::boot(context("{}"), facts));
    let Action::ContainerRun(spec) = &first[1].action else { panic!("{first:?}") };
    spec.labels.clone()
}

#[test]
fn an_upgrade_bridges_the_gap_and_each_step_waits_for_the_one_before() {
    let up = || running(&labels(), "running");
    assert_eq!(steps(upgrade_with("{}", up(), LIST, STATE, Answer::Absent)), [], "it runs as it should");
    let all = steps(upgrade_with(r#"{"http_port":8080}"#, up(), LIST, STATE, Answer::Absent));
    let told: Vec<_> = all.iter().map(|step| (step.phase, step.title.as_str())).collect();
    assert_eq!(
        told,
        [
            (Phase::Prepare, "see that connections can be led"),
            (Phase::Prepare, "keep others from routing meanwhile"),
            (Phase::Prepare, "run kamal-proxy-bridge"),
            (Phase::Prepare, "wait until kamal-proxy-bridge answers"),
            (Phase::Cutover, "lead new connections to kamal-proxy-bridge"),
            (Phase::Withdraw, "stop kamal-proxy"),
            (Phase::Withdraw, "run kamal-proxy"),
            (Phase::Withdraw, "wait until kamal-proxy answers"),
            (Phase::Drain, "lead new connections to kamal-proxy"),
            (Phase::Drain, "stop kamal-proxy-bridge"),
            (Phase::Finalize, "remove kamal-proxy-bridge"),
            (Phase::Finalize, "let others route again"),
        ]
    );
    for (step, index) in all.iter().zip(0_u32..) {
        assert_eq!(step.after, index.checked_sub(1).into_iter().collect::<Vec<_>>(), "{}", step.title);
        assert!(step.phase > Phase::Cutover || step.undo.is_some() || matches!(index, 0 | 3), "{}", step.title);
    }
    let Action::Run(tried) = &all[0].action else { panic!("{:?}", all[0]) };
    let [Word::Lit(rules)] = &tried.stdin[..] else { panic!("{tried:?}") };
    assert!(!rules.contains("jiji_proxy\n"), "what an interrupted one led stays: {rules}");
    let Action::Run(run) = &all[4].action else { panic!("{:?}", all[4]) };
    let [Word::Lit(rules)] = &run.stdin[..] else { panic!("{run:?}") };
    assert!(rules.contains("tcp dport { 8080, 80 } dnat to 10.210.0.254:80\n"), "the old and the new port: {rules}");
    assert!(rules.starts_with("table ip jiji_proxy\ndelete table ip jiji_proxy\n"), "{rules}");
    let Action::ContainerRun(bridge) = &all[2].action else { panic!("{:?}", all[2]) };
    assert_eq!(bridge.address.as_deref(), Some("10.210.0.254"));
    assert!(bridge.publish.iter().all(|publish| publish.address.as_deref() == Some("127.0.0.1")));
}

#[test]
fn an_upgrade_that_was_interrupted_is_taken_up_and_others_wait_for_it() {
    let up = || running(&labels(), "running");
    let mark = || pem("", 0o600);
    assert_eq!(steps(upgrade_with("{}", up(), "", "", mark())).len(), 12, "the bridge has what the proxy lost");
    assert_eq!(steps(upgrade_with("{}", Answer::Absent, "", "", mark())).len(), 12);
    let booted = steps(upgrade_with("{}", Answer::Absent, "", "", Answer::Absent));
    assert_eq!(booted.len(), 3, "where nobody serves, nobody is interrupted");
    let facts = vec![fact("list", command(0, LIST)), fact("state", file(STATE)), fact("mark", mark())];
    assert_eq!(ask_one(input(18002), facts).map_err(|fault| fault.code), Err("upgrading".to_owned()));
}

#[test]
fn an_upgrade_that_would_lose_a_route_is_a_fault() {
    let code = |list: &str, state: &str| {
        let up = running(&labels(), "running");
        upgrade_with(r#"{"http_port":8080}"#, up, list, state, Answer::Absent).map(|_| ()).map_err(|fault| fault.code)
    };
    assert_eq!(code(LIST, STATE), Ok(()));
    assert_eq!(code(LIST, &STATE[..STATE.len() / 2]), Err("not-kept".to_owned()));
    assert_eq!(code(&LIST.replace("127.0.0.1:18001", "127.0.0.1:18009"), STATE), Err("not-kept".to_owned()));
    let foreign = upgrade_with("{}", running(&[], "running"), LIST, STATE, Answer::Absent);
    assert_eq!(foreign.map(|_| ()).map_err(|fault| fault.code), Err("not-ours".to_owned()));
}
