//! KPL aggregates, intact and corrupt, through a polling worker: no record is lost, no fault is silent.

use parking_lot::Mutex;
use std::sync::Arc;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use kcl_lite::dead_letter::{DeadLetter, DeadLetterRecord};
use kcl_lite::{
    Batch, BoxError, Checkpoint, CheckpointPolicy, Event, FailurePolicy, HashKey, LeaseKey,
    MisroutedPolicy, Packing, Record, RecordProcessor, Settings, ShardContext, Status,
    WorkerHandle,
};
use kpl_format::{MAGIC, Packer, hash_key};
use local_aws::{Effect, LocalAws, Rule};
use md5::{Digest as _, Md5};

use super::{DEADLINE, MINUTE, horizon};
use crate::fleet::{Fleet, Script, Seen};
use crate::polling::{self, STREAM};

/// A hash key in the first of two shards, and one in the second.
const HERE: u128 = 0;
const THERE: u128 = u128::MAX;

fn packed<'a>(records: impl IntoIterator<Item = (&'a str, Option<u128>, &'a [u8])>) -> Bytes {
    let mut packer = Packer::new(usize::MAX);
    for (key, hash_key, data) in records {
        assert!(packer.push(key, hash_key, data));
    }
    packer.finish().unwrap()
}

/// Frames a message as an aggregate, with a valid checksum.
fn framed(message: &[u8]) -> Bytes {
    let checksum = Md5::digest(message);
    [&MAGIC[..], message, &checksum[..]].concat().into()
}

/// Creates a message with the key `a` in its table and a record that references the key at `index`.
fn naming_key(index: u8) -> Vec<u8> {
    vec![0x0a, 1, b'a', 0x1a, 5, 0x08, index, 0x1a, 1, b'x']
}

/// Puts into the first of two shards.
async fn put(client: &Client, data: impl IntoIterator<Item = Bytes>) {
    for data in data {
        let call = client.put_record().stream_name(STREAM).partition_key("outer");
        let call = call.explicit_hash_key(HERE.to_string());
        call.data(Blob::new(data)).send().await.unwrap();
    }
}

/// The delivered records, and the dead letters.
#[derive(Debug, Clone, Default)]
struct Notes {
    delivered: Arc<Mutex<Vec<Record>>>,
    aside: Arc<Mutex<Vec<DeadLetterRecord>>>,
    refuses_corrupt: bool,
}

impl RecordProcessor for Notes {
    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        let is_corrupt = |record: &Record| record.packing == Packing::Corrupt;
        if self.refuses_corrupt && batch.records().iter().any(is_corrupt) {
            return Err("an aggregate that cannot be unpacked".into());
        }
        self.delivered.lock().extend_from_slice(batch.records());
        Ok(())
    }
}

impl DeadLetter for Notes {
    fn store<'a>(&'a self, letter: &'a DeadLetterRecord) -> BoxFuture<'a, Result<(), BoxError>> {
        self.aside.lock().push(letter.clone());
        Box::pin(async { Ok(()) })
    }
}

impl Notes {
    async fn start(&self, fleet: &Fleet, local: &LocalAws, settings: Settings) -> WorkerHandle {
        let notes = self.clone();
        let settings = Settings { checkpoints: CheckpointPolicy::EveryBatch, ..settings };
        let builder = fleet.builder("a").settings(settings).stream(polling::stream(local));
        let worker = builder.dead_letter(self.clone()).build().await.unwrap();
        worker.start(move |_: &ShardContext| notes.clone()).await.unwrap()
    }

    /// Waits until this many records were delivered or dead-lettered, and then for unexpected ones.
    async fn settled(&self, fleet: &Fleet, count: usize) {
        let seen = || self.delivered.lock().len() + self.aside.lock().len();
        fleet.within(MINUTE, "all records", |_| seen() >= count).await;
        tokio::time::sleep(DEADLINE).await;
        assert_eq!(seen(), count);
    }
}

/// The same Kinesis record five times, between plain ones: what is delivered, and what is counted.
struct Outcome {
    delivered: Vec<Record>,
    aside: Vec<DeadLetterRecord>,
    status: Status,
    events: Vec<Event>,
}

async fn five_times(data: &Bytes, parts: usize, settings: Settings, refuses: bool) -> Outcome {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 2).await;
    let fleet = Fleet::new(1);
    let notes = Notes { refuses_corrupt: refuses, ..Notes::default() };
    put(&client, ["before".into()]).await;
    put(&client, std::iter::repeat_n(data.clone(), 5)).await;
    put(&client, ["after".into()]).await;
    let worker = notes.start(&fleet, &local, settings).await;
    notes.settled(&fleet, 5 * parts + 2).await;
    let status = worker.status();
    worker.shutdown(DEADLINE).await.unwrap();
    let mut delivered = notes.delivered.lock().clone();
    assert_eq!(delivered.remove(0).data, "before");
    assert_eq!(delivered.pop().unwrap().data, "after");
    let events = fleet.events().into_iter().map(|(_, event)| event);
    let aside = notes.aside.lock().clone();
    Outcome { delivered, aside, status, events: events.collect() }
}

fn counts(status: &Status) -> (u64, u64) {
    (status.misrouted_records, status.corrupt_aggregates)
}

#[tokio::test(start_paused = true)]
async fn l10_a_records_of_a_sibling_shard_are_delivered_and_counted() {
    let data = packed([
        ("here", Some(HERE), &b"1"[..]),
        ("there", Some(THERE), b"2"),
        ("here", Some(HERE), b"3"),
        // By its MD5: c8206735…, in the upper half.
        ("Bucephalus", None, b"4"),
    ]);
    assert!(hash_key("Bucephalus") > u128::MAX / 2);
    let outcome = five_times(&data, 4, horizon(), false).await;
    assert_eq!(counts(&outcome.status), (10, 0));
    for (nth, record) in outcome.delivered.iter().enumerate() {
        let index = nth % 4;
        assert_eq!(record.data, (index + 1).to_string());
        assert_eq!(record.sub_sequence_number, index as u64);
        assert_eq!(record.partition_key, ["here", "there", "here", "Bucephalus"][index]);
        let explicit = [Some(HERE), Some(THERE), Some(HERE), None][index];
        let explicit_hash_key = explicit.map(HashKey::from);
        let misrouted = index % 2 == 1;
        assert_eq!(record.packing, Packing::Part { explicit_hash_key, misrouted });
    }
    let reported = |event: &&Event| matches!(event, Event::MisroutedRecords { .. });
    let reported: Vec<_> = outcome.events.iter().filter(reported).collect();
    let shard = LeaseKey::from("shardId-000000000000");
    let first = Event::MisroutedRecords { shard, records: 2, dropped: false };
    assert_eq!(reported, [&first], "one event a minute, the count in the status");
}

#[tokio::test(start_paused = true)]
async fn l10_a_only_records_of_a_sibling_shard_are_dropped_and_only_when_asked_for() {
    let data = packed([
        ("here", Some(HERE), &b"1"[..]),
        ("there", Some(THERE), b"2"),
        ("here", None, b"3"),
        ("there", Some(THERE), b"4"),
    ]);
    let misrouted = usize::from(hash_key("here") > u128::MAX / 2);
    let settings = Settings { on_misrouted: MisroutedPolicy::Drop, ..horizon() };
    let outcome = five_times(&data, 2 - misrouted, settings, false).await;
    assert_eq!(counts(&outcome.status), (10 + 5 * misrouted as u64, 0));
    assert!(outcome.delivered.iter().all(|record| record.partition_key == "here"));
    let dropped = |event: &Event| matches!(event, Event::MisroutedRecords { dropped: true, .. });
    assert!(outcome.events.iter().any(dropped));
}

/// A corrupt aggregate is delivered unchanged, or dead-lettered if the processor rejects it.
async fn is_corrupt(data: &Bytes) {
    let outcome = five_times(data, 1, horizon(), false).await;
    assert_eq!(counts(&outcome.status), (0, 5));
    for record in &outcome.delivered {
        assert_eq!((&record.data, record.packing), (data, Packing::Corrupt));
        assert_eq!((record.partition_key.as_str(), record.sub_sequence_number), ("outer", 0));
    }
    let reported = |event: &&Event| matches!(event, Event::CorruptAggregate { records: 1, .. });
    assert_eq!(outcome.events.iter().filter(reported).count(), 1, "one event a minute");

    let settings = Settings { failures: FailurePolicy::DeadLetter { attempts: 1 }, ..horizon() };
    let outcome = five_times(data, 1, settings, true).await;
    assert_eq!((outcome.delivered.len(), outcome.aside.len()), (0, 5));
    assert!(outcome.aside.iter().all(|letter| letter.data == data));
    assert_eq!(counts(&outcome.status), (0, 5), "counted once, however often it is tried");
}

#[tokio::test(start_paused = true)]
async fn l10_b_a_wrong_checksum_is_delivered_as_it_is_and_counted() {
    let mut data = packed([("a", None, &b"x"[..]), ("b", None, b"y")]).to_vec();
    *data.last_mut().unwrap() ^= 1;
    is_corrupt(&data.into()).await;
    is_corrupt(&Bytes::from_static(&MAGIC)).await;
}

#[tokio::test(start_paused = true)]
async fn l10_c_a_cut_message_is_delivered_as_it_is_and_counted() {
    let data = packed([("a", None, &b"first"[..]), ("b", None, b"second")]);
    let message = &data[4..data.len() - 16];
    is_corrupt(&framed(&message[..message.len() - 3])).await;
}

#[tokio::test(start_paused = true)]
async fn l10_d_a_key_that_is_not_there_is_delivered_as_it_is_and_counted() {
    let good = five_times(&framed(&naming_key(0)), 1, horizon(), false).await;
    assert_eq!(counts(&good.status).1, 0);
    is_corrupt(&framed(&naming_key(1))).await;
    is_corrupt(&framed(&[&naming_key(0)[..], &naming_key(127)].concat())).await;
}

#[tokio::test(start_paused = true)]
async fn l10_e_an_aggregate_of_nothing_is_delivered_as_it_is_and_counted() {
    is_corrupt(&framed(&[])).await;
    is_corrupt(&framed(&[0x0a, 1, b'a'])).await;
}

#[tokio::test(start_paused = true)]
async fn l10_f_nested_and_largest_aggregates_are_unpacked_once() {
    let inner = packed([("inner", Some(HERE), &b"x"[..])]);
    let outcome =
        five_times(&packed([("outer", Some(HERE), &inner[..])]), 1, horizon(), false).await;
    assert_eq!(counts(&outcome.status), (0, 0));
    assert!(outcome.delivered.iter().all(|record| record.data == inner));

    let mut packer = Packer::new((1 << 20) - "outer".len());
    while packer.push("a key", Some(HERE), b"x") {}
    let parts = packer.len();
    assert!(parts > 90_000, "{parts}");
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 2).await;
    put(&client, [packer.finish().unwrap()]).await;
    let (fleet, notes) = (Fleet::new(1), Notes::default());
    let worker = notes.start(&fleet, &local, horizon()).await;
    notes.settled(&fleet, parts).await;
    assert_eq!(counts(&worker.status()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn l10_f_a_forged_aggregate_that_would_fill_the_memory_is_delivered_as_it_is() {
    let key = "k".repeat(100_000);
    let mut packer = Packer::new(1 << 20);
    for _ in 0..10_000 {
        assert!(packer.push(&key, None, b""));
    }
    is_corrupt(&packer.finish().unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn l10_events_about_broken_aggregates_are_no_flood() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 2).await;
    let (fleet, notes) = (Fleet::new(1), Notes::default());
    let worker = notes.start(&fleet, &local, horizon()).await;
    for _ in 0..180 {
        put(&client, [framed(&[])]).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    notes.settled(&fleet, 180).await;
    assert_eq!(counts(&worker.status()), (0, 180));
    let events = fleet.events().into_iter().filter_map(|(_, event)| match event {
        Event::CorruptAggregate { records, .. } => Some(records),
        _ => None,
    });
    let reported: Vec<_> = events.collect();
    assert!(
        (3..=4).contains(&reported.len()) && reported.iter().sum::<u64>() > 100,
        "{reported:?}"
    );
}

/// A failed pass re-reads records: their faults are not counted again.
#[tokio::test(start_paused = true)]
async fn l10_what_is_read_again_is_not_counted_again() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 2).await;
    put(&client, [framed(&[]), packed([("there", Some(THERE), &b"1"[..])]), "last".into()]).await;
    let fleet = Fleet::new(1).script(Script { panics: Some("last".into()), ..Script::default() });
    let worker = fleet.start_on("a", polling::stream(&local), horizon()).await;
    fleet.until_delivered(5).await;
    let failed = |_: &str, event: &Event| matches!(event, Event::ProcessorFailed { .. });
    assert_eq!(fleet.count(failed), 1);
    tokio::time::sleep(DEADLINE).await;
    assert_eq!(counts(&worker.status()), (1, 1));
}

/// Ten aggregates of twenty, and a checkpoint inside one. The next owner's iterator expires, its reader
/// hangs or its connection breaks before the first batch arrives: it still continues with the first record
/// that is not acknowledged.
#[tokio::test(start_paused = true)]
async fn l11_a_reader_that_fails_before_its_first_batch_skips_no_rest_of_an_aggregate() {
    let expired = || Effect::FailBefore { code: "ExpiredIteratorException".into(), status: 400 };
    let effects = [expired(), Effect::Hang, Effect::DropHalfReply, Effect::Throttle];
    for (done, effect) in [1, 20, 27, 39, 199].into_iter().zip(effects.iter().cycle()) {
        let local = LocalAws::in_memory();
        let client = polling::create(&local, 1).await;
        let aggregate = |number: u32| {
            let parts: Vec<String> = (0..20).map(|part| (number * 20 + part).to_string()).collect();
            packed(parts.iter().map(|part| ("key", None, part.as_bytes())))
        };
        put(&client, (0..10).map(aggregate)).await;
        let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
        let settings = Settings { checkpoints: CheckpointPolicy::EveryBatch, ..horizon() };
        let worker = fleet.start_on("a", polling::stream(&local), settings.clone()).await;
        fleet.until_delivered(200).await;
        let acks = std::mem::take(&mut *fleet.acks.lock());
        let mut acks = acks.into_iter();
        acks.by_ref().take(done).for_each(|(_, ack)| ack.acknowledge());
        let sub = (done as u64 - 1) % 20;
        let stored = |fleet: &Fleet| match &fleet.lease(&polling::shard(0)).checkpoint {
            Checkpoint::At(position) => position.sub_sequence_number == sub,
            _ => false,
        };
        fleet.within(DEADLINE, "the checkpoint", stored).await;
        worker.abort();
        local.faults().add(
            Rule::new(effect.clone()).client(polling::READER).operation("GetRecords").times(2),
        );
        let _next = fleet.start_on("b", polling::stream(&local), settings).await;
        let of_b = |log: &[Seen]| {
            let payload = |seen: &Seen| match seen {
                Seen::Record(worker, _, payload) if worker == "b" => Some(payload.clone()),
                Seen::Record(..) | Seen::Callback(..) | Seen::Event(..) => None,
            };
            log.iter().filter_map(payload).collect::<Vec<_>>()
        };
        fleet.until("b reads to the end", |log| of_b(log).len() >= 200 - done).await;
        let expected: Vec<_> = (done..200).map(|number| number.to_string()).collect();
        assert_eq!(of_b(&fleet.log.lock()), expected, "after {done}, {effect:?}");
    }
}
