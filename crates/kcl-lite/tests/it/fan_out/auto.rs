//! Switching between polling and fan-out: when, why, and without losses or repeats.

use kcl_lite::stream::{Fetching, Notice};
use local_aws::{Effect, Rule};

use super::*;

fn auto() -> Settings {
    Settings { retrieval: Retrieval::auto(), ..settings() }
}

fn changes(world: &World) -> Vec<(Fetching, String)> {
    let events = world.fleet.events().into_iter().filter_map(|(_, event)| match event {
        Event::RetrievalChanged { to, reason, .. } => Some((to, reason)),
        _ => None,
    });
    events.collect()
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_keeps_up_is_polled_and_no_consumer_is_registered() {
    let world = World::new(2).await;
    let worker = world.start_with("a", auto()).await;
    let fed = world.feed_for(0, 10, 600).await;
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    assert_eq!(changes(&world), []);
    assert_eq!(world.local.requests().count("a", "RegisterStreamConsumer"), 0);
    worker.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_others_read_too_is_subscribed_to_and_polled_again_when_it_is_calm() {
    let world = World::new(1).await;
    let worker = world.start_with("a", auto()).await;
    let fed = world.feed_for(0, 10, 60).await;
    let throttle = Rule::new(Effect::Throttle).operation("GetRecords");
    let id = world.local.faults().add(throttle);
    let fed = world.feed_for(fed, 10, 120).await;
    world.local.faults().remove(id);
    let fed = world.feed_for(fed, 10, 600).await;
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    let [(to, why), (back, calm)] = &changes(&world)[..] else { panic!("{:?}", changes(&world)) };
    assert_eq!((*to, *back), (Fetching::FanOut, Fetching::Polling));
    assert_eq!(why, "throttled 5 times in 60 s by other consumers");
    assert_eq!(calm, "caught up for 5 min");
    worker.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn l17_the_next_reader_starts_where_the_last_one_stood() {
    let local = LocalAws::in_memory();
    let writer = create(&local, 1).await;
    let retrieval = Retrieval::Auto { consumer: named(APPLICATION) };
    let options = KinesisOptions { retrieval, ..KinesisOptions::default() };
    let stream = KinesisStream::new(&local.sdk_config(READER), STREAM, options);
    let mut reader = stream.open(&shard(0), Cursor::Horizon);
    polling::put(&writer, 0..5).await;
    assert_eq!(polling::read(&mut reader, 5, &[]).await, [0, 1, 2, 3, 4]);
    local.faults().add(Rule::new(Effect::Throttle).operation("GetRecords").times(5));
    for _ in 0..5 {
        assert_eq!(reader.next().await.unwrap_err().kind, ServiceErrorKind::Throttled);
    }
    assert!(matches!(reader.notice(), Some(Notice::RetrievalChanged { .. })));
    polling::put(&writer, 5..8).await;
    assert_eq!(polling::read(&mut reader, 3, &[]).await, [5, 6, 7]);
    assert_eq!(local.requests().count(READER, "SubscribeToShard"), 1);
}

/// Switches back and forth every few minutes, with a resharding in between.
#[tokio::test(start_paused = true)]
async fn l17_changing_back_and_forth_loses_and_repeats_nothing() {
    let world = World::new(2).await;
    let worker = world.start_with("a", auto()).await;
    let mut fed = 0;
    for round in 0..3 {
        let throttle = Rule::new(Effect::Throttle).operation("GetRecords");
        let id = world.local.faults().add(throttle);
        fed = world.feed_for(fed, 10, 120).await;
        world.local.faults().remove(id);
        if round == 1 {
            polling::split(&world.writer, &"shardId-000000000001".into()).await;
        }
        fed = world.feed_for(fed, 5, 780).await;
    }
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    assert!(changes(&world).len() >= 5, "{:?}", changes(&world));
    worker.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_is_refused_leaves_the_shard_polled_and_says_so() {
    let world = World::new(1).await;
    let denied = Effect::FailBefore { code: "AccessDeniedException".into(), status: 400 };
    world.local.faults().add(Rule::new(denied).operation("RegisterStreamConsumer"));
    let worker = world.start_with("a", auto()).await;
    let throttle = Rule::new(Effect::Throttle).operation("GetRecords").times(12);
    world.local.faults().add(throttle);
    let fed = world.feed_for(0, 10, 300).await;
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    let [(Fetching::FanOut, _), (Fetching::Polling, why)] = &changes(&world)[..] else {
        panic!("{:?}", changes(&world));
    };
    assert!(why.contains("`kinesis:RegisterStreamConsumer`"), "{why}");
    worker.shutdown(DEADLINE).await.unwrap();
}
