//! What must hold of a fleet once a transaction is settled, asked of the hosts and their engines and not of jiji.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiji_lab::Host;

use crate::{Outcome, Site};

/// Asked of a host in one command. Arguments: the engine's command, the project's scope.
const SCRIPT: &str = r#"
d=/var/lib/jiji/projects/$2
if [ -e "$d/lease.json" ]; then
    pid=$(sed 's/.*"session":\([0-9]*\).*/\1/' "$d/lease.json")
    echo "lease $(cut -d . -f 1 /proc/uptime) $(cut -d ' ' -f 22 "/proc/$pid/stat" 2>/dev/null || echo 0) $(cat "$d/lease.json")"
fi
echo "journal $(tail -n 1 "$d/journal" | cut -c 1-200)"
echo "fencing $(cat "$d/fencing")"
newest=$(ls "$d/releases" 2>/dev/null | sort -n | tail -n 1)
if [ -n "$newest" ]; then echo "release $(cat "$d/releases/$newest")"; fi
for id in $("$1" ps --all --quiet --no-trunc --filter "label=jiji.scope=$2"); do
    "$1" inspect --format 'container {{.Name}} {{.State.Status}} {{with index .NetworkSettings.Networks "jiji"}}{{.IPAddress}}{{end}}' "$id"
done
"$1" exec kamal-proxy kamal-proxy list 2>&1 | sed 's/\x1b\[[0-9;]*m//g; s/^/route /'
# What was left by who died before it had the lease goes with the next lease: a look changes nothing. The kernel's clock for files ticks
# coarsely, so that what follows the number at once may be as old as it.
find /var/lib/jiji -name '.jiji-*' -o -name 'tmp.*' | while read -r file; do
    case "$file" in */tmp.*) echo "leftover $file" ;; *) if [ "$file" -ot "$d/fencing" ]; then echo "leftover $file"; fi ;; esac
done
for p in /proc/[0-9]*; do
    if tr '\0' ' ' < "$p/cmdline" 2>/dev/null | grep -q '^[^ ]*/var/lib/jiji/bin/'; then echo "process ${p#/proc/}"; fi
done
exit 0
"#;

/// What a host said.
#[derive(Debug, Default)]
struct Said {
    wrong: Vec<String>,
    /// Number and transaction of the newest release.
    release: Option<(u64, String)>,
}

fn ask(host: &Host, scope: &str) -> Outcome<Said> {
    let text = host.exec(&["sh", "-c", SCRIPT, "check", host.engine_cli(), scope])?;
    let mut said = Said::default();
    let (mut running, mut others, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    let mut wrong = |line: String| said.wrong.push(format!("{}: {line}", host.name));
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "lease" if stands(rest) => wrong(format!("a lease is left: {rest}")),
            "journal" if !rest.contains("\"concluded\"") => {
                wrong(format!("the journal is open, its last line: {rest}"))
            }
            "release" => {
                let release: serde_json::Value = serde_json::from_str(rest)?;
                let id = release["transaction"].as_str().unwrap_or_default().to_owned();
                said.release = Some((release["number"].as_u64().unwrap_or_default(), id));
            }
            "container" => {
                let words: Vec<&str> = rest.split(' ').collect();
                match words[..] {
                    [name, "running", address] => running.push((name.to_owned(), address.to_owned())),
                    _ => others.push(rest.to_owned()),
                }
            }
            "route" => routes.push(rest.to_owned()),
            "leftover" => wrong(format!("a file is left: {rest}")),
            "process" => wrong(format!("a session is left: process {rest}")),
            _ => {}
        }
    }
    if let [(name, address)] = &running[..] {
        let service = format!("{scope}-web");
        let of_it: Vec<_> = routes.iter().filter(|route| route.contains(&format!("{scope}.test"))).collect();
        let target = format!("{address}:");
        if of_it.len() != 1 || !of_it[0].contains(&target) {
            wrong(format!("no route of {service} to {name} at {address}: {routes:?}"));
        }
    } else {
        wrong(format!("one container that serves is due, not {running:?}"));
    }
    if !others.is_empty() {
        wrong(format!("containers are left: {others:?}"));
    }
    Ok(said)
}

/// Whether a lease keeps anybody out. What stands before it: the host's time since boot in seconds, and when the process of the lease's
/// session started in the kernel's ticks, 0 where there is none. One that expired does not, nor one whose session is gone: nobody holds it,
/// and its record goes with the next lease.
fn stands(said: &str) -> bool {
    let mut parts = said.splitn(3, ' ');
    let mut number = || parts.next().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    let (up, started) = (number(), number());
    let lease: serde_json::Value = serde_json::from_str(parts.next().unwrap_or_default()).unwrap_or_default();
    let expires = lease["expires_ms"].as_u64().unwrap_or(u64::MAX);
    up * 1000 < expires && lease["session_start"].as_u64() == Some(started)
}

/// Which version a host's proxy answers with.
fn answers(site: &Site, host: &Host, authority: &str) -> Outcome<String> {
    let header = format!("Host: {authority}");
    let url = format!("http://{}/", host.address);
    let mut curl = site.lab.operator_command("curl");
    curl.args(["-sS", "--fail", "--max-time", "5", "-H", &header, &url]);
    Ok(String::from_utf8_lossy(&jiji_lab::command::run(&mut curl)?).trim().to_owned())
}

/// Checks that the hosts agree and nothing is left: the answer of all of them, or everything that is wrong once `patience` is over. A
/// session that was cut finishes the step in hand; one whose line went silent hears of it when TCP sends again.
///
/// # Errors
/// When a host does not answer or something is wrong.
pub fn settled(site: &Site, hosts: &[Host], scope: &str, patience: Duration) -> Outcome<String> {
    let begun = Instant::now();
    loop {
        match once(site, hosts, scope) {
            Err(_) if begun.elapsed() < patience => std::thread::sleep(Duration::from_millis(250)),
            other => return other,
        }
    }
}

fn once(site: &Site, hosts: &[Host], scope: &str) -> Outcome<String> {
    let authority = format!("{scope}.test");
    let look = |host| Ok((ask(host, scope)?, answers(site, host, &authority)));
    let looks: Vec<Outcome<(Said, Outcome<String>)>> = std::thread::scope(|threads| {
        let looking: Vec<_> = hosts.iter().map(|host| threads.spawn(move || look(host))).collect();
        looking.into_iter().map(|one| one.join().map_err(|_| "a thread panicked")?).collect()
    });
    let mut wrong = Vec::new();
    let (mut releases, mut answered) = (BTreeSet::new(), BTreeSet::new());
    for (host, looked) in hosts.iter().zip(looks) {
        let (said, answer) = looked?;
        wrong.extend(said.wrong);
        releases.insert(said.release);
        match answer {
            Ok(answer) => _ = answered.insert(answer),
            Err(error) => wrong.push(format!("{}: it does not answer: {error}", host.name)),
        }
    }
    if releases.len() > 1 {
        wrong.push(format!("hosts have different releases: {releases:?}"));
    }
    if answered.len() > 1 {
        wrong.push(format!("hosts answer differently: {answered:?}"));
    }
    if wrong.is_empty() { Ok(answered.into_iter().next().unwrap_or_default()) } else { Err(wrong.join("\n").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_stands_while_it_has_not_expired_and_its_session_lives() {
        let lease = r#"{"expires_ms":5000,"session":7,"session_start":99}"#;
        assert!(stands(&format!("4 99 {lease}")));
        assert!(!stands(&format!("5 99 {lease}")), "it expired");
        assert!(!stands(&format!("4 0 {lease}")), "its session is gone");
        assert!(!stands(&format!("4 100 {lease}")), "another process has its number");
        assert!(!stands("4 0 torn"), "it says nothing");
    }
}
