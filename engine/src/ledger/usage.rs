//! What the ledger says: snapshots, which never change after they were taken, and pages of salts.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

/// Most salts of one page.
pub const SALT_PAGE_MAX: usize = 1000;

/// Bytes in use at one moment. Never changes after it was taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdapterUsage {
    /// Bytes of all objects.
    pub total_bytes_used: u64,
    /// The configured capacity; 0 when there is none.
    pub total_capacity_bytes: u64,
    /// Bytes by salt; salts without objects do not appear. Adds up to the total.
    pub bytes_by_salt: BTreeMap<Arc<str>, u64>,
    /// Used by capacity; -1 when there is no capacity.
    pub usage_fraction: f64,
}

/// One salt at one moment, over all adapters of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SaltUsage {
    /// The salt; empty for none.
    pub salt: Arc<str>,
    /// Bytes of its objects.
    pub used_bytes: u64,
    /// Bytes reserved by its stores in flight.
    pub reserved_bytes: u64,
    /// The most that it may use; `None` is no limit.
    pub quota_bytes: Option<u64>,
    /// How often one of its amounts would have gone below zero: 0, unless there is a defect.
    pub underflows: u64,
}

/// Some of the salts, in the order in which they were first seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SaltPage {
    /// At most [`SALT_PAGE_MAX`] of them.
    pub salts: Vec<SaltUsage>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<u64>,
    /// Number of all salts.
    pub salts_total: u64,
}

/// Used by capacity; -1 when there is no capacity.
pub(super) fn fraction(used: u64, capacity: Option<u64>) -> f64 {
    match capacity {
        None | Some(0) => -1.0,
        Some(capacity) => used as f64 / capacity as f64,
    }
}
