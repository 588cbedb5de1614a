//! Tests of `--data`: acknowledged writes survive a kill -9.

use aws_sdk_dynamodb::Client as DynamoDb;
use aws_sdk_dynamodb::types::{PointInTimeRecoverySpecification, PointInTimeRecoveryStatus};
use aws_sdk_kinesis::Client as Kinesis;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::ShardIteratorType;

use crate::cli::Running;
use crate::clients::{http, over_http};
use crate::dynamo::{create, put, recovery};

#[tokio::test]
async fn both_services_are_as_they_were_after_a_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::with_data(dir.path()).await;
    let config = over_http(&first.endpoint, "test");
    let (tables, streams) = (DynamoDb::new(&config), Kinesis::new(&config));
    create(&tables, "leases").await;
    put(&tables, "leases", "shard-0", "a").await;
    let on = PointInTimeRecoverySpecification::builder()
        .point_in_time_recovery_enabled(true)
        .build()
        .unwrap();
    let update = tables.update_continuous_backups().table_name("leases");
    update.point_in_time_recovery_specification(on).send().await.unwrap();

    streams.create_stream().stream_name("s").shard_count(1).send().await.unwrap();
    pass_one_second(&first.endpoint).await;
    let mut acknowledged = Vec::new();
    for i in 0..20 {
        let record = streams.put_record().stream_name("s").partition_key("k");
        let put = record.data(Blob::new(format!("record {i}"))).send().await.unwrap();
        acknowledged.push(put.sequence_number().to_owned());
    }
    first.kill_9().await;

    let second = Running::with_data(dir.path()).await;
    let config = over_http(&second.endpoint, "test");
    let (tables, streams) = (DynamoDb::new(&config), Kinesis::new(&config));
    let rows = tables.scan().table_name("leases").send().await.unwrap();
    assert_eq!(rows.items()[0]["leaseOwner"].as_s().unwrap(), "a");
    assert_eq!(recovery(&tables).await, PointInTimeRecoveryStatus::Enabled);
    assert_eq!(sequence_numbers(&streams).await, acknowledged);
}

/// Waits longer than a stream stays CREATING.
async fn pass_one_second(endpoint: &str) {
    let addr = endpoint.strip_prefix("http://").unwrap().parse().unwrap();
    let second = br#"{"advance_ms":1000}"#;
    assert_eq!(http(addr, "POST", "/_local-aws/clock", &[], second).await.0, 200);
}

async fn sequence_numbers(streams: &Kinesis) -> Vec<String> {
    let iterator = streams
        .get_shard_iterator()
        .stream_name("s")
        .shard_id("shardId-000000000000")
        .shard_iterator_type(ShardIteratorType::TrimHorizon)
        .send()
        .await
        .unwrap();
    let records = streams
        .get_records()
        .shard_iterator(iterator.shard_iterator().unwrap())
        .send()
        .await
        .unwrap();
    records.records().iter().map(|record| record.sequence_number().to_owned()).collect()
}
