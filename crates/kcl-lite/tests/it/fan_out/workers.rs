//! Complete workers on fan-out.

use aws_sdk_kinesis::types::ScalingType;

use super::*;
use crate::polling::split;

fn is_trouble(event: &Event) -> bool {
    matches!(
        event,
        Event::LeaseLost { .. }
            | Event::ProcessorFailed { .. }
            | Event::ReaderRestarted { .. }
            | Event::GapDetected { .. }
            | Event::ShardReleased { .. }
    )
}

/// Events of level WARN and above.
fn warnings(world: &World) -> Vec<(String, Event)> {
    let is_warning = |event: &Event| {
        is_trouble(event)
            || matches!(event, Event::ReadFailed { transient: false, .. })
            || matches!(event, Event::ProcessorSlow { .. })
    };
    world.fleet.events().into_iter().filter(|(_, event)| is_warning(event)).collect()
}

/// Half an hour of records, with a resharding every five minutes: every record is delivered exactly once.
#[tokio::test(start_paused = true)]
async fn l17_half_an_hour_of_renewals_and_reshards_loses_and_repeats_nothing() {
    let world = World::new(2).await;
    let worker = world.start("a").await;
    let mut fed = world.feed_for(0, 8, 240).await;
    for round in 0..5 {
        match round {
            0 => split(&world.writer, &"shardId-000000000000".into()).await,
            1 => {
                let merge = world.writer.merge_shards().stream_name(STREAM);
                let merge = merge.shard_to_merge("shardId-000000000002");
                merge.adjacent_shard_to_merge("shardId-000000000003").send().await.unwrap();
            }
            _ => {
                let count = [4, 3, 6][round - 2];
                let update = world.writer.update_shard_count().stream_name(STREAM);
                let update = update.target_shard_count(count);
                update.scaling_type(ScalingType::UniformScaling).send().await.unwrap();
            }
        }
        fed = world.feed_for(fed, 8, 300).await;
    }
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    assert_eq!(world.local.requests().count("a", "GetRecords"), 0, "nothing was polled");
    assert!(world.subscriptions("a") >= 12, "{}", world.subscriptions("a"));
    assert_eq!(warnings(&world), []);
    worker.shutdown(DEADLINE).await.unwrap();
}

/// The processor is slower than its shard: the in-flight limit is reached most of the time.
#[tokio::test(start_paused = true)]
async fn s06_half_a_minute_and_more_per_batch_are_no_failure_and_nothing_is_repeated() {
    let world = World::new(1).await.takes(45 * SECOND);
    let slow = Settings { slow_after: MINUTE, ..settings() };
    let worker = world.start_with("a", slow).await;
    let fed = world.feed_for(0, 1, 1_800).await;
    world.fleet.all_of(fed, 24 * 60 * MINUTE).await;
    world.exactly_once(fed);
    assert_eq!(warnings(&world), []);
    let failures = world.events(|_, event| matches!(event, Event::ReadFailed { .. }));
    assert_eq!(failures, 0, "not even a word");
    worker.shutdown(DEADLINE).await.unwrap();
}

/// The lease is handed off between two healthy workers.
#[tokio::test(start_paused = true)]
async fn s05_a_shard_that_is_handed_over_goes_on_in_seconds_without_a_loss_or_a_repeat() {
    let world = World::new(4).await;
    let a = world.start("a").await;
    let feeding = world.feed_for(0, 20, 300);
    let moving = async {
        tokio::time::sleep(MINUTE).await;
        let b = world.start("b").await;
        tokio::time::sleep(2 * MINUTE).await;
        a.shutdown(DEADLINE).await.unwrap();
        b
    };
    let (fed, b) = tokio::join!(biased; feeding, moving);
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    assert!(
        world.events(|worker, event| worker == "b" && matches!(event, Event::ShardStarted { .. }))
            >= 4
    );
    for (shard, moments) in world.fleet.deliveries() {
        let longest = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest <= 10 * SECOND, "{shard} stood still for {longest:?}");
    }
    b.shutdown(DEADLINE).await.unwrap();
}

/// One worker is cut off from the lease table only, and still receives events of its shard.
#[tokio::test(start_paused = true)]
async fn s05_who_lost_its_lease_lets_the_stream_go_and_the_next_owner_is_not_disturbed() {
    let world = World::new(1).await;
    let a = world.start("a").await;
    world
        .fleet
        .until_event("a reads", |_, event| matches!(event, Event::ShardStarted { .. }))
        .await;
    let b = world.start("b").await;
    let fed = world.feed_for(0, 5, 30).await;
    world.fleet.all_of(fed, SECOND).await;
    world.local.faults().partition("a-leases");
    let cut = Instant::now();
    let feeding = async {
        let fed = world.feed_for(fed, 5, 60).await;
        let (ours, theirs) = (world.subscriptions("b"), world.subscriptions("a"));
        let fed = world.feed_for(fed, 5, 600).await;
        (fed, world.subscriptions("b") - ours, world.subscriptions("a") - theirs)
    };
    let by_b = |seen: &Seen| matches!(seen, Seen::Record(worker, ..) if worker == "b");
    let delivering = async {
        world.fleet.until("b delivers", |log| log.iter().any(by_b)).await;
        cut.elapsed()
    };
    let ((fed, renewals, steals), took) = tokio::join!(biased; feeding, delivering);
    world.fleet.all_of(fed, MINUTE).await;
    let lease = crate::fleet::LEASE;
    assert!(took <= 2 * lease + 6 * SECOND, "b delivered after {took:?}");
    assert_eq!(steals, 0, "a subscribes to what it does not own");
    assert!(renewals <= 3, "only the renewals of five minutes: {renewals}");
    // Only records that `a` had in flight when it was cut off may be repeated.
    assert!(world.fleet.repeats() <= 5 * 30, "{}", world.fleet.repeats());
    world.local.faults().heal("a-leases");
    for worker in [a, b] {
        worker.shutdown(DEADLINE).await.unwrap();
    }
}

/// Six times a connection dies without an error.
#[tokio::test(start_paused = true)]
async fn s03_a_worker_whose_connections_say_nothing_goes_on_by_itself() {
    let world = World::new(2).await;
    let silent = local_aws::Rule::new(local_aws::Effect::FallSilent(10));
    world.local.faults().add(silent.operation("SubscribeToShard").times(6));
    let worker = world.start("a").await;
    let fed = world.feed_for(0, 4, 600).await;
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    assert_eq!(warnings(&world), []);
    worker.shutdown(DEADLINE).await.unwrap();
}
