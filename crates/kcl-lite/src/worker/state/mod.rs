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

use crate::error::{ServiceError, ServiceErrorKind};
use crate::event::{Event, TakeReason};
use crate::lease::balance::{self, Snapshot, Take};
use crate::lease::expiry::Observations;
use crate::lease::store::{Table, WriteOutcome};
use crate::lease::tenure::{take_id, write_id};
use crate::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite, News};
use crate::record::WorkerId;
use crate::settings::Settings;
use crate::shard::plan::{self, Source};
use crate::stream::Listing;

/// Everything that can happen to a coordinator.
#[derive(Debug)]
pub(crate) enum Input {
    /// A timer of [`State::next_due`] is due.
    TimeDue,
    /// The scan came back.
    Scanned(Result<Table, ServiceError>),
    /// The listing came back.
    Listed(Result<Listing, ServiceError>),
    /// A create, take or delete came back; its first attempt was sent at `sent`.
    Wrote { write: LeaseWrite, why: Why, sent: Instant, result: Result<WriteOutcome, ServiceError> },
    /// Keeper and shard task of a lease are both gone; the row as the keeper last knew it.
    TenureEnded { key: LeaseKey, row: Option<Lease> },
    /// A reader was told that its shard or stream does not exist.
    ReaderMissesShard,
    /// The user wants to stop.
    StopRequested,
}

/// What a write was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    Create,
    Take { reason: TakeReason, from: Option<WorkerId> },
    Ask { from: WorkerId },
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
    /// Let one held shard go in good order: another worker has asked for it.
    Drain(LeaseKey),
    /// Let every held shard go in good order.
    DrainAll,
    /// Tell the world.
    Emit(Event),
    /// Stop in good order, because the stream does not exist any more.
    StreamGone(ServiceError),
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
    /// Rows that were there and are not: deleted by hand, or finished and removed.
    vanished: BTreeMap<LeaseKey, Vanished>,
    /// Leases that other workers were asked for.
    asked: BTreeMap<LeaseKey, Asked>,
    /// Rows being created or deleted.
    writing: BTreeSet<LeaseKey>,
    scanning: bool,
    listing: bool,
    next_scan: Instant,
    next_audit: Instant,
    /// When the shards were last listed.
    listed_at: Instant,
    /// When takes were last decided.
    decided_at: Instant,
    failed_scans: u32,
    /// Listings in a row that said that the stream does not exist.
    missing_listings: u32,
    standing_by: bool,
    stopping: bool,
}

/// A request for a lease that has been answered with yes.
#[derive(Debug)]
struct Asked {
    since: Instant,
    /// The owner's counter at that time.
    counter: u64,
}

/// A row that is no longer in the table, as it was last seen.
#[derive(Debug)]
struct Vanished {
    since: Instant,
    row: Lease,
}

/// The read budget of scans: 5 read units per second and worker, which is 20 KiB of rows a second
/// when read consistently.
const SCAN_BYTES_PER_SECOND: usize = 20 * 1024;
/// What a lease row weighs, by the rows that the KCL and this library write.
const ROW_BYTES: usize = 400;

/// Time between two listings that are made because of a hole, or of a stream that seems gone.
const HOLE_PAUSE: Duration = Duration::from_secs(5);
/// How long an owner that was asked for a lease has to let go, as in the KCL; then it is taken.
const HANDOFF_DEADLINE: Duration = Duration::from_secs(30);
/// How soon to look again while a lease is being handed over.
const HANDOFF_SCAN: Duration = Duration::from_millis(250);

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
            asked: BTreeMap::new(),
            vanished: BTreeMap::new(),
            writing: BTreeSet::new(),
            scanning: false,
            listing: false,
            next_scan: now,
            next_audit: now + audit,
            // The start has just listed them, but before it saw the leases.
            listed_at: now.checked_sub(HOLE_PAUSE).unwrap_or(now),
            decided_at: now,
            failed_scans: 0,
            missing_listings: 0,
            standing_by: false,
            stopping: false,
            settings,
        }
    }

    /// Whether the worker has stopped: asked to, and holding nothing.
    pub(crate) fn is_finished(&self) -> bool {
        // What was asked for comes even now; it has to be given back.
        let settled = self.mine.is_empty() && self.writing.is_empty() && self.asked.is_empty();
        self.stopping && settled
    }

    /// Unfinished leases in the table.
    pub(crate) fn unfinished(&self) -> usize {
        self.leases.values().filter(|lease| !lease.checkpoint.is_shard_end()).count()
    }

    /// When [`Input::TimeDue`] should come at the latest.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.stopping {
            return (!self.asked.is_empty() && !self.scanning).then_some(self.next_scan);
        }
        let scan = (!self.scanning).then_some(self.next_scan);
        let audit = (!self.listing).then_some(self.next_audit);
        [scan, audit, self.next_expiry()].into_iter().flatten().min()
    }

    /// Decides what follows from `input`.
    pub(crate) fn step(&mut self, now: Instant, input: Input) -> Vec<Action> {
        match input {
            Input::TimeDue => self.time_due(now),
            Input::Scanned(Ok(table)) => self.scanned(now, table.leases),
            Input::Scanned(Err(error)) => self.scan_failed(now, &error),
            Input::Listed(result) => self.listed(now, result),
            Input::Wrote { write, why, sent, result } => self.wrote(now, write, why, sent, result),
            Input::TenureEnded { key, row } => self.tenure_ended(now, &key, row),
            Input::ReaderMissesShard => {
                self.list_soon(now);
                Vec::new()
            }
            Input::StopRequested => self.stop(),
        }
    }

    fn time_due(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.stopping && self.asked.is_empty() {
            return actions;
        }
        if !self.scanning && now >= self.next_scan {
            self.scanning = true;
            actions.push(Action::Scan);
        }
        if !self.listing && !self.stopping && now >= self.next_audit {
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
        self.note_vanished(now, &leases);
        self.leases = leases.into_iter().map(|lease| (lease.key.clone(), lease)).collect();
        self.look_into_holes(now);
        let mut actions = self.let_go();
        self.follow_handoffs(now);
        actions.extend(self.take(now));
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
        self.listed_at = now;
        match result {
            Ok(listing) => {
                self.missing_listings = 0;
                self.create(now, &listing)
            }
            Err(error) if error.kind == ServiceErrorKind::Missing => self.missing(now, error),
            Err(error) => vec![failure("listing the shards", &error)],
        }
    }

    /// One listing may be wrong; two in a row, some seconds apart, are believed.
    fn missing(&mut self, now: Instant, error: ServiceError) -> Vec<Action> {
        self.missing_listings += 1;
        if self.missing_listings > 1 && !self.stopping {
            return vec![Action::StreamGone(error)];
        }
        self.list_soon(now);
        vec![failure("listing the shards", &error)]
    }

    /// Lists before the next audit is due, but not at every occasion.
    fn list_soon(&mut self, now: Instant) {
        if !self.listing {
            self.next_audit = self.next_audit.min(now.max(self.listed_at + HOLE_PAUSE));
        }
    }

    fn note_vanished(&mut self, now: Instant, scanned: &[Lease]) {
        for lease in scanned {
            self.leases.remove(&lease.key);
            self.vanished.remove(&lease.key);
        }
        let gone = std::mem::take(&mut self.leases).into_iter();
        let gone = gone.filter(|(_, row)| !row.checkpoint.is_shard_end());
        self.vanished.extend(gone.map(|(key, row)| (key, Vanished { since: now, row })));
    }

    /// Creates what a listing shows to be missing.
    fn create(&mut self, now: Instant, listing: &Listing) -> Vec<Action> {
        if self.stopping || self.leases.is_empty() {
            return Vec::new();
        }
        let position = self.settings.initial_position;
        let source = Source { position, ..Source::default() };
        let missing = plan::leases_to_create(listing, &self.leases, &source);
        // The owner of a row that was deleted knows its position and writes it again; only when it
        // has not, within a lease duration, is the row made again as it was last seen.
        let missing = missing.into_iter().filter_map(|lease| match self.vanished.get(&lease.key) {
            _ if self.mine.contains(&lease.key) => None,
            Some(gone) if now < gone.since + self.settings.lease_duration => None,
            Some(gone) => {
                let counter = gone.row.counter + 1;
                Some(Lease { owner: None, checkpoint_owner: None, counter, ..gone.row.clone() })
            }
            None => Some(lease),
        });
        let missing: Vec<_> = missing.filter(|lease| !self.writing.contains(&lease.key)).collect();
        self.writing.extend(missing.iter().map(|lease| lease.key.clone()));
        let missing = missing.into_iter();
        missing
            .map(|lease| Action::Write(create_write(lease, &self.incarnation), Why::Create))
            .collect()
    }

    fn take(&mut self, now: Instant) -> Vec<Action> {
        if self.stopping {
            return self.take_what_was_asked_for();
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
        let mut takes = balance::leases_to_take(&snapshot);
        takes.extend(self.overdue(now));
        takes.into_iter().filter_map(|take| self.begin_take(take)).collect()
    }

    /// While stopping: leases that were handed over to us are taken, and `taken` gives them back.
    fn take_what_was_asked_for(&mut self) -> Vec<Action> {
        let handed = self.asked.keys().filter(|key| {
            self.leases.get(*key).is_some_and(|lease| {
                lease.owner.as_ref() == Some(&self.me) && lease.checkpoint_owner.is_none()
            })
        });
        let handed: Vec<_> = handed.cloned().collect();
        let takes = handed.into_iter().map(|key| Take { key, reason: TakeReason::Own });
        takes.filter_map(|take| self.begin_take(take)).collect()
    }

    fn begin_take(&mut self, take: Take) -> Option<Action> {
        if self.mine.contains(&take.key) {
            // Expired and overdue at once: one of the two is under way.
            return None;
        }
        let lease = self.leases.get(&take.key)?;
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
        self.asked.remove(&take.key);
        self.mine.insert(take.key.clone());
        self.taking.insert(take.key);
        Some(Action::Write(write, Why::Take { reason, from }))
    }

    fn ask(&mut self, key: LeaseKey, counter: u64, from: WorkerId) -> Action {
        let id = write_id(&self.incarnation, counter);
        let to = self.me.clone();
        let change = LeaseChange::AskHandoff { counter, from: from.clone(), to };
        // Until the answer comes nothing else is tried with this lease.
        self.mine.insert(key.clone());
        Action::Write(LeaseWrite { key, id, change }, Why::Ask { from })
    }

    /// Unfinished leases that leave a part of the hash space to nobody ask for a listing soon: a worker
    /// died between two leases that belong together.
    fn look_into_holes(&mut self, now: Instant) {
        let unfinished = self.leases.values().filter(|lease| !lease.checkpoint.is_shard_end());
        let ranges: Option<Vec<_>> = unfinished.map(|lease| lease.hash_range).collect();
        // Rows of an older library may not say what they serve; then only the audit can tell.
        let has_hole = ranges.is_some_and(|ranges| !plan::covers_everything(ranges.into_iter()));
        if has_hole {
            self.list_soon(now);
        }
    }

    /// Shards of ours that another worker has asked for.
    fn let_go(&self) -> Vec<Action> {
        let asked = self.mine.iter().filter(|key| {
            self.leases.get(*key).is_some_and(|lease| {
                lease.checkpoint_owner.as_ref() == Some(&self.me)
                    && lease.owner.as_ref() != Some(&self.me)
            })
        });
        asked.cloned().map(Action::Drain).collect()
    }

    /// Forgets what is no longer being handed over; looks again soon at what is.
    fn follow_handoffs(&mut self, now: Instant) {
        let (me, leases, observations) = (&self.me, &self.leases, &self.observations);
        self.asked.retain(|key, asked| {
            // A scan that was under way when we asked shows the row as it was before.
            leases.get(key).is_some_and(|lease| {
                // A worker that stops does not wait for an owner that died.
                let is_dead = self.stopping
                    && observations.unchanged_for(now, lease) >= self.settings.lease_duration;
                !is_dead && (lease.owner.as_ref() == Some(me) || lease.counter <= asked.counter)
            })
        });
        // Asked for in an earlier life, or by a request whose every reply was lost.
        for lease in self.leases.values().filter(|lease| lease.owner.as_ref() == Some(me)) {
            if lease.checkpoint_owner.as_ref().is_some_and(|owner| owner != me) {
                let asked = Asked { since: now, counter: lease.counter };
                self.asked.entry(lease.key.clone()).or_insert(asked);
            }
        }
        if !self.asked.is_empty() && self.next_scan <= now + Duration::from_secs(1) {
            self.next_scan = now + HANDOFF_SCAN;
        }
    }

    /// Leases whose owners were asked and have not let go in time.
    fn overdue(&self, now: Instant) -> Vec<Take> {
        let waiting = self.asked.iter().filter(|(key, asked)| {
            let pending =
                self.leases.get(*key).is_some_and(|lease| lease.checkpoint_owner.is_some());
            pending && !self.mine.contains(*key) && now >= asked.since + HANDOFF_DEADLINE
        });
        waiting.map(|(key, _)| Take { key: key.clone(), reason: TakeReason::Balance }).collect()
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
            (Why::Take { reason, from }, Some(row)) if self.is_ours(&outcome, &write, &row) => {
                self.taken(row, sent, reason, from)
            }
            (Why::Ask { from }, _) => {
                self.forget(&write.key);
                self.asked_for(now, write.key, from)
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
            let change = LeaseChange::Release { counter: row.counter, news: News::default() };
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

    fn asked_for(&mut self, now: Instant, key: LeaseKey, from: WorkerId) -> Vec<Action> {
        // A refusal that shows us as the next owner is our own request, whose reply was lost.
        let asked = self.leases.get(&key).filter(|lease| {
            lease.owner.as_ref() == Some(&self.me) && lease.checkpoint_owner.as_ref() == Some(&from)
        });
        let Some(counter) = asked.map(|lease| lease.counter) else { return Vec::new() };
        self.asked.insert(key.clone(), Asked { since: now, counter });
        self.next_scan = self.next_scan.min(now + HANDOFF_SCAN);
        vec![Action::Emit(Event::HandoffAsked { shard: key, from })]
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

    /// A take succeeded if it was applied now, or if the row is as an earlier attempt of it left it.
    fn is_ours(&self, outcome: &WriteOutcome, write: &LeaseWrite, row: &Lease) -> bool {
        let is_as_taken = row.owner.as_ref() == Some(&self.me) && row.checkpoint_owner.is_none();
        match outcome {
            WriteOutcome::Done(_) => true,
            WriteOutcome::Refused(_) => is_as_taken && row.write_id.as_ref() == Some(&write.id),
        }
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
            Self::Ask { .. } => "asking for a lease",
            Self::Release => "releasing a lease",
            Self::Delete => "deleting a finished lease",
        }
    }
}

/// Whether the owner of `lease` knows what to do when it is asked: the last write was this library's,
/// by the counter in its mark. Others (Java 2.x among them) leave an older mark where it is.
fn understands_handoff(lease: &Lease) -> bool {
    lease.write_id.as_ref().is_some_and(|id| id.counter() == lease.counter.checked_sub(1))
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
