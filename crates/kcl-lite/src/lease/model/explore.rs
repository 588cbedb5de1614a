//! The search: visits every state once, breadth first, and reports the shortest path to one that
//! breaks a promise.
//!
//! Own code, because the library for this (`stateright`) does not fit: it cannot check that something
//! good stays possible from every state, which is what liveness means here; it checks in its own
//! threads, while seeded bugs are per thread; the equality of states would still be ours
//! (`canonical`); and it brings an HTTP server, a second hash map and ten more crates.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use super::canonical::digest;
use super::world::{Life, Step, World};
use super::{Bounds, Stopped};
use crate::lease::Lease;

/// What a search has visited.
#[derive(Debug, Default)]
pub(super) struct Visited {
    pub(super) states: usize,
    pub(super) steps: usize,
    /// The maximum number of steps from the start to a state.
    pub(super) depth: usize,
    /// The maximum number of ticks without faults until every lease is held.
    pub(super) slowest: u8,
    /// The events that happened, and in how many steps.
    pub(super) notes: BTreeMap<&'static str, usize>,
}

/// A path from the start to a state that breaks a promise.
#[derive(Debug)]
pub(super) struct Counterexample {
    pub(super) promise: String,
    way: Vec<(Step, String)>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after", self.promise)?;
        self.way.iter().try_for_each(|(step, rows)| writeln!(f, "  {step:?}\n      {rows}"))
    }
}

/// Visits every state that can be reached within `bounds`.
pub(super) fn explore(bounds: Bounds) -> Result<Visited, Counterexample> {
    let start = World::new(bounds);
    let mut visited = Visited::default();
    let mut known = BTreeSet::from([digest(&start)]);
    let mut calms = Calms::default();
    // How each state was reached: from which state, by which step.
    let mut from: Vec<(usize, Step)> = vec![(0, Step::Tick)];
    let mut open = VecDeque::from([(0, 0, start)]);
    while let Some((index, depth, world)) = open.pop_front() {
        visited.depth = visited.depth.max(depth);
        let broken = world.broken.clone().or_else(|| calms.check(&world, &mut visited.slowest));
        if let Some(promise) = broken {
            return Err(Counterexample { promise, way: way(bounds, &from, index) });
        }
        for step in world.steps() {
            let next = world.after(step);
            visited.steps += 1;
            for note in &next.notes {
                *visited.notes.entry(note).or_default() += 1;
            }
            if next.broken.is_some() || known.insert(digest(&next)) {
                from.push((index, step));
                open.push_back((from.len() - 1, depth + 1, next));
            }
        }
    }
    visited.states = known.len();
    Ok(visited)
}

fn way(bounds: Bounds, from: &[(usize, Step)], mut index: usize) -> Vec<(Step, String)> {
    let mut steps = Vec::new();
    while index > 0 {
        steps.push(from[index].1);
        index = from[index].0;
    }
    let mut world = World::new(bounds);
    let reported = steps.into_iter().rev().map(|step| {
        world = world.after(step);
        let row = |lease: &Lease| {
            let (owner, asked) = (&lease.owner, &lease.checkpoint_owner);
            format!(
                "{}@{} {owner:?} {asked:?} {:?}",
                lease.checkpoint, lease.counter, lease.write_id
            )
        };
        let rows = world.shards.iter().map(|shard| shard.row.as_ref().map_or("-".to_owned(), row));
        (step, rows.collect::<Vec<_>>().join(", "))
    });
    reported.collect()
}

/// For each state without further faults, the number of ticks until every lease is held. Paths that
/// meet are followed once.
#[derive(Debug, Default)]
struct Calms(BTreeMap<u128, u8>);

impl Calms {
    fn check(&mut self, world: &World, slowest: &mut u8) -> Option<String> {
        let is_calm = world.wire.is_empty()
            && world.workers.iter().all(|worker| worker.life == Life::Running);
        let both = [Stopped::GoOn, Stopped::StayAway];
        let differ = if is_calm { &both[..1] } else { &both };
        differ.iter().find_map(|stopped| {
            match self.settle(world.calm(*stopped)) {
                Ok(ticks) => *slowest = (*slowest).max(ticks),
                Err(promise) => return Some(format!("{promise} ({stopped:?})")),
            }
            None
        })
    }

    fn settle(&mut self, mut world: World) -> Result<u8, String> {
        let most = world.bounds.calm_ticks();
        let mut way = Vec::new();
        let mut ticks = loop {
            let key = digest(&world);
            if let Some(ticks) = self.0.get(&key) {
                break *ticks;
            }
            if let Some(promise) = world.broken {
                return Err(promise);
            }
            if world.is_healthy() {
                self.0.insert(key, 0);
                break 0;
            }
            way.push(key);
            if way.len() > usize::from(most) {
                return Err(format!("{most} ticks after the last fault a lease is not held"));
            }
            world = world.calm_tick();
        };
        for key in way.into_iter().rev() {
            ticks += 1;
            self.0.insert(key, ticks);
        }
        if ticks > most {
            return Err(format!("it takes {ticks} ticks after the last fault to hold a lease"));
        }
        Ok(ticks)
    }
}
