//! Tests of iterators, GetRecords, ListShards and retention.

use super::*;

const FIVE_MINUTES: Duration = Duration::from_secs(300);
const A_DAY: Duration = Duration::from_hours(24);

#[tokio::test(start_paused = true)]
async fn an_iterator_expires_after_five_minutes() {
    let local = local_with_stream(1);
    let iterator = local.trim_horizon(0);
    local.clock.advance(FIVE_MINUTES);
    let next = local.get(&iterator)["NextShardIterator"].as_str().unwrap().to_owned();
    local.clock.advance(Duration::from_secs(1));
    let body = json!({"ShardIterator": iterator});
    assert_eq!(local.error("GetRecords", &body), "ExpiredIteratorException");
    local.get(&next);
}

#[tokio::test(start_paused = true)]
async fn an_iterator_expires_by_paused_time_too() {
    let local = local_with_stream(1);
    let body = json!({"ShardIterator": local.trim_horizon(0)});
    tokio::time::advance(Duration::from_secs(301)).await;
    assert_eq!(local.error("GetRecords", &body), "ExpiredIteratorException");
}

#[tokio::test(start_paused = true)]
async fn retention_takes_old_records_and_then_their_closed_shard() {
    let local = local_with_stream(1);
    for text in ["0", "1", "2"] {
        local.put(text);
    }
    local.split(0, 1 << 127);
    local.clock.advance(Duration::from_hours(23));
    local.put("young");
    assert_eq!(local.texts_from(local.trim_horizon(0)), ["0", "1", "2"]);
    assert_eq!(local.shards().len(), 3);
    local.clock.advance(Duration::from_hours(2));
    let ids: Vec<_> = local.shards().iter().map(|shard| shard["ShardId"].clone()).collect();
    assert_eq!(ids, [id(1), id(2)]);
    let body = json!({"StreamName": "s", "ShardId": id(0), "ShardIteratorType": "TRIM_HORIZON"});
    assert_eq!(local.error("GetShardIterator", &body), "ResourceNotFoundException");
    let young: Vec<_> =
        [1, 2].into_iter().flat_map(|shard| local.texts_from(local.trim_horizon(shard))).collect();
    assert_eq!(young, ["young"]);
}

#[tokio::test(start_paused = true)]
async fn a_longer_retention_keeps_and_a_shorter_one_drops_at_once() {
    let local = local_with_stream(1);
    let hours = |hours: i64| json!({"StreamName": "s", "RetentionPeriodHours": hours});
    local.ok("IncreaseStreamRetentionPeriod", &hours(48));
    local.put("old");
    local.clock.advance(A_DAY + A_DAY / 2);
    assert_eq!(local.texts_from(local.trim_horizon(0)), ["old"]);
    local.ok("DecreaseStreamRetentionPeriod", &hours(24));
    assert_eq!(local.texts_from(local.trim_horizon(0)), Vec::<String>::new());
    for (operation, wrong) in [
        ("IncreaseStreamRetentionPeriod", 23),
        ("IncreaseStreamRetentionPeriod", 8_761),
        ("DecreaseStreamRetentionPeriod", 23),
        ("DecreaseStreamRetentionPeriod", 25),
    ] {
        assert_eq!(local.error(operation, &hours(wrong)), "InvalidArgumentException");
    }
}

#[tokio::test(start_paused = true)]
async fn a_latest_iterator_gets_everything_put_after_it_and_nothing_before() {
    let local = local_with_stream(1);
    local.put("before");
    let latest = local.iterator(0, &json!({"ShardIteratorType": "LATEST"}));
    assert_eq!(texts_of(&local.get(&latest)), Vec::<String>::new());
    local.put("after");
    local.put("later");
    assert_eq!(local.texts_from(latest), ["after", "later"]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_closed_shard_comes_with_its_last_records() {
    let local = local_with_stream(1);
    let waiting = local.iterator(0, &json!({"ShardIteratorType": "LATEST"}));
    let last = local.put("last");
    local.split(0, 1 << 127);
    let answer = local.get(&waiting);
    assert_eq!(texts_of(&answer), ["last"]);
    assert!(answer.get("NextShardIterator").is_none());
    let children = answer["ChildShards"].as_array().unwrap();
    assert_eq!(children.len(), 2);
    assert_eq!(children[0]["ParentShards"], json!([id(0)]));
    let after = json!({
        "ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": last,
    });
    let answer = local.get(&local.iterator(0, &after));
    assert_eq!(texts_of(&answer), Vec::<String>::new());
    assert!(answer.get("NextShardIterator").is_none());
    assert_eq!(answer["ChildShards"].as_array().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_shard_waits_for_its_last_record_to_be_read() {
    let local = local_with_stream(1);
    local.put("0");
    local.put("1");
    local.split(0, 1 << 127);
    let body = json!({"ShardIterator": local.trim_horizon(0), "Limit": 1});
    let answer = local.ok("GetRecords", &body);
    assert!(answer.get("ChildShards").is_none());
    assert_eq!(texts_of(&local.get(answer["NextShardIterator"].as_str().unwrap())), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_learns_how_far_it_is_behind() {
    let local = local_with_stream(1);
    local.put("0");
    local.put("1");
    local.clock.advance(Duration::from_millis(1_234));
    let body = json!({"ShardIterator": local.trim_horizon(0), "Limit": 1});
    let answer = local.ok("GetRecords", &body);
    assert_eq!(answer["MillisBehindLatest"], 1_234);
    let answer = local.get(answer["NextShardIterator"].as_str().unwrap());
    assert_eq!(answer["MillisBehindLatest"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_time_starts_at_its_millisecond() {
    let local = local_with_stream(1);
    for text in ["0", "1", "2"] {
        local.put(text);
        local.clock.advance(Duration::from_millis(1));
    }
    let answer = local.get(&local.trim_horizon(0));
    let at = &answer["Records"][1]["ApproximateArrivalTimestamp"];
    let start = |time: Value| json!({"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": time});
    assert_eq!(local.texts_from(local.iterator(0, &start(at.clone()))), ["1", "2"]);
    let now = local.clock.now_ms() as f64 / 1_000.0;
    assert_eq!(local.texts_from(local.iterator(0, &start(json!(now)))), Vec::<String>::new());
    let mut body = start(json!(now + 60.0));
    body["StreamName"] = json!("s");
    body["ShardId"] = json!(id(0));
    assert_eq!(local.error("GetShardIterator", &body), "InvalidArgumentException");
}

#[tokio::test(start_paused = true)]
async fn positions_of_other_shards_streams_and_times_are_refused() {
    let local = local_with_stream(2);
    let shards = local.shards();
    let second = &shards[1]["SequenceNumberRange"]["StartingSequenceNumber"];
    let at = |number: &Value| {
        json!({
            "StreamName": "s", "ShardId": id(0), "ShardIteratorType": "AT_SEQUENCE_NUMBER",
            "StartingSequenceNumber": number,
        })
    };
    assert_eq!(local.error("GetShardIterator", &at(second)), "InvalidArgumentException");
    assert_eq!(local.error("GetShardIterator", &at(&json!("abc"))), "InvalidArgumentException");
    assert_eq!(local.error("GetShardIterator", &at(&json!(7))), "SerializationException");

    let old = json!({"ShardIterator": local.trim_horizon(0)});
    local.ok("DeleteStream", &json!({"StreamName": "s"}));
    assert_eq!(local.error("GetRecords", &old), "ResourceNotFoundException");
    local.settle();
    local.create(2);
    assert_eq!(local.error("GetRecords", &old), "ResourceNotFoundException");
    let first = &shards[0]["SequenceNumberRange"]["StartingSequenceNumber"];
    assert_eq!(local.error("GetShardIterator", &at(first)), "InvalidArgumentException");
}

#[tokio::test(start_paused = true)]
async fn a_list_goes_on_by_its_token_alone_and_for_five_minutes() {
    let local = local_with_stream(5);
    let mut answer = local.ok("ListShards", &json!({"StreamName": "s", "MaxResults": 2}));
    let first_token = answer["NextToken"].clone();
    let mut found = answer["Shards"].as_array().unwrap().clone();
    while let Some(token) = answer.get("NextToken").cloned() {
        answer = local.ok("ListShards", &json!({"NextToken": token, "MaxResults": 2}));
        found.extend(answer["Shards"].as_array().unwrap().clone());
    }
    assert_eq!(found, local.shards());
    let both = json!({"StreamName": "s", "NextToken": first_token});
    assert_eq!(local.error("ListShards", &both), "InvalidArgumentException");
    local.clock.advance(FIVE_MINUTES + Duration::from_millis(1));
    let late = json!({"NextToken": first_token});
    assert_eq!(local.error("ListShards", &late), "ExpiredNextTokenException");
}

#[tokio::test(start_paused = true)]
async fn filters_choose_shards_by_when_they_were_open() {
    let local = local_with_stream(2);
    let created = local.clock.now_ms() - 100;
    local.clock.advance(Duration::from_secs(10));
    local.split(0, 1 << 126);
    local.clock.advance(Duration::from_secs(10));
    let now = local.clock.now_ms();
    let list = |filter: Value| -> Vec<u64> {
        let body = json!({"StreamName": "s", "ShardFilter": filter});
        let answer = local.ok("ListShards", &body);
        let shards = answer["Shards"].as_array().unwrap();
        shards.iter().map(|s| s["ShardId"].as_str().unwrap()[8..].parse().unwrap()).collect()
    };
    let at = |kind: &str, ms: i64| json!({"Type": kind, "Timestamp": ms as f64 / 1_000.0});
    assert_eq!(list(json!({"Type": "AT_LATEST"})), [1, 2, 3]);
    assert_eq!(list(json!({"Type": "AT_TRIM_HORIZON"})), [0, 1]);
    assert_eq!(list(json!({"Type": "FROM_TRIM_HORIZON"})), [0, 1, 2, 3]);
    assert_eq!(list(json!({"Type": "AFTER_SHARD_ID", "ShardId": id(1)})), [2, 3]);
    assert_eq!(list(at("AT_TIMESTAMP", now)), [1, 2, 3]);
    assert_eq!(list(at("AT_TIMESTAMP", created + 1_000)), [0, 1]);
    assert_eq!(list(at("AT_TIMESTAMP", 0)), [0, 1]);
    assert_eq!(list(at("FROM_TIMESTAMP", now)), [1, 2, 3]);
    assert_eq!(list(at("FROM_TIMESTAMP", created + 1_000)), [0, 1, 2, 3]);
    for wrong in [json!({"Type": "AT_TIMESTAMP"}), json!({"Type": "AFTER_SHARD_ID"})] {
        let body = json!({"StreamName": "s", "ShardFilter": wrong});
        assert_eq!(local.error("ListShards", &body), "InvalidArgumentException");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_is_read_five_times_a_second_when_limits_hold() {
    let local = local_with(KinesisOptions { enforce_limits: true, ..KinesisOptions::default() });
    local.create(1);
    let body = json!({"ShardIterator": local.trim_horizon(0)});
    for _ in 0..5 {
        local.ok("GetRecords", &body);
    }
    assert_eq!(local.error("GetRecords", &body), "ProvisionedThroughputExceededException");
    local.clock.advance(Duration::from_millis(200));
    local.ok("GetRecords", &body);
}
