//! What `kamal-proxy list` says: the truth about which targets are live.

use crate::bindings::jiji::plan::types::Answer;

/// A row of the table (internal/cmd/list.go).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The service.
    pub service: String,
    /// Its hosts; empty for all.
    pub hosts: Vec<String>,
    /// Its path prefixes.
    pub paths: Vec<String>,
    /// Its targets, `ADDRESS:PORT`.
    pub targets: Vec<String>,
}

/// The live routes, or none where the proxy did not answer.
pub fn read(answer: &Answer) -> Option<Vec<Live>> {
    match answer {
        Answer::Command(command) if command.exit == Some(0) && !command.truncated => Some(parse(&command.stdout)),
        _ => None,
    }
}

/// The table has colours always (internal/cmd/formatting.go), and no cell holds a space: hosts, paths and targets are joined by commas.
fn parse(stdout: &str) -> Vec<Live> {
    let list = |cell: &str| cell.split(',').map(str::to_owned).collect::<Vec<_>>();
    plain(stdout)
        .lines()
        .skip(1)
        .filter_map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let [service, host, path, target, _state, _tls] = cells[..] else {
                return None;
            };
            Some(Live {
                service: service.to_owned(),
                hosts: if host == "*" { Vec::new() } else { list(host) },
                paths: list(path),
                targets: list(target),
            })
        })
        .collect()
}

/// Text without colour sequences, also where their escape character was replaced or dropped on the way.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('[') {
        let length = rest[start + 1..].bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
        let end = start + 1 + length;
        if rest.as_bytes().get(end) == Some(&b'm') {
            out.push_str(rest[..start].trim_end_matches(['\u{1b}', '\u{fffd}']));
            rest = &rest[end + 1..];
        } else {
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}
