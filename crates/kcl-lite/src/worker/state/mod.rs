//! The state machine of the coordinator: all decisions of a worker about leases, without side effects.
//!
//! [`State::step`] takes one [`Input`] with the instant of its arrival and returns [`Action`]s. Pure: no
//! async, no store, no randomness. Never waits for a processor.
//!
//! ```text
//!            take done              both tasks gone
//! (free) ──▶ taking ──▶ held ─────────────────────▶ (free)
//! ```

mod data;
mod duplicate;
mod handoff;
mod health;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::data::{Action, Ending, Input, State, Why};
use self::data::{Duplicates, Freshness, StreamState, Stuck, Vanished, failure};
use self::handoff::understands_handoff;
use crate::error::{Error, ErrorKind, ServiceError, ServiceErrorKind};
use crate::event::{Event, TakeReason};
use crate::lease::balance::{self, Explanation, Full, Snapshot, Take};
use crate::lease::expiry::Observations;
use crate::lease::taking::Takes;
use crate::lease::tenure::{take_id, write_id};
use crate::lease::{
    Lease, LeaseChange, LeaseKey, LeaseUpdate, LeaseWrite, Table, WriteOutcome, timing,
};
use crate::record::WorkerId;
use crate::settings::Settings;
use crate::shard::plan::{self, Source};

/// How many scans in a row have to report that the table does not exist. A single one may be wrong.
const MISSING_SCANS: u32 = 2;

impl State {
    pub(crate) fn new(
        me: WorkerId,
        incarnation: String,
        settings: Arc<Settings>,
        sources: Vec<Source>,
        now: Instant,
    ) -> Self {
        let streams = sources
            .into_iter()
            .map(|source| (source.key.clone(), StreamState::new(source, &settings, now)));
        Self {
            streams: streams.collect(),
            unreadable: BTreeMap::new(),
            hidden: BTreeSet::new(),
            avoided: BTreeMap::new(),
            full: Full::default(),
            stuck: BTreeMap::new(),
            runnable: BTreeMap::new(),
            duplicates: Duplicates::default(),
            lost: BTreeSet::new(),
            has_read_table: false,
            scanned_at: now,
            table_trouble: None,
            draining: false,
            me,
            incarnation,
            leases: BTreeMap::new(),
            observations: Observations::default(),
            mine: BTreeSet::new(),
            taking: BTreeSet::new(),
            takes: Takes::default(),
            asked: BTreeMap::new(),
            vanished: BTreeMap::new(),
            writing: BTreeSet::new(),
            scanning: false,
            scan_asked_at: now,
            table_asked_at: now,
            learned: BTreeMap::new(),
            next_scan: now,
            next_look: None,
            decided_at: now,
            failed_scans: 0,
            missing_scans: 0,
            readable_since: now,
            standing_by: false,
            stopping: false,
            settings,
        }
    }

    /// Returns whether the worker has stopped: a stop was requested, and it holds nothing.
    pub(crate) fn is_finished(&self) -> bool {
        // A request that is not withdrawn yet may still lead to a handoff.
        let settled = self.mine.is_empty() && self.writing.is_empty() && self.asked.is_empty();
        self.stopping && settled
    }

    /// Returns the number of unfinished leases in the table.
    pub(crate) fn unfinished(&self) -> usize {
        self.leases.values().filter(|lease| !lease.checkpoint.is_shard_end()).count()
    }

    /// Returns when the next [`Input::TimeDue`] is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.stopping {
            // A stopping worker reads the table only while it has requests to withdraw.
            let scan = (!self.asked.is_empty() && !self.scanning).then_some(self.next_scan);
            return [scan, self.next_look].into_iter().flatten().min();
        }
        let scan = (!self.scanning).then_some(self.next_scan);
        [scan, self.next_look, self.next_audit(), self.next_expiry()].into_iter().flatten().min()
    }

    /// Decides what follows from `input`.
    pub(crate) fn step(&mut self, now: Instant, input: Input) -> Vec<Action> {
        match input {
            Input::TimeDue => self.time_due(now),
            Input::Scanned(Ok(table)) => self.scanned(now, table),
            // A failed read needs no handling: the next look repeats it.
            Input::Looked { key, result } => self.looked(now, &key, result.ok().flatten()),
            Input::Scanned(Err(error)) => self.scan_failed(now, &error),
            Input::Listed { stream, result } => self.listed(now, &stream, result),
            Input::Wrote { write, why, sent, result } => self.wrote(now, write, why, sent, result),
            Input::TenureEnded { key, row, how } => self.tenure_ended(now, &key, row, how),
            Input::ReaderMissesShard(stream) => {
                self.suspect(now, &stream);
                Vec::new()
            }
            Input::DrainRequested(drain) => self.drain(now, drain),
            Input::StopRequested => self.stop(),
        }
    }

    fn time_due(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.stopping && self.asked.is_empty() {
            // Otherwise a look that is due would keep the timer ready.
            self.next_look = None;
            return actions;
        }
        if !self.scanning && now >= self.next_scan {
            self.scanning = true;
            self.scan_asked_at = now;
            actions.push(Action::Scan);
        }
        if !self.stopping {
            actions.extend(self.list_what_is_due(now));
        }
        actions.extend(self.look_at_handoffs(now));
        // A lease that expires between two scans is taken at that instant: the take is conditional on the
        // counter, so no newer scan is needed. A handoff is not requested here: its live owner has renewed
        // the lease since the scan, so a request by the old counter would be refused.
        actions.extend(self.take(now, Freshness::Stale));
        actions
    }

    fn scanned(&mut self, now: Instant, table: Table) -> Vec<Action> {
        let Table { mut leases, unreadable } = table;
        leases.retain(|lease| self.reads(&lease.key));
        self.table_asked_at = now;
        if std::mem::take(&mut self.scanning) {
            self.table_asked_at = self.scan_asked_at;
            self.keep_what_is_newer(&mut leases);
        }
        let unseen = now.saturating_duration_since(self.scanned_at);
        self.scanned_at = now;
        self.has_read_table = true;
        self.note_table_trouble(None);
        self.unreadable = unreadable;
        let removed = self.set_others_apart(now, &mut leases);
        let has_failed = std::mem::take(&mut self.failed_scans) > 0;
        self.missing_scans = 0;
        // Only an outage in which no worker could renew excuses owners that did not.
        if has_failed && unseen >= self.settings.lease_duration / 2 {
            self.readable_since = now;
        }
        self.next_scan = now + timing::scan_interval(leases.len(), self.settings.lease_duration);
        self.observations.scanned(now, &leases);
        // Before `leases` is replaced: compares this scan with the previous one.
        self.note_vanished(now, &leases);
        self.leases = leases.into_iter().map(|lease| (lease.key.clone(), lease)).collect();
        self.note_runnable(now);
        // Before `note_duplicates`, which leaves out the leases of an earlier incarnation.
        self.note_legacy();
        self.note_duplicates(now);
        if let Some(stop) = self.stop_if_duplicate(now) {
            return vec![stop];
        }
        self.look_into_holes(now);
        let mut actions = self.release();
        // Before the takes, because it decides which rows are hidden, and their children have to
        // wait.
        actions.extend(self.restore_vanished(now));
        self.follow_handoffs(now);
        actions.extend(self.take(now, Freshness::Fresh));
        actions.extend(self.delete(now));
        actions.extend(self.discard(removed));
        actions.extend(self.stand_by());
        actions
    }

    /// Replaces rows of the scan by those that were read or written while it was in progress: a request,
    /// take or delete of that time must not be undone.
    fn keep_what_is_newer(&mut self, scanned: &mut Vec<Lease>) {
        // What was learned before the scan started is part of its result.
        self.learned.retain(|_, at| *at >= self.scan_asked_at);
        scanned.retain(|lease| !self.learned.contains_key(&lease.key));
        scanned.extend(self.learned.keys().filter_map(|key| self.leases.get(key)).cloned());
        scanned.sort_by(|one, other| one.key.cmp(&other.key));
    }

    fn scan_failed(&mut self, now: Instant, error: &ServiceError) -> Vec<Action> {
        self.scanning = false;
        self.note_table_trouble(Some(error));
        self.failed_scans = self.failed_scans.saturating_add(1);
        let pause = Duration::from_secs(1 << self.failed_scans.min(3));
        self.next_scan = now + pause.min(self.settings.lease_duration / 2);
        let is_missing = error.kind == ServiceErrorKind::Missing;
        self.missing_scans = if is_missing { self.missing_scans + 1 } else { 0 };
        if self.missing_scans < MISSING_SCANS || self.stopping {
            return vec![failure("reading the lease table", error)];
        }
        vec![Action::Fail(table_deleted(error))]
    }

    fn take(&mut self, now: Instant, freshness: Freshness) -> Vec<Action> {
        self.decided_at = now;
        if self.stopping || self.draining {
            return self.abandon_requests();
        }
        self.avoided.retain(|_, until| now < *until);
        let (leases, me) = (&self.leases, &self.me);
        self.stuck.retain(|key, stuck| leases.get(key).is_some_and(|row| stuck.is_still(row, me)));
        // Repeated, because rows may have been read or written since the scan.
        self.note_duplicates(now);
        if freshness == Freshness::Fresh {
            let receivers = balance::receivers(&self.snapshot(now));
            self.full.learn(&receivers, now, self.settings.lease_duration);
        }
        let mut takes = balance::leases_to_take(&self.snapshot(now));
        takes.retain(|take| freshness == Freshness::Fresh || take.reason != TakeReason::Balance);
        // After the filter: an overdue takeover has the same reason, but needs no newer scan.
        takes.extend(self.overdue(now));
        takes.into_iter().filter_map(|take| self.begin_take(take)).collect()
    }

    fn snapshot(&self, now: Instant) -> Snapshot<'_> {
        Snapshot {
            me: &self.me,
            leases: &self.leases,
            hidden: &self.hidden,
            mine: &self.mine,
            avoided: &self.avoided,
            duplicates: &self.duplicates.leases,
            observations: &self.observations,
            // While the table cannot be read, its owners may be unable to renew: nothing expires.
            readable_since: if self.failed_scans > 0 { now } else { self.readable_since },
            now,
            lease_duration: self.settings.lease_duration,
            orphan_grace: timing::orphan_grace(self.leases.len(), self.settings.lease_duration),
            balance: self.settings.balance,
            limit: self.settings.max_leases,
            full: self.full.workers(),
        }
    }

    /// Explains what the balancer would do now with every lease, and why.
    pub(crate) fn explain(&self, now: Instant) -> Vec<Explanation> {
        balance::explain(&self.snapshot(now))
    }

    fn begin_take(&mut self, take: Take) -> Option<Action> {
        if self.is_being_written(&take.key) {
            // Expired and overdue at the same time, or refused while another write is in progress.
            return None;
        }
        let lease = self.leases.get(&take.key)?;
        // A live owner is asked first. If it has been asked already, its deadline has passed.
        if take.reason == TakeReason::Balance
            && !self.asked.contains_key(&take.key)
            && let Some(from) = lease.owner.clone().filter(|_| understands_handoff(lease))
        {
            return Some(self.ask(lease.key.clone(), lease.counter, from));
        }
        let handed = take.reason == TakeReason::Own && self.asked.contains_key(&take.key);
        let reason = if handed { TakeReason::Handoff } else { take.reason };
        let write = LeaseWrite {
            key: take.key.clone(),
            id: take_id(&self.incarnation, lease.counter),
            change: LeaseChange::Take {
                counter: lease.counter,
                from: lease.owner.clone(),
                owner: self.me.clone(),
            },
        };
        let from = lease.actual_owner().cloned();
        // Counted before the reply arrives, so that decisions until then do not exceed the share.
        self.mine.insert(take.key.clone());
        self.taking.insert(take.key);
        Some(Action::Write(write, Why::Take { reason, from }))
    }

    /// Deletes finished rows, but only after a while, so that no worker that missed the end creates the
    /// row again: its owner, whose last reply was lost, or a creation that is in flight. The row stays for
    /// longer than the greatest age of a scan on which a creation is decided.
    fn delete(&mut self, now: Instant) -> Vec<Action> {
        let stays = timing::finished_stays(self.settings.lease_duration);
        let doomed: Vec<_> = plan::leases_to_delete(&self.leases)
            .into_iter()
            .filter(|lease| self.observations.unchanged_for(now, lease) >= stays)
            .filter(|lease| !self.mine.contains(&lease.key) && !self.writing.contains(&lease.key))
            .map(|lease| LeaseWrite {
                key: lease.key.clone(),
                id: write_id(&self.incarnation, lease.counter),
                change: LeaseChange::Delete { counter: lease.counter },
            })
            .collect();
        self.writing.extend(doomed.iter().map(|write| write.key.clone()));
        doomed.into_iter().map(|write| Action::Write(write, Why::Delete)).collect()
    }

    /// Emits once that this worker stands by, until it holds a lease.
    fn stand_by(&mut self) -> Option<Action> {
        let unfinished = self.unfinished();
        let holds_nothing = self.mine.is_empty() && self.asked.is_empty();
        let idle = holds_nothing && unfinished > 0 && !self.stopping;
        let owners: BTreeSet<_> =
            self.leases.values().filter_map(|lease| lease.owner.clone()).collect();
        if !idle || owners.is_empty() {
            self.standing_by &= idle;
            return None;
        }
        let first = !std::mem::replace(&mut self.standing_by, true);
        first.then(|| {
            Action::Emit(Event::StandingBy {
                leases: unfinished,
                owners: owners.into_iter().collect(),
            })
        })
    }

    fn wrote(
        &mut self,
        now: Instant,
        write: LeaseWrite,
        why: Why,
        sent: Instant,
        result: Result<WriteOutcome, ServiceError>,
    ) -> Vec<Action> {
        self.writing.remove(&write.key);
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                // Whether the write was applied is unknown; the next scan shows it.
                self.takes.gave_up(&write, sent);
                self.forget(&write.key);
                if self.stopping && why == Why::Withdraw {
                    // A later handoff goes to a stopped worker: the lease expires.
                    self.asked.remove(&write.key);
                }
                return vec![failure(why.describe(), &error)];
            }
        };
        let row = match &outcome {
            WriteOutcome::Done(row) | WriteOutcome::Refused(row) => row.clone(),
        };
        // A refusal carries the current row, too.
        self.remember(now, &write.key, row.clone());
        match (why, row) {
            (Why::Create, Some(row)) if matches!(outcome, WriteOutcome::Done(_)) => {
                vec![Action::Emit(Event::LeaseCreated {
                    shard: row.key,
                    checkpoint: row.checkpoint,
                })]
            }
            (Why::Delete, None) => {
                // A deliberate delete: its children are known, so the creation of leases need not wait.
                self.learned.remove(&write.key);
                vec![Action::Emit(Event::LeaseDeleted { shard: write.key })]
            }
            (Why::Take { reason, from }, Some(row)) => {
                if let Some(since) = self.takes.answered(&write, sent, &outcome) {
                    return self.taken(row, since, reason, from);
                }
                self.forget(&write.key);
                self.take_overdue_again(now, &write.key)
            }
            (Why::Withdraw, _) => self.withdrawn(&write.key),
            (Why::Ask { from }, _) => {
                self.forget(&write.key);
                self.asked_for(now, write.key, from)
            }
            (Why::Take { .. } | Why::Release, _) => {
                self.forget(&write.key);
                Vec::new()
            }
            (Why::Discard, None) => {
                // The row never counted, so its absence proves nothing.
                self.learned.remove(&write.key);
                Vec::new()
            }
            (Why::Create | Why::Delete | Why::Discard, _) => Vec::new(),
        }
    }

    fn taken(
        &mut self,
        row: Lease,
        sent: Instant,
        reason: TakeReason,
        from: Option<WorkerId>,
    ) -> Vec<Action> {
        self.taking.remove(&row.key);
        self.asked.remove(&row.key);
        self.lost.remove(&row.key);
        if self.stopping || self.draining {
            // Taken while stopping or draining: release it at once.
            let change =
                LeaseChange::Release { counter: row.counter, update: LeaseUpdate::default() };
            let id = write_id(&self.incarnation, row.counter);
            return vec![Action::Write(LeaseWrite { key: row.key, id, change }, Why::Release)];
        }
        self.standing_by = false;
        let event = Event::LeaseTaken {
            shard: row.key.clone(),
            from,
            reason,
            checkpoint: row.checkpoint.clone(),
        };
        vec![Action::Emit(event), Action::Start { lease: Box::new(row), sent }]
    }

    fn tenure_ended(
        &mut self,
        now: Instant,
        key: &LeaseKey,
        row: Option<Lease>,
        how: Ending,
    ) -> Vec<Action> {
        self.forget(key);
        if let Ending::Stalled { reason } = how {
            // For one lease duration other workers go first; if there is none, this one takes it
            // after that.
            self.avoided.insert(key.clone(), now + self.settings.lease_duration);
            let row = row.as_ref().or_else(|| self.leases.get(key));
            self.stuck.extend(row.map(|row| (key.clone(), Stuck::at(row, reason))));
        }
        if row.is_none() {
            // The evidence for `stop_if_duplicate`, if the next owner has the same worker ID.
            self.lost.insert(key.clone());
        }
        let ended = row.as_ref().is_some_and(|row| row.checkpoint.is_shard_end());
        if let Some(row) = row {
            self.remember(now, key, Some(row));
        }
        if ended && !self.stopping {
            // The child leases are in the table now: scan at once, so that this worker can take them.
            self.next_scan = now;
        }
        self.time_due(now)
    }

    fn drain(&mut self, now: Instant, drain: bool) -> Vec<Action> {
        self.draining = drain;
        if !drain {
            return self.time_due(now);
        }
        let mut actions = vec![Action::DrainAll];
        actions.extend(self.abandon_requests());
        actions
    }

    fn stop(&mut self) -> Vec<Action> {
        self.stopping = true;
        let mut actions = vec![Action::DrainAll];
        actions.extend(self.abandon_requests());
        actions
    }

    fn forget(&mut self, key: &LeaseKey) {
        self.mine.remove(key);
        self.taking.remove(key);
    }

    fn remember(&mut self, now: Instant, key: &LeaseKey, row: Option<Lease>) {
        if row.as_ref().is_some_and(|row| self.other_stream(row).is_some()) {
            // It proves nothing about the stream that is read, as if there were no row.
            self.leases.remove(key);
            return;
        }
        self.learned.insert(key.clone(), now);
        match row {
            Some(row) => {
                self.observations.saw(now, &row);
                self.leases.insert(key.clone(), row);
            }
            None => {
                let gone = self.leases.remove(key);
                // Finished rows are deleted on purpose and need not be restored.
                if let Some(row) = gone.filter(|row| !row.checkpoint.is_shard_end()) {
                    self.vanished.insert(key.clone(), Vanished { since: now, row });
                }
            }
        }
    }

    /// Returns the next instant at which a lease of another worker expires.
    fn next_expiry(&self) -> Option<Instant> {
        self.leases
            .values()
            .filter(|lease| lease.owner.is_some() && !self.mine.contains(&lease.key))
            .filter(|lease| balance::is_runnable(lease, &self.leases, &self.hidden))
            .filter_map(|lease| self.observations.expires_at(lease, self.settings.lease_duration))
            // A lease that had expired at the last decision is assigned to another worker; scans
            // handle it. Without this filter the timer would spin.
            .filter(|expiry| *expiry > self.decided_at)
            .min()
    }
}

/// Returns the error for a deleted table. The worker does not re-create it: positions that are known here
/// would mix with those of a first start by another worker, so the operator has to decide.
fn table_deleted(error: &ServiceError) -> Error {
    let table = error.call.as_ref().map_or("table", |call| &call.resource);
    let context = format!(
        "the lease {table} was deleted while the worker was running, and with it all checkpoints; restore \
         it, or restart the workers with an initial position from which nothing is missed: the table is \
         then re-created"
    );
    Error::new(ErrorKind::Missing, context)
}

#[cfg(test)]
mod tests;
