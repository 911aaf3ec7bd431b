//! The store under builds and collections that are killed: it stays whole, and the next build is right. No host is needed.

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
        Ok(Self { root, home: home.to_owned() })
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
        // So little that every build collects at its end.
        command.env("JIJI_STORE_BUDGET", "1MiB");
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
