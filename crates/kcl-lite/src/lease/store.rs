//! The port to the lease table: three reads and one conditional write.
//!
//! A race is an outcome of [`LeaseStore::write`], never an error. An error of a write is ambiguous: the
//! write may have been applied, may still be applied later, or may be lost. The caller retries with the
//! same condition. If the first attempt was applied (a lost reply), the result is
//! [`WriteOutcome::Refused`] with a row that contains the caller's own [`WriteId`](super::WriteId).

use std::fmt;

use futures_util::future::BoxFuture;

use super::{Lease, LeaseKey, LeaseWrite};
pub use super::{Table, WriteOutcome};
use crate::error::ServiceError;

/// The port to the lease table.
///
/// All workers of an application use one store. Implementations: the DynamoDB table
/// ([`DynamoStore`](super::dynamo::DynamoStore)) and a map in memory
/// ([`MemoryStore`](super::memory::MemoryStore)).
pub trait LeaseStore: Send + Sync + fmt::Debug {
    /// Prepares the store, and creates the table if that is allowed. May be called again.
    ///
    /// # Errors
    /// When the table is missing and may not be created, or the service denies access or is unreachable.
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>>;

    /// Returns all leases, from all pages. Unreadable rows are listed separately, so that a damaged row
    /// stops one shard and not all; [`get`](Self::get) of its key returns the error.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn list(&self) -> BoxFuture<'_, Result<Table, ServiceError>>;

    /// Returns one lease, with a consistent read.
    ///
    /// # Errors
    /// When the table cannot be read, or, with kind `Invalid`, when the row is unreadable.
    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>>;

    /// Applies `write` if its condition holds, by the rule of [`LeaseWrite::apply`].
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the write: it may still be applied.
    ///
    /// # Errors
    /// When there was no reply, or an unreadable one; the write may or may not have been applied.
    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>>;
}
