//! One incarnation of a worker: its identity, its clock, and whether it runs.
//!
//! A freeze takes effect at every await: whatever the worker waits for completes after it. During a
//! freeze the clock runs, as in a stopped process; during a suspend it stands still, as in a
//! suspended machine.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future;
use kcl_lite::WorkerId;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::plan::chance;
use crate::reached::Situation;
use crate::world::World;

/// One incarnation of a worker.
pub(crate) struct Machine {
    pub(crate) world: Arc<World>,
    pub(crate) slot: usize,
    /// The number of the incarnation in the run.
    pub(crate) number: usize,
    pub(crate) id: WorkerId,
    pub(crate) rate: f64,
    pub(crate) born: Instant,
    /// The processors and readers that have not been dropped.
    pub(crate) running: AtomicUsize,
    state: Mutex<State>,
    /// Notifies that the machine is being suspended.
    suspending: Notify,
}

struct State {
    rng: Rng,
    /// When the last freeze ended or will end.
    thaws_at: Option<Instant>,
    /// When the machine was suspended, and for how long.
    suspends: Vec<(Instant, Duration)>,
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
                suspends: Vec::new(),
                dead: false,
            }),
            suspending: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Draws a random value.
    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.state().rng)
    }

    /// Kills the process.
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

    /// Suspends the machine and its clock. A machine that is already suspended stays suspended as
    /// long as before.
    pub(crate) fn suspend(&self, lasts: Duration) {
        let now = Instant::now();
        let mut state = self.state();
        if state.suspends.last().is_some_and(|(since, lasts)| now < *since + *lasts) {
            return;
        }
        state.suspends.push((now, lasts));
        drop(state);
        if lasts > self.world.plan.lease_duration {
            self.world.note(Situation::SuspendedForLong);
        }
        self.freeze(lasts);
        self.suspending.notify_waiters();
    }

    /// Returns how long the machine has been suspended until now.
    pub(crate) fn suspended(&self) -> Duration {
        let now = Instant::now();
        let so_far = |(since, lasts): &(Instant, Duration)| (now - *since).min(*lasts);
        self.state().suspends.iter().map(so_far).sum()
    }

    /// Completes when the machine runs, and has been suspended for longer than `before`.
    pub(crate) async fn resumed(&self, before: Duration) {
        loop {
            let mut suspending = pin!(self.suspending.notified());
            // Registered before the check, so that a suspend in between is not missed.
            suspending.as_mut().enable();
            if self.suspended() > before {
                return self.awake().await;
            }
            suspending.await;
            self.awake().await;
        }
    }

    /// Returns when the last freeze ended, since the beginning of the run.
    pub(crate) fn thawed_at(&self) -> Option<Duration> {
        self.state().thaws_at.map(|at| at.saturating_duration_since(self.world.began))
    }

    /// Completes when the process runs, in any order relative to others; never if it is dead.
    pub(crate) async fn awake(&self) {
        loop {
            let (dead, thaws_at, lag) = {
                let mut state = self.state();
                // A few milliseconds, so that the tasks of a thawed process wake in a random order.
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

    /// Counts an object that has to be dropped when the worker has stopped.
    pub(crate) fn hold(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }
}

/// The guard of an object that belongs to a machine.
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
