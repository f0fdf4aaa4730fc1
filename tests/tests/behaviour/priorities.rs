//! I/O priorities: which schedulers are told, on loop devices of the test's own. Plain tests: about the device.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::stat::{major, minor};
use saltern::{Engine, IoPriority, Layout};
use saltern_tests::{LoopMount, Unmountable, assert_books, config, get, key, payload, put};

#[test]
fn status_says_whether_the_scheduler_is_told() {
    let mount = match LoopMount::new(env!("CARGO_TARGET_TMPDIR"), "ext4", 64 << 20, &["-q"]) {
        Ok(mount) => mount,
        Err(Unmountable(why)) => return eprintln!("SKIPPED: no file system of its own: {why}"),
    };
    let device = fs::metadata(mount.path()).expect("stat").dev();
    let queue = PathBuf::from(format!("/sys/dev/block/{}:{}/queue/scheduler", major(device), minor(device)));
    let offered = fs::read_to_string(&queue).expect("a block device has a scheduler");
    let _before = Restore { chosen: chosen(&offered).to_owned(), queue: queue.clone() };
    // The mount is dropped after it: the device is ours until then.
    let told = [
        ("none", IoPriority::Auto, false),
        ("none", IoPriority::StoresIdle, false),
        ("mq-deadline", IoPriority::Auto, false),
        ("mq-deadline", IoPriority::StoresIdle, true),
        ("mq-deadline", IoPriority::Off, false),
        ("bfq", IoPriority::Auto, true),
        ("bfq", IoPriority::StoresIdle, true),
        ("bfq", IoPriority::Off, false),
    ];
    for (number, (scheduler, wanted, is_told)) in (0..).zip(told) {
        if !offered.split([' ', '[', ']', '\n']).any(|name| name == scheduler) {
            eprintln!("SKIPPED: this kernel has no {scheduler}");
            continue;
        }
        fs::write(&queue, scheduler).expect("the device is the test's own");
        let mut config = config(mount.path().join("volume"));
        (config.io_priority, config.shards) = (wanted, 2);
        let engine = Engine::open(config).expect("open");
        let status = engine.status();
        assert_eq!(status.volumes[0].medium.io_scheduler.as_deref(), Some(scheduler));
        assert!(status.shards.iter().all(|shard| shard.io_priority == is_told), "{scheduler}, {wanted:?}");
        let content = payload(number.into(), 300_001);
        assert_eq!(put(&engine, &key(number), &content).expect("store"), content.len() as u64);
        assert!(get(&engine, &key(number), content.len()).expect("load") == content, "{scheduler}, {wanted:?}");
        assert_books(&engine, &mount.path().join("volume"), Layout::Fs);
    }
}

/// The name in brackets.
fn chosen(schedulers: &str) -> &str {
    schedulers.split(['[', ']']).nth(1).expect("one is chosen")
}

/// A loop device keeps its scheduler when another file is attached to it.
struct Restore {
    queue: PathBuf,
    chosen: String,
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.queue, &self.chosen) {
            eprintln!("{}: {error}", self.queue.display());
        }
    }
}
