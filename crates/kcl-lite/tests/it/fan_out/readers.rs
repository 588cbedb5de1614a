//! A single reader and the fates of its subscriptions.

use local_aws::{Effect, Rule};

use super::*;
use crate::polling::{fail, put, split};

fn rule(effect: Effect) -> Rule {
    Rule::new(effect).client(READER).operation("SubscribeToShard")
}

/// All errors of SubscribeToShard in the API reference, and all failures of a connection.
fn refusals() -> Vec<Effect> {
    let codes = [
        ("LimitExceededException", 400),
        ("ResourceInUseException", 400),
        ("ResourceNotFoundException", 400),
        ("InvalidArgumentException", 400),
        ("AccessDeniedException", 400),
        ("ExpiredTokenException", 400),
        ("ThrottlingException", 400),
        ("KMSThrottlingException", 400),
        ("KMSDisabledException", 400),
        ("KMSInvalidStateException", 400),
        ("KMSAccessDeniedException", 400),
        ("KMSNotFoundException", 400),
        ("KMSOptInRequired", 400),
        ("InternalFailureException", 500),
        ("ServiceUnavailable", 503),
    ];
    let mut all: Vec<_> = codes.map(|(code, status)| fail(code, status)).into();
    // A refused connection, a reply that breaks in its first frame, and no reply at all.
    all.extend([Effect::Disconnect, Effect::DropHalfReply, Effect::Hang]);
    all
}

#[tokio::test(start_paused = true)]
async fn s04_whatever_the_first_subscriptions_are_refused_with_the_shard_is_read() {
    for effect in refusals() {
        let mut world = Subscribed::new().await;
        put(&world.writer, 0..5).await;
        let id = world.local.faults().add(rule(effect.clone()).times(20));
        let mut errors = 0;
        let seen = loop {
            match world.reader.next().await {
                Ok(Read::Records { records, .. }) => break polling::numbers(&records),
                Ok(Read::End { .. }) => panic!("{effect:?} ended the shard"),
                Err(_) => errors += 1,
            }
        };
        let delivered = Instant::now();
        assert_eq!(seen, [0, 1, 2, 3, 4], "{effect:?}");
        assert_eq!(world.local.faults().fired(id), 20, "{effect:?}");
        let calls = world.calls();
        // A subscription whose reply broke blocks a new one for five seconds.
        let most = if effect == Effect::DropHalfReply { 25 } else { 21 };
        assert!((21..=most).contains(&calls.len()), "{effect:?}: {}", calls.len());
        assert_eq!(errors, calls.len() - 1, "each failure is reported: {effect:?}");
        for pair in calls.windows(2) {
            assert!(
                pair[1] - pair[0] >= SECOND,
                "{effect:?}: two calls in {:?}",
                pair[1] - pair[0]
            );
        }
        assert!(delivered - *calls.last().unwrap() <= 5 * SECOND, "{effect:?}");
        // No more than five seconds between two calls, besides the duration of the calls.
        let waits: Duration = calls.windows(2).map(|pair| pair[1] - pair[0]).sum();
        assert!(waits <= 20 * (5 * SECOND + 10 * SECOND), "{effect:?}: {waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s05_a_place_that_another_one_holds_is_asked_for_every_second_and_no_more_often() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..1).await;
    let mut other =
        noted_stream(&world.local, &Moments::default()).open(&shard(0), Cursor::Horizon);
    other.next().await.unwrap();
    let since = Instant::now();
    assert_eq!(world.read(1, &[ServiceErrorKind::NotReady]).await, [0]);
    assert!(since.elapsed() <= 6 * SECOND + SECOND, "{:?}", since.elapsed());
    let calls = world.calls();
    assert!(calls.len() >= 5, "{calls:?}");
    assert!(calls.windows(2).all(|pair| pair[1] - pair[0] >= SECOND), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn s03_a_subscription_that_falls_silent_is_recreated_within_forty_seconds() {
    let mut world = Subscribed::new().await;
    world.local.faults().add(rule(Effect::FallSilent(20)).times(1));
    let mut seen = Vec::new();
    let mut longest = Duration::ZERO;
    for number in 0..60 {
        put(&world.writer, number..number + 1).await;
        let since = Instant::now();
        seen.extend(world.read(1, &[ServiceErrorKind::Unavailable]).await);
        longest = longest.max(since.elapsed());
    }
    assert_eq!(seen, (0..60).collect::<Vec<_>>(), "0 lost, 0 repeated");
    assert!(longest >= 30 * SECOND && longest <= 40 * SECOND, "{longest:?}");
    assert_eq!(world.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn s03_ten_minutes_of_back_pressure_are_no_silence() {
    let mut world = Subscribed::new().await;
    let mut seen = Vec::new();
    for round in 0..6 {
        put(&world.writer, round * 10..(round + 1) * 10).await;
        // No error in between: nothing is wrong.
        seen.extend(world.read(10, &[]).await);
        tokio::time::sleep(10 * MINUTE).await;
    }
    assert_eq!(seen, (0..60).collect::<Vec<_>>());
    // The service ends each after five minutes; the reader abandons none earlier.
    assert!(world.calls().len() <= 2 * 6 + 1, "{:?}", world.calls().len());
}

/// Half an hour: six ends after five minutes and as many renewals, with a record every second.
#[tokio::test(start_paused = true)]
async fn l17_subscriptions_are_renewed_without_a_gap_a_loss_or_a_repeat() {
    let mut world = Subscribed::new().await;
    let writer = world.writer.clone();
    let start = Instant::now();
    let feeding = async {
        for number in 0..1_800 {
            put(&writer, number..number + 1).await;
            tokio::time::sleep(SECOND).await;
        }
    };
    let reading = async {
        let (mut seen, mut late) = (Vec::new(), Duration::ZERO);
        while seen.len() < 1_800 {
            for number in world.read(1, &[]).await {
                let put_at = start + SECOND * number;
                late = late.max(Instant::now().saturating_duration_since(put_at));
                seen.push(number);
            }
        }
        (seen, late)
    };
    let ((), (seen, late)) = tokio::join!(biased; feeding, reading);
    assert_eq!(seen, (0..1_800).collect::<Vec<_>>());
    assert!(late < SECOND / 10, "a record was {late:?} late");
    let calls = world.calls();
    assert_eq!(calls.len(), 7, "one every four and a half minutes");
    let lives = calls.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(lives.clone().all(|life| life < 5 * MINUTE), "{:?}", lives.collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_leaves_the_subscription_that_there_is() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..1).await;
    world.read(1, &[]).await;
    world.local.faults().add(rule(fail("LimitExceededException", 400)).times(4));
    let writer = world.writer.clone();
    let feeding = async {
        for number in 1..=400 {
            put(&writer, number..number + 1).await;
            tokio::time::sleep(SECOND).await;
        }
    };
    let start = Instant::now();
    let ((), (seen, errors)) = tokio::join!(biased; feeding, world.read_for(7 * MINUTE));
    assert_eq!(seen, (1..=400).collect::<Vec<_>>());
    assert_eq!(errors, [ServiceErrorKind::Throttled; 4]);
    let calls = world.calls();
    assert!(calls[5] - start < 5 * MINUTE, "it was renewed before the old one ended");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_is_never_renewed_is_followed_when_the_service_ends_it() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..1).await;
    world.read(1, &[]).await;
    // No renewal succeeds until the service has ended the subscription.
    let id = world.local.faults().add(rule(fail("InternalFailureException", 500)));
    let (seen, errors) = world.read_for(5 * MINUTE + 10 * SECOND).await;
    assert!(seen.is_empty(), "{seen:?}");
    assert!(!errors.is_empty());
    world.local.faults().remove(id);
    put(&world.writer, 1..3).await;
    let since = Instant::now();
    assert_eq!(world.read(2, &[]).await, [1, 2]);
    assert!(since.elapsed() <= 5 * SECOND, "{:?}", since.elapsed());
}

/// Every starting position, against the same records.
#[tokio::test(start_paused = true)]
async fn a_subscription_starts_where_the_cursor_says() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..3).await;
    tokio::time::sleep(MINUTE).await;
    let between = kcl_lite::Timestamp::from_millis(world.local.clock().now_ms());
    tokio::time::sleep(MINUTE).await;
    put(&world.writer, 3..5).await;
    let Read::Records { records, .. } = world.reader.next().await.unwrap() else { panic!() };
    let number = |index: usize| records[index].sequence_number.clone();
    for (cursor, expected) in [
        (Cursor::Horizon, &[0, 1, 2, 3, 4][..]),
        (Cursor::Timestamp(between), &[3, 4]),
        (Cursor::At(number(1)), &[1, 2, 3, 4]),
        (Cursor::After(number(1)), &[2, 3, 4]),
    ] {
        tokio::time::sleep(10 * SECOND).await;
        world.reader = world.stream.open(&shard(0), cursor.clone());
        assert_eq!(world.read(expected.len(), &[]).await, expected, "{cursor:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn d12_a_continuation_without_records_is_where_the_next_subscription_starts() {
    let mut world = Subscribed::new().await;
    // Nothing for three subscriptions, then a record: it is delivered once, by whichever subscription.
    let (seen, errors) = world.read_for(14 * MINUTE).await;
    assert_eq!((seen, errors), (vec![], vec![]));
    put(&world.writer, 0..1).await;
    let (seen, errors) = world.read_for(14 * MINUTE).await;
    assert_eq!((seen, errors), (vec![0], vec![]));
}

#[tokio::test(start_paused = true)]
async fn s06_a_subscription_that_died_unread_is_followed_without_a_word() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..1).await;
    world.read(1, &[]).await;
    // The processor takes half a minute, during which the connection is lost.
    world.local.faults().partition(READER);
    tokio::time::sleep(30 * SECOND).await;
    world.local.faults().heal(READER);
    put(&world.writer, 1..2).await;
    let since = Instant::now();
    assert_eq!(world.read(1, &[]).await, [1]);
    assert!(since.elapsed() <= 2 * SECOND, "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn l08_a_missing_stream_or_consumer_is_an_error_and_never_the_end_of_a_shard() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..3).await;
    world.local.faults().add(rule(fail("ResourceNotFoundException", 400)).times(8));
    for _ in 0..8 {
        assert_eq!(world.reader.next().await.unwrap_err().kind, ServiceErrorKind::Missing);
    }
    assert_eq!(world.read(3, &[]).await, [0, 1, 2]);
    world
        .writer
        .delete_stream()
        .stream_name(STREAM)
        .enforce_consumer_deletion(true)
        .send()
        .await
        .unwrap();
    let (seen, errors) = world.read_for(MINUTE).await;
    assert!(seen.is_empty(), "{seen:?}");
    assert!(errors.iter().all(|kind| *kind == ServiceErrorKind::Missing), "{errors:?}");
    assert!(!errors.is_empty());
}

#[tokio::test(start_paused = true)]
async fn l08_a_split_parent_gives_its_records_and_then_its_two_children() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..25).await;
    split(&world.writer, &shard(0)).await;
    assert_eq!(world.read(25, &[]).await, (0..25).collect::<Vec<_>>());
    for _ in 0..2 {
        let Read::End { children } = world.reader.next().await.unwrap() else { panic!("no end") };
        let ids: Vec<_> = children.iter().map(|child| child.id.clone()).collect();
        assert_eq!(ids, [shard(1), shard(2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn l08_a_shard_that_is_closed_while_it_is_subscribed_to_ends_with_its_last_record() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..5).await;
    assert_eq!(world.read(5, &[]).await, (0..5).collect::<Vec<_>>());
    put(&world.writer, 5..9).await;
    split(&world.writer, &shard(0)).await;
    assert_eq!(world.read(4, &[]).await, (5..9).collect::<Vec<_>>());
    assert!(matches!(world.reader.next().await, Ok(Read::End { children }) if children.len() == 2));
    assert_eq!(world.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn l08_a_shard_that_the_service_has_forgotten_ends_with_the_children_that_are_listed() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..3).await;
    split(&world.writer, &shard(0)).await;
    world.local.clock().advance(Duration::from_secs(25 * 3600));
    let children = loop {
        match world.reader.next().await {
            Ok(Read::End { children }) => break children,
            Ok(Read::Records { records, .. }) => assert!(records.is_empty(), "they are trimmed"),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(children.iter().map(|child| &child.id).collect::<Vec<_>>(), [&shard(1), &shard(2)]);
}

/// The subscriptions of a closed shard end without an end-of-shard event: a listing shows that it is
/// closed, and the rest is polled.
#[tokio::test(start_paused = true)]
async fn l08_a_closed_shard_whose_subscriptions_tell_nothing_is_read_to_its_end_by_polling() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..7).await;
    split(&world.writer, &shard(0)).await;
    world.local.faults().add(rule(Effect::FallSilent(0)));
    assert_eq!(world.read(7, &[ServiceErrorKind::Unavailable]).await, (0..7).collect::<Vec<_>>());
    let Ok(Read::End { children }) = world.reader.next().await else { panic!("no end") };
    assert_eq!(children.len(), 2);
}

/// An event at the tip dates from its arrival at the subscription, not from when the reader handled it: it
/// may have waited for long.
#[tokio::test(start_paused = true)]
async fn l17_an_event_that_waited_to_be_read_tells_nothing_of_the_time_in_which_it_waited() {
    let mut world = Subscribed::new().await;
    let made = Instant::now();
    world.reader.next().await.unwrap();
    tokio::time::sleep(MINUTE).await;
    world.reader.next().await.unwrap();
    let asked = world.reader.asked().unwrap();
    assert!(asked.saturating_duration_since(made) <= SECOND, "{:?}", asked - made);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_dropped_closes_its_stream() {
    let mut world = Subscribed::new().await;
    put(&world.writer, 0..1).await;
    world.read(1, &[]).await;
    // While it is active, another subscription of the same age replaces it, and it receives the error.
    drop(world.reader);
    world.reader = world.stream.open(&shard(0), Cursor::Horizon);
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(world.read(1, &[]).await, [0]);
    assert_eq!(world.calls().len(), 2);
}
