//! The execution of a plan: performs operations, feeds the stream, and runs the periodic checks.
//!
//! Everything runs on one thread with paused time, so that a run takes as long as its computations.

use std::cell::RefCell;
use std::sync::Once;
use std::time::Duration;

use tokio::time::sleep_until;

use crate::checks::{Promise, Violation};
use crate::fleet::Fleet;
use crate::plan::{Plan, between, chance};
use crate::processor::PANIC;
use crate::reached::Counts;
use crate::trace::Line;
use crate::world::World;

/// The interval of the periodic checks.
const TICK: Duration = Duration::from_millis(500);

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The hash of the whole trace.
    pub hash: u64,
    /// The number of lines in the trace.
    pub events: u64,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// The situations that the run reached.
    pub counts: Counts,
    /// Virtual time until the run ended.
    pub lasted: Duration,
    /// The trace, if it was to be kept.
    pub lines: Vec<Line>,
}

thread_local! {
    /// The panic of the library on this thread, if there was one.
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a plan to its end, or to the first broken promise.
///
/// # Panics
/// Only if the runtime cannot be created.
#[must_use]
pub fn run(plan: &Plan, keep_lines: bool) -> Outcome {
    watch_panics();
    // A panic of an earlier run on this thread does not belong to this run.
    PANICKED.with_borrow_mut(Option::take);
    // The names of incarnations come from this generator.
    fastrand::seed(plan.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    runtime.block_on(drive(plan.clone(), keep_lines))
}

/// Silences panics: those of processors are part of the run, others are kept and reported.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(move |info| {
            let text = info.to_string();
            if !text.contains(PANIC) {
                PANICKED.with_borrow_mut(|kept| {
                    // The first panic is the cause of later ones.
                    kept.get_or_insert(text);
                });
            }
        }));
    });
}

async fn drive(plan: Plan, keep_lines: bool) -> Outcome {
    let world = World::new(plan, keep_lines);
    let fleet = Fleet::new(&world);
    let mut pace = chance(world.plan.seed, "pace");
    let mut operations = world.plan.operations.clone().into_iter().peekable();
    let (mut next_put, mut next_look) = (Duration::ZERO, TICK);
    let mut calm_at = Some(world.plan.calm_at);
    while world.now() < world.plan.length && is_sound(&world) {
        let now = world.now();
        while let Some(operation) = operations.next_if(|it| it.at <= now) {
            fleet.perform(&operation.what).await;
        }
        if calm_at.take_if(|at| *at <= now).is_some() {
            world.say(&"plan", format_args!("calm"));
        }
        while next_put <= now {
            put(&world, 1);
            next_put += between(&mut pace, Duration::from_millis(1), world.plan.put_every * 2);
        }
        if next_look <= now {
            next_look += TICK;
            look(&world);
            if next_look.as_secs().is_multiple_of(5) {
                fleet.compare_health();
            }
            if calm_at.is_none() {
                fleet.keep_alive().await;
            }
        }
        let next = [operations.peek().map(|it| it.at), calm_at, Some(next_put), Some(next_look)];
        let next = next.into_iter().flatten().min().unwrap_or(next_look);
        sleep_until(world.began + next).await;
    }
    // First, because the first violation counts, and what `finish` finds may result from the panic.
    note_panic(&world);
    fleet.finish().await;
    world.settle().await;
    // Again, because the library may have panicked during the shutdown.
    note_panic(&world);
    let mut truth = world.lock();
    Outcome {
        hash: truth.trace.hash(),
        events: truth.trace.count(),
        violation: truth.ledger.violation().cloned(),
        counts: truth.ledger.counts,
        lasted: truth.now,
        lines: truth.trace.take_lines(),
    }
}

fn note_panic(world: &World) {
    if let Some(text) = PANICKED.with_borrow_mut(Option::take) {
        let mut truth = world.lock();
        let now = truth.now;
        truth.ledger.broken(Promise::Sound, now, None, format!("the library panicked: {text}"));
    }
}

fn is_sound(world: &World) -> bool {
    PANICKED.with_borrow(Option::is_none) && world.violation().is_none()
}

/// Puts records, unless the producer pauses.
fn put(world: &World, count: usize) {
    let mut truth = world.lock();
    let now = truth.now;
    if now < truth.weather.drought_until {
        return;
    }
    (0..count).for_each(|_| truth.shards.put(now));
}

/// Checks what depends on time rather than on an event.
fn look(world: &World) {
    let mut truth = world.lock();
    let truth = &mut *truth;
    truth.ledger.flows(truth.now, &mut truth.shards, &truth.rows);
}
