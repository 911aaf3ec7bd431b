//! `RUN --mount`: what is laid over the image while a command runs.

use super::Problem;

/// A `--mount` that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it goes, as it was written; empty where the kind says.
    pub target: String,
    /// Whether the command may only read it.
    pub read_only: bool,
    /// What it is.
    pub kind: MountKind,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, of a stage or of an image.
    Bind {
        /// A stage's name or number, or an image; none for the context.
        from: Option<String>,
        /// A path there; empty for all of it.
        source: String,
    },
    /// A directory that outlives the build.
    Cache {
        /// What it begins with: a stage's name or number, or an image, and a path there; none for nothing.
        from: Option<(String, String)>,
        /// Its name.
        id: String,
        /// What happens where two steps want it at once.
        sharing: Sharing,
        /// The mode it begins with.
        mode: u32,
        /// The owner and group it begins with.
        owner: (u32, u32),
    },
    /// A directory in memory.
    Tmpfs {
        /// How much it may hold, in bytes.
        size: Option<u64>,
    },
    /// A value that is in no layer.
    Secret {
        /// Its name.
        id: String,
        /// The variable that it becomes.
        env: Option<String>,
        /// Whether it is a file: not where it is a variable and no target is given.
        file: bool,
        /// Whether its absence is an error.
        required: bool,
        /// The file's mode.
        mode: u32,
        /// The file's owner and group.
        owner: (u32, u32),
    },
    /// A socket of an agent that signs with keys which the step never sees.
    Ssh {
        /// Its name.
        id: String,
        /// Whether its absence is an error.
        required: bool,
        /// The socket's mode.
        mode: u32,
        /// The socket's owner and group.
        owner: (u32, u32),
    },
}

/// What happens where two steps want one cache at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Both use it.
    Shared,
    /// The second gets one of its own.
    Private,
    /// The second waits.
    Locked,
}

/// Everything that can be said, before it is known for which kind.
#[derive(Default)]
struct Options {
    kind: Option<String>,
    from: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: Option<bool>,
    id: Option<String>,
    sharing: Option<Sharing>,
    required: Option<bool>,
    size: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

fn refused(option: &str, reason: &'static str) -> Problem {
    Problem::Mount { option: option.to_owned(), reason }
}

/// Reads the value of a `--mount`. `expand` replaces the variables of an option's value.
///
/// # Errors
/// [`Problem::Mount`], or what `expand` says.
pub fn mount(text: &str, expand: &dyn Fn(&str) -> Result<String, Problem>) -> Result<Mount, Problem> {
    let mut options = Options::default();
    for option in text.split(',') {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let key = key.trim().to_ascii_lowercase();
        if key == "from" && value.is_some_and(|value| value.contains('$')) {
            return Err(refused(option, "a variable cannot stand here; name a stage"));
        }
        let value = value.map(expand).transpose()?;
        options.take(option, &key, value)?;
    }
    options.mount(text)
}

impl Options {
    fn take(&mut self, option: &str, key: &str, value: Option<String>) -> Result<(), Problem> {
        let switch = |value: &Option<String>| match value.as_deref() {
            None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
            Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
            Some(_) => Err(refused(option, "expected `true` or `false`")),
        };
        match key {
            "ro" | "readonly" => {
                self.read_only = Some(switch(&value)?);
                return Ok(());
            }
            "rw" | "readwrite" => {
                self.read_only = Some(!switch(&value)?);
                return Ok(());
            }
            "required" => {
                self.required = Some(switch(&value)?);
                return Ok(());
            }
            _ => {}
        }
        let value = value.ok_or_else(|| refused(option, "expected `name=value`"))?;
        let number = || value.parse::<u32>().map_err(|_| refused(option, "expected a number"));
        match key {
            "type" => self.kind = Some(value.to_ascii_lowercase()),
            "from" => self.from = Some(value),
            "source" | "src" => self.source = Some(value),
            "target" | "dst" | "destination" => self.target = Some(value),
            "id" => self.id = Some(value),
            "env" => self.env = Some(value),
            "sharing" => {
                self.sharing = Some(match value.to_ascii_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => return Err(refused(option, "expected `shared`, `private` or `locked`")),
                });
            }
            "size" => self.size = Some(size(&value).ok_or_else(|| refused(option, "expected a size, such as `64m`"))?),
            "mode" => {
                let mode = u32::from_str_radix(&value, 8).ok().filter(|mode| *mode <= 0o7777);
                self.mode = Some(mode.ok_or_else(|| refused(option, "expected octal digits, such as `0400`"))?);
            }
            "uid" => self.uid = Some(number()?),
            "gid" => self.gid = Some(number()?),
            _ => return Err(refused(option, "it is not known")),
        }
        Ok(())
    }

    fn mount(self, text: &str) -> Result<Mount, Problem> {
        let kind = self.kind.as_deref().unwrap_or("bind");
        let files = matches!(kind, "cache" | "secret" | "ssh");
        for (option, given, allowed) in [
            ("mode", self.mode.is_some(), files),
            ("uid", self.uid.is_some(), files),
            ("gid", self.gid.is_some(), files),
            ("sharing", self.sharing.is_some(), kind == "cache"),
            ("size", self.size.is_some(), kind == "tmpfs"),
            ("required", self.required.is_some(), matches!(kind, "secret" | "ssh")),
            ("env", self.env.is_some(), kind == "secret"),
            ("from", self.from.is_some(), matches!(kind, "bind" | "cache")),
            ("source", self.source.is_some(), matches!(kind, "bind" | "cache" | "secret")),
        ] {
            if given && !allowed {
                return Err(refused(option, "a mount of this type does not have it"));
            }
        }
        let target = self.target.clone().filter(|target| !target.is_empty());
        let needed = || target.clone().ok_or_else(|| refused(text, "it needs a `target`"));
        let owner = (self.uid.unwrap_or(0), self.gid.unwrap_or(0));
        let changing = matches!(kind, "cache" | "tmpfs");
        let read_only = self.read_only.unwrap_or(!changing);
        let (target, kind) = match kind {
            "bind" => {
                let source = self.source.unwrap_or_default();
                (needed()?, MountKind::Bind { from: self.from.filter(|from| !from.is_empty()), source })
            }
            "cache" => {
                let target = needed()?;
                let id = self.id.unwrap_or_else(|| target.clone());
                let sharing = self.sharing.unwrap_or(Sharing::Shared);
                let from = match (self.from.filter(|from| !from.is_empty()), self.source) {
                    (Some(_), _) if self.mode.is_some() || self.uid.is_some() || self.gid.is_some() => {
                        return Err(refused(text, "what it begins with has a mode and an owner"));
                    }
                    (Some(from), source) => Some((from, source.unwrap_or_default())),
                    (None, Some(_)) => return Err(refused("source", "it needs a `from`")),
                    (None, None) => None,
                };
                (target, MountKind::Cache { from, id, sharing, mode: self.mode.unwrap_or(0o755), owner })
            }
            "tmpfs" => (needed()?, MountKind::Tmpfs { size: self.size.filter(|size| *size > 0) }),
            "secret" => {
                if self.source.is_some() && self.id.is_some() {
                    return Err(refused(text, "`id` and `source` say the same"));
                }
                let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
                let id = self.id.or(self.source).or_else(|| target.as_deref().map(name));
                let id = id.filter(|id| !id.is_empty()).ok_or_else(|| refused(text, "it needs an `id`"))?;
                let file = target.is_some() || self.env.is_none();
                let env = self.env.map(|env| if env.is_empty() { id.clone() } else { env });
                let target = target.unwrap_or_else(|| format!("/run/secrets/{}", name(&id)));
                let (mode, required) = (self.mode.unwrap_or(0o400), self.required.unwrap_or(false));
                (target, MountKind::Secret { id, env, file, required, mode, owner })
            }
            "ssh" => {
                let id = self.id.filter(|id| !id.is_empty()).unwrap_or_else(|| "default".to_owned());
                let (mode, required) = (self.mode.unwrap_or(0o600), self.required.unwrap_or(false));
                // Where it goes if nothing is said depends on how many there are.
                (target.unwrap_or_default(), MountKind::Ssh { id, required, mode, owner })
            }
            _ => return Err(refused("type", "expected `bind`, `cache`, `tmpfs`, `secret` or `ssh`")),
        };
        Ok(Mount { target, read_only, kind })
    }
}

/// Bytes, with the units of memory that Docker knows: `64`, `64b`, `64k`, `64mb`, `2g`.
fn size(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let end = text.find(|ch: char| !ch.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let shift = match text[end..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Mount, Problem> {
        mount(text, &|value| Ok(value.replace("$V", "value")))
    }

    #[test]
    fn mounts_are_read_with_their_defaults() {
        let bind = |from: Option<&str>, source: &str| MountKind::Bind {
            from: from.map(str::to_owned),
            source: source.to_owned(),
        };
        let secret = |id: &str, env: Option<&str>, file| MountKind::Secret {
            id: id.to_owned(),
            env: env.map(str::to_owned),
            file,
            required: false,
            mode: 0o400,
            owner: (0, 0),
        };
        for (text, target, read_only, kind) in [
            ("target=/x", "/x", true, bind(None, "")),
            ("type=bind,from=a,source=/$V,dst=x,rw", "x", false, bind(Some("a"), "/value")),
            ("TYPE=BIND,target=/x,rw=false", "/x", true, bind(None, "")),
            (
                "type=cache,target=/c",
                "/c",
                false,
                MountKind::Cache {
                    from: None,
                    id: "/c".to_owned(),
                    sharing: Sharing::Shared,
                    mode: 0o755,
                    owner: (0, 0),
                },
            ),
            (
                "type=cache,target=/c,id=i,sharing=locked,mode=0700,uid=1,gid=2,ro",
                "/c",
                true,
                MountKind::Cache {
                    from: None,
                    id: "i".to_owned(),
                    sharing: Sharing::Locked,
                    mode: 0o700,
                    owner: (1, 2),
                },
            ),
            (
                "type=cache,target=/c,from=a,source=/x/$V",
                "/c",
                false,
                MountKind::Cache {
                    from: Some(("a".to_owned(), "/x/value".to_owned())),
                    id: "/c".to_owned(),
                    sharing: Sharing::Shared,
                    mode: 0o755,
                    owner: (0, 0),
                },
            ),
            (
                "type=ssh",
                "",
                true,
                MountKind::Ssh { id: "default".to_owned(), required: false, mode: 0o600, owner: (0, 0) },
            ),
            (
                "type=ssh,id=k,target=/a,required,mode=0666,uid=7",
                "/a",
                true,
                MountKind::Ssh { id: "k".to_owned(), required: true, mode: 0o666, owner: (7, 0) },
            ),
            ("type=tmpfs,target=/t,size=64m", "/t", false, MountKind::Tmpfs { size: Some(64 << 20) }),
            ("type=secret,id=t", "/run/secrets/t", true, secret("t", None, true)),
            ("type=secret,target=/a/t", "/a/t", true, secret("t", None, true)),
            ("type=secret,id=t,env=T", "/run/secrets/t", true, secret("t", Some("T"), false)),
            ("type=secret,id=t,env=", "/run/secrets/t", true, secret("t", Some("t"), false)),
            ("type=secret,id=t,env=T,target=/f", "/f", true, secret("t", Some("T"), true)),
        ] {
            let expected = Mount { target: target.to_owned(), read_only, kind };
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "type=bind",
            "type=cache",
            "type=device,target=/x",
            "type=ssh,from=a",
            "type=ssh,env=A",
            "type=cache,target=/x,source=/y",
            "type=cache,target=/x,from=a,uid=1",
            "type=secret",
            "type=secret,id=a,source=b",
            "type=secret,id=a,sharing=shared",
            "type=bind,target=/x,mode=0400",
            "type=bind,target=/x,size=1",
            "type=bind,target=/x,required",
            "type=bind,target=/x,from=$V",
            "type=cache,target=/x,sharing=some",
            "type=cache,target=/x,uid=me",
            "type=cache,target=/x,mode=9",
            "type=tmpfs,target=/x,size=much",
            "target=/x,ro=maybe",
            "target=/x,unknown=1",
            "target",
        ] {
            assert!(matches!(read(text), Err(Problem::Mount { .. })), "{text}");
        }
    }
}
