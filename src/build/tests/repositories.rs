//! ADD of git repositories, which a `git daemon` of this machine's serves.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::error::{BuildError, StepError};
use super::super::git::GitError;
use super::fixture::{Fixture, locked};

/// A repository that is served until this is dropped.
struct Served {
    dir: tempfile::TempDir,
    daemon: Child,
    port: u16,
}

impl Served {
    /// None where this machine has no `git daemon`.
    fn start() -> Option<Self> {
        let able = Command::new("git").args(["daemon", "--help"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let there = Command::new("git").arg("--exec-path").output().ok()?;
        let exec = PathBuf::from(String::from_utf8_lossy(&there.stdout).trim());
        if able.is_err() || !exec.join("git-daemon").exists() {
            eprintln!("SKIPPED: there is no `git daemon`");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let daemon = Command::new(exec.join("git-daemon"))
            .args(["--listen=127.0.0.1", "--export-all", "--reuseaddr", &format!("--port={port}"), "--base-path=."])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let served = Self { dir, daemon, port };
        served.git(&["init", "-q", "-b", "main", "repo"]);
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(served);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the daemon does not listen");
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    fn url(&self) -> String {
        format!("git://127.0.0.1:{}/repo", self.port)
    }

    fn git(&self, args: &[&str]) -> String {
        git(if args[0] == "init" { self.dir.path() } else { Path::new("repo") }, self.dir.path(), args)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        fs::write(path, text).expect("written");
    }

    /// Commits all that is there: the commit's name.
    fn commit(&self) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", "one more"]);
        self.git(&["rev-parse", "HEAD"])
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn git(dir: &Path, below: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "safe.directory=*"])
        .args(args)
        .current_dir(below.join(dir))
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn cause(error: &BuildError) -> &GitError {
    let BuildError::Step { cause, .. } = error else { panic!("{error}") };
    let StepError::Git(error) = &**cause else { panic!("{cause:?}") };
    error
}

#[test]
fn a_repository_is_a_commit_that_the_lock_says() {
    let Some(served) = Served::start() else { return };
    let url = served.url();
    served.write("read me", "first");
    served.write("src/deep/code", "x");
    served.write("src/run", "#!");
    // What a checkout would do because of these, a build does not.
    served.write(".gitattributes", "* text eol=crlf filter=evil export-subst\nsrc export-ignore\n");
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(served.work().join("src/run"), fs::Permissions::from_mode(0o755)).expect("a mode");
    std::os::unix::fs::symlink("../../../etc/passwd", served.work().join("src/link")).expect("linked");
    let first = served.commit();
    served.git(&["tag", "-a", "-m", "a tag with a text", "v1"]);

    let dockerfile = format!("FROM scratch\nADD {url} /all\nADD --chown=3:4 {url}#v1:src /src/\n");
    let fixture = Fixture::new(&dockerfile, &[]);
    let built = fixture.built();
    assert_eq!(
        fixture.modes(&built, 0),
        [
            "all/ 755",
            "all/.gitattributes 644",
            "all/read me 644",
            "all/src/ 755",
            "all/src/deep/ 755",
            "all/src/deep/code 644",
            "all/src/link 777",
            "all/src/run 755"
        ]
    );
    assert_eq!(fixture.layer(&built, 1), ["src/", "src/deep/", "src/deep/code", "src/link", "src/run"]);
    assert_eq!(fixture.file(&built, 0, "all/read me"), "first");
    let pinned = |fixture: &Fixture| -> Vec<(String, String)> {
        let lock = locked(&fixture.lock);
        lock.repositories.iter().map(|(key, commit)| (key.to_string(), commit.to_string())).collect()
    };
    assert_eq!(pinned(&fixture), [(url.clone(), first.clone()), (format!("{url}#v1"), first.clone())]);

    // The branch moves on, and the lock does not.
    served.write("read me", "second");
    let second = served.commit();
    fixture.offline(true);
    fixture.locked(true);
    assert_eq!((fixture.built().image, fixture.built().steps.cached), (built.image.clone(), 2));
    let elsewhere = Fixture::new(&dockerfile, &[]);
    *locked(&elsewhere.lock) = locked(&fixture.lock).clone();
    elsewhere.offline(true);
    let error = elsewhere.fails();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(source.contains(&format!("find commit {first}")) && error.registry().is_some(), "{source}");
    elsewhere.offline(false);
    elsewhere.locked(true);
    assert_eq!(elsewhere.built().image, built.image, "another machine gets the same commit");
    locked(&elsewhere.lock).repositories.clear();
    assert!(elsewhere.fails().is_locked_mismatch());

    // A commit needs no lock; a checksum is one, or its beginning.
    let add = |flags: &str, what: &str| {
        elsewhere.dockerfile(&format!("FROM scratch\nADD {flags} {url}#{what} /all\n"));
        elsewhere.build()
    };
    elsewhere.locked(false);
    let built = add("", &second).expect("built");
    assert_eq!(elsewhere.file(&built, 0, "all/read me"), "second");
    add(&format!("--checksum={}", &first[..9]), "v1").expect("built");
    assert_eq!(pinned(&elsewhere).len(), 1);
    let error = add(&format!("--checksum={second}"), &first).expect_err("another commit");
    assert_eq!(error.place().map(|place| place.column), Some(57), "{error}");
    for flags in ["--checksum=12", "--checksum=sha256:00"] {
        assert!(matches!(add(flags, "v1"), Err(BuildError::Dockerfile(_))), "{flags}");
    }
}

#[test]
fn a_repository_can_be_kept_as_one() {
    let Some(served) = Served::start() else { return };
    served.write("a", &"text ".repeat(20_000));
    served.write("d/b", "b");
    served.commit();
    served.write("a", "shorter");
    let commit = served.commit();
    let fixture = Fixture::new(&format!("FROM scratch\nADD --keep-git-dir=true {} /r\n", served.url()), &[]);
    let built = fixture.built();
    let out = fixture.place().join("out");
    let (blob, _) = fixture.store.open_blob(&built.image.layers[0].digest).expect("stored");
    tar::Archive::new(flate2::read::MultiGzDecoder::new(blob)).unpack(&out).expect("unpacked");
    let in_it = |args: &[&str]| git(Path::new("out/r"), fixture.place(), args);
    assert_eq!(in_it(&["rev-parse", "HEAD"]), commit);
    assert_eq!(in_it(&["status", "--porcelain"]), "", "nothing differs from the commit");
    assert_eq!(in_it(&["rev-list", "--count", "HEAD"]), "1", "its history is not there");
    in_it(&["fsck", "--full", "--strict"]);
    assert_eq!(fs::read_to_string(out.join("r/a")).expect("there"), "shorter");
    let other = Fixture::new(&format!("FROM scratch\nADD --keep-git-dir=true {}#{commit} /r\n", served.url()), &[]);
    assert_eq!(other.built().image.layers, built.image.layers);
    fixture.dockerfile(&format!("FROM scratch\nADD --keep-git-dir=true {}#main:d /r\n", served.url()));
    assert!(matches!(fixture.fails(), BuildError::Dockerfile(_)));
}

#[test]
fn repositories_that_mean_harm_are_refused() {
    let Some(served) = Served::start() else { return };
    served.write("a", "a");
    let first = served.commit();
    let blob = served.git(&["rev-parse", "HEAD:a"]);
    let fixture = Fixture::new("FROM scratch\n", &[]);
    let add = |what: &str| {
        fixture.dockerfile(&format!("FROM scratch\nADD {}#{what} /r\n", served.url()));
        fixture.fails()
    };
    // Trees that git itself would not check out.
    let tree = |entries: &str| {
        let path = served.dir.path().join("entries");
        fs::write(&path, entries).expect("written");
        let made = Command::new("git")
            .args(["mktree", "-z", "--missing"])
            .current_dir(served.work())
            .stdin(fs::File::open(&path).expect("opened"))
            .output()
            .expect("git");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8_lossy(&made.stdout).trim().to_owned()
    };
    let commit = |tree: &str, branch: &str| {
        let commit = served.git(&["commit-tree", "-m", "evil", tree]);
        served.git(&["update-ref", &format!("refs/heads/{branch}"), &commit]);
    };
    for (branch, name) in [("up", ".."), ("here", "."), ("git", ".git"), ("loud", ".GIT")] {
        commit(&tree(&format!("100644 blob {blob}\t{name}\0")), branch);
        assert!(matches!(cause(&add(branch)), GitError::Name { .. }), "{name}");
    }
    commit(&tree(&format!("160000 commit {first}\tsub\0")), "module");
    assert!(matches!(cause(&add("module")), GitError::Submodule { path } if path == "sub"));
    // A tree of trees of trees: 10^7 files in eight objects.
    let mut one = tree(&format!("100644 blob {blob}\tf\0"));
    for _ in 0..7 {
        let ten: String = (0..10).map(|number| format!("040000 tree {one}\t{number}\0")).collect();
        one = tree(&ten);
    }
    commit(&one, "bomb");
    assert!(matches!(cause(&add("bomb")), GitError::TooLarge { .. }));
    for (what, due) in [("gone", "NoReference"), ("main:gone", "NoDirectory"), ("main:a", "NoDirectory")] {
        let error = add(what);
        assert!(format!("{:?}", cause(&error)).starts_with(due), "{what}: {error:?}");
        assert_eq!(error.place().map(|place| (place.line, place.column)), Some((2, 5)));
    }
    let missing = "1".repeat(40);
    assert!(matches!(cause(&add(&missing)), GitError::Failed { .. }));
    assert_eq!(fs::read_dir(fixture.place()).expect("listed").count(), 3, "context, Dockerfile and store");
}
