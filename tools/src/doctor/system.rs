//! The kernel, and the limits of this process.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use saltern::probe;
use saltern_bench::machine;

use super::{Check, Status};
use crate::human;

pub(super) const MEMLOCK: &str = "memlock limit";

const MIB: u64 = 1 << 20;

/// Memory that an engine locks and registers by default: its pool. A lent arena comes on top.
const POOL_BYTES: u64 = 64 * MIB;

/// Open files that are plenty for a shard's requests and its cached descriptors.
const OPEN_FILES: u64 = 4096;

/// CAP_IPC_LOCK, as a bit of the capability sets: memlock does not apply.
const CAP_IPC_LOCK: u32 = 14;

pub(super) fn checks() -> Vec<Check> {
    let mut checks = ring();
    checks.extend([memlock(), huge_pages(), open_files()]);
    checks
}

fn ring() -> Vec<Check> {
    const RING: &str = "io_uring";
    let kernel = machine::describe().kernel;
    let report = match probe::ring() {
        Ok(report) => report,
        Err(saltern::Error::RingUnavailable { cause, remedy }) => {
            return vec![Check::ok("kernel", kernel), Check::new(Status::Fail, RING, cause, remedy)];
        }
        Err(error) => {
            return vec![Check::ok("kernel", kernel), Check::new(Status::Fail, RING, error.to_string(), ring_switch())];
        }
    };
    let features = report.features.join(", ");
    let has_deferred = report.features.contains(&"defer-taskrun");
    let ring = if has_deferred {
        Check::ok(RING, features)
    } else {
        Check::new(Status::Warn, RING, features, "Linux 6.1 has defer-taskrun, which saves CPU on each completion")
    };
    let clone = if report.clone_buffers {
        Check::ok("buffer registration", "one, cloned to every shard's ring")
    } else {
        let advice = "Linux 6.13 can clone it; matters with large arenas and several shards";
        Check::new(Status::Note, "buffer registration", "one for each shard's ring", advice)
    };
    vec![Check::ok("kernel", report.kernel), ring, clone]
}

/// What to say when io_uring fails and the engine does not know why.
fn ring_switch() -> String {
    match read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("0") | None => "allow io_uring_setup in the container's seccomp profile".to_owned(),
        Some(value) => format!("kernel.io_uring_disabled is {value}: set it to 0 with sysctl"),
    }
}

fn memlock() -> Check {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    if limit == RLIM_INFINITY {
        return Check::ok(MEMLOCK, "unlimited");
    }
    let value = human::size(limit);
    if has_capability(CAP_IPC_LOCK) {
        return Check::ok(MEMLOCK, format!("{value}, not applied to this user (CAP_IPC_LOCK)"));
    }
    let advice =
        "set `ulimit -l unlimited`, or LimitMEMLOCK=infinity in the service, so that buffers can be registered";
    let status = if limit < POOL_BYTES + POOL_BYTES / 4 { Status::Warn } else { Status::Note };
    Check::new(status, MEMLOCK, value, advice)
}

fn has_capability(bit: u32) -> bool {
    let status = read("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> bit & 1 == 1)
}

fn huge_pages() -> Check {
    const ITEM: &str = "huge pages";
    let page = machine::memory_bytes("Hugepagesize");
    let free = meminfo_count("HugePages_Free");
    let transparent = read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let transparent = transparent.split(['[', ']']).nth(1).unwrap_or("not there");
    let value = format!("{free} free of {}, transparent: {transparent}", human::size(page));
    if page > 0 && free * page >= POOL_BYTES {
        return Check::ok(ITEM, value);
    }
    let pages = POOL_BYTES / page.max(MIB);
    let advice = format!("vm.nr_hugepages={pages} backs the default pool, and saves CPU on large transfers");
    let status = if transparent == "never" { Status::Warn } else { Status::Note };
    Check::new(status, ITEM, value, advice)
}

/// A line of `/proc/meminfo` that is a number of pages.
fn meminfo_count(name: &str) -> u64 {
    let memory = read("/proc/meminfo").unwrap_or_default();
    let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn open_files() -> Check {
    const ITEM: &str = "open files";
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
    let show = |limit| if limit == RLIM_INFINITY { "unlimited".to_owned() } else { human::count(limit) };
    let value = format!("{} (at most {})", show(soft), show(hard));
    match soft {
        soft if soft >= OPEN_FILES => Check::ok(ITEM, value),
        soft if soft >= 256 => Check::new(Status::Note, ITEM, value, "`ulimit -n 65536` lets more files stay open"),
        _ => Check::new(Status::Warn, ITEM, value, "set `ulimit -n 65536`: loads may fail for want of descriptors"),
    }
}

/// A file of the kernel's, without blanks around it.
pub(super) fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
