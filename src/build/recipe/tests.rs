use super::super::dockerfile::{self, Dockerfile, Kind, RunNetwork};
use super::{from_dockerfile, parse};

/// Stages as a Dockerfile would say them, with the mounts of steps.
fn told(file: &Dockerfile) -> String {
    let mut lines = Vec::new();
    for stage in &file.stages {
        let name = stage.from.name.as_ref().map_or(String::new(), |name| format!(" AS {name}"));
        let service = if stage.from.service { "service " } else { "" };
        lines.push(format!("FROM {service}{}{name}", stage.from.base.text));
        for instruction in &stage.instructions {
            lines.push(format!("  {}", instruction.text.lines().collect::<Vec<_>>().join("; ")));
            if let Kind::Run(run) = &instruction.kind {
                lines.extend(run.mounts.iter().map(|mount| format!("    {}", mount.text)));
            }
        }
    }
    lines.join("\n")
}

#[test]
fn inputs_and_steps_become_stages_in_the_order_in_which_they_need_each_other() {
    let recipe = r#"
[inputs]
python = { image = "python:3.12-slim" }
source = { path = "app", only = ["*.py", "templates"] }
wheel = { url = "https://example.test/w.whl", checksum = "sha256:00" }
assets = { service = "assets" }

[steps.check]
on = "install"
see = { "/app" = "source", "/x,y" = "wheel:/w.whl", "/tests" = "./tests" }
run = ["python", "-m", "compileall", "/app"]

[steps.install]
on = "python"
cache = { "/pip" = "pip" }
network = true
secrets = ["TOKEN"]
out = "/venv/"
run = """
python -m venv /venv
/venv/bin/pip install flask
"""

[[layers]]
name = "dependencies"
from = "install"
to = "/venv"

[[layers]]
from = "install:/bin"
to = "/bin"
owner = "7:8"

[[layers]]
from = "./server.py"
to = "/srv/"

[[layers]]
from = "assets:/dist"
to = "/srv/assets"

[image]
on = "python"
entrypoint = ["/venv/bin/python"]
env = { PORT = "80" }
volumes = ["/data"]
"#;
    let file = parse("image.toml", recipe.as_bytes()).expect("a recipe");
    insta::assert_snapshot!(told(&file), @r#"
    FROM service assets AS assets
    FROM python:3.12-slim AS python
    FROM scratch AS source
      COPY app/./*.py app/./templates /
    FROM scratch AS wheel
      ADD https://example.test/w.whl /
    FROM python AS install
      RUN python -m venv /venv; /venv/bin/pip install flask
        type=cache,id=pip,target=/pip
        type=secret,id=TOKEN,env=TOKEN,required=true
    FROM install AS check
      RUN python -m compileall /app
        type=bind,from=source,source=/,target=/app,rw=true
        type=bind,source=tests,target=/tests,rw=true
        type=bind,from=wheel,source=/w.whl,\"target=/x,y\",rw=true
    FROM python
      COPY dependencies: install /venv
      COPY install:/bin /bin
      COPY ./server.py /srv/
      COPY assets:/dist /srv/assets
      ENV PORT=80
      VOLUME /data
      ENTRYPOINT ["/venv/bin/python"]
    "#);
}

#[test]
fn what_is_wrong_is_said_at_its_place() {
    for (recipe, place, said) in [
        ("[inputs]\na = { image = \"x\", path = \".\" }", (2, 1), "input `a` is 2 things"),
        ("[inputs]\na = {}", (2, 1), "input `a` is 0 things"),
        ("[inputs]\na = { image = \"x\", only = [\"y\"] }", (2, 28), "`only` says nothing about an image"),
        ("[inputs]\na = { service = \"x\", only = [\"y\"] }", (2, 30), "`only` says nothing about a service"),
        ("[inputs]\na = { path = \"x\", unpack = true }", (2, 28), "`unpack` says nothing about a path"),
        ("[inputs]\na = { git = \"x\", checksum = \"y\" }", (2, 29), "`checksum` says nothing about a repository"),
        ("[inputs]\n1a = { path = \"x\" }", (2, 1), "`1a` is no name"),
        ("[inputs]\nscratch = { path = \"x\" }", (2, 1), "`scratch` is no name"),
        ("[inputs]\na = { path = \"x\" }\n[steps.a]\non = \"a\"\nrun = \"x\"", (3, 8), "`a` is an input and a step"),
        ("[steps.a]\non = \"b\"\nrun = \"x\"", (2, 6), "there is no input and no step `b`"),
        (
            "[steps.a]\non = \"b\"\nrun = \"x\"\n[steps.b]\non = \"a\"\nrun = \"x\"",
            (1, 8),
            "`a` needs itself: a → b → a",
        ),
        ("[inputs]\nb = { path = \"x\" }\n[steps.a]\non = \"b\"\nrun = \" \"", (5, 7), "nothing is run"),
        ("[inputs]\nb = { path = \"x\" }\n[[layers]]\nfrom = \"b\"\nto = \"x\"", (5, 6), "`x` is not an absolute path"),
        (
            "[inputs]\nb = { path = \"x\" }\n[[layers]]\nfrom = \"b:x\"\nto = \"/\"",
            (4, 8),
            "`x` is not an absolute path",
        ),
        ("[inputs]\nb = { path = \"x\" }\n[[layers]]\nfrom = \"b\"\nto = \"/\"\npacked = 1", (6, 10), "`packed` is 1"),
        (
            "[steps.a]\nput = [{ from = \"./x\", to = \"/\", packed = 4 }]",
            (2, 43),
            "`packed` says nothing about what is put into a step",
        ),
        ("[steps.a]\nrun = \"x\"\nnetwork = \"other\"", (3, 11), "expected true, false or \"record\""),
        ("[image]\npath = [\"/a\", \"b\"]", (2, 15), "`b` is not an absolute path"),
        ("[image]\npath = [\"/a:/b\"]", (2, 9), "`/a:/b` cannot be in `PATH`"),
        ("[image]\nenvironment = {}", (2, 1), "unknown field `environment`"),
        ("[image]\nports = [true]", (2, 9), "expected a port, such as 8080 or \"53/udp\""),
    ] {
        let error = parse("image.toml", recipe.as_bytes()).expect_err(recipe);
        assert_eq!((error.place.line, error.place.column), place, "{recipe}\n{error}");
        assert!(error.to_string().contains(said), "{recipe}\n{error}");
    }
    let many: String =
        (0..2000).map(|number| format!("[steps.s{number}]\non = \"s{}\"\nrun = \"x\"\n", number + 1)).collect();
    let error = parse("image.toml", many.as_bytes()).expect_err("too many");
    assert!(error.to_string().ends_with("more than 1000 inputs and steps"), "{error}");
    let error = parse("image.toml", b"[image]\n\xff").expect_err("no text");
    assert_eq!((error.place.line, error.place.column), (2, 1));
}

#[test]
fn a_dockerfile_becomes_a_recipe() {
    let file = r#"ARG VERSION=3.12
FROM python:${VERSION}-slim AS base
ENV HOME=/srv
WORKDIR /srv

FROM base AS build
ARG FLAGS=-q
COPY requirements.txt ./
RUN --mount=type=cache,id=pip,target=/pip --network=default pip install $FLAGS -r requirements.txt && rm -r /x
COPY --chown=7:8 app app2 $HOME/app/
RUN python -m compileall app

FROM scratch AS data
ADD --checksum=sha256:00 https://example.test/words.txt /words/

FROM base
COPY --from=build /srv/app app
COPY --from=data /words /words
COPY --from=busybox:1 /bin/busybox /bin/
USER 65534
EXPOSE 8080 53/udp
LABEL a="b c"
CMD ["python", "app"]
"#;
    let file = dockerfile::parse("Dockerfile", file.as_bytes()).expect("a Dockerfile");
    let recipe = from_dockerfile(&file).expect("a recipe");
    insta::assert_snapshot!(recipe, @r#"
    [inputs]
    python = { image = "python:3.12-slim" }
    words-txt = { url = "https://example.test/words.txt", checksum = "sha256:00" }
    busybox = { image = "busybox:1" }

    [steps.build]
    on = "python"
    put = [{ from = "./requirements.txt", to = "/srv/" }]
    cache = { "/pip" = "pip" }
    env = { "FLAGS" = "-q", "HOME" = "/srv" }
    dir = "/srv"
    network = true
    run = ["/bin/sh", "-c", "pip install $FLAGS -r requirements.txt && rm -r /x"]

    [steps.build-2]
    on = "build"
    put = [{ from = "./app", to = "/srv/app/", owner = "7:8" }, { from = "./app2", to = "/srv/app/", owner = "7:8" }]
    env = { "FLAGS" = "-q", "HOME" = "/srv" }
    dir = "/srv"
    run = "python -m compileall app"

    [steps.data]
    put = [{ from = "words-txt:/words.txt", to = "/words/" }]

    [[layers]]
    from = "build-2:/srv/app"
    to = "/srv/app"

    [[layers]]
    from = "data:/words"
    to = "/words"

    [[layers]]
    from = "busybox:/bin/busybox"
    to = "/bin/"

    [image]
    on = "python"
    env = { "HOME" = "/srv" }
    labels = { "a" = "b c" }
    dir = "/srv"
    user = "65534"
    ports = [8080, "53/udp"]
    command = ["python", "app"]
    "#);
    parse("image.toml", recipe.as_bytes()).expect("it can be read");
}

#[test]
fn what_is_put_before_a_path_is_said_once_to_each_step_and_whole_to_the_image() {
    let file = r#"FROM python AS build
ENV HOME=/srv PATH="/venv/bin:/a b:$PATH"
RUN one
ENV PATH=$HOME/bin:${PATH}
RUN two
RUN three
FROM build
ENV PATH=/last:$PATH
"#;
    let file = dockerfile::parse("Dockerfile", file.as_bytes()).expect("a Dockerfile");
    let recipe = from_dockerfile(&file).expect("a recipe");
    insta::assert_snapshot!(recipe, @r#"
    [inputs]
    python = { image = "python" }

    [steps.build]
    on = "python"
    env = { "HOME" = "/srv" }
    path = ["/venv/bin", "/a b"]
    run = "one"

    [steps.build-2]
    on = "build"
    env = { "HOME" = "/srv" }
    path = ["/srv/bin"]
    run = "two"

    [steps.build-3]
    on = "build-2"
    env = { "HOME" = "/srv" }
    run = "three"

    [image]
    on = "build-3"
    env = { "HOME" = "/srv" }
    path = ["/last", "/srv/bin", "/venv/bin", "/a b"]
    "#);
    let file = parse("image.toml", recipe.as_bytes()).expect("it can be read");
    insta::assert_snapshot!(told(&file), @r"
    FROM python AS python
    FROM python AS build
      ARG HOME=/srv
      ARG PATH=/venv/bin:/a\ b:${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
      RUN one
    FROM build AS build-2
      ARG HOME=/srv
      ARG PATH=/srv/bin:${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
      RUN two
    FROM build-2 AS build-3
      ARG HOME=/srv
      RUN three
    FROM build-3
      ENV HOME=/srv
      ENV PATH=/last:/srv/bin:/venv/bin:/a\ b:${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
    ");

    let file = dockerfile::parse("Dockerfile", b"FROM a\nENV PATH=bin:$PATH\n").expect("a Dockerfile");
    let error = from_dockerfile(&file).expect_err("not absolute");
    assert_eq!((error.place.line, error.place.column), (2, 10), "{error}");
}

#[test]
fn a_step_is_recorded_in_both_languages() {
    let network = |file: &Dockerfile| match &file.stages[0].instructions[0].kind {
        Kind::Run(run) => run.network,
        other => panic!("{other:?}"),
    };
    for (word, value, due) in [
        ("record", "\"record\"", RunNetwork::Record),
        ("default", "true", RunNetwork::Default),
        ("none", "false", RunNetwork::None),
    ] {
        let text = format!("FROM scratch\nRUN --network={word} x\n");
        let file = dockerfile::parse("Dockerfile", text.as_bytes()).expect("a Dockerfile");
        assert_eq!(network(&file), due);
        let recipe = from_dockerfile(&file).expect("a recipe");
        assert_eq!(recipe.contains(&format!("network = {value}")), due != RunNetwork::None, "{recipe}");
        let recipe = parse("image.toml", format!("[steps.a]\nrun = \"x\"\nnetwork = {value}\n").as_bytes());
        assert_eq!(network(&recipe.expect("a recipe")), due);
    }
}

#[test]
fn what_a_recipe_has_no_word_for_is_refused_at_its_place() {
    for (line, column, what) in [
        ("COPY <<a /b\nx\na", 1, "a file that stands in the Dockerfile"),
        ("COPY --parents a /b", 1, "`--parents`"),
        ("ADD a.tar.gz /b", 5, "an archive that is unpacked"),
        ("ARG TARGETARCH", 5, "`TARGETARCH`, whose value depends on the build"),
        ("COPY $x /b", 6, "`$x`, whose value nobody says here"),
        ("RUN --mount=type=tmpfs,target=/x true", 13, "this kind of mount"),
        ("RUN --mount=type=cache,target=/x,mode=0700 true", 13, "the options of this cache"),
        ("COPY a b", 8, "`b` from the working directory of an image"),
        ("HEALTHCHECK NONE", 1, "HEALTHCHECK"),
        ("ONBUILD RUN true", 1, "ONBUILD"),
    ] {
        let text = format!("FROM a\n{line}\n");
        let file = dockerfile::parse("Dockerfile", text.as_bytes()).expect(line);
        let error = from_dockerfile(&file).expect_err(line);
        assert_eq!((error.place.line, error.place.column, error.what.as_str()), (2, column, what), "{line}");
    }
}
