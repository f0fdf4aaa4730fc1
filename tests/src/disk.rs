//! What is really in a volume's directory, found with plain file operations.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use saltern::steps::Steps;
use saltern::{AdapterUsage, Engine, Layout, ObjectKey, VolumeStatus};

use crate::wait::until;

/// Where unfinished stores are, in the volume's directory.
pub const TMP: &str = ".saltern/tmp";

/// Where files are that are kept to be overwritten, in the volume's directory.
const SPARES: &str = ".saltern/spares";

/// The object files of a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Path relative to the directory, and length of the file.
    pub files: BTreeMap<String, u64>,
    /// Bytes by salt; salts without bytes do not appear.
    pub bytes_by_salt: BTreeMap<String, u64>,
    /// Bytes of all object files.
    pub bytes: u64,
    /// Whatever else there is, directories of the layout excepted.
    pub others: Vec<PathBuf>,
}

impl Disk {
    /// Walks the directory.
    pub fn read(dir: &Path, layout: Layout) -> Self {
        let mut disk = Self::default();
        let depth = if layout == Layout::NixlSharded { 2 } else { 0 };
        disk.walk(dir, Path::new(""), layout, depth);
        disk
    }

    /// Adds what another directory holds.
    ///
    /// # Panics
    /// When a name is in both.
    pub fn add(&mut self, other: Self) {
        for (salt, bytes) in other.bytes_by_salt {
            *self.bytes_by_salt.entry(salt).or_default() += bytes;
        }
        for (name, bytes) in other.files {
            assert_eq!(self.files.insert(name.clone(), bytes), None, "{name} is in two directories");
        }
        self.bytes += other.bytes;
        self.others.extend(other.others);
    }

    fn walk(&mut self, dir: &Path, below: &Path, layout: Layout, depth: usize) {
        for entry in fs::read_dir(dir.join(below)).expect("readdir") {
            let entry = entry.expect("readdir");
            let path = below.join(entry.file_name());
            if path == Path::new(".saltern") {
                continue;
            }
            // A file may vanish while the directory is walked.
            let Ok(metadata) = entry.metadata() else { continue };
            let salt = path.to_str().and_then(|name| salt_of(layout, name));
            match salt {
                Some(salt) if metadata.is_file() => {
                    if metadata.len() > 0 {
                        *self.bytes_by_salt.entry(salt.to_owned()).or_default() += metadata.len();
                    }
                    self.bytes += metadata.len();
                    self.files.insert(path.to_str().expect("parsed as text").to_owned(), metadata.len());
                }
                _ if metadata.is_dir() && depth > 0 => self.walk(dir, &path, layout, depth - 1),
                _ => self.others.push(path),
            }
        }
    }
}

/// The salt in a file's name, or `None` when it is no object's.
fn salt_of(layout: Layout, path: &str) -> Option<&str> {
    let name = match layout {
        Layout::NixlSharded => path.rsplit_once('/')?.1,
        _ => path,
    };
    let (fields, salt) = match layout {
        Layout::Fs | Layout::Fs3 => {
            let (least, mut parts) = (if layout == Layout::Fs { 4 } else { 3 }, name.strip_suffix(".data")?.split('@'));
            let fields = parts.by_ref().take(least).count();
            (fields == least, parts.next())
        }
        _ => {
            let stem = name.strip_suffix(".bin")?;
            let (key, salt) = stem.split_once('@').map_or((stem, None), |(key, salt)| (key, Some(salt)));
            (key.split('_').count() >= if layout == Layout::Nixl3 { 3 } else { 4 }, salt)
        }
    };
    fields.then(|| salt.unwrap_or(""))
}

/// The path of a key's file relative to the volume, written down a second time, without the engine's codecs.
pub fn file_name(layout: Layout, key: &ObjectKey) -> String {
    let hash: String = key.chunk_hash().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let salt = if key.cache_salt().is_empty() { String::new() } else { format!("@{}", key.cache_salt()) };
    let (rank, group) = (key.kv_rank(), key.object_group_id());
    let fs = key.model_name().replace('/', "-SEP-");
    let nixl = key.model_name().replace('/', "--");
    match layout {
        Layout::Fs => format!("{fs}@0x{rank:08x}@{group:x}@{hash}{salt}.data"),
        Layout::Fs3 => format!("{fs}@0x{rank:08x}@{hash}{salt}.data"),
        Layout::Nixl => format!("{nixl}_{rank:08x}_{group:x}_{hash}{salt}.bin"),
        Layout::Nixl3 => format!("{nixl}_{rank:08x}_{hash}{salt}.bin"),
        Layout::NixlSharded => {
            let second = hash.get(2..4).map(|pair| format!("{pair}/")).unwrap_or_default();
            format!("{}/{second}{nixl}_{rank:08x}_{group:x}_{hash}{salt}.bin", &hash[..2])
        }
    }
}

/// Names of the unfinished stores in a volume.
pub fn unfinished(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join(TMP)) else { return Vec::new() };
    entries.map(|entry| entry.expect("readdir").path()).collect()
}

/// Sizes of the files that are kept to be overwritten.
fn spares(dir: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(dir.join(SPARES)) else { return Vec::new() };
    entries.map(|entry| entry.and_then(|entry| entry.metadata()).expect("readdir").len()).collect()
}

/// Whether engines that close are left unchecked.
static IS_UNCHECKED: AtomicBool = AtomicBool::new(false);

/// From now on engines of this process are not checked when they close: for suites that break the disk below them.
pub fn leave_books_unchecked() {
    IS_UNCHECKED.store(true, Ordering::Relaxed);
}

/// Adds a check to the steps of an engine: when it closes, what it says of each salt is what is on disk.
pub fn checked(steps: Steps) -> Steps {
    steps.and_at_close(|dirs, layout, usage| {
        // A test that has failed already says more.
        if !std::thread::panicking() && !IS_UNCHECKED.load(Ordering::Relaxed) {
            let mut disk = Disk::default();
            dirs.iter().for_each(|dir| disk.add(Disk::read(dir, layout)));
            assert_eq!(by_salt(usage), disk.bytes_by_salt, "usage by salt at close, and what is on disk");
        }
    })
}

fn by_salt(usage: &AdapterUsage) -> BTreeMap<String, u64> {
    usage.bytes_by_salt.iter().map(|(salt, bytes)| (salt.to_string(), *bytes)).collect()
}

/// Checks an idle engine's accounts against the directory, by salt and in total; gives what is on disk.
pub fn assert_books(engine: &Engine, dir: &Path, layout: Layout) -> Disk {
    let disk = assert_books_of(engine, &[dir.to_owned()], layout);
    assert_eq!(engine.status().objects, disk.files.len() as u64, "objects, and files on disk");
    disk
}

/// As [`assert_books`], of an engine over several directories: each by itself, and all together.
pub fn assert_books_of(engine: &Engine, dirs: &[PathBuf], layout: Layout) -> Disk {
    until("no object is queued", || engine.status().queued_objects == 0);
    until("no byte is reserved", || engine.status().reserved_bytes == 0);
    let (usage, status) = (engine.usage(), engine.status());
    let mut disk = Disk::default();
    for dir in dirs {
        let one = Disk::read(dir, layout);
        let is_it = |volume: &&VolumeStatus| status.volumes.len() == 1 || Path::new(&volume.medium.dir) == dir;
        let volume = status.volumes.iter().find(is_it).expect("one of the engine's");
        assert_eq!((volume.used_bytes, volume.reserved_bytes), (one.bytes, 0), "{}", dir.display());
        let spares = spares(dir);
        let counted = (volume.spares.count, volume.spares.bytes);
        assert_eq!(counted, (spares.len() as u64, spares.iter().sum()), "spares of {}", dir.display());
        assert!(volume.spares.bytes <= volume.spares.limit_bytes, "{:?}", volume.spares);
        disk.add(one);
    }
    assert_eq!(by_salt(&usage), disk.bytes_by_salt, "usage by salt, and what is on disk");
    assert_eq!(usage.total_bytes_used, disk.bytes, "usage, and what is on disk");
    // A removal gives its bytes back before its entry goes, and whoever waited for the bytes may be here first.
    until("there are as many objects as files on disk", || {
        let status = engine.status();
        status.objects + status.latent_objects == disk.files.len() as u64
    });
    assert_eq!(status.used_bytes, disk.bytes, "status, and what is on disk");
    assert_eq!(status.counters.ledger_underflows, 0);
    assert!(engine.salts(0, usize::MAX).salts.iter().all(|salt| salt.underflows == 0), "underflows of a salt");
    let all = status.volumes.iter().map(|volume| volume.spares.bytes).sum::<u64>();
    assert_eq!(status.spares.bytes, all, "spares");
    disk
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::varied;

    #[test]
    fn names_and_salts_agree() {
        for layout in Layout::ALL {
            for key in varied(layout) {
                let name = file_name(layout, &key);
                assert_eq!(salt_of(layout, &name), Some(key.cache_salt()), "{layout}: {name}");
            }
            for name in ["README", "x.data", "x.bin", "a@b.data", "lost+found/x"] {
                assert_eq!(salt_of(layout, name), None, "{layout}: {name}");
            }
        }
    }
}
