//! Detection of full workers: workers that take no more leases although they have fewer than their
//! share.
//!
//! No row stores the limit of a worker, and workers of the Java KCL have limits of their own, so
//! every worker infers it: a worker to which leases should move, and which has held the same number
//! of leases for some time, is full. Pure: the plan and the time are arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::lease::timing;
use crate::record::WorkerId;

/// The other workers that are full.
#[derive(Debug, Default)]
pub(crate) struct Full {
    /// For each receiver, how many leases it holds, and since when it has been a receiver with that
    /// number.
    waiting: BTreeMap<WorkerId, (usize, Instant)>,
    full: BTreeSet<WorkerId>,
}

impl Full {
    /// Updates the full workers from the receivers of the plan made at `now`; see
    /// [`receivers`](super::receivers).
    pub(crate) fn learn(
        &mut self,
        receivers: &BTreeMap<WorkerId, usize>,
        now: Instant,
        lease_duration: Duration,
    ) {
        // A worker whose number has changed still takes leases, so its time starts anew.
        self.waiting.retain(|worker, (held, _)| receivers.get(worker) == Some(held));
        for (worker, held) in receivers {
            self.waiting.entry(worker.clone()).or_insert((*held, now));
        }
        let after = timing::full_after(lease_duration);
        let is_full = |since: Instant| now.saturating_duration_since(since) >= after;
        let full = self.waiting.iter().filter(|(_, (_, since))| is_full(*since));
        self.full = full.map(|(worker, _)| worker.clone()).collect();
    }

    /// Returns the full workers.
    pub(crate) fn workers(&self) -> &BTreeSet<WorkerId> {
        &self.full
    }
}
