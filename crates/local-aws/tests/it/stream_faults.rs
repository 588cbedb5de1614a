//! Tests of the faults of Kinesis: its throttling errors, and event streams that break or fall
//! silent.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{ShardIteratorType, StartingPosition, SubscribeToShardEventStream};
use local_aws::{Effect, LocalAws, Rule, Service};

use crate::clients::{both_ways, without_retries};

/// Longer than a stream or a consumer stays CREATING.
const TRANSITION: Duration = Duration::from_secs(1);

async fn stream(local: &LocalAws) -> Client {
    let observer = Client::new(&local.sdk_config("observer"));
    observer.create_stream().stream_name("s").shard_count(1).send().await.unwrap();
    local.clock().advance(TRANSITION);
    observer
}

async fn put(client: &Client, data: &str) {
    let put = client.put_record().stream_name("s").partition_key("k");
    put.data(Blob::new(data)).send().await.unwrap();
}

/// Returns a consumer's ARN, once it is ACTIVE.
async fn consumer(local: &LocalAws, observer: &Client) -> String {
    let summary = observer.describe_stream_summary().stream_name("s").send().await.unwrap();
    let stream = summary.stream_description_summary().unwrap().stream_arn().to_owned();
    let register = observer.register_stream_consumer().stream_arn(stream).consumer_name("c");
    let registered = register.send().await.unwrap();
    let arn = registered.consumer().unwrap().consumer_arn().to_owned();
    local.clock().advance(TRANSITION);
    arn
}

async fn subscribe(config: &SdkConfig, consumer: &str) -> SubscribeToShardOutput {
    let from = StartingPosition::builder().r#type(ShardIteratorType::TrimHorizon);
    Client::new(&without_retries(config))
        .subscribe_to_shard()
        .consumer_arn(consumer)
        .shard_id("shardId-000000000000")
        .starting_position(from.build().unwrap())
        .send()
        .await
        .unwrap()
}

/// Returns the records of the next event that has any; `None` if the stream has ended or broken.
async fn next(subscription: &mut SubscribeToShardOutput) -> Option<Vec<String>> {
    loop {
        let event = subscription.event_stream.recv().await.ok()??;
        let SubscribeToShardEventStream::SubscribeToShardEvent(event) = event else { continue };
        if !event.records().is_empty() {
            let text = |blob: &Blob| String::from_utf8(blob.as_ref().to_vec()).unwrap();
            return Some(event.records().iter().map(|record| text(record.data())).collect());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn kinesis_throttles_with_the_error_of_its_operation() {
    let local = LocalAws::in_memory();
    stream(&local).await;
    let client = Client::new(&without_retries(&local.sdk_config("fast")));
    local.faults().add(Rule::new(Effect::Throttle).client("fast").service(Service::Kinesis));
    let put = client.put_record().stream_name("s").partition_key("k").data(Blob::new("x"));
    let error = put.send().await.unwrap_err().into_service_error();
    assert!(error.is_provisioned_throughput_exceeded_exception(), "{error:?}");
    let error = client.list_shards().stream_name("s").send().await.unwrap_err();
    assert!(error.into_service_error().is_limit_exceeded_exception());
}

#[tokio::test]
async fn an_event_stream_can_break_in_its_first_event_either_way() {
    let local = LocalAws::in_memory();
    let observer = stream(&local).await;
    let arn = consumer(&local, &observer).await;
    put(&observer, "one").await;
    let (server, ways) = both_ways(&local, "reader").await;
    for config in &ways {
        let rule = Rule::new(Effect::DropHalfReply).client("reader").operation("SubscribeToShard");
        let id = local.faults().add(rule.times(1));
        let from = StartingPosition::builder().r#type(ShardIteratorType::TrimHorizon);
        let broken = Client::new(&without_retries(config))
            .subscribe_to_shard()
            .consumer_arn(&arn)
            .shard_id("shardId-000000000000")
            .starting_position(from.build().unwrap())
            .send()
            .await;
        // The SDK may read the first event before it returns, or leave it to the caller.
        if let Ok(mut subscription) = broken {
            subscription.event_stream.recv().await.unwrap_err();
        }
        assert_eq!(local.faults().fired(id), 1);
        local.clock().advance(Duration::from_secs(6));
    }
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_can_fall_silent_without_an_end() {
    let local = LocalAws::in_memory();
    let observer = stream(&local).await;
    let arn = consumer(&local, &observer).await;
    put(&observer, "one").await;
    let rule = Rule::new(Effect::FallSilent(1)).operation("SubscribeToShard").times(1);
    local.faults().add(rule);
    let mut subscription = subscribe(&local.sdk_config("reader"), &arn).await;
    assert_eq!(next(&mut subscription).await, Some(vec!["one".to_owned()]));
    put(&observer, "two").await;
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, next(&mut subscription)).await.is_err());
    let mut again = subscribe(&local.sdk_config("reader"), &arn).await;
    assert!(next(&mut again).await.is_some());
}

/// Goal: a partition silences a running subscription, healing breaks it, and the next subscription
/// gets every record.
#[tokio::test(start_paused = true)]
async fn a_partition_silences_a_subscription_and_healing_breaks_it() {
    let local = LocalAws::in_memory();
    let observer = stream(&local).await;
    let arn = consumer(&local, &observer).await;
    put(&observer, "one").await;
    let mut subscription = subscribe(&local.sdk_config("reader"), &arn).await;
    assert_eq!(next(&mut subscription).await, Some(vec!["one".to_owned()]));

    local.faults().partition("reader");
    put(&observer, "two").await;
    let silence = tokio::time::timeout(Duration::from_secs(30), next(&mut subscription)).await;
    assert!(silence.is_err(), "a client that is cut off hears nothing: {silence:?}");
    local.faults().heal("reader");
    assert_eq!(next(&mut subscription).await, None);

    let mut again = subscribe(&local.sdk_config("reader"), &arn).await;
    let mut all = Vec::new();
    while all.len() < 2 {
        all.extend(next(&mut again).await.unwrap());
    }
    assert_eq!(all, ["one", "two"]);
}

/// Goal: a subscription over a socket delivers live records, concurrently with other requests.
#[tokio::test]
async fn a_subscription_streams_over_a_socket() {
    let local = LocalAws::in_memory();
    let observer = stream(&local).await;
    let arn = consumer(&local, &observer).await;
    let (server, [_, config]) = both_ways(&local, "reader").await;
    let mut subscription = subscribe(&config, &arn).await;
    for record in ["one", "two", "three"] {
        put(&observer, record).await;
        assert_eq!(next(&mut subscription).await, Some(vec![record.to_owned()]));
    }
    server.shutdown().await;
}
