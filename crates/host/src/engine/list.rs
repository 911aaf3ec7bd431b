//! The containers of a host, listed once for everything that one look asks about them.
//!
//! Every start of the engine's command line costs more than what it does, so what belongs to a project, what projects share and who is in
//! the network are all read out of one `ps` and one `inspect`.

use std::collections::BTreeMap;

use jiji_model::plan::{LABEL_SCOPE, NETWORK};
use jiji_model::project::Engine as Kind;
use serde::Deserialize;

use super::inspect::ContainerInspect;
use super::{Engine, EngineError};

/// What Docker prints for each container: id, names, scope, networks. The names and the networks are lists with commas.
const DOCKER: &str = r#"[{{json .ID}},{{json .Names}},{{json (.Label "jiji.scope")}},{{json .Networks}}]"#;

/// A container in a list.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    id: String,
    names: Vec<String>,
    /// Whether it has a scope: jiji made it.
    scoped: bool,
    networks: Vec<String>,
}

/// All containers that a host had when it was asked, running or not.
#[derive(Debug)]
pub struct Containers {
    listed: Vec<Listed>,
    /// Those that jiji made, and whoever else is in its network.
    inspected: Vec<ContainerInspect>,
}

/// What is known of a name.
#[derive(Debug)]
pub enum Named<'a> {
    /// No container has it.
    Absent,
    /// This one.
    Inspected(&'a ContainerInspect),
    /// Somebody else's, of which no more is known.
    Foreign,
}

impl Containers {
    /// Lists what is there.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn of(engine: &Engine) -> Result<Self, EngineError> {
        let listed = match engine.listed().await {
            Some(listed) => listed,
            None => {
                let format = if engine.kind == Kind::Docker { DOCKER } else { "json" };
                let command = engine.command(["ps", "--all", "--no-trunc", "--format", format]);
                let output = engine.must("ps", command.limits(16 * 1024 * 1024, 64 * 1024)).await?;
                if engine.kind == Kind::Docker { docker(&output.stdout) } else { podman(&output.stdout) }
            }
        };
        let unreadable = |source| EngineError::Unreadable { kind: engine.kind, what: "ps".to_owned(), source };
        let listed = listed.map_err(unreadable)?;
        let ours = |one: &&Listed| one.scoped || one.networks.iter().any(|network| network == NETWORK);
        let ids: Vec<String> = listed.iter().filter(ours).map(|one| one.id.clone()).collect();
        let inspected = engine.inspect_containers(&ids).await?;
        Ok(Self { listed, inspected })
    }

    /// Those with every one of these labels, of which one says the scope.
    pub fn labelled<'a>(&'a self, labels: &'a BTreeMap<String, String>) -> impl Iterator<Item = &'a ContainerInspect> {
        let has = |one: &&ContainerInspect| labels.iter().all(|(name, value)| one.label(name) == Some(value));
        self.inspected.iter().filter(has)
    }

    /// Those in jiji's network.
    pub fn in_network(&self) -> impl Iterator<Item = &ContainerInspect> {
        self.inspected.iter().filter(|one| one.networks().iter().any(|network| network == NETWORK))
    }

    /// The one of this name.
    pub fn named(&self, name: &str) -> Named<'_> {
        if let Some(found) = self.inspected.iter().find(|one| one.plain_name() == name) {
            return Named::Inspected(found);
        }
        let taken = self.listed.iter().any(|one| one.names.iter().any(|other| other == name));
        if taken { Named::Foreign } else { Named::Absent }
    }
}

/// Whether one list answers a question for containers with these labels.
pub fn answers(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(LABEL_SCOPE)
}

fn commas(list: &str) -> Vec<String> {
    list.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn docker(output: &[u8]) -> Result<Vec<Listed>, serde_json::Error> {
    let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    lines
        .map(|line| {
            let (id, names, scope, networks): (String, String, String, String) = serde_json::from_slice(line)?;
            Ok(Listed { id, names: commas(&names), scoped: !scope.is_empty(), networks: commas(&networks) })
        })
        .collect()
}

/// `GET /containers/json` of Docker's API. Names have a slash before, those of links two.
fn of_socket(answer: serde_json::Value) -> Result<Vec<Listed>, serde_json::Error> {
    /// The parts that matter here. Everything may be null.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Row {
        id: String,
        names: Option<Vec<String>>,
        labels: Option<BTreeMap<String, String>>,
        network_settings: Option<Networks>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Networks {
        networks: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    }
    let rows: Vec<Row> = serde_json::from_value(answer)?;
    let listed = |row: Row| {
        let names = row.names.unwrap_or_default().into_iter();
        let networks = row.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        Listed {
            id: row.id,
            names: names.map(|name| name.strip_prefix('/').unwrap_or(&name).to_owned()).collect(),
            scoped: row.labels.is_some_and(|labels| labels.contains_key(LABEL_SCOPE)),
            networks: networks.into_keys().collect(),
        }
    };
    Ok(rows.into_iter().map(listed).collect())
}

impl Engine {
    /// The list from the socket, where looks go there and it answers.
    async fn listed(&self) -> Option<Result<Vec<Listed>, serde_json::Error>> {
        let answer = self.socket.as_ref()?.get("/containers/json?all=true").await;
        Some(of_socket(answer.ok()??))
    }
}

fn podman(output: &[u8]) -> Result<Vec<Listed>, serde_json::Error> {
    /// The parts of `podman ps --format json` that matter here. Everything may be null.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Row {
        id: String,
        names: Option<Vec<String>>,
        labels: Option<BTreeMap<String, String>>,
        networks: Option<Vec<String>>,
    }
    if output.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Row> = serde_json::from_slice(output)?;
    let listed = |row: Row| Listed {
        id: row.id,
        names: row.names.unwrap_or_default(),
        scoped: row.labels.is_some_and(|labels| labels.contains_key(LABEL_SCOPE)),
        networks: row.networks.unwrap_or_default(),
    };
    Ok(rows.into_iter().map(listed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_lists_say_the_same() {
        let one = |id: &str, names: &[&str], scoped, networks: &[&str]| Listed {
            id: id.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            scoped,
            networks: networks.iter().map(|&name| name.to_owned()).collect(),
        };
        let docker =
            docker(b"[\"ab\",\"web-1,other/link\",\"shop\",\"jiji\"]\n[\"cd\",\"db\",\"\",\"bridge,jiji\"]\n\n");
        assert_eq!(
            docker.expect("lines"),
            [one("ab", &["web-1", "other/link"], true, &["jiji"]), one("cd", &["db"], false, &["bridge", "jiji"])]
        );
        let text = r#"[{"Id":"ab","Names":["web-1"],"Labels":{"jiji.scope":"shop"},"Networks":["jiji"],"Pid":1},
            {"Id":"cd","Names":["db"],"Labels":null,"Networks":null}]"#;
        let podman = podman(text.as_bytes()).expect("rows");
        assert_eq!(podman, [one("ab", &["web-1"], true, &["jiji"]), one("cd", &["db"], false, &[])]);
        assert_eq!(super::podman(b"\n").expect("nothing"), []);
        let answer = serde_json::json!([
            {"Id": "ab", "Names": ["/web-1"], "Labels": {"jiji.scope": "shop"}, "NetworkSettings": {"Networks": {"jiji": {"IPAddress": ""}}}},
            {"Id": "cd", "Names": ["/db"], "Labels": null, "NetworkSettings": {"Networks": {}}},
        ]);
        assert_eq!(of_socket(answer).expect("rows"), podman);
    }
}
