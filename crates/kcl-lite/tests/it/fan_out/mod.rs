//! Enhanced fan-out against the in-process service, on paused time: how a reader handles everything that
//! can happen to a subscription, and how workers behave on it.

mod auto;
mod consumer;
mod readers;
mod sockets;
mod workers;

use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use kcl_lite::stream::kinesis::{KinesisOptions, KinesisStream};
use kcl_lite::stream::{Read, ShardReader, Stream as _};
use kcl_lite::{
    Cursor, Event, InitialPosition, Retrieval, ServiceErrorKind, Settings, ShardContext,
    StreamConsumer, Worker, WorkerHandle,
};
use local_aws::LocalAws;
use tokio::time::Instant;

use crate::fleet::{Fleet, Script, Seen, key_of};
use crate::polling::{self, READER, STREAM, create, scripted_config, shard};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = MINUTE;
const APPLICATION: &str = "rides";

fn named(name: &str) -> StreamConsumer {
    StreamConsumer::Named(name.to_owned())
}

/// The times of calls.
type Moments = Arc<Mutex<Vec<Instant>>>;

/// Creates the stream, read by fan-out; `calls` receives the times of SubscribeToShard calls.
fn noted_stream(local: &LocalAws, calls: &Moments) -> KinesisStream {
    let calls = Arc::clone(calls);
    let config = scripted_config(local, move |operation, _| {
        if operation == "SubscribeToShard" {
            calls.lock().push(Instant::now());
        }
        None
    });
    fan_out_stream(&config)
}

fn fan_out_stream(config: &SdkConfig) -> KinesisStream {
    let retrieval = Retrieval::FanOut { consumer: named(APPLICATION) };
    KinesisStream::new(config, STREAM, KinesisOptions { retrieval, ..KinesisOptions::default() })
}

/// Creates a stream of one shard with an active consumer, and a reader from its oldest record.
struct Subscribed {
    local: LocalAws,
    writer: Client,
    calls: Moments,
    stream: KinesisStream,
    reader: Box<dyn ShardReader>,
}

impl Subscribed {
    async fn new() -> Self {
        let local = LocalAws::in_memory();
        let writer = create(&local, 1).await;
        let calls = Moments::default();
        let stream = noted_stream(&local, &calls);
        stream.prepare().await.unwrap();
        let reader = stream.open(&shard(0), Cursor::Horizon);
        Self { local, writer, calls, stream, reader }
    }

    fn calls(&self) -> Vec<Instant> {
        self.calls.lock().clone()
    }

    /// Reads until this many records have arrived; errors of `allowed` kinds may occur in between.
    async fn read(&mut self, count: usize, allowed: &[ServiceErrorKind]) -> Vec<u32> {
        polling::read(&mut self.reader, count, allowed).await
    }

    /// Reads for this long without pauses; returns the records and the kinds of errors.
    async fn read_for(&mut self, time: Duration) -> (Vec<u32>, Vec<ServiceErrorKind>) {
        let (mut seen, mut errors) = (Vec::new(), Vec::new());
        let reading = async {
            loop {
                match self.reader.next().await {
                    Ok(Read::Records { records, .. }) => seen.extend(polling::numbers(&records)),
                    Ok(Read::End { .. }) => panic!("the shard ended after {seen:?}"),
                    Err(error) => errors.push(error.kind),
                }
            }
        };
        tokio::time::timeout(time, reading).await.unwrap_err();
        (seen, errors)
    }
}

/// Workers on one stream and one lease table, all through the real clients.
#[derive(Clone)]
struct World {
    local: LocalAws,
    writer: Client,
    fleet: Fleet,
}

impl World {
    async fn new(shards: i32) -> Self {
        let local = LocalAws::in_memory();
        let writer = create(&local, shards).await;
        Self { local, writer, fleet: Fleet::new(1) }
    }

    fn takes(self, time: Duration) -> Self {
        *self.fleet.script.lock() = Script { takes: time, ..Script::default() };
        self
    }

    /// Starts a worker that reaches the stream as client `name` and the lease table as `name-leases`.
    async fn start(&self, name: &str) -> WorkerHandle {
        self.start_with(name, settings()).await
    }

    async fn start_with(&self, name: &str, settings: Settings) -> WorkerHandle {
        self.try_start(name, settings).await.unwrap()
    }

    async fn try_start(
        &self,
        name: &str,
        settings: Settings,
    ) -> Result<WorkerHandle, kcl_lite::Error> {
        let (events, records) = (self.fleet.clone(), self.fleet.clone());
        let (id, worker) = (name.to_owned(), name.to_owned());
        Worker::builder(APPLICATION, STREAM)
            .worker_id(name)
            .settings(settings)
            .aws_config(self.local.sdk_config(name))
            .lease_aws_config(self.local.sdk_config(&format!("{name}-leases")))
            .on_event(move |event| events.note(Seen::Event(id.clone(), event.clone())))
            .build()
            .await?
            .start(move |shard: &ShardContext| records.recorder(&worker, shard))
            .await
    }

    /// Puts records with these numbers as payloads, spread over the shards.
    async fn feed(&self, numbers: Range<u32>) {
        if numbers.is_empty() {
            return;
        }
        let entries = numbers.map(|number| {
            let data = Blob::new(number.to_string());
            PutRecordsRequestEntry::builder()
                .partition_key(key_of(number))
                .data(data)
                .build()
                .unwrap()
        });
        let call = self.writer.put_records().stream_name(STREAM);
        let reply = call.set_records(Some(entries.collect())).send().await.unwrap();
        assert_eq!(reply.failed_record_count, Some(0));
    }

    /// Puts `rate` records per second for this many seconds; returns the next number.
    async fn feed_for(&self, first: u32, rate: u32, seconds: u32) -> u32 {
        for second in 0..seconds {
            self.feed(first + second * rate..first + (second + 1) * rate).await;
            tokio::time::sleep(SECOND).await;
        }
        first + seconds * rate
    }

    fn subscriptions(&self, name: &str) -> u64 {
        self.local.requests().count(name, "SubscribeToShard")
    }

    /// Asserts that everything was delivered exactly once, in order.
    fn exactly_once(&self, count: u32) {
        self.fleet.verify(count);
        assert_eq!(self.fleet.repeats(), 0);
    }

    fn events(&self, wanted: impl Fn(&str, &Event) -> bool) -> usize {
        self.fleet.count(wanted)
    }
}

fn settings() -> Settings {
    Settings {
        retrieval: Retrieval::fan_out(),
        initial_position: InitialPosition::TrimHorizon,
        ..crate::fleet::settings()
    }
}
