//! Several streams in one worker, re-created streams, and services in different places: on in-process
//! local services, through the real clients, on paused time.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use kcl_lite::lease::dynamo::DynamoStore;
use kcl_lite::lease::store::LeaseStore as _;
use kcl_lite::lease::{Lease, LeaseChange, LeaseWrite, WriteId};
use kcl_lite::stream::kinesis::{KinesisOptions, KinesisStream};
use kcl_lite::{
    Batch, BoxError, Checkpoint, ControlPlane, ErrorKind, Event, InitialPosition, RecordProcessor,
    Settings, ShardContext, StreamRecreated, StreamSource, TableOptions, Worker, WorkerBuilder,
    WorkerHandle, reset,
};
use local_aws::{Effect, LocalAws, Rule};
use tokio::sync::Notify;

/// A limit on paused time, which only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(600);

/// The delivered records: stream and payload.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Log>);

#[derive(Default)]
pub(crate) struct Log {
    records: Mutex<Vec<String>>,
    events: Mutex<Vec<Event>>,
    changed: Notify,
}

impl Seen {
    pub(crate) fn all(&self) -> Vec<String> {
        let mut all = self.0.records.lock().clone();
        all.sort();
        all
    }

    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            while !condition(self) {
                self.0.changed.notified().await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("never happened: {what}; seen {:?}, {:?}", self.all(), self.0.events.lock());
        }
    }

    pub(crate) async fn count(&self, count: usize) {
        self.until(&format!("{count} records"), |seen| seen.all().len() >= count).await;
    }

    pub(crate) fn events(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.0.events.lock().iter().filter(|event| wanted(event)).count()
    }
}

struct Print(Seen);

impl RecordProcessor for Print {
    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        for record in batch.records() {
            let payload = String::from_utf8_lossy(&record.data);
            let line = format!("{} {payload}", batch.shard().stream);
            self.0.0.records.lock().push(line);
        }
        self.0.0.changed.notify_one();
        Ok(())
    }
}

pub(crate) fn builder(aws: &LocalAws, stream: impl Into<StreamSource>, id: &str) -> WorkerBuilder {
    Worker::builder("rides", stream).aws_config(aws.sdk_config(id)).worker_id(id)
}

pub(crate) fn settings() -> Settings {
    Settings {
        control_plane: ControlPlane::Inline,
        initial_position: InitialPosition::TrimHorizon,
        seed: Some(7),
        ..Settings::default()
    }
}

/// Returns settings that start over with a re-created stream, while a first start would start at the tip.
fn adopting() -> Settings {
    Settings {
        stream_recreated: StreamRecreated::Adopt,
        initial_position: InitialPosition::Latest,
        ..settings()
    }
}

pub(crate) async fn run(builder: WorkerBuilder, settings: Settings, seen: &Seen) -> WorkerHandle {
    try_run(builder, settings, seen).await.unwrap()
}

async fn try_run(
    builder: WorkerBuilder,
    settings: Settings,
    seen: &Seen,
) -> Result<WorkerHandle, kcl_lite::Error> {
    let (events, records) = (seen.clone(), seen.clone());
    let worker = builder.settings(settings).on_event(move |event| {
        events.0.events.lock().push(event.clone());
        events.0.changed.notify_one();
    });
    worker.build().await?.start(move |_: &ShardContext| Print(records.clone())).await
}

pub(crate) async fn create(aws: &LocalAws, stream: &str) {
    create_with_shards(aws, stream, 1).await;
}

async fn create_with_shards(aws: &LocalAws, stream: &str, shards: i32) {
    let client = Client::new(&aws.sdk_config("test"));
    client.create_stream().stream_name(stream).shard_count(shards).send().await.unwrap();
    until_active(&client, stream).await;
}

async fn until_active(client: &Client, stream: &str) {
    loop {
        let reply = client.describe_stream_summary().stream_name(stream).send().await.unwrap();
        let summary = reply.stream_description_summary.unwrap();
        if summary.stream_status.as_str() == "ACTIVE" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn delete(aws: &LocalAws, stream: &str) {
    let client = Client::new(&aws.sdk_config("test"));
    client.delete_stream().stream_name(stream).send().await.unwrap();
    while client.describe_stream_summary().stream_name(stream).send().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn make_again(aws: &LocalAws, stream: &str) {
    delete(aws, stream).await;
    create(aws, stream).await;
}

pub(crate) async fn put(aws: &LocalAws, stream: &str, payload: &str) {
    let client = Client::new(&aws.sdk_config("test"));
    let call = client.put_record().stream_name(stream).partition_key("Shadowfax");
    call.data(Blob::new(payload)).send().await.unwrap();
}

pub(crate) async fn keys(aws: &LocalAws) -> Vec<String> {
    let store = DynamoStore::new(&aws.sdk_config("test"), "rides", TableOptions::default());
    let leases = store.list().await.unwrap().leases;
    leases.iter().map(|lease| lease.key.to_string()).collect()
}

pub(crate) async fn stop(worker: &WorkerHandle) {
    worker.shutdown(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn several_streams_share_a_worker_and_a_table_with_the_java_librarys_keys() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    for stream in ["north", "south"] {
        create(&aws, stream).await;
        put(&aws, stream, "first").await;
    }
    let worker = run(builder(&aws, "north", "a").and_stream("south"), settings(), &seen).await;
    seen.count(2).await;
    assert_eq!(seen.all(), ["north first", "south first"]);
    let keys = keys(&aws).await;
    let parts: Vec<Vec<_>> = keys.iter().map(|key| key.split(':').collect()).collect();
    assert_eq!(parts.iter().map(|it| it[1]).collect::<Vec<_>>(), ["north", "south"]);
    assert!(parts.iter().all(|it| it.len() == 4 && it[3] == "shardId-000000000000"), "{keys:?}");
    stop(&worker).await;
    // A restart with the same streams continues where it was.
    put(&aws, "south", "second").await;
    let worker = run(builder(&aws, "north", "b").and_stream("south"), settings(), &seen).await;
    seen.count(3).await;
    assert_eq!(seen.all(), ["north first", "south first", "south second"]);
    stop(&worker).await;
}

#[tokio::test(start_paused = true)]
async fn l15_a_stream_that_was_read_alone_keeps_its_place_when_a_second_one_is_added() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    create(&aws, "south").await;
    put(&aws, "north", "1").await;
    let worker = run(builder(&aws, "north", "a"), settings(), &seen).await;
    seen.count(1).await;
    stop(&worker).await;
    put(&aws, "north", "2").await;
    put(&aws, "south", "1").await;
    let both = builder(&aws, "south", "b").and_stream("north");
    let worker = run(both, settings(), &seen).await;
    seen.count(3).await;
    stop(&worker).await;
    assert_eq!(seen.all(), ["north 1", "north 2", "south 1"]);
    let keys = keys(&aws).await;
    assert!(keys.contains(&"shardId-000000000000".to_owned()) && keys.len() == 2, "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn l13_leases_of_a_stream_that_was_recreated_are_refused_or_adopted() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    put(&aws, "north", "old").await;
    let worker = run(builder(&aws, "north", "a"), settings(), &seen).await;
    seen.count(1).await;
    stop(&worker).await;
    delete(&aws, "north").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    create(&aws, "north").await;
    for number in 0..10 {
        put(&aws, "north", &format!("new {number}")).await;
    }
    let before = keys(&aws).await;
    let error = try_run(builder(&aws, "north", "b"), settings(), &seen).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OtherStream);
    assert_eq!(error.to_string().matches("stream/north").count(), 2, "names both: {error}");
    assert_eq!((keys(&aws).await, seen.all().len()), (before, 1), "nothing is touched");

    // A row that another library created may belong to either stream.
    let (store, stream) = operator(&aws);
    let unmarked = Lease::new("shardId-000000000009", Checkpoint::TrimHorizon);
    let change = LeaseChange::Create(Box::new(unmarked.clone()));
    let write = LeaseWrite { key: unmarked.key, id: WriteId::new("test"), change };
    store.write(&write).await.unwrap();
    let error = try_run(builder(&aws, "north", "b"), adopting(), &seen).await.unwrap_err();
    assert!(
        error.to_string().contains("`shardId-000000000009` does not name its stream"),
        "{error}"
    );
    let change = LeaseChange::Discard { counter: 0 };
    store.write(&LeaseWrite { change, ..write }).await.unwrap();

    let error = reset::reset(&store, &stream, InitialPosition::TrimHorizon).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "it would move what is no longer there: {error}");

    // Even if first starts begin at the tip: nothing of the new stream has been read.
    let worker = run(builder(&aws, "north", "c"), adopting(), &seen).await;
    seen.count(11).await;
    stop(&worker).await;
    let new = (0..10).map(|number| format!("north new {number}"));
    assert_eq!(seen.all(), new.chain(["north old".to_owned()]).collect::<Vec<_>>());
}

/// A worker is killed before it has created the first lease of the new stream: the next one must still
/// detect that the stream was re-created, and not start at the tip.
#[tokio::test(start_paused = true)]
async fn l13_a_start_with_a_new_stream_that_died_half_way_leaves_what_tells_of_it() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    let worker = run(builder(&aws, "north", "a"), settings(), &seen).await;
    stop(&worker).await;
    make_again(&aws, "north").await;
    put(&aws, "north", "new").await;
    aws.faults().add(Rule::new(Effect::Hang).client("dies").operation("PutItem"));
    let dies = try_run(builder(&aws, "north", "dies"), adopting(), &seen);
    assert!(tokio::time::timeout(Duration::from_secs(5), dies).await.is_err(), "nobody answers");
    let worker = run(builder(&aws, "north", "next"), adopting(), &seen).await;
    seen.count(1).await;
    stop(&worker).await;
    assert_eq!(seen.all(), ["north new"]);
}

/// The content of an unreadable row is unknown; beside a row of a former stream it does not show that the
/// new stream has been started.
#[tokio::test(start_paused = true)]
async fn l13_a_row_that_cannot_be_read_does_not_hide_that_the_stream_was_recreated() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    let worker = run(builder(&aws, "north", "a"), settings(), &seen).await;
    stop(&worker).await;
    let table = aws_sdk_dynamodb::Client::new(&aws.sdk_config("test"));
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let damaged = table.put_item().table_name("rides").item("leaseKey", text("shardId-9"));
    damaged.item("leaseCounter", text("damaged")).send().await.unwrap();
    make_again(&aws, "north").await;
    put(&aws, "north", "new").await;
    let worker = run(builder(&aws, "north", "b"), adopting(), &seen).await;
    seen.count(1).await;
    stop(&worker).await;
}

/// If describing the stream hangs, the shards are listed anyway.
#[tokio::test(start_paused = true)]
async fn l13_a_stream_that_cannot_be_described_any_more_is_listed() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    let worker = run(builder(&aws, "north", "a"), settings(), &seen).await;
    aws.faults().add(Rule::new(Effect::Hang).client("a").operation("DescribeStreamSummary"));
    let listed = aws.requests().count("a", "ListShards");
    let next = aws.requests().wait_for("a", "ListShards", listed + 1);
    tokio::time::timeout(PATIENCE, next).await.expect("an audit");
    stop(&worker).await;
}

#[tokio::test(start_paused = true)]
async fn l13_the_leases_of_another_stream_are_not_touched() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    create(&aws, "south").await;
    put(&aws, "north", "1").await;
    let worker = run(builder(&aws, "north", "a"), settings(), &seen).await;
    seen.count(1).await;
    let error = try_run(builder(&aws, "south", "b"), settings(), &seen).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OtherStream);
    let words = error.to_string();
    assert!(words.contains("stream/north") && words.contains("stream/south"), "{words}");
    let writes: Vec<_> = aws.requests().operations("b").into_iter().collect();
    assert!(writes.iter().all(|it| !it.contains("PutItem") && !it.contains("UpdateItem")));
    stop(&worker).await;
}

#[tokio::test(start_paused = true)]
async fn l13_a_stream_that_is_recreated_under_a_running_worker_ends_it() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    put(&aws, "north", "old").await;
    let worker = run(builder(&aws, "north", "a"), settings(), &seen).await;
    seen.count(1).await;
    make_again(&aws, "north").await;
    let error = tokio::time::timeout(PATIENCE, worker.stopped()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.to_string().contains("re-created"), "{error}");
}

/// The lease is at the oldest record, so that none of its requests is invalid in the new stream.
#[tokio::test(start_paused = true)]
async fn l13_a_worker_that_has_read_nothing_notices_too_that_its_stream_was_recreated() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    aws.faults().add(Rule::new(Effect::Hang).client("a").operation("GetRecords"));
    let worker = run(builder(&aws, "north", "a"), settings(), &seen).await;
    make_again(&aws, "north").await;
    let error = tokio::time::timeout(PATIENCE, worker.stopped()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.to_string().contains("re-created"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn s20_of_two_streams_one_is_deleted_and_the_other_goes_on() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    create(&aws, "south").await;
    let worker = run(builder(&aws, "north", "a").and_stream("south"), settings(), &seen).await;
    put(&aws, "north", "1").await;
    seen.count(1).await;
    delete(&aws, "north").await;
    let is_gone = |event: &Event| matches!(event, Event::StreamDeleted { .. });
    seen.until("the stream is gone", |seen| seen.events(is_gone) > 0).await;
    let calls = || aws.requests().operations("a").len();
    let before = calls();
    put(&aws, "south", "1").await;
    seen.count(2).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(seen.events(is_gone), 1);
    assert_eq!(calls(), before, "no new kind of call");
    assert_eq!(keys(&aws).await.len(), 2, "its leases stay");
    stop(&worker).await;
}

#[tokio::test(start_paused = true)]
async fn e10_streams_and_table_in_different_places() {
    let (north, south, table) =
        (LocalAws::in_memory(), LocalAws::in_memory(), LocalAws::in_memory());
    let seen = Seen::default();
    create(&north, "rides").await;
    create(&south, "arn-south").await;
    put(&north, "rides", "1").await;
    put(&south, "arn-south", "1").await;
    let worker = builder(&north, "rides", "a")
        .and_stream(StreamSource::new("arn-south").aws_config(south.sdk_config("a")))
        .lease_aws_config(table.sdk_config("a"));
    let worker = run(worker, settings(), &seen).await;
    seen.count(2).await;
    stop(&worker).await;
    assert_eq!(keys(&table).await.len(), 2);
    let in_table =
        |aws: &LocalAws| aws.requests().operations("a").iter().any(|it| it.starts_with("dynamodb"));
    assert!(!in_table(&north) && !in_table(&south));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_given_twice_is_refused() {
    let aws = LocalAws::in_memory();
    let error = builder(&aws, "north", "a").and_stream("north").build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(error.to_string(), "stream `north` is given twice");
}

#[tokio::test(start_paused = true)]
async fn e11_a_rewind_of_one_of_several_streams_leaves_the_others_alone() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    // One more shard, whose row a reset would delete if it mistook it for one of the other stream.
    create_with_shards(&aws, "south", 2).await;
    put(&aws, "north", "too old").await;
    put(&aws, "south", "1").await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    put(&aws, "north", "1").await;
    let worker = run(builder(&aws, "north", "a").and_stream("south"), settings(), &seen).await;
    seen.count(3).await;
    let (store, stream) = operator(&aws);
    let half_an_hour = InitialPosition::Ago(Duration::from_secs(1_800));
    let done = reset::reset(&store, &stream, half_an_hour).await.unwrap();
    let restarted: Vec<_> = done.restarted.iter().map(|key| key.stream()).collect();
    assert_eq!(restarted.len(), 1);
    assert!(restarted[0].as_str().is_some_and(|key| key.contains(":north:")), "{restarted:?}");
    assert!(done.rewound.is_empty() && done.dropped.is_empty(), "{done:?}");
    seen.count(4).await;
    put(&aws, "south", "2").await;
    seen.count(5).await;
    stop(&worker).await;
    assert_eq!(seen.all(), ["north 1", "north 1", "north too old", "south 1", "south 2"]);
}

#[tokio::test(start_paused = true)]
async fn e11_a_running_fleet_obeys_a_rewind() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    put(&aws, "north", "too old").await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    put(&aws, "north", "1").await;
    let one = run(builder(&aws, "north", "a"), settings(), &seen).await;
    let two = run(builder(&aws, "north", "b"), settings(), &seen).await;
    put(&aws, "north", "2").await;
    seen.count(3).await;
    let (store, stream) = operator(&aws);
    let now = stream_time(&aws).await;
    let half_an_hour_ago = kcl_lite::Timestamp::from_millis(now - 1_800_000);
    let to = InitialPosition::AtTimestamp(half_an_hour_ago);
    let done = reset::reset(&store, &stream, to).await.unwrap();
    assert_eq!(done.restarted.len(), 1);
    seen.count(5).await;
    put(&aws, "north", "3").await;
    seen.count(6).await;
    stop(&one).await;
    stop(&two).await;
    let expected = ["1", "1", "2", "2", "3", "too old"].map(|it| format!("north {it}"));
    assert_eq!(seen.all(), expected);
}

pub(crate) fn operator(aws: &LocalAws) -> (DynamoStore, KinesisStream) {
    let config = aws.sdk_config("operator");
    let store = DynamoStore::new(&config, "rides", TableOptions::default());
    (store, KinesisStream::new(&config, "north", KinesisOptions::default()))
}

async fn stream_time(aws: &LocalAws) -> i64 {
    let client = Client::new(&aws.sdk_config("test"));
    let iterator =
        client.get_shard_iterator().stream_name("north").shard_id("shardId-000000000000");
    let iterator = iterator.shard_iterator_type("TRIM_HORIZON".into()).send().await.unwrap();
    let read =
        client.get_records().set_shard_iterator(iterator.shard_iterator).send().await.unwrap();
    let last = read.records.last().unwrap().approximate_arrival_timestamp.unwrap();
    last.to_millis().unwrap()
}
