//! Checks of deliveries: what may be delivered, by which worker, and in which order.

use std::time::Duration;

use kcl_lite::Record;
use kcl_lite::lease::LeaseKey;

use super::{End, Facts, Ledger, Promise, TenureId};
use crate::reached::Situation;
use crate::stream::{ShardTruth, Shards};
use crate::table::Rows;

/// The part of a lease duration after its last proof within which a worker must have stopped,
/// whatever the rate of its clock.
const FENCE: f64 = 0.95;

/// The number of a delivery whose acknowledgements do not count.
pub(crate) const NOT_COUNTED: u64 = u64::MAX;

/// A batch that is being delivered.
pub(crate) struct Delivery<'a> {
    pub(crate) at: Duration,
    pub(crate) tenure: TenureId,
    pub(crate) shard: usize,
    pub(crate) records: &'a [Record],
    /// Where the deliveries to this processor continue; `None` for the first one.
    pub(crate) next: Option<usize>,
}

impl Ledger {
    /// Notes that a processor gets a batch; returns the number of the delivery and those of its
    /// records.
    pub(crate) fn delivered(
        &mut self,
        delivery: &Delivery<'_>,
        shards: &mut Shards,
        rows: &Rows,
    ) -> (u64, Vec<usize>) {
        if self.is_unaware(delivery, shards) {
            return (NOT_COUNTED, (0..delivery.records.len()).collect());
        }
        let key = LeaseKey::from(shards.all[delivery.shard].id.clone());
        let indexes = self
            .is_owner(delivery)
            .and_then(|()| self.is_in_order(delivery, shards))
            .and_then(|indexes| parents_are_done(delivery, shards, rows).map(|()| indexes))
            .and_then(|indexes| keys_are_in_order(delivery, shards, &indexes).map(|()| indexes));
        match indexes {
            Ok(indexes) => {
                let entries = &shards.all[delivery.shard].entries;
                let entries = || indexes.iter().map(|index| &entries[*index]);
                let parts = entries().filter(|it| it.record.sub_sequence_number > 0);
                let repeated = entries().filter(|it| it.delivered);
                self.counts.note_many(Situation::Delivered, indexes.len());
                self.counts.note_many(Situation::DeliveredFromAggregate, parts.count());
                self.counts.note_many(Situation::Repeated, repeated.count());
                if indexes.windows(2).any(|pair| pair[0] + 1 < pair[1]) {
                    self.counts.note(Situation::DeliveredWithHoles);
                }
                if shards.all[delivery.shard].parents.len() > 1 {
                    self.counts.note(Situation::DeliveredFromMerge);
                }
                if shards.recreated().is_some() && !shards.is_former(delivery.shard) {
                    self.counts.note(Situation::TakenUp);
                }
                // While its successor runs too, neither voids the deliveries and acknowledgements of
                // the other.
                let is_deposed = self.leases.get(&delivery.shard).is_some_and(|it| {
                    it.tenures.get(&delivery.tenure).is_some_and(|it| it.end.is_some())
                });
                if is_deposed {
                    return (NOT_COUNTED, indexes);
                }
                (shards.deliver(delivery.shard, &indexes, delivery.tenure), indexes)
            }
            Err((promise, text)) => {
                self.broken(promise, delivery.at, Some(&key), text);
                (NOT_COUNTED, (0..delivery.records.len()).collect())
            }
        }
    }

    /// Returns whether these are records of the newest stream, delivered by the lease of a former
    /// one. A worker that started before the stream was re-created learns of it when a position is
    /// refused; without a position it reads the new stream like the old one. Such a batch counts as
    /// activity only, neither as a delivery nor as an acknowledgement.
    fn is_unaware(&mut self, delivery: &Delivery<'_>, shards: &Shards) -> bool {
        let newest = shards.find(shards.all[delivery.shard].id.as_str());
        let Some((newest, first)) = newest.zip(delivery.records.first()) else { return false };
        let is_by_other = |facts: &Facts| !facts.tenures.contains_key(&delivery.tenure);
        let is_unaware = shards.recreated().is_some()
            && !self.knows(delivery.tenure.0, shards)
            && shards.index_of(newest, first).is_some()
            && self.leases.get(&newest).is_none_or(is_by_other);
        if is_unaware {
            self.leases.entry(newest).or_default().delivered = delivery.at;
        }
        is_unaware
    }

    fn is_owner(&self, delivery: &Delivery<'_>) -> Found {
        let tenure =
            self.leases.get(&delivery.shard).and_then(|it| it.tenures.get(&delivery.tenure));
        let Some(tenure) = tenure else {
            let text = format!("delivered by {:?}, which never took it", delivery.tenure);
            return Err((Promise::Fence, text));
        };
        if let Some((at, end)) = tenure.end {
            let late = delivery.at.saturating_sub(at);
            // An owner that gets a request and does not answer may still believe in its lease.
            if end != End::Forced || late > self.rules.lasts {
                let text = format!("delivered {late:?} after its tenure ended ({end:?})");
                return Err((Promise::Fence, text));
            }
        }
        let age = delivery.at.saturating_sub(tenure.proof);
        if age > self.rules.lasts.mul_f64(FENCE) {
            return Err((Promise::Fence, format!("delivered {age:?} after its last proof")));
        }
        Ok(())
    }

    /// Checks that the records continue from where the tenure began or continued, without those that
    /// are acknowledged in it, and without any other gap; returns their numbers.
    fn is_in_order(
        &mut self,
        delivery: &Delivery<'_>,
        shards: &mut Shards,
    ) -> Result<Vec<usize>, (Promise, String)> {
        let indexes = delivery.records.iter().map(|it| shards.index_of(delivery.shard, it));
        let indexes: Vec<usize> = indexes.collect::<Option<_>>().unwrap_or_default();
        let Some((first, last)) = indexes.first().copied().zip(indexes.last().copied()) else {
            return Err((Promise::Order, "an empty batch, or a record of another shard".into()));
        };
        if !indexes.is_sorted_by(|one, next| one < next) {
            return Err((Promise::Order, "a batch that is not in order".into()));
        }
        let Some(facts) = self.leases.get_mut(&delivery.shard) else { return Ok(indexes) };
        facts.delivered = delivery.at;
        let Some(tenure) = facts.tenures.get_mut(&delivery.tenure) else { return Ok(indexes) };
        let truth = &mut shards.all[delivery.shard];
        let expected = tenure.next.unwrap_or(tenure.start);
        // Records that were trimmed cannot be delivered.
        if first > expected.max(truth.trimmed) {
            let text = format!("number {first} is delivered, number {expected} is next");
            return Err((Promise::Loss, text));
        }
        if first < tenure.start {
            let text =
                format!("number {first} is repeated, though all before {} is stored", tenure.start);
            return Err((Promise::Repeats, text));
        }
        let from = delivery.next.unwrap_or(tenure.start).max(truth.trimmed).min(first);
        truth.leaves_out_what_is_done(from, &indexes, delivery.tenure)?;
        tenure.next = Some(tenure.next.map_or(last + 1, |next| next.max(last + 1)));
        Ok(indexes)
    }

    /// Notes that a callback of a processor has ended, or was dropped.
    pub(crate) fn processed(
        &mut self,
        at: Duration,
        tenure: TenureId,
        shard: usize,
        key: &LeaseKey,
        thawed: Option<Duration>,
    ) {
        let Some(facts) = self.leases.get(&shard).and_then(|it| it.tenures.get(&tenure)) else {
            return;
        };
        let age = at.saturating_sub(facts.proof);
        // A frozen process can stop its callback only when it thaws.
        let excused = thawed.is_some_and(|thawed| at <= thawed + Duration::from_millis(100));
        if age > self.rules.lasts.mul_f64(FENCE) + Duration::from_millis(5) && !excused {
            let text = format!("still processing {age:?} after its last proof");
            self.broken(Promise::Fence, at, Some(key), text);
        }
    }

    /// Notes that a processor is requested to stop.
    pub(crate) fn asked_to_stop(
        &mut self,
        at: Duration,
        tenure: TenureId,
        shard: usize,
        shards: &mut Shards,
    ) {
        let truth = &mut shards.all[shard];
        let facts = self.leases.get_mut(&shard);
        if let Some(tenure) = facts.and_then(|it| it.tenures.get_mut(&tenure)) {
            let counted = tenure.next.map_or(0, |next| truth.counted(tenure.start, next));
            tenure.asked_to_stop = Some((at, counted));
        }
    }

    /// Returns whether the end of a shard is stored.
    pub(crate) fn is_finished(&self, shard: usize) -> bool {
        self.leases.get(&shard).is_some_and(|it| it.finished.is_some())
    }

    /// Returns the number of the shard of a lease that was taken under this token.
    pub(crate) fn shard_of(
        &self,
        key: &LeaseKey,
        tenure: TenureId,
        shards: &Shards,
    ) -> Option<usize> {
        let holds = |shard: &usize| {
            self.leases.get(shard).is_some_and(|it| it.tenures.contains_key(&tenure))
        };
        shards.find_all(key.as_str()).find(holds).or_else(|| shards.find(key.as_str()))
    }
}

type Found = Result<(), (Promise, String)>;

/// Checks that the end of every parent is stored, unless none of its records was needed or it is
/// gone.
fn parents_are_done(delivery: &Delivery<'_>, shards: &mut Shards, rows: &Rows) -> Found {
    for parent in shards.all[delivery.shard].parents.clone() {
        let row = shards.row(parent, rows);
        let is_unfinished = row.is_some_and(|row| !row.checkpoint.is_shard_end());
        let truth = &mut shards.all[parent];
        let is_needed = truth.entries.last().is_some_and(|last| last.needed);
        if !truth.gone && is_needed && (is_unfinished || !truth.is_done()) {
            let text = format!("delivered before its parent {} has ended", truth.id);
            return Err((Promise::Order, text));
        }
    }
    Ok(())
}

impl ShardTruth {
    /// Checks that between `from` and the last of `indexes` exactly the records acknowledged in
    /// this tenure are skipped.
    fn leaves_out_what_is_done(&mut self, from: usize, indexes: &[usize], by: TenureId) -> Found {
        let mut given = indexes.iter().copied().peekable();
        let end = indexes.last().map_or(from, |last| last + 1);
        for (index, entry) in self.entries.iter_mut().enumerate().take(end).skip(from) {
            let is_of_tenure = entry.by == Some(by);
            if given.next_if_eq(&index).is_none() {
                if !(is_of_tenure && entry.acknowledged) {
                    return Err((Promise::Loss, format!("number {index} is skipped")));
                }
                // The skip proves that the library knows of the acknowledgement.
                entry.counts = true;
            } else if is_of_tenure && entry.counts {
                let text = format!("number {index} is repeated, though it is acknowledged");
                return Err((Promise::Repeats, text));
            }
        }
        Ok(())
    }
}

fn keys_are_in_order(delivery: &Delivery<'_>, shards: &mut Shards, indexes: &[usize]) -> Found {
    for index in indexes.iter().copied() {
        let earlier = shards.earlier_of_key(delivery.shard, index);
        if let Some(earlier) = earlier {
            let text = format!(
                "record {index} of key {} is delivered before {} of another shard",
                earlier.key, earlier.record.sequence_number
            );
            return Err((Promise::Order, text));
        }
    }
    Ok(())
}
