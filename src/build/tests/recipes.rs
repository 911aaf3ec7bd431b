//! What recipes alone can say: packed layers, directories before a `PATH`.

use std::collections::BTreeSet;

use serde_json::json;

use super::fixture::Fixture;
use super::*;

/// Bytes that no compressor makes smaller, other ones for each name.
fn noise(name: &str, size: usize) -> Vec<u8> {
    let mut state =
        Digest::of(name).as_bytes().iter().fold(1_u64, |sum, byte| sum.wrapping_mul(257) + u64::from(*byte));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8)).flat_map(|_| next()).take(size).collect()
}

fn recipe(packed: &str) -> String {
    format!(
        "[inputs]\napp = {{ path = \"app\" }}\n[[layers]]\nname = \"app\"\nfrom = \"app\"\nto = \"/app\"\n{packed}\n"
    )
}

/// Forty packages of 50 kB, one of 2 MB and a program.
fn project(packed: &str) -> Fixture {
    let fixture = Fixture::new("", &[("app/server.py", "print(1)\n")]);
    fixture.recipe(&recipe(packed));
    for package in 0..40 {
        for file in ["a.py", "b.so"] {
            let name = format!("app/site-packages/package{package}/{file}");
            fixture.write_bytes(&name, &noise(&name, 25_000));
        }
    }
    fixture.write_bytes("app/site-packages/large/large.so", &noise("large", 2_000_000));
    fixture
}

/// What has to be sent to whoever has `before`.
fn sent(before: &Built, after: &Built) -> (usize, u64) {
    let there: BTreeSet<_> = before.image.layers.iter().map(|layer| layer.digest).collect();
    let new: Vec<_> = after.image.layers.iter().filter(|layer| !there.contains(&layer.digest)).collect();
    (new.len(), new.iter().map(|layer| layer.size).sum())
}

#[test]
fn a_change_of_one_file_sends_one_layer_of_those_it_was_packed_into() {
    let (whole, packed) = (project(""), project("packed = 16"));
    let (first, first_packed) = (whole.built(), packed.built());
    assert_eq!((first.image.layers.len(), first.steps.total), (1, 2));
    // One is large; eight of the sixteen are kept for such.
    assert_eq!((first_packed.image.layers.len(), first_packed.steps.total), (9, 2), "it is one step");
    let names = |fixture: &Fixture, built| fixture.names(built).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(names(&whole, &first), names(&packed, &first_packed));

    let mut told = Vec::new();
    for (name, bytes, most) in [
        ("app/server.py", b"print(2)\n".to_vec(), 500_000),
        ("app/site-packages/package7/a.py", noise("changed", 25_000), 500_000),
        ("app/site-packages/large/large.so", noise("changed too", 2_000_000), 2_010_000),
        ("app/site-packages/package40/a.py", noise("new", 25_000), 500_000),
    ] {
        let (before, before_packed) = (whole.built(), packed.built());
        whole.write_bytes(name, &bytes);
        packed.write_bytes(name, &bytes);
        let (one, all) = (sent(&before_packed, &packed.built()), sent(&before, &whole.built()));
        assert_eq!((one.0, all.0), (1, 1), "{name}");
        assert!(one.1 < most && all.1 > 4_000_000, "{name}: {one:?} of {all:?}");
        told.push(format!("{name}: {} bytes instead of {}", one.1, all.1));
    }
    println!("{}", told.join("\n"));
}

#[test]
fn packed_layers_are_remembered_each_and_told_as_one_step() {
    let fixture = project("packed = 8");
    let first = fixture.built();
    let config = fixture.config(&first);
    let history = config["history"].as_array().expect("a history");
    assert_eq!(history.len(), first.image.layers.len());
    assert!(history.iter().all(|entry| entry["created_by"] == "COPY app: app /app"), "{history:?}");
    let again = fixture.built();
    assert_eq!((again.steps.cached, &again.image), (again.steps.total, &first.image));
    assert_eq!(project("packed = 8").built().image.manifest, first.image.manifest, "the same everywhere");
    assert_eq!(verify::verify(&fixture.store).expect("verified").damaged, []);

    // What is not in the store any more is made again, and the rest is not.
    fixture.store.remove(&first.image.layers[3].digest).expect("removed");
    let again = fixture.built();
    assert_eq!((again.steps.total - again.steps.cached, &again.image), (1, &first.image));

    fixture.take_told("build.explained");
    fixture.recipe(&recipe("packed = 9"));
    let built = fixture.built();
    assert_ne!(built.image.manifest, first.image.manifest);
    let told = fixture.take_told("build.explained").pop().expect("told");
    assert!(told.contains("the packing was `{\"most\":8,\"rules\":1}`, is `{\"most\":9,\"rules\":1}`"), "{told}");
}

#[test]
fn a_recipe_puts_directories_before_the_path_of_what_it_is_built_upon() {
    let fixture = Fixture::new("", &[]);
    fixture.base(json!({"Env": ["PATH=/base/bin", "BASE=yes", "KIND=base"]}));
    let recipe = |image: &str| {
        format!(
            concat!(
                "[inputs]\nbase = {{ image = \"base:1\" }}\n",
                "[steps.tools]\non = \"base\"\npath = [\"/tools/bin\", \"/it's $5\"]\nenv = {{ KIND = \"tools\" }}\nrun = \"tools\"\n",
                "[steps.app]\non = \"tools\"\npath = [\"/app/bin\"]\nrun = \"app\"\n",
                "[steps.empty]\npath = [\"/x\"]\nrun = \"empty\"\n",
                "[[layers]]\nfrom = \"empty\"\nto = \"/empty\"\n",
                "[image]\n{}\n",
            ),
            image
        )
    };
    fixture.recipe(&recipe("on = \"app\"\npath = [\"/app/bin\"]"));
    let built = fixture.built();
    let mut seen: Vec<_> = fixture.ran().into_iter().map(|step| (step.argv[2].clone(), step.env)).collect();
    seen.sort();
    let env = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let default = image::DEFAULT_PATH;
    assert_eq!(
        seen,
        [
            (
                "app".to_owned(),
                env(&[("BASE", "yes"), ("KIND", "tools"), ("PATH", "/app/bin:/tools/bin:/it's $5:/base/bin")])
            ),
            ("empty".to_owned(), env(&[("PATH", &format!("/x:{default}"))])),
            ("tools".to_owned(), env(&[("BASE", "yes"), ("KIND", "tools"), ("PATH", "/tools/bin:/it's $5:/base/bin")])),
        ]
    );
    // An image has what it says itself, on top of what its base says.
    assert_eq!(fixture.config(&built)["config"]["Env"], json!(["PATH=/app/bin:/base/bin", "BASE=yes", "KIND=base"]));
    // Where the base says nothing, it is what everybody has who says nothing.
    fixture.base(json!({}));
    fixture.recipe(&recipe("on = \"base\"\npath = [\"/a\", \"/b\"]").replace("base:1", "base:2"));
    assert_eq!(fixture.config(&fixture.built())["config"]["Env"], json!([format!("PATH=/a:/b:{default}")]));
}
