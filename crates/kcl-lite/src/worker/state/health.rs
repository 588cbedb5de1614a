//! The health of the table and of unowned shards: unreadable rows, shards without an owner.
//!
//! Every worker sees these for the whole application; the health of a held shard comes from its task.
//! Decides nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::data::State;
use crate::error::ServiceError;
use crate::lease::balance;
use crate::lease::{Lease, LeaseKey};
use crate::worker::status::{Health, WorkerState};

impl State {
    /// Returns the state of this worker, until it has ended.
    pub(crate) fn phase(&self) -> WorkerState {
        match (self.stopping, self.has_read_table) {
            (true, _) => WorkerState::Stopping,
            (false, true) => WorkerState::Running,
            (false, false) => WorkerState::Starting,
        }
    }

    /// Returns the health of the table and of the unowned shards.
    pub(crate) fn health(&self, now: Instant) -> Health {
        let unreadable = self.unreadable.iter().map(|(key, fault)| {
            (key.clone(), format!("lease row is unreadable: {fault}; repair or delete it"))
        });
        let lease_duration = self.settings.lease_duration;
        let unheld =
            self.leases.values().filter(|lease| self.is_unowned(now, lease)).map(|lease| {
                let since = self.unowned_for(now, lease).as_secs();
                (lease.key.clone(), format!("unowned for {since} s: {}", self.why_not_us()))
            });
        // The lease may be held again, and its task may not see the problem yet.
        let stuck = self.stuck.iter().map(|(key, stuck)| {
            (key.clone(), format!("released, no progress since: {}", stuck.reason))
        });
        let unseen = now.saturating_duration_since(self.scanned_at);
        let table = self.table_trouble.as_ref().filter(|_| unseen >= lease_duration);
        Health {
            state: self.phase(),
            table: table.map(|error| format!("not read for {} s: {error}", unseen.as_secs())),
            shards: unreadable.chain(stuck).chain(unheld).collect(),
        }
    }

    pub(super) fn note_table_trouble(&mut self, error: Option<&ServiceError>) {
        self.table_trouble = error.map(ToString::to_string);
    }

    /// Returns whether a lease is an orphan for so long that a worker should have taken it.
    fn is_unowned(&self, now: Instant, lease: &Lease) -> bool {
        !self.mine.contains(&lease.key)
            && balance::is_runnable(lease, &self.leases, &self.hidden)
            && self.unowned_for(now, lease) >= self.settings.lease_duration * 2
    }

    /// Returns for how long the lease has not been written although it may be read. The time for which it
    /// waited for its parents does not count.
    fn unowned_for(&self, now: Instant, lease: &Lease) -> Duration {
        let runnable = self.runnable.get(&lease.key);
        let runnable_for =
            runnable.map_or(Duration::ZERO, |since| now.saturating_duration_since(*since));
        self.observations.unchanged_for(now, lease).min(runnable_for)
    }

    /// Records from a scan which leases may be read, and since when.
    pub(super) fn note_runnable(&mut self, now: Instant) {
        let runnable = self.leases.values().filter(|lease| {
            !self.mine.contains(&lease.key)
                && balance::is_runnable(lease, &self.leases, &self.hidden)
        });
        let since = |key: &LeaseKey| self.runnable.get(key).copied().unwrap_or(now);
        self.runnable = runnable.map(|lease| (lease.key.clone(), since(&lease.key))).collect();
    }

    fn why_not_us(&self) -> String {
        let limit = self.settings.max_leases;
        if self.draining {
            "this worker is drained".to_owned()
        } else if self.mine.len() >= limit {
            format!("this worker is at max_leases ({limit}); add workers or raise the limit")
        } else {
            "a take is pending or not possible".to_owned()
        }
    }
}
