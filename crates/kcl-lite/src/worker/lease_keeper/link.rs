//! The link between a shard task and the keeper of its lease.
//!
//! Acknowledgements are sent as facts, of which the newest replaces the older, so the shard never waits
//! for a write that it does not need. What needs an answer is sent as a request in a bounded channel.

use std::sync::Arc;

use futures_util::future;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Mark;
use crate::clock::Clock;
use crate::lease::{Lease, PendingCheckpoint};
use crate::position::Checkpoint;
use crate::processor::StoreRequest;
use crate::record::Timestamp;
use crate::shard::ChildShard;

/// The capacity for requests of the shard task. It is the only sender and sends at most a finish and then
/// a release, so two places are enough.
const REQUESTS: usize = 2;
/// How many tasks of a processor can request a checkpoint at the same time; further ones wait.
const STORES: usize = 16;

/// A request of the shard task.
#[derive(Debug)]
pub(super) enum Request {
    /// Everything is acknowledged and the shard has ended: create the child leases, store `SHARD_END`.
    Finish(Vec<ChildShard>),
    /// Store the newest position and release the lease.
    Release,
}

/// The shard task's end of the link.
#[derive(Debug)]
pub(crate) struct KeeperLink {
    facts: watch::Sender<Facts>,
    requests: mpsc::Sender<Request>,
    stores: mpsc::Sender<StoreRequest>,
    /// The prepared checkpoint in the row.
    pending: watch::Receiver<Option<PendingCheckpoint>>,
    /// The checkpoint in the row, as of the last answered write.
    pub(crate) stored: watch::Receiver<Checkpoint>,
    /// The fence: until when the lease is proven, measured on `clock`.
    fence: watch::Receiver<Instant>,
    clock: Arc<dyn Clock>,
    /// Cancelled when the shard must stop at once, because the lease is lost.
    pub(crate) lost: CancellationToken,
    /// Cancelled by the coordinator when the shard is stuck: the keeper then stops the shard and releases
    /// the lease, without waiting for a task that may be unable to notice.
    pub(crate) give_up: CancellationToken,
}

/// The keeper's end of the link.
#[derive(Debug)]
pub(super) struct KeeperEnd {
    pub(super) facts: watch::Receiver<Facts>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) stores: mpsc::Receiver<StoreRequest>,
    pub(super) pending: watch::Sender<Option<PendingCheckpoint>>,
    pub(super) stored: watch::Sender<Checkpoint>,
    pub(super) fenced_at: watch::Sender<Instant>,
    pub(super) lost: CancellationToken,
    pub(super) give_up: CancellationToken,
}

/// Creates a link for a lease that is proven until `fenced_at` on `clock`.
pub(super) fn line(
    clock: Arc<dyn Clock>,
    fenced_at: Instant,
    row: &Lease,
) -> (KeeperLink, KeeperEnd) {
    let (facts, reported) = watch::channel(Facts::default());
    let (requests, requested) = mpsc::channel(REQUESTS);
    let (stores, wanted) = mpsc::channel(STORES);
    let (set_pending, pending) = watch::channel(row.pending.clone());
    let (set_stored, stored) = watch::channel(row.checkpoint.clone());
    let (fenced_at, fence) = watch::channel(fenced_at);
    let (lost, give_up) = (CancellationToken::new(), CancellationToken::new());
    let end = KeeperEnd {
        facts: reported,
        requests: requested,
        stores: wanted,
        pending: set_pending,
        stored: set_stored,
        fenced_at,
        lost: lost.clone(),
        give_up: give_up.clone(),
    };
    (KeeperLink { facts, requests, stores, pending, stored, fence, clock, lost, give_up }, end)
}

/// The newest values that the shard task has published.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// Everything up to here is acknowledged.
    pub(super) checkpoint: Option<Checkpoint>,
    /// Everything that arrived until then is acknowledged.
    pub(super) read_until: Option<Timestamp>,
    /// Bytes delivered in this tenure.
    pub(super) bytes: u64,
}

impl Facts {
    pub(super) fn of(mark: &Mark) -> Self {
        let checkpoint = Some(Checkpoint::At(mark.position.clone()));
        Self { checkpoint, read_until: mark.arrived, bytes: 0 }
    }

    /// Merges newer values; returns whether the checkpoint advanced.
    pub(super) fn merge(&mut self, other: Self) -> bool {
        let is_news = other.checkpoint > self.checkpoint;
        self.checkpoint = self.checkpoint.take().max(other.checkpoint);
        self.read_until = self.read_until.max(other.read_until);
        self.bytes = self.bytes.max(other.bytes);
        is_news
    }
}

impl KeeperLink {
    /// Publishes that everything up to `mark` is acknowledged. Never waits.
    pub(crate) fn acknowledged(&self, mark: &Mark) {
        self.facts.send_if_modified(|facts| facts.merge(Facts::of(mark)));
    }

    /// Publishes that everything that arrived until `time` is acknowledged. Never waits, and never
    /// triggers a write.
    pub(crate) fn read_until(&self, time: Timestamp) {
        self.facts.send_if_modified(|facts| {
            facts.merge(Facts { read_until: Some(time), ..Facts::default() })
        });
    }

    /// Publishes that `bytes` more were delivered. Never triggers a write either.
    pub(crate) fn delivered(&self, bytes: u64) {
        self.facts.send_if_modified(|facts| {
            facts.bytes += bytes;
            false
        });
    }

    /// Returns the prepared checkpoint in the row.
    pub(crate) fn pending(&self) -> Option<PendingCheckpoint> {
        self.pending.borrow().clone()
    }

    /// Returns the channel on which a processor requests checkpoints of its own.
    pub(crate) fn stores(&self) -> mpsc::Sender<StoreRequest> {
        self.stores.clone()
    }

    /// Completes at once while the lease is proven; past the fence, only after a renewal. The keeper may
    /// not have been able to cancel `lost` yet, for instance after a suspend of the process or machine.
    pub(crate) async fn still_ours(&self) {
        let fence = *self.fence.borrow();
        if self.clock.now() >= fence {
            // A renewal may be in progress: then the fence moves.
            let mut moved = self.fence.clone();
            while self.clock.now() >= *moved.borrow_and_update() {
                if moved.changed().await.is_err() {
                    // The keeper has ended. The task ends by `lost`, and must not deliver until
                    // then.
                    future::pending::<()>().await;
                }
            }
        }
    }

    /// Requests the end of the shard and waits until the keeper ends; `lost` is cancelled if it failed.
    pub(crate) async fn finish(&self, children: Vec<ChildShard>) {
        self.ask(Request::Finish(children)).await;
    }

    /// Requests a release with the newest position and waits until the keeper ends.
    pub(crate) async fn release(&self) {
        self.ask(Request::Release).await;
    }

    async fn ask(&self, request: Request) {
        // A keeper that has ended has cancelled `lost` or is done; nothing is left to request.
        if self.requests.send(request).await.is_ok() {
            self.requests.closed().await;
        }
    }
}
