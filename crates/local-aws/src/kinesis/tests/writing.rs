//! Tests of puts, their limits, and the states of a stream.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_stream_takes_records_once_it_is_active() {
    let local = local();
    local.ok("CreateStream", &json!({"StreamName": "s", "ShardCount": 2}));
    assert_eq!(local.status(), "CREATING");
    assert_eq!(local.error("PutRecord", &record("a")), "ResourceNotFoundException");
    assert_eq!(local.error("ListShards", &json!({"StreamName": "s"})), "ResourceInUseException");
    let shown = local.ok("DescribeStream", &json!({"StreamName": "s"}));
    assert_eq!(shown["StreamDescription"]["Shards"], json!([]));
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(local.status(), "ACTIVE");
    local.put("a");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_stream_is_seen_for_a_moment_and_its_name_is_free_again() {
    let local = local_with_stream(1);
    local.put("a");
    let name = json!({"StreamName": "s"});
    local.ok("DeleteStream", &name);
    assert_eq!(local.status(), "DELETING");
    assert_eq!(local.error("PutRecord", &record("a")), "ResourceNotFoundException");
    let again = json!({"StreamName": "s", "ShardCount": 1});
    assert_eq!(local.error("CreateStream", &again), "ResourceInUseException");
    local.settle();
    assert_eq!(local.error("DescribeStream", &name), "ResourceNotFoundException");
    local.create(1);
    assert_eq!(local.texts_from(local.trim_horizon(0)), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_split_takes_effect_at_once_and_the_next_waits_for_active() {
    let local = local_with_stream(1);
    let split =
        |shard| json!({"StreamName": "s", "ShardToSplit": id(shard), "NewStartingHashKey": "7"});
    local.ok("SplitShard", &split(0));
    assert_eq!(local.status(), "UPDATING");
    assert_eq!(local.shards().len(), 3);
    let body = json!({
        "StreamName": "s", "PartitionKey": "a", "Data": "", "ExplicitHashKey": "6",
    });
    assert_eq!(local.ok("PutRecord", &body)["ShardId"], id(1));
    assert_eq!(local.error("SplitShard", &split(1)), "ResourceInUseException");
    local.settle();
    assert_eq!(local.status(), "ACTIVE");
    local.ok(
        "SplitShard",
        &json!({
            "StreamName": "s", "ShardToSplit": id(1), "NewStartingHashKey": "3",
        }),
    );
}

#[tokio::test(start_paused = true)]
async fn sizes_of_records_and_batches_always_hold() {
    let local = local_with_stream(1);
    let mebibyte = 1024 * 1024;
    let put = |size: usize| {
        let data = base64(&"x".repeat(size));
        json!({"StreamName": "s", "PartitionKey": "k", "Data": data})
    };
    local.ok("PutRecord", &put(mebibyte - 1));
    assert_eq!(local.error("PutRecord", &put(mebibyte)), "ValidationException");
    let batch = |count: usize, size: usize| {
        let data = base64(&"x".repeat(size));
        let records: Vec<_> =
            (0..count).map(|_| json!({"PartitionKey": "k", "Data": data})).collect();
        json!({"StreamName": "s", "Records": records})
    };
    assert_eq!(local.ok("PutRecords", &batch(500, 1))["FailedRecordCount"], 0);
    assert_eq!(local.error("PutRecords", &batch(501, 1)), "ValidationException");
    assert_eq!(local.error("PutRecords", &batch(0, 1)), "ValidationException");
    assert_eq!(local.error("PutRecords", &batch(11, 1_000_000)), "InvalidArgumentException");
    assert_eq!(local.error("PutRecords", &batch(2, mebibyte)), "ValidationException");

    let larger = json!({
        "StreamARN": "arn:aws:kinesis:us-east-1:000000000000:stream/s",
        "MaxRecordSizeInKiB": 10_240,
    });
    local.ok("UpdateMaxRecordSize", &larger);
    local.settle();
    local.ok("PutRecord", &put(5 * mebibyte));
}

#[tokio::test(start_paused = true)]
async fn a_full_shard_refuses_records_one_by_one_when_limits_hold() {
    let local = local_with(KinesisOptions { enforce_limits: true, ..KinesisOptions::default() });
    local.create(1);
    let data = base64(&"x".repeat(1_000));
    let records: Vec<_> = (0..500).map(|_| json!({"PartitionKey": "k", "Data": data})).collect();
    let body = json!({"StreamName": "s", "Records": records});
    let failed: Vec<_> = (0..4)
        .map(|_| local.ok("PutRecords", &body)["FailedRecordCount"].as_u64().unwrap())
        .collect();
    assert_eq!(failed[..2], [0, 0]);
    assert!(failed[2] > 450 && failed[3] == 500, "{failed:?}");
    let answer = local.ok("PutRecords", &body);
    assert_eq!(answer["Records"][0]["ErrorCode"], "ProvisionedThroughputExceededException");
    assert_eq!(local.error("PutRecord", &record("a")), "ProvisionedThroughputExceededException");
    local.clock.advance(Duration::from_secs(1));
    local.put("a");
}

#[tokio::test(start_paused = true)]
async fn the_account_has_a_shard_limit() {
    let local = local_with_stream(1);
    let many = json!({"StreamName": "many", "ShardCount": 100_000});
    assert_eq!(local.error("CreateStream", &many), "LimitExceededException");
    let most = json!({"StreamName": "many", "ShardCount": 19_999});
    local.ok("CreateStream", &most);
    local.settle();
    let split = json!({
        "StreamName": "s", "ShardToSplit": id(0), "NewStartingHashKey": "7",
    });
    assert_eq!(local.error("SplitShard", &split), "LimitExceededException");
    assert_eq!(local.ok("DescribeLimits", &json!({}))["OpenShardCount"], 20_000);
}

#[tokio::test(start_paused = true)]
async fn a_name_and_a_resource_name_must_agree() {
    let local = local_with_stream(1);
    let arn = "arn:aws:kinesis:us-east-1:000000000000:stream/s";
    local.ok("ListShards", &json!({"StreamName": "s", "StreamARN": arn}));
    for wrong in [
        json!({"StreamName": "t", "StreamARN": arn}),
        json!({}),
        json!({"StreamARN": "s"}),
        json!({"StreamARN": "arn:aws:kinesis:eu-west-1:000000000000:stream/s"}),
    ] {
        assert_eq!(local.error("ListShards", &wrong), "InvalidArgumentException", "{wrong}");
    }
    let of_another_account =
        json!({"StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/s"});
    assert_eq!(local.error("ListShards", &of_another_account), "AccessDeniedException");
    let nowhere = local.call("ListShards", &json!({"StreamName": "wildrydes"})).unwrap_err();
    assert_eq!(nowhere.message, "Stream wildrydes under account 000000000000 not found.");
}

#[tokio::test(start_paused = true)]
async fn a_shard_count_changes_to_at_most_double_and_at_least_half() {
    let local = local_with_stream(3);
    let count = |count: i64| {
        json!({
            "StreamName": "s", "TargetShardCount": count, "ScalingType": "UNIFORM_SCALING",
        })
    };
    for wrong in [7, 1] {
        assert_eq!(local.error("UpdateShardCount", &count(wrong)), "InvalidArgumentException");
    }
    assert_eq!(local.error("UpdateShardCount", &count(0)), "ValidationException");
    assert_eq!(local.ok("UpdateShardCount", &count(5))["CurrentShardCount"], 3);
    local.settle();
    local.ok("UpdateShardCount", &count(3));
    local.settle();
    let summary = local.ok("DescribeStreamSummary", &json!({"StreamName": "s"}));
    assert_eq!(summary["StreamDescriptionSummary"]["OpenShardCount"], 3);
}

#[tokio::test(start_paused = true)]
async fn unknown_operations_and_broken_texts_have_their_own_errors() {
    let local = local();
    assert_eq!(local.error("Nonsense", &json!({})), "UnknownOperationException");
    assert_eq!(local.error("PutRecord", &json!([1])), "SerializationException");
    let bad_blob = json!({"StreamName": "s", "PartitionKey": "k", "Data": "%"});
    assert_eq!(local.error("PutRecord", &bad_blob), "SerializationException");
    let missing = local.call("PutRecord", &json!({"StreamName": "s", "Data": ""})).unwrap_err();
    assert_eq!(missing.code, "ValidationException");
    assert!(missing.message.contains("'partitionKey'"), "{}", missing.message);
}

#[tokio::test(start_paused = true)]
async fn tags_and_modes_and_encryption_are_kept() {
    let local = local_with_stream(1);
    let arn = "arn:aws:kinesis:us-east-1:000000000000:stream/s";
    local.ok("AddTagsToStream", &json!({"StreamName": "s", "Tags": {"a": "1", "b": "2"}}));
    local.ok("TagResource", &json!({"ResourceARN": arn, "Tags": {"c": "3"}}));
    local.ok("RemoveTagsFromStream", &json!({"StreamName": "s", "TagKeys": ["a"]}));
    let page = local.ok("ListTagsForStream", &json!({"StreamName": "s", "Limit": 1}));
    assert_eq!(page, json!({"Tags": [{"Key": "b", "Value": "2"}], "HasMoreTags": true}));
    local.ok("UntagResource", &json!({"ResourceARN": arn, "TagKeys": ["b"]}));
    let tags = local.ok("ListTagsForResource", &json!({"ResourceARN": arn}));
    assert_eq!(tags, json!({"Tags": [{"Key": "c", "Value": "3"}]}));

    let key = json!({"StreamName": "s", "EncryptionType": "KMS", "KeyId": "alias/aws/kinesis"});
    local.ok("StartStreamEncryption", &key);
    assert_eq!(local.error("StopStreamEncryption", &key), "ResourceInUseException");
    local.settle();
    assert_eq!(local.ok("PutRecord", &record("a"))["EncryptionType"], "KMS");
    let read = local.get(&local.trim_horizon(0));
    assert_eq!(read["Records"][0]["EncryptionType"], "KMS");
    let mode = json!({"StreamARN": arn, "StreamModeDetails": {"StreamMode": "ON_DEMAND"}});
    local.ok("UpdateStreamMode", &mode);
    local.settle();
    assert_eq!(local.ok("DescribeLimits", &json!({}))["OnDemandStreamCount"], 1);
    let metrics = json!({"StreamName": "s", "ShardLevelMetrics": ["ALL"]});
    let answer = local.ok("EnableEnhancedMonitoring", &metrics);
    assert_eq!(answer["DesiredShardLevelMetrics"].as_array().unwrap().len(), 7);
    assert_eq!(
        local.ok("DisableEnhancedMonitoring", &metrics)["DesiredShardLevelMetrics"],
        json!([])
    );
}
