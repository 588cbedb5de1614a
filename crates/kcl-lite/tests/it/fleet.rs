//! The test fleet: workers on one in-memory stream and one faulty lease store, on paused time.
//!
//! One log records every delivery and event in order; tests wait for conditions on the log and never
//! sleep for a guessed time.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kcl_lite::lease::Lease;
use kcl_lite::stream::Stream;
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::{
    Ack, Batch, BoxError, ControlPlane, Error, Event, Gap, InitialPosition, RecordProcessor,
    Settings, ShardContext, ShardId, TakeReason, Worker, WorkerBuilder, WorkerHandle,
};
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use crate::faults::Faults;
use crate::faults::{FaultyStore, Link, LinkClock, LinkStream};

/// An entry of the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    /// A record reached a processor: worker, shard, payload.
    Record(String, ShardId, String),
    /// A callback other than `process`: worker, shard, name.
    Callback(String, ShardId, &'static str),
    /// A worker's event.
    Event(String, Event),
}

/// The behaviour of the processors of a fleet.
#[derive(Clone, Default)]
pub(crate) struct Script {
    /// How often each payload fails before it succeeds.
    pub(crate) failures: BTreeMap<String, u32>,
    /// A payload that panics once.
    pub(crate) panics: Option<String>,
    /// A payload that panics whenever it is delivered.
    pub(crate) poison: Option<String>,
    /// A payload at which the processor never returns.
    pub(crate) hangs: Option<String>,
    /// Whether tokens are kept in `Fleet::acks` instead of acknowledged.
    pub(crate) defer: bool,
    /// How long processing a batch takes.
    pub(crate) takes: Duration,
}

/// The fleet of one test. Clones share it.
#[derive(Clone)]
pub(crate) struct Fleet {
    pub(crate) stream: MemoryStream,
    pub(crate) store: FaultyStore,
    pub(crate) log: Arc<Mutex<Vec<Seen>>>,
    pub(crate) acks: Arc<Mutex<Vec<(String, Ack)>>>,
    pub(crate) script: Arc<Mutex<Script>>,
    /// When each entry of the log was written.
    pub(crate) moments: Arc<Mutex<Vec<Instant>>>,
    /// Worker, shard and fencing token of every batch, in order.
    pub(crate) tokens: Arc<Mutex<Vec<(String, ShardId, u64)>>>,
    /// When shards were listed.
    pub(crate) listings: Arc<Mutex<Vec<Instant>>>,
    links: Arc<Mutex<BTreeMap<String, Arc<Link>>>>,
    changed: Arc<Notify>,
}

pub(crate) const LEASE: Duration = Duration::from_secs(10);

impl Fleet {
    pub(crate) fn new(shards: u32) -> Self {
        Self {
            stream: MemoryStream::new(shards),
            store: FaultyStore::default(),
            log: Arc::default(),
            acks: Arc::default(),
            script: Arc::default(),
            moments: Arc::default(),
            tokens: Arc::default(),
            listings: Arc::default(),
            links: Arc::default(),
            changed: Arc::default(),
        }
    }

    pub(crate) fn script(self, script: Script) -> Self {
        *self.script.lock() = script;
        self
    }

    /// Starts a worker that reads from the oldest record.
    pub(crate) async fn start(&self, name: &str) -> WorkerHandle {
        self.start_with(
            name,
            Settings { initial_position: InitialPosition::TrimHorizon, ..settings() },
        )
        .await
    }

    pub(crate) async fn start_with(&self, name: &str, settings: Settings) -> WorkerHandle {
        self.start_on(name, self.stream.clone(), settings).await
    }

    /// Starts a worker on another view of the stream.
    pub(crate) async fn start_on(
        &self,
        name: &str,
        stream: impl Stream + 'static,
        settings: Settings,
    ) -> WorkerHandle {
        self.try_start_on(name, stream, settings).await.unwrap()
    }

    /// Starts a worker as [`start_on`](Self::start_on) does, but returns the error of a failed start.
    pub(crate) async fn try_start_on(
        &self,
        name: &str,
        stream: impl Stream + 'static,
        settings: Settings,
    ) -> Result<WorkerHandle, Error> {
        let (link, listings) = (self.link(name), Arc::clone(&self.listings));
        let (fleet, worker) = (self.clone(), name.to_owned());
        self.builder(name)
            .settings(settings)
            .stream(LinkStream { inner: stream, link, listings })
            .build()
            .await?
            .start(move |shard: &ShardContext| fleet.recorder(&worker, shard))
            .await
    }

    /// Returns the link of `worker`. A name of the form `a/2` is another process with the worker ID `a`.
    pub(crate) fn link(&self, worker: &str) -> Arc<Link> {
        Arc::clone(self.links.lock().entry(worker.to_owned()).or_default())
    }

    /// Sets a separate clock for `worker`, before it starts.
    pub(crate) fn clock(&self, worker: &str, skew: Duration, fast: u32) {
        let link = Arc::new(Link::with_clock(skew, fast));
        self.links.lock().insert(worker.to_owned(), link);
    }

    /// Returns a builder for a worker of this fleet.
    pub(crate) fn builder(&self, name: &str) -> WorkerBuilder {
        let (link, listings) = (self.link(name), Arc::clone(&self.listings));
        let (events, id) = (self.clone(), name.to_owned());
        let stream = LinkStream { inner: self.stream.clone(), link: Arc::clone(&link), listings };
        Worker::builder("test", "stream")
            .worker_id(name.split('/').next().unwrap())
            .clock(Arc::new(LinkClock(Arc::clone(&link))))
            .stream(stream)
            .lease_store(self.store.through(name, link))
            .on_event(move |event| events.note(Seen::Event(id.clone(), event.clone())))
    }

    /// Returns the factory of processors that follow the script.
    pub(crate) fn recorder(&self, worker: &str, shard: &ShardContext) -> Recorder {
        let (shard, link) = (shard.shard_id.clone(), self.link(worker));
        Recorder { fleet: self.clone(), worker: worker.to_owned(), shard, link }
    }

    pub(crate) fn note(&self, seen: Seen) {
        let mut log = self.log.lock();
        log.push(seen);
        self.moments.lock().push(Instant::now());
        drop(log);
        self.changed.notify_waiters();
    }

    /// Waits until `condition` holds for the log, for at most an hour of virtual time.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&[Seen]) -> bool) {
        let wait = async {
            let mut log = Vec::new();
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                log.extend_from_slice(&self.log.lock()[log.len()..]);
                if condition(&log) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(3600), wait).await.is_err() {
            panic!("never happened: {what}\n{:#?}", self.log.lock());
        }
    }

    /// Waits until `event` of any worker satisfies `condition`.
    pub(crate) async fn until_event(&self, what: &str, condition: impl Fn(&str, &Event) -> bool) {
        self.until(what, |log| {
            log.iter()
                .any(|seen| matches!(seen, Seen::Event(worker, event) if condition(worker, event)))
        })
        .await;
    }

    /// Waits until `count` records have been delivered, repeats included.
    pub(crate) async fn until_delivered(&self, count: usize) {
        self.until(&format!("{count} deliveries"), |log| records(log).len() >= count).await;
    }

    /// Waits until `condition` holds, checking ten times per second, and returns how long it took.
    pub(crate) async fn within(
        &self,
        limit: Duration,
        what: &str,
        condition: impl Fn(&Self) -> bool,
    ) -> Duration {
        let since = Instant::now();
        while !condition(self) {
            let owners = self.owners();
            assert!(since.elapsed() < limit, "not within {limit:?}: {what}; {owners:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        since.elapsed()
    }

    /// Puts records with these numbers as payloads; [`verify`](Self::verify) knows their keys.
    pub(crate) fn feed(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.stream.put(&key_of(number), number.to_string());
        }
    }

    /// Puts `rate` records per second for `seconds`, numbered from `first`; returns the next number.
    pub(crate) async fn feed_for(&self, first: u32, rate: u32, seconds: u32) -> u32 {
        for step in 0..seconds * 10 {
            let place = |step: u32| first + step * rate / 10;
            self.feed(place(step)..place(step + 1));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        first + seconds * rate
    }

    /// Asserts that every record of [`feed`](Self::feed) below `count` was delivered, and those of one key in
    /// order, apart from repeats.
    pub(crate) fn verify(&self, count: u32) {
        let mut last: BTreeMap<String, u32> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for payload in self.delivered() {
            let number: u32 = payload.parse().unwrap();
            if seen.insert(number)
                && let Some(before) = last.insert(key_of(number), number)
            {
                assert!(before < number, "{number} came after {before}, which has the same key");
            }
        }
        let lost: Vec<_> = (0..count).filter(|number| !seen.contains(number)).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }

    /// Waits until all records of [`feed`](Self::feed) below `count` have been delivered.
    pub(crate) async fn all_of(&self, count: u32, limit: Duration) {
        let what = format!("{count} records");
        let distinct = |fleet: &Self| fleet.delivered().into_iter().collect::<BTreeSet<_>>().len();
        self.within(limit, &what, |fleet| distinct(fleet) >= count as usize).await;
        self.verify(count);
    }

    /// Waits until the payloads 0 to `count` have been delivered, from any stream.
    pub(crate) async fn all_delivered(&self, count: u32, limit: Duration) {
        let wanted: BTreeSet<_> = (0..count).map(|number| number.to_string()).collect();
        self.within(limit, &format!("{count} records"), |fleet| {
            wanted.is_subset(&fleet.delivered().into_iter().collect())
        })
        .await;
    }

    /// Returns the records that were delivered more than once.
    pub(crate) fn repeats(&self) -> usize {
        let delivered = self.delivered();
        delivered.len() - delivered.iter().collect::<BTreeSet<_>>().len()
    }

    /// Returns the events that `wanted` selects.
    pub(crate) fn count(&self, wanted: impl Fn(&str, &Event) -> bool) -> usize {
        self.events().iter().filter(|(worker, event)| wanted(worker, event)).count()
    }

    /// Returns the leases that were lost.
    pub(crate) fn losses(&self) -> usize {
        self.count(|_, event| matches!(event, Event::LeaseLost { .. }))
    }

    /// Returns the leases that were taken although their owner had not released them.
    pub(crate) fn moves(&self) -> usize {
        self.count(|_, event| {
            let Event::LeaseTaken { reason, .. } = event else { return false };
            matches!(reason, TakeReason::Expired | TakeReason::Balance | TakeReason::Handoff)
        })
    }

    /// Returns for each shard the times of its deliveries.
    pub(crate) fn deliveries(&self) -> BTreeMap<ShardId, Vec<Instant>> {
        let mut deliveries: BTreeMap<ShardId, Vec<Instant>> = BTreeMap::new();
        let log = self.log.lock();
        for (seen, at) in log.iter().zip(self.moments.lock().iter()) {
            if let Seen::Record(_, shard, _) = seen {
                deliveries.entry(shard.clone()).or_default().push(*at);
            }
        }
        deliveries
    }

    /// Returns the unfinished shards that have an owner.
    pub(crate) fn owned(&self) -> usize {
        let leases = self.store.inner.snapshot();
        let owned = |lease: &&Lease| lease.owner.is_some() && !lease.checkpoint.is_shard_end();
        leases.iter().filter(owned).count()
    }

    /// Returns the payloads in the order of delivery.
    pub(crate) fn delivered(&self) -> Vec<String> {
        records(&self.log.lock())
    }

    pub(crate) fn events(&self) -> Vec<(String, Event)> {
        let log = self.log.lock();
        let events = log.iter().filter_map(|seen| match seen {
            Seen::Event(worker, event) => Some((worker.clone(), event.clone())),
            Seen::Record(..) | Seen::Callback(..) => None,
        });
        events.collect()
    }

    pub(crate) fn callbacks(&self) -> Vec<String> {
        let log = self.log.lock();
        let callbacks = log.iter().filter_map(|seen| match seen {
            Seen::Callback(worker, shard, name) => Some(format!("{worker} {shard} {name}")),
            Seen::Record(..) | Seen::Event(..) => None,
        });
        callbacks.collect()
    }

    /// Returns the lease of `shard` in the store.
    pub(crate) fn lease(&self, shard: &ShardId) -> Lease {
        let mut leases = self.store.inner.snapshot().into_iter();
        leases.find(|lease| lease.key == *shard).unwrap()
    }

    pub(crate) fn owners(&self) -> BTreeMap<String, usize> {
        let mut owners = BTreeMap::new();
        for lease in self.store.inner.snapshot() {
            let owner = lease.owner.map_or("-".to_owned(), |owner| owner.to_string());
            *owners.entry(owner).or_default() += 1;
        }
        owners
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        control_plane: ControlPlane::Inline,
        seed: Some(7),
        lease_duration: LEASE,
        ..Settings::default()
    }
}

fn records(log: &[Seen]) -> Vec<String> {
    let records = log.iter().filter_map(|seen| match seen {
        Seen::Record(_, _, payload) => Some(payload.clone()),
        Seen::Callback(..) | Seen::Event(..) => None,
    });
    records.collect()
}

/// Returns the key of a numbered record.
pub(crate) fn key_of(number: u32) -> String {
    format!("key-{}", number % 257)
}

/// A processor that follows the script and logs its calls.
pub(crate) struct Recorder {
    fleet: Fleet,
    worker: String,
    shard: ShardId,
    link: Arc<Link>,
}

impl Recorder {
    fn note(&self, name: &'static str) {
        self.fleet.note(Seen::Callback(self.worker.clone(), self.shard.clone(), name));
    }
}

impl RecordProcessor for Recorder {
    async fn process(&mut self, mut batch: Batch) -> Result<(), BoxError> {
        let token = (self.worker.clone(), self.shard.clone(), batch.shard().fencing_token);
        self.fleet.tokens.lock().push(token);
        for record in batch.records() {
            let payload = String::from_utf8_lossy(&record.data).into_owned();
            let (fails, panics, hangs) = {
                let mut script = self.fleet.script.lock();
                let left = script.failures.get_mut(&payload).filter(|left| **left > 0);
                let fails = left.is_some_and(|left| {
                    *left -= 1;
                    true
                });
                let panics = script.panics.take_if(|panics| *panics == payload).is_some()
                    || script.poison.as_ref() == Some(&payload);
                (fails, panics, script.hangs.as_ref() == Some(&payload))
            };
            if hangs {
                std::future::pending::<()>().await;
            }
            assert!(!panics, "the script says so at {payload}");
            if fails {
                return Err(format!("cannot process {payload}").into());
            }
            let seen = Seen::Record(self.worker.clone(), self.shard.clone(), payload);
            self.fleet.note(seen);
        }
        if self.fleet.script.lock().defer {
            let acks = batch.split().into_iter();
            let acks =
                acks.map(|(record, ack)| (String::from_utf8_lossy(&record.data).into_owned(), ack));
            self.fleet.acks.lock().extend(acks);
        }
        let takes = self.fleet.script.lock().takes;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        self.link.pass().await;
        Ok(())
    }

    async fn initialize(&mut self, _shard: &ShardContext) -> Result<(), BoxError> {
        self.note("initialize");
        Ok(())
    }

    async fn gap(&mut self, _gap: &Gap) -> Result<(), BoxError> {
        self.note("gap");
        Ok(())
    }

    async fn shard_ended(&mut self) {
        self.note("shard_ended");
    }

    async fn shutdown_requested(&mut self) {
        self.note("shutdown_requested");
    }

    async fn lease_lost(&mut self) {
        self.note("lease_lost");
    }
}
