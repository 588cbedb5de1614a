//! The ports to a stream: what shards it has, and reading one of them.
//!
//! A reader yields batches or the end of its shard; it retries what passes by itself and reports it.
//! Implementations: [`kinesis`] (the service) and [`memory`] (vectors, for tests and examples).

pub mod kinesis;
pub mod memory;

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::error::ServiceError;
use crate::event::Event;
pub use crate::event::Fetching;
use crate::identity::StreamIdentity;
use crate::position::Cursor;
use crate::record::{LeaseKey, Record, ShardId, Timestamp};
use crate::shard::ChildShard;
pub use crate::shard::{ListFrom, Listing};

/// What a service knows of a stream beside its shards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// Which stream it is, if that can be told.
    pub identity: Option<StreamIdentity>,
    /// For how long records are kept, if not for ever.
    pub retention: Option<Duration>,
    /// The service's clock, a second or two early, if it told.
    pub at: Option<Timestamp>,
}

/// A stream.
///
/// # Cancel safety
/// All futures may be dropped; nothing is lost.
pub trait Stream: Send + Sync + fmt::Debug {
    /// Lists the shards.
    ///
    /// # Errors
    /// `Missing` when the stream does not exist (the message names the stream and the region),
    /// `NotReady` while it is being created, and the other kinds by their meaning.
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>>;

    /// Describes the stream. A stream that never expires and is never made again knows nothing.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    fn describe(&self) -> BoxFuture<'_, Result<Description, ServiceError>> {
        Box::pin(async { Ok(Description::default()) })
    }

    /// Makes ready what reading needs beside the stream, once, before the first reader is opened.
    ///
    /// # Errors
    /// What a worker cannot start without, as [`list`](Self::list).
    fn prepare(&self) -> BoxFuture<'_, Result<Option<Notice>, ServiceError>> {
        Box::pin(async { Ok(None) })
    }

    /// A reader of one shard that starts at `cursor`.
    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader>;
}

/// Reads one shard from a cursor on.
///
/// Called in turn: [`ready`](Self::ready), then [`most_bytes`](Self::most_bytes), whose answer the
/// worker takes out of its memory budget however long that takes, then [`next`](Self::next).
pub trait ShardReader: Send + fmt::Debug {
    /// Waits until [`next`](Self::next) would begin to read: until the pace of the service allows
    /// another call, or until the socket has something. So a reader that only waits holds none of
    /// the worker's memory. By default at once.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// The most memory that the next reply may take while it is read, in bytes: what the worker sets
    /// aside before it calls [`next`](Self::next). By default nothing, which is right for a reader
    /// whose records are in memory anyway: what they take is counted when they are there.
    fn most_bytes(&self) -> u64 {
        0
    }

    /// The next records, an empty reply at the tip, or the end.
    ///
    /// Waits as [`ready`](Self::ready) does when that was not called before. Never ends a shard
    /// because of an error, a missing iterator or an empty reply.
    ///
    /// # Cancel safety
    /// Dropping the future loses no record: the next call reads from the same place.
    ///
    /// # Errors
    /// After every failed call to the service; calling again tries again, later and later.
    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>>;

    /// Since when what the last reply said has been true, if that is longer ago than the call of
    /// `next`: the reply to a call was written after it was made, but an event of a subscription may
    /// have waited to be read.
    fn asked(&self) -> Option<Instant> {
        None
    }

    /// What there is to tell beside records, once.
    fn notice(&mut self) -> Option<Notice> {
        None
    }
}

/// Something that a worker makes an event of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A consumer for enhanced fan-out was registered.
    ConsumerRegistered {
        /// Its ARN.
        consumer: String,
    },
    /// A reader fetches records in another way from now on.
    RetrievalChanged {
        /// How it fetches them now.
        to: Fetching,
        /// Why.
        reason: String,
    },
}

impl Notice {
    /// What a worker's sink is told; `shard` is whose reader it came from.
    pub(crate) fn event(self, shard: &LeaseKey) -> Event {
        match self {
            Self::ConsumerRegistered { consumer } => Event::ConsumerRegistered { consumer },
            Self::RetrievalChanged { to, reason } => {
                Event::RetrievalChanged { shard: shard.clone(), to, reason }
            }
        }
    }
}

/// One step of a reader.
#[derive(Debug, Clone, PartialEq)]
pub enum Read {
    /// Records in order, possibly none.
    Records {
        /// The records.
        records: Vec<Record>,
        /// How far the reply was behind the tip by the service's clock, in milliseconds.
        millis_behind_latest: u64,
    },
    /// Everything has been read and nothing will follow. The children, none if the service
    /// no longer knows them.
    End {
        /// The shards that continue this one.
        children: Vec<ChildShard>,
    },
}
