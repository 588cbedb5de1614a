//! The polling reader on paused time: what ends a shard and what never does, where reading continues, the
//! rate of calls, and listings.
//!
//! Against `local-aws` in process; a script supplies the replies that no service should return.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::client::Waiters as _;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use kcl_lite::stream::kinesis::{KinesisOptions, KinesisStream};
use kcl_lite::stream::{ListFrom, Read, ShardReader, Stream as _};
use kcl_lite::{Cursor, Record, ServiceErrorKind, ShardId, Timestamp};
use local_aws::{Clock, Effect, LocalAws, Rule};
use serde_json::{Value, json};
use tokio::time::{Instant, advance, sleep, timeout};

pub(crate) const STREAM: &str = "wildrydes";
pub(crate) const READER: &str = "reader";

pub(crate) fn stream(local: &LocalAws) -> KinesisStream {
    KinesisStream::new(&local.sdk_config(READER), STREAM, KinesisOptions::default())
}

pub(crate) fn shard(number: u64) -> ShardId {
    ShardId::from(format!("shardId-{number:012}"))
}

pub(crate) async fn create(local: &LocalAws, shards: i32) -> Client {
    let client = Client::new(&local.sdk_config("writer"));
    client.create_stream().stream_name(STREAM).shard_count(shards).send().await.unwrap();
    let exists = client.wait_until_stream_exists().stream_name(STREAM);
    exists.wait(Duration::from_secs(60)).await.unwrap();
    client
}

async fn with_shard() -> (LocalAws, Client, Box<dyn ShardReader>) {
    let local = LocalAws::in_memory();
    let client = create(&local, 1).await;
    let reader = stream(&local).open(&shard(0), Cursor::Horizon);
    (local, client, reader)
}

/// Splits a shard in the middle, and waits until the split is complete.
pub(crate) async fn split(client: &Client, shard: &ShardId) {
    let middle = middle_of(client, shard).await;
    let call = client.split_shard().stream_name(STREAM).shard_to_split(shard.as_str());
    call.new_starting_hash_key(middle).send().await.unwrap();
    sleep(Duration::from_secs(1)).await;
}

/// Returns a hash key in the middle of a shard.
async fn middle_of(client: &Client, shard: &ShardId) -> String {
    let call = client.list_shards().stream_name(STREAM);
    let before = shard_before(shard);
    let reply = call.set_exclusive_start_shard_id(before).max_results(1).send().await.unwrap();
    let range = reply.shards()[0].hash_key_range().unwrap();
    let (start, end) = (range.starting_hash_key(), range.ending_hash_key());
    let (start, end): (u128, u128) = (start.parse().unwrap(), end.parse().unwrap());
    (start + (end - start) / 2).to_string()
}

fn shard_before(id: &ShardId) -> Option<String> {
    let number: u64 = id.as_str().trim_start_matches("shardId-").parse().unwrap();
    number.checked_sub(1).map(|before| shard(before).as_str().to_owned())
}

/// Puts records whose data are these numbers.
pub(crate) async fn put(client: &Client, numbers: std::ops::Range<u32>) {
    let numbers: Vec<u32> = numbers.collect();
    for chunk in numbers.chunks(500) {
        let entries = chunk.iter().map(|number| {
            let data = Blob::new(number.to_string());
            PutRecordsRequestEntry::builder().partition_key("key").data(data).build().unwrap()
        });
        let call = client.put_records().stream_name(STREAM).set_records(Some(entries.collect()));
        assert_eq!(call.send().await.unwrap().failed_record_count, Some(0));
    }
}

pub(crate) fn numbers(records: &[Record]) -> Vec<u32> {
    records.iter().map(|record| str::from_utf8(&record.data).unwrap().parse().unwrap()).collect()
}

/// Reads until `count` records have arrived; anything but records and errors of `allowed` kinds fails the
/// test.
pub(crate) async fn read(
    reader: &mut Box<dyn ShardReader>,
    count: usize,
    allowed: &[ServiceErrorKind],
) -> Vec<u32> {
    let mut seen = Vec::new();
    while seen.len() < count {
        match reader.next().await {
            Ok(Read::Records { records, .. }) => seen.extend(numbers(&records)),
            Ok(Read::End { .. }) => panic!("the shard ended after {seen:?}"),
            Err(error) => assert!(allowed.contains(&error.kind), "{error}"),
        }
    }
    seen
}

/// Creates a fault rule for the reader's calls.
fn rule(operation: &str, effect: Effect) -> Rule {
    Rule::new(effect).client(READER).operation(operation)
}

/// Creates an error of the service.
pub(crate) fn fail(code: &str, status: u16) -> Effect {
    Effect::FailBefore { code: code.to_owned(), status }
}

fn outcomes(local: &LocalAws, operation: &str, outcome: &str) -> u64 {
    let counts = local.requests().counts();
    let ours = counts.iter().filter(|row| row.client == READER && row.operation == operation);
    ours.filter(|row| row.outcome == outcome).map(|row| row.count).sum()
}

/// An HTTP client that returns the scripted replies, and forwards other requests to `local-aws`.
#[derive(Clone)]
struct Scripted {
    script: Arc<Script>,
    otherwise: SharedHttpClient,
}

type Script = dyn Fn(&str, &Value) -> Option<Value> + Send + Sync;

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").finish_non_exhaustive()
    }
}

impl HttpClient for Scripted {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let otherwise = self.otherwise.http_connector(settings, components);
        SharedHttpConnector::new(ScriptedConnector { script: self.script.clone(), otherwise })
    }
}

struct ScriptedConnector {
    script: Arc<Script>,
    otherwise: SharedHttpConnector,
}

impl std::fmt::Debug for ScriptedConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedConnector").finish_non_exhaustive()
    }
}

impl HttpConnector for ScriptedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default();
        let body = request.body().bytes().unwrap_or_default();
        let body = serde_json::from_slice(body).unwrap_or(Value::Null);
        match (self.script)(operation, &body) {
            Some(reply) => {
                let body = SdkBody::from(reply.to_string());
                HttpConnectorFuture::ready(Ok(HttpResponse::new(200.try_into().unwrap(), body)))
            }
            None => self.otherwise.call(request),
        }
    }
}

/// Creates the stream, with `script` between it and `local`.
pub(crate) fn scripted(
    local: &LocalAws,
    script: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static,
) -> KinesisStream {
    scripted_with(local, 5.0, script)
}

/// Creates the stream as [`scripted`] does, with this many reads per second.
fn scripted_with(
    local: &LocalAws,
    reads_per_second: f64,
    script: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static,
) -> KinesisStream {
    let options = KinesisOptions { reads_per_second, ..KinesisOptions::default() };
    KinesisStream::new(&scripted_config(local, script), STREAM, options)
}

/// Does the same for a client that is created elsewhere.
pub(crate) fn scripted_config(
    local: &LocalAws,
    script: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static,
) -> SdkConfig {
    let otherwise = local.http_client(READER);
    let client = Scripted { script: Arc::new(script), otherwise };
    local.sdk_config(READER).into_builder().http_client(client).build()
}

/// A closed shard of numbered records whose first reply has a given shape; the others are correct, except
/// that the service no longer returns the children.
struct Shape {
    records: usize,
    has_iterator: bool,
    is_behind: bool,
    has_children: bool,
}

impl Shape {
    /// A null iterator with children is the end; after any other reply two more records follow.
    fn supplied(&self) -> usize {
        let is_end = !self.has_iterator && self.has_children;
        self.records + if is_end { 0 } else { 2 }
    }

    fn answer(&self, is_first: bool, operation: &str, body: &Value) -> Option<Value> {
        let total = self.supplied();
        let record =
            |n: usize| json!({"SequenceNumber": n.to_string(), "PartitionKey": "k", "Data": ""});
        let range = |id: &str| {
            json!({"ShardId": id, "ParentShardId": shard(0).as_str(),
            "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": u128::MAX.to_string()},
            "SequenceNumberRange": {"StartingSequenceNumber": "1"}})
        };
        match operation {
            "DescribeStreamSummary" => Some(json!({"StreamDescriptionSummary": {
                "StreamName": STREAM, "StreamARN": "arn:aws:kinesis:x:0:stream/s",
                "StreamStatus": "ACTIVE", "StreamCreationTimestamp": 1, "OpenShardCount": 1,
                "RetentionPeriodHours": 24, "EnhancedMonitoring": [],
            }})),
            "ListShards" => {
                let mut ours = range(shard(0).as_str());
                ours["ParentShardId"] = Value::Null;
                ours["SequenceNumberRange"]["EndingSequenceNumber"] = json!("9");
                Some(
                    json!({"Shards": [range("shardId-000000000001"), ours, range("shardId-000000000002")]}),
                )
            }
            "GetShardIterator" => {
                let after = body["StartingSequenceNumber"]
                    .as_str()
                    .map(|n| n.parse::<usize>().unwrap() + 1);
                Some(json!({"ShardIterator": after.unwrap_or(0).to_string()}))
            }
            "GetRecords" => {
                let from: usize = body["ShardIterator"].as_str().unwrap().parse().unwrap();
                let end = if is_first { self.records } else { total };
                let records: Vec<_> = (from..end).map(record).collect();
                let is_behind = is_first && self.is_behind;
                let mut reply =
                    json!({"Records": records, "MillisBehindLatest": u8::from(is_behind)});
                if is_first && self.has_iterator {
                    reply["NextShardIterator"] = json!(end.to_string());
                }
                if is_first && self.has_children {
                    let child = |id: &str| {
                        json!({"ShardId": id, "ParentShards": [shard(0).as_str()],
                        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "1"}})
                    };
                    reply["ChildShards"] =
                        json!([child("shardId-000000000001"), child("shardId-000000000002")]);
                }
                Some(reply)
            }
            _ => None,
        }
    }
}

/// Creates a stream whose shard ends with a reply of the shape `bits`; returns the number of its records.
pub(crate) async fn shaped(bits: usize) -> (KinesisStream, usize) {
    let local = LocalAws::in_memory();
    create(&local, 1).await;
    let shape = Shape {
        records: [0, 1, 5][bits / 8],
        has_iterator: bits & 1 == 0,
        is_behind: bits & 2 == 0,
        has_children: bits & 4 == 0,
    };
    let supplied = shape.supplied();
    let first = Mutex::new(true);
    let stream = scripted(&local, move |operation, body| {
        let is_read = operation == "GetRecords";
        let is_first = is_read && std::mem::replace(&mut *first.lock(), false);
        shape.answer(is_first, operation, body)
    });
    (stream, supplied)
}

#[tokio::test(start_paused = true)]
async fn l09_every_shape_of_reply_delivers_what_was_supplied_and_ends_once() {
    for bits in 0..24_usize {
        let (stream, supplied) = shaped(bits).await;
        let mut reader = stream.open(&shard(0), Cursor::Horizon);
        let mut delivered = Vec::new();
        let children = loop {
            match reader.next().await.unwrap() {
                Read::Records { records, .. } => delivered.extend(records),
                Read::End { children } => break children,
            }
        };
        let delivered: Vec<_> = delivered.iter().map(|r| r.sequence_number.to_string()).collect();
        let expected: Vec<_> = (0..supplied).map(|n| n.to_string()).collect();
        assert_eq!(delivered, expected, "shape {bits}");
        assert_eq!(children.len(), 2, "shape {bits}");
        assert_eq!(reader.next().await.unwrap(), Read::End { children }, "shape {bits}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_shard_without_children_ends_only_when_a_fresh_iterator_finds_nothing_at_the_tip()
{
    let replies = [(1, 0), (1, 0), (0, 1), (1, 0), (0, 0), (0, 0)];
    let reported = Mutex::new((replies.into_iter(), 0));
    let closed = Shape { records: 0, has_iterator: false, is_behind: false, has_children: false };
    let stream = scripted(&LocalAws::in_memory(), move |operation, body| {
        if operation != "GetRecords" {
            return closed.answer(false, operation, body);
        }
        let (replies, number) = &mut *reported.lock();
        let (count, behind) = replies.next().unwrap();
        let mut records = Vec::new();
        for _ in 0..count {
            let text = number.to_string();
            records.push(json!({"SequenceNumber": text, "PartitionKey": "k", "Data": ""}));
            *number += 1;
        }
        Some(json!({"Records": records, "MillisBehindLatest": behind}))
    });
    let mut reader = stream.open(&shard(0), Cursor::Horizon);
    let mut delivered = 0;
    while let Read::Records { records, .. } = reader.next().await.unwrap() {
        delivered += records.len();
    }
    assert_eq!(delivered, 3);
}

#[tokio::test(start_paused = true)]
async fn a_reply_without_an_iterator_never_ends_an_open_shard() {
    let local = LocalAws::in_memory();
    let client = create(&local, 1).await;
    let reads = AtomicU64::new(0);
    let stream = scripted(&local, move |operation, _| {
        let is_malformed =
            operation == "GetRecords" && reads.fetch_add(1, Ordering::Relaxed) % 3 != 2;
        is_malformed.then(|| json!({"Records": [], "MillisBehindLatest": 0}))
    });
    let mut reader = stream.open(&shard(0), Cursor::Horizon);
    for round in 0..20 {
        put(&client, round * 10..(round + 1) * 10).await;
        let seen = read(&mut reader, 10, &[ServiceErrorKind::Unavailable]).await;
        assert_eq!(seen, (round * 10..(round + 1) * 10).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn children_that_do_not_name_their_parent_do_not_end_a_shard() {
    let local = LocalAws::in_memory();
    create(&local, 1).await;
    let stream = scripted(&local, |operation, _| {
        let orphan = json!({"ShardId": "shardId-000000000007", "ParentShards": [],
            "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "1"}});
        let reply = json!({"Records": [], "MillisBehindLatest": 0, "ChildShards": [orphan]});
        (operation == "GetRecords").then_some(reply)
    });
    let mut reader = stream.open(&shard(0), Cursor::Horizon);
    for _ in 0..5 {
        assert!(!matches!(reader.next().await, Ok(Read::End { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn a_split_parent_gives_its_records_and_then_its_two_children() {
    let (_local, client, mut reader) = with_shard().await;
    put(&client, 0..25).await;
    let half = (u128::MAX / 2).to_string();
    let split = client.split_shard().stream_name(STREAM).shard_to_split(shard(0).as_str());
    split.new_starting_hash_key(half).send().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(read(&mut reader, 25, &[]).await, (0..25).collect::<Vec<_>>());
    for _ in 0..2 {
        let Read::End { children } = reader.next().await.unwrap() else { panic!("not the end") };
        let ids: Vec<_> = children.iter().map(|child| child.id.clone()).collect();
        assert_eq!(ids, [shard(1), shard(2)]);
        assert!(children.iter().all(|child| child.parents.contains(&shard(0))));
        assert!(children.iter().all(|child| child.hash_range.is_some()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_the_service_has_forgotten_ends_with_the_children_that_are_listed() {
    let (local, client, mut reader) = with_shard().await;
    put(&client, 0..3).await;
    let split = client.split_shard().stream_name(STREAM).shard_to_split(shard(0).as_str());
    split.new_starting_hash_key((1_u128 << 127).to_string()).send().await.unwrap();
    local.clock().advance(Duration::from_secs(25 * 3600));
    let children = loop {
        match reader.next().await {
            Ok(Read::End { children }) => break children,
            Ok(Read::Records { records, .. }) => assert!(records.is_empty(), "they are trimmed"),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(children.iter().map(|child| &child.id).collect::<Vec<_>>(), [&shard(1), &shard(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_stream_is_an_error_and_never_the_end_of_a_shard() {
    let (local, client, mut reader) = with_shard().await;
    put(&client, 0..3).await;
    for operation in ["GetShardIterator", "GetRecords"] {
        local.faults().add(rule(operation, fail("ResourceNotFoundException", 400)).times(4));
    }
    for _ in 0..8 {
        assert_eq!(reader.next().await.unwrap_err().kind, ServiceErrorKind::Missing);
    }
    assert_eq!(read(&mut reader, 3, &[]).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_shard_that_is_still_listed_is_read_to_its_end_whatever_a_call_says() {
    let (local, client, mut reader) = with_shard().await;
    put(&client, 0..3).await;
    split(&client, &shard(0)).await;
    local.faults().add(rule("GetRecords", fail("ResourceNotFoundException", 400)).times(1));
    assert_eq!(reader.next().await.unwrap_err().kind, ServiceErrorKind::Missing);
    assert_eq!(read(&mut reader, 3, &[]).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_iterator_loses_nothing_repeats_nothing_and_is_no_error() {
    for seen_before in [0, 5] {
        for queued in [0, 7] {
            let (local, client, mut reader) = with_shard().await;
            put(&client, 0..seen_before).await;
            let start = reader.next().await.unwrap();
            let Read::Records { records, .. } = start else { panic!("not the end") };
            assert_eq!(numbers(&records), (0..seen_before).collect::<Vec<_>>());
            put(&client, seen_before..seen_before + queued).await;
            // Only the service's clock advances: the reader cannot notice.
            local.clock().advance(Duration::from_secs(301));
            let end = seen_before + queued + 3;
            put(&client, seen_before + queued..end).await;
            let expected: Vec<_> = (seen_before..end).collect();
            assert_eq!(read(&mut reader, expected.len(), &[]).await, expected);
            assert_eq!(outcomes(&local, "GetRecords", "ExpiredIteratorException"), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_iterator_is_replaced_before_it_expires() {
    let (local, client, mut reader) = with_shard().await;
    put(&client, 0..5).await;
    assert_eq!(read(&mut reader, 5, &[]).await.len(), 5);
    advance(Duration::from_secs(6 * 60)).await;
    put(&client, 5..8).await;
    assert_eq!(read(&mut reader, 3, &[]).await, [5, 6, 7]);
    assert_eq!(outcomes(&local, "GetRecords", "ExpiredIteratorException"), 0);
    assert_eq!(local.requests().count(READER, "GetShardIterator"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cursor_names_its_first_record() {
    let (local, client, mut reader) = with_shard().await;
    put(&client, 0..2).await;
    sleep(Duration::from_secs(5)).await;
    put(&client, 2..4).await;
    let Read::Records { records, .. } = reader.next().await.unwrap() else { panic!() };
    let number = records[1].sequence_number.clone();
    for (cursor, expected) in [
        (Cursor::At(number.clone()), &[1, 2, 3][..]),
        (Cursor::After(number), &[2, 3]),
        (Cursor::Timestamp(records[2].arrived), &[2, 3]),
    ] {
        let mut reader = stream(&local).open(&shard(0), cursor.clone());
        assert_eq!(read(&mut reader, expected.len(), &[]).await, expected, "{cursor:?}");
    }
    assert_eq!(records[0].partition_key, "key");
}

#[tokio::test(start_paused = true)]
async fn at_the_tip_there_is_one_call_a_second_and_the_first_is_made_at_once() {
    let (local, _client, mut reader) = with_shard().await;
    let start = Instant::now();
    reader.next().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    while start.elapsed() < Duration::from_secs(60) {
        reader.next().await.unwrap();
    }
    let calls = local.requests().count(READER, "GetRecords");
    assert!((54..=61).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn while_behind_empty_replies_do_not_slow_it_down() {
    let local = LocalAws::in_memory();
    create(&local, 1).await;
    let stream = scripted(&local, |operation, _| {
        let reply = json!({"Records": [], "NextShardIterator": "x", "MillisBehindLatest": 5_000});
        (operation == "GetRecords").then_some(reply)
    });
    let mut reader = stream.open(&shard(0), Cursor::Horizon);
    let start = Instant::now();
    for _ in 0..=100 {
        reader.next().await.unwrap();
    }
    let rate = 100.0 / start.elapsed().as_secs_f64();
    assert!((4.0..=5.0).contains(&rate), "{rate}");
}

#[tokio::test(start_paused = true)]
async fn large_replies_are_followed_by_the_time_they_cost() {
    let local = LocalAws::builder().enforce_limits(true).build().unwrap();
    let client = create(&local, 1).await;
    for number in 0..30_u32 {
        let data = Blob::new(vec![b'0'; 1_000_000]);
        let call = client.put_record().stream_name(STREAM).partition_key(number.to_string());
        call.data(data).send().await.unwrap();
        sleep(Duration::from_millis(1_100)).await;
    }
    let mut reader = stream(&local).open(&shard(0), Cursor::Horizon);
    let start = Instant::now();
    let mut seen = 0;
    while seen < 30 {
        let Read::Records { records, .. } = reader.next().await.unwrap() else { panic!() };
        seen += records.len();
    }
    // Three replies of ten records: the second and the third wait for 5 s each.
    assert!(start.elapsed() >= Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn throttling_slows_a_reader_down_and_loses_nothing() {
    let (local, client, mut reader) = with_shard().await;
    put(&client, 0..10).await;
    for operation in ["GetRecords", "GetShardIterator"] {
        local.faults().add(rule(operation, Effect::Throttle).probability(0.5));
    }
    assert_eq!(
        read(&mut reader, 10, &[ServiceErrorKind::Throttled]).await,
        (0..10).collect::<Vec<_>>()
    );
    local.faults().clear();
    local.faults().add(rule("GetRecords", Effect::Throttle));
    let (start, before) = (Instant::now(), local.requests().count(READER, "GetRecords"));
    while start.elapsed() < Duration::from_secs(60) {
        assert_eq!(reader.next().await.unwrap_err().kind, ServiceErrorKind::Throttled);
    }
    let calls = local.requests().count(READER, "GetRecords") - before;
    assert!(calls <= 20, "{calls}");
    local.faults().clear();
    put(&client, 10..20).await;
    assert_eq!(read(&mut reader, 10, &[]).await, (10..20).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn s16_c06_readers_that_share_the_five_calls_of_a_shard_all_keep_up() {
    let local = LocalAws::builder().enforce_limits(true).build().unwrap();
    let client = create(&local, 1).await;
    let reader = |seed| {
        let options = KinesisOptions { seed, ..KinesisOptions::default() };
        let stream = KinesisStream::new(&local.sdk_config(READER), STREAM, options);
        stream.open(&shard(0), Cursor::Horizon)
    };
    let mut readers: Vec<_> = (0..4).map(reader).collect();
    let write = async {
        for number in 0..60 {
            put(&client, number..number + 1).await;
            sleep(Duration::from_secs(1)).await;
        }
    };
    let start = Instant::now();
    let [a, b, c, d] = readers.get_disjoint_mut([0, 1, 2, 3]).unwrap();
    let allowed = &[ServiceErrorKind::Throttled];
    let (a, b, c, d, ()) = tokio::join!(
        read(a, 60, allowed),
        read(b, 60, allowed),
        read(c, 60, allowed),
        read(d, 60, allowed),
        write
    );
    for seen in [a, b, c, d] {
        assert_eq!(seen, (0..60).collect::<Vec<_>>());
    }
    assert!(start.elapsed() < Duration::from_secs(63), "{:?}", start.elapsed());
    let calls = local.requests().count(READER, "GetRecords");
    assert!(calls <= 300, "{calls}");
}

/// Four applications, each first with ten minutes of backlog, then at the tip.
#[tokio::test(start_paused = true)]
async fn s16_applications_that_are_behind_together_all_catch_up_within_their_share() {
    for share in [5.0, 1.25] {
        let local = LocalAws::builder().enforce_limits(true).build().unwrap();
        let client = create(&local, 1).await;
        for number in 0..60 {
            put(&client, number..number + 1).await;
            sleep(Duration::from_secs(10)).await;
        }
        let read_all = async |seed: u64| {
            let options =
                KinesisOptions { seed, reads_per_second: share, ..KinesisOptions::default() };
            let config = local.sdk_config(&format!("app{seed}"));
            let mut reader =
                KinesisStream::new(&config, STREAM, options).open(&shard(0), Cursor::Horizon);
            read(&mut reader, 60, &[ServiceErrorKind::Throttled]).await;
            let start = Instant::now();
            let (mut tip, mut longest) = (start, Duration::ZERO);
            while start.elapsed() < Duration::from_secs(60) {
                match reader.next().await {
                    Ok(Read::Records { millis_behind_latest: 0, .. }) => {
                        longest = longest.max(tip.elapsed());
                        tip = Instant::now();
                    }
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind, ServiceErrorKind::Throttled, "{error}"),
                }
            }
            longest
        };
        let begun = Instant::now();
        let longest = tokio::join!(read_all(1), read_all(2), read_all(3), read_all(4));
        let longest = [longest.0, longest.1, longest.2, longest.3].into_iter().max().unwrap();
        assert!(longest < Duration::from_secs(2), "{longest:?} behind with a share of {share}");
        for seed in 1..=4 {
            let calls = local.requests().count(&format!("app{seed}"), "GetRecords") as f64;
            let rate = calls / begun.elapsed().as_secs_f64();
            assert!(rate <= 1.25, "{rate} calls a second with a share of {share}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c06_a_reader_that_is_behind_uses_the_share_it_is_given() {
    for share in [5.0, 2.5, 0.5] {
        let local = LocalAws::in_memory();
        create(&local, 1).await;
        let stream = scripted_with(&local, share, |operation, _| {
            let reply =
                json!({"Records": [], "NextShardIterator": "x", "MillisBehindLatest": 5_000});
            (operation == "GetRecords").then_some(reply)
        });
        let mut reader = stream.open(&shard(0), Cursor::Horizon);
        let start = Instant::now();
        for _ in 0..=50 {
            reader.next().await.unwrap();
        }
        let rate = 50.0 / start.elapsed().as_secs_f64();
        assert!((share * 0.85..=share).contains(&rate), "{rate} of {share}");
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_pace_is_apart_from_reading() {
    let (local, _client, mut reader) = with_shard().await;
    assert_eq!(reader.most_bytes(), 32 << 20, "the first reply may be of any size");
    reader.ready().await;
    assert_eq!(local.requests().count(READER, "GetRecords"), 0);
    reader.next().await.unwrap();
    let start = Instant::now();
    reader.ready().await;
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(reader.most_bytes() < 8 << 20, "what was written in a second");
    let start = Instant::now();
    reader.next().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(local.requests().count(READER, "GetRecords"), 2);
}

#[tokio::test(start_paused = true)]
async fn c07_an_outage_is_met_with_at_most_one_call_a_second() {
    let (local, client, mut reader) = with_shard().await;
    reader.next().await.unwrap();
    local.faults().add(rule("GetRecords", fail("InternalFailure", 500)));
    let (start, before) = (Instant::now(), local.requests().count(READER, "GetRecords"));
    while start.elapsed() < Duration::from_secs(60) {
        assert_eq!(reader.next().await.unwrap_err().kind, ServiceErrorKind::Unavailable);
    }
    let calls = local.requests().count(READER, "GetRecords") - before;
    assert!((6..=20).contains(&calls), "{calls}");
    local.faults().clear();
    put(&client, 0..3).await;
    assert_eq!(read(&mut reader, 3, &[]).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_given_up_loses_nothing() {
    let (local, client, mut reader) = with_shard().await;
    put(&client, 0..10).await;
    for effect in [Effect::Delay(Duration::from_secs(5)), Effect::Hang, Effect::DropHalfReply] {
        local.faults().add(rule("GetRecords", effect).times(1));
        let given_up = timeout(Duration::from_secs(2), reader.next()).await;
        assert!(!matches!(given_up, Ok(Ok(_))));
    }
    assert_eq!(read(&mut reader, 10, &[]).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn silence_is_an_error_after_half_a_minute() {
    let (local, _client, mut reader) = with_shard().await;
    local.faults().add(rule("GetRecords", Effect::Hang));
    let start = Instant::now();
    assert_eq!(reader.next().await.unwrap_err().kind, ServiceErrorKind::Unavailable);
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_names_itself_the_stream_and_the_shard() {
    let (local, _client, mut reader) = with_shard().await;
    for (code, kind) in [
        ("AccessDeniedException", ServiceErrorKind::Denied),
        ("KMSDisabledException", ServiceErrorKind::Key),
        ("KMSThrottlingException", ServiceErrorKind::Throttled),
        ("LimitExceededException", ServiceErrorKind::Throttled),
        ("ServiceUnavailable", ServiceErrorKind::Unavailable),
    ] {
        let status = if code == "ServiceUnavailable" { 503 } else { 400 };
        local.faults().add(rule("GetRecords", fail(code, status)).times(1));
        let error = reader.next().await.unwrap_err();
        assert_eq!(error.kind, kind, "{code}");
        let text = error.to_string();
        for part in [code, "GetRecords", STREAM, "shardId-000000000000", "us-east-1"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_iterator_is_recreated() {
    let (local, client, mut reader) = with_shard().await;
    put(&client, 0..2).await;
    assert_eq!(read(&mut reader, 2, &[]).await.len(), 2);
    local.faults().add(rule("GetRecords", fail("InvalidArgumentException", 400)).times(1));
    assert_eq!(reader.next().await.unwrap_err().kind, ServiceErrorKind::Invalid);
    put(&client, 2..4).await;
    assert_eq!(read(&mut reader, 2, &[]).await, [2, 3]);
    assert_eq!(local.requests().count(READER, "GetShardIterator"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_listing_has_every_page_also_when_a_token_expires() {
    let local = LocalAws::in_memory();
    create(&local, 2_500).await;
    let expected: Vec<_> = (0..2_500).map(shard).collect();
    let list = async || {
        let listing = stream(&local).list(ListFrom::TrimHorizon).await;
        let shards = listing.unwrap().shards;
        shards.into_iter().map(|shard| shard.id).collect::<Vec<_>>()
    };
    assert_eq!(list().await, expected);
    assert_eq!(local.requests().count(READER, "ListShards"), 3);
    local.faults().add(rule("ListShards", fail("ExpiredNextTokenException", 400)).skip(1).times(1));
    assert_eq!(list().await, expected);
    assert_eq!(local.requests().count(READER, "ListShards"), 3 + 5);
}

#[tokio::test(start_paused = true)]
async fn a_listing_starts_where_the_position_says() {
    let local = LocalAws::in_memory();
    let client = create(&local, 2).await;
    let before = Timestamp::from_millis(local.clock().now_ms());
    sleep(Duration::from_secs(10)).await;
    let merge = client.merge_shards().stream_name(STREAM).shard_to_merge(shard(0).as_str());
    merge.adjacent_shard_to_merge(shard(1).as_str()).send().await.unwrap();
    sleep(Duration::from_secs(10)).await;
    for (from, expected) in [
        (ListFrom::All, &[0, 1, 2][..]),
        (ListFrom::TrimHorizon, &[0, 1]),
        (ListFrom::Latest, &[2]),
        (ListFrom::AtTimestamp(before), &[0, 1]),
    ] {
        let shards = stream(&local).list(from).await.unwrap().shards;
        let ids: Vec<_> = shards.iter().map(|shard| shard.id.clone()).collect();
        assert_eq!(ids, expected.iter().copied().map(shard).collect::<Vec<_>>(), "{from:?}");
        for shard in shards {
            let is_child = shard.id == self::shard(2);
            assert_eq!(
                (shard.is_open, shard.parents.len()),
                (is_child, if is_child { 2 } else { 0 })
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_tells_a_time_not_later_than_the_question() {
    for offset in [0, 1, 500, 999] {
        let clock = Clock::starting_at(1_700_000_000_000 + offset);
        let local = LocalAws::builder().clock(clock).build().unwrap();
        create(&local, 1).await;
        for delay in [0, 10, 999, 3_000] {
            local.faults().clear();
            local.faults().add(rule("ListShards", Effect::Delay(Duration::from_millis(delay))));
            let asked = local.clock().now_ms();
            let at = stream(&local).list(ListFrom::All).await.unwrap().at.as_millis();
            assert!((asked - 2_000..=asked).contains(&at), "{asked} {at} {delay}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_without_a_date_is_earlier_than_every_record() {
    let local = LocalAws::in_memory();
    let listed = json!({"Shards": [{"ShardId": "shardId-000000000000",
        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "1"},
        "SequenceNumberRange": {"StartingSequenceNumber": "1"}}]});
    let stream = scripted(&local, move |_, _| Some(listed.clone()));
    let at = stream.list(ListFrom::All).await.unwrap().at.as_millis();
    assert_eq!(at, 0, "this machine's clock may be ahead of the service's");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_being_created_is_not_ready_and_is_listed_from_the_first_question() {
    let transition = Duration::from_secs(30);
    let local = LocalAws::builder().transition(transition).build().unwrap();
    let client = Client::new(&local.sdk_config("writer"));
    client.create_stream().stream_name(STREAM).shard_count(1).send().await.unwrap();
    let stream = stream(&local);
    let from = ListFrom::Latest;
    let asked = local.clock().now_ms();
    assert_eq!(stream.list(from).await.unwrap_err().kind, ServiceErrorKind::NotReady);
    sleep(transition * 2).await;
    // Sent after the reader started, before it could see the stream.
    let at = stream.list(from).await.unwrap().at.as_millis();
    assert!((asked - 2_000..=asked).contains(&at), "{asked} {at}");
    let asked = local.clock().now_ms();
    let at = stream.list(from).await.unwrap().at.as_millis();
    assert!((asked - 2_000..=asked).contains(&at), "{asked} {at}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_listing_is_a_stream_that_is_not_ready() {
    let stream = scripted(&LocalAws::in_memory(), |_, _| Some(json!({"Shards": []})));
    let error = stream.list(ListFrom::All).await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::NotReady);
}

#[tokio::test(start_paused = true)]
async fn a_missing_stream_is_named_with_its_region() {
    let error = stream(&LocalAws::in_memory()).list(ListFrom::All).await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Missing);
    let text = error.to_string();
    assert!(text.contains("`wildrydes`") && text.contains("`us-east-1`"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_listing_outlasts_a_few_throttles_and_gives_up_in_bounded_time() {
    let local = LocalAws::in_memory();
    create(&local, 1).await;
    let stream = stream(&local);
    local.faults().add(rule("ListShards", Effect::Throttle).times(3));
    assert_eq!(stream.list(ListFrom::All).await.unwrap().shards.len(), 1);
    local.faults().add(rule("ListShards", Effect::Throttle));
    let start = Instant::now();
    let error = stream.list(ListFrom::All).await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Throttled);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(local.requests().count(READER, "ListShards"), 4 + 5);
}

#[tokio::test(start_paused = true)]
async fn a_stream_can_be_given_by_its_arn() {
    let (local, client, _) = with_shard().await;
    put(&client, 0..2).await;
    let arn = format!("arn:aws:kinesis:us-east-1:000000000000:stream/{STREAM}");
    let stream = KinesisStream::new(&local.sdk_config(READER), arn, KinesisOptions::default());
    assert_eq!(stream.list(ListFrom::All).await.unwrap().shards.len(), 1);
    let mut reader = stream.open(&shard(0), Cursor::Horizon);
    assert_eq!(read(&mut reader, 2, &[]).await, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn missing_credentials_are_a_refusal() {
    let local = LocalAws::in_memory();
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(provide_credentials_fn(async || {
            Err(CredentialsError::not_loaded("no profile and no role"))
        })))
        .http_client(local.http_client(READER))
        .build();
    let stream = KinesisStream::new(&config, STREAM, KinesisOptions::default());
    let error = stream.list(ListFrom::All).await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Credentials, "{error}");
}
