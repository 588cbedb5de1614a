//! The ports to a stream: listing its shards, and reading one of them.
//!
//! A reader yields batches or the end of its shard. It returns each failure of the service, and the next
//! call retries with backoff. Implementations: [`kinesis`] (the service) and [`memory`] (vectors, for tests
//! and examples).

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

/// The properties of a stream apart from its shards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// The identity of the stream, if known.
    pub identity: Option<StreamIdentity>,
    /// The retention of records; `None` if it is unlimited.
    pub retention: Option<Duration>,
    /// The service's clock, a second or two early, if known.
    pub at: Option<Timestamp>,
}

/// The port to a stream.
///
/// # Cancel safety
/// All futures may be dropped without losing records.
pub trait Stream: Send + Sync + fmt::Debug {
    /// Lists the shards.
    ///
    /// # Errors
    /// `Missing` when the stream does not exist (the message names the stream and the region),
    /// `NotReady` while it is being created, and the other kinds as documented on
    /// [`ServiceErrorKind`](crate::ServiceErrorKind).
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>>;

    /// Describes the stream. The default is for a stream whose records never expire and that is never
    /// re-created: nothing is known.
    ///
    /// # Errors
    /// The errors of [`list`](Self::list).
    fn describe(&self) -> BoxFuture<'_, Result<Description, ServiceError>> {
        Box::pin(async { Ok(Description::default()) })
    }

    /// Prepares what reading needs in addition to the stream, such as a stream consumer. Called once,
    /// before the first reader is opened.
    ///
    /// # Errors
    /// The errors of [`list`](Self::list), if the worker cannot start without it.
    fn prepare(&self) -> BoxFuture<'_, Result<Option<Notice>, ServiceError>> {
        Box::pin(async { Ok(None) })
    }

    /// Opens a reader of one shard that starts at `cursor`.
    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader>;
}

/// The port to a reader of one shard.
///
/// The worker calls in this order: [`ready`](Self::ready), then [`most_bytes`](Self::most_bytes), whose
/// result it reserves in its memory budget, which can take any time, then [`next`](Self::next).
pub trait ShardReader: Send + fmt::Debug {
    /// Waits until [`next`](Self::next) would begin to read: until the rate limit allows another call, or
    /// until the socket has data. Therefore a reader that only waits reserves no memory. The default
    /// returns immediately.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Returns the maximum memory that the next reply may take while it is read, in bytes. The worker
    /// reserves it before it calls [`next`](Self::next). The default is 0, for a reader whose records are
    /// in memory anyway: the worker counts them when it has them.
    fn most_bytes(&self) -> u64 {
        0
    }

    /// Returns the next records, an empty reply at the tip, or the end of the shard.
    ///
    /// Waits as [`ready`](Self::ready) does if that was not called before. Never ends a shard because of
    /// an error, a missing iterator or an empty reply.
    ///
    /// # Cancel safety
    /// Dropping the future loses no record: the next call reads from the same position.
    ///
    /// # Errors
    /// After every failed call to the service. The next call retries, with exponential backoff.
    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>>;

    /// Returns the time as of which the last reply is valid, if it is before the call of `next`. The reply
    /// to a call is written after the call, but an event of a subscription may have waited to be read.
    fn asked(&self) -> Option<Instant> {
        None
    }

    /// Removes and returns a pending notice.
    fn notice(&mut self) -> Option<Notice> {
        None
    }
}

/// A notice of a reader or a stream, which the worker emits as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A stream consumer for enhanced fan-out was registered.
    ConsumerRegistered {
        /// Its ARN.
        consumer: String,
    },
    /// A reader switched between polling and enhanced fan-out.
    RetrievalChanged {
        /// How it fetches records from now on.
        to: Fetching,
        /// Why it switched.
        reason: String,
    },
}

impl Notice {
    /// Converts the notice of the reader of `shard` to an event.
    pub(crate) fn event(self, shard: &LeaseKey) -> Event {
        match self {
            Self::ConsumerRegistered { consumer } => Event::ConsumerRegistered { consumer },
            Self::RetrievalChanged { to, reason } => {
                Event::RetrievalChanged { shard: shard.clone(), to, reason }
            }
        }
    }
}

/// The result of one read.
#[derive(Debug, Clone, PartialEq)]
pub enum Read {
    /// Records in order, possibly none.
    Records {
        /// The records.
        records: Vec<Record>,
        /// How far the reply was behind the tip by the service's clock, in milliseconds.
        millis_behind_latest: u64,
    },
    /// The end of a closed shard: everything has been read.
    End {
        /// The child shards; none if the service no longer knows them.
        children: Vec<ChildShard>,
    },
}
