//! The memory budget that all shards of a worker share.
//!
//! Memory is set aside before a read and released when the last of its records is acknowledged. The
//! budget counts:
//!
//! - before a read: the maximum that the next reply may use while it is received and parsed, as the
//!   reader states it ([`most_bytes`](crate::stream::ShardReader::most_bytes));
//! - once the reply has arrived: its records as they are delivered, aggregates unpacked, [`cost`]
//!   each;
//! - until the records of the reply are all acknowledged, and the batches that hold them are dropped:
//!   memory is released reply by reply, and all of it when the shard is lost or restarts. Records
//!   that a processor has cloned are not counted.
//!
//! [`ledger`] decides which shard may read; this module waits for its grants. Never refuses memory
//! that is in use already.

mod ledger;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::clock::{self, Clock};
use ledger::{AccountId, Ledger, Ticket};

/// The overhead of a record in addition to its key and data: its own fields, its sequence number, and
/// what the allocator adds to three small blocks.
const RECORD_OVERHEAD: u64 = 320;

/// How long a shard with nothing to do waits before the budget may be exceeded for it: a fraction of
/// the minute within which every shard should get something.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns the memory of this many records that hold `bytes`: these, and a quarter more, which an
/// allocator loses between large blocks of different sizes. Measured: without that quarter, a process
/// with glibc's allocator uses 1.6 times what is counted; with a fixed `MALLOC_MMAP_THRESHOLD_` it
/// uses less than is counted.
pub(crate) fn cost(records: usize, bytes: u64) -> u64 {
    let bytes = bytes + RECORD_OVERHEAD * records as u64;
    bytes + bytes / 4
}

/// The memory budget of a worker. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// The waiting requests.
    waiting: BTreeMap<Ticket, oneshot::Sender<Permit>>,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        let state = State { ledger: Ledger::new(bytes), waiting: BTreeMap::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Opens the account of a shard, for as long as its task runs.
    pub(crate) fn account(&self) -> Account {
        Account { budget: self.clone(), id: self.update(Ledger::open) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that runs under the lock can panic half-way.
        self.0.lock()
    }

    /// Changes the ledger, and wakes the requests that are granted now.
    fn update<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let (value, granted) = {
            let mut state = self.lock();
            let value = change(&mut state.ledger);
            let grants = state.ledger.grants().into_iter();
            let granted: Vec<_> =
                grants.map(|grant| (state.waiting.remove(&grant.ticket), grant)).collect();
            (value, granted)
        };
        // Outside the lock, which the drop of an undeliverable permit takes again.
        for (waiting, grant) in granted {
            let permit =
                Permit { budget: self.clone(), account: grant.account, bytes: grant.bytes };
            // If the request is no longer awaited, the permit is dropped, which releases the memory.
            waiting.and_then(|waiting| waiting.send(permit).err());
        }
        value
    }
}

/// A shard's account. Dropping it ends the shard's requests, not its permits.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Budget,
    id: AccountId,
}

impl Account {
    /// Sets `bytes` aside, in turn with the other shards.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub(crate) async fn acquire(&self, clock: &Arc<dyn Clock>, bytes: u64) -> Permit {
        let (sender, mut granted) = oneshot::channel();
        // Both under one lock: a grant in between would find no sender for its permit.
        let ticket = {
            let mut state = self.budget.lock();
            let ticket = state.ledger.ask(self.id, bytes);
            state.waiting.insert(ticket, sender);
            ticket
        };
        let place = Place { budget: &self.budget, ticket };
        // Grants what fits now, which may be this request.
        self.budget.update(|_| ());
        let permit = tokio::select! {
            biased;
            // First, so that a grant at the last instant does not escalate.
            permit = &mut granted => permit,
            () = clock::sleep(clock, PATIENCE) => {
                self.budget.update(|ledger| ledger.escalate(place.ticket));
                granted.await
            }
        };
        permit.expect("a queued request is in the ledger")
    }

    /// Sets `bytes` aside immediately; the budget must have room for them.
    #[cfg(test)]
    pub(crate) fn reserved(&self, bytes: u64) -> Permit {
        use futures_util::FutureExt as _;
        let clock: Arc<dyn Clock> = Arc::new(clock::TokioClock);
        self.acquire(&clock, bytes).now_or_never().expect("there is room")
    }

    /// Returns whether other shards wait for memory while this one holds more than any other.
    pub(crate) fn blocks_others(&self) -> bool {
        self.budget.lock().ledger.blocks_others(self.id)
    }

    /// Closes the account, as dropping it does: for a task that cannot be dropped.
    pub(crate) fn close(&self) {
        self.budget.update(|ledger| ledger.close(self.id));
    }

    /// Sets whether the shard's processor waits for records and has nothing else to do.
    pub(crate) fn starved(&self, is_starved: bool) {
        self.budget.update(|ledger| ledger.starved(self.id, is_starved));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.close();
    }
}

/// A place in the queue.
struct Place<'a> {
    budget: &'a Budget,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.update(|ledger| ledger.withdraw(self.ticket));
        let mut state = self.budget.lock();
        state.waiting.remove(&self.ticket);
    }
}

/// Memory that is set aside or in use. Dropping it releases the memory.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Budget,
    account: AccountId,
    bytes: u64,
}

impl Permit {
    /// Changes the memory that is set aside to `bytes`, more or less.
    pub(crate) fn resize(&mut self, bytes: u64) {
        let from = std::mem::replace(&mut self.bytes, bytes);
        self.budget.update(|ledger| ledger.resize(self.account, from, bytes));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.update(|ledger| ledger.resize(self.account, self.bytes, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(budget: &Budget) -> String {
        format!("{:?}", budget.0.lock().ledger)
    }

    #[tokio::test(start_paused = true)]
    async fn memory_that_is_returned_goes_to_who_waits_and_not_to_who_has_gone() {
        let clock: Arc<dyn Clock> = Arc::new(clock::TokioClock);
        let budget = Budget::new(100);
        let (a, b, c) = (budget.account(), budget.account(), budget.account());
        let mut first = a.acquire(&clock, 90).await;
        let gone = clock::within(&clock, Duration::from_secs(1), b.acquire(&clock, 90)).await;
        assert!(gone.is_none());
        let (waits, ()) = tokio::join!(c.acquire(&clock, 90), async {
            tokio::task::yield_now().await;
            first.resize(5);
        });
        assert!(used(&budget).contains("used: 95"), "{}", used(&budget));
        drop((first, waits));
        assert!(used(&budget).contains("used: 0"), "{}", used(&budget));
        assert!(budget.0.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_that_comes_too_late_for_its_reader_is_returned() {
        let clock: Arc<dyn Clock> = Arc::new(clock::TokioClock);
        let budget = Budget::new(100);
        let (a, b) = (budget.account(), budget.account());
        let first = a.acquire(&clock, 100).await;
        let mut waits = Box::pin(b.acquire(&clock, 100));
        assert!(futures_util::poll!(&mut waits).is_pending());
        // Granted, and then dropped without being polled.
        drop(first);
        drop(waits);
        a.acquire(&clock, 100).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_nothing_to_do_waits_for_ten_seconds_at_most() {
        let clock: Arc<dyn Clock> = Arc::new(clock::TokioClock);
        let budget = Budget::new(100);
        let (a, b) = (budget.account(), budget.account());
        let _stuck = a.acquire(&clock, 100).await;
        let start = clock.now();
        let beyond = b.acquire(&clock, 100).await;
        assert_eq!(clock.now() - start, PATIENCE);
        drop(beyond);
    }
}
