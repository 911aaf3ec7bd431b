use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Dockerfile {
    parse("Dockerfile", text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(text: &str) -> DockerfileError {
    *parse("Dockerfile", text.as_bytes()).expect_err("the Dockerfile cannot be built")
}

fn at(line: u32, column: u32) -> Position {
    Position { line, column }
}

fn kinds(text: &str) -> Vec<Kind> {
    read(text).stages.into_iter().flat_map(|stage| stage.instructions).map(|step| step.kind).collect()
}

/// The first instruction.
fn kinds_of(text: &str) -> Kind {
    kinds(text).remove(0)
}

fn run(command: Command) -> Kind {
    Kind::Run(Run { command, network: Default::default(), mounts: Vec::new(), script: None })
}

fn word(text: &str, line: u32, column: u32) -> Word {
    Word { text: text.to_owned(), at: at(line, column) }
}

#[test]
fn continuation_lines_join_and_every_word_keeps_its_place() {
    let text = "FROM scratch\n\n  COPY  --chown=1:2 a \\\n# between\n\n     bé c \\\n  dest/\n";
    let Kind::Copy(copy) = kinds(text).remove(0) else { panic!("a COPY") };
    assert_eq!(copy.sources[0], Source::Path(word("a", 3, 21)));
    assert_eq!(copy.sources[1], Source::Path(word("bé", 6, 6)));
    assert_eq!(copy.sources[2], Source::Path(word("c", 6, 9)));
    assert_eq!(copy.destination, word("dest/", 7, 3));
    assert_eq!(copy.chown, Some(word("1:2", 3, 17)));
}

#[test]
fn directives_are_read_before_anything_else_and_not_after() {
    let dockerfile = read("# syntax = docker/dockerfile:1\n# escape=`\nFROM scratch\nCOPY a `\n b\n");
    assert_eq!(dockerfile.escape, '`');
    let dockerfile = read("# a comment\n# escape=`\nFROM scratch\n");
    assert_eq!(dockerfile.escape, '\\');
    let error = refused("# escape=x\nFROM scratch\n");
    assert_eq!(error.problem, Problem::Directive { name: "escape", value: "x".to_owned() });
    let error = refused("# syntax=example/other:1\nFROM scratch\n");
    assert_eq!(error.problem, Problem::Frontend { name: "example/other:1".to_owned() });
    let error = refused("# escape=`\n# escape=`\nFROM scratch\n");
    assert_eq!((error.place.line, error.problem), (2, Problem::DirectiveTwice { name: "escape" }));
}

#[test]
fn stages_have_names_platforms_and_global_arguments() {
    let dockerfile = read("ARG TAG=1 X\nFROM --platform=linux/arm64 image:$TAG as Build\nFROM build\n");
    assert_eq!(dockerfile.globals.len(), 1);
    assert_eq!(dockerfile.stages[0].from.name.as_deref(), Some("build"));
    assert_eq!(dockerfile.stages[0].from.base, word("image:$TAG", 2, 29));
    assert_eq!(dockerfile.stages[0].from.platform, Some(word("linux/arm64", 2, 17)));
    assert_eq!(dockerfile.stages[1].at, at(3, 1));
}

#[test]
fn commands_have_two_forms_and_a_broken_array_is_for_the_shell() {
    let text = "FROM scratch\nCMD [\"a\", \"b c\"]\nCMD a  'b c'\nRUN [ -f x ] && y\nENTRYPOINT []\n";
    let exec = |list: &[&str]| Command::Exec(list.iter().map(|text| (*text).to_owned()).collect());
    let shell = |text: &str| Command::Shell(text.to_owned());
    assert_eq!(
        kinds(text),
        [
            Kind::Cmd(exec(&["a", "b c"])),
            Kind::Cmd(shell("a  'b c'")),
            run(shell("[ -f x ] && y")),
            Kind::Entrypoint(exec(&[])),
        ]
    );
}

#[test]
fn pairs_are_split_outside_of_quotes_and_the_old_form_takes_the_rest() {
    let text = "FROM scratch\nENV a=1 b=\"x y\" c=p\\ q\nENV old some  value\nLABEL \"k e\"=v\n";
    let pairs: Vec<(String, String)> = kinds(text)
        .into_iter()
        .flat_map(|kind| match kind {
            Kind::Env(pairs) | Kind::Label(pairs) => pairs,
            other => panic!("{other:?}"),
        })
        .map(|pair| (pair.name.text, pair.value.text))
        .collect();
    let expected = [("a", "1"), ("b", "\"x y\""), ("c", "p\\ q"), ("old", "some  value"), ("\"k e\"", "v")];
    assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(refused("FROM scratch\nENV a=1 b\n").problem, Problem::NotAPair { word: "b".to_owned() });
}

#[test]
fn here_documents_are_scripts_files_or_input() {
    let text = "FROM scratch\nRUN <<EOF\n  one\ntwo\nEOF\nRUN cat <<-'A' > x && \\\n  y\n\tline\n\tA\nCOPY <<f <<\"g\" /to/\n$a\nf\n$b\ng\n";
    let kinds = kinds(text);
    assert_eq!(kinds[0], run(Command::Shell("  one\ntwo\n".to_owned())));
    assert_eq!(kinds[1], run(Command::Shell("cat <<-'A' > x &&   y\n\tline\n\tA".to_owned())));
    let Kind::Copy(copy) = &kinds[2] else { panic!("a COPY") };
    let inline = |name: &str, text: &str, line, expand| {
        Source::Inline(Inline { name: name.to_owned(), content: word(text, line, 1), expand })
    };
    assert_eq!(copy.sources, [inline("f", "$a\n", 11, true), inline("g", "$b\n", 13, false)]);
    let Kind::Run(script) =
        kinds_of("FROM scratch\nRUN --mount=type=tmpfs,target=/t <<-run.py\n\t#!/usr/bin/python3\n\tx\nrun.py\n")
    else {
        panic!("a RUN")
    };
    assert_eq!(script.command, Command::Shell("/dev/pipes/run.py".to_owned()));
    assert_eq!(script.script, Some(("run.py".to_owned(), "#!/usr/bin/python3\nx\n".to_owned())));
    assert_eq!(script.mounts, [word("type=tmpfs,target=/t", 2, 13)]);
    assert_eq!(refused("FROM scratch\nRUN <<'a/b'\n#!/bin/sh\na/b\n").place.line, 2);
    let error = refused("FROM scratch\nRUN <<EOF\n EOF\n");
    assert_eq!((error.place.line, error.problem), (2, Problem::OpenHeredoc { name: "EOF".to_owned() }));
}

#[test]
fn what_is_not_built_is_refused_with_its_place_and_its_line() {
    let cases: [(&str, u32, u32, Problem); 10] = [
        ("FROM scratch\n  ONBUILD FROM x\n", 2, 11, Problem::Trigger { instruction: "FROM" }),
        (
            "FROM scratch\nONBUILD \\\n  RUN --wrong x\n",
            3,
            7,
            Problem::UnknownFlag { instruction: "RUN", flag: "wrong".to_owned() },
        ),
        ("FROM scratch\nRUNN x\n", 2, 1, Problem::UnknownInstruction { name: "RUNN".to_owned() }),
        (
            "FROM scratch\nRUN --device=x y\n",
            2,
            5,
            Problem::UnsupportedFlag { instruction: "RUN", flag: "--device".to_owned() },
        ),
        (
            "FROM scratch\nRUN --network=host y\n",
            2,
            5,
            Problem::UnsupportedFlag { instruction: "RUN", flag: "--network=host".to_owned() },
        ),
        (
            "FROM scratch\nCOPY --wrong=1 a b\n",
            2,
            6,
            Problem::UnknownFlag { instruction: "COPY", flag: "wrong".to_owned() },
        ),
        ("COPY a b\n", 1, 1, Problem::BeforeFrom { instruction: "COPY" }),
        ("# nothing\n", 1, 1, Problem::NoStage),
        ("FROM scratch\nCOPY a\n", 2, 1, Problem::Missing { instruction: "COPY", what: "a source and a destination" }),
        ("FROM a AS 1b\n", 1, 11, Problem::StageName { name: "1b".to_owned() }),
    ];
    for (text, line, column, problem) in cases {
        let error = refused(text);
        assert_eq!((error.place.line, error.place.column), (line, column), "{text:?}");
        assert_eq!(error.problem, problem, "{text:?}");
        assert_eq!(error.place.text, text.lines().nth(line as usize - 1).unwrap_or_default());
    }
}

#[test]
fn health_checks_have_durations_in_nanoseconds() {
    let text =
        "FROM scratch\nHEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD [\"/ok\"]\nHEALTHCHECK NONE\n";
    let kinds = kinds(text);
    let Kind::Healthcheck(Some(check)) = &kinds[0] else { panic!("a HEALTHCHECK") };
    assert_eq!(check.interval, Some(Deadline(90_000_000_000)));
    assert_eq!(check.timeout, Some(Deadline(500_000_000)));
    assert_eq!((check.retries, &check.command), (Some(3), &Command::Exec(vec!["/ok".to_owned()])));
    assert_eq!(kinds[1], Kind::Healthcheck(None));
    let error = refused("FROM scratch\nHEALTHCHECK --interval=3 CMD x\n");
    assert_eq!((error.place.line, error.place.column), (2, 24));
}

#[test]
fn text_that_is_not_utf_8_is_refused_where_it_stops_being_so() {
    let error = *parse("Dockerfile", b"FROM scratch\nENV a=\xff\n").expect_err("not UTF-8");
    assert_eq!((error.place.line, error.place.column, error.problem), (2, 7, Problem::NotUtf8));
}

#[test]
fn variables_quotes_and_escapes_mean_what_the_reference_says() {
    let environment: BTreeMap<String, String> = [("v", "value"), ("e", ""), ("f", "a/b.tar.gz")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let cases = [
        ("plain", "plain"),
        ("$v", "value"),
        ("${v}x$vx", "valuex"),
        ("\\$v", "$v"),
        ("'$v'", "$v"),
        ("\"$v '\"", "value '"),
        ("\"\\a\\\"\\$\"", "\\a\"$"),
        ("a\\ b", "a b"),
        ("${u:-d}", "d"),
        ("${e:-d}", "d"),
        ("${e-d}", ""),
        ("${v:+s}", "s"),
        ("${e:+s}", ""),
        ("${e+s}", "s"),
        ("${u:-$v}", "value"),
        ("${u:-\"a b\"}", "a b"),
        ("${f#*/}", "b.tar.gz"),
        ("${f%.*}", "a/b.tar"),
        ("${f%%.*}", "a/b"),
        ("${f##*.}", "gz"),
        ("${f/./_}", "a/b_tar.gz"),
        ("${f//./_}", "a/b_tar_gz"),
        ("$", "$"),
        ("a$-", "a"),
        ("$@@", "@"),
        ("${?:-d}", "d"),
        ("he$.x", "he$.x"),
        ("$u", ""),
        ("trailing\\", "trailing"),
    ];
    for (text, expected) in cases {
        assert_eq!(expand(text, '\\', &environment).as_deref(), Ok(expected), "{text}");
    }
    assert_eq!(expand("`$v \\", '`', &environment).as_deref(), Ok("$v \\"));
    for text in ["${", "${}", "${v", "${v:x}", "${v^}", "'a", "\"a", "${u:?needed}", "${v#\\x}"] {
        assert!(expand(text, '\\', &environment).is_err(), "{text}");
    }
    assert_eq!(
        expand("${u:?say it}", '\\', &environment),
        Err(Problem::Required { name: "u".to_owned(), message: "say it".to_owned() })
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused_at_a_place_in_it(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "FROM x\n", "\nRUN ", "\nCOPY ", "\nENV ", "\nARG ", "\nLABEL ", "\nHEALTHCHECK ", "\nSHELL ", "\nEXPOSE ", "\nADD ",
                " \\\n", "\\", "`", "\"", "'", "$", "${", "}", ":-", "<<E", "\nE\n", "--from=", "--", "=", "[", "]", ",", "é", "\u{3000}", "#",
                "\t", " ", "a", "1s", "/", "\r\n", "# escape=`\n", "CMD", "NONE", "*", "%", "as b",
            ]),
            0..24,
        ),
    ) {
        let text = parts.concat();
        match parse("Dockerfile", text.as_bytes()) {
            Ok(file) => {
                for step in file.stages.iter().flat_map(|stage| &stage.instructions) {
                    let lines = text.split('\n').count() as u32;
                    prop_assert!(step.at.line >= 1 && step.at.line <= lines);
                }
            }
            Err(error) => {
                prop_assert!(error.place.line >= 1 && error.place.line <= text.split('\n').count() as u32, "{error}");
                prop_assert!(error.place.column >= 1 && error.place.column <= error.place.text.chars().count() as u32 + 1, "{error}");
            }
        }
        let environment = BTreeMap::from([("a".to_owned(), "é$a".to_owned())]);
        let _ = expand(&text, '\\', &environment);
    }
}
