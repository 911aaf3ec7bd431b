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
    let named = |name: &str| images.iter().find(|image| image.name.starts_with(name)).ok_or("no such image");
    let python = &named("python:")?.reference;
    let proxy = &named("kamal-proxy:")?.reference;
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
fn the_examples_pin_the_bases_that_the_lab_builds() -> Outcome {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    for (example, bases) in [
        ("hello/Dockerfile", &[Base::Python][..]),
        ("recipe-static/Dockerfile", &[Base::Compiler]),
        ("recipe-static/image.toml", &[Base::Compiler]),
        ("recipe-python/Dockerfile", &[Base::Python, Base::Pip]),
        ("recipe-python/image.toml", &[Base::Python, Base::Pip]),
    ] {
        let text = std::fs::read_to_string(format!("{examples}/{example}"))?;
        let pins = bases.iter().map(|base| format!("lab.test/{}@{}", base.name(), base.digest()));
        for pin in pins {
            assert!(text.contains(&pin), "{example} should say `{pin}`");
        }
        assert_eq!(text.matches("lab.test/").count(), bases.len(), "{example}");
    }
    Ok(())
}
