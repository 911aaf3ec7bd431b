//! An ssh configuration file that the project names.
//!
//! Whoever can propose a change to a project can change `deploy.yml` and every file beside it, and a person or a CI system may run
//! `jiji plan` on that proposal. So nothing that a project names may run a program on the operator's machine: such a file is held to
//! directives that only say where and as whom to connect. A file that lies in a repository may not choose known hosts either, or a
//! proposal could send the secrets of the service to a server of its own. What needs more stands in the user's own `~/.ssh/config`,
//! which is read where the project names no file, and which no proposal reaches.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::error::FleetError;

/// Most bytes of such a file.
const MOST: u64 = 256 * 1024;

/// Directives of ssh_config(5) that run nothing, read no further file but keys, and open nothing.
const HARMLESS: &[&str] = &[
    "addkeystoagent",
    "addressfamily",
    "batchmode",
    "bindaddress",
    "bindinterface",
    "casignaturealgorithms",
    "certificatefile",
    "checkhostip",
    "ciphers",
    "compression",
    "connectionattempts",
    "connecttimeout",
    "host",
    "hostbasedauthentication",
    "hostkeyalgorithms",
    "hostkeyalias",
    "hostname",
    "identitiesonly",
    "identityfile",
    "ipqos",
    "kbdinteractiveauthentication",
    "kexalgorithms",
    "loglevel",
    "macs",
    "numberofpasswordprompts",
    "passwordauthentication",
    "port",
    "preferredauthentications",
    "proxyjump",
    "pubkeyacceptedalgorithms",
    "pubkeyauthentication",
    "rekeylimit",
    "requiredrsasize",
    "serveralivecountmax",
    "serveraliveinterval",
    "stricthostkeychecking",
    "tcpkeepalive",
    "user",
];

/// Directives that say whose keys are believed.
const TRUST: &[&str] = &["globalknownhostsfile", "hashknownhosts", "userknownhostsfile"];

/// Reads the file, and refuses one that does more than it may.
///
/// # Errors
/// [`FleetError::Config`], [`FleetError::ConfigRefused`].
pub(super) fn read(path: &Path) -> Result<String, FleetError> {
    let failed = |source: std::io::Error| FleetError::Config { path: path.to_owned(), source: Arc::new(source) };
    let place = fs::canonicalize(path).map_err(failed)?;
    let metadata = fs::metadata(&place).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MOST {
        return Err(failed(std::io::Error::other(format!("it is no file of at most {MOST} bytes"))));
    }
    let mut text = fs::read_to_string(&place).map_err(failed)?;
    let in_repository = place.ancestors().skip(1).any(|dir| dir.join(".git").exists() || dir.join(".jiji").exists());
    if let Some((line, directive, why)) = refusal(&text, in_repository) {
        return Err(FleetError::ConfigRefused { path: path.to_owned(), line, directive, why });
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// The first line that is not allowed: its number, the directive, and why not.
fn refusal(text: &str, in_repository: bool) -> Option<(usize, String, &'static str)> {
    for (number, line) in (1..).zip(text.split('\n')) {
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let length = line.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let (directive, rest) = line.split_at(length);
        let name = directive.to_ascii_lowercase();
        // ssh takes a keyword in quotes too, and several characters for blanks: what is not spelled plainly is not understood here.
        let plain = rest.is_empty() || rest.starts_with([' ', '\t', '=']);
        let refuse = |why| Some((number, line.split([' ', '\t', '=']).next().unwrap_or_default().to_owned(), why));
        if directive.is_empty() || !plain || line.chars().any(|c| c.is_control() && c != '\t') {
            return refuse("it is not spelled plainly");
        }
        if name == "match" {
            let words = rest.trim_start_matches([' ', '\t', '=']).trim_end();
            if !words.eq_ignore_ascii_case("all") {
                return refuse("`Match` can run a program on this machine; `Match all` and `Host` cannot");
            }
        } else if TRUST.contains(&name.as_str()) {
            if in_repository {
                return refuse("a file of a repository must not say which host keys are believed");
            }
        } else if !HARMLESS.contains(&name.as_str()) {
            return refuse("it can run a program on this machine, read other files or open ports, or is not known");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_where_and_as_whom_to_connect_is_allowed() {
        let text = "# a comment\n\nHost one two\n\tHostName = 10.0.0.1\r\n  Port 22\n  ProxyJump ops@bastion:2222\nMatch all\nUser=deploy\n";
        assert_eq!(refusal(text, true), None);
        assert_eq!(refusal("UserKnownHostsFile /k\n", false), None);
    }

    #[test]
    fn nothing_that_a_project_names_runs_a_program_here() {
        for line in [
            "ProxyCommand nc %h %p",
            "proxycommand=nc",
            "  \t PROXYCOMMAND nc",
            "\rProxyCommand nc",
            "\"ProxyCommand\" nc",
            "ProxyCommand\u{b}nc",
            "\u{c}ProxyCommand nc",
            "Match exec \"touch /tmp/x\"",
            "Match host one exec x",
            "Match all exec x",
            "Match !exec x",
            "LocalCommand x",
            "PermitLocalCommand yes",
            "KnownHostsCommand x",
            "PKCS11Provider /tmp/x.so",
            "SecurityKeyProvider /tmp/x.so",
            "XAuthLocation /tmp/x",
            "Include evil",
            "IdentityAgent /tmp/x",
            "ForwardAgent yes",
            "LocalForward 80 h:80",
            "ControlPath /tmp/x",
            "SendEnv *",
            "SetEnv A=b",
            "Tunnel yes",
            "SomethingNew x",
        ] {
            let text = format!("Host *\n  User ann\n{line}\n");
            assert_eq!(refusal(&text, false).map(|(number, ..)| number), Some(3), "{line:?}");
        }
    }

    #[test]
    fn a_file_of_a_repository_does_not_choose_which_keys_are_believed() {
        for line in ["UserKnownHostsFile known_hosts", "GlobalKnownHostsFile known_hosts"] {
            assert!(refusal(line, true).is_some(), "{line}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("a/ssh_config");
        fs::create_dir(dir.path().join("a")).expect("made");
        fs::write(&file, "UserKnownHostsFile known_hosts").expect("written");
        assert_eq!(read(&file).expect("it lies nowhere in particular"), "UserKnownHostsFile known_hosts\n");
        fs::create_dir(dir.path().join(".git")).expect("made");
        let error = read(&file).expect_err("it lies in a repository");
        assert!(matches!(&error, FleetError::ConfigRefused { line: 1, .. }), "{error}");
        // A link into the repository is the repository's too.
        let link = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(&file, link.path().join("c")).expect("linked");
        assert!(read(&link.path().join("c")).is_err());
    }
}
