//! Against a registry that others wrote: Debian's `docker-registry`, a real process on loopback.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiji_model::secret::Secret;

use super::*;
use crate::registry::{Credentials, Depth, Push, RegistryError};

/// alice:wonderland, as `htpasswd -B` writes it.
const USERS: &str = "alice:$2a$05$abcdefghijklmnopqrstuuA0vov2GDneHB3.8.cv9UF9g.RdvScIW\n";

struct Distribution {
    child: Child,
    at: String,
    dir: TempDir,
}

impl Drop for Distribution {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Distribution {
    fn start(with_users: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let root = dir.path().join("data");
        let users = dir.path().join("users");
        std::fs::write(&users, USERS).expect("written");
        let auth = match with_users {
            true => format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", users.display()),
            false => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: \"{free}\"}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n{auth}",
            root.display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).expect("written");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed");
        let mut started = Self { child, at: free.to_string(), dir };
        let stderr = started.child.stderr.take().expect("piped");
        std::thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).for_each(drop));
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(free).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen on {free}");
            assert!(started.child.try_wait().expect("asked").is_none(), "docker-registry ended");
            std::thread::sleep(Duration::from_millis(30));
        }
        started
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_there_and_back_and_only_what_is_missing_goes_again() {
    let registry = Distribution::start(false);
    let (made, client) = (Place::new(), Client::new(Setup::default()));
    let large = vec![42; 9_000_000];
    let old = image(&made.store, &[b"base layer", &large]);
    let (to, tag) = (repository(&registry.at, "shop/web"), "v1".parse().expect("a tag"));
    let push = Push { image: &old, to: &to, tag: Some(&tag), bases: &[] };
    let report = client.push(push, &made.store).await.expect("pushed");
    assert_eq!((report.sent, report.sent_bytes), (3, old.size() - old.manifest.size));
    assert!(client.push(push, &made.store).await.expect("pushed").unchanged);

    let new = image(&made.store, &[b"base layer", &large, b"a line"]);
    let push = Push { image: &new, to: &to, tag: Some(&tag), bases: &[] };
    let report = client.push(push, &made.store).await.expect("pushed");
    assert_eq!((report.present, report.sent), (2, 2));
    assert_eq!(report.sent_bytes, new.layers[2].size + new.config.size);

    let (place, tagged) = (Place::new(), reference(&registry.at, "shop/web:v1"));
    let digest = client.resolve(&tagged, &new.platform).await.expect("resolved");
    assert_eq!(digest, new.manifest.digest);
    let pulled = client.pull(&tagged, &digest, &new.platform, &place.store, Depth::WithLayers).await.expect("pulled");
    assert_eq!(pulled, new);
    assert!(new.blobs().all(|blob| place.has(blob)));
    // The older image is still had by its digest, though the tag moved on.
    let older = client.pull(&tagged, &old.manifest.digest, &old.platform, &place.store, Depth::ManifestOnly).await;
    assert_eq!(older.expect("pulled"), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_repository_is_mounted_and_not_sent() {
    let registry = Distribution::start(false);
    let (made, client) = (Place::new(), Client::new(Setup::default()));
    let base = image(&made.store, &[&vec![1; 2_000_000]]);
    let to = repository(&registry.at, "base");
    client.push(Push { image: &base, to: &to, tag: None, bases: &[] }, &made.store).await.expect("pushed");
    let web = image(&made.store, &[&vec![1; 2_000_000], b"own"]);
    made.store.remove(&web.layers[0].digest).expect("removed");
    let (to, bases) = (repository(&registry.at, "shop/web"), [reference(&registry.at, "base")]);
    let report =
        client.push(Push { image: &web, to: &to, tag: None, bases: &bases }, &made.store).await.expect("pushed");
    assert_eq!((report.mounted, report.sent, report.sent_bytes), (1, 2, 3 + web.config.size));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_was_changed_on_the_registrys_disk_is_refused() {
    let registry = Distribution::start(false);
    let (made, client) = (Place::new(), Client::new(Setup::default()));
    let image = image(&made.store, &[&vec![5; 100_000], &vec![6; 100_000]]);
    let to = repository(&registry.at, "web");
    client.push(Push { image: &image, to: &to, tag: None, bases: &[] }, &made.store).await.expect("pushed");
    let data = |blob: &Descriptor| {
        let hex = blob.digest.hex();
        let blobs = registry.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    };
    std::fs::write(data(&image.layers[0]), vec![7; 100_000]).expect("changed");
    let (web, digest) = (reference(&registry.at, "web"), image.manifest.digest);
    let place = Place::new();
    let changed = client.pull(&web, &digest, &image.platform, &place.store, Depth::WithLayers).await;
    assert!(matches!(changed, Err(RegistryError::DigestMismatch { .. })), "{changed:?}");
    assert!(!place.has(&image.layers[0]));
    std::fs::write(data(&image.layers[0]), vec![5; 60_000]).expect("truncated");
    let truncated = client.pull(&web, &digest, &image.platform, &Place::new().store, Depth::WithLayers).await;
    assert!(
        matches!(
            truncated,
            Err(RegistryError::SizeMismatch { actual: 60_000, .. } | RegistryError::Interrupted { .. })
        ),
        "{truncated:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_signs_in_with_a_password_and_a_stranger_does_not() {
    let registry = Distribution::start(true);
    let made = Place::new();
    let image = image(&made.store, &[b"layer"]);
    let to = repository(&registry.at, "web");
    let push = Push { image: &image, to: &to, tag: None, bases: &[] };
    let client = |password: &'static str| {
        let known = move |_: &str| Some(Credentials { username: "alice".to_owned(), password: Secret::new(password) });
        Client::new(Setup { credentials: Arc::new(known), ..Setup::default() })
    };
    let stranger = Client::new(Setup::default()).push(push, &made.store).await;
    assert!(matches!(stranger, Err(RegistryError::Unauthorized { with_credentials: false, .. })), "{stranger:?}");
    let wrong = client("looking-glass").push(push, &made.store).await;
    assert!(matches!(wrong, Err(RegistryError::Unauthorized { with_credentials: true, .. })), "{wrong:?}");
    let report = client("wonderland").push(push, &made.store).await.expect("pushed");
    assert_eq!(report.sent, 2);
    let place = Place::new();
    let (web, digest) = (reference(&registry.at, "web"), image.manifest.digest);
    let pulled = client("wonderland").pull(&web, &digest, &image.platform, &place.store, Depth::WithLayers).await;
    assert_eq!(pulled.expect("pulled").manifest, image.manifest);
}
