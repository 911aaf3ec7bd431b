//! Images and commands that mean harm: nothing they do reaches this machine. As root, like the other steps.

mod image;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use image::{Image, needs_machines_root, needs_root};
use jiji_sandbox::{Exit, Failure, Mount, Network, RunError, Source, Step};

#[test]
fn a_link_in_place_of_a_mount_point_is_refused() {
    needs_root!();
    for name in ["proc", "sys", "dev"] {
        let image = Image::new();
        let outside = image.dir.path().join("outside");
        fs::create_dir(&outside).expect("a directory of the host");
        symlink(&outside, image.base(name)).expect("link");
        let refused = image.run(&image.step("true")).err();
        let Some(RunError::Failed(Failure::Obstructed { path })) = refused else {
            panic!("{name}: {refused:?}");
        };
        assert_eq!(path, Path::new("/").join(name));
        fs::remove_file(image.base(name)).expect("link");
        fs::write(image.base(name), "").expect("file");
        assert!(matches!(image.run(&image.step("true")).err(), Some(RunError::Failed(Failure::Obstructed { .. }))));
        assert_eq!(fs::read_dir(&outside).expect("outside").count(), 0);
    }
}

#[test]
fn links_under_etc_lead_nowhere_but_into_the_image() {
    needs_root!();
    let image = Image::new();
    let outside = image.dir.path().join("outside");
    fs::write(&outside, "the host's\n").expect("a file of the host");
    let up = PathBuf::from("../../../../../../../..").join(outside.strip_prefix("/").expect("absolute"));
    symlink(&outside, image.base("etc/hosts")).expect("link");
    symlink(&up, image.base("etc/hostname")).expect("link");
    symlink("/run/elsewhere", image.base("etc/resolv.conf")).expect("link");
    let ran = image.sh("cat /etc/hosts /etc/hostname /etc/resolv.conf; echo x > /etc/hosts; true");
    assert!(!ran.out.contains("the host's"), "{}", ran.out);
    assert_eq!(fs::read_to_string(&outside).expect("outside"), "the host's\n");
}

#[test]
fn a_passwd_that_is_no_file_is_refused() {
    needs_root!();
    let image = Image::new();
    fs::remove_file(image.base("etc/passwd")).expect("passwd");
    let made = image.sh("mkfifo /etc/passwd");
    assert_eq!(made.exit, Exit::Code(0));
    let mut step = image.step("true");
    step.layers.push(made.scratch.upper());
    let refused = image.run(&step).err();
    assert!(matches!(&refused, Some(RunError::Failed(Failure::OddAccounts { .. }))), "{refused:?}");

    // A link out of the image is a link within it.
    symlink("/etc/shadow", image.base("etc/passwd")).expect("link");
    let mut step = image.step("id -u");
    step.user = Some("root".to_owned());
    let refused = image.run(&step).err();
    assert!(matches!(&refused, Some(RunError::Failed(Failure::UnknownUser { .. }))), "{refused:?}");
}

#[test]
fn devices_that_a_step_makes_cannot_be_opened() {
    needs_machines_root!();
    let image = Image::new();
    let ran = image.sh(
        "for at in /null /dev/null2 /dev/shm/null; do mknod $at c 1 3; cat $at && echo opened $at; done; \
         cat /dev/null && echo fine; echo x > /dev/null && echo written; dd if=/dev/zero bs=4 count=1 2>/dev/null | wc -c",
    );
    assert_eq!(ran.out, "fine\nwritten\n4\n", "{}", ran.err);
    assert_eq!(ran.changed, ["+ null"]);
}

#[test]
fn the_kernels_files_cannot_be_written() {
    needs_root!();
    let image = Image::new();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    let ran = image.sh(
        "echo '|/bin/sh' > /proc/sys/kernel/core_pattern; echo b > /proc/sysrq-trigger; echo 1 > /sys/kernel/mm/ksm/run; \
         mount -o remount,rw /proc/sys; umount /proc/sys; umount /proc/sysrq-trigger; \
         cat /proc/kcore /proc/keys | wc -c; cat /proc/meminfo /proc/cpuinfo >/dev/null && echo readable; \
         find /proc -maxdepth 1 -type f -perm -u+w -not -path '*/[0-9]*' | while read f; do ( : >> $f ) 2>/dev/null && echo writable $f; done",
    );
    let out: Vec<&str> = ran.out.lines().collect();
    assert_eq!(out[..2], ["0", "readable"], "{}", ran.err);
    // What is hidden is this sandbox's `/dev/null`, laid over it: opening it for writing fails or writes nowhere.
    assert!(out[2..].is_empty(), "{out:?}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern"), pattern);
}

#[test]
fn a_step_has_dockers_capabilities_and_no_more() {
    needs_root!();
    let image = Image::new();
    let ran = image.sh("grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; grep -E '^Cap' /proc/1/status");
    assert_eq!(
        ran.out,
        "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n\
         CapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n\
         CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
         CapAmb:\t0000000000000000\n"
    );
    let mut step = image.step("grep -E '^Cap(Eff|Bnd)' /proc/self/status; cp /bin/busybox /tmp/b");
    step.user = Some("app".to_owned());
    let ran = image.run(&step).expect("begins");
    assert_eq!(ran.out, "CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n");
}

#[test]
fn system_calls_that_lead_out_are_denied() {
    needs_root!();
    let image = Image::new();
    let ran = image.sh(
        "mount -t tmpfs x /tmp; echo $?; umount /etc/hosts; echo $?; unshare -m true; echo $?; unshare -U true; echo $?; \
         hostname other; echo $?; date -s 2000-01-01; mkdir /tmp/r /tmp/r/bin; cp /bin/busybox /tmp/r/bin/; chroot /tmp/r /bin/busybox true; echo chroot $?",
    );
    assert_eq!(ran.out.lines().filter(|line| *line == "1").count(), 5, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("chroot 0"), "{}{}", ran.out, ran.err);
}

#[test]
fn the_helpers_program_cannot_be_written_through_proc() {
    needs_root!();
    let image = Image::new();
    // CVE-2019-5736: let the helper execute itself, as the step's program or as a script's interpreter, and open what runs.
    fs::write(image.base("bin/again"), "#!/proc/self/exe\n").expect("script");
    fs::set_permissions(image.base("bin/again"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    symlink("/proc/self/exe", image.base("bin/me")).expect("link");
    let program = env!("CARGO_BIN_EXE_jiji-sandbox");
    let before = fs::read(program).expect("the helper");
    for name in ["/bin/again", "/bin/me"] {
        let mut step = image.step("");
        step.argv = image::argv(&[name]);
        // Whether it runs at all depends on how the helper is linked.
        let _ = image.run(&step);
    }
    let ran = image.sh("for p in 1 self $$; do ( : >> /proc/$p/exe ) 2>/dev/null && echo written; done; \
         exec 3</proc/1/exe && echo opened; true");
    assert_eq!(ran.out, "", "{}", ran.err);
    assert!(fs::read(program).expect("the helper") == before);
}

#[test]
fn descriptors_of_the_host_do_not_come_along() {
    needs_root!();
    let image = Image::new();
    let ran = image.sh("ls /proc/self/fd");
    // 0 to 2, and the one that lists.
    assert_eq!(ran.out, "0\n1\n2\n3\n", "{}", ran.err);
}

#[test]
fn a_step_with_the_machines_network_can_talk_and_nothing_more() {
    needs_root!();
    let image = Image::new();
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = server.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in server.incoming().flatten() {
            let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        }
    });
    let step = |script: &str| Step { network: Network::Machine, ..image.step(script) };
    let run = |script: &str| image.run(&step(script)).expect("begins");

    let ran = run(&format!(
        "wget -q -O - http://{at}/ && echo; cat /etc/hostname; grep -E '^Cap(Eff|Bnd)' /proc/self/status"
    ));
    assert_eq!(
        ran.out, "hello\nlocalhost\nCapEff:\t00000000a80401fb\nCapBnd:\t00000000a80401fb\n",
        "Docker's without NET_RAW and NET_BIND_SERVICE: {}",
        ran.err
    );
    let shown = run("cat /etc/resolv.conf").out;
    assert_eq!(shown, fs::read_to_string("/etc/resolv.conf").unwrap_or(shown.clone()));
    assert_eq!(run("touch /etc/resolv.conf; echo x >> /etc/hosts; true").changed, [] as [&str; 0]);

    for (name, poke) in [
        ("set up an interface", "ip link add x type dummy"),
        ("take one down", "ip link set lo down"),
        ("add an address", "ip addr add 192.0.2.7/32 dev lo"),
        ("stand in for a service", "nc -l -p 81 -w 1"),
        ("send raw packets", "busybox arping -I lo -c 1 -w 1 127.0.0.1"),
        ("listen to packets", "busybox udhcpc -i lo -n -q -t 1 -T 1"),
        ("write to a process's files", "echo 1 > /proc/self/oom_score_adj"),
        (
            "write to the network's files",
            "find /proc/self/net/ -type f -perm -u+w | while read f; do ( : >> $f ) && echo $f; done | grep .",
        ),
        ("write to a sysctl", "echo 1 > /proc/sys/net/ipv4/ip_forward"),
        ("another network namespace", "unshare -n true"),
        ("write to an interface", "echo 1 > /sys/class/net/lo/mtu"),
    ] {
        let ran = run(&format!("( {poke} ) >/dev/null 2>&1 && echo through; echo ended"));
        assert_eq!(ran.out, "ended\n", "{name}");
    }
}

#[test]
fn names_of_sockets_that_are_no_files_are_not_the_machines() {
    use std::os::linux::net::SocketAddrExt as _;
    needs_root!();
    if !Path::new("/usr/bin/perl").exists() {
        eprintln!("SKIPPED: /usr/bin/perl is not there");
        return;
    }
    let image = Image::new();
    let name = format!("jiji-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).expect("bound");
    for (link, to) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        symlink(to, image.base(link)).expect("linked");
    }
    let script = format!(
        "perl -e 'use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0) or die \"none\\n\"; \
         connect(S, pack_sockaddr_un(\"\\0{name}\")) or die \"refused\\n\"; print \"through\\n\"' 2>&1; \
         perl -e 'use Socket; socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) and print \"a pair\\n\"'"
    );
    let usr = Source::Layers { layers: vec!["/usr".into()], path: "/".into(), keep: None };
    let mounts = vec![Mount { target: "/usr".into(), source: usr, read_only: true }];
    for network in [Network::None, Network::Machine] {
        let step = Step { network, mounts: mounts.clone(), ..image.step(&script) };
        let ran = image.run(&step).expect("begins");
        assert!(
            ["refused\na pair\n", "none\na pair\n"].contains(&ran.out.as_str()),
            "{network:?}: {}{}",
            ran.out,
            ran.err
        );
    }
}

#[test]
fn a_step_that_pokes_at_the_machine_gets_nowhere() {
    needs_root!();
    let image = Image::new();
    let sentinel = image.dir.path().join("sentinel");
    fs::write(&sentinel, "the host's\n").expect("a file of the host");
    let sentinel = sentinel.to_str().expect("text");
    // What each prints where it gets through. The machine is asked afterwards, too.
    let pokes = [
        ("write to a sysctl", "echo 1 > /proc/sys/vm/drop_caches && echo through".to_owned()),
        ("write to its own core pattern", "echo x > /proc/sys/kernel/core_pattern && echo through".to_owned()),
        ("restart the machine", "echo b > /proc/sysrq-trigger && echo through".to_owned()),
        ("restart it by a call", "reboot -f && echo through".to_owned()),
        ("mount a file system", "mount -t tmpfs none /mnt && echo through".to_owned()),
        ("mount another proc", "mkdir -p /tmp/p; mount -t proc none /tmp/p && echo through".to_owned()),
        ("make a mount writable again", "mount -o remount,rw /proc/sys && echo through".to_owned()),
        ("bind a directory", "mount -o bind / /mnt && echo through".to_owned()),
        ("take a mount away", "umount /proc/sys && echo through".to_owned()),
        ("leave by another root", "pivot_root / /tmp && echo through".to_owned()),
        ("a user namespace", "unshare -U true && echo through".to_owned()),
        ("a mount namespace", "unshare -m true && echo through".to_owned()),
        ("a network namespace", "unshare -n true && echo through".to_owned()),
        ("a namespace of another process", "nsenter -t 1 -m true && echo through".to_owned()),
        ("load a module", "insmod /bin/busybox 2>/dev/null && echo through".to_owned()),
        ("set the clock", "date -s 2000-01-01 >/dev/null 2>&1; [ $(date +%Y) = 2000 ] && echo through".to_owned()),
        ("set the host's name", "hostname evil && echo through".to_owned()),
        ("swap to a file", "dd if=/dev/zero of=/tmp/s bs=4096 count=16 2>/dev/null; mkswap /tmp/s >/dev/null; swapon /tmp/s && echo through".to_owned()),
        ("read a file of the host", format!("cat {sentinel} && echo through")),
        ("read it through a process", format!("cat /proc/1/root{sentinel} && echo through")),
        ("read it through its directory", format!("cat /proc/1/cwd/../../../../..{sentinel} && echo through")),
        ("read the disk", "mknod /tmp/sda b 8 0; dd if=/tmp/sda bs=1 count=1 2>/dev/null && echo through".to_owned()),
        ("read memory", "mknod /tmp/mem c 1 1; dd if=/tmp/mem bs=1 count=1 2>/dev/null && echo through".to_owned()),
        ("read the kernel's log", "dmesg >/dev/null 2>&1 && echo through".to_owned()),
        ("read the kernel's memory", "[ -s /proc/kcore ] && echo through".to_owned()),
        ("read keys", "[ -s /proc/keys ] && echo through".to_owned()),
        ("look at the machine's processes", "[ $(ls /proc | grep -c '^[0-9]*$') -gt 12 ] && echo through".to_owned()),
        ("reach the network", "wget -q -T 2 -O - http://192.0.2.1/ && echo through".to_owned()),
        ("reach a name server", "nslookup example.com >/dev/null 2>&1 && echo through".to_owned()),
        ("set up an interface", "ip link add x type dummy && echo through".to_owned()),
        ("send what nobody answers", "ping -c 1 -W 1 192.0.2.1 >/dev/null && echo through".to_owned()),
        ("raise its own limits", "ulimit -n 1000000 && echo through".to_owned()),
        ("raise its priority", "nice -n -20 true 2>/dev/null; [ $(nice -n -20 nice) -lt 0 ] && echo through".to_owned()),
        ("write to firmware", "ls /sys/firmware/* >/dev/null 2>&1 && echo through".to_owned()),
        ("write to a control group", "mkdir /sys/fs/cgroup/evil && echo through".to_owned()),
        ("write to sysfs", "echo 1 > /sys/kernel/mm/ksm/run && echo through".to_owned()),
    ];
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    for (name, poke) in &pokes {
        let ran = image.sh(&format!("( {poke} ) 2>/dev/null; echo ended"));
        assert_eq!(ran.out, "ended\n", "{name}: {}", ran.err);
    }
    // Whoever kills the first process of the sandbox or all that it sees kills itself at most.
    for kill in ["kill -9 1", "kill -9 -1", "kill -TERM 2 1"] {
        let _ = image.run(&image.step(kill));
    }
    assert_eq!(image.sh("echo fine").out, "fine\n");
    assert_eq!(fs::read_to_string(sentinel).expect("still there"), "the host's\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern"), pattern);
    println!("{} pokes", pokes.len() + 3);
}
