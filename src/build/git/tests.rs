use super::*;

#[test]
fn a_repository_is_read_as_docker_reads_it() {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    for (text, url, reference, directory) in [
        ("https://example.com/a.git", "https://example.com/a.git", "", ""),
        ("https://example.com/a.git#v1", "https://example.com/a.git", "v1", ""),
        ("https://example.com/a.git#v1:docs/x", "https://example.com/a.git", "v1", "docs/x"),
        ("https://example.com/a.git#:docs/", "https://example.com/a.git", "", "docs"),
        ("git@example.com:a/b.git#refs/heads/x", "git@example.com:a/b.git", "refs/heads/x", ""),
        ("ssh://git@example.com:22/a#x", "ssh://git@example.com:22/a", "x", ""),
        ("git://example.com/a#feature/x:.", "git://example.com/a", "feature/x", ""),
        ("github.com/acme/tool", "https://github.com/acme/tool.git", "", ""),
        ("github.com/acme/tool.git#v2", "https://github.com/acme/tool.git", "v2", ""),
    ] {
        let expected = Repository { url: url.to_owned(), reference: some(reference), directory: some(directory) };
        assert_eq!(Repository::parse(text), Ok(expected), "{text}");
    }
    for text in [
        "https://user:secret@example.com/a.git",
        "https://token@example.com/a.git",
        "https://example.com/a.git?ref=v1",
        "ssh://-oProxyCommand=x/a.git",
        "ssh://git@-oProxyCommand=x/a.git",
        "-oProxyCommand=x@host:a.git",
        "git@-host:a.git",
        "https://example.com/a.git#--upload-pack=x",
        "https://example.com/a.git#a..b",
        "https://example.com/a.git#a^{/x}",
        "https://example.com/a.git#v1:../x",
        "https://example.com/a b.git",
        "https:///a.git",
    ] {
        assert!(Repository::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_place_that_speaks_no_git_is_told() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(&b"\x1b[2Jnonsense ".repeat(1000));
        }
    });
    let canceller = Canceller::new().expect("a canceller");
    let asked = |url: String| resolve(&Repository { url, reference: None, directory: None }, &store, &canceller);
    for url in
        [format!("git://{at}/a"), format!("http://{at}/a.git"), "file:///etc".to_owned(), "ext::sh -c x".to_owned()]
    {
        let error = asked(url.clone()).expect_err("no repository");
        let GitError::Failed { said, .. } = &error else { panic!("{url}: {error:?}") };
        assert!(!said.is_empty() && said.len() < 5000 && !said.contains('\u{1b}'), "{said}");
    }
    canceller.cancel();
    assert!(matches!(asked(format!("git://{at}/a")), Err(GitError::Cancelled)));
}
