//! The initial position: resolved by the service's clock, regardless of other clocks, and never in the
//! future. On in-process local services, through the real clients.

use std::time::Duration;

use kcl_lite::lease::store::LeaseStore as _;
use kcl_lite::lease::{Lease, LeaseChange, LeaseWrite, WriteId};
use kcl_lite::stream::Stream as _;
use kcl_lite::{Checkpoint, Event, InitialPosition, Settings, Timestamp, reset};
use local_aws::{Clock, LocalAws};
use tokio::time::sleep;

use crate::streams::{Seen, builder, create, operator, put, run, settings, stop};

const HOUR_MS: i64 = 3_600_000;

fn starting(position: InitialPosition) -> Settings {
    Settings { initial_position: position, ..settings() }
}

async fn rows(aws: &LocalAws) -> Vec<Lease> {
    operator(aws).0.list().await.unwrap().leases
}

fn is_replaced(event: &Event) -> bool {
    matches!(event, Event::InitialPositionReplaced { .. } | Event::LeaseStartReplaced { .. })
}

#[tokio::test(start_paused = true)]
async fn how_long_ago_counts_by_the_services_clock_from_the_first_start() {
    for ahead in [-HOUR_MS, HOUR_MS] {
        let clock = Clock::starting_at(Clock::new().now_ms() + ahead);
        let aws = LocalAws::builder().clock(clock).build().unwrap();
        let seen = Seen::default();
        create(&aws, "north").await;
        put(&aws, "north", "too old").await;
        sleep(Duration::from_secs(360)).await;
        put(&aws, "north", "wanted").await;
        sleep(Duration::from_secs(240)).await;
        let five_minutes = starting(InitialPosition::Ago(Duration::from_secs(300)));
        let worker = run(builder(&aws, "north", "a"), five_minutes.clone(), &seen).await;
        let then = aws.clock().now_ms() - 300_000;
        seen.count(1).await;
        let anchor = rows(&aws).await[0].anchor.unwrap().as_millis();
        assert!((then - 10_000..=then).contains(&anchor), "{then} {anchor}");
        // Later starts continue from there, and the start of another worker changes nothing.
        sleep(Duration::from_secs(60)).await;
        let other = run(builder(&aws, "north", "b"), five_minutes, &seen).await;
        assert_eq!(seen.events(is_replaced), 0);
        stop(&other).await;
        stop(&worker).await;
        assert_eq!(seen.all(), ["north wanted"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_younger_than_the_start_is_read_from_its_beginning() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    put(&aws, "north", "1").await;
    let a_day = starting(InitialPosition::Ago(Duration::from_secs(86_400)));
    let worker = run(builder(&aws, "north", "a"), a_day, &seen).await;
    seen.count(1).await;
    stop(&worker).await;
}

#[tokio::test(start_paused = true)]
async fn a_time_that_is_still_to_come_is_replaced_by_the_services_present_time() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    put(&aws, "north", "before").await;
    sleep(Duration::from_secs(60)).await;
    let in_an_hour = Timestamp::from_millis(aws.clock().now_ms() + HOUR_MS);
    let later = starting(InitialPosition::AtTimestamp(in_an_hour));
    let worker = run(builder(&aws, "north", "a"), later, &seen).await;
    assert_eq!(seen.events(is_replaced), 1);
    let now = Timestamp::from_millis(aws.clock().now_ms());
    assert!(rows(&aws).await[0].anchor.unwrap() <= now);
    put(&aws, "north", "after").await;
    seen.count(1).await;
    assert_eq!(seen.all(), ["north after"]);

    let (store, stream) = operator(&aws);
    reset::reset(&store, &stream, InitialPosition::AtTimestamp(in_an_hour)).await.unwrap();
    let now = Timestamp::from_millis(aws.clock().now_ms());
    assert!(rows(&aws).await[0].anchor.unwrap() <= now);
    put(&aws, "north", "skipped ahead").await;
    seen.until("the newest", |seen| seen.all().contains(&"north skipped ahead".to_owned())).await;
    stop(&worker).await;
}

/// A row as an earlier version stored it on a machine whose clock was an hour ahead: the requested time is
/// unknown, so everything that may have been meant is delivered.
#[tokio::test(start_paused = true)]
async fn a_stored_start_that_is_still_to_come_is_replaced_also_under_a_running_worker() {
    let (aws, seen) = (LocalAws::in_memory(), Seen::default());
    create(&aws, "north").await;
    let running = run(builder(&aws, "north", "a"), settings(), &seen).await;
    seen.until("it holds the lease", |seen| seen.events(is_started) == 1).await;
    let (store, stream) = operator(&aws);
    let now = stream.describe().await.unwrap().at.unwrap().as_millis();
    let row = rows(&aws).await.remove(0);
    // The owner renews in between.
    for counter in row.counter..row.counter + 100 {
        let anchor = Some(Timestamp::from_millis(now + HOUR_MS));
        let checkpoint = Checkpoint::AtTimestamp;
        let change = LeaseChange::Reset { counter, checkpoint, anchor };
        let id = WriteId::new("an earlier version");
        store.write(&LeaseWrite { key: row.key.clone(), id, change }).await.unwrap();
        if rows(&aws).await[0].anchor == anchor {
            break;
        }
    }
    let is_refused = |event: &Event| matches!(event, Event::ReadFailed { .. });
    seen.until("the service refuses the time", |seen| seen.events(is_refused) > 0).await;
    put(&aws, "north", "1").await;

    let latest = starting(InitialPosition::Latest);
    let next = run(builder(&aws, "north", "b"), latest, &seen).await;
    assert_eq!(seen.events(is_replaced), 1);
    seen.count(1).await;
    stop(&next).await;
    stop(&running).await;
    assert_eq!(seen.all(), ["north 1"]);
}

fn is_started(event: &Event) -> bool {
    matches!(event, Event::ShardStarted { .. })
}
