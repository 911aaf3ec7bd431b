use super::*;

fn path(text: &str) -> TarPath {
    TarPath::normal(text)
}

/// A tree from lines: `d PATH`, `f PATH`, `l PATH TARGET`, each with an optional mode and owner as `PATH:MODE:OWNER`.
fn tree(lines: &[&str]) -> Tree {
    let entry = |line: &&str| {
        let mut words = line.split(' ');
        let kind = words.next().expect("a kind");
        let mut fields = words.next().expect("a path").split(':');
        let name = fields.next().expect("a name");
        let mode = fields.next().map(|mode| u32::from_str_radix(mode, 8).expect("a mode"));
        let owner = fields.next().map_or(0, |owner| owner.parse().expect("an owner"));
        let mut entry = match kind {
            "d" => Entry::directory(mode.unwrap_or(0o755)),
            "f" => Entry::file(mode.unwrap_or(0o644), 1),
            "p" => Entry { node: Node::Fifo, ..Entry::directory(0o644) },
            _ => Entry {
                node: Node::Symlink(words.next().expect("a target").as_bytes().to_vec()),
                ..Entry::directory(0o777)
            },
        };
        (entry.uid, entry.gid) = (owner, owner);
        let content = if kind == "f" { Content::Bytes(name.as_bytes().to_vec()) } else { Content::None };
        (path(name), Found { entry, content })
    };
    Tree::new(lines.iter().map(entry).collect())
}

/// What a COPY gives, as `PATH MODE OWNER CONTENT`, or its error.
fn copied(context: &[&str], onto: &[&str], sources: &[&str], destination: &str) -> Result<Vec<String>, String> {
    copied_as(context, onto, sources, destination, Ownership::default())
}

fn copied_as(
    context: &[&str],
    onto: &[&str],
    sources: &[&str],
    destination: &str,
    ownership: Ownership,
) -> Result<Vec<String>, String> {
    let sources: Vec<Source> = sources.iter().map(|text| Source::Path((*text).to_owned())).collect();
    let selected =
        select(&sources, &Choice::default(), &tree(context), "the context").map_err(|error| error.to_string())?;
    let placed = place(&selected, destination, &path("srv"), &ownership, &tree(onto));
    let line = |(path, found): (&TarPath, &Found)| {
        let entry = &found.entry;
        let what = match (&entry.node, &found.content) {
            (Node::Symlink(target), _) => format!("-> {}", String::from_utf8_lossy(target)),
            (_, Content::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            _ => "/".to_owned(),
        };
        format!("{path} {:o} {} {what}", entry.mode, entry.uid)
    };
    Ok(placed.map_err(|error| error.to_string())?.iter().map(line).collect())
}

const CONTEXT: [&str; 8] =
    ["f a", "f b.txt", "f c.txt:755", "d dir", "f dir/one", "d dir/sub:755", "l dir/link one", "l to dir"];

#[test]
fn a_file_goes_to_a_name_into_a_directory_or_into_one_that_is_made() {
    let to = |destination: &str, onto: &[&str]| copied(&CONTEXT, onto, &["a"], destination);
    assert_eq!(to("/x", &[]), Ok(vec!["/x 644 0 a".to_owned()]));
    assert_eq!(to("/x", &["d x:700:5"]), Ok(vec!["/x 700 5 /".to_owned(), "/x/a 644 0 a".to_owned()]));
    assert_eq!(to("/x/", &[]), Ok(vec!["/x 755 0 /".to_owned(), "/x/a 644 0 a".to_owned()]));
    assert_eq!(to("x", &[]), Ok(vec!["/srv 755 0 /".to_owned(), "/srv/x 644 0 a".to_owned()]));
    assert_eq!(to(".", &[]), Ok(vec!["/srv 755 0 /".to_owned(), "/srv/a 644 0 a".to_owned()]));
    assert_eq!(to("/", &[]), Ok(vec!["/a 644 0 a".to_owned()]));
    assert_eq!(to("/x", &["f x:600:7"]), Ok(vec!["/x 644 0 a".to_owned()]));
}

#[test]
fn links_at_the_destination_are_followed_and_parents_keep_what_they_are() {
    let onto = ["d usr", "d usr/bin:711:3", "l bin usr/bin", "d tmp:1777", "l link /usr/new"];
    assert_eq!(
        copied(&CONTEXT, &onto, &["a"], "/bin/"),
        Ok(["/usr 755 0 /", "/usr/bin 711 3 /", "/usr/bin/a 644 0 a"].map(str::to_owned).to_vec())
    );
    assert_eq!(
        copied(&CONTEXT, &onto, &["a"], "/tmp/x"),
        Ok(["/tmp 1777 0 /", "/tmp/x 644 0 a"].map(str::to_owned).to_vec())
    );
    assert_eq!(
        copied(&CONTEXT, &onto, &["a"], "/link"),
        Ok(["/usr 755 0 /", "/usr/new 644 0 a"].map(str::to_owned).to_vec())
    );
}

#[test]
fn a_directory_gives_its_content_and_links_in_it_stay_links() {
    let content = ["/x 755 0 /", "/x/link 777 0 -> one", "/x/one 644 0 dir/one", "/x/sub 755 0 /"];
    for source in ["dir", "dir/", "./dir/.", "to"] {
        let copied = copied(&CONTEXT, &[], &[source], "/x");
        assert_eq!(copied, Ok(content.map(str::to_owned).to_vec()), "{source}");
    }
    // An existing directory keeps its own mode, those below take the source's.
    assert_eq!(
        copied(&CONTEXT, &["d x:700:1", "d x/sub:700:1"], &["dir"], "/x"),
        Ok(["/x 700 1 /", "/x/link 777 0 -> one", "/x/one 644 0 dir/one", "/x/sub 755 0 /"]
            .map(str::to_owned)
            .to_vec())
    );
    let all = copied(&CONTEXT, &[], &["."], "/").expect("copied");
    assert_eq!(all.len(), CONTEXT.len());
}

#[test]
fn patterns_match_within_one_directory() {
    assert_eq!(
        copied(&CONTEXT, &[], &["*.txt"], "/x/"),
        Ok(["/x 755 0 /", "/x/b.txt 644 0 b.txt", "/x/c.txt 755 0 c.txt"].map(str::to_owned).to_vec())
    );
    assert_eq!(
        copied(&CONTEXT, &[], &["a", "nothing*"], "/x/"),
        Ok(["/x 755 0 /", "/x/a 644 0 a"].map(str::to_owned).to_vec())
    );
    assert_eq!(copied(&CONTEXT, &[], &["*.md"], "/x/"), Err("copy `*.md`: nothing in the context matches".to_owned()));
}

#[test]
fn owner_and_mode_hold_for_all_that_is_copied_and_owners_for_made_parents() {
    let ownership = Ownership { owner: Some((8, 9)), mode: ModeChange::parse("640") };
    assert_eq!(
        copied_as(&CONTEXT, &["d y:711:3"], &["dir"], "/y/z/x/", ownership),
        Ok([
            "/y 711 3 /",
            "/y/z 755 8 /",
            "/y/z/x 755 8 /",
            "/y/z/x/link 777 8 -> one",
            "/y/z/x/one 640 8 dir/one",
            "/y/z/x/sub 640 8 /",
        ]
        .map(str::to_owned)
        .to_vec())
    );
}

#[test]
fn what_is_in_the_way_is_an_error() {
    let cases: [(&[&str], &[&str], &str, &str); 9] = [
        (&["a", "b.txt"], &[], "/x", "copy several sources to `/x`: it must end with `/`"),
        (&["nothing"], &[], "/x", "copy `nothing`: it is not in the context"),
        (&["../a"], &[], "/x", "copy `../a`: it is outside of the context"),
        (&["dir"], &["f x"], "/x", "copy to `/x`: what is there is not a directory"),
        (&["a"], &["f x"], "/x/", "copy to `/x`: what is there is not a directory"),
        (&["a"], &["f x"], "/x/y", "copy to `/x`: what is there is not a directory"),
        (&["dir"], &["d x", "d x/one"], "/x", "copy to `/x/one`: a directory is there"),
        (&["dir"], &["d x", "l x/sub /y"], "/x", "copy to `/x/sub`: what is there is not a directory"),
        (&["a"], &["l x x"], "/x", "copy `/x`: it leads through too many symbolic links"),
    ];
    for (sources, onto, destination, message) in cases {
        assert_eq!(copied(&CONTEXT, onto, sources, destination), Err(message.to_owned()));
    }
    assert_eq!(copied(&["f [x"], &[], &["[x"], "/"), Err("copy `[x`: the pattern cannot be read".to_owned()));
}

#[test]
fn a_directory_is_made_where_it_is_missing() {
    let onto = tree(&["d app:700:4", "l old app"]);
    let made = make_directory(&path("old/a/b"), (7, 7), &onto).expect("made");
    let seen: Vec<String> =
        made.iter().map(|(path, found)| format!("{path} {:o} {}", found.entry.mode, found.entry.uid)).collect();
    assert_eq!(seen, ["/app 700 4", "/app/a 755 7", "/app/a/b 755 7"]);
    assert!(make_directory(&path("old"), (7, 7), &onto).expect("nothing to do").is_empty());
}

/// What `--parents` and `--exclude` take, as the paths below `/out`.
fn chosen(context: &[&str], sources: &[&str], parents: bool, exclude: &[&str]) -> Result<Vec<String>, String> {
    let mut choice = Choice { parents, ..Choice::default() };
    for pattern in exclude {
        choice.exclude.add(pattern).map_err(|_| (*pattern).to_owned())?;
    }
    let sources: Vec<Source> = sources.iter().map(|text| Source::Path((*text).to_owned())).collect();
    let selected = select(&sources, &choice, &tree(context), "the context").map_err(|error| error.to_string())?;
    let placed = place(&selected, "/out/", &path(""), &Ownership::default(), &tree(&[]));
    let paths = placed.map_err(|error| error.to_string())?.into_keys();
    Ok(paths.map(|path| path.to_string().replacen("/out/", "", 1)).filter(|path| path != "/out").collect())
}

/// The tree of BuildKit's tests of `--parents`.
const DEEP: [&str; 18] = [
    "d test",
    "d test/a",
    "d test/a/b",
    "d test/a/b/c",
    "d test/a/b/c/d",
    "f test/a/b/c/d/foo",
    "d test/a/b/c/d/e",
    "f test/a/b/c/d/e/bay",
    "d test/a/b/c2",
    "d test/a/b/c2/d",
    "d test/a/b/c2/d/e",
    "f test/a/b/c2/d/e/baz",
    "d test/a/b/c2/d/e2",
    "f test/a/b/c2/d/e2/baz",
    "d test/a/b2",
    "d test/a/b2/c",
    "d test/a/b2/c/d",
    "f test/a/b2/c/d/bar",
];

#[test]
fn parents_are_kept_from_the_pivot_on() {
    let paths = |sources: &[&str]| chosen(&DEEP, sources, true, &[]);
    let expected = |list: &[&str]| Ok(list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
    let whole = ["c", "c/d", "c/d/e", "c/d/e/bay", "c/d/foo"];
    assert_eq!(paths(&["/test/a/b/./c/d"]), expected(&whole));
    let below = |parent: &str| -> Vec<String> {
        let mut all: Vec<String> =
            TarPath::normal(parent).parents().iter().map(|path| path.to_string()[1..].to_owned()).collect();
        all.push(parent.to_owned());
        all.extend(["d", "d/e", "d/e/bay", "d/foo"].map(|path| format!("{parent}/{path}")));
        all
    };
    assert_eq!(paths(&["/test/a/b/c/d/."]), Ok(below("test/a/b/c")));
    assert_eq!(paths(&["./test/a/b/c/d"]), Ok(below("test/a/b/c")));
    assert_eq!(paths(&["/test/a/./b/./c"]), Ok(below("b/c")));
    assert_eq!(
        paths(&["/test/a/./*/c"]),
        Ok([below("b/c"), ["b2", "b2/c", "b2/c/d", "b2/c/d/bar"].map(str::to_owned).to_vec()].concat())
    );
    assert_eq!(paths(&["/test/a/b*/./c/**/e"]), expected(&["c", "c/d", "c/d/e", "c/d/e/bay"]));
    assert_eq!(
        paths(&["/test/a/b/c*/./d/**/baz", "/test/a/b*/./c/**/bar"]),
        expected(&["c", "c/d", "c/d/bar", "d", "d/e", "d/e/baz", "d/e2", "d/e2/baz"])
    );
    assert_eq!(paths(&["/test/gone"]), Err("copy `/test/gone`: it is not in the context".to_owned()));
    assert!(paths(&["/test/a/b2*/gone"]).is_err_and(|error| error.contains("nothing in the context matches")));
    assert!(paths(&["../x/./y"]).is_err_and(|error| error.contains("outside")));
}

#[test]
fn what_is_excluded_is_told_by_its_path_below_the_source() {
    let context = [
        "d dir1",
        "f dir1/a.png",
        "f dir1/b.txt",
        "d dir2",
        "f dir2/c.pdf",
        "f dir2/d.png",
        "f dir2/e.txt",
        "f home.md",
        "f home.txt",
    ];
    let paths = |sources: &[&str], exclude: &[&str]| chosen(&context, sources, false, exclude);
    let expected = |list: &[&str]| Ok(list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
    assert_eq!(
        paths(&["."], &["*/*.png", "*/*.pdf"]),
        expected(&["dir1", "dir1/b.txt", "dir2", "dir2/e.txt", "home.md", "home.txt"])
    );
    assert_eq!(paths(&["dir*"], &["*.png", "*.txt"]), expected(&["c.pdf"]));
    assert_eq!(paths(&["hom*"], &["*.txt"]), expected(&["home.md"]));
    assert_eq!(
        paths(&["dir1/*", "dir2/*"], &["dir1/*", "!dir1/b.txt"]),
        expected(&["b.txt", "c.pdf", "d.png", "e.txt"])
    );
    assert_eq!(
        paths(&["."], &["dir2", "!dir2/e.txt"]),
        expected(&["dir1", "dir1/a.png", "dir1/b.txt", "dir2", "dir2/e.txt", "home.md", "home.txt"])
    );
    assert_eq!(paths(&["dir1", "home.md"], &["*"]), expected(&[]));
    assert_eq!(chosen(&context, &["dir2"], true, &["**/*.p*"]), expected(&["dir2", "dir2/e.txt"]));
    assert_eq!(paths(&["."], &["[a"]), Err("[a".to_owned()));
}
