//! Certificates that are handed in: as files below the plugin's directory, which the proxy's container mounts.
//!
//! Their values never enter the plugin: a step names the secrets, and the host puts them in. Files are named by the certificate's digest,
//! so that a renewed one lies beside the one before until the change is decided: the proxy reads them again whenever it starts
//! (`loadCertificates` by way of `RestoreLastSavedState` in internal/server), and one that is missing costs it all routes.

use crate::bindings::exports::jiji::proxy::proxy::{Certificate, Routing};
use crate::bindings::jiji::plan::types::{
    Action, Answer, Context, Directory, File, FileQuery, Phase, Query, Step, Want, Word,
};
use crate::state::{Options, Saved};
use crate::{Facts, STATE_IN_CONTAINER};

/// Below the plugin's directory.
const DIRECTORY: &str = "certificates";

/// The files of one certificate.
pub struct Files<'a> {
    context: &'a Context,
    service: &'a str,
    certificate: &'a Certificate,
    digest: &'a str,
}

impl<'a> Files<'a> {
    /// The files for a route; none where it has no certificate, or it is not known which, or below the root: there TLS is the root's
    /// service's (internal/server/service_map.go).
    pub fn of(context: &'a Context, route: &'a Routing) -> Option<Self> {
        let root = route.options.path_prefix.trim_matches('/').is_empty();
        let certificate = route.options.certificate.as_ref().filter(|_| route.options.ssl && root)?;
        let digest = certificate.digest.as_deref()?;
        Some(Self { context, service: &route.service, certificate, digest })
    }

    /// `DIRECTORY/SERVICE/DIGEST.chain.pem` or `.key.pem`.
    fn name(&self, what: &str) -> String {
        format!("{DIRECTORY}/{}/{}.{what}.pem", self.service, &self.digest[..self.digest.len().min(16)])
    }

    fn on_host(&self, what: &str) -> String {
        format!("{}/{}", self.context.state_dir, self.name(what))
    }

    pub fn chain_in_container(&self) -> String {
        format!("{STATE_IN_CONTAINER}/{}", self.name("chain"))
    }

    pub fn key_in_container(&self) -> String {
        format!("{STATE_IN_CONTAINER}/{}", self.name("key"))
    }

    fn want(&self, what: &str) -> String {
        format!("certificate-{what} {}", self.service)
    }

    /// Whether the files are there.
    pub fn wants(&self) -> Vec<Want> {
        let want = |what: &str| Want {
            id: self.want(what),
            query: Query::File(FileQuery { path: self.on_host(what), limit: 0 }),
        };
        vec![want("chain"), want("key")]
    }

    /// Whether they are there as they should be: the chain by its digest, the key for its owner alone.
    pub fn are_there(&self, facts: &Facts<'_>) -> bool {
        let file = |what: &str| match facts.get(&self.want(what)) {
            Some(Answer::File(file)) if file.mode == 0o600 => Some(file),
            _ => None,
        };
        file("chain").is_some_and(|file| file.sha256.ends_with(self.digest)) && file("key").is_some()
    }

    /// Steps that write them before requests move, below [`directory`]. Taken back where the proxy does not use them already.
    pub fn write(&self, saved: Option<&Saved>) -> Vec<Step> {
        let used = saved.is_some_and(|saved| saved.options.tls_certificate == self.chain_in_container());
        let file = |what: &str, secret: &str| {
            let path = self.on_host(what);
            let undo = (!used).then(|| Action::Remove(path.clone()));
            let title = format!("write the {what} of the certificate of {}", self.service);
            let file = File { path, mode: 0o600, content: vec![Word::Secret(secret.to_owned())] };
            step(Phase::Prepare, title, Action::File(file), undo)
        };
        let path = format!("{}/{DIRECTORY}/{}", self.context.state_dir, self.service);
        let own = Action::Directory(Directory { path, mode: 0o700 });
        vec![
            step(Phase::Prepare, format!("make the directory of certificates of {}", self.service), own, None),
            file("chain", &self.certificate.chain),
            file("key", &self.certificate.key),
        ]
    }
}

/// The step that makes the directory of all certificates.
pub fn directory(context: &Context) -> Step {
    let path = format!("{}/{DIRECTORY}", context.state_dir);
    let action = Action::Directory(Directory { path, mode: 0o700 });
    step(Phase::Prepare, "make the directory of certificates".to_owned(), action, None)
}

/// Steps that remove the files of the certificate that a service had, where it has another now or none.
pub fn forget(context: &Context, service: &str, saved: Option<&Saved>, now: Option<&Options>) -> Vec<Step> {
    let Some(saved) = saved else { return Vec::new() };
    let own = format!("{STATE_IN_CONTAINER}/{DIRECTORY}/{service}/");
    let had = [&saved.options.tls_certificate, &saved.options.tls_private_key];
    let kept = now.map(|options| [&options.tls_certificate, &options.tls_private_key]);
    had.into_iter()
        .filter(|path| kept.is_none_or(|kept| !kept.contains(path)))
        // Its own alone: the state file is the proxy's, and what stands in it is not trusted to be a path of this plugin.
        .filter_map(|path| path.strip_prefix(&own).filter(|name| !name.contains('/') && name.ends_with(".pem")))
        .map(|name| {
            let path = format!("{}/{DIRECTORY}/{service}/{name}", context.state_dir);
            step(Phase::Finalize, format!("remove {name} of {service}"), Action::Remove(path), None)
        })
        .collect()
}

fn step(phase: Phase, title: String, action: Action, undo: Option<Action>) -> Step {
    Step {
        phase,
        title,
        action,
        after: Vec::new(),
        timeout_ms: 10_000,
        repeatable: true,
        quiet_ms: 0,
        undo,
        evidence: Vec::new(),
        labels: Vec::new(),
    }
}
