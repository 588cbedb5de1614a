//! The task that owns the row of one held lease: it renews, checkpoints, finishes, releases.
//!
//! Renewals and checkpoints go through this one task, so they cannot race, and every write carries the
//! newest acknowledged position. When the lease can no longer be proven, the keeper self-fences: it
//! cancels the shard, a margin before another worker may take the lease.
//! Runs on the control plane; never waits for a processor.

mod link;
mod rate;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{self, BoxFuture};
use tokio::sync::oneshot;
use tokio::time::Instant;

pub(crate) use link::KeeperLink;
use link::{Facts, KeeperEnd, Request};

use self::rate::Rate;
use super::children;
use super::context::ControlContext;
use crate::clock::within;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::lease::tenure::{Goal, Tenure, Verdict};
use crate::lease::{Lease, LeaseUpdate, LeaseWrite, PendingChange, PendingCheckpoint};
use crate::position::Checkpoint;
use crate::processor::StoreRequest;
use crate::record::ShardId;
use crate::retry::Retry;
use crate::settings::{Balance, CheckpointPolicy};

/// The pause after the first failed write.
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// How a keeper ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum KeeperExit {
    /// This keeper released or finished the row, which now has this content.
    Done(Box<Lease>),
    /// Another worker owns the lease, or this one could not prove that it does.
    Lost,
}

/// The keeper of one lease.
pub(crate) struct LeaseKeeper {
    context: ControlContext,
    tenure: Tenure,
    line: KeeperEnd,
    /// The checkpoints that the processor has requested.
    asked: Asked,
    goal: Goal,
    /// The creation of the child leases, before the shard may end.
    ending: Option<BoxFuture<'static, BTreeSet<ShardId>>>,
    next_write: Instant,
    /// After a failed write, no write starts before this time, whatever requests it.
    pause_until: Instant,
    /// The least time between two checkpoints outside renewals. Zero until the table throttles: then
    /// renewals have priority for its capacity.
    spacing: Duration,
    rate: Rate,
    retry: Retry,
    rng: fastrand::Rng,
}

/// The checkpoints that a processor has requested and is waiting for.
#[derive(Debug, Default)]
struct Asked {
    facts: Facts,
    pending: Option<PendingCheckpoint>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// The reason why a keeper wakes.
enum Wake {
    Fenced,
    GivenUp,
    Asked(StoreRequest),
    Requested(Option<Request>),
    ChildrenMade(BTreeSet<ShardId>),
    Acknowledged,
    WriteDue,
}

impl LeaseKeeper {
    /// Creates a keeper and the link to it.
    pub(crate) fn new(
        context: ControlContext,
        tenure: Tenure,
        rng: fastrand::Rng,
    ) -> (Self, KeeperLink) {
        let clock = Arc::clone(&context.clock);
        let (link, line) = link::line(clock, tenure.fenced_at(), tenure.lease());
        // Counted from when the take was sent, not from now: after a late reply the renewal is early.
        let next_write = tenure.valid_from() + context.renew_interval();
        // Short compared with the time from a renewal to the fence, so that an outage leaves room
        // for several attempts.
        let most = context.settings.lease_duration / 10;
        let keeper = Self {
            pause_until: tenure.valid_from(),
            rate: Rate::new(context.clock.now(), tenure.lease().throughput),
            spacing: Duration::ZERO,
            context,
            tenure,
            line,
            asked: Asked::default(),
            goal: Goal::Keep,
            ending: None,
            next_write,
            retry: Retry::new(RETRY_FIRST, most),
            rng,
        };
        (keeper, link)
    }

    /// Keeps the lease until it is released, finished or lost.
    pub(crate) async fn run(mut self) -> KeeperExit {
        let exit = loop {
            match self.wake().await {
                Wake::Fenced => break self.lose(None),
                Wake::GivenUp => {
                    // The shard first: it may notice late, but it can no longer checkpoint anything.
                    self.line.lost.cancel();
                    self.ending = None;
                    self.goal = Goal::Release;
                    self.next_write = self.context.clock.now();
                }
                Wake::Asked(request) => self.store(request),
                Wake::Requested(request) => self.requested(request),
                Wake::ChildrenMade(children) => {
                    // Only now, when the rows of the children exist: a crash before must not leave
                    // a hole.
                    self.goal = Goal::Finish(children);
                    self.next_write = self.context.clock.now();
                }
                Wake::Acknowledged => self.write_within(self.checkpoint_delay()),
                Wake::WriteDue => {
                    if let Some(exit) = self.write().await {
                        break exit;
                    }
                }
            }
        };
        // Closes the link: a shard task that waits for its release or finish resumes.
        self.line.requests.close();
        exit
    }

    /// Waits for the next event. The fence is the first arm, so that no other one can delay it. Giving up
    /// precedes requests, because it stops the shard, too. Writes are last, so that they carry all that
    /// is ready.
    async fn wake(&mut self) -> Wake {
        let is_eager = self.checkpoint_delay().is_some();
        // True while the child leases are being created, too: a requested handoff need not wait for them.
        let is_free = self.goal == Goal::Keep;
        let clock = &self.context.clock;
        tokio::select! {
            biased;
            () = clock.sleep_until(self.tenure.fenced_at()) => Wake::Fenced,
            // This arm and the next are disabled once a goal is set: a cancelled token and a closed
            // channel stay ready.
            () = self.line.give_up.cancelled(), if is_free => Wake::GivenUp,
            request = self.line.requests.recv(), if is_free => Wake::Requested(request),
            Some(request) = self.line.stores.recv() => Wake::Asked(request),
            children = made(&mut self.ending), if self.ending.is_some() => {
                self.ending = None;
                Wake::ChildrenMade(children)
            }
            Ok(()) = self.line.facts.changed(), if is_eager => Wake::Acknowledged,
            () = clock.sleep_until(self.next_write.max(self.pause_until)) => Wake::WriteDue,
        }
    }

    /// Returns how soon an acknowledgement is stored; `None` if with the next renewal.
    fn checkpoint_delay(&self) -> Option<Duration> {
        match self.context.settings.checkpoints {
            CheckpointPolicy::OnRenewal | CheckpointPolicy::Manual => None,
            CheckpointPolicy::Every(interval) => Some(interval),
            CheckpointPolicy::EveryBatch => Some(Duration::ZERO),
        }
    }

    fn write_within(&mut self, delay: Option<Duration>) {
        // An interval that overflows the clock means that nothing is due before the renewal.
        let due = delay.and_then(|delay| self.context.clock.now().checked_add(delay));
        let due = due.map(|due| due.max(self.tenure.valid_from() + self.spacing));
        // Never later than planned: acknowledgements must not postpone the renewal.
        self.next_write = due.map_or(self.next_write, |due| self.next_write.min(due));
    }

    fn store(&mut self, request: StoreRequest) {
        if let Some(mark) = &request.mark {
            self.asked.facts.merge(Facts::of(mark));
        }
        // A request without a prepared checkpoint does not replace one that its caller still waits
        // for.
        self.asked.pending = request.pending.or(self.asked.pending.take());
        self.asked.waiting.push(request.stored);
        // At once, because the processor waits. After a failure `pause_until` still delays the
        // write.
        self.next_write = self.context.clock.now();
    }

    /// Returns the fields of the next write.
    fn update(&mut self) -> LeaseUpdate {
        // Marked as seen: what this write carries must not trigger another one.
        let latest = self.line.facts.borrow_and_update().clone();
        let is_asked = self.context.settings.balance == Balance::Throughput;
        let now = self.context.clock.now();
        let throughput = is_asked.then(|| self.rate.measure(now, latest.bytes)).flatten();
        let mut facts = self.asked.facts.clone();
        let row = self.tenure.lease();
        let newest = facts.checkpoint.as_ref().max(Some(&row.checkpoint));
        // `read_until` is stored only with the checkpoint it belongs to: alone it would hide a gap.
        let nothing_held_back = latest.checkpoint.as_ref() <= newest;
        let is_manual = self.context.settings.checkpoints == CheckpointPolicy::Manual;
        // With manual checkpoints only the last write carries what the processor did not request.
        if !is_manual || self.goal != Goal::Keep || nothing_held_back {
            facts.merge(latest);
        }
        // Computed a second time, since the merge may have passed a prepared checkpoint.
        let newest = facts.checkpoint.as_ref().max(Some(&row.checkpoint));
        let pending = self.asked.pending.clone().filter(|it| Some(&it.checkpoint) > newest);
        let pending = pending.map_or(PendingChange::Keep, PendingChange::Prepare);
        LeaseUpdate {
            checkpoint: facts.checkpoint,
            pending,
            read_until: facts.read_until,
            throughput,
        }
    }

    /// Completes the requests that the row satisfies. The row decides, not the sent write: the write that
    /// was recognised by its mark may be an older one.
    fn settle_asked(&mut self) {
        let row = self.tenure.lease();
        self.line.pending.send_if_modified(|pending| {
            let is_news = *pending != row.pending;
            pending.clone_from(&row.pending);
            is_news
        });
        let reached = |checkpoint: &Checkpoint| row.checkpoint >= *checkpoint;
        let is_stored = self.asked.facts.checkpoint.as_ref().is_none_or(reached);
        let pending = self.asked.pending.as_ref();
        // A checkpoint that has reached a prepared one removes it from the row.
        let is_prepared =
            pending.is_none_or(|it| row.pending.as_ref() == Some(it) || reached(&it.checkpoint));
        if is_stored && is_prepared {
            self.asked.pending = None;
            for waiting in self.asked.waiting.drain(..) {
                // The receiver may be gone, if its caller no longer waits.
                waiting.send(()).ok();
            }
        } else {
            self.next_write = self.context.clock.now();
        }
    }

    fn requested(&mut self, request: Option<Request>) {
        match request {
            Some(Request::Finish(children)) => {
                let parent = self.tenure.lease().clone();
                self.ending =
                    Some(Box::pin(children::make(self.context.clone(), parent, children)));
            }
            // A shard task that ended without a request has failed: release, for a new tenure.
            Some(Request::Release) | None => {
                // A finish after the release would write to a row that is already unowned.
                self.ending = None;
                self.goal = Goal::Release;
                self.next_write = self.context.clock.now();
            }
        }
    }

    async fn write(&mut self) -> Option<KeeperExit> {
        let update = self.update();
        let write = self.tenure.write(&self.goal, &update);
        match self.send(&write).await {
            Sent::Answered(Verdict::Held { reached }) => self.held(reached),
            // The tenure now has the new row, so the next write names the right successor.
            Sent::Answered(Verdict::OtherSuccessor) => {
                self.next_write = self.context.clock.now();
                None
            }
            Sent::Answered(Verdict::Lost { to }) => Some(self.lose(to)),
            Sent::Answered(Verdict::Vanished) => {
                let again = self.tenure.write_again(&update);
                // Any other result is settled by the next write, which shows the row, or by the
                // fence.
                if let Sent::Answered(Verdict::Lost { to }) = self.send(&again).await {
                    return Some(self.lose(to));
                }
                self.next_write = self.context.clock.now();
                None
            }
            Sent::Unknown(error) => {
                self.failed(&error);
                None
            }
            Sent::Fenced => Some(self.lose(None)),
        }
    }

    /// Sends one write; stops waiting at the fence or after the write limit.
    async fn send(&mut self, write: &LeaseWrite) -> Sent {
        let clock = Arc::clone(&self.context.clock);
        // Before the call: from now on the table may apply the write at any time.
        let sent = clock.now();
        let before = self.tenure.lease().checkpoint.clone();
        self.tenure.sent(sent);
        let attempt = within(&clock, self.context.write_limit(), self.context.store.write(write));
        let result = tokio::select! {
            biased;
            // The fence first: a reply that is ready at the same time comes too late.
            () = clock.sleep_until(self.tenure.fenced_at()) => return Sent::Fenced,
            result = attempt => result,
        };
        match result {
            Some(Ok(outcome)) => {
                let verdict = self.tenure.answered(sent, outcome, &self.goal);
                if matches!(verdict, Verdict::Held { .. }) {
                    self.line.fenced_at.send_replace(self.tenure.fenced_at());
                    self.renewed(&before);
                }
                Sent::Answered(verdict)
            }
            Some(Err(error)) => Sent::Unknown(error),
            None => Sent::Unknown(ServiceError::new(
                ServiceErrorKind::Unavailable,
                format!("no reply from the lease table for {}", write.key),
            )),
        }
    }

    fn renewed(&self, before: &Checkpoint) {
        let lease = self.tenure.lease();
        self.line.stored.send_replace(lease.checkpoint.clone());
        let event = Event::LeaseRenewed {
            shard: lease.key.clone(),
            checkpoint: lease.checkpoint.clone(),
            advanced: lease.checkpoint > *before,
        };
        self.context.events.emit(&event);
    }

    fn held(&mut self, reached: bool) -> Option<KeeperExit> {
        self.retry.succeeded();
        self.spacing = self.spacing.mul_f64(0.9);
        let renewal = self.tenure.valid_from() + self.context.renew_interval();
        // If the goal is not reached, the recognised write was an earlier one with another goal.
        self.next_write = if reached { renewal } else { self.context.clock.now() };
        self.settle_asked();
        if !reached || self.goal == Goal::Keep {
            return None;
        }
        let lease = self.tenure.lease().clone();
        self.context.events.emit(&match &self.goal {
            Goal::Finish(children) => Event::ShardEnded {
                shard: lease.key.clone(),
                children: children.iter().cloned().collect(),
            },
            Goal::Keep | Goal::Release => Event::LeaseReleased {
                shard: lease.key.clone(),
                checkpoint: lease.checkpoint.clone(),
            },
        });
        Some(KeeperExit::Done(Box::new(lease)))
    }

    fn failed(&mut self, error: &ServiceError) {
        let now = self.context.clock.now();
        // More often as the fence approaches: an outage that ends before it costs no lease.
        let left = self.tenure.fenced_at().saturating_duration_since(now);
        let pause = self.retry.delay(&mut self.rng).min((left / 4).max(RETRY_FIRST));
        self.pause_until = now + pause;
        self.next_write = self.pause_until;
        if error.kind == ServiceErrorKind::Throttled {
            self.spacing = self.context.renew_interval();
        }
        self.context.events.emit(&Event::CoordinationFailed {
            operation: "renewing a lease",
            error: error.to_string(),
            transient: error.is_transient(),
            call: error.call.clone(),
        });
    }

    fn lose(&self, to: Option<crate::record::WorkerId>) -> KeeperExit {
        // The shard first, then the event: when the loss is public, nothing may be processed any more.
        self.line.lost.cancel();
        self.context.events.emit(&Event::LeaseLost { shard: self.tenure.lease().key.clone(), to });
        KeeperExit::Lost
    }
}

/// The result of sending one write.
enum Sent {
    Answered(Verdict),
    /// The write may have been applied, or may be applied later.
    Unknown(ServiceError),
    Fenced,
}

/// Waits for the child leases, if they are being created; otherwise never completes.
fn made<'a>(
    ending: &'a mut Option<BoxFuture<'static, BTreeSet<ShardId>>>,
) -> Pin<Box<dyn Future<Output = BTreeSet<ShardId>> + Send + 'a>> {
    match ending {
        Some(ending) => Box::pin(ending.as_mut()),
        // `select!` creates the future of a disabled arm, too.
        None => Box::pin(future::pending()),
    }
}

#[cfg(test)]
mod tests;
