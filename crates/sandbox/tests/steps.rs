//! Steps for real: as root, in a root file system made of busybox alone. Without root each test says why it did nothing.

mod image;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use image::{Image, argv, needs_machines_root, needs_root, sandbox};
use jiji_sandbox::{Canceller, Exit, Failure, Refusal, RunError, Scratch, probe};

#[test]
fn this_machine_is_probed() {
    needs_root!();
    let image = Image::new();
    let support = probe(&sandbox(), image.dir.path()).expect("the machine that tests run on can run steps");
    println!("{support:?}");
    assert!(support.kernel >= (5, 12));
    assert!(support.cpus >= 1);
}

#[test]
fn a_step_runs_and_its_changes_are_told() {
    needs_root!();
    let image = Image::new();
    let ran = image.sh("echo hello; echo oops >&2; mkdir /made; echo content > /made/file; rm /etc/motd; exit 3");
    assert_eq!(ran.exit, Exit::Code(3));
    assert_eq!(ran.out, "hello\n");
    assert_eq!(ran.err, "oops\n");
    assert_eq!(ran.changed, ["- etc/motd", "+ made", "+ made/file"]);
    assert_eq!((ran.outcome.output, ran.outcome.dropped), (11, 0));
    // A setuid program that a step leaves must not be there for this machine's other users.
    let room = ran.scratch.upper().parent().expect("scratch").to_owned();
    assert_eq!(fs::metadata(room).expect("scratch").mode() & 0o7777, 0o700);
}

#[test]
fn a_step_that_looks_around_changes_nothing() {
    needs_root!();
    let image = Image::new();
    let ran = image.sh("ls -la / /proc /sys /dev /etc >/dev/null; cat /etc/hosts /etc/resolv.conf /etc/hostname >/dev/null; \
        touch /etc/motd /root; echo 'welcome' > /etc/motd; chmod 700 /home; chmod 755 /home; echo 1 > /tmp/x; rm /tmp/x");
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Code(0), ""));
    assert_eq!(ran.changed, [] as [&str; 0]);
}

#[test]
fn the_same_step_gives_the_same_changes_twice() {
    needs_machines_root!();
    let image = Image::new();
    let script = "mkdir -p /a/b; for i in 1 2 3; do echo $i > /a/b/$i; done; ln /a/b/1 /a/one; ln -s b /a/link; chmod 4755 /a/b/2; \
        chown 7:8 /a/b/3; mkfifo /a/fifo; mknod /a/dev c 1 3; mknod /a/block b 7 9; rm /etc/motd; rmdir /home/app; mkdir /home/app";
    let list = |ran: &image::Ran| {
        let changes = sandbox().changes(&ran.scratch.upper(), &image.layers).expect("changes");
        changes.list().to_vec()
    };
    let (first, second) = (image.sh(script), image.sh(script));
    assert_eq!((first.exit, first.err.as_str()), (Exit::Code(0), ""));
    assert_eq!(list(&first), list(&second));
    assert_eq!(
        first.changed,
        [
            "+ a",
            "+ a/b",
            "+ a/b/1",
            "+ a/b/2",
            "+ a/b/3",
            "+ a/block",
            "+ a/dev",
            "+ a/fifo",
            "+ a/link",
            "+ a/one",
            "- etc/motd",
        ]
    );
}

#[test]
fn the_world_of_a_step_is_the_same_everywhere() {
    needs_root!();
    let image = Image::new();
    let mut step = image.step(
        "hostname; cat /proc/sys/kernel/domainname; umask; pwd; id -u; env | sort; nproc; \
         cat /sys/devices/system/cpu/online; ulimit -n; ulimit -Hn; ulimit -c; ulimit -s; cat /etc/hosts; cat /proc/self/personality; \
         readlink /proc/self/fd/0; cat /etc/hostname",
    );
    step.source_date_epoch = 1_700_000_000;
    step.env = vec![("LANG".into(), "de_DE".into()), ("A".into(), "1".into()), ("A".into(), "2".into())];
    let ran = image.run(&step).expect("the step begins");
    assert_eq!(ran.err, "");
    assert_eq!(
        ran.out,
        "localhost\n(none)\n0022\n/\n0\n\
         A=2\nHOME=/root\nLANG=de_DE\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/\nPYTHONHASHSEED=0\nSHLVL=1\n\
         SOURCE_DATE_EPOCH=1700000000\nTERM=dumb\nTZ=UTC\n\
         1\n0\n1024\n16384\n0\n8192\n127.0.0.1\tlocalhost\n::1\tlocalhost\n00040000\n/dev/null\nlocalhost\n"
    );
}

#[test]
fn a_step_sees_only_its_own_processes() {
    needs_root!();
    let image = Image::new();
    let ran = image.sh("echo $$; ls -d /proc/[0-9]*; cat /proc/1/environ; ls /proc/1/root /proc/1/fd; readlink /proc/1/exe; kill -9 1; echo on");
    let out: Vec<&str> = ran.out.lines().collect();
    assert_eq!(out[..2], ["2", "/proc/1"]);
    assert_eq!(out.last(), Some(&"on"), "{out:?}");
    assert!(out.iter().filter(|line| line.starts_with("/proc/")).count() <= 3, "{out:?}");
    assert!(ran.err.matches("Permission denied").count() >= 2, "{}", ran.err);
}

#[test]
fn a_step_sees_no_mount_and_no_path_of_the_host() {
    needs_root!();
    let image = Image::new();
    let ran = image.sh("cat /proc/self/mountinfo; echo ==; cat /proc/self/cgroup; ls /sys/fs/cgroup /sys/firmware");
    let (mounts, rest) = ran.out.split_once("==").expect("both parts");
    let points: Vec<&str> = mounts.lines().map(|line| line.split(' ').nth(4).expect("mount point")).collect();
    let known =
        |point: &&str| *point == "/" || ["/proc", "/sys", "/dev", "/etc/"].iter().any(|start| point.starts_with(start));
    assert!(points.iter().all(known), "{points:?}");
    assert!(!mounts.contains(image.dir.path().to_str().expect("utf-8")), "{mounts}");
    assert!(!rest.contains("jiji"), "{rest}");
    let writable: Vec<&str> =
        mounts.lines().filter(|line| line.split(' ').nth(5).is_some_and(|o| o.starts_with("rw"))).collect();
    for line in writable {
        let device = line.contains(" /dev/") && line.contains("devtmpfs");
        assert!(
            device || line.contains("nodev") || line.contains("devpts"),
            "a writable mount on which devices work: {line}"
        );
    }
}

#[test]
fn a_step_has_no_network_but_its_own() {
    needs_root!();
    let image = Image::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the host");
    let port = listener.local_addr().expect("address").port();
    let ran = image.sh(&format!(
        "ip -o link; nc -w 1 127.0.0.1 {port} </dev/null; echo host $?; nc -w 1 192.0.2.1 80 </dev/null; echo out $?; \
         (echo pong | nc -l -p 7777 &) ; sleep 0.2; nc 127.0.0.1 7777 </dev/null; ls /sys/class/net"
    ));
    assert!(ran.out.contains("host 1\n") && ran.out.contains("out 1\n"), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("pong\n"), "{}{}", ran.out, ran.err);
    assert_eq!(ran.out.lines().filter(|line| line.contains("mtu")).count(), 1, "{}", ran.out);
}

#[test]
fn a_step_runs_as_the_user_it_names() {
    needs_machines_root!();
    let image = Image::new();
    let mut step =
        image.step("id; echo $HOME; touch /home/app/mine && echo made; touch /etc/not; echo out > /dev/stdout");
    step.user = Some("app".to_owned());
    fs::set_permissions(image.base("home/app"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    let ran = image.run(&step).expect("the step begins");
    assert_eq!(
        ran.out, "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)\n/home/app\nmade\nout\n",
        "{}",
        ran.err
    );
    assert_eq!(ran.changed, ["+ home/app/mine"]);
    let made = fs::metadata(ran.scratch.upper().join("home/app/mine")).expect("made");
    assert_eq!((made.uid(), made.gid()), (1000, 1000));

    step.user = Some("4242:4343".to_owned());
    assert!(image.run(&step).expect("begins").out.starts_with("uid=4242 gid=4343 groups=4343\n/\n"));
    step.user = Some("ghost".to_owned());
    let refused = image.run(&step).err();
    assert!(
        matches!(&refused, Some(RunError::Failed(Failure::UnknownUser { name })) if name == "ghost"),
        "{refused:?}"
    );
}

#[test]
fn a_working_directory_is_made_where_it_is_missing() {
    needs_root!();
    let image = Image::new();
    symlink("/home/app", image.base("short")).expect("link");
    let mut step = image.step("pwd -P; touch here");
    step.workdir = PathBuf::from("/short/deep/er");
    let ran = image.run(&step).expect("the step begins");
    assert_eq!(ran.out, "/home/app/deep/er\n");
    assert_eq!(ran.changed, ["+ home/app/deep", "+ home/app/deep/er", "+ home/app/deep/er/here"]);
    for odd in ["/etc/motd/x", "/a/../../b"] {
        step.workdir = PathBuf::from(odd);
        let refused = image.run(&step).err();
        assert!(matches!(&refused, Some(RunError::Failed(Failure::Workdir { .. }))), "{refused:?}");
    }
}

#[test]
fn the_end_of_a_command_is_told_as_it_was() {
    needs_root!();
    let image = Image::new();
    assert_eq!(image.sh("exit 0").exit, Exit::Code(0));
    assert_eq!(image.sh("exit 255").exit, Exit::Code(255));
    assert_eq!(image.sh("kill -TERM $$").exit, Exit::Signal(15));
    assert_eq!(image.sh("kill -KILL $$").exit, Exit::Signal(9));
    // What it leaves running ends with it, and does not keep its output open.
    let began = Instant::now();
    let ran = image.sh("nohup sleep 60 & setsid sleep 60 & echo gone");
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Code(0), "gone\n"));
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_program_that_cannot_be_run_is_named() {
    needs_root!();
    let image = Image::new();
    fs::write(image.base("bin/script"), "#!/bin/nothing\n").expect("script");
    fs::set_permissions(image.base("bin/script"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let error = |words: &[&str]| {
        let mut step = image.step("");
        step.argv = argv(words);
        image.run(&step).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(error(&["nothing", "x"]), "find program `nothing` in the image");
    assert_eq!(error(&["/bin/nothing"]), "find program `/bin/nothing` in the image");
    assert_eq!(error(&["/etc/motd"]), "run program `/etc/motd`: Permission denied (os error 13)");
    assert_eq!(error(&["script"]), "run program `script`: No such file or directory (os error 2)");
    assert_eq!(error(&[]), "find program `` in the image");
    assert_eq!(error(&["/bin/sh", "-c", "a\0b"]), "pass an argument or variable that holds a zero byte");
    let mut step = image.step("");
    step.argv = argv(&["echo", "found in PATH"]);
    assert_eq!(image.run(&step).expect("begins").out, "found in PATH\n");
}

#[test]
fn too_few_processors_are_an_error_rather_than_another_result() {
    needs_root!();
    let image = Image::new();
    let mut step = image.step("true");
    step.limits.cpus = NonZeroU32::new(1000).expect("not zero");
    let refused = image.run(&step).err();
    assert!(matches!(refused, Some(RunError::Failed(Failure::TooFewCpus { wanted: 1000, .. }))), "{refused:?}");
}

#[test]
fn output_is_bounded_and_the_step_goes_on() {
    needs_root!();
    let image = Image::new();
    let mut step = image.step("dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' 'x'; echo; echo end > /end");
    step.limits.output = 100_000;
    let ran = image.run(&step).expect("the step begins");
    assert_eq!(ran.exit, Exit::Code(0));
    assert_eq!(ran.out.bytes().filter(|&byte| byte == b'x').count(), 100_000);
    assert_eq!(ran.outcome.output, (8 << 20) + 1);
    assert_eq!(ran.outcome.dropped, (8 << 20) + 1 - 100_000);
    assert_eq!(ran.changed, ["+ end"]);
}

/// How many processes of the machine have this in their command line.
fn processes_with(marker: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(marker)).count()
}

#[test]
fn at_the_deadline_everything_is_killed() {
    needs_root!();
    let image = Image::new();
    let marker = format!("987{}", std::process::id());
    let mut step = image.step(&format!(
        "trap '' TERM INT HUP; for i in 1 2 3; do setsid sh -c \"trap '' TERM; sleep {marker}\" & done; echo up; sleep {marker}"
    ));
    step.limits.time = Some(Duration::from_millis(400));
    let began = Instant::now();
    let ran = image.run(&step).expect("the step begins");
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::TimedOut, "up\n"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(processes_with(&marker), 0);
}

#[test]
fn a_canceller_kills_everything() {
    needs_root!();
    let image = Image::new();
    let marker = format!("986{}", std::process::id());
    let canceller = Canceller::new().expect("canceller");
    let other = canceller.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        other.cancel();
    });
    let sandbox = sandbox().cancelled_by(canceller);
    let ran =
        image.run_in(&sandbox, &image.step(&format!("sleep {marker} & sleep {marker}"))).expect("the step begins");
    thread.join().expect("the other thread");
    assert_eq!(ran.exit, Exit::Cancelled);
    assert_eq!(processes_with(&marker), 0);
    // Used once, it ends later steps too.
    let ran = image.run_in(&sandbox, &image.step("sleep 60")).expect("the step begins");
    assert_eq!(ran.exit, Exit::Cancelled);
}

#[test]
fn a_killed_caller_takes_the_step_with_it() {
    needs_machines_root!();
    const VICTIM: &str = "JIJI_SANDBOX_TEST_VICTIM";
    if let Ok(marker) = std::env::var(VICTIM) {
        let image = Image::new();
        let scratch = Scratch::new(&sandbox(), image.dir.path()).expect("scratch");
        let step = image.step(&format!("echo up {}; sleep {marker} & sleep {marker}", image.dir.path().display()));
        let _ = sandbox().run(&step, &scratch, &mut |_, line| println!("{}", String::from_utf8_lossy(line)));
        return;
    }
    let marker = format!("985{}", std::process::id());
    let mut victim = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_killed_caller_takes_the_step_with_it", "--nocapture", "--test-threads=1"])
        .env(VICTIM, &marker)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the victim starts");
    let mut lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
    let dir = lines.find_map(|line| Some(line.ok()?.split_once("up ")?.1.to_owned())).expect("the step has begun");
    assert!(processes_with(&marker) > 0);
    victim.kill().expect("killed");
    assert_eq!(victim.wait().expect("ended").signal(), Some(9));
    let patience = Instant::now() + Duration::from_secs(10);
    while processes_with(&marker) > 0 {
        assert!(Instant::now() < patience, "the step outlived its caller");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!mounted_anywhere(&dir));
    fs::remove_dir_all(dir).expect("nothing in it is busy");
    // What it could not remove, the next step does.
    assert_eq!(Image::new().sh("true").exit, Exit::Code(0));
    let name = format!("jiji-run-*-{}-*", victim.id());
    let left = Command::new("find").args(["/sys/fs/cgroup", "-name", &name]).output().expect("find");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

/// Whether any process of the machine has a mount with this in it.
fn mounted_anywhere(path: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let mut tables = processes.filter_map(|entry| fs::read_to_string(entry.path().join("mountinfo")).ok());
    tables.any(|table| table.contains(path))
}

#[test]
fn nothing_is_left_behind() {
    needs_root!();
    let image = Image::new();
    let dir = image.dir.path().to_str().expect("utf-8").to_owned();
    for script in ["true", "exit 1", "sleep 60 &"] {
        let ran = image.sh(script);
        assert!(!mounted_anywhere(&dir));
        drop(ran);
    }
    let mut step = image.step("true");
    step.user = Some("ghost".to_owned());
    assert!(image.run(&step).is_err());
    assert!(!mounted_anywhere(&dir));
    let left: Vec<_> = fs::read_dir(&dir).expect("test directory").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["base"]);
    let own = format!("jiji-run-*-{}-*", std::process::id());
    let cgroups = Command::new("find").args(["/sys/fs/cgroup", "-name", &own]).output().expect("find");
    // Tests run side by side in this process, so a directory may be in use; none may stay.
    for dir in String::from_utf8_lossy(&cgroups.stdout).lines() {
        let patience = Instant::now() + Duration::from_secs(20);
        while Path::new(dir).exists() {
            assert!(Instant::now() < patience, "{dir} stays");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_fork_bomb_is_bounded() {
    needs_machines_root!();
    let image = Image::new();
    if !probe(&sandbox(), image.dir.path()).expect("probed").processes_bounded {
        eprintln!("SKIPPED: this machine has no cgroup that bounds processes");
        return;
    }
    let mut step = image.step("i=0; while [ $i -lt 200 ]; do sleep 30 & i=$((i+1)); done; echo all");
    step.limits.processes = 20;
    step.limits.time = Some(Duration::from_secs(10));
    let ran = image.run(&step).expect("the step begins");
    assert!(ran.outcome.processes_bounded);
    assert!(!ran.out.contains("all") || ran.err.contains("fork"), "{}{}", ran.out, ran.err);
    let mut step = image.step("bomb() { bomb | bomb & }; bomb; sleep 1; ls -d /proc/[0-9]* | wc -l");
    step.limits.processes = 50;
    step.limits.time = Some(Duration::from_secs(3));
    let ran = image.run(&step).expect("the step begins");
    println!("{:?} {}", ran.exit, ran.out);
}

#[test]
fn memory_is_bounded_where_the_machine_can() {
    needs_root!();
    let image = Image::new();
    if !probe(&sandbox(), image.dir.path()).expect("probed").memory_bounded {
        eprintln!("SKIPPED: this machine has no cgroup that bounds memory");
        return;
    }
    let mut step = image.step(
        "dd if=/dev/zero of=/dev/null bs=256M count=1; echo $?; dd if=/dev/zero of=/dev/null bs=1M count=1; echo $?",
    );
    step.limits.memory = Some(64 << 20);
    let ran = image.run(&step).expect("the step begins");
    assert_eq!(ran.out, "137\n0\n", "{}", ran.err);
}

#[test]
fn a_step_costs_little() {
    needs_root!();
    let image = Image::new();
    let mut times: Vec<Duration> = (0..15).map(|_| image.sh("true").outcome.elapsed).collect();
    times.sort_unstable();
    println!("a step that does nothing: median {:?}, from {:?} to {:?}", times[7], times[0], times[14]);
    assert!(times[7] < Duration::from_secs(1));
}

#[test]
fn a_nest_deeper_than_a_path_is_told_and_removed() {
    needs_root!();
    let image = Image::new();
    let name = "n".repeat(200);
    // Built from the bottom up, since no path can name the whole.
    let step = image.step(&format!(
        "mkdir /nest; i=0; while [ $i -lt 60 ]; do mkdir /up && mv /nest /up/{name} && mv /up /nest || exit 1; i=$((i+1)); done"
    ));
    let scratch = Scratch::new(&sandbox(), image.dir.path()).expect("scratch");
    let outcome = sandbox().run(&step, &scratch, &mut |_, _| {}).expect("the step begins");
    assert_eq!(outcome.exit, Exit::Code(0));
    let told = sandbox().changes(&scratch.upper(), &image.layers).err();
    assert!(matches!(told, Some(jiji_sandbox::ChangeError::Io { .. })), "{told:?}");
    let room = scratch.upper().parent().expect("scratch").to_owned();
    drop(scratch);
    assert!(!room.exists());
}

/// Runs one test of this file again in another process, through `with`.
fn again(test: &str, variable: &str, value: &str, with: &[&str]) {
    let this = std::env::current_exe().expect("this test");
    let run = Command::new(with[0])
        .args(&with[1..])
        .arg(this)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(variable, value)
        .output()
        .expect("util-linux is installed");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && out.contains("1 passed"), "{out}{err}");
}

#[test]
fn a_machine_without_the_right_is_refused() {
    const INNER: &str = "JIJI_SANDBOX_TEST_UNPRIVILEGED";
    if std::env::var_os(INNER).is_none() {
        needs_machines_root!();
        let without = ["setpriv", "--bounding-set", "-sys_admin,-setuid"];
        again("a_machine_without_the_right_is_refused", INNER, "1", &without);
        return;
    }
    let image = Image::new();
    let refused = probe(&sandbox(), image.dir.path()).expect_err("no CAP_SYS_ADMIN and no CAP_SETUID");
    assert!(matches!(refused, Refusal::NoIds), "{refused:?}");
    assert!(refused.hint().contains("CAP_SYS_ADMIN"));
    let refused = image.run(&image.step("true")).err();
    assert!(matches!(refused, Some(RunError::Refused(Refusal::NoIds))), "{refused:?}");
}

#[test]
fn a_scratch_directory_on_an_overlay_is_refused() {
    const INNER: &str = "JIJI_SANDBOX_TEST_OVERLAY";
    let Some(dir) = std::env::var_os(INNER) else {
        needs_machines_root!();
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let at = dir.path().to_str().expect("utf-8");
        let script = format!(
            "mount -t overlay overlay -o lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work {at}/merged && exec \"$@\""
        );
        again(
            "a_scratch_directory_on_an_overlay_is_refused",
            INNER,
            &format!("{at}/merged"),
            &["unshare", "-m", "sh", "-c", &script, "sh"],
        );
        return;
    };
    let refused = probe(&sandbox(), Path::new(&dir)).expect_err("an overlay on an overlay");
    assert!(matches!(refused, Refusal::UnfitFileSystem { .. }), "{refused:?}");
    assert!(refused.hint().contains("XDG_CACHE_HOME"));
}

#[test]
fn an_image_may_have_as_many_layers_as_images_have() {
    needs_root!();
    let mut image = Image::new();
    for number in 0..127 {
        let layer = image.dir.path().join(format!("layer{number}"));
        fs::create_dir(&layer).expect("layer");
        fs::write(layer.join(format!("file{number}")), number.to_string()).expect("file");
        fs::write(layer.join("top"), number.to_string()).expect("file");
        image.layers.push(layer);
    }
    let ran = image.sh("ls /file* | wc -l; cat /top; echo same > /top; rm /file5");
    assert_eq!(ran.out, "127\n126\n", "{}", ran.err);
    assert_eq!(ran.changed, ["- file5", "~ top"]);
    image.layers = image.layers.iter().cycle().take(400).cloned().collect();
    let refused = image.run(&image.step("true")).err();
    assert!(matches!(refused, Some(RunError::Failed(Failure::TooManyLayers { .. }))), "{refused:?}");
}

#[test]
fn layers_and_scratch_may_lie_on_different_file_systems() {
    needs_root!();
    let image = Image::new();
    let other = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let scratch = Scratch::new(&sandbox(), other.path()).expect("scratch");
    let step = image.step("echo more >> /etc/motd; rm -r /home; mkdir /home; ls -la / >/dev/null");
    let outcome = sandbox().run(&step, &scratch, &mut |_, _| {}).expect("the step begins");
    assert_eq!(outcome.exit, Exit::Code(0));
    let changes = sandbox().changes(&scratch.upper(), &image.layers).expect("changes");
    let paths: Vec<_> = changes.list().iter().map(|change| change.path.as_path()).collect();
    assert_eq!(paths, [Path::new("etc/motd"), Path::new("home/app")]);
}

#[test]
fn no_file_tells_when_a_step_began() {
    needs_root!();
    let image = Image::new();
    fs::remove_dir_all(image.base("etc")).expect("accounts");
    let mut step = image.step("stat -c '%n %Y' /etc /etc/*");
    step.source_date_epoch = 12_345;
    let ran = image.run(&step).expect("the step begins");
    let expected = "/etc 12345\n/etc/hostname 12345\n/etc/hosts 12345\n/etc/resolv.conf 12345\n";
    assert_eq!(ran.out, expected, "{}", ran.err);
}

#[test]
fn a_listener_of_the_steps_own_network_is_handed_over_before_the_command_begins() {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    needs_root!();
    let image = Image::new();
    let wall = UnixListener::bind(image.dir.path().join("wall")).expect("a socket");
    let mut step = image
        .step("nc 127.0.0.1 3128 < /etc/hostname; ls /proc/self/fd | wc -l; nc -w 1 127.0.0.1 3129 || echo nobody");
    step.proxy = Some(image.dir.path().join("wall"));
    let served = std::thread::spawn(move || {
        let listener = jiji_sandbox::receive_listener(&wall.accept().expect("connected").0).expect("a listener");
        let (mut stream, _) = listener.accept().expect("a client");
        let mut said = String::new();
        stream.write_all(b"from outside\n").expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("ended");
        stream.read_to_string(&mut said).expect("read");
        said
    });
    let ran = image.run(&step).expect("the step begins");
    assert_eq!(ran.out, "from outside\n4\nnobody\n", "{}", ran.err);
    assert_eq!(served.join().expect("served"), "localhost\n");

    step.proxy = Some(image.dir.path().join("nobody"));
    let failed = image.run(&step).err().expect("nobody takes it");
    assert!(failed.to_string().starts_with("hand over the listener of the proxy: "), "{failed}");
}
