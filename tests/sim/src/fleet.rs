//! The workers of a run: one task per slot, which runs one incarnation after another.
//!
//! Acts as a machine or an operator: starts a worker, kills it, shuts it down gracefully, restarts
//! it when it stopped on its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use kcl_lite::{
    ControlPlane, Error, Health, InitialPosition, Report, Settings, Worker, WorkerHandle, WorkerId,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::checks::Promise;
use crate::clock::DriftingClock;
use crate::machine::Machine;
use crate::plan::{Start, Tier, What};
use crate::processor::{Morgue, SimProcessor};
use crate::reached::Situation;
use crate::services::{APPLICATION, STREAM};
use crate::stream::{SimStream, service_time};
use crate::table::Table;
use crate::wire;
use crate::world::World;

/// The deadline of the shutdown of all workers at the end.
const LAST_DEADLINE: Duration = Duration::from_secs(60);
/// How long a shutdown may take in a run without faults.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long a worker that stopped on its own stays away.
const RESTART: Duration = Duration::from_secs(2);

/// A command to a slot.
#[derive(Debug, Clone, Copy)]
enum Command {
    Kill(Return),
    Stop(Duration, Return),
    Freeze(Duration),
    Suspend(Duration),
    /// Start, if no incarnation runs and no start is scheduled.
    Revive,
    /// Stop permanently.
    End,
}

/// When a slot starts its next incarnation, and under which ID.
#[derive(Debug, Clone, Copy)]
struct Return {
    after: Option<Duration>,
    same_id: bool,
}

/// All slots.
pub(crate) struct Fleet {
    world: Arc<World>,
    commands: Vec<mpsc::Sender<Command>>,
    live: Arc<Live>,
    tasks: JoinSet<Option<WorkerId>>,
}

/// The incarnation of each slot that has started.
type Handles = BTreeMap<usize, (Arc<Machine>, Weak<WorkerHandle>)>;

/// The incarnations that run, by slot.
#[derive(Debug)]
struct Live {
    slots: Mutex<Vec<Option<WorkerId>>>,
    /// The handles of workers that have started.
    handles: Mutex<Handles>,
    /// The number of incarnations so far.
    booted: AtomicUsize,
}

impl Live {
    fn set(&self, slot: usize, id: Option<WorkerId>) {
        self.slots.lock()[slot] = id;
    }

    /// Returns the health reports of the running workers that have started.
    fn healths(&self) -> Vec<(Arc<Machine>, Health)> {
        let mut handles = self.handles.lock();
        handles.retain(|_, (machine, handle)| !machine.is_dead() && handle.strong_count() > 0);
        let handles = handles.values();
        handles
            .filter_map(|(machine, handle)| Some((Arc::clone(machine), handle.upgrade()?.health())))
            .collect()
    }

    fn ids(&self) -> Vec<WorkerId> {
        let slots = self.slots.lock();
        slots.iter().flatten().cloned().collect()
    }
}

impl Fleet {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        let slots = world.plan.workers;
        let live = Arc::new(Live {
            slots: Mutex::new(vec![None; slots]),
            handles: Mutex::default(),
            booted: AtomicUsize::new(0),
        });
        let mut fleet = Self {
            world: Arc::clone(world),
            commands: Vec::new(),
            live: Arc::clone(&live),
            tasks: JoinSet::new(),
        };
        for number in 0..slots {
            let (commands, orders) = mpsc::channel(64);
            let (world, live) = (Arc::clone(world), Arc::clone(&live));
            fleet.commands.push(commands);
            fleet.tasks.spawn(Slot { world, live, number, orders }.run());
        }
        fleet
    }

    /// Performs an operation.
    pub(crate) async fn perform(&self, what: &What) {
        self.world.say(&"plan", format_args!("{what:?}"));
        match *what {
            What::Kill { slot, back_after, same_id } => {
                self.tell(slot, Command::Kill(Return { after: back_after, same_id })).await;
            }
            What::Stop { slot, deadline, back_after, same_id } => {
                let back = Return { after: back_after, same_id };
                self.tell(slot, Command::Stop(deadline, back)).await;
            }
            What::Freeze { slot, lasts } => self.tell(slot, Command::Freeze(lasts)).await,
            What::Suspend { slot, lasts } => self.tell(slot, Command::Suspend(lasts)).await,
            What::Link { .. }
            | What::Split(_)
            | What::Merge(_)
            | What::StaleListings { .. }
            | What::NamelessChildren { .. }
            | What::Mood { .. }
            | What::Trim { .. }
            | What::Forget(_)
            | What::Burst(_)
            | What::Drought { .. }
            | What::WallClock { .. } => self.world.lock().happen(what),
            What::Recreate { shards, gone_for } => {
                self.world.lock().delete_stream();
                let world = Arc::clone(&self.world);
                self.world.spawn(async move {
                    sleep(gone_for).await;
                    world.lock().make_stream_again(shards);
                });
            }
        }
    }

    async fn tell(&self, slot: usize, command: Command) {
        // A slot that has ended receives no more commands.
        self.commands[slot].send(command).await.unwrap_or(());
    }

    /// The faults are over: at least one worker has to run.
    pub(crate) async fn keep_alive(&self) {
        if self.live.ids().is_empty() {
            self.tell(0, Command::Revive).await;
        }
    }

    /// Compares the workers' health reports with the true state.
    pub(crate) fn compare_health(&self) {
        let healths = self.live.healths();
        let running: Vec<_> = healths.iter().map(|(machine, _)| machine.number).collect();
        let mut truth = self.world.lock();
        let truth = &mut *truth;
        truth.ledger.is_handed_over_in_time(truth.now, &running);
        truth.ledger.is_told(truth.now, &mut truth.shards, &healths);
    }

    /// Checks the settled state, shuts all workers down, and checks what remains.
    pub(crate) async fn finish(mut self) {
        if self.world.now() >= self.world.plan.length {
            let mut truth = self.world.lock();
            let truth = &mut *truth;
            let live = self.live.ids();
            let healths = self.live.healths();
            truth.ledger.is_healthy(truth.now, (&mut truth.shards, &truth.rows), &healths);
            truth.ledger.is_settled(truth.now, &mut truth.shards, &truth.rows, &live);
        }
        for commands in &self.commands {
            commands.send(Command::End).await.unwrap_or(());
        }
        let mut stopped = Vec::new();
        let all = async {
            while let Some(result) = self.tasks.join_next().await {
                stopped.extend(result.ok().flatten());
            }
        };
        let is_over = timeout(LAST_DEADLINE * 3, all).await.is_ok();
        let mut truth = self.world.lock();
        let truth = &mut *truth;
        if !is_over {
            let text = "a worker does not stop".to_owned();
            return truth.ledger.broken(Promise::Remains, truth.now, None, text);
        }
        truth.ledger.is_released(truth.now, &mut truth.shards, &truth.rows, &stopped);
    }
}

/// The deadline of a shutdown, and the restart after it, if any.
type Stop = (Duration, Option<Return>);

/// One slot.
struct Slot {
    world: Arc<World>,
    live: Arc<Live>,
    number: usize,
    orders: mpsc::Receiver<Command>,
}

/// How an incarnation ended.
enum End {
    Back(Return),
    /// Shut down gracefully at the end of the run.
    Over,
    /// Already stopped on its own when it was to be shut down.
    Gone,
}

impl Slot {
    /// Runs until the run ends; returns the worker that was shut down last.
    async fn run(mut self) -> Option<WorkerId> {
        let spread = self.world.plan.boot_at + Duration::from_millis(self.number as u64 * 700);
        let mut back = Return { after: Some(spread), same_id: false };
        let mut id = None;
        loop {
            if !self.wait(back.after).await {
                return None;
            }
            let number = self.live.booted.fetch_add(1, Ordering::Relaxed);
            let name = match id.take() {
                Some(before) if back.same_id => {
                    self.world.note(Situation::SameId);
                    before
                }
                _ => WorkerId::from(format!("w{}.{number}", self.number)),
            };
            let machine = Machine::boot(&self.world, self.number, number, name.clone());
            self.world.lock().boots(number);
            self.live.set(self.number, Some(name.clone()));
            let end = self.live(&machine).await;
            machine.die();
            self.live.set(self.number, None);
            match end {
                End::Back(when) => back = when,
                End::Over => return Some(name),
                End::Gone => return None,
            }
            id = Some(name);
        }
    }

    /// Waits for the time to start; returns false if the slot is not to start again.
    async fn wait(&mut self, after: Option<Duration>) -> bool {
        let start = async {
            match after {
                Some(after) => sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(start);
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Command::Revive) => return true,
                    Some(Command::End) | None => return false,
                    Some(
                        Command::Kill(_)
                        | Command::Stop(..)
                        | Command::Freeze(_)
                        | Command::Suspend(_),
                    ) => {}
                },
                () = &mut start => return true,
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each order, before and after the start")]
    async fn live(&mut self, machine: &Arc<Machine>) -> End {
        self.world.say(&**machine, format_args!("boots"));
        let starting = start(machine);
        tokio::pin!(starting);
        let mut stop: Option<Stop> = None;
        let handle = loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Command::Kill(back)) => {
                        self.world.note(Situation::KilledAtStart);
                        return self.killed(machine, back);
                    }
                    Some(Command::Stop(deadline, back)) => {
                        self.world.note(Situation::StoppedAtStart);
                        stop = Some((deadline, Some(back)));
                    }
                    Some(Command::End) | None => stop = Some((LAST_DEADLINE, None)),
                    Some(Command::Freeze(lasts)) => machine.freeze(lasts),
                    Some(Command::Suspend(lasts)) => machine.suspend(lasts),
                    Some(Command::Revive) => {}
                },
                started = &mut starting => match started {
                    Ok(handle) => break self.started(machine, handle),
                    Err(error) => return self.ended(machine, &error, stop),
                },
            }
        };
        let mut stopping_since = None;
        loop {
            if stop.is_some() {
                stopping_since.get_or_insert_with(|| self.world.now());
            }
            let stopping = async {
                match stop {
                    Some((deadline, _)) => {
                        // A frozen process does not handle the request before it thaws.
                        machine.awake().await;
                        handle.shutdown(deadline).await
                    }
                    None => handle.stopped().await,
                }
            };
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Command::Kill(back)) => {
                        handle.abort();
                        return self.killed(machine, back);
                    }
                    // The first stop wins.
                    Some(Command::Stop(deadline, back)) => {
                        stop.get_or_insert((deadline, Some(back)));
                    }
                    Some(Command::End) | None => {
                        // The deadline of a stop that has begun stays; only the restart is dropped.
                        stop = Some((stop.map_or(LAST_DEADLINE, |it| it.0), None));
                    }
                    Some(Command::Freeze(lasts)) => machine.freeze(lasts),
                    Some(Command::Suspend(lasts)) => machine.suspend(lasts),
                    Some(Command::Revive) => {}
                },
                ended = stopping => {
                    if handle.health().is_healthy() || !handle.status().shards.is_empty() {
                        self.broken(format!("a worker that has ended says: {}", handle.status()));
                    }
                    return match (ended, stop) {
                    (Ok(report), Some((_, back))) => {
                        self.stopped_in_time(machine, stopping_since);
                        self.stopped(machine, report, back).await
                    }
                    (Ok(_), None) => {
                        self.broken("the worker stopped without a request".to_owned());
                        End::Over
                    }
                    (Err(error), _) => self.ended(machine, &error, stop),
                    };
                },
            }
        }
    }

    fn started(&self, machine: &Arc<Machine>, handle: WorkerHandle) -> Arc<WorkerHandle> {
        let mut truth = self.world.lock();
        let now = truth.now;
        truth.shards.start(now);
        drop(truth);
        let handle = Arc::new(handle);
        let entry = (Arc::clone(machine), Arc::downgrade(&handle));
        let mut handles = self.live.handles.lock();
        handles.insert(self.number, entry);
        handle
    }

    fn killed(&self, machine: &Machine, back: Return) -> End {
        machine.die();
        self.world.note(Situation::Killed);
        self.world.say(machine, format_args!("is killed"));
        End::Back(back)
    }

    async fn stopped(&self, machine: &Arc<Machine>, report: Report, back: Option<Return>) -> End {
        self.world.note(Situation::Stopped);
        self.world.say(&**machine, format_args!("has stopped: {report:?}"));
        sleep(Duration::from_millis(10)).await;
        let running = machine.running.load(Ordering::Relaxed);
        if running > 0 {
            let mut truth = self.world.lock();
            let (now, text) = (truth.now, format!("{running} readers or processors of {machine}"));
            truth.ledger.broken(Promise::Remains, now, None, text);
        }
        back.map_or(End::Over, End::Back)
    }

    /// Checks, in a run without faults, that a shutdown does not wait for owners to which requests
    /// were sent.
    fn stopped_in_time(&self, machine: &Machine, since: Option<Duration>) {
        let mut truth = self.world.lock();
        let took = truth.now.saturating_sub(since.unwrap_or(truth.now));
        let plan = &self.world.plan;
        if plan.busy_owner && self.number > 0 && truth.now < plan.calm_at && took > STOP_LIMIT {
            let text = format!("{machine} took {took:?} to stop");
            let now = truth.now;
            truth.ledger.broken(Promise::Remains, now, None, text);
        }
    }

    /// Notes that the worker stopped on its own and schedules a restart, unless it must not stop
    /// for this error.
    fn ended(&self, machine: &Machine, error: &Error, stop: Option<Stop>) -> End {
        self.world.note(Situation::GaveUp);
        self.world.say(machine, format_args!("gives up: {error}"));
        let mut truth = self.world.lock();
        let truth = &mut *truth;
        if !truth.ledger.may_give_up(machine.number, error.kind(), (&truth.shards, &truth.rows)) {
            let text = format!("the worker stopped on its own: {error}");
            truth.ledger.broken(Promise::Sound, truth.now, None, text);
        }
        match stop {
            Some((_, None)) => End::Gone,
            _ => End::Back(Return { after: Some(RESTART), same_id: false }),
        }
    }

    fn broken(&self, text: String) {
        let mut truth = self.world.lock();
        let now = truth.now;
        truth.ledger.broken(Promise::Sound, now, None, text);
    }
}

async fn start(machine: &Arc<Machine>) -> Result<WorkerHandle, Error> {
    let plan = &machine.world.plan;
    let settings = Settings {
        lease_duration: plan.lease_duration,
        poll_interval: plan.poll_interval,
        audit_interval: plan.audit_interval,
        max_unacknowledged: plan.max_unacknowledged,
        checkpoints: plan.checkpoints,
        failures: plan.failures,
        slow_after: plan.slow_after,
        callback_deadline: plan.callback_deadline,
        max_leases: if plan.full_slot() == Some(machine.slot) { 1 } else { usize::MAX },
        initial_position: match plan.start {
            Start::Horizon => InitialPosition::TrimHorizon,
            Start::Latest => InitialPosition::Latest,
            Start::At(at) => InitialPosition::AtTimestamp(service_time(at)),
            Start::Ago(ago) => InitialPosition::Ago(ago),
        },
        // Short, so that starts that fail occur too.
        start_timeout: Duration::from_secs(30),
        stream_recreated: plan.recreated.unwrap_or_default(),
        control_plane: ControlPlane::Inline,
        seed: Some(machine.draw(|rng| rng.u64(..))),
        ..Settings::default()
    };
    let observed = Arc::clone(machine);
    let worker = Worker::builder(APPLICATION, STREAM);
    let worker = match plan.tier {
        Tier::Protocol => {
            worker.lease_store(Table(Arc::clone(machine))).stream(SimStream(Arc::clone(machine)))
        }
        Tier::Full => worker.aws_config(wire::config(machine)),
    };
    let worker = worker
        .worker_id(machine.id.clone())
        .settings(settings)
        .clock(Arc::new(DriftingClock(Arc::clone(machine))))
        .dead_letter(Morgue(Arc::clone(machine)))
        .on_event(move |event| observed.world.say(&*observed, format_args!("* {event}")))
        .build()
        .await?;
    let machine = Arc::clone(machine);
    worker.start(move |shard| SimProcessor::new(&machine, shard)).await
}
