//! The position at which a shard continues: out-of-order acknowledgements, aggregates, reader restarts.

use kcl_lite::lease::store::LeaseStore as _;
use kcl_lite::lease::{Lease, LeaseChange, LeaseWrite, WriteId};
use kcl_lite::{Checkpoint, Event, Packing, Settings};

use super::shelf::{Fault, Shelf};
use super::{DEADLINE, at, eager, numbers, once, put, shard, start, until_stored};
use crate::fleet::{Fleet, Script, Seen};

/// Records are acknowledged in random order from several tasks, the worker is killed at a random moment,
/// and the checkpoint never covers a record that is not acknowledged together with all before it.
#[tokio::test(start_paused = true)]
async fn l02_no_checkpoint_runs_ahead_of_asynchronous_work_whenever_the_worker_is_killed() {
    for seed in 0..1_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
        fleet.stream = fleet.stream.with_read_limit(7);
        put(&fleet, 1..=100);
        let worker = start(&fleet, "a", Settings { max_unacknowledged: 30, ..eager() }).await;
        let mut acknowledged = [false; 101];
        acknowledged[0] = true;
        let kill_at = rng.usize(1..100);
        for done in 0..kill_at {
            fleet.until("something to acknowledge", |_| !fleet.acks.lock().is_empty()).await;
            let open = fleet.acks.lock().len();
            assert!(open < 30 + 7, "seed {seed}: {open} in flight after {done}");
            let (payload, ack) = fleet.acks.lock().swap_remove(rng.usize(..open));
            ack.acknowledge();
            acknowledged[payload.parse::<usize>().unwrap()] = true;
            if rng.u8(..4) == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(rng.u64(..50))).await;
            }
        }
        worker.abort();
        let prefix = acknowledged.iter().take_while(|done| **done).count() - 1;
        let stored = match fleet.lease(&shard()).checkpoint {
            Checkpoint::At(position) => position.sequence_number.as_str().parse().unwrap(),
            _ => 0,
        };
        assert!(stored <= prefix, "seed {seed}: {stored} is stored, {prefix} done");
    }
}

/// Ten aggregates of twenty records: the worker is killed when `done` of the 200 are acknowledged and
/// stored, and the next one starts with the record after them.
#[tokio::test(start_paused = true)]
async fn l11_a_restart_goes_on_inside_an_aggregate_at_each_of_200_places() {
    for done in 0..200_u64 {
        let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
        let shelf = Shelf { limit: 10, ..Shelf::new(10, 20) };
        let worker = fleet.start_on("a", shelf.clone(), eager()).await;
        fleet.until_delivered(200).await;
        let acks = std::mem::take(&mut *fleet.acks.lock());
        let mut acks = acks.into_iter();
        acks.by_ref().take(usize::try_from(done).unwrap()).for_each(|(_, ack)| ack.acknowledge());
        if let Some(last) = done.checked_sub(1) {
            let wanted = Checkpoint::parse(&(last / 20 + 1).to_string(), last % 20).unwrap();
            until_stored(&fleet, &wanted).await;
            assert_eq!(fleet.lease(&shard()).checkpoint, wanted);
        }
        worker.abort();
        let _next = fleet.start_on("b", shelf, eager()).await;
        let first_of_b = |log: &[Seen]| {
            log.iter().find_map(|seen| match seen {
                Seen::Record(worker, _, payload) if worker == "b" => Some(payload.clone()),
                Seen::Record(..) | Seen::Callback(..) | Seen::Event(..) => None,
            })
        };
        fleet.until("b goes on", |log| first_of_b(log).is_some()).await;
        let first = first_of_b(&fleet.log.lock()).unwrap();
        assert_eq!(first, format!("{}:{}", done / 20 + 1, done % 20), "after {done}");
    }
}

/// Positions count the records of an aggregate from 0, as the Java KCL does, so either library continues
/// where the other one stopped, inside an aggregate and at its last record.
#[tokio::test(start_paused = true)]
async fn l11_a_checkpoint_that_the_java_library_left_is_gone_on_from() {
    for (stored, first) in [((3, 0), "3:1"), ((3, 7), "3:8"), ((3, 18), "3:19"), ((3, 19), "4:0")] {
        let fleet = Fleet::new(1);
        let checkpoint = Checkpoint::parse(&stored.0.to_string(), stored.1).unwrap();
        let row = Lease::new(shard().as_str(), checkpoint.clone());
        let change = LeaseChange::Create(Box::new(row));
        let write = LeaseWrite { key: shard().as_str().into(), id: WriteId::new("java"), change };
        fleet.store.inner.write(&write).await.unwrap();
        let worker = fleet.start_on("a", Shelf::new(10, 20), eager()).await;
        fleet.until_delivered(1).await;
        assert_eq!(fleet.delivered()[0], first, "after {checkpoint}");
        // And back: the last record of the last aggregate has the position that Java would write.
        let last = Checkpoint::parse("10", 19).unwrap();
        until_stored(&fleet, &last).await;
        worker.shutdown(DEADLINE).await.unwrap();
        assert_eq!(fleet.lease(&shard()).checkpoint, last);
    }
}

/// A token is dropped inside an aggregate: the shard restarts in the same tenure, with that record.
#[tokio::test(start_paused = true)]
async fn l11_a_pass_that_starts_again_goes_on_inside_an_aggregate() {
    for done in [1, 19, 20, 27, 199] {
        let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
        let shelf = Shelf { limit: 10, ..Shelf::new(10, 20) };
        let _worker = fleet.start_on("a", shelf, eager()).await;
        fleet.until_delivered(200).await;
        let acks = std::mem::take(&mut *fleet.acks.lock());
        let mut acks = acks.into_iter().map(|(_, ack)| ack);
        acks.by_ref().take(done).for_each(kcl_lite::Ack::acknowledge);
        drop(acks);
        fleet.until_delivered(201).await;
        assert_eq!(fleet.delivered()[200], format!("{}:{}", done / 20 + 1, done % 20));
    }
}

/// A source that unpacks itself marks its parts: data in them that look like an aggregate belong to the
/// user.
#[tokio::test(start_paused = true)]
async fn a_source_that_unpacks_by_itself_is_not_unpacked_again() {
    let shelf = Shelf::new(1, 20);
    let whole = {
        let mut records = shelf.records.lock();
        records[0].packing = Packing::Part { explicit_hash_key: None, misrouted: false };
        String::from_utf8_lossy(&records[0].data).into_owned()
    };
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", shelf, eager()).await;
    until_stored(&fleet, &at(1)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered(), [whole]);
}

/// Readers fail, hang and panic at random points: exactly the produced records are delivered.
#[tokio::test(start_paused = true)]
async fn l17_a_reader_restarts_from_what_was_handed_over_and_neither_skips_nor_repeats() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let faults =
            [Fault::None, Fault::None, Fault::Hang, Fault::HangBefore, Fault::Panic, Fault::Error];
        // The third in a row would release the shard, and then repeats would be correct.
        let mut faults: Vec<_> = (0..40).map(|_| faults[rng.usize(..faults.len())]).collect();
        faults.iter_mut().skip(2).step_by(3).for_each(|fault| *fault = Fault::None);
        // Nothing is acknowledged during the reading: that would hide a repeat.
        let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
        let worker = fleet.start_on("a", Shelf::new(60, 1).fails(faults), eager()).await;
        fleet.until_delivered(60).await;
        tokio::time::sleep(DEADLINE).await;
        let acks = std::mem::take(&mut *fleet.acks.lock());
        acks.into_iter().for_each(|(_, ack)| ack.acknowledge());
        until_stored(&fleet, &at(60)).await;
        worker.shutdown(DEADLINE).await.unwrap();
        assert_eq!(fleet.delivered(), numbers(1..=60), "seed {seed}");
    }
}

/// A processor panics while a prefetched batch waits in the channel: the batch is not skipped.
#[tokio::test(start_paused = true)]
async fn l17_what_was_read_ahead_of_a_panic_is_read_again() {
    let panics = Some("5".to_owned());
    let fleet = Fleet::new(1).script(Script { panics, ..Script::default() });
    let worker = fleet.start_on("a", Shelf::new(12, 1), eager()).await;
    until_stored(&fleet, &at(12)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(once(fleet.delivered()), numbers(1..=12));
    assert_eq!(fleet.delivered().iter().filter(|payload| *payload == "3").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn d12_a_restart_repeats_nothing_that_is_stored_and_all_that_is_not() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    put(&fleet, 1..=5);
    let worker = start(&fleet, "a", eager()).await;
    fleet.until_delivered(5).await;
    let acks: Vec<_> = fleet.acks.lock().drain(..).collect();
    let mut acks = acks.into_iter().map(|(_, ack)| ack);
    acks.by_ref().take(3).for_each(kcl_lite::Ack::acknowledge);
    let report = {
        let stop = worker.shutdown(DEADLINE);
        drop(acks);
        stop.await.unwrap()
    };
    assert!(report.shards.values().all(|shard| !shard.drained));
    assert_eq!(fleet.lease(&shard()).checkpoint, at(3));
    fleet.script.lock().defer = false;
    let worker = start(&fleet, "b", eager()).await;
    until_stored(&fleet, &at(5)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered()[5..], numbers(4..=5));
    let lost = |(_, event): &(String, Event)| matches!(event, Event::LeaseLost { .. });
    assert!(!fleet.events().iter().any(lost));
}
