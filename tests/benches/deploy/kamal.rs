//! Kamal 2.11.0 with its proxy, on the hosts that jiji was on before. The program's path comes in `JIJI_KAMAL`.

use std::fs;
use std::path::Path;
use std::process::Command;

use jiji_e2e::{Outcome, Site};
use jiji_lab::Host;

use super::{Cost, Costs, HOSTS, measured, median, rounds};

/// The image of the proxy as Kamal names it, without a registry.
const PROXY: &str = "basecamp/kamal-proxy:v0.9.2";

fn config(site: &Site, hosts: &[Host]) -> Outcome<String> {
    let record = site.lab.record();
    let addresses: Vec<String> = hosts
        .iter()
        .map(|host| Ok(format!("{:?}", record.host(&host.name)?.ssh_address.to_string())))
        .collect::<Outcome<_>>()?;
    let key = site.lab.ssh_config().with_file_name("id_ed25519");
    Ok(format!(
        r#"service: hello
image: hello
servers:
  web:
    hosts: [{hosts}]
registry:
  server: "{registry}"
  username: lab
  password: [KAMAL_REGISTRY_PASSWORD]
builder:
  arch: amd64
ssh:
  user: root
  keys: ["{key}"]
  keys_only: true
env:
  clear:
    GREETING: hello
  secret: [HELLO_KEY]
proxy:
  host: hello.test
  app_port: 8080
  healthcheck:
    path: /up
    interval: 1
"#,
        hosts = addresses.join(", "),
        registry = site.lab.registry()?.address,
        key = key.display()
    ))
}

/// Kamal with these arguments, where the operator is.
fn kamal(site: &Site, dir: &Path, args: &[&str]) -> Outcome<Command> {
    let program = std::env::var_os("JIJI_KAMAL").ok_or("JIJI_KAMAL names no kamal; `cargo xtask bench deploy` does")?;
    let mut command = site.lab.operator_command(program);
    command.args(args).current_dir(dir).env("HOME", dir.join("home"));
    Ok(command)
}

fn run(site: &Site, dir: &Path, args: &[&str]) -> Outcome {
    jiji_lab::command::run(&mut kamal(site, dir, args)?)?;
    Ok(())
}

/// Measures it.
///
/// # Errors
/// When Kamal fails.
pub fn costs(site: &Site) -> Outcome<Costs> {
    let registry = &site.lab.registry()?.address;
    // As deploy files name it, its registry is a name that only jiji is told about.
    let proxy = site.lab.kamal_proxy_image()?.pinned.replacen("lab.test", registry, 1);
    for host in site.hosts() {
        host.engine(&["pull", "--quiet", &proxy])?;
        host.engine(&["tag", &proxy, PROXY])?;
    }
    let mut costs = Costs::new();
    for count in HOSTS {
        super::clear(site)?;
        let hosts: Vec<Host> = site.hosts().into_iter().take(count).collect();
        let dir = tempfile::Builder::new().prefix("kamal-").tempdir()?;
        for part in ["config", ".kamal", "home/.ssh"] {
            fs::create_dir_all(dir.path().join(part))?;
        }
        fs::write(dir.path().join("config/deploy.yml"), config(site, &hosts)?)?;
        fs::write(dir.path().join(".kamal/secrets"), "KAMAL_REGISTRY_PASSWORD=lab\nHELLO_KEY=x\n")?;
        let record = site.lab.record();
        let mut known = String::new();
        for host in &hosts {
            let public = fs::read_to_string(record.host(&host.name)?.dir.join("host_key.pub"))?;
            let words: Vec<&str> = public.split_ascii_whitespace().take(2).collect();
            known.push_str(&format!("{} {}\n", record.host(&host.name)?.ssh_address, words.join(" ")));
        }
        fs::write(dir.path().join("home/.ssh/known_hosts"), known)?;
        run(site, dir.path(), &["setup", "--skip-push", "--version", "v1"])?;
        let (mut new, mut same): (Vec<Cost>, Vec<Cost>) = (Vec::new(), Vec::new());
        for number in 2..=rounds() + 1 {
            let version = format!("v{number}");
            let args = ["deploy", "--skip-push", "--version", &version];
            for taken in [&mut new, &mut same] {
                let cost = measured(&hosts, || run(site, dir.path(), &args))?;
                eprintln!("kamal, {count} hosts, {version}: {cost:?}");
                taken.push(cost);
            }
        }
        costs.insert((count, true), median(&new));
        costs.insert((count, false), median(&same));
    }
    Ok(costs)
}
