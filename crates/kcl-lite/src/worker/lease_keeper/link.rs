//! The line between a shard task and the keeper of its lease.
//!
//! What is acknowledged goes over as facts that replace each other, so the shard never waits for a
//! write it does not need; what has to be answered goes over as requests, bounded.

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

/// What the shard task may ask of its keeper. There is one asker and it waits for nothing in
/// between, so two places are enough.
const REQUESTS: usize = 2;
/// Tasks of a processor that ask for a checkpoint at the same time; more of them wait.
const STORES: usize = 16;

/// A request of the shard task.
#[derive(Debug)]
pub(super) enum Request {
    /// Everything is acknowledged and the shard has ended: make the children, store `SHARD_END`.
    Finish(Vec<ChildShard>),
    /// Store the newest position and let go.
    Release,
}

/// The shard task's end of the line.
#[derive(Debug)]
pub(crate) struct KeeperLink {
    facts: watch::Sender<Facts>,
    requests: mpsc::Sender<Request>,
    stores: mpsc::Sender<StoreRequest>,
    /// The prepared checkpoint in the row.
    pending: watch::Receiver<Option<PendingCheckpoint>>,
    /// The checkpoint in the row, as of the last answered write.
    pub(crate) stored: watch::Receiver<Checkpoint>,
    /// Until when the lease is proven to be ours, on the clock beside it.
    fence: watch::Receiver<Instant>,
    clock: Arc<dyn Clock>,
    /// Cancelled when the shard must stop at once, because it is no longer ours.
    pub(crate) lost: CancellationToken,
    /// To be cancelled by whoever finds that the shard makes no progress: the keeper then stops the
    /// shard and lets go of it, without waiting for a task that may not even be able to notice.
    pub(crate) give_up: CancellationToken,
}

/// The keeper's end of the line.
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

/// A line for a lease that is proven until `fenced_at` on `clock`.
pub(super) fn line(
    clock: Arc<dyn Clock>,
    fenced_at: Instant,
    row: &Lease,
) -> (KeeperLink, KeeperEnd) {
    let (facts, told) = watch::channel(Facts::default());
    let (requests, requested) = mpsc::channel(REQUESTS);
    let (stores, wanted) = mpsc::channel(STORES);
    let (set_pending, pending) = watch::channel(row.pending.clone());
    let (set_stored, stored) = watch::channel(row.checkpoint.clone());
    let (fenced_at, fence) = watch::channel(fenced_at);
    let (lost, give_up) = (CancellationToken::new(), CancellationToken::new());
    let end = KeeperEnd {
        facts: told,
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

/// What the shard task knows, the newest of each.
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

    /// Takes over what is newer; true if the checkpoint is.
    pub(super) fn merge(&mut self, other: Self) -> bool {
        let is_news = other.checkpoint > self.checkpoint;
        self.checkpoint = self.checkpoint.take().max(other.checkpoint);
        self.read_until = self.read_until.max(other.read_until);
        self.bytes = self.bytes.max(other.bytes);
        is_news
    }
}

impl KeeperLink {
    /// Notes that everything up to `mark` is acknowledged. Never waits.
    pub(crate) fn acknowledged(&self, mark: &Mark) {
        self.facts.send_if_modified(|facts| facts.merge(Facts::of(mark)));
    }

    /// Notes that everything that arrived until `time` is acknowledged. Never waits, and is no reason
    /// for a write of its own.
    pub(crate) fn read_until(&self, time: Timestamp) {
        self.facts.send_if_modified(|facts| {
            facts.merge(Facts { read_until: Some(time), ..Facts::default() })
        });
    }

    /// Notes that so many more bytes are delivered. No reason for a write either.
    pub(crate) fn delivered(&self, bytes: u64) {
        self.facts.send_if_modified(|facts| {
            facts.bytes += bytes;
            false
        });
    }

    /// The prepared checkpoint that the row holds.
    pub(crate) fn pending(&self) -> Option<PendingCheckpoint> {
        self.pending.borrow().clone()
    }

    /// Where a processor asks for checkpoints of its own.
    pub(crate) fn stores(&self) -> mpsc::Sender<StoreRequest> {
        self.stores.clone()
    }

    /// Completes at once while the lease is proven, and never when it is not: the keeper may not have
    /// been able to say so yet, for instance when the process was stopped or the machine suspended.
    pub(crate) async fn still_ours(&self) {
        let fence = *self.fence.borrow();
        if self.clock.now() >= fence {
            // A renewal may be under way: then the fence moves.
            let mut moved = self.fence.clone();
            while self.clock.now() >= *moved.borrow_and_update() {
                if moved.changed().await.is_err() {
                    future::pending::<()>().await;
                }
            }
        }
    }

    /// Asks for the end of the shard; `lost` tells if that is not to be. The keeper ends after it.
    pub(crate) async fn finish(&self, children: Vec<ChildShard>) {
        self.ask(Request::Finish(children)).await;
    }

    /// Asks to store the newest position and let go. The keeper ends after it.
    pub(crate) async fn release(&self) {
        self.ask(Request::Release).await;
    }

    async fn ask(&self, request: Request) {
        // A keeper that is gone has cancelled `lost` or is done; there is nothing left to ask.
        if self.requests.send(request).await.is_ok() {
            self.requests.closed().await;
        }
    }
}
