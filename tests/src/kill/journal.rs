//! What a child has acknowledged: records of five bytes, each written with one call.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// What is known of an object after the process that worked on it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Its store was acknowledged, and no delete begun.
    Present,
    /// Its delete was acknowledged, and no store begun.
    Absent,
    /// Something was in flight.
    Unclear,
}

const BEGUN: u8 = b'B';
const PRESENT: u8 = b'P';
const ABSENT: u8 = b'A';
const UNCLEAR: u8 = b'U';
const REFUSED: u8 = b'R';

/// The child's end.
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn open(path: &Path) -> Self {
        Self(File::options().append(true).create(true).open(path).expect("the journal"))
    }

    /// The child has opened the volume.
    pub(crate) fn begin(&mut self) {
        self.write(BEGUN, 0);
    }

    /// Something is known of an object. Before a store or delete is submitted, that it is unclear.
    pub(crate) fn note(&mut self, n: u32, known: Known) {
        let kind = match known {
            Known::Present => PRESENT,
            Known::Absent => ABSENT,
            Known::Unclear => UNCLEAR,
        };
        self.write(kind, n);
    }

    /// There was no room for an object; whether it is there is as unclear as when its store was begun.
    pub(crate) fn refuse(&mut self, n: u32) {
        self.write(REFUSED, n);
    }

    fn write(&mut self, kind: u8, n: u32) {
        let [a, b, c, d] = n.to_le_bytes();
        assert_eq!(self.0.write(&[kind, a, b, c, d]).expect("the journal"), 5);
    }

    /// Whether the child has opened the volume.
    pub(crate) fn has_begun(path: &Path) -> bool {
        path.metadata().is_ok_and(|metadata| metadata.len() >= 5)
    }

    /// Brings what is known up to date. Gives the numbers of acknowledgements and of refusals.
    pub(crate) fn read(path: &Path, known: &mut BTreeMap<u32, Known>) -> (u64, u64) {
        let bytes = std::fs::read(path).expect("the journal");
        let (records, rest) = bytes.as_chunks::<5>();
        assert!(rest.is_empty(), "a record is written whole");
        let (mut acknowledged, mut refused) = (0, 0);
        for [kind, n @ ..] in records {
            let now = match *kind {
                BEGUN => continue,
                PRESENT => Known::Present,
                ABSENT => Known::Absent,
                UNCLEAR => Known::Unclear,
                REFUSED => {
                    refused += 1;
                    continue;
                }
                other => panic!("a record of kind {other}"),
            };
            acknowledged += u64::from(now != Known::Unclear);
            known.insert(u32::from_le_bytes(*n), now);
        }
        (acknowledged, refused)
    }
}
