//! Kinesis: streams of shards in memory, with a journal on disk when asked.
//!
//! [`Kinesis::call`] takes one operation by name and answers at once. Nothing here listens, waits
//! or spawns: states that pass with time are looked up against the clock, and only the event
//! stream of a subscription waits, while it is polled. The operations are in `operations`, one
//! file each; the rest is the data they work on.

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
    /// A service that forgets everything with its last handle.
    pub(crate) fn new(clock: Clock, options: KinesisOptions) -> Self {
        Self { service: Arc::new(Service::new(clock, options, None)) }
    }

    /// A service that keeps its streams in a directory, also when it is killed.
    ///
    /// The clock is advanced to the latest time that is stored, so that time does not go back.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made, read or understood.
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

    /// Carries out one operation, named as in the API (`ListShards`).
    ///
    /// # Errors
    ///
    /// The service's own error for whatever is wrong with the request.
    pub(crate) fn call(
        &self,
        operation: &str,
        format: Format,
        body: &[u8],
    ) -> Result<Reply, ApiError> {
        operations::call(&self.service, operation, format, body)
    }
}
