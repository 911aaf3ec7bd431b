//! Builds and their store, without a host: killed builds and collections leave a store that is whole; what does not give the same twice is
//! found and shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiji_e2e::sweep::Lot;
use jiji_e2e::{Outcome, Run, Running, jiji_bin};

const BUSYBOX: &str = "/bin/busybox";

const DEPLOY: &str = "project: small
servers:
  one:
    host: one.invalid
services:
  web:
    build: .
    hosts: [one]
";

/// Copies, steps, a cache, several stages: each kind of thing that the store keeps.
const DOCKERFILE: &str = r#"FROM scratch AS base
COPY base /
FROM base AS made
COPY data /data
RUN --mount=type=cache,target=/cache date > /cache/used; sha256sum /data/* > /sums; cat /data/* /data/* > /twice
FROM base
WORKDIR /srv
COPY --from=made /twice /sums ./
RUN sort sums > sorted
CMD ["/bin/cat", "sorted"]
"#;

/// How many sources there are to draw from.
const VARIANTS: u64 = 3;

/// A project in a directory of its own.
struct Place {
    root: PathBuf,
    home: PathBuf,
    budget: &'static str,
}

impl Place {
    /// A project in `dir/name` that uses the store below `home`.
    fn new(dir: &Path, name: &str, home: &Path) -> Outcome<Self> {
        let root = dir.join(name);
        std::fs::create_dir_all(root.join(".jiji"))?;
        std::fs::create_dir_all(root.join("base/bin"))?;
        std::fs::create_dir_all(root.join("data"))?;
        std::fs::write(root.join(".jiji/deploy.yml"), DEPLOY)?;
        std::fs::write(root.join("Dockerfile"), DOCKERFILE)?;
        std::fs::copy(BUSYBOX, root.join("base/bin/busybox"))
            .map_err(|error| format!("copy {BUSYBOX} (Debian: busybox-static): {error}"))?;
        for name in ["sh", "cat", "date", "sha256sum", "sort"] {
            std::os::unix::fs::symlink("busybox", root.join("base/bin").join(name))?;
        }
        // So little that every build collects at its end.
        Ok(Self { root, home: home.to_owned(), budget: "1MiB" })
    }

    /// Writes the sources of this number.
    fn vary(&self, variant: u64) -> Outcome {
        let mut lot = Lot(variant);
        for file in ["one", "two"] {
            let bytes: Vec<u8> = (0..4_000).flat_map(|_| lot.draw().to_le_bytes()).collect();
            std::fs::write(self.root.join("data").join(file), bytes)?;
        }
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Outcome<Command> {
        let mut command = Command::new(jiji_bin()?);
        command.args(args).current_dir(&self.root).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", &self.home).env("CI", "true");
        command.env("XDG_RUNTIME_DIR", &self.home);
        command.env("JIJI_STORE_BUDGET", self.budget);
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Outcome<Run> {
        Run::of(&mut self.command(args)?)
    }

    /// Builds, and says the image's name.
    fn build(&self) -> Outcome<String> {
        Ok(self.run(&["build"])?.expect(0)?.stdout)
    }

    /// Runs one command after the other until it is told to stop, and kills the last. Every run that ended by itself must have ended
    /// well, and said `due` if something is due.
    fn until(&self, stop: &AtomicBool, args: &[&str], due: Option<&str>, count: &AtomicU32) -> Outcome {
        while !stop.load(Ordering::Relaxed) {
            let mut running = Running::start(&mut self.command(args)?)?;
            while !running.is_over() && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
            }
            if !running.is_over() {
                running.kill()?;
                return Ok(());
            }
            let run = running.end()?.expect(0)?;
            if let Some(due) = due.filter(|due| *due != run.stdout) {
                return Err(format!("`{due}` was due: {run}").into());
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A number from the environment, so that the same can be had again, or more of it.
fn number(name: &str, otherwise: u64) -> Outcome<u64> {
    std::env::var(name).map_or(Ok(otherwise), |text| Ok(text.parse()?))
}

#[test]
fn builds_and_collections_that_are_killed_leave_a_sound_store_and_the_next_build_is_right() -> Outcome {
    let rounds = number("STORE_ROUNDS", 8)?;
    let seed = number("STORE_SEED", SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    println!("seed {seed}, {rounds} rounds (STORE_SEED, STORE_ROUNDS)");
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir()?;

    // What is right: each source built in a store that nobody killed anything in.
    let mut right = BTreeMap::new();
    for variant in 0..VARIANTS {
        let place = Place::new(dir.path(), &format!("right-{variant}"), &dir.path().join(format!("home-{variant}")))?;
        place.vary(variant)?;
        right.insert(variant, place.build()?);
    }

    let home = dir.path().join("home");
    let places = [Place::new(dir.path(), "first", &home)?, Place::new(dir.path(), "second", &home)?];
    let mut lot = Lot(seed);
    let (builds, collections) = (AtomicU32::new(0), AtomicU32::new(0));
    let mut killed = 0;
    for round in 0..rounds {
        let variants = [lot.draw() % VARIANTS, lot.draw() % VARIANTS];
        for (place, variant) in places.iter().zip(variants) {
            place.vary(variant)?;
            if lot.draw().is_multiple_of(2) {
                // Without it a step is found by its key alone.
                std::fs::remove_file(place.root.join("jiji.lock")).or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
            }
        }
        let budget = ["0", "1MiB", "3MiB", "8MiB"][usize::try_from(lot.draw() % 4)?];
        let time = Duration::from_millis(lot.draw() % 2000);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Outcome {
            let (stop, builds, collections) = (&stop, &builds, &collections);
            let mut threads = Vec::new();
            for (place, variant) in places.iter().zip(variants) {
                let due = right[&variant].as_str();
                threads.push(scope.spawn(move || place.until(stop, &["build"], Some(due), builds)));
            }
            let collector = &places[0];
            threads.push(
                scope.spawn(move || collector.until(stop, &["store", "gc", "--budget", budget], None, collections)),
            );
            std::thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
            killed += threads.len();
            for thread in threads {
                thread.join().map_err(|_| "a thread panicked")??;
            }
            Ok(())
        })
        .map_err(|error| format!("seed {seed}, round {round}: {error}"))?;

        let verified = places[0].run(&["store", "verify"])?;
        if verified.code() != Some(0) {
            return Err(format!("seed {seed}, round {round}: {verified}").into());
        }
        let which = usize::try_from(lot.draw() % 2)?;
        assert_eq!(places[which].build()?, right[&variants[which]], "seed {seed}, round {round}");
    }
    println!(
        "{rounds} rounds, {killed} kills at most; {} builds and {} collections ended by themselves; \
         the store was sound after each round and the next builds right",
        builds.load(Ordering::Relaxed),
        collections.load(Ordering::Relaxed),
    );
    Ok(())
}

#[test]
fn a_plain_build_tells_steps_and_what_they_print_apart_and_explains_itself() -> Outcome {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir()?;
    let mut place = Place::new(dir.path(), "plain", &dir.path().join("home"))?;
    place.budget = "none";
    place.vary(0)?;
    let steps = DOCKERFILE.replace("RUN sort sums > sorted", "RUN echo sorting; sort sums > sorted");
    std::fs::write(place.root.join("Dockerfile"), steps)?;
    let plain = ["build", "--progress=plain", "--explain"];
    let first = place.run(&plain)?.expect(0)?;
    for line in [
        "[made 2/2] running RUN --mount=type=cache",
        "[2 3/3] running RUN echo sorting",
        "[2 3/3] | sorting",
        "[2 2/3] COPY --from=made /twice /sums ./",
        "[base 1/1] COPY base /: miss: no build of this image had this step",
    ] {
        assert!(first.stderr.contains(line), "{line}: {first}");
    }
    std::fs::write(place.root.join("data/one"), "another")?;
    let second = place.run(&plain)?.expect(0)?;
    assert!(second.stderr.contains("[base 1/1] COPY base /: hit: it was done before"), "{second}");
    assert!(second.stderr.contains("[made 1/2] COPY data /data: miss: 1 file: `data/one` changed"), "{second}");
    let refused = place.run(&["build", "--progress=tty"])?.expect(2)?;
    assert!(refused.stderr.contains("hint: `--progress=plain` writes one line per event"), "{refused}");
    Ok(())
}

/// Steps of which some do not give the same twice.
const CARELESS: &str = r#"FROM scratch AS base
COPY base /
FROM base
COPY data /data
RUN sha256sum /data/one > /sum
RUN date > /now; echo steady > /steady
RUN date +%Y-%m-%d > /day
RUN cat /now | sha256sum > /of-now
CMD ["/bin/cat", "/now"]
"#;

#[test]
fn a_step_that_reads_the_clock_is_caught_by_check_and_by_locked_and_shown_by_diff() -> Outcome {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir()?;
    let place = Place { budget: "none", ..Place::new(dir.path(), "project", &dir.path().join("home"))? };
    place.vary(0)?;
    let careful = place.run(&["build", "--check"])?.expect(0)?;
    assert!(careful.stdout.contains("steps gave the same twice"), "{careful}");

    std::fs::write(place.root.join("Dockerfile"), CARELESS)?;
    let first = place.run(&["build", "--output", "oci:../first"])?.expect(0)?.stdout;
    let check = place.run(&["build", "--check"])?.expect(18)?;
    assert!(check.stdout.starts_with(first.trim()), "the image that was built is the one that was checked: {check}");
    for due in
        ["1 of 6 steps does not give the same", "Dockerfile:6", "/now: other content", "(time)", "SOURCE_DATE_EPOCH"]
    {
        assert!(check.stdout.contains(due), "`{due}` is due: {check}");
    }
    assert!(!check.stdout.contains("/steady:") && !check.stdout.contains("/of-now"), "one step, one finding: {check}");
    assert!(check.stdout.contains("Dockerfile:7") && check.stdout.contains("may not on another day"), "{check}");
    let json = place.run(&["build", "--check", "--json"])?.expect(18)?;
    let verdict = &json.events_of("build.verdict").next().ok_or("no verdict")?["data"];
    let found = &verdict["findings"];
    assert_eq!((&found[0]["line"], &found[0]["suspected"]), (&6.into(), &false.into()), "{json}");
    assert_eq!((&found[1]["line"], &found[1]["suspected"]), (&7.into(), &true.into()), "{json}");
    assert!(found.as_array().is_some_and(|found| found.len() == 2), "{json}");

    // What is remembered counts, until all of it is gone: then only jiji.lock knows what the step gave.
    assert_eq!(place.run(&["build", "--locked"])?.expect(0)?.stdout, first);
    place.run(&["store", "gc", "--budget", "0"])?.expect(0)?;
    let locked = place.run(&["build", "--locked"])?.expect(4)?;
    for due in ["Dockerfile:6", "jiji.lock says", "/now: other content", "(time)", "hint: "] {
        assert!(locked.stderr.contains(due), "`{due}` is due: {locked}");
    }
    assert!(!locked.stderr.contains("/steady:"), "{locked}");

    let second = place.run(&["build", "--no-cache", "--output", "oci:../second"])?.expect(0)?.stdout;
    assert_ne!(second, first);
    let diff = place.run(&["diff", "oci:../first", "oci:../second"])?.expect(18)?;
    for due in ["manifest digest", "layer    4, RUN date > /now", "/now: other content", "/of-now: other content"] {
        assert!(diff.stdout.contains(due), "`{due}` is due: {diff}");
    }
    let name = second.trim().trim_start_matches("web@");
    let equal = place.run(&["diff", name, "oci:../second"])?.expect(0)?;
    assert_eq!(equal.stdout, format!("equal: {name}\n"));
    Ok(())
}

/// Debian's registry on loopback.
struct Registry {
    child: std::process::Child,
    at: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start(dir: &Path) -> Outcome<Self> {
        let at = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: \"{at}\"}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n",
            dir.join("registry").display()
        );
        let path = dir.join("registry.yml");
        std::fs::write(&path, config)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut registry = Self { child: command.spawn()?, at: at.to_string() };
        for _ in 0..600 {
            if std::net::TcpStream::connect(at).is_ok() {
                return Ok(registry);
            }
            if registry.child.try_wait()?.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("docker-registry does not listen on {at}").into())
    }

    /// Gives the image in a layout this name.
    fn take(&self, layout: &Path, name: &str) -> Outcome {
        let (from, to) = (format!("oci:{}", layout.display()), format!("docker://{}/{name}", self.at));
        Run::of(Command::new("skopeo").args(["copy", "--quiet", "--dest-tls-verify=false", &from, &to]))?.expect(0)?;
        Ok(())
    }
}

#[test]
fn a_tag_that_moved_is_shown_and_followed_only_when_that_is_asked_for() -> Outcome {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir()?;
    let registry = Registry::start(dir.path())?;
    let base = Place::new(dir.path(), "base", &dir.path().join("home-base"))?;
    std::fs::write(base.root.join("Dockerfile"), "FROM scratch\nCOPY data /base\n")?;
    let name = format!("{}/base:1", registry.at);
    let publish = |variant: u64| -> Outcome {
        base.vary(variant)?;
        base.run(&["build", "--output", "oci:../layout"])?.expect(0)?;
        registry.take(&dir.path().join("layout"), "base:1")
    };
    publish(1)?;
    let place = Place::new(dir.path(), "project", &dir.path().join("home"))?;
    place.vary(0)?;
    std::fs::write(place.root.join("Dockerfile"), format!("FROM {name}\nCOPY data /data\n"))?;
    let first = place.build()?;
    assert!(place.run(&["pins", "diff"])?.expect(0)?.stdout.starts_with("0 of 1 moved"));

    publish(2)?;
    assert_eq!(place.build()?, first, "a pin is not followed by itself");
    let moved = place.run(&["pins", "diff"])?.expect(18)?;
    assert!(moved.stdout.contains(&name) && moved.stdout.contains("1 of 1 moved"), "{moved}");
    assert_eq!(place.run(&["build", "--locked"])?.expect(0)?.stdout, first);
    let updated = place.run(&["pins", "update", &format!("{}/base", registry.at)])?.expect(0)?;
    assert!(updated.stdout.contains("1 of 1 updated"), "{updated}");
    let locked = place.run(&["build", "--locked"])?.expect(4)?;
    assert!(locked.stderr.contains("jiji.lock says"), "{locked}");
    let second = place.build()?;
    assert_ne!(second, first);
    let pinned = place.run(&["pins", "show"])?.expect(0)?.stdout;
    assert!(pinned.contains(&name), "{pinned}");

    drop(registry);
    assert_eq!(place.run(&["build", "--offline", "--locked"])?.expect(0)?.stdout, second);
    place.run(&["store", "gc", "--budget", "0"])?.expect(0)?;
    let missing = place.run(&["build", "--offline"])?.expect(3)?;
    assert!(missing.stderr.contains("Dockerfile:1") && missing.stderr.contains(&name), "{missing}");
    Ok(())
}

#[test]
fn offline_asks_nobody_and_names_what_is_missing_and_pins_are_shown() -> Outcome {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir()?;
    let place = Place::new(dir.path(), "project", &dir.path().join("home"))?;
    place.vary(0)?;
    let built = place.run(&["build", "--offline"])?.expect(0)?.stdout;
    let digest = built.trim().trim_start_matches("web@");
    let shown = place.run(&["pins", "show"])?.expect(0)?.stdout;
    assert!(shown.lines().any(|line| line.starts_with("image ") && line.ends_with(digest)), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("run ")).count(), 2, "{shown}");
    let json = place.run(&["pins", "show", "--json"])?.expect(0)?;
    let pins = &json.events_of("pins.show").next().ok_or("no event")?["data"]["pins"];
    assert_eq!(pins.as_array().map(Vec::len), Some(shown.lines().count()), "{json}");

    // Nobody listens there; offline it is not even tried.
    let dockerfile = format!("FROM 127.0.0.1:9/no/such:tag\n{}", "COPY data /data\n");
    std::fs::write(place.root.join("Dockerfile"), dockerfile)?;
    let missing = place.run(&["build", "--offline"])?.expect(3)?;
    for due in ["127.0.0.1:9/no/such:tag", "Dockerfile:1", "--offline"] {
        assert!(missing.stderr.contains(due), "`{due}` is due: {missing}");
    }
    let nothing = place.run(&["pins", "update", "no/such"])?.expect(2)?;
    assert!(nothing.stderr.contains("no/such"), "{nothing}");
    assert!(place.run(&["pins", "diff"])?.expect(0)?.stdout.starts_with("0 of 0 moved"));
    Ok(())
}

#[test]
fn the_store_says_what_it_holds_keeps_its_budget_and_names_what_is_damaged() -> Outcome {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir()?;
    let home = dir.path().join("home");
    let place = Place::new(dir.path(), "project", &home)?;
    place.vary(0)?;
    let mut command = place.command(&["build"])?;
    let first = Run::of(command.env("JIJI_STORE_BUDGET", "none"))?.expect(0)?.stdout;

    let info = place.run(&["store", "info", "--json"])?.expect(0)?;
    let data = &info.events_of("store.info").next().ok_or("no event")?["data"];
    for kind in ["blobs", "layers", "records", "caches"] {
        assert!(data["kinds"][kind]["count"].as_u64() > Some(0), "{kind}: {info}");
        assert!(data["kinds"][kind]["bytes"].as_u64() > Some(0), "{kind}: {info}");
    }
    assert_eq!((&data["budget"], &data["holders"]), (&(1 << 20).into(), &0.into()), "{info}");
    let shown = place.run(&["store", "info", "--budget", "2GiB"])?.expect(0)?.stdout;
    assert!(shown.contains("unpacked layers") && shown.contains("of 2.0 GiB"), "{shown}");

    // Damage one blob: the largest is a layer's.
    let blobs = home.join(".cache/jiji/store/blobs/sha256");
    let mut files: Vec<_> = std::fs::read_dir(&blobs)?.map(|entry| Ok(entry?.path())).collect::<Outcome<_>>()?;
    files.sort_by_key(|path| path.metadata().map_or(0, |meta| meta.len()));
    let largest = files.last().ok_or("no blob")?;
    let name = largest.file_name().ok_or("no name")?.to_string_lossy().into_owned();
    let mut bytes = std::fs::read(largest)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(largest, bytes)?;
    let found = place.run(&["store", "verify", "--json"])?.expect(1)?;
    let damaged = &found.events_of("store.verified").next().ok_or("no event")?["data"]["damaged"];
    assert_eq!((&damaged[0]["digest"], &damaged[0]["done"]), (&format!("sha256:{name}").into(), &"removed".into()));
    assert!(found.stderr.contains(&name) && found.stderr.contains("hint: "), "{found}");
    assert!(!largest.exists());
    assert!(place.run(&["store", "verify"])?.expect(0)?.stdout.starts_with("verified "));
    assert_eq!(place.build()?, first, "made again");

    let gone = place.run(&["store", "gc", "--budget", "0"])?.expect(0)?;
    assert!(gone.stdout.contains("the store takes 0 B of 0 B"), "{gone}");
    assert_eq!(place.build()?, first, "from nothing");
    let wrong = place.run(&["store", "gc", "--budget", "much"])?.expect(2)?;
    assert!(wrong.stderr.contains("20GiB"), "{wrong}");
    let mut command = place.command(&["build"])?;
    let wrong = Run::of(command.env("JIJI_STORE_BUDGET", "much"))?.expect(2)?;
    assert!(wrong.stderr.contains("JIJI_STORE_BUDGET"), "{wrong}");
    Ok(())
}
