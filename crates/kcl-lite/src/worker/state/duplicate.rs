//! The detection of two live workers with one worker ID, and of leases of an earlier incarnation.
//!
//! A row that names this worker as its owner although it does not hold the lease is one of three: its own
//! write with a lost reply (the row carries its mark), a lease of an earlier incarnation (the first scan
//! shows it, and its counter no longer changes), or the write of a second process with the same worker
//! ID. The first two are taken at once. Of two live workers with one worker ID exactly one continues: the
//! earlier one finds that a lease was taken from it under its own ID, and stops.

use tokio::time::Instant;

use super::data::{Action, State};
use crate::error::{Error, ErrorKind};
use crate::lease::tenure::is_by_other_life;
use crate::lease::{Lease, LeaseKey, timing};

impl State {
    /// Remembers the leases that the first scan shows as owned by this worker: they are a legacy of an
    /// earlier incarnation.
    pub(super) fn note_legacy(&mut self) {
        let ours = self.leases.values().filter(|lease| lease.owner.as_ref() == Some(&self.me));
        let legacy = || ours.map(|lease| (lease.key.clone(), lease.counter)).collect();
        self.duplicates.legacy.get_or_insert_with(legacy);
    }

    /// Finds leases that another live worker holds under this worker ID.
    pub(super) fn note_duplicates(&mut self, now: Instant) {
        let duplicates = self.leases.values().filter(|lease| {
            lease.actual_owner() == Some(&self.me) && !self.mine.contains(&lease.key)
        });
        let duplicates = duplicates.filter(|lease| !self.is_legacy(lease)).filter_map(|lease| {
            let mark = lease.write_id.as_ref()?;
            is_by_other_life(mark, &self.me, &self.incarnation)
                .then(|| (lease.key.clone(), mark.as_str().to_owned()))
        });
        self.duplicates.leases = duplicates.collect();
        let first = self.duplicates.since.unwrap_or(now);
        self.duplicates.since = (!self.duplicates.leases.is_empty()).then_some(first);
    }

    fn is_legacy(&self, lease: &Lease) -> bool {
        let legacy = self.duplicates.legacy.as_ref();
        legacy.is_some_and(|legacy| legacy.get(&lease.key) == Some(&lease.counter))
    }

    /// Stops this worker if it is the one of two with the same worker ID that has to stop.
    pub(super) fn stop_if_duplicate(&self, now: Instant) -> Option<Action> {
        let is_alive = |key: &LeaseKey| {
            self.leases.get(key).is_some_and(|lease| {
                self.observations.unchanged_for(now, lease) < self.settings.lease_duration
            })
        };
        let grace = timing::duplicate_grace(self.settings.lease_duration);
        let has_lasted = self.duplicates.since.is_some_and(|since| now >= since + grace);
        let mut duplicates = self.duplicates.leases.iter();
        let (key, _) = duplicates.find(|(key, mark)| {
            // If no lease was lost, the order of the marks decides, so that only one of the two
            // stops.
            let yields = has_lasted && self.incarnation < **mark;
            self.lost.contains(*key) || (yields && is_alive(key))
        })?;
        let context = format!(
            "another worker runs with the worker ID `{}` and holds {key}: give every worker a unique ID",
            self.me
        );
        Some(Action::Fail(Error::new(ErrorKind::Config, context)))
    }
}
