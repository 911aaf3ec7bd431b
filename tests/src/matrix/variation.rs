//! What is varied: real changes of the builder's world. Each but the last ones is a build in a store that has nothing yet.

use std::ffi::OsString;
use std::time::Duration;

use super::places::{Arrival, Conditions, Files, LIMIT, Person};
use super::{Cell, Subject, built};
use crate::{Outcome, Run, Running};

/// One way in which a build may differ.
pub struct Variation {
    /// What the table calls it.
    pub name: &'static str,
    /// What is otherwise.
    pub what: &'static str,
    how: How,
}

enum How {
    /// A build in a store of its own, under these conditions.
    Under(fn() -> Outcome<Conditions>),
    /// Something else.
    By(fn(&Subject<'_>) -> Outcome<Cell>),
}

impl Variation {
    /// Builds a project so.
    ///
    /// # Errors
    /// When it does not build, or something else goes wrong.
    pub fn build(&self, subject: &Subject<'_>) -> Outcome<Cell> {
        match self.how {
            How::Under(conditions) => subject.build_under(self.name, &conditions()?),
            How::By(how) => how(subject),
        }
    }
}

const fn under(name: &'static str, what: &'static str, conditions: fn() -> Outcome<Conditions>) -> Variation {
    Variation { name, what, how: How::Under(conditions) }
}

const fn by(name: &'static str, what: &'static str, how: fn(&Subject<'_>) -> Outcome<Cell>) -> Variation {
    Variation { name, what, how: How::By(how) }
}

/// All of them.
pub const VARIATIONS: [Variation; 30] = [
    under("folder", "the checkout and the store in folders with long names, blanks and letters beyond ASCII", folder),
    under("host-name", "another name of the machine and of its domain", host_name),
    under("clock", "jiji's clock five years ahead, by a library that it loads; steps have the machine's", clock),
    under("file-times", "every file and directory of 2001, links as well", file_times),
    under("umask", "umask 077 for the checkout and the build", umask),
    under("modes", "files 0664, directories 02775, all of another owner", modes),
    under("read-only", "files 0400 or 0500, directories 0500", read_only),
    under("locale", "Turkish, Chatham's time zone, another user name and terminal", locale),
    under("noise", "a thousand variables, among them those that compilers, pip, npm, make and git listen to", noise),
    under("home", "HOME in another folder, XDG_CACHE_HOME elsewhere than below it", home),
    under("one-processor", "one processor instead of two", one_processor),
    under("limits", "256 open files, a stack of 1 MiB, core dumps", limits),
    under("nice", "a low priority while two programs keep both processors busy", nice),
    under("contained", "root without CAP_SYS_ADMIN, in a user namespace", contained),
    under("subordinate-ids", "an ordinary user with subordinate ids", subordinate_ids),
    under("single-id", "an ordinary user without, who has one id", single_id),
    under("tar", "the context unpacked from `git archive`", tar),
    under("copied", "the context copied with cp, which sets times and modes anew", copied),
    under("linked", "the context's files hard links to another checkout's", linked),
    under(
        "tmpfs",
        "context and store in memory, files written in reverse: directories list the other way round",
        tmpfs,
    ),
    under("ext4", "context and store on an ext4 with another seed, so that directories list in another order", ext4),
    under("btrfs", "context and store on btrfs", btrfs),
    under("xfs", "context and store on xfs", xfs),
    under("overlay", "the context on overlayfs", overlay),
    by("killed", "killed with SIGKILL three times on the way, then built in the same store", killed),
    by("side-by-side", "twice at once in one store", side_by_side),
    by("warm", "again from another clone, without a lock, in a store that has all of it", warm),
    by("no-cache", "`--no-cache`: every step again in that store, nothing taken from it", no_cache),
    by("check", "`--check`: every step again on what looks like another machine", check),
    by("offline", "store and lock copied to another folder: `--locked --offline` without any network", offline),
];

fn folder() -> Outcome<Conditions> {
    let long =
        "a folder whose name is as long as a name may sensibly be, with blanks and 'quotes', größer als üblich/日本語";
    let folder = std::path::Path::new(long).join("x".repeat(200)).join("clone");
    Ok(Conditions { folder, home: "h o m e/$HOME/ö".into(), ..Conditions::default() })
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn env(variables: &[(&str, &str)]) -> Vec<(String, OsString)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect()
}

fn host_name() -> Outcome<Conditions> {
    let script = "hostname build-7.example.org; echo example.org > /proc/sys/kernel/domainname; exec \"$@\"";
    Ok(Conditions { words: words(&["unshare", "--uts", "sh", "-c", script, "sh"]), ..Conditions::default() })
}

fn clock() -> Outcome<Conditions> {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    let found = places.map(|place| format!("{place}/faketime/libfaketime.so.1"));
    let library = found.iter().find(|path| std::path::Path::new(path).is_file());
    let library = library.ok_or("libfaketime is not there (Debian: faketime)")?;
    let env = env(&[
        ("LD_PRELOAD", library),
        ("FAKETIME", "+1900d"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]);
    Ok(Conditions { env, ..Conditions::default() })
}

fn file_times() -> Outcome<Conditions> {
    let touch =
        ["find", ".", "-depth", "-exec", "touch", "--no-dereference", "--date=2001-02-03T04:05:06.789", "{}", "+"];
    Ok(Conditions { before: vec![touch.to_vec()], ..Conditions::default() })
}

fn umask() -> Outcome<Conditions> {
    Ok(Conditions { umask: "077", ..Conditions::default() })
}

fn modes() -> Outcome<Conditions> {
    let before = vec![
        vec!["find", ".", "-type", "f", "-perm", "-100", "-exec", "chmod", "775", "{}", "+"],
        vec!["find", ".", "-type", "f", "-not", "-perm", "-100", "-exec", "chmod", "664", "{}", "+"],
        vec!["find", ".", "-type", "d", "-exec", "chmod", "2775", "{}", "+"],
        vec!["chown", "-hR", "4321:1234", "."],
    ];
    Ok(Conditions { umask: "002", before, ..Conditions::default() })
}

fn read_only() -> Outcome<Conditions> {
    let outside_git = |kind, mode| {
        let all = ["find", ".", "-mindepth", "1", "-path", "./.git", "-prune", "-o"];
        all.into_iter().chain(["-type", kind, "-exec", "chmod", mode, "{}", "+"]).collect()
    };
    let before = vec![outside_git("f", "go-rwx,u-w"), outside_git("d", "500")];
    Ok(Conditions { before, ..Conditions::default() })
}

fn locale() -> Outcome<Conditions> {
    let env = env(&[
        ("TZ", "Pacific/Chatham"),
        ("LC_ALL", "tr_TR.UTF-8"),
        ("LANG", "tr_TR.UTF-8"),
        ("LANGUAGE", "tr:de"),
        ("USER", "somebody"),
        ("LOGNAME", "somebody"),
        ("TERM", "xterm-256color"),
        ("COLUMNS", "40"),
    ]);
    Ok(Conditions { env, ..Conditions::default() })
}

fn noise() -> Outcome<Conditions> {
    let mut env = env(&[
        ("CC", "false"),
        ("CFLAGS", "-O0 -g"),
        ("LDFLAGS", "-Wl,--build-id=uuid"),
        ("MAKEFLAGS", "-j8"),
        ("PYTHONHASHSEED", "7"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PIP_NO_COMPILE", "1"),
        ("NODE_OPTIONS", "--no-warnings"),
        ("NPM_CONFIG_OMIT", "dev"),
        ("DEBIAN_FRONTEND", "readline"),
        ("DEBCONF_DEBUG", "developer"),
        ("SOURCE_DATE_EPOCH", "1"),
        ("GIT_DIR", "/nowhere"),
        ("GIT_AUTHOR_DATE", "2001-02-03T04:05:06"),
        ("POSIXLY_CORRECT", "1"),
        ("TMPDIR", "/var/tmp"),
        ("BASH_ENV", "/nowhere"),
        ("ENV", "/nowhere"),
    ]);
    env.extend((0..1000).map(|number| (format!("NOISE_{number}"), "noise ".repeat(number % 20).into())));
    Ok(Conditions { env, ..Conditions::default() })
}

fn home() -> Outcome<Conditions> {
    // The store's folder has to be there for a user, and is made by jiji.
    let env = env(&[("XDG_CACHE_HOME", "/var/tmp/jiji-matrix-cache"), ("XDG_STATE_HOME", "/nowhere/state")]);
    // Where the mount ends with the build, nothing is left of it.
    let script = "mkdir -p /var/tmp/jiji-matrix-cache; mount -t tmpfs -o size=4g store /var/tmp/jiji-matrix-cache; \"$@\"; \
                  code=$?; umount -l /var/tmp/jiji-matrix-cache; rmdir /var/tmp/jiji-matrix-cache; exit $code";
    Ok(Conditions {
        home: "another/home".into(),
        env,
        words: words(&["sh", "-c", script, "sh"]),
        ..Conditions::default()
    })
}

fn one_processor() -> Outcome<Conditions> {
    Ok(Conditions { words: words(&["taskset", "--cpu-list", "0"]), ..Conditions::default() })
}

fn limits() -> Outcome<Conditions> {
    let script = "ulimit -n 256; ulimit -s 1024; ulimit -c unlimited; exec \"$@\"";
    Ok(Conditions { words: words(&["sh", "-c", script, "sh"]), ..Conditions::default() })
}

fn nice() -> Outcome<Conditions> {
    // The shell's children end with it: each looks whether it is still there.
    let script = "for each in 1 2; do (while kill -0 $$ 2>/dev/null; do :; done) & done; nice -n 5 \"$@\"; code=$?; \
                  kill $(jobs -p); exit $code";
    Ok(Conditions { words: words(&["bash", "-c", script, "bash"]), ..Conditions::default() })
}

fn contained() -> Outcome<Conditions> {
    Ok(Conditions { person: Person::Contained, ..Conditions::default() })
}

fn subordinate_ids() -> Outcome<Conditions> {
    Ok(Conditions { person: Person::Stranger, ..Conditions::default() })
}

fn single_id() -> Outcome<Conditions> {
    Ok(Conditions { person: Person::Alone, ..Conditions::default() })
}

fn tar() -> Outcome<Conditions> {
    Ok(Conditions { arrival: Arrival::Tar, ..Conditions::default() })
}

fn copied() -> Outcome<Conditions> {
    Ok(Conditions { arrival: Arrival::Copied, umask: "027", ..Conditions::default() })
}

fn linked() -> Outcome<Conditions> {
    Ok(Conditions { arrival: Arrival::Linked, ..Conditions::default() })
}

fn tmpfs() -> Outcome<Conditions> {
    Ok(Conditions { files: Files::Memory, arrival: Arrival::Backwards, ..Conditions::default() })
}

fn ext4() -> Outcome<Conditions> {
    let args = &["-q", "-F", "-E", "hash_seed=12345678-1234-4321-8765-0123456789ab"];
    Ok(Conditions { files: Files::Made("mkfs.ext4", args), ..Conditions::default() })
}

fn btrfs() -> Outcome<Conditions> {
    Ok(Conditions { files: Files::Made("mkfs.btrfs", &["-q"]), ..Conditions::default() })
}

fn xfs() -> Outcome<Conditions> {
    Ok(Conditions { files: Files::Made("mkfs.xfs", &["-q"]), ..Conditions::default() })
}

fn overlay() -> Outcome<Conditions> {
    Ok(Conditions { files: Files::Overlay, ..Conditions::default() })
}

fn killed(subject: &Subject<'_>) -> Outcome<Cell> {
    let conditions = Conditions::default();
    let room = subject.room("killed", &conditions)?;
    room.arrive(&subject.origin, &conditions)?;
    for part in [0.2, 0.5, 0.8] {
        let mut command = room.jiji(subject.world, &conditions, &["build", "--json"])?;
        let running = Running::start(&mut command)?.within(LIMIT);
        std::thread::sleep(Duration::from_secs_f64(subject.took.as_secs_f64() * part));
        running.kill()?;
    }
    subject.same(&room.build(subject.world, &conditions)?.expect(0)?)
}

fn side_by_side(subject: &Subject<'_>) -> Outcome<Cell> {
    let conditions = Conditions::default();
    let room = subject.room("side-by-side", &conditions)?;
    room.arrive(&subject.origin, &conditions)?;
    let other = room.beside("other");
    other.arrive(&subject.origin, &conditions)?;
    let mut command = other.jiji(subject.world, &conditions, &["build", "--json"])?;
    let running = Running::start(&mut command)?.within(LIMIT);
    let run = room.build(subject.world, &conditions)?.expect(0)?;
    match subject.same(&running.end()?.expect(0)?)? {
        Cell::Same(_) => subject.same(&run),
        other => Ok(other),
    }
}

/// The first one's store and another clone.
fn again(subject: &Subject<'_>, name: &str, args: &[&str]) -> Outcome<Run> {
    let room = subject.first.beside(name);
    let conditions = Conditions { args: words(args), ..Conditions::default() };
    room.arrive(&subject.origin, &conditions)?;
    room.build(subject.world, &conditions)?.expect(0)
}

fn warm(subject: &Subject<'_>) -> Outcome<Cell> {
    let run = again(subject, "warm", &[])?;
    let (_, cached) = built(&run)?;
    if cached == 0 {
        return Err(format!("nothing was taken from the store: {run}").into());
    }
    subject.same(&run)
}

fn no_cache(subject: &Subject<'_>) -> Outcome<Cell> {
    let run = again(subject, "no-cache", &["--no-cache"])?;
    let (_, cached) = built(&run)?;
    if cached != 0 {
        return Err(format!("{cached} steps were taken from the store: {run}").into());
    }
    subject.same(&run)
}

fn check(subject: &Subject<'_>) -> Outcome<Cell> {
    let room = subject.first.beside("check");
    let conditions = Conditions { args: words(&["--check"]), ..Conditions::default() };
    room.arrive(&subject.origin, &conditions)?;
    // It ends with another code where a step is not the same.
    let mut command = room.jiji(subject.world, &conditions, &["build"])?;
    let run = Running::start(&mut command)?.within(LIMIT).end()?.expect(0)?;
    Ok(Cell::Same(run.took))
}

fn offline(subject: &Subject<'_>) -> Outcome<Cell> {
    let nowhere = words(&["unshare", "--net"]);
    let args = words(&["--locked", "--offline"]);
    let conditions = Conditions {
        folder: "elsewhere/again".into(),
        home: "moved".into(),
        words: nowhere,
        args,
        ..Conditions::default()
    };
    let room = subject.room("offline", &conditions)?;
    room.arrive(&subject.origin, &conditions)?;
    room.take_store(&subject.first)?;
    room.take_lock(&subject.first)?;
    subject.same(&room.build(subject.world, &conditions)?.expect(0)?)
}
