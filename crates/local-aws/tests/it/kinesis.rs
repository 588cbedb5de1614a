//! Tests of Kinesis with the real SDK: its parsers, paginators, waiters and event streams accept
//! the answers.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::client::Waiters;
use aws_sdk_kinesis::primitives::{Blob, DateTime};
use aws_sdk_kinesis::types::{
    PutRecordsRequestEntry, Record, ScalingType, ShardFilter, ShardFilterType, ShardIteratorType,
    StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream,
};
use local_aws::LocalAws;

use crate::clients::{both_ways, without_retries};

const FIRST_SHARD: &str = "shardId-000000000000";
const MIDDLE: u128 = 1 << 127;

/// Returns services whose streams are ACTIVE immediately, for tests in real time.
fn at_once() -> LocalAws {
    LocalAws::builder().transition(Duration::ZERO).build().unwrap()
}

async fn create(client: &Client, name: &str, shards: i32) {
    client.create_stream().stream_name(name).shard_count(shards).send().await.unwrap();
    active(client, name).await;
}

async fn active(client: &Client, name: &str) {
    let exists = client.wait_until_stream_exists().stream_name(name);
    exists.wait(Duration::from_secs(60)).await.unwrap();
}

async fn put(client: &Client, name: &str, text: &str) -> String {
    let put = client.put_record().stream_name(name).partition_key(text).data(Blob::new(text));
    put.send().await.unwrap().sequence_number
}

async fn split(client: &Client, name: &str) {
    let split = client.split_shard().stream_name(name).shard_to_split(FIRST_SHARD);
    split.new_starting_hash_key(MIDDLE.to_string()).send().await.unwrap();
}

fn texts(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| String::from_utf8(record.data.as_ref().to_vec()).unwrap();
    records.iter().map(text).collect()
}

#[tokio::test(start_paused = true)]
async fn the_sdk_waits_for_a_stream_to_come_and_to_go() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("waiter"));
    create(&client, "wildrydes", 1).await;
    client.delete_stream().stream_name("wildrydes").send().await.unwrap();
    let gone = client.wait_until_stream_not_exists().stream_name("wildrydes");
    gone.wait(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test]
async fn records_go_in_and_come_out_as_they_were_both_ways() {
    let local = at_once();
    let (_server, ways) = both_ways(&local, "reader").await;
    for (number, way) in ways.iter().enumerate() {
        let client = Client::new(way);
        let name = format!("way-{number}");
        create(&client, &name, 1).await;
        let all_bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        let before = local.clock().now_ms();
        let entry = |key: &str| {
            let entry = PutRecordsRequestEntry::builder().partition_key(key);
            entry.data(Blob::new(all_bytes.clone())).build().unwrap()
        };
        let put = client.put_records().stream_name(&name);
        let put = put.records(entry("Shadowfax")).records(entry("Ä\"\n")).send().await.unwrap();
        let after = local.clock().now_ms();
        assert_eq!(put.failed_record_count(), Some(0));

        let iterator = client.get_shard_iterator().stream_name(&name).shard_id(FIRST_SHARD);
        let iterator = iterator.shard_iterator_type(ShardIteratorType::TrimHorizon);
        let iterator = iterator.send().await.unwrap().shard_iterator;
        let got = client.get_records().set_shard_iterator(iterator).send().await.unwrap();
        let [one, two] = got.records() else { panic!("two records were put: {got:?}") };
        assert_eq!((one.partition_key(), two.partition_key()), (Some("Shadowfax"), Some("Ä\"\n")));
        assert_eq!(one.data().as_ref(), all_bytes);
        assert_eq!(put.records()[0].sequence_number(), Some(one.sequence_number()));
        let arrival = one.approximate_arrival_timestamp().unwrap().to_millis().unwrap();
        // The SDK reads seconds as a float and may cut the last millisecond.
        assert!((before - 1..=after).contains(&arrival), "{before} {arrival} {after}");
        assert_eq!(got.millis_behind_latest(), Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn lists_are_paged_through_and_filtered() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("lister"));
    for name in ["a", "b", "c"] {
        create(&client, name, 2).await;
    }
    let names: Vec<String> = client
        .list_streams()
        .limit(2)
        .into_paginator()
        .send()
        .collect::<Result<Vec<_>, _>>()
        .await
        .unwrap()
        .into_iter()
        .flat_map(|page| page.stream_names)
        .collect();
    assert_eq!(names, ["a", "b", "c"]);

    let update = client.update_shard_count().stream_name("a").target_shard_count(3);
    update.scaling_type(ScalingType::UniformScaling).send().await.unwrap();
    active(&client, "a").await;
    let mut page = client.list_shards().stream_name("a").max_results(2).send().await.unwrap();
    let mut shards = page.shards().to_vec();
    while let Some(token) = page.next_token {
        page = client.list_shards().next_token(token).max_results(2).send().await.unwrap();
        shards.extend(page.shards().to_vec());
    }
    let open = ShardFilter::builder().r#type(ShardFilterType::AtLatest).build().unwrap();
    let open = client.list_shards().stream_name("a").shard_filter(open).send().await.unwrap();
    assert_eq!(open.shards().len(), 3);
    assert!(shards.len() > 5, "closed shards are listed too");
    for shard in open.shards() {
        assert!(shard.parent_shard_id().is_some(), "{shard:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_the_services_own_types() {
    let local = LocalAws::in_memory();
    let client = Client::from_conf(aws_sdk_kinesis::Config::from(&without_retries(
        &local.sdk_config("wrong"),
    )));
    let error = client.describe_stream_summary().stream_name("none").send().await.unwrap_err();
    assert!(error.into_service_error().is_resource_not_found_exception());
    create(&client, "s", 1).await;
    let error = client.create_stream().stream_name("s").shard_count(1).send().await.unwrap_err();
    assert!(error.into_service_error().is_resource_in_use_exception());
    let many = client.create_stream().stream_name("many").shard_count(100_000);
    assert!(many.send().await.unwrap_err().into_service_error().is_limit_exceeded_exception());
    let error = client.get_records().shard_iterator("AAAA").send().await.unwrap_err();
    assert!(error.into_service_error().is_invalid_argument_exception());

    let iterator = client.get_shard_iterator().stream_name("s").shard_id(FIRST_SHARD);
    let iterator = iterator.shard_iterator_type(ShardIteratorType::Latest);
    let iterator = iterator.send().await.unwrap().shard_iterator;
    local.clock().advance(Duration::from_secs(301));
    let late = client.get_records().set_shard_iterator(iterator).send().await.unwrap_err();
    assert!(late.into_service_error().is_expired_iterator_exception());

    let list = client.list_shards().next_token("AAAA").send().await.unwrap_err();
    assert!(list.into_service_error().is_invalid_argument_exception());
}

/// Registers a consumer and waits until it is ACTIVE.
async fn register(local: &LocalAws, client: &Client, stream: &str, name: &str) -> String {
    let summary = client.describe_stream_summary().stream_name(stream).send().await.unwrap();
    let arn = summary.stream_description_summary.unwrap().stream_arn;
    let consumer = client.register_stream_consumer().stream_arn(arn).consumer_name(name);
    let consumer = consumer.send().await.unwrap().consumer.unwrap();
    local.clock().advance(Duration::from_millis(100));
    consumer.consumer_arn
}

fn starting(kind: ShardIteratorType) -> StartingPosition {
    StartingPosition::builder().r#type(kind).build().unwrap()
}

/// Returns the next event with records; skips heartbeats.
async fn next(
    events: &mut aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput,
) -> Option<SubscribeToShardEvent> {
    while let Some(event) = events.event_stream.recv().await.unwrap() {
        let SubscribeToShardEventStream::SubscribeToShardEvent(event) = event else {
            panic!("an event of another kind: {event:?}");
        };
        if !event.records().is_empty() || !event.child_shards().is_empty() {
            return Some(event);
        }
    }
    None
}

#[tokio::test]
async fn a_subscription_brings_old_and_new_records_and_the_end_of_the_shard_both_ways() {
    let local = at_once();
    let (_server, ways) = both_ways(&local, "subscriber").await;
    for (number, way) in ways.iter().enumerate() {
        let client = Client::new(way);
        let name = format!("way-{number}");
        create(&client, &name, 1).await;
        let consumer = register(&local, &client, &name, "app").await;
        put(&client, &name, "old").await;
        let subscribe = client.subscribe_to_shard().consumer_arn(&consumer).shard_id(FIRST_SHARD);
        let from = starting(ShardIteratorType::TrimHorizon);
        let mut events = subscribe.starting_position(from).send().await.unwrap();
        assert_eq!(texts(next(&mut events).await.unwrap().records()), ["old"]);
        let number = put(&client, &name, "new").await;
        let event = next(&mut events).await.unwrap();
        assert_eq!(texts(event.records()), ["new"]);
        assert_eq!(event.continuation_sequence_number(), number);
        split(&client, &name).await;
        let last = next(&mut events).await.unwrap();
        assert_eq!(last.child_shards().len(), 2);
        assert_eq!(last.continuation_sequence_number(), "", "the shard does not go on");
        assert!(next(&mut events).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_resumes_where_the_last_one_ended() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("subscriber"));
    create(&client, "s", 1).await;
    let consumer = register(&local, &client, "s", "app").await;
    let mut start = starting(ShardIteratorType::Latest);
    for text in ["one", "two", "three"] {
        let subscribe = client.subscribe_to_shard().consumer_arn(&consumer).shard_id(FIRST_SHARD);
        let mut events = subscribe.starting_position(start).send().await.unwrap();
        put(&client, "s", text).await;
        let event = next(&mut events).await.unwrap();
        assert_eq!(texts(event.records()), [text]);
        start = StartingPosition::builder()
            .r#type(ShardIteratorType::AfterSequenceNumber)
            .sequence_number(event.continuation_sequence_number())
            .build()
            .unwrap();
        assert!(next(&mut events).await.is_none(), "the session ends after five minutes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_subscription_waits_its_five_seconds_and_then_ends_the_first() {
    let local = LocalAws::in_memory();
    let config = without_retries(&local.sdk_config("subscriber"));
    let client = Client::new(&config);
    create(&client, "s", 1).await;
    let consumer = register(&local, &client, "s", "app").await;
    let subscribe = || {
        let call = client.subscribe_to_shard().consumer_arn(&consumer).shard_id(FIRST_SHARD);
        call.starting_position(starting(ShardIteratorType::Latest)).send()
    };
    let mut first = subscribe().await.unwrap();
    let early = subscribe().await.unwrap_err().into_service_error();
    assert!(early.is_resource_in_use_exception(), "{early:?}");
    local.clock().advance(Duration::from_secs(5));
    let mut second = subscribe().await.unwrap();
    let lost = loop {
        match first.event_stream.recv().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the first subscription should be told why it ends"),
            Err(error) => break error.into_service_error(),
        }
    };
    assert!(lost.is_resource_in_use_exception(), "{lost:?}");
    put(&client, "s", "for the second").await;
    assert_eq!(texts(next(&mut second).await.unwrap().records()), ["for the second"]);
}

#[tokio::test(start_paused = true)]
async fn a_time_that_was_read_can_be_asked_for() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("reader"));
    create(&client, "s", 1).await;
    let mut arrivals = Vec::new();
    for text in ["0", "1", "2"] {
        arrivals.push(local.clock().now_ms());
        put(&client, "s", text).await;
        local.clock().advance(Duration::from_millis(7));
    }
    let at = client.get_shard_iterator().stream_name("s").shard_id(FIRST_SHARD);
    let at = at.shard_iterator_type(ShardIteratorType::AtTimestamp);
    let at = at.timestamp(DateTime::from_millis(arrivals[1])).send().await.unwrap();
    let got = client.get_records().set_shard_iterator(at.shard_iterator).send().await.unwrap();
    assert_eq!(texts(got.records()), ["1", "2"]);
}
