//! Whole builds with a scripted executor: what is built, what is not, and what is remembered. Real steps are in `hermetic.rs`.

pub(in crate::build) mod fixture;
mod fuzz;
mod hostile;
mod recipes;
mod repositories;

use std::fs;
use std::path::Path;

use jiji_model::digest::Digest;
use serde_json::json;

use super::*;
use crate::build::execute::{Exit, Network, RunStep, StepSource};
use crate::build::layer::codec;
use fixture::{Fixture, IMAGE, locked, with_window};

#[test]
fn two_checkouts_with_other_modes_times_and_places_give_the_same_manifest() {
    let dockerfile = "FROM scratch\nCOPY . /app/\nRUN compile\nENV A=1\n";
    let files = [("run", "#!x"), ("src/a", "a"), ("src/b", "b")];
    let one = Fixture::new(dockerfile, &files);
    one.mode("run", 0o755);
    let other = Fixture::new(dockerfile, &[files[2], files[1], files[0]]);
    other.mode("run", 0o700);
    other.mode("src/a", 0o600);
    other.mode("src", 0o775);
    other.write(".git/index", "another");
    other.write("jiji.lock", "another");
    other.touch("src/b", 1_000_000_000);
    assert_eq!(one.built().image.manifest, other.built().image.manifest);
    other.mode("src/a", 0o755);
    assert_ne!(one.built().image.manifest, other.built().image.manifest, "the executable bit counts");
}

#[test]
fn a_build_with_nothing_changed_runs_nothing_and_reads_no_layer() {
    let fixture = Fixture::new("FROM scratch\nWORKDIR /app\nCOPY a b ./\nRUN compile\n", &[("a", "1"), ("b", "2")]);
    let first = fixture.built();
    assert_eq!((first.steps.total, first.steps.cached, fixture.ran().len()), (3, 0, 1));
    let second = fixture.built();
    assert_eq!((second.steps.total, second.steps.cached, fixture.ran().len()), (3, 3, 0));
    assert_eq!(first.image, second.image);
}

#[test]
fn a_change_is_felt_by_what_depends_on_it_alone() {
    let fixture = Fixture::new(
        "FROM scratch\nCOPY a /\nRUN first\nCOPY b /\nRUN second\n",
        &[("a", "1"), ("b", "2"), ("unused", "3")],
    );
    fixture.built();
    fixture.ran();
    fixture.write("unused", "4");
    assert_eq!(fixture.built().steps.cached, 4);
    fixture.write("b", "3");
    let built = fixture.built();
    assert_eq!((built.steps.cached, fixture.ran().len()), (2, 1));
    // A step that is done anew and gives the same leaves what follows it remembered.
    fixture.dockerfile("FROM scratch\nCOPY a /\nRUN  first  # said otherwise\nCOPY b /\nRUN second\n");
    let built = fixture.built();
    assert_eq!((built.steps.cached, fixture.ran().len()), (3, 1), "only the first RUN");
}

#[test]
fn a_layer_of_the_same_entries_is_written_once_whatever_lies_below() {
    let fixture = Fixture::new("FROM scratch\nRUN one\nCOPY a /x/\n", &[("a", "1")]);
    fixture.built();
    fixture.dockerfile("FROM scratch\nRUN another\nCOPY a /x/\n");
    assert_eq!(fixture.built().steps.cached, 1);
}

#[test]
fn the_configuration_says_what_the_dockerfile_says() {
    let fixture = Fixture::new(
        concat!(
            "ARG V=1\nFROM scratch\nARG V\nARG OWN=own UNSET GIVEN=x\nENV A=$V B=\"b $OWN\" A2=$A\nENV A2=${A}2 U=${UNSET:-none}\n",
            "LABEL l=$GIVEN \"m n\"='$x'\nWORKDIR /srv\nWORKDIR sub/../app\nEXPOSE 80 9000-9001/UDP $V\nVOLUME /data\nUSER 5:6\n",
            "STOPSIGNAL SIGINT\nHEALTHCHECK --retries=2 CMD check it\nSHELL [\"/bin/ash\", \"-ec\"]\nCMD echo $A\nENTRYPOINT [\"/x\"]\n",
            "MAINTAINER me\nRUN step\n"
        ),
        &[],
    );
    fixture.arg("GIVEN", "given");
    let built = fixture.built();
    let config = fixture.config(&built);
    assert_eq!(
        config["config"],
        json!({
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "A=1", "B=b own", "A2=12", "U=none",
            ],
            "Labels": {"l": "given", "m n": "$x"},
            "WorkingDir": "/srv/app",
            "ExposedPorts": {"80/tcp": {}, "9000/udp": {}, "9001/udp": {}, "1/tcp": {}},
            "Volumes": {"/data": {}},
            "User": "5:6",
            "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["CMD-SHELL", "check it"], "Retries": 2},
            "Shell": ["/bin/ash", "-ec"],
            "Cmd": ["/bin/ash", "-ec", "echo $A"],
            "Entrypoint": ["/x"],
        })
    );
    assert_eq!(config["author"], "me");
    assert_eq!(config["created"], "1980-01-01T00:00:00Z");
    let history = config["history"].as_array().expect("a history");
    let layers = history.iter().filter(|entry| entry.get("empty_layer").is_none()).count();
    assert_eq!(layers, config["rootfs"]["diff_ids"].as_array().expect("layers").len());
    assert_eq!(layers, built.image.layers.len());
    let step = fixture.ran().remove(0);
    assert_eq!(step.argv, ["/bin/ash", "-ec", "step"]);
    assert_eq!((step.workdir.as_str(), step.user.as_deref()), ("/srv/app", Some("5:6")));
    let names: Vec<&str> = step.env.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["A", "A2", "B", "GIVEN", "OWN", "PATH", "U", "V"]);
}

#[test]
fn an_entrypoint_forgets_the_command_of_the_base_and_not_its_own() {
    let fixture = Fixture::new("FROM scratch AS base\nCMD [\"base\"]\nFROM base\nENTRYPOINT [\"x\"]\n", &[]);
    assert_eq!(fixture.config(&fixture.built())["config"].get("Cmd"), None);
    fixture.dockerfile("FROM scratch AS base\nCMD [\"base\"]\nFROM base\nCMD [\"own\"]\nENTRYPOINT [\"x\"]\n");
    assert_eq!(fixture.config(&fixture.built())["config"]["Cmd"], json!(["own"]));
}

#[test]
fn stages_that_nobody_needs_are_not_built() {
    let fixture = Fixture::new(
        "FROM scratch AS unused\nRUN unused\nFROM scratch AS one\nARG A=1\nRUN one\nFROM one AS two\nRUN two\nFROM scratch\nRUN last\n",
        &[],
    );
    fixture.built();
    assert_eq!(fixture.ran().iter().map(|step| step.argv[2].clone()).collect::<Vec<_>>(), ["last"]);
    fixture.stage("TWO");
    fixture.built();
    let ran = fixture.ran();
    assert_eq!(ran.iter().map(|step| step.argv[2].clone()).collect::<Vec<_>>(), ["one", "two"]);
    assert!(
        ran[1].env.contains(&("A".to_owned(), "1".to_owned())),
        "a stage sees the arguments of the one it begins from"
    );
    fixture.stage("three");
    let error = fixture.fails();
    assert!(matches!(&error, BuildError::UnknownStage { name, .. } if name == "three"), "{error}");
}

#[test]
fn a_step_or_image_that_two_stages_share_is_done_once_and_told_with_its_place() {
    let fixture = Fixture::new(
        concat!(
            "FROM base AS one\nRUN same\nRUN first\nFROM base\nRUN same\nRUN second\n",
            "FROM scratch\nCOPY --from=one /ran /a\nCOPY --from=1 /ran /b\nWORKDIR /c\n"
        ),
        &[],
    );
    let built = fixture.built();
    assert_eq!((built.steps.total, built.steps.cached), (7, 1));
    let mut ran: Vec<String> = fixture.ran().into_iter().filter_map(|step| step.argv.last().cloned()).collect();
    ran.sort();
    assert_eq!(ran, ["first", "same", "second"]);
    let asked = fixture.asked();
    assert_eq!(asked.iter().filter(|asked| asked.starts_with("resolve")).count(), 1, "{asked:?}");
    let mut told = fixture.told("build.step");
    told.retain(|text| !text.contains("RUN same"));
    told.sort();
    assert_eq!(
        told,
        [
            "[1 2/2] RUN second",
            "[2 1/3] COPY --from=one /ran /a",
            "[2 2/3] COPY --from=1 /ran /b",
            "[2 3/3] WORKDIR /c",
            "[one 2/2] RUN first",
        ]
    );
    fixture.dockerfile("FROM base\nENV a=b\nRUN alone\n");
    fixture.built();
    assert_eq!(fixture.told("build.step").last().map(String::as_str), Some("[1/1] RUN alone"));
}

#[test]
fn a_step_that_is_done_says_what_of_its_key_differs() {
    let fixture = Fixture::new(
        "FROM base\nARG V\nCOPY . /app/\nRUN --mount=type=secret,id=t --mount=target=/m,source=dir make\nWORKDIR /w\n",
        &[("a", "1"), ("b", "2"), ("c", "3"), ("dir/d", "4")],
    );
    fixture.arg("V", "the-value-of-v");
    fixture.secret("t", "the-secret");
    let explained = || {
        fixture.built();
        fixture.take_told("build.explained")
    };
    let new = "miss: no build of this image had this step";
    let run = "RUN --mount=type=secret,id=t --mount=target=/m,source=dir make";
    assert_eq!(
        explained(),
        [format!("[1/3] COPY . /app/: {new}"), format!("[2/3] {run}: {new}"), format!("[3/3] WORKDIR /w: {new}")]
    );
    let known = "hit: it was done before, and nothing changed";
    assert_eq!(
        explained(),
        [
            format!("[1/3] COPY . /app/: {known}"),
            format!("[2/3] {run}: hit: jiji.lock says what it gives"),
            format!("[3/3] WORKDIR /w: {known}")
        ]
    );
    fixture.write("a", "2");
    fixture.write("new", "2");
    fixture.remove("b");
    fixture.write("dir/d", "5");
    let told = explained();
    assert_eq!(told[0], "[1/3] COPY . /app/: miss: 4 files: `a` changed, `b` is gone, `dir/d` changed, `new` is new");
    assert_eq!(told[1], format!("[2/3] {run}: miss: a step above gives something else; 1 file: `dir/d` changed"));

    fixture.arg("V", "another-value");
    assert_eq!(explained()[1], format!("[2/3] {run}: miss: the environment: `V` changed"));
    let other = "FROM base\nENV NEW=1\nARG V\nCOPY . /srv/\nRUN --mount=type=tmpfs,target=/m make all\nWORKDIR /w\n";
    fixture.dockerfile(other);
    let told = explained();
    assert_eq!(told[0], "[1/3] COPY . /srv/: miss: the destination was `/app/`, is `/srv/`");
    assert_eq!(
        told[1],
        concat!(
            "[2/3] RUN --mount=type=tmpfs,target=/m make all: miss: a step above gives something else; ",
            "the command was `/bin/sh -c make`, is `/bin/sh -c make all`; the environment: `NEW` is new; 1 file: `dir/d` is gone; ",
            "the mounts: `/m` changed, `/run/secrets/t` is gone"
        )
    );
    fixture.layer_of_base("etc/motd");
    let told = explained();
    assert_eq!(told[0], "[1/3] COPY . /srv/: hit: its files were laid out before");
    assert!(told[1..].iter().all(|text| text.ends_with("miss: the base image is another")), "{told:?}");
    fixture.dockerfile(&other.replace("/srv/", "/sr2/").replace("make all", "fail"));
    fixture.fails();
    assert!(fixture.take_told("build.explained").len() == 2, "what failed is explained too");

    // What builds keep of all this names no value.
    let mut kept = fixture.said();
    for key in fixture.store.actions().expect("listed") {
        kept.push_str(&String::from_utf8_lossy(&fixture.store.action(&key).expect("read").expect("there")));
    }
    assert!(
        kept.contains("env V")
            && !["the-value-of-v", "another-value", "the-secret"].iter().any(|text| kept.contains(text))
    );
}

#[test]
fn records_without_parts_are_still_results_and_what_is_gone_is_said() {
    let fixture = Fixture::new("FROM scratch\nCOPY a /\n", &[("a", "1")]);
    fixture.built();
    // As an earlier version wrote them.
    for key in fixture.store.actions().expect("listed") {
        let record = fixture.store.action(&key).expect("read").expect("there");
        let mut record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
        if record.as_object_mut().expect("an object").remove("parts").is_some() {
            fixture.store.record_action(&key, record.to_string().as_bytes()).expect("recorded");
        }
    }
    let explained = || {
        let built = fixture.built();
        (built.steps.cached, fixture.take_told("build.explained").remove(0))
    };
    fixture.take_told("build.explained");
    assert_eq!(explained().0, 1);
    fixture.write("a", "2");
    let (_, text) = explained();
    assert!(text.ends_with("miss: the store has no record of the parts of the step as it was before"), "{text}");
    let verified = verify::verify(&fixture.store).expect("verified");
    assert_eq!(verified.damaged, [], "records of both kinds, and of the build's steps, are whole");
    for blob in fixture.built().image.layers {
        fixture.store.remove(&blob.digest).expect("removed");
    }
    fixture.take_told("build.explained");
    let (_, text) = explained();
    assert!(text.ends_with("miss: nothing changed, and what it gave is not in the store"), "{text}");
    for key in fixture.store.actions().expect("listed") {
        if fixture.store.action(&key).expect("read").is_some_and(|record| record.starts_with(b"{\"layer\"")) {
            fixture.store.forget_action(&key).expect("forgotten");
        }
    }
    fixture.write("a", "3");
    let (_, text) = explained();
    assert!(text.ends_with("miss: the step as it was before is not in the store"), "{text}");
}

#[test]
fn a_tag_is_resolved_once_and_written_to_the_lock() {
    let fixture = Fixture::new("ARG TAG=1\nFROM base:$TAG\nCOPY a /bin/\n", &[("a", "1")]);
    let built = fixture.built();
    let lock = locked(&fixture.lock).clone();
    let keys: Vec<_> = lock.bases.keys().map(|key| key.reference.as_str()).collect();
    assert_eq!(keys, ["docker.io/library/base:1"]);
    assert_eq!(fixture.asked(), ["resolve docker.io/library/base:1", "pull docker.io/library/base:1"]);
    assert_eq!(built.image.layers.len(), 2);
    assert_eq!(fixture.config(&built)["config"]["Env"], json!(["BASE=yes"]));
    fixture.built();
    assert_eq!(fixture.asked(), ["pull docker.io/library/base:1"], "the tag is not asked for again");
    // The base's `/bin` is a link, and what is copied there goes where it leads.
    let layer = fixture.layer(&built, 1);
    assert_eq!(layer, ["usr/", "usr/bin/", "usr/bin/a"]);
    fixture.dockerfile(&format!("FROM base@{}\n", *IMAGE));
    fixture.built();
    assert_eq!(fixture.asked(), [format!("pull docker.io/library/base@{}", *IMAGE)]);
}

#[test]
fn locked_means_that_the_lock_says_everything_already() {
    let fixture = Fixture::new("FROM base:1\nRUN one\n", &[]);
    fixture.locked(true);
    let error = fixture.fails();
    assert!(error.is_locked_mismatch() && error.to_string() == "carry out FROM at Dockerfile:1:6", "{error}");
    fixture.locked(false);
    fixture.built();
    fixture.locked(true);
    fixture.built();
    fixture.dockerfile("FROM base:1\nRUN two\n");
    let error = fixture.fails();
    assert!(error.is_locked_mismatch(), "{error}");
    fixture.dockerfile("FROM base:1\nRUN one\nENV A=1\n");
    let error = fixture.fails();
    assert!(matches!(&error, BuildError::LockedImage { expected: Some(_), .. }), "{error}");
}

#[test]
fn a_step_that_gives_something_else_than_the_lock_says_is_told_and_with_locked_refused() {
    let fixture = Fixture::new("FROM scratch\nRUN one\n", &[]);
    fixture.built();
    for diff_id in locked(&fixture.lock).runs.values_mut() {
        *diff_id = Digest::of("another machine's");
    }
    fixture.locked(true);
    let error = fixture.fails();
    assert!(error.is_locked_mismatch() && error.place().expect("a place").line == 2, "{error}");
    fixture.locked(false);
    fixture.built();
    assert!(fixture.events().iter().any(|event| event == "build.differs"));
    fixture.locked(true);
    fixture.built();
}

#[test]
fn what_the_lock_says_is_taken_from_the_store_without_running_anything() {
    let fixture = Fixture::new("FROM scratch\nRUN one\nRUN nothing\n", &[]);
    let built = fixture.built();
    assert_eq!(fixture.ran().len(), 2);
    for key in fixture.store.actions().expect("listed") {
        fixture.store.forget_action(&key).expect("forgotten");
    }
    assert_eq!(fixture.built().image, built.image);
    assert_eq!(fixture.ran().len(), 0, "also not the step that changes nothing");
}

#[test]
fn another_compression_takes_every_step_as_it_is_and_makes_other_blobs_of_the_same_layers() {
    let fixture = Fixture::new("FROM base:1\nCOPY a /a\nRUN one\nRUN nothing\n", &[("a", "a")]);
    let gzip = fixture.built();
    fixture.ran();
    fixture.compression(Compression::Zstd);
    let zstd = fixture.built();
    assert_eq!((fixture.ran().len(), zstd.steps.cached), (0, 3), "nothing is done again");
    assert_eq!(fixture.told("build.compress").len(), 2);
    let media_types = |built: &Built| -> Vec<String> {
        let layers = built.image.layers.iter();
        layers.map(|layer| layer.media_type.rsplit('.').next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(media_types(&gzip), ["tar+gzip", "tar+gzip", "tar+gzip"]);
    assert_eq!(media_types(&zstd), ["tar+gzip", "tar+zstd", "tar+zstd"], "the base image stays as it is");
    assert_eq!(zstd.image.config, gzip.image.config, "the same files");
    assert_ne!(zstd.image.manifest, gzip.image.manifest);
    for layer in 0..3 {
        assert_eq!(fixture.layer(&zstd, layer), fixture.layer(&gzip, layer));
    }
    let difference = compare::images(&gzip.image, &zstd.image, &fixture.store).expect("compared");
    let lines = compare::lines(&difference);
    assert!(lines.iter().any(|line| line.contains("the same files, compressed otherwise, gzip → zstd")), "{lines:?}");

    // What is remembered is enough, whichever of the two blobs is still here.
    assert_eq!(fixture.built().image, zstd.image);
    for layer in &gzip.image.layers[1..] {
        fixture.store.remove(&layer.digest).expect("removed");
    }
    assert_eq!((fixture.built().image, fixture.ran().len()), (zstd.image.clone(), 0));
    fixture.compression(Compression::Gzip);
    assert_eq!((fixture.built().image, fixture.ran().len()), (gzip.image.clone(), 0), "and back from zstd");

    // Another machine, which begins with zstd, and takes from the lock what it can.
    let other = Fixture::new("FROM base:1\nCOPY a /a\nRUN one\nRUN nothing\n", &[("a", "a")]);
    other.compression(Compression::Zstd);
    assert_eq!(other.built().image, zstd.image, "written so at once");
    assert!(other.told("build.compress").is_empty());
    for key in other.store.actions().expect("listed") {
        other.store.forget_action(&key).expect("forgotten");
    }
    other.ran();
    other.compression(Compression::Gzip);
    assert_eq!((other.built().image, other.ran().len()), (gzip.image, 0), "what the lock says is taken all the same");
    other.locked(true);
    other.compression(Compression::Zstd);
    let error = other.fails();
    assert!(matches!(error, BuildError::LockedImage { .. }), "{error}");
    assert!(error.evidence().iter().any(|line| line.contains("gzip → zstd")), "{:?}", error.evidence());
}

#[test]
fn a_damaged_layer_is_not_compressed_otherwise() {
    let fixture = Fixture::new("FROM scratch\nCOPY a /a\n", &[("a", "a")]);
    let built = fixture.built();
    let blob = &built.image.layers[0];
    let mut bytes = fixture.store.read(&blob.digest, 1 << 20).expect("stored");
    // The last bytes of a member are the checksum and length of its content.
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(fixture.store.blob_path(&blob.digest), &bytes).expect("damaged");
    fixture.compression(Compression::Zstd);
    let error = fixture.fails();
    assert!(error.hint().is_some_and(|hint| hint.contains("store verify")), "{error}");
    verify::verify(&fixture.store).expect("verified");
    fixture.built();
}

#[test]
fn a_step_with_the_network_is_taken_by_what_the_lock_says() {
    let fixture = Fixture::new("FROM scratch\nRUN --network=default fetch\nRUN use\n", &[]);
    fixture.arg("HTTPS_PROXY", "http://proxy:3128");
    let built = fixture.built();
    let ran = fixture.ran();
    let seen: Vec<_> = ran.iter().map(|step| (step.network, step.secrets.len())).collect();
    assert_eq!(seen, [(Network::Machine, 1), (Network::None, 0)], "proxies are for whom has a network");
    fixture.arg("HTTPS_PROXY", "http://another:3128");
    fixture.offline(true);
    assert_eq!((fixture.built().image, fixture.ran().len()), (built.image.clone(), 0), "and are in no key");

    // What the store has not is named, and with the network done again.
    for key in fixture.store.actions().expect("listed") {
        fixture.store.forget_action(&key).expect("forgotten");
    }
    for diff_id in locked(&fixture.lock).runs.values() {
        fixture.store.forget_layer(diff_id, codec(Compression::Gzip)).expect("forgotten");
    }
    let error = fixture.fails();
    assert_eq!((error.place().map(|place| place.line), fixture.ran().len()), (Some(2), 0));
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert_eq!(
        source,
        "find what `RUN --network=default fetch` gave without asking anybody: the store does not have it"
    );
    assert!(error.registry().is_some());
    fixture.offline(false);
    fixture.locked(true);
    assert_eq!((fixture.built().image, fixture.ran().len()), (built.image, 2));

    // Another result than the lock says is refused with `--locked`, with another way out than that of a step without the network.
    for diff_id in locked(&fixture.lock).runs.values_mut() {
        *diff_id = Digest::of("another machine's");
    }
    let error = fixture.fails();
    assert!(error.is_locked_mismatch() && error.hint().is_some_and(|hint| hint.contains("exact versions")), "{error}");
    fixture.locked(false);
    fixture.built();
    assert_eq!(fixture.told("build.differs").len(), 2);
}

#[test]
fn a_named_context_counts_before_stages_and_images_of_its_name() {
    let fixture = Fixture::new(
        "FROM gone:1 AS Tools\nRUN never\nFROM shared\nCOPY --from=tools a /from/\nCOPY --from=base:9 usr /u\n\
         RUN --mount=from=shared,source=/lib,target=/m --mount=type=cache,target=/c,from=tools,source=sub use\n",
        &[("a", "context")],
    );
    let beside = |name: &str, text: &str| {
        let path = fixture.place().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        fs::write(path, text).expect("written");
    };
    beside("libs/lib/one", "1");
    beside("libs/ignored", "i");
    beside("libs/.dockerignore", "ignored\n.dockerignore\n");
    beside("tools/a", "tool");
    beside("tools/sub/b", "b");
    fixture.context("shared", "libs");
    fixture.context("TOOLS", "tools");
    fixture.context("docker.io/library/base:9", "docker-image://base:1");
    let built = fixture.built();
    assert_eq!(fixture.layer(&built, 0), ["lib/", "lib/one"], "without what its own ignore file leaves out");
    assert_eq!(
        (fixture.layer(&built, 1), fixture.file(&built, 1, "from/a")),
        (vec!["from/".into(), "from/a".into()], "tool".into())
    );
    assert_eq!(fixture.asked(), ["resolve docker.io/library/base:1", "pull docker.io/library/base:1"]);
    assert_eq!(locked(&fixture.lock).bases.len(), 1, "and its image is pinned like any other");
    let ran = fixture.ran();
    assert_eq!(ran.len(), 1, "the stage of that name is not built");
    assert!(matches!(&ran[0].mounts[0].source, StepSource::Layers { path, .. } if path == "/lib"), "{ran:?}");
    let StepSource::Cache { from: Some((layers, source)), .. } = &ran[0].mounts[1].source else { panic!("{ran:?}") };
    assert_eq!((layers.len(), source.as_str()), (1, "sub"));

    // They are in keys by their content, wherever they are and whoever owns them.
    fs::rename(fixture.place().join("tools"), fixture.place().join("moved")).expect("moved");
    fixture.context("TOOLS", "moved");
    assert_eq!((fixture.built().image, fixture.ran().len()), (built.image.clone(), 0));
    beside("moved/a", "another");
    assert_ne!(fixture.built().image, built.image);
    let layout = fixture.place().join("layout");
    fixture.store.export_layout(&built.image, &layout, Some("v1")).expect("exported");
    fixture.context("shared", "oci-layout://layout:v1");
    let above = fixture.built();
    assert_eq!(above.image.layers[..built.image.layers.len()], built.image.layers[..], "it goes on from there");
    for (context, cause) in [("oci-layout://layout:v2", "it has no image `v2`"), ("nowhere", "read")] {
        fixture.context("shared", context);
        let error = fixture.fails();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(source.contains(cause), "{context}: {source}");
        assert_eq!(error.place().map(|place| place.line), Some(3));
    }
}

#[test]
fn an_agent_is_for_steps_with_the_network() {
    let fixture = Fixture::new(
        "FROM scratch\nRUN --network=default --mount=type=ssh --mount=type=ssh,id=other,uid=7 fetch\n",
        &[],
    );
    fixture.built();
    let step = fixture.ran().remove(0);
    let agent = |step: &RunStep| step.env.iter().find(|(name, _)| name == "SSH_AUTH_SOCK").map(|(_, at)| at.clone());
    assert_eq!((step.mounts.len(), agent(&step)), (0, None), "none is given");
    fixture.agent("other", Path::new("/agent"));
    fixture.built();
    let step = fixture.ran().remove(0);
    assert_eq!(agent(&step).as_deref(), Some("/run/buildkit/ssh_agent.1"));
    assert!(
        matches!(&step.mounts[..], [mount] if mount.source == StepSource::Agent { socket: "/agent".into(), mode: 0o600, owner: (7, 0) })
    );
    fixture.agent("other", Path::new("/elsewhere"));
    assert_eq!(fixture.built().steps.cached, 1, "where it is is in no key");
    fixture.dockerfile("FROM scratch\nRUN --mount=type=ssh fetch\n");
    let error = fixture.fails();
    assert!(error.to_string().contains("RUN --network=default"), "{error}");
    fixture.dockerfile("FROM scratch\nRUN --network=default --mount=type=ssh,required fetch\n");
    assert!(fixture.fails().hint().is_some_and(|hint| hint.contains("--ssh")));
}

#[test]
fn what_others_wrote_into_the_lock_meanwhile_stays() {
    let fixture = Fixture::new("FROM base:1\nRUN one\n", &[]);
    fixture.built();
    let after = locked(&fixture.lock).clone();
    let changes = Changes::of(&fixture.target(), &after);
    let key = after.bases.keys().next().expect("a base").clone();
    let mut meanwhile = BuildSection::default();
    meanwhile.bases.insert(key.clone(), Digest::of("resolved by another"));
    changes.apply(&mut meanwhile);
    assert_eq!(meanwhile.bases[&key], Digest::of("resolved by another"));
    assert_eq!((&meanwhile.images, &meanwhile.runs), (&after.images, &after.runs));
}

#[test]
fn every_failure_names_its_place_and_a_way_out() {
    let cases: [(&str, &str, (u32, u32), &str); 13] = [
        ("FROM scratch\nCOPY a gone /x/\n", "copy `gone`: it is not in the context", (2, 8), "relative to the context"),
        ("FROM scratch\nCOPY --chown=me a /\n", "find user `me` in the image's `/etc/passwd`", (2, 14), "use a number"),
        ("FROM scratch\nCOPY --chmod=u+q a /\n", "", (2, 14), ""),
        ("FROM scratch\nADD a a.xz /\n", "add `a.xz`", (2, 7), "compress it with `xz -9` or less"),
        ("FROM scratch\n\nRUN fail\n", "run `fail`: it exited with 3", (3, 1), ""),
        ("FROM scratch\nRUN offline\n", "run `offline`: it exited with 3", (2, 1), "`RUN --network=default`"),
        ("FROM scratch\nRUN --network=default fail\n", "run `--network=default fail`", (2, 1), ""),
        ("FROM scratch\nENV A=${B\n", "", (2, 7), ""),
        ("FROM scratch\nEXPOSE 70000\n", "", (2, 8), ""),
        ("FROM $NOTHING\n", "begin a stage from nothing", (1, 6), ""),
        ("FROM base@sha256:12\n", "read image reference", (1, 6), ""),
        ("FROM gone:1\n", "find", (1, 6), ""),
        ("FROM --platform=plan9/mips scratch\n", "", (1, 17), ""),
    ];
    for (dockerfile, cause, place, hint) in cases {
        let fixture = Fixture::new(dockerfile, &[("a", "1")]);
        fixture.write_bytes("a.xz", &with_window(include_bytes!("data/a.tar.xz").to_vec(), 40));
        let error = fixture.fails();
        let at = error.place().unwrap_or_else(|| panic!("{error}"));
        assert_eq!((at.line, at.column), place, "{dockerfile:?}: {error}");
        assert_eq!(at.text, dockerfile.lines().nth(place.0 as usize - 1).expect("a line"), "{error}");
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(source.contains(cause), "{dockerfile:?}: {source}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{dockerfile:?}: {:?}", error.hint());
    }
    let fixture = Fixture::new("FROM scratch\nRUN fail\n", &[]);
    let error = fixture.fails();
    assert_eq!(error.evidence(), ["said before it failed"]);
    let BuildError::Step { cause, .. } = &error else { panic!("{error}") };
    assert!(matches!(**cause, StepError::Failed { exit: Exit::Code(3), .. }));
}

#[test]
fn an_argument_that_no_arg_declares_is_told() {
    let fixture = Fixture::new("FROM scratch\nARG A\n", &[]);
    fixture.arg("A", "1");
    fixture.arg("B", "2");
    fixture.built();
    assert_eq!(fixture.events().iter().filter(|event| *event == "build.warning").count(), 1);
}

#[test]
fn triggers_are_carried_out_by_the_image_that_begins_from_this_one() {
    let fixture = Fixture::new("FROM scratch\nONBUILD ARG V=1\nONBUILD RUN step $V\nonbuild copy <<f /\n$V\nf\n", &[]);
    let built = fixture.built();
    assert_eq!(fixture.ran().len(), 0, "not by this one");
    assert_eq!(fixture.config(&built)["config"]["OnBuild"], json!(["ARG V=1", "RUN step $V", "copy <<f /\n$V\nf"]));
    fixture.base(json!({"OnBuild": ["ARG V=1", "RUN step", "COPY <<f /\n$V\nf"]}));
    fixture.dockerfile("FROM base:1\nRUN after\n");
    fixture.arg("V", "2");
    let built = fixture.built();
    assert_eq!(fixture.ran().iter().map(|step| step.argv[2].clone()).collect::<Vec<_>>(), ["step", "after"]);
    assert_eq!(fixture.file(&built, 2, "f"), "2\n");
    assert_eq!(fixture.config(&built)["config"].get("OnBuild"), None, "and not by those that begin from it");
    assert!(!fixture.events().iter().any(|event| event == "build.warning"), "a trigger declares the argument");

    fixture.base(json!({"OnBuild": ["RUN ok", "COPY gone /"]}));
    let error = fixture.fails();
    assert_eq!(error.place().map(|place| (place.line, place.column)), Some((1, 6)), "{error}");
    fixture.base(json!({"OnBuild": ["FROM x"]}));
    assert_eq!(fixture.fails().place().map(|place| place.line), Some(1));
    fixture.ran();
    fixture.dockerfile("FROM scratch AS a\nONBUILD RUN x\nFROM a\n");
    fixture.built();
    assert_eq!(fixture.ran().len(), 0, "a stage of the same file does not trigger it");
}

#[test]
fn a_copy_keeps_parents_leaves_out_and_changes_modes() {
    let files = [("src/a.txt", "a"), ("src/x/b.txt", "b"), ("src/x/c.md", "c"), ("run", "#!")];
    let fixture = Fixture::new(
        "FROM scratch\nARG P=*.md\nCOPY --parents --exclude=**/$P --exclude=run --chmod=go-r src /out/\nADD --chmod=u+x --exclude=*.txt src/x/c.md src/a.txt /two/\n",
        &files,
    );
    let built = fixture.built();
    assert_eq!(
        fixture.modes(&built, 0),
        ["out/ 755", "out/src/ 711", "out/src/a.txt 600", "out/src/x/ 711", "out/src/x/b.txt 600"]
    );
    assert_eq!(fixture.modes(&built, 1), ["two/ 755", "two/c.md 744"]);
    fixture.write("src/x/c.md", "changed");
    assert_eq!(fixture.built().steps.cached, 1, "what is left out changes nothing");
    fixture.dockerfile("FROM scratch\nCOPY --parents=maybe a /\n");
    assert_eq!(fixture.fails().place().map(|place| (place.line, place.column)), Some((2, 6)));
    fixture.dockerfile("FROM scratch\nCOPY --exclude=a --exclude=[b src /\n");
    assert_eq!(fixture.fails().place().map(|place| (place.line, place.column)), Some((2, 28)));
}

#[test]
fn arguments_about_the_build_need_no_declaration() {
    let fixture = Fixture::new("FROM scratch AS one\nARG TARGETSTAGE\nLABEL s=$TARGETSTAGE\n", &[]);
    fixture.arg("HTTP_PROXY", "http://proxy");
    let plain = fixture.built();
    assert_eq!(fixture.config(&plain)["config"]["Labels"]["s"], "default");
    fixture.arg("SOURCE_DATE_EPOCH", "1000000000");
    let config = fixture.config(&fixture.built());
    assert_eq!(config["created"], "2001-09-09T01:46:40Z");
    assert!(!fixture.events().iter().any(|event| event == "build.warning"));
    fixture.stage("ONE");
    assert_eq!(fixture.config(&fixture.built())["config"]["Labels"]["s"], "ONE");
    fixture.arg("SOURCE_DATE_EPOCH", "yesterday");
    assert!(matches!(fixture.fails(), BuildError::Epoch { .. }));
}

#[test]
fn mounts_are_in_the_key_by_what_they_show_and_secrets_by_their_name() {
    let dockerfile = concat!(
        "FROM scratch AS made\nRUN make\nFROM scratch\nWORKDIR /w\n",
        "RUN --mount=target=in,source=src --mount=type=bind,from=made,target=/made,source=/ran --mount=type=cache,target=/c,id=pip \\\n",
        "  --mount=type=secret,id=token,env=T --mount=type=secret,id=token,target=/t --mount=type=tmpfs,target=/m use\n",
    );
    let fixture = Fixture::new(dockerfile, &[("src/a", "1"), ("src/b/c", "2"), ("other", "3")]);
    fixture.secret("token", "one");
    fixture.built();
    let step = fixture.ran().remove(1);
    assert_eq!(
        step.secrets.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect::<Vec<_>>(),
        [("T", "one")]
    );
    let targets: Vec<(&str, bool)> = step.mounts.iter().map(|mount| (mount.target.as_str(), mount.read_only)).collect();
    assert_eq!(targets, [("/w/in", true), ("/made", true), ("/c", false), ("/t", true), ("/m", false)]);
    let StepSource::Layers { layers, path } = &step.mounts[0].source else { panic!("layers") };
    assert_eq!((path.as_str(), layers.len()), ("/", 1));
    let StepSource::Layers { layers, path } = &step.mounts[1].source else { panic!("layers") };
    assert_eq!((path.as_str(), layers.len()), ("/ran", 1));
    assert!(matches!(&step.mounts[3].source, StepSource::Secret { value, mode: 0o400, .. } if value.reveal() == "one"));

    fixture.secret("token", "another");
    fixture.write("other", "4");
    let built = fixture.built();
    assert_eq!((built.steps.cached, built.steps.total), (3, 3), "neither the secret's value nor other files count");
    fixture.write("src/b/c", "3");
    assert_eq!(fixture.built().steps.cached, 2);
    let lock = format!("{:?}", locked(&fixture.lock));
    assert!(!lock.contains("another"), "{lock}");

    for (flags, place, cause) in [
        ("--mount=type=secret,id=gone,required", (2, 13), "mount the secret `gone`: it was not given"),
        ("--mount=target=/x,source=gone", (2, 13), "copy `gone`: it is not in the context"),
        ("--mount=target=/x,source=../gone", (2, 13), "outside of the context"),
        ("--mount=target=/x,from=gone:1", (2, 13), "find"),
        ("--mount=target=/x,size=1", (2, 13), ""),
        ("--mount=type=ssh", (2, 13), ""),
    ] {
        fixture.dockerfile(&format!("FROM scratch\nRUN {flags} x\n"));
        let error = fixture.fails();
        let at = error.place().unwrap_or_else(|| panic!("{error}"));
        assert_eq!((at.line, at.column), place, "{flags}: {error}");
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(source.contains(cause), "{flags}: {source}");
    }
    // A secret that nobody needs is not there.
    fixture.dockerfile("FROM scratch\nRUN --mount=type=secret,id=gone x\n");
    fixture.built();
    fixture.ran();
    // A script of its own is mounted, and part of the key.
    fixture.dockerfile("FROM scratch\nRUN <<run\n#!/bin/x\none\nrun\n");
    fixture.built();
    let step = fixture.ran().remove(0);
    assert_eq!(step.argv, ["/bin/sh", "-c", "/dev/pipes/run"]);
    assert_eq!(step.mounts[0].source, StepSource::Script("#!/bin/x\none\n".to_owned()));
    fixture.dockerfile("FROM scratch\nRUN <<run\n#!/bin/x\ntwo\nrun\n");
    assert_eq!(fixture.built().steps.cached, 0);
}

#[test]
fn an_archive_is_unpacked_by_add_and_taken_as_it_is_by_copy() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, content: &str, mode: u32| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(7);
        header.set_mtime(1_000_000_000);
        let content = if kind == tar::EntryType::Regular {
            content
        } else {
            header.set_link_name(content).map(|()| "").expect("a link")
        };
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content.as_bytes()).expect("appended");
    };
    add("bin/zz", tar::EntryType::Regular, "tool", 0o4755);
    add("bin/aa", tar::EntryType::Link, "bin/zz", 0o4755);
    add("bin/bb", tar::EntryType::Link, "bin/aa", 0o4755);
    add("etc/link", tar::EntryType::Symlink, "../bin/aa", 0o777);
    let tar = builder.into_inner().expect("finished");
    let packed = zstd::encode_all(&tar[..], 1).expect("compressed");

    let fixture = Fixture::new("FROM base:1\nADD --chmod=600 root.tar text.gz plain /\n", &[("plain", "p")]);
    fixture.write_bytes("root.tar", &tar);
    fixture.write_bytes("text.gz", b"\x1f\x8b\x08 no archive");
    let built = fixture.built();
    // The base's `/bin` is a link to `/usr/bin`, and what is unpacked goes where it leads.
    assert_eq!(
        fixture.modes(&built, 1),
        [
            "etc/ 755",
            "etc/link 777",
            "plain 600",
            "text.gz 600",
            "usr/ 755",
            "usr/bin/ 755",
            "usr/bin/aa 4755",
            "usr/bin/bb 4755",
            "usr/bin/zz 4755",
        ]
    );
    assert_eq!(fixture.file(&built, 1, "usr/bin/aa"), "tool");
    assert_eq!(fixture.built().steps.cached, 1, "and nothing is looked into when nothing changed");

    fixture.write_bytes("root.tar", &packed);
    assert_eq!(fixture.built().image.layers, built.image.layers, "however it is compressed");
    fixture.dockerfile("FROM base:1\nCOPY root.tar /\nADD --unpack=false root.tar /x/\nADD --chown=9 root.tar /y\n");
    let built = fixture.built();
    assert_eq!(fixture.layer(&built, 1), ["root.tar"]);
    assert_eq!(fixture.layer(&built, 2), ["x/", "x/root.tar"]);
    assert_eq!(fixture.layer(&built, 3), ["y/", "y/bin/", "y/bin/aa", "y/bin/bb", "y/bin/zz", "y/etc/", "y/etc/link"]);

    let hostile = |entries: &[(&str, tar::EntryType, &str)], cause: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().expect("GNU").name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            if !content.is_empty() {
                header.set_link_name(content).expect("a link");
            }
            header.set_cksum();
            builder.append(&header, &b""[..]).expect("appended");
        }
        let fixture = Fixture::new("FROM base:1\nADD evil.tar /\n", &[]);
        fixture.write_bytes("evil.tar", &builder.into_inner().expect("finished"));
        let error = fixture.fails();
        // The archive where it is to blame, the destination where something is in the way there.
        let column = if cause.starts_with("leads") || cause.starts_with("remove") { 5 } else { 14 };
        assert_eq!(error.place().map(|place| (place.line, place.column)), Some((2, column)), "{error}");
        let mut said = String::new();
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = source {
            said = format!("{said}: {error}");
            source = error.source();
        }
        assert!(said.contains(cause), "{said}");
    };
    let (file, link) = (tar::EntryType::Regular, tar::EntryType::Symlink);
    hostile(&[("../x", file, "")], "leads out of it");
    hostile(&[("a", link, "/etc"), ("a/passwd", file, "")], "what is there is not a directory");
    hostile(&[("usr", file, "")], "a directory is there");
    hostile(&[(".wh.usr", file, "")], "remove files");
    hostile(&[("bin", tar::EntryType::Directory, "")], "what is there is not a directory");
}

#[test]
fn a_url_is_fetched_once_and_then_what_the_lock_or_the_checksum_says() {
    let fixture = Fixture::new(
        "FROM scratch\nARG V=1\nADD https://example.com/v$V/tool plain /bin/\n",
        &[("tool", "one"), ("plain", "p")],
    );
    let built = fixture.built();
    assert_eq!(fixture.modes(&built, 0), ["bin/ 755", "bin/plain 644", "bin/tool 600"]);
    assert_eq!(fixture.file(&built, 0, "bin/tool"), "one");
    assert_eq!(fixture.asked(), ["fetch https://example.com/v1/tool"]);
    assert_eq!(locked(&fixture.lock).urls["https://example.com/v1/tool"], Digest::of("one"));
    fixture.write("tool", "another");
    fixture.locked(true);
    assert_eq!(fixture.built().image, built.image, "what the lock says is in the store");
    assert!(fixture.asked().is_empty());
    fixture.store.remove(&Digest::of("one")).expect("removed");
    let error = fixture.fails();
    assert_eq!(error.place().map(|place| (place.line, place.column)), Some((3, 5)), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("changed")), "{error}");
    fixture.dockerfile("FROM scratch\nADD https://example.com/other/tool /\n");
    assert!(fixture.fails().is_locked_mismatch());
    fixture.locked(false);

    let checked = |digest: Digest| {
        fixture.dockerfile(&format!("FROM scratch\nADD --checksum={digest} https://example.com/tool /x\n"))
    };
    checked(Digest::of("another"));
    let built = fixture.built();
    assert_eq!(fixture.layer(&built, 0), ["x"]);
    assert_eq!(locked(&fixture.lock).urls.len(), 1, "the Dockerfile says it, so the lock need not");
    checked(Digest::of("wrong"));
    assert!(
        matches!(&fixture.fails(), BuildError::Step { cause, .. } if matches!(**cause, StepError::OtherFile { by: "--checksum", .. }))
    );
    for (line, column) in [
        ("ADD https://example.com/ /x/", 5),
        ("ADD https://user:word@example.com/a /x/", 5),
        ("ADD https://example.com/gone /x/", 5),
        ("ADD git@example.com:a/b /x/", 5),
        ("ADD --checksum=sha256:12 https://example.com/tool /x", 16),
        (&format!("ADD --checksum={} plain /x", Digest::of("p")), 16),
    ] {
        fixture.dockerfile(&format!("FROM scratch\n{line}\n"));
        let error = fixture.fails();
        assert_eq!(error.place().map(|place| (place.line, place.column)), Some((2, column)), "{line}: {error}");
    }
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, "in", &b"x"[..]).expect("appended");
    fixture.write_bytes("a.tar", &builder.into_inner().expect("finished"));
    fixture.dockerfile("FROM scratch\nADD https://example.com/a.tar /x/\nADD --unpack https://example.com/a.tar /y/\n");
    let built = fixture.built();
    assert_eq!(fixture.layer(&built, 0), ["x/", "x/a.tar"]);
    assert_eq!(fixture.layer(&built, 1), ["y/", "y/in"]);
}

#[test]
fn here_documents_become_files_with_their_variables_replaced() {
    let fixture = Fixture::new(
        "FROM scratch\nARG A=1\nCOPY <<f <<\"g\" /etc/\n$A \"q\" \\$A\nf\n$A\ng\nCOPY <<EOF /one\n${A}x\nEOF\n",
        &[],
    );
    let built = fixture.built();
    assert_eq!(fixture.file(&built, 0, "etc/f"), "1 \"q\" $A\n");
    assert_eq!(fixture.file(&built, 0, "etc/g"), "$A\n");
    assert_eq!(fixture.file(&built, 1, "one"), "1x\n");
}
