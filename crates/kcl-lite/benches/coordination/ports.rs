//! The in-memory services of the benchmark, with the latency and the poll intervals of the real ones.
//!
//! Every call takes 5 to 10 ms of virtual time. A shard is read as by the polling reader: at once, then
//! every second at the tip and five times per second in a backlog. No call fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::lease::store::{self, LeaseStore, WriteOutcome};
use kcl_lite::lease::{Lease, LeaseKey, LeaseWrite};
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::stream::{ListFrom, Listing, Read, ShardReader, Stream};
use kcl_lite::{Cursor, ServiceError, ShardId};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

/// The uniform range of a call's latency in milliseconds.
pub(crate) const LATENCY_MS: std::ops::RangeInclusive<u64> = 5..=10;

/// The size of a lease row, and the size that one consistent read unit reads.
const ROW_BYTES: u64 = 400;
const UNIT_BYTES: u64 = 4096;

/// The latency of calls, from the seed of the run. Clones share one random sequence.
#[derive(Debug, Clone)]
pub(crate) struct Latency(Arc<Mutex<fastrand::Rng>>);

impl Latency {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// Waits for half of a call: the request, or the reply.
    async fn half(&self) {
        let micros = {
            let mut rng = self.0.lock();
            rng.u64(LATENCY_MS.start() * 500..=LATENCY_MS.end() * 500)
        };
        sleep(Duration::from_micros(micros)).await;
    }

    /// Returns a random number from 0 to 1.
    fn draw(&self) -> f64 {
        self.0.lock().f64()
    }
}

/// The lease table. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) rows: MemoryStore,
    latency: Latency,
    writes: Arc<AtomicU64>,
    read_units: Arc<AtomicU64>,
}

impl Table {
    pub(crate) fn new(latency: Latency) -> Self {
        Self {
            rows: MemoryStore::new(),
            latency,
            writes: Arc::default(),
            read_units: Arc::default(),
        }
    }

    /// Returns the writes so far, and the read units used by scans so far.
    pub(crate) fn used(&self) -> (u64, u64) {
        (self.writes.load(Ordering::Relaxed), self.read_units.load(Ordering::Relaxed))
    }

    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.latency.half().await;
        let reply = call.await;
        self.latency.half().await;
        reply
    }
}

impl LeaseStore for Table {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        self.call(self.rows.prepare()).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<store::Table, ServiceError>> {
        async {
            let listed = self.call(self.rows.list()).await?;
            let bytes = listed.leases.len() as u64 * ROW_BYTES;
            self.read_units.fetch_add(bytes.div_ceil(UNIT_BYTES).max(1), Ordering::Relaxed);
            Ok(listed)
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>> {
        self.call(self.rows.get(key)).boxed()
    }

    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.call(self.rows.write(write)).boxed()
    }
}

/// A stream that is polled.
#[derive(Debug, Clone)]
pub(crate) struct Polled {
    pub(crate) records: MemoryStream,
    latency: Latency,
}

impl Polled {
    pub(crate) fn new(shards: u32, latency: Latency) -> Self {
        Self { records: MemoryStream::new(shards), latency }
    }
}

impl Stream for Polled {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        async move {
            self.latency.half().await;
            let listing = self.records.list(from).await;
            self.latency.half().await;
            listing
        }
        .boxed()
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        let inner = self.records.open(shard, cursor);
        Box::new(PolledReader { inner, latency: self.latency.clone(), due: None, end: None })
    }
}

#[derive(Debug)]
struct PolledReader {
    inner: Box<dyn ShardReader>,
    latency: Latency,
    due: Option<Instant>,
    /// The last records of a closed shard and its end come with one reply.
    end: Option<Read>,
}

impl PolledReader {
    /// Reads the available records; an empty reply at the tip.
    fn look(&mut self) -> Result<Read, ServiceError> {
        let empty = Read::Records { records: Vec::new(), millis_behind_latest: 0 };
        self.inner.next().now_or_never().unwrap_or(Ok(empty))
    }

    async fn step(&mut self) -> Result<Read, ServiceError> {
        if let Some(end) = &self.end {
            return Ok(end.clone());
        }
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        let sent = Instant::now();
        self.latency.half().await;
        let read = self.look()?;
        self.latency.half().await;
        let pause = match &read {
            Read::Records { millis_behind_latest: 1.., .. } => Duration::from_millis(200),
            Read::Records { .. } => Duration::from_secs(1),
            Read::End { .. } => Duration::ZERO,
        };
        self.due = Some(sent + pause.mul_f64(1.0 + self.latency.draw() / 10.0));
        if matches!(&read, Read::Records { records, millis_behind_latest: 0 } if !records.is_empty())
        {
            self.end = match self.inner.next().now_or_never() {
                Some(Ok(end @ Read::End { .. })) => Some(end),
                // More records would have been in the reply, so only the end can follow.
                Some(_) | None => None,
            };
        }
        Ok(read)
    }
}

impl ShardReader for PolledReader {
    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        self.step().boxed()
    }
}
