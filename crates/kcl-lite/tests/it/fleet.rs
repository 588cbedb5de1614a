//! A fleet for tests: workers on one in-memory stream and one faulty lease store, on paused time.
//!
//! Every delivery and every event goes into one log, in the order it happened; tests wait for what
//! they need by looking at the log, never by sleeping a guessed time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::lease::store::{LeaseStore, Table, WriteOutcome};
use kcl_lite::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite};
use kcl_lite::stream::Stream;
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::{
    Ack, Batch, BoxError, ControlPlane, Event, InitialPosition, RecordProcessor, ServiceError,
    ServiceErrorKind, Settings, ShardContext, ShardId, Worker, WorkerHandle,
};
use tokio::sync::Notify;

/// What was seen, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    /// A record reached a processor: worker, shard, payload.
    Record(String, ShardId, String),
    /// A callback other than `process`: worker, shard, name.
    Callback(String, ShardId, &'static str),
    /// A worker's event.
    Event(String, Event),
}

/// How the processors of a fleet behave.
#[derive(Clone, Default)]
pub(crate) struct Script {
    /// Payload → how often it fails before it succeeds.
    pub(crate) failures: BTreeMap<String, u32>,
    /// Payload that panics once.
    pub(crate) panics: Option<String>,
    /// Payload at which the processor never returns.
    pub(crate) hangs: Option<String>,
    /// Keep acknowledgements in `Fleet::acks` instead of acknowledging.
    pub(crate) defer: bool,
}

/// Faults of the lease store; the test switches them.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyStore {
    pub(crate) inner: MemoryStore,
    pub(crate) faults: Arc<Mutex<Faults>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Faults {
    #[default]
    None,
    /// Nothing is applied, every call is refused by the network.
    Down,
    /// Calls never return; writes are not applied.
    Hang,
    /// Renewals are applied, and every second reply is lost.
    LoseReplies(bool),
}

impl FaultyStore {
    pub(crate) fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    async fn fault(&self) -> Result<(), ServiceError> {
        let faults = *self.faults.lock().unwrap();
        match faults {
            Faults::Down => {
                Err(ServiceError::new(ServiceErrorKind::Unavailable, "the table is down"))
            }
            Faults::Hang => std::future::pending().await,
            Faults::None | Faults::LoseReplies(_) => Ok(()),
        }
    }
}

impl LeaseStore for FaultyStore {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(self.fault())
    }

    fn list(&self) -> BoxFuture<'_, Result<Table, ServiceError>> {
        Box::pin(async {
            self.fault().await?;
            self.inner.list().await
        })
    }

    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>> {
        Box::pin(async move {
            self.fault().await?;
            self.inner.get(key).await
        })
    }

    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>> {
        Box::pin(async move {
            self.fault().await?;
            let outcome = self.inner.write(write).await?;
            let mut faults = self.faults.lock().unwrap();
            if let Faults::LoseReplies(lose) = &mut *faults
                && matches!(write.change, LeaseChange::Renew { .. } | LeaseChange::Take { .. })
            {
                *lose = !*lose;
                if !*lose {
                    return Err(ServiceError::new(
                        ServiceErrorKind::Unavailable,
                        "the reply was lost",
                    ));
                }
            }
            Ok(outcome)
        })
    }
}

/// The world of one test. Clones share it.
#[derive(Clone)]
pub(crate) struct Fleet {
    pub(crate) stream: MemoryStream,
    pub(crate) store: FaultyStore,
    pub(crate) log: Arc<Mutex<Vec<Seen>>>,
    pub(crate) acks: Arc<Mutex<Vec<(String, Ack)>>>,
    pub(crate) script: Arc<Mutex<Script>>,
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
            changed: Arc::default(),
        }
    }

    pub(crate) fn script(self, script: Script) -> Self {
        *self.script.lock().unwrap() = script;
        self
    }

    /// Starts a worker that reads from the beginning.
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
        let (fleet, worker) = (self.clone(), name.to_owned());
        let (events, id) = (self.clone(), name.to_owned());
        Worker::builder("test", "stream")
            .worker_id(name)
            .settings(settings)
            .stream(stream)
            .lease_store(self.store.clone())
            .on_event(move |event| events.note(Seen::Event(id.clone(), event.clone())))
            .build()
            .await
            .unwrap()
            .start(move |shard: &ShardContext| Recorder {
                fleet: fleet.clone(),
                worker: worker.clone(),
                shard: shard.shard_id.clone(),
            })
            .await
            .unwrap()
    }

    fn note(&self, seen: Seen) {
        self.log.lock().unwrap().push(seen);
        self.changed.notify_waiters();
    }

    /// Waits until `condition` holds of the log; an hour of virtual time is enough for anything.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&[Seen]) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let log = self.log.lock().unwrap().clone();
                if condition(&log) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(3600), wait).await.is_err() {
            panic!("never happened: {what}\n{:#?}", self.log.lock().unwrap());
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

    /// Payloads in the order of delivery.
    pub(crate) fn delivered(&self) -> Vec<String> {
        records(&self.log.lock().unwrap())
    }

    pub(crate) fn events(&self) -> Vec<(String, Event)> {
        let log = self.log.lock().unwrap();
        let events = log.iter().filter_map(|seen| match seen {
            Seen::Event(worker, event) => Some((worker.clone(), event.clone())),
            Seen::Record(..) | Seen::Callback(..) => None,
        });
        events.collect()
    }

    pub(crate) fn callbacks(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        let callbacks = log.iter().filter_map(|seen| match seen {
            Seen::Callback(worker, shard, name) => Some(format!("{worker} {shard} {name}")),
            Seen::Record(..) | Seen::Event(..) => None,
        });
        callbacks.collect()
    }

    /// The lease of `shard` as it stands in the store.
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

/// A processor that does what the script says and notes what it is given.
struct Recorder {
    fleet: Fleet,
    worker: String,
    shard: ShardId,
}

impl Recorder {
    fn note(&self, name: &'static str) {
        self.fleet.note(Seen::Callback(self.worker.clone(), self.shard.clone(), name));
    }
}

impl RecordProcessor for Recorder {
    async fn process(&mut self, mut batch: Batch) -> Result<(), BoxError> {
        for record in batch.records() {
            let payload = String::from_utf8_lossy(&record.data).into_owned();
            let (fails, panics, hangs) = {
                let mut script = self.fleet.script.lock().unwrap();
                let left = script.failures.get_mut(&payload).filter(|left| **left > 0);
                let fails = left.is_some_and(|left| {
                    *left -= 1;
                    true
                });
                let panics = script.panics.take_if(|panics| *panics == payload).is_some();
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
        if self.fleet.script.lock().unwrap().defer {
            let acks = batch.split().into_iter();
            let acks =
                acks.map(|(record, ack)| (String::from_utf8_lossy(&record.data).into_owned(), ack));
            self.fleet.acks.lock().unwrap().extend(acks);
        }
        Ok(())
    }

    async fn initialize(&mut self, _shard: &ShardContext) -> Result<(), BoxError> {
        self.note("initialize");
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
