//! Properties of all requests: no record is lost or read twice over resharding, also with many
//! threads, and no request makes the service panic.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn instant() -> Local {
    local_with(KinesisOptions { transition: Duration::ZERO, ..KinesisOptions::default() })
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Split(prop::sample::Index, u128),
    Merge(prop::sample::Index),
    Resize(i64),
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u8..30).prop_map(Step::Put),
        1 => (any::<prop::sample::Index>(), any::<u128>()).prop_map(|(i, at)| Step::Split(i, at)),
        1 => any::<prop::sample::Index>().prop_map(Step::Merge),
        1 => (1_i64..8).prop_map(Step::Resize),
        1 => (0_u64..2_000).prop_map(Step::Advance),
    ]
}

/// Carries out a step; an impossible split, merge or resize is refused without an effect.
fn take(local: &Local, step: &Step, sent: &mut Vec<String>) {
    let open: Vec<_> = local
        .shards()
        .into_iter()
        .filter(|shard| shard["SequenceNumberRange"].get("EndingSequenceNumber").is_none())
        .map(|shard| shard["ShardId"].clone())
        .collect();
    let name = "s";
    let answer = match step {
        Step::Put(count) => {
            let first = sent.len();
            sent.extend((0..usize::from(*count)).map(|i| format!("r{}", first + i)));
            let records: Vec<_> = sent[first..]
                .iter()
                .map(|text| json!({"PartitionKey": text, "Data": base64(text)}))
                .collect();
            let body = json!({"StreamName": name, "Records": records});
            assert_eq!(local.ok("PutRecords", &body)["FailedRecordCount"], 0);
            return;
        }
        Step::Split(which, at) => {
            let body = json!({
                "StreamName": name, "ShardToSplit": which.get(&open),
                "NewStartingHashKey": at.to_string(),
            });
            local.call("SplitShard", &body)
        }
        Step::Merge(which) => {
            let (a, b) = (which.get(&open), &open[(which.index(open.len()) + 1) % open.len()]);
            let body = json!({"StreamName": name, "ShardToMerge": a, "AdjacentShardToMerge": b});
            local.call("MergeShards", &body)
        }
        Step::Resize(count) => {
            let body = json!({
                "StreamName": name, "TargetShardCount": count, "ScalingType": "UNIFORM_SCALING",
            });
            local.call("UpdateShardCount", &body)
        }
        Step::Advance(ms) => {
            local.clock.advance(Duration::from_millis(*ms));
            return;
        }
    };
    if let Err(error) = answer {
        assert_eq!(error.code, "InvalidArgumentException", "{step:?}: {error}");
    }
}

/// Reads as a consumer does: first the shards without parents, then the children that the ends of
/// shards name. Returns every record and the shards that were read.
fn read_by_lineage(local: &Local) -> (Vec<String>, BTreeSet<String>) {
    let mut waiting: Vec<String> = local
        .shards()
        .iter()
        .filter(|shard| shard.get("ParentShardId").is_none())
        .map(|shard| shard["ShardId"].as_str().unwrap().to_owned())
        .collect();
    let (mut seen, mut texts) = (BTreeSet::new(), Vec::new());
    while let Some(shard) = waiting.pop() {
        if !seen.insert(shard.clone()) {
            continue;
        }
        let number = shard[8..].parse().unwrap();
        let mut iterator = Some(local.trim_horizon(number));
        while let Some(from) = iterator {
            let answer = local.ok("GetRecords", &json!({"ShardIterator": from, "Limit": 7}));
            texts.extend(texts_of(&answer));
            iterator = answer["NextShardIterator"].as_str().map(str::to_owned);
            let children = answer.get("ChildShards").and_then(Value::as_array);
            assert_eq!(children.is_some(), iterator.is_none(), "children come at the end only");
            for child in children.into_iter().flatten() {
                waiting.push(child["ShardId"].as_str().unwrap().to_owned());
            }
            if answer["MillisBehindLatest"] == 0 {
                break;
            }
        }
    }
    (texts, seen)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_record_is_read_exactly_once_over_any_lineage(
        shards in 1_u32..5, steps in prop::collection::vec(step(), 1..25),
    ) {
        let local = instant();
        local.create(shards);
        let mut sent = Vec::new();
        for step in &steps {
            take(&local, step, &mut sent);
        }
        let (mut read, seen) = read_by_lineage(&local);
        read.sort_unstable();
        sent.sort_unstable();
        prop_assert_eq!(read, sent);
        prop_assert_eq!(seen.len(), local.shards().len(), "each shard is some shard's child");
    }
}

const OPERATIONS: [&str; 34] = [
    "AddTagsToStream",
    "CreateStream",
    "DecreaseStreamRetentionPeriod",
    "DeleteStream",
    "DeregisterStreamConsumer",
    "DescribeAccountSettings",
    "DescribeLimits",
    "DescribeStream",
    "DescribeStreamConsumer",
    "DescribeStreamSummary",
    "DisableEnhancedMonitoring",
    "EnableEnhancedMonitoring",
    "GetRecords",
    "GetShardIterator",
    "IncreaseStreamRetentionPeriod",
    "ListShards",
    "ListStreamConsumers",
    "ListStreams",
    "ListTagsForResource",
    "ListTagsForStream",
    "MergeShards",
    "PutRecord",
    "PutRecords",
    "RegisterStreamConsumer",
    "RemoveTagsFromStream",
    "SplitShard",
    "StartStreamEncryption",
    "StopStreamEncryption",
    "SubscribeToShard",
    "TagResource",
    "UntagResource",
    "UpdateMaxRecordSize",
    "UpdateShardCount",
    "UpdateStreamMode",
];

/// Values that are valid in some place, almost valid, or always invalid.
fn value(iterator: String) -> impl Strategy<Value = Value> {
    let texts = prop_oneof![
        Just("s".to_owned()),
        Just(id(0)),
        Just(id(7)),
        Just(iterator),
        Just("arn:aws:kinesis:us-east-1:000000000000:stream/s".to_owned()),
        Just("arn:aws:kinesis:us-east-1:000000000000:stream/s/consumer/c:1700000000".to_owned()),
        Just(format!("49{}", "9".repeat(54))),
        Just(format!("49{:014}{}", 1_700_000_000_000_i64, "0".repeat(40))),
        Just(u128::MAX.to_string()),
        Just("KMS".to_owned()),
        Just("LATEST".to_owned()),
        Just("AT_TIMESTAMP".to_owned()),
        Just("AFTER_SEQUENCE_NUMBER".to_owned()),
        Just("FROM_TIMESTAMP".to_owned()),
        Just("ON_DEMAND".to_owned()),
        Just("UNIFORM_SCALING".to_owned()),
        Just("c".to_owned()),
        ".{0,12}",
    ];
    let leaf = prop_oneof![
        4 => texts.prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => (-2_i64..30).prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => Just(json!(1_700_000_000.05)),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(member(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn member() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "StreamName",
        "StreamARN",
        "ConsumerARN",
        "ResourceARN",
        "ConsumerName",
        "ShardId",
        "Type",
        "Timestamp",
        "ShardIterator",
        "ShardIteratorType",
        "StartingSequenceNumber",
        "SequenceNumber",
        "StartingPosition",
        "ShardFilter",
        "NextToken",
        "Limit",
        "MaxResults",
        "ShardCount",
        "TargetShardCount",
        "ScalingType",
        "ShardToSplit",
        "NewStartingHashKey",
        "ShardToMerge",
        "AdjacentShardToMerge",
        "RetentionPeriodHours",
        "Records",
        "Data",
        "PartitionKey",
        "ExplicitHashKey",
        "SequenceNumberForOrdering",
        "Tags",
        "TagKeys",
        "StreamModeDetails",
        "StreamMode",
        "EncryptionType",
        "KeyId",
        "MaxRecordSizeInKiB",
        "ShardLevelMetrics",
        "ExclusiveStartShardId",
        "ExclusiveStartTagKey",
        "ExclusiveStartStreamName",
        "EnforceConsumerDeletion",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_request_makes_the_service_panic(
        members in prop::collection::btree_map(member(), value(String::new()), 0..9),
        junk in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let local = instant();
        local.create(2);
        let arn = "arn:aws:kinesis:us-east-1:000000000000:stream/s";
        local.ok("RegisterStreamConsumer", &json!({"StreamARN": arn, "ConsumerName": "c"}));
        let mut body: serde_json::Map<String, Value> = members.into_iter().collect();
        for (known, right) in [("ShardIterator", local.trim_horizon(1)), ("StreamARN", arn.into())] {
            // Half of the requests pass the first check.
            if body.contains_key(known) && junk.len() % 2 == 0 {
                body.insert(known.to_owned(), right.into());
            }
        }
        let body = Value::Object(body);
        let mut cbor = Vec::new();
        ciborium::into_writer(&body, &mut cbor).unwrap();
        for operation in OPERATIONS {
            for (format, bytes) in [
                (Format::Json, body.to_string().as_bytes()),
                (Format::Cbor, &cbor),
                (Format::Json, &junk),
                (Format::Cbor, &junk),
            ] {
                match local.kinesis.call(operation, format, bytes) {
                    Ok(_) => {}
                    Err(error) => {
                        prop_assert_eq!(error.status, 400, "{} {}: {}", operation, body, error);
                        prop_assert_ne!(error.code, "UnknownOperationException");
                    }
                }
            }
        }
    }
}

/// Runs writers, a reader at the tip and a resharder concurrently: the reader must see increasing
/// sequence numbers, and in the end every acknowledged record exactly once.
#[test]
fn threads_lose_nothing_over_splits_and_merges() {
    const WRITERS: usize = 4;
    const RECORDS: usize = 300;
    let local = instant();
    local.create(1);
    let first = local.trim_horizon(0);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let local = &local;
            scope.spawn(move || {
                for i in 0..RECORDS {
                    local.put(&format!("{writer}-{i}"));
                }
            });
        }
        scope.spawn(|| {
            let mut last = String::new();
            let mut from = first;
            loop {
                let answer = local.get(&from);
                for record in answer["Records"].as_array().unwrap() {
                    let number = record["SequenceNumber"].as_str().unwrap();
                    assert!(number > last.as_str(), "{number} came after {last}");
                    number.clone_into(&mut last);
                }
                match answer["NextShardIterator"].as_str() {
                    Some(next) => from = next.to_owned(),
                    None => break,
                }
            }
        });
        scope.spawn(|| {
            for count in [2, 3, 5, 3, 2, 4] {
                let body = json!({
                    "StreamName": "s", "TargetShardCount": count, "ScalingType": "UNIFORM_SCALING",
                });
                local.ok("UpdateShardCount", &body);
            }
        });
    });
    let (mut read, _) = read_by_lineage(&local);
    read.sort_unstable();
    let mut sent: Vec<_> = (0..WRITERS)
        .flat_map(|writer| (0..RECORDS).map(move |i| format!("{writer}-{i}")))
        .collect();
    sent.sort_unstable();
    assert_eq!(read, sent);
}
