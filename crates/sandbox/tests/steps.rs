//! Steps for real: as root, in a root file system made of busybox alone. Without root each test says why it did nothing.

mod image;




use image::{Image, needs_root};
use jiji_sandbox::Exit;

#[test]
fn a_step_runs_and_its_changes_are_told() {
    needs_root!();
    let image = Image::new();
    let ran = image.sh("echo hello; echo oops >&2; mkdir /made; echo content > /made/file; rm /etc/motd; exit 3");
    assert_eq!(ran.exit, Exit::Code(3));
    assert_eq!(ran.out, "hello\n");
    assert_eq!(ran.err, "oops\n");
    assert_eq!(ran.changed, ["- etc/motd", "+ made", "+ made/file"]);
}
