//! The keeper alone, on an in-memory store and paused time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::FutureExt as _;

use super::*;
use crate::checkpoint::Mark;
use crate::clock::tests::SuspendableClock;
use crate::clock::{Clock, LeaseClock, TokioClock};
use crate::event::Events;
use crate::lease::memory::MemoryStore;
use crate::lease::store::LeaseStore;
use crate::lease::tenure::create_write;
use crate::lease::{
    LeaseChange, LeaseKey, LeaseWrite, StreamIdentity, Table, WriteId, WriteOutcome, timing,
};
use crate::position::Position;
use crate::record::Timestamp;
use crate::settings::{Settings, StreamRecreated};
use crate::stream::memory::MemoryStream;

const SECOND: Duration = Duration::from_secs(1);

/// Creates a keeper of a lease that was proven `before` now.
fn keeper(before: Duration) -> (LeaseKeeper, KeeperLink) {
    keeper_on(Arc::new(TokioClock), before)
}

fn keeper_on(clock: Arc<dyn Clock>, before: Duration) -> (LeaseKeeper, KeeperLink) {
    let settings = Settings::default();
    let (lease_duration, margin) =
        (settings.lease_duration, timing::fence_margin(settings.lease_duration));
    let context = ControlContext {
        store: Arc::new(MemoryStore::new()),
        stream: Arc::new(MemoryStream::new(1)),
        clock,
        settings: settings.into(),
        events: Events::new("me".into(), None),
        incarnation: "me#1".to_owned(),
        several_streams: false,
        began: Instant::now(),
    };
    let mut lease = Lease::new("shardId-0", Checkpoint::TrimHorizon);
    lease.owner = Some("me".into());
    let sent = Instant::now() - before;
    let tenure = Tenure::new(lease, sent, "me".into(), "me#1".to_owned(), lease_duration, margin);
    LeaseKeeper::new(context, tenure, fastrand::Rng::with_seed(7))
}

#[tokio::test(start_paused = true)]
async fn a_take_that_was_answered_late_is_renewed_before_its_fence() {
    tokio::time::advance(Duration::from_secs(60)).await;
    let (keeper, _link) = keeper(Duration::from_secs(6));
    assert!(keeper.next_write < keeper.tenure.fenced_at());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_delivered_past_the_fence_until_a_renewal_moves_it() {
    tokio::time::advance(Duration::from_secs(60)).await;
    let clock: Arc<dyn Clock> = Arc::new(TokioClock);
    let (keeper, link) = keeper(Duration::from_secs(9));
    let blocked = within(&clock, Duration::from_secs(3600), link.still_ours()).await;
    assert_eq!(blocked, None, "the lease is not proven");
    keeper.line.fenced_at.send_replace(clock.now() + Duration::from_secs(9));
    link.still_ours().await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_whose_machine_was_suspended_stops_itself_and_delivers_nothing_more() {
    let machine = SuspendableClock::new();
    let clock = LeaseClock::new(Arc::new(machine.clone()));
    let (keeper, link) = keeper_on(Arc::new(clock.clone()), Duration::ZERO);
    stored(&keeper).await;
    link.still_ours().await;
    let began = machine.now();
    machine.suspend(Duration::from_secs(20));
    // The keeper has not run yet.
    let tokio: Arc<dyn Clock> = Arc::new(TokioClock);
    let is_ours = within(&tokio, SECOND, link.still_ours()).await;
    assert_eq!(is_ours, None, "nothing is delivered by what was known before");
    let (exit, ()) = tokio::join!(keeper.run(), clock.wait_for_resume());
    assert_eq!(exit, KeeperExit::Lost);
    assert!(link.lost.is_cancelled());
    assert_eq!(machine.now() - began, SECOND, "at once");
}

fn mark(number: u64, arrived: i64) -> Mark {
    let position =
        Position { sequence_number: number.to_string().parse().unwrap(), sub_sequence_number: 0 };
    Mark { position, arrived: Some(Timestamp::from_millis(arrived)) }
}

/// Creates the keeper's row in the store.
async fn stored(keeper: &LeaseKeeper) {
    let lease = keeper.tenure.lease().clone();
    let change = LeaseChange::Create(Box::new(lease.clone()));
    let id = WriteId::new("test");
    let write = LeaseWrite { key: lease.key, id, change };
    keeper.context.store.write(&write).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn giving_up_stops_the_shard_first_and_does_not_wait_for_it() {
    let (keeper, link) = keeper(Duration::ZERO);
    stored(&keeper).await;
    let lost = link.lost.clone();
    link.acknowledged(&mark(5, 0));
    link.give_up.cancel();
    // The link stays open: its task hangs.
    let KeeperExit::Done(row) = keeper.run().await else { panic!("it was released") };
    assert!(lost.is_cancelled());
    assert_eq!((row.owner, row.checkpoint.to_string()), (None, "5".to_owned()));
    drop(link);
}

/// The reply to a write may show that an older one was applied: the row decides which requests complete.
#[tokio::test(start_paused = true)]
async fn a_wish_is_not_fulfilled_by_a_write_that_does_not_carry_it() {
    let (mut keeper, _link) = keeper(Duration::ZERO);
    let (stored, mut is_stored) = oneshot::channel();
    keeper.store(StoreRequest { mark: Some(mark(5, 0)), pending: None, stored });
    keeper.settle_asked();
    assert_eq!(is_stored.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    let (stored, mut is_prepared) = oneshot::channel();
    let pending = PendingCheckpoint { checkpoint: Checkpoint::ShardEnd, state: None };
    keeper.store(StoreRequest { mark: None, pending: Some(pending), stored });
    keeper.settle_asked();
    assert_eq!(is_prepared.try_recv(), Err(oneshot::error::TryRecvError::Empty));
}

#[tokio::test(start_paused = true)]
async fn a_time_that_was_read_is_no_reason_for_a_write_and_rides_on_the_next_one() {
    let (mut keeper, link) = keeper(Duration::ZERO);
    Arc::make_mut(&mut keeper.context.settings).checkpoints = CheckpointPolicy::EveryBatch;
    link.read_until(Timestamp::from_millis(9));
    assert!(!keeper.line.facts.has_changed().unwrap());
    assert_eq!(keeper.update().read_until, Some(Timestamp::from_millis(9)));
    link.acknowledged(&mark(5, 3));
    assert!(keeper.line.facts.has_changed().unwrap());
    let update = keeper.update();
    assert_eq!(update.checkpoint.map(|it| it.to_string()).as_deref(), Some("5"));
    assert_eq!(update.read_until, Some(Timestamp::from_millis(9)), "never back");
}

#[tokio::test(start_paused = true)]
async fn a_manual_checkpoint_holds_the_time_back_that_belongs_to_a_later_one() {
    let (mut keeper, link) = keeper(Duration::ZERO);
    Arc::make_mut(&mut keeper.context.settings).checkpoints = CheckpointPolicy::Manual;
    link.acknowledged(&mark(5, 3));
    assert_eq!(keeper.update(), LeaseUpdate::default());
    keeper.goal = Goal::Release;
    assert_eq!(keeper.update().read_until, Some(Timestamp::from_millis(3)));
}

/// A table in which another write wins just before a row is replaced or discarded.
#[derive(Debug, Default)]
struct Raced {
    rows: MemoryStore,
    /// How often the owner renews the row first.
    renewals: AtomicU32,
    /// Whether the row is removed first.
    is_removed: AtomicBool,
}

impl LeaseStore for Raced {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        self.rows.prepare()
    }

    fn list(&self) -> BoxFuture<'_, Result<Table, ServiceError>> {
        self.rows.list()
    }

    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>> {
        self.rows.get(key)
    }

    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>> {
        async move {
            let (LeaseChange::Replace { counter, .. } | LeaseChange::Discard { counter }) =
                write.change
            else {
                return self.rows.write(write).await;
            };
            if self.is_removed.swap(false, Ordering::SeqCst) {
                self.rows.forget(&write.key);
            }
            let left = self.renewals.load(Ordering::SeqCst);
            if left > 0 {
                self.renewals.store(left - 1, Ordering::SeqCst);
                let change = LeaseChange::Renew {
                    counter,
                    owner: "me".into(),
                    update: LeaseUpdate::default(),
                };
                let id = WriteId::new(format!("its owner:{counter}"));
                self.rows.write(&LeaseWrite { key: write.key.clone(), id, change }).await?;
            }
            self.rows.write(write).await
        }
        .boxed()
    }
}

/// Creates a table with one row of the first stream of a name, and a row of the re-created one.
async fn recreated() -> (ControlContext, Arc<Raced>, [Lease; 2]) {
    let [former, new] = [1_000, 2_000].map(|created| {
        let created = Timestamp::from_millis(created);
        let stream = StreamIdentity { arn: "arn".to_owned(), created };
        Lease::of_stream(Some(stream), "shardId-0", Checkpoint::TrimHorizon)
    });
    let store = Arc::new(Raced { renewals: AtomicU32::new(3), ..Raced::default() });
    store.write(&create_write(former.clone(), "old#1")).await.unwrap();
    let (keeper, _) = keeper(Duration::ZERO);
    let context = ControlContext { store: Arc::<Raced>::clone(&store), ..keeper.context };
    (context, store, [former, new])
}

#[tokio::test(start_paused = true)]
async fn a_row_of_a_former_stream_is_replaced_however_often_its_owner_renews_it() {
    let (context, store, [_, new]) = recreated().await;
    context.create(&new).await.unwrap();
    let rows = store.rows.snapshot();
    assert_eq!((rows.len(), rows[0].counter, &rows[0].stream), (1, 2_000, &new.stream));
    // Another worker creates the next one.
    context.create(&Lease { checkpoint: Checkpoint::Latest, ..new }).await.unwrap();
    assert_eq!(store.rows.snapshot(), rows);
}

/// The rows of the former stream are deleted while writes to them are in flight, which arrive when the row
/// of the new stream has been renewed as often as the former one.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_meant_for_a_row_of_a_former_stream_changes_no_row_of_the_new_one() {
    let (context, store, [former, new]) = recreated().await;
    let take = |counter| LeaseChange::Take { counter, from: None, owner: "other".into() };
    let late = (0..10).map(|age| former.counter + age).flat_map(|counter| {
        let update = LeaseUpdate { checkpoint: Some(Checkpoint::Latest), ..LeaseUpdate::default() };
        [
            take(counter),
            LeaseChange::Renew { counter, owner: "me".into(), update: update.clone() },
            LeaseChange::Finish { counter, children: BTreeSet::new() },
            LeaseChange::Release { counter, update },
            LeaseChange::Delete { counter },
            LeaseChange::Discard { counter },
        ]
    });
    let late: Vec<_> = late.collect();
    store.rows.forget(&former.key);
    context.create(&new).await.unwrap();
    let mut row = store.rows.snapshot().remove(0);
    for age in 0..10 {
        for change in late.clone() {
            let write = LeaseWrite { key: new.key.clone(), id: WriteId::new("late"), change };
            let outcome = store.rows.write(&write).await.unwrap();
            assert!(matches!(outcome, WriteOutcome::Refused(_)), "{write:?}");
        }
        assert_eq!(store.rows.snapshot(), [row.clone()]);
        let change = match age {
            0 => LeaseChange::Take { counter: row.counter, from: None, owner: "me".into() },
            _ => LeaseChange::Renew {
                counter: row.counter,
                owner: "me".into(),
                update: LeaseUpdate::default(),
            },
        };
        let id = WriteId::new(format!("new:{}", row.counter + 1));
        store.rows.write(&LeaseWrite { key: new.key.clone(), id, change }).await.unwrap();
        row = store.rows.snapshot().remove(0);
    }
}

/// The former row was removed by another worker before it could be replaced. Whether a new row exists is
/// then unknown, so the shard end of a parent must not be stored on this evidence.
#[tokio::test(start_paused = true)]
async fn a_row_that_is_removed_before_it_is_replaced_is_no_row_that_was_made() {
    let (context, store, [_, new]) = recreated().await;
    store.is_removed.store(true, Ordering::SeqCst);
    let error = context.create(&new).await.unwrap_err();
    assert_eq!((error.kind, store.rows.snapshot()), (ServiceErrorKind::NotReady, vec![]));
    context.create(&new).await.unwrap();
    assert_eq!(store.rows.snapshot().len(), 1);
}

/// Only if the user allows it, since it may be the table of another application.
#[tokio::test(start_paused = true)]
async fn a_row_of_an_unrelated_stream_is_replaced_only_where_that_is_said() {
    let (mut context, store, [former, new]) = recreated().await;
    let stream = StreamIdentity { arn: "other".to_owned(), created: Timestamp::from_millis(3_000) };
    let new = Lease { stream: Some(stream), ..new };
    context.create(&new).await.unwrap();
    assert_eq!(store.rows.snapshot()[0].stream, former.stream);
    Arc::make_mut(&mut context.settings).stream_recreated = StreamRecreated::Adopt;
    context.create(&new).await.unwrap();
    assert_eq!(store.rows.snapshot()[0].stream, new.stream);
}

#[tokio::test(start_paused = true)]
async fn a_row_of_a_newer_stream_is_left_alone() {
    let (context, store, [former, new]) = recreated().await;
    context.create(&new).await.unwrap();
    let rows = store.rows.snapshot();
    context.create(&former).await.unwrap();
    context.discard(former, |row| *row != rows[0]).await.unwrap();
    assert_eq!(store.rows.snapshot(), rows);
}

#[tokio::test(start_paused = true)]
async fn a_row_is_discarded_however_often_its_owner_renews_it() {
    let (context, store, [former, _]) = recreated().await;
    context.discard(former, |_| true).await.unwrap();
    assert_eq!(store.rows.snapshot(), []);
}

/// Otherwise the shard end would be written to a row that is already unowned, if the release was applied
/// but its reply lost.
#[tokio::test(start_paused = true)]
async fn a_shard_that_is_to_be_released_while_its_children_are_being_made_does_not_end() {
    let (mut keeper, _link) = keeper(Duration::ZERO);
    keeper.requested(Some(Request::Finish(Vec::new())));
    assert!(keeper.ending.is_some());
    keeper.requested(Some(Request::Release));
    assert!(keeper.ending.is_none() && keeper.goal == Goal::Release);
}
