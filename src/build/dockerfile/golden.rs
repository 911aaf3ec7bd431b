//! BuildKit's cases, kept as data: `golden/*.toml`, each file with a word on what was left out and why.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Command, Copy, Declaration, Healthcheck, Instruction, Kind, Pair, Source, Word, lines, words};
use super::{expand, expand_words, parse};

fn data<T: DeserializeOwned>(text: &str) -> T {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expansions {
    set: Vec<Set>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    about: String,
    environment: BTreeMap<String, String>,
    gives: Vec<(String, String)>,
    #[serde(default)]
    refuses: Vec<String>,
}

#[test]
fn words_become_what_they_become_in_buildkit() {
    let mut counted = 0;
    for Set { about, environment, gives, refuses } in data::<Expansions>(include_str!("golden/expansion.toml")).set {
        for (word, expected) in &gives {
            assert_eq!(expand(word, '\\', &environment).as_ref(), Ok(expected), "{about}: {word}");
        }
        for word in &refuses {
            assert!(expand(word, '\\', &environment).is_err(), "{about}: {word}");
        }
        counted += gives.len() + refuses.len();
    }
    assert!(counted > 270, "{counted} cases");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Splits {
    environment: BTreeMap<String, String>,
    cases: SplitCases,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitCases {
    gives: Vec<(String, Vec<String>)>,
    refuses: Vec<String>,
}

#[test]
fn values_are_split_and_quoted_ones_are_not() {
    let Splits { environment, cases } = data(include_str!("golden/words.toml"));
    for (text, expected) in &cases.gives {
        assert_eq!(expand_words(text, '\\', &environment).as_ref(), Ok(expected), "{text}");
    }
    for text in &cases.refuses {
        assert!(expand_words(text, '\\', &environment).is_err(), "{text}");
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    case: Vec<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    text: String,
    #[serde(default)]
    rows: Vec<Vec<String>>,
    #[serde(default)]
    refused: bool,
}

#[test]
fn lines_become_the_instructions_that_they_become_in_buildkit() {
    for File { about, text, rows, refused } in data::<Files>(include_str!("golden/lines.toml")).case {
        match parse("Dockerfile", text.as_bytes()) {
            Err(_) if refused => {}
            Err(error) => panic!("{about}: {error}"),
            Ok(file) => {
                let mut seen: Vec<Vec<String>> = file.globals.iter().map(row).collect();
                for stage in &file.stages {
                    seen.push(vec!["FROM".to_owned(), stage.from.base.text.clone()]);
                    seen.extend(stage.instructions.iter().map(row));
                }
                assert!(!refused, "{about}: {seen:?}");
                assert_eq!(seen, rows, "{about}");
            }
        }
    }
}

/// An instruction as the data writes it.
fn row(instruction: &Instruction) -> Vec<String> {
    let texts = |words: &[Word]| words.iter().map(|word| word.text.clone()).collect::<Vec<_>>();
    let pairs = |pairs: &[Pair]| {
        pairs.iter().flat_map(|pair| [pair.name.text.clone(), pair.value.text.clone()]).collect::<Vec<_>>()
    };
    let rest = match &instruction.kind {
        Kind::Arg(declarations) => declarations.iter().map(declaration).collect(),
        Kind::Env(list) | Kind::Label(list) => pairs(list),
        Kind::Copy(copy) => copied(copy),
        Kind::Run(run) => command(&run.command),
        Kind::Workdir(word) | Kind::User(word) | Kind::StopSignal(word) => vec![word.text.clone()],
        Kind::Expose(words) | Kind::Volume(words) => texts(words),
        Kind::Maintainer(text) | Kind::Onbuild(text) => vec![text.clone()],
        Kind::Cmd(given) | Kind::Entrypoint(given) => command(given),
        Kind::Shell(list) => list.clone(),
        Kind::Healthcheck(None) => vec!["none".to_owned()],
        Kind::Healthcheck(Some(check)) => health(check),
    };
    [vec![instruction.name.to_owned()], rest].concat()
}

fn declaration(declaration: &Declaration) -> String {
    match &declaration.default {
        Some(default) => format!("{}={}", declaration.name, default.text),
        None => declaration.name.clone(),
    }
}

fn command(command: &Command) -> Vec<String> {
    match command {
        Command::Shell(text) => vec!["shell".to_owned(), text.clone()],
        Command::Exec(list) => std::iter::once("exec".to_owned()).chain(list.clone()).collect(),
    }
}

fn copied(copy: &Copy) -> Vec<String> {
    let flag = |name: &str, word: &Option<Word>| word.as_ref().map(|word| format!("--{name}={}", word.text));
    let flags = [flag("from", &copy.from), flag("chown", &copy.chown), flag("chmod", &copy.chmod)];
    let sources = copy.sources.iter().map(|source| match source {
        Source::Path(word) => word.text.clone(),
        Source::Inline(inline) => format!("<<{}", inline.name),
    });
    flags.into_iter().flatten().chain(sources).chain([copy.destination.text.clone()]).collect()
}

fn health(check: &Healthcheck) -> Vec<String> {
    let durations = [
        ("interval", check.interval),
        ("timeout", check.timeout),
        ("start-period", check.start_period),
        ("start-interval", check.start_interval),
    ];
    let said = durations.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?.0)));
    let retries = check.retries.map(|retries| format!("retries {retries}"));
    said.chain(retries).chain(command(&check.command)).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Heredocs {
    case: Vec<HeredocCase>,
    words: HeredocWords,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeredocCase {
    about: String,
    text: String,
    gives: Vec<(String, bool, bool, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeredocWords {
    openings: Vec<String>,
    others: Vec<String>,
    refused: Vec<String>,
}

#[test]
fn here_documents_begin_and_end_where_they_do_in_buildkit() {
    let Heredocs { case, words } = data(include_str!("golden/heredocs.toml"));
    for HeredocCase { about, text, gives } in case {
        let (_, found) = lines::split(&text).unwrap_or_else(|error| panic!("{about}: {error:?}"));
        let seen: Vec<_> = found[0]
            .heredocs
            .iter()
            .map(|one| (one.name.clone(), one.strip_tabs, one.expand, one.raw.clone()))
            .collect();
        assert_eq!(seen, gives, "{about}");
        assert_eq!(found.len(), 1, "{about}: nothing is left over");
    }
    for word in &words.openings {
        let name = words::heredoc(word).map(|opening| opening.map(|opening| opening.name));
        assert_eq!(name, Ok(Some("EOF".to_owned())), "{word}");
    }
    for word in &words.others {
        assert_eq!(words::heredoc(word), Ok(None), "{word}");
    }
    for word in &words.refused {
        assert!(words::heredoc(word).is_err(), "{word}");
    }
}
