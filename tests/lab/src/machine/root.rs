//! Builds a host's private root and moves into it.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use rustix::{
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, unmount,
    },
    process::pivot_root,
};

use super::Orders;
use crate::{
    Engine, LabError, cgroup,
    command::{command, run},
    ssh,
};

/// Builds the root and moves into it. After this the machine's own root is out of reach.
pub(super) fn enter(orders: &Orders) -> Result<(), LabError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(LabError::system("make all mounts private"))?;
    let disk = orders.dir.join("disk");
    dir(&disk)?;
    run(command("mount", ["-o", "loop,noatime"]).arg(orders.dir.join("disk.img")).arg(&disk))?;
    let root = Root(disk.join("root"));
    for name in ["upper", "work", "root", "containers", "docker", "home", "user"] {
        dir(&disk.join(name))?;
    }
    attach("overlay", "overlay", &root.0, &format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", disk.display()))?;
    root.hide(&orders.state)?;
    root.system(orders)?;
    // Engines store on the disk itself: an overlay cannot lie on an overlay.
    root.bind(&disk.join("containers"), "var/lib/containers")?;
    root.bind(&disk.join("docker"), "var/lib/docker")?;
    root.bind(&disk.join("home"), "root")?;
    root.bind(&disk.join("user"), &format!("home/{}", ssh::USER))?;
    for path in &orders.binds {
        let target = root.inside(path);
        dir(&target)?;
        mount_bind_recursive(path, &target).map_err(LabError::system(format!("bind `{}`", path.display())))?;
    }
    root.configure(orders)?;
    if orders.rootless {
        root.users_podman()?;
    }
    root.pivot()
}

/// The command of Podman as the user has it, on hosts where nobody becomes root: root may run it too.
pub(crate) const USERS_PODMAN: &str = "/run/lab/users-podman";

/// The number of the user, who has a group of the same number.
const USER_ID: u32 = 1500;

/// What an administrator does so that users' web servers can have ports 80 and 443. The setting is of the network namespace.
pub(super) fn let_users_publish() -> Result<(), LabError> {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    fs::write(path, "80").map_err(LabError::file("write", path))
}

/// A host's root while it is built, seen from outside.
struct Root(PathBuf);

impl Root {
    /// A path of the host, as seen from outside.
    fn inside(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn bind(&self, source: &Path, target: &str) -> Result<(), LabError> {
        let target = self.inside(target);
        dir(&target)?;
        mount_bind(source, &target).map_err(LabError::system(format!("bind `{}`", target.display())))
    }

    fn tmpfs(&self, target: impl AsRef<Path>, options: &str) -> Result<(), LabError> {
        let target = self.inside(target);
        dir(&target)?;
        attach("tmpfs", "tmpfs", &target, options)
    }

    /// Puts an empty directory over one of the machine's that hosts have no business in.
    fn hide(&self, path: &Path) -> Result<(), LabError> {
        if self.inside(path).is_dir() { self.tmpfs(path, "mode=700,size=64k") } else { Ok(()) }
    }

    /// What the kernel offers: /proc, /sys, /dev, control groups, and the directories that begin empty at every boot.
    fn system(&self, orders: &Orders) -> Result<(), LabError> {
        attach("proc", "proc", &self.inside("proc"), "")?;
        attach("sysfs", "sysfs", &self.inside("sys"), "")?;
        self.bind(Path::new("/dev"), "dev")?;
        self.tmpfs("dev/shm", "mode=1777")?;
        attach("devpts", "devpts", &self.inside("dev/pts"), "newinstance,ptmxmode=0666,mode=620,gid=5")?;
        self.tmpfs("run", "mode=755")?;
        self.tmpfs("tmp", "mode=1777")?;
        self.tmpfs("var/tmp", "mode=1777")?;
        self.control_groups()?;
        for name in ["run/lock", "run/sshd", "run/lab"] {
            dir(&self.inside(name))?;
        }
        self.write("run/lab/boot_id", &format!("{}\n", orders.boot_id), 0o444)?;
        self.bind_file("run/lab/boot_id", "proc/sys/kernel/random/boot_id")
    }

    fn bind_file(&self, source: &str, target: &str) -> Result<(), LabError> {
        mount_bind(self.inside(source), self.inside(target)).map_err(LabError::system(format!("bind `{target}`")))
    }

    /// Mounts the control groups again, so that the host sees its own group as the root of each hierarchy.
    fn control_groups(&self) -> Result<(), LabError> {
        let top = self.inside("sys/fs/cgroup");
        let all = cgroup::hierarchies()?;
        if let [only] = all.as_slice()
            && only.unified()
        {
            attach("cgroup2", "cgroup2", &top, "")?;
            // Version 2 gives controllers only to children of a group without processes of its own.
            dir(&top.join("init"))?;
            let procs = top.join("init/cgroup.procs");
            fs::write(&procs, "0").map_err(LabError::file("enter", &procs))?;
            cgroup::pass_controllers(&top);
            return Ok(());
        }
        self.tmpfs("sys/fs/cgroup", "mode=755")?;
        for hierarchy in all {
            let target = top.join(&hierarchy.name);
            dir(&target)?;
            attach("cgroup", "cgroup", &target, &hierarchy.options)?;
            if hierarchy.name.contains(',') {
                for name in hierarchy.name.split(',') {
                    symlink(&hierarchy.name, top.join(name)).map_err(LabError::file("link", top.join(name)))?;
                }
            }
        }
        Ok(())
    }

    fn write(&self, path: &str, text: &str, mode: u32) -> Result<(), LabError> {
        let path = self.inside(path);
        if let Some(parent) = path.parent() {
            dir(parent)?;
        }
        // What the machine has there may be a link to elsewhere.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LabError::file("replace", &path)(error)),
            _ => ssh::write(&path, text, mode),
        }
    }

    /// What a host's administrator would have written.
    fn configure(&self, orders: &Orders) -> Result<(), LabError> {
        self.write("etc/hostname", &format!("{}\n", orders.name), 0o644)?;
        let mut hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
        for (name, address) in &orders.hosts {
            hosts.push_str(&format!("{address} {name}\n"));
        }
        self.write("etc/hosts", &hosts, 0o644)?;
        self.write("etc/resolv.conf", "# Nobody to ask: the lab has no way out.\n", 0o644)?;
        self.machine_id(orders)?;
        self.users(orders.rootless)?;
        let key = orders.dir.join("host_key");
        let key = fs::read_to_string(&key).map_err(LabError::file("read", &key))?;
        self.write("etc/ssh/lab_host_key", &key, 0o600)?;
        self.write("etc/ssh/lab_authorized_keys", &orders.authorized_key, 0o644)?;
        self.write("etc/ssh/lab_sshd_config", &ssh::sshd_config(&orders.user), 0o644)?;
        self.one_engine(orders.engine)?;
        self.engines(orders)
    }

    /// A host has one engine: the machine's other one is out of its sight.
    fn one_engine(&self, engine: Engine) -> Result<(), LabError> {
        let others: &[&str] = match engine {
            Engine::Podman => &["usr/bin/docker", "usr/sbin/dockerd", "usr/local/bin/docker"],
            Engine::Docker => &["usr/bin/podman", "usr/local/bin/docker"],
        };
        for name in others {
            let path = self.inside(name);
            if path.exists() {
                fs::remove_file(&path).map_err(LabError::file("hide", &path))?;
            }
        }
        Ok(())
    }

    /// Podman's and Docker's configuration. The hard limit on open files of the machine can lie below their defaults.
    fn engines(&self, orders: &Orders) -> Result<(), LabError> {
        self.write(
            "etc/containers/containers.conf",
            "[containers]\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=4096:4096\"]\nlog_driver = \"k8s-file\"\n\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"crun\"\n\n\
             [network]\nnetwork_backend = \"netavark\"\n",
            0o644,
        )?;
        self.write(
            "etc/containers/storage.conf",
            "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n",
            0o644,
        )?;
        self.write("etc/containers/policy.json", "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}\n", 0o644)?;
        let mut registries = "unqualified-search-registries = []\n".to_owned();
        let mut insecure = Vec::new();
        if let Some(registry) = &orders.registry {
            registries.push_str(&format!(
                "\n[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n\n\
                 [[registry]]\nprefix = \"lab.test\"\nlocation = \"{registry}\"\ninsecure = true\n"
            ));
            insecure.push(registry.clone());
        }
        self.write("etc/containers/registries.conf", &registries, 0o644)?;
        let daemon = serde_json::json!({
            "insecure-registries": insecure,
            "default-ulimits": { "nofile": { "Name": "nofile", "Soft": 1024, "Hard": 4096 } },
        });
        self.write("etc/docker/daemon.json", &format!("{daemon:#}\n"), 0o644)
    }

    fn machine_id(&self, orders: &Orders) -> Result<(), LabError> {
        // 32 hex digits that stay over reboots: out of the host's key, which stays too.
        let key = orders.dir.join("host_key.pub");
        let key = fs::read(&key).map_err(LabError::file("read", &key))?;
        let digest = crate::images::sha256_hex(&key);
        self.write("etc/machine-id", &format!("{}\n", &digest[..32]), 0o444)
    }

    /// What a user's own Podman needs of a host, as Debian has it: ids below the user, and a device for the
    /// network's way out. There is no systemd, so nobody has a runtime directory and nobody's processes end at logout.
    fn users_podman(&self) -> Result<(), LabError> {
        for file in ["etc/subuid", "etc/subgid"] {
            self.write(file, &format!("{}:200000:65536\n", ssh::USER), 0o644)?;
        }
        // The machine's own is root's alone, and udev is not here to change that.
        self.tmpfs("dev/net", "mode=755")?;
        let tun = self.inside("dev/net/tun");
        run(command("mknod", ["-m", "666"]).arg(&tun).args(["c", "10", "200"]))?;
        // The kernel lets a user's containers mount a /proc only where one is to be seen whole (`mount_too_revealing` in fs/namespace.c), and
        // the host's own has the boot id covered. Not where tests search every file for a secret: this one has no end.
        let whole = self.inside("srv/proc");
        dir(&whole)?;
        attach("proc", "proc", &whole, "")?;
        let script = format!(
            "#!/bin/sh\ncd /\nexec setpriv --reuid {USER_ID} --regid {USER_ID} --clear-groups env -i HOME=/home/{0} USER={0} PATH=\"$PATH\" \
             /usr/bin/podman \"$@\"\n",
            ssh::USER
        );
        self.write(USERS_PODMAN, &script, 0o755)
    }

    /// Root may log in by key, and so may one user who is not root, who has sudo unless they are to do without.
    fn users(&self, rootless: bool) -> Result<(), LabError> {
        let name = ssh::USER;
        for (file, line, mode) in [
            ("etc/passwd", format!("{name}:x:{USER_ID}:{USER_ID}::/home/{name}:/bin/sh"), 0o644),
            ("etc/group", format!("{name}:x:{USER_ID}:"), 0o644),
            ("etc/shadow", format!("{name}:*:20000:0:99999:7:::"), 0o640),
        ] {
            let path = self.inside(file);
            let text = fs::read_to_string(&path).map_err(LabError::file("read", &path))?;
            let mut lines: Vec<String> =
                text.lines().filter(|old| !old.starts_with(&format!("{name}:"))).map(str::to_owned).collect();
            for old in &mut lines {
                // sshd without PAM takes a password field that begins with `!` for a locked account.
                if let Some(rest) = old.strip_prefix("root:!") {
                    *old = format!("root:*{}", rest.trim_start_matches(['!', '*']));
                }
            }
            lines.push(line);
            self.write(file, &format!("{}\n", lines.join("\n")), mode)?;
        }
        let home = self.inside(format!("home/{name}"));
        std::os::unix::fs::chown(&home, Some(USER_ID), Some(USER_ID)).map_err(LabError::file("give away", &home))?;
        if self.inside("etc/sudoers.d").is_dir() && !rootless {
            self.write("etc/sudoers.d/lab", &format!("{name} ALL=(ALL) NOPASSWD: ALL\n"), 0o440)?;
        }
        Ok(())
    }

    fn pivot(&self) -> Result<(), LabError> {
        let old = self.inside("run/lab/machine");
        dir(&old)?;
        pivot_root(&self.0, &old).map_err(LabError::system("change the root"))?;
        rustix::process::chdir("/").map_err(LabError::system("go to the new root"))?;
        unmount("/run/lab/machine", UnmountFlags::DETACH).map_err(LabError::system("let go of the old root"))?;
        fs::remove_dir("/run/lab/machine").map_err(LabError::file("remove", "/run/lab/machine"))
    }
}

fn attach(source: &str, kind: &str, target: &Path, options: &str) -> Result<(), LabError> {
    let action = format!("mount {kind} on `{}`", target.display());
    let data = CString::new(options).map_err(|_| LabError::Spec { reason: "a path with a zero byte".to_owned() })?;
    mount(source, target, kind, MountFlags::empty(), data.as_c_str()).map_err(LabError::system(action))
}

fn dir(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(LabError::file("create", path))
}
