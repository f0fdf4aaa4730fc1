//! What operators and hosts ask of an engine beside storing and loading: salts by page, room to be made.

use crate::config::Eviction;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ledger::SaltPage;
use crate::report::EvictionReport;

impl Engine {
    /// The salts, with what each uses and may use: from number `from` on, at most `limit` and at most
    /// [`crate::ledger::SALT_PAGE_MAX`] of them. Begin with 0 and follow [`SaltPage::next`]. Does not block.
    pub fn salts(&self, from: u64, limit: usize) -> SaltPage {
        self.core.ledger.page(from, limit)
    }

    /// Evicts, by the policy, until at most this many bytes are used and reserved, or nothing more can go because it is in use.
    /// Blocks until the files are gone; stores and loads go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Config`] where the host evicts ([`crate::Config::eviction`]); [`Error::ShardFailed`] and [`Error::Closed`].
    pub fn evict_to(&self, bytes: u64) -> Result<EvictionReport> {
        let core = &self.core;
        if core.config.eviction == Eviction::Host {
            return Err(Error::Config { option: "eviction", reason: "the host evicts here, by deleting".into() });
        }
        drop(core.admit(0)?);
        // What is used is known after the scan.
        core.recovery.wait();
        let before = core.counts.snapshot(0);
        core.evict_down_to(bytes);
        drop(core.admit(0)?);
        let after = core.counts.snapshot(0);
        Ok(EvictionReport {
            objects: after.evictions - before.evictions,
            bytes: after.evicted_bytes - before.evicted_bytes,
            used_bytes: core.ledger.totals().0,
            in_use: after.evictions_in_use - before.evictions_in_use,
            errors: after.eviction_errors - before.eviction_errors,
        })
    }
}
