//! What may be typed. The command reference in `docs/commands.md` is made from these definitions and compared in a test.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use jiji_model::project::{NamedContext, ParseContextError};

use crate::config;

/// From source to running on your own servers: the same digest on every machine, one transaction per fleet.
#[derive(Debug, Parser)]
#[command(name = "jiji", version, about, disable_help_subcommand = true, propagate_version = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The project's directory: where `.jiji/deploy.yml` is. Found upwards from the current one otherwise.
    #[arg(short = 'C', long, value_name = "DIR", global = true)]
    pub project: Option<PathBuf>,
    /// The environment: `.jiji/deploy.ENV.yml` is laid over `.jiji/deploy.yml`.
    #[arg(short, long, value_name = "ENV", global = true)]
    pub environment: Option<String>,
    /// Believe host keys that nobody has vouched for yet, and pin them in your known hosts. A changed key is refused all the same.
    #[arg(long, global = true)]
    pub accept_new: bool,
    /// Print events as NDJSON on standard output.
    #[arg(long, global = true)]
    pub json: bool,
    /// Show each event and diagnostics.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Show errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build, push what is missing, and move the fleet to the new images.
    Ship(ShipArgs),
    /// Build images into the store.
    Build(BuildArgs),
    /// Push built images to the registry: only the blobs that it lacks.
    Push(PushArgs),
    /// Show how two images differ, from the manifest down to the bytes of files: exit code 18 where they do.
    Diff(DiffArgs),
    /// Move the fleet to the images that `jiji.lock` names, without building.
    Deploy(DeployArgs),
    /// Show what a ship would change, and change nothing.
    Plan(PlanArgs),
    /// Move the fleet as a kept plan says, if nothing has moved since it was made.
    Apply(ApplyArgs),
    /// Move the fleet back to an earlier release.
    Rollback(RollbackArgs),
    /// Settle what an interrupted run left open: finish what was decided, take back what was not.
    Abort(AbortArgs),
    /// Show how hosts differ from what was decided last: exit code 13 where they do.
    Drift(DriftArgs),
    /// List the releases that hosts remember, newest first.
    #[command(visible_alias = "history")]
    Releases,
    /// Look after the proxy of each host.
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Show what runs on each host.
    Status,
    /// Look whether servers are fit for a ship.
    #[command(subcommand)]
    Server(ServerCommand),
    /// Make and look after the private network between servers and their containers.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// List, inspect and install plugins.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Show what `jiji.lock` pins, compare it with what its names mean now, and take that.
    #[command(subcommand)]
    Pins(PinsCommand),
    /// Write recipes, which say in TOML how an image is made.
    #[command(subcommand)]
    Recipe(RecipeCommand),
    /// Look after this machine's store of images, steps and caches.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Print the version.
    Version,
    /// What runs on a server, for one session.
    #[command(hide = true)]
    Host(HostArgs),
}

/// What is done while somebody else is at work on the hosts.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct LockArgs {
    /// Wait so long for somebody else who is at work on the hosts: `90s`, `10m`. Without it, the run ends at once with exit code 10.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait_lock: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    config::duration_ms(text, true).map(|ms| Duration::from_millis(ms.into()))
}

fn build_context(text: &str) -> Result<(String, NamedContext), String> {
    let (name, context) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("expected `NAME=CONTEXT`")?;
    Ok((name.to_owned(), context.parse().map_err(|error: ParseContextError| error.to_string())?))
}

/// `jiji ship`.
#[derive(Debug, Args)]
pub struct ShipArgs {
    /// Fail if a build gives something else than `jiji.lock` says.
    #[arg(long)]
    pub locked: bool,
    /// Ask no registry and fetch nothing: what the store and `jiji.lock` have suffices, or what is missing is named.
    #[arg(long)]
    pub offline: bool,
    /// Do not push to the registry, even if there is one.
    #[arg(long)]
    pub no_push: bool,
    /// What is done while somebody else is at work.
    #[command(flatten)]
    pub lock: LockArgs,
}

/// `jiji network`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Bring all servers into the network, and mend what differs there. Servers that are in it already are not disturbed.
    Setup(NetworkSetupArgs),
    /// Show what servers say of the network: who has heard whom, and what differs from what they were told. Exit code 13 where something does.
    Status,
}

/// `jiji network setup`.
#[derive(Debug, Args)]
pub struct NetworkSetupArgs {
    /// What is done while somebody else is at work.
    #[command(flatten)]
    pub lock: LockArgs,
}

/// `jiji proxy`.
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// Replace a proxy that runs with another image or other settings, while connections go on.
    Upgrade(ProxyUpgradeArgs),
}

/// `jiji proxy upgrade`.
#[derive(Debug, Args)]
pub struct ProxyUpgradeArgs {
    /// What is done while somebody else is at work.
    #[command(flatten)]
    pub lock: LockArgs,
}

/// `jiji build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Services to build; all that are built from source otherwise.
    pub services: Vec<String>,
    /// Where to write an image besides the store: `oci:DIR`. With several services, one directory below it each.
    #[arg(short, long, value_name = "oci:DIR")]
    pub output: Option<String>,
    /// Load each image into this machine's engine, as `localhost/PROJECT/SERVICE:latest`: `podman` or `docker`, and without a word the first of them
    /// that is there.
    #[arg(long, value_name = "ENGINE", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub load: Option<LoadInto>,
    /// How progress is shown: `plain` is one line per event, steps and what they print told apart by stage and number; `tty` moves on a terminal,
    /// also where `CI` is set; `auto` is `tty` on a terminal and short lines otherwise.
    #[arg(long, value_name = "HOW", default_value = "auto", conflicts_with = "json")]
    pub progress: Progress,
    /// Fail if a build gives something else than `jiji.lock` says.
    #[arg(long)]
    pub locked: bool,
    /// Ask no registry and fetch nothing: what the store and `jiji.lock` have suffices, or what is missing is named.
    #[arg(long)]
    pub offline: bool,
    /// What a name stands for in FROM, `COPY --from` and `RUN --mount=from=`: a directory, `docker-image://REFERENCE` or
    /// `oci-layout://DIRECTORY[:TAG]`.
    #[arg(long, value_name = "NAME=CONTEXT", value_parser = build_context)]
    pub build_context: Vec<(String, NamedContext)>,
    /// An agent that `RUN --mount=type=ssh` may ask to sign, by its id: the one at SOCKET, or that of `SSH_AUTH_SOCK`.
    #[arg(long, value_name = "ID[=SOCKET]")]
    pub ssh: Vec<String>,
    /// Do every step again, also those that are remembered.
    #[arg(long)]
    pub no_cache: bool,
    /// Say of each step whether it is in the cache and, where it is not, what differs from the build before: base image, command, names of
    /// variables, files of the context.
    #[arg(long)]
    pub explain: bool,
    /// Do every step twice, the second time under other conditions, and show what does not come out the same: exit code 18 where
    /// something differs.
    #[arg(long, conflicts_with_all = ["locked", "no_cache", "output", "explain", "load"])]
    pub check: bool,
}

/// The engine that images are loaded into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadInto {
    /// The first that is there.
    Auto,
    /// Podman.
    Podman,
    /// Docker.
    Docker,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// As it suits where it goes.
    #[default]
    Auto,
    /// Lines for logs.
    Plain,
    /// A line that moves.
    Tty,
}

/// `jiji diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// An image: `oci:DIR`, a manifest's `sha256:…` in the store, or a registry's `REPOSITORY:TAG` or `…@sha256:…`.
    pub one: String,
    /// Another.
    pub other: String,
}

/// `jiji push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Services to push; all otherwise.
    pub services: Vec<String>,
}

/// `jiji deploy`.
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// What is done while somebody else is at work.
    #[command(flatten)]
    pub lock: LockArgs,
}

/// `jiji plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Fail if a build gives something else than `jiji.lock` says.
    #[arg(long)]
    pub locked: bool,
    /// Ask no registry and fetch nothing: what the store and `jiji.lock` have suffices, or what is missing is named.
    #[arg(long)]
    pub offline: bool,
    /// Keep the plan in this file, for `jiji apply FILE`. What it needs is pushed to the registry, if there is one.
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print Markdown, for a comment on a pull request.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// End with exit code 17 where something would change.
    #[arg(long)]
    pub detailed_exitcode: bool,
    /// With `--out`: do not push to the registry, even if there is one.
    #[arg(long, requires = "out")]
    pub no_push: bool,
}

/// `jiji apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The plan: what `jiji plan --out FILE` wrote, here or on another machine.
    pub file: PathBuf,
    /// Fail unless it is the plan with this digest: the one that was looked at.
    #[arg(long, value_name = "sha256:…")]
    pub digest: Option<String>,
    /// What is done while somebody else is at work.
    #[command(flatten)]
    pub lock: LockArgs,
}

/// `jiji rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The release: its number, or the beginning of an image's digest, a plan's or a transaction's id. Without it the last good one
    /// before the current that all hosts remember. `jiji releases` lists them.
    pub release: Option<String>,
    /// What is done while somebody else is at work.
    #[command(flatten)]
    pub lock: LockArgs,
}

/// `jiji abort`.
#[derive(Debug, Args)]
pub struct AbortArgs {
    /// Where the project's sources are not here: a server of it, `[ssh://][USER@]HOST[:PORT]`, or with
    /// `rootless+ssh://` before it where the server is `rootless`; may be given several times. Others that
    /// took part are found from what hosts recorded.
    #[arg(long = "host", value_name = "ADDRESS", requires = "name")]
    pub hosts: Vec<String>,
    /// Where the project's sources are not here: its name, with the `-e` that it was shipped with.
    #[arg(long, value_name = "NAME", requires = "hosts", conflicts_with = "project")]
    pub name: Option<String>,
    /// Where the project's sources are not here: an ssh configuration file to use instead of the user's.
    #[arg(long, value_name = "FILE", requires = "name")]
    pub ssh_config: Option<PathBuf>,
    /// What is done while somebody else is at work.
    #[command(flatten)]
    pub lock: LockArgs,
}

/// `jiji drift`.
#[derive(Debug, Args)]
pub struct DriftArgs {
    /// Make hosts what was decided last, as one transaction and without dropping a request, and show what is left.
    #[arg(long)]
    pub fix: bool,
    /// With `--fix`: wait so long for somebody else who is at work on the hosts: `90s`, `10m`. Without it, the run ends at once with exit
    /// code 10.
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "fix")]
    pub wait_lock: Option<Duration>,
}

/// `jiji server …`.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Show what keeps servers from a ship: the way in, sudo, engine, disk, memory, ports, clock. Changes nothing.
    Check,
}

/// `jiji plugin …`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List the plugins of this project.
    List,
    /// Show what a plugin is and what it asks for, without running the project.
    Inspect {
        /// A plugin's name, or a `.wasm` file.
        plugin: String,
    },
    /// Fetch, verify and pin a plugin in `jiji.lock`.
    Install {
        /// A `.wasm` file, or `REGISTRY/REPOSITORY:TAG` or `…@sha256:…`.
        source: String,
        /// Accept what it asks for without being asked.
        #[arg(long)]
        accept: bool,
        /// Take other bytes than those that are pinned.
        #[arg(long)]
        update: bool,
    },
}

/// `jiji pins …`.
#[derive(Debug, Subcommand)]
pub enum PinsCommand {
    /// List all pins: base images, what each RUN gave, images, URLs, plugins.
    Show,
    /// Ask registries and servers what pinned tags and URLs mean now, and change nothing: exit code 18 where one moved.
    Diff,
    /// Pin what tags and URLs mean now.
    Update {
        /// A tag or URL that is pinned; all otherwise. A repository alone means all its tags.
        name: Option<String>,
    },
}

/// `jiji recipe …`.
#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// Print a Dockerfile as a recipe that gives the same files. What a recipe has no word for is refused with its line.
    From {
        /// The Dockerfile.
        dockerfile: PathBuf,
    },
}

/// `jiji store …`.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Remove what was used longest ago, until the store is within its budget. What running builds use stays.
    Gc(BudgetArgs),
    /// Hash everything again, and remove what is damaged: exit code 1 where something is.
    Verify,
    /// Show what the store holds, by kind, and how much of its budget that is.
    Info(BudgetArgs),
}

/// How large the store may be.
#[derive(Debug, Args)]
pub struct BudgetArgs {
    /// The budget: `500MiB`, `20GiB`, `0`. Without it what `JIJI_STORE_BUDGET` says, and otherwise 20 GiB, or a quarter of the disk where
    /// that is less.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub budget: Option<u64>,
}

/// A number of bytes, with or without a unit.
pub fn size(text: &str) -> Result<u64, &'static str> {
    let wrong = "expected a number of bytes, such as `500MiB`, `20GiB` or `0`";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(wrong),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or(wrong)
}

/// `jiji host`.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// What `jiji-host` would be told: `exec`, and perhaps `--engine ENGINE`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_size_is_a_number_and_a_unit() {
        let read = |text| super::size(text).ok();
        assert_eq!(["0", "7B", "2KiB", "3 MiB", "20GiB"].map(read), [0, 7, 2048, 3 << 20, 20 << 30].map(Some));
        assert_eq!(["", "GiB", "1GB", "-1", "1.5GiB", "99999999TiB"].map(read), [None; 6]);
    }

    #[test]
    fn the_definitions_are_consistent() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
