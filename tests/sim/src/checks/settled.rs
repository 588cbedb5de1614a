//! Checks after the faults are over: all shards make progress, leases are balanced, and calls are
//! few.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_lite::lease::{Lease, LeaseKey};
use kcl_lite::{Checkpoint, WorkerId};

use super::{Calls, Ledger, Promise};
use crate::reached::Situation;
use crate::stream::Shards;
use crate::table::Rows;

/// How long a fault from before the calm may last: the longest pause of a processor, or a read that
/// hangs.
const AFTERMATH: Duration = Duration::from_secs(60);
/// How long after the calm, and after the last change, leases may still move.
const BALANCING: Duration = Duration::from_secs(60);

/// Records younger than this may still be in flight.
const RECENT: Duration = Duration::from_secs(30);

impl Ledger {
    /// Returns how long a record may wait for its delivery, once the faults are over.
    pub(super) fn patience(&self) -> Duration {
        self.rules.lasts * 2 + self.rules.audit.mul_f64(1.3) + self.rules.poll * 2
    }

    /// Checks, every second after the calm, that every readable shard is being delivered.
    pub(crate) fn flows(&mut self, now: Duration, shards: &mut Shards, rows: &Rows) {
        let since = self.rules.calm_at + AFTERMATH;
        if now < since + self.patience() {
            return;
        }
        for shard in 0..shards.all.len() {
            let runnable_at = self.runnable_at(shard, shards);
            let Some(runnable_at) = runnable_at else { continue };
            // A backlog may be long: some delivery is sufficient.
            let delivered = self.leases.get(&shard).map_or(Duration::ZERO, |it| it.delivered);
            let Some(entry) = shards.all[shard].oldest_unseen() else { continue };
            let from = since.max(runnable_at).max(entry.arrived).max(delivered);
            if now > from + self.patience() {
                let waits = now.saturating_sub(from);
                let number = entry.record.sequence_number.clone();
                let id = shards.all[shard].id.clone();
                let row = shards.row(shard, rows);
                let text = format!("record {number} waits {waits:?} for its delivery; {row:?}");
                return self.broken(Promise::Progress, now, Some(&id), text);
            }
        }
    }

    /// Returns since when all parents are finished.
    pub(super) fn runnable_at(&self, shard: usize, shards: &mut Shards) -> Option<Duration> {
        let mut at = shards.all[shard].opened;
        for parent in shards.all[shard].parents.clone() {
            let facts = self.leases.get(&parent);
            let parent = &mut shards.all[parent];
            // It is unknown when the last of its records was acknowledged.
            at = at.max(facts.map_or(Duration::ZERO, |it| it.delivered));
            match facts.and_then(|it| it.finished) {
                Some(finished) => at = at.max(finished),
                None if parent.gone || parent.is_done() => {}
                None => return None,
            }
        }
        Some(at)
    }

    /// Checks the settled state at the end, before any worker is stopped.
    pub(crate) fn is_settled(
        &mut self,
        now: Duration,
        shards: &mut Shards,
        rows: &Rows,
        live: &[WorkerId],
    ) {
        for number in 0..shards.all.len() {
            if self.is_being_read(now, number, shards) {
                continue;
            }
            let row = shards.row(number, rows);
            let shard = &mut shards.all[number];
            if let Some(entry) = shard.waiting_since(now.saturating_sub(RECENT)) {
                let number = &entry.record.sequence_number;
                let text = format!("record {number} was not acknowledged; {row:?}");
                return self.broken(Promise::Progress, now, Some(&shard.id), text);
            }
        }
        self.is_stored(now, shards, rows);
        if shards.is_refused(rows) {
            return;
        }
        if let Some(row) = rows.values().find(|row| shards.is_of_former(row)) {
            let text = "a row of a deleted stream remains".to_owned();
            return self.broken(Promise::Rows, now, Some(&row.key), text);
        }
        self.is_even(now, rows, live);
        self.is_cheap(now, shards, rows);
    }

    /// Returns whether records of the shard were delivered lately, or a parent has to be read first:
    /// with a backlog left after the calm, no more can be required.
    fn is_being_read(&self, now: Duration, shard: usize, shards: &mut Shards) -> bool {
        let delivered = self.leases.get(&shard).map(|it| it.delivered);
        let is_read = delivered.is_some_and(|at| at > now.saturating_sub(RECENT));
        is_read || self.runnable_at(shard, shards).is_none()
    }

    /// Checks that records acknowledged some time ago are checkpointed, and closed shards are
    /// finished.
    fn is_stored(&mut self, now: Duration, shards: &mut Shards, rows: &Rows) {
        let old = now.saturating_sub(self.rules.lasts * 2 + Duration::from_secs(60));
        for number in 0..shards.all.len() {
            let finished = self.is_finished(number) || self.is_being_read(now, number, shards);
            let row = shards.row(number, rows);
            let shard = &mut shards.all[number];
            let key = LeaseKey::from(shard.id.clone());
            let was_needed = shard.entries.iter().any(|it| it.needed);
            if was_needed && shard.closed.is_some_and(|closed| closed < old) && !finished {
                let text = format!("everything is read, but the end is not stored; {row:?}");
                return self.broken(Promise::Progress, now, Some(&key), text);
            }
            // While a backlog is processed, the window always contains old records that were just
            // delivered.
            let Some(row) = row.filter(|_| shard.waiting_since(old).is_none()) else { continue };
            let stored = shard.first_after(&row.checkpoint, row.anchor);
            let behind = shard.entries.iter().skip(stored).find(|it| it.needed);
            if let Some(entry) = behind.filter(|it| it.arrived < old) {
                let text = format!(
                    "record {} is acknowledged, but {} is stored",
                    entry.record.sequence_number, row.checkpoint
                );
                return self.broken(Promise::Progress, now, Some(&key), text);
            }
        }
    }

    /// Checks that the numbers of leases differ by at most one, and that no lease has moved for a
    /// while.
    fn is_even(&mut self, now: Duration, rows: &Rows, live: &[WorkerId]) {
        let runnable = |row: &&Lease| {
            let parents = row.parents.iter().map(|it| rows.get(&LeaseKey::from(it.clone())));
            let is_open =
                |row: Option<&Lease>| row.is_none_or(|row| row.checkpoint == Checkpoint::ShardEnd);
            row.checkpoint != Checkpoint::ShardEnd && parents.into_iter().all(is_open)
        };
        let mut loads: BTreeMap<&WorkerId, usize> = live.iter().map(|it| (it, 0)).collect();
        for row in rows.values().filter(runnable) {
            let load = row.owner.as_ref().and_then(|owner| loads.get_mut(owner));
            match load {
                Some(load) => *load += 1,
                None => {
                    let text = format!("owned by {:?}, which is dead", row.owner);
                    return self.broken(Promise::Progress, now, Some(&row.key), text);
                }
            }
        }
        if let Some(full) = self.rules.full_slot.map(|slot| format!("w{slot}.")) {
            let limited = loads.extract_if(.., |worker, _| worker.as_str().starts_with(&full));
            if limited.map(|(_, load)| load).sum::<usize>() > 1 {
                let text = "a worker holds more leases than it may".to_owned();
                return self.broken(Promise::Balance, now, None, text);
            }
        }
        let (least, most) = (loads.values().min(), loads.values().max());
        if most.zip(least).is_some_and(|(most, least)| most - least > 1) {
            let text = format!("loads are {loads:?}");
            return self.broken(Promise::Balance, now, None, text);
        }
        let quiet = self.rules.calm_at + AFTERMATH + self.patience();
        if self.handed_at > quiet.max(self.finished_at) + BALANCING {
            let text = format!("leases still moved at {:?}", self.handed_at);
            self.broken(Promise::Balance, now, None, text);
        }
    }

    /// Checks that the last whole minute, which had no faults and moves, kept to the documented
    /// budget of calls.
    fn is_cheap(&mut self, now: Duration, shards: &Shards, rows: &Rows) {
        let minute = now.as_secs() / 60 - 1;
        let began = Duration::from_secs(minute * 60);
        if self.moved_at.max(self.listed_at) >= began.saturating_sub(Duration::from_secs(1)) {
            return;
        }
        let leases = self.leases.iter().filter(|(shard, _)| !shards.is_former(**shard));
        let held: BTreeMap<usize, u64> =
            leases.filter_map(|(_, it)| it.current).fold(BTreeMap::new(), |mut held, (who, _)| {
                *held.entry(who).or_default() += 1;
                held
            });
        let renewals = 60_000_f64 / (self.rules.lasts.as_secs_f64() * 1000.0 / 3.0);
        for ((who, at), calls) in self.calls.clone() {
            if at != minute {
                continue;
            }
            let leases = held.get(&who).copied().unwrap_or(0);
            self.is_within(now, who, calls, leases as f64 * renewals, rows.len());
        }
    }

    fn is_within(&mut self, now: Duration, who: usize, calls: Calls, renewals: f64, rows: usize) {
        let scans = 62;
        let writes = if self.rules.eager { f64::INFINITY } else { renewals * 1.1 + 2.0 };
        let lists = 60.0 / self.rules.audit.as_secs_f64() + 2.0;
        let is_over =
            calls.scans > scans || calls.writes as f64 > writes || calls.lists as f64 > lists;
        if is_over {
            let text = format!(
                "incarnation {who} made {calls:?} in a quiet minute; stated are {scans} scans, \
                 {writes:.0} writes, {lists:.0} listings for {rows} rows"
            );
            self.broken(Promise::Budget, now, None, text);
        }
    }

    /// Checks, after all workers have shut down gracefully, that no lease has an owner and
    /// everything is checkpointed.
    pub(crate) fn is_released(
        &mut self,
        now: Duration,
        shards: &mut Shards,
        rows: &Rows,
        stopped: &[WorkerId],
    ) {
        let [repeated, expired, forced] =
            [Situation::Repeated, Situation::Expired, Situation::Forced]
                .map(|it| self.counts.of(it));
        if self.rules.calm && repeated + expired + forced > 0 {
            let text = format!(
                "nothing went wrong, but {repeated} records were repeated, {expired} leases \
                 expired and {forced} were taken by force"
            );
            return self.broken(Promise::Repeats, now, None, text);
        }
        for row in rows.values() {
            if row.actual_owner().is_some_and(|owner| stopped.contains(owner)) {
                let text = format!("still owned by {:?}, which has stopped", row.actual_owner());
                return self.broken(Promise::Repeats, now, Some(&row.key), text);
            }
            let Some(shard) = shards.of_row(row) else { continue };
            let truth = &mut shards.all[shard];
            let stored = truth.first_after(&row.checkpoint, row.anchor);
            let last = truth.entries.iter().rposition(|it| it.needed && it.delivered);
            if last.is_some_and(|last| last >= stored) {
                let text = format!("number {last:?} was delivered, {} is stored", row.checkpoint);
                return self.broken(Promise::Repeats, now, Some(&row.key), text);
            }
        }
    }
}
