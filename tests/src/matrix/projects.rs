//! What is built: six kinds of project, two of them the examples of recipes, and one whose step reads the clock.

use std::path::{Path, PathBuf};

use jiji_lab::command::{command, run};
use jiji_lab::images::Base;

use super::packages::Packages;
use super::world::REGISTRY;
use crate::{Outcome, copy_tree};

/// Something to build.
pub struct Project {
    /// What the table calls it.
    pub name: &'static str,
    /// Its directory, from the end-to-end package's.
    directory: &'static str,
    /// The recipe in it; its Dockerfile without.
    recipe: Option<&'static str>,
    /// Arguments of the build.
    args: &'static [(&'static str, &'static str)],
    /// What it is built on.
    pub bases: &'static [Base],
    /// Whether it is built on Debian as well.
    pub on_debian: bool,
    /// Whether files that it unpacks belong to others than root, so that somebody with a single id cannot build it.
    pub has_owners: bool,
    /// What it fetches.
    pub packages: Option<Packages>,
    /// Writes what is too much to keep, or what git cannot keep for others.
    more: fn(&Path) -> Outcome,
}

const PLAIN: Project = Project {
    name: "",
    directory: "",
    recipe: None,
    args: &[],
    bases: &[],
    on_debian: false,
    has_owners: false,
    packages: None,
    more: |_| Ok(()),
};

const PIP: &[(&str, &str)] = &[("PIP_INDEX_URL", "http://127.0.0.1:8000/simple")];

/// All that is built.
pub const PROJECTS: [Project; 7] = [
    Project { name: "copy", directory: "matrix/projects/copy", has_owners: true, more: many_files, ..PLAIN },
    Project { name: "static", directory: "../examples/recipe-static", bases: &[Base::Compiler], ..PLAIN },
    Project {
        name: "recipe-static",
        directory: "../examples/recipe-static",
        recipe: Some("image.toml"),
        bases: &[Base::Compiler],
        ..PLAIN
    },
    Project {
        name: "python",
        directory: "../examples/recipe-python",
        args: PIP,
        bases: &[Base::Python, Base::Pip],
        packages: Some(Packages::Pip),
        ..PLAIN
    },
    Project {
        name: "recipe-python",
        directory: "../examples/recipe-python",
        recipe: Some("image.toml"),
        args: PIP,
        bases: &[Base::Python, Base::Pip],
        packages: Some(Packages::Pip),
        ..PLAIN
    },
    Project {
        name: "node",
        directory: "matrix/projects/node",
        args: &[("NPM_CONFIG_REGISTRY", "http://127.0.0.1:8000/npm")],
        bases: &[Base::Node],
        packages: Some(Packages::Npm),
        ..PLAIN
    },
    Project {
        name: "apt",
        directory: "matrix/projects/apt",
        args: &[("APT_URL", "http://127.0.0.1:8000/apt")],
        on_debian: true,
        has_owners: true,
        packages: Some(Packages::Apt(&[
            "ca-certificates",
            "cron",
            "fontconfig",
            "jq",
            "nginx-light",
            "python3-minimal",
        ])),
        ..PLAIN
    },
];

/// The one whose step reads the clock.
pub const CLOCK: Project =
    Project { name: "clock", directory: "matrix/projects/clock", bases: &[Base::Busybox], ..PLAIN };

impl Project {
    /// Its sources.
    pub fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.directory)
    }

    /// Makes a repository of it.
    ///
    /// # Errors
    /// When it cannot be written, or git does not know it.
    pub fn write(&self, to: &Path) -> Outcome {
        copy_tree(&self.source(), to)?;
        (self.more)(to)?;
        std::fs::create_dir_all(to.join(".jiji"))?;
        std::fs::write(to.join(".jiji/deploy.yml"), self.deploy())?;
        for args in [&["init", "--quiet"][..], &["add", "--all"], &["commit", "--quiet", "--message", "A project"]] {
            run(git(args).current_dir(to))?;
        }
        Ok(())
    }

    fn deploy(&self) -> String {
        let how = match self.recipe {
            Some(recipe) => format!("recipe: {recipe}"),
            None => "dockerfile: Dockerfile".to_owned(),
        };
        let args: String = self.args.iter().map(|(name, value)| format!("        {name}: {value}\n")).collect();
        let args = if args.is_empty() { args } else { format!("      args:\n{args}") };
        format!(
            "project: matrix\nbuilder:\n  mirrors:\n    lab.test: http://{REGISTRY}\nservers:\n  one:\n    host: one.invalid\n\
             services:\n  web:\n    build:\n      context: .\n      {how}\n{args}    hosts: [one]\n"
        )
    }
}

/// git with nobody's configuration.
pub fn git(args: &[&str]) -> std::process::Command {
    let who = ["-c", "user.name=e2e", "-c", "user.email=e2e@lab.test", "-c", "init.defaultBranch=main"];
    // A clone of somebody else's repository is what some variations are about.
    let mut git = command("git", who);
    git.args(["-c", "safe.directory=*"]).args(args).env("GIT_CONFIG_GLOBAL", "/dev/null");
    git
}

/// Enough files for directories of several blocks, names that are no text, and an archive.
fn many_files(root: &Path) -> Outcome {
    use std::os::unix::ffi::OsStrExt as _;
    for number in 0..400 {
        let dir = root.join(format!("many/{}", number % 7));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("file-{number}")), format!("{number}\n").repeat(number))?;
    }
    std::fs::write(root.join("many").join(std::ffi::OsStr::from_bytes(b"caf\xe9\nline")), "bytes\n")?;
    std::fs::write(root.join("many/ümlaut"), "text\n")?;
    let packed = ["--create", "--sort=name", "--mtime=@1", "--owner=3", "--group=4", "--numeric-owner", "--file"];
    run(command("tar", packed).arg(root.join("site.tar")).arg("-C").arg(root.join("many")).arg("3"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::world::INDEX;
    use super::*;

    #[test]
    fn indexes_are_those_that_are_served() {
        for (_, url) in PROJECTS.iter().flat_map(|project| project.args) {
            assert!(url.starts_with(&format!("http://{INDEX}/")), "{url}");
        }
    }
}
