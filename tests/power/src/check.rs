//! What is found on a crash image after the file system has recovered it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use saltern::{Config, Layout};

use crate::content::{compare, key_of, number_of, size_of};
use crate::engine::Running;
use crate::error::{Doing, Result};
use crate::history::History;
use crate::log::Position;
use crate::workload::{Deleted, Loaded, Stored, Target};

/// Objects stored by the check start here.
const LATER_NUMBER: u64 = 1 << 40;

/// The engine's own directory in a volume.
pub(crate) const OWN_DIR: &str = ".saltern";

/// Objects that are stored after the recovery, and deleted.
const LATER_OBJECTS: u64 = 8;

/// The findings on one image, each as text.
#[derive(Debug, Default)]
pub struct Findings {
    /// Objects found.
    pub objects: usize,
    /// Files with an object's name and other bytes.
    pub bad_files: Vec<String>,
    /// Wrong bytes that the engine has loaded.
    pub bad_loads: Vec<String>,
    /// Objects that were acknowledged before the cut and are not there.
    pub missing: Vec<u64>,
    /// Objects that the engine holds, but does not load.
    pub refused: Vec<String>,
    /// The engine has known that the machine went down, and checked objects before their first use.
    pub is_doubted: bool,
    /// Anything else: wrong sums, failed stores, a damaged file system.
    pub faults: Vec<String>,
}

impl Findings {
    /// Compares each file with the key in its name; gives the objects with their sizes.
    pub(crate) fn check_files(
        &mut self,
        volume: &Path,
        layout: Layout,
        history: &History,
        cut: Position,
    ) -> BTreeMap<u64, u64> {
        let mut found = BTreeMap::new();
        let files = list(volume).unwrap_or_else(|error| {
            self.faults.push(error.to_string());
            BTreeMap::new()
        });
        for (name, bytes) in files {
            let Some(number) = layout.decode(&name).ok().and_then(|key| number_of(&key)) else {
                self.faults.push(format!("a file that nobody has made: {name}"));
                continue;
            };
            if !history.may_be_present(number, cut) {
                self.faults.push(format!("an object from the future: {}", history.tell(number)));
            }
            let contents = match fs::read(volume.join(&name)) {
                Ok(contents) => contents,
                Err(error) => {
                    self.faults.push(format!("read {name}: {error}"));
                    continue;
                }
            };
            if let Some(difference) = compare(number, &contents) {
                let others: Vec<_> = difference.others().map(|other| history.tell(other)).collect();
                self.bad_files.push(format!(
                    "file of {difference} | {} | {}",
                    history.tell(number),
                    others.join(" | ")
                ));
            }
            found.insert(number, bytes);
        }
        self.objects = found.len();
        self.missing = history.acknowledged(cut).into_iter().filter(|number| !found.contains_key(number)).collect();
        found
    }

    /// The objects that are there before an engine has looked.
    pub(crate) fn objects(volume: &Path, layout: Layout) -> Result<Vec<u64>> {
        let number = |name: &String| number_of(&layout.decode(name).ok()?);
        Ok(list(volume)?.keys().filter_map(number).collect())
    }

    /// Opens an engine on the volume, and lets it load everything, and store and delete a little.
    pub(crate) fn check_engine(&mut self, config: Config, files: &BTreeMap<u64, u64>) -> Result<()> {
        let volume = config.dir.clone();
        let running = match Running::open(config) {
            Ok(running) => running,
            Err(error) => {
                self.faults.push(error);
                return Ok(());
            }
        };
        let report = running.0.wait_recovered();
        if report.objects != files.len() as u64 {
            self.faults.push(format!("{} objects recovered, {} files found", report.objects, files.len()));
        }
        self.check_usage(&running, files.values().sum(), "after the recovery");
        let mut by_salt: BTreeMap<String, u64> = BTreeMap::new();
        for (number, bytes) in files {
            *by_salt.entry(key_of(*number).cache_salt().to_owned()).or_default() += bytes;
        }
        let used = running.0.usage().bytes_by_salt;
        if !by_salt.iter().map(|(salt, bytes)| (&**salt, bytes)).eq(used.iter().map(|(salt, bytes)| (&**salt, bytes))) {
            self.faults.push(format!("usage by salt {used:?}, on disk {by_salt:?}"));
        }
        for number in files.keys() {
            match running.load(*number) {
                Ok(Loaded::Right) => {}
                Ok(Loaded::Absent) => self.refused.push(format!("key {number} is absent")),
                Err(error) if error.contains("wrong bytes") => self.bad_loads.push(error),
                Err(error) => self.refused.push(error),
            }
        }
        if self.bad_loads.is_empty() && self.refused.is_empty() {
            self.live_on(&running, files);
        }
        let expected = list(&volume)?.values().sum();
        self.check_usage(&running, expected, "before the close");
        let status = running.0.status();
        self.is_doubted = status.volumes.iter().any(|volume| volume.checks_first_use);
        if !status.is_healthy || status.counters.ledger_underflows > 0 {
            self.faults.push(format!("the engine is not healthy: {:?}", status.problems));
        }
        drop(running);
        let (objects, bytes) = list(&volume)?.values().fold((0, 0), |(objects, sum), bytes| (objects + 1, sum + bytes));
        if (objects, bytes) != (status.objects, expected) {
            self.faults.push(format!(
                "{objects} files of {bytes} bytes after the close, {} of {expected} before",
                status.objects
            ));
        }
        Ok(())
    }

    fn check_usage(&mut self, running: &Running, expected: u64, when: &str) {
        let used = running.0.usage().total_bytes_used;
        if used != expected {
            self.faults.push(format!("{when}: usage {used}, {expected} bytes on disk"));
        }
    }

    /// The engine has to work on what the cut has left; recycled files among it have to be clean.
    fn live_on(&mut self, running: &Running, files: &BTreeMap<u64, u64>) {
        for number in files.keys().take(LATER_OBJECTS as usize) {
            match running.delete(*number) {
                Ok(Deleted::Done) => {}
                Ok(Deleted::InUse) => self.faults.push(format!("key {number} is in use by nobody")),
                Err(error) => self.faults.push(error),
            }
        }
        for number in LATER_NUMBER..LATER_NUMBER + LATER_OBJECTS {
            match running.store(number) {
                Ok(Stored::Done) => {}
                Ok(Stored::Full) => self.faults.push(format!("no room for {} bytes after recovery", size_of(number))),
                Err(error) => self.faults.push(error),
            }
        }
        let kept = files.keys().copied().skip(LATER_OBJECTS as usize).take(LATER_OBJECTS as usize);
        for number in kept.chain(LATER_NUMBER..LATER_NUMBER + LATER_OBJECTS) {
            match running.load(number) {
                Ok(Loaded::Right) => {}
                Ok(Loaded::Absent) => self.faults.push(format!("{} is absent after it was stored", key_of(number))),
                Err(error) => self.bad_loads.push(format!("after later stores: {error}")),
            }
        }
    }

    /// Whether an engine that makes acknowledged objects durable may leave this behind.
    pub fn is_clean(&self, durable: bool) -> bool {
        let lost = durable && !self.missing.is_empty();
        let bad = !self.bad_files.is_empty() || !self.bad_loads.is_empty();
        !bad && self.refused.is_empty() && self.faults.is_empty() && !lost
    }
}

/// The object files of a volume with their sizes, by their paths in it.
fn list(volume: &Path) -> Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    list_into(volume, "", &mut files)?;
    Ok(files)
}

fn list_into(volume: &Path, below: &str, files: &mut BTreeMap<String, u64>) -> Result<()> {
    let what = || format!("list {}/{below}", volume.display());
    for entry in fs::read_dir(volume.join(below)).doing(what())? {
        let entry = entry.doing(what())?;
        let metadata = entry.metadata().doing(what())?;
        let path = format!("{below}{}", entry.file_name().to_string_lossy());
        if metadata.is_file() {
            files.insert(path, metadata.len());
        } else if path != OWN_DIR {
            list_into(volume, &format!("{path}/"), files)?;
        }
    }
    Ok(())
}
