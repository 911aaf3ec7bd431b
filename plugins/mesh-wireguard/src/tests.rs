//! What the plugin answers, natively.

use crate::bindings::exports::jiji::mesh::mesh::{
    Action, Answer, Fact, Guest as _, Input, Known, Link, LinkFacts, Member, Peer, Plan, Step, Turn,
};
use crate::bindings::exports::jiji::plan::meta::Guest as _;
use crate::bindings::jiji::plan::types::{Fault, Phase};
use crate::{Plugin, management};

fn key(of: char) -> String {
    format!("{of}{}=", "A".repeat(42))
}

fn member(name: &str, number: u16) -> Member {
    Member {
        name: name.to_owned(),
        number,
        architecture: "amd64".to_owned(),
        address: format!("10.210.{number}.1"),
        containers: format!("10.210.{number}.128/25"),
        endpoint: format!("198.51.100.{number}"),
        endpoint_port: None,
        labels: Vec::new(),
    }
}

fn input(members: Vec<Member>) -> Input {
    Input {
        settings: "{}".to_owned(),
        cluster: vec!["10.210.0.0/15".to_owned()],
        state_dir: "/var/lib/jiji/network".to_owned(),
        members,
    }
}

fn fact(host: &str, id: &str, answer: Answer) -> Fact {
    Fact { host: host.to_owned(), id: id.to_owned(), answer }
}

fn nothing() -> Answer {
    Answer::Link(LinkFacts { link: None, differs: Vec::new(), lacks: Vec::new() })
}

/// Members that have keys, `a`'s beginning with `a` and so on, and nothing else.
fn with_keys(members: &[Member]) -> Known {
    let facts = members.iter().flat_map(|member| {
        let first = member.name.chars().next().expect("a name");
        [fact(&member.name, "key", Answer::Key(key(first))), fact(&member.name, "link", nothing())]
    });
    Known { facts: facts.collect(), peers: Vec::new() }
}

fn plan(input: &Input, known: &Known) -> Plan {
    match Plugin::join(input.clone(), known.clone()) {
        Ok(Turn::Done(plan)) => plan,
        other => panic!("{other:?}"),
    }
}

fn refused(input: &Input, known: &Known) -> Fault {
    Plugin::join(input.clone(), known.clone()).expect_err("a fault")
}

/// What servers say once the steps of a plan are done.
fn done(known: &Known, plan: &Plan) -> Known {
    let mut known = Known { facts: known.facts.clone(), peers: plan.peers.clone() };
    for step in &plan.steps {
        let Action::LinkEnsure(link) = &step.action else { panic!("{step:?}") };
        let place = known.facts.iter_mut().find(|fact| fact.host == step.host && fact.id == "link");
        place.expect("it was asked").answer =
            Answer::Link(LinkFacts { link: Some(link.clone()), differs: Vec::new(), lacks: Vec::new() });
    }
    known
}

fn link(step: &Step) -> &Link {
    match &step.action {
        Action::LinkEnsure(link) => link,
        other => panic!("{other:?}"),
    }
}

fn peers<'a>(plan: &'a Plan, link: &Link) -> Vec<&'a Peer> {
    link.peers.iter().map(|index| &plan.peers[usize::try_from(*index).expect("an index")]).collect()
}

#[test]
fn every_server_is_asked_once_and_those_without_a_key_make_one_first() {
    let input = input(vec![member("a", 0), member("b", 1)]);
    let Ok(Turn::Observe(wants)) = Plugin::join(input.clone(), Known { facts: Vec::new(), peers: Vec::new() }) else {
        panic!("it asks");
    };
    let asked: Vec<_> = wants.iter().map(|want| (want.host.as_str(), want.id.as_str())).collect();
    assert_eq!(asked, [("a", "key"), ("a", "link"), ("b", "key"), ("b", "link")]);
    let mut known = with_keys(&input.members);
    known.facts[2].answer = Answer::Absent;
    let Ok(Turn::First(steps)) = Plugin::join(input, known) else { panic!("a key comes first") };
    let [step] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!((step.host.as_str(), step.phase, &step.undo), ("b", Phase::Boot, &None));
    assert_eq!(step.action, Action::KeyEnsure("/var/lib/jiji/network/jiji0.key".to_owned()));
}

#[test]
fn all_members_know_each_other_and_a_second_time_there_is_nothing_to_do() {
    let input = input(vec![member("a", 0), member("b", 1), member("c", 2)]);
    let known = with_keys(&input.members);
    let first = plan(&input, &known);
    assert_eq!((first.steps.len(), first.peers.len()), (3, 3), "each peer is told of once");
    let of_a = link(&first.steps[0]);
    let management = format!("{}/128", management::address(&key('a')).expect("an address"));
    assert_eq!(of_a.addresses, ["10.210.0.1/32".to_owned(), management]);
    assert_eq!((of_a.port, of_a.mtu, of_a.containers.as_str()), (51820, 1420, "10.210.0.128/25"));
    let told: Vec<_> =
        peers(&first, of_a).into_iter().map(|peer| (peer.name.as_str(), peer.endpoint.as_deref())).collect();
    assert_eq!(told, [("b", Some("198.51.100.1:51820")), ("c", Some("198.51.100.2:51820"))]);
    assert_eq!(peers(&first, of_a)[0].allowed[..2], ["10.210.1.1/32", "10.210.1.128/25"]);
    assert_eq!(first.steps[0].undo, Some(Action::LinkRemove("jiji0".to_owned())));
    let known = done(&known, &first);
    assert_eq!(plan(&input, &known).steps, []);
}

#[test]
fn one_more_server_changes_the_others_and_one_that_differs_is_mended_alone() {
    let two = input(vec![member("a", 0), member("b", 1)]);
    let mut known = done(&with_keys(&two.members), &plan(&two, &with_keys(&two.members)));
    let three = input(vec![member("a", 0), member("b", 1), member("c", 2)]);
    known.facts.extend(with_keys(&three.members[2..]).facts);
    let more = plan(&three, &known);
    assert_eq!(
        more.steps.iter().map(|step| step.title.as_str()).collect::<Vec<_>>(),
        ["change jiji0, with 2 peers", "change jiji0, with 2 peers", "bring up jiji0 with 2 peers",]
    );
    let Some(Action::LinkEnsure(before)) = &more.steps[0].undo else { panic!("{:?}", more.steps[0].undo) };
    assert_eq!(peers(&more, before).len(), 1, "it is taken back to what it was");
    if let Answer::Link(facts) = &mut known.facts[1].answer {
        facts.differs = vec!["it is down".to_owned()];
    }
    let mended = plan(&two, &known);
    assert_eq!(
        mended.steps.iter().map(|step| (step.host.as_str(), step.title.as_str())).collect::<Vec<_>>(),
        [("a", "mend jiji0")]
    );
}

#[test]
fn what_another_project_brought_in_stays_under_the_name_it_has_there() {
    let theirs = input(vec![member("b", 1), member("x", 7)]);
    let mut known = done(&with_keys(&theirs.members), &plan(&theirs, &with_keys(&theirs.members)));
    // The second project calls `x` another name, and does not know of `b`'s other peers.
    let mut renamed = member("y", 7);
    renamed.endpoint = "198.51.100.7".to_owned();
    let ours = input(vec![member("a", 0), member("b", 1)]);
    known.facts.retain(|fact| fact.host != "x");
    known.facts.extend(with_keys(&ours.members[..1]).facts);
    let joined = plan(&ours, &known);
    let of_b = joined.steps.iter().find(|step| step.host == "b").expect("a step");
    assert_eq!(peers(&joined, link(of_b)).iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["a", "x"]);
    let ours = input(vec![member("b", 1), renamed]);
    let mut all = done(&with_keys(&theirs.members), &plan(&theirs, &with_keys(&theirs.members)));
    for fact in all.facts.iter_mut().filter(|fact| fact.host == "x") {
        fact.host = "y".to_owned();
    }
    assert_eq!(plan(&ours, &all).steps, [], "one machine is one peer, whatever it is called");
}

#[test]
fn two_clusters_that_number_alike_are_told_apart_before_anything_is_done() {
    let theirs = input(vec![member("b", 1), member("x", 0)]);
    let mut known = done(&with_keys(&theirs.members), &plan(&theirs, &with_keys(&theirs.members)));
    let ours = input(vec![member("a", 0), member("b", 1)]);
    known.facts.extend(with_keys(&ours.members[..1]).facts);
    assert_eq!(refused(&ours, &known).code, "collision");
    let same = input(vec![member("a", 3), member("b", 3)]);
    assert_eq!(refused(&same, &with_keys(&same.members)).code, "same-number");
}

#[test]
fn a_server_that_shows_the_key_of_another_is_refused() {
    let input = input(vec![member("a", 0), member("b", 1)]);
    let mut known = with_keys(&input.members);
    known.facts[2].answer = Answer::Key(key('a'));
    assert_eq!(refused(&input, &known).code, "same-key");
}

#[test]
fn another_key_keeps_the_management_address_and_takes_the_place_of_the_old_one() {
    let input = input(vec![member("a", 0), member("b", 1)]);
    let first = plan(&input, &with_keys(&input.members));
    let mut known = done(&with_keys(&input.members), &first);
    let before = link(&first.steps[1]).addresses.clone();
    known.facts[2].answer = Answer::Key(key('z'));
    let changed = plan(&input, &known);
    // `b` is told of nothing new: its own key is in its own file.
    assert_eq!(changed.steps.iter().map(|step| step.host.as_str()).collect::<Vec<_>>(), ["a"]);
    let of_a = peers(&changed, link(&changed.steps[0]));
    assert_eq!((of_a.len(), &of_a[0].key, &of_a[0].allowed[2]), (1, &key('z'), &before[1]));
}

#[test]
fn what_is_missing_on_a_server_is_named_with_the_server() {
    let input = input(vec![member("a", 0), member("b", 1)]);
    let mut known = with_keys(&input.members);
    known.facts[1].answer =
        Answer::Link(LinkFacts { link: None, differs: Vec::new(), lacks: vec!["wg".to_owned(), "nft".to_owned()] });
    assert_eq!(refused(&input, &known).message, "`a` has no `wg`, `nft`");
    known.facts[1].answer = Answer::Failed("no such file".to_owned());
    assert_eq!(refused(&input, &known).message, "look at `a` for its interface: no such file");
}

#[test]
fn settings_are_refused_all_at_once_and_say_what_is_granted() {
    let faults = Plugin::check_settings(r#"{"port":0,"mtu":100,"colour":"red"}"#.to_owned()).expect_err("bad settings");
    assert_eq!(
        faults.iter().map(|fault| fault.path.as_deref()).collect::<Vec<_>>(),
        [Some("/colour"), Some("/mtu"), Some("/port")]
    );
    let needs = Plugin::check_settings(r#"{"port":4000}"#.to_owned()).expect("good settings");
    assert!(format!("{needs:?}").contains("4000"), "{needs:?}");
    let mut local = input(vec![member("a", 0), member("b", 1)]);
    local.members[0].endpoint = "localhost".to_owned();
    assert_eq!(refused(&local, &with_keys(&local.members)).code, "no-endpoint");
}
