//! Objects and bytes by name, as `usage`, `recover` and `evict` count them.

use std::collections::BTreeMap;

use serde::Serialize;

/// How much is somebody's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Share {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
}

impl Share {
    /// One object more.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What is counted under a name. Looked up first: names are few, objects many.
pub(crate) fn entry<'a, T: Default>(shares: &'a mut BTreeMap<String, T>, name: &str) -> &'a mut T {
    if !shares.contains_key(name) {
        shares.insert(name.to_owned(), T::default());
    }
    shares.get_mut(name).expect("entered just now")
}
