//! By whomever and wherever a project is built, its image is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::project::{Project, has, project, run, with_program};
use crate::{CHILD, COLLECT};

pub(crate) fn two_clones_give_the_same_image() {
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

pub(crate) fn whoever_builds_the_image_is_the_same() {
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
        // Its listener is handed over by who is nobody on this machine.
        "RUN --network=record stat -c '%n %a %u %g' /run/jiji/* > /proxy; ! wget -q -T 9 -O - http://a.test/ 2>> /proxy\n",
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

pub(crate) fn what_only_root_can_do_is_refused_to_others() {
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
