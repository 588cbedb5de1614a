//! Test of every interleaving of an owner and a taker on one row: renewals and checkpoints, a take, a
//! handoff, a release, with writes that never arrive, arrive late, or lose their reply.
//!
//! The rules of the writes and the [`Tenure`] of both sides are the real ones; the test explores the
//! order of sending, applying, answering and timing out. States with the same text are visited once.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::store::WriteOutcome;
use super::tenure::{Goal, Tenure, Verdict, take_id, write_id};
use super::{Lease, LeaseChange, LeaseUpdate, LeaseWrite};
use crate::position::Checkpoint;
use crate::record::WorkerId;

fn at(position: usize) -> Checkpoint {
    Checkpoint::parse(&position.to_string(), 0).unwrap()
}

/// A write that one side has sent.
#[derive(Debug, Clone)]
struct Message {
    from: usize,
    write: LeaseWrite,
    goal: Goal,
}

/// One of the two workers.
#[derive(Debug, Clone)]
struct Side {
    tenure: Option<Tenure>,
    /// The write whose reply is awaited.
    waiting: Option<LeaseWrite>,
    /// The row as last read by a side without a tenure.
    seen: Option<Lease>,
    acknowledged: usize,
    sends_left: usize,
    is_leaving: bool,
}

#[derive(Debug, Clone)]
struct World {
    row: Lease,
    sides: [Side; 2],
    wire: Vec<Message>,
    /// How often the row was taken.
    takes: usize,
    has_released: bool,
}

fn name(side: usize) -> WorkerId {
    ["a", "b"][side].into()
}

fn incarnation(side: usize) -> String {
    format!("{}#1", name(side))
}

fn tenure(row: Lease, side: usize, now: Instant) -> Tenure {
    let (lease_duration, margin) = (Duration::from_secs(10), Duration::from_secs(1));
    Tenure::new(row, now, name(side), incarnation(side), lease_duration, margin)
}

impl World {
    fn new(now: Instant) -> Self {
        let row = Lease { owner: Some(name(0)), counter: 7, ..Lease::new("shardId-0", at(10)) };
        let side = |tenure, sends_left| Side {
            tenure,
            waiting: None,
            seen: None,
            acknowledged: 10,
            sends_left,
            is_leaving: false,
        };
        let sides = [side(Some(tenure(row.clone(), 0, now)), 2), side(None, 2)];
        Self { row, sides, wire: Vec::new(), takes: 0, has_released: false }
    }

    /// Returns all worlds that are one step away.
    fn steps(&self, now: Instant) -> Vec<Self> {
        let mut next = Vec::new();
        for side in 0..2 {
            next.extend(self.sends(side, now));
            if self.sides[side].waiting.is_some() {
                let mut world = self.clone();
                world.sides[side].waiting = None; // gives up; the write may still arrive
                next.push(world);
            }
        }
        for index in 0..self.wire.len() {
            for is_answered in [true, false] {
                let mut world = self.clone();
                world.arrives(index, is_answered, now);
                next.push(world);
            }
            let mut world = self.clone();
            world.wire.remove(index); // never arrives
            next.push(world);
        }
        next
    }

    fn sends(&self, side: usize, now: Instant) -> Vec<Self> {
        let this = &self.sides[side];
        if this.waiting.is_some() || this.sends_left == 0 {
            return Vec::new();
        }
        if this.tenure.is_some() {
            let goals = [(Goal::Keep, false), (Goal::Keep, true), (Goal::Release, true)];
            let goals =
                goals.into_iter().filter(|(goal, _)| !this.is_leaving || *goal != Goal::Keep);
            return goals.map(|(goal, has_more)| self.writes(side, goal, has_more, now)).collect();
        }
        match &this.seen {
            None => {
                let mut world = self.clone();
                world.sides[side].seen = Some(self.row.clone());
                vec![world]
            }
            Some(row) => self.wants(side, row),
        }
    }

    /// Sends a write of the owner; with `has_more` another record was acknowledged before.
    fn writes(&self, side: usize, goal: Goal, has_more: bool, now: Instant) -> Self {
        let mut world = self.clone();
        let this = &mut world.sides[side];
        this.acknowledged += usize::from(has_more);
        this.is_leaving |= goal == Goal::Release;
        let update =
            LeaseUpdate { checkpoint: Some(at(this.acknowledged)), ..LeaseUpdate::default() };
        let tenure = this.tenure.as_mut().expect("a holder writes");
        tenure.sent(now);
        let write = tenure.write(&goal, &update);
        world.post(side, write, goal);
        world
    }

    /// Lets a side without a tenure take the lease by the row it has seen, or request a handoff.
    fn wants(&self, side: usize, row: &Lease) -> Vec<Self> {
        let (counter, from, key) = (row.counter, row.owner.clone(), row.key.clone());
        let take = LeaseChange::Take { counter, from: from.clone(), owner: name(side) };
        let id = take_id(&incarnation(side), counter);
        let mut writes = vec![LeaseWrite { key: key.clone(), id, change: take }];
        if let Some(from) = from.filter(|from| *from != name(side)) {
            let change = LeaseChange::RequestHandoff { counter, from, to: name(side) };
            writes.push(LeaseWrite { key, id: write_id(&incarnation(side), counter), change });
        }
        let send = |write| {
            let mut world = self.clone();
            world.sides[side].seen = None;
            world.post(side, write, Goal::Keep);
            world
        };
        writes.into_iter().map(send).collect()
    }

    fn post(&mut self, from: usize, write: LeaseWrite, goal: Goal) {
        self.sides[from].sends_left -= 1;
        self.sides[from].waiting = Some(write.clone());
        self.wire.push(Message { from, write, goal });
    }

    /// Applies a write to the table, and delivers the reply if the sender still waits.
    fn arrives(&mut self, index: usize, is_answered: bool, now: Instant) {
        let Message { from, write, goal } = self.wire.remove(index);
        let outcome = match write.apply(Some(&self.row)) {
            Ok(row) => {
                let row = row.expect("nothing here deletes");
                self.check(from, &write, &row);
                self.row = row.clone();
                WriteOutcome::Done(Some(row))
            }
            Err(refused) => WriteOutcome::Refused(refused.current.map(|row| *row)),
        };
        if self.sides[from].waiting.as_ref() != Some(&write) {
            return;
        }
        self.sides[from].waiting = None;
        if is_answered {
            self.answered(from, &write, outcome, &goal, now);
        }
    }

    /// Checks I1, I3 and I4 on every write that is applied.
    fn check(&mut self, from: usize, write: &LeaseWrite, after: &Lease) {
        assert!(after.checkpoint >= self.row.checkpoint, "I3: {write:?} on {:?}", self.row);
        let most = self.sides.iter().map(|side| side.acknowledged).max();
        assert!(Some(&after.checkpoint) <= most.map(at).as_ref(), "I1: {write:?}");
        if matches!(write.change, LeaseChange::Take { .. }) {
            self.takes += 1;
        } else if matches!(write.change, LeaseChange::RequestHandoff { .. }) {
            assert_eq!(self.row.actual_owner(), after.actual_owner(), "the owner keeps reading");
        } else {
            assert_eq!(self.row.actual_owner(), Some(&name(from)), "I4: {write:?}");
            self.has_released |= after.actual_owner() != Some(&name(from));
        }
    }

    fn answered(
        &mut self,
        from: usize,
        write: &LeaseWrite,
        outcome: WriteOutcome,
        goal: &Goal,
        now: Instant,
    ) {
        let this = &mut self.sides[from];
        let Some(holder) = &mut this.tenure else {
            // As in the coordinator: applied, or refused by a row that carries the mark of the take.
            let (WriteOutcome::Done(row) | WriteOutcome::Refused(row)) = outcome;
            let row = row.expect("nothing here deletes");
            let is_take = matches!(write.change, LeaseChange::Take { .. });
            if is_take && row.write_id.as_ref() == Some(&write.id) && row.checkpoint_owner.is_none()
            {
                this.acknowledged = row_position(&row);
                this.tenure = Some(tenure(row, from, now));
            }
            return;
        };
        match holder.answered(now, outcome, goal) {
            Verdict::Held { reached: true } if *goal == Goal::Release => this.tenure = None,
            Verdict::Held { .. } | Verdict::OtherSuccessor => {}
            Verdict::Lost { .. } => {
                assert!(
                    self.takes > 0 || self.has_released,
                    "D04: nobody took it, nobody released it"
                );
                this.tenure = None;
            }
            Verdict::Vanished => unreachable!("nothing here deletes"),
        }
    }
}

fn row_position(row: &Lease) -> usize {
    let Checkpoint::At(position) = &row.checkpoint else { panic!("{row:?} in this model") };
    position.sequence_number.as_str().parse().unwrap()
}

#[test]
fn l16_no_interleaving_of_owner_and_taker_moves_a_checkpoint_back_or_passes_the_fence() {
    let now = Instant::now();
    let mut visited = BTreeSet::new();
    let mut open = vec![World::new(now)];
    let (mut handed, mut taken) = (0, 0);
    while let Some(world) = open.pop() {
        // No state is a dead end: any worker that reads the row can take the lease.
        let (counter, from) = (world.row.counter, world.row.owner.clone());
        let take = LeaseChange::Take { counter, from, owner: "c".into() };
        let take =
            LeaseWrite { key: world.row.key.clone(), id: take_id("c#1", counter), change: take };
        assert!(take.apply(Some(&world.row)).is_ok());
        handed += usize::from(world.has_released && world.row.owner == Some(name(1)));
        taken += usize::from(world.takes > 0);
        for next in world.steps(now) {
            if visited.insert(format!("{next:?}")) {
                open.push(next);
            }
        }
    }
    assert!(visited.len() > 10_000, "{} states", visited.len());
    assert!(handed > 0 && taken > 0, "handovers and takes are among them");
}
