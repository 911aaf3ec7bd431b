//! Inputs that mean harm, group by group: contexts, layers, Dockerfiles, locks. Each ends in an error with a type, or is shown to be harmless, and
//! nothing outside of the store and the build's own directories is touched. RUN's are in `crates/sandbox/tests/hostile.rs`, registries' in
//! `src/registry`; `docs/design/hostile-inputs.md` lists all.

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_model::image::{Descriptor, LAYER_GZIP};
use jiji_store::{Layer, Store};

use super::super::context;
use super::super::dockerfile;
use super::super::layer::TarPath;
use super::super::rootfs::Layers;
use super::super::trees::Trees;
use super::fixture::Fixture;
use crate::lockfile::LockFile;

/// More of the processors' time than any of these may take. By the wall's clock it would depend on what else the machine does. Tests that run
/// beside count as well, so what takes long has a process of its own ([`alone`]).
const SOON: Duration = Duration::from_secs(20);

/// What this process has taken of the processors' time so far.
fn taken() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("no process has taken less than nothing")
}

/// Runs an ignored test of this file in a process of its own.
fn alone(test: &str) {
    let program = std::env::current_exe().expect("this program");
    let (_, module) = module_path!().split_once("::").expect("a module of the crate");
    let mut command = std::process::Command::new(program);
    let done = command.args(["--ignored", "--exact", &format!("{module}::{test}")]).output().expect("started");
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&done.stderr));
}

/// An error with all its causes.
fn told(error: &dyn Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// What a hostile input is due to end with.
enum Due {
    /// This is part of the error.
    Error(&'static str),
    /// It is taken, and did no harm.
    Harmless,
}
use Due::{Error as Refused, Harmless};

/// What came of many inputs, told together.
#[derive(Default)]
struct Verdicts {
    count: usize,
    wrong: Vec<String>,
}

impl Verdicts {
    fn judge<T, E: Error + 'static>(&mut self, name: &str, due: &Due, input: impl FnOnce() -> Result<T, E>) {
        self.count += 1;
        let before = taken();
        let result = input();
        let took = taken() - before;
        if took > SOON {
            self.wrong.push(format!("{name}: it took {took:?} of the processors"));
        }
        match (due, result) {
            (Refused(part), Err(error)) => {
                let told = told(&error);
                if !told.contains(part) {
                    self.wrong.push(format!("{name}: {}", told.chars().take(400).collect::<String>()));
                }
            }
            (Refused(_), Ok(_)) => self.wrong.push(format!("{name}: it was taken")),
            (Harmless, Err(error)) => {
                self.wrong.push(format!("{name}: {}", told(&error).chars().take(400).collect::<String>()));
            }
            (Harmless, Ok(_)) => {}
        }
    }
}

impl Drop for Verdicts {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
            println!("{} inputs", self.count);
        }
    }
}

/// A tar's header, with any bytes for its size.
fn header(name: &[u8], kind: u8, size: &[u8], link: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, &name[..name.len().min(100)]);
    put(100, b"0004755\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, size);
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link);
    put(257, b"ustar\x0000");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// An entry with its content.
fn entry(name: &[u8], kind: u8, content: &[u8], link: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, format!("{:011o}\0", content.len()).as_bytes(), link);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str) -> Vec<u8> {
    entry(name.as_bytes(), b'0', b"content", b"")
}

/// A PAX header with this one record.
fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let record = [format!("{length} {key}=").as_bytes(), value, b"\n"].concat();
    entry(b"PaxHeaders", b'x', &record, b"")
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("compressed")
}

/// A layer of these bytes as a registry might bring it, whose tar is what is claimed.
fn stored(store: &Store, blob: &[u8], diff_id: Digest) -> Layer {
    let digest = store.put(blob).expect("stored");
    Layer { diff_id, blob: Descriptor { media_type: LAYER_GZIP.to_owned(), digest, size: blob.len() as u64 } }
}

/// Looks into a layer and unpacks it, as a build does.
fn take(store: &Store, layer: &Layer) -> Result<(), Box<dyn Error>> {
    Layers::new(store).tree(std::slice::from_ref(layer))?;
    Trees::of(std::slice::from_ref(layer), store, &jiji_sandbox::Sandbox::new())?;
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Any(Box<dyn Error>);

#[test]
fn layers_that_mean_harm() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a store");
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).expect("created");
    fs::write(outside.join("kept"), "kept").expect("written");
    let out = outside.to_str().expect("text");
    let climb = format!("../../../../../../../../../..{out}");
    let long = "x".repeat(2 << 20);
    let deep = "d/".repeat(300);
    let cases: Vec<(&str, Vec<u8>, Due)> = vec![
        ("a name that climbs", tar(&[file("../out")]), Refused("Outside")),
        ("a name that climbs after going down", tar(&[file("a/../../out")]), Refused("Outside")),
        ("an absolute name that climbs", tar(&[file("/../out")]), Refused("Outside")),
        ("an absolute name", tar(&[file("/etc/x")]), Harmless),
        ("a PAX path that climbs", tar(&[pax("path", b"../../out"), file("x")]), Refused("Outside")),
        ("a GNU long name that climbs", tar(&[entry(b"L", b'L', b"../../out\0", b""), file("x")]), Refused("Outside")),
        ("a PAX path of 2 MiB", tar(&[pax("path", long.as_bytes()), file("x")]), Refused("longer than 1 MiB")),
        (
            "a GNU long name of 2 MiB",
            tar(&[entry(b"L", b'L', long.as_bytes(), b""), file("x")]),
            Refused("longer than 1 MiB"),
        ),
        (
            "a GNU long link of 2 MiB",
            tar(&[entry(b"K", b'K', long.as_bytes(), b""), file("x")]),
            Refused("longer than 1 MiB"),
        ),
        (
            "a PAX attribute of 2 MiB",
            tar(&[pax("SCHILY.xattr.user.x", long.as_bytes()), file("x")]),
            Refused("longer than 1 MiB"),
        ),
        (
            "a long name that is a bomb",
            tar(&[entry(b"L", b'L', &vec![b'x'; 8 << 20], b""), file("x")]),
            Refused("longer than 1 MiB"),
        ),
        (
            "long names that are long together",
            tar(&(0..20).flat_map(|_| [entry(b"L", b'L', &vec![b'x'; 1_000_000], b""), file("x")]).collect::<Vec<_>>()),
            Refused("longer than 16 MiB"),
        ),
        ("two PAX headers for one entry", tar(&[pax("path", b"a"), pax("path", b"b"), file("x")]), Refused("two pax")),
        (
            "two long names for one entry",
            tar(&[entry(b"L", b'L', b"a", b""), entry(b"L", b'L', b"b", b""), file("x")]),
            Refused("two long name"),
        ),
        (
            "a PAX record with a wrong length",
            tar(&[entry(b"P", b'x', b"999 path=x\n", b""), file("x")]),
            Refused("malformed pax"),
        ),
        (
            "a PAX record without a length",
            tar(&[entry(b"P", b'x', b"path=x\n", b""), file("x")]),
            Refused("malformed pax"),
        ),
        ("a PAX size without end", tar(&[pax("size", b"99999999999999999999999"), file("x")]), Harmless),
        ("a PAX size that is more than is there", tar(&[pax("size", b"99999999"), file("x")]), Refused("Read")),
        (
            "a size that is more than is there",
            [header(b"x", b'0', b"00000077777\0", b""), vec![0; 512]].concat(),
            Refused("Read"),
        ),
        ("a size that is no number", header(b"x", b'0', b"zzzzzzzzzzz\0", b""), Refused("Read")),
        ("a binary size of 2^63", header(b"x", b'0', b"\x80\0\0\0\x80\0\0\0\0\0\0\0", b""), Refused("Read")),
        (
            "a negative size",
            header(b"x", b'0', b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b""),
            Refused("Read"),
        ),
        (
            "a checksum that is wrong",
            tar(&[{
                let mut bytes = file("x");
                bytes[0] = b'y';
                bytes
            }]),
            Refused("Read"),
        ),
        ("a file cut short", file("x")[..515].to_vec(), Refused("Read")),
        ("a header cut short", file("x")[..100].to_vec(), Refused("Read")),
        ("a sparse file with a broken map", tar(&[entry(b"s", b'S', b"x", b"")]), Refused("Read")),
        ("a link out and a file through it", tar(&[entry(b"l", b'2', b"", out.as_bytes()), file("l/in")]), Harmless),
        (
            "a climbing link and a file through it",
            tar(&[entry(b"l", b'2', b"", climb.as_bytes()), file("l/in")]),
            Harmless,
        ),
        (
            "a link out and a whiteout through it",
            tar(&[entry(b"l", b'2', b"", out.as_bytes()), file("l/.wh.kept")]),
            Harmless,
        ),
        (
            "a link out and an opaque mark through it",
            tar(&[entry(b"l", b'2', b"", out.as_bytes()), file("l/.wh..wh..opq")]),
            Harmless,
        ),
        (
            "links that lead to each other",
            tar(&[entry(b"a", b'2', b"", b"b"), entry(b"b", b'2', b"", b"a"), file("a/x")]),
            Refused("NoDirectory"),
        ),
        ("a hard link to a file of the machine", tar(&[entry(b"h", b'1', b"", b"/etc/passwd")]), Refused("NoTarget")),
        ("a hard link that climbs", tar(&[entry(b"h", b'1', b"", b"../../etc/passwd")]), Refused("Outside")),
        ("a hard link to itself", tar(&[entry(b"h", b'1', b"", b"h")]), Refused("NoTarget")),
        (
            "a hard link through a link out",
            tar(&[entry(b"l", b'2', b"", out.as_bytes()), entry(b"h", b'1', b"", b"l/kept")]),
            Refused("NoTarget"),
        ),
        (
            "a device that means deletion",
            tar(&[{
                let mut bytes = header(b"d", b'3', b"00000000000\0", b"");
                bytes[329..345].copy_from_slice(b"0000000\x000000000\0");
                bytes[148..156].copy_from_slice(b"        ");
                let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
                bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                bytes
            }]),
            Refused("Type"),
        ),
        ("a device", tar(&[header(b"null", b'3', b"00000000000\0", b"")]), Harmless),
        ("a block device", tar(&[header(b"disk", b'4', b"00000000000\0", b"")]), Harmless),
        ("a pipe", tar(&[header(b"pipe", b'6', b"00000000000\0", b"")]), Harmless),
        ("a setuid program", tar(&[file("su")]), Harmless),
        ("an entry of a kind that nobody knows", tar(&[entry(b"z", b'Z', b"x", b"")]), Refused("Type")),
        ("a whiteout of what is above", tar(&[file(".wh..")]), Refused("Outside")),
        ("a whiteout of what is above that", tar(&[file(".wh...")]), Refused("Outside")),
        ("a whiteout of nothing", tar(&[file(".wh.")]), Refused("Outside")),
        ("an opaque root", tar(&[file(".wh..wh..opq"), file("x")]), Harmless),
        ("a whiteout of what the same layer brings", tar(&[file("x"), file(".wh.x")]), Harmless),
        ("a file below a file", tar(&[file("x"), file("x/y")]), Refused("NoDirectory")),
        ("a name with a line feed", tar(&[file("a\nb")]), Harmless),
        ("a name that is no text", tar(&[entry(b"\xff\xfe", b'0', b"", b"")]), Harmless),
        ("a name that no file system takes", tar(&[pax("path", "n".repeat(300).as_bytes()), file("x")]), Refused("Io")),
        ("300 directories in each other", tar(&[pax("path", deep.as_bytes()), entry(b"d", b'5', b"", b"")]), Harmless),
        ("nothing at all", Vec::new(), Harmless),
        ("no tar", b"hello".repeat(300), Refused("Read")),
    ];
    let mut verdicts = Verdicts::default();
    for (name, bytes, due) in cases {
        let layer = stored(&store, &gzip(&bytes), Digest::of(&bytes));
        verdicts.judge(name, &due, || take(&store, &layer).map_err(Any));
        let left: Vec<_> = fs::read_dir(&outside).expect("listed").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!((left, fs::read_dir(dir.path()).expect("listed").count()), (vec!["kept".into()], 2), "{name}");
    }
    let good = tar(&[file("x")]);
    let packed = gzip(&good);
    let mut broken = packed.clone();
    let middle = broken.len() / 2;
    broken[middle] ^= 0xff;
    for (name, blob, diff_id, due) in [
        ("another tar than the configuration says", packed.clone(), Digest::of("another"), Refused("DiffId")),
        ("a blob cut short", packed[..packed.len() - 20].to_vec(), Digest::of(&good), Refused("Read")),
        ("a damaged blob", broken, Digest::of(&good), Refused("Read")),
        ("a blob that is not compressed", good.clone(), Digest::of(&good), Refused("Read")),
    ] {
        verdicts.judge(name, &due, || take(&store, &stored(&store, &blob, diff_id)).map_err(Any));
    }
    let unknown = Layer {
        blob: Descriptor { media_type: "application/x".to_owned(), ..stored(&store, &packed, Digest::of(b"u")).blob },
        diff_id: Digest::of(b"u"),
    };
    verdicts.judge("a media type that nobody knows", &Refused("MediaType"), || take(&store, &unknown).map_err(Any));
    // Tiny files are looked into without a file for each.
    let many: Vec<Vec<u8>> =
        (0..30_000).map(|number| entry(format!("d/{number}").as_bytes(), b'0', b"", b"")).collect();
    let many = tar(&many);
    let mut layer = stored(&store, &many, Digest::of(&many));
    layer.blob.media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
    verdicts.judge("30,000 tiny files", &Harmless, || Layers::new(&store).tree(&[layer]));
}

#[test]
fn contexts_that_mean_harm() {
    alone("contexts");
}

#[test]
#[ignore = "it is run by the one above, in a process of its own"]
fn contexts() {
    let steps = |copy: &str| format!("FROM scratch\n{copy}\n");
    let mut verdicts = Verdicts::default();
    let fifo = |path: &Path| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a pipe");
    };
    for (name, copy, prepare, due) in [
        ("a source above", "COPY ../x /", (&|_: &Path| {}) as &dyn Fn(&Path), Refused("Copy")),
        ("a source above, after going down", "COPY a/../../x /", &|_| {}, Refused("Copy")),
        ("an absolute source means the context's", "COPY /etc/passwd /", &|_| {}, Refused("Copy")),
        (
            "a link to a file of the machine",
            "COPY l /",
            &|to| symlink("/etc/passwd", to.join("l")).expect("linked"),
            Refused("NotFound"),
        ),
        (
            "a file through a link to a directory of the machine",
            "COPY l/passwd /",
            &|to| symlink("/etc", to.join("l")).expect("linked"),
            Refused("Copy"),
        ),
        (
            "links that lead to each other",
            "COPY l/x /",
            &|to| {
                symlink("m", to.join("l")).expect("linked");
                symlink("l", to.join("m")).expect("linked");
            },
            Refused("Copy"),
        ),
        ("a pipe", "COPY p /", &|to| fifo(&to.join("p")), Refused("Special")),
        (
            "an ignore file that is a pipe",
            "COPY a /",
            &|to| fifo(&to.join(".dockerignore")),
            Refused("it is not a file"),
        ),
        (
            "an ignore file without end",
            "COPY a /",
            &|to| symlink("/dev/zero", to.join(".dockerignore")).expect("linked"),
            Refused("it is not a file"),
        ),
        (
            "an ignore file of 2 MiB",
            "COPY a /",
            &|to| fs::write(to.join(".dockerignore"), vec![b'x'; 2 << 20]).expect("written"),
            Refused("longer than 1 MiB"),
        ),
        (
            "an ignore pattern that tries all ways",
            "COPY a /",
            &|to| {
                fs::write(to.join(".dockerignore"), "*a*a*a*a*a*a*a*a*a*a*a*a*a*b\n**/**/**/**/**/**/**/**/c\n")
                    .expect("written");
                fs::write(to.join("a".repeat(200)), "").expect("written");
                fs::create_dir_all(to.join("d/".repeat(100))).expect("created");
            },
            Harmless,
        ),
        ("a name with a line feed", "COPY . /", &|to| fs::write(to.join("a\nFROM x"), "").expect("written"), Harmless),
        (
            "a name that is no text",
            "COPY . /",
            &|to| fs::write(to.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "").expect("written"),
            Harmless,
        ),
        (
            "a name like a whiteout",
            "COPY . /",
            &|to| fs::write(to.join(".wh.etc"), "").expect("written"),
            Refused("Whiteout"),
        ),
        (
            "100,000 tiny files",
            "COPY . /",
            &|to| {
                for number in 0..100_000 {
                    fs::write(to.join(number.to_string()), "").expect("written");
                }
            },
            Harmless,
        ),
        (
            "200 directories in each other",
            "COPY . /",
            &|to| fs::create_dir_all(to.join("d/".repeat(200))).expect("created"),
            Harmless,
        ),
    ] {
        let fixture = Fixture::new(&steps(copy), &[("a", "1")]);
        prepare(&fixture.place().join("context"));
        let mut taken = None;
        verdicts.judge(name, &due, || fixture.build().map(|built| taken = Some(built)));
        if let Some(built) = taken {
            assert!(!fixture.names(&built).is_empty(), "{name}: what was taken can be read back");
        }
    }
    // Modes that mean rights are the context's to lose.
    let fixture = Fixture::new(&steps("COPY a /"), &[("a", "1")]);
    fixture.mode("a", 0o6755);
    assert_eq!(fixture.modes(&fixture.built(), 0), ["a 755"]);
}

#[test]
fn a_parent_that_is_swapped_for_a_link_leads_nowhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let (context, outside) = (dir.path().join("context"), dir.path().join("outside"));
    fs::create_dir_all(context.join("sub")).expect("created");
    fs::create_dir(&outside).expect("created");
    fs::write(context.join("sub/file"), "own").expect("written");
    fs::write(outside.join("file"), "secret").expect("written");
    let path = context.join("sub/file");
    assert!(context::open(&context, &path).is_ok());
    // After it was looked at and before it is read.
    fs::rename(context.join("sub"), context.join("old")).expect("moved");
    symlink(&outside, context.join("sub")).expect("linked");
    assert!(context::open(&context, &path).is_err());
    // Nor a file for a link, a pipe or a device.
    fs::remove_file(context.join("sub")).expect("removed");
    symlink("old", context.join("sub")).expect("linked");
    assert!(context::open(&context, &path).is_err(), "not even within");
    symlink("file", context.join("old/link")).expect("linked");
    assert!(context::open(&context, &context.join("old/link")).is_err());
    assert!(context::open(&context, &outside.join("file")).is_err());
    assert!(context::open(Path::new("/dev"), Path::new("/dev/zero")).is_err());
}

#[test]
fn dockerfiles_that_mean_harm() {
    let nest = |depth: usize| format!("FROM scratch\nENV a={}x{}\n", "${a:-".repeat(depth), "}".repeat(depth));
    let mut doubling = "FROM scratch\nENV a0=xxxxxxxxxx\n".to_owned();
    for number in 1..60 {
        doubling.push_str(&format!("ENV a{number}=$a{0}$a{0}\n", number - 1));
    }
    let chain: String = (1..900).map(|number| format!("FROM s{} AS s{number}\nENV A=1\n", number - 1)).collect();
    let copies: String = (1..400)
        .map(|number| format!("FROM scratch AS s{number}\nARG F=s{}\nCOPY --from=$F /a /\n", number - 1))
        .collect();
    let cases: Vec<(&str, Vec<u8>, Due)> = vec![
        ("a line of 10 MB", [b"FROM scratch\nLABEL a=\"", &vec![b'x'; 10_000_000][..], b"\"\n"].concat(), Harmless),
        ("a file of 17 MiB", [b"FROM scratch\n# ", &vec![b'x'; 17 << 20][..]].concat(), Refused("longer than 16 MiB")),
        ("substitutions nested 50 times", nest(50).into_bytes(), Harmless),
        ("substitutions nested 100,000 times", nest(100_000).into_bytes(), Refused("nested more than 100 times")),
        (
            "substitutions nested in quotes",
            format!("FROM scratch\nENV a={}\n", "\"${b:-".repeat(50_000)).into_bytes(),
            Refused("Dockerfile"),
        ),
        ("variables that double 60 times", doubling.into_bytes(), Refused("longer than 1 MiB")),
        ("a here-document without end", b"FROM scratch\nCOPY <<EOF /x\nline\n".to_vec(), Refused("OpenHeredoc")),
        (
            "100,000 here-documents",
            format!("FROM scratch\nRUN {}\n", "<<E ".repeat(100_000)).into_bytes(),
            Refused("OpenHeredoc"),
        ),
        ("a quotation without end", b"FROM scratch\nENV a=\"b\n".to_vec(), Refused("Dockerfile")),
        ("1,001 stages", "FROM scratch\n".repeat(1001).into_bytes(), Refused("more than 1000 stages")),
        ("900 stages on each other", format!("FROM scratch AS s0\n{chain}").into_bytes(), Harmless),
        (
            "400 stages that ask each other suddenly",
            format!("FROM scratch AS s0\nCOPY a /\n{copies}").into_bytes(),
            Harmless,
        ),
        ("a stage that is its own base", b"FROM a AS a\n".to_vec(), Refused("Registry")),
        (
            "a copy from a later stage",
            b"FROM scratch AS a\nCOPY --from=later a /\nFROM scratch AS later\nFROM a\n".to_vec(),
            Refused("Registry"),
        ),
        ("a copy from itself", b"FROM scratch AS a\nCOPY --from=0 /x /\n".to_vec(), Refused("Registry")),
        ("bytes that are no text", b"FROM scratch\nENV a=\xff\n".to_vec(), Refused("NotUtf8")),
        ("a null", b"FROM scratch\nENV a=\0\n".to_vec(), Harmless),
        ("another frontend", b"# syntax=evil/frontend\nFROM scratch\n".to_vec(), Refused("Frontend")),
        ("a trigger that is a trigger", b"FROM scratch\nONBUILD ONBUILD RUN x\n".to_vec(), Refused("Trigger")),
        ("ports without end", b"FROM scratch\nEXPOSE 1-99999\n".to_vec(), Refused("Dockerfile")),
        ("a destination that climbs", b"FROM scratch\nCOPY a ../../../x\n".to_vec(), Harmless),
        ("a directory that climbs", b"FROM scratch\nWORKDIR ../../..\n".to_vec(), Harmless),
        (
            "a secret that was not given",
            b"FROM scratch\nRUN --mount=type=secret,id=x,required cat /run/secrets/x\n".to_vec(),
            Refused("Secret"),
        ),
        ("a network", b"FROM scratch\nRUN --network=host x\n".to_vec(), Refused("Dockerfile")),
        ("all rights", b"FROM scratch\nRUN --security=insecure x\n".to_vec(), Refused("Dockerfile")),
        ("an empty file", Vec::new(), Refused("NoStage")),
    ];
    let mut verdicts = Verdicts::default();
    for (name, text, due) in cases {
        let fixture = Fixture::new("", &[("a", "1")]);
        fs::write(fixture.place().join("Dockerfile"), text).expect("written");
        verdicts.judge(name, &due, || fixture.build());
    }
    for (name, target) in [("a Dockerfile without end", "/dev/zero"), ("a Dockerfile that is a directory", "/")] {
        let fixture = Fixture::new("", &[]);
        let path = fixture.place().join("Dockerfile");
        fs::remove_file(&path).expect("removed");
        symlink(target, &path).expect("linked");
        verdicts.judge(name, &Refused("it is not a file"), || fixture.build());
    }
    let deep = dockerfile::parse("x", &b"FROM scratch\nRUN [".repeat(5)).is_ok();
    assert!(deep, "what is no list is a shell's");
    assert_eq!(TarPath::normal("../../../x").to_string(), "/x");
}

#[test]
fn locks_that_mean_harm() {
    let good = include_str!("../../lockfile/fixtures/v1.lock");
    let dir = tempfile::tempdir().expect("a directory");
    let lock = LockFile::of_project(dir.path());
    let run =
        "\n[[run]]\nservice = \"web\"\nplatform = \"linux/amd64\"\nkey = \"sha256:KEY\"\ndiff-id = \"sha256:KEY\"\n";
    let run = run.replace("KEY", &"a".repeat(64));
    let cases: Vec<(&str, Vec<u8>, Due)> = vec![
        ("the same entry twice", format!("{good}{run}{run}").into_bytes(), Refused("Duplicate")),
        ("a key twice", format!("version = 1\n{good}").into_bytes(), Refused("Syntax")),
        ("a key that nobody knows", format!("{good}\n[evil]\na = 1\n").into_bytes(), Refused("Syntax")),
        (
            "a service whose name is a path",
            format!("{good}{}", run.replace("web", "../../etc")).into_bytes(),
            Refused("Syntax"),
        ),
        ("a digest that is none", format!("{good}{}", run.replace("aa", "zz")).into_bytes(), Refused("Syntax")),
        (
            "a digest that is a path",
            format!("{good}{}", run.replace("sha256:a", "../../../a")).into_bytes(),
            Refused("Syntax"),
        ),
        (
            "a platform that is none",
            format!("{good}{}", run.replace("linux/amd64", "linux/../x")).into_bytes(),
            Refused("Syntax"),
        ),
        ("lists nested 100,000 times", format!("version = {}", "[".repeat(100_000)).into_bytes(), Refused("Syntax")),
        (
            "tables nested 100,000 times",
            format!("version = 1\n[a{}]\n", ".a".repeat(100_000)).into_bytes(),
            Refused("Syntax"),
        ),
        ("a newer version", b"version = 99\n".to_vec(), Refused("NewerVersion")),
        ("a version without end", format!("version = {}", "9".repeat(10_000)).into_bytes(), Refused("Syntax")),
        ("bytes that are no text", b"version = \"\xff\"\n".to_vec(), Refused("Read")),
        ("33 MiB", vec![b'#'; 33 << 20], Refused("longer than 32 MiB")),
        ("a text cut short", good.as_bytes()[..good.len() - 30].to_vec(), Refused("Syntax")),
    ];
    let mut verdicts = Verdicts::default();
    for (name, text, due) in cases {
        fs::write(lock.path(), text).expect("written");
        verdicts.judge(name, &due, || lock.read());
    }
    fs::remove_file(lock.path()).expect("removed");
    symlink("/dev/zero", lock.path()).expect("linked");
    verdicts.judge("a lock without end", &Refused("it is not a file"), || lock.read());
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
}
