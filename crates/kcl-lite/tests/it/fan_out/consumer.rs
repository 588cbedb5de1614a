//! The registered consumer: found, registered, shared, denied, and deleted while in use.

use kcl_lite::ErrorKind;
use local_aws::{Effect, Rule};

use super::*;

async fn consumers(world: &World) -> Vec<(String, String)> {
    let summary = world.writer.describe_stream_summary().stream_name(STREAM).send().await.unwrap();
    let stream = summary.stream_description_summary.unwrap().stream_arn;
    let reply = world.writer.list_stream_consumers().stream_arn(stream).send().await.unwrap();
    let consumers = reply.consumers.unwrap_or_default().into_iter();
    consumers.map(|consumer| (consumer.consumer_name, consumer.consumer_arn)).collect()
}

fn registrations(world: &World) -> usize {
    world.events(|_, event| matches!(event, Event::ConsumerRegistered { .. }))
}

#[tokio::test(start_paused = true)]
async fn workers_that_start_together_share_one_consumer_called_after_the_application() {
    let world = World::new(8).await;
    let names = ["a", "b", "c", "d", "e", "f"];
    let starting = names.map(|name| world.start(name));
    let workers = futures_util::future::join_all(starting).await;
    assert_eq!(registrations(&world), 1);
    let found = consumers(&world).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, APPLICATION);
    let fed = world.feed_for(0, 20, 60).await;
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    for worker in workers {
        worker.shutdown(DEADLINE).await.unwrap();
    }
    assert_eq!(consumers(&world).await.len(), 1, "it is never deregistered");
    let again = world.start("g").await;
    assert_eq!(registrations(&world), 1, "it was found");
    again.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_consumer_given_by_its_arn_is_used_without_a_look() {
    let world = World::new(1).await;
    let _a =
        world.start_with("a", Settings { retrieval: of(named("billing")), ..settings() }).await;
    let arn = consumers(&world).await[0].1.clone();
    let settings = Settings { retrieval: of(StreamConsumer::Arn(arn)), ..settings() };
    world.feed(0..5).await;
    world.fleet.all_of(5, MINUTE).await;
    let _b = world.start_with("b", settings).await;
    let asked = |operation| world.local.requests().count("b", operation);
    assert_eq!((asked("DescribeStreamConsumer"), asked("RegisterStreamConsumer")), (0, 0));
}

fn of(consumer: StreamConsumer) -> Retrieval {
    Retrieval::FanOut { consumer }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_at_the_start_names_the_action_and_the_remedy() {
    for (operation, code, kind, words) in [
        (
            "DescribeStreamConsumer",
            "AccessDeniedException",
            ErrorKind::Denied,
            "`kinesis:DescribeStreamConsumer`",
        ),
        (
            "RegisterStreamConsumer",
            "AccessDeniedException",
            ErrorKind::Denied,
            "`kinesis:RegisterStreamConsumer`",
        ),
        (
            "RegisterStreamConsumer",
            "LimitExceededException",
            ErrorKind::Unavailable,
            "deregister one",
        ),
        (
            "DescribeStreamConsumer",
            "InternalFailure",
            ErrorKind::Unavailable,
            "waiting for the stream consumer",
        ),
    ] {
        let world = World::new(1).await;
        let effect = Effect::FailBefore { code: code.to_owned(), status: 400 };
        let effect = if code == "InternalFailure" { Effect::Disconnect } else { effect };
        world.local.faults().add(Rule::new(effect).operation(operation));
        let error = world.try_start("a", settings()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_application_whose_name_no_consumer_can_have_is_told_so() {
    let retrieval = Retrieval::fan_out();
    let settings = Settings { retrieval, ..settings() };
    let built = Worker::builder("my rides", STREAM).settings(settings).build().await;
    let error = built.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`my rides`"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn registrations_that_are_throttled_for_a_moment_are_made_in_the_end() {
    let world = World::new(1).await;
    let throttle = Rule::new(Effect::Throttle).operation("RegisterStreamConsumer").times(3);
    world.local.faults().add(throttle);
    let worker = world.start("a").await;
    assert_eq!(registrations(&world), 1);
    worker.shutdown(DEADLINE).await.unwrap();
}

/// All workers lose their consumer at once: one registers it again, all continue, and an event is emitted.
#[tokio::test(start_paused = true)]
async fn l08_a_consumer_that_is_deleted_under_a_running_fleet_is_registered_again() {
    let world = World::new(6).await;
    let workers = [world.start("a").await, world.start("b").await];
    let fed = world.feed_for(0, 10, 60).await;
    let arn = consumers(&world).await[0].1.clone();
    world.writer.deregister_stream_consumer().consumer_arn(&arn).send().await.unwrap();
    let deleted = Instant::now();
    let fed = world.feed_for(fed, 10, 60).await;
    world.fleet.all_of(fed, MINUTE).await;
    world.exactly_once(fed);
    let ended = world.events(|_, event| matches!(event, Event::ShardEnded { .. }));
    assert_eq!(ended, 0);
    assert_eq!(registrations(&world), 2, "one for both workers, after the one at the start");
    let now = consumers(&world).await;
    assert!(now.len() == 1 && now[0].1 != arn, "{now:?}");
    for (shard, moments) in world.fleet.deliveries() {
        let back = moments.iter().find(|at| **at > deleted + 2 * SECOND).unwrap();
        assert!(*back - deleted <= 25 * SECOND, "{shard}: {:?}", *back - deleted);
    }
    for worker in workers {
        worker.shutdown(DEADLINE).await.unwrap();
    }
}

/// The reader that registered it has given up waiting for it: the next one that finds it emits the event.
#[tokio::test(start_paused = true)]
async fn a_registration_is_reported_also_when_the_consumer_comes_much_later() {
    let world = World::new(1).await;
    let worker = world.start("a").await;
    let arn = consumers(&world).await[0].1.clone();
    let asks = Rule::new(Effect::Disconnect).operation("DescribeStreamConsumer");
    world.local.faults().add(asks.skip(1).times(30));
    world.writer.deregister_stream_consumer().consumer_arn(&arn).send().await.unwrap();
    let fed = world.feed_for(0, 10, 60).await;
    world.fleet.all_of(fed, 5 * MINUTE).await;
    assert_eq!(world.local.requests().count("a", "RegisterStreamConsumer"), 2);
    assert_eq!(registrations(&world), 2);
    worker.shutdown(DEADLINE).await.unwrap();
}
