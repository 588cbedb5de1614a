//! KPL aggregates: many records out of one, as the Java KCL does it, but nothing is ever dropped
//! without being asked for.
//!
//! Applies to whatever a reader returns, so to polling, fan-out and memory streams alike. A plain
//! record pays a comparison of four bytes. What cannot be unpacked is delivered as it was read and
//! marked. Decides nothing about positions: a part has its index, and that is all.

use std::sync::Arc;
use std::time::Duration;

use kpl_format::{Aggregate, UserRecord, hash_key, is_aggregate};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::context::ShardTaskContext;
use crate::event::Event;
use crate::position::{Checkpoint, Position};
use crate::record::{HashKey, LeaseKey, Packing, Record};
use crate::settings::MisroutedPolicy;
use crate::shard::HashRange;

/// The least time between two events of one kind about one shard: a producer that does something
/// wrong does it with every record.
const EVENT_INTERVAL: Duration = Duration::from_secs(60);
/// What the records of one aggregate may take in memory, far more than any producer packs (a reply
/// has 10 MiB at most). A forged one may name a long key a hundred thousand times.
const MOST_BYTES: u64 = 128 << 20;
/// What a record takes beside its data and its key: itself and its sequence number.
const RECORD_BYTES: u64 = 200;

/// Unpacks the records of one shard. Clones share what was counted and told.
#[derive(Debug, Clone)]
pub(super) struct Unpacker {
    key: LeaseKey,
    /// What the shard serves; `None` if that is not known or everything, and nothing is foreign.
    range: Option<HashRange>,
    reported: Arc<Mutex<Reported>>,
}

#[derive(Debug, Default)]
struct Reported {
    /// What was counted up to here is not counted again when it is read again.
    up_to: Option<Position>,
    misrouted: Series,
    corrupt: Series,
}

/// Events of one kind.
#[derive(Debug, Default)]
struct Series {
    next_at: Option<Instant>,
    unreported: u64,
}

impl Unpacker {
    /// For a tenure that starts after `checkpoint`.
    pub(super) fn new(key: LeaseKey, range: Option<HashRange>, checkpoint: &Checkpoint) -> Self {
        let up_to = match checkpoint {
            Checkpoint::At(position) => Some(position.clone()),
            Checkpoint::AtTimestamp
            | Checkpoint::TrimHorizon
            | Checkpoint::Latest
            | Checkpoint::ShardEnd => None,
        };
        let reported = Arc::new(Mutex::new(Reported { up_to, ..Reported::default() }));
        Self { key, range: range.filter(|range| *range != HashRange::ALL), reported }
    }

    /// `records` with each aggregate replaced by what is in it.
    pub(super) fn unpack(&self, records: Vec<Record>, context: &ShardTaskContext) -> Vec<Record> {
        if !records.iter().any(is_packed) {
            return records;
        }
        let mut unpacked = Vec::with_capacity(records.len());
        for mut record in records {
            if !is_packed(&record) {
                unpacked.push(record);
                continue;
            }
            match checked(&record) {
                Ok(aggregate) => self.take_apart(&record, &aggregate, &mut unpacked, context),
                Err(error) => {
                    record.packing = Packing::Corrupt;
                    self.corrupt(&record, error, context);
                    unpacked.push(record);
                }
            }
        }
        unpacked
    }

    fn take_apart(
        &self,
        whole: &Record,
        aggregate: &Aggregate,
        unpacked: &mut Vec<Record>,
        context: &ShardTaskContext,
    ) {
        // One MD5 for each distinct key, and none where nothing can be foreign.
        let hashes: Vec<u128> = self
            .range
            .map_or_else(Vec::new, |_| aggregate.partition_keys().map(hash_key).collect());
        let drops = context.settings.on_misrouted == MisroutedPolicy::Drop;
        let mut misrouted = Vec::new();
        unpacked.reserve(aggregate.len());
        for (index, part) in (0_u64..).zip(aggregate.records()) {
            let is_foreign = self.range.is_some_and(|range| {
                let hash = part.explicit_hash_key.unwrap_or_else(|| hashes[part.key_index]);
                !(range.start..=range.end).contains(&hash)
            });
            if is_foreign {
                misrouted.push(index);
                if drops {
                    continue;
                }
            }
            unpacked.push(part_of(whole, index, part, is_foreign));
        }
        if !misrouted.is_empty() {
            self.misrouted(whole, &misrouted, drops, context);
        }
    }

    fn corrupt(&self, record: &Record, error: String, context: &ShardTaskContext) {
        let mut reported = self.reported();
        if !reported.is_new(record, 0) {
            return;
        }
        reported.up_to = Some(Position::of(record));
        context.packing_faults.count_corrupt();
        let Some(records) = reported.corrupt.due(1, context.clock.now()) else { return };
        let (shard, position) = (self.key.clone(), Position::of(record));
        drop(reported);
        context.events.emit(&Event::CorruptAggregate { shard, position, error, records });
    }

    /// `parts` of `whole` belong to other shards.
    fn misrouted(&self, whole: &Record, parts: &[u64], dropped: bool, context: &ShardTaskContext) {
        let mut reported = self.reported();
        let new = parts.iter().filter(|part| reported.is_new(whole, **part)).count() as u64;
        let Some(last) = parts.last().filter(|_| new > 0) else { return };
        let sequence_number = whole.sequence_number.clone();
        reported.up_to = Some(Position { sequence_number, sub_sequence_number: *last });
        context.packing_faults.count_misrouted(new);
        let Some(records) = reported.misrouted.due(new, context.clock.now()) else { return };
        drop(reported);
        let shard = self.key.clone();
        context.events.emit(&Event::MisroutedRecords { shard, records, dropped });
    }

    fn reported(&self) -> parking_lot::MutexGuard<'_, Reported> {
        self.reported.lock()
    }
}

impl Reported {
    fn is_new(&self, record: &Record, part: u64) -> bool {
        self.up_to.as_ref().is_none_or(|up_to| {
            let of_number = record.sequence_number.cmp(&up_to.sequence_number);
            of_number.then(part.cmp(&up_to.sub_sequence_number)).is_gt()
        })
    }
}

impl Series {
    /// Counts; `Some` of what has not been told if it is time for an event.
    fn due(&mut self, count: u64, now: Instant) -> Option<u64> {
        self.unreported += count;
        if self.next_at.is_some_and(|at| now < at) {
            return None;
        }
        self.next_at = Some(now + EVENT_INTERVAL);
        Some(std::mem::take(&mut self.unreported))
    }
}

/// A source may unpack by itself; what it says is a part is never unpacked again.
fn is_packed(record: &Record) -> bool {
    is_aggregate(&record.data) && record.packing == Packing::Plain
}

/// The aggregate, or why it is delivered as it was read.
fn checked(record: &Record) -> Result<Aggregate, String> {
    let aggregate = Aggregate::read(record.data.clone()).map_err(|error| error.to_string())?;
    let bytes = aggregate.unpacked_bytes() + RECORD_BYTES * aggregate.len() as u64;
    if bytes > MOST_BYTES {
        let records = aggregate.len();
        return Err(format!("its {records} records would take {bytes} bytes in memory"));
    }
    Ok(aggregate)
}

fn part_of(whole: &Record, index: u64, part: UserRecord<'_>, misrouted: bool) -> Record {
    Record {
        sequence_number: whole.sequence_number.clone(),
        sub_sequence_number: index,
        partition_key: part.partition_key.to_owned(),
        data: part.data,
        arrived: whole.arrived,
        packing: Packing::Part {
            explicit_hash_key: part.explicit_hash_key.map(HashKey::from),
            misrouted,
        },
    }
}
