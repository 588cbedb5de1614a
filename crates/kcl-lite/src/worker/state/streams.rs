//! The streams of a worker: audits, and the decisions that follow from a listing.
//!
//! Each stream has its own audit schedule, and is listed sooner when something looks wrong: a hole, or a
//! reader whose shard does not exist. A listing is a hint; a stream counts as deleted only when two
//! listings in a row report it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::data::{Action, State, StreamState, Vanished, Why, failure};
use crate::error::{ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::lease::tenure::{create_write, discard_write};
use crate::lease::timing::HOLE_PAUSE;
use crate::lease::{Lease, LeaseKey, Other, StreamKey, counter_after};
use crate::position::Checkpoint;
use crate::settings::Settings;
use crate::shard::plan::{self, Source};
use crate::shard::{self, Listing};

impl Vanished {
    /// Returns the row as last seen, but unowned.
    fn again(&self) -> Lease {
        let counter = counter_after(self.row.counter, 1);
        Lease { owner: None, checkpoint_owner: None, counter, ..self.row.clone() }
    }
}

/// Returns whether started leases other than ancestors cover part of the hash range of `gone`: then its
/// shard was finished and its row deleted, and this worker missed it. Without the range it is unknown.
fn is_superseded(gone: &Lease, leases: &BTreeMap<LeaseKey, Lease>) -> bool {
    let Some(range) = gone.hash_range else { return false };
    let before = ancestors(gone, leases);
    leases.values().filter(|lease| lease.key.stream() == gone.key.stream()).any(|lease| {
        let overlaps =
            lease.hash_range.is_some_and(|it| it.start <= range.end && range.start <= it.end);
        overlaps && lease.checkpoint.has_progress() && !before.contains(&lease.key)
    })
}

/// Returns the known leases of the ancestors of `lease`.
fn ancestors(lease: &Lease, leases: &BTreeMap<LeaseKey, Lease>) -> BTreeSet<LeaseKey> {
    let mut known = BTreeSet::new();
    let mut next: Vec<_> = lease.parent_keys().collect();
    while let Some(key) = next.pop() {
        let Some(parent) = leases.get(&key) else { continue };
        if known.insert(key) {
            next.extend(parent.parent_keys());
        }
    }
    known
}

impl StreamState {
    pub(super) fn new(source: Source, settings: &Settings, now: Instant) -> Self {
        // Workers that start together list at different times.
        let spread = settings.seed.unwrap_or(0) % 1000;
        let audit = settings.audit_interval.mul_f64(1.0 + f64::from(spread as u32) / 4000.0);
        Self {
            source,
            listing: false,
            next_audit: now + audit,
            turns: 0,
            is_wanted: false,
            // The start may just have listed the shards, but before it read the leases.
            listed_at: now.checked_sub(HOLE_PAUSE).unwrap_or(now),
            missing_listings: 0,
            is_gone: false,
        }
    }

    /// Schedules a listing before the next audit, but at most one per [`HOLE_PAUSE`].
    fn list_soon(&mut self, now: Instant) {
        if !self.listing {
            self.is_wanted = true;
            self.next_audit = self.next_audit.min(now.max(self.listed_at + HOLE_PAUSE));
        }
    }
}

impl State {
    pub(super) fn next_audit(&self) -> Option<Instant> {
        let waiting = self.streams.values().filter(|stream| !stream.listing && !stream.is_gone);
        waiting.map(|stream| stream.next_audit).min()
    }

    #[cfg(test)]
    pub(super) fn audit_at(&mut self, at: Instant) {
        self.streams.values_mut().for_each(|stream| stream.next_audit = at);
    }

    pub(super) fn list_what_is_due(&mut self, now: Instant) -> Vec<Action> {
        if self.next_audit().is_none_or(|due| now < due) {
            return Vec::new();
        }
        let (owners, place) = self.live_owners(now);
        let due = self
            .streams
            .iter_mut()
            .filter(|(_, stream)| !stream.listing && !stream.is_gone && now >= stream.next_audit);
        let lists = due.filter_map(|(key, stream)| {
            stream.turns += 1;
            // If no live worker holds a lease, there are no turns, and every worker lists.
            let is_turn = owners == 0 || place.is_some_and(|it| (stream.turns + it) % owners == 0);
            if !is_turn && !std::mem::take(&mut stream.is_wanted) {
                stream.next_audit = now + self.settings.audit_interval;
                return None;
            }
            (stream.listing, stream.is_wanted) = (true, false);
            Some(Action::List(key.clone()))
        });
        lists.collect()
    }

    /// Returns how many live workers own leases, and the index of this worker among them. They audit in
    /// turn, so that a stream is listed about once per interval, however many workers there are.
    fn live_owners(&self, now: Instant) -> (usize, Option<usize>) {
        let lease_duration = self.settings.lease_duration;
        let live = self.leases.values().filter(|lease| {
            self.mine.contains(&lease.key)
                || self.observations.unchanged_for(now, lease) < lease_duration
        });
        let owners: BTreeSet<_> = live.filter_map(Lease::actual_owner).collect();
        (owners.len(), owners.iter().position(|owner| **owner == self.me))
    }

    /// Schedules a listing of `stream`, which may be deleted or re-created.
    pub(super) fn suspect(&mut self, now: Instant, stream: &StreamKey) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.list_soon(now);
        }
    }

    /// Returns how the stream of a row relates to the stream that is read, if it is another one.
    pub(super) fn other_stream(&self, row: &Lease) -> Option<Other> {
        self.streams.get(&row.key.stream())?.source.other_stream(row)
    }

    /// Removes the rows of other streams from `scanned`: they prove nothing about the stream that is read,
    /// except that a row of a newer stream indicates its deletion. Returns the rows to discard, which an
    /// owner that did not know of the new stream has written again.
    pub(super) fn set_others_apart(
        &mut self,
        now: Instant,
        scanned: &mut Vec<Lease>,
    ) -> Vec<Lease> {
        let mut removed = Vec::new();
        for row in std::mem::take(scanned) {
            let Some(other) = self.other_stream(&row) else {
                scanned.push(row);
                continue;
            };
            // The row is replaced, not vanished.
            self.leases.remove(&row.key);
            self.vanished.remove(&row.key);
            if self.settings.stream_recreated.removes(other) {
                removed.push(row);
            } else if other == Other::Newer {
                self.suspect(now, &row.key.stream());
            } else {
                let fault = format!("it belongs to another stream, {}", row.made_for());
                self.unreadable.insert(row.key, fault);
            }
        }
        removed
    }

    /// Discards rows that this worker neither holds nor writes.
    pub(super) fn discard(&mut self, mut rows: Vec<Lease>) -> Vec<Action> {
        rows.retain(|row| {
            let is_free = !self.stopping && !self.mine.contains(&row.key);
            is_free && self.writing.insert(row.key.clone())
        });
        let discard = |row| Action::Write(discard_write(&row, &self.incarnation), Why::Discard);
        rows.into_iter().map(discard).collect()
    }

    pub(super) fn listed(
        &mut self,
        now: Instant,
        key: &StreamKey,
        result: Result<Listing, ServiceError>,
    ) -> Vec<Action> {
        let Some(stream) = self.streams.get_mut(key) else { return Vec::new() };
        stream.listing = false;
        stream.next_audit = now + self.settings.audit_interval;
        stream.listed_at = now;
        match result {
            Ok(listing) => {
                stream.missing_listings = 0;
                self.create(now, key, &listing)
            }
            Err(error) if error.kind == ServiceErrorKind::Missing => self.missing(now, key, error),
            // Nothing depends on a single listing: the next audit makes another one.
            Err(error) => vec![failure("listing the shards", &error)],
        }
    }

    /// Handles a listing that reports a deleted stream. One may be wrong; two in a row, some seconds
    /// apart, are believed.
    fn missing(&mut self, now: Instant, key: &StreamKey, error: ServiceError) -> Vec<Action> {
        let Some(stream) = self.streams.get_mut(key) else { return Vec::new() };
        stream.missing_listings += 1;
        if stream.missing_listings < 2 || self.stopping {
            stream.list_soon(now);
            return vec![failure("listing the shards", &error)];
        }
        stream.is_gone = true;
        // The worker continues as long as one of its streams exists.
        if self.streams.values().all(|stream| stream.is_gone) {
            return vec![Action::Fail(error.into())];
        }
        let gone = Event::StreamDeleted { error: error.to_string() };
        let drains = self.mine.iter().filter(|lease| lease.stream() == *key);
        let drains = drains.cloned().map(Action::Drain);
        std::iter::once(Action::Emit(gone)).chain(drains).collect()
    }

    /// Returns whether this worker handles the row of `key`: rows of a stream that it does not read, or
    /// that is deleted, are ignored.
    pub(super) fn reads(&self, key: &LeaseKey) -> bool {
        self.streams.get(&key.stream()).is_some_and(|stream| !stream.is_gone)
    }

    /// Records the rows that have disappeared since the previous scan.
    pub(super) fn note_vanished(&mut self, now: Instant, scanned: &[Lease]) {
        for lease in scanned {
            self.leases.remove(&lease.key);
            self.vanished.remove(&lease.key);
        }
        let gone = std::mem::take(&mut self.leases).into_iter();
        // Finished rows are deleted on purpose and need not be restored.
        let gone = gone.filter(|(_, row)| !row.checkpoint.is_shard_end());
        self.vanished.extend(gone.map(|(key, row)| (key, Vanished { since: now, row })));
    }

    /// Restores rows that were deleted by hand, as last seen, once their owners have had the time to do so
    /// themselves. Until then the children of such a shard wait.
    pub(super) fn restore_vanished(&mut self, now: Instant) -> Vec<Action> {
        let leases = &self.leases;
        self.vanished.retain(|_, gone| !is_superseded(&gone.row, leases));
        // Whether a row without a hash range was finished is unknown here: only a listing shows it.
        let vanished = self.vanished.iter().filter(|(_, gone)| gone.row.hash_range.is_some());
        let vanished = vanished.map(|(key, _)| key);
        self.hidden = self.unreadable.keys().chain(vanished).cloned().collect();
        if self.stopping {
            return Vec::new();
        }
        let lease_duration = self.settings.lease_duration;
        let due = self.vanished.iter().filter(|(key, gone)| {
            let is_free = !self.mine.contains(*key) && !self.writing.contains(*key);
            is_free && self.hidden.contains(*key) && now >= gone.since + lease_duration
        });
        let rows: Vec<_> = due.map(|(_, gone)| gone.again()).collect();
        self.writing.extend(rows.iter().map(|lease| lease.key.clone()));
        let create = |lease| Action::Write(create_write(lease, &self.incarnation), Why::Create);
        rows.into_iter().map(create).collect()
    }

    /// Creates the leases that are missing according to a listing.
    fn create(&mut self, now: Instant, key: &StreamKey, listing: &Listing) -> Vec<Action> {
        let Some(stream) = self.streams.get_mut(key) else { return Vec::new() };
        if now > self.table_asked_at + self.settings.lease_duration {
            // The process was suspended, or scans fail: a lease that is missing here may have been
            // created, finished and deleted since.
            stream.list_soon(now);
            return Vec::new();
        }
        let has_rows = self.leases.keys().any(|lease| lease.stream() == *key);
        // First leases are created by the start only, which resolves the initial position.
        if self.stopping || !has_rows {
            return Vec::new();
        }
        // A row that disappeared since the last scan may have been finished and deleted: then the leases
        // of its children are in the table, but not known here yet.
        if self.learned.keys().any(|key| !self.leases.contains_key(key)) {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.list_soon(now);
            }
            return Vec::new();
        }
        // A row that will be restored still covers its shard: without it the plan would start over with
        // ancestors that were finished and deleted long ago.
        let mut known = Cow::Borrowed(&self.leases);
        for (key, gone) in self.vanished.iter().filter(|(key, _)| self.hidden.contains(*key)) {
            known.to_mut().insert(key.clone(), gone.row.clone());
        }
        // The content of an unreadable row is unknown, but its shard has a lease.
        for key in self.unreadable.keys().filter(|unreadable| unreadable.stream() == *key) {
            let row = || Lease::new(key.clone(), Checkpoint::TrimHorizon);
            known.to_mut().entry(key.clone()).or_insert_with(row);
        }
        let missing = plan::leases_to_create(listing, &known, &stream.source);
        // The owner of a row that was deleted knows its position and writes it again. Only if it has not
        // done so within a lease duration is the row restored as last seen.
        let missing = missing.into_iter().filter_map(|lease| match self.vanished.get(&lease.key) {
            _ if self.mine.contains(&lease.key) => None,
            Some(gone) if now < gone.since + self.settings.lease_duration => None,
            Some(gone) => Some(gone.again()),
            None => Some(lease),
        });
        let missing: Vec<_> = missing.filter(|lease| !self.writing.contains(&lease.key)).collect();
        self.writing.extend(missing.iter().map(|lease| lease.key.clone()));
        let missing = missing.into_iter();
        missing
            .map(|lease| Action::Write(create_write(lease, &self.incarnation), Why::Create))
            .collect()
    }

    /// Schedules a listing of streams with a hole: a worker may have died between the creation of two
    /// leases that belong together.
    pub(super) fn look_into_holes(&mut self, now: Instant) {
        let mut ranges: BTreeMap<StreamKey, Option<Vec<_>>> = BTreeMap::new();
        let unfinished = self.leases.values().filter(|lease| !lease.checkpoint.is_shard_end());
        for lease in unfinished {
            let ranges = ranges.entry(lease.key.stream()).or_insert_with(|| Some(Vec::new()));
            // Rows of an older library may lack the hash range; then only the audit finds a hole.
            *ranges = ranges.take().zip(lease.hash_range).map(|(mut ranges, range)| {
                ranges.push(range);
                ranges
            });
        }
        for (key, stream) in &mut self.streams {
            let ranges = ranges.remove(key).unwrap_or_else(|| Some(Vec::new()));
            if ranges.is_some_and(|ranges| !shard::covers_everything(ranges.into_iter())) {
                stream.list_soon(now);
            }
        }
    }
}
