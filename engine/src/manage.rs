//! What operators and hosts ask of an engine beside storing and loading: salts by page, room to be made.

use crate::config::Eviction;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::key::check_salt;
use crate::ledger::SaltPage;
use crate::quotas::Quotas;
use crate::report::EvictionReport;

impl Engine {
    /// The salts, with what each uses and may use: from number `from` on, at most `limit` and at most
    /// [`crate::ledger::SALT_PAGE_MAX`] of them. Begin with 0 and follow [`SaltPage::next`]. Does not block.
    pub fn salts(&self, from: u64, limit: usize) -> SaltPage {
        self.core.ledger().page(from, limit)
    }

    /// Sets the most bytes that the objects of a salt may have, and keeps it in the directory. What is over it goes at once where the
    /// engine evicts, the oldest first, and nothing else goes for it; where the host evicts, stores of the salt are refused. 0 keeps
    /// the salt empty. Gives the quota that it had of its own. Blocks for two syncs of small files.
    ///
    /// # Errors
    /// [`Error::Key`] for a salt that cannot be; [`Error::Quotas`] while the file that keeps them is damaged; [`Error::Io`],
    /// and then nothing has changed.
    pub fn set_quota(&self, salt: &str, bytes: u64) -> Result<Option<u64>> {
        check_salt(salt)?;
        self.change_quota(salt, Some(bytes))
    }

    /// Takes a salt's own quota away: it follows [`crate::Config::default_quota_bytes`] again. Gives the quota that it had. Blocks as
    /// [`Engine::set_quota`].
    ///
    /// # Errors
    /// As [`Engine::set_quota`].
    pub fn remove_quota(&self, salt: &str) -> Result<Option<u64>> {
        self.change_quota(salt, None)
    }

    fn change_quota(&self, salt: &str, bytes: Option<u64>) -> Result<Option<u64>> {
        let core = &self.core;
        let before =
            core.quotas.set(&core.volumes, salt, bytes, || core.ledger().set_quota(core.ledger().salt(salt), bytes))?;
        core.suspect([core.ledger().salt(salt)]);
        Ok(before)
    }

    /// A salt's own quota. Does not block.
    ///
    /// # Errors
    /// [`Error::Quotas`] while the file that keeps them is damaged.
    pub fn quota(&self, salt: &str) -> Result<Option<u64>> {
        Ok(self.core.quotas.get()?.get(salt).copied())
    }

    /// All quotas that were set. Does not block.
    ///
    /// # Errors
    /// [`Error::Quotas`] while the file that keeps them is damaged.
    pub fn quotas(&self) -> Result<Quotas> {
        self.core.quotas.get()
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
            used_bytes: core.ledger().shared_totals().0,
            in_use: after.evictions_in_use - before.evictions_in_use,
            errors: after.eviction_errors - before.eviction_errors,
        })
    }
}
