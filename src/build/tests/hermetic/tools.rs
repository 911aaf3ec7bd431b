//! What other tools make of the same project and of the image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiji_model::digest::Digest;
use jiji_store::Store;

use crate::project::{Project, has, project, run, run_in};

/// Every path of an image with its kind, mode, owner, link and content, from the layers of a layout.
fn files(layout: &Path) -> BTreeMap<String, String> {
    use std::io::Read as _;
    let blob = |digest: &str| layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let json =
        |path: PathBuf| -> serde_json::Value { serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON") };
    let index = json(layout.join("index.json"));
    let manifest = json(blob(index["manifests"][0]["digest"].as_str().expect("a digest")));
    let mut files = BTreeMap::new();
    for layer in manifest["layers"].as_array().expect("layers") {
        let file = fs::File::open(blob(layer["digest"].as_str().expect("a digest"))).expect("there");
        let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(file));
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").to_string_lossy().trim_end_matches('/').to_owned();
            let header = entry.header();
            let what = format!(
                "{:?} {:o} {}:{} {:?}",
                header.entry_type(),
                header.mode().expect("a mode") & 0o7777,
                header.uid().expect("a user"),
                header.gid().expect("a group"),
                entry.link_name().expect("a name")
            );
            let mut content = String::new();
            entry.read_to_string(&mut content).expect("text");
            files.insert(path, format!("{what} {content}"));
        }
    }
    files.remove("");
    files
}

pub(crate) fn another_builder_puts_the_same_files_to_the_same_places() {
    if !has("buildah") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("project");
    for (name, text) in [
        ("a", "a"),
        ("b.txt", "b"),
        ("c.txt", "c"),
        ("run", "#!"),
        ("dir/one", "1"),
        ("dir/sub/two", "2"),
        ("dir/sub/deep/three", "3"),
        ("ignored/x", "x"),
        ("ignored/kept", "k"),
        ("logs/one.log", "l"),
        ("logs/deep/two.log", "l"),
        ("logs/deep/other", "o"),
        ("with space", "w"),
        ("over/one", "over"),
        ("over/sub/new", "new"),
    ] {
        fs::create_dir_all(root.join(name).parent().expect("a parent")).expect("created");
        fs::write(root.join(name), text).expect("written");
    }
    std::os::unix::fs::symlink("dir", root.join("to-dir")).expect("linked");
    std::os::unix::fs::symlink("one", root.join("dir/to-one")).expect("linked");
    std::os::unix::fs::symlink("nowhere", root.join("dir/sub/dangling")).expect("linked");
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::write(root.join(".dockerignore"), "ignored/*\n!ignored/kept\n**/*.log\n").expect("written");
    let steps = [
        "COPY a /file",
        "COPY a /dir1/",
        "COPY a b.txt /dir2/",
        "COPY *.txt /dir3/",
        "COPY ?.txt r* /dir4/",
        "COPY dir /dir5",
        "COPY dir/ /dir6/",
        "COPY dir /dir5/inner",
        "COPY over /dir5",
        "COPY over/ /dir5/sub/",
        "COPY to-dir /dir7",
        "COPY --chown=3:4 dir /dir8/x/y",
        "COPY --chmod=751 a /dir9",
        "COPY [\"with space\", \"/dir 10/\"]",
        "COPY a ./rel",
        "WORKDIR /w/x",
        "COPY a ./rel",
        "COPY a rel2/",
        "COPY dir .",
        "COPY ignored /dir11",
        "COPY logs /dir12",
        "COPY a /file",
        "COPY dir/sub/deep/three dir/one ../up/",
        "COPY dir/* /dir14/",
        "COPY . /all/",
        "COPY over/one /dir5/",
    ];
    fs::write(root.join("Dockerfile"), format!("FROM scratch\n{}\n", steps.join("\n"))).expect("written");
    let project = Project { root: root.clone(), store: Store::open(dir.path().join("store")).expect("a store") };
    let built = project.built();
    let ours = dir.path().join("ours");
    project.store.export_layout(&built.image, &ours, None).expect("exported");
    fs::remove_file(root.join("jiji.lock")).ok();

    let place = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let own = ["--root", &place("root"), "--runroot", &place("run"), "--storage-driver", "vfs"].map(str::to_owned);
    let buildah = |args: &[&str]| {
        let args: Vec<&str> = own.iter().map(String::as_str).chain(args.iter().copied()).collect();
        run_in(dir.path(), "buildah", &args)
    };
    buildah(&["bud", "-q", "--isolation", "chroot", "-t", "theirs", root.to_str().expect("UTF-8")]);
    buildah(&["push", "-q", "theirs", &format!("oci:{}", place("theirs"))]);
    let (ours, theirs) = (files(&ours), files(&dir.path().join("theirs")));
    for path in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        if ours.get(path) != theirs.get(path) {
            println!("{path}: {:?} and {:?}", ours.get(path), theirs.get(path));
        }
    }
    assert_eq!(ours, theirs);
    println!("{} paths are the same as buildah's", ours.len());
}

pub(crate) fn other_tools_read_the_image() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base\nRUN echo made > /made; chmod 4755 /made; rm /etc/group; mkdir -m 700 /ü; echo long > /ü/",
        "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\n",
        "EXPOSE 80\nLABEL a=b\nENV GREETING=hello\nCMD [\"sh\", \"-c\", \"echo $GREETING; cat /made; ls /etc\"]\n",
    );
    let project = project(dir.path(), steps);
    let built = project.built();
    let layout = dir.path().join("layout");
    project.store.export_layout(&built.image, &layout, Some("v1")).expect("exported");
    let layout = layout.to_str().expect("UTF-8");
    let image = format!("oci:{layout}:v1");

    if has("skopeo") {
        let seen = run("skopeo", &["inspect", &image]);
        let seen: serde_json::Value = serde_json::from_str(&seen).expect("JSON");
        assert_eq!(seen["Digest"], built.image.manifest.digest.to_string());
        assert_eq!(seen["Labels"]["a"], "b");
        let copy = dir.path().join("copy");
        run("skopeo", &["copy", "-q", &image, &format!("dir:{}", copy.to_str().expect("UTF-8"))]);
        for layer in &built.image.layers {
            assert_eq!(Digest::of(fs::read(copy.join(layer.digest.hex())).expect("copied")), layer.digest);
        }
        println!("skopeo inspect and copy: {}", built.image.manifest.digest);
    }
    if has("umoci") {
        let bundle = dir.path().join("bundle");
        run("umoci", &["unpack", "--image", &format!("{layout}:v1"), bundle.to_str().expect("UTF-8")]);
        assert_eq!(fs::read_to_string(bundle.join("rootfs/made")).expect("unpacked"), "made\n");
        assert!(!bundle.join("rootfs/etc/group").exists(), "the whiteout is one");
        assert_eq!(fs::read_dir(bundle.join("rootfs/ü")).expect("unpacked").count(), 1);
        println!("umoci unpack: ok");
    }
    if has("podman") {
        // Storage of its own, so that the machine's is left alone. It makes a name of the path, so the path is a short one.
        let storage = dir.path().join("podman");
        let place = |name: &str| storage.join(name).to_str().expect("UTF-8").to_owned();
        let (graph, state) = (place("root"), place("run"));
        let own = ["--root", &graph, "--runroot", &state, "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"];
        // And without this machine's control groups, which crun refuses where both versions of them are in use.
        let alone = ["--mount", "sh", "-c", "mount -t tmpfs none /sys/fs/cgroup && exec podman \"$@\"", "podman"];
        let podman = |args: &[&str]| run_in(dir.path(), "unshare", &[&alone[..], &own[..], args].concat());
        let id = podman(&["pull", "-q", "oci:layout:v1"]);
        assert_eq!(id.trim(), built.image.config.digest.hex(), "podman confirms the configuration");
        let limits = ["--ulimit=nofile=1024:4096", "--ulimit=nproc=4096:4096"];
        let said =
            podman(&[&["run", "--rm", "--network=none", "--cgroups=disabled"], &limits[..], &[id.trim()]].concat());
        assert!(said.starts_with("hello\nmade\n") && said.contains("passwd") && !said.contains("group"), "{said}");
        podman(&["rmi", "-f", id.trim()]);
        println!("podman run: ok");
    }
}
