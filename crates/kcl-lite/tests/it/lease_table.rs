//! A lease table that was changed by hand: a worker reports the rows that it cannot use and continues with
//! the rest; without a table it stops. Through the real clients, on paused time.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use kcl_lite::{Error, ErrorKind, Event, LeaseKey, WorkerHandle, WorkerState};
use local_aws::LocalAws;

use crate::streams::{Seen, builder, create, keys, put, run, settings, stop};

/// A limit on paused time, which only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(600);

fn table(aws: &LocalAws) -> Client {
    Client::new(&aws.sdk_config("operator"))
}

async fn set_counter(aws: &LocalAws, key: &str, counter: &str) {
    let update = table(aws).update_item().table_name("rides").update_expression("SET #c = :c");
    let update = update.key("leaseKey", AttributeValue::S(key.to_owned()));
    let update = update.expression_attribute_names("#c", "leaseCounter");
    let counter = AttributeValue::N(counter.to_owned());
    update.expression_attribute_values(":c", counter).send().await.unwrap();
}

async fn ended(worker: &WorkerHandle) -> Error {
    tokio::time::timeout(PATIENCE, worker.stopped()).await.unwrap().unwrap_err()
}

fn is_lost(event: &Event) -> bool {
    matches!(event, Event::LeaseLost { .. })
}

#[tokio::test(start_paused = true)]
async fn a_counter_from_which_no_lease_can_go_on_is_reported_and_stops_its_shard_only() {
    for counter in ["18446744073709551615", "18446744073709551614", "99999999999999999999999999"] {
        let (aws, seen) = (LocalAws::in_memory(), Seen::default());
        create(&aws, "north").await;
        create(&aws, "south").await;
        let both = || builder(&aws, "north", "a").and_stream("south");
        let worker = run(both(), settings(), &seen).await;
        put(&aws, "north", "1").await;
        put(&aws, "south", "1").await;
        seen.count(2).await;
        let north = keys(&aws).await.into_iter().find(|key| key.contains(":north:")).unwrap();
        set_counter(&aws, &north, counter).await;
        seen.until("it is lost", |seen| seen.events(is_lost) == 1).await;
        put(&aws, "south", "2").await;
        seen.count(3).await;
        stop(&worker).await;

        let worker = run(both(), settings(), &seen).await;
        put(&aws, "south", "3").await;
        seen.count(4).await;
        let health = worker.health();
        let fault = &health.shards[&LeaseKey::from(north.as_str())];
        assert!(fault.contains("`leaseCounter` is ") && fault.contains(counter), "{fault}");
        assert_eq!(health.shards.len(), 1, "{health:?}");

        // After the repair, it continues where it was.
        set_counter(&aws, &north, "1").await;
        put(&aws, "north", "2").await;
        seen.until("north goes on", |seen| seen.all().contains(&"north 2".to_owned())).await;
        stop(&worker).await;
        let expected = ["north 1", "north 2", "south 1", "south 2", "south 3"];
        let mut all = seen.all();
        // The lease may be lost before the position after `north 1` has been stored.
        all.dedup();
        assert_eq!(all, expected, "{counter}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_deleted_ends_every_worker_with_a_remedy_and_is_made_by_the_next_start() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    create(&aws, "south").await;
    let both = |id| builder(&aws, "north", id).and_stream("south");
    let one = run(both("a"), settings(), &seen).await;
    let two = run(both("b"), settings(), &seen).await;
    put(&aws, "north", "1").await;
    put(&aws, "south", "1").await;
    seen.count(2).await;
    table(&aws).delete_table().table_name("rides").send().await.unwrap();
    for worker in [&one, &two] {
        let error = ended(worker).await;
        assert_eq!(error.kind(), ErrorKind::Missing);
        let text = error.to_string();
        assert_eq!(worker.health().state, WorkerState::Failed { reason: text.clone() });
        for part in ["the lease table `rides`", "was deleted while", "restart the workers"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let made = ["a", "b"].map(|id| aws.requests().count(id, "CreateTable"));
    assert_eq!(made, [1, 0], "nobody makes it again");

    // Like a first start, which here reads from the oldest record.
    let next = run(both("c"), settings(), &seen).await;
    seen.count(4).await;
    stop(&next).await;
    assert_eq!(seen.all(), ["north 1", "north 1", "south 1", "south 1"]);
}
