//! Images and commands that mean harm: nothing they do reaches this machine. As root, like the other steps.

mod image;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use image::{Image, needs_root};
use jiji_sandbox::{Exit, Failure, RunError};

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
    needs_root!();
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
