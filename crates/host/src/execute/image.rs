//! Images: from the host's own store into the engine, and out of it again.
//!
//! The engine pulls by digest from a registry that lives on 127.0.0.1 for the time of the pull. Its port is one per host and is kept, so
//! that the engine does not come to know one image under ever new names; one session at a time serves there. What the engine then has is
//! checked against the identity that was asked for, and gets a name that people can read.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use jiji_model::image::{Image, ImageId};
use jiji_model::project::Engine as Kind;
use jiji_model::transaction::{Outcome, Transaction};
use jiji_registry_shim::Registry;
use tokio::net::TcpListener;

use super::{ActionError, DONE, Executor};
use crate::engine::Engine;
use crate::engine::change::Change;
use crate::place::{self, Durability, PlaceError};
use crate::{journal, records};

/// What the engine lists jiji's images under; nothing answers there, and nothing is ever pulled from it.
const LISTED: &str = "jiji.local";

/// How long it may take that an image goes.
const AN_IMAGE: Duration = Duration::from_secs(30);

/// The name under which the engine lists an image.
pub(super) fn listed(id: &ImageId, repository: &str) -> String {
    format!("{LISTED}/{repository}:{}", id.manifest.short())
}

impl Executor<'_> {
    /// The engine has the image.
    pub(super) async fn ensure_image(&self, image: &Image, limit: Duration) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        let id = image.id();
        let name = listed(&id, &image.repository);
        if let Some(found) = engine.image(&id).await? {
            if found.names().any(|known| known == name) {
                return Ok(Outcome::Unchanged);
            }
            list(engine, &found.id, &name).await?;
            return Ok(DONE);
        }
        let _alone = self.place.lock_engine().await?;
        let store = (self.store)()?;
        let (listener, port) = self.listen().await.map_err(ActionError::Serve)?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(jiji_registry_shim::serve(listener, Registry::read_only(store), async {
            // Ends with the sender, also when this future is dropped.
            let _ = stopped.await;
        }));
        let reference = format!("127.0.0.1:{port}/{}@{}", image.repository, id.manifest);
        let mut command = engine.command(["pull", "--quiet"]);
        if engine.kind == Kind::Podman {
            // Docker takes 127.0.0.0/8 for insecure by itself.
            command = command.args(["--tls-verify=false"]);
        }
        let pulled = engine.must("pull", command.args([reference.as_str()]).timeout(limit)).await;
        drop(stop);
        // Connections that the engine keeps open must not be waited for.
        serving.abort();
        pulled?;
        let found = engine.image(&id).await?;
        let found = found.ok_or_else(|| ActionError::NoImage { image: id.config.to_string() })?;
        list(engine, &found.id, &name).await?;
        // The name by which it was pulled says nothing to people. Nobody waits for it to go, and it does no harm if it stays.
        let engine = engine.clone();
        tokio::spawn(async move { drop(engine.change(Change::RemoveImage(&reference), limit).await) });
        Ok(DONE)
    }

    /// The registry's port: the one that is recorded, or a new one where that is taken or none is.
    async fn listen(&self) -> io::Result<(TcpListener, u16)> {
        let path = self.place.registry_port();
        let recorded = place::read(&path, 16).ok().flatten();
        let recorded = recorded.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse::<u16>().ok());
        if let Some(port) = recorded
            && let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await
        {
            return Ok((listener, port));
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        place::write(&path, format!("{port}\n").as_bytes(), 0o600, Durability::Synced).map_err(io::Error::other)?;
        Ok((listener, port))
    }

    /// An image is gone as far as it is this repository's, unless a container uses it. Where another project keeps the same content, its
    /// names and the image stay.
    pub(super) async fn remove_image(&self, id: &ImageId, repository: &str) -> Result<Outcome, ActionError> {
        let engine = self.engine()?;
        let Some(found) = engine.image(id).await? else {
            return Ok(Outcome::Unchanged);
        };
        let Ok(kept) = self.kept_elsewhere(id) else {
            // What cannot be read may need it.
            return Ok(Outcome::Unchanged);
        };
        if kept.contains(repository) {
            return Ok(Outcome::Unchanged);
        }
        let (own, others): (Vec<&str>, Vec<&str>) = found.names().partition(|name| is_of(name, repository));
        // While there are names of others, the last of this repository's takes nothing along.
        if !others.is_empty() {
            // Of an image with several names Podman takes a name with a digest for the image.
            let own: Vec<&str> = own.into_iter().filter(|name| !is_listed_by_digest(name)).collect();
            for name in &own {
                engine.must_change(Change::RemoveImage(name)).await?;
            }
            return Ok(if own.is_empty() { Outcome::Unchanged } else { DONE });
        }
        let users = engine.containers_where([format!("ancestor={}", found.id)]).await?;
        if !kept.is_empty() || users.iter().any(|container| container.runs(id)) {
            return Ok(Outcome::Unchanged);
        }
        for name in own {
            // The last name takes the image along, and with it the names that are left.
            engine.change(Change::RemoveImage(name), AN_IMAGE).await?;
        }
        if let Some(left) = engine.image(id).await?
            && left.names().all(|name| is_of(name, repository))
        {
            engine.must_change(Change::RemoveImage(&left.id)).await?;
        }
        Ok(DONE)
    }

    /// The repositories under which other projects of this host need an image: for a release that they can go back to, or for one that
    /// is on its way.
    fn kept_elsewhere(&self, id: &ImageId) -> Result<BTreeSet<String>, PlaceError> {
        let own = self.place.project(&self.transaction.begin.scope)?;
        let mut kept = BTreeSet::new();
        for project in self.place.all_projects()?.into_iter().filter(|project| project.dir() != own.dir()) {
            let open = journal::read(&project.journal())?.filter(Transaction::is_open);
            let coming = open.into_iter().flat_map(|transaction| transaction.begin.services.into_values());
            let releases = records::kept(&project)?.into_iter();
            let services = releases.flat_map(|release| release.services.into_values()).chain(coming);
            let kept_here = services.filter(|service| service.image.id() == *id);
            kept.extend(kept_here.map(|service| service.image.repository.clone()));
        }
        Ok(kept)
    }
}

/// Where a name points that this program gives to images or pulls them by: the repository, if it is one.
fn repository_of(name: &str) -> Option<&str> {
    let (registry, rest) = name.split_once('/')?;
    let ours = registry == LISTED || registry.starts_with("127.0.0.1:");
    let path = rest.split_once('@').map_or(rest, |(path, _)| path);
    ours.then(|| path.rsplit_once(':').map_or(path, |(path, _)| path))
}

fn is_of(name: &str, repository: &str) -> bool {
    repository_of(name) == Some(repository)
}

fn is_listed_by_digest(name: &str) -> bool {
    name.starts_with(LISTED) && name.contains('@')
}

async fn list(engine: &Engine, id: &str, name: &str) -> Result<(), ActionError> {
    Ok(engine.must_change(Change::Tag { image: id, name }).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_its_repository_alone() {
        for (name, due) in [
            ("jiji.local/shop/web:0123456789ab", Some("shop/web")),
            ("jiji.local/shop/web@sha256:00", Some("shop/web")),
            ("127.0.0.1:5000/shop/web@sha256:00", Some("shop/web")),
            ("127.0.0.1:5000/shop/web:1@sha256:00", Some("shop/web")),
            ("docker.io/library/busybox:1", None),
            ("busybox", None),
        ] {
            assert_eq!(repository_of(name), due, "{name}");
        }
        assert!(!is_of("jiji.local/shop/web-2:0123456789ab", "shop/web"));
    }
}
