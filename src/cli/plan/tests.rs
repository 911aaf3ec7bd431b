//! One plan in all its forms.

use super::view::{EnvView, HostView, Kind, Note, RouteView, ServiceView, StepView, Total, View};
use super::{markdown, text};

const OLD: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const NEW: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

fn host(name: &str, container: &str) -> HostView {
    let step = |phase: &str, title: &str| StepView { phase: phase.to_owned(), title: title.to_owned() };
    HostView {
        host: name.to_owned(),
        bytes: 3 << 20,
        unchanged: 1,
        services: vec![ServiceView {
            service: "web".to_owned(),
            change: Kind::Changes,
            why: vec!["image".to_owned(), "secrets".to_owned()],
            from: Some(OLD.to_owned()),
            to: Some(NEW.to_owned()),
            container: Some(container.to_owned()),
            env: vec![
                EnvView { name: "MODE".to_owned(), change: "added".to_owned(), secret: false },
                EnvView { name: "TOKEN".to_owned(), change: "changed".to_owned(), secret: true },
            ],
            parts: Vec::new(),
            route: Some(RouteView {
                change: "moved".to_owned(),
                at: vec!["shop.example/".to_owned()],
                tls: true,
                to: vec!["10.210.0.141:80".to_owned()],
            }),
            removed: vec!["shop-web-0".to_owned()],
        }],
        steps: vec![
            step("prepare", &format!("run {container}")),
            step("cutover", "route shop-web to 10.210.0.141:80"),
            step("drain", "stop shop-web-0"),
        ],
    }
}

fn view(hosts: Vec<HostView>) -> View {
    View {
        v: 1,
        project: "shop".to_owned(),
        digest: NEW.to_owned(),
        changed: hosts.iter().any(|host| !host.steps.is_empty()),
        total: Total {
            hosts: hosts.len(),
            changed: hosts.iter().filter(|host| !host.steps.is_empty()).count(),
            steps: hosts.iter().map(|host| host.steps.len()).sum(),
            bytes: hosts.iter().map(|host| host.bytes).sum(),
        },
        images: [("web".to_owned(), vec![NEW.to_owned()])].into(),
        hosts,
        notes: Vec::new(),
    }
}

fn unchanged(name: &str) -> HostView {
    HostView { host: name.to_owned(), bytes: 0, unchanged: 2, services: Vec::new(), steps: Vec::new() }
}

#[test]
fn hosts_that_are_alike_are_told_together() {
    let view = view(vec![host("one", "shop-web-a"), host("two", "shop-web-b"), unchanged("three")]);
    insta::assert_snapshot!(text::render(&view), @r"
    shop: 2 of 3 hosts to change, 6 steps, 6.0 MiB to send

    one, two: 3 steps, 3.0 MiB to send each
      web changes (image, secrets): 111111111111 -> 222222222222
        + MODE
        ~ TOKEN (secret)
        route moved: shop.example/ with TLS
      1 service stays
      steps on one:
        prepare   run shop-web-a
        cutover   route shop-web to 10.210.0.141:80
        drain     stop shop-web-0

    three: nothing to change
    plan sha256:2222222222222222222222222222222222222222222222222222222222222222
    ");
    insta::assert_snapshot!(markdown::render(&view), @r"
    <!-- jiji plan shop -->
    ### jiji plan for `shop`: 2 of 3 hosts to change

    | hosts | service | change | image | environment | route |
    | --- | --- | --- | --- | --- | --- |
    | `one`, `two` | `web` | changes (image, secrets) | `111111111111` → `222222222222` | `+ MODE`, `~ TOKEN` (secret) | moved `shop.example/` with TLS |

    <details><summary>6 steps, 6.0 MiB to send</summary>

    **`one`**: 3 steps, 3.0 MiB to send, and alike on 1 more host

    1. prepare: `run shop-web-a`
    1. cutover: `route shop-web to 10.210.0.141:80`
    1. drain: `stop shop-web-0`

    </details>

    plan `sha256:2222222222222222222222222222222222222222222222222222222222222222`
    ");
}

#[test]
fn a_plan_without_changes_is_one_line() {
    let view = view(vec![unchanged("one")]);
    assert_eq!(text::render(&view), "nothing to change\n");
    assert_eq!(markdown::render(&view), "<!-- jiji plan shop -->\n### jiji plan for `shop`: nothing to change\n");
    let json: serde_json::Value = serde_json::from_str(&view.json()).expect("JSON");
    assert_eq!((json["v"].clone(), json["changed"].clone()), (1.into(), false.into()));
}

#[test]
fn no_text_ends_a_cell_or_a_code_span() {
    let mut one = host("one", "shop-web-a");
    one.steps[0].title = "run `a` | <b>\n| b".to_owned();
    let mut view = view(vec![one]);
    view.notes.push(Note { host: "one".to_owned(), text: "left <script> | as it is".to_owned() });
    let markdown = markdown::render(&view);
    assert!(markdown.contains("1. prepare: `run 'a' | <b> | b`\n"), "{markdown}");
    assert!(markdown.contains("> `one`: left &lt;script> \\| as it is\n"), "{markdown}");
}

#[test]
fn a_comment_fits_however_large_the_fleet() {
    let hosts: Vec<HostView> = (0..3000)
        .map(|number| {
            let mut host = host(&format!("host-{number}"), "shop-web-a");
            // None is like another.
            host.services[0].env[0].name = format!("MODE_{number}");
            host
        })
        .collect();
    let markdown = markdown::render(&view(hosts));
    assert!(markdown.chars().count() < 65_536, "{}", markdown.chars().count());
    assert!(markdown.contains("more rows") && markdown.contains("more hosts"), "what was cut is said");
}
