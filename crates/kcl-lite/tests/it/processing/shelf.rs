//! A stream of one shard whose records, age and faults the test controls.
//!
//! Produces what the in-memory stream does not: readers that hang, panic or fail, and records that have
//! aged out.

use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kcl_lite::stream::{Description, ListFrom, Listing, Read, ShardReader, Stream};
use kcl_lite::{
    Cursor, HashRange, Packing, Record, ServiceError, ServiceErrorKind, Shard, ShardId, Timestamp,
};
use kpl_format::Packer;
use tokio::time::Instant;

/// What a reader does instead of its next reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Hang,
    /// Hangs before the read.
    HangBefore,
    Panic,
    /// The whole shard task panics: opening the next reader panics.
    PanicAtOpen,
    Error,
}

#[derive(Debug, Clone)]
pub(super) struct Shelf {
    pub(super) records: Arc<Mutex<Vec<Record>>>,
    pub(super) faults: Arc<Mutex<VecDeque<Fault>>>,
    /// How many Kinesis records, each a whole aggregate, one read returns.
    pub(super) limit: usize,
    /// The retention that the service reports; the test removes the records.
    pub(super) retention: Option<Duration>,
    pub(super) started: Instant,
}

/// The service's time when a shelf is created. Its records are older.
const EPOCH: i64 = 1_000_000_000;

impl Shelf {
    /// Creates `count` Kinesis records; with more than one part each, aggregates. The payload of a user
    /// record is `number` or `number:part`.
    pub(super) fn new(count: u64, parts: u64) -> Self {
        let records = (1..=count).map(|number| Record {
            sequence_number: number.to_string().parse().unwrap(),
            sub_sequence_number: 0,
            partition_key: "key".to_owned(),
            data: match parts {
                1 => number.to_string().into(),
                _ => aggregate(number, parts),
            },
            arrived: Timestamp::from_millis(EPOCH - 1_000_000 + i64::try_from(number).unwrap()),
            packing: Packing::Plain,
        });
        Self {
            records: Arc::new(Mutex::new(records.collect())),
            faults: Arc::default(),
            limit: 3,
            retention: None,
            started: Instant::now(),
        }
    }

    /// Returns the service's time.
    pub(super) fn now(&self) -> Timestamp {
        let passed = i64::try_from(self.started.elapsed().as_millis()).unwrap();
        Timestamp::from_millis(EPOCH + passed)
    }

    /// Ages out the records before `first`.
    pub(super) fn trim(&self, first: u64) {
        let first: kcl_lite::SequenceNumber = first.to_string().parse().unwrap();
        self.records.lock().retain(|record| record.sequence_number >= first);
    }

    /// Adds a record that arrives now.
    pub(super) fn put(&self, number: u64) {
        let mut record = Self::new(number, 1).records.lock().pop().unwrap();
        record.arrived = self.now();
        self.records.lock().push(record);
    }

    pub(super) fn fails(self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.faults.lock().extend(faults);
        self
    }

    fn shard() -> ShardId {
        super::shard()
    }
}

fn aggregate(number: u64, parts: u64) -> Bytes {
    let mut packer = Packer::new(usize::MAX);
    for part in 0..parts {
        assert!(packer.push("key", None, format!("{number}:{part}").as_bytes()));
    }
    packer.finish().unwrap()
}

impl Stream for Shelf {
    fn list(&self, _from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        let shard = Shard {
            id: Self::shard(),
            parents: BTreeSet::new(),
            hash_range: HashRange { start: 0, end: u128::MAX },
            is_open: true,
        };
        let listing = Listing { shards: vec![shard], at: self.now() };
        Box::pin(async { Ok(listing) })
    }

    fn describe(&self) -> BoxFuture<'_, Result<Description, ServiceError>> {
        let at = Some(self.now());
        let description = Description { retention: self.retention, at, ..Description::default() };
        Box::pin(async { Ok(description) })
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        assert_eq!(*shard, Self::shard());
        let mut faults = self.faults.lock();
        if faults.pop_front_if(|fault| *fault == Fault::PanicAtOpen).is_some() {
            drop(faults);
            panic!("no reader can be made");
        }
        drop(faults);
        Box::new(Reader { shelf: self.clone(), cursor })
    }
}

#[derive(Debug)]
struct Reader {
    shelf: Shelf,
    cursor: Cursor,
}

impl Reader {
    fn read(&mut self) -> Vec<Record> {
        let records = self.shelf.records.lock();
        let start = records.partition_point(|record| match &self.cursor {
            Cursor::Horizon => false,
            Cursor::Timestamp(time) => record.arrived < *time,
            Cursor::At(number) => record.sequence_number < *number,
            Cursor::After(number) => record.sequence_number <= *number,
        });
        let rest = &records[start..];
        let mut numbers: Vec<_> = rest.iter().map(|record| &record.sequence_number).collect();
        numbers.dedup();
        let Some(last) = numbers.get(self.shelf.limit.min(numbers.len()).saturating_sub(1)) else {
            return Vec::new();
        };
        let last = (*last).clone();
        let reply: Vec<_> =
            rest.iter().take_while(|record| record.sequence_number <= last).cloned().collect();
        self.cursor = Cursor::After(last);
        reply
    }
}

impl ShardReader for Reader {
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        let mut faults = self.shelf.faults.lock();
        let hangs = faults.pop_front_if(|fault| *fault == Fault::HangBefore).is_some();
        Box::pin(async move {
            if hangs {
                std::future::pending().await
            }
        })
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(async move {
            let fault = self.shelf.faults.lock().pop_front().unwrap_or(Fault::None);
            match fault {
                Fault::None | Fault::HangBefore | Fault::PanicAtOpen => {}
                Fault::Hang => std::future::pending().await,
                Fault::Panic => panic!("the reader broke"),
                Fault::Error => {
                    return Err(ServiceError::new(ServiceErrorKind::Unavailable, "no answer"));
                }
            }
            let records = self.read();
            if records.is_empty() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(Read::Records { records, millis_behind_latest: 0 })
        })
    }
}
