//! Steps with the network.

use std::sync::Arc;

use jiji::build::execute::Local;
use jiji::build::{BuildRequest, Builder, Built};
use jiji::lockfile::LockFile;
use jiji_model::event::Silent;
use jiji_store::Store;

use crate::project::{Nowhere, Project, file, last_layer, project};

/// A server on this machine that gives everybody one text, until it is dropped. How often it was asked is counted.
struct Server {
    address: std::net::SocketAddr,
    text: Arc<std::sync::Mutex<String>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
}

impl Server {
    fn start(text: &str) -> Self {
        use std::io::{Read as _, Write as _};
        use std::sync::atomic::Ordering;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let text = Arc::new(std::sync::Mutex::new(text.to_owned()));
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (said, count) = (Arc::clone(&text), Arc::clone(&asked));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let body = said.lock().expect("nobody panicked").clone();
                count.fetch_add(1, Ordering::Relaxed);
                let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        Self { address, text, asked }
    }

    fn say(&self, text: &str) {
        *self.text.lock().expect("nobody panicked") = text.to_owned();
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, std::sync::atomic::Ordering::Relaxed)
    }
}

pub(crate) fn a_step_with_the_network_runs_once_and_gives_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start("first");
    let at = server.address;
    let steps = format!(
        "FROM base\nRUN mkdir -p /var/lib/apt/lists; echo base > /var/lib/apt/lists/old; echo base > /var/log.txt\n\
         RUN --network=default wget -q -O /got http://{at}/file && cat /etc/resolv.conf > /dev/null; \\\n\
         mkdir -p /var/log/apt /root/.cache/pip/http /root/.npm/_logs /var/lib/apt/lists/partial; \\\n\
         for f in /var/log/apt/history.log /var/log/dpkg.log /root/.cache/pip/http/a /root/.npm/_logs/l \\\n\
         /var/lib/apt/lists/Release /var/lib/apt/lists/old; do date +%s%N > $f; done\n\
         RUN cat got > copy; ! wget -q -T 1 -O - http://{at}/\n"
    );
    let project = project(dir.path(), &steps);
    let built = project.built();
    assert_eq!(server.asked(), 1, "the step after it has no network");
    assert_eq!(file(&project, &built, "copy"), "first");
    let mut image = built.image.clone();
    image.layers.pop();
    let names = last_layer(&project, &Built { image, ..built.clone() });
    let names: Vec<&str> = names.iter().map(|name| name.split(' ').next().expect("a name")).collect();
    for gone in
        ["var/log/apt/history.log", "var/log/dpkg.log", "root/.cache/pip/", "root/.npm/_logs/", "var/lib/apt/lists/old"]
    {
        assert!(!names.contains(&gone), "{names:?}");
    }
    for kept in ["got", "var/log/apt/", "var/lib/apt/lists/partial/"] {
        assert!(names.contains(&kept), "{names:?}");
    }

    // Another machine with the same lock, of which the store knows nothing: the step runs again and gives the same.
    let other = |name: &str| {
        let store = Store::open(dir.path().join(name)).expect("a store");
        Project { root: project.root.clone(), store }
    };
    let locked = BuildRequest { locked: true, ..project.request() };
    let second = other("second");
    assert_eq!(second.build_as(&locked, &Nowhere).expect("built").image.manifest, built.image.manifest);
    assert_eq!(server.asked(), 1);

    // What is fetched is another now. Who has the layer does not notice; who has not is told, or refused.
    server.say("changed");
    assert_eq!(project.build_as(&locked, &Nowhere).expect("built").image.manifest, built.image.manifest);
    assert_eq!(server.asked(), 0);
    let error = other("third").build_as(&locked, &Nowhere).expect_err("it is refused");
    assert!(error.is_locked_mismatch(), "{error}");
    assert_eq!(error.place().map(|place| place.line), Some(6));
    assert!(error.evidence()[0].contains("what it fetches is another"), "{:?}", error.evidence());
    assert_eq!(server.asked(), 2, "once more, to see what differs");
    let renewed = BuildRequest { renew: true, ..locked.clone() };
    let error = project.build_as(&renewed, &Nowhere).expect_err("it is refused");
    let evidence = error.evidence().join("\n");
    assert!(evidence.contains("/got") && evidence.contains("first") && evidence.contains("changed"), "{evidence}");
    server.asked();

    // The check does it again elsewhere, with the network.
    let here = Local::new(2);
    let builder = Builder { store: &second.store, sources: &Nowhere, executor: &here, events: &Silent };
    let lock = LockFile::of_project(&second.root).read().expect("a lock").build;
    let elsewhere = Local::new(2).elsewhere();
    let conditions =
        jiji::build::Elsewhere { executor: &elsewhere, wait: std::time::Duration::ZERO, today: Vec::new() };
    server.say("first");
    let checked = builder.check(&second.request(), &lock, &conditions).expect("checked");
    assert!(checked.findings.is_empty() && server.asked() == 1, "{:?}", checked.findings);
    server.say("changed");
    let checked = builder.check(&second.request(), &lock, &conditions).expect("checked");
    assert_eq!(checked.findings.len(), 1, "{:?}", checked.findings);

    let third = other("fourth").built().image;
    assert_ne!(third.manifest, built.image.manifest, "without `--locked` the lock says what it gives now");
    assert_eq!(other("third").build_as(&locked, &Nowhere).expect("built").image.manifest, third.manifest);
}
