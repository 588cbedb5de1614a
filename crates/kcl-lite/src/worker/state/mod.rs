//! The coordinator's brain: everything a worker decides about leases, without doing any of it.
//!
//! One [`Input`] goes in with the instant it happened, [`Action`]s come out. Pure: no async, no
//! store, no chance. Never waits for a processor.
//!
//! ```text
//!            take done              both tasks gone
//! (free) ──▶ taking ──▶ held ─────────────────────▶ (free)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::ServiceError;
use crate::event::{Event, TakeReason};
use crate::lease::balance::{self, Snapshot, Take};
use crate::lease::expiry::Observations;
use crate::lease::store::WriteOutcome;
use crate::lease::tenure::write_id;
use crate::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite};
use crate::record::WorkerId;
use crate::settings::Settings;
use crate::shard::plan;
use crate::stream::Listing;

/// Everything that can happen to a coordinator.
#[derive(Debug)]
pub(crate) enum Input {
    /// A timer of [`State::next_due`] is due.
    TimeDue,
    /// The scan came back.
    Scanned(Result<Vec<Lease>, ServiceError>),
    /// The listing came back.
    Listed(Result<Listing, ServiceError>),
    /// A create, take or delete came back; its first attempt was sent at `sent`.
    Wrote { write: LeaseWrite, why: Why, sent: Instant, result: Result<WriteOutcome, ServiceError> },
    /// Keeper and shard task of a lease are both gone; the row as the keeper last knew it.
    TenureEnded { key: LeaseKey, row: Option<Lease> },
    /// The user wants to stop.
    StopRequested,
}

/// What a write was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    Create,
    Take { reason: TakeReason, from: Option<WorkerId> },
    Release,
    Delete,
}

/// What the coordinator is to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Read all leases.
    Scan,
    /// List the shards.
    List,
    /// Write, trying again while the answer is unknown.
    Write(LeaseWrite, Why),
    /// Start keeper and shard task for a lease that is ours since `sent`.
    Start { lease: Box<Lease>, sent: Instant },
    /// Let every held shard go in good order.
    DrainAll,
    /// Tell the world.
    Emit(Event),
}

/// What a worker knows and has under way.
#[derive(Debug)]
pub(crate) struct State {
    me: WorkerId,
    incarnation: String,
    settings: Settings,
    leases: BTreeMap<LeaseKey, Lease>,
    observations: Observations,
    /// Held or being taken.
    mine: BTreeSet<LeaseKey>,
    taking: BTreeSet<LeaseKey>,
    /// Rows being created or deleted.
    writing: BTreeSet<LeaseKey>,
    scanning: bool,
    listing: bool,
    next_scan: Instant,
    next_audit: Instant,
    /// When takes were last decided.
    decided_at: Instant,
    failed_scans: u32,
    standing_by: bool,
    stopping: bool,
}

/// The read budget of scans: 5 read units per second and worker, which is 20 KiB of rows a second
/// when read consistently.
const SCAN_BYTES_PER_SECOND: usize = 20 * 1024;
/// What a lease row weighs, by the rows that the KCL and this library write.
const ROW_BYTES: usize = 400;

/// How long to wait between scans of a table of `rows` leases: a second for small tables, at most
/// what the read budget allows for large ones, never slower than half the lease duration.
pub(crate) fn scan_interval(rows: usize, lease_duration: Duration) -> Duration {
    let affordable = Duration::from_secs((rows * ROW_BYTES / SCAN_BYTES_PER_SECOND) as u64);
    affordable.max(Duration::from_secs(1)).min(lease_duration / 2)
}

impl State {
    pub(crate) fn new(me: WorkerId, incarnation: String, settings: Settings, now: Instant) -> Self {
        // Workers that start together list at different times.
        let spread = settings.seed.unwrap_or(0) % 1000;
        let audit = settings.audit_interval.mul_f64(1.0 + f64::from(spread as u32) / 4000.0);
        Self {
            me,
            incarnation,
            leases: BTreeMap::new(),
            observations: Observations::default(),
            mine: BTreeSet::new(),
            taking: BTreeSet::new(),
            writing: BTreeSet::new(),
            scanning: false,
            listing: false,
            next_scan: now,
            next_audit: now + audit,
            decided_at: now,
            failed_scans: 0,
            standing_by: false,
            stopping: false,
            settings,
        }
    }

    /// Whether the worker has stopped: asked to, and holding nothing.
    pub(crate) fn is_finished(&self) -> bool {
        self.stopping && self.mine.is_empty() && self.writing.is_empty()
    }

    /// Unfinished leases in the table.
    pub(crate) fn unfinished(&self) -> usize {
        self.leases.values().filter(|lease| !lease.checkpoint.is_shard_end()).count()
    }

    /// When [`Input::TimeDue`] should come at the latest.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.stopping {
            return None;
        }
        let scan = (!self.scanning).then_some(self.next_scan);
        let audit = (!self.listing).then_some(self.next_audit);
        [scan, audit, self.next_expiry()].into_iter().flatten().min()
    }

    /// Decides what follows from `input`.
    pub(crate) fn step(&mut self, now: Instant, input: Input) -> Vec<Action> {
        match input {
            Input::TimeDue => self.time_due(now),
            Input::Scanned(Ok(leases)) => self.scanned(now, leases),
            Input::Scanned(Err(error)) => self.scan_failed(now, &error),
            Input::Listed(result) => self.listed(now, result),
            Input::Wrote { write, why, sent, result } => self.wrote(now, write, why, sent, result),
            Input::TenureEnded { key, row } => self.tenure_ended(now, &key, row),
            Input::StopRequested => self.stop(),
        }
    }

    fn time_due(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.stopping {
            return actions;
        }
        if !self.scanning && now >= self.next_scan {
            self.scanning = true;
            actions.push(Action::Scan);
        }
        if !self.listing && now >= self.next_audit {
            self.listing = true;
            actions.push(Action::List);
        }
        // A lease that expires between two scans is taken at that instant: the take is conditional
        // on the counter, so no newer scan is needed.
        actions.extend(self.take(now));
        actions
    }

    fn scanned(&mut self, now: Instant, leases: Vec<Lease>) -> Vec<Action> {
        self.scanning = false;
        self.failed_scans = 0;
        self.next_scan = now + scan_interval(leases.len(), self.settings.lease_duration);
        self.observations.scanned(now, &leases);
        self.leases = leases.into_iter().map(|lease| (lease.key.clone(), lease)).collect();
        let mut actions = self.take(now);
        actions.extend(self.delete());
        actions.extend(self.stand_by());
        actions
    }

    fn scan_failed(&mut self, now: Instant, error: &ServiceError) -> Vec<Action> {
        self.scanning = false;
        self.failed_scans = self.failed_scans.saturating_add(1);
        let pause = Duration::from_secs(1 << self.failed_scans.min(3));
        self.next_scan = now + pause.min(self.settings.lease_duration / 2);
        vec![failure("reading the lease table", error)]
    }

    fn listed(&mut self, now: Instant, result: Result<Listing, ServiceError>) -> Vec<Action> {
        self.listing = false;
        self.next_audit = now + self.settings.audit_interval;
        match result {
            Ok(listing) => self.create(&listing),
            Err(error) => vec![failure("listing the shards", &error)],
        }
    }

    /// Creates what a listing shows to be missing.
    pub(crate) fn create(&mut self, listing: &Listing) -> Vec<Action> {
        if self.stopping || self.leases.is_empty() {
            return Vec::new();
        }
        let missing = plan::leases_to_create(listing, &self.leases, self.settings.initial_position);
        let missing = missing.into_iter().filter(|lease| self.writing.insert(lease.key.clone()));
        missing
            .map(|lease| Action::Write(create_write(lease, &self.incarnation), Why::Create))
            .collect()
    }

    fn take(&mut self, now: Instant) -> Vec<Action> {
        if self.stopping {
            return Vec::new();
        }
        self.decided_at = now;
        let snapshot = Snapshot {
            me: &self.me,
            leases: &self.leases,
            mine: &self.mine,
            observations: &self.observations,
            now,
            lasts: self.settings.lease_duration,
            patience: self.settings.lease_duration / 5,
            limit: self.settings.max_leases,
        };
        let takes = balance::leases_to_take(&snapshot);
        takes.into_iter().filter_map(|take| self.begin_take(take)).collect()
    }

    fn begin_take(&mut self, take: Take) -> Option<Action> {
        let lease = self.leases.get(&take.key)?;
        let write = LeaseWrite {
            key: take.key.clone(),
            id: write_id(&self.incarnation, lease.counter),
            change: LeaseChange::Take {
                counter: lease.counter,
                from: lease.owner.clone(),
                owner: self.me.clone(),
            },
        };
        let from = lease.owner.clone();
        self.mine.insert(take.key.clone());
        self.taking.insert(take.key);
        Some(Action::Write(write, Why::Take { reason: take.reason, from }))
    }

    fn delete(&mut self) -> Vec<Action> {
        let doomed: Vec<_> = plan::leases_to_delete(&self.leases)
            .into_iter()
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

    /// Says once that there is nothing to do, until there is.
    fn stand_by(&mut self) -> Option<Action> {
        let unfinished = self.unfinished();
        let idle = self.mine.is_empty() && unfinished > 0 && !self.stopping;
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
                // Unknown whether it was applied: the next scan shows it.
                self.forget(&write.key);
                return vec![failure(why.describe(), &error)];
            }
        };
        let row = match &outcome {
            WriteOutcome::Done(row) | WriteOutcome::Refused(row) => row.clone(),
        };
        self.remember(now, &write.key, row.clone());
        match (why, row) {
            (Why::Create, Some(row)) if matches!(outcome, WriteOutcome::Done(_)) => {
                vec![Action::Emit(Event::LeaseCreated {
                    shard: row.key,
                    checkpoint: row.checkpoint,
                })]
            }
            (Why::Delete, None) => vec![Action::Emit(Event::LeaseDeleted { shard: write.key })],
            (Why::Take { reason, from }, Some(row)) if is_ours(&outcome, &write) => {
                self.taken(row, sent, reason, from)
            }
            (Why::Take { .. } | Why::Release, _) => {
                self.forget(&write.key);
                Vec::new()
            }
            (Why::Create | Why::Delete, _) => Vec::new(),
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
        if self.stopping {
            // Taken while we were asked to stop: give it back at once.
            let change = LeaseChange::Release { counter: row.counter, checkpoint: None };
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

    fn tenure_ended(&mut self, now: Instant, key: &LeaseKey, row: Option<Lease>) -> Vec<Action> {
        self.forget(key);
        let ended = row.as_ref().is_some_and(|row| row.checkpoint.is_shard_end());
        if let Some(row) = row {
            self.remember(now, key, Some(row));
        }
        if ended && !self.stopping {
            // Its children are in the table now; whoever ended the parent can take them at once.
            self.next_scan = now;
        }
        self.time_due(now)
    }

    fn stop(&mut self) -> Vec<Action> {
        self.stopping = true;
        vec![Action::DrainAll]
    }

    fn forget(&mut self, key: &LeaseKey) {
        self.mine.remove(key);
        self.taking.remove(key);
    }

    fn remember(&mut self, now: Instant, key: &LeaseKey, row: Option<Lease>) {
        match row {
            Some(row) => {
                self.observations.saw(now, &row);
                self.leases.insert(key.clone(), row);
            }
            None => {
                self.leases.remove(key);
            }
        }
    }

    /// The first instant at which a lease of another worker may be taken.
    fn next_expiry(&self) -> Option<Instant> {
        self.leases
            .values()
            .filter(|lease| lease.owner.is_some() && !self.mine.contains(&lease.key))
            .filter(|lease| balance::is_runnable(lease, &self.leases))
            .filter_map(|lease| self.observations.expires_at(lease, self.settings.lease_duration))
            // One that had expired when we last decided falls to another worker; scans see to it.
            .filter(|expiry| *expiry > self.decided_at)
            .min()
    }
}

impl Why {
    fn describe(&self) -> &'static str {
        match self {
            Self::Create => "creating a lease",
            Self::Take { .. } => "taking a lease",
            Self::Release => "releasing a lease",
            Self::Delete => "deleting a finished lease",
        }
    }
}

/// A take succeeded if it was applied now, or if the row shows that an earlier attempt of it was.
fn is_ours(outcome: &WriteOutcome, write: &LeaseWrite) -> bool {
    match outcome {
        WriteOutcome::Done(_) => true,
        WriteOutcome::Refused(row) => {
            row.as_ref().is_some_and(|row| row.write_id.as_ref() == Some(&write.id))
        }
    }
}

/// The write that makes a new row.
pub(crate) fn create_write(lease: Lease, incarnation: &str) -> LeaseWrite {
    LeaseWrite {
        key: lease.key.clone(),
        id: write_id(incarnation, lease.counter),
        change: LeaseChange::Create(Box::new(lease)),
    }
}

fn failure(operation: &'static str, error: &ServiceError) -> Action {
    Action::Emit(Event::CoordinationFailed {
        operation,
        error: error.to_string(),
        passing: error.is_passing(),
    })
}

#[cfg(test)]
mod tests;
