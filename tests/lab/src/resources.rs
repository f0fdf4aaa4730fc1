//! What runs out: space, also where it is reserved, inodes, descriptors, locked memory, memory, the right to use io_uring, the
//! length of files, the right to write. Each is a clear error and a clear status; nothing hangs, nothing is lost, and when
//! there is enough again the engine goes on.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use saltern::{Buffer, Config, Engine, Error, Layout};
use saltern_power::Lab;
use saltern_tests::{WAIT_MAX, assert_books, config, done, get, key, payload, put, remove, unfinished, until};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

use crate::child::LIMITED;
use crate::context::Context;
use crate::kills::said;
use crate::table::Row;

/// What a child can be limited in.
const LIMITS: [&str; 6] = ["descriptors", "locked-memory", "memory", "io-uring", "file-length", ALLOCATION];

/// The one that needs a file system on which files are given their blocks beforehand.
const ALLOCATION: &str = "allocation";

/// Exit code of `timeout --signal=KILL` when the time has passed.
const KILLED: i32 = 137;

/// All cases.
pub fn run(cx: &Context) -> Row {
    let mut row = Row::new(
        "resources: space, inodes, read-only remount, directory gone, descriptors, memory (locked, address space; not by cgroup), io_uring, file length, fallocate",
    );
    match cx.lab(&[saltern_power::FileSystem::Ext4, saltern_power::FileSystem::Xfs]) {
        Ok(lab) => {
            for (name, case) in CASES {
                row.cases += 1;
                row.faults += 1;
                let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&lab)));
                if let Err(panic) = tried {
                    row.bad(format!("{name}: {}", said(&*panic)));
                }
            }
            for limit in LIMITS {
                row.cases += 1;
                row.faults += 1;
                let disk = (limit == ALLOCATION).then(|| Loop::new(&lab, "ext4", 96 << 20, &["-m", "0"]));
                let dir = disk.as_ref().map_or_else(|| lab.path(limit), |disk| disk.at.join("volume"));
                let output = start(cx, limit, &dir);
                if output.status.code() == Some(KILLED) || output.status.signal() == Some(Signal::SIGKILL as i32) {
                    row.bad(format!("{limit}: it hung, or was killed: not done within {WAIT_MAX:?}"));
                } else if !output.status.success() {
                    let text = String::from_utf8_lossy(&output.stderr);
                    row.bad(format!("{limit}: {}: {}", output.status, text.trim()));
                }
            }
        }
        Err(error) => return row.stopped(&error),
    }
    row.done()
}

fn start(cx: &Context, limit: &str, dir: &Path) -> Output {
    let command = if limit == "locked-memory" {
        // Root may lock what it likes, unless this is taken from it.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]).arg(&cx.program);
        command
    } else {
        Command::new(&cx.program)
    };
    // What hangs is a failure, told as such.
    let mut bounded = Command::new("timeout");
    bounded
        .args(["--signal=KILL", &WAIT_MAX.as_secs().to_string()])
        .arg(command.get_program())
        .args(command.get_args());
    bounded.args([LIMITED, limit]).arg(dir).output().expect("the child runs")
}

type Case = fn(&Lab);

const CASES: [(&str, Case); 5] = [
    ("space, ext4", |lab| space(&Loop::new(lab, "ext4", 96 << 20, &["-m", "0"]), 400_000)),
    ("space, xfs", |lab| space(&Loop::new(lab, "xfs", 320 << 20, &[]), 900_000)),
    ("inodes", |lab| space(&Loop::new(lab, "ext4", 96 << 20, &["-N", "64"]), 20_000)),
    ("read-only remount", read_only),
    ("directory removed", removed),
];

/// A file system in a file.
struct Loop {
    at: PathBuf,
}

fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("an ASCII path")
}

impl Loop {
    fn new(lab: &Lab, kind: &str, bytes: u64, options: &[&str]) -> Self {
        let (image, at) = (lab.path("small"), lab.dir("small-mount").expect("a directory"));
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("an image");
        let force: &[&str] = if kind == "ext4" { &["-q", "-F"] } else { &["-q", "-f"] };
        tool(&format!("mkfs.{kind}"), &[force, options, &[text(&image)]].concat());
        let how = if kind == "ext4" { "loop,errors=remount-ro" } else { "loop,nouuid" };
        tool("mount", &["-o", how, text(&image), text(&at)]);
        Self { at }
    }

    /// The name of its device below `/dev`.
    fn device(&self) -> String {
        let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("/proc");
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == self.at.to_str()).expect("it is mounted");
        line.split(' ').next().and_then(|device| device.strip_prefix("/dev/")).expect("a device").to_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        for _ in 0..1000 {
            if Command::new("umount").arg(&self.at).output().is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        eprintln!("{} stays mounted", self.at.display());
    }
}

fn volume(dir: &Path) -> Config {
    let mut config = config(dir);
    config.min_free_bytes = Some(0);
    config
}

/// Fills a file system until nothing fits any more, makes room, and goes on.
fn space(disk: &Loop, bytes: usize) {
    let dir = disk.at.join("volume");
    let engine = Engine::open(volume(&dir)).expect("open");
    let (mut stored, mut refused) = (Vec::new(), 0);
    let mut n = 0;
    while refused < 10 {
        n += 1;
        match put(&engine, &key(n), &payload(n.into(), bytes)) {
            Ok(_) => stored.push(n),
            Err(Error::Full { .. }) => refused += 1,
            Err(error) => panic!("a disk without room says {error}"),
        }
        assert!(n < 20_000, "the disk is never full");
    }
    assert!(!stored.is_empty() && engine.status().counters.stores_refused >= 10);
    let right =
        |engine: &Engine, n: u32| get(engine, &key(n), bytes).expect("it was stored") == payload(n.into(), bytes);
    assert!(stored.iter().all(|n| right(&engine, *n)), "wrong bytes on a full disk");
    assert_books(&engine, &dir, Layout::Fs);
    assert_eq!(unfinished(&dir), Vec::<PathBuf>::new());
    for n in stored.drain(..stored.len() / 2) {
        remove(&engine, &key(n)).expect("deletes work on a full disk");
    }
    n += 1;
    until("there is room again", || put(&engine, &key(n), &payload(n.into(), bytes)).is_ok());
    stored.push(n);
    engine.close();
    let engine = Engine::open(volume(&dir)).expect("open again");
    assert!(engine.status().is_healthy, "{:?}", engine.status().problems);
    assert!(stored.iter().all(|n| right(&engine, *n)), "wrong bytes after a restart");
    assert_books(&engine, &dir, Layout::Fs);
}

/// The file system finds an error and turns read-only.
fn read_only(lab: &Lab) {
    const BYTES: usize = 100_000;
    let disk = Loop::new(lab, "ext4", 96 << 20, &[]);
    let dir = disk.at.join("volume");
    let engine = Engine::open(volume(&dir)).expect("open");
    for n in 0..20 {
        put(&engine, &key(n), &payload(n.into(), BYTES)).expect("store");
    }
    nix::unistd::syncfs(File::open(&disk.at).expect("open")).expect("sync");
    fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", disk.device()), "the lab wants this").expect("sysfs");
    let mut n = 100;
    until("stores are refused for good", || {
        n += 1;
        matches!(put(&engine, &key(n), &payload(n.into(), BYTES)), Err(Error::ReadOnly { .. }))
    });
    let status = engine.status();
    assert!(!status.is_healthy, "a read-only volume is healthy");
    assert!(
        status.volumes[0].read_only.as_deref().is_some_and(|why| why.contains("read-only")),
        "{:?}",
        status.problems
    );
    for n in 0..20 {
        assert!(get(&engine, &key(n), BYTES).expect("loads go on") == payload(n.into(), BYTES));
    }
    assert!(remove(&engine, &key(0)).is_err(), "nothing can be removed there");
    assert_eq!(engine.status().queued_objects, 0);
    engine.close();
    let refused = Engine::open(volume(&dir)).map(|_| ());
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("Read-only")), "{refused:?}");
    let (image, at) = (lab.path("small"), disk.at.clone());
    drop(disk);
    let checked = Command::new("e2fsck").args(["-f", "-p", text(&image)]).output().expect("e2fsck");
    // 1: there was something to correct, as there is after an error of the file system, and it was.
    assert!(checked.status.code().is_some_and(|code| code <= 1), "{checked:?}");
    tool("mount", &["-o", "loop", text(&image), text(&at)]);
    let disk = Loop { at };
    let engine = Engine::open(volume(&disk.at.join("volume"))).expect("open again");
    for n in 0..20 {
        assert!(get(&engine, &key(n), BYTES).expect("it was stored") == payload(n.into(), BYTES));
    }
    engine.close();
}

fn removed(lab: &Lab) {
    let dir = lab.path("removed");
    let engine = Engine::open(volume(&dir)).expect("open");
    put(&engine, &key(1), b"x").expect("store");
    fs::remove_dir_all(&dir).expect("remove");
    let mut n = 1;
    until("stores are refused for good", || {
        n += 1;
        matches!(put(&engine, &key(n), b"x"), Err(Error::ReadOnly { .. }))
    });
    let status = engine.status();
    let says = |what: &str| {
        let mut problems = status.problems.iter();
        problems.any(|problem| problem.contains(&*dir.to_string_lossy()) && problem.contains(what))
    };
    assert!(!status.is_healthy && says("not the directory that was opened"), "{status:?}");
    let reason = status.volumes[0].read_only.as_deref();
    assert_eq!(reason, Some("the directory is not at its path any more"), "{status:?}");
}

/// The child's part: works within a limit.
///
/// # Panics
/// When it cannot, or when what it cannot do is not said clearly.
pub fn limited(limit: &str, dir: &Path) {
    let open_files = || fs::read_dir("/proc/self/fd").expect("/proc").count();
    let before = open_files();
    match limit {
        "descriptors" => descriptors(dir),
        "locked-memory" => {
            setrlimit(Resource::RLIMIT_MEMLOCK, 64 << 10, 64 << 10).expect("setrlimit");
            let engine = works(config(dir));
            let status = engine.status();
            assert_eq!(status.shards[0].fixed_buffers, "none", "{status:?}");
        }
        "memory" => memory(dir),
        "io-uring" => io_uring(dir),
        "file-length" => file_length(dir),
        ALLOCATION => allocation(dir),
        other => panic!("{other} is no limit"),
    }
    until("descriptors are closed", || open_files() <= before);
}

/// Stores and loads a few objects.
fn works(config: Config) -> Engine {
    let engine = Engine::open(config).expect("open");
    for n in 0..20 {
        put(&engine, &key(n), &payload(n.into(), 70_000)).expect("store");
    }
    for n in 0..20 {
        assert!(get(&engine, &key(n), 70_000).expect("load") == payload(n.into(), 70_000));
    }
    engine
}

fn descriptors(dir: &Path) {
    const LIMIT: u64 = 96;
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, LIMIT).expect("setrlimit");
    let mut config = config(dir);
    // More than there can be: the cache gives them back.
    config.open_files = Some(10_000);
    let engine = Engine::open(config).expect("open");
    let objects = 300;
    for n in 0..objects {
        put(&engine, &key(n), &payload(n.into(), 9000)).expect("store");
    }
    let batch = (0..objects).map(|n| (key(n), Buffer::from(vec![0; 9000]))).collect();
    let report = done(engine.load(batch));
    for (n, (result, buffer)) in report.results.iter().zip(&report.buffers).enumerate() {
        assert!(result.is_ok(), "load {n}: {result:?}");
        assert!(buffer.as_ref().is_some_and(|buffer| buffer.as_slice() == payload(n as u64, 9000)), "load {n}");
    }
    // Somebody else takes all that is left: an answer, right or an error.
    let mut others = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        others.push(file);
    }
    for n in 0..objects {
        match get(&engine, &key(n), 9000) {
            Ok(bytes) => assert!(bytes == payload(n.into(), 9000)),
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        }
        let stored = put(&engine, &key(1000 + n), b"x");
        assert!(matches!(stored, Ok(_) | Err(Error::Io { .. })), "{stored:?}");
    }
    drop(others);
    for n in 0..objects {
        assert!(get(&engine, &key(n), 9000).expect("there are descriptors again") == payload(n.into(), 9000));
    }
    assert_books(&engine, dir, Layout::Fs);
}

fn memory(dir: &Path) {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("VmSize");
    let now_bytes: u64 = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10;
    let limit = now_bytes + (400 << 20);
    setrlimit(Resource::RLIMIT_AS, limit, limit).expect("setrlimit");
    let mut large = config(dir);
    large.pool_bytes = 1 << 30;
    let refused = Engine::open(large).map(|_| ());
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("memory")), "{refused:?}");
    let engine = works(config(dir));
    let pool = engine.status().pool;
    let asked = engine.pool().alloc(1 << 30).map(|_| ());
    assert!(matches!(asked, Err(Error::PoolExhausted { .. })), "{asked:?}, {pool:?}");
}

/// From now on this system call gives this error in all threads. Of several errors for one call the last counts.
fn refuse(call: i64, errno: Errno) {
    let filter = SeccompFilter::new(
        std::collections::BTreeMap::from([(call, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().expect("a known architecture"),
    )
    .expect("a valid filter");
    let program: BpfProgram = filter.try_into().expect("a valid filter");
    apply_filter_all_threads(&program).expect("seccomp");
}

/// Through FUSE the engine never asks for blocks beforehand, so this call fails here.
fn allocation(dir: &Path) {
    const BYTES: usize = 70_000;
    let engine = works(config(dir));
    refuse(nix::libc::SYS_fallocate, Errno::EIO);
    for n in 100..110 {
        put(&engine, &key(n), &payload(n.into(), BYTES)).expect("the writes allocate");
    }
    for full in [Errno::ENOSPC, Errno::EDQUOT] {
        refuse(nix::libc::SYS_fallocate, full);
        for n in 200..210 {
            let stored = put(&engine, &key(n), &payload(n.into(), BYTES));
            assert!(matches!(stored, Err(Error::Full { .. })), "{full}: {stored:?}");
            assert!(matches!(get(&engine, &key(n), BYTES), Err(Error::NotFound)), "{full}: {n}");
        }
    }
    for n in (0..20).chain(100..110) {
        assert!(get(&engine, &key(n), BYTES).expect("load") == payload(n.into(), BYTES), "{n}");
    }
    assert_eq!(unfinished(dir), Vec::<PathBuf>::new());
    assert_books(&engine, dir, Layout::Fs);
    assert!(engine.status().is_healthy);
}

fn io_uring(dir: &Path) {
    let open = Engine::open(config(dir)).expect("open while it is allowed");
    put(&open, &key(1), b"x").expect("store");
    refuse(nix::libc::SYS_io_uring_setup, Errno::EPERM);
    // What has a ring goes on.
    assert_eq!(get(&open, &key(1), 1).expect("load"), b"x");
    let refused = Engine::open(config(dir.join("other"))).map(|_| ());
    assert!(matches!(refused, Err(Error::RingUnavailable { .. })), "{refused:?}");
}

fn file_length(dir: &Path) {
    const LIMIT: u64 = 100 << 10;
    // The kernel's signal for it is pending for ever; the write says EFBIG.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().expect("sigmask");
    setrlimit(Resource::RLIMIT_FSIZE, LIMIT, LIMIT).expect("setrlimit");
    let engine = works(config(dir));
    for n in 100..110 {
        let stored = put(&engine, &key(n), &payload(n.into(), 300_000 + n as usize));
        assert!(matches!(stored, Err(Error::Io { .. })), "a file longer than the limit: {stored:?}");
        assert!(matches!(get(&engine, &key(n), 300_000 + n as usize), Err(Error::NotFound)), "{n}");
    }
    assert_eq!(unfinished(dir), Vec::<PathBuf>::new());
    put(&engine, &key(200), &payload(200, 50_000)).expect("what is short enough goes on");
    assert_books(&engine, dir, Layout::Fs);
    assert!(engine.status().is_healthy);
}
