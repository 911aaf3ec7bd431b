//! `jiji releases`: what each host remembers, newest first, and which hosts still have the images. Looks only, in one exec per host.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;

use jiji_model::image::ImageId;
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, Observation, Query, Want};
use jiji_model::transaction::ReleaseLine;

use super::args::Global;
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::hosts;
use super::workplace;
use crate::deploy::{self, Histories};

const IMAGES: &str = "images";

/// Looks at all hosts and prints what they remember. Hosts that do not answer are named, and make the exit code 6.
pub async fn run(global: &Global, environment: &Environment) -> Result<Exit, Failure> {
    let root = workplace::root(global)?;
    let loaded = workplace::load(&root, global.environment.as_deref())?;
    let scope = loaded.project.scope();
    let fleet = hosts::connect(&loaded.project, environment).await?;
    let wants: BTreeMap<_, _> =
        fleet.sessions.keys().map(|host| (host.clone(), vec![deploy::history_want(&scope)])).collect();
    let (observation, mut lost) = fleet.observe(&wants).await;
    let told = deploy::history(&observation);
    let have = match &told {
        Ok(histories) => {
            let (images, more) = fleet.observe(&images_wants(histories)).await;
            lost.extend(more);
            images
        }
        Err(_) => Observation::default(),
    };
    let failures = hosts::failures(fleet.unreachable.iter().chain(&lost));
    fleet.close().await;
    let histories = told.map_err(|error| Failure::new(Exit::Refused, &error))?;
    let releases = releases(&histories, &have);
    let text = if global.json { json(&scope, &releases) } else { table(&releases) };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    failures.map_or(Ok(Exit::Done), Err)
}

fn images_wants(histories: &Histories) -> BTreeMap<HostName, Vec<Want>> {
    let of_host = |(host, lines): (&HostName, &Vec<ReleaseLine>)| {
        let images: BTreeSet<ImageId> = images(lines).collect();
        let query = Query::Images { images: images.into_iter().collect() };
        (host.clone(), vec![Want { id: IMAGES.to_owned(), query }])
    };
    histories.iter().filter(|(_, lines)| !lines.is_empty()).map(of_host).collect()
}

fn images(lines: &[ReleaseLine]) -> impl Iterator<Item = ImageId> {
    lines.iter().flat_map(|line| line.services.values()).map(|service| service.image)
}

/// A release as the fleet remembers it.
struct Seen<'a> {
    line: &'a ReleaseLine,
    /// Hosts that remember it, with whether it is their newest and whether they have all its images.
    hosts: BTreeMap<&'a HostName, On>,
}

/// A release on a host.
#[derive(Clone, Copy)]
struct On {
    current: bool,
    images: bool,
}

fn releases<'a>(histories: &'a Histories, have: &Observation) -> Vec<Seen<'a>> {
    let mut all: BTreeMap<u64, Seen<'a>> = BTreeMap::new();
    for (host, lines) in histories {
        let there = match have.answer(host, IMAGES) {
            Some(Answer::Images(images)) => images.as_slice(),
            _ => &[],
        };
        for (index, line) in lines.iter().enumerate() {
            let on = On {
                current: index == 0,
                images: line.services.values().all(|service| there.contains(&service.image)),
            };
            let seen = all.entry(line.number).or_insert_with(|| Seen { line, hosts: BTreeMap::new() });
            seen.hosts.insert(host, on);
        }
    }
    all.into_values().rev().collect()
}

/// Seconds since 1970 as a date and a time in UTC.
pub(super) fn when(at_s: u64) -> String {
    let seconds = i64::try_from(at_s).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => "-".to_owned(),
    }
}

fn table(releases: &[Seen<'_>]) -> String {
    if releases.is_empty() {
        return "no host remembers a release\n".to_owned();
    }
    let head = ["RELEASE", "WHEN", "WHO", "COMMAND", "IMAGES", "HOSTS"].map(str::to_owned);
    let rows = releases.iter().map(|seen| {
        let line = seen.line;
        let images: Vec<_> =
            line.services.iter().map(|(name, service)| format!("{name}@{}", service.image.manifest.short())).collect();
        let hosts = seen.hosts.iter().map(|(host, on)| match (on.current, on.images) {
            (true, _) => format!("{host}*"),
            (false, true) => host.to_string(),
            (false, false) => format!("{host} (pruned)"),
        });
        let hosts: Vec<_> = hosts.collect();
        [
            line.number.to_string(),
            when(line.at_s),
            line.who.clone(),
            line.command.clone(),
            images.join(" "),
            hosts.join(", "),
        ]
    });
    let rows: Vec<[String; 6]> = [head].into_iter().chain(rows).collect();
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        // Writing to a String does not fail.
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    let _ = writeln!(out, "* runs now; (pruned): the image is brought again by a rollback");
    out
}

fn json(scope: &str, releases: &[Seen<'_>]) -> String {
    let releases: Vec<_> = releases
        .iter()
        .map(|seen| {
            let hosts: BTreeMap<_, _> = seen
                .hosts
                .iter()
                .map(|(host, on)| (host.to_string(), serde_json::json!({"current": on.current, "images": on.images})))
                .collect();
            let mut json = serde_json::to_value(seen.line).expect("a release is JSON");
            json["hosts"] = serde_json::json!(hosts);
            json
        })
        .collect();
    format!("{}\n", serde_json::json!({"v": 1, "scope": scope, "releases": releases}))
}

#[cfg(test)]
mod tests {
    use jiji_model::digest::Digest;
    use jiji_model::name::ServiceName;
    use jiji_model::transaction::ServiceLine;

    use super::*;

    fn line(number: u64, command: &str, version: &str) -> ReleaseLine {
        let image = ImageId { manifest: Digest::of(version), config: Digest::of(format!("{version} config")) };
        let web = ServiceLine { image, repository: "shop/web".into(), spec: Digest::of("spec"), secrets: None };
        ReleaseLine {
            number,
            transaction: format!("t{number}"),
            plan: Digest::of("plan"),
            who: "ann@laptop".into(),
            command: command.into(),
            at_s: 1_764_034_400 + number * 60,
            services: BTreeMap::from([(ServiceName::new("web").expect("a name"), web)]),
        }
    }

    #[test]
    fn a_list_says_which_hosts_remember_what_and_where_the_image_is_gone() {
        let host = |name: &str| HostName::new(name).expect("a name");
        let (first, second, third) = (line(1, "ship", "1"), line(2, "ship", "2"), line(3, "rollback", "1"));
        let histories =
            Histories::from([(host("one"), vec![third.clone(), second, first]), (host("two"), vec![third])]);
        let mut have = Observation::default();
        let answer = |version: &str| {
            let image = ImageId { manifest: Digest::of(version), config: Digest::of(format!("{version} config")) };
            BTreeMap::from([(IMAGES.to_owned(), Answer::Images(vec![image]))])
        };
        have.hosts.insert(host("one"), answer("1"));
        have.hosts.insert(host("two"), answer("1"));
        let seen = releases(&histories, &have);
        insta::assert_snapshot!(table(&seen), @r"
        RELEASE  WHEN                  WHO         COMMAND   IMAGES            HOSTS
        3        2025-11-25 01:36 UTC  ann@laptop  rollback  web@6b86b273ff34  one*, two*
        2        2025-11-25 01:35 UTC  ann@laptop  ship      web@d4735e3a265e  one (pruned)
        1        2025-11-25 01:34 UTC  ann@laptop  ship      web@6b86b273ff34  one
        * runs now; (pruned): the image is brought again by a rollback
        ");
        let json: serde_json::Value = serde_json::from_str(&json("shop", &seen)).expect("JSON");
        assert_eq!(json["releases"][1]["hosts"]["one"]["images"], false);
        assert_eq!(table(&[]), "no host remembers a release\n");
    }
}
