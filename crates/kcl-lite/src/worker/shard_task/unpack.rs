//! The unpacking of KPL aggregates, as in the Java KCL, except that records are dropped only if the
//! settings say so.
//!
//! Applies to every reader: polling, fan-out and in-memory. A plain record costs a comparison of four
//! bytes. An aggregate that cannot be unpacked is delivered unchanged and marked. Decides nothing about
//! positions: a user record only gets its index in the aggregate.

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

/// The least time between two events of one kind for one shard: a faulty producer is usually wrong in
/// every record.
const EVENT_INTERVAL: Duration = Duration::from_secs(60);
/// The most memory for the records of one aggregate, far more than any producer packs (a reply has at
/// most 10 MiB). A forged aggregate may reference a long key a hundred thousand times.
const MOST_BYTES: u64 = 128 << 20;
/// The memory of a record besides its data and key: the struct and the sequence number.
const RECORD_BYTES: u64 = 200;

/// The unpacker of one shard. Clones share the counts and the reported events.
#[derive(Debug, Clone)]
pub(super) struct Unpacker {
    key: LeaseKey,
    /// The hash range of the shard; `None` if it is unknown or everything, so that no record is
    /// misrouted.
    range: Option<HashRange>,
    reported: Arc<Mutex<Reported>>,
}

#[derive(Debug, Default)]
struct Reported {
    /// Records up to here are not counted again when they are re-read.
    up_to: Option<Position>,
    misrouted: Series,
    corrupt: Series,
}

/// The rate limit for events of one kind.
#[derive(Debug, Default)]
struct Series {
    next_at: Option<Instant>,
    unreported: u64,
}

impl Unpacker {
    /// Creates an unpacker for a tenure that starts after `checkpoint`.
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

    /// Returns `records` with each aggregate replaced by its user records.
    pub(super) fn unpack(&self, records: Vec<Record>, context: &ShardTaskContext) -> Vec<Record> {
        // The usual case: without aggregates nothing is moved or copied.
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
        // One MD5 per distinct key, and none if no record can be misrouted.
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
        // Events call user code, which must not run under the lock.
        drop(reported);
        context.events.emit(&Event::CorruptAggregate { shard, position, error, records });
    }

    /// Counts the misrouted `parts` of `whole`, and emits an event if one is due.
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
    /// Adds `count`; returns the unreported total if an event is due.
    fn due(&mut self, count: u64, now: Instant) -> Option<u64> {
        self.unreported += count;
        if self.next_at.is_some_and(|at| now < at) {
            return None;
        }
        self.next_at = Some(now + EVENT_INTERVAL);
        Some(std::mem::take(&mut self.unreported))
    }
}

/// Returns whether a record is to be unpacked. A source may unpack itself; its parts are never unpacked
/// again.
fn is_packed(record: &Record) -> bool {
    is_aggregate(&record.data) && record.packing == Packing::Plain
}

/// Parses an aggregate; the error says why it is delivered unchanged.
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
