//! Plugins as jiji sees them: real guests in the real runtime.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use jiji_model::digest::Digest;
use jiji_model::image::Descriptor;
use jiji_model::name::{ContainerName, HostName, PluginName, ServiceName};
use jiji_model::observation::{Answer, CommandFacts, ContainerFacts, FileFacts, Query};
use jiji_model::plan::{Action, ContainerImage, Phase, Step, Word};
use jiji_model::probe::{Probe, ProbeResult, Timeline};
use jiji_model::project::{Check, HealthCheck, Plugins as Choices};
use jiji_model::reference::Reference;
use jiji_model::route::{Instance, Route, RouteOptions};
use jiji_store::Store;
use serde_json::json;

use super::install::{ArtifactSource, InstallError, Source, fetch};
use super::*;
use crate::lockfile::PluginSection;

const HOSTILE: &[u8] = include_bytes!("fixtures/hostile.wasm");

/// Compiled code of all tests: an unoptimized compiler takes seconds for it, so it does it once.
fn compiled() -> Option<&'static Path> {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let place = Place::new();
        let cache = place.dir.path().join("compiled");
        Plugins::load(&Choices::default(), &PluginSection::new(), &place.store, Some(&cache)).expect("compiled");
        place.dir
    });
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    Some(CACHE.get_or_init(|| dir.path().join("compiled")))
}

struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        Self { dir, store }
    }
}

fn host() -> HostName {
    HostName::new("one").expect("a name")
}

fn context(plugins: &Plugins) -> HostContext {
    let digest = Digest::of(b"the image's manifest");
    let images = plugins.proxy.images().iter();
    let images = images.map(|(name, reference)| (name.clone(), reference.at(digest))).collect();
    HostContext::new(host(), "amd64".to_owned(), 3, images)
}

fn defaults(settings: serde_json::Value) -> Result<Plugins, PluginError> {
    let place = Place::new();
    let mut choices = Choices::default();
    choices.proxy.settings = settings;
    Plugins::load(&choices, &PluginSection::new(), &place.store, compiled())
}

fn route(targets: &[&str], previous: &[&str]) -> Route {
    let instances = |addresses: &[&str]| {
        addresses
            .iter()
            .map(|address| Instance {
                container: ContainerName::new(format!("shop-web-{}", address.rsplit('.').next().unwrap_or_default()))
                    .expect("a name"),
                address: address.parse().expect("an address"),
                port: 8000,
            })
            .collect()
    };
    let service = ServiceName::new("web").expect("a name");
    Route {
        key: Route::key("shop", &service),
        service,
        options: RouteOptions {
            hosts: vec!["shop.example".to_owned()],
            path_prefix: "/".to_owned(),
            ssl: false,
            certificate: None,
            app_port: 8000,
            drain_timeout_ms: 30_000,
            health: Some((8000, "/up".to_owned())),
            labels: BTreeMap::new(),
        },
        targets: instances(targets),
        previous: instances(previous),
    }
}

/// Asks until there is an answer, telling each want what `world` says.
fn settle(
    ask: impl Fn(&BTreeMap<String, Answer>) -> Result<Turn, PluginError>,
    world: impl Fn(&Query) -> Answer,
) -> Result<(Vec<Step>, usize), PluginError> {
    let mut facts = BTreeMap::new();
    for round in 1..=MAX_ROUNDS {
        match ask(&facts)? {
            Turn::Done(steps) => return Ok((steps, round)),
            Turn::Observe(wants) => facts.extend(wants.into_iter().map(|want| {
                let answer = world(&want.query);
                (want.id, answer)
            })),
        }
    }
    panic!("no answer");
}

/// The same about a single route.
fn settle_route(
    plugins: &Plugins,
    context: &HostContext,
    wish: &Route,
    world: impl Fn(&Query) -> Answer,
) -> Result<Vec<Step>, PluginError> {
    settle(|facts| one_list(plugins.proxy.route(context, std::slice::from_ref(wish), facts)?), world)
        .map(|(steps, _)| steps)
}

fn one_list(turn: Turn<Vec<Vec<Step>>>) -> Result<Turn, PluginError> {
    Ok(match turn {
        Turn::Observe(wants) => Turn::Observe(wants),
        Turn::Done(mut lists) => {
            assert_eq!(lists.len(), 1, "{lists:?}");
            Turn::Done(lists.remove(0))
        }
    })
}

fn command(exit: i32, stdout: &str) -> Answer {
    Answer::Command(CommandFacts {
        exit: Some(exit),
        stdout: stdout.to_owned(),
        stderr: String::new(),
        truncated: false,
    })
}

fn nothing(query: &Query) -> Answer {
    match query {
        Query::Exec { .. } => Answer::Failed("no such container".to_owned()),
        _ => Answer::Absent,
    }
}

fn argv(action: &Action) -> String {
    let Action::ContainerExec { argv, .. } = action else {
        panic!("no command: {action:?}");
    };
    let words = argv.iter().map(|word| match word {
        Word::Lit(text) => text.as_str(),
        word => panic!("{word:?}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_first_boot_runs_the_proxy_and_the_second_plans_nothing() {
    let plugins = defaults(json!({"http_port": 8080})).expect("loaded");
    let context = context(&plugins);
    let (steps, rounds) = settle(|facts| plugins.proxy.boot(&context, facts), nothing).expect("an answer");
    assert_eq!(rounds, 2, "one look is enough");
    let [directory, run, wait] = &steps[..] else { panic!("{steps:#?}") };
    assert!(steps.iter().all(|step| step.phase == Phase::Boot && step.undo.is_none()));
    assert!(
        matches!(&directory.action, Action::Directory { path, mode: 0o700 } if path.as_str() == "/var/lib/jiji/plugins/proxy-kamal")
    );
    let Action::ContainerRun(spec) = &run.action else { panic!("{run:?}") };
    assert_eq!(spec.address, Some("10.210.3.130".parse().expect("an address")));
    assert!(
        matches!(&spec.image, ContainerImage::Pinned { reference } if reference.starts_with("docker.io/basecamp/kamal-proxy@sha256:"))
    );
    assert_eq!(spec.publish.iter().map(|publish| publish.host_port).collect::<Vec<_>>(), [8080, 443]);
    assert_eq!(spec.labels["jiji.plugin"], "proxy-kamal");
    assert_eq!(spec.labels["jiji.scope"], "*");
    assert!(matches!(&wait.action, Action::WaitProbe { .. }));

    let runs = |query: &Query| match query {
        Query::Container { name } => Answer::Container(Box::new(ContainerFacts {
            id: "1".to_owned(),
            name: name.to_string(),
            manifest: None,
            config: None,
            state: "running".to_owned(),
            exit: None,
            oom: false,
            started: None,
            addresses: std::iter::empty().collect(),
            labels: BTreeMap::clone(&spec.labels).into_iter().collect(),
            memory: None,
        })),
        _ => command(0, ""),
    };
    assert_eq!(settle(|facts| plugins.proxy.boot(&context, facts), runs).expect("an answer").0, []);

    let other = defaults(json!({"http_port": 9090})).expect("loaded");
    let error = settle(|facts| other.proxy.boot(&context, facts), runs).expect_err("another port");
    assert!(matches!(&error, PluginError::Fault { fault, .. } if fault.code == "other-settings"), "{error}");
}

#[test]
fn a_first_route_is_a_deploy_whose_undo_removes_it() {
    let plugins = defaults(json!({})).expect("loaded");
    let context = context(&plugins);
    let wish = route(&["10.210.3.140"], &[]);
    let steps = settle_route(&plugins, &context, &wish, nothing).expect("an answer");
    let [step] = &steps[..] else { panic!("{steps:#?}") };
    assert_eq!((step.phase, step.service.as_ref()), (Phase::Cutover, Some(&wish.service)));
    assert!(step.quiet_ms >= 3_000, "the proxy may still move requests until its deploy timeout is over");
    let deploy = argv(&step.action);
    assert!(
        deploy.starts_with(
            "kamal-proxy deploy shop-web --target=10.210.3.140:8000 --deploy-timeout=3s --drain-timeout=30s"
        ),
        "{deploy}"
    );
    assert!(deploy.contains("--health-check-path=/up") && !deploy.contains("--force"), "{deploy}");
    let undo = step.undo.as_ref().expect("an undo");
    assert_eq!(argv(undo), "kamal-proxy remove shop-web");
    assert!(matches!(undo, Action::ContainerExec { tolerate, .. } if tolerate == &["service not found"]));
}

#[test]
fn questions_of_several_services_are_the_same_and_need_asking_once() {
    let plugins = defaults(json!({})).expect("loaded");
    let context = context(&plugins);
    let (web, mut api) = (route(&[], &[]), route(&[], &[]));
    api.key = "shop-api".to_owned();
    let none = BTreeMap::new();
    let one = plugins.proxy.route(&context, std::slice::from_ref(&web), &none).expect("questions");
    assert_eq!(one, plugins.proxy.route(&context, &[web.clone(), api], &none).expect("questions"));
    let Turn::Observe(wants) = one else { panic!("{one:?}") };
    assert!(wants.iter().all(|want| want.id.starts_with("proxy-kamal/")));
    let answered = settle_route(&plugins, &context, &web, nothing).expect("an answer");
    assert_eq!(answered, [], "without targets only the questions count");
}

#[test]
fn settings_are_refused_all_at_once_with_their_place() {
    let error = defaults(json!({"http_port": 0, "colour": "red"})).expect_err("bad settings");
    let PluginError::Settings { faults, .. } = &error else { panic!("{error}") };
    assert_eq!(
        faults.iter().map(|fault| fault.path.as_deref()).collect::<Vec<_>>(),
        [Some("/colour"), Some("/http_port")]
    );
}

#[test]
fn an_image_setting_is_what_must_be_pinned_and_is_granted() {
    let plugins = defaults(json!({"image": "127.0.0.1:5000/lab/kamal-proxy:v0.9.2"})).expect("loaded");
    assert_eq!(plugins.proxy.images()["kamal-proxy"].to_string(), "127.0.0.1:5000/lab/kamal-proxy:v0.9.2");
    let context = context(&plugins);
    assert!(settle(|facts| plugins.proxy.boot(&context, facts), nothing).is_ok());
    let unpinned = HostContext { images: plugins.proxy.images().clone(), ..context };
    let error = plugins.proxy.boot(&unpinned, &BTreeMap::new()).expect_err("a tag");
    assert!(matches!(error, PluginError::ImageNotPinned { .. }), "{error}");
}

#[test]
fn a_service_without_a_check_is_probed_where_requests_go() {
    let plugins = defaults(json!({})).expect("loaded");
    let healthcheck = HealthCheck {
        check: Check::Http { port: 8000, path: "/up".to_owned() },
        interval_ms: 100,
        timeout_ms: 1_000,
        deadline_ms: 5_000,
    };
    let (host, service) = (host(), ServiceName::new("web").expect("a name"));
    let bare = Subject { service: &service, healthcheck: None, app_port: Some(8000) };
    let silent = Subject { app_port: None, ..bare };
    let subject = Subject { healthcheck: Some(&healthcheck), ..silent };
    let specs = plugins.health.probes(&host, "amd64", &[bare, silent, subject]).expect("an answer");
    let [Some(tcp), None, Some(spec)] = &specs[..] else { panic!("{specs:?}") };
    assert_eq!(tcp.check, Check::Tcp { port: 8000 });
    assert_eq!((spec.interval_ms, spec.deadline_ms), (100, 5_000));

    let timeline = Timeline {
        healthy: false,
        took_ms: 5_000,
        made: 1,
        probes: vec![Probe {
            at_ms: 0,
            took_ms: 3,
            result: ProbeResult::Http { status: 500, body: "no database\nat line 3".to_owned(), location: None },
            healthy: false,
        }],
        findings: None,
    };
    let judge = Judge { host: &host, architecture: "amd64", subject: &subject, spec, timeline: &timeline, log: "" };
    let verdict = plugins.health.judge(judge).expect("a verdict");
    assert_eq!(verdict.explanation, "`GET /up` on port 8000 answers 500: `no database`");
    assert!(!verdict.healthy);
}

/// The hostile plugin, installed from a file and told what to do.
fn hostile(place: &Place, what: &str) -> Result<Plugins, PluginError> {
    let file = place.dir.path().join("hostile.wasm");
    std::fs::write(&file, HOSTILE).expect("written");
    let candidate =
        fetch(&Source::File(file), &mut NoRegistry, &PluginSection::new(), None, false, compiled()).expect("read");
    let (name, pin) = candidate.accept(&place.store, None).expect("kept");
    let mut choices = Choices::default();
    choices.proxy.name = name.clone();
    choices.proxy.settings = json!(what);
    Plugins::load(&choices, &PluginSection::from([(name, pin)]), &place.store, compiled())
}

fn boot_hostile(what: &str) -> Result<Vec<Step>, PluginError> {
    let place = Place::new();
    let plugins = hostile(&place, what)?;
    let context = context(&plugins);
    settle(|facts| plugins.proxy.boot(&context, facts), nothing).map(|(steps, _)| steps)
}

#[test]
fn a_plugin_that_loops_or_eats_memory_is_stopped_with_an_error_of_its_own() {
    let error = boot_hostile("loop").expect_err("stopped");
    assert!(matches!(&error, PluginError::OutOfFuel { call: "boot", .. }), "{error}");
    let error = boot_hostile("memory").expect_err("stopped");
    assert!(matches!(&error, PluginError::OutOfMemory { limit: 64, .. }), "{error}");
    let error = boot_hostile("flood").expect_err("stopped");
    assert!(matches!(&error, PluginError::OutOfMemory { .. } | PluginError::Trap { .. }), "{error}");
    let error = boot_hostile("panic").expect_err("stopped");
    assert!(matches!(&error, PluginError::Trap { .. }), "{error}");
}

#[test]
fn what_a_plugin_was_not_granted_is_refused_before_any_effect() {
    for (what, step) in [("outside", "reach out"), ("undo-outside", "take"), ("want-outside", "hostile/")] {
        let error = boot_hostile(what).expect_err("refused");
        let PluginError::Refused { refusals, .. } = &error else { panic!("{what}: {error}") };
        assert!(refusals[0].grantable && refusals[0].step.starts_with(step), "{what}: {refusals:?}");
    }
    let steps = boot_hostile("").expect("within its grants");
    assert_eq!(argv(&steps[0].action), "tool take");
}

#[test]
fn what_no_grant_allows_and_endless_questions_are_refused() {
    let error = boot_hostile("more").expect_err("asks for more than was accepted");
    assert!(
        matches!(&error, PluginError::NotAccepted { beyond, .. } if beyond == &["run `rm` on the host"]),
        "{error}"
    );
    let error = boot_hostile("rounds").expect_err("asks for ever");
    assert!(matches!(&error, PluginError::TooManyRounds { .. }), "{error}");
    let error = boot_hostile("same").expect_err("asks twice");
    assert!(matches!(&error, PluginError::Refused { .. }), "{error}");
}

#[test]
fn an_answer_about_several_services_has_a_list_for_each_and_each_its_own_secrets() {
    let place = Place::new();
    let wishes = |plugins: &Plugins| {
        let mut certified = route(&["10.210.3.140"], &[]);
        certified.options.certificate = Some(jiji_model::route::RouteCertificate {
            chain: "CHAIN".parse().expect("a name"),
            key: "KEY".parse().expect("a name"),
            digest: None,
        });
        let other = route(&["10.210.3.141"], &[]);
        let routes = [certified.clone(), other];
        let one = plugins.proxy.route(&context(plugins), &[certified], &BTreeMap::new());
        (one, plugins.proxy.route(&context(plugins), &routes, &BTreeMap::new()))
    };
    let fewer = hostile(&place, "fewer").expect("loaded");
    let error = wishes(&fewer).1.expect_err("no list for a route");
    let PluginError::Refused { refusals, .. } = &error else { panic!("{error}") };
    assert_eq!(refusals[0].reason, "0 lists of steps for 2 services");
    // A secret that one route names is that route's alone.
    let secret = hostile(&place, "secret").expect("loaded");
    let (own, others) = wishes(&secret);
    let Ok(Turn::Done(lists)) = own else { panic!("{own:?}") };
    assert_eq!(lists[0].len(), 1);
    let error = others.expect_err("a secret of another route");
    let PluginError::Refused { refusals, .. } = &error else { panic!("{error}") };
    assert_eq!(refusals[0].reason, "not granted: use secret `KEY`");
}

#[test]
fn a_plugins_words_reach_people_without_control_characters() {
    let error = boot_hostile("colours").expect_err("a fault");
    assert_eq!(error.to_string(), "call `boot` of plugin `hostile`: red line");
    let error = boot_hostile("settings").expect_err("bad settings");
    assert!(error.to_string().ends_with("bad setting"), "{error}");
}

#[test]
fn the_same_call_stops_at_the_same_place_and_gives_the_same_bytes() {
    let plugins = defaults(json!({})).expect("loaded");
    let context = context(&plugins);
    let wish = route(&["10.210.3.140"], &["10.210.3.141"]);
    let once = || settle_route(&plugins, &context, &wish, nothing).expect("an answer");
    assert_eq!(once(), once());
}

#[test]
fn facts_beyond_a_mebibyte_are_refused() {
    let plugins = defaults(json!({})).expect("loaded");
    let context = context(&plugins);
    let big = |query: &Query| match query {
        Query::File { .. } => Answer::File(FileFacts {
            sha256: Digest::of(b""),
            mode: 0o600,
            size: 0,
            content: Some("x".repeat(MAX_FACTS)),
        }),
        _ => command(0, ""),
    };
    let wish = route(&["10.210.3.140"], &[]);
    let error = settle_route(&plugins, &context, &wish, big).expect_err("too much");
    assert!(matches!(error, PluginError::TooManyFacts { .. }), "{error}");
}

struct NoRegistry;

impl ArtifactSource for NoRegistry {
    type Error = std::io::Error;

    fn manifest(&mut self, _: &Reference) -> Result<Vec<u8>, Self::Error> {
        Err(std::io::Error::other("no registry"))
    }

    fn blob(&mut self, _: &Reference, _: &Descriptor, _: u64) -> Result<Vec<u8>, Self::Error> {
        Err(std::io::Error::other("no registry"))
    }
}

/// A registry of one tag.
struct OneTag {
    media_type: &'static str,
    bytes: Vec<u8>,
}

impl ArtifactSource for OneTag {
    type Error = std::io::Error;

    fn manifest(&mut self, _: &Reference) -> Result<Vec<u8>, Self::Error> {
        let layer = json!({"mediaType": self.media_type, "digest": Digest::of(&self.bytes), "size": self.bytes.len()});
        Ok(json!({"schemaVersion": 2, "layers": [layer]}).to_string().into_bytes())
    }

    fn blob(&mut self, _: &Reference, _: &Descriptor, _: u64) -> Result<Vec<u8>, Self::Error> {
        Ok(self.bytes.clone())
    }
}

#[test]
fn a_plugin_has_one_digest_from_a_file_and_from_a_registry_and_a_moved_tag_is_refused() {
    let place = Place::new();
    let tag: Source = "registry.example/plugins/hostile:1".parse().expect("a reference");
    let mut registry = OneTag { media_type: "application/wasm", bytes: HOSTILE.to_vec() };
    let none = PluginSection::new();
    let candidate = fetch(&tag, &mut registry, &none, None, false, compiled()).expect("fetched");
    assert_eq!(candidate.beyond, ["manage container `tool`", "run `tool` in container `tool`"]);
    assert_eq!(candidate.summary, "looks harmless");
    let (name, pin) = candidate.accept(&place.store, None).expect("kept");
    assert_eq!((pin.digest, pin.world.as_str()), (Digest::of(HOSTILE), "jiji:proxy/plugin@0.1.0"));
    let pins = PluginSection::from([(name.clone(), pin)]);

    let again = fetch(&tag, &mut registry, &pins, None, false, compiled()).expect("the same bytes");
    assert!(again.pinned && again.beyond.is_empty());

    // Another component under the same tag: here one whose custom section differs.
    let mut changed = HOSTILE.to_vec();
    changed.extend([0, 2, 1, b'x']);
    registry.bytes = changed.clone();
    let error = fetch(&tag, &mut registry, &pins, None, false, compiled()).expect_err("moved");
    assert!(
        matches!(&error, InstallError::Plugin(PluginError::Changed { expected, .. }) if *expected == Digest::of(HOSTILE)),
        "{error}"
    );
    let file = place.dir.path().join("changed.wasm");
    std::fs::write(&file, &changed).expect("written");
    let error = fetch(&Source::File(file), &mut registry, &pins, None, false, compiled()).expect_err("changed");
    assert!(matches!(&error, InstallError::Plugin(PluginError::Changed { .. })), "{error}");
    assert!(fetch(&tag, &mut registry, &pins, None, true, compiled()).is_ok_and(|candidate| !candidate.pinned));

    registry.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    assert!(matches!(fetch(&tag, &mut registry, &none, None, false, compiled()), Err(InstallError::NotAPlugin { .. })));
}

#[test]
fn a_ship_takes_pinned_bytes_from_the_store_and_never_others() {
    let place = Place::new();
    let plugins = hostile(&place, "");
    assert!(plugins.is_ok());
    let digest = Digest::of(HOSTILE);
    // A byte of the blob turns on the disk.
    let blob = place.store.blob_path(&digest);
    let mut bytes = HOSTILE.to_vec();
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::set_permissions(&blob, std::fs::Permissions::from_mode(0o600)).expect("writable");
    std::fs::write(&blob, &bytes).expect("written");
    let name = PluginName::new("hostile").expect("a name");
    let pin = crate::lockfile::PluginPin {
        source: "registry.example/hostile:1".to_owned(),
        version: None,
        digest,
        world: Role::Proxy.world().to_owned(),
        grants: serde_json::Map::new(),
        images: BTreeMap::new(),
    };
    let pins = PluginSection::from([(name.clone(), pin)]);
    let mut choices = Choices::default();
    choices.proxy.name = name;
    let error = Plugins::load(&choices, &pins, &place.store, compiled()).expect_err("changed");
    assert!(matches!(error, PluginError::Changed { .. }), "{error}");
    place.store.remove(&digest).expect("removed");
    let error = Plugins::load(&choices, &pins, &place.store, compiled()).expect_err("missing");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("jiji plugin install registry.example/hostile:1")),
        "{error}"
    );
    choices.proxy.name = PluginName::new("nobody").expect("a name");
    let error = Plugins::load(&choices, &pins, &place.store, compiled()).expect_err("unknown");
    assert!(matches!(error, PluginError::NotInstalled { .. }), "{error}");
}

#[test]
fn compiled_code_is_kept_for_the_user_alone_and_anything_odd_is_compiled_again() {
    let place = Place::new();
    let cache = place.dir.path().join("compiled");
    let load = || Plugins::load(&Choices::default(), &PluginSection::new(), &place.store, Some(&cache));
    load().expect("compiled");
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&cache), 0o700);
    let entries = || -> Vec<_> {
        let all = std::fs::read_dir(&cache).expect("listed");
        all.map(|entry| entry.expect("an entry").path()).collect()
    };
    assert_eq!(entries().len(), 2);
    let before: Vec<_> = entries()
        .iter()
        .map(|path| std::fs::metadata(path).and_then(|data| data.modified()).expect("a time"))
        .collect();
    load().expect("from the cache");
    let after: Vec<_> = entries()
        .iter()
        .map(|path| std::fs::metadata(path).and_then(|data| data.modified()).expect("a time"))
        .collect();
    assert_eq!(before, after, "nothing was compiled again");
    for entry in entries() {
        let mut bytes = std::fs::read(&entry).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&entry, bytes).expect("written");
    }
    load().expect("compiled again");
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o755)).expect("opened");
    load().expect("compiled without the cache");
}

#[test]
fn a_plugin_by_somebody_else_is_installed_from_a_file_and_fills_the_role() {
    let place = Place::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/proxy-caddy/dist/proxy-caddy.wasm");
    let none = PluginSection::new();
    let candidate = fetch(&Source::File(file), &mut NoRegistry, &none, None, false, compiled()).expect("read");
    assert_eq!((candidate.name.as_str(), candidate.role), ("proxy-caddy", Role::Proxy));
    let (name, pin) = candidate.accept(&place.store, None).expect("kept");
    let pins = PluginSection::from([(name.clone(), pin)]);
    let mut choices = Choices::default();
    choices.proxy.name = name;
    let plugins = Plugins::load(&choices, &pins, &place.store, compiled()).expect("loaded");
    let context = context(&plugins);
    let (boot, _) = settle(|facts| plugins.proxy.boot(&context, facts), nothing).expect("an answer");
    assert!(boot.iter().any(|step| matches!(step.action, Action::ContainerRun(_))));
    let wish = route(&["10.210.3.140"], &[]);
    let steps = settle_route(&plugins, &context, &wish, nothing).expect("an answer");
    assert_eq!(steps.iter().filter(|step| step.undo.is_some()).count(), 3);

    // With a port that was not accepted it is not used.
    choices.proxy.settings = json!({"http_port": 8080});
    let error = Plugins::load(&choices, &pins, &place.store, compiled()).expect_err("another port");
    assert!(matches!(&error, PluginError::NotAccepted { beyond, .. } if beyond == &["publish port 8080"]), "{error}");
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("a component")
}

#[test]
fn what_is_no_plugin_is_refused_before_it_is_compiled() {
    let inspect = |bytes: &[u8]| inspect::inspect("x", bytes).expect_err("no plugin");
    for (what, bytes) in
        [("garbage", b"hello".to_vec()), ("a core module", component("(module)")), ("empty", Vec::new())]
    {
        assert!(matches!(inspect(&bytes), PluginError::NotAComponent { .. }), "{what}");
    }
    let mut torn = HOSTILE.to_vec();
    torn.truncate(torn.len() / 2);
    assert!(matches!(inspect(&torn), PluginError::NotAComponent { .. }));

    let wasi = component(r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#);
    let error = inspect(&wasi);
    assert_eq!(error.to_string(), "accept plugin `x`: it imports `wasi:cli/environment@0.2.0`");
    let function = component(r#"(component (import "getrandom" (func)))"#);
    assert!(matches!(inspect(&function), PluginError::RefusedImport { .. }));

    let newer = component(r#"(component (import "jiji:plan/log@0.9.0" (instance)))"#);
    assert!(matches!(inspect(&newer), PluginError::WrongVersion { .. }));
    let newer = component(
        r#"(component (component $c) (instance $i (instantiate $c)) (export "jiji:proxy/proxy@2.0.0" (instance $i)))"#,
    );
    assert!(matches!(inspect(&newer), PluginError::WrongVersion { .. }));
    let other = component(
        r#"(component (component $c) (instance $i (instantiate $c)) (export "wasi:http/handler@0.2.0" (instance $i)))"#,
    );
    assert_eq!(inspect(&other).to_string(), "use plugin `x` as a plugin: it exports `wasi:http/handler@0.2.0`");
}

#[test]
fn a_component_with_the_right_names_and_the_wrong_functions_is_no_plugin() {
    let text = r#"(component
        (component $c) (instance $i (instantiate $c))
        (export "jiji:plan/meta@0.1.0" (instance $i))
        (export "jiji:proxy/proxy@0.1.0" (instance $i)))"#;
    let place = Place::new();
    let file = place.dir.path().join("empty.wasm");
    std::fs::write(&file, component(text)).expect("written");
    let error =
        fetch(&Source::File(file), &mut NoRegistry, &PluginSection::new(), None, false, compiled()).expect_err("empty");
    assert!(matches!(error, InstallError::Plugin(PluginError::NotAComponent { .. })), "{error}");
}

#[test]
fn a_health_plugin_cannot_be_the_proxy() {
    let place = Place::new();
    let mut choices = Choices::default();
    choices.proxy.name = choices.health.name.clone();
    let error = Plugins::load(&choices, &PluginSection::new(), &place.store, compiled()).expect_err("another role");
    assert!(matches!(error, PluginError::WrongRole { .. }), "{error}");
}
