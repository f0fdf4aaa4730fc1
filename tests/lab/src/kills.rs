//! SIGKILL under load on a slow disk: writes outlive the process. The successor is started at once; nothing of the dead process
//! lands in a file that it uses, because the owner's lock is held by what is in flight.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use saltern::Engine;
use saltern_power::trouble::{Call, Rule, Trouble};
use saltern_power::{Disk, FileSystem, Lab};
use saltern_tests::kill::{Killer, Volume};
use saltern_tests::{WAIT_MAX, config, key, payload, put, remove, until};

use crate::child::{HOLDING, KILLED};
use crate::context::Context;
use crate::table::Row;

/// Kills on one file system.
const KILLS: (u64, u64) = (100, 1000);

/// The volume is another one after so many kills: of twenty volumes the first eighteen have every mode with every durability and
/// integrity; every layout is among them.
const KILLS_PER_VOLUME: u64 = 5;

/// Kills that look at the lock.
const LOCKS: (u64, u64) = (6, 60);

/// How long a write takes while the lock is looked at.
const HELD: Duration = Duration::from_millis(1200);

/// Writes of a dead process that have to be on their way when the lock is looked at: more than a journal makes.
const HELD_WRITES: u64 = 4;

fn delay(ms: u64, per_million: u32) -> Rule {
    Rule { call: Call::Write, trouble: Trouble::Delay(Duration::from_millis(ms)), per_million }
}

/// A file system on a disk that can be slow.
fn slow_disk(cx: &Context, file_system: FileSystem) -> Result<(Lab, Disk, PathBuf), saltern_power::Error> {
    let lab = cx.lab(&[file_system])?;
    let image = lab.make_image("slow", file_system)?;
    let mut disk = lab.start_plain_disk(&image)?;
    let root = disk.mount(file_system)?;
    Ok((lab, disk, root))
}

/// Kills at random moments, in every mode.
pub fn run(cx: &Context, file_system: FileSystem) -> Row {
    let mut row = Row::new(format!(
        "kills on a slow disk, {file_system}: fresh, steady at capacity and delete-heavy; each with every durability and integrity; every layout"
    ));
    let (lab, mut disk, root) = match slow_disk(cx, file_system) {
        Ok(stage) => stage,
        Err(error) => return row.stopped(&error),
    };
    let program = cx.program.clone();
    let journals = match lab.dir("journals") {
        Ok(journals) => journals,
        Err(error) => return row.stopped(&error),
    };
    let mut killer = Killer::new(&journals, move || {
        let mut command = Command::new(&program);
        command.arg(KILLED);
        command
    });
    let mut rng = StdRng::seed_from_u64(cx.seed);
    // Most writes are fast, some outlive the process, few by far.
    let rules = [delay(250, 10_000), delay(30, 60_000)];
    if let Err(error) = disk.served.trouble(cx.seed, &rules) {
        row.bad(error);
    }
    let (mut spares, mut outlived) = (0, 0);
    for round in 0..cx.times(KILLS.0, KILLS.1) {
        let volume = Volume::numbered(&root, (round / KILLS_PER_VOLUME) as usize);
        if round % KILLS_PER_VOLUME == 0 {
            killer.begin();
        }
        row.cases += 1;
        row.faults += 1;
        let after = Duration::from_millis(rng.random_range(1..=120));
        let served = &disk.served;
        let landed = || until("nothing is on its way", || served.count().is_ok_and(|(_, held)| held == 0));
        let killed = catch_unwind(AssertUnwindSafe(|| {
            killer.kill(&volume, &mut rng, after);
            outlived += u64::from(served.count().is_ok_and(|(_, held)| held > 0));
            killer.check(&volume, &mut rng, landed)
        }));
        match killed {
            Ok(found) => spares += found,
            Err(panic) => {
                row.bad(format!("round {round}, {volume:?}: {}", said(&*panic)));
                break;
            }
        }
        if round % KILLS_PER_VOLUME == KILLS_PER_VOLUME - 1 {
            let _ = fs::remove_dir_all(&volume.dir);
        }
    }
    row.faults += disk.served.count().map_or(0, |(made, _)| made);
    if row.bad.is_empty() && (killer.acknowledged < row.cases || spares == 0) {
        row.bad(format!("the children did little: {} acknowledged, {spares} spares", killer.acknowledged));
    }
    eprintln!("{file_system}: {outlived} of {} killed processes had writes on their way that outlived them", row.cases);
    if row.bad.is_empty() && killer.refused == 0 {
        row.bad("no child was at its capacity");
    }
    if row.bad.is_empty() && outlived == 0 {
        row.bad("no write has outlived its process");
    }
    if let Err(error) = disk.unmount() {
        row.bad(error);
    }
    row.done()
}

/// What a panic has said.
pub(crate) fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// Files of this size, so many of them, are there to be overwritten: only writes into blocks that exist are the device's alone and
/// outlive the process. A write that extends a file has a thread of the kernel's that dies with it.
const HELD_BYTES: usize = 256 << 10;
const HELD_FILES: u32 = 32;

/// The child: says when it is ready, and when it hears a line, it overwrites spares until it is killed.
///
/// # Panics
/// When it cannot.
pub fn hold(dir: &Path) {
    let engine = Engine::open(config(dir)).expect("open");
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).expect("a line");
    let batch = (1000..1000 + HELD_FILES).map(|n| (key(n), payload(n.into(), HELD_BYTES).into())).collect();
    let _ = engine.store(batch).wait();
    // Not before it is killed.
    std::thread::sleep(WAIT_MAX);
}

/// Leaves spares, which are clean for the next engine.
fn leave_spares(dir: &Path) -> Result<(), String> {
    let engine = Engine::open(config(dir)).map_err(|error| error.to_string())?;
    for n in 0..HELD_FILES {
        put(&engine, &key(n), &payload(n.into(), HELD_BYTES)).map_err(|error| error.to_string())?;
    }
    for n in 0..HELD_FILES {
        remove(&engine, &key(n)).map_err(|error| error.to_string())?;
    }
    let spares = engine.status().spares.count;
    engine.close();
    if spares == u64::from(HELD_FILES) { Ok(()) } else { Err(format!("{spares} spares of {HELD_FILES} files")) }
}

/// The lock of a dead process, looked at: it is held until the last of its writes has landed.
pub fn lock(cx: &Context) -> Row {
    let mut row = Row::new("the owner's lock after a kill: held until the dead process's writes have landed");
    let (_lab, mut disk, root) = match slow_disk(cx, FileSystem::Ext4) {
        Ok(stage) => stage,
        Err(error) => return row.stopped(&error),
    };
    for round in 0..cx.times(LOCKS.0, LOCKS.1) {
        row.cases += 1;
        let dir = root.join(format!("volume-{round}"));
        match look_at_lock(cx, &disk, &dir) {
            Ok(held) => row.faults += held,
            Err(why) => row.bad(format!("round {round}: {why}")),
        }
    }
    if let Err(error) = disk.unmount() {
        row.bad(error);
    }
    row.done()
}

/// Gives how many writes were on their way when the process died.
fn look_at_lock(cx: &Context, disk: &Disk, dir: &Path) -> Result<u64, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let held = || disk.served.count().map(|(_, held)| held).map_err(|error| text(&error));
    leave_spares(dir)?;
    let mut child = Command::new(&cx.program)
        .arg(HOLDING)
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| text(&error))?;
    let (mut stdin, stdout) = child.stdin.take().zip(child.stdout.take()).ok_or("the child has no pipes")?;
    BufReader::new(stdout).read_line(&mut String::new()).map_err(|error| text(&error))?;
    disk.served.trouble(cx.seed, &[delay(HELD.as_millis() as u64, 1_000_000)]).map_err(|error| text(&error))?;
    writeln!(stdin).map_err(|error| text(&error))?;
    let start = Instant::now();
    while held()? < HELD_WRITES && start.elapsed() < WAIT_MAX {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().and_then(|()| child.wait()).map_err(|error| text(&error))?;
    let before = held()?;
    if before < HELD_WRITES {
        disk.served.trouble(cx.seed, &[]).map_err(|error| text(&error))?;
        return Err(format!("{before} writes on their way when the process was gone, not {HELD_WRITES}"));
    }
    let path = dir.join(".saltern/lock");
    let mut file = File::open(&path).map_err(|error| text(&error))?;
    let first = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    disk.served.trouble(cx.seed, &[]).map_err(|error| text(&error))?;
    file = match first {
        Ok(_) => return Err(format!("the lock was free with {before} writes on their way")),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(errno.to_string()),
    };
    let _lock = loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((back, Errno::EWOULDBLOCK)) if start.elapsed() < WAIT_MAX => file = back,
            Err((_, errno)) => return Err(format!("the lock: {errno}")),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    // Whatever lands from now on would be seen.
    let there = contents(dir)?;
    while held()? > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    if contents(dir)? != there {
        return Err("something of the dead process has landed after its lock was free".into());
    }
    Ok(before)
}

/// Every file of a volume, finished or not.
fn contents(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, String> {
    let mut found = BTreeMap::new();
    for below in [dir.to_path_buf(), dir.join(".saltern/tmp"), dir.join(".saltern/spares")] {
        for entry in fs::read_dir(&below).map_err(|error| error.to_string())? {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.is_file() {
                found.insert(path.clone(), fs::read(&path).map_err(|error| error.to_string())?);
            }
        }
    }
    Ok(found)
}
