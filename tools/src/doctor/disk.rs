//! The directory, its file system, and the device under it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};
use nix::sys::statvfs::statvfs;
use saltern::probe;

use super::{Check, Status};
use crate::human;

pub(super) const DIRECT_IO: &str = "O_DIRECT";

const FILE_SYSTEM: &str = "file system";

/// Share of the disk below which file systems get slow at finding room.
const FREE_LOW: f64 = 0.05;

pub(super) fn checks(dir: &Path) -> Vec<Check> {
    let mount = fs::read_to_string("/proc/self/mountinfo").ok().and_then(|table| Mount::find(&table, dir));
    let mut checks = match probe::directory(dir) {
        Ok(volume) => {
            vec![file_system(&volume, mount.as_ref()), direct_io(&volume), attributes(&volume), write_zeroes(&volume)]
        }
        Err(error) => {
            let advice = "an engine has to be able to create files here; mount it writable, or change its owner";
            vec![Check::new(Status::Fail, FILE_SYSTEM, error.to_string(), advice)]
        }
    };
    checks.extend(device(dir, mount.as_ref()));
    checks.extend(space(dir));
    checks
}

fn file_system(volume: &saltern::MediumStatus, mount: Option<&Mount>) -> Check {
    let name = volume.file_system.as_str();
    let value = mount.map_or_else(|| name.to_owned(), |mount| format!("{name} on {} ({})", mount.point, mount.options));
    if mount.is_some_and(|mount| mount.options.split(',').any(|option| option == "data=journal")) {
        return Check::new(
            Status::Warn,
            FILE_SYSTEM,
            value,
            "data=journal writes everything twice: mount with data=ordered",
        );
    }
    let warn = |advice: &str| Check::new(Status::Warn, FILE_SYSTEM, value.clone(), advice);
    match name {
        "ext4" if volume.lacks_journal => warn(
            "made without a journal: a power cut may lose or mix up names, and new files are slow for a minute after many \
             were deleted; `tune2fs -O has_journal` on the unmounted device adds one",
        ),
        "ext4" | "xfs" => Check::ok(FILE_SYSTEM, value),
        "btrfs" | "zfs" | "bcachefs" => warn("copies on write: ext4 or xfs is faster for a cache"),
        "tmpfs" | "ramfs" => warn("this is memory, and gone after a reboot: choose a directory on a disk"),
        "overlayfs" | "overlay" => warn("a container's overlay: mount a volume of the host's ext4 or xfs"),
        "nfs" | "cifs" | "smb" | "ceph" | "fuse" | "9p" => warn("not a local disk: choose a directory on local NVMe"),
        _ => Check::new(Status::Note, FILE_SYSTEM, value, "ext4 and xfs are what the engine is measured on"),
    }
}

fn direct_io(volume: &saltern::MediumStatus) -> Check {
    if !volume.direct_io {
        let advice = "loads and stores go through the page cache: choose ext4 or xfs on a local disk";
        return Check::new(Status::Warn, DIRECT_IO, "not taken by this file system", advice);
    }
    let (memory, offset) = (volume.memory_align_bytes, volume.offset_align_bytes);
    let value = format!("addresses in multiples of {memory} bytes, offsets and lengths of {offset}");
    if offset > 4096 {
        let advice = format!("objects whose size is no multiple of {offset} have a tail that is copied");
        return Check::new(Status::Note, DIRECT_IO, value, advice);
    }
    Check::ok(DIRECT_IO, value)
}

fn attributes(volume: &saltern::MediumStatus) -> Check {
    const ITEM: &str = "user attributes";
    if volume.user_attributes {
        return Check::ok(ITEM, "taken: objects have checksums");
    }
    let advice = "integrity is off here, so wrong bytes are not noticed: choose ext4 or xfs";
    Check::new(Status::Warn, ITEM, "not taken by this file system", advice)
}

fn write_zeroes(volume: &saltern::MediumStatus) -> Check {
    const ITEM: &str = "write zeroes";
    if volume.write_zeroes {
        let advice =
            "`write_zeroes` in the engine's configuration may make new files cheaper: compare with `saltern bench`";
        return Check::new(Status::Note, ITEM, "FALLOC_FL_WRITE_ZEROES works", advice);
    }
    // Nothing that anybody can change, and what the engine is measured on.
    Check::ok(ITEM, "FALLOC_FL_WRITE_ZEROES does not work here; not needed")
}

/// The block device, where there is one under the directory.
fn device(dir: &Path, mount: Option<&Mount>) -> Option<Check> {
    const ITEM: &str = "device";
    let device = fs::metadata(dir).ok()?.dev();
    let at = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    // A partition's queue is that of its disk.
    let queue = [format!("{at}/queue"), format!("{at}/../queue")].into_iter().find(|path| Path::new(path).exists())?;
    let read = |name: &str| fs::read_to_string(format!("{queue}/{name}")).map(|text| text.trim().to_owned());
    let (is_rotational, schedulers) = (read("rotational").ok()? == "1", read("scheduler").unwrap_or_default());
    let scheduler = schedulers.split(['[', ']']).nth(1).unwrap_or("none").to_owned();
    let requests = read("nr_requests").unwrap_or_default();
    let source = mount.map_or_else(|| "block device".to_owned(), |mount| mount.source.clone());
    let value = format!("{source}, scheduler {scheduler}, {requests} requests");
    Some(match scheduler.as_str() {
        // Virtual disks say that they turn; only what also looks like a disk is believed.
        _ if is_rotational && !source.contains("/vd") => Check::new(
            Status::Warn,
            ITEM,
            format!("{value}, rotational"),
            "a cache on a spinning disk is slow: use NVMe",
        ),
        "none" | "mq-deadline" => Check::ok(ITEM, value),
        _ => {
            let advice = format!("`echo none > {queue}/scheduler` saves CPU on NVMe");
            Check::new(Status::Note, ITEM, value, advice)
        }
    })
}

fn space(dir: &Path) -> Vec<Check> {
    let Ok(stat) = statvfs(dir) else { return Vec::new() };
    let (free, all) = (stat.blocks_available(), stat.blocks());
    let bytes = |blocks| human::size(blocks * stat.fragment_size());
    let value = format!("{} of {}", bytes(free), bytes(all));
    let is_low = (free as f64) < all as f64 * FREE_LOW;
    let advice = "nearly full disks are slow, and stores will be refused: free some room";
    let room =
        if is_low { Check::new(Status::Warn, "free space", value, advice) } else { Check::ok("free space", value) };
    let (free, all) = (stat.files_available(), stat.files());
    // Some file systems make inodes as they need them, and report none.
    if all == 0 {
        return vec![room];
    }
    let value = format!("{} of {}", human::count(free), human::count(all));
    let is_low = (free as f64) < all as f64 * FREE_LOW;
    let advice = "an object is a file: make the file system with more inodes, or delete files";
    vec![
        room,
        if is_low { Check::new(Status::Warn, "free inodes", value, advice) } else { Check::ok("free inodes", value) },
    ]
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: String,
    options: String,
    source: String,
}

impl Mount {
    /// The mount that a canonical path is on: the longest prefix, and of equals the last, which covers the others.
    fn find(table: &str, path: &Path) -> Option<Self> {
        table.lines().filter_map(Self::parse).filter(|mount| path.starts_with(&mount.point)).fold(
            None,
            |best: Option<Self>, mount| match best {
                Some(best) if best.point.len() > mount.point.len() => Some(best),
                _ => Some(mount),
            },
        )
    }

    /// `id parent major:minor root point options [optional]... - type source super-options`.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(4);
        let (point, mut options) = (unescape(before.next()?), before.next()?.to_owned());
        let mut after = after.split(' ').skip(1);
        let source = unescape(after.next()?);
        for option in after.next().unwrap_or_default().split(',') {
            if !option.is_empty() && !options.split(',').any(|known| known == option) {
                options.push(',');
                options.push_str(option);
            }
        }
        Some(Self { point, options, source })
    }
}

/// Blanks in names are written as `\040`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_path_is_the_longest_and_last() {
        let table = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
28 27 0:24 / /mnt/a\\040b rw shared:7 master:2 - xfs /dev/sdb rw,noquota
29 27 0:25 / /mnt ro - tmpfs none rw
30 27 0:26 / /mnt rw - btrfs /dev/sdc rw
broken line
";
        let find = |path: &str| Mount::find(table, Path::new(path)).unwrap();
        assert_eq!(find("/home").options, "rw,relatime,discard");
        assert_eq!((find("/mnt/a b/c").source, find("/mnt/a b").options), ("/dev/sdb".into(), "rw,noquota".into()));
        assert_eq!(find("/mnt/other").source, "/dev/sdc");
        assert_eq!(find("/mntx").source, "/dev/vda");
        assert_eq!(Mount::find("", Path::new("/")), None);
    }
}
