//! Fault injection around a worker: its calls to the lease table, its clock, its whole process.
//!
//! A [`Link`] carries all communication of one worker. Pausing it stops that worker as SIGSTOP does: its
//! timers fire late, its requests are not sent and its replies not read, while time continues for all
//! others. The store underneath enforces the condition of every write, asserts that no checkpoint moves
//! back, and records all requests.

use parking_lot::Mutex;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kcl_lite::clock::Clock;
use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::lease::store::{LeaseStore, Table, WriteOutcome};
use kcl_lite::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite};
use kcl_lite::stream::{Description, ListFrom, Listing, Read, ShardReader, Stream};
use kcl_lite::{Cursor, ServiceError, ServiceErrorKind, ShardId};
use tokio::sync::watch;
use tokio::time::Instant;

/// Faults of the lease table, for all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Faults {
    #[default]
    None,
    /// Nothing is applied; every call fails with a network error.
    Down,
    /// Calls never return, and writes are not applied.
    Hang,
    /// Renewals and takes are applied, and every second reply is lost.
    LoseReplies(bool),
    /// This percentage of the writes fails: half of them before, half of them after they are applied.
    Drawn { seed: u64, percent: u64 },
    /// This many writes per second are allowed; the rest is throttled.
    Capacity { per_second: u64, since: Option<Instant>, used: u64 },
}

/// The fate of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Pass,
    /// An error, before or after the write is applied.
    Fail,
    /// No reply, ever.
    Hang,
    Throttle,
}

/// The stage of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Sent,
    Applied,
}

impl Faults {
    fn write_sent(&mut self, now: Instant) -> Fate {
        match self {
            Self::None | Self::LoseReplies(_) => Fate::Pass,
            Self::Down => Fate::Fail,
            Self::Hang => Fate::Hang,
            Self::Drawn { seed, percent } => {
                if draw(seed) % 200 < *percent {
                    Fate::Fail
                } else {
                    Fate::Pass
                }
            }
            Self::Capacity { per_second, since, used } => {
                if since.is_none_or(|since| now >= since + Duration::from_secs(1)) {
                    (*since, *used) = (Some(now), 0);
                }
                *used += 1;
                if *used > *per_second { Fate::Throttle } else { Fate::Pass }
            }
        }
    }

    fn write_applied(&mut self, change: &LeaseChange) -> Fate {
        match self {
            Self::LoseReplies(lose)
                if matches!(change, LeaseChange::Renew { .. } | LeaseChange::Take { .. }) =>
            {
                *lose = !*lose;
                if *lose { Fate::Pass } else { Fate::Fail }
            }
            Self::Drawn { seed, percent } => {
                if draw(seed) % 200 < *percent {
                    Fate::Fail
                } else {
                    Fate::Pass
                }
            }
            Self::None | Self::Down | Self::Hang | Self::LoseReplies(_) | Self::Capacity { .. } => {
                Fate::Pass
            }
        }
    }

    fn read(&self) -> Fate {
        match self {
            Self::Down => Fate::Fail,
            Self::Hang => Fate::Hang,
            Self::None | Self::LoseReplies(_) | Self::Drawn { .. } | Self::Capacity { .. } => {
                Fate::Pass
            }
        }
    }
}

/// Returns the next number of the SplitMix64 sequence of `seed`.
pub(crate) fn draw(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Fate {
    async fn meet(self) -> Result<(), ServiceError> {
        let kind = match self {
            Self::Pass => return Ok(()),
            Self::Hang => std::future::pending().await,
            Self::Fail => ServiceErrorKind::Unavailable,
            Self::Throttle => ServiceErrorKind::Throttled,
        };
        Err(ServiceError::new(kind, "the test says so"))
    }
}

/// The communication of one worker.
#[derive(Debug)]
pub(crate) struct Link {
    paused: watch::Sender<bool>,
    /// Added to this worker's clock.
    pub(crate) skew: Duration,
    /// By how many percent this worker's clock is fast.
    pub(crate) fast: u32,
    made: Instant,
}

impl Default for Link {
    fn default() -> Self {
        Self::with_clock(Duration::ZERO, 0)
    }
}

impl Link {
    pub(crate) fn with_clock(skew: Duration, fast: u32) -> Self {
        let paused = watch::Sender::new(false);
        Self { paused, skew, fast, made: Instant::now() }
    }

    /// Stops the worker.
    pub(crate) fn pause(&self) {
        self.paused.send_replace(true);
    }

    /// Resumes the worker.
    pub(crate) fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Completes while the worker is not paused.
    pub(crate) async fn pass(&self) {
        self.paused.subscribe().wait_for(|paused| !paused).await.ok();
    }
}

/// A worker's own clock.
#[derive(Debug)]
pub(crate) struct LinkClock(pub(crate) Arc<Link>);

impl Clock for LinkClock {
    fn now(&self) -> Instant {
        let elapsed = self.0.made.elapsed();
        self.0.made + self.0.skew + elapsed + elapsed * self.0.fast / 100
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let clock = Self(Arc::clone(&self.0));
        Box::pin(async move {
            loop {
                let left = deadline.saturating_duration_since(clock.now());
                if left.is_zero() {
                    break;
                }
                tokio::time::sleep(left * 100 / (100 + clock.0.fast)).await;
            }
            clock.0.pass().await;
        })
    }
}

/// A request to the lease table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    pub(crate) worker: String,
    /// The requested write; `None` for a read.
    pub(crate) write: Option<LeaseWrite>,
    /// Rows read.
    pub(crate) rows: usize,
    pub(crate) is_applied: bool,
}

type Plan = dyn FnMut(Moment, &str, &LeaseWrite) -> Fate + Send;

/// The plan of a test for individual writes.
#[derive(Clone, Default)]
struct Planned(Arc<Mutex<Option<Box<Plan>>>>);

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planned").finish_non_exhaustive()
    }
}

/// A lease store as one worker sees it; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyStore {
    pub(crate) inner: MemoryStore,
    /// All requests of all workers.
    pub(crate) requests: Arc<Mutex<Vec<Request>>>,
    faults: Arc<Mutex<Faults>>,
    planned: Planned,
    worker: String,
    link: Arc<Link>,
}

impl FaultyStore {
    /// Faults for all workers.
    pub(crate) fn set(&self, faults: Faults) {
        *self.faults.lock() = faults;
    }

    /// Sets `plan`, which decides about every write of every worker, before and after it is applied.
    pub(crate) fn plan(
        &self,
        plan: impl FnMut(Moment, &str, &LeaseWrite) -> Fate + Send + 'static,
    ) {
        *self.planned.0.lock() = Some(Box::new(plan));
    }

    /// Returns the same store behind the link of `worker`.
    pub(crate) fn through(&self, worker: &str, link: Arc<Link>) -> Self {
        Self { worker: worker.to_owned(), link, ..self.clone() }
    }

    async fn read(&self) -> Result<(), ServiceError> {
        self.link.pass().await;
        let all = self.faults.lock().read();
        all.meet().await
    }

    fn log(&self, write: Option<&LeaseWrite>, rows: usize, is_applied: bool) {
        let (at, worker, write) = (Instant::now(), self.worker.clone(), write.cloned());
        self.requests.lock().push(Request { at, worker, write, rows, is_applied });
    }

    fn planned(&self, moment: Moment, write: &LeaseWrite) -> Fate {
        let mut plan = self.planned.0.lock();
        plan.as_mut().map_or(Fate::Pass, |plan| plan(moment, &self.worker, write))
    }

    /// Applies a write, and asserts that the checkpoint does not move back.
    async fn apply(&self, write: &LeaseWrite) -> Result<WriteOutcome, ServiceError> {
        let before = self.inner.get(&write.key).await?;
        let outcome = self.inner.write(write).await?;
        if let (Some(before), WriteOutcome::Done(Some(after))) = (before, &outcome) {
            let is_reset = matches!(write.change, LeaseChange::Reset { .. });
            let is_back = after.checkpoint < before.checkpoint;
            assert!(is_reset || !is_back, "{write:?} moves {before:?} back");
        }
        Ok(outcome)
    }
}

impl LeaseStore for FaultyStore {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(self.read())
    }

    fn list(&self) -> BoxFuture<'_, Result<Table, ServiceError>> {
        Box::pin(async {
            let rows = self.inner.snapshot().len();
            self.log(None, rows, false);
            self.read().await?;
            let leases = self.inner.list().await;
            self.link.pass().await;
            leases
        })
    }

    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>> {
        Box::pin(async move {
            self.log(None, 1, false);
            self.read().await?;
            let lease = self.inner.get(key).await;
            self.link.pass().await;
            lease
        })
    }

    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>> {
        Box::pin(async move {
            self.link.pass().await;
            let now = Instant::now();
            let all = self.faults.lock().write_sent(now);
            let planned = self.planned(Moment::Sent, write);
            let is_applied = [all, planned].iter().all(|fate| *fate == Fate::Pass);
            self.log(Some(write), 0, is_applied);
            all.meet().await?;
            planned.meet().await?;
            self.link.pass().await;
            let outcome = self.apply(write).await?;
            let all = self.faults.lock().write_applied(&write.change);
            let planned = self.planned(Moment::Applied, write);
            all.meet().await?;
            planned.meet().await?;
            self.link.pass().await;
            Ok(outcome)
        })
    }
}

/// A stream as one worker sees it.
#[derive(Debug)]
pub(crate) struct LinkStream<S> {
    pub(crate) inner: S,
    pub(crate) link: Arc<Link>,
    /// When shards were listed, by any worker.
    pub(crate) listings: Arc<Mutex<Vec<Instant>>>,
}

impl<S: Stream> Stream for LinkStream<S> {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        Box::pin(async move {
            self.link.pass().await;
            self.listings.lock().push(Instant::now());
            let listing = self.inner.list(from).await;
            self.link.pass().await;
            listing
        })
    }

    fn describe(&self) -> BoxFuture<'_, Result<Description, ServiceError>> {
        Box::pin(async move {
            self.link.pass().await;
            let description = self.inner.describe().await;
            self.link.pass().await;
            description
        })
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        let inner = self.inner.open(shard, cursor);
        Box::new(LinkReader { inner, link: Arc::clone(&self.link), reply: None })
    }
}

#[derive(Debug)]
struct LinkReader {
    inner: Box<dyn ShardReader>,
    link: Arc<Link>,
    /// Read from the service, not yet seen by the worker.
    reply: Option<Result<Read, ServiceError>>,
}

impl ShardReader for LinkReader {
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        self.inner.ready()
    }

    fn most_bytes(&self) -> u64 {
        self.inner.most_bytes()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(async move {
            if self.reply.is_none() {
                self.link.pass().await;
                self.reply = Some(self.inner.next().await);
            }
            self.link.pass().await;
            self.reply.take().expect("a reply was read")
        })
    }
}
