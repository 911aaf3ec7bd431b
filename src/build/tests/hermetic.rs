//! Builds with real steps: the same commit gives the same image, wherever and by whomever it is built, and other tools read it.
//!
//! A program of its own, and without a test harness, because a RUN step needs a helper process and this program is it. Needs root and a
//! static busybox; without them it says so and ends well.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test program reports to its terminal")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use jiji::build::execute::{Caretaker, Local};
use jiji::build::{BuildError, BuildRequest, Builder, Built, DEFAULT_EPOCH, ServiceImage, Sources};
use jiji::lockfile::{LockFile, Target};
use jiji::registry::{Depth, RegistryError};
use jiji_model::digest::Digest;
use jiji_model::event::Silent;
use jiji_model::image::{Compression, Image, LAYER_GZIP, LAYER_ZSTD, Platform};
use jiji_model::name::{RepositoryName, ServiceName};
use jiji_model::project::Frontend;
use jiji_model::reference::Reference;
use jiji_model::secret::Secret;
use jiji_store::{Kind, Store};

/// The first argument that makes this program build once and print the manifest's digest.
const CHILD: &str = "__build";

/// The first argument that makes this program remove everything from a store and print what was there and what is left.
const COLLECT: &str = "__collect";

const BUSYBOX: &str = "/bin/busybox";

fn main() -> ExitCode {
    jiji_sandbox::enter_if_requested();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, root, store, umask] = args.as_slice()
        && first == CHILD
    {
        let umask = u32::from_str_radix(umask, 8).expect("a umask");
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
        let store = Store::open_with(store, Arc::new(Caretaker::default())).expect("a store");
        let project = Project { root: root.into(), store };
        match project.build() {
            Ok(built) => println!("{}", built.image.manifest.digest),
            Err(error) => {
                // The outermost names the step, the innermost what went wrong.
                let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
                causes.for_each(|cause| println!("{cause}"));
                println!("{}", error.hint().unwrap_or_default());
            }
        }
        return ExitCode::SUCCESS;
    }
    if let [first, store] = args.as_slice()
        && first == COLLECT
    {
        let store = Store::open_with(store, Arc::new(Caretaker::default())).expect("a store");
        let taken = store.usage().expect("measured");
        let shrunk = store.shrink(0).expect("collected");
        println!("{} {} {}", taken.kinds[&Kind::Tree].count, taken.kinds[&Kind::Cache].count, shrunk.after);
        return ExitCode::SUCCESS;
    }
    if let Err(reason) = able() {
        eprintln!("SKIPPED: {reason}");
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    for (name, test) in [
        ("two_clones_give_the_same_image", two_clones_give_the_same_image as fn()),
        ("a_step_sees_the_same_machine_everywhere", a_step_sees_the_same_machine_everywhere),
        ("a_layer_holds_what_a_step_changed_and_nothing_else", a_layer_holds_what_a_step_changed_and_nothing_else),
        ("a_recipe_gives_the_layers_of_its_dockerfile", a_recipe_gives_the_layers_of_its_dockerfile),
        ("steps_run_in_layers_of_zstd", steps_run_in_layers_of_zstd),
        ("a_recipe_begins_from_another_service", a_recipe_begins_from_another_service),
        ("a_stage_gives_files_to_another", a_stage_gives_files_to_another),
        ("stages_that_do_not_need_each_other_run_side_by_side", stages_that_do_not_need_each_other_run_side_by_side),
        ("a_failed_stage_ends_those_that_come_after_it", a_failed_stage_ends_those_that_come_after_it),
        (
            "a_cache_that_is_mounted_twice_does_not_wait_for_itself",
            a_cache_that_is_mounted_twice_does_not_wait_for_itself,
        ),
        ("what_is_mounted_is_in_no_layer", what_is_mounted_is_in_no_layer),
        ("whoever_builds_the_image_is_the_same", whoever_builds_the_image_is_the_same),
        ("what_only_root_can_do_is_refused_to_others", what_only_root_can_do_is_refused_to_others),
        ("a_base_image_is_pulled_once_and_run_in", a_base_image_is_pulled_once_and_run_in),
        ("a_failed_step_says_where_and_what_it_said", a_failed_step_says_where_and_what_it_said),
        ("a_step_with_the_network_runs_once_and_gives_the_same", a_step_with_the_network_runs_once_and_gives_the_same),
        (
            "another_builder_puts_the_same_files_to_the_same_places",
            another_builder_puts_the_same_files_to_the_same_places,
        ),
        ("other_tools_read_the_image", other_tools_read_the_image),
    ] {
        if filter.is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn able() -> Result<(), String> {
    if !Path::new(BUSYBOX).exists() {
        return Err(format!("{BUSYBOX} is not there (Debian: busybox-static)"));
    }
    let room = tempfile::tempdir().map_err(|error| error.to_string())?;
    match jiji_sandbox::probe(&jiji_sandbox::Sandbox::new(), room.path()) {
        Ok(_) => Ok(()),
        Err(refusal) => Err(format!("{refusal}; {}", refusal.hint())),
    }
}

/// No test here has a base image.
struct Nowhere;

impl Sources for Nowhere {
    fn reachable(&self, _: &dyn Fn() -> String) -> Result<(), RegistryError> {
        Ok(())
    }

    fn fetch(&self, url: &str, _: &Store) -> Result<(Digest, u64), RegistryError> {
        Err(RegistryError::NotFound { registry: "nowhere".to_owned(), what: url.to_owned() })
    }

    fn resolve(&self, reference: &Reference, _: &Platform) -> Result<Digest, RegistryError> {
        Err(RegistryError::NotFound { registry: reference.registry.clone(), what: reference.to_string() })
    }

    fn pull(
        &self,
        reference: &Reference,
        _: &Digest,
        _: &Platform,
        _: &Store,
        _: Depth,
    ) -> Result<Image, RegistryError> {
        Err(RegistryError::NotFound { registry: reference.registry.clone(), what: reference.to_string() })
    }
}

/// The one secret that tests have.
fn secrets() -> BTreeMap<String, Secret> {
    BTreeMap::from([("token".to_owned(), Secret::new("hunter2"))])
}

struct Project {
    root: PathBuf,
    store: Store,
}

fn platform() -> Platform {
    if cfg!(target_arch = "aarch64") { Platform::linux_arm64() } else { Platform::linux_amd64() }
}

impl Project {
    fn build(&self) -> Result<Built, BuildError> {
        self.build_from(&Nowhere)
    }

    fn build_stage(&self, stage: Option<&str>) -> Result<Built, BuildError> {
        self.build_stage_from(stage, &Nowhere)
    }

    fn build_from(&self, sources: &dyn Sources) -> Result<Built, BuildError> {
        self.build_stage_from(None, sources)
    }

    fn build_stage_from(&self, stage: Option<&str>, sources: &dyn Sources) -> Result<Built, BuildError> {
        self.build_as(&BuildRequest { stage: stage.map(str::to_owned), ..self.request() }, sources)
    }

    fn request(&self) -> BuildRequest {
        let target =
            Target { service: ServiceName::new("web").expect("a service"), environment: None, platform: platform() };
        BuildRequest {
            target,
            repository: RepositoryName::new("shop/web").expect("a repository"),
            context: self.root.clone(),
            file: self.root.join("Dockerfile"),
            frontend: Frontend::Dockerfile,
            file_name: "Dockerfile".to_owned(),
            args: Default::default(),
            secrets: secrets(),
            ssh: Default::default(),
            contexts: Default::default(),
            services: Default::default(),
            stage: None,
            platform: platform(),
            epoch: DEFAULT_EPOCH,
            compression: Compression::Gzip,
            locked: false,
            renew: false,
            explain: false,
            threads: 2,
        }
    }

    fn build_as(&self, request: &BuildRequest, sources: &dyn Sources) -> Result<Built, BuildError> {
        let lock_file = LockFile::of_project(&self.root);
        let mut lock = lock_file.read().expect("a lock").build;
        let executor = Local::new(2);
        let builder = Builder { store: &self.store, sources, executor: &executor, events: &Silent };
        let built = builder.build(request, &mut lock)?;
        let changes = jiji::build::Changes::of(&request.target, &lock);
        lock_file.update_build(|section| changes.apply(section)).expect("written");
        Ok(built)
    }

    fn built(&self) -> Built {
        self.build().unwrap_or_else(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            panic!("{error}: {source:?} {:?}", error.evidence())
        })
    }
}

/// A project in `dir` whose base is this machine's busybox.
fn project(dir: &Path, steps: &str) -> Project {
    let root = dir.join("project");
    fs::create_dir_all(root.join("base/bin")).expect("created");
    fs::create_dir_all(root.join("base/etc")).expect("created");
    fs::copy(BUSYBOX, root.join("base/bin/busybox")).expect("copied");
    std::os::unix::fs::symlink("busybox", root.join("base/bin/sh")).expect("linked");
    fs::write(root.join("base/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:7:8:app:/:/bin/sh\n")
        .expect("written");
    fs::write(root.join("base/etc/group"), "root:x:0:\napp:x:8:\n").expect("written");
    let dockerfile = format!("FROM scratch AS base\nCOPY base /\nRUN busybox --install -s /bin\n{steps}");
    fs::write(root.join("Dockerfile"), dockerfile).expect("written");
    Project { root, store: Store::open(dir.join("store")).expect("a store") }
}

fn run(program: &str, args: &[&str]) -> String {
    run_in(Path::new("/"), program, args)
}

fn run_in(dir: &Path, program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("SKIPPED: {program} is not there");
    }
    there
}

fn two_clones_give_the_same_image() {
    if !has("git") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base\nWORKDIR /srv/app\nCOPY --chown=7:8 src ./\n",
        // What a careless step leaves: times, a listing, a file that was only touched, several names, a set-user bit.
        "RUN find /bin /etc /srv -xdev | sort > /list; stat -c '%n %Y %a %u' /srv/app/* > /times; touch /bin/busybox; \\\n",
        "    env | sort > /env; ln /list /srv/list; chmod 4755 /times; mkdir -p /var/cache; nproc > /cpus; rm /etc/group\n",
        "USER app\nCMD [\"sh\", \"-c\", \"cat /list\"]\n",
    );
    let original = project(dir.path(), steps);
    fs::create_dir(original.root.join("src")).expect("created");
    for number in 0..40 {
        fs::write(original.root.join(format!("src/file{number}")), format!("{number}\n").repeat(100)).expect("written");
    }
    let root = original.root.to_str().expect("UTF-8");
    run("git", &["-C", root, "init", "-q"]);
    run("git", &["-C", root, "add", "."]);
    run("git", &["-C", root, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "one"]);

    // One clone as it is, one as different as a checkout can be.
    let program = std::env::current_exe().expect("this program");
    let mut digests = Vec::new();
    for (name, umask, env) in [
        ("one", "022", [("HOME", "/root"), ("TZ", "UTC"), ("LC_ALL", "C"), ("USER", "root")]),
        (
            "somewhere/else entirely",
            "077",
            [("HOME", "/nowhere"), ("TZ", "Asia/Tokyo"), ("LC_ALL", "tr_TR.UTF-8"), ("USER", "x")],
        ),
    ] {
        let clone = dir.path().join(name);
        fs::create_dir_all(clone.parent().expect("a parent")).expect("created");
        let clone = clone.to_str().expect("UTF-8");
        run("sh", &["-c", "umask $1; git clone -q \"$2\" \"$3\"", "sh", umask, root, clone]);
        if umask == "077" {
            run("chown", &["-R", "-h", "12345:6789", clone]);
            run("find", &[clone, "-exec", "touch", "-h", "-d", "2001-02-03 04:05:06", "{}", "+"]);
        }
        let store = dir.path().join(format!("store-{umask}"));
        let mut child = Command::new(&program);
        child.args([CHILD, clone, store.to_str().expect("UTF-8"), umask]).envs(env).current_dir(clone);
        let output = child.output().expect("started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        digests.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let lock = fs::read_to_string(Path::new(clone).join("jiji.lock")).expect("a lock");
        assert_eq!(lock.matches("[[run]]").count(), 2, "{lock}");
    }
    assert_eq!(digests[0], digests[1]);
    println!("manifest of both clones: {}", digests[0]);
}

/// Somebody who builds: the words that a command is begun with to be run by him.
struct Person {
    name: &'static str,
    words: Vec<String>,
}

/// A directory that a user of this test's own can enter, with a copy of this program, and account files in which he is.
struct Room {
    dir: tempfile::TempDir,
}

/// A user whom this machine does not know.
const STRANGER: u32 = 54_321;

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open to others");
        fs::copy(std::env::current_exe().expect("this program"), dir.path().join("program")).expect("copied");
        let passwd = fs::read_to_string("/etc/passwd").expect("accounts");
        let account = format!("{passwd}stranger:x:{STRANGER}:{STRANGER}::/nowhere:/bin/sh\n");
        fs::write(dir.path().join("passwd"), account).expect("written");
        fs::write(dir.path().join("ids"), "stranger:1900000000:65536\n").expect("written");
        fs::write(dir.path().join("no-ids"), "stranger:1900000000:100\n").expect("written");
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// The user, with what is set aside for him in that file and these groups.
    fn stranger(&self, name: &'static str, ids: &str, groups: &str) -> Person {
        let files =
            [(self.path("passwd"), "/etc/passwd"), (self.path(ids), "/etc/subuid"), (self.path(ids), "/etc/subgid")];
        let mounts: String =
            files.iter().map(|(from, to)| format!("touch {to}; mount --bind {from} {to} && ")).collect();
        let script = format!("{mounts}exec setpriv --reuid {STRANGER} --regid {STRANGER} {groups} \"$@\"");
        let words = ["unshare", "-m", "sh", "-c", &script, "sh"];
        Person { name, words: words.map(str::to_owned).to_vec() }
    }

    /// A clone of a project and a store for somebody, and what this program says with these arguments when he runs it.
    fn run(&self, person: &Person, args: &[&str]) -> String {
        let words = person.words.iter().map(String::as_str).chain(["env", "-i"]);
        let path = format!("PATH={}", std::env::var("PATH").expect("a path"));
        let program = self.path("program");
        let words: Vec<&str> = words.chain([path.as_str(), &program]).chain(args.iter().copied()).collect();
        run(words[0], &words[1..])
    }

    fn build(&self, person: &Person, project: &Project) -> String {
        let place = self.path(person.name);
        let (root, store) = (format!("{place}/project"), format!("{place}/store"));
        fs::create_dir(&place).expect("created");
        run("cp", &["-r", project.root.to_str().expect("UTF-8"), &root]);
        run("chown", &["-R", &format!("{STRANGER}:{STRANGER}"), &place]);
        self.run(person, &[CHILD, &root, &store, "022"]).trim().to_owned()
    }
}

/// Puts one of this machine's programs into the base of a project, with the libraries that it loads.
fn with_program(project: &Project, path: &str) {
    let libraries = run("ldd", &[path]);
    let found = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for file in found.chain([path]) {
        let to = project.root.join("base").join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a parent")).expect("created");
        fs::copy(file, to).expect("copied");
    }
}

fn whoever_builds_the_image_is_the_same() {
    let programs = ["/usr/sbin/setcap", "/usr/sbin/getcap", "/usr/sbin/useradd"];
    if ["newuidmap", "newgidmap"].iter().any(|tool| Command::new(tool).output().is_err()) {
        eprintln!("SKIPPED: newuidmap and newgidmap are not there (Debian: uidmap)");
        return;
    }
    let capable = programs.iter().all(|program| Path::new(program).exists());
    if !capable {
        eprintln!("SKIPPED in part: {} are not there (Debian: libcap2-bin, passwd)", programs.join(", "));
    }
    let room = Room::new();
    let capabilities = "RUN set -e; cp /bin/busybox /bin/raw; cp /bin/busybox /opt/bound; setcap cap_net_raw+ep /bin/raw; \\\n\
                            setcap cap_net_bind_service=+eip /opt/bound; chown 9:9 /opt/bound; setcap cap_chown+p /opt/bound\n\
                        RUN set -e; touch /bin/raw; getcap /bin/raw /opt/bound > /caps; useradd -m -u 1234 -G app -s /bin/sh maid; stat -c '%n %a %u %g' /home/* > /homes\n\
                        COPY --from=base /bin/busybox /bin/again\n";
    let steps = [
        "FROM base AS made\nRUN mkdir -p /opt/closed /etc/skel /home; umask 077; echo secret > /opt/closed/file; chown -R 65534:65535 /opt/closed; \\\n",
        "    chmod 700 /opt/closed\n",
        "FROM base\nWORKDIR /srv/app\nCOPY --chown=app:8 src ./\nCOPY --from=made /opt/closed /opt/closed\nRUN mkdir -p /opt /home /tmp; chmod 1777 /tmp\n",
        // Owners, bits, names of one file, links, pipes, what is removed and made again, an attribute that no image has.
        "RUN set -e; echo guest:x:1001:1001::/home/guest:/bin/sh >> /etc/passwd; echo guest:x:1001: >> /etc/group; echo media:x:70:guest >> /etc/group; \\\n",
        "    mkdir /home/guest; chown guest:guest /home/guest; mkdir /data /data/old; echo 1 > /data/old/x; chown -R guest:media /data; \\\n",
        "    echo 2 > /data/two; ln /data/two /srv/two; ln -s ../two /data/old/link; chown -h 3:4 /data/old/link; mkfifo /data/pipe; \\\n",
        "    cp /bin/busybox /bin/own; chmod 6755 /bin/own; chgrp media /data/two; chmod 2775 /data; mkdir /data/inherits; touch /data/heir\n",
        "RUN set -e; rm -r /data/old; mkdir /data/old; echo new > /data/old/y; rm /srv/app/file3; chown guest /srv/app/file1; mv /srv/app/file2 /data/\n",
        "USER guest\n",
        "RUN id > /tmp/who; echo mine > /home/guest/mine; /bin/own id -u > /tmp/own; cat /opt/closed/file > /tmp/not 2>&1; touch /data/no 2>/dev/null; \\\n",
        "    stat -c '%n %a %u %g' /data/* /home/* /opt/* > /tmp/seen; (umask; ulimit -a; hostname; cat /proc/sys/kernel/hostname; ls /sys /dev /proc/sys; nproc) > /tmp/machine\n",
        "USER root\n",
        "RUN --mount=type=cache,target=/cache,uid=7,mode=0750 --mount=type=secret,id=token,uid=7,mode=0400 \\\n",
        "    --mount=type=bind,from=made,source=/opt,target=/made/deep --mount=type=tmpfs,target=/quick \\\n",
        "    stat -c '%n %a %u %g %F' /cache /run/secrets/token /made /made/deep/closed/file /quick /etc/hosts /tmp > /mounts; \\\n",
        "    set -e; touch /cache/x; chown 8:9 /cache/x; chmod 700 /cache; chown 8 /cache; rm -r /home/guest; cat /made/deep/closed/file > /copy\n",
        if capable { capabilities } else { "" },
        "CMD [\"sh\"]\n",
    ];
    let original = project(room.dir.path(), &steps.concat());
    if capable {
        programs.iter().for_each(|program| with_program(&original, program));
    }
    fs::create_dir(original.root.join("src")).expect("created");
    for number in 0..5 {
        fs::write(original.root.join(format!("src/file{number}")), format!("{number}\n")).expect("written");
    }
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let everybody = [
        Person { name: "root", words: words(&["setpriv"]) },
        Person { name: "root-of-a-container", words: words(&["setpriv", "--bounding-set", "-sys_admin"]) },
        room.stranger("somebody", "ids", "--groups 54321,12345"),
    ];
    let mut digests = BTreeMap::new();
    for person in &everybody {
        digests.insert(person.name, room.build(person, &original));
        assert!(digests[person.name].starts_with("sha256:"), "{}: {}", person.name, digests[person.name]);
        let left = room.run(person, &[COLLECT, &format!("{}/store", room.path(person.name))]);
        let (taken, left) = left.trim().rsplit_once(' ').expect("three numbers");
        assert!(taken.ends_with(" 1") && !taken.starts_with('0') && left == "0", "{}: {taken} {left}", person.name);
        let trees = Path::new(&room.path(person.name)).join("store");
        for name in ["trees", "caches", "tmp"] {
            assert_eq!(fs::read_dir(trees.join(name)).expect("listed").count(), 0, "{}: {name}", person.name);
        }
    }
    println!("manifest of everybody's: {digests:?}");
    let distinct: BTreeSet<&String> = digests.values().collect();
    assert_eq!(distinct.len(), 1, "{digests:?}");
}

fn what_only_root_can_do_is_refused_to_others() {
    let room = Room::new();
    let somebody = room.stranger("somebody", "ids", "--clear-groups");
    let alone = room.stranger("alone", "no-ids", &format!("--groups {STRANGER}"));
    let grouped = room.stranger("grouped", "no-ids", "--groups 54321,12345");
    let root = Person { name: "root", words: vec!["setpriv".to_owned()] };
    let mut number = 0;
    let mut said = |person: &Person, steps: &str| {
        number += 1;
        let dir = room.dir.path().join(format!("{number}"));
        let project = project(&dir, &format!("FROM base\n{steps}\n"));
        let said = room.build(person, &project);
        fs::remove_dir_all(room.path(person.name)).expect("removed");
        said
    };
    for (person, steps, expected) in [
        (&somebody, "RUN mknod /null c 1 3 || true", "make a device node"),
        (&somebody, "RUN mkdir /d; chown 70000 /d || true", "give a file to user or group 70000"),
        (&somebody, "RUN chown :70001 /bin || true", "give a file to user or group 70001"),
        (&somebody, "USER 70000\nRUN true", "become user or group 70000"),
        (&somebody, "COPY --chown=70000 base /x\nRUN true", "belongs to user 70000"),
        (&alone, "RUN chown 7 /etc || true", "give a file to user or group 7"),
        (&alone, "USER app\nRUN true", "become user or group 7"),
        (&alone, "COPY --chown=7 base /x\nRUN true", "belongs to user 7"),
    ] {
        let said = said(person, steps);
        assert!(said.contains(expected) && said.contains("build as root"), "{steps}: {said}");
    }
    let refused = said(&grouped, "RUN true");
    assert!(refused.contains("`stranger` has 100 subordinate ids"), "{refused}");
    assert!(refused.contains("usermod --add-subuids"), "{refused}");
    // One user is enough where everything is root's.
    let steps = "RUN mkdir -p /a/b; echo 1 > /a/b/c; ln /a/b/c /d; chmod 4755 /d; chown 0:0 /d; rm -r /etc; mkdir /etc; (id; umask; ls /dev) > /e";
    let digests = [&root, &somebody, &alone].map(|person| said(person, steps));
    assert!(digests.iter().all(|digest| *digest == digests[0] && digest.starts_with("sha256:")), "{digests:?}");
}

/// The text of a file in the last layer that has it.
fn file(project: &Project, built: &Built, name: &str) -> String {
    use std::io::Read as _;
    for layer in built.image.layers.iter().rev() {
        let tar = jiji::build::rootfs::Layers::new(&project.store).open(layer).expect("stored");
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            if entry.path().expect("a path").as_ref() == Path::new(name) {
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                return text;
            }
        }
    }
    panic!("no {name}")
}

/// Names, modes, owners and times in the last layer.
fn last_layer(project: &Project, built: &Built) -> Vec<String> {
    let layer = built.image.layers.last().expect("a layer");
    let (blob, _) = project.store.open_blob(&layer.digest).expect("stored");
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(blob));
    let line = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let entry = entry.expect("an entry");
        let header = entry.header();
        assert_eq!(header.mtime().expect("a time"), DEFAULT_EPOCH);
        let link = entry.link_name_bytes().map(|name| format!(" -> {}", String::from_utf8_lossy(&name)));
        format!(
            "{} {:o} {}{}",
            String::from_utf8_lossy(&entry.path_bytes()),
            header.mode().expect("a mode"),
            header.uid().expect("a user"),
            link.unwrap_or_default()
        )
    };
    archive.entries().expect("a tar").map(line).collect()
}

fn a_step_sees_the_same_machine_everywhere() {
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

fn a_layer_holds_what_a_step_changed_and_nothing_else() {
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

/// The same inputs, steps and layers in both languages.
fn a_recipe_gives_the_layers_of_its_dockerfile() {
    const RECIPE: &str = r#"
[inputs]
system = { path = "base" }
source = { path = "src", exclude = ["*.md"] }

[steps.tools]
on = "system"
run = ["/bin/busybox", "--install", "-s", "/bin"]

[steps.compile]
on = "tools"
see = { "/src" = "source" }
cache = { "/cache" = "words" }
secrets = ["token"]
env = { QUOTE = "it's \"$5\" \\ done" }
dir = "/made"
out = "/made/out"
run = """
mkdir out
tr a-z A-Z < /src/words > out/words
echo "$QUOTE" > out/quote
test "$token" = hunter2
echo scratch > /src/written
date > /cache/when
"""

[[layers]]
name = "words"
from = "compile:/words"
to = "/srv/"
owner = "7:8"
mode = "640"

[[layers]]
from = "compile"
to = "/opt/all"

[image]
on = "tools"
command = ["cat", "/srv/words"]
env = { GREETING = "a b" }
ports = [8080, "53/udp"]
user = "app"
"#;
    let dir = tempfile::tempdir().expect("a directory");
    let project = project(
        dir.path(),
        concat!(
            "FROM scratch AS source\nCOPY --exclude=*.md src/ /\n",
            "FROM base AS compile\nARG QUOTE=it\\'s\\ \\\"\\$5\\\"\\ \\\\\\ done\nWORKDIR /made\n",
            "RUN --mount=type=bind,from=source,target=/src,rw --mount=type=cache,id=words,target=/cache \\\n",
            "    --mount=type=secret,id=token,env=token mkdir out; tr a-z A-Z < /src/words > out/words; echo \"$QUOTE\" > out/quote\n",
            "FROM base\nCOPY --from=compile --chown=7:8 --chmod=640 /made/out/words /srv/\n",
            "COPY --from=compile /made/out /opt/all\n",
            "ENV GREETING=\"a b\"\nUSER app\nEXPOSE 8080 53/udp\nCMD [\"cat\", \"/srv/words\"]\n",
        ),
    );
    fs::create_dir(project.root.join("src")).expect("created");
    fs::write(project.root.join("src/words"), "some words\n").expect("written");
    fs::write(project.root.join("src/README.md"), "not these\n").expect("written");
    fs::write(project.root.join("image.toml"), RECIPE).expect("written");
    let plain = project.built().image;
    let request = BuildRequest {
        file: project.root.join("image.toml"),
        frontend: Frontend::Recipe,
        file_name: "image.toml".to_owned(),
        ..project.request()
    };
    let built = project.build_as(&request, &Nowhere).unwrap_or_else(|error| panic!("{error}: {:?}", error.evidence()));
    assert_eq!(built.image.layers, plain.layers, "the same layers");
    let again = project.build_as(&request, &Nowhere).expect("built");
    assert_eq!((again.image.manifest.digest, again.steps.cached), (built.image.manifest.digest, again.steps.total));

    let dockerfile =
        jiji::build::read(&project.root.join("Dockerfile"), Frontend::Dockerfile, "Dockerfile").expect("read");
    let converted = jiji::build::recipe::from_dockerfile(&dockerfile).expect("a recipe");
    fs::write(project.root.join("converted.toml"), &converted).expect("written");
    let request = BuildRequest { file: project.root.join("converted.toml"), ..request };
    let same = project.build_as(&request, &Nowhere).unwrap_or_else(|error| panic!("{error}\n{converted}"));
    assert_eq!(same.image.layers, plain.layers, "{converted}");

    // A layer changes with what it takes and nothing else.
    let request = BuildRequest { file: project.root.join("image.toml"), ..request };
    fs::write(project.root.join("src/README.md"), "changed\n").expect("written");
    let other = project.build_as(&request, &Nowhere).expect("built");
    assert_eq!(other.image.manifest.digest, built.image.manifest.digest);
}

fn a_recipe_begins_from_another_service() {
    const RECIPE: &str = r#"
[inputs]
tools = { service = "tools" }

[steps.count]
on = "tools"
run = "busybox wc -c /word > /count; echo $WHO >> /count"

[[layers]]
from = "count:/count"
to = "/"

[image]
on = "tools"
"#;
    let dir = tempfile::tempdir().expect("a directory");
    let project = project(dir.path(), "FROM base\nENV WHO=tools\nCOPY word /\n");
    fs::write(project.root.join("word"), "word").expect("written");
    fs::write(project.root.join("image.toml"), RECIPE).expect("written");
    let tools = project.built().image;
    let request = |tools: &Image| BuildRequest {
        file: project.root.join("image.toml"),
        frontend: Frontend::Recipe,
        file_name: "image.toml".to_owned(),
        services: BTreeMap::from([("tools".to_owned(), ServiceImage::Built(tools.clone()))]),
        ..project.request()
    };
    let needed = jiji::build::services(&request(&tools)).expect("read");
    assert_eq!(needed.into_iter().collect::<Vec<_>>(), ["tools"]);
    let build = |request: &BuildRequest| {
        project.build_as(request, &Nowhere).unwrap_or_else(|error| panic!("{error}: {:?}", error.evidence()))
    };
    let built = build(&request(&tools));
    assert_eq!(built.image.layers[..tools.layers.len()], tools.layers[..], "it goes on from there");
    assert_eq!(file(&project, &built, "count"), "4 /word\ntools\n");
    let locked = BuildRequest { locked: true, ..request(&tools) };
    assert_eq!(build(&locked).image, built.image);

    // In zstd as well: what is taken stays as it is, what is made is not.
    let zstd = build(&BuildRequest { compression: Compression::Zstd, ..request(&tools) });
    assert_eq!((zstd.steps.cached, zstd.image.config), (zstd.steps.total, built.image.config));
    let media_types: BTreeSet<&str> = zstd.image.layers.iter().map(|layer| layer.media_type.as_str()).collect();
    assert_eq!(media_types.into_iter().collect::<Vec<_>>(), [LAYER_GZIP, LAYER_ZSTD]);

    fs::write(project.root.join("word"), "words").expect("written");
    let other = build(&request(&project.built().image));
    assert_eq!(file(&project, &other, "count"), "5 /word\ntools\n", "what is made from it is made anew");
    let nowhere = BuildRequest { services: BTreeMap::new(), ..request(&tools) };
    let error = project.build_as(&nowhere, &Nowhere).expect_err("there is no such service");
    assert_eq!(error.place().map(|place| (place.line, place.column)), Some((3, 21)), "{error}");
}

/// A run in layers of zstd: what is written so is read again, by steps and by copies.
fn steps_run_in_layers_of_zstd() {
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

fn a_stage_gives_files_to_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let steps = concat!(
        "FROM base AS made\nRUN mkdir -p /out/sub; echo one > /out/a; echo two > /out/sub/b; chown -R app:app /out; chmod 4711 /out/a; \\\n",
        "    ln -s a /out/link; ln -s /out/sub /short\n",
        "FROM scratch\nCOPY --from=made /out /copied\nCOPY --from=0 --chown=1:2 /etc/pass* /etc/\nCOPY --from=made --chmod=600 /short/b /\n",
    );
    let project = project(dir.path(), steps);
    let built = project.built();
    let mut names = Vec::new();
    for number in 0..built.image.layers.len() {
        let mut image = built.image.clone();
        image.layers.truncate(number + 1);
        names.extend(last_layer(&project, &Built { image, ..built.clone() }));
    }
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

fn stages_that_do_not_need_each_other_run_side_by_side() {
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

fn a_failed_stage_ends_those_that_come_after_it() {
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

fn a_cache_that_is_mounted_twice_does_not_wait_for_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let mount = |target: &str| format!("--mount=type=cache,id=one,sharing=locked,target={target}");
    let steps = format!("FROM base\nRUN {} {} touch /a/made; ls /b > /seen\n", mount("/a"), mount("/b"));
    let project = project(dir.path(), &steps);
    assert_eq!(file(&project, &project.built(), "seen"), "made\n");
}

fn what_is_mounted_is_in_no_layer() {
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
    let mut names = Vec::new();
    for number in 0..built.image.layers.len() {
        let mut image = built.image.clone();
        image.layers.truncate(number + 1);
        names.extend(last_layer(&project, &Built { image, ..built.clone() }));
    }
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

fn a_base_image_is_pulled_once_and_run_in() {
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

fn a_failed_step_says_where_and_what_it_said() {
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

/// A server on this machine that gives everybody one text, until it is dropped. How often it was asked is counted.
struct Server {
    address: std::net::SocketAddr,
    text: Arc<std::sync::Mutex<String>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
}

impl Server {
    fn start(text: &str) -> Self {
        use std::io::{Read as _, Write as _};
        use std::sync::atomic::Ordering;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let text = Arc::new(std::sync::Mutex::new(text.to_owned()));
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (said, count) = (Arc::clone(&text), Arc::clone(&asked));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let body = said.lock().expect("nobody panicked").clone();
                count.fetch_add(1, Ordering::Relaxed);
                let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        Self { address, text, asked }
    }

    fn say(&self, text: &str) {
        *self.text.lock().expect("nobody panicked") = text.to_owned();
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, std::sync::atomic::Ordering::Relaxed)
    }
}

fn a_step_with_the_network_runs_once_and_gives_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start("first");
    let at = server.address;
    let steps = format!(
        "FROM base\nRUN mkdir -p /var/lib/apt/lists; echo base > /var/lib/apt/lists/old; echo base > /var/log.txt\n\
         RUN --network=default wget -q -O /got http://{at}/file && cat /etc/resolv.conf > /dev/null; \\\n\
         mkdir -p /var/log/apt /root/.cache/pip/http /root/.npm/_logs /var/lib/apt/lists/partial; \\\n\
         for f in /var/log/apt/history.log /var/log/dpkg.log /root/.cache/pip/http/a /root/.npm/_logs/l \\\n\
         /var/lib/apt/lists/Release /var/lib/apt/lists/old; do date +%s%N > $f; done\n\
         RUN cat got > copy; ! wget -q -T 1 -O - http://{at}/\n"
    );
    let project = project(dir.path(), &steps);
    let built = project.built();
    assert_eq!(server.asked(), 1, "the step after it has no network");
    assert_eq!(file(&project, &built, "copy"), "first");
    let mut image = built.image.clone();
    image.layers.pop();
    let names = last_layer(&project, &Built { image, ..built.clone() });
    let names: Vec<&str> = names.iter().map(|name| name.split(' ').next().expect("a name")).collect();
    for gone in
        ["var/log/apt/history.log", "var/log/dpkg.log", "root/.cache/pip/", "root/.npm/_logs/", "var/lib/apt/lists/old"]
    {
        assert!(!names.contains(&gone), "{names:?}");
    }
    for kept in ["got", "var/log/apt/", "var/lib/apt/lists/partial/"] {
        assert!(names.contains(&kept), "{names:?}");
    }

    // Another machine with the same lock, of which the store knows nothing: the step runs again and gives the same.
    let other = |name: &str| {
        let store = Store::open(dir.path().join(name)).expect("a store");
        Project { root: project.root.clone(), store }
    };
    let locked = BuildRequest { locked: true, ..project.request() };
    let second = other("second");
    assert_eq!(second.build_as(&locked, &Nowhere).expect("built").image.manifest, built.image.manifest);
    assert_eq!(server.asked(), 1);

    // What is fetched is another now. Who has the layer does not notice; who has not is told, or refused.
    server.say("changed");
    assert_eq!(project.build_as(&locked, &Nowhere).expect("built").image.manifest, built.image.manifest);
    assert_eq!(server.asked(), 0);
    let error = other("third").build_as(&locked, &Nowhere).expect_err("it is refused");
    assert!(error.is_locked_mismatch(), "{error}");
    assert_eq!(error.place().map(|place| place.line), Some(6));
    assert!(error.evidence()[0].contains("what it fetches is another"), "{:?}", error.evidence());
    assert_eq!(server.asked(), 2, "once more, to see what differs");
    let renewed = BuildRequest { renew: true, ..locked.clone() };
    let error = project.build_as(&renewed, &Nowhere).expect_err("it is refused");
    let evidence = error.evidence().join("\n");
    assert!(evidence.contains("/got") && evidence.contains("first") && evidence.contains("changed"), "{evidence}");
    server.asked();

    // The check does it again elsewhere, with the network.
    let here = Local::new(2);
    let builder = Builder { store: &second.store, sources: &Nowhere, executor: &here, events: &Silent };
    let lock = LockFile::of_project(&second.root).read().expect("a lock").build;
    let elsewhere = Local::new(2).elsewhere();
    let conditions =
        jiji::build::Elsewhere { executor: &elsewhere, wait: std::time::Duration::ZERO, today: Vec::new() };
    server.say("first");
    let checked = builder.check(&second.request(), &lock, &conditions).expect("checked");
    assert!(checked.findings.is_empty() && server.asked() == 1, "{:?}", checked.findings);
    server.say("changed");
    let checked = builder.check(&second.request(), &lock, &conditions).expect("checked");
    assert_eq!(checked.findings.len(), 1, "{:?}", checked.findings);

    let third = other("fourth").built().image;
    assert_ne!(third.manifest, built.image.manifest, "without `--locked` the lock says what it gives now");
    assert_eq!(other("third").build_as(&locked, &Nowhere).expect("built").image.manifest, third.manifest);
}

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

fn another_builder_puts_the_same_files_to_the_same_places() {
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

fn other_tools_read_the_image() {
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
