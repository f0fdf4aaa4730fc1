//! Who a volume is among several: a random number, kept in `.saltern/volume`. Homes of keys follow from it, so that neither the order
//! of the directories nor their paths matter.
//!
//! The file is text, made once, when a directory is first opened together with others (see `saved.rs` for the order of the steps):
//!
//! ```text
//! saltern volume, version 1, crc64 3a1f...        CRC-64/NVME of the rest, 16 hexadecimal digits
//! {"id":"05fe12ab90cd3478"}                       the number, 16 hexadecimal digits
//! ```
//!
//! A file that is damaged, or of a newer version, is an error at open: to make another number would be to move the volume's keys.

use std::io::{self, Write};
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::directory::{Directory, STATE_DIR};
use crate::error::{Error, Result};
use crate::saved::{self, Envelope};

const FILE: &str = "volume";
const ENVELOPE: Envelope = Envelope { magic: "saltern volume, version ", version: 1 };

/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 4096;

/// Who a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VolumeId(pub(crate) u64);

#[derive(Serialize, Deserialize)]
struct Body {
    id: String,
}

impl VolumeId {
    /// The directory's number; given and kept where it has none yet. Blocks, for two syncs where it is new.
    ///
    /// # Errors
    /// [`Error::Volume`] when the file is damaged; [`Error::Io`].
    pub(crate) fn of(dir: &Directory) -> Result<Self> {
        let state = dir.state_dir()?;
        let path = || dir.path().join(STATE_DIR).join(FILE);
        let wrong = |reason: String| Error::Volume { dir: dir.path().to_owned(), reason };
        let contents = saved::read(state.as_fd(), FILE, FILE_BYTES_MAX).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => wrong(format!("{}: {error}", path().display())),
            _ => Error::file("read", path(), &error),
        })?;
        if let Some(contents) = contents {
            let damaged = |reason| {
                let path = path();
                let path = path.display();
                wrong(format!(
                    "{path}: {reason}; bring a good one back, or remove it: the volume's keys then have new homes"
                ))
            };
            return parse(&contents).map_err(damaged);
        }
        let random = getrandom::u64().map_err(|error| Error::file("getrandom", path(), &error.into()))?;
        let id = Self(random);
        let written = saved::replace(state.as_fd(), FILE, |out| out.write_all(render(id).as_bytes()));
        written.map_err(|error| Error::file("write", path(), &error))?;
        Ok(id)
    }
}

impl std::fmt::Display for VolumeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

fn render(id: VolumeId) -> String {
    let mut body = serde_json::to_string(&Body { id: id.to_string() }).expect("text is JSON");
    body.push('\n');
    ENVELOPE.seal(&body)
}

/// Reads a file's contents; the error says what is wrong with them.
fn parse(contents: &[u8]) -> Result<VolumeId, String> {
    let Body { id } = serde_json::from_str(ENVELOPE.open(contents)?).map_err(|error| error.to_string())?;
    u64::from_str_radix(&id, 16).map(VolumeId).map_err(|_| format!("{id:?} is no number"))
}

/// Reads anything; for fuzzing.
pub(crate) fn parse_any(contents: &[u8]) {
    if let Ok(id) = parse(contents) {
        assert_eq!(parse(render(id).as_bytes()), Ok(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &[u8] = include_bytes!("../../tests/fixtures/volume-v1");
    const FLIPPED: &[u8] = include_bytes!("../../tests/fixtures/volume-v1-flipped");
    const NEWER: &[u8] = include_bytes!("../../tests/fixtures/volume-v2");

    #[test]
    fn the_format_is_that_of_the_fixture() {
        let id = VolumeId(0x05fe_12ab_90cd_3478);
        assert_eq!(parse(VALID), Ok(id));
        assert_eq!(render(id).as_bytes(), VALID);
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        assert_eq!(parse(FLIPPED).unwrap_err(), "wrong checksum");
        assert!(parse(NEWER).unwrap_err().contains("version 2"));
        for at in 0..VALID.len() {
            assert!(parse(&VALID[..at]).is_err(), "cut at {at}");
            let mut damaged = VALID.to_vec();
            damaged[at] ^= 1;
            assert!(parse(&damaged).is_err(), "byte {at}");
        }
    }
}
