//! The records of one shard, in order.
//!
//! Reading takes the logarithm of the number of stored records plus the number of returned ones;
//! trimming takes the number of removed ones. Whether a reader or a writer may proceed is decided
//! elsewhere.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::kinesis::limits::Meter;
use crate::kinesis::sequence::{Index, SequenceNumber, ShardNumber};
use crate::kinesis::shard::Shard;
use crate::wire::{BlobRef, Timestamp};

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub index: Index,
    pub arrival_ms: i64,
    pub partition_key: String,
    pub data: Bytes,
    /// Whether the stream was encrypted when the record arrived.
    pub encrypted: bool,
}

impl Record {
    /// Returns the size that counts towards limits: payload and partition key.
    pub(super) fn size(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }
}

/// The result of one read.
#[derive(Debug)]
pub(super) struct Batch {
    pub records: Vec<Arc<Record>>,
    /// Where the next read begins.
    pub next: Index,
    /// Whether the shard has later records.
    pub more: bool,
}

impl Batch {
    /// Returns the size of all records.
    pub(super) fn size(&self) -> usize {
        self.records.iter().map(|record| record.size()).sum()
    }

    /// Returns how far the reader is behind the tip: the age of the last record it received, or 0
    /// at the tip.
    pub(super) fn behind_ms(&self, now_ms: i64) -> i64 {
        match self.records.last() {
            Some(last) if self.more => now_ms.saturating_sub(last.arrival_ms).max(1),
            Some(_) | None => 0,
        }
    }
}

/// The records of a shard within the retention period, and the shard's rates.
#[derive(Debug, Default)]
pub(super) struct Log {
    records: VecDeque<Arc<Record>>,
    pub meter: Meter,
}

impl Log {
    /// Adds a record, which must come after all others.
    pub(super) fn push(&mut self, record: Arc<Record>) {
        debug_assert!(self.records.back().is_none_or(|last| {
            last.index < record.index && last.arrival_ms <= record.arrival_ms
        }));
        self.records.push_back(record);
    }

    /// Reads records from `from` on: at most `limit`, and at most `max_size` together unless the
    /// first alone is larger.
    pub(super) fn read(&self, from: Index, limit: usize, max_size: usize) -> Batch {
        let first = self.records.partition_point(|record| record.index < from);
        let mut size = 0;
        let fitting = self.records.range(first..).take(limit).take_while(|record| {
            let is_first = size == 0;
            size += record.size();
            is_first || size <= max_size
        });
        let records: Vec<_> = fitting.cloned().collect();
        let next = records.last().map_or(from, |last| last.index.next());
        Batch { more: first + records.len() < self.records.len(), next, records }
    }

    /// Returns the place of the first record that arrived at `ms` or later.
    pub(super) fn first_at(&self, ms: i64) -> Option<Index> {
        let first = self.records.partition_point(|record| record.arrival_ms < ms);
        self.records.get(first).map(|record| record.index)
    }

    /// Returns when the record at a place arrived, if it exists.
    pub(super) fn arrival_of(&self, index: Index) -> Option<i64> {
        let found = self.records.binary_search_by_key(&index, |record| record.index).ok()?;
        self.records.get(found).map(|record| record.arrival_ms)
    }

    /// Drops the records that arrived before `horizon_ms`; returns the place after the last dropped
    /// one, if any.
    pub(super) fn trim(&mut self, horizon_ms: i64) -> Option<Index> {
        let kept = self.records.partition_point(|record| record.arrival_ms < horizon_ms);
        let last = self.records.drain(..kept).next_back();
        if self.records.is_empty() {
            self.records.shrink_to_fit();
        }
        last.map(|record| record.index.next())
    }
}

/// A record as the API returns it.
#[derive(Debug)]
pub(super) struct RecordView {
    record: Arc<Record>,
    shard: ShardNumber,
    shard_created_ms: i64,
}

impl RecordView {
    pub(super) fn all(records: Vec<Arc<Record>>, shard: &Shard) -> Vec<Self> {
        let (shard, shard_created_ms) = (shard.number, shard.created_ms);
        records.into_iter().map(|record| Self { record, shard, shard_created_ms }).collect()
    }
}

impl Serialize for RecordView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = &*self.record;
        let sequence = SequenceNumber {
            shard_created_ms: self.shard_created_ms,
            index: record.index,
            arrival_ms: record.arrival_ms,
            shard: self.shard,
        };
        let fields = if record.encrypted { 5 } else { 4 };
        let mut view = serializer.serialize_struct("Record", fields)?;
        view.serialize_field("SequenceNumber", &sequence)?;
        view.serialize_field("ApproximateArrivalTimestamp", &Timestamp(record.arrival_ms))?;
        view.serialize_field("Data", &BlobRef(&record.data))?;
        view.serialize_field("PartitionKey", &record.partition_key)?;
        if record.encrypted {
            view.serialize_field("EncryptionType", "KMS")?;
        }
        view.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(arrivals: &[(u64, i64)]) -> Log {
        let mut log = Log::default();
        for (index, arrival_ms) in arrivals {
            log.push(Arc::new(Record {
                index: Index(*index),
                arrival_ms: *arrival_ms,
                partition_key: String::new(),
                data: vec![0; 100].into(),
                encrypted: false,
            }));
        }
        log
    }

    fn indexes(batch: &Batch) -> Vec<u64> {
        batch.records.iter().map(|record| record.index.0).collect()
    }

    #[test]
    fn a_read_starts_between_records_and_stops_at_its_limit() {
        let log = log(&[(3, 10), (5, 20), (9, 20), (12, 40)]);
        let batch = log.read(Index(4), 2, 1_000);
        assert_eq!((indexes(&batch), batch.next, batch.more), (vec![5, 9], Index(10), true));
        let batch = log.read(batch.next, 2, 1_000);
        assert_eq!((indexes(&batch), batch.next, batch.more), (vec![12], Index(13), false));
        let batch = log.read(Index(20), 2, 1_000);
        assert_eq!((indexes(&batch), batch.next, batch.more), (vec![], Index(20), false));
    }

    #[test]
    fn a_read_stops_at_its_size_but_never_returns_nothing() {
        let log = log(&[(3, 10), (5, 20), (9, 20)]);
        assert_eq!(indexes(&log.read(Index(0), 10, 299)), [3, 5]);
        assert_eq!(indexes(&log.read(Index(0), 10, 300)), [3, 5, 9]);
        assert_eq!(indexes(&log.read(Index(0), 10, 1)), [3]);
    }

    #[test]
    fn a_time_finds_the_first_record_at_or_after_it() {
        let log = log(&[(3, 10), (5, 20), (9, 20), (12, 40)]);
        assert_eq!(log.first_at(20), Some(Index(5)));
        assert_eq!(log.first_at(21), Some(Index(12)));
        assert_eq!(log.first_at(41), None);
    }

    #[test]
    fn trimming_drops_what_came_before_the_horizon() {
        let mut log = log(&[(3, 10), (5, 20), (9, 20), (12, 40)]);
        assert_eq!(log.trim(20), Some(Index(4)));
        assert_eq!(log.trim(20), None);
        assert_eq!(indexes(&log.read(Index(0), 10, 1_000)), [5, 9, 12]);
    }

    #[test]
    fn a_reader_is_behind_only_while_records_wait() {
        let log = log(&[(3, 10), (5, 20)]);
        assert_eq!(log.read(Index(0), 1, 1_000).behind_ms(510), 500);
        assert_eq!(log.read(Index(0), 2, 1_000).behind_ms(510), 0);
    }
}
