//! Records that cannot be processed: retried, dead-lettered, released, or fatal for the worker.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::types::ShardIteratorType;
use futures_util::future::BoxFuture;
use kcl_lite::dead_letter::{DeadLetter, DeadLetterRecord, JsonLines, KinesisStream};
use kcl_lite::{BoxError, ErrorKind, Event, FailurePolicy, Settings, ShardContext, WorkerHandle};
use local_aws::LocalAws;
use tokio::time::Instant;

use super::{
    DEADLINE, at, eager, no_checkpoint_ran_ahead, numbers, once, put, shard, start, until_stored,
};
use crate::fleet::{Fleet, Script, Seen};

/// An in-memory dead letter store that fails on request.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelf {
    pub(super) stored: Arc<Mutex<Vec<DeadLetterRecord>>>,
    pub(super) refuses: Arc<AtomicBool>,
}

impl DeadLetter for Shelf {
    fn store<'a>(&'a self, letter: &'a DeadLetterRecord) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move {
            if self.refuses.load(Ordering::SeqCst) {
                return Err("the shelf is full".into());
            }
            self.stored.lock().push(letter.clone());
            Ok(())
        })
    }
}

fn always(payload: &str) -> Script {
    Script { failures: [(payload.to_owned(), u32::MAX)].into(), ..Script::default() }
}

async fn start_with_sink(
    fleet: &Fleet,
    attempts: u32,
    sink: impl DeadLetter + 'static,
) -> WorkerHandle {
    let of_fleet = fleet.clone();
    fleet
        .builder("a")
        .settings(Settings { failures: FailurePolicy::DeadLetter { attempts }, ..eager() })
        .dead_letter(sink)
        .build()
        .await
        .unwrap()
        .start(move |shard: &ShardContext| of_fleet.recorder("a", shard))
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn l01_a_failing_batch_is_passed_by_no_checkpoint_and_by_no_restart() {
    let script = Script {
        failures: [("37".to_owned(), 3)].into(),
        panics: Some("38".to_owned()),
        ..Script::default()
    };
    let mut fleet = Fleet::new(1).script(script);
    fleet.stream = fleet.stream.with_read_limit(10);
    put(&fleet, 1..=100);
    let killed = start(&fleet, "a", eager()).await;
    let failed_twice =
        |_: &str, event: &Event| matches!(event, Event::ProcessorFailed { attempts: 2, .. });
    fleet.until_event("the second failure", failed_twice).await;
    killed.abort();
    let worker = start(&fleet, "b", eager()).await;
    until_stored(&fleet, &at(100)).await;
    worker.shutdown(DEADLINE).await.unwrap();

    assert_eq!(once(fleet.delivered()), numbers(1..=100));
    no_checkpoint_ran_ahead(&fleet.log.lock());
    let panicked = fleet.events().iter().any(|(_, event)| {
        matches!(event, Event::ProcessorFailed { error, .. } if error.contains("panicked"))
    });
    assert!(panicked);
}

/// Record 50 of 100 always fails. It is dead-lettered to the file once; the others are processed in order.
#[tokio::test(start_paused = true)]
async fn s21_a_poison_record_is_found_and_put_into_a_file_and_the_rest_is_processed() {
    let fleet = Fleet::new(1).script(always("50"));
    put(&fleet, 1..=100);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dead.jsonl");
    let begun = Instant::now();
    let worker = start_with_sink(&fleet, 5, JsonLines::open(&path).unwrap()).await;
    until_stored(&fleet, &at(100)).await;
    // Nine delays of at most 0.1, 0.2, 0.4 ... s.
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    worker.shutdown(DEADLINE).await.unwrap();

    let expected = numbers((1..=100).filter(|number| *number != 50));
    assert_eq!(once(fleet.delivered()), expected);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<BTreeMap<String, serde_json::Value>> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!(lines[0]["sequence_number"], "50");
    assert_eq!(lines[0]["data"], "NTA=");
    assert_eq!(lines[0]["error"], "cannot process 50");
    assert_eq!(lines[0]["stream"], "stream");
    assert!(fleet.events().iter().any(|(_, event)| matches!(event, Event::DeadLettered { .. })));
}

#[tokio::test(start_paused = true)]
async fn s21_a_record_that_panics_is_found_over_restarts_of_the_processor() {
    let poison = Some("7".to_owned());
    let fleet = Fleet::new(1).script(Script { poison, ..Script::default() });
    put(&fleet, 1..=20);
    let sink = Shelf::default();
    let worker = start_with_sink(&fleet, 2, sink.clone()).await;
    until_stored(&fleet, &at(20)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    let stored = sink.stored.lock();
    let payloads: Vec<_> = stored.iter().map(|letter| &letter.data[..]).collect();
    assert_eq!(payloads, [b"7"]);
    assert!(stored[0].error.starts_with("panicked"), "{:?}", stored[0]);
    assert_eq!(once(fleet.delivered()), numbers((1..=20).filter(|number| *number != 7)));
}

#[tokio::test(start_paused = true)]
async fn s21_a_record_whose_token_is_dropped_every_time_is_dead_lettered_too() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    put(&fleet, 1..=4);
    let sink = Shelf::default();
    let worker = start_with_sink(&fleet, 2, sink.clone()).await;
    // Everything but record 3 is acknowledged, as often as it is delivered.
    for _ in 0..10_000 {
        if fleet.lease(&shard()).checkpoint == at(4) {
            break;
        }
        let acks: Vec<_> = fleet.acks.lock().drain(..).collect();
        for (payload, ack) in acks {
            if payload != "3" {
                ack.acknowledge();
            }
        }
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert_eq!(fleet.lease(&shard()).checkpoint, at(4));
    assert_eq!(sink.stored.lock().len(), 1);
    assert_eq!(sink.stored.lock()[0].position.sequence_number.as_str(), "3");
    worker.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn s21_no_checkpoint_passes_a_record_that_could_not_be_dead_lettered() {
    let fleet = Fleet::new(1).script(always("5"));
    put(&fleet, 1..=10);
    let sink = Shelf::default();
    sink.refuses.store(true, Ordering::SeqCst);
    let worker = start_with_sink(&fleet, 1, sink.clone()).await;
    let failures = |log: &[Seen]| {
        let failed = |seen: &&Seen| matches!(seen, Seen::Event(_, Event::DeadLetterFailed { .. }));
        log.iter().filter(failed).count()
    };
    fleet.until("the sink fails again and again", |log| failures(log) >= 20).await;
    assert_eq!(fleet.lease(&shard()).checkpoint, at(4));
    assert!(!fleet.delivered().contains(&"6".to_owned()), "order is kept");
    let trouble = worker.status().shards.values().next().unwrap().trouble.clone().unwrap();
    assert!(
        trouble.starts_with("storing a dead letter has been failing (the shelf is full)"),
        "{trouble}"
    );
    sink.refuses.store(false, Ordering::SeqCst);
    until_stored(&fleet, &at(10)).await;
    assert_eq!(sink.stored.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn s21_dead_letters_can_go_to_another_kinesis_stream() {
    let local = LocalAws::in_memory();
    let client = aws_sdk_kinesis::Client::new(&local.sdk_config("test"));
    let fleet = Fleet::new(1).script(always("2"));
    put(&fleet, 1..=3);
    let sink = KinesisStream::new(&local.sdk_config("worker"), "aside");
    let _worker = start_with_sink(&fleet, 2, sink).await;
    let refused = |_: &str, event: &Event| {
        matches!(event, Event::DeadLetterFailed { error, .. }
            if error.contains("PutRecord to stream `aside`: ResourceNotFoundException"))
    };
    fleet.until_event("there is no such stream", refused).await;
    client.create_stream().stream_name("aside").shard_count(1).send().await.unwrap();
    until_stored(&fleet, &at(3)).await;
    let iterator = client.get_shard_iterator().stream_name("aside").shard_id(shard().as_str());
    let iterator = iterator.shard_iterator_type(ShardIteratorType::TrimHorizon).send();
    let iterator = iterator.await.unwrap().shard_iterator.unwrap();
    let records = client.get_records().shard_iterator(iterator).send().await.unwrap().records;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].partition_key.as_deref(), Some("key"));
    assert_eq!(records[0].data.as_ref(), b"2");
}

#[tokio::test(start_paused = true)]
async fn s21_a_shard_that_fails_can_be_released_with_what_is_done() {
    let fleet = Fleet::new(1).script(always("5"));
    let failures = FailurePolicy::ReleaseShard { attempts: 3 };
    put(&fleet, 1..=4);
    let _worker = start(&fleet, "a", Settings { failures, ..eager() }).await;
    until_stored(&fleet, &at(4)).await;
    put(&fleet, 5..=5);
    let is_release = |_: &str, event: &Event| matches!(event, Event::ShardReleased { .. });
    fleet.until_event("it is released", is_release).await;
    let events = fleet.events();
    let released = |(_, event): &(String, Event)| matches!(event, Event::LeaseReleased { checkpoint, .. } if *checkpoint == at(4));
    assert!(events.iter().any(released), "{events:#?}");
    // The next tenure may have begun to fail by now.
    let tenure = events.iter().take_while(|(worker, event)| !is_release(worker, event));
    let failed = |(_, event): &&(String, Event)| matches!(event, Event::ProcessorFailed { .. });
    assert_eq!(tenure.filter(failed).count(), 3);
    assert!(fleet.callbacks().contains(&format!("a {} shutdown_requested", shard())));
}

/// Between two tenures, and in the first moments of each, the shard has no other trouble.
#[tokio::test(start_paused = true)]
async fn s21_a_shard_that_is_released_again_and_again_is_never_called_well() {
    let fleet = Fleet::new(1).script(always("1"));
    let failures = FailurePolicy::ReleaseShard { attempts: 2 };
    put(&fleet, 1..=1);
    let worker = start(&fleet, "a", Settings { failures, ..eager() }).await;
    let is_release = |_: &str, event: &Event| matches!(event, Event::ShardReleased { .. });
    fleet.until_event("it is released", is_release).await;
    // The status is up to a second old.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = worker.status();
        let trouble = status.health.shards.values().next();
        assert!(trouble.is_some_and(|it| it.contains("cannot process 1")), "{trouble:?}");
    }
    *fleet.script.lock() = Script::default();
    until_stored(&fleet, &at(1)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(worker.status().health.is_healthy(), "{:?}", worker.status().health);
}

#[tokio::test(start_paused = true)]
async fn s21_a_worker_can_be_told_to_stop_on_a_failure_and_releases_its_leases() {
    let fleet = Fleet::new(2).script(always("bad"));
    let failures = FailurePolicy::Stop { attempts: 2 };
    let worker = start(&fleet, "a", Settings { failures, ..eager() }).await;
    fleet.stream.put_to(&shard(), "key", "bad");
    let error = worker.stopped().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Processor);
    let expected = "shard `shardId-000000000000`: the processor failed 2 times: cannot process bad";
    assert_eq!(error.to_string(), expected);
    assert_eq!(fleet.owners(), [("-".to_owned(), 2)].into());
}

#[tokio::test]
async fn s21_putting_records_aside_without_a_place_is_refused_at_once() {
    let settings = Settings { failures: FailurePolicy::DeadLetter { attempts: 3 }, ..eager() };
    let error = Fleet::new(1).builder("a").settings(settings).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("WorkerBuilder::dead_letter"), "{error}");
}
