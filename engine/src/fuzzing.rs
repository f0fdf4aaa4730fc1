//! The parsers of what is on disk, for fuzzing and for replaying a corpus. Whatever the bytes are, they must not panic. Where a
//! checksum guards the bytes it is also made right, or nothing behind it would be reached.

use crate::integrity::{Stamp, checksum};
use crate::key::ObjectKey;
use crate::layout::Layout;
use crate::snapshot::Snapshot;

/// A snapshot of an index.
pub fn snapshot(contents: &[u8]) {
    let mut guarded = contents.to_vec();
    guarded.extend_from_slice(&checksum(contents).to_le_bytes());
    for contents in [contents, &guarded] {
        for layout in Layout::ALL {
            let Ok(snapshot) = Snapshot::parse(contents, layout) else { continue };
            let scopes = snapshot.scopes.clone();
            for record in snapshot.flatten() {
                let _ = layout.encode(&ObjectKey::from_parts(scopes[record.scope as usize].clone(), record.chunk));
            }
        }
    }
}

/// A file of quotas.
pub fn quotas(contents: &[u8]) {
    crate::quotas::parse_any(contents);
    let head = format!("saltern quotas, version 1, crc64 {:016x}\n", checksum(contents));
    crate::quotas::parse_any(&[head.as_bytes(), contents].concat());
}

/// A volume's number.
pub fn volume(contents: &[u8]) {
    crate::volume::identity::parse_any(contents);
    let head = format!("saltern volume, version 1, crc64 {:016x}\n", checksum(contents));
    crate::volume::identity::parse_any(&[head.as_bytes(), contents].concat());
}

/// The stamp of a file.
pub fn stamp(raw: &[u8]) {
    if let Some(stamp) = Stamp::parse(raw) {
        assert_eq!(Stamp::parse(stamp.as_bytes()), Some(stamp));
        let again = Stamp::new(stamp.bytes(), stamp.checksum());
        assert_eq!((again.bytes(), again.checksum()), (stamp.bytes(), stamp.checksum()));
    }
}
