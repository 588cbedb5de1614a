//! One run: workers on one stream and one table, on paused time, and the log of their actions.
//!
//! A delivery is a call of `process`. A worker is killed by dropping it: it does nothing more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kcl_lite::stream::{ListFrom, Stream as _};
use kcl_lite::{
    Batch, BoxError, ControlPlane, Event, InitialPosition, RecordProcessor, SequenceNumber,
    Settings, ShardContext, ShardId, Worker, WorkerHandle,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::ports::{Latency, Polled, Table};

/// The library's default lease duration.
pub(crate) const LEASE: Duration = Duration::from_secs(10);

/// The limit of a wait in virtual time, for events that take minutes at most.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The poll interval of a wait. Instants are recorded when events happen, not when they are polled.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A delivery of one record.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) at: Instant,
    pub(crate) worker: String,
    pub(crate) shard: ShardId,
}

/// The log of all workers.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) deliveries: Vec<Delivery>,
    taken: usize,
    repeats: usize,
    delivered: BTreeSet<(ShardId, SequenceNumber)>,
}

impl Log {
    /// Leases taken, and records delivered more than once.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.taken, self.repeats)
    }
}

/// The services and the log. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) stream: Polled,
    pub(crate) table: Table,
    pub(crate) seed: u64,
    log: Arc<Mutex<Log>>,
}

/// Runs `play` on paused time and returns its measurement.
pub(crate) fn run<T>(seed: u64, shards: u32, play: impl AsyncFnOnce(World) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads needs nothing from the system");
    runtime.block_on(async {
        let latency = Latency::new(seed);
        let world = World {
            stream: Polled::new(shards, latency.clone()),
            table: Table::new(latency),
            seed,
            log: Arc::default(),
        };
        play(world).await
    })
}

impl World {
    /// Starts a worker and waits until it is ready.
    pub(crate) async fn start(&self, name: &str) -> WorkerHandle {
        let settings = Settings {
            control_plane: ControlPlane::Inline,
            initial_position: InitialPosition::TrimHorizon,
            lease_duration: LEASE,
            seed: Some(name.bytes().fold(self.seed, |seed, byte| seed * 31 + u64::from(byte))),
            ..Settings::default()
        };
        let (noted, log, id) = (self.log.clone(), self.log.clone(), name.to_owned());
        let worker = Worker::builder("bench", "stream")
            .worker_id(name)
            .settings(settings)
            .stream(self.stream.clone())
            .lease_store(self.table.clone())
            .on_event(move |event| {
                lock(&noted).taken += usize::from(matches!(event, Event::LeaseTaken { .. }));
            })
            .build()
            .await
            .expect("the settings are valid");
        let factory = move |_: &ShardContext| Recorder { log: log.clone(), worker: id.clone() };
        worker.start(factory).await.expect("ports in memory do not fail")
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    /// Puts a record into every open shard, repeatedly, until dropped.
    pub(crate) fn feed(&self, every: Duration) -> JoinSet<()> {
        let world = self.clone();
        let mut feeding = JoinSet::new();
        feeding.spawn(async move {
            loop {
                world.put_everywhere().await;
                sleep(every).await;
            }
        });
        feeding
    }

    /// Puts a record into every open shard.
    pub(crate) async fn put_everywhere(&self) {
        for shard in self.open_shards().await {
            self.stream.records.put_to(&shard, "key", "record");
        }
    }

    pub(crate) async fn open_shards(&self) -> Vec<ShardId> {
        let listing = self.stream.records.list(ListFrom::All).await;
        let shards = listing.expect("the stream is there").shards.into_iter();
        shards.filter(|shard| shard.is_open).map(|shard| shard.id).collect()
    }

    /// Waits until `done` holds.
    pub(crate) async fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "seed {}: never happened: {what}", self.seed);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until these workers hold all leases, their counts differ by at most one, and no handoff is
    /// pending.
    pub(crate) async fn until_balanced(&self, workers: &[&str]) {
        self.until("the leases are balanced", |world| {
            let mut held = vec![0_usize; workers.len()];
            for lease in world.table.rows.snapshot() {
                let owner = lease.owner.as_ref().filter(|_| lease.checkpoint_owner.is_none());
                let Some(owner) = owner.map(kcl_lite::WorkerId::as_str) else {
                    return false;
                };
                let Some(rank) = workers.iter().position(|worker| *worker == owner) else {
                    return false;
                };
                held[rank] += 1;
            }
            held.iter().max().zip(held.iter().min()).is_some_and(|(most, least)| most - least <= 1)
        })
        .await;
    }

    /// Returns the shards whose leases `worker` holds.
    pub(crate) fn held_by(&self, worker: &str) -> Vec<ShardId> {
        let leases = self.table.rows.snapshot().into_iter();
        let theirs =
            leases.filter(|lease| lease.owner.as_ref().is_some_and(|it| it.as_str() == worker));
        theirs.map(|lease| lease.shard()).collect()
    }

    /// Waits until a worker other than `left` delivers each of `shards`; returns the times since `since`.
    pub(crate) async fn until_others_deliver(
        &self,
        shards: &[ShardId],
        left: &str,
        since: Instant,
    ) -> Vec<Duration> {
        let first = |world: &Self, shard: &ShardId| {
            let log = world.log();
            let earlier = log.deliveries.partition_point(|delivery| delivery.at < since);
            let mut later = log.deliveries[earlier..].iter();
            let first = later.find(|delivery| delivery.shard == *shard && delivery.worker != left);
            first.map(|delivery| delivery.at - since)
        };
        self.until("others deliver", |world| {
            shards.iter().all(|shard| first(world, shard).is_some())
        })
        .await;
        shards.iter().filter_map(|shard| first(self, shard)).collect()
    }
}

/// A processor that logs its deliveries.
struct Recorder {
    log: Arc<Mutex<Log>>,
    worker: String,
}

impl RecordProcessor for Recorder {
    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        let mut log = lock(&self.log);
        for record in batch.records() {
            let shard = batch.shard_id().clone();
            log.deliveries.push(Delivery {
                at: Instant::now(),
                worker: self.worker.clone(),
                shard: shard.clone(),
            });
            let is_new = log.delivered.insert((shard, record.sequence_number.clone()));
            log.repeats += usize::from(!is_new);
        }
        Ok(())
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock()
}
