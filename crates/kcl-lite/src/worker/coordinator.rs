//! The task that owns a worker's leases: it feeds the state machine and performs its actions.
//!
//! The only select of the control plane is in [`Coordinator::next_input`]; no arm waits for a
//! store or a processor. Spawns calls and keepers here, and shard tasks on the user's runtime.
//! Never decides anything: [`State::step`] does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::JoinMap;

use super::lease_keeper::{KeeperContext, KeeperExit, LeaseKeeper};
use super::shard_task::{Progress, ShardExit, ShardTask, ShardTaskContext};
use super::state::{Action, Input, State, Why};
use super::{Report, ShardReport, ShardStatus, Status};
use crate::clock::{self, within};
use crate::error::{Error, ErrorKind, ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::lease::store::WriteOutcome;
use crate::lease::tenure::Tenure;
use crate::lease::{Lease, LeaseKey, LeaseWrite};
use crate::position::Checkpoint;
use crate::processor::ShardContext;
use crate::record::WorkerId;
use crate::stream::ListFrom;

/// How long shards of a stream that is gone may take to be let go.
const GONE_DEADLINE: Duration = Duration::from_secs(10);
/// How often a write whose answer is unknown is sent again before a scan has to settle it.
const WRITE_ATTEMPTS: u32 = 3;

/// The task.
pub(crate) struct Coordinator {
    pub(crate) me: WorkerId,
    pub(crate) keeper_context: KeeperContext,
    pub(crate) shard_context: ShardTaskContext,
    pub(crate) data_plane: Handle,
    pub(crate) state: State,
    /// Set to the deadline when a stop is asked for.
    pub(crate) stop: watch::Receiver<Option<Instant>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) rng: fastrand::Rng,
    pub(crate) held: BTreeMap<LeaseKey, Held>,
    pub(crate) calls: JoinSet<Input>,
    pub(crate) keepers: JoinMap<LeaseKey, KeeperExit>,
    pub(crate) shards: JoinMap<LeaseKey, ShardExit>,
    pub(crate) report: Report,
    /// The stream does not exist any more.
    pub(crate) gone: Option<Error>,
}

/// One held lease, as the coordinator sees it.
#[derive(Debug)]
pub(crate) struct Held {
    drain: CancellationToken,
    lost: CancellationToken,
    progress: Arc<Mutex<Progress>>,
    checkpoint: Checkpoint,
    keeper: Option<KeeperExit>,
    shard: Option<ShardExit>,
}

/// What wakes the coordinator.
enum Wake {
    Input(Box<Input>),
    KeeperExited(LeaseKey, KeeperExit),
    ShardExited(LeaseKey, ShardExit),
    StopDeadline,
    /// A call panicked: a bug in a store or stream, and what it was for is unknown.
    CallPanicked(JoinError),
}

impl Coordinator {
    /// Runs until a stop is asked for and done, or its deadline has passed.
    ///
    /// # Errors
    /// Kind `Internal` when a store or stream panicked.
    pub(crate) async fn run(mut self) -> Result<Report, Error> {
        let mut stopping = None;
        let mut failure = None;
        while !self.state.is_finished() {
            let input = match self.next_wake(stopping).await {
                Wake::Input(input) => *input,
                Wake::KeeperExited(key, exit) => match self.keeper_exited(key, exit) {
                    Some(input) => input,
                    None => continue,
                },
                Wake::ShardExited(key, exit) => match self.shard_exited(key, exit) {
                    Some(input) => input,
                    None => continue,
                },
                Wake::StopDeadline => break,
                Wake::CallPanicked(panic) => {
                    let context = "a lease store or stream panicked";
                    failure = Some(Error::new(ErrorKind::Internal, format!("{context}: {panic}")));
                    break;
                }
            };
            if matches!(input, Input::StopRequested) {
                stopping = *self.stop.borrow_and_update();
            }
            self.step(input);
            if stopping.is_none() && self.readers_miss_something() {
                self.step(Input::ReaderMissesShard);
            }
            if stopping.is_none() && self.gone.is_some() {
                stopping = Some(self.keeper_context.clock.now() + GONE_DEADLINE);
                self.step(Input::StopRequested);
            }
            self.publish_status();
        }
        self.abandon_the_rest();
        self.shard_context.events.emit(&Event::Stopped);
        failure.or(self.gone).map_or(Ok(self.report), Err)
    }

    fn step(&mut self, input: Input) {
        let now = self.keeper_context.clock.now();
        for action in self.state.step(now, input) {
            self.perform(action);
        }
    }

    fn readers_miss_something(&self) -> bool {
        let mut progress = self.held.values().map(|held| &held.progress);
        progress.any(|it| it.lock().unwrap_or_else(PoisonError::into_inner).is_missing)
    }

    /// The only select. In this order: the deadline of a stop, the stop, finished tasks, finished
    /// calls, time.
    async fn next_wake(&mut self, stopping: Option<Instant>) -> Wake {
        let clock = Arc::clone(&self.keeper_context.clock);
        let deadline = async {
            match stopping {
                Some(deadline) => clock.sleep_until(deadline).await,
                None => future::pending().await,
            }
        };
        let due = async {
            match self.state.next_due() {
                Some(due) => clock.sleep_until(due).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = deadline => Wake::StopDeadline,
            stop = self.stop.wait_for(Option::is_some), if stopping.is_none() => {
                // An error means that the handle is gone: nobody can wait for a drain any more.
                if stop.is_ok() { Wake::Input(Box::new(Input::StopRequested)) } else { Wake::StopDeadline }
            }
            Some((key, exit)) = self.keepers.join_next() => {
                Wake::KeeperExited(key, exit.unwrap_or(KeeperExit::Lost))
            }
            Some((key, exit)) = self.shards.join_next() => {
                // A panic outside a callback: the keeper sees the dropped line and releases.
                Wake::ShardExited(key, exit.unwrap_or(ShardExit::Drained { clean: false }))
            }
            Some(input) = self.calls.join_next() => match input {
                Ok(input) => Wake::Input(Box::new(input)),
                Err(panic) => Wake::CallPanicked(panic),
            },
            () = due => Wake::Input(Box::new(Input::TimeDue)),
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Scan => self.scan(),
            Action::List => self.list(),
            Action::Write(write, why) => self.write(write, why),
            Action::Start { lease, sent } => self.start(&lease, sent),
            Action::Drain(key) => {
                if let Some(held) = self.held.get(&key) {
                    held.drain.cancel();
                }
            }
            Action::DrainAll => self.held.values().for_each(|held| held.drain.cancel()),
            Action::Emit(event) => self.shard_context.events.emit(&event),
            Action::StreamGone(error) => self.gone = Some(error.into()),
        }
    }

    fn scan(&mut self) {
        let context = self.keeper_context.clone();
        self.calls.spawn(async move {
            Input::Scanned(timely(&context, context.store.list(), "reading the lease table").await)
        });
    }

    fn list(&mut self) {
        let context = self.keeper_context.clone();
        self.calls.spawn(async move {
            let call = context.stream.list(ListFrom::All);
            Input::Listed(timely(&context, call, "listing the shards").await)
        });
    }

    fn write(&mut self, write: LeaseWrite, why: Why) {
        let context = self.keeper_context.clone();
        self.calls.spawn(async move {
            let sent = context.clock.now();
            let result = write_until_answered(&context, &write).await;
            Input::Wrote { write, why, sent, result }
        });
    }

    fn start(&mut self, lease: &Lease, sent: Instant) {
        let context = self.keeper_context.clone();
        let (lasts, margin) = (context.settings.lease_duration, context.settings.fence_margin());
        let incarnation = context.incarnation.clone();
        let tenure = Tenure::new(lease.clone(), sent, self.me.clone(), incarnation, lasts, margin);
        let now = context.clock.now();
        let (keeper, link) = LeaseKeeper::new(context, tenure, self.rng.fork());
        let mut held = Held {
            drain: CancellationToken::new(),
            lost: link.lost.clone(),
            progress: Arc::new(Mutex::new(Progress {
                at: now,
                millis_behind_latest: None,
                is_missing: false,
            })),
            checkpoint: lease.checkpoint.clone(),
            keeper: None,
            shard: None,
        };
        let shard = ShardContext {
            lease_key: lease.key.clone(),
            shard_id: lease.shard(),
            worker_id: self.me.clone(),
            checkpoint: lease.checkpoint.clone(),
            fencing_token: lease.counter,
        };
        let task = ShardTask::new(
            self.shard_context.clone(),
            shard,
            lease,
            link,
            held.drain.clone(),
            Arc::clone(&held.progress),
            self.rng.fork(),
        );
        // A lease at its end has no reader; dropping the line lets the keeper release it.
        match task {
            Some(task) => {
                self.shards.spawn_on(lease.key.clone(), task.run(), &self.data_plane);
            }
            None => held.shard = Some(ShardExit::Ended),
        }
        self.keepers.spawn(lease.key.clone(), keeper.run());
        self.held.insert(lease.key.clone(), held);
    }

    fn keeper_exited(&mut self, key: LeaseKey, exit: KeeperExit) -> Option<Input> {
        let held = self.held.get_mut(&key)?;
        if exit == KeeperExit::Lost {
            // Also when the keeper itself panicked: nobody renews any more, so nobody may process.
            held.lost.cancel();
        }
        if let KeeperExit::Done(row) = &exit {
            held.checkpoint = row.checkpoint.clone();
        }
        held.keeper = Some(exit);
        self.tenure_ended(key)
    }

    fn shard_exited(&mut self, key: LeaseKey, exit: ShardExit) -> Option<Input> {
        self.held.get_mut(&key)?.shard = Some(exit);
        self.tenure_ended(key)
    }

    /// A lease is free for the next tenure only when both its tasks are gone.
    fn tenure_ended(&mut self, key: LeaseKey) -> Option<Input> {
        let held = self.held.get(&key)?;
        let (Some(keeper), Some(shard)) = (&held.keeper, held.shard) else { return None };
        let row = match keeper {
            KeeperExit::Done(row) => Some(Lease::clone(row)),
            KeeperExit::Lost => None,
        };
        let drained = row.is_some() && shard != ShardExit::Drained { clean: false };
        let report = ShardReport { drained, checkpoint: held.checkpoint.clone() };
        self.held.remove(&key);
        if self.stop.borrow().is_some() {
            self.report.shards.insert(key.clone(), report);
        }
        Some(Input::TenureEnded { key, row })
    }

    /// The deadline has passed: stop what is left without a word. Their leases expire.
    fn abandon_the_rest(&mut self) {
        for (key, held) in std::mem::take(&mut self.held) {
            held.lost.cancel();
            let report = ShardReport { drained: false, checkpoint: held.checkpoint };
            self.report.shards.insert(key, report);
        }
        self.calls.abort_all();
        self.keepers.abort_all();
        self.shards.abort_all();
    }

    fn publish_status(&self) {
        let now = self.keeper_context.clock.now();
        let shards = self.held.iter().map(|(key, held)| {
            let progress = held.progress.lock().unwrap_or_else(PoisonError::into_inner);
            let status = ShardStatus {
                checkpoint: held.checkpoint.clone(),
                millis_behind_latest: progress.millis_behind_latest,
                since_progress: now.saturating_duration_since(progress.at),
            };
            (key.clone(), status)
        });
        let status = Status { leases: self.state.unfinished(), shards: shards.collect() };
        self.status.send_replace(status);
    }
}

/// Sends the same condition again while the answer is unknown: if an earlier attempt was applied,
/// the refusal shows our own mark.
async fn write_until_answered(
    context: &KeeperContext,
    write: &LeaseWrite,
) -> Result<WriteOutcome, ServiceError> {
    let mut attempt = 1;
    loop {
        let result = timely(context, context.store.write(write), "writing a lease").await;
        if result.is_ok() || attempt == WRITE_ATTEMPTS {
            return result;
        }
        clock::sleep(&context.clock, Duration::from_millis(100) * attempt).await;
        attempt += 1;
    }
}

/// A call that hangs is given up after a quarter of the lease duration.
async fn timely<T>(
    context: &KeeperContext,
    call: impl Future<Output = Result<T, ServiceError>>,
    what: &str,
) -> Result<T, ServiceError> {
    let limit = context.settings.lease_duration / 4;
    within(&context.clock, limit, call).await.unwrap_or_else(|| {
        Err(ServiceError::new(
            ServiceErrorKind::Unavailable,
            format!("{what}: no answer in {limit:?}"),
        ))
    })
}
