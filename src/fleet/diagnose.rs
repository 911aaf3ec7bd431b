//! What ssh's words mean.
//!
//! ssh tells why it did not connect in text alone. The texts are OpenSSH's own (ssh.c, sshconnect.c, sshconnect2.c, kex.c; 8.4 to 10)
//! and the same in every language, since OpenSSH has no translations; those of the resolver are not, so no text of its own is asked for.
//! What is not known is shown as it came. A host key that nobody has vouched for is fetched once more to be shown, with a connection
//! that does not try to log in.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use jiji_model::name::HostName;
use tokio::process::Command;

use super::error::FleetError;
use super::ssh::{self, HostKeys};
use super::target::SshTarget;

/// How long fetching a key may take.
const FETCH: Duration = Duration::from_secs(20);

/// What ssh said, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    /// A name, and that nobody has vouched for its key.
    Unknown(String),
    Changed {
        name: String,
        key: String,
        known: String,
    },
    /// Whom it did not let in, such as `root@h`, and what it would have taken.
    Denied {
        user: String,
        methods: String,
    },
    NoName(String),
    TimedOut,
    /// The server ended the connection before it said who it is.
    Dropped,
    Configuration(String),
    Other(String),
}

fn lines(said: &str) -> impl DoubleEndedIterator<Item = &str> {
    said.lines().map(|line| line.trim().trim_start_matches("ssh: ")).filter(|line| !line.is_empty())
}

/// The text between two others in one line.
fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(before)?;
    rest.split_once(after).map(|(text, _)| text)
}

fn meaning(said: &str) -> Meaning {
    let find = |before: &str, after: &str| lines(said).find_map(|line| between(line, before, after));
    let has = |text: &str| lines(said).any(|line| line.contains(text));
    if has("REMOTE HOST IDENTIFICATION HAS CHANGED") || has("has changed and you have requested strict checking") {
        let mut after = lines(said).skip_while(|line| !line.starts_with("The fingerprint for the "));
        let kind = after.next().and_then(|line| between(line, "The fingerprint for the ", " key")).unwrap_or_default();
        let key = after.next().unwrap_or_default().trim_end_matches('.');
        let known = lines(said).find(|line| line.starts_with("Offending ")).and_then(|line| line.split_once(" in "));
        return Meaning::Changed {
            name: find("ost key for ", " has changed").unwrap_or_default().to_owned(),
            key: format!("{kind} {key}").trim().to_owned(),
            known: known.map_or_else(String::new, |(_, place)| place.to_owned()),
        };
    }
    if let Some(name) = find(" host key is known for ", " and you have requested") {
        return Meaning::Unknown(name.to_owned());
    }
    if has("Host key verification failed") {
        return Meaning::Unknown(String::new());
    }
    if let Some(line) = lines(said).rev().find(|line| line.contains("Permission denied (")) {
        let (who, methods) = line.split_once(": Permission denied (").unwrap_or(("", line));
        return Meaning::Denied { user: who.to_owned(), methods: methods.trim_end_matches(['.', ')']).to_owned() };
    }
    if has("Too many authentication failures") {
        return Meaning::Denied { user: String::new(), methods: "too many keys were tried".to_owned() };
    }
    if let Some(name) = lines(said).find_map(|line| line.strip_prefix("Could not resolve hostname ")) {
        return Meaning::NoName(name.split_once(": ").map_or(name, |(name, _)| name).to_owned());
    }
    if has("timed out") || has("Timeout, server") {
        return Meaning::TimedOut;
    }
    if let Some(line) = lines(said).find(|line| line.contains("onfiguration option") || line.starts_with("Bad owner")) {
        return Meaning::Configuration(line.to_owned());
    }
    let dropped = [
        "kex_exchange_identification: ",
        "banner exchange: Connection",
        "Connection reset by ",
        "Connection closed by ",
    ];
    let is_dropped = |line: &str| dropped.iter().any(|text| line.contains(text));
    // Of several lines the first is the cause: what follows a jump host's error says that the way ended.
    let mut worth = lines(said).filter(|line| !line.starts_with("Warning: Permanently added")).peekable();
    match worth.peek() {
        None => Meaning::Other("ssh ended without a word".to_owned()),
        Some(line) => match (*line).to_owned() {
            first if worth.all(is_dropped) && is_dropped(&first) => Meaning::Dropped,
            first => Meaning::Other(first),
        },
    }
}

/// Whether it is worth another try: the server is there and has too much to do.
pub(super) fn worth_a_retry(error: &FleetError) -> bool {
    matches!(error, FleetError::Dropped { .. })
}

/// The error that ssh's words are. `configuration` is what ssh was given.
pub(super) async fn explain(host: &HostName, target: &SshTarget, configuration: &Path, said: &str) -> FleetError {
    let (host, address) = (host.clone(), target.address.clone());
    let meaning = match meaning(said) {
        // The way leads through another program, whose words a master throws away (`ssh_proxy_connect` in sshconnect.c).
        Meaning::Dropped if said.contains("UNKNOWN port") => meaning(&again(target, configuration).await),
        meaning => meaning,
    };
    match meaning {
        Meaning::Unknown(name) => {
            let (keys, file) = tokio::join!(fetch(target, configuration), known_hosts(target, configuration));
            let named = |key: &&String| name.is_empty() || key.ends_with(&format!(" of {name}"));
            let key = keys.iter().find(named).or(keys.first()).cloned();
            let name = if name.is_empty() { address.clone() } else { name };
            FleetError::HostKeyUnknown { host, address, name, key, file }
        }
        Meaning::Changed { name, key, known } => FleetError::HostKeyChanged { host, address, name, key, known },
        Meaning::Denied { user, methods } => {
            let user = Some(user).filter(|user| !user.is_empty()).or_else(|| target.user.clone());
            FleetError::Denied { host, address, user, methods }
        }
        Meaning::NoName(name) => FleetError::NoName { host, name },
        Meaning::TimedOut => FleetError::TimedOut { host, address, seconds: target.connect_timeout.as_secs() },
        Meaning::Dropped => FleetError::Dropped { host, address },
        Meaning::Configuration(cause) => FleetError::SshConfig { host, cause },
        Meaning::Other(cause) => FleetError::Unreachable { host, address, cause },
    }
}

/// What ssh and the ssh of a jump host say where no master is to live on. Nothing but `true` is run, should it arrive after all.
async fn again(target: &SshTarget, configuration: &Path) -> String {
    let mut command = ssh::ssh(target, configuration);
    command.args(["-o", "ControlPath=none", "--", &target.address, "true"]).stderr(Stdio::piped());
    match tokio::time::timeout(FETCH, command.output()).await {
        Ok(Ok(output)) if !output.status.success() => String::from_utf8_lossy(&output.stderr).into_owned(),
        // It is a matter of time, then: to be tried again.
        _ => "Connection closed by UNKNOWN port 65535".to_owned(),
    }
}

/// The keys that nobody has vouched for on the way to the server, such as `ED25519 SHA256:… of h`; none where they could not be had.
/// The first host that is not known is as far as this goes: no login is tried at one.
async fn fetch(target: &SshTarget, configuration: &Path) -> Vec<String> {
    let Ok(rules) = ssh::configuration(target, HostKeys::AcceptNew) else { return Vec::new() };
    let found = configuration.with_extension("keys");
    let conf = configuration.with_extension("fetch");
    // The first of the files is written to, all are believed: a host that is known must be the known one.
    let known = setting(target, configuration, "userknownhostsfile").await.unwrap_or_default();
    let trust = format!("UserKnownHostsFile \"{}\" {known}\nHashKnownHosts no\n", found.display());
    // A login at no host at all shows the key of the first. Where that one is known, it is a jump host, and may be logged in to.
    for everywhere in ["PreferredAuthentications none\n", ""] {
        let text = format!("{everywhere}{trust}{rules}");
        if ssh::write_private(&found, "").is_err() || ssh::write_private(&conf, &text).is_err() {
            return Vec::new();
        }
        let mut command = ssh::ssh(target, &conf);
        command.args(["-N", "-o", "PreferredAuthentications=none", "-o", "ControlPath=none", "--", &target.address]);
        command.stderr(Stdio::null());
        let _ = tokio::time::timeout(FETCH, command.status()).await;
        let keys = printed(&found).await;
        if !keys.is_empty() {
            return keys;
        }
    }
    Vec::new()
}

/// The keys of a file of known hosts.
async fn printed(file: &Path) -> Vec<String> {
    let mut print = Command::new("ssh-keygen");
    print.args(["-l", "-f"]).arg(file).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(Ok(output)) = tokio::time::timeout(FETCH, print.output()).await else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(fingerprint).collect()
}

/// The keys that are in the file to which new ones are added.
pub(super) async fn known(target: &SshTarget, configuration: &Path) -> Vec<String> {
    printed(Path::new(&known_hosts(target, configuration).await)).await
}

/// Reads a line of `ssh-keygen -l`: `256 SHA256:… NAME (ED25519)`.
fn fingerprint(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let (_bits, digest, name) = (words.next()?, words.next()?, words.next()?);
    let kind = words.next()?.trim_matches(['(', ')']);
    Some(format!("{kind} {digest} of {}", name.split(',').next().unwrap_or(name)))
}

/// Where a key that is accepted would be written.
async fn known_hosts(target: &SshTarget, configuration: &Path) -> String {
    let files = setting(target, configuration, "userknownhostsfile").await.unwrap_or_default();
    files.split(' ').next().filter(|file| !file.is_empty()).unwrap_or("~/.ssh/known_hosts").to_owned()
}

/// What ssh would use for a setting, by `ssh -G`.
async fn setting(target: &SshTarget, configuration: &Path, name: &str) -> Option<String> {
    let mut command = ssh::ssh(target, configuration);
    command.args(["-G", "--", &target.address]).stdout(Stdio::piped()).stderr(Stdio::null());
    let output = tokio::time::timeout(FETCH, command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_of_ssh_is_understood() {
        let denied = |user: &str, methods: &str| Meaning::Denied { user: user.to_owned(), methods: methods.to_owned() };
        for (said, expected) in [
            ("root@h: Permission denied (publickey,password).\r\n", denied("root@h", "publickey,password")),
            (
                "Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures\r\n",
                denied("", "too many keys were tried"),
            ),
            (
                "ssh: Could not resolve hostname nowhere.example: Name or service not known\r\n",
                Meaning::NoName("nowhere.example".to_owned()),
            ),
            ("ssh: connect to host 10.0.0.1 port 22: Connection timed out\r\n", Meaning::TimedOut),
            ("Connection timed out during banner exchange\r\n", Meaning::TimedOut),
            (
                "kex_exchange_identification: read: Connection reset by peer\r\nConnection reset by 10.0.0.1 port 22\r\n",
                Meaning::Dropped,
            ),
            (
                "ssh: connect to host 10.0.0.1 port 22: Connection refused\r\n",
                Meaning::Other("connect to host 10.0.0.1 port 22: Connection refused".to_owned()),
            ),
            (
                "No ED25519 host key is known for h and you have requested strict checking.\r\nHost key verification failed.\r\n",
                Meaning::Unknown("h".to_owned()),
            ),
            (
                "/home/a/.ssh/config: line 3: Bad configuration option: proxyjmp\r\n/x: terminating, 1 bad configuration options\r\n",
                Meaning::Configuration("/home/a/.ssh/config: line 3: Bad configuration option: proxyjmp".to_owned()),
            ),
            // A jump host's ssh speaks first.
            (
                "channel 0: open failed: connect failed: No route to host\r\nstdio forwarding failed\r\n\
                 kex_exchange_identification: Connection closed by remote host\r\nConnection closed by UNKNOWN port 65535\r\n",
                Meaning::Other("channel 0: open failed: connect failed: No route to host".to_owned()),
            ),
            ("", Meaning::Other("ssh ended without a word".to_owned())),
        ] {
            assert_eq!(meaning(said), expected, "{said}");
        }
    }

    #[test]
    fn a_changed_key_is_told_with_the_place_of_the_old_one() {
        let said = "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n\
            @    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n\
            IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r\n\
            The fingerprint for the ED25519 key sent by the remote host is\nSHA256:abc.\r\n\
            Please contact your system administrator.\r\n\
            Add correct host key in /home/a/.ssh/known_hosts to get rid of this message.\r\n\
            Offending ED25519 key in /home/a/.ssh/known_hosts:7\r\n\
            Host key for h has changed and you have requested strict checking.\r\n\
            Host key verification failed.\r\n";
        assert_eq!(
            meaning(said),
            Meaning::Changed {
                name: "h".to_owned(),
                key: "ED25519 SHA256:abc".to_owned(),
                known: "/home/a/.ssh/known_hosts:7".to_owned(),
            }
        );
    }

    #[test]
    fn a_fingerprint_is_told_with_its_kind_and_the_first_of_its_names() {
        assert_eq!(fingerprint("256 SHA256:abc h,10.0.0.1 (ED25519)").as_deref(), Some("ED25519 SHA256:abc of h"));
        assert_eq!(fingerprint("nonsense"), None);
    }
}
