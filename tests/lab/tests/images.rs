//! The lab's images on real engines, through the independent registry. They need root, the packages that `cargo xtask test`
//! installs, Go, and the network for what is not in the cache yet.

use jiji_lab::{Engines, Lab, Spec, command, images::Base};

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[test]
fn the_labs_images_run_on_both_engines_by_digest() -> Outcome {
    let lab = Lab::up(&Spec::new(2, Engines::Mixed).program(env!("CARGO_BIN_EXE_lab")))?;
    let images = lab.images()?;
    for image in &images {
        let inspect = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}"];
        let seen =
            command::run(lab.operator_command("skopeo").args(inspect).arg(format!("docker://{}", image.reference)))?;
        assert_eq!(String::from_utf8_lossy(&seen).trim(), image.digest);
    }
    let python = &images[1].reference;
    let proxy = &images[2].reference;
    for host in lab.hosts() {
        let words = ["run", "--rm", python, "python3", "-c", "import asyncio, hashlib; print(6 * 7)"];
        assert_eq!(host.engine(&words)?.trim(), "42");
        host.engine(&["run", "-d", "--name", "proxy", proxy])?;
        let listed = host.engine(&["exec", "proxy", "/kamal-proxy", "list"])?;
        assert!(listed.contains("Service"), "{listed}");
    }
    lab.down()?;
    Ok(())
}

#[test]
fn the_example_pins_the_base_that_the_lab_builds() -> Outcome {
    let dockerfile = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/hello/Dockerfile");
    let text = std::fs::read_to_string(dockerfile)?;
    let from = format!("FROM lab.test/{}@{}", Base::Python.name(), Base::Python.digest());
    assert!(text.lines().any(|line| line == from), "{dockerfile} should say `{from}`");
    Ok(())
}
