//! What the table shows going wrong: rows that cannot be read, shards that nobody holds.
//!
//! Every worker sees these for the whole application; what is wrong with a shard that it holds, its
//! task knows. Decides nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::data::State;
use crate::error::ServiceError;
use crate::lease::balance;
use crate::lease::{Lease, LeaseKey};
use crate::worker::status::{Health, WorkerState};

impl State {
    /// Where this worker is in its life, as long as it has not ended.
    pub(crate) fn phase(&self) -> WorkerState {
        match (self.stopping, self.has_read_table) {
            (true, _) => WorkerState::Stopping,
            (false, true) => WorkerState::Running,
            (false, false) => WorkerState::Starting,
        }
    }

    /// The health of the table and of the shards that nobody holds.
    pub(crate) fn health(&self, now: Instant) -> Health {
        let unreadable = self.unreadable.iter().map(|(key, fault)| {
            (key.clone(), format!("its row cannot be read: {fault}; mend or remove it"))
        });
        let lease_duration = self.settings.lease_duration;
        let unheld =
            self.leases.values().filter(|lease| self.is_unowned(now, lease)).map(|lease| {
                let since = self.unowned_for(now, lease).as_secs();
                (
                    lease.key.clone(),
                    format!("nobody has held it for {since} s: {}", self.why_not_us()),
                )
            });
        // It may be held again at this moment, and well as far as its task can tell.
        let stuck = self.stuck.iter().map(|(key, stuck)| {
            (key.clone(), format!("given back and nothing done since: {}", stuck.reason))
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

    /// Free, or its owner silent, for so long that somebody should have taken it.
    fn is_unowned(&self, now: Instant, lease: &Lease) -> bool {
        !self.mine.contains(&lease.key)
            && balance::is_runnable(lease, &self.leases, &self.hidden)
            && self.unowned_for(now, lease) >= self.settings.lease_duration * 2
    }

    /// For how long nobody has written the lease although it may be read. The time for which it waited
    /// for its parents does not count.
    fn unowned_for(&self, now: Instant, lease: &Lease) -> Duration {
        let runnable = self.runnable.get(&lease.key);
        let runnable_for =
            runnable.map_or(Duration::ZERO, |since| now.saturating_duration_since(*since));
        self.observations.unchanged_for(now, lease).min(runnable_for)
    }

    /// Takes note of a scan: which leases may be read since when.
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
            format!(
                "this worker holds as many leases as it may ({limit}); start more, or allow more"
            )
        } else {
            "it is about to be taken, or cannot be".to_owned()
        }
    }
}
