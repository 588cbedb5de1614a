//! The task that owns a worker's leases: it feeds the state machine and performs its actions.
//!
//! The only select of the coordinator is in [`Coordinator::next_wake`]; no arm waits for a store or a
//! processor. Spawns calls and keepers on the control plane, and shard tasks on the user's runtime.
//! Decides nothing: [`State::step`] does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::JoinMap;

use super::context::ControlContext;
use super::lease_keeper::{KeeperExit, LeaseKeeper};
use super::liveness::{Liveness, Progress, judge, judge_open_record};
use super::shard_task::{Known, ShardExit, ShardStart, ShardTask, ShardTaskContext};
use super::start::ReadyStream;
use super::state::{Action, Ending, Input, State, Why};
use super::status::{Report, ShardReport, ShardStatus, Status, WorkerState};
use crate::budget::Account;
use crate::clock::{self, Clock, LeaseClock, timely};
use crate::error::{Error, ErrorKind, ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::heartbeat::Heartbeat;
use crate::lease::WriteOutcome;
use crate::lease::balance::Explanation;
use crate::lease::tenure::Tenure;
use crate::lease::timing::{self, FAILURE_DEADLINE, STOP_DEADLINE};
use crate::lease::{Lease, LeaseKey, LeaseWrite, StreamKey};
use crate::position::Checkpoint;
use crate::processor::ShardContext;
use crate::record::WorkerId;
use crate::stream::{Description, ListFrom, Listing};

/// How often the liveness of the shards is judged.
const JUDGE_INTERVAL: Duration = Duration::from_secs(1);
/// A judgement that is later than this means that the process was suspended or starved.
const JUDGE_LATENESS: Duration = Duration::from_secs(2);
/// How often a write with an unknown outcome is sent before a scan has to settle it.
const WRITE_ATTEMPTS: u32 = 3;

/// The task that owns the leases of one worker.
pub(crate) struct Coordinator {
    pub(crate) me: WorkerId,
    pub(crate) control_context: ControlContext,
    pub(crate) lease_clock: LeaseClock,
    pub(crate) shard_context: ShardTaskContext,
    pub(crate) streams: BTreeMap<StreamKey, ReadyStream>,
    pub(crate) data_plane: Handle,
    pub(crate) state: State,
    /// Set to the deadline when a stop is requested.
    pub(crate) stop: watch::Receiver<Option<Instant>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) rng: fastrand::Rng,
    pub(crate) held: BTreeMap<LeaseKey, Held>,
    pub(crate) calls: JoinSet<Input>,
    pub(crate) keepers: JoinMap<LeaseKey, KeeperExit>,
    pub(crate) shards: JoinMap<LeaseKey, ShardExit>,
    /// Requests of the handle to a running worker.
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) paused: watch::Sender<bool>,
    pub(crate) report: Report,
    /// When the shards are judged next.
    pub(crate) judge_at: Instant,
    /// Since when this task has been running without a long break.
    pub(crate) awake_since: Instant,
    /// The error that stops the worker.
    pub(crate) failure: Option<Error>,
}

/// A request of the handle, with the channel for the answer. A stopping worker drops it unanswered.
#[derive(Debug)]
pub(crate) enum Command {
    /// Release all leases and take none.
    Drain(oneshot::Sender<()>),
    /// Keep all leases and deliver nothing.
    Pause(oneshot::Sender<()>),
    /// Take leases and deliver again.
    Resume(oneshot::Sender<()>),
    /// Explain what the balancer would do with every lease, and why.
    Explain(oneshot::Sender<Vec<Explanation>>),
}

/// A held lease, as the coordinator tracks it.
#[derive(Debug)]
pub(crate) struct Held {
    drain: CancellationToken,
    lost: CancellationToken,
    give_up: CancellationToken,
    progress: Arc<Mutex<Progress>>,
    /// The memory account of its shard task, while that exists.
    memory: Weak<Account>,
    /// The checkpoint in the row.
    stored: watch::Receiver<Checkpoint>,
    /// Why it was judged stuck and released.
    stuck: Option<String>,
    keeper: Option<KeeperExit>,
    shard: Option<ShardExit>,
}

/// The reason why the coordinator wakes.
enum Wake {
    Input(Box<Input>),
    KeeperExited(LeaseKey, KeeperExit),
    ShardExited(LeaseKey, ShardExit),
    StopDeadline,
    /// The machine was suspended and has resumed.
    Resumed,
    JudgeDue,
    Command(Command),
    /// A call panicked: a bug in a store or stream, and which call it was is unknown.
    CallPanicked(JoinError),
}

impl Coordinator {
    /// Runs until a requested stop is complete or its deadline has passed.
    ///
    /// # Errors
    /// Kind `Internal` when a store or stream panicked.
    pub(crate) async fn run(mut self) -> Result<Report, Error> {
        let mut stopping = None;
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
                Wake::Command(command) => match self.command(command) {
                    Some(input) => input,
                    None => continue,
                },
                // A processor that hangs must not outlast the deadline: what is not drained is
                // abandoned.
                Wake::StopDeadline => break,
                // There is nothing to decide: the wait has made every keeper recheck its fence.
                Wake::Resumed => continue,
                Wake::JudgeDue => {
                    self.judge_shards();
                    for stream in self.streams_that_readers_miss() {
                        self.step(Input::ReaderMissesShard(stream));
                    }
                    continue;
                }
                Wake::CallPanicked(panic) => {
                    // The state would wait for the result of that call, which never arrives: the
                    // worker ends.
                    let context = "a lease store or stream panicked";
                    self.failure =
                        Some(Error::new(ErrorKind::Internal, format!("{context}: {panic}")));
                    break;
                }
            };
            if matches!(input, Input::StopRequested) {
                let asked = *self.stop.borrow_and_update();
                // A stop without a value means that the handle was dropped, which sets no deadline.
                stopping = asked.or(Some(self.now() + STOP_DEADLINE));
            }
            self.step(input);
            // A failure drains the shards, too, but within a shorter deadline.
            if stopping.is_none() && self.failure.is_some() {
                stopping = Some(self.now() + FAILURE_DEADLINE);
                self.step(Input::StopRequested);
            }
        }
        self.abandon_the_rest();
        self.shard_context.events.emit(&Event::Stopped);
        self.failure.map_or(Ok(self.report), Err)
    }

    /// Returns the time on the plain clock, which measures what other workers do. Own leases are measured
    /// on the lease clock.
    fn now(&self) -> Instant {
        self.shard_context.clock.now()
    }

    fn step(&mut self, input: Input) {
        let now = self.now();
        for action in self.state.step(now, input) {
            self.perform(action);
        }
        // Judgements publish the status only once a second; a new state is visible at once.
        if self.state.phase() != self.status.borrow().health.state {
            self.publish_status();
        }
    }

    fn streams_that_readers_miss(&self) -> BTreeSet<StreamKey> {
        let missing = self.held.iter().filter(|(_, held)| held.progress.lock().is_missing);
        missing.map(|(key, _)| key.stream()).collect()
    }

    fn command(&self, command: Command) -> Option<Input> {
        // The dropped sender is the reply: the handle reports that the worker accepts no requests.
        if self.state.phase() == WorkerState::Stopping {
            return None;
        }
        // The caller may have dropped its receiver by now.
        match command {
            Command::Drain(accepted) => {
                accepted.send(()).ok();
                Some(Input::DrainRequested(true))
            }
            Command::Pause(accepted) => {
                self.paused.send_replace(true);
                accepted.send(()).ok();
                None
            }
            Command::Resume(accepted) => {
                self.paused.send_replace(false);
                accepted.send(()).ok();
                Some(Input::DrainRequested(false))
            }
            Command::Explain(answer) => {
                answer.send(self.state.explain(self.now())).ok();
                None
            }
        }
    }

    /// Waits for the next event. The arms are in order of urgency: the deadline of a stop, a resume of the
    /// machine, the stop, commands, finished tasks, finished calls, timers. A steady stream of call
    /// results can therefore neither delay a stop nor the end of a tenure.
    async fn next_wake(&mut self, stopping: Option<Instant>) -> Wake {
        let clock = Arc::clone(&self.shard_context.clock);
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
            // After a suspend the own leases may have expired: the keepers check them before the
            // coordinator acts on old knowledge.
            () = self.lease_clock.wait_for_resume() => Wake::Resumed,
            // An error means that the handle was dropped, which is a stop, too.
            // Disabled once handled: the value stays set and would starve all arms below.
            _ = self.stop.wait_for(Option::is_some), if stopping.is_none() => {
                Wake::Input(Box::new(Input::StopRequested))
            }
            Some(command) = self.commands.recv() => Wake::Command(command),
            Some((key, exit)) = self.keepers.join_next() => {
                Wake::KeeperExited(key, exit.unwrap_or(KeeperExit::Lost))
            }
            Some((key, exit)) = self.shards.join_next() => {
                Wake::ShardExited(key, exit.unwrap_or_else(|error| broken_off(&error)))
            }
            Some(input) = self.calls.join_next() => match input {
                Ok(input) => Wake::Input(Box::new(input)),
                Err(panic) => Wake::CallPanicked(panic),
            },
            () = clock.sleep_until(self.judge_at) => Wake::JudgeDue,
            () = due => Wake::Input(Box::new(Input::TimeDue)),
        }
    }

    /// Releases shards that make no progress and whose task cannot end by itself.
    fn judge_shards(&mut self) {
        let now = self.now();
        if now > self.judge_at + JUDGE_LATENESS {
            // The whole process was suspended or starved: no shard is to blame for that time.
            self.awake_since = now;
        }
        // Counted from now, so that missed judgements do not follow each other without a pause.
        self.judge_at = now + JUDGE_INTERVAL;
        // A lease whose keeper has ended, or was asked to release it, needs no judgement.
        let held_still = |held: &Held| held.keeper.is_none() && !held.give_up.is_cancelled();
        let held = self.held.iter().filter(|(_, held)| held_still(held));
        let stuck = held.filter_map(|(key, held)| match self.liveness(held, now) {
            Liveness::Stuck { cause } => Some((key.clone(), cause)),
            Liveness::Well | Liveness::Slow { .. } => None,
        });
        for (key, cause) in stuck.collect::<Vec<_>>() {
            self.stalled(&key, cause.clone());
            let Some(held) = self.held.get_mut(&key) else { continue };
            held.stuck = Some(cause);
            held.give_up.cancel();
            // A task whose thread is blocked cannot be dropped.
            if let Some(memory) = held.memory.upgrade() {
                memory.close();
            }
        }
        self.publish_status();
    }

    fn liveness(&self, held: &Held, now: Instant) -> Liveness {
        // The task has ended: its last activity would only seem to last longer and longer.
        if held.shard.is_some() {
            return Liveness::Well;
        }
        let progress = held.progress.lock();
        let (activity, since) = progress.current();
        let settings = &self.control_context.settings;
        // Time before `awake_since` does not count, because this process may not have run.
        match (judge(&activity, since.max(self.awake_since), now, settings), progress.open_since())
        {
            (Liveness::Well, Some(since)) => {
                judge_open_record(since.max(self.awake_since), now, settings)
            }
            (judged, _) => judged,
        }
    }

    fn stalled(&self, key: &LeaseKey, reason: String) {
        self.shard_context.events.emit(&Event::ShardReleased { shard: key.clone(), reason });
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Scan => self.scan(),
            Action::Look(key) => self.look(key),
            Action::List(stream) => self.list(stream),
            Action::Write(write, why) => self.write(write, why),
            Action::Start { lease, sent } => self.start(&lease, sent),
            Action::Drain(key) => {
                // A lease that is still being taken is not held. If a handoff is requested, the
                // next scan repeats the drain.
                if let Some(held) = self.held.get(&key) {
                    held.drain.cancel();
                }
            }
            Action::DrainAll => self.held.values().for_each(|held| held.drain.cancel()),
            Action::Emit(event) => self.shard_context.events.emit(&event),
            Action::Fail(error) => {
                self.failure.get_or_insert(error);
            }
        }
    }

    fn scan(&mut self) {
        let context = self.control_context.clone();
        self.calls.spawn(async move {
            let (limit, what) = (context.write_limit(), "reading the lease table");
            Input::Scanned(timely(&context.clock, limit, what, context.store.list()).await)
        });
    }

    fn look(&mut self, key: LeaseKey) {
        let context = self.control_context.clone();
        self.calls.spawn(async move {
            let (limit, what) = (context.write_limit(), "reading a lease");
            let result = timely(&context.clock, limit, what, context.store.get(&key)).await;
            Input::Looked { key, result }
        });
    }

    fn list(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(&key).cloned() else { return };
        let context = self.control_context.clone();
        self.calls.spawn(async move {
            let (limit, what) = (context.settings.lease_duration, "listing the shards");
            // Half of the limit is for the check, so that the listing is returned even if the check
            // hangs.
            let call = listing(&stream, &context.clock, limit / 2);
            let result = timely(&context.clock, limit, what, call).await;
            Input::Listed { stream: key, result }
        });
    }

    fn write(&mut self, write: LeaseWrite, why: Why) {
        let context = self.control_context.clone();
        self.calls.spawn(async move {
            // Before the first attempt, since any attempt may be the one that was applied, and the
            // validity of a lease counts from the sending.
            let sent = context.clock.now();
            let result = write_until_answered(&context, &write).await;
            Input::Wrote { write, why, sent, result }
        });
    }

    fn start(&mut self, lease: &Lease, sent: Instant) {
        let Some(stream) = self.streams.get(&lease.key.stream()).cloned() else { return };
        let context =
            ControlContext { stream: Arc::clone(&stream.stream), ..self.control_context.clone() };
        let lease_duration = context.settings.lease_duration;
        let margin = timing::fence_margin(lease_duration);
        let incarnation = context.incarnation.clone();
        let tenure =
            Tenure::new(lease.clone(), sent, self.me.clone(), incarnation, lease_duration, margin);
        let now = self.now();
        let (keeper, link) = LeaseKeeper::new(context, tenure, self.rng.fork());
        let mut held = Held {
            drain: CancellationToken::new(),
            lost: link.lost.clone(),
            give_up: link.give_up.clone(),
            progress: Arc::new(Mutex::new(Progress::new(now))),
            memory: Weak::new(),
            stored: link.stored.clone(),
            stuck: None,
            keeper: None,
            shard: None,
        };
        let shard = ShardContext {
            lease_key: lease.key.clone(),
            shard_id: lease.shard(),
            stream: Arc::clone(&stream.name),
            worker_id: self.me.clone(),
            checkpoint: lease.checkpoint.clone(),
            fencing_token: lease.counter,
            pending: lease.pending.clone(),
            // Each processor of the shard gets its own.
            heartbeat: Heartbeat::default(),
        };
        // A finished lease has no reader; dropping the link makes the keeper release it.
        match lease.cursor() {
            Some(cursor) => {
                let start = ShardStart {
                    shard,
                    cursor,
                    known: Known::of(lease, stream.horizon()),
                    hash_range: lease.hash_range,
                };
                let task = ShardTask::new(
                    ShardTaskContext {
                        stream: stream.stream,
                        service_clock: stream.service_clock,
                        ..self.shard_context.clone()
                    },
                    start,
                    link,
                    held.drain.clone(),
                    Arc::clone(&held.progress),
                    self.rng.fork(),
                );
                // Weak, because the account has to end with the task, which owns it.
                held.memory = Arc::downgrade(task.memory());
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
            // Also if the keeper panicked: without renewals the shard must not be processed.
            held.lost.cancel();
        }
        held.keeper = Some(exit);
        self.tenure_ended(key)
    }

    fn shard_exited(&mut self, key: LeaseKey, exit: ShardExit) -> Option<Input> {
        match &exit {
            ShardExit::Stop(error) => {
                self.failure.get_or_insert_with(|| error.clone());
            }
            ShardExit::Stalled { reason } => self.stalled(&key, reason.clone()),
            ShardExit::Ended | ShardExit::Drained { .. } | ShardExit::Lost => {}
        }
        self.held.get_mut(&key)?.shard = Some(exit);
        self.tenure_ended(key)
    }

    /// Ends a tenure once both its tasks have ended: only then may the next one start.
    fn tenure_ended(&mut self, key: LeaseKey) -> Option<Input> {
        let held = self.held.get(&key)?;
        let (Some(keeper), Some(shard)) = (&held.keeper, &held.shard) else { return None };
        let row = match keeper {
            KeeperExit::Done(row) => Some(Lease::clone(row)),
            KeeperExit::Lost => None,
        };
        let clean = matches!(shard, ShardExit::Ended | ShardExit::Drained { clean: true });
        // Acknowledged records are repeated unless the keeper has also stored their position.
        let drained = row.is_some() && clean;
        // The task of a shard that was judged stuck exits as `Lost`, because the keeper cancels it.
        // The reason is then the one of the judgement.
        let reason = match shard {
            ShardExit::Stalled { reason } => Some(reason),
            ShardExit::Ended | ShardExit::Drained { .. } | ShardExit::Lost | ShardExit::Stop(_) => {
                held.stuck.as_ref()
            }
        };
        let stalled = |reason: &String| Ending::Stalled { reason: reason.clone() };
        let how = reason.map_or(Ending::Usual, stalled);
        let report = ShardReport { drained, checkpoint: held.stored.borrow().clone() };
        self.held.remove(&key);
        if self.stop.borrow().is_some() {
            self.report.shards.insert(key.clone(), report);
        }
        Some(Input::TenureEnded { key, row, how })
    }

    /// Aborts the remaining tasks at the stop deadline, without a release. Their leases expire.
    fn abandon_the_rest(&mut self) {
        for (key, held) in std::mem::take(&mut self.held) {
            held.lost.cancel();
            let report = ShardReport { drained: false, checkpoint: held.stored.borrow().clone() };
            self.report.shards.insert(key, report);
        }
        self.calls.abort_all();
        self.keepers.abort_all();
        self.shards.abort_all();
    }

    fn publish_status(&self) {
        let now = self.now();
        let poll_interval = self.control_context.settings.poll_interval;
        let shards = self.held.iter().map(|(key, held)| {
            let trouble = match self.liveness(held, now) {
                Liveness::Well => None,
                Liveness::Slow { cause } | Liveness::Stuck { cause } => Some(cause),
            };
            // Locked only after the judgement, which takes the same lock.
            let progress = held.progress.lock();
            let status = ShardStatus {
                checkpoint: held.stored.borrow().clone(),
                millis_behind_latest: progress.millis_behind(now, poll_interval),
                since_reply: progress.since_reply(now),
                since_progress: now.saturating_duration_since(progress.at),
                trouble,
            };
            (key.clone(), status)
        });
        let shards: BTreeMap<_, _> = shards.collect();
        let mut health = self.state.health(now);
        let troubles = shards.iter().filter_map(|(key, shard): (&LeaseKey, &ShardStatus)| {
            shard.trouble.clone().map(|trouble| (key.clone(), trouble))
        });
        health.shards.extend(troubles);
        let faults = &self.shard_context.packing_faults;
        let status = Status {
            leases: self.state.unfinished(),
            shards,
            health,
            misrouted_records: faults.misrouted(),
            corrupt_aggregates: faults.corrupt(),
        };
        // `send` would not store the value after the handle was dropped, but `step` compares with
        // it.
        self.status.send_replace(status);
    }
}

/// Maps a shard task that was cancelled or panicked to an exit. The keeper sees the dropped link and
/// releases the lease.
fn broken_off(error: &JoinError) -> ShardExit {
    if error.is_cancelled() {
        // Only the shutdown of the user's runtime cancels a task: no shard can be processed any more.
        return ShardExit::Stop(Error::runtime_gone());
    }
    // A panic outside a callback.
    ShardExit::Stalled { reason: format!("its shard task failed: {error}") }
}

/// Repeats a conditional write while its outcome is unknown: if an earlier attempt was applied, the
/// refusal shows this worker's own mark.
async fn write_until_answered(
    context: &ControlContext,
    write: &LeaseWrite,
) -> Result<WriteOutcome, ServiceError> {
    let mut attempt = 1;
    loop {
        let (limit, what) = (context.write_limit(), "writing a lease");
        let result = timely(&context.clock, limit, what, context.store.write(write)).await;
        if result.is_ok() || attempt == WRITE_ATTEMPTS {
            return result;
        }
        clock::sleep(&context.clock, Duration::from_millis(100) * attempt).await;
        attempt += 1;
    }
}

/// Lists the shards, and checks that the stream is still the one the leases were created for. If the
/// check does not answer in time, the listing is returned anyway.
async fn listing(
    stream: &ReadyStream,
    clock: &Arc<dyn Clock>,
    limit: Duration,
) -> Result<Listing, ServiceError> {
    let list = async {
        let listing = stream.stream.list(ListFrom::All).await?;
        stream.service_clock.set(listing.at);
        Ok(listing)
    };
    let Some(was) = &stream.source.identity else { return list.await };
    let describe = clock::within(clock, limit, stream.stream.describe());
    match future::join(describe, list).await {
        (Some(Ok(Description { identity: Some(is), .. })), _) if is != *was => {
            let context = format!("{was} was deleted and re-created as {is}");
            Err(ServiceError::new(ServiceErrorKind::Missing, context))
        }
        (Some(Err(error)), _) if error.kind == ServiceErrorKind::Missing => Err(error),
        // A description that is denied or fails otherwise says nothing about the stream.
        (_, listing) => listing,
    }
}
