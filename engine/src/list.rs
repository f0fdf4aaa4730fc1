//! What happens on a listing: the objects of the index, page by page.

use crate::engine::Engine;
use crate::index::Place;
use crate::key::ObjectKey;

/// Where a listing goes on. A number, so that it can be handed through other programs.
///
/// Valid for the engine that gave it, for as long as that is open; a made-up one gives some page, never an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListCursor(Place);

/// Bits of the number that hold the slot.
const SLOT_BITS: u32 = 32;

impl From<ListCursor> for u64 {
    fn from(cursor: ListCursor) -> Self {
        (cursor.0.partition as u64) << SLOT_BITS | cursor.0.slot as u64
    }
}

impl From<u64> for ListCursor {
    fn from(number: u64) -> Self {
        Self(Place { partition: (number >> SLOT_BITS) as usize, slot: number as u32 as usize })
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListPage {
    /// Keys and sizes in bytes, in no particular order.
    pub objects: Vec<(ObjectKey, u64)>,
    /// Where the next page begins; `None` when this is the last.
    pub next: Option<ListCursor>,
}

impl Engine {
    /// Up to `limit` objects from `from` on (the default cursor is the beginning), of one model or of all. From memory.
    ///
    /// An object that is there from the first page to the last is listed once. One that is stored, deleted or recovered
    /// meanwhile may be listed or not; one that is deleted and stored again may be listed twice.
    pub fn list(&self, from: ListCursor, limit: usize, model_name: Option<&str>) -> ListPage {
        let wanted = |scope: &crate::key::Scope| model_name.is_none_or(|model| scope.model_name() == model);
        let (objects, next) = self.core.index.page(from.0, limit, wanted);
        ListPage { objects, next: next.map(ListCursor) }
    }
}
