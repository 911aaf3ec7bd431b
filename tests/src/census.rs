//! Everything of a host and of an operator that ship after ship must not let grow.
//!
//! A [`Census`] names things by what they are and not by which they are: numbers and digests are left out of names, so that the census
//! after a hundred ships is the same as the one after the first few. What may grow by a little (memory, the audit log) is a number apart.

use std::collections::BTreeMap;

use jiji_lab::Host;

use crate::Outcome;

/// What a host has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// How often there is what: `container running`, `file /var/lib/jiji/store/*`, `process podman`.
    pub counts: BTreeMap<String, u64>,
    /// Bytes below /var/lib/jiji, without audit logs and release records.
    pub bytes: u64,
    /// File descriptors of the proxy.
    pub proxy_fds: u64,
    /// Resident memory of the proxy in KiB.
    pub proxy_kib: u64,
}

/// Release records that a host remembers of a project.
const RELEASES: u64 = 20;

/// Asked of every host in one command, since entering a host costs more than most of what is asked. The first argument is the engine's
/// command.
const SCRIPT: &str = r#"
for id in $("$1" ps --all --quiet --no-trunc); do "$1" inspect --format 'container {{.Name}} {{.State.Status}}' "$id"; done
"$1" images --all --no-trunc --format 'image {{.Repository}} {{.ID}}' | sort -u
"$1" volume ls --quiet | sed 's/^/volume /'
"$1" network ls --format 'network {{.Name}}'
find /var/lib/jiji -printf 'file %y %s %p\n'
for p in /proc/[0-9]*; do read -r name 2>/dev/null < "$p/comm" && echo "process $name"; done
sed 's/.* - \([^ ]*\) .*/mount \1/' /proc/self/mountinfo
ip -o link show | awk '{ sub(/@.*/, "", $2); sub(/^veth.*/, "veth*", $2); print "link " $2 }'
{ iptables-save 2>/dev/null; nft list ruleset 2>/dev/null; } | awk '/^-A|^[ \t]+.*(accept|drop|masquerade|jump|dnat|return)/ { print "rule" }'
find /tmp /var/tmp /root /run/crun /run/runc /run/netns -xdev -maxdepth 3 2>/dev/null | sed 's/^/temporary /'
pid=
for p in /proc/[0-9]*; do
    tr '\0' ' ' < "$p/cmdline" 2>/dev/null | grep -q '^[^ ]*kamal-proxy run' && pid=${p#/proc/}
done
if [ -n "$pid" ]; then
    echo "proxy-fds $(ls "/proc/$pid/fd" | wc -l)"
    awk '/^VmRSS/ { print "proxy-kib " $2 }' "/proc/$pid/status"
fi
exit 0
"#;

/// A name without what is drawn by lot or counted: `*` stands for every word of hexadecimal digits, and for the digits in other words.
fn plain(name: &str) -> String {
    let mut text = String::new();
    for word in name.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric()) {
        let (stem, end) = word.split_at(word.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric()).len());
        let hexadecimal = stem.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !stem.is_empty() && hexadecimal && (stem.len() >= 4 || stem.bytes().any(|byte| byte.is_ascii_digit())) {
            text.push('*');
        } else if let Some(first) = stem.find(|letter: char| letter.is_ascii_digit()) {
            text.push_str(&stem[..first]);
            text.push('*');
        } else {
            text.push_str(stem);
        }
        text.push_str(end);
    }
    text
}

impl Census {
    /// Counts on a host.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn of(host: &Host) -> Outcome<Self> {
        let text = host.exec(&["sh", "-c", SCRIPT, "census", host.engine_cli()])?;
        let mut census = Self::default();
        for line in text.lines() {
            census.take(line);
        }
        if census.counts.is_empty() {
            return Err(format!("{}: the census counted nothing", host.name).into());
        }
        Ok(census)
    }

    /// Counts one more thing of this name.
    pub fn count(&mut self, name: &str) {
        *self.counts.entry(plain(name)).or_default() += 1;
    }

    fn take(&mut self, line: &str) {
        let Some((kind, rest)) = line.split_once(' ') else {
            self.count(line);
            return;
        };
        match kind {
            "proxy-fds" => self.proxy_fds = rest.trim().parse().unwrap_or_default(),
            "proxy-kib" => self.proxy_kib = rest.trim().parse().unwrap_or_default(),
            "image" => {
                // The identity is asked for so that an image with two names counts twice and one name on two images as well.
                let repository = rest.split(' ').next().unwrap_or_default();
                *self.counts.entry(format!("image {repository}")).or_default() += 1;
            }
            "file" => {
                let mut words = rest.splitn(3, ' ');
                let (kind, size, path) = (words.next(), words.next(), words.next().unwrap_or_default());
                if kind == Some("f") && !path.ends_with("/audit.jsonl") && !path.contains("/releases/") {
                    self.bytes += size.and_then(|size| size.parse::<u64>().ok()).unwrap_or_default();
                }
                *self.counts.entry(format!("file {}", plain(path))).or_default() += 1;
            }
            _ => self.count(line),
        }
    }

    /// What is more or less than in an earlier census, in words. Of processes and temporary files, which come and go by themselves, only
    /// what is more.
    pub fn since(&self, earlier: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = self.counts.keys().chain(earlier.counts.keys()).collect();
        let count = |census: &Self, name: &str| census.counts.get(name).copied().unwrap_or_default();
        let mut said: Vec<String> = names
            .into_iter()
            .filter(|name| {
                let passing = ["process ", "temporary ", "rule", "mount "].iter().any(|kind| name.starts_with(kind));
                let (now, then) = (count(self, name), count(earlier, name));
                // Records are added up to their number, and then stay that many.
                let remembered = name.contains("/releases/*.json") && then <= now && now <= RELEASES;
                !remembered && (now > then || (now < then && !passing))
            })
            .map(|name| format!("{name}: {} instead of {}", count(self, name), count(earlier, name)))
            .collect();
        // Journals and leases grow with the length of a number.
        if self.bytes > earlier.bytes + 64 * 1024 {
            said.push(format!("bytes below /var/lib/jiji: {} instead of {}", self.bytes, earlier.bytes));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_by_what_they_are_and_not_by_which() {
        assert_eq!(plain("/var/lib/jiji/bin/0a1b2c3d4e"), "/var/lib/jiji/bin/*");
        assert_eq!(plain("/x/releases/17.json"), "/x/releases/*.json");
        assert_eq!(plain("process dockerd"), "process dockerd");
        assert_eq!(plain("veth1a2b3c4"), "veth*");
        assert_eq!(plain("/run/netns/netns-1f2e-dead-0a"), "/run/netns/netns-*-*-*");
    }

    #[test]
    fn what_grew_is_said() {
        let mut one = Census::default();
        one.take("process sh");
        let mut two = one.clone();
        two.take("process sh");
        two.take("file f 100 /var/lib/jiji/x");
        assert_eq!(two.since(&one), ["file /var/lib/jiji/x: 1 instead of 0", "process sh: 2 instead of 1"]);
        assert_eq!(two.bytes, 100);
    }
}
