//! Restarts on a directory of many sparse objects, without a snapshot and from one, after a kill and after a close, beside what reading the names and sizes alone costs.
//!
//!     cargo run --release -p saltern-bench --example restart -- DIR [OBJECTS [ROUNDS]]
//!
//! DIR is filled at the first run and kept. As root, `--cold` drops the kernel's names and inodes before each step. Prints one line a
//! round, in seconds; `cpu` is what all threads of the step before it have used.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use nix::dir::{Dir, OwningIter};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::time::TimeVal;
use saltern::{Config, Engine, Layout, ObjectKey, kv_rank};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const OBJECT_BYTES: u64 = 65_536;
const THREADS: usize = 2;
const NAMES: usize = 256;
/// Keys of one lookup.
const BATCH: u64 = 32;

fn main() -> Result<()> {
    let (flags, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let is_cold = flags.iter().any(|flag| flag == "--cold");
    let dir = PathBuf::from(words.first().ok_or("usage: restart DIR [OBJECTS [ROUNDS]] [--cold]")?);
    let number = |at: usize, default| words.get(at).map_or(Ok(default), |word| word.parse());
    let (objects, rounds) = (number(1, 1_000_000)?, number(2, 3)?);
    fill(&dir, objects)?;
    println!("{objects} objects of {OBJECT_BYTES} bytes, {}", if is_cold { "cold" } else { "warm" });
    println!("                   no snapshot     after a kill                     after a close");
    println!("statx_s    cpu    all_s  ratio  first_s  truth_s    cpu  ratio  first_s  truth_s    cpu  ratio  close_s");
    for _ in 0..rounds {
        let (statx, statx_cpu, names) = timed(is_cold, || read_sizes(&dir))?;
        std::fs::remove_file(dir.join(".saltern/index"))?;
        let (plain, _, engine) = timed(is_cold, || Ok(Engine::open(config(&dir))?))?;
        assert_eq!((engine.status().objects, names), (objects, objects), "objects, and names read");
        // It leaves a snapshot.
        engine.close();

        // As an engine that was killed leaves it: every file is looked at.
        for mark in std::fs::read_dir(dir.join(".saltern"))? {
            let mark = mark?;
            if mark.file_name().to_string_lossy().starts_with("closed-") {
                std::fs::remove_file(mark.path())?;
            }
        }
        let killed = restart(&dir, objects, is_cold)?;
        let closed = restart(&dir, objects, is_cold)?;
        println!(
            "{statx:7.3}  {statx_cpu:5.2}  {plain:7.3}  {:5.2}  {:7.3}  {:7.3}  {:5.2}  {:5.2}  {:7.3}  {:7.3}  {:5.2}  {:5.2}  {:7.3}",
            plain / statx,
            killed.first,
            killed.truth,
            killed.cpu,
            killed.truth / statx,
            closed.first,
            closed.truth,
            closed.cpu,
            closed.truth / statx,
            closed.close,
        );
    }
    Ok(())
}

/// Seconds from the start to the first answer and to the truth, and of the close; CPU time until the truth.
struct Restart {
    first: f64,
    truth: f64,
    cpu: f64,
    close: f64,
}

/// Opens from a snapshot, and closes.
fn restart(dir: &Path, objects: u64, is_cold: bool) -> Result<Restart> {
    drop_caches(is_cold)?;
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let engine = Engine::opener(config(dir)).background(true).open()?;
    let keys: Vec<ObjectKey> = (0..BATCH).map(|n| key(n * objects / BATCH)).collect();
    let hits = engine.lookup_and_pin(&keys).wait().hits();
    let first = start.elapsed().as_secs_f64();
    let hinted = engine.status().snapshot.hinted_objects;
    let report = engine.wait_recovered();
    let (truth, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    assert_eq!((hits as u64, report.from_snapshot, report.gone), (BATCH, objects, 0));
    assert!(hinted > 0, "the scan was over before the first lookup");
    let start = Instant::now();
    engine.close();
    Ok(Restart { first, truth, cpu, close: start.elapsed().as_secs_f64() })
}

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.scan_threads = THREADS;
    config
}

fn key(n: u64) -> ObjectKey {
    let mut hash = [0; 32];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (8 * (at % 8))) as u8 ^ at as u8;
    }
    ObjectKey::new("meta-llama/Llama-3.1-8B", kv_rank(1, 0, 1, 0), 0, &hash, "").expect("a valid key")
}

/// Makes what is missing, and a snapshot of it.
fn fill(dir: &Path, objects: u64) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    if dir.join(".saltern/index").exists() {
        return Ok(());
    }
    for n in 0..objects {
        let path = dir.join(Layout::Fs.encode(&key(n))?);
        if !path.exists() {
            File::create(path)?.set_len(OBJECT_BYTES)?;
        }
    }
    Engine::open(config(dir))?.close();
    Ok(())
}

fn drop_caches(is_cold: bool) -> Result<()> {
    if is_cold {
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    }
    Ok(())
}

/// Wall time, CPU time of all threads, and what was done.
fn timed<T>(is_cold: bool, work: impl FnOnce() -> Result<T>) -> Result<(f64, f64, T)> {
    drop_caches(is_cold)?;
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let done = work()?;
    Ok((start.elapsed().as_secs_f64(), cpu_seconds()? - cpu, done))
}

/// What this process has used so far.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Reads all names, and looks at each file: what no scan can do without. Names by turns, files side by side.
fn read_sizes(dir: &Path) -> Result<u64> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(dir, flags, Mode::empty())?;
    let names = Mutex::new(Dir::from_fd(nix::fcntl::open(dir, flags, Mode::empty())?)?.into_iter());
    let work = || -> Result<u64> {
        let mut files = 0;
        loop {
            let mut listing = names.lock().map_err(|_| "poisoned")?;
            let chunk = next_chunk(&mut listing)?;
            drop(listing);
            if chunk.is_empty() {
                return Ok(files);
            }
            for name in chunk {
                let stat = fstatat(&fd, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                files += u64::from(stat.st_size == OBJECT_BYTES as i64);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "panicked")?).sum()
    })
}

fn next_chunk(names: &mut OwningIter) -> Result<Vec<std::ffi::CString>> {
    names.by_ref().take(NAMES).map(|entry| Ok(entry?.file_name().to_owned())).collect()
}
