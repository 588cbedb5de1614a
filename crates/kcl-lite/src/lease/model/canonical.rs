//! The canonical form of a world: everything that decides how it can continue. Worlds with the same
//! form are one state.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use super::world::{Fate, Hold, Life, Message, Shard, Slot, World};
use crate::lease::store::WriteOutcome;
use crate::lease::tenure::{Goal, take_id};
use crate::lease::{Lease, LeaseChange, WriteId};
use crate::position::Checkpoint;

/// Returns a 128-bit hash of the canonical form: for ten million worlds, the chance that two
/// different ones share a hash is 1 in 10^25.
pub(super) fn digest(world: &World) -> u128 {
    let bytes = canonical(world);
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, &bytes).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    (half(0) << 64) | half(1)
}

/// Returns what decides how a world can continue. Counters are distances from the row's, instants are
/// ticks ago, and both are capped where more makes no difference. Two worlds with the same bytes
/// behave the same.
fn canonical(world: &World) -> Vec<u8> {
    let mut key = Key { bytes: Vec::with_capacity(160), counter: 0 };
    key.push([world.faults, world.moves]);
    for shard in &world.shards {
        key.counter = shard.row.as_ref().map_or(0, |row| row.counter);
        key.push([shard.acknowledged, u8::from(shard.is_gone)]);
        key.row(shard.row.as_ref());
    }
    for (index, worker) in world.workers.iter().enumerate() {
        let life = match worker.life {
            Life::Running => 0,
            Life::Paused => 1,
            Life::Dead => 2,
        };
        key.push([life, worker.lives]);
        key.text(&worker.incarnation);
        for (slot, shard) in worker.slots.iter().zip(&world.shards) {
            key.counter = shard.row.as_ref().map_or(0, |row| row.counter);
            key.slot(world, index, slot, shard);
        }
    }
    let mut messages: Vec<_> = world
        .wire
        .iter()
        .map(|message| {
            let row = world.shards[message.lease].row.as_ref();
            let mut key =
                Key { bytes: Vec::with_capacity(40), counter: row.map_or(0, |row| row.counter) };
            key.message(world, message);
            key.bytes
        })
        .collect();
    messages.sort();
    key.bytes.extend(messages.concat());
    key.bytes
}

struct Key {
    bytes: Vec<u8>,
    counter: u64,
}

impl Key {
    fn push<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes.extend(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend(text.bytes());
        self.bytes.push(0);
    }

    /// Appends how far a counter is behind the row's. Beyond the cap, writes can only be refused.
    fn counter(&mut self, counter: u64) {
        let behind = 100 + i128::from(self.counter) - i128::from(counter);
        self.bytes.push(u8::try_from(behind.clamp(0, 105)).expect("clamped"));
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        self.bytes.extend(checkpoint.as_str().bytes().take(2));
        self.bytes.push(0);
    }

    fn mark(&mut self, id: &WriteId) {
        let (of, _) = id.as_str().rsplit_once(':').expect("one of ours");
        self.text(of);
        self.counter(id.counter().expect("one of ours"));
    }

    fn row(&mut self, row: Option<&Lease>) {
        let Some(row) = row else { return self.push([0]) };
        self.counter(row.counter);
        for owner in [&row.owner, &row.checkpoint_owner] {
            self.text(owner.as_ref().map_or("", |owner| owner.as_str()));
        }
        self.checkpoint(&row.checkpoint);
        if let Some(id) = &row.write_id {
            self.mark(id);
        }
    }

    fn slot(&mut self, world: &World, worker: usize, slot: &Slot, shard: &Shard) {
        let this = &world.workers[worker];
        let is_paused = this.life == Life::Paused;
        let looks = is_paused && !this.misses_scan();
        let is_over = |hold: &Hold| world.now(worker) >= hold.tenure.fenced_at();
        match &slot.seen {
            // A worker that resumes after a pause scans before anything else.
            Some(row) if looks && shard.row.as_ref().is_none_or(|it| it.counter != row.counter) => {
                self.push([252]);
            }
            Some(row) => {
                self.seen(world, worker, row, shard);
            }
            None => self.push([251]),
        }
        // Before that scan it drops a hold whose fence has passed.
        if is_paused && slot.hold.as_ref().is_some_and(is_over) {
            return self.push([250]);
        }
        if let Some((write, sent)) = &slot.waiting {
            self.change(&write.change);
            self.ago(world, worker, Some(*sent), world.bounds.lease_duration + 1);
        }
        self.push([255]);
        if let Some(Hold { tenure, goal, acknowledged, fate }) = &slot.hold {
            let most = world.bounds.lease_duration + 1;
            self.row(Some(tenure.lease()));
            self.ago(world, worker, Some(tenure.valid_from()), most);
            self.ago(world, worker, tenure.unanswered_since(), most);
            let goal = match goal {
                Goal::Keep => 0,
                Goal::Release => 1,
                Goal::Finish(_) => 2,
            };
            self.push([goal, *acknowledged]);
            self.fate(*fate);
        }
        self.push([254]);
    }

    /// Appends the row as a worker has seen it, since when, and its unanswered takes of it.
    fn seen(&mut self, world: &World, worker: usize, row: &Lease, shard: &Shard) {
        let this = &world.workers[worker];
        let lease_duration = world.bounds.lease_duration;
        self.row(Some(row));
        let most = match row.actual_owner() {
            _ if row.checkpoint.is_shard_end() => lease_duration * 7,
            // Taken without waiting: a change to another owner would change the counter.
            Some(owner) if *owner == this.id => 0,
            // The orphan grace.
            None => lease_duration.div_ceil(5) + 1,
            Some(_) => lease_duration * 3 / 2,
        };
        let since = this.observations.expires_at(row, Duration::ZERO);
        self.ago(world, worker, since, most);
        let current = shard.row.as_ref();
        let is_open = |counter| {
            current.is_some_and(|it| {
                let id = take_id(&this.incarnation, counter);
                it.counter == counter || it.write_id == Some(id)
            })
        };
        match this.takes.unanswered(&row.key) {
            Some((counter, since)) if is_open(counter) => {
                self.counter(counter);
                self.ago(world, worker, Some(since), lease_duration + 1);
            }
            Some(_) | None => self.push([249]),
        }
    }

    fn fate(&mut self, fate: Fate) {
        self.push([u8::from(fate.is_deposed) + 2 * u8::from(fate.is_overdue)]);
    }

    /// Appends how many ticks ago an instant was, up to `most`, beyond which nothing depends on it.
    fn ago(&mut self, world: &World, worker: usize, then: Option<Instant>, most: u32) {
        let rate = world.bounds.rates[worker];
        let ago = then.map_or(254, |then| {
            let ago = world.now(worker).saturating_duration_since(then).as_millis();
            (ago / u128::from(rate)).min(u128::from(most))
        });
        self.bytes.push(u8::try_from(ago).expect("few"));
    }

    fn message(&mut self, world: &World, message: &Message) {
        let Ok(from) = u8::try_from(message.from) else { unreachable!("few workers") };
        let Ok(lease) = u8::try_from(message.lease) else { unreachable!("few leases") };
        self.push([from, lease, u8::from(message.is_awaited), message.acknowledged]);
        self.fate(message.fate);
        self.mark(&message.write.id);
        self.change(&message.write.change);
        if message.is_awaited {
            self.ago(world, message.from, Some(message.sent), world.bounds.lease_duration + 1);
        }
        match &message.reply {
            None => self.push([0]),
            Some(WriteOutcome::Done(row)) => {
                self.push([1]);
                self.row(row.as_ref());
            }
            Some(WriteOutcome::Refused(row)) => {
                self.push([2]);
                self.row(row.as_ref());
            }
        }
    }

    fn change(&mut self, change: &LeaseChange) {
        let (kind, counter, update, names) = match change {
            LeaseChange::Create(_) => (0, 0, None, [None, None]),
            LeaseChange::Take { counter, from, owner } => {
                (1, *counter, None, [from.as_ref(), Some(owner)])
            }
            LeaseChange::RequestHandoff { counter, from, to } => {
                (2, *counter, None, [Some(from), Some(to)])
            }
            LeaseChange::HandOver { counter, update, to } => {
                (3, *counter, Some(update), [Some(to), None])
            }
            LeaseChange::Renew { counter, owner, update } => {
                (4, *counter, Some(update), [Some(owner), None])
            }
            LeaseChange::Finish { counter, .. } => (5, *counter, None, [None, None]),
            LeaseChange::Release { counter, update } => (6, *counter, Some(update), [None, None]),
            LeaseChange::Delete { counter } => (7, *counter, None, [None, None]),
            LeaseChange::WithdrawHandoff { from, to } => (8, 0, None, [Some(from), Some(to)]),
            LeaseChange::Reset { .. }
            | LeaseChange::Discard { .. }
            | LeaseChange::Replace { .. } => {
                unreachable!("nobody resets here, and there is only one stream")
            }
        };
        self.push([kind]);
        self.counter(counter);
        for name in names.into_iter().flatten() {
            self.text(name.as_str());
        }
        if let Some(checkpoint) = update.and_then(|update| update.checkpoint.as_ref()) {
            self.checkpoint(checkpoint);
        }
        self.push([253]);
    }
}
