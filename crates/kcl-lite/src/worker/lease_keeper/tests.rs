//! The keeper by itself, on a store in memory and paused time.

use super::*;
use crate::checkpoint::Mark;
use crate::clock::TokioClock;
use crate::lease::memory::MemoryStore;
use crate::lease::{LeaseChange, LeaseWrite, WriteId};
use crate::position::Position;
use crate::record::Timestamp;
use crate::stream::memory::MemoryStream;

/// A keeper of a lease that was proven `before` now.
fn keeper(before: Duration) -> (LeaseKeeper, KeeperLink) {
    let settings = Settings::default();
    let (lasts, margin) = (settings.lease_duration, settings.fence_margin());
    let context = KeeperContext {
        store: Arc::new(MemoryStore::new()),
        stream: Arc::new(MemoryStream::new(1)),
        clock: Arc::new(TokioClock),
        settings,
        events: Events::new("me".into(), None),
        incarnation: "me#1".to_owned(),
        several_streams: false,
    };
    let mut lease = Lease::new("shardId-0", Checkpoint::TrimHorizon);
    lease.owner = Some("me".into());
    let sent = Instant::now() - before;
    let tenure = Tenure::new(lease, sent, "me".into(), "me#1".to_owned(), lasts, margin);
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
    let blocked = within(&clock, Duration::from_secs(3600), link.still_ours(&clock)).await;
    assert_eq!(blocked, None, "the lease is not proven");
    keeper.line.fenced_at.send_replace(clock.now() + Duration::from_secs(9));
    link.still_ours(&clock).await;
}

fn mark(number: u64, arrived: i64) -> Mark {
    let position =
        Position { sequence_number: number.to_string().parse().unwrap(), sub_sequence_number: 0 };
    Mark { position, arrived: Some(Timestamp::from_millis(arrived)) }
}

/// The row in the store, taken by the keeper.
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
    // The link stays: its task hangs.
    let KeeperExit::Done(row) = keeper.run().await else { panic!("it was released") };
    assert!(lost.is_cancelled());
    assert_eq!((row.owner, row.checkpoint.to_string()), (None, "5".to_owned()));
    drop(link);
}

/// The answer to a write may be that an older one was applied: the row decides who is told what.
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
    keeper.context.settings.checkpoints = CheckpointPolicy::EveryBatch;
    link.read_until(Timestamp::from_millis(9));
    assert!(!keeper.line.facts.has_changed().unwrap());
    assert_eq!(keeper.news().read_until, Some(Timestamp::from_millis(9)));
    link.acknowledged(&mark(5, 3));
    assert!(keeper.line.facts.has_changed().unwrap());
    let news = keeper.news();
    assert_eq!(news.checkpoint.map(|it| it.to_string()).as_deref(), Some("5"));
    assert_eq!(news.read_until, Some(Timestamp::from_millis(9)), "never back");
}

#[tokio::test(start_paused = true)]
async fn a_manual_checkpoint_holds_the_time_back_that_belongs_to_a_later_one() {
    let (mut keeper, link) = keeper(Duration::ZERO);
    keeper.context.settings.checkpoints = CheckpointPolicy::Manual;
    link.acknowledged(&mark(5, 3));
    assert_eq!(keeper.news(), News::default());
    keeper.goal = Goal::Release;
    assert_eq!(keeper.news().read_until, Some(Timestamp::from_millis(3)));
}
