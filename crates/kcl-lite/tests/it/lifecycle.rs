//! The state that a handle reports from start to end, and the fate of the worker when the handle or the
//! runtime is dropped first.

use parking_lot::Mutex;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::{
    Batch, BoxError, Checkpoint, CheckpointPolicy, ControlPlane, Error, ErrorKind, Event,
    FailurePolicy, InitialPosition, RecordProcessor, Settings, ShardId, ShardStatus, TakeReason,
    Worker, WorkerHandle, WorkerState,
};
use tokio::time::sleep;

use crate::faults::{Link, LinkStream};
use crate::fleet::{Faults, Fleet, LEASE, Script, Seen, settings};

const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(30);

fn shard() -> ShardId {
    "shardId-000000000000".into()
}

fn horizon() -> Settings {
    Settings { initial_position: InitialPosition::TrimHorizon, ..settings() }
}

fn of_shard(worker: &WorkerHandle) -> ShardStatus {
    worker.status().shards[shard().as_str()].clone()
}

async fn until(worker: &WorkerHandle, what: &str, is_so: impl Fn(&WorkerHandle) -> bool) {
    let wait = async {
        while !is_so(worker) {
            sleep(SECOND / 10).await;
        }
    };
    let status = || worker.status();
    tokio::time::timeout(DEADLINE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}\n{}", status()));
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_starting_running_stopping_and_stopped_and_only_well_while_it_runs() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    fleet.stream.put("key", "0");
    let worker = fleet.start("a").await;
    fleet.until_delivered(1).await;
    until(&worker, "it is well", |it| it.health().is_healthy()).await;
    assert_eq!(worker.health().state, WorkerState::Running);

    let look = async {
        // The drain waits for the outstanding acknowledgement.
        sleep(SECOND).await;
        let health = worker.health();
        assert_eq!((health.state.clone(), health.is_healthy()), (WorkerState::Stopping, false));
        let requests =
            [worker.pause().await, worker.resume().await, worker.explain().await.map(drop)];
        assert!(requests.into_iter().all(is_refused), "a stopping worker takes no requests");
    };
    let (report, ()) = tokio::join!(worker.shutdown(2 * SECOND), look);
    report.unwrap();
    let status = worker.status();
    assert_eq!(status.health.state, WorkerState::Stopped);
    assert!(!status.health.is_healthy());
    assert!(status.shards.is_empty(), "{status}");
    assert_eq!(worker.health().to_string(), "stopped");
}

fn is_refused(result: Result<(), Error>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::Stopped)
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ended_by_itself_says_why_and_takes_no_requests() {
    let script = Script { failures: [("3".to_owned(), 9)].into(), ..Script::default() };
    let fleet = Fleet::new(1).script(script);
    let failures = FailurePolicy::Stop { attempts: 3 };
    let worker = fleet.start_with("a", Settings { failures, ..horizon() }).await;
    fleet.stream.put("key", "3");
    let error = worker.stopped().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Processor);

    let status = worker.status();
    assert!(!status.health.is_healthy());
    assert_eq!(status.health.state, WorkerState::Failed { reason: error.to_string() });
    assert!(status.shards.is_empty(), "{status}");
    let text = worker.health().to_string();
    assert!(text.starts_with("failed: ") && text.contains("cannot process 3"), "{text}");

    let pause = worker.pause().await.unwrap_err();
    assert!(pause.to_string().contains("start another one"), "{pause}");
    let others = [worker.drain().await, worker.resume().await, worker.explain().await.map(drop)];
    assert!([Err(pause)].into_iter().chain(others).all(is_refused));
}

/// The table goes down between the start and the first scan of the running worker.
#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_read_the_table_is_starting_and_not_well() {
    let fleet = Fleet::new(1);
    let store = fleet.store.clone();
    let builder = fleet.builder("a").settings(horizon()).on_event(move |event| {
        if matches!(event, Event::Started { .. }) {
            store.set(Faults::Down);
        }
    });
    let worker = builder.build().await.unwrap().start(|_| Accept).await.unwrap();
    sleep(LEASE / 2).await;
    assert_eq!(worker.health().to_string(), "starting");
    assert!(!worker.health().is_healthy());
    fleet.store.set(Faults::None);
    until(&worker, "it is well", |it| it.health().is_healthy()).await;
}

#[tokio::test(start_paused = true)]
async fn the_checkpoint_in_a_status_is_the_stored_one() {
    let fleet = Fleet::new(1);
    let worker = fleet.start("a").await;
    for number in 0..3_u32 {
        fleet.feed(number..number + 1);
        let has_moved = |it: &Fleet| it.lease(&shard()).checkpoint >= at(u64::from(number) + 1);
        fleet.within(LEASE, "a renewal", has_moved).await;
        sleep(2 * SECOND).await;
        assert_eq!(of_shard(&worker).checkpoint, at(u64::from(number) + 1));
    }
}

fn at(number: u64) -> Checkpoint {
    Checkpoint::parse(&number.to_string(), 0).unwrap()
}

/// The first record is stored and the second one hangs, so that the stop is cut short.
#[tokio::test(start_paused = true)]
async fn a_shard_that_is_abandoned_is_reported_with_its_stored_checkpoint_and_gets_no_callback() {
    let fleet = Fleet::new(1).script(Script { hangs: Some("2".to_owned()), ..Script::default() });
    let worker = fleet.start("a").await;
    fleet.stream.put("key", "1");
    fleet.within(LEASE, "it is stored", |it| it.lease(&shard()).checkpoint == at(1)).await;
    fleet.stream.put("key", "2");
    sleep(2 * SECOND).await;
    let report = worker.shutdown(SECOND).await.unwrap();
    let left = &report.shards[shard().as_str()];
    assert_eq!((left.drained, &left.checkpoint), (false, &at(1)));
    assert_eq!(fleet.callbacks(), ["a shardId-000000000000 initialize"]);
}

#[tokio::test(start_paused = true)]
async fn lag_grows_while_a_service_does_not_answer_and_tells_how_old_the_last_reply_is() {
    let fleet = Fleet::new(1);
    let (link, listings) = (Arc::new(Link::default()), Arc::default());
    let stream = LinkStream { inner: fleet.stream.clone(), link: Arc::clone(&link), listings };
    let worker = fleet.start_on("a", stream, horizon()).await;
    let is_at_tip = |it: &WorkerHandle| {
        let status = it.status();
        status.shards.get(shard().as_str()).is_some_and(|it| it.millis_behind_latest == Some(0))
    };
    until(&worker, "it is at the tip", is_at_tip).await;
    sleep(60 * SECOND).await;
    let at_tip = of_shard(&worker);
    assert_eq!(at_tip.millis_behind_latest, Some(0), "polls come on time");
    assert!(at_tip.since_reply.unwrap() <= 3 * SECOND, "{at_tip}");

    link.pause();
    let mut before = 0;
    for waited in [20, 40, 60] {
        sleep(20 * SECOND).await;
        let status = of_shard(&worker);
        let (lag, age) = (status.millis_behind_latest.unwrap(), status.since_reply.unwrap());
        assert!(lag > before && lag >= (waited - 5) * 1_000, "after {waited} s: {status}");
        assert_eq!(u128::from(lag), age.as_millis());
        before = lag;
    }
    link.resume();
    until(&worker, "it is at the tip again", is_at_tip).await;
}

/// A dropped handle has the full effect of a graceful shutdown, although nothing waits for it.
async fn is_released_without_a_loss(fleet: &Fleet) {
    fleet.until_event("a has stopped", |_, event| matches!(event, Event::Stopped)).await;
    let lease = fleet.lease(&shard());
    assert_eq!(lease.owner, None);
    assert_eq!(fleet.losses(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_handle_stops_its_worker_gracefully_and_another_goes_on_at_once() {
    let fleet = Fleet::new(1);
    fleet.feed(0..10);
    let worker = fleet.start("a").await;
    fleet.until_delivered(10).await;
    drop(worker);
    is_released_without_a_loss(&fleet).await;
    assert_eq!(fleet.lease(&shard()).checkpoint, at(10), "what was acknowledged is stored");
    let callbacks =
        ["a shardId-000000000000 initialize", "a shardId-000000000000 shutdown_requested"];
    assert_eq!(fleet.callbacks(), callbacks);

    let _other = fleet.start("b").await;
    let taken = |it: &Fleet| it.owners().contains_key("b");
    fleet.within(2 * SECOND, "b has it", taken).await;
    let expired = |_: &str, event: &Event| {
        matches!(event, Event::LeaseTaken { reason: TakeReason::Expired, .. })
    };
    assert_eq!(fleet.count(expired), 0);
}

#[tokio::test(start_paused = true)]
#[expect(unused_must_use, reason = "the compiler warns about a handle that is not kept")]
async fn a_worker_whose_handle_is_not_kept_stops_after_its_start() {
    let fleet = Fleet::new(1);
    fleet.start("a").await;
    is_released_without_a_loss(&fleet).await;
    fleet.feed(0..10);
    sleep(2 * LEASE).await;
    assert_eq!((fleet.owned(), fleet.delivered().len()), (0, 0));
}

/// A drop limits the shutdown to 30 seconds.
#[tokio::test(start_paused = true)]
async fn a_dropped_handle_does_not_wait_for_ever_for_a_processor_that_hangs() {
    let fleet = Fleet::new(1).script(Script { hangs: Some("0".to_owned()), ..Script::default() });
    fleet.feed(0..1);
    let worker = fleet.start("a").await;
    sleep(2 * SECOND).await;
    drop(worker);
    let ended = |it: &Fleet| it.count(|_, event| matches!(event, Event::Stopped)) == 1;
    let took = fleet.within(DEADLINE + SECOND, "it has stopped", ended).await;
    assert!(took >= DEADLINE - SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_aborted_worker_stores_nothing_calls_nothing_and_its_lease_expires() {
    let fleet = Fleet::new(1);
    let worker = fleet.start("a").await;
    fleet.feed(0..10);
    fleet.until_delivered(10).await;
    worker.abort();
    let error = worker.stopped().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert_eq!(worker.health().state, WorkerState::Failed { reason: error.to_string() });
    assert!(worker.status().shards.is_empty());
    sleep(LEASE / 2).await;
    assert_eq!(fleet.callbacks(), ["a shardId-000000000000 initialize"]);
    let lease = fleet.lease(&shard());
    assert_eq!((lease.owner, lease.checkpoint), (Some("a".into()), Checkpoint::TrimHorizon));
    let _other = fleet.start("b").await;
    fleet
        .until_event("b takes it", |_, event| {
            matches!(event, Event::LeaseTaken { reason: TakeReason::Expired, .. })
        })
        .await;
}

/// A processor that acknowledges all, on real time and real threads.
struct Accept;

impl RecordProcessor for Accept {
    async fn process(&mut self, _batch: Batch) -> Result<(), BoxError> {
        Ok(())
    }
}

/// A worker on real time, whose events can be awaited from outside of any runtime.
struct Alone {
    store: MemoryStore,
    runtime: tokio::runtime::Runtime,
    events: mpsc::Receiver<Event>,
    worker: WorkerHandle,
}

impl Alone {
    /// Starts a worker, and waits until it holds a lease with a checkpoint.
    fn start(control_plane: ControlPlane) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (store, stream) = (MemoryStore::new(), MemoryStream::new(1));
        stream.put("key", "value");
        let (sender, events) = mpsc::sync_channel(1_000);
        let sender = Mutex::new(sender);
        let settings = Settings {
            control_plane,
            checkpoints: CheckpointPolicy::EveryBatch,
            // The leases were released and did not expire.
            lease_duration: 30 * SECOND,
            ..horizon()
        };
        let builder = Worker::builder("test", "stream")
            .settings(settings)
            .stream(stream)
            .lease_store(store.clone())
            .on_event(move |event| {
                sender.lock().try_send(event.clone()).ok();
            });
        let worker =
            runtime.block_on(async { builder.build().await?.start(|_| Accept).await }).unwrap();
        let alone = Self { store, runtime, events, worker };
        until_event(&alone.events, |it| {
            matches!(it, Event::LeaseRenewed { checkpoint: Checkpoint::At(_), .. })
        });
        alone
    }
}

fn until_event(events: &mpsc::Receiver<Event>, is_wanted: impl Fn(&Event) -> bool) {
    while !is_wanted(&events.recv_timeout(2 * DEADLINE).expect("the event comes")) {}
}

fn has_stopped(event: &Event) -> bool {
    matches!(event, Event::Stopped)
}

#[test]
fn a_handle_that_is_dropped_outside_of_every_runtime_releases_the_leases() {
    for control_plane in [ControlPlane::OwnThread, ControlPlane::Inline] {
        let Alone { store, runtime, events, worker } = Alone::start(control_plane);
        drop(worker);
        until_event(&events, has_stopped);
        assert_eq!(store.snapshot()[0].owner, None, "{control_plane:?}");
        drop(runtime);
    }
}

#[test]
fn a_worker_whose_runtime_has_shut_down_releases_its_leases_and_says_so() {
    let Alone { store, runtime, events, worker } = Alone::start(ControlPlane::OwnThread);
    drop(runtime);
    until_event(&events, has_stopped);
    let row = &store.snapshot()[0];
    assert_eq!((&row.owner, &row.checkpoint), (&None, &at(1)));
    let another = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = another.block_on(worker.stopped()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
    assert_eq!(worker.health().state, WorkerState::Failed { reason: error.to_string() });
    drop(worker);
}

#[test]
fn a_worker_that_ran_on_its_runtime_alone_is_gone_with_it_and_says_so() {
    let Alone { store, runtime, worker, .. } = Alone::start(ControlPlane::Inline);
    drop(runtime);
    let health = worker.health();
    assert!(health.to_string().starts_with("failed: the runtime"), "{health}");
    assert!(worker.status().shards.is_empty());
    let another = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(is_refused(another.block_on(worker.pause())));
    assert!(store.snapshot()[0].owner.is_some(), "the lease expires");
    drop(worker);
}

/// A task of the runtime that shuts down owns the handle, which is dropped during the shutdown.
#[test]
fn a_handle_that_is_dropped_by_the_end_of_its_runtime_does_not_panic() {
    for control_plane in [ControlPlane::OwnThread, ControlPlane::Inline] {
        let Alone { store, runtime, events, worker } = Alone::start(control_plane);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn_on(
            async move {
                std::future::pending::<()>().await;
                drop(worker);
            },
            runtime.handle(),
        );
        tasks.detach_all();
        drop(runtime);
        if control_plane == ControlPlane::OwnThread {
            until_event(&events, has_stopped);
            assert_eq!(store.snapshot()[0].owner, None);
        } else {
            // The control plane has dropped the last sender.
            while events.recv_timeout(2 * DEADLINE).is_ok() {}
            assert!(store.snapshot()[0].owner.is_some(), "the lease expires");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn paused_time_is_refused_where_nothing_would_be_delivered() {
    let fleet = Fleet::new(1);
    let own_thread = Settings { control_plane: ControlPlane::OwnThread, ..horizon() };
    let refused = fleet.try_start_on("a", fleet.stream.clone(), own_thread.clone()).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`ControlPlane::Inline`"), "{error}");
    assert!(fleet.store.inner.snapshot().is_empty(), "nothing was started");

    let worker = fleet.start("b").await;
    fleet.feed(0..1);
    fleet.until_delivered(1).await;
    worker.shutdown(DEADLINE).await.unwrap();

    tokio::time::resume();
    let worker = fleet.try_start_on("c", fleet.stream.clone(), own_thread).await.unwrap();
    let is_delivered = |log: &[Seen]| {
        log.iter().any(|seen| matches!(seen, Seen::Record(worker, ..) if worker == "c"))
    };
    fleet.feed(1..2);
    fleet.until("a delivery to c", is_delivered).await;
    worker.shutdown(DEADLINE).await.unwrap();
}
