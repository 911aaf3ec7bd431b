//! Layers that a recipe packs.

use std::collections::BTreeSet;

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
