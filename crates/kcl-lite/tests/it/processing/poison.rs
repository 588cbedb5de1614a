//! Poison records, distinguished from other failures, and the events for both.

use parking_lot::Mutex;
use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kcl_lite::{Ack, BoxError, ErrorKind, Event, FailurePolicy, PoisonRecord, Settings};
use tokio::time::Instant;

use super::actor::{Actor, payload, texts};
use super::failures::Shelf;
use super::{DEADLINE, at, eager, put, shard, until_stored};
use crate::fleet::Fleet;

/// An error whose message reveals little without its source.
#[derive(Debug)]
struct Caused<E>(&'static str, E);

impl<E> fmt::Display for Caused<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<E: std::error::Error + 'static> std::error::Error for Caused<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.1)
    }
}

#[derive(Debug)]
struct Inner;

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no policy allows it")
    }
}

impl std::error::Error for Inner {}

/// Creates an error as the AWS SDK returns it.
fn service_error() -> BoxError {
    Caused("service error", Inner).into()
}

/// Returns the payloads, attempts and errors of the dead letters.
fn letters(shelf: &Shelf) -> Vec<(String, u32, String)> {
    let stored = shelf.stored.lock();
    let letter = |it: &kcl_lite::dead_letter::DeadLetterRecord| {
        (String::from_utf8_lossy(&it.data).into_owned(), it.attempts, it.error.clone())
    };
    stored.iter().map(letter).collect()
}

fn is_failure(_: &str, event: &Event) -> bool {
    matches!(event, Event::ProcessorFailed { .. })
}

fn is_warning(_: &str, event: &Event) -> bool {
    matches!(event, Event::ManyDeadLetters { .. })
}

#[tokio::test(start_paused = true)]
async fn the_whole_chain_of_an_error_is_reported_and_the_error_is_the_source_of_what_stops_the_worker()
 {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=1);
    let failures = FailurePolicy::Stop { attempts: 8 };
    let processor = Actor::new(|_| Err(service_error()));
    let settings = Settings { failures, ..eager() };
    let worker = processor.start(&fleet, fleet.stream.clone(), settings).await;
    let text = "service error: no policy allows it";
    let trouble = || worker.status().shards.values().next()?.trouble.clone();
    fleet
        .until_event("a failure that the status tells, too", |_, event| {
            matches!(event, Event::ProcessorFailed { error, .. } if error == text)
                && trouble().is_some_and(|trouble| trouble.contains(text))
        })
        .await;
    let error = worker.stopped().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Processor);
    assert!(error.to_string().ends_with("service error: no policy allows it"), "{error}");
    assert!(error.source().unwrap().downcast_ref::<Caused<Inner>>().is_some(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_dead_letter_goes_down_to_the_first_cause() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=1);
    let failures = FailurePolicy::DeadLetter { attempts: 1 };
    let processor = Actor::new(|_| Err(service_error()));
    let (shelf, settings) = (Shelf::default(), Settings { failures, ..eager() });
    let sink = Some(shelf.clone());
    let _worker = processor.start_with(&fleet, fleet.stream.clone(), settings, sink).await;
    until_stored(&fleet, &at(1)).await;
    let error = "service error: no policy allows it".to_owned();
    assert_eq!(letters(&shelf), [("1".to_owned(), 1, error)]);
}

/// The default policy: rejected records are dead-lettered, and an outage costs no record.
#[tokio::test(start_paused = true)]
async fn what_is_rejected_becomes_a_dead_letter_and_an_outage_is_waited_out() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=64);
    let is_down = Arc::new(AtomicBool::new(true));
    let outage = Arc::clone(&is_down);
    let processor = Actor::splitting(move |records| {
        let mut result = Ok(());
        for (payload, ack) in records {
            if payload == "3" {
                ack.reject("3 is no order");
            } else if outage.load(Ordering::SeqCst) {
                result = Err(service_error());
            } else {
                ack.acknowledge();
            }
        }
        result
    });
    let shelf = Shelf::default();
    let (settings, sink) = (eager(), Some(shelf.clone()));
    let _worker = processor.start_with(&fleet, fleet.stream.clone(), settings, sink).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let rejected = ("3".to_owned(), 0, "3 is no order".to_owned());
    assert_eq!(letters(&shelf), std::slice::from_ref(&rejected), "in ten minutes of outage");
    is_down.store(false, Ordering::SeqCst);
    until_stored(&fleet, &at(64)).await;
    assert_eq!(letters(&shelf), [rejected]);
    let given = processor.given();
    assert!(given[1..].iter().all(|batch| !batch.contains(&"3".to_owned())), "{given:?}");
    assert_eq!(fleet.count(is_warning), 0);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_blames_a_record_rejects_it_and_the_others_come_again_at_once() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=6);
    let processor = Actor::new(|batch| {
        for record in batch.records() {
            match payload(record).as_str() {
                "3" => return Err(PoisonRecord::new(record, "3 is no order").into()),
                "4" => {
                    return Err(Caused(
                        "parsing the orders",
                        PoisonRecord::new(record, "4 neither"),
                    )
                    .into());
                }
                _ => {}
            }
        }
        Ok(())
    });
    let (shelf, begun) = (Shelf::default(), Instant::now());
    let (settings, sink) = (eager(), Some(shelf.clone()));
    let _worker = processor.start_with(&fleet, fleet.stream.clone(), settings, sink).await;
    until_stored(&fleet, &at(6)).await;
    let given = texts(&[&[1, 2, 3, 4, 5, 6], &[1, 2, 4, 5, 6], &[1, 2, 5, 6]]);
    assert_eq!(processor.given(), given);
    let errors = [
        "record 3 cannot be processed: 3 is no order",
        "parsing the orders: record 4 cannot be processed: 4 neither",
    ];
    let expected: Vec<_> = ["3", "4"]
        .into_iter()
        .zip(errors)
        .map(|(it, error)| (it.into(), 0, error.into()))
        .collect();
    assert_eq!(letters(&shelf), expected);
    assert_eq!(fleet.count(is_failure), 0, "nothing else failed");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_error_that_blames_a_record_of_no_batch_is_a_failure_like_any_other() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=2);
    let mut first = None;
    let processor = Actor::new(move |batch| {
        let record = first.get_or_insert_with(|| batch.records()[0].clone());
        match payload(&batch.records()[0]).as_str() {
            "1" => Ok(()),
            _ => Err(PoisonRecord::new(record, "not this one").into()),
        }
    });
    let shelf = Shelf::default();
    let (settings, sink) = (eager(), Some(shelf.clone()));
    let stream = fleet.stream.clone().with_read_limit(1);
    let _worker = processor.start_with(&fleet, stream, settings, sink).await;
    fleet
        .until_event("it fails", |_, event| {
            matches!(event, Event::ProcessorFailed { attempts: 2, error, .. }
            if error.ends_with("not this one (but this record is not in the batch)"))
        })
        .await;
    assert_eq!(letters(&shelf), []);
}

/// Rejection by tokens that outlive the call, also of a whole batch.
#[tokio::test(start_paused = true)]
async fn a_batch_can_be_rejected_after_process_has_returned() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=3);
    let kept: Arc<Mutex<Vec<Ack>>> = Arc::default();
    let keeps = Arc::clone(&kept);
    let processor = Actor::new(move |mut batch| {
        keeps.lock().push(batch.defer());
        Ok(())
    });
    let shelf = Shelf::default();
    let (settings, sink) = (eager(), Some(shelf.clone()));
    let _worker = processor.start_with(&fleet, fleet.stream.clone(), settings, sink).await;
    fleet.within(DEADLINE, "it is delivered", |_| kept.lock().len() == 1).await;
    kept.lock().remove(0).reject("no order in it");
    until_stored(&fleet, &at(3)).await;
    let payloads: Vec<_> = letters(&shelf).into_iter().map(|(payload, ..)| payload).collect();
    assert_eq!(payloads, ["1", "2", "3"]);
    assert_eq!((processor.given().len(), fleet.count(is_failure)), (1, 0));
}

/// While a dead letter cannot be stored, the checkpoint does not pass it; earlier positions are stored; a
/// shutdown leaves it to the next owner.
#[tokio::test(start_paused = true)]
async fn a_rejected_record_that_cannot_be_stored_is_left_to_the_next_owner() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=4);
    let kept: Arc<Mutex<Vec<Ack>>> = Arc::default();
    let keeps = Arc::clone(&kept);
    let processor = Actor::splitting(move |records| {
        for (payload, ack) in records {
            match payload.as_str() {
                "1" => keeps.lock().push(ack),
                "2" => ack.reject("no order"),
                _ => ack.acknowledge(),
            }
        }
        Ok(())
    });
    let shelf = Shelf::default();
    shelf.refuses.store(true, Ordering::SeqCst);
    let sink = Some(shelf.clone());
    let worker = processor.start_with(&fleet, fleet.stream.clone(), eager(), sink).await;
    let refused = |_: &str, event: &Event| matches!(event, Event::DeadLetterFailed { .. });
    fleet.until_event("the place refuses it", refused).await;
    kept.lock().remove(0).acknowledge();
    until_stored(&fleet, &at(1)).await;
    let asked = Instant::now();
    worker.shutdown(DEADLINE).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "nothing is waited for that cannot come");
    assert_eq!((fleet.lease(&shard()).checkpoint, letters(&shelf).len()), (at(1), 0));

    shelf.refuses.store(false, Ordering::SeqCst);
    let sink = Some(shelf.clone());
    let _worker = processor.start_with(&fleet, fleet.stream.clone(), eager(), sink).await;
    until_stored(&fleet, &at(4)).await;
    assert_eq!(letters(&shelf), [("2".to_owned(), 0, "no order".to_owned())]);
    assert_eq!(processor.given(), texts(&[&[1, 2, 3, 4], &[2, 3, 4]]));
}

#[tokio::test(start_paused = true)]
async fn what_is_rejected_while_the_worker_stops_is_stored() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=2);
    let kept: Arc<Mutex<Vec<Ack>>> = Arc::default();
    let keeps = Arc::clone(&kept);
    let processor = Actor::splitting(move |records| {
        keeps.lock().extend(records.into_iter().map(|(_, ack)| ack));
        Ok(())
    });
    let shelf = Shelf::default();
    let sink = Some(shelf.clone());
    let worker = processor.start_with(&fleet, fleet.stream.clone(), eager(), sink).await;
    fleet.within(DEADLINE, "they are delivered", |_| kept.lock().len() == 2).await;
    let rejects = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        kept.lock().remove(0).reject("no order");
        tokio::time::sleep(Duration::from_secs(3)).await;
        kept.lock().remove(0).acknowledge();
    };
    let (report, ()) = tokio::join!(worker.shutdown(DEADLINE), rejects);
    assert!(report.unwrap().shards.values().all(|shard| shard.drained));
    assert_eq!(fleet.lease(&shard()).checkpoint, at(2));
    assert_eq!(letters(&shelf), [("1".to_owned(), 0, "no order".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn without_a_place_for_dead_letters_a_rejection_is_an_error_that_says_so() {
    for by_error in [false, true] {
        let fleet = Fleet::new(1);
        put(&fleet, 1..=2);
        let processor = Actor::new(move |mut batch| {
            if by_error {
                return Err(PoisonRecord::new(&batch.records()[1], service_error()).into());
            }
            for (record, ack) in batch.split() {
                match payload(&record).as_str() {
                    "2" => ack.reject(service_error()),
                    _ => ack.acknowledge(),
                }
            }
            Ok(())
        });
        let failures = FailurePolicy::Stop { attempts: 2 };
        let settings = Settings { failures, ..eager() };
        let sink = None::<Shelf>;
        let worker = processor.start_with(&fleet, fleet.stream.clone(), settings, sink).await;
        let error = worker.stopped().await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("failed 2 times"), "{text}");
        assert!(text.contains("WorkerBuilder::dead_letter"), "{text}");
        assert!(text.ends_with("service error: no policy allows it"), "{text}");
        assert!(error.source().is_some());
        let stored = if by_error { kcl_lite::Checkpoint::TrimHorizon } else { at(1) };
        assert_eq!(fleet.lease(&shard()).checkpoint, stored);
    }
}

/// One of 64 records fails: the dead letter counts the attempts as the policy does.
#[tokio::test(start_paused = true)]
async fn attempts_of_a_dead_letter_are_those_that_the_policy_counts() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=64);
    let failures = FailurePolicy::DeadLetter { attempts: 3 };
    let processor = Actor::new(|batch| {
        let is_bad = batch.records().iter().any(|record| payload(record) == "41");
        if is_bad { Err("41 is among them".into()) } else { Ok(()) }
    });
    let (shelf, settings) = (Shelf::default(), Settings { failures, ..eager() });
    let sink = Some(shelf.clone());
    let _worker = processor.start_with(&fleet, fleet.stream.clone(), settings, sink).await;
    until_stored(&fleet, &at(64)).await;
    let alone = processor.given().iter().filter(|batch| **batch == ["41"]).count();
    assert_eq!(alone, 3);
    assert_eq!(letters(&shelf), [("41".to_owned(), 3, "41 is among them".to_owned())]);
    let reported = fleet.events().into_iter().filter_map(|(_, event)| match event {
        Event::ProcessorFailed { attempts, .. } => Some(attempts),
        Event::DeadLettered { attempts, .. } => {
            assert!(event.to_string().contains("after 3 attempts"), "{event}");
            Some(attempts)
        }
        _ => None,
    });
    // The batch, its halves, the record, and the dead letter.
    assert_eq!(reported.collect::<Vec<_>>(), [1, 2, 3, 1, 1, 1, 1, 1, 1, 2, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn many_dead_letters_in_a_row_are_a_warning_that_a_processed_record_ends() {
    let fleet = Fleet::new(1);
    let failures = FailurePolicy::DeadLetter { attempts: 1 };
    let is_down = Arc::new(AtomicBool::new(true));
    let outage = Arc::clone(&is_down);
    let processor = Actor::new(move |_| match outage.load(Ordering::SeqCst) {
        true => Err(service_error()),
        false => Ok(()),
    });
    let settings = Settings { failures, ..eager() };
    put(&fleet, 1..=25);
    let _worker = processor.start(&fleet, fleet.stream.clone(), settings).await;
    until_stored(&fleet, &at(25)).await;
    let warnings = |fleet: &Fleet| {
        let events = fleet.events().into_iter();
        let warned = events.filter_map(|(_, event)| match event {
            Event::ManyDeadLetters { records, error, .. } => {
                assert_eq!(error, "service error: no policy allows it");
                Some(records)
            }
            _ => None,
        });
        warned.collect::<Vec<_>>()
    };
    assert_eq!(warnings(&fleet), [10, 20]);
    is_down.store(false, Ordering::SeqCst);
    put(&fleet, 26..=26);
    until_stored(&fleet, &at(26)).await;
    is_down.store(true, Ordering::SeqCst);
    put(&fleet, 27..=40);
    until_stored(&fleet, &at(40)).await;
    assert_eq!(warnings(&fleet), [10, 20, 10]);
}
