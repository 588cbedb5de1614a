//! A lease store in a map, for a single process without a table, and for tests.
//!
//! Runs the pure rule of each write; adds nothing to it. Nothing outlives the process.

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
/// [`ControlPlane::Inline`](crate::ControlPlane::Inline); `start` refuses the default.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    leases: Arc<Mutex<BTreeMap<LeaseKey, Lease>>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of all leases in key order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Lease> {
        self.leases.lock().values().cloned().collect()
    }

    /// Removes a row as if someone had deleted it by hand: for tests of what a worker does then.
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
