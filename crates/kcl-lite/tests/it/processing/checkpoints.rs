//! Checkpoints: policies, prepared checkpoints, quiet shards, and records that aged out.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kcl_lite::lease::store::LeaseStore as _;
use kcl_lite::lease::{Lease, LeaseChange, LeaseWrite, WriteId};
use kcl_lite::{
    Batch, BoxError, Checkpoint, CheckpointPolicy, Checkpointer, ErrorKind, Event, GapPolicy,
    InitialPosition, LeaseLost, PendingCheckpoint, RecordProcessor, Resume, Settings, ShardContext,
    WorkerHandle,
};

use super::shelf::Shelf;
use super::{DEADLINE, at, eager, numbers, put, shard, start, until_stored};
use crate::fleet::{Faults, Fleet, LEASE, Script, Seen, settings};

type Handler = Arc<dyn Fn(Batch) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;

/// A processor whose `process` is a closure.
struct Probe {
    fleet: Fleet,
    worker: String,
    handler: Handler,
    resume: Resume,
    /// The contexts that it was started with.
    contexts: Arc<Mutex<Vec<ShardContext>>>,
}

impl RecordProcessor for Probe {
    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        for record in batch.records() {
            let payload = String::from_utf8_lossy(&record.data).into_owned();
            let shard = batch.shard_id().clone();
            self.fleet.note(Seen::Record(self.worker.clone(), shard, payload));
        }
        (self.handler)(batch).await
    }

    async fn initialize(&mut self, shard: &ShardContext) -> Result<(), BoxError> {
        self.contexts.lock().push(shard.clone());
        Ok(())
    }

    async fn resume(&mut self, _pending: &PendingCheckpoint) -> Result<Resume, BoxError> {
        self.fleet.note(Seen::Callback(self.worker.clone(), shard(), "resume"));
        Ok(self.resume)
    }
}

/// Returns the contexts that its processors were started with.
type Contexts = Arc<Mutex<Vec<ShardContext>>>;

async fn probe<F, B>(
    fleet: &Fleet,
    name: &str,
    settings: Settings,
    resume: Resume,
    handler: F,
) -> (WorkerHandle, Contexts)
where
    F: Fn(Batch) -> B + Send + Sync + 'static,
    B: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let handler: Handler = Arc::new(move |batch| Box::pin(handler(batch)));
    let contexts = Contexts::default();
    let (of_fleet, worker, seen) = (fleet.clone(), name.to_owned(), Arc::clone(&contexts));
    let make = move |_: &ShardContext| Probe {
        fleet: of_fleet.clone(),
        worker: worker.clone(),
        handler: Arc::clone(&handler),
        resume,
        contexts: Arc::clone(&seen),
    };
    let worker = fleet.builder(name).settings(settings).build().await.unwrap();
    (worker.start(make).await.unwrap(), contexts)
}

fn manual() -> Settings {
    Settings { checkpoints: CheckpointPolicy::Manual, ..eager() }
}

fn payload(batch: &Batch) -> &[u8] {
    &batch.records()[0].data
}

#[tokio::test(start_paused = true)]
async fn checkpoints_are_stored_as_often_as_the_policy_says_and_no_more() {
    for (policy, least, most) in [
        (CheckpointPolicy::OnRenewal, 2, 4),
        (CheckpointPolicy::Every(Duration::from_secs(1)), 8, 11),
        (CheckpointPolicy::EveryBatch, 95, 101),
        (CheckpointPolicy::Manual, 0, 0),
    ] {
        let fleet = Fleet::new(1);
        let worker = start(&fleet, "a", Settings { checkpoints: policy, ..eager() }).await;
        for number in 1..=100 {
            put(&fleet, number..=number);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let advanced = |(_, event): &&(String, Event)| {
            matches!(event, Event::LeaseRenewed { advanced: true, .. })
        };
        let count = fleet.events().iter().filter(advanced).count();
        assert!((least..=most).contains(&count), "{policy:?}: {count}");
        worker.shutdown(DEADLINE).await.unwrap();
        assert_eq!(fleet.lease(&shard()).checkpoint, at(100), "{policy:?}: a stop stores all");
    }
}

#[tokio::test(start_paused = true)]
async fn a_manual_checkpoint_is_durable_when_it_returns_and_renewals_carry_none() {
    let fleet = Fleet::new(1);
    let stored = Arc::new(Mutex::new(None));
    let (of_fleet, reported) = (fleet.clone(), Arc::clone(&stored));
    let (worker, _) = probe(&fleet, "a", manual(), Resume::Repeat, move |mut batch| {
        let (fleet, stored) = (of_fleet.clone(), Arc::clone(&reported));
        async move {
            if payload(&batch) == b"5" {
                let checkpointer = batch.checkpointer();
                batch.defer().acknowledge();
                checkpointer.checkpoint().await?;
                *stored.lock() = Some(fleet.lease(&shard()).checkpoint);
            }
            Ok(())
        }
    })
    .await;
    put(&fleet, 1..=4);
    fleet.until_delivered(4).await;
    tokio::time::sleep(2 * LEASE).await;
    let row = fleet.lease(&shard());
    assert_eq!((row.checkpoint, row.read_until), (Checkpoint::TrimHorizon, None));
    put(&fleet, 5..=5);
    until_stored(&fleet, &at(5)).await;
    put(&fleet, 6..=6);
    fleet.until_delivered(6).await;
    tokio::time::sleep(2 * LEASE).await;
    assert_eq!(*stored.lock(), Some(at(5)));
    assert_eq!(fleet.lease(&shard()).checkpoint, at(5));
    worker.abort();
    let _next = start(&fleet, "b", eager()).await;
    fleet.until_delivered(7).await;
    assert_eq!(fleet.delivered()[6..], numbers(6..=6));
}

/// Record 1 is prepared, and the worker dies before the second phase. The next owner finds the prepared
/// checkpoint, and its processor decides.
#[tokio::test(start_paused = true)]
async fn a_prepared_checkpoint_is_durable_and_the_next_owner_decides_what_became_of_it() {
    for (resume, faults) in
        [(Resume::Repeat, Faults::None), (Resume::Commit, Faults::LoseReplies(true))]
    {
        let fleet = Fleet::new(1);
        fleet.store.set(faults);
        let prepared = Arc::new(Mutex::new(None));
        let (of_fleet, reported) = (fleet.clone(), Arc::clone(&prepared));
        let (killed, contexts) = probe(&fleet, "a", manual(), resume, move |batch| {
            let (fleet, prepared) = (of_fleet.clone(), Arc::clone(&reported));
            async move {
                batch.checkpointer().prepare(Some(b"payment".to_vec())).await?;
                *prepared.lock() = fleet.lease(&shard()).pending;
                std::future::pending().await
            }
        })
        .await;
        put(&fleet, 1..=1);
        fleet.until("it is prepared", |_| fleet.lease(&shard()).pending.is_some()).await;
        tokio::time::sleep(LEASE).await;
        let pending = PendingCheckpoint { checkpoint: at(1), state: Some(b"payment".to_vec()) };
        assert_eq!(*prepared.lock(), Some(pending.clone()), "before the side effect");
        assert_eq!(contexts.lock()[0].pending, None);
        assert_eq!(fleet.lease(&shard()).checkpoint, Checkpoint::TrimHorizon);
        killed.abort();
        fleet.store.set(Faults::None);

        put(&fleet, 2..=2);
        let (worker, contexts) = probe(&fleet, "b", eager(), resume, |_| async { Ok(()) }).await;
        until_stored(&fleet, &at(2)).await;
        worker.shutdown(DEADLINE).await.unwrap();
        assert_eq!(contexts.lock()[0].pending, Some(pending));
        assert_eq!(fleet.callbacks(), [format!("b {} resume", shard())]);
        assert_eq!(fleet.lease(&shard()).pending, None, "the checkpoint has passed it");
        let again = match resume {
            Resume::Repeat => numbers(1..=2),
            Resume::Commit => numbers(2..=2),
        };
        assert_eq!(fleet.delivered()[1..], again, "{resume:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_committed_checkpoint_is_stored_at_once_whatever_the_policy() {
    let fleet = Fleet::new(1);
    fleet.store.inner.write(&prepared_by_java(5)).await.unwrap();
    put(&fleet, 1..=5);
    let (_worker, _) = probe(&fleet, "a", manual(), Resume::Commit, |_| async { Ok(()) }).await;
    until_stored(&fleet, &at(5)).await;
    assert_eq!(fleet.lease(&shard()).pending, None);
    tokio::time::sleep(LEASE).await;
    assert!(fleet.delivered().is_empty());
    let gap = |(_, event): &(String, Event)| matches!(event, Event::GapDetected { .. });
    assert!(!fleet.events().iter().any(gap));
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_panicked_between_the_phases_is_followed_by_one_that_is_asked() {
    let fleet = Fleet::new(1);
    let (_worker, contexts) = probe(&fleet, "a", eager(), Resume::Commit, |batch| async move {
        batch.checkpointer().prepare(None).await?;
        panic!("between the phases");
    })
    .await;
    put(&fleet, 1..=1);
    until_stored(&fleet, &at(1)).await;
    let pending = contexts.lock()[1].pending.clone();
    assert_eq!(pending, Some(PendingCheckpoint { checkpoint: at(1), state: None }));
    assert_eq!(fleet.delivered(), ["1"]);
}

/// Creates the row of a Java worker that stopped between the phases.
fn prepared_by_java(number: u64) -> LeaseWrite {
    let pending = PendingCheckpoint { checkpoint: at(number), state: Some(vec![1, 2]) };
    let mut lease = Lease::new(shard().as_str(), Checkpoint::TrimHorizon);
    (lease.pending, lease.counter) = (Some(pending), 7);
    let (key, id) = (lease.key.clone(), WriteId::new("java"));
    LeaseWrite { key, id, change: LeaseChange::Create(Box::new(lease)) }
}

#[tokio::test(start_paused = true)]
async fn what_another_library_prepared_stays_until_the_checkpoint_reaches_it() {
    let fleet = Fleet::new(1);
    let write = prepared_by_java(5);
    fleet.store.inner.write(&write).await.unwrap();
    let _worker = start(&fleet, "a", eager()).await;
    put(&fleet, 1..=4);
    until_stored(&fleet, &at(4)).await;
    tokio::time::sleep(LEASE).await;
    let LeaseChange::Create(java) = write.change else { panic!("a create") };
    assert_eq!(fleet.lease(&shard()).pending, java.pending);
    put(&fleet, 5..=5);
    until_stored(&fleet, &at(5)).await;
    assert_eq!(fleet.lease(&shard()).pending, None);
}

#[tokio::test(start_paused = true)]
async fn a_checkpointer_of_a_shard_that_was_lost_stores_nothing_and_says_so() {
    let fleet = Fleet::new(1);
    let kept: Arc<Mutex<Option<Checkpointer>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let (_worker, _) = probe(&fleet, "a", manual(), Resume::Repeat, move |batch| {
        *keep.lock() = Some(batch.checkpointer());
        async { Ok(()) }
    })
    .await;
    put(&fleet, 1..=1);
    fleet.until_delivered(1).await;
    fleet.store.set(Faults::Down);
    let lost = |_: &str, event: &Event| matches!(event, Event::LeaseLost { .. });
    fleet.until_event("it is lost", lost).await;
    fleet.store.set(Faults::None);
    let checkpointer = kept.lock().take().unwrap();
    assert_eq!(checkpointer.checkpoint().await, Err(LeaseLost));
    assert_eq!(checkpointer.prepare(None).await, Err(LeaseLost));
    assert_eq!(fleet.lease(&shard()).checkpoint, Checkpoint::TrimHorizon);
}

/// Nothing arrives for an hour: the row still states that everything until a moment ago is read, without
/// any writes besides renewals; while a record is in flight it does not.
#[tokio::test(start_paused = true)]
async fn d11_a_quiet_shard_stays_fresh_and_an_unacknowledged_record_holds_it_back() {
    let shelf = Shelf { limit: 1, ..Shelf::new(2, 1) };
    let last = shelf.records.lock()[1].arrived;
    let fleet = Fleet::new(1);
    let from_start = Settings { checkpoints: CheckpointPolicy::OnRenewal, ..eager() };
    let _worker = fleet.start_on("a", shelf.clone(), from_start.clone()).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let row = fleet.lease(&shard());
    assert_eq!(row.checkpoint, at(2));
    let stale = shelf.now().as_millis() - row.read_until.unwrap().as_millis();
    assert!(stale <= 6_000, "a third of the lease duration and a poll, but it is {stale} ms");
    let renewed = |(_, event): &&(String, Event)| matches!(event, Event::LeaseRenewed { .. });
    let writes = fleet.events().iter().filter(renewed).count();
    assert!(writes <= 3600 * 3 / 10 + 10, "{writes}");

    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    let _worker = fleet.start_on("a", shelf.clone(), from_start).await;
    fleet.until_delivered(2).await;
    let acks = std::mem::take(&mut *fleet.acks.lock());
    let mut acks = acks.into_iter();
    acks.next().unwrap().1.acknowledge();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let row = fleet.lease(&shard());
    assert_eq!(row.checkpoint, at(1));
    assert!(row.read_until.unwrap() < last, "{:?}", row.read_until);
    acks.for_each(|(_, ack)| ack.acknowledge());
    until_stored(&fleet, &at(2)).await;
}

const RETENTION: Duration = Duration::from_secs(600);

/// Records 1 to 3 are processed, the worker is off for longer than the retention, and 7 is the oldest
/// record when it comes back.
async fn away_for_too_long(on_gap: GapPolicy) -> (Fleet, Shelf, WorkerHandle) {
    let shelf = Shelf { retention: Some(RETENTION), ..Shelf::new(3, 1) };
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", shelf.clone(), eager()).await;
    until_stored(&fleet, &at(3)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    for number in 4..=9 {
        tokio::time::advance(RETENTION / 5).await;
        shelf.put(number);
    }
    shelf.trim(7);
    let worker = fleet.start_on("b", shelf.clone(), Settings { on_gap, ..eager() }).await;
    (fleet, shelf, worker)
}

fn gaps(fleet: &Fleet) -> Vec<(String, String)> {
    let gaps = fleet.events().into_iter().filter_map(|(_, event)| match event {
        Event::GapDetected { from, to, .. } => {
            Some((from.to_string(), to.map_or_else(String::new, |to| to.to_string())))
        }
        _ => None,
    });
    gaps.collect()
}

#[tokio::test(start_paused = true)]
async fn l12_records_that_aged_out_unread_are_reported_once_and_reading_goes_on_with_the_oldest() {
    let begun = tokio::time::Instant::now();
    let (fleet, _, worker) = away_for_too_long(GapPolicy::Resume).await;
    until_stored(&fleet, &at(9)).await;
    let away = RETENTION / 5 * 6;
    assert!(begun.elapsed() < away + Duration::from_secs(8), "{:?}", begun.elapsed());
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(gaps(&fleet), [("3".to_owned(), "7".to_owned())]);
    assert_eq!(fleet.delivered()[3..], numbers(7..=9));
}

#[tokio::test(start_paused = true)]
async fn l12_a_worker_that_is_told_to_stop_at_a_gap_delivers_nothing() {
    let (fleet, _, worker) = away_for_too_long(GapPolicy::Stop).await;
    let stopped = tokio::time::timeout(RETENTION, worker.stopped());
    let error = stopped.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gap);
    assert!(error.to_string().contains("behind checkpoint `3`"), "{error}");
    assert_eq!(gaps(&fleet).len(), 1);
    assert_eq!(fleet.delivered(), numbers(1..=3));
    let row = fleet.lease(&shard());
    assert_eq!((row.owner, row.checkpoint), (None, at(3)));
}

/// All missed records have aged out, and nothing new arrives: the next owner must not conclude from the
/// quiet that everything was read.
#[tokio::test(start_paused = true)]
async fn l12_a_gap_in_a_shard_that_is_quiet_now_is_reported_before_it_counts_as_read() {
    let shelf = Shelf { retention: Some(RETENTION), ..Shelf::new(3, 1) };
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", shelf.clone(), eager()).await;
    until_stored(&fleet, &at(3)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    shelf.put(4);
    tokio::time::advance(RETENTION * 2).await;
    shelf.trim(5);
    let worker = fleet.start_on("b", shelf, eager()).await;
    tokio::time::sleep(RETENTION / 5).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(gaps(&fleet), [("3".to_owned(), String::new())]);
}

/// The last record has long aged out, but the shard was quiet and read all the time.
#[tokio::test(start_paused = true)]
async fn l12_a_quiet_shard_whose_last_record_aged_out_has_no_gap() {
    let shelf = Shelf { retention: Some(RETENTION), ..Shelf::new(3, 1) };
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", shelf.clone(), eager()).await;
    tokio::time::sleep(RETENTION * 2).await;
    shelf.trim(4);
    worker.shutdown(DEADLINE).await.unwrap();
    tokio::time::sleep(RETENTION / 2).await;
    shelf.put(4);
    let _worker = fleet.start_on("b", shelf, eager()).await;
    until_stored(&fleet, &at(4)).await;
    assert_eq!(gaps(&fleet), []);
}

/// "Latest" was resolved at the first start of the application, which died before it read anything.
#[tokio::test(start_paused = true)]
async fn l12_a_start_at_latest_that_is_older_than_the_retention_is_a_gap() {
    let shelf = Shelf { retention: Some(RETENTION), ..Shelf::new(0, 1) };
    let fleet = Fleet::new(1);
    let latest = Settings { initial_position: InitialPosition::Latest, ..settings() };
    drop(fleet.start_on("a", shelf.clone(), latest.clone()).await);
    tokio::time::advance(RETENTION * 3).await;
    shelf.put(5);
    let worker = fleet.start_on("b", shelf, latest).await;
    until_stored(&fleet, &at(5)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(gaps(&fleet), [("LATEST".to_owned(), "5".to_owned())]);
    assert!(fleet.callbacks().contains(&format!("b {} gap", shard())));
}

#[tokio::test(start_paused = true)]
async fn d05_a_table_that_fails_is_not_asked_more_often_because_batches_are_done() {
    let fleet = Fleet::new(1);
    let _worker = start(&fleet, "a", eager()).await;
    put(&fleet, 1..=1);
    until_stored(&fleet, &at(1)).await;
    fleet.store.set(Faults::Down);
    for number in 2..=400 {
        put(&fleet, number..=number);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let failed = |(_, event): &&(String, Event)| {
        matches!(event, Event::CoordinationFailed { operation: "renewing a lease", .. })
    };
    let attempts = fleet.events().iter().filter(failed).count();
    assert!((4..=16).contains(&attempts), "{attempts} attempts in 4 s");
    fleet.store.set(Faults::None);
    until_stored(&fleet, &at(400)).await;
}
