//! The lease protocol as a small model: every state within stated bounds is visited.
//!
//! **What is real.** The rule of every write (`LeaseWrite::apply`), what an owner may believe and what
//! an answer means (`tenure`), how takes are recognised (`taking`), when a lease has expired
//! (`expiry`), the times that [`Settings`](crate::settings::Settings) makes of a lease duration, and,
//! once nothing goes wrong any more, who takes what (`balance`). What the model adds is the order of
//! things: whoever *may* take or ask for a lease does so in one of the ways explored, whatever a
//! balance would say, so that what is shown here holds for any policy.
//!
//! **Time** goes in ticks. A tick is a second by a right clock; the clocks of the workers run 5 % slow
//! and 5 % fast, which is all that the margin of the fence allows for. Whatever is due, a renewal or a
//! fence, is done in the tick in which it is due, in any order with what the others do.
//!
//! **Faults.** One fault is one of these, and the bounds say how many a run has: a write that is lost;
//! one that is applied without an answer; one whose answer comes at any later moment; one that
//! arrives at any later moment, however late, or twice; a worker that stands still for any time, its
//! clock going on; a worker that dies, and may come back under its own or another id. All other writes
//! are applied and answered at once. A creation alone is never later than the row's deletion: that is
//! what the time is for that a finished row stays.
//!
//! **Safety**, in every state: at most one worker holds a lease by its own clock, except when one that
//! had asked did not want to wait (then only the fence protects); nothing a deposed owner wrote
//! lands; counters grow; checkpoints do not go back and name only what was acknowledged; nothing
//! follows the end of a shard; what is let go carries its newest checkpoint, and goes to who asked;
//! whoever is told that it has lost a lease has lost it.
//!
//! **Liveness**, from every state: if nothing goes wrong any more, and every running worker does at
//! once what it has to, each lease that is not finished is held within two lease durations. Both when
//! all who stand still go on and everything on its way arrives, and when they never come back and it
//! is lost, as long as one worker runs.
//!
//! Not in it: rows that are deleted by hand, rewinds, two living workers with one id, leases that
//! depend on each other, scans that are answered late. The simulation has them.
//! `interleavings` goes deeper in one place: there every write is late, and time stands still.

mod after;
mod calm;
mod canonical;
mod explore;
mod promises;
mod steps;
mod world;

use self::explore::explore;

/// What a run of the model may contain.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Ticks of a clock that runs right until a lease expires.
    lease_duration: u32,
    /// What each worker's clock does in a tick, in milliseconds: as many workers.
    rates: &'static [u32],
    leases: usize,
    /// Records of a shard.
    records: u8,
    /// Whether rows are made, ended and deleted in the run; else they are there, and stay.
    whole_life: bool,
    faults: u8,
    /// Leases that are asked for, or let go by a worker's own wish.
    moves: u8,
}

impl Bounds {
    /// How soon all must be well when nothing goes wrong any more.
    fn calm_ticks(&self) -> u8 {
        u8::try_from(self.lease_duration * 2).expect("few ticks")
    }
}

/// What becomes of those who stand still when the faults end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// They never come back, and what was on its way is lost; another worker runs.
    StayAway,
    /// They go on, and what was on its way arrives.
    GoOn,
}

/// One fault, nobody asks for anything.
const FAULT: Bounds = Bounds {
    lease_duration: 10,
    rates: &[950, 1_050],
    leases: 1,
    records: 1,
    whole_life: false,
    faults: 1,
    moves: 0,
};
/// A second fault.
const FAULTS: Bounds = Bounds { faults: 2, ..FAULT };
/// A fault while a lease moves.
const MOVE: Bounds = Bounds { moves: 1, ..FAULT };
/// Rows that are made, ended and deleted.
const LIFE: Bounds = Bounds { whole_life: true, lease_duration: 6, ..FAULT };

/// Visits all there is within `bounds`, and says how much that was.
fn shown(bounds: Bounds) -> explore::Visited {
    let visited = explore(bounds).unwrap_or_else(|counterexample| panic!("{counterexample}"));
    let explore::Visited { states, steps, depth, slowest, notes } = &visited;
    println!("{bounds:?}");
    println!("  {states} states, {steps} steps, the farthest {depth} from the start");
    println!(
        "  calm within {slowest} of {} ticks; in so many steps: {notes:?}",
        bounds.calm_ticks()
    );
    visited
}

#[test]
fn l16_no_fault_breaks_a_promise_of_a_lease_or_leaves_it_without_an_owner() {
    let visited = [FAULT, FAULTS, MOVE, LIFE].map(shown);
    let happened: Vec<_> = visited.iter().flat_map(|it| it.notes.keys().copied()).collect();
    // The model is worth nothing if these do not happen in it.
    for event in [
        "taken",
        "taken overdue",
        "handed over",
        "released",
        "finished",
        "deleted",
        "a take was recognised",
        "a write was recognised",
        "a release became a handover",
        "a handover became a release",
        "an owner stopped itself",
        "an owner was told that it has lost",
    ] {
        assert!(happened.contains(&event), "nothing is {event}: {happened:?}");
    }
    assert!(visited.iter().all(|it| it.slowest > 0));
}

#[test]
#[ignore = "minutes: wider bounds, for who changes the protocol"]
fn wider_bounds_break_no_promise_either() {
    const THREE: &[u32] = &[950, 1_050, 1_000];
    shown(Bounds { rates: THREE, ..FAULT });
    shown(Bounds { records: 2, ..FAULTS });
    shown(Bounds { leases: 2, records: 0, lease_duration: 3, ..FAULT });
    shown(Bounds { moves: 1, ..LIFE });
    shown(Bounds { faults: 2, ..LIFE });
    shown(Bounds { rates: THREE, moves: 1, lease_duration: 3, ..FAULT });
    shown(Bounds { faults: 3, lease_duration: 6, ..FAULT });
}
