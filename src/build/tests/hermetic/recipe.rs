//! Recipes beside the Dockerfiles that say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use jiji::build::execute::Local;
use jiji::build::{BuildRequest, Builder, Elsewhere, ServiceImage};
use jiji::lockfile::LockFile;
use jiji_model::event::Silent;
use jiji_model::image::{Compression, Image, LAYER_GZIP, LAYER_ZSTD};
use jiji_model::project::Frontend;

use crate::project::{Nowhere, file, project};

/// The same inputs, steps and layers in both languages.
pub(crate) fn a_recipe_gives_the_layers_of_its_dockerfile() {
    const RECIPE: &str = r#"
[inputs]
system = { path = "base" }
source = { path = "src", exclude = ["*.md"] }

[steps.tools]
on = "system"
run = ["/bin/busybox", "--install", "-s", "/bin"]

[steps.compile]
on = "tools"
see = { "/src" = "source" }
cache = { "/cache" = "words" }
secrets = ["token"]
env = { QUOTE = "it's \"$5\" \\ done" }
dir = "/made"
out = "/made/out"
run = """
mkdir out
tr a-z A-Z < /src/words > out/words
echo "$QUOTE" > out/quote
test "$token" = hunter2
echo scratch > /src/written
date > /cache/when
"""

[[layers]]
name = "words"
from = "compile:/words"
to = "/srv/"
owner = "7:8"
mode = "640"

[[layers]]
from = "compile"
to = "/opt/all"

[image]
on = "tools"
command = ["cat", "/srv/words"]
env = { GREETING = "a b" }
ports = [8080, "53/udp"]
user = "app"
"#;
    let dir = tempfile::tempdir().expect("a directory");
    let project = project(
        dir.path(),
        concat!(
            "FROM scratch AS source\nCOPY --exclude=*.md src/ /\n",
            "FROM base AS compile\nARG QUOTE=it\\'s\\ \\\"\\$5\\\"\\ \\\\\\ done\nWORKDIR /made\n",
            "RUN --mount=type=bind,from=source,target=/src,rw --mount=type=cache,id=words,target=/cache \\\n",
            "    --mount=type=secret,id=token,env=token mkdir out; tr a-z A-Z < /src/words > out/words; echo \"$QUOTE\" > out/quote\n",
            "FROM base\nCOPY --from=compile --chown=7:8 --chmod=640 /made/out/words /srv/\n",
            "COPY --from=compile /made/out /opt/all\n",
            "ENV GREETING=\"a b\"\nUSER app\nEXPOSE 8080 53/udp\nCMD [\"cat\", \"/srv/words\"]\n",
        ),
    );
    fs::create_dir(project.root.join("src")).expect("created");
    fs::write(project.root.join("src/words"), "some words\n").expect("written");
    fs::write(project.root.join("src/README.md"), "not these\n").expect("written");
    fs::write(project.root.join("image.toml"), RECIPE).expect("written");
    let plain = project.built().image;
    let request = BuildRequest {
        file: project.root.join("image.toml"),
        frontend: Frontend::Recipe,
        file_name: "image.toml".to_owned(),
        ..project.request()
    };
    let built = project.build_as(&request, &Nowhere).unwrap_or_else(|error| panic!("{error}: {:?}", error.evidence()));
    assert_eq!(built.image.layers, plain.layers, "the same layers");
    let again = project.build_as(&request, &Nowhere).expect("built");
    assert_eq!((again.image.manifest.digest, again.steps.cached), (built.image.manifest.digest, again.steps.total));

    let dockerfile =
        jiji::build::read(&project.root.join("Dockerfile"), Frontend::Dockerfile, "Dockerfile").expect("read");
    let converted = jiji::build::recipe::from_dockerfile(&dockerfile).expect("a recipe");
    fs::write(project.root.join("converted.toml"), &converted).expect("written");
    let request = BuildRequest { file: project.root.join("converted.toml"), ..request };
    let same = project.build_as(&request, &Nowhere).unwrap_or_else(|error| panic!("{error}\n{converted}"));
    assert_eq!(same.image.layers, plain.layers, "{converted}");

    // A layer changes with what it takes and nothing else.
    let request = BuildRequest { file: project.root.join("image.toml"), ..request };
    fs::write(project.root.join("src/README.md"), "changed\n").expect("written");
    let other = project.build_as(&request, &Nowhere).expect("built");
    assert_eq!(other.image.manifest.digest, built.image.manifest.digest);
}

pub(crate) fn a_recipe_begins_from_another_service() {
    const RECIPE: &str = r#"
[inputs]
tools = { service = "tools" }

[steps.count]
on = "tools"
run = "busybox wc -c /word > /count; echo $WHO >> /count"

[[layers]]
from = "count:/count"
to = "/"

[image]
on = "tools"
"#;
    let dir = tempfile::tempdir().expect("a directory");
    let project = project(dir.path(), "FROM base\nENV WHO=tools\nCOPY word /\n");
    fs::write(project.root.join("word"), "word").expect("written");
    fs::write(project.root.join("image.toml"), RECIPE).expect("written");
    let tools = project.built().image;
    let request = |tools: &Image| BuildRequest {
        file: project.root.join("image.toml"),
        frontend: Frontend::Recipe,
        file_name: "image.toml".to_owned(),
        services: BTreeMap::from([("tools".to_owned(), ServiceImage::Built(tools.clone()))]),
        ..project.request()
    };
    let needed = jiji::build::services(&request(&tools)).expect("read");
    assert_eq!(needed.into_iter().collect::<Vec<_>>(), ["tools"]);
    let build = |request: &BuildRequest| {
        project.build_as(request, &Nowhere).unwrap_or_else(|error| panic!("{error}: {:?}", error.evidence()))
    };
    let built = build(&request(&tools));
    assert_eq!(built.image.layers[..tools.layers.len()], tools.layers[..], "it goes on from there");
    assert_eq!(file(&project, &built, "count"), "4 /word\ntools\n");
    let locked = BuildRequest { locked: true, ..request(&tools) };
    assert_eq!(build(&locked).image, built.image);

    // In zstd as well: what is taken stays as it is, what is made is not.
    let zstd = build(&BuildRequest { compression: Compression::Zstd, ..request(&tools) });
    assert_eq!((zstd.steps.cached, zstd.image.config), (zstd.steps.total, built.image.config));
    let media_types: BTreeSet<&str> = zstd.image.layers.iter().map(|layer| layer.media_type.as_str()).collect();
    assert_eq!(media_types.into_iter().collect::<Vec<_>>(), [LAYER_GZIP, LAYER_ZSTD]);

    fs::write(project.root.join("word"), "words").expect("written");
    let other = build(&request(&project.built().image));
    assert_eq!(file(&project, &other, "count"), "5 /word\ntools\n", "what is made from it is made anew");
    let nowhere = BuildRequest { services: BTreeMap::new(), ..request(&tools) };
    let error = project.build_as(&nowhere, &Nowhere).expect_err("there is no such service");
    assert_eq!(error.place().map(|place| (place.line, place.column)), Some((3, 21)), "{error}");
}

/// What was packed is what it was when a step sees it, and the same elsewhere.
pub(crate) fn packed_layers_are_one_tree_to_steps() {
    const RECIPE: &str = r#"
[inputs]
system = { path = "base" }

[steps.tools]
on = "system"
run = ["/bin/busybox", "--install", "-s", "/bin"]

[steps.make]
on = "tools"
out = "/made"
run = """
mkdir -p /made/site-packages /made/empty
for name in $(seq 40); do
    mkdir -m 750 /made/site-packages/p$name /made/site-packages/p$name-1.dist-info
    chown 7:8 /made/site-packages/p$name
    echo $name > /made/site-packages/p$name/code.py
    echo $name > /made/site-packages/p$name-1.dist-info/METADATA
    ln -s code.py /made/site-packages/p$name/link
done
dd if=/dev/zero of=/made/large bs=1M count=2
"""

[[layers]]
from = "make"
to = "/opt"
PACKED

[image]
on = "tools"
"#;
    const LOOK: &str = r#"
[inputs]
packed = { service = "packed" }

[steps.look]
on = "packed"
run = "cd /opt; find . | sort | while read name; do stat -c '%n %A %u:%g %s' $name; done > /seen; cat site-packages/*/link >> /seen"

[[layers]]
from = "look:/seen"
to = "/"
"#;
    let dir = tempfile::tempdir().expect("a directory");
    let project = project(dir.path(), "");
    let request = |recipe: &str, services: &[(&str, &Image)]| {
        fs::write(project.root.join("image.toml"), recipe).expect("written");
        let named = |(name, image): &(&str, &Image)| ((*name).to_owned(), ServiceImage::Built((*image).clone()));
        BuildRequest {
            file: project.root.join("image.toml"),
            frontend: Frontend::Recipe,
            file_name: "image.toml".to_owned(),
            services: services.iter().map(named).collect(),
            ..project.request()
        }
    };
    let build = |request: &BuildRequest| {
        project.build_as(request, &Nowhere).unwrap_or_else(|error| panic!("{error}: {:?}", error.evidence()))
    };
    let packed = request(&RECIPE.replace("PACKED", "packed = 6"), &[]);
    let image = build(&packed).image;
    let executor = Local::new(2);
    let builder = Builder { store: &project.store, sources: &Nowhere, executor: &executor, events: &Silent };
    let lock = LockFile::of_project(&project.root).read().expect("a lock").build;
    let elsewhere = Local::new(2).elsewhere();
    let conditions = Elsewhere { executor: &elsewhere, wait: std::time::Duration::ZERO, today: Vec::new() };
    let checked = builder.check(&packed, &lock, &conditions).expect("checked");
    assert!(checked.findings.is_empty() && checked.image == image, "{:?}", checked.findings);

    let whole = build(&request(&RECIPE.replace("PACKED", ""), &[])).image;
    assert_eq!(image.layers.len(), whole.layers.len() + 3, "the large file, and three that the others are dealt to");
    let [seen, due] = [&image, &whole].map(|image| {
        let built = build(&request(LOOK, &[("packed", image)]));
        file(&project, &built, "seen")
    });
    assert_eq!(seen, due);
    assert!(seen.contains("site-packages/p7 drwxr-x--- 7:8 "), "{seen}");
}
