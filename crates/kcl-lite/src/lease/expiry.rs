//! Expiry: when another worker's lease has expired, by this worker's monotonic clock alone.
//!
//! Owns, per lease, the instant at which its counter was last seen to change. Pure: instants are
//! arguments. Never reads a wall clock or a time stored in a row.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Lease, LeaseKey};

/// What this worker has observed of the lease counters.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Observations {
    seen: BTreeMap<LeaseKey, Seen>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Seen {
    counter: u64,
    since: Instant,
}

impl Observations {
    /// Records a scan whose reply arrived at `now`.
    ///
    /// The instant of the reply counts, not that of the request: the owner may have renewed in
    /// between, and its own validity starts when it sent that renewal, so counting from the reply is
    /// never too early.
    pub(crate) fn scanned(&mut self, now: Instant, leases: &[Lease]) {
        // Built anew, so that a row that was gone counts as new: its counter may be the old one.
        let mut seen = BTreeMap::new();
        for lease in leases {
            let since = match self.seen.get(&lease.key) {
                Some(before) if before.counter == lease.counter => before.since,
                Some(_) | None => now,
            };
            seen.insert(lease.key.clone(), Seen { counter: lease.counter, since });
        }
        self.seen = seen;
    }

    /// Records one row that was read or written at `now`.
    pub(crate) fn saw(&mut self, now: Instant, lease: &Lease) {
        let seen = self
            .seen
            .entry(lease.key.clone())
            .or_insert(Seen { counter: lease.counter, since: now });
        if seen.counter != lease.counter {
            *seen = Seen { counter: lease.counter, since: now };
        }
    }

    /// Returns for how long the counter of `lease` has not changed.
    pub(crate) fn unchanged_for(&self, now: Instant, lease: &Lease) -> Duration {
        match self.seen.get(&lease.key) {
            Some(seen) if seen.counter == lease.counter => {
                now.saturating_duration_since(seen.since)
            }
            Some(_) | None => Duration::ZERO,
        }
    }

    /// Returns when `lease` expires unless it is renewed.
    pub(crate) fn expires_at(&self, lease: &Lease, duration: Duration) -> Option<Instant> {
        self.seen.get(&lease.key).map(|seen| seen.since + duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Checkpoint;

    fn lease(counter: u64) -> Lease {
        Lease { counter, ..Lease::new("shardId-0", Checkpoint::TrimHorizon) }
    }

    #[test]
    fn a_counter_that_moves_starts_the_wait_again() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Observations::default();
        seen.scanned(at(0), &[lease(5)]);
        seen.scanned(at(6), &[lease(5)]);
        assert_eq!(seen.unchanged_for(at(9), &lease(5)), Duration::from_secs(9));
        seen.scanned(at(9), &[lease(6)]);
        assert_eq!(seen.unchanged_for(at(10), &lease(6)), Duration::from_secs(1));
        assert_eq!(seen.expires_at(&lease(6), Duration::from_secs(10)), Some(at(19)));
    }

    #[test]
    fn a_lease_seen_for_the_first_time_has_its_whole_duration() {
        let now = Instant::now();
        let mut seen = Observations::default();
        assert_eq!(seen.unchanged_for(now, &lease(5)), Duration::ZERO);
        seen.scanned(now, &[lease(5)]);
        assert_eq!(seen.unchanged_for(now, &lease(5)), Duration::ZERO);
    }

    #[test]
    fn a_row_that_was_gone_in_between_counts_as_new() {
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let mut seen = Observations::default();
        seen.scanned(start, &[lease(5)]);
        seen.scanned(start, &[]);
        seen.scanned(later, &[lease(5)]);
        assert_eq!(seen.unchanged_for(later, &lease(5)), Duration::ZERO);
    }
}
