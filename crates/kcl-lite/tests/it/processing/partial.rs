//! Partly processed batches: which records are delivered again.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use kcl_lite::{Ack, Event, FailurePolicy, Settings};

use super::actor::{Actor, texts};
use super::shelf::Shelf;
use super::{DEADLINE, at, eager, put, shard, until_stored};
use crate::fleet::Fleet;

fn failed(attempts: u32) -> impl Fn(&str, &Event) -> bool {
    move |_, event| matches!(event, Event::ProcessorFailed { attempts: it, .. } if *it == attempts)
}

#[tokio::test(start_paused = true)]
async fn after_an_error_only_what_no_token_has_acknowledged_comes_again() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=8);
    let mut left = 4;
    let processor = Actor::failing(move |payload| {
        let fails = ["4", "6"].contains(&payload) && left > 0;
        left -= u32::from(fails);
        fails
    });
    let worker = processor.start(&fleet, fleet.stream.clone(), eager()).await;
    // Before the retry, not after it.
    fleet.until_event("the first failure", failed(1)).await;
    until_stored(&fleet, &at(3)).await;
    assert_eq!(processor.given().len(), 1);
    until_stored(&fleet, &at(8)).await;
    let given = texts(&[&[1, 2, 3, 4, 5, 6, 7, 8], &[4, 6], &[4, 6]]);
    assert_eq!(processor.given(), given);
    put(&fleet, 9..=9);
    until_stored(&fleet, &at(9)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(processor.given().last(), texts(&[&[9]]).last());
}

/// The row stores one position: records acknowledged after the first one in flight are repeated by the
/// next owner.
#[tokio::test(start_paused = true)]
async fn the_next_owner_starts_after_the_first_record_that_is_not_acknowledged() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=8);
    let processor = Actor::failing(|payload| payload == "4");
    let worker = processor.start(&fleet, fleet.stream.clone(), eager()).await;
    fleet.until_event("the second failure", failed(2)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.lease(&shard()).checkpoint, at(3));
    let next = Actor::failing(|_| false);
    let _worker = next.start(&fleet, fleet.stream.clone(), eager()).await;
    until_stored(&fleet, &at(8)).await;
    assert_eq!(next.given(), texts(&[&[4, 5, 6, 7, 8]]));
}

/// Creates a processor that keeps the token of record 2 and fails; returns the slot of that token.
fn keeper() -> (Actor, Arc<Mutex<Vec<Ack>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeps = Arc::clone(&kept);
    let processor = Actor::splitting(move |records| {
        let is_first = records.len() == 3;
        for (payload, ack) in records {
            if payload == "2" {
                keeps.lock().push(ack);
            } else if payload == "1" || !is_first {
                ack.acknowledge();
            }
        }
        if is_first { Err("the third of them fails".into()) } else { Ok(()) }
    });
    (processor, kept)
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_while_an_error_is_waited_out_does_not_come_again() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=3);
    let (processor, kept) = keeper();
    let _worker = processor.start(&fleet, fleet.stream.clone(), eager()).await;
    fleet.until_event("the failure", failed(1)).await;
    kept.lock().drain(..).for_each(Ack::acknowledge);
    until_stored(&fleet, &at(3)).await;
    assert_eq!(processor.given(), texts(&[&[1, 2, 3], &[3]]));
}

#[tokio::test(start_paused = true)]
async fn once_a_record_comes_again_its_earlier_token_has_no_effect() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=3);
    let (processor, kept) = keeper();
    let _worker = processor.start(&fleet, fleet.stream.clone(), eager()).await;
    fleet.within(DEADLINE, "it comes again", |_| kept.lock().len() == 2).await;
    assert_eq!(processor.given(), texts(&[&[1, 2, 3], &[2, 3]]));
    kept.lock().remove(0).acknowledge();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.lease(&shard()).checkpoint, at(1));
    kept.lock().remove(0).acknowledge();
    until_stored(&fleet, &at(3)).await;
    assert_eq!(processor.given().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_processor_after_a_panic_is_given_only_what_is_not_acknowledged() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=6);
    let mut left = 2;
    let processor = Actor::splitting(move |records| {
        for (payload, ack) in records {
            if payload != "2" || left == 0 {
                ack.acknowledge();
            }
        }
        left = u32::saturating_sub(left, 1);
        assert!(left == 0, "a panic of the test");
        Ok(())
    });
    let _worker = processor.start(&fleet, fleet.stream.clone(), eager()).await;
    until_stored(&fleet, &at(6)).await;
    // The first attempt panics, the second drops a token.
    assert_eq!(processor.given(), texts(&[&[1, 2, 3, 4, 5, 6], &[2], &[2]]));
    assert_eq!(fleet.count(failed(1)) + fleet.count(failed(2)), 2);
}

#[tokio::test(start_paused = true)]
async fn what_tokens_have_acknowledged_is_left_out_of_the_search_for_a_poison_record() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=16);
    // Even records are acknowledged at once; the others only with their whole batch.
    let processor = Actor::splitting(|records| {
        let is_bad = records.iter().any(|(payload, _)| payload == "5");
        for (payload, ack) in records {
            if !is_bad || payload.parse::<u32>().unwrap().is_multiple_of(2) {
                ack.acknowledge();
            }
        }
        if is_bad { Err("5 is among them".into()) } else { Ok(()) }
    });
    let failures = FailurePolicy::DeadLetter { attempts: 2 };
    let settings = Settings { failures, ..eager() };
    let _worker = processor.start(&fleet, fleet.stream.clone(), settings).await;
    until_stored(&fleet, &at(16)).await;
    let given = processor.given();
    let all: Vec<u32> = (1..=16).collect();
    let expected: [&[u32]; 9] = [
        &all,
        &[1, 3, 5, 7, 9, 11, 13, 15],
        &[1, 3, 5, 7],
        &[1, 3],
        &[5, 7],
        &[5],
        &[5],
        &[7],
        &[9, 11, 13, 15],
    ];
    assert_eq!(given, texts(&expected));
    let letters = fleet.events().into_iter().filter_map(|(_, event)| match event {
        Event::DeadLettered { position, .. } => Some(position.to_string()),
        _ => None,
    });
    assert_eq!(letters.collect::<Vec<_>>(), ["5"]);
}

#[tokio::test(start_paused = true)]
async fn records_of_an_aggregate_come_again_one_by_one() {
    let fleet = Fleet::new(1);
    let mut left = 3;
    let processor = Actor::failing(move |payload| {
        let fails = ["1:1", "1:3", "2:0"].contains(&payload) && left > 0;
        left -= u32::from(fails);
        fails
    });
    let _worker = processor.start(&fleet, Shelf::new(2, 4), eager()).await;
    let is_stored = |fleet: &Fleet| fleet.lease(&shard()).checkpoint.to_string() == "2:3";
    fleet.within(DEADLINE, "all of it is stored", is_stored).await;
    let first: Vec<_> =
        (1..=2).flat_map(|it| (0..4).map(move |part| format!("{it}:{part}"))).collect();
    let again = ["1:1", "1:3", "2:0"].map(str::to_owned).to_vec();
    assert_eq!(processor.given(), [first, again]);
}
