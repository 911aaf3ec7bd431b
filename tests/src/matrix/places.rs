//! A place in which somebody clones a project and builds it, and the conditions under which he does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiji_lab::command::{command, run};

use super::projects::git;
use super::world::{ALONE, STRANGER, World};
use crate::{Outcome, Run, Running};

/// The longest that a build may take: some are done under load on purpose.
pub const LIMIT: Duration = Duration::from_secs(1200);

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Person {
    /// Root.
    Root,
    /// Root without `CAP_SYS_ADMIN`, as in a container.
    Contained,
    /// A user with subordinate ids.
    Stranger,
    /// A user without.
    Alone,
}

impl Person {
    /// Whether he is a user with a single id.
    pub fn is_alone(self) -> bool {
        self == Self::Alone
    }

    fn uid(self) -> Option<u32> {
        match self {
            Self::Root | Self::Contained => None,
            Self::Stranger => Some(STRANGER),
            Self::Alone => Some(ALONE),
        }
    }

    fn words(self) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        match self.uid() {
            None if self == Self::Root => Vec::new(),
            None => words(&["setpriv", "--bounding-set", "-sys_admin"]),
            Some(uid) => {
                let id = uid.to_string();
                words(&["setpriv", "--reuid", &id, "--regid", &id, "--groups", &id])
            }
        }
    }
}

/// On which file system the checkout and the store are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// This machine's disk.
    Disk,
    /// Memory.
    Memory,
    /// A file system in a file, made by this command.
    Made(&'static str, &'static [&'static str]),
    /// The checkout on an overlay, the store on the disk: overlays do not lie on overlays.
    Overlay,
}

/// How the checkout comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// `git clone`.
    Clone,
    /// `git archive`, unpacked.
    Tar,
    /// `cp -R` of a clone.
    Copied,
    /// Hard links to the files of a clone.
    Linked,
    /// Files written one by one, those that git names last before the others.
    Backwards,
}

/// All that a builder may have otherwise.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// The checkout, below the place.
    pub folder: PathBuf,
    /// HOME, and the store below it, below the place.
    pub home: PathBuf,
    pub files: Files,
    pub arrival: Arrival,
    pub person: Person,
    /// Of the checkout and of the build.
    pub umask: &'static str,
    /// Commands that are done in the checkout before.
    pub before: Vec<Vec<&'static str>>,
    /// Words before the program's.
    pub words: Vec<OsString>,
    /// Variables.
    pub env: Vec<(String, OsString)>,
    /// Arguments of `jiji build`.
    pub args: Vec<OsString>,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            folder: "clone".into(),
            home: "home".into(),
            files: Files::Disk,
            arrival: Arrival::Clone,
            person: Person::Root,
            umask: "022",
            before: Vec::new(),
            words: Vec::new(),
            env: Vec::new(),
            args: Vec::new(),
        }
    }
}

/// A place. What is in it goes with it.
pub struct Room {
    dir: PathBuf,
    checkout: PathBuf,
    home: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Room {
    /// A new one in this directory, which is not there yet.
    ///
    /// # Errors
    /// When its file system cannot be made.
    pub fn new(dir: &Path, conditions: &Conditions) -> Outcome<Self> {
        std::fs::create_dir_all(dir)?;
        let files = dir.join("files");
        std::fs::create_dir(&files)?;
        let mut room = Self {
            dir: dir.to_owned(),
            checkout: files.join(&conditions.folder),
            home: files.join(&conditions.home),
            mounted: Vec::new(),
        };
        let mount = |args: &[&str], device: &Path, to: &Path| run(command("mount", args).arg(device).arg(to));
        match conditions.files {
            Files::Disk => {}
            Files::Memory => {
                mount(&["-t", "tmpfs", "-o", "size=4g,mode=755"], Path::new("memory"), &files)?;
                room.mounted.push(files);
            }
            Files::Made(program, args) => {
                let image = dir.join("image");
                run(command("truncate", ["--size", "4G"]).arg(&image))?;
                run(command(program, args).arg(&image))?;
                mount(&["-o", "loop"], &image, &files)?;
                room.mounted.push(files);
            }
            Files::Overlay => {
                for part in ["lower", "upper", "work"] {
                    std::fs::create_dir(dir.join(part))?;
                }
                let part = |name: &str| dir.join(name).display().to_string();
                let layers = format!("lowerdir={},upperdir={},workdir={}", part("lower"), part("upper"), part("work"));
                mount(&["-t", "overlay", "-o", &layers], Path::new("overlay"), &files)?;
                room.mounted.push(files);
                room.home = dir.join("home");
            }
        }
        std::fs::create_dir_all(&room.home)?;
        room.give(&room.home, conditions)?;
        Ok(room)
    }

    fn give(&self, path: &Path, conditions: &Conditions) -> Outcome {
        let Some(uid) = conditions.person.uid() else { return Ok(()) };
        run(command("chown", ["-hR", &format!("{uid}:{uid}")]).arg(path))?;
        Ok(())
    }

    /// Makes the checkout, and gives it to whoever builds.
    ///
    /// # Errors
    /// When git or the file system refuse.
    pub fn arrive(&self, origin: &Path, conditions: &Conditions) -> Outcome {
        let (checkout, umask) = (&self.checkout, conditions.umask);
        let parent = checkout.parent().ok_or("a checkout below the place")?;
        std::fs::create_dir_all(parent)?;
        let clone = |to: &Path| {
            let git = git(&["clone", "--quiet"]);
            run(masked(&git, umask).arg(origin).arg(to).env("GIT_CONFIG_GLOBAL", "/dev/null"))
        };
        let sh = |script: &str, from: &Path| {
            run(command("sh", ["-c", &format!("umask {umask}; set -e; {script}"), "sh"]).arg(from).arg(checkout))
        };
        match conditions.arrival {
            Arrival::Clone => drop(clone(checkout)?),
            Arrival::Tar => {
                drop(sh("mkdir \"$2\"; git -c safe.directory='*' -C \"$1\" archive HEAD | tar -x -C \"$2\"", origin)?)
            }
            Arrival::Copied | Arrival::Linked => {
                let from = self.dir.join("another");
                clone(&from)?;
                let how = if conditions.arrival == Arrival::Linked { "-RPl" } else { "-RP" };
                sh(&format!("cp {how} \"$1\" \"$2\""), &from)?;
            }
            Arrival::Backwards => {
                let from = self.dir.join("another");
                clone(&from)?;
                // tac does not know NUL: what is between two names is another byte for as long.
                let script = "mkdir \"$2\"; cd \"$1\"; git ls-files -z | tr '\\0' '\\001' | tac -s \"$(printf '\\001')\" | \
                              tr '\\001' '\\0' | xargs -0 cp --parents -P -t \"$2\" --";
                sh(script, &from)?;
            }
        }
        for words in &conditions.before {
            run(command(words[0], &words[1..]).current_dir(checkout))?;
        }
        // The folder around it as well: `--output` writes there.
        self.give(parent, conditions)
    }

    /// Puts another's lock into the checkout.
    ///
    /// # Errors
    /// When there is none.
    pub fn take_lock(&self, other: &Self) -> Outcome {
        std::fs::copy(other.checkout.join("jiji.lock"), self.checkout.join("jiji.lock"))?;
        Ok(())
    }

    /// Puts another's store, and all else of its home, into this home.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn take_store(&self, other: &Self) -> Outcome {
        run(command("cp", ["-a"]).arg(other.home.join(".")).arg(&self.home))?;
        Ok(())
    }

    /// The same home, and a checkout of its own below this place.
    pub fn beside(&self, folder: &str) -> Self {
        let checkout = self.dir.join("files").join(folder);
        Self { dir: self.dir.join(folder), checkout, home: self.home.clone(), mounted: Vec::new() }
    }

    /// Where `--output oci:../layout` writes.
    pub fn layout(&self) -> PathBuf {
        self.checkout.with_file_name("layout")
    }

    /// `jiji` with these arguments, under these conditions.
    ///
    /// # Errors
    /// When the place has no parent.
    pub fn jiji(&self, world: &World, conditions: &Conditions, args: &[&str]) -> Outcome<Command> {
        let mut words: Vec<OsString> = conditions.words.clone();
        words.extend(conditions.person.words().into_iter().map(OsString::from));
        let script = format!("umask {}; exec \"$@\"", conditions.umask);
        words.extend(["sh", "-c", &script, "sh"].map(OsString::from));
        words.push(world.jiji().into());
        words.extend(args.iter().map(OsString::from));
        words.extend(conditions.args.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&self.checkout).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("CI", "true");
        command.env("HOME", &self.home).env("XDG_RUNTIME_DIR", &self.home);
        command.envs(conditions.env.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Builds.
    ///
    /// # Errors
    /// When it cannot be begun.
    pub fn build(&self, world: &World, conditions: &Conditions) -> Outcome<Run> {
        Running::start(&mut self.jiji(world, conditions, &["build", "--json"])?)?.within(LIMIT).end()
    }
}

/// A command behind a shell that sets the mask.
fn masked(inner: &Command, umask: &str) -> Command {
    let mut shell = command("sh", ["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
    shell.arg(inner.get_program()).args(inner.get_args());
    shell
}

impl Drop for Room {
    fn drop(&mut self) {
        // What is left goes with the namespaces and the directory above.
        for place in &self.mounted {
            drop(run(command("umount", ["--lazy"]).arg(place)));
        }
        drop(run(command("rm", ["-rf"]).arg(&self.dir)));
    }
}
