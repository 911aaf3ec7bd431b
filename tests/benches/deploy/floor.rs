//! The least that a deploy can take: what a person would type on each host, as one script over one ssh. Where nothing changed, it is the
//! two questions whose answers say so.

use std::process::Stdio;

use jiji_e2e::{Outcome, Site};
use jiji_lab::Host;

use super::{Costs, HOSTS, measured, median, rounds};

/// Pull, run, probe, route, stop, remove. Arguments: the image, the new container's name, the old one's.
const DEPLOY: &str = r#"
set -e
docker pull --quiet "$1"
docker run --detach --name "$2" --network jiji --env GREETING=hello --env HELLO_KEY=x "$1"
address=$(docker inspect --format '{{.NetworkSettings.Networks.jiji.IPAddress}}' "$2")
n=0
until curl -fs -o /dev/null --max-time 1 "http://$address:8080/up"; do
    n=$((n + 1)); [ $n -lt 100 ]; sleep 0.1
done
docker exec kamal-proxy kamal-proxy deploy floor --target "$address:8080" --host floor.test \
    --health-check-path /up --health-check-interval 200ms --deploy-timeout 10s --drain-timeout 10s
if [ -n "$3" ]; then docker stop "$3"; docker rm "$3"; fi
"#;

/// What runs, and what is routed to it.
const LOOK: &str = r#"
set -e
docker ps --all --no-trunc
docker exec kamal-proxy kamal-proxy list
"#;

/// Runs a script on all hosts at once, each over an ssh of its own. ssh hands the host's shell one line, so arguments are words that need
/// no quotes.
fn run(site: &Site, hosts: &[Host], script: &str, args: &[&str]) -> Outcome {
    let words = ["sh", "-s", "--"].iter().chain(args).copied().collect::<Vec<_>>().join(" ");
    let children = hosts.iter().map(|host| {
        let mut ssh = site.lab.operator_command("/usr/bin/ssh");
        ssh.arg("-F").arg(site.lab.ssh_config()).arg(&host.name).arg(&words);
        ssh.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
    });
    let children: Vec<_> = children.collect::<Result<_, _>>()?;
    for mut child in children {
        if let Some(mut stdin) = child.stdin.take() {
            std::io::Write::write_all(&mut stdin, script.as_bytes())?;
        }
        if !child.wait()?.success() {
            return Err("a script typed by hand failed".into());
        }
    }
    Ok(())
}

fn deploy(site: &Site, hosts: &[Host], image: &str, new: &str, old: &str) -> Outcome {
    run(site, hosts, DEPLOY, &[image, new, if old.is_empty() { "''" } else { old }])
}

/// Measures it beside jiji's proxy, which is there.
///
/// # Errors
/// When a script fails.
pub fn costs(site: &Site) -> Outcome<Costs> {
    let registry = &site.lab.registry()?.address;
    let mut costs = Costs::new();
    for count in HOSTS {
        let hosts: Vec<Host> = site.hosts().into_iter().take(count).collect();
        let name = |number: usize| format!("floor-{count}-{number}");
        let image = |number: usize| format!("{registry}/hello:v{number}");
        deploy(site, &hosts, &image(1), &name(1), "")?;
        let mut taken = Vec::new();
        for number in 2..=rounds() + 1 {
            for host in &hosts {
                // As new as for the others: only the layers of what runs are there.
                let tag = image(number);
                drop(host.output(&["docker", "rmi", "--force", &tag])?);
            }
            let cost = measured(&hosts, || deploy(site, &hosts, &image(number), &name(number), &name(number - 1)))?;
            eprintln!("floor, {count} hosts: {cost:?}");
            taken.push(cost);
        }
        costs.insert((count, true), median(&taken));
        let looks = (0..rounds()).map(|_| measured(&hosts, || run(site, &hosts, LOOK, &[])));
        let looks = looks.collect::<Outcome<Vec<_>>>()?;
        eprintln!("floor, {count} hosts, unchanged: {looks:?}");
        costs.insert((count, false), median(&looks));
        for host in &hosts {
            host.engine(&["rm", "--force", &name(rounds() + 1)])?;
            host.engine(&["exec", "kamal-proxy", "kamal-proxy", "remove", "floor"])?;
        }
    }
    Ok(costs)
}
