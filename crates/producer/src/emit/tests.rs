//! Tests of the loop against an in-process Kinesis on paused time: what is stored, when, and what
//! is printed.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_command::failure::explained;
use aws_command::{Place, RegionSource};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::client::Waiters;
use aws_sdk_kinesis::types::{self, ShardIteratorType};
use bytes::Bytes;
use clap::Parser;
use kpl_format::{Aggregate, is_aggregate};
use local_aws::{Effect, LocalAws, Rule};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::aws;
use crate::cli::Cli;
use crate::report::Console;
use crate::send::Sender;

const STREAM: &str = "wildrydes";

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

async fn local_with_shards(local: LocalAws, shards: i32) -> LocalAws {
    let client = Client::new(&local.sdk_config("test"));
    client.create_stream().stream_name(STREAM).shard_count(shards).send().await.unwrap();
    let active = client.wait_until_stream_exists().stream_name(STREAM);
    active.wait(Duration::from_secs(60)).await.unwrap();
    local
}

async fn local() -> LocalAws {
    local_with_shards(LocalAws::in_memory(), 1).await
}

/// The results of a ride.
struct Ride {
    out: String,
    notes: String,
    ended: Result<(), Halt>,
    took: Duration,
}

impl Ride {
    #[track_caller]
    fn failure(&self) -> &Failure {
        match &self.ended {
            Err(Halt::Failed(failure)) => failure,
            other => panic!("ended with {other:?}; notes: {}", self.notes),
        }
    }
}

fn place() -> Place {
    Place {
        stream: STREAM.into(),
        region: "us-west-2".into(),
        region_source: RegionSource::Flag,
        endpoint_url: None,
        table_endpoint_url: None,
    }
}

/// Rides with these flags; a stop is requested after `stop_after`.
async fn ride(local: &LocalAws, flags: &str, stop_after: Option<Duration>) -> Ride {
    let args = ["producer", "--seed", "7"].into_iter().chain(flags.split_whitespace());
    let options = Options::try_from(Cli::try_parse_from(args).unwrap()).unwrap();
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let start = Instant::now();
    let console = Console::new(&mut out, &mut notes, false, start);
    let stop = CancellationToken::new();
    let sender = Sender::new(aws::client(&local.sdk_config("producer")), STREAM.into());
    let session =
        Session::new(sender, console, stop.clone(), place(), (options.seed, options.timeout));
    let now = || Timestamp::from_millisecond(local.clock().now_ms()).unwrap();
    let emitter = Emitter::new(options, session, now);
    let stopping = async {
        if let Some(after) = stop_after {
            sleep(after).await;
            stop.cancel();
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        biased;
        ended = emitter.run() => ended,
        () = stopping => unreachable!("it never ends"),
    };
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ride { took: start.elapsed(), ended, out: text(out), notes: text(notes) }
}

/// A stored record, single or from an aggregate: its key, its data and its arrival time.
///
/// Arrival times travel as a fraction of seconds and may be a millisecond early.
struct Stored {
    key: String,
    json: serde_json::Value,
    arrived_ms: i64,
    /// Whether it was packed with others.
    packed: bool,
    /// Whether a consumer that drops misrouted aggregates keeps it.
    home: bool,
}

/// Returns all records of the stream, in order per shard.
async fn stored(local: &LocalAws) -> Vec<Stored> {
    let client = Client::new(&local.sdk_config("test"));
    let shards = client.list_shards().stream_name(STREAM).send().await.unwrap();
    let mut all = Vec::new();
    for shard in shards.shards() {
        let iterator = client.get_shard_iterator().stream_name(STREAM).shard_id(shard.shard_id());
        let iterator = iterator.shard_iterator_type(ShardIteratorType::TrimHorizon);
        let mut next = iterator.send().await.unwrap().shard_iterator;
        while let Some(iterator) = next {
            let reply = client.get_records().shard_iterator(iterator).send().await.unwrap();
            if reply.records().is_empty() && reply.millis_behind_latest() == Some(0) {
                break;
            }
            let range = shard.hash_key_range().unwrap();
            let start: u128 = range.starting_hash_key().parse().unwrap();
            let end: u128 = range.ending_hash_key().parse().unwrap();
            all.extend(reply.records().iter().flat_map(|record| unpacked(record, start..=end)));
            next = reply.next_shard_iterator;
        }
    }
    all
}

fn unpacked(record: &types::Record, range: std::ops::RangeInclusive<u128>) -> Vec<Stored> {
    let data = Bytes::copy_from_slice(record.data().as_ref());
    let arrived_ms = record.approximate_arrival_timestamp().unwrap().to_millis().unwrap();
    let stored = |key: &str, data: &[u8], packed, home| {
        let (key, json) = (key.to_owned(), serde_json::from_slice(data).unwrap());
        Stored { key, json, arrived_ms, packed, home }
    };
    if !is_aggregate(&data) {
        return vec![stored(record.partition_key().unwrap(), &data, false, true)];
    }
    let aggregate = Aggregate::read(data).unwrap();
    let home = aggregate.records().all(|record| range.contains(&record.hash_key()));
    aggregate.records().map(|it| stored(it.partition_key, &it.data, true, home)).collect()
}

/// Returns the longitudes by unicorn. They grow on a ride due east, so that they show order and
/// loss.
async fn longitudes(local: &LocalAws) -> BTreeMap<String, Vec<f64>> {
    let mut by_name: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for record in stored(local).await {
        let longitude = record.json["Longitude"].as_f64().unwrap();
        by_name.entry(record.key).or_default().push(longitude);
    }
    by_name
}

fn rule(operation: &str, effect: Effect) -> Rule {
    Rule::new(effect).client("producer").operation(operation)
}

#[tokio::test(start_paused = true)]
async fn one_record_a_second_and_the_first_after_a_second() {
    let local = local().await;
    let start = local.clock().now_ms();
    let ride = ride(&local, "", Some(seconds(3.5))).await;
    assert_eq!((ride.out.as_str(), ride.ended.is_ok()), ("...\nsent 3 records\n", true));
    let stored = stored(&local).await;
    let arrivals = stored.iter().map(|record| record.arrived_ms - start).collect::<Vec<_>>();
    assert!(
        arrivals.iter().zip([1000, 2000, 3000]).all(|(a, b)| (b - 1..b + 50).contains(a)),
        "{arrivals:?}"
    );
    assert_eq!(
        local.requests().operations("producer").into_iter().collect::<Vec<_>>(),
        ["kinesis:PutRecord"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_reading_is_made_after_its_tick_and_keyed_by_name() {
    let local = local().await;
    ride(&local, "--name Silver --count 3", None).await;
    for record in stored(&local).await {
        let made: jiff::civil::DateTime =
            record.json["StatusTime"].as_str().unwrap().parse().unwrap();
        let made = made.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp().as_millisecond();
        assert!((-1..50).contains(&(record.arrived_ms - made)), "{made} {}", record.arrived_ms);
        assert_eq!((record.key.as_str(), &record.json["Name"]), ("Silver", &"Silver".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_put_is_not_followed_by_a_burst() {
    let local = local().await;
    let start = local.clock().now_ms();
    local.faults().add(rule("PutRecord", Effect::Delay(seconds(4.5))).times(1));
    ride(&local, "--count 4", None).await;
    let arrivals = stored(&local).await.iter().map(|r| r.arrived_ms - start).collect::<Vec<_>>();
    // The second record became due meanwhile; from then on records are a second apart.
    assert!(arrivals.windows(2).skip(1).all(|pair| pair[1] - pair[0] >= 999), "{arrivals:?}");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_record_is_sent_again_and_the_reason_is_said() {
    let local = local().await;
    local.faults().add(rule("PutRecord", Effect::Throttle).skip(1).times(3));
    let ride = ride(&local, "--count 3 --bearing 0", None).await;
    assert_eq!(ride.out, "...\nsent 3 records\n");
    assert!(
        ride.notes.contains("kinesis:PutRecord failed, retrying on stream `wildrydes`")
            && ride.notes.contains(": ProvisionedThroughputExceededException: "),
        "{}",
        ride.notes
    );
    assert!(ride.notes.contains("3 failures"), "{}", ride.notes);
    let longitudes = &longitudes(&local).await["Shadowfax"];
    assert_eq!(longitudes.len(), 3);
    assert!(longitudes.is_sorted(), "{longitudes:?}");
}

#[tokio::test(start_paused = true)]
async fn endless_throttling_is_waited_out_visibly_until_the_timeout() {
    let local = local().await;
    local.faults().add(rule("PutRecord", Effect::Throttle));
    let ride = ride(&local, "--timeout 10m", None).await;
    assert_eq!(ride.failure().kind, ServiceErrorKind::Throttled);
    assert!(ride.took > seconds(590.0) && ride.took < seconds(602.0), "{:?}", ride.took);
    assert_eq!(ride.out, "", "there is nothing to sum");
    let reported = ride.notes.matches("kinesis:PutRecord failed, retrying").count();
    assert!((15..=20).contains(&reported), "at once, and about every 30 s: {}", ride.notes);
}

#[tokio::test(start_paused = true)]
async fn any_number_of_failures_is_waited_out_while_there_is_progress() {
    let local = local().await;
    let throttled = local.faults().add(rule("PutRecord", Effect::Throttle).probability(0.5));
    let ride = ride(&local, "--count 40", None).await;
    assert!(ride.out.ends_with("\nsent 40 records\n"), "{}", ride.notes);
    assert!(local.faults().fired(throttled) > 20, "more than a run of ten");
}

#[tokio::test(start_paused = true)]
async fn endless_disconnects_end_with_the_timeout_as_unreachable() {
    let local = local().await;
    local.faults().add(rule("PutRecord", Effect::Disconnect).skip(1));
    let ride = ride(&local, "--timeout 20s", None).await;
    assert_eq!(ride.failure().kind, ServiceErrorKind::Unavailable);
    assert_eq!(ride.out, ".\nsent 1 records\n");
    assert!(ride.took > seconds(15.0) && ride.took < seconds(22.0), "{:?}", ride.took);
    assert!(explained(ride.failure(), &place()).contains("check the network"));
}

#[tokio::test(start_paused = true)]
async fn a_put_without_any_reply_times_out_and_is_sent_again() {
    let local = local().await;
    local.faults().add(rule("PutRecord", Effect::Hang).times(1));
    let ride = ride(&local, "--count 2", None).await;
    assert_eq!(ride.out, "..\nsent 2 records\n");
    assert!(ride.notes.contains("timeout"), "{}", ride.notes);
    assert_eq!(stored(&local).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_may_store_a_record_twice_but_never_none() {
    let local = local().await;
    local.faults().add(rule("PutRecord", Effect::DropHalfReply).times(1));
    let ride = ride(&local, "--count 2 --bearing 0", None).await;
    assert_eq!(ride.out, "..\nsent 2 records\n");
    let longitudes = &longitudes(&local).await["Shadowfax"];
    assert!(longitudes.len() == 3 && longitudes.is_sorted(), "{longitudes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_action_ends_the_ride_at_once() {
    let local = local().await;
    let denied = Effect::FailBefore { code: "AccessDeniedException".into(), status: 400 };
    local.faults().add(rule("PutRecord", denied));
    let ride = ride(&local, "", None).await;
    assert_eq!(ride.failure().kind, ServiceErrorKind::Denied);
    assert_eq!(local.requests().count("producer", "PutRecord"), 1);
    assert!(explained(ride.failure(), &place()).contains("hint: allow kinesis:PutRecord"));
}

#[tokio::test(start_paused = true)]
async fn a_herd_shares_requests_and_keeps_each_unicorns_order() {
    let local = local_with_shards(LocalAws::in_memory(), 2).await;
    let ride = ride(&local, "--unicorns 5 --count 12 --bearing 0", None).await;
    assert_eq!(ride.out, "...\nsent 12 records\n");
    assert_eq!(local.requests().count("producer", "PutRecords"), 3);
    let longitudes = longitudes(&local).await;
    let counts = longitudes.iter().map(|(name, all)| (name.as_str(), all.len()));
    assert_eq!(
        counts.collect::<Vec<_>>(),
        [
            ("Bucephalus", 3),
            ("Rocinante", 2),
            ("Shadowfax", 3),
            ("Unicorn-0004", 2),
            ("Unicorn-0005", 2)
        ]
    );
    assert!(longitudes.values().all(|all| all.is_sorted()), "{longitudes:?}");
}

#[tokio::test(start_paused = true)]
async fn records_refused_within_a_request_are_sent_again_in_order() {
    let limits = LocalAws::builder().enforce_limits(true).build().unwrap();
    let local = local_with_shards(limits, 1).await;
    // One shard takes 1,000 records a second; 1,500 a second are created.
    let ride = ride(&local, "--unicorns 400 --rate 1500 --count 6000 --bearing 0", None).await;
    assert!(ride.ended.is_ok(), "{:?} {}", ride.ended, ride.notes);
    assert!(ride.out.ends_with("\nsent 6000 records\n"), "{}", ride.out);
    assert!(
        ride.notes.contains("PutRecords failed, retrying on stream `wildrydes`"),
        "{}",
        ride.notes
    );
    assert!(!ride.notes.contains(" 0 failures"), "{}", ride.notes);
    let longitudes = longitudes(&local).await;
    assert_eq!(longitudes.values().map(Vec::len).sum::<usize>(), 6000);
    for (name, all) in longitudes {
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{name}: {all:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept_and_told_every_ten_seconds() {
    let local = local().await;
    let ride = ride(&local, "--unicorns 100 --rate 200", Some(seconds(20.05))).await;
    assert!(ride.out.ends_with("\nsent 4000 records\n"), "{}", ride.out);
    let reported = ride.notes.lines().filter(|line| line.contains(" 0 failures")).count();
    assert_eq!(reported, 3, "two on the way and the last: {}", ride.notes);
    assert_eq!(stored(&local).await.len(), 4000);
}

#[tokio::test(start_paused = true)]
async fn a_missing_stream_is_reported_at_once() {
    let local = LocalAws::in_memory();
    let ride = ride(&local, "", None).await;
    assert_eq!(ride.failure().kind, ServiceErrorKind::Missing);
    assert_eq!(local.requests().count("producer", "PutRecord"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_stream_is_called_missing_even_without_permission_to_describe() {
    let local = LocalAws::in_memory();
    let denied = Effect::FailBefore { code: "AccessDeniedException".into(), status: 400 };
    local.faults().add(rule("DescribeStreamSummary", denied));
    let ride = ride(&local, "", None).await;
    assert_eq!(ride.failure().kind, ServiceErrorKind::Missing);
}

#[tokio::test(start_paused = true)]
async fn a_missing_stream_is_created_on_request() {
    let local = LocalAws::builder().transition(seconds(20.0)).build().unwrap();
    let ride = ride(&local, "--create-stream 2 --count 2", None).await;
    assert_eq!(ride.out, "..\nsent 2 records\n", "{}", ride.notes);
    assert!(ride.notes.contains("creating the stream with 2 shard(s)"), "{}", ride.notes);
    let shards = Client::new(&local.sdk_config("test")).list_shards().stream_name(STREAM);
    assert_eq!(shards.send().await.unwrap().shards().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_existing_stream_is_left_as_it_is() {
    let local = local().await;
    let ride = ride(&local, "--create-stream 2 --count 1", None).await;
    assert_eq!(ride.out, ".\nsent 1 records\n");
    assert_eq!(local.requests().count("producer", "CreateStream"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_creation_is_no_failure() {
    let local = LocalAws::in_memory();
    local.faults().add(rule("CreateStream", Effect::DisconnectAfter).times(1));
    let ride = ride(&local, "--create-stream 1 --count 1", None).await;
    assert_eq!(ride.out, ".\nsent 1 records\n", "{}", ride.notes);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_being_created_is_waited_for() {
    let local = LocalAws::builder().transition(seconds(30.0)).build().unwrap();
    let client = Client::new(&local.sdk_config("test"));
    client.create_stream().stream_name(STREAM).shard_count(1).send().await.unwrap();
    let ride = ride(&local, "--count 2", None).await;
    assert_eq!(ride.out, "..\nsent 2 records\n", "{}", ride.notes);
    assert_eq!(ride.notes.matches("the stream is CREATING").count(), 1, "{}", ride.notes);
    assert!(ride.took > seconds(30.0));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_creating_is_waited_for_until_the_timeout() {
    let local = LocalAws::builder().transition(seconds(3600.0)).build().unwrap();
    let ride = ride(&local, "--create-stream 1 --timeout 5m", None).await;
    assert_eq!(ride.failure().kind, ServiceErrorKind::NotReady);
    assert!(ride.took >= seconds(295.0) && ride.took < seconds(310.0), "{:?}", ride.took);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_every_wait() {
    for (effect, within) in [(Effect::Throttle, 0.01), (Effect::Hang, 2.01)] {
        let local = local().await;
        local.faults().add(rule("PutRecord", effect.clone()));
        let ride = ride(&local, "", Some(seconds(1.9))).await;
        assert!(ride.ended.is_ok());
        assert_eq!(ride.out, "\nsent 0 records\n", "{effect:?}");
        assert!(ride.took <= seconds(1.9 + within), "{effect:?} took {:?}", ride.took);
    }
    let creating = LocalAws::builder().transition(seconds(60.0)).build().unwrap();
    let ride = ride(&creating, "--create-stream 1", Some(seconds(5.5))).await;
    assert_eq!((ride.out.as_str(), ride.took), ("\nsent 0 records\n", seconds(5.5)));
}

#[tokio::test(start_paused = true)]
async fn a_put_on_its_way_at_the_stop_is_waited_for_and_counted() {
    let local = local().await;
    local.faults().add(rule("PutRecord", Effect::Delay(seconds(1.5))));
    let ride = ride(&local, "", Some(seconds(1.2))).await;
    assert_eq!(ride.out, ".\nsent 1 records\n");
    assert_eq!(stored(&local).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_sends_the_same_rides() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let local = local().await;
        ride(&local, "--unicorns 3 --count 9", None).await;
        runs.push(longitudes(&local).await);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test(start_paused = true)]
async fn a_herd_is_packed_by_shard_and_keeps_each_unicorns_order() {
    let local = local_with_shards(LocalAws::in_memory(), 2).await;
    let flags = "--aggregate --unicorns 20 --interval 20ms --count 1000 --bearing 0";
    let ride = ride(&local, flags, None).await;
    assert!(ride.out.ends_with("\nsent 1000 records\n"), "{}", ride.out);
    let requests = local.requests().count("producer", "PutRecords");
    assert!(requests <= 10, "a second's records in tenths: {requests}");
    assert!(ride.notes.contains(&format!(" {} aggregates", 2 * requests)), "{}", ride.notes);
    assert_eq!(local.requests().count("producer", "ListShards"), 1);
    let stored = stored(&local).await;
    assert!(stored.len() == 1000 && stored.iter().all(|record| record.packed && record.home));
    let longitudes = longitudes(&local).await;
    assert!(longitudes.values().all(|all| all.len() == 50 && all.is_sorted()), "{longitudes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_unicorn_that_has_nobody_to_wait_for_is_sent_at_once_and_as_it_is() {
    let local = local().await;
    let start = local.clock().now_ms();
    ride(&local, "--aggregate --count 3", None).await;
    for (record, due) in stored(&local).await.iter().zip([1000, 2000, 3000]) {
        assert!(
            (due - 1..due + 50).contains(&(record.arrived_ms - start)),
            "{}",
            record.arrived_ms
        );
        assert!(!record.packed);
    }
    assert_eq!(local.requests().count("producer", "PutRecord"), 3);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_others_when_a_stop_is_requested_is_sent() {
    let local = local().await;
    let ride = ride(&local, "--aggregate --unicorns 3 --interval 20ms", Some(seconds(0.07))).await;
    assert_eq!(ride.out, ".\nsent 9 records\n");
    assert_eq!(stored(&local).await.len(), 9);
}

#[tokio::test(start_paused = true)]
async fn aggregates_that_are_refused_are_sent_again_in_order() {
    let local = local_with_shards(LocalAws::in_memory(), 3).await;
    local.faults().add(rule("PutRecords", Effect::Throttle).probability(0.5));
    local.faults().add(rule("PutRecords", Effect::DropHalfReply).probability(0.2));
    let flags = "--aggregate --unicorns 20 --interval 50ms --count 2000 --bearing 0";
    let ride = ride(&local, flags, None).await;
    assert!(ride.out.ends_with("\nsent 2000 records\n"), "{} {}", ride.out, ride.notes);
    let mut longitudes = longitudes(&local).await;
    for all in longitudes.values_mut() {
        // A lost reply repeats an aggregate; otherwise the order is that of the ride.
        let mut seen = Vec::new();
        all.retain(|longitude| {
            let is_new = seen.last().is_none_or(|last| longitude > last);
            seen.extend(is_new.then_some(*longitude));
            is_new
        });
        assert_eq!(all.len(), 100);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_reshard_every_record_is_where_its_key_belongs() {
    let local = local_with_shards(LocalAws::in_memory(), 1).await;
    let client = Client::new(&local.sdk_config("test"));
    let reshard = async {
        sleep(seconds(2.0)).await;
        let call = client.split_shard().stream_name(STREAM).shard_to_split("shardId-000000000000");
        call.new_starting_hash_key((u128::MAX / 2).to_string()).send().await.unwrap();
        sleep(seconds(5.0)).await;
        let call = client.merge_shards().stream_name(STREAM);
        let call = call.shard_to_merge("shardId-000000000001");
        call.adjacent_shard_to_merge("shardId-000000000002").send().await.unwrap();
        std::future::pending::<Ride>().await
    };
    let flags = "--aggregate --unicorns 20 --interval 50ms --count 4000 --bearing 0";
    let ride = tokio::select! {
        biased;
        ride = ride(&local, flags, None) => ride,
        never = reshard => never,
    };
    assert!(ride.out.ends_with("\nsent 4000 records\n"), "{} {}", ride.out, ride.notes);
    let stored = stored(&local).await;
    let places = |home: bool| {
        let of = |record: &&Stored| !home || record.home;
        let place = |record: &Stored| record.json["Longitude"].as_f64().map(f64::to_bits);
        let place = |record: &Stored| (record.key.clone(), place(record));
        stored.iter().filter(of).map(place).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(places(true).len(), 4000, "also if misrouted aggregates are dropped");
    let astray = stored.iter().filter(|record| !record.home).count();
    assert!((1..=200).contains(&astray), "{astray}");
    assert_eq!(stored.len() - 4000, astray, "sent again once, and nothing after the merge");
    assert_eq!(local.requests().count("producer", "ListShards"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_of_a_reshard_leaves_no_record_where_it_does_not_belong() {
    let local = local().await;
    let client = Client::new(&local.sdk_config("test"));
    let reshard = async {
        sleep(seconds(2.0)).await;
        // The listing that would contain the new shards is never answered.
        local.faults().add(rule("ListShards", Effect::Hang));
        let call = client.split_shard().stream_name(STREAM).shard_to_split("shardId-000000000000");
        call.new_starting_hash_key((u128::MAX / 2).to_string()).send().await.unwrap();
        std::future::pending::<Ride>().await
    };
    let flags = "--aggregate --unicorns 20 --interval 50ms --bearing 0";
    let ride = tokio::select! {
        biased;
        ride = ride(&local, flags, Some(seconds(10.0))) => ride,
        never = reshard => never,
    };
    let stored = stored(&local).await;
    let (home, astray): (Vec<_>, Vec<_>) = stored.iter().partition(|record| record.home);
    assert!(!astray.is_empty(), "the reshard was in time");
    assert!(ride.out.ends_with(&format!("\nsent {} records\n", home.len())), "{}", ride.out);
    for record in astray {
        assert!(home.iter().any(|it| (&it.key, &it.json) == (&record.key, &record.json)));
    }
    assert!(ride.took < seconds(12.0), "{:?}", ride.took);
}

#[tokio::test(start_paused = true)]
async fn without_permission_to_list_shards_nothing_is_packed_and_the_permission_is_named() {
    let local = local().await;
    let denied = Effect::FailBefore { code: "AccessDeniedException".into(), status: 400 };
    local.faults().add(rule("ListShards", denied));
    let ride = ride(&local, "--aggregate", None).await;
    assert_eq!(ride.failure().kind, ServiceErrorKind::Denied);
    assert!(explained(ride.failure(), &place()).contains("hint: allow kinesis:ListShards"));
}

/// The local clock is an hour behind the service's, and then jumps by another hour: each time one put is
/// refused, and the SDK learns the time from the refusal.
#[tokio::test(start_paused = true)]
async fn a_wrong_clock_and_one_that_jumps_cost_one_attempt_each() {
    let local = local().await;
    local.clock().advance(seconds(3600.0));
    let dates = local.faults().add(rule("PutRecord", Effect::CheckDate));
    let jump = async {
        local.requests().wait_for("producer", "PutRecord", 4).await;
        local.clock().advance(seconds(3600.0));
    };
    let (ride, ()) = tokio::join!(ride(&local, "--count 6 --timeout 20s", None), jump);
    assert_eq!(ride.out, "......\nsent 6 records\n", "{}", ride.notes);
    assert!(ride.notes.contains("hint: set the clock of this machine"), "{}", ride.notes);
    assert_eq!(local.requests().count("producer", "PutRecord"), 8);
    assert_eq!(local.faults().fired(dates), 8);
}
