//! The port to the lease table: three reads and one conditional write.
//!
//! A race is an outcome of [`LeaseStore::write`], never an error. An error of a write is
//! ambiguous: the write may have been applied, may still be applied later, or may be lost. The
//! caller sends the same condition again; if the first attempt was applied, the answer is
//! [`WriteOutcome::Refused`] with a row that carries the caller's own
//! [`WriteId`](super::WriteId), and that settles it.

use std::fmt;

use futures_util::future::BoxFuture;

use super::{Lease, LeaseKey, LeaseWrite};
pub use super::{Table, WriteOutcome};
use crate::error::ServiceError;

/// Where leases are kept.
///
/// All workers of an application use one store. Implementations: the DynamoDB table
/// ([`DynamoStore`](super::dynamo::DynamoStore)) and a map in memory
/// ([`MemoryStore`](super::memory::MemoryStore)).
pub trait LeaseStore: Send + Sync + fmt::Debug {
    /// Makes the store ready, creating the table if that is allowed. May be called again.
    ///
    /// # Errors
    /// When the table is missing and may not be created, or the service refuses or cannot be reached.
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>>;

    /// All leases, fully paged. A row that cannot be read is listed apart, so that one damaged row
    /// stops one shard and not all; [`get`](Self::get) of its key is the error.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn list(&self) -> BoxFuture<'_, Result<Table, ServiceError>>;

    /// One lease, read consistently.
    ///
    /// # Errors
    /// When the table cannot be read, or, of kind `Invalid`, when the row cannot.
    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>>;

    /// Applies `write` if its condition holds, by the rule of [`LeaseWrite::apply`].
    ///
    /// # Cancel safety
    /// Dropping the future does not recall the write: it may still be applied.
    ///
    /// # Errors
    /// When no answer was understood; the write may or may not have been applied.
    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>>;
}
