//! Which workers take no more leases, because they hold as many as they may.
//!
//! No row says how many leases a worker may hold, and workers of the Java KCL have limits of their own.
//! So every worker learns it of the others: a worker to which leases should move, and which has held
//! the same number of them for some time, is full. Pure: told what is planned and when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::lease::timing;
use crate::record::WorkerId;

/// The other workers that are full.
#[derive(Debug, Default)]
pub(crate) struct Full {
    /// How many leases each receiver holds, and since when it has been one with that number.
    waiting: BTreeMap<WorkerId, (usize, Instant)>,
    full: BTreeSet<WorkerId>,
}

impl Full {
    /// Learns from the plan at `now`; see [`receivers`](super::receivers).
    pub(crate) fn learn(
        &mut self,
        receivers: &BTreeMap<WorkerId, usize>,
        now: Instant,
        lease_duration: Duration,
    ) {
        self.waiting.retain(|worker, (held, _)| receivers.get(worker) == Some(held));
        for (worker, held) in receivers {
            self.waiting.entry(worker.clone()).or_insert((*held, now));
        }
        let after = timing::full_after(lease_duration);
        let is_full = |since: Instant| now.saturating_duration_since(since) >= after;
        let full = self.waiting.iter().filter(|(_, (_, since))| is_full(*since));
        self.full = full.map(|(worker, _)| worker.clone()).collect();
    }

    /// The workers.
    pub(crate) fn workers(&self) -> &BTreeSet<WorkerId> {
        &self.full
    }
}
