//! The streams of a worker: listing their shards, and what follows from a listing.
//!
//! Each stream is listed by its own clock, and sooner when something looks wrong: a hole in what the
//! leases cover, or a reader that is told that its shard does not exist. A listing is a hint; a
//! stream counts as deleted only when two listings in a row say so.

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
    /// The row as it was last seen, but free.
    fn again(&self) -> Lease {
        let counter = counter_after(self.row.counter, 1);
        Lease { owner: None, checkpoint_owner: None, counter, ..self.row.clone() }
    }
}

/// Whether what `gone` served is served by others that have begun: then it was finished and removed,
/// and this worker has missed it. Without its range nobody can tell.
fn is_superseded(gone: &Lease, leases: &BTreeMap<LeaseKey, Lease>) -> bool {
    let Some(range) = gone.hash_range else { return false };
    let before = ancestors(gone, leases);
    leases.values().filter(|lease| lease.key.stream() == gone.key.stream()).any(|lease| {
        let overlaps =
            lease.hash_range.is_some_and(|it| it.start <= range.end && range.start <= it.end);
        overlaps && lease.checkpoint.has_progress() && !before.contains(&lease.key)
    })
}

/// The leases of the shards that `lease` continues, as far as they are known.
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
            // The start may just have listed them, but before it saw the leases.
            listed_at: now.checked_sub(HOLE_PAUSE).unwrap_or(now),
            missing_listings: 0,
            is_gone: false,
        }
    }

    /// Lists before the next audit is due, but not at every occasion.
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

    /// How many live workers hold leases, and our place among them. They audit in turn, so that a
    /// stream is listed about once per interval, however many workers there are.
    fn live_owners(&self, now: Instant) -> (usize, Option<usize>) {
        let lease_duration = self.settings.lease_duration;
        let live = self.leases.values().filter(|lease| {
            self.mine.contains(&lease.key)
                || self.observations.unchanged_for(now, lease) < lease_duration
        });
        let owners: BTreeSet<_> = live.filter_map(Lease::actual_owner).collect();
        (owners.len(), owners.iter().position(|owner| **owner == self.me))
    }

    /// Something speaks for it that `stream` is gone, or another one: a listing will tell.
    pub(super) fn suspect(&mut self, now: Instant, stream: &StreamKey) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.list_soon(now);
        }
    }

    /// How the stream that a row is of stands to the one that is read by its key, if it is another.
    pub(super) fn other_stream(&self, row: &Lease) -> Option<Other> {
        self.streams.get(&row.key.stream())?.source.other_stream(row)
    }

    /// Takes the rows of other streams out of `scanned`: none of them says anything about the stream
    /// that is read, but newer ones say that it is gone. Returns those that are to be removed: an owner
    /// that did not know has put them back.
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
            // In their place, not gone.
            self.leases.remove(&row.key);
            self.vanished.remove(&row.key);
            if self.settings.stream_recreated.removes(other) {
                removed.push(row);
            } else if other == Other::Newer {
                self.suspect(now, &row.key.stream());
            } else {
                let fault = format!("it is of another stream, {}", row.made_for());
                self.unreadable.insert(row.key, fault);
            }
        }
        removed
    }

    /// Removes rows that nobody here holds or writes.
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
            Err(error) => vec![failure("listing the shards", &error)],
        }
    }

    /// One listing may be wrong; two in a row, some seconds apart, are believed.
    fn missing(&mut self, now: Instant, key: &StreamKey, error: ServiceError) -> Vec<Action> {
        let Some(stream) = self.streams.get_mut(key) else { return Vec::new() };
        stream.missing_listings += 1;
        if stream.missing_listings < 2 || self.stopping {
            stream.list_soon(now);
            return vec![failure("listing the shards", &error)];
        }
        stream.is_gone = true;
        if self.streams.values().all(|stream| stream.is_gone) {
            return vec![Action::Fail(error.into())];
        }
        let gone = Event::StreamDeleted { error: error.to_string() };
        let drains = self.mine.iter().filter(|lease| lease.stream() == *key);
        let drains = drains.cloned().map(Action::Drain);
        std::iter::once(Action::Emit(gone)).chain(drains).collect()
    }

    /// Whether the rows of `key` are this worker's business: those of a stream that it does not read,
    /// or that is gone, are left alone.
    pub(super) fn reads(&self, key: &LeaseKey) -> bool {
        self.streams.get(&key.stream()).is_some_and(|stream| !stream.is_gone)
    }

    /// Compares a scan with what was known before it.
    pub(super) fn note_vanished(&mut self, now: Instant, scanned: &[Lease]) {
        for lease in scanned {
            self.leases.remove(&lease.key);
            self.vanished.remove(&lease.key);
        }
        let gone = std::mem::take(&mut self.leases).into_iter();
        let gone = gone.filter(|(_, row)| !row.checkpoint.is_shard_end());
        self.vanished.extend(gone.map(|(key, row)| (key, Vanished { since: now, row })));
    }

    /// Makes rows again that were deleted by hand, as they were last seen, once their owners have had
    /// the time to do it themselves. Until then the children of such a shard wait.
    pub(super) fn restore_vanished(&mut self, now: Instant) -> Vec<Action> {
        let leases = &self.leases;
        self.vanished.retain(|_, gone| !is_superseded(&gone.row, leases));
        // Of a row without a range nobody can tell whether it was finished: only a listing can.
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

    /// Creates what a listing shows to be missing.
    fn create(&mut self, now: Instant, key: &StreamKey, listing: &Listing) -> Vec<Action> {
        let Some(stream) = self.streams.get_mut(key) else { return Vec::new() };
        if now > self.table_asked_at + self.settings.lease_duration {
            // The process was stopped, or the table cannot be read: what is missing here may have
            // come and gone there.
            stream.list_soon(now);
            return Vec::new();
        }
        let has_rows = self.leases.keys().any(|lease| lease.stream() == *key);
        if self.stopping || !has_rows {
            return Vec::new();
        }
        // A row that was found gone since the last scan may have been finished and deleted: then the
        // shards that continue it are in the table, but not in what is known here.
        if self.learned.keys().any(|key| !self.leases.contains_key(key)) {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.list_soon(now);
            }
            return Vec::new();
        }
        // A row that will be restored still covers its shard: without it the plan would begin again
        // with ancestors that were finished and removed long ago.
        let mut known = Cow::Borrowed(&self.leases);
        for (key, gone) in self.vanished.iter().filter(|(key, _)| self.hidden.contains(*key)) {
            known.to_mut().insert(key.clone(), gone.row.clone());
        }
        // Nobody knows what an unreadable row says, but it says that the shard is served.
        for key in self.unreadable.keys().filter(|unreadable| unreadable.stream() == *key) {
            let row = || Lease::new(key.clone(), Checkpoint::TrimHorizon);
            known.to_mut().entry(key.clone()).or_insert_with(row);
        }
        let missing = plan::leases_to_create(listing, &known, &stream.source);
        // The owner of a row that was deleted knows its position and writes it again; only when it
        // has not, within a lease duration, is the row made again as it was last seen.
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

    /// Unfinished leases that leave a part of the hash space to nobody ask for a listing soon: a worker
    /// died between two leases that belong together.
    pub(super) fn look_into_holes(&mut self, now: Instant) {
        let mut ranges: BTreeMap<StreamKey, Option<Vec<_>>> = BTreeMap::new();
        let unfinished = self.leases.values().filter(|lease| !lease.checkpoint.is_shard_end());
        for lease in unfinished {
            let ranges = ranges.entry(lease.key.stream()).or_insert_with(|| Some(Vec::new()));
            // Rows of an older library may not say what they serve; then only the audit can tell.
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
