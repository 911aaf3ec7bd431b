//! What a step sees, and what of it is in a layer.

use std::fs;

use jiji::build::{BuildRequest, DEFAULT_EPOCH};
use jiji_model::image::{Compression, LAYER_ZSTD};
use jiji_model::name::RepositoryName;
use jiji_store::Store;

use crate::project::{Nowhere, Project, all_layers, file, last_layer, project, run};

pub(crate) fn a_step_sees_the_same_machine_everywhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base\nWORKDIR /srv\nENV ONE=1\nARG TWO=2\n",
        "RUN (hostname; umask; id -u; pwd; echo $ONE$TWO $HOME $TZ $LANG $SOURCE_DATE_EPOCH; nproc; ls /sys/class/net; \\\n",
        "    cat /etc/resolv.conf; stat -c %Y /bin/busybox) > /seen 2>&1\n",
    );
    let project = project(dir.path(), steps);
    let seen = file(&project, &project.built(), "seen");
    assert_eq!(
        seen,
        format!(
            "localhost\n0022\n0\n/srv\n12 /root UTC C.UTF-8 {DEFAULT_EPOCH}\n1\nlo\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n{DEFAULT_EPOCH}\n"
        )
    );
}

pub(crate) fn a_layer_holds_what_a_step_changed_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base\nRUN mkdir -p -m 1777 /tmp /data; mkdir /data/old; touch /data/keep /data/old/x; chown 5:6 /data\n",
        "RUN touch /data/keep; rm -r /data/old; echo a > /tmp/left; ln -s /data /link; ln /tmp/left /data/twin; chmod 2755 /bin\n",
    );
    let project = project(dir.path(), steps);
    let built = project.built();
    assert_eq!(
        last_layer(&project, &built),
        [
            "bin/ 2755 0",
            "data/ 1777 5",
            "data/.wh.old 0 0",
            "data/twin 644 0",
            "link 777 0 -> /data",
            "tmp/ 1777 0",
            "tmp/left 644 0 -> data/twin",
        ]
    );
    let again = project.built();
    assert_eq!((again.image.manifest.digest, again.steps.cached), (built.image.manifest.digest, again.steps.total));
}

pub(crate) fn a_stage_gives_files_to_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base AS made\nRUN mkdir -p /out/sub; echo one > /out/a; echo two > /out/sub/b; chown -R app:app /out; chmod 4711 /out/a; \\\n",
        "    ln -s a /out/link; ln -s /out/sub /short\n",
        "FROM scratch\nCOPY --from=made /out /copied\nCOPY --from=0 --chown=1:2 /etc/pass* /etc/\nCOPY --from=made --chmod=600 /short/b /\n",
    );
    let project = project(dir.path(), steps);
    let built = project.built();
    let names = all_layers(&project, &built);
    assert_eq!(
        names,
        [
            "copied/ 755 7",
            "copied/a 4711 7",
            "copied/link 777 0 -> a",
            "copied/sub/ 755 7",
            "copied/sub/b 644 7",
            "etc/ 755 1",
            "etc/passwd 644 1",
            "b 600 7",
        ]
    );
    assert_eq!(file(&project, &built, "copied/sub/b"), "two\n");
}

pub(crate) fn stages_that_do_not_need_each_other_run_side_by_side() {
    // Each waits for the other's file: neither can end before the other has begun.
    let meet = |own: &str, other: &str| {
        format!(
            "FROM base AS {own}\nRUN --mount=type=cache,target=/met touch /met/{own}; \\\n    for i in $(seq 200); do [ -e /met/{other} ] && echo {own} > /{own} && exit 0; \\\n    sleep 0.1; done; exit 9\n",
        )
    };
    let steps = |first: &str, second: &str| {
        format!(
            "{}{}FROM base AS unused\nRUN --mount=type=cache,target=/met touch /met/unused; exit 8\nFROM scratch\nCOPY --from={first} /{first} /\nCOPY --from={second} /{second} /\n\
             FROM base AS seen\nRUN --mount=type=cache,target=/met ls /met > /seen\n",
            meet("one", "two"),
            meet("two", "one")
        )
    };
    let dir = tempfile::tempdir().expect("a directory");
    let project = project(dir.path(), &steps("one", "two"));
    let built = project.build_stage(Some("4")).expect("built");
    assert_eq!(file(&project, &built, "two"), "two\n");
    let again = project.build_stage(Some("4")).expect("built");
    assert_eq!((again.image.manifest, again.steps.cached), (built.image.manifest, again.steps.total));
    let seen = project.build_stage(Some("seen")).expect("built");
    assert_eq!(file(&project, &seen, "seen"), "one\ntwo\n", "nobody needs the third, so it did not run");
}

pub(crate) fn a_failed_stage_ends_those_that_come_after_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base AS slow\nRUN --mount=type=cache,target=/met touch /met/slow; sleep 300\n",
        "FROM base\nRUN --mount=type=cache,target=/met until [ -e /met/slow ]; do sleep 0.1; done; exit 5\n",
        "COPY --from=slow /etc/passwd /\n",
    );
    let project = project(dir.path(), steps);
    let begun = std::time::Instant::now();
    let error = project.build().expect_err("it fails");
    assert_eq!(error.place().map(|place| place.line), Some(7), "{error}");
    assert!(begun.elapsed().as_secs() < 100, "{:?}", begun.elapsed());
    let sleeps = run("ps", &["-eo", "args"]).lines().filter(|line| line.trim() == "sleep 300").count();
    assert_eq!(sleeps, 0, "nothing of the other stage is left");
}

pub(crate) fn a_cache_that_is_mounted_twice_does_not_wait_for_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let mount = |target: &str| format!("--mount=type=cache,id=one,sharing=locked,target={target}");
    let steps = format!("FROM base\nRUN {} {} touch /a/made; ls /b > /seen\n", mount("/a"), mount("/b"));
    let project = project(dir.path(), &steps);
    assert_eq!(file(&project, &project.built(), "seen"), "made\n");
}

pub(crate) fn what_is_mounted_is_in_no_layer() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base AS made\nRUN mkdir /out; echo made > /out/made\n",
        "FROM base\nWORKDIR /w\n",
        "RUN --mount=target=. --mount=from=made,source=/out,target=/made --mount=type=cache,target=/root/.cache/x,mode=0700 \\\n",
        "    --mount=type=secret,id=token,env=TOKEN --mount=type=secret,id=token,target=/root/token,uid=7 --mount=type=tmpfs,target=/scratch,size=1m \\\n",
        "    (pwd; stat -c '%a %u %Y %n' Dockerfile /root/token; stat -c %a /root/.cache/x; cat /made/made; \\\n",
        "    echo ${#TOKEN} $(wc -c < /root/token); echo x > /root/.cache/x/y; echo x > /scratch/z; touch a 2>&1 || true) > /seen\n",
        "RUN --mount=type=cache,target=/root/.cache/x ls /root/.cache/x > /kept\n",
        "RUN <<script\n#!/bin/sh -e\necho from $0 > /script\nscript\n",
    );
    let project = project(dir.path(), steps);
    let built = project.built();
    let names = all_layers(&project, &built);
    let own: Vec<&String> = names.iter().skip_while(|name| !name.starts_with("w/")).collect();
    assert_eq!(own, ["w/ 755 0", "seen 644 0", "kept 644 0", "script 644 0"]);
    assert_eq!(
        file(&project, &built, "seen"),
        format!(
            "/w\n644 0 {DEFAULT_EPOCH} Dockerfile\n400 7 {DEFAULT_EPOCH} /root/token\n700\nmade\n7 7\ntouch: a: Read-only file system\n"
        )
    );
    assert_eq!(file(&project, &built, "kept"), "y\n");
    assert_eq!(file(&project, &built, "script"), "from /dev/pipes/script\n");
    for layer in &built.image.layers {
        let (mut blob, _) = project.store.open_blob(&layer.digest).expect("stored");
        let mut bytes = Vec::new();
        std::io::copy(&mut flate2::read::MultiGzDecoder::new(&mut blob), &mut bytes).expect("gzip");
        assert!(!bytes.windows(7).any(|window| window == b"hunter2"), "a secret is in a layer");
    }
    let lock = fs::read_to_string(project.root.join("jiji.lock")).expect("a lock");
    assert!(!lock.contains("hunter2"));
}

pub(crate) fn a_base_image_is_pulled_once_and_run_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = project(&dir.path().join("base"), "FROM base\nENV FROM_BASE=yes\nWORKDIR /srv\n");
    let image = base.built().image;

    // A registry that has it under a tag, for as long as the first build takes.
    let registry = jiji_registry_shim::Registry::read_only(base.store.clone());
    let name = RepositoryName::new("made/base").expect("a repository");
    registry.name(&name, &jiji_model::name::TagName::new("1").expect("a tag"), &image.manifest.digest).expect("named");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let authority = listener.local_addr().expect("an address").to_string();
    let server = runtime.spawn(jiji_registry_shim::serve(listener, registry, std::future::pending()));
    let client = jiji::registry::Client::new(jiji::registry::Setup::default());
    let sources = jiji::build::Registries::new(&client, runtime.handle().clone());

    let root = dir.path().join("project");
    fs::create_dir(&root).expect("created");
    fs::write(root.join("Dockerfile"), format!("FROM {authority}/made/base:1\nCOPY text .\nRUN wc -c text > size\n"))
        .expect("written");
    fs::write(root.join("text"), "four").expect("written");
    let project = Project { root, store: Store::open(dir.path().join("own store")).expect("a store") };
    let built = project.build_from(&sources).expect("built");
    assert_eq!(file(&project, &built, "srv/size"), "4 text\n");
    assert_eq!(built.image.layers[..image.layers.len()], image.layers[..]);
    let lock = fs::read_to_string(project.root.join("jiji.lock")).expect("a lock");
    assert!(lock.contains(&format!("digest = \"{}\"", image.manifest.digest)), "{lock}");

    // After that the network is not needed for anything.
    server.abort();
    fs::write(project.root.join("text"), "sixsix").expect("written");
    let again = project.build_from(&sources).expect("built without the registry");
    assert_eq!(file(&project, &again, "srv/size"), "6 text\n");
}

pub(crate) fn a_failed_step_says_where_and_what_it_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let project =
        project(dir.path(), "FROM base\nRUN echo before; echo \"wget: bad address 'example.com'\" >&2; exit 7\n");
    let error = project.build().expect_err("it fails");
    let place = error.place().expect("a place");
    assert_eq!((place.line, place.column, place.file.as_str()), (5, 1, "Dockerfile"));
    assert_eq!(error.evidence().first().map(String::as_str), Some("before"), "{:?}", error.evidence());
    let source = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(source.ends_with("it exited with 7"), "{source}");
    assert!(error.hint().is_some_and(|hint| hint.contains("RUN --network=default")), "{:?}", error.evidence());
}

/// A run in layers of zstd: what is written so is read again, by steps and by copies.
pub(crate) fn steps_run_in_layers_of_zstd() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base AS made\nRUN seq 1 300000 > /numbers; echo it > /small\nRUN busybox wc -l /numbers > /count\n",
        "FROM base\nCOPY --from=made /numbers /count /\nRUN busybox tail -n 1 /numbers >> /count\n",
    );
    let project = project(dir.path(), steps);
    let request = BuildRequest { compression: Compression::Zstd, ..project.request() };
    let built = project.build_as(&request, &Nowhere).unwrap_or_else(|error| panic!("{error}: {:?}", error.evidence()));
    assert_eq!(file(&project, &built, "count"), "300000 /numbers\n300000\n");
    assert!(built.image.layers.iter().all(|layer| layer.media_type == LAYER_ZSTD), "{:?}", built.image.layers);
    // Another store, in which they are made as gzip and compressed otherwise: the same bytes.
    let other = Project { root: project.root.clone(), store: Store::open(dir.path().join("other")).expect("a store") };
    let gzip = other.built();
    let zstd = other.build_as(&request, &Nowhere).expect("built");
    assert_eq!((&zstd.image, zstd.steps.cached), (&built.image, zstd.steps.total));
    assert_eq!(gzip.image.config, zstd.image.config);
    assert_eq!(jiji::build::verify::verify(&other.store).expect("verified").damaged, []);
}
