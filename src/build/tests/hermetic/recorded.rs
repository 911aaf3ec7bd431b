//! Steps that are recorded: this machine's curl and pip behind the proxy, with a web that is the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use jiji::build::{Answer, Asking, BuildError, BuildRequest, Built, Sources};
use jiji::lockfile::LockFile;
use jiji::registry::{Depth, RegistryError};
use jiji_model::digest::Digest;
use jiji_model::image::{Image, Platform};
use jiji_model::reference::Reference;
use jiji_store::Store;

use crate::project::{Nowhere, Project, all_layers, file, project, run, with_libraries, with_program};

/// A status, a kind, and a body or where it is instead.
type Page = (u16, &'static str, Vec<u8>);

/// What URLs have, until it is away.
#[derive(Default)]
struct Web {
    pages: Mutex<BTreeMap<String, Page>>,
    asked: Mutex<Vec<String>>,
    away: AtomicBool,
}

impl Web {
    fn says(&self, url: &str, kind: &'static str, body: &[u8]) {
        self.pages.lock().expect("nobody panicked").insert(url.to_owned(), (200, kind, body.to_vec()));
    }

    fn moves(&self, url: &str, to: &str) {
        self.pages.lock().expect("nobody panicked").insert(url.to_owned(), (302, "", to.as_bytes().to_vec()));
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().expect("nobody panicked"));
        asked.sort();
        asked
    }

    fn is_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }
}

impl Sources for Web {
    fn reachable(&self, what: &dyn Fn() -> String) -> Result<(), RegistryError> {
        if self.away.load(Ordering::Relaxed) { Err(RegistryError::Offline { what: what() }) } else { Ok(()) }
    }

    fn fetch(&self, url: &str, store: &Store) -> Result<(Digest, u64), RegistryError> {
        Nowhere.fetch(url, store)
    }

    fn ask(&self, asking: &Asking<'_>, store: &Store) -> Result<Answer, RegistryError> {
        self.asked.lock().expect("nobody panicked").push(asking.url.to_owned());
        let page = self.pages.lock().expect("nobody panicked").get(asking.url).cloned();
        let Some((status, kind, body)) = page else {
            return Ok(Answer { status: 404, kind: None, location: None, body: None });
        };
        if status == 302 {
            let location = Some(String::from_utf8_lossy(&body).into_owned());
            return Ok(Answer { status, kind: None, location, body: None });
        }
        let body = Some((store.put(&body)?, body.len() as u64));
        Ok(Answer { status, kind: Some(kind.to_owned()), location: None, body })
    }

    fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Digest, RegistryError> {
        Nowhere.resolve(reference, platform)
    }

    fn pull(
        &self,
        reference: &Reference,
        digest: &Digest,
        platform: &Platform,
        store: &Store,
        depth: Depth,
    ) -> Result<Image, RegistryError> {
        Nowhere.pull(reference, digest, platform, store, depth)
    }
}

/// The same project with a store that knows nothing.
fn elsewhere(project: &Project, dir: &Path, name: &str) -> Project {
    Project { root: project.root.clone(), store: Store::open(dir.join(name)).expect("a store") }
}

fn build(project: &Project, request: &BuildRequest, web: &Web) -> Built {
    project.build_as(request, web).unwrap_or_else(|error| panic!("{error}: {:?}", error.evidence()))
}

fn dockerfile(project: &Project, steps: &str) {
    let text = fs::read_to_string(project.root.join("Dockerfile")).expect("read");
    let (base, _) = text.split_once("FROM base").expect("a base");
    fs::write(project.root.join("Dockerfile"), format!("{base}FROM base\n{steps}")).expect("written");
}

pub(crate) fn a_recorded_step_gets_the_same_from_then_on() {
    const STEPS: &str = "RUN --network=record curl -sSfL -o /got https://files.test/moved && wget -q -O /plain http://files.test:8080/plain; \\\n\
        curl -sf https://files.test/none || echo none >> /got; curl -sf -d x https://files.test/post || echo post >> /got; \\\n\
        curl -s https://files.test/again > /dev/null & curl -s https://files.test/again > /dev/null; wait; \\\n\
        for i in $(seq 30); do sleep 1 | nc 127.0.0.1 3128 > /dev/null & done; printf 'no request\\r\\n\\r\\n' | nc 127.0.0.1 3128 > /said; wait; grep -q ' 400 ' /said; \\\n\
        test -s /run/jiji/ca.pem && ! curl -sf --noproxy '*' http://127.0.0.1:1/\n\
        RUN cat /got > /copy; env > /env; ! ls /run/jiji; ! wget -q -T 1 -O - http://files.test:8080/plain\n";
    if !Path::new("/usr/bin/curl").exists() {
        eprintln!("SKIPPED: curl is not there");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let first = project(dir.path(), "FROM base\n");
    with_program(&first, "/usr/bin/curl");
    dockerfile(&first, STEPS);
    let web = Web::default();
    web.moves("https://files.test/moved", "https://other.test/file");
    web.says("https://other.test/file", "text/plain", b"a file\n");
    web.says("https://files.test/again", "text/plain", b"again\n");
    web.says("http://files.test:8080/plain", "text/plain", b"in the open\n");
    let built = build(&first, &first.request(), &web);
    let due = [
        "http://files.test:8080/plain",
        "https://files.test/again",
        "https://files.test/moved",
        "https://files.test/none",
        "https://other.test/file",
    ];
    assert_eq!(web.asked(), due, "each once, and nothing is posted");
    assert_eq!(file(&first, &built, "copy"), "a file\nnone\npost\n");
    assert_eq!(file(&first, &built, "plain"), "in the open\n");
    let lock = LockFile::of_project(&first.root).read().expect("a lock").build;
    let said: Vec<_> = lock.recorded.iter().map(|(asked, said)| (asked.url.as_str(), said.status)).collect();
    assert_eq!(said, [(due[0], 200), (due[1], 200), (due[2], 302), (due[3], 404), (due[4], 200)]);
    let env = file(&first, &built, "env");
    assert!(!env.contains("3128") && !env.contains("ca.pem"), "{env}");
    let names = all_layers(&first, &built);
    assert!(!names.iter().any(|name| name.starts_with("run") || name.contains("jiji")), "{names:?}");

    // Something below changed: it is done again, without the network.
    let text = fs::read_to_string(first.root.join("Dockerfile")).expect("read");
    dockerfile(&first, &format!("RUN echo below > /below\n{STEPS}"));
    web.is_away(true);
    let other = build(&first, &first.request(), &web);
    assert_eq!((file(&first, &other, "copy").as_str(), web.asked().len()), ("a file\nnone\npost\n", 0));
    fs::write(first.root.join("Dockerfile"), text).expect("written");
    build(&first, &first.request(), &web);
    web.is_away(false);

    // Another machine gets what the lock says, as long as it is still there.
    let locked = BuildRequest { locked: true, ..first.request() };
    let second = elsewhere(&first, dir.path(), "second");
    assert_eq!(build(&second, &locked, &web).image.manifest, built.image.manifest);
    assert_eq!(web.asked(), [due[0], due[1], due[4]], "where something is or is not, the lock says");
    web.says("https://other.test/file", "text/plain", b"another\n");
    let error = elsewhere(&first, dir.path(), "third").build_as(&locked, &web).expect_err("it is another");
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("https://other.test/file"), "{error}: {cause}");

    // Who has the store and no lock learns what it says there.
    fs::remove_file(first.root.join("jiji.lock")).expect("removed");
    web.is_away(true);
    assert_eq!(build(&first, &first.request(), &web).image.manifest, built.image.manifest);
    assert_eq!(LockFile::of_project(&first.root).read().expect("a lock").build.recorded, lock.recorded);
    web.is_away(false);

    // What the lock does not say is not asked for.
    web.asked();
    dockerfile(&first, "RUN --network=record curl -sf https://files.test/new || true\n");
    let error: BuildError = first.build_as(&locked, &web).expect_err("it is not locked");
    assert!(error.is_locked_mismatch() && web.asked().is_empty(), "{error}");
    build(&first, &first.request(), &web);
    let fresh = elsewhere(&first, dir.path(), "fourth");
    web.is_away(true);
    dockerfile(&first, "RUN --network=record curl -sf https://files.test/newer || true\n");
    let error = fresh.build_as(&first.request(), &web).expect_err("nobody may be asked");
    assert!(error.registry().is_some_and(|error| matches!(error, RegistryError::Offline { .. })), "{error}");
}

pub(crate) fn pip_installs_the_same_from_a_recording() {
    const PYTHON: &str = "/usr/bin/python3.11";
    const HOME: &str = "/usr/lib/python3.11";
    let pip = Command::new("python3").args(["-c", "import pip; print(pip.__path__[0])"]).output();
    let pip = pip.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let Some(pip) = pip.filter(|_| Path::new(PYTHON).exists()) else {
        eprintln!("SKIPPED: Debian's python3.11 or pip is not there");
        return;
    };
    let pip = String::from_utf8(pip).expect("a path");
    let dir = tempfile::tempdir().expect("a directory");
    let first = project(dir.path(), "FROM base\n");
    let modules = run("find", &[&format!("{HOME}/lib-dynload"), "-name", "*.so"]);
    with_program(&first, PYTHON);
    modules.lines().for_each(|module| with_libraries(&first, module));
    let to = |path: &str| first.root.join("base").join(path).display().to_string();
    fs::create_dir_all(first.root.join("base/usr/lib")).expect("created");
    fs::create_dir_all(first.root.join("base/pip")).expect("created");
    run("cp", &["-r", HOME, &to("usr/lib")]);
    run("cp", &["-r", pip.trim(), &to("pip")]);
    let wheel = dir.path().join("demo-1.0-py3-none-any.whl");
    let make = "import sys, zipfile\nwith zipfile.ZipFile(sys.argv[1], 'w') as wheel:\n \
                for name, text in [('demo.py', 'print(1)\\n'), ('demo-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: demo\\nVersion: 1.0\\n'), \
                ('demo-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'), \
                ('demo-1.0.dist-info/RECORD', '')]:\n  wheel.writestr(name, text)\n";
    run("python3", &["-c", make, &wheel.display().to_string()]);
    let steps = "RUN --network=record PYTHONPATH=/pip python3.11 -m pip install --target /site --index-url https://index.test/simple demo && python3.11 /site/demo.py > /ran\n";
    dockerfile(&first, steps);
    let web = Web::default();
    let page = "<!DOCTYPE html><a href=\"https://files.test/demo-1.0-py3-none-any.whl\">demo-1.0-py3-none-any.whl</a>";
    web.says("https://index.test/simple/demo/", "text/html", page.as_bytes());
    web.says(
        "https://files.test/demo-1.0-py3-none-any.whl",
        "application/octet-stream",
        &fs::read(&wheel).expect("read"),
    );
    let built = build(&first, &first.request(), &web);
    assert_eq!(file(&first, &built, "ran"), "1\n");
    let asked = web.asked();
    assert!(asked.contains(&"https://index.test/simple/demo/".to_owned()), "{asked:?}");
    web.is_away(true);
    let again = BuildRequest { renew: true, locked: true, ..first.request() };
    assert_eq!(build(&first, &again, &web).image.manifest, built.image.manifest);
    assert!(web.asked().is_empty(), "it is done again without the network");
}
