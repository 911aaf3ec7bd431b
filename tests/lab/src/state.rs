//! The directory in which all labs lie, and the lock under which they come and go.
//!
//! Whoever makes or removes a lab holds `STATE/lock`. A lab whose owner is dead is removed by the next who takes the lock to
//! make one: its processes are found by their cgroup, its network and mounts went with them.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    Engine, HostRecord, LabError, OperatorRecord, Owner, Record, RegistryRecord, Spec, cgroup,
    command::{command, run},
    record::VERSION,
    ssh,
};

/// The port of the independent registry.
const REGISTRY_PORT: u16 = 5000;

/// The lock on all labs of a state directory; let go when dropped, or when its holder dies.
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

/// Waits for the lock.
pub(crate) fn lock(state: &Path) -> Result<Lock, LabError> {
    fs::create_dir_all(state).map_err(LabError::file("create", state))?;
    let path = state.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(LabError::file("open", &path))?;
    file.lock().map_err(LabError::file("lock", &path))?;
    Ok(Lock(file))
}

/// The labs whose records can be read, in the order of their numbers.
pub(crate) fn records(state: &Path) -> Vec<Record> {
    let Ok(entries) = fs::read_dir(state) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries.flatten().filter_map(|entry| Record::load(&entry.path()).ok()).collect();
    found.sort_by_key(|record| record.number);
    found
}

/// The lab of that name, or the only one there is.
pub(crate) fn find(state: &Path, name: Option<&str>) -> Result<Record, LabError> {
    let mut alive: Vec<_> = records(state).into_iter().filter(|record| record.owner.alive()).collect();
    match name {
        Some(name) => alive
            .into_iter()
            .find(|record| record.name == name)
            .ok_or_else(|| LabError::NoSuchLab { name: name.to_owned() }),
        None if alive.len() > 1 => Err(LabError::Ambiguous {
            names: alive.iter().map(|record| record.name.as_str()).collect::<Vec<_>>().join(" "),
        }),
        None => alive.pop().ok_or_else(|| LabError::NoSuchLab { name: "(any)".to_owned() }),
    }
}

/// Removes what labs left whose owner is dead. Needs the lock. Returns their names.
pub(crate) fn sweep(state: &Path, _lock: &Lock) -> Result<Vec<String>, LabError> {
    let Ok(entries) = fs::read_dir(state) else {
        return Ok(Vec::new());
    };
    let mut swept = Vec::new();
    for entry in entries.flatten() {
        let dir = entry.path();
        if !dir.is_dir() {
            continue;
        }
        match Record::load(&dir) {
            Ok(record) if record.owner.alive() => {}
            Ok(record) => {
                remove(&record)?;
                swept.push(record.name);
            }
            // A directory is made and its record written under the lock, so without a record its maker died between the two.
            Err(LabError::File { .. }) => remove_dir(&dir)?,
            // A record that this version cannot read belongs to another version; it is that version's to remove.
            Err(_) => {}
        }
    }
    Ok(swept)
}

/// Ends all processes of a lab and removes its files.
pub(crate) fn remove(record: &Record) -> Result<(), LabError> {
    cgroup::destroy(&record.cgroup_root())?;
    remove_dir(&record.dir)
}

fn remove_dir(dir: &Path) -> Result<(), LabError> {
    // Mounts of a host go with its last process, which is a moment after that process was killed.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                if Instant::now() > deadline {
                    return Err(LabError::file("remove", dir)(error));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => return Ok(()),
        }
    }
}

/// Makes the directory and record of a new lab, owned by the calling process until its keeper takes over. The lab runs on a
/// copy of the program, so that a build in between does not change it.
pub(crate) fn allocate(spec: &Spec, program: &Path) -> Result<Record, LabError> {
    let state = spec.state_dir();
    fs::create_dir_all(&state).map_err(LabError::file("create", &state))?;
    let state = fs::canonicalize(&state).map_err(LabError::file("find", &state))?;
    let lock = lock(&state)?;
    sweep(&state, &lock)?;
    let labs = records(&state);
    let taken = |number: u8| labs.iter().any(|lab| lab.number == number);
    let number = (0..=u8::MAX)
        .find(|number| !taken(*number))
        .ok_or_else(|| LabError::Spec { reason: "256 labs are up".to_owned() })?;
    let name = spec.name.clone().unwrap_or_else(|| format!("lab-{number}"));
    if labs.iter().any(|lab| lab.name == name) {
        return Err(LabError::NameTaken { name });
    }
    let mut id = [0_u8; 4];
    getrandom::fill(&mut id).map_err(|error| LabError::Spec { reason: format!("no randomness for an id: {error}") })?;
    let dir = state.join(&name);
    let make = |path: &Path| fs::create_dir_all(path).map_err(LabError::file("create", path));
    make(&dir)?;
    let owner = Owner::of(std::process::id())
        .ok_or_else(|| LabError::Spec { reason: "/proc does not show this process".to_owned() })?;
    let record = Record {
        version: VERSION,
        id: format!("{:08x}", u32::from_be_bytes(id)),
        number,
        owner,
        program: dir.join("lab"),
        ready: false,
        bridge_pid: 0,
        operator: OperatorRecord {
            address: Record::address(number, 2),
            pid: 0,
            home: dir.join("operator/home"),
            bin: dir.join("operator/bin"),
        },
        hosts: (1_u8..).zip(&spec.hosts).map(|(place, engine)| host(&dir, number, place, *engine, spec)).collect(),
        registry: spec.registry.then(|| RegistryRecord {
            address: format!("{}:{REGISTRY_PORT}", Record::address(number, 1)),
            storage: dir.join("registry"),
        }),
        rtt_ms: spec.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
        ssh_config: dir.join("ssh/config"),
        env: dir.join("env.sh"),
        binds: spec.binds.clone(),
        disk: spec.disk,
        name,
        dir,
    };
    record.save()?;
    // Copied by another process: were the file open for writing here while another thread forks, its child would hold it open
    // for a moment, and nobody could run it ("text file busy").
    run(&mut command("cp", [program, record.program.as_path()]))?;
    make(&record.operator.home)?;
    make(&record.operator.bin)?;
    make(&record.dir.join("ssh"))?;
    for host in &record.hosts {
        make(&host.dir)?;
    }
    Ok(record)
}

fn host(lab: &Path, number: u8, place: u8, engine: Engine, spec: &Spec) -> HostRecord {
    let name = format!("{}-{place}", engine.name());
    let (address, relay) = (Record::address(number, 10 + place), Record::address(number, 110 + place));
    let place = usize::from(place);
    let rootless = spec.rootless.contains(&place);
    let through = spec.behind.iter().find(|(hidden, _)| *hidden == place).map(|(_, through)| *through);
    // A host behind another is as far away as that one; a relay of its own would be a way around it.
    let relayed = spec.rtt.is_some() && through.is_none();
    HostRecord {
        address,
        ssh_address: if relayed { relay } else { address },
        user: if spec.sudo.contains(&place) || rootless { ssh::USER.to_owned() } else { "root".to_owned() },
        rootless,
        through: through.map(|place| format!("{}-{place}", spec.hosts[place - 1].name())),
        engine,
        pid: 0,
        boots: 0,
        dir: lab.join("hosts").join(&name),
        name,
    }
}
