//! COPY: which files are taken, and where each one comes to lie.
//!
//! Two steps, both pure. [`select`] looks at the source alone and gives what the key of the step is made of; [`place`] looks at what
//! lies below the new layer and gives the layer's entries. What Docker does is the rule (BuildKit's `fsutil/copy`), also where it is
//! odd: a directory as a source gives its content and not itself; a link at the destination is followed; links inside of a copied
//! directory are copied as they are.

mod mode;

use std::collections::{BTreeMap, BTreeSet};

pub use mode::ModeChange;

use jiji_model::digest::Digest;

use super::context::{Glob, Ignore};
use super::layer::{Entry, Node, TarPath};
use super::rootfs::{Content, Found, TooManyLinks, Tree};

/// Why a COPY cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The source is not there.
    #[error("copy `{path}`: it is not in {place}")]
    NotFound {
        /// The source as it was written.
        path: String,
        /// What was looked at: "the context", "stage `build`".
        place: String,
    },
    /// No file matches any of the patterns.
    #[error("copy `{pattern}`: nothing in {place} matches")]
    NothingMatches {
        /// The patterns.
        pattern: String,
        /// What was looked at.
        place: String,
    },
    /// A pattern that cannot be read.
    #[error("copy `{pattern}`: the pattern cannot be read")]
    Pattern {
        /// The pattern.
        pattern: String,
    },
    /// The source leads out of the context.
    #[error("copy `{path}`: it is outside of the context")]
    Outside {
        /// The source as it was written.
        path: String,
    },
    /// A path leads in a circle.
    #[error("copy `{path}`: it leads through too many symbolic links")]
    Links {
        /// The path.
        path: TarPath,
    },
    /// A named pipe or device in the context.
    #[error("copy `{path}`: it is neither a file nor a directory nor a link")]
    Special {
        /// The path.
        path: TarPath,
    },
    /// Several sources, and a destination that is not said to be a directory.
    #[error("copy several sources to `{destination}`: it must end with `/`")]
    NotSaidDirectory {
        /// The destination as it was written.
        destination: String,
    },
    /// Something that is no directory lies where a directory is needed.
    #[error("copy to `{path}`: what is there is not a directory")]
    NotADirectory {
        /// The path in the image.
        path: TarPath,
        /// Whether it is a link, which is not followed inside of what is copied.
        link: bool,
    },
    /// A directory lies where a file would come to lie.
    #[error("copy to `{path}`: a directory is there")]
    Directory {
        /// The path in the image.
        path: TarPath,
    },
    /// A name that the image format uses for itself.
    #[error("copy `{path}`: names that begin with `.wh.` remove files in an image")]
    Whiteout {
        /// The path.
        path: TarPath,
    },
}

impl CopyError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { place, .. } | Self::NothingMatches { place, .. } if place == "the context" => Some(
                "paths are relative to the context; `.dockerignore`, `.git`, `.jiji/` and `jiji.lock` are not part of it",
            ),
            Self::Outside { .. } => Some("choose a context that holds it (`build.context` in deploy.yml)"),
            Self::NotADirectory { link: true, .. } => Some(
                "copy to where the link leads, in a COPY of its own; links inside of what is copied are not followed",
            ),
            Self::NotSaidDirectory { .. } => Some("add a slash to the destination"),
            _ => None,
        }
    }
}

/// Which word of a COPY an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About<'a> {
    /// The source that was written so.
    Source(&'a str),
    /// The destination.
    Destination,
    /// All of it.
    All,
}

impl CopyError {
    /// Which word it is about.
    pub fn about(&self) -> About<'_> {
        match self {
            Self::NotFound { path, .. } | Self::Outside { path } => About::Source(path),
            Self::Pattern { pattern } => About::Source(pattern),
            Self::NotSaidDirectory { .. } | Self::NotADirectory { .. } | Self::Directory { .. } => About::Destination,
            Self::NothingMatches { .. } | Self::Links { .. } | Self::Special { .. } | Self::Whiteout { .. } => {
                About::All
            }
        }
    }
}

impl From<TooManyLinks> for CopyError {
    fn from(TooManyLinks(path): TooManyLinks) -> Self {
        Self::Links { path }
    }
}

/// Something that is copied, variables replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path or pattern in the tree that is copied from.
    Path(String),
    /// A file of this name with these bytes.
    Inline(String, Vec<u8>),
    /// A file that was fetched: the URL, and the blob's digest and length.
    Fetched(String, Digest, u64),
}

/// A source with what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// The name a file gets in a destination that is a directory.
    pub name: Vec<u8>,
    /// Its path where it was taken from.
    pub path: TarPath,
    /// What it is itself: a file, or a directory of which the content is taken.
    pub top: Found,
    /// What is below it where it is a directory, by path relative to it, parents first.
    pub below: Vec<(TarPath, Found)>,
    /// Whether it is what ADD unpacked of an archive: it keeps its modes and goes through links that lie below the new layer.
    pub unpacked: bool,
}

impl Selected {
    /// What an archive holds, in place of the archive.
    #[must_use]
    pub fn unpacked(self, entries: BTreeMap<TarPath, Found>) -> Self {
        Self { top: Found::directory(0o755), below: entries.into_iter().collect(), unpacked: true, ..self }
    }
}

/// What is taken of the sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Whether the directories above a source are kept: all, or those after `/./` in it.
    pub parents: bool,
    /// What is left out, by its path below a source that is a directory; of a source that is a file, by its name or its own path.
    pub exclude: Ignore,
}

/// Who owns what is copied, and its mode, where the COPY says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Numeric user and group.
    pub owner: Option<(u32, u32)>,
    /// Permissions of files and directories.
    pub mode: Option<ModeChange>,
}

impl Ownership {
    fn apply(&self, entry: &mut Entry) {
        self.own(entry);
        if let Some(mode) = self.mode.as_ref().filter(|_| !matches!(entry.node, Node::Symlink(_))) {
            entry.mode = mode.apply(entry.mode, entry.node == Node::Directory);
        }
    }

    fn own(&self, entry: &mut Entry) {
        if let Some((uid, gid)) = self.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
    }

    /// A directory that exists only because something is copied into it.
    fn parent(&self) -> Found {
        let mut found = Found::directory(0o755);
        self.own(&mut found.entry);
        found
    }
}

/// Finds the sources in a tree. `place` is what errors call the tree.
///
/// # Errors
/// When one is not there, or none of the patterns matches anything.
pub fn select(sources: &[Source], choice: &Choice, from: &Tree, place: &str) -> Result<Vec<Selected>, CopyError> {
    let mut selected = Vec::new();
    let mut patterns = Vec::new();
    let mut found = false;
    for source in sources {
        let text = match source {
            Source::Inline(name, bytes) => {
                let top =
                    Found { entry: Entry::file(0o644, bytes.len() as u64), content: Content::Bytes(bytes.clone()) };
                let path = TarPath::normal(name);
                selected.push(Selected {
                    name: name.clone().into_bytes(),
                    path,
                    top,
                    below: Vec::new(),
                    unpacked: false,
                });
                found = true;
                continue;
            }
            Source::Fetched(url, digest, size) => {
                // Nobody but root may read it, as in BuildKit: it says nothing of who may.
                let top = Found { entry: Entry::file(0o600, *size), content: Content::Blob(*digest) };
                let name = url_name(url);
                let path = TarPath::normal(&name);
                selected.push(Selected { name: name.into_bytes(), path, top, below: Vec::new(), unpacked: false });
                found = true;
                continue;
            }
            Source::Path(text) => text,
        };
        if leaves(text) {
            return Err(CopyError::Outside { path: text.clone() });
        }
        let paths = if choice.parents { pivots(from, text)? } else { matching(from, text, text)? };
        for path in paths {
            if choice.parents {
                let taken = take_with_parents(from, &path, text, place)?;
                found |= !taken.below.is_empty();
                selected.push(taken);
            } else {
                selected.push(take(from, &path, text, place)?);
                found = true;
            }
        }
        if Glob::is_pattern(text) {
            patterns.push(text.as_str());
        }
    }
    if !choice.exclude.is_empty() {
        selected.retain_mut(|one| leave_out(&choice.exclude, one));
    }
    if !found {
        return Err(CopyError::NothingMatches { pattern: patterns.join("`, `"), place: place.to_owned() });
    }
    Ok(selected)
}

/// The file name in a URL, without what is after its path; empty where the path ends with a slash.
pub fn url_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let name = path.split_once('/').and_then(|(_, path)| path.rsplit('/').next()).unwrap_or_default();
    // Only what cannot be part of a name is in the way of reading `%20` and its like.
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if matches!(text.as_str(), "." | "..") || text.contains(['/', '\0']) { String::new() } else { text }
}

/// The paths that a text of `whole` names in a tree: itself, or all that match it.
fn matching(from: &Tree, text: &str, whole: &str) -> Result<Vec<TarPath>, CopyError> {
    let path = TarPath::normal(text);
    if !Glob::is_pattern(text) {
        return Ok(vec![path]);
    }
    let glob = glob(&path, false, whole)?;
    Ok(from.entries().map(|(path, _)| path).filter(|path| glob.matches(path)).cloned().collect())
}

fn glob(path: &TarPath, deep: bool, whole: &str) -> Result<Glob, CopyError> {
    let pattern = String::from_utf8_lossy(path.as_bytes()).into_owned();
    Glob::parse(&pattern, deep).map_err(|_| CopyError::Pattern { pattern: whole.to_owned() })
}

/// The directories of which `--parents` keeps what is below.
fn pivots(from: &Tree, text: &str) -> Result<Vec<TarPath>, CopyError> {
    let Some((pivot, _)) = text.split_once("/./") else {
        return Ok(vec![TarPath::root()]);
    };
    let mut directories = Vec::new();
    for path in matching(from, pivot, text)? {
        let real = from.resolve(&path)?;
        if from.is_directory(&real) {
            directories.push(real);
        }
    }
    Ok(directories)
}

/// What a source with `--parents` takes below one of its directories: all that matches, with the directories it is in.
fn take_with_parents(from: &Tree, directory: &TarPath, text: &str, place: &str) -> Result<Selected, CopyError> {
    let rest = text.split_once("/./").map_or(text, |(_, rest)| rest);
    let path = TarPath::normal(rest);
    let glob = glob(&path, true, text)?;
    let mut taken: BTreeSet<TarPath> = BTreeSet::new();
    for (path_there, _) in from.below(directory) {
        let relative = path_there.relative_to(directory);
        let matched =
            path.is_root() || glob.matches(&relative) || relative.parents().iter().any(|parent| glob.matches(parent));
        if matched {
            taken.extend(relative.parents());
            taken.insert(relative);
        }
    }
    if taken.is_empty() && !Glob::is_pattern(text) {
        return Err(CopyError::NotFound { path: text.to_owned(), place: place.to_owned() });
    }
    let found = |relative: &TarPath| from.get(&directory.join(relative.as_bytes())).cloned();
    let below = taken.iter().filter_map(|relative| Some((relative.clone(), found(relative)?))).collect();
    let top = from.get(directory).cloned().unwrap_or_else(|| Found::directory(0o755));
    Ok(Selected { name: directory.name().to_vec(), path: directory.clone(), top, below, unpacked: false })
}

/// Takes what is excluded out of a source. False where nothing of it is left.
pub(in crate::build) fn leave_out(exclude: &Ignore, one: &mut Selected) -> bool {
    if !one.top.is_directory() {
        return !exclude.leaves_out(&TarPath::normal(&one.name)) && !exclude.leaves_out(&one.path);
    }
    let kept: BTreeSet<TarPath> = one
        .below
        .iter()
        .filter(|(path, _)| !exclude.leaves_out(path))
        .flat_map(|(path, _)| path.parents().into_iter().chain([path.clone()]))
        .collect();
    one.below.retain(|(path, _)| kept.contains(path));
    true
}

/// Whether a path, read from the root of what is copied from, leads above it.
fn leaves(text: &str) -> bool {
    let mut depth = 0_usize;
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return true,
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

fn take(from: &Tree, path: &TarPath, text: &str, place: &str) -> Result<Selected, CopyError> {
    let real = from.resolve(path)?;
    let name = path.name().to_vec();
    let below = if from.is_directory(&real) {
        from.below(&real).map(|(path, found)| (path.relative_to(&real), found.clone())).collect()
    } else {
        Vec::new()
    };
    let top = match from.get(&real) {
        Some(found) => found.clone(),
        None if real.is_root() => Found::directory(0o755),
        None => return Err(CopyError::NotFound { path: text.to_owned(), place: place.to_owned() }),
    };
    Ok(Selected { name, path: path.clone(), top, below, unpacked: false })
}

/// Whether a destination says that it is a directory.
fn says_directory(destination: &str) -> bool {
    destination.ends_with('/') || matches!(destination.rsplit('/').next(), Some("." | ".."))
}

/// The entries of the layer that puts `selected` to `destination` over what is there, all parents included.
///
/// # Errors
/// When something is in the way.
pub fn place(
    selected: &[Selected],
    destination: &str,
    workdir: &TarPath,
    ownership: &Ownership,
    onto: &Tree,
) -> Result<BTreeMap<TarPath, Found>, CopyError> {
    if selected.len() > 1 && !says_directory(destination) {
        return Err(CopyError::NotSaidDirectory { destination: destination.to_owned() });
    }
    let written = if destination.starts_with('/') {
        TarPath::normal(destination)
    } else {
        TarPath::normal([workdir.as_bytes(), b"/", destination.as_bytes()].concat())
    };
    let mut layer = Layer { onto, ownership, entries: BTreeMap::new() };
    let target = onto.resolve(&written)?;
    let directory = says_directory(destination);
    if directory {
        layer.make_directories(&target)?;
    }
    for Selected { name, top, below, unpacked, .. } in selected {
        if *unpacked {
            layer.make_directories(&target)?;
            layer.unpack(&target, below)?;
        } else if top.is_directory() {
            match layer.get(&target) {
                _ if target.is_root() => {}
                Some(found) if found.is_directory() => {}
                Some(_) => return Err(CopyError::NotADirectory { path: target, link: false }),
                None => layer.put(&target, top)?,
            }
            for (path, found) in below {
                layer.put(&target.join(path.as_bytes()), found)?;
            }
        } else {
            let into = directory || layer.is_directory(&target);
            let path = if into { target.join(name) } else { target.clone() };
            layer.put(&path, top)?;
        }
    }
    Ok(layer.with_parents())
}

/// The entries of the layer that makes a directory and those it is in, where they are missing; empty where it is there.
///
/// # Errors
/// When something that is no directory is in the way.
pub fn make_directory(path: &TarPath, owner: (u32, u32), onto: &Tree) -> Result<BTreeMap<TarPath, Found>, CopyError> {
    let target = onto.resolve(path)?;
    if onto.is_directory(&target) {
        return Ok(BTreeMap::new());
    }
    let ownership = Ownership { owner: Some(owner), mode: None };
    let mut layer = Layer { onto, ownership: &ownership, entries: BTreeMap::new() };
    layer.make_directories(&target)?;
    Ok(layer.with_parents())
}

/// Puts what is above a tree's entries into a layer that lacks it, so that an engine that unpacks the layer alone gives no directory
/// another mode or owner than it has below.
pub fn with_parents(mut entries: BTreeMap<TarPath, Found>, onto: &Tree) -> BTreeMap<TarPath, Found> {
    let parents: Vec<TarPath> = entries.keys().flat_map(TarPath::parents).collect();
    for parent in parents {
        let below = onto.get(&parent).filter(|found| found.is_directory());
        entries.entry(parent).or_insert_with(|| below.cloned().unwrap_or_else(|| Found::directory(0o755)));
    }
    entries
}

/// The name under which an archive holds a file, when links between its names are followed.
fn entries_first<'a>(entries: &'a [(TarPath, Found)], to: &'a TarPath) -> &'a TarPath {
    let mut to = to;
    // A link leads to what came before it, so this ends; the bound is for archives that were read by somebody else.
    for _ in 0..entries.len() {
        match entries.binary_search_by(|(path, _)| path.cmp(to)).map(|at| &entries[at].1.entry.node) {
            Ok(Node::Hardlink(next)) => to = next,
            _ => break,
        }
    }
    to
}

/// A layer being put together over a tree.
struct Layer<'a> {
    onto: &'a Tree,
    ownership: &'a Ownership,
    entries: BTreeMap<TarPath, Found>,
}

impl Layer<'_> {
    fn get(&self, path: &TarPath) -> Option<&Found> {
        self.entries.get(path).or_else(|| self.onto.get(path))
    }

    fn is_directory(&self, path: &TarPath) -> bool {
        path.is_root() || self.get(path).is_some_and(Found::is_directory)
    }

    fn make_directories(&mut self, path: &TarPath) -> Result<(), CopyError> {
        for directory in path.parents().into_iter().chain((!path.is_root()).then(|| path.clone())) {
            match self.get(&directory) {
                Some(found) if found.is_directory() => {}
                Some(found) => {
                    let link = matches!(found.entry.node, Node::Symlink(_));
                    return Err(CopyError::NotADirectory { path: directory, link });
                }
                None => {
                    self.entries.insert(directory, self.ownership.parent());
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &TarPath, found: &Found) -> Result<(), CopyError> {
        self.put_as(path, found, self.ownership)
    }

    fn put_as(&mut self, path: &TarPath, found: &Found, ownership: &Ownership) -> Result<(), CopyError> {
        if path.name().starts_with(super::layer::WHITEOUT) {
            return Err(CopyError::Whiteout { path: path.clone() });
        }
        if let Some(parent) = path.parent() {
            self.make_directories(&parent)?;
        }
        match self.get(path) {
            Some(there) if found.is_directory() && !there.is_directory() => {
                let link = matches!(there.entry.node, Node::Symlink(_));
                return Err(CopyError::NotADirectory { path: path.clone(), link });
            }
            Some(there) if !found.is_directory() && there.is_directory() => {
                return Err(CopyError::Directory { path: path.clone() });
            }
            _ => {}
        }
        let mut found = found.clone();
        ownership.apply(&mut found.entry);
        self.entries.insert(path.clone(), found);
        Ok(())
    }

    /// Puts what an archive holds below a directory.
    fn unpack(&mut self, target: &TarPath, entries: &[(TarPath, Found)]) -> Result<(), CopyError> {
        // Where each file of the archive came to lie, and the names of those that have several, by the first one's.
        let mut placed: BTreeMap<&TarPath, TarPath> = BTreeMap::new();
        let mut names: BTreeMap<&TarPath, Vec<TarPath>> = BTreeMap::new();
        let ownership = Ownership { mode: None, ..self.ownership.clone() };
        for (path, found) in entries {
            let mut full = target.join(path.as_bytes());
            // Links that lie below are followed, as by everybody who writes there. Those of the archive itself are not: it could lead
            // itself anywhere by them.
            if let Some(parent) = full.parent()
                && !full
                    .parents()
                    .iter()
                    .any(|parent| self.entries.get(parent).is_some_and(|found| !found.is_directory()))
            {
                full = self.onto.resolve(&parent)?.join(full.name());
            }
            if let Node::Hardlink(to) = &found.entry.node {
                let first = entries_first(entries, to);
                names.entry(first).or_default().push(full.clone());
            }
            self.put_as(&full, found, &ownership)?;
            placed.insert(path, full);
        }
        for (first, mut others) in names {
            let Some(first) = placed.get(first) else { continue };
            let Some(file) = self.entries.get(first).cloned() else { continue };
            others.push(first.clone());
            others.sort();
            // A layer tells a file where its first name is, and the others as links to that.
            let lowest = others[0].clone();
            for name in others {
                if let Some(found) = self.entries.get_mut(&name) {
                    *found = Found {
                        entry: Entry { node: Node::Hardlink(lowest.clone()), ..file.entry.clone() },
                        content: Content::None,
                    };
                }
            }
            self.entries.insert(lowest, file);
        }
        Ok(())
    }

    fn with_parents(self) -> BTreeMap<TarPath, Found> {
        with_parents(self.entries, self.onto)
    }
}

#[cfg(test)]
mod tests;
