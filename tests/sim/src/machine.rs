//! One incarnation of a worker: its identity, its clock, and whether it runs at all.
//!
//! A freeze is seen at every await: whatever the worker waits for comes after it. Its clock goes on
//! meanwhile, as in a process that is stopped.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future;
use kcl_lite::WorkerId;
use tokio::time::Instant;

use crate::plan::chance;
use crate::reached::Situation;
use crate::world::World;

/// One incarnation of a worker.
pub(crate) struct Machine {
    pub(crate) world: Arc<World>,
    pub(crate) slot: usize,
    /// Counts all incarnations of a run.
    pub(crate) number: usize,
    pub(crate) id: WorkerId,
    pub(crate) rate: f64,
    pub(crate) born: Instant,
    /// Processors and readers that have not been dropped.
    pub(crate) running: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    /// When the last freeze ended or will end.
    thaws_at: Option<Instant>,
    dead: bool,
}

impl Machine {
    pub(crate) fn boot(world: &Arc<World>, slot: usize, number: usize, id: WorkerId) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            slot,
            number,
            id,
            rate: world.plan.rates[slot],
            born: Instant::now(),
            running: AtomicUsize::new(0),
            state: Mutex::new(State {
                rng: chance(world.plan.seed, &format!("machine {number}")),
                thaws_at: None,
                dead: false,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws something.
    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.state().rng)
    }

    /// The process is gone.
    pub(crate) fn die(&self) {
        self.state().dead = true;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub(crate) fn freeze(&self, lasts: Duration) {
        self.world.note(Situation::Frozen);
        if lasts > self.world.plan.lease_duration {
            self.world.note(Situation::FrozenForLong);
        }
        let until = Instant::now() + lasts;
        let mut state = self.state();
        state.thaws_at = Some(state.thaws_at.map_or(until, |before| before.max(until)));
    }

    /// When the last freeze ended, from the beginning of the run.
    pub(crate) fn thawed_at(&self) -> Option<Duration> {
        self.state().thaws_at.map(|at| at.saturating_duration_since(self.world.began))
    }

    /// Completes when the process runs, in any order with others; never when it is gone.
    pub(crate) async fn awake(&self) {
        loop {
            let (dead, thaws_at, lag) = {
                let mut state = self.state();
                let lag = if state.thaws_at.is_some() { state.rng.u64(0..4) } else { 0 };
                (state.dead, state.thaws_at, lag)
            };
            if dead {
                future::pending::<()>().await;
            }
            match thaws_at {
                Some(until) if Instant::now() < until => {
                    tokio::time::sleep_until(until + Duration::from_millis(lag)).await;
                }
                _ => return,
            }
        }
    }

    /// Counts something that has to be gone when the worker has stopped.
    pub(crate) fn hold(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }
}

/// Something that runs for a machine.
#[derive(Debug)]
pub(crate) struct Running(Arc<Machine>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.id, self.number)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
