use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiji_model::image::{Image, Platform};
use jiji_model::reference::Reference;

use super::request::{Request, Unread, authority_of, read, whole};
use super::*;
use crate::build::sources::Answer;
use crate::registry::{Depth, RegistryError};

/// A network in which every URL has its own name, and some have something else.
#[derive(Default)]
struct Network {
    asked: AtomicUsize,
    away: bool,
}

impl Sources for Network {
    fn resolve(&self, reference: &Reference, _: &Platform) -> Result<Digest, RegistryError> {
        Err(RegistryError::NotFound { registry: "nowhere".to_owned(), what: reference.to_string() })
    }

    fn pull(
        &self,
        reference: &Reference,
        _: &Digest,
        _: &Platform,
        _: &Store,
        _: Depth,
    ) -> Result<Image, RegistryError> {
        Err(RegistryError::NotFound { registry: "nowhere".to_owned(), what: reference.to_string() })
    }

    fn reachable(&self, what: &dyn Fn() -> String) -> Result<(), RegistryError> {
        if self.away { Err(RegistryError::Offline { what: what() }) } else { Ok(()) }
    }

    fn fetch(&self, url: &str, store: &Store) -> Result<(Digest, u64), RegistryError> {
        Ok((store.put(url.as_bytes())?, url.len() as u64))
    }

    fn ask(&self, asking: &Asking<'_>, store: &Store) -> Result<Answer, RegistryError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (status, location) = match asking.url {
            url if url.ends_with("/missing") => (404, None),
            url if url.ends_with("/moved") => (302, Some("https://a.test/file".to_owned())),
            url if url.ends_with("/locked") && asking.authorization.is_none() => (401, None),
            _ => (200, None),
        };
        let said = format!("{} {}", asking.url, asking.accept.unwrap_or_default());
        let body = (status == 200).then(|| store.put(said.as_bytes())).transpose()?;
        Ok(Answer { status, kind: Some("text/plain".to_owned()), location, body: body.map(|body| (body, 0)) })
    }
}

fn asked(url: &str) -> Asked {
    Asked { url: url.to_owned(), accept: None }
}

#[test]
fn what_was_answered_once_is_answered_again_by_the_lock_and_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a store");
    let network = Network::default();
    let recorder = Recorder::new(&network, &store, BTreeMap::new(), false, Vec::new());
    for url in ["https://a.test/file", "https://a.test/missing", "https://a.test/moved", "https://a.test/file"] {
        recorder.answer(&asked(url), None).expect("answered");
    }
    let json = Asked { accept: Some("application/json".to_owned()), ..asked("https://a.test/file") };
    recorder.answer(&json, None).expect("answered");
    assert_eq!(network.asked.load(Ordering::SeqCst), 4, "each once");
    // What is not for everybody is handed on, and kept only for those who may have it.
    let refused = recorder.answer(&asked("https://a.test/locked"), None).expect_err("not said who");
    assert_eq!(refused.status, 401);
    recorder.answer(&asked("https://a.test/locked"), Some("Bearer x")).expect("answered");
    let known = std::mem::take(&mut *held(&recorder.asked));
    let said: Vec<_> = known.iter().map(|(asked, said)| (asked.to_string(), said.status)).collect();
    assert_eq!(
        said,
        [
            ("https://a.test/file".to_owned(), 200),
            ("https://a.test/file as application/json".to_owned(), 200),
            ("https://a.test/locked".to_owned(), 200),
            ("https://a.test/missing".to_owned(), 404),
            ("https://a.test/moved".to_owned(), 302),
        ]
    );
    assert_eq!(known[&asked("https://a.test/moved")].location.as_deref(), Some("https://a.test/file"));

    // Offline and locked, all of it is still here.
    let away = Network { away: true, ..Network::default() };
    let recorder = Recorder::new(&away, &store, known.clone(), true, Vec::new());
    for asked in known.keys() {
        recorder.answer(asked, None).expect("answered");
    }
    assert_eq!((away.asked.load(Ordering::SeqCst), held(&recorder.failure).is_none()), (0, true));
    assert_eq!(*held(&recorder.asked), known);

    // What is not pinned is refused, and the step with it.
    recorder.answer(&asked("https://a.test/other"), None).expect_err("not locked");
    let failure = held(&recorder.failure).take().expect("a failure");
    assert!(matches!(failure, StepError::NotLocked { ref what } if what == "`https://a.test/other`"), "{failure}");

    // What is pinned and gone from here is asked for again, and must be the same.
    let gone = known[&asked("https://a.test/file")].digest;
    store.remove(&gone).expect("removed");
    let recorder = Recorder::new(&away, &store, known.clone(), false, Vec::new());
    recorder.answer(&asked("https://a.test/file"), None).expect_err("nobody may be asked");
    assert!(matches!(held(&recorder.failure).take(), Some(StepError::Registry(RegistryError::Offline { .. }))));
    let recorder = Recorder::new(&network, &store, known.clone(), true, Vec::new());
    recorder.answer(&asked("https://a.test/file"), None).expect("the same");
    let other = Recorded { digest: Digest::of("other"), ..known[&asked("https://a.test/file")].clone() };
    let changed = BTreeMap::from([(asked("https://a.test/file"), other)]);
    let recorder = Recorder::new(&network, &store, changed, true, Vec::new());
    recorder.answer(&asked("https://a.test/file"), None).expect_err("another");
    assert!(matches!(held(&recorder.failure).take(), Some(StepError::OtherFile { by: "jiji.lock", .. })));
}

#[test]
fn a_url_that_holds_a_secret_is_neither_asked_for_nor_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a store");
    let network = Network::default();
    let recorder = Recorder::new(&network, &store, BTreeMap::new(), false, vec![Secret::new("hunter 2")]);
    for url in ["https://a.test/?token=hunter%202&x", "https://a.test/?token=%68unter%202"] {
        let refused = recorder.answer(&asked(url), None).expect_err("refused");
        assert!(!refused.text.contains("2") && refused.text.contains("a.test"), "{}", refused.text);
    }
    assert!(network.asked.load(Ordering::SeqCst) == 0 && held(&recorder.asked).is_empty());
    recorder.answer(&asked("https://a.test/?token=hunter"), None).expect("answered");
}

#[test]
fn requests_are_read_to_their_end_and_no_further() {
    let said = |text: &str| read(&mut Cursor::new(text.as_bytes().to_vec()));
    let request = said("GET http://a.test/x HTTP/1.1\r\nhost: a.test\r\nACCEPT: text/html\r\nAccept: a/b\r\n\r\nrest")
        .expect("read");
    let due = Request {
        method: "GET".to_owned(),
        target: "http://a.test/x".to_owned(),
        accept: Some("text/html, a/b".to_owned()),
        authorization: None,
    };
    assert_eq!(request, due);
    assert_eq!(said("GET / HTTP/1.1\r\nAccept: */*\r\n\r\n").expect("read").accept, None);
    let mut from = Cursor::new(b"CONNECT a:1 HTTP/1.1\r\n\r\n\x16\x03".to_vec());
    read(&mut from).expect("read");
    assert_eq!(from.get_ref().len() as u64 - from.position(), 2, "what comes next is not taken");
    for wrong in ["\x16\x03\x01 \r\n\r\n", "GET\r\n\r\n", "GET / HTTP/3\r\n\r\n"] {
        assert!(matches!(said(wrong), Err(Unread::Wrong(_))), "{wrong:?}");
    }
    let headers: String = (0..200).map(|number| format!("h{number}: x\r\n")).collect();
    assert!(matches!(said(&format!("GET / HTTP/1.1\r\n{headers}\r\n")), Err(Unread::Wrong(_))));
    assert!(matches!(said(&"x".repeat(100 << 10)), Err(Unread::Wrong("its head is too long"))));
    assert!(matches!(said("GET / HT"), Err(Unread::Gone)));
}

#[test]
fn urls_have_one_form_and_no_password() {
    for (target, url) in [
        ("http://A.test", "http://a.test/"),
        ("HTTP://a.test:80/x?y#z", "http://a.test/x?y"),
        ("http://a.test:8080?y", "http://a.test:8080/?y"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
    ] {
        assert_eq!(whole(target).expect("a URL"), url);
    }
    for wrong in [
        "https://a.test/x",
        "/x",
        "ftp://a.test/",
        "http://user:word@a.test/",
        "http:///x",
        "http://a b/",
        "http://a.test:99999/",
        "http://[::1/",
        "http://é/",
    ] {
        assert!(matches!(whole(wrong), Err(Unread::Wrong(_))), "{wrong}");
    }
    assert_eq!(authority_of("a.test:8443", 443).expect("a host"), ("a.test".to_owned(), 8443));
    assert!(authority_of("a.test/x:443", 443).is_err() && authority_of(&"a".repeat(300), 443).is_err());
}
