//! Quotas of salts, kept in `.saltern/quotas` so that a restart knows them before anybody sets them again.
//!
//! The file is text, replaced whole at each change (see `saved.rs`):
//!
//! ```text
//! saltern quotas, version 1, crc64 3a1f...        CRC-64/NVME of the rest, 16 hexadecimal digits
//! {
//!   "tenant-1": 1073741824                        JSON: salt to bytes, sorted
//! }
//! ```
//!
//! Several volumes have a file each, and each change is written to all of them, so that quotas outlive any. The newest good one counts
//! at open.
//!
//! A file that is damaged, or of a newer version, is left as it is, and no quota is in force, the configured default
//! included: to guess them would be to evict what a quota protects. Setting one is refused until the file is moved away.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::key::check_salt;
use crate::saved::{self, Envelope};
use crate::sys::stat_at;
use crate::volume::{Directory, STATE_DIR, Volumes, open_dir};

const FILE: &str = "quotas";
const ENVELOPE: Envelope = Envelope { magic: "saltern quotas, version ", version: 1 };

/// Longest file that is read: a million salts of the longest kind.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Bytes by salt.
pub type Quotas = BTreeMap<String, u64>;

/// The quotas that are kept in a directory. Changes nothing, and works while an engine runs on it. Blocks.
///
/// # Errors
/// [`Error::Quotas`] when the file is damaged; [`Error::Io`].
pub fn read(dir: &Path) -> Result<Quotas> {
    match open_dir(&dir.join(STATE_DIR)) {
        Ok(state) => read_from(&state, dir),
        // Without a state directory there are none; a missing directory is another matter.
        Err(Error::Io { errno: nix::errno::Errno::ENOENT, .. }) => open_dir(dir).map(|_| Quotas::new()),
        Err(error) => Err(error),
    }
}

/// Changes the quotas that are kept in a directory on which no engine runs. Blocks.
///
/// # Errors
/// [`Error::VolumeOwned`] while an engine runs on it: ask that one; [`Error::Key`] for a salt that cannot be; and as
/// [`read`].
pub fn edit<T>(dir: &Path, change: impl FnOnce(&mut Quotas) -> T) -> Result<T> {
    // The owner's lock is held meanwhile.
    let volume = Directory::open(dir, &Config::new(dir))?;
    let state = volume.state_dir()?;
    let mut quotas = read_from(&state, dir)?;
    let result = change(&mut quotas);
    quotas.keys().try_for_each(|salt| check_salt(salt))?;
    write_to(&state, dir, &quotas)?;
    Ok(result)
}

fn path(dir: &Path) -> PathBuf {
    dir.join(STATE_DIR).join(FILE)
}

fn read_from(state: &OwnedFd, dir: &Path) -> Result<Quotas> {
    let contents = saved::read(state.as_fd(), FILE, FILE_BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Error::Quotas { path: path(dir), reason: error.to_string() },
        _ => Error::file("read", path(dir), &error),
    })?;
    let Some(contents) = contents else { return Ok(Quotas::new()) };
    parse(&contents).map_err(|reason| Error::Quotas { path: path(dir), reason })
}

fn write_to(state: &OwnedFd, dir: &Path, quotas: &Quotas) -> Result<()> {
    let contents = render(quotas);
    let written = saved::replace(state.as_fd(), FILE, |out| out.write_all(contents.as_bytes()));
    written.map_err(|error| Error::file("write", path(dir), &error))
}

fn render(quotas: &Quotas) -> String {
    let mut body = serde_json::to_string_pretty(quotas).expect("text and numbers are JSON");
    body.push('\n');
    ENVELOPE.seal(&body)
}

/// Reads a file's contents; the error says what is wrong with them.
fn parse(contents: &[u8]) -> Result<Quotas, String> {
    let quotas: Quotas = serde_json::from_str(ENVELOPE.open(contents)?).map_err(|error| error.to_string())?;
    quotas.keys().try_for_each(|salt| check_salt(salt)).map_err(|error| error.to_string())?;
    Ok(quotas)
}

/// Reads anything; for fuzzing.
pub(crate) fn parse_any(contents: &[u8]) {
    if let Ok(quotas) = parse(contents) {
        assert_eq!(parse(render(&quotas).as_bytes()), Ok(quotas));
    }
}

/// The quotas of an open engine. Thread-safe.
pub(crate) struct Kept {
    /// What the files hold, or what is wrong with them.
    quotas: Mutex<Result<Quotas>>,
}

impl Kept {
    /// Reads the files. Of several volumes' the newest good one counts, and the others are made equal. Damaged ones alone are no error
    /// yet.
    pub(crate) fn open(volumes: &Volumes) -> Result<Self> {
        let (mut good, mut damaged) = (Vec::new(), None);
        for (number, volume) in volumes.iter().enumerate() {
            let state = volume.dir.state_dir()?;
            match read_from(&state, volume.dir.path()) {
                Ok(quotas) => {
                    let written_ns = stat_at(state.as_fd(), FILE).ok().map(|stat| stat.modified_ns);
                    good.push((written_ns, number, quotas));
                }
                Err(error @ Error::Quotas { .. }) => damaged = damaged.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        let newest =
            good.iter().filter(|(written_ns, ..)| written_ns.is_some()).max_by_key(|(written_ns, ..)| *written_ns);
        let quotas = match (newest, damaged) {
            (Some((_, _, quotas)), _) => Ok(quotas.clone()),
            (None, Some(damaged)) => Err(damaged),
            (None, None) => Ok(Quotas::new()),
        };
        if let Ok(quotas) = &quotas {
            for (_, number, _) in good.iter().filter(|(.., other)| other != quotas) {
                keep(&volumes[*number].dir, quotas)?;
            }
        }
        Ok(Self { quotas: Mutex::new(quotas) })
    }

    /// The quotas.
    ///
    /// # Errors
    /// [`Error::Quotas`] when the file is damaged.
    pub(crate) fn get(&self) -> Result<Quotas> {
        self.quotas.lock().clone()
    }

    /// Sets the quota of a salt, or takes it away, on the disk of every volume, and then calls `apply`, one change after the other; gives
    /// the quota before. It is kept when one volume has it.
    pub(crate) fn set(
        &self,
        volumes: &Volumes,
        salt: &str,
        bytes: Option<u64>,
        apply: impl FnOnce(),
    ) -> Result<Option<u64>> {
        let mut kept = self.quotas.lock();
        let mut quotas = kept.clone()?;
        let before = match bytes {
            Some(bytes) => quotas.insert(salt.to_owned(), bytes),
            None => quotas.remove(salt),
        };
        if before != bytes {
            let (mut is_kept, mut failed) = (false, None);
            for (_, volume) in volumes.up() {
                match keep(&volume.dir, &quotas) {
                    Ok(()) => is_kept = true,
                    Err(error) => {
                        tracing::warn!(%error, "a volume does not keep a change of quotas");
                        failed = Some(error);
                    }
                }
            }
            if let (false, Some(error)) = (is_kept, failed) {
                return Err(error);
            }
            *kept = Ok(quotas);
        }
        apply();
        Ok(before)
    }
}

fn keep(dir: &Directory, quotas: &Quotas) -> Result<()> {
    write_to(&dir.state_dir()?, dir.path(), quotas)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &[u8] = include_bytes!("../tests/fixtures/quotas-v1");

    fn sample() -> Quotas {
        [("", 0), ("tenant-1", 1 << 30), ("grün\n\"b\"", u64::MAX)].map(|(salt, bytes)| (salt.to_owned(), bytes)).into()
    }

    #[test]
    fn the_format_is_that_of_the_fixture() {
        assert_eq!(parse(VALID).unwrap(), sample());
        assert_eq!(render(&sample()).as_bytes(), VALID);
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        for at in 0..VALID.len() {
            assert!(parse(&VALID[..at]).is_err(), "cut at {at}");
            for bit in [0, 5] {
                let mut damaged = VALID.to_vec();
                damaged[at] ^= 1 << bit;
                // The checksum may be written in capital letters.
                assert!(parse(&damaged).is_err() || damaged.eq_ignore_ascii_case(VALID), "bit {bit} of byte {at}");
            }
        }
        let newer = String::from_utf8_lossy(VALID).replace("version 1", "version 2");
        assert!(parse(newer.as_bytes()).unwrap_err().contains("version 2"));
        let body = "{\"a@b\": 1}\n";
        let forbidden = ENVELOPE.seal(body);
        assert!(parse(forbidden.as_bytes()).unwrap_err().contains('@'));
    }

    #[test]
    fn directories_without_an_engine_are_edited() {
        let dir = tempfile::tempdir_in(".").unwrap();
        assert_eq!(read(dir.path()).unwrap(), Quotas::new());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "reading makes nothing");
        assert!(matches!(read(&dir.path().join("missing")), Err(Error::Io { .. })));
        edit(dir.path(), |quotas| quotas.extend(sample())).unwrap();
        assert_eq!(read(dir.path()).unwrap(), sample());
        let forbidden = edit(dir.path(), |quotas| quotas.insert("a/b".into(), 1));
        assert!(matches!(forbidden, Err(Error::Key(_))));
        assert_eq!(read(dir.path()).unwrap(), sample());
        std::fs::write(path(dir.path()), "damaged").unwrap();
        assert!(matches!(edit(dir.path(), Quotas::clear), Err(Error::Quotas { .. })));
        assert_eq!(std::fs::read(path(dir.path())).unwrap(), b"damaged");
    }
}
