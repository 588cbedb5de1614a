//! One state of the model, and every step that leads on from it.
//!
//! The rows change by [`LeaseWrite::apply`]; a holder believes and writes what its [`Tenure`] says; an
//! observer judges by its [`Observations`]; takes are recognised by [`Takes`]. What is written here is
//! the order of things alone, and what may go wrong. Never decides what the library decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{Bounds, Stopped};
use crate::lease::balance::{Snapshot, leases_to_take};
use crate::lease::expiry::Observations;
use crate::lease::store::WriteOutcome;
use crate::lease::taking::Takes;
use crate::lease::tenure::{Goal, Tenure, Verdict, take_id, write_id};
use crate::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite, News};
use crate::mutant;
use crate::position::Checkpoint;
use crate::record::WorkerId;
use crate::settings::{Balance, Settings};

/// How many lease durations a finished row stays, as in `worker/state`.
const FINISHED_STAYS: u32 = 6;

/// The ids of the workers, and those they may come back with.
const NAMES: [[&str; 2]; 3] = [["a", "x"], ["b", "y"], ["c", "z"]];

/// Everything there is.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) bounds: Bounds,
    /// The lease duration, the interval of renewals and the margin of the fence.
    times: [Duration; 3],
    start: Instant,
    tick: u32,
    pub(super) shards: Vec<Shard>,
    pub(super) workers: Vec<Worker>,
    pub(super) wire: Vec<Message>,
    /// How many faults may still happen.
    pub(super) faults: u8,
    /// How many leases may still be asked for or let go.
    pub(super) moves: u8,
    /// The first promise that was broken.
    pub(super) broken: Option<String>,
    /// What has happened in this step, for the count of what was seen.
    pub(super) notes: Vec<&'static str>,
}

/// A row, and what the model knows beside it.
#[derive(Debug, Clone)]
pub(super) struct Shard {
    pub(super) row: Option<Lease>,
    /// How many records have been acknowledged, by whomever.
    pub(super) acknowledged: u8,
    /// Finished and deleted.
    pub(super) is_gone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// Stopped by the machine: its clock goes on.
    Paused,
    Dead,
}

#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) incarnation: String,
    pub(super) lives: u8,
    pub(super) life: Life,
    pub(super) observations: Observations,
    pub(super) takes: Takes,
    pub(super) slots: Vec<Slot>,
}

/// What a worker has to do with one lease.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    /// The row as last read.
    pub(super) seen: Option<Lease>,
    /// The write whose answer is waited for, and when it was sent.
    pub(super) waiting: Option<(LeaseWrite, Instant)>,
    pub(super) hold: Option<Hold>,
}

#[derive(Debug, Clone)]
pub(super) struct Hold {
    pub(super) tenure: Tenure,
    pub(super) goal: Goal,
    pub(super) acknowledged: u8,
    pub(super) fate: Fate,
}

/// What the model knows of a hold and its holder does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// Its tenure of the row is over.
    pub(super) is_deposed: bool,
    /// It was ended by one who had asked and did not want to wait: the fence alone protects then.
    pub(super) is_overdue: bool,
}

/// A write on its way, or its answer.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) from: usize,
    pub(super) lease: usize,
    pub(super) write: LeaseWrite,
    pub(super) sent: Instant,
    pub(super) reply: Option<WriteOutcome>,
    /// Whether the sender still waits.
    pub(super) is_awaited: bool,
    pub(super) why: Why,
    /// What the sender had acknowledged.
    pub(super) acknowledged: u8,
    pub(super) fate: Fate,
}

/// What a write is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Create,
    /// Nobody has it, it is ours already, or it has expired.
    Take,
    /// It was asked for and is still not here.
    TakeOverdue,
    Ask,
    /// A holder's write.
    Hold,
    Delete,
}

/// What the network does to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Fine,
    /// The write never arrives.
    Lost,
    /// It is applied; the answer never arrives.
    Unanswered,
    /// It arrives at any later moment.
    Late,
    /// It arrives at any later moment, and again.
    Twice,
    /// It is applied; the answer arrives later.
    Slow,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Tick,
    Arrives(usize),
    Pause(usize),
    Resume(usize),
    Crash(usize),
    /// With an id of its own, or the one before.
    Restart(usize, usize),
    Look(usize),
    Acknowledge(usize, usize),
    Leave(usize, usize),
    End(usize, usize),
    Write(usize, usize, Why, Network),
}

pub(super) fn at(position: u8) -> Checkpoint {
    if position == 0 {
        return Checkpoint::TrimHorizon;
    }
    Checkpoint::parse(&position.to_string(), 0).unwrap()
}

fn position(row: &Lease, records: u8) -> u8 {
    match &row.checkpoint {
        Checkpoint::At(position) => position.sequence_number.as_str().parse().unwrap(),
        Checkpoint::ShardEnd => records,
        Checkpoint::TrimHorizon | Checkpoint::Latest | Checkpoint::AtTimestamp => 0,
    }
}

fn key(lease: usize) -> LeaseKey {
    ["shardId-0", "shardId-1"][lease].into()
}

impl Worker {
    fn new(of: usize, name: usize, lives: u8, leases: usize) -> Self {
        let id = NAMES[of][name];
        Self {
            id: id.into(),
            incarnation: format!("{id}#{lives}"),
            lives,
            life: Life::Running,
            observations: Observations::default(),
            takes: Takes::default(),
            slots: vec![Slot::default(); leases],
        }
    }
}

impl World {
    /// Workers that have just started, and no rows.
    pub(super) fn new(bounds: Bounds) -> Self {
        let workers = 0..bounds.rates.len();
        let shard = Shard { row: None, acknowledged: 0, is_gone: false };
        let workers = workers.map(|of| Worker::new(of, 0, 1, bounds.leases));
        let lease_duration = Duration::from_secs(u64::from(bounds.lasts));
        let settings = Settings { lease_duration, ..Settings::default() };
        let mut world = Self {
            bounds,
            times: [lease_duration, settings.renew_interval(), settings.fence_margin()],
            // Room for instants before the start.
            start: Instant::now() + Duration::from_secs(1_000),
            tick: 0,
            shards: vec![shard; bounds.leases],
            workers: workers.collect(),
            wire: Vec::new(),
            faults: bounds.faults,
            moves: bounds.moves,
            broken: None,
            notes: Vec::new(),
        };
        if !bounds.whole_life {
            for (lease, shard) in world.shards.iter_mut().enumerate() {
                shard.row = Some(Lease::new(key(lease), at(0)));
            }
            (0..world.workers.len()).for_each(|worker| world.look(worker));
        }
        world
    }

    /// Now, by the clock of one worker.
    pub(super) fn now(&self, worker: usize) -> Instant {
        self.start + Duration::from_millis(u64::from(self.bounds.rates[worker])) * self.tick
    }

    fn require(&mut self, holds: bool, promise: &str) {
        if !holds {
            self.broken.get_or_insert_with(|| promise.to_owned());
        }
    }

    /// Whether a worker, running or not, holds the lease by its own clock.
    fn believes(&self, worker: usize, lease: usize) -> bool {
        self.workers[worker].slots[lease].hold.as_ref().is_some_and(|hold| {
            hold.goal == Goal::Keep && self.now(worker) < hold.tenure.fenced_at()
        })
    }

    /// Never two owners, but for the time until one whose lease was overdue hears of it.
    pub(super) fn check_owners(&mut self) {
        for lease in 0..self.shards.len() {
            let owners = (0..self.workers.len()).filter(|worker| {
                let hold = self.workers[*worker].slots[lease].hold.as_ref();
                self.believes(*worker, lease) && hold.is_some_and(|hold| !hold.fate.is_overdue)
            });
            let owners = owners.count();
            self.require(owners <= 1, "two workers hold one lease");
        }
    }

    /// All that may happen now.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (index, message) in self.wire.iter().enumerate() {
            let can_hear = self.workers[message.from].life == Life::Running;
            if message.reply.is_none() || can_hear {
                steps.push(Step::Arrives(index));
            }
        }
        let mut is_busy = false;
        for (index, worker) in self.workers.iter().enumerate() {
            match worker.life {
                Life::Dead => {
                    steps.extend([Step::Restart(index, 0), Step::Restart(index, 1)]);
                }
                Life::Paused => steps.push(Step::Resume(index)),
                Life::Running => {
                    if self.faults > 0 && self.matters(index) {
                        steps.extend([Step::Pause(index), Step::Crash(index)]);
                    }
                    let is_news = |(slot, shard): (&Slot, &Shard)| {
                        slot.hold.is_none() && slot.waiting.is_none() && slot.seen != shard.row
                    };
                    if worker.slots.iter().zip(&self.shards).any(is_news) {
                        steps.push(Step::Look(index));
                    }
                    for lease in 0..self.shards.len() {
                        is_busy |= self.is_due(index, lease);
                        self.steps_of(index, lease, &mut steps);
                    }
                }
            }
        }
        if !is_busy {
            steps.push(Step::Tick);
        }
        steps
    }

    /// Whether it makes a difference that a worker stops: who holds nothing, waits for nothing and is
    /// named in no row may as well never have scanned.
    fn matters(&self, worker: usize) -> bool {
        let Worker { id, slots, .. } = &self.workers[worker];
        let is_busy = |slot: &Slot| slot.hold.is_some() || slot.waiting.is_some();
        let names = |row: &Lease| {
            row.owner.as_ref() == Some(id) || row.checkpoint_owner.as_ref() == Some(id)
        };
        let mut rows = self.shards.iter().filter_map(|shard| shard.row.as_ref());
        slots.iter().any(is_busy) || rows.any(names)
    }

    /// What a running worker does before time goes on.
    fn is_due(&self, worker: usize, lease: usize) -> bool {
        let slot = &self.workers[worker].slots[lease];
        let [_, interval, _] = self.times;
        slot.waiting.is_none()
            && slot.hold.as_ref().is_some_and(|hold| {
                hold.goal != Goal::Keep || self.now(worker) >= hold.tenure.valid_from() + interval
            })
    }

    fn steps_of(&self, worker: usize, lease: usize, steps: &mut Vec<Step>) {
        let Worker { id, slots, .. } = &self.workers[worker];
        let slot = &slots[lease];
        let mut write = |why| {
            let networks = [
                Network::Fine,
                Network::Lost,
                Network::Unanswered,
                Network::Late,
                Network::Slow,
                Network::Twice,
            ];
            let known = if self.faults > 0 { networks.len() } else { 1 };
            let networks = networks.into_iter().take(known);
            steps.extend(networks.map(|network| Step::Write(worker, lease, why, network)));
        };
        let is_waiting = slot.waiting.is_some();
        if let Some(hold) = &slot.hold {
            let has_news = at(hold.acknowledged) > hold.tenure.lease().checkpoint;
            if !is_waiting && (has_news || self.is_due(worker, lease)) {
                write(Why::Hold);
            }
            if hold.goal != Goal::Keep {
                return;
            }
            let is_done = hold.acknowledged == self.bounds.records;
            if !is_done && self.believes(worker, lease) {
                steps.push(Step::Acknowledge(worker, lease));
            }
            let seen = slot.seen.as_ref();
            let is_asked = seen.is_some_and(|row| row.checkpoint_owner.as_ref() == Some(id));
            if !is_waiting && (is_asked || self.moves > 0) {
                steps.push(Step::Leave(worker, lease));
            }
            if !is_waiting && is_done && self.bounds.whole_life {
                steps.push(Step::End(worker, lease));
            }
        } else if !is_waiting {
            self.wishes(worker, lease).into_iter().for_each(&mut write);
        }
    }

    /// What a worker that does not hold the lease may want to do with it, whatever the balance: more
    /// than any policy would.
    fn wishes(&self, worker: usize, lease: usize) -> Vec<Why> {
        let Worker { id, slots, observations, .. } = &self.workers[worker];
        let Some(row) = &slots[lease].seen else {
            // What was finished and deleted is known by its children.
            return if self.shards[lease].is_gone { Vec::new() } else { vec![Why::Create] };
        };
        let unchanged = observations.unchanged_for(self.now(worker), row);
        if row.checkpoint.is_shard_end() {
            let at_once = mutant::is("finished-rows-go-at-once");
            let stays = if at_once { Duration::ZERO } else { self.times[0] * FINISHED_STAYS };
            return if unchanged >= stays { vec![Why::Delete] } else { Vec::new() };
        }
        match row.actual_owner() {
            None => vec![Why::Take],
            Some(owner) if owner == id => vec![Why::Take],
            Some(_) if unchanged >= self.times[0] => vec![Why::Take],
            Some(_) if row.owner.as_ref() == Some(id) => vec![Why::TakeOverdue],
            Some(_) if self.moves == 0 || row.checkpoint_owner.is_some() => Vec::new(),
            Some(_) if mutant::is("steals-without-a-drain") => vec![Why::Take],
            Some(_) => vec![Why::Ask],
        }
    }

    /// The world after one step.
    pub(super) fn after(&self, step: Step) -> Self {
        let mut next = self.clone();
        next.notes.clear();
        match step {
            Step::Tick => next.tick(),
            Step::Arrives(index) => next.arrives(index),
            Step::Pause(worker) => {
                next.faults -= 1;
                next.workers[worker].life = Life::Paused;
            }
            Step::Resume(worker) => {
                next.workers[worker].life = Life::Running;
                next.wake(worker);
            }
            Step::Crash(worker) => next.crash(worker),
            Step::Restart(worker, name) => next.restart(worker, name),
            Step::Look(worker) => next.look(worker),
            Step::Acknowledge(worker, lease) => next.acknowledge(worker, lease),
            Step::Leave(worker, lease) => next.leave(worker, lease),
            Step::End(worker, lease) => {
                let hold = next.workers[worker].slots[lease].hold.as_mut();
                hold.expect("a holder ends a shard").goal = Goal::Finish(BTreeSet::new());
            }
            Step::Write(worker, lease, why, network) => next.write(worker, lease, why, network),
        }
        next.sweep();
        next.check_owners();
        next
    }

    /// What nobody waits for and the table refuses now, it refuses for ever, since no counter returns:
    /// it may as well arrive now.
    fn sweep(&mut self) {
        let shards = &self.shards;
        self.wire.retain(|message| {
            let row = shards[message.lease].row.as_ref();
            let can_do = message.reply.is_none() && message.write.apply(row).is_ok();
            // A row that is gone could be made again.
            message.is_awaited || can_do || message.why == Why::Create
        });
    }

    fn tick(&mut self) {
        self.tick += 1;
        for worker in 0..self.workers.len() {
            if self.workers[worker].life == Life::Running {
                self.wake(worker);
            }
        }
    }

    /// What a running worker does first: its fences, the writes that have taken too long, a scan.
    fn wake(&mut self, worker: usize) {
        let (now, patience) = (self.now(worker), self.times[0] / 4);
        let misses_scan = self.workers[worker].misses_scan();
        for lease in 0..self.shards.len() {
            let slot = &mut self.workers[worker].slots[lease];
            if slot.hold.as_ref().is_some_and(|hold| now >= hold.tenure.fenced_at()) {
                self.notes.push("an owner stopped itself");
                self.lose(worker, lease);
                continue;
            }
            let is_over = |(_, sent): &mut (LeaseWrite, Instant)| now >= *sent + patience;
            if slot.waiting.as_mut().is_some_and(is_over) {
                self.give_up(worker, lease);
            }
        }
        if !misses_scan {
            self.look(worker);
        }
    }

    /// Waits no more for an answer.
    fn give_up(&mut self, worker: usize, lease: usize) {
        let this = &mut self.workers[worker];
        let Some((write, sent)) = this.slots[lease].waiting.take() else { return };
        if this.slots[lease].hold.is_none() {
            this.takes.gave_up(&write, sent);
        } else if mutant::is("one-error-loses-the-lease") {
            self.lost(worker, lease);
        }
        self.wait_no_more(worker, lease);
    }

    fn look(&mut self, worker: usize) {
        let now = self.now(worker);
        let rows: Vec<_> = self.shards.iter().filter_map(|shard| shard.row.clone()).collect();
        let worker = &mut self.workers[worker];
        worker.observations.scanned(now, &rows);
        for (slot, shard) in worker.slots.iter_mut().zip(&self.shards) {
            slot.seen.clone_from(&shard.row);
        }
    }

    fn wait_no_more(&mut self, worker: usize, lease: usize) {
        self.workers[worker].slots[lease].waiting = None;
        let theirs = |it: &&mut Message| it.from == worker && it.lease == lease;
        self.wire.iter_mut().filter(theirs).for_each(|message| message.is_awaited = false);
        self.wire.retain(|message| message.is_awaited || message.reply.is_none());
    }

    fn lose(&mut self, worker: usize, lease: usize) {
        self.workers[worker].slots[lease].hold = None;
        self.wait_no_more(worker, lease);
    }

    /// The holder was told that it has lost the lease.
    fn lost(&mut self, worker: usize, lease: usize) {
        let hold = self.workers[worker].slots[lease].hold.as_ref();
        let is_so = hold.is_some_and(|hold| hold.fate.is_deposed);
        self.require(is_so, "a lease was given up though nobody had taken it");
        self.notes.push("an owner was told that it has lost");
        self.lose(worker, lease);
    }

    fn crash(&mut self, worker: usize) {
        self.faults -= 1;
        for lease in 0..self.shards.len() {
            self.lose(worker, lease);
        }
        let gone = &mut self.workers[worker];
        *gone = Worker {
            life: Life::Dead,
            lives: gone.lives,
            ..Worker::new(worker, 0, 0, self.shards.len())
        };
    }

    fn restart(&mut self, worker: usize, name: usize) {
        let lives = self.workers[worker].lives + 1;
        self.workers[worker] = Worker::new(worker, name, lives, self.shards.len());
        self.look(worker);
    }

    fn acknowledge(&mut self, worker: usize, lease: usize) {
        let slot = &mut self.workers[worker].slots[lease];
        let hold = slot.hold.as_mut().expect("a holder acknowledges");
        hold.acknowledged += 1;
        let most = &mut self.shards[lease].acknowledged;
        *most = (*most).max(hold.acknowledged);
    }

    fn leave(&mut self, worker: usize, lease: usize) {
        let Worker { id, slots, .. } = &mut self.workers[worker];
        let slot = &mut slots[lease];
        let seen = slot.seen.as_ref();
        if !seen.is_some_and(|row| row.checkpoint_owner.as_ref() == Some(id)) {
            self.moves -= 1;
        }
        slot.hold.as_mut().expect("a holder leaves").goal = Goal::Release;
    }

    fn write(&mut self, worker: usize, lease: usize, why: Why, network: Network) {
        let now = self.now(worker);
        let this = &mut self.workers[worker];
        let hold = this.slots[lease].hold.as_mut();
        let (fate, acknowledged) =
            hold.as_ref().map_or((Fate::default(), 0), |hold| (hold.fate, hold.acknowledged));
        let write = match hold {
            Some(hold) => {
                hold.tenure.sent(now);
                hold.tenure.write(&hold.goal, &News::of(Some(at(hold.acknowledged))))
            }
            None => this.wish(lease, why),
        };
        this.slots[lease].waiting = Some((write.clone(), now));
        let mut message = Message {
            from: worker,
            lease,
            write,
            sent: now,
            reply: None,
            is_awaited: true,
            why,
            acknowledged,
            fate,
        };
        self.moves -= u8::from(why == Why::Ask);
        self.faults -= u8::from(network != Network::Fine);
        match network {
            Network::Fine => {
                let outcome = self.land(&message);
                self.answered(&message, outcome);
            }
            Network::Lost => {}
            Network::Unanswered => {
                self.land(&message);
            }
            Network::Late => self.wire.push(message),
            Network::Twice => {
                self.wire.push(Message { is_awaited: false, ..message.clone() });
                self.wire.push(message);
            }
            Network::Slow => {
                message.reply = Some(self.land(&message));
                self.wire.push(message);
            }
        }
    }

    fn arrives(&mut self, index: usize) {
        let mut message = self.wire.remove(index);
        let outcome = message.reply.take().unwrap_or_else(|| self.land(&message));
        if !message.is_awaited {
            return;
        }
        if self.workers[message.from].life == Life::Running {
            self.answered(&message, outcome);
        } else {
            message.reply = Some(outcome);
            self.wire.push(message);
        }
    }

    /// The table gets a write.
    fn land(&mut self, message: &Message) -> WriteOutcome {
        let before = self.shards[message.lease].row.take();
        match message.write.apply(before.as_ref()) {
            Ok(after) => {
                self.check(message, before.as_ref(), after.as_ref());
                self.depose(message);
                let shard = &mut self.shards[message.lease];
                shard.is_gone |= after.is_none();
                shard.row.clone_from(&after);
                if after.is_none() {
                    // Nothing is on its way for as long as a finished row stays.
                    self.wire.retain(|it| it.lease != message.lease || it.why != Why::Create);
                }
                WriteOutcome::Done(after)
            }
            Err(refused) => {
                self.shards[message.lease].row = before;
                WriteOutcome::Refused(refused.current.map(|row| *row))
            }
        }
    }

    /// The promises about what is durable.
    fn check(&mut self, message: &Message, before: Option<&Lease>, after: Option<&Lease>) {
        let change = &message.write.change;
        let is_deposed = message.why == Why::Hold && message.fate.is_deposed;
        self.require(!is_deposed, "a write of a deposed owner landed");
        let shard = &self.shards[message.lease];
        let (is_gone, acknowledged) = (shard.is_gone, shard.acknowledged);
        self.require(!is_gone, "a finished lease was made again");
        let Some(after) = after else { return };
        let is_full = acknowledged == self.bounds.records;
        let is_true = after.checkpoint <= at(acknowledged)
            || (after.checkpoint.is_shard_end() && is_full && self.bounds.whole_life);
        self.require(is_true, "a checkpoint names what nobody acknowledged");
        let lets_go = matches!(
            change,
            LeaseChange::Release { .. } | LeaseChange::HandOver { .. } | LeaseChange::Finish { .. }
        );
        let is_whole = !lets_go || after.checkpoint >= at(message.acknowledged);
        self.require(is_whole, "a lease was let go without its newest checkpoint");
        let Some(before) = before else { return };
        self.require(message.why != Why::Create, "a lease was made over one that exists");
        self.require(after.checkpoint >= before.checkpoint, "a checkpoint moved back");
        self.require(!before.checkpoint.is_shard_end(), "a finished lease was written");
        if matches!(change, LeaseChange::AskHandoff { .. }) {
            self.require(after.actual_owner() == before.actual_owner(), "who is asked reads on");
        } else {
            self.require(after.counter > before.counter, "the counter stood still");
        }
    }

    /// Notes whose tenure an applied write has ended.
    fn depose(&mut self, message: &Message) {
        let ends = match &message.write.change {
            LeaseChange::Take { .. } => {
                self.notes.push(if message.why == Why::TakeOverdue {
                    "taken overdue"
                } else {
                    "taken"
                });
                true
            }
            LeaseChange::HandOver { .. } => {
                self.notes.push("handed over");
                true
            }
            LeaseChange::Release { .. } => {
                self.notes.push("released");
                true
            }
            LeaseChange::Finish { .. } => {
                self.notes.push("finished");
                true
            }
            LeaseChange::Delete { .. } => {
                self.notes.push("deleted");
                true
            }
            LeaseChange::Create(_)
            | LeaseChange::Renew { .. }
            | LeaseChange::AskHandoff { .. }
            | LeaseChange::Reset { .. }
            | LeaseChange::Discard { .. } => false,
        };
        if !ends {
            return;
        }
        let is_overdue = message.why == Why::TakeOverdue;
        let lease = message.lease;
        let holds = self.workers.iter_mut().filter_map(|worker| worker.slots[lease].hold.as_mut());
        let holds = holds.map(|hold| &mut hold.fate);
        let wire = self
            .wire
            .iter_mut()
            .filter(|it| it.lease == lease && (it.why == Why::Hold || it.reply.is_some()));
        for fate in holds.chain(wire.map(|message| &mut message.fate)) {
            fate.is_overdue |= is_overdue && !fate.is_deposed;
            fate.is_deposed = true;
        }
    }

    /// The sender hears what became of its write.
    fn answered(&mut self, message: &Message, outcome: WriteOutcome) {
        let (worker, lease, now) = (message.from, message.lease, self.now(message.from));
        self.workers[worker].slots[lease].waiting = None;
        if self.workers[worker].slots[lease].hold.is_some() {
            return self.holder_answered(message, outcome);
        }
        let this = &mut self.workers[worker];
        let since = this.takes.answered(&message.write, message.sent, &outcome);
        let (WriteOutcome::Done(row) | WriteOutcome::Refused(row)) = &outcome;
        this.remember(now, lease, row.clone());
        let Some((since, row)) = since.zip(row.clone()) else { return };
        if matches!(outcome, WriteOutcome::Refused(_)) {
            self.notes.push("a take was recognised");
        }
        let acknowledged = position(&row, self.bounds.records);
        let [lasts, _, margin] = self.times;
        let (id, incarnation) = (this.id.clone(), this.incarnation.clone());
        let tenure = Tenure::new(row, since, id, incarnation, lasts, margin);
        if now < tenure.fenced_at() {
            let hold = Hold { tenure, goal: Goal::Keep, acknowledged, fate: message.fate };
            this.slots[lease].hold = Some(hold);
        }
    }

    fn holder_answered(&mut self, message: &Message, outcome: WriteOutcome) {
        let (worker, lease, now) = (message.from, message.lease, self.now(message.from));
        let this = &mut self.workers[worker];
        let hold = this.slots[lease].hold.as_mut().expect("only a holder is answered so");
        let is_refused = matches!(outcome, WriteOutcome::Refused(_));
        let sent = if mutant::is("validity-from-the-reply") { now } else { message.sent };
        match hold.tenure.answered(sent, outcome, &hold.goal) {
            Verdict::Held { reached } => {
                self.notes.push(if is_refused { "a write was recognised" } else { "written" });
                if reached && hold.goal != Goal::Keep {
                    let row = hold.tenure.lease().clone();
                    this.slots[lease].hold = None;
                    this.remember(now, lease, Some(row));
                } else if now >= hold.tenure.fenced_at() {
                    self.lose(worker, lease);
                }
            }
            Verdict::Asked => self.notes.push("a release became a handover"),
            Verdict::Lost { .. } => self.lost(worker, lease),
            Verdict::Vanished => self.require(false, "the row of a holder is gone"),
        }
    }
}

impl Worker {
    /// Who waits for a take hears of no scan, and may try again by what it saw before.
    pub(super) fn misses_scan(&self) -> bool {
        self.slots.iter().any(|slot| slot.hold.is_none() && slot.waiting.is_some())
    }

    fn remember(&mut self, now: Instant, lease: usize, row: Option<Lease>) {
        if let Some(row) = &row {
            self.observations.saw(now, row);
        }
        self.slots[lease].seen = row;
    }

    /// A write of one who does not hold the lease, by the row as seen.
    fn wish(&self, lease: usize, why: Why) -> LeaseWrite {
        let (key, incarnation) = (key(lease), &self.incarnation);
        let Some(row) = &self.slots[lease].seen else {
            let row = Lease::new(key.clone(), Checkpoint::TrimHorizon);
            let change = LeaseChange::Create(Box::new(row));
            return LeaseWrite { key, id: write_id(incarnation, 0), change };
        };
        let (counter, from) = (row.counter, row.owner.clone());
        let id = write_id(incarnation, counter);
        match why {
            Why::Delete => LeaseWrite { key, id, change: LeaseChange::Delete { counter } },
            Why::Ask => {
                let from = from.expect("an owner is asked");
                let change = LeaseChange::AskHandoff { counter, from, to: self.id.clone() };
                LeaseWrite { key, id, change }
            }
            Why::Take | Why::TakeOverdue | Why::Create | Why::Hold => {
                let change = LeaseChange::Take { counter, from, owner: self.id.clone() };
                LeaseWrite { key, id: take_id(incarnation, counter), change }
            }
        }
    }
}

/// What becomes of a world in which nothing goes wrong any more.
impl World {
    /// The faults end: what is on its way arrives or never does, who stands goes on or never does.
    pub(super) fn calm(&self, stopped: Stopped) -> Self {
        let mut calm = self.clone();
        (calm.faults, calm.moves) = (0, 0);
        let is_any_running = calm.workers.iter().any(|worker| worker.life == Life::Running);
        if stopped == Stopped::GoOn || !is_any_running {
            for worker in 0..calm.workers.len() {
                match calm.workers[worker].life {
                    Life::Running => {}
                    Life::Paused => {
                        calm.workers[worker].life = Life::Running;
                        calm.wake(worker);
                    }
                    Life::Dead => calm.restart(worker, 0),
                }
            }
        }
        if stopped == Stopped::StayAway {
            calm.wire.clear();
        }
        while !calm.wire.is_empty() {
            let heard = calm.wire.len();
            calm.arrives(0);
            debug_assert!(calm.wire.len() < heard, "everybody who waits hears");
        }
        calm
    }

    /// Whether a running worker holds every lease that is not finished.
    pub(super) fn is_well(&self) -> bool {
        (0..self.shards.len()).all(|lease| {
            let shard = &self.shards[lease];
            let is_over = |row: &Lease| row.checkpoint.is_shard_end();
            let is_held = |worker: &usize| {
                let hold = self.workers[*worker].slots[lease].hold.as_ref();
                self.workers[*worker].life == Life::Running
                    && self.believes(*worker, lease)
                    && hold.is_some_and(|hold| !hold.fate.is_deposed)
            };
            shard.is_gone
                || shard.row.as_ref().is_some_and(is_over)
                || (0..self.workers.len()).any(|worker| is_held(&worker))
        })
    }

    /// One tick in which every running worker does at once what it has to, takes decided by the real
    /// balance, and nothing goes wrong.
    pub(super) fn calm_tick(&self) -> Self {
        let mut next = self.after(Step::Tick);
        for worker in 0..next.workers.len() {
            if next.workers[worker].life != Life::Running {
                continue;
            }
            for lease in 0..next.shards.len() {
                // Asked to let go, and letting go by the second name.
                for _ in 0..3 {
                    let Some(step) = next.duty(worker, lease) else { break };
                    next = next.after(step);
                }
            }
        }
        next
    }

    fn duty(&self, worker: usize, lease: usize) -> Option<Step> {
        let Worker { id, slots, .. } = &self.workers[worker];
        let Slot { seen, waiting, hold } = &slots[lease];
        let fine = |why| Some(Step::Write(worker, lease, why, Network::Fine));
        if waiting.is_some() {
            return None;
        }
        if let Some(hold) = hold {
            let asked = seen.as_ref().and_then(|row| row.checkpoint_owner.as_ref());
            if hold.goal == Goal::Keep && asked == Some(id) {
                return Some(Step::Leave(worker, lease));
            }
            return if self.is_due(worker, lease) { fine(Why::Hold) } else { None };
        }
        if seen.is_none() {
            return if self.shards[lease].is_gone { None } else { fine(Why::Create) };
        }
        if self.takes(worker).contains(&key(lease)) { fine(Why::Take) } else { None }
    }

    /// What the real balance takes at once.
    fn takes(&self, worker: usize) -> Vec<LeaseKey> {
        let Worker { id, slots, observations, .. } = &self.workers[worker];
        let leases = slots.iter().filter_map(|slot| slot.seen.clone());
        let leases = leases.map(|row| (row.key.clone(), row)).collect();
        let is_mine = |slot: &Slot| slot.hold.is_some() || slot.waiting.is_some();
        let mine = slots.iter().enumerate().filter(|(_, slot)| is_mine(slot));
        let mine = mine.map(|(lease, _)| key(lease)).collect();
        let [lasts, ..] = self.times;
        let takes = leases_to_take(&Snapshot {
            me: id,
            leases: &leases,
            hidden: &BTreeSet::new(),
            mine: &mine,
            avoided: &BTreeMap::new(),
            doubles: &BTreeMap::new(),
            observations,
            sighted: self.start - Duration::from_secs(500),
            now: self.now(worker),
            lasts,
            patience: lasts / 5,
            balance: Balance::Count,
            limit: usize::MAX,
        });
        // A move asks first, and nothing has to move.
        let at_once =
            takes.into_iter().filter(|take| take.reason != crate::event::TakeReason::Balance);
        at_once.map(|take| take.key).collect()
    }
}
