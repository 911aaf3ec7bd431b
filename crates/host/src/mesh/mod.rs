//! The mesh on this host: keys, the interface and all that belongs around it.
//!
//! An interface is told whole, as [`Interface`]: what differs from that is changed and nothing else, so to be told the same twice does nothing,
//! and a peer that stays keeps its session. What was told last lies beside the key, so that the host gets there again after a reboot without
//! anybody ([`up`]). The private key is made here, lies in one file, and leaves it for the standard input of `wg` alone. Who is in the mesh is
//! decided elsewhere: by a plugin, in a plan.

mod error;
mod firewall;
mod live;
mod unit;

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiji_model::mesh::{Cidr, DIR, Implementation, Interface, InterfaceFacts, PeerFacts, PublicKey};
use jiji_model::name::AbsPath;

pub use error::MeshError;
use live::{Live, Wg, link};

use crate::Settings;
use crate::command::{self, Command, Output};
use crate::place::{self, Durability, Place, failed};

/// How long one of the programs may take. `wg` asks for the addresses of endpoints that have names.
const PROGRAM: Duration = Duration::from_secs(30);

/// How long an implementation of userspace may take until it answers.
const USERSPACE: Duration = Duration::from_secs(5);

/// The implementation of userspace, where the kernel has none.
const WIREGUARD_GO: &str = "wireguard-go";

/// Longest specification and key in bytes.
const SPEC: u64 = 4 * 1024 * 1024;
const KEY: u64 = 256;

/// The mesh as one session works on it.
#[derive(Debug, Clone, Copy)]
pub struct Mesh<'a> {
    /// Where programs are.
    pub settings: &'a Settings,
    /// Where everything lies.
    pub place: &'a Place,
}

impl Mesh<'_> {
    /// A program, found where programs of the host are.
    fn program(&self, name: &str) -> Result<Command, MeshError> {
        Ok(Command::new(command::find(name, &self.settings.path)?).timeout(PROGRAM))
    }

    /// Runs a program, which must succeed.
    async fn must(&self, program: &str, args: &[&str], stdin: Vec<u8>) -> Result<Output, MeshError> {
        let output =
            self.program(program)?.args(args.iter().copied()).stdin(stdin).limits(SPEC as usize, 4096).run().await?;
        if output.ok() { Ok(output) } else { Err(MeshError::exited(program, args, &output)) }
    }

    async fn ip(&self, line: &str) -> Result<Output, MeshError> {
        self.must("ip", &line.split(' ').collect::<Vec<_>>(), Vec::new()).await
    }

    fn dir(&self) -> PathBuf {
        self.place.locate(&AbsPath::new(DIR).expect("it is an absolute path"))
    }

    fn spec_path(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}.json"))
    }

    /// A private key is in the file: made if there is none. Gives whether one was made.
    ///
    /// # Errors
    /// [`MeshError`].
    pub async fn ensure_key(&self, path: &AbsPath) -> Result<bool, MeshError> {
        let path = self.place.locate(path);
        if self.private_key(&path)?.is_some() {
            return Ok(false);
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        place::create_dir(parent)?;
        let made = self.must("wg", &["genkey"], Vec::new()).await?;
        place::write(&path, &made.stdout, 0o600, Durability::Synced)?;
        Ok(true)
    }

    /// The private key in a file. One that others can read is none that could be trusted.
    fn private_key(&self, path: &Path) -> Result<Option<Vec<u8>>, MeshError> {
        // A link is not followed: what it leads to was not made here.
        let file =
            fs::OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", path)(error).into()),
        };
        let mode = file.metadata().map_err(failed("look at", path))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(MeshError::OpenKey { path: path.to_owned(), mode: mode & 0o777 });
        }
        let key = place::read(path, KEY)?.unwrap_or_default();
        // A private key is written as a public one is.
        let is_key = std::str::from_utf8(&key).is_ok_and(|text| text.trim_end().parse::<PublicKey>().is_ok());
        if is_key { Ok(Some(key)) } else { Err(MeshError::NoKey { path: path.to_owned() }) }
    }

    /// The public key that belongs to the private one in a file, if there is one.
    ///
    /// # Errors
    /// [`MeshError`].
    pub async fn public_key(&self, path: &AbsPath) -> Result<Option<PublicKey>, MeshError> {
        let path = self.place.locate(path);
        let Some(private) = self.private_key(&path)? else { return Ok(None) };
        let output = self.must("wg", &["pubkey"], private).await?;
        let key = output.text().trim().parse().map_err(|_| MeshError::NoKey { path })?;
        Ok(Some(key))
    }

    /// What an interface was told to be last.
    fn spec(&self, name: &str) -> Result<Option<Interface>, MeshError> {
        let path = self.spec_path(name);
        let Some(bytes) = place::read(&path, SPEC)? else { return Ok(None) };
        let spec: Interface = serde_json::from_slice(&bytes)
            .map_err(|error| MeshError::Spec { path: path.clone(), reason: error.to_string() })?;
        match spec.fault() {
            Some(reason) => Err(MeshError::Spec { path, reason }),
            None => Ok(Some(spec)),
        }
    }

    /// What an interface is now, and how that differs from what it was told to be.
    ///
    /// # Errors
    /// [`MeshError`].
    pub async fn facts(&self, name: &str) -> Result<InterfaceFacts, MeshError> {
        let programs = ["ip", "wg", "nft"];
        let lacks: Vec<String> = programs
            .iter()
            .filter(|name| command::find(name, &self.settings.path).is_err())
            .map(|&it| it.to_owned())
            .collect();
        let spec = self.spec(name)?;
        if !lacks.is_empty() {
            return Ok(InterfaceFacts { spec, lacks, ..InterfaceFacts::default() });
        }
        let live = self.look(name).await?;
        let mut differs = Vec::new();
        if let Some(spec) = &spec {
            differs = self.differences(spec, &live, Some(spec)).await?;
        } else if live.link.is_some() {
            return Err(MeshError::Foreign { name: name.to_owned() });
        }
        let walls = match &spec {
            Some(spec) => self.walls(spec).await?,
            None => Vec::new(),
        };
        let by =
            live.link.as_ref().map(|link| if link.kernel { Implementation::Kernel } else { Implementation::Userspace });
        let (key, peers) = match live.wg {
            Some(wg) => (wg.key, wg.peers.into_iter().map(|peer| peer.facts).collect()),
            None => (None, Vec::<PeerFacts>::new()),
        };
        Ok(InterfaceFacts { spec, differs, lacks, walls, by, key, peers })
    }

    async fn look(&self, name: &str) -> Result<Live, MeshError> {
        let link = link(&self.ip("-json -details address show").await?.stdout, name)?;
        let Some(link) = link else { return Ok(Live::default()) };
        let routes = live::routes(&self.ip(&format!("-json route show dev {name}")).await?.stdout)?;
        let more = live::routes(&self.ip(&format!("-json -6 route show dev {name}")).await?.stdout)?;
        let dump = self.program("wg")?.args(["show", name, "dump"]).limits(SPEC as usize, 4096).run().await?;
        let wg = if dump.ok() { Some(Wg::read(&dump.stdout)?) } else { None };
        Ok(Live { link: Some(link), routes: routes.into_iter().chain(more).collect(), wg })
    }

    /// How a host differs from a specification. `before` is what it was told to be until now: a peer that was heard from another place than
    /// it was told to be at has moved, which is no difference.
    async fn differences(
        &self,
        spec: &Interface,
        live: &Live,
        before: Option<&Interface>,
    ) -> Result<Vec<String>, MeshError> {
        let mut differs = live.differences(spec, before);
        if let Some(wg) = &live.wg
            && wg.key != self.public_key(&spec.key).await?
        {
            differs.push("it has another key than the one in its file".to_owned());
        }
        if !forwards()? {
            differs.push("the host forwards nothing (net.ipv4.ip_forward)".to_owned());
        }
        differs.extend(self.closed(spec).await?);
        if !unit::is_there(self)? {
            differs.push("nothing would bring it up after a reboot".to_owned());
        }
        Ok(differs)
    }

    /// The interface is as the specification says. Gives whether anything had to be changed.
    ///
    /// # Errors
    /// [`MeshError`].
    pub async fn ensure(&self, spec: &Interface) -> Result<bool, MeshError> {
        if let Some(reason) = spec.fault() {
            return Err(MeshError::Refused { reason });
        }
        // A record that cannot be read is replaced: the host alone cannot tell what it was.
        let before = self.spec(&spec.name).ok().flatten();
        let live = self.look(&spec.name).await?;
        if before.is_none() && live.link.is_some() && !self.spec_path(&spec.name).exists() {
            return Err(MeshError::Foreign { name: spec.name.clone() });
        }
        if before.as_ref() == Some(spec) && self.differences(spec, &live, before.as_ref()).await?.is_empty() {
            return Ok(false);
        }
        place::create_dir(&self.dir())?;
        let mut bytes = serde_json::to_vec(spec).expect("a specification is JSON");
        bytes.push(b'\n');
        place::write(&self.spec_path(&spec.name), &bytes, 0o600, Durability::Synced)?;
        self.bring_up(spec, before.as_ref()).await?;
        Ok(true)
    }

    async fn bring_up(&self, spec: &Interface, before: Option<&Interface>) -> Result<(), MeshError> {
        let mut live = self.look(&spec.name).await?;
        if live.link.is_some() && live.wg.is_none() {
            // Whoever did its work is gone.
            self.ip(&format!("link delete dev {}", spec.name)).await?;
            live = Live::default();
        }
        // Closed before it is open: nobody gets in by the interface, or past it, before the rules stand.
        self.open(spec).await?;
        if let Some(before) = before {
            self.close_old(before, spec).await?;
        }
        if live.link.is_none() {
            self.make(&spec.name).await?;
        }
        self.configure(spec, &live, before).await?;
        self.address(spec, &live).await?;
        self.ip(&format!("link set dev {} mtu {} up", spec.name, spec.mtu)).await?;
        self.route(spec, &live).await?;
        if !forwards()? {
            let path = Path::new(FORWARD);
            fs::write(path, "1").map_err(failed("write", path))?;
        }
        unit::install(self).await
    }

    /// The interface, made by the kernel, or by a program where the kernel cannot.
    async fn make(&self, name: &str) -> Result<(), MeshError> {
        let made = self.program("ip")?.args(["link", "add", "dev", name, "type", "wireguard"]).run().await?;
        if made.ok() {
            return Ok(());
        }
        let Ok(program) = command::find(WIREGUARD_GO, &self.settings.path) else {
            return Err(MeshError::NoImplementation { kernel: made.complaint() });
        };
        // It goes on in the background, and must end neither with this session nor with its pipes.
        std::os::unix::process::CommandExt::process_group(
            std::process::Command::new(&program)
                .arg(name)
                .current_dir("/")
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null()),
            0,
        )
        .spawn()
        .and_then(|mut child| child.wait())
        .map_err(|source| MeshError::Userspace { program, reason: source.to_string() })?;
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < USERSPACE {
            if self.program("wg")?.args(["show", name, "listen-port"]).run().await?.ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let reason = format!("it does not answer after {} s", USERSPACE.as_secs());
        Err(MeshError::Userspace { program: WIREGUARD_GO.into(), reason })
    }

    async fn configure(&self, spec: &Interface, live: &Live, before: Option<&Interface>) -> Result<(), MeshError> {
        let path = self.place.locate(&spec.key);
        let private = self.private_key(&path)?.ok_or(MeshError::NoKey { path })?;
        let own = self.public_key(&spec.key).await?;
        if let Some(peer) = spec.peers.iter().find(|peer| Some(&peer.key) == own.as_ref()) {
            return Err(MeshError::Refused { reason: format!("`{}` has this host's own key", peer.name) });
        }
        let is_so = live.wg.as_ref().is_some_and(|wg| wg.key == own && wg.differences(spec, before).is_empty());
        if is_so {
            return Ok(());
        }
        // `wg syncconf` changes what differs and leaves the sessions of other peers alone (wg(8)).
        let text = live::configuration(spec, &private, live.wg.as_ref(), before);
        let sync = self.program("wg")?.args(["syncconf", &spec.name, "/dev/stdin"]);
        // It would ask for up to a minute, while everybody waits.
        let output = sync.env("WG_ENDPOINT_RESOLUTION_RETRIES", "3").stdin(text).run().await?;
        if output.ok() { Ok(()) } else { Err(MeshError::exited("wg", &["syncconf", &spec.name], &output)) }
    }

    async fn address(&self, spec: &Interface, live: &Live) -> Result<(), MeshError> {
        let have: &[Cidr] = live.link.as_ref().map_or(&[], |link| &link.addresses);
        for gone in have.iter().filter(|have| !spec.addresses.contains(have)) {
            self.ip(&format!("address delete {gone} dev {}", spec.name)).await?;
        }
        for address in spec.addresses.iter().filter(|address| !have.contains(address)) {
            if address.address.is_ipv6() {
                // A host may have it switched off for interfaces that come; where it has none at all, `ip` says so.
                let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", spec.name));
                let _ = fs::write(path, "0");
            }
            self.ip(&format!("address replace {address} dev {}", spec.name)).await?;
        }
        Ok(())
    }

    async fn route(&self, spec: &Interface, live: &Live) -> Result<(), MeshError> {
        for gone in live.routes.iter().filter(|route| !spec.routes().any(|wanted| wanted == *route)) {
            let family = family(gone);
            self.ip(&format!("{family} route delete {gone} dev {}", spec.name)).await?;
        }
        for route in spec.routes().filter(|route| !live.routes.contains(route)) {
            let family = family(route);
            self.ip(&format!("{family} route replace {route} dev {} proto static", spec.name)).await?;
        }
        Ok(())
    }

    /// The interface is gone, with all that belongs to it but its key. Gives whether there was anything.
    ///
    /// # Errors
    /// [`MeshError`].
    pub async fn remove(&self, name: &str) -> Result<bool, MeshError> {
        let path = self.spec_path(name);
        let spec = self.spec(name).ok().flatten();
        let live = self.look(name).await?;
        let known = path.exists();
        if !known {
            // Without a record it is nothing that this program made.
            return Ok(false);
        }
        if live.link.is_some() {
            self.ip(&format!("link delete dev {name}")).await?;
        }
        self.close(name, spec.as_ref()).await?;
        unit::remove(self, name).await?;
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        place::sync_dir(&self.dir())?;
        Ok(true)
    }
}

fn family(cidr: &Cidr) -> &'static str {
    if cidr.address.is_ipv6() { "-6" } else { "-4" }
}

/// Whether the kernel passes packets on.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

fn forwards() -> Result<bool, MeshError> {
    let path = Path::new(FORWARD);
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    Ok(text.trim() == "1")
}

/// The argument that brings all interfaces up that this host was told of: what runs after a reboot.
pub const ARGUMENT_UP: &str = "mesh-up";

/// Brings all interfaces up that this host was told of.
///
/// # Errors
/// [`MeshError`] of the first that could not be, after all were tried.
pub fn up(settings: &Settings) -> Result<(), MeshError> {
    let place = Place::new(&settings.root);
    let mesh = Mesh { settings, place: &place };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MeshError::Runtime)?;
    runtime.block_on(async {
        let dir = mesh.dir();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("list", &dir)(error).into()),
        };
        let mut result = Ok(());
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            let brought = match mesh.spec(name) {
                Ok(Some(spec)) => mesh.bring_up(&spec, Some(&spec)).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            result = result.and(brought);
        }
        result
    })
}
