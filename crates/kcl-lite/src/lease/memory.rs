//! A lease store in memory, for a single process without a table, and for tests.
//!
//! Applies the pure rule of each write and adds nothing to it. The leases end with the process.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::store::{LeaseStore, Table, WriteOutcome};
use super::{Lease, LeaseKey, LeaseWrite};
use crate::error::ServiceError;

/// Leases in memory. Clones share the same leases.
///
/// On paused time (`#[tokio::test(start_paused = true)]`) the worker needs
/// [`ControlPlane::Inline`](crate::ControlPlane::Inline); with the default, `start` fails.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    leases: Arc<Mutex<BTreeMap<LeaseKey, Lease>>>,
}

impl MemoryStore {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a copy of all leases in key order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Lease> {
        self.leases.lock().values().cloned().collect()
    }

    /// Removes a row, as if it had been deleted by hand. Use it to test how a worker reacts.
    pub fn forget(&self, key: &LeaseKey) {
        self.leases.lock().remove(key);
    }

    fn apply(&self, write: &LeaseWrite) -> WriteOutcome {
        let mut leases = self.leases.lock();
        match write.apply(leases.get(&write.key)) {
            Ok(Some(row)) => {
                leases.insert(write.key.clone(), row.clone());
                WriteOutcome::Done(Some(row))
            }
            Ok(None) => {
                leases.remove(&write.key);
                WriteOutcome::Done(None)
            }
            Err(refused) => WriteOutcome::Refused(refused.current.map(|row| *row)),
        }
    }
}

impl LeaseStore for MemoryStore {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        async { Ok(()) }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Table, ServiceError>> {
        async { Ok(self.snapshot().into()) }.boxed()
    }

    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>> {
        async { Ok(self.leases.lock().get(key).cloned()) }.boxed()
    }

    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>> {
        async { Ok(self.apply(write)) }.boxed()
    }
}
