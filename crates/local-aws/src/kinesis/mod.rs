//! Kinesis: streams of shards in memory, with an optional journal on disk.
//!
//! [`Kinesis::call`] executes one operation by name and answers at once. Nothing here listens,
//! waits or spawns: states that change with time are derived from the clock, and only the event
//! stream of a subscription waits, while it is polled. The operations are in `operations`, one file
//! each; the other modules are their data.

mod arn;
mod consumer;
mod error;
mod iterator;
mod journal;
mod limits;
mod lineage;
mod log;
mod operations;
mod options;
mod sequence;
mod shard;
mod state;
mod stream;
mod subscription;
#[cfg(test)]
mod tests;
mod token;
mod transition;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::kinesis::journal::{Journal, JournalError};
pub(crate) use crate::kinesis::options::KinesisOptions;
use crate::kinesis::state::Service;
use crate::wire::{ApiError, Format, Reply};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Kinesis {
    service: Arc<Service>,
}

impl Kinesis {
    /// Creates a service whose state is dropped with the last handle.
    pub(crate) fn new(clock: Clock, options: KinesisOptions) -> Self {
        Self { service: Arc::new(Service::new(clock, options, None)) }
    }

    /// Opens a service that stores its streams in a directory, so that they survive a kill.
    ///
    /// The clock is advanced to the latest stored time, so that time does not move back.
    ///
    /// # Errors
    ///
    /// The directory cannot be created or read, or its format is unknown.
    pub(crate) fn open(
        clock: Clock,
        options: KinesisOptions,
        directory: &Path,
    ) -> Result<Self, JournalError> {
        let (journal, stored) = Journal::open(directory)?;
        let latest_ms = stored.iter().map(journal::Stored::latest_ms).max().unwrap_or_default();
        let behind = u64::try_from(latest_ms.saturating_sub(clock.now_ms())).unwrap_or_default();
        clock.advance(Duration::from_millis(behind));
        Ok(Self { service: Arc::new(Service::new(clock, options, Some((journal, stored)))) })
    }

    /// Executes one operation, named as in the API (`ListShards`).
    ///
    /// # Errors
    ///
    /// The service's own error for an invalid request.
    pub(crate) fn call(
        &self,
        operation: &str,
        format: Format,
        body: &[u8],
    ) -> Result<Reply, ApiError> {
        operations::call(&self.service, operation, format, body)
    }
}
