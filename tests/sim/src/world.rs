//! The true state: the table, the stream, the faults of the links, and the ledger of observations.
//!
//! Owns the one lock of a run. Everything runs on one thread, so that the lock is never contended;
//! it is held for single steps only and never across an await.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::checks::{Ledger, Violation};
use crate::plan::{Mood, Plan, Service, Tier, Trouble, What, chance};
use crate::reached::Situation;
use crate::services::Services;
use crate::stream::Shards;
use crate::table::Rows;
use crate::trace::Trace;

/// The world of one run.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) began: Instant,
    truth: Mutex<Truth>,
    /// Requests that have left their sender, and deferred acknowledgements.
    tasks: Mutex<JoinSet<()>>,
}

/// The mutable state of the world.
pub(crate) struct Truth {
    /// The time of this step, since the beginning of the run.
    pub(crate) now: Duration,
    pub(crate) rows: Rows,
    pub(crate) shards: Shards,
    pub(crate) ledger: Ledger,
    pub(crate) trace: Trace,
    pub(crate) weather: Weather,
    pub(crate) rng: Rng,
    pub(crate) tier: Tier,
    /// The largest number of records in a reply.
    pub(crate) read_limit: usize,
    /// The largest number of rows or shards on a page, in the full-stack tier.
    pub(crate) page: usize,
}

/// The current faults.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    links: Vec<LinkEpisode>,
    moods: Vec<(usize, Mood, Duration)>,
    wall_clocks: Vec<(usize, i64, Duration)>,
    /// How stale listings may be, and until when.
    pub(crate) stale: (Duration, Duration),
    /// Until when the last reply of a shard does not name its children.
    pub(crate) nameless_until: Duration,
    /// Until when the producer pauses.
    pub(crate) drought_until: Duration,
}

#[derive(Debug)]
struct LinkEpisode {
    slot: usize,
    service: Service,
    trouble: Trouble,
    percent: u8,
    until: Duration,
}

impl Weather {
    pub(crate) fn break_link(
        &mut self,
        (slot, service): (usize, Service),
        trouble: Trouble,
        percent: u8,
        until: Duration,
    ) {
        self.links.push(LinkEpisode { slot, service, trouble, percent, until });
    }

    pub(crate) fn set_mood(&mut self, slot: usize, mood: Mood, until: Duration) {
        self.moods.push((slot, mood, until));
    }

    /// Returns the fault that hits a call now, if any.
    pub(crate) fn trouble(
        &mut self,
        now: Duration,
        slot: usize,
        service: Service,
        rng: &mut Rng,
    ) -> Option<Trouble> {
        self.links.retain(|link| link.until > now);
        let links = self.links.iter().filter(|link| link.slot == slot && link.service == service);
        let mut found = None;
        for link in links {
            if found.is_none() && rng.u8(0..100) < link.percent {
                found = Some(link.trouble);
            }
        }
        found
    }

    /// Returns by how many seconds the wall clock of a slot is ahead.
    pub(crate) fn wall_clock(&mut self, now: Duration, slot: usize) -> i64 {
        self.wall_clocks.retain(|(_, _, until)| *until > now);
        self.wall_clocks.iter().filter(|(of, _, _)| *of == slot).map(|(_, by, _)| by).sum()
    }

    /// Returns how the processors of a slot behave now, and until when.
    pub(crate) fn mood(&mut self, now: Duration, slot: usize) -> Option<(Mood, Duration)> {
        self.moods.retain(|(_, _, until)| *until > now);
        let mood = self.moods.iter().find(|(of, _, _)| *of == slot);
        mood.map(|(_, mood, until)| (*mood, *until))
    }
}

impl World {
    pub(crate) fn new(plan: Plan, keep_lines: bool) -> Arc<Self> {
        let truth = Truth {
            now: Duration::ZERO,
            rows: Rows::default(),
            shards: Shards::new(&plan),
            ledger: Ledger::new(&plan),
            trace: Trace::new(keep_lines),
            weather: Weather::default(),
            rng: chance(plan.seed, "world"),
            tier: plan.tier,
            read_limit: plan.read_limit,
            page: [2, 5, 100][chance(plan.seed, "page").usize(0..3)],
        };
        Arc::new(Self {
            plan,
            began: Instant::now(),
            truth: Mutex::new(truth),
            tasks: Mutex::new(JoinSet::new()),
        })
    }

    pub(crate) fn note(&self, situation: Situation) {
        self.lock().ledger.counts.note(situation);
    }

    /// Returns the time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Locks the state for one step.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Truth> {
        let mut truth = self.truth.lock();
        truth.now = self.now();
        truth
    }

    /// Spawns a task that outlives its creator.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        // The results of ended tasks would otherwise stay until the end of the run.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Aborts the tasks of [`spawn`](Self::spawn).
    pub(crate) async fn settle(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
    }

    pub(crate) fn say(&self, who: &dyn fmt::Display, text: fmt::Arguments<'_>) {
        let mut truth = self.lock();
        let now = truth.now;
        truth.trace.add(now, who, text);
    }

    /// Returns the services of the full-stack tier.
    pub(crate) fn services(&self) -> Services {
        self.lock().shards.services().clone()
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        self.lock().ledger.violation().cloned()
    }
}

/// The time after which all workers have seen a new row, unless a fault prevents it.
const SEEN: Duration = Duration::from_secs(5);

impl Truth {
    /// Changes the world according to the plan. Operations on processes are executed elsewhere.
    pub(crate) fn happen(&mut self, what: &What) {
        let now = self.now;
        match *what {
            What::Link { slot, service, trouble, percent, lasts } => {
                self.weather.break_link((slot, service), trouble, percent, now + lasts);
            }
            What::Split(pick) => {
                if let Some((parent, children)) = self.shards.split(pick, now) {
                    let ids = self.shards.ids(&children);
                    let parent = self.shards.all[parent].id.clone();
                    self.say(&"stream", format_args!("{parent} is split into {ids:?}"));
                    self.ledger.counts.note(Situation::Split);
                }
            }
            What::Merge(pick) => {
                if let Some((parents, child)) = self.shards.merge(pick, now) {
                    let ids = self.shards.ids(&parents);
                    let child = self.shards.all[child].id.clone();
                    self.say(&"stream", format_args!("{ids:?} are merged into {child}"));
                    self.ledger.counts.note(Situation::Merged);
                }
            }
            What::StaleListings { lag, lasts } => self.weather.stale = (lag, now + lasts),
            What::NamelessChildren { lasts } => self.weather.nameless_until = now + lasts,
            What::Mood { slot, mood, lasts } => self.weather.set_mood(slot, mood, now + lasts),
            What::Trim { keep } => {
                let is_needed = |shard: usize| {
                    let row = self.shards.row(shard, &self.rows);
                    let is_unfinished = row.is_none_or(|row| !row.checkpoint.is_shard_end());
                    is_unfinished && !self.ledger.is_finished(shard)
                };
                let kept: Vec<_> = (0..self.shards.all.len()).map(is_needed).collect();
                let oldest = now.saturating_sub(keep);
                self.shards.trim(oldest, &kept, &mut self.ledger.counts);
            }
            What::Forget(pick) => self.forget(pick),
            What::Burst(count) => {
                self.ledger.counts.note(Situation::Burst);
                (0..count).for_each(|_| self.shards.put(now));
            }
            What::Drought { lasts } => {
                self.ledger.counts.note(Situation::Drought);
                self.weather.drought_until = now + lasts;
            }
            What::WallClock { slot, by, lasts } => {
                self.weather.wall_clocks.push((slot, by, now + lasts));
            }
            What::Kill { .. }
            | What::Stop { .. }
            | What::Freeze { .. }
            | What::Suspend { .. }
            | What::Recreate { .. } => {}
        }
    }

    /// Deletes the stream with its records.
    pub(crate) fn delete_stream(&mut self) {
        self.shards.delete(self.now);
        self.say(&"stream", format_args!("is deleted"));
    }

    /// Re-creates the stream under its name.
    pub(crate) fn make_stream_again(&mut self, shards: u32) {
        self.shards.make(self.now, shards);
        self.say(&"stream", format_args!("is re-created with {shards} shards"));
    }

    /// Starts an incarnation.
    pub(crate) fn boots(&mut self, number: usize) {
        self.ledger.born.insert(number, self.now);
    }

    /// Deletes the row of a shard that a worker owns. Never the last one: an empty table makes an
    /// application start again. And none that some worker has not seen: that worker would create it while
    /// its owner is active.
    fn forget(&mut self, pick: u64) {
        let held: Vec<_> = self.rows.values().filter(|row| row.owner.is_some()).collect();
        let at = usize::try_from(pick).unwrap_or(0) % held.len().max(1);
        self.ledger.forgotten_at = self.now;
        if self.rows.len() < 2 || self.now < self.ledger.listed_at + SEEN {
            return;
        }
        if let Some(key) = held.get(at).map(|row| row.key.clone()) {
            self.rows.remove(&key);
            if self.tier == Tier::Full {
                self.shards.services().delete_row(&key);
            }
            self.ledger.counts.note(Situation::RowForgotten);
            self.say(&"plan", format_args!("the row of {key} is deleted"));
        }
    }

    pub(crate) fn say(&mut self, who: &dyn fmt::Display, text: fmt::Arguments<'_>) {
        self.trace.add(self.now, who, text);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.plan.seed).finish_non_exhaustive()
    }
}
