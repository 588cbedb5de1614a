//! One budget of memory for all shards of a worker.
//!
//! Memory is set aside before a read and given back when the last of its records is done with. What
//! is counted, from when to when:
//!
//! - before a read: the most that the next reply may take while it is received and parsed, as the
//!   reader says ([`most_bytes`](crate::stream::ShardReader::most_bytes));
//! - when the reply is there: its records as they are delivered, aggregates unpacked, [`cost`] each;
//! - until the records of the reply are all acknowledged, and the batches that hold them are dropped:
//!   given back reply by reply, and at once when the shard is lost or starts again. Records that a
//!   processor has cloned are its own.
//!
//! [`ledger`] decides who may read; here it is waited for. Never refuses what is already there.

mod ledger;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::clock::{self, Clock};
use ledger::{AccountId, Ledger, Ticket};

/// What a record takes beside its key and data: its own fields, its number, and what the allocator
/// adds to three small blocks.
const RECORD_OVERHEAD: u64 = 320;

/// How long a shard with nothing to do waits before the budget may be exceeded for it: a part of the
/// minute in which every shard should get something.
const PATIENCE: Duration = Duration::from_secs(10);

/// What so many records take that hold so many `bytes`: these, and a quarter more, which an allocator
/// loses between large blocks of different sizes. Measured: without that quarter, a process with glibc's allocator takes
/// 1.6 times what is counted; with a fixed `MALLOC_MMAP_THRESHOLD_` it takes less than is counted.
pub(crate) fn cost(records: usize, bytes: u64) -> u64 {
    let bytes = bytes + RECORD_OVERHEAD * records as u64;
    bytes + bytes / 4
}

/// The memory of a worker. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// Those who wait.
    waiting: BTreeMap<Ticket, oneshot::Sender<Permit>>,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        let state = State { ledger: Ledger::new(bytes), waiting: BTreeMap::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The account of one shard, for as long as its task runs.
    pub(crate) fn account(&self) -> Account {
        Account { budget: self.clone(), id: self.update(Ledger::open) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is called while the lock is held can panic half-way.
        self.0.lock()
    }

    /// Changes the books, and tells whoever may read now.
    fn update<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let (value, granted) = {
            let mut state = self.lock();
            let value = change(&mut state.ledger);
            let grants = state.ledger.grants().into_iter();
            let granted: Vec<_> =
                grants.map(|grant| (state.waiting.remove(&grant.ticket), grant)).collect();
            (value, granted)
        };
        for (waiting, grant) in granted {
            let permit =
                Permit { budget: self.clone(), account: grant.account, bytes: grant.bytes };
            // Who does not wait any more drops it, which gives it back.
            waiting.and_then(|waiting| waiting.send(permit).err());
        }
        value
    }
}

/// A shard's account. Dropping it ends the shard's claims, not its permits.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Budget,
    id: AccountId,
}

impl Account {
    /// Sets `bytes` aside, in turn with the other shards.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place in the queue up.
    pub(crate) async fn acquire(&self, clock: &Arc<dyn Clock>, bytes: u64) -> Permit {
        let (sender, mut granted) = oneshot::channel();
        let ticket = {
            let mut state = self.budget.lock();
            let ticket = state.ledger.ask(self.id, bytes);
            state.waiting.insert(ticket, sender);
            ticket
        };
        let place = Place { budget: &self.budget, ticket };
        self.budget.update(|_| ());
        let permit = tokio::select! {
            biased;
            permit = &mut granted => permit,
            () = clock::sleep(clock, PATIENCE) => {
                self.budget.update(|ledger| ledger.escalate(place.ticket));
                granted.await
            }
        };
        permit.expect("a place that is held is in the books")
    }

    /// Sets `bytes` aside at once; the budget has room for them.
    #[cfg(test)]
    pub(crate) fn reserved(&self, bytes: u64) -> Permit {
        use futures_util::FutureExt as _;
        let clock: Arc<dyn Clock> = Arc::new(clock::TokioClock);
        self.acquire(&clock, bytes).now_or_never().expect("there is room")
    }

    /// Whether other shards wait for memory while this one holds its share of it or more.
    pub(crate) fn blocks_others(&self) -> bool {
        self.budget.lock().ledger.blocks_others(self.id)
    }

    /// Ends the shard's claims, as dropping the account does: for a task that nobody can drop.
    pub(crate) fn close(&self) {
        self.budget.update(|ledger| ledger.close(self.id));
    }

    /// Tells whether the shard's processor waits for records, with nothing else to do.
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

/// Memory that is set aside, or in use. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Budget,
    account: AccountId,
    bytes: u64,
}

impl Permit {
    /// What it was set aside for takes `bytes`, be it more or less.
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
    async fn memory_that_is_given_back_goes_to_who_waits_and_not_to_who_has_gone() {
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
    async fn a_permit_that_comes_too_late_for_its_reader_is_given_back() {
        let clock: Arc<dyn Clock> = Arc::new(clock::TokioClock);
        let budget = Budget::new(100);
        let (a, b) = (budget.account(), budget.account());
        let first = a.acquire(&clock, 100).await;
        let mut waits = Box::pin(b.acquire(&clock, 100));
        assert!(futures_util::poll!(&mut waits).is_pending());
        // Granted, and then nobody looks.
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
