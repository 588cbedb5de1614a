//! The script of one run: settings and a list of timed operations, drawn from a seed.
//!
//! Owns all random choices of a run's *script*; the fate of a single call is drawn during the run,
//! from generators with the same seed. An operation names its targets by numbers that are resolved
//! at its time, so that removing one operation leaves the others meaningful.

use std::time::Duration;

use fastrand::Rng;
use kcl_lite::{CheckpointPolicy, FailurePolicy, StreamRecreated};

/// The script of one run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed of all random choices.
    pub seed: u64,
    /// How much of the library takes part.
    pub tier: Tier,
    /// The theme of the run.
    pub theme: Theme,
    /// Slots for workers; each runs one incarnation after another.
    pub workers: usize,
    /// The rate of each slot's clock.
    pub rates: Vec<f64>,
    /// The initial number of shards.
    pub shards: u32,
    /// Settings of all workers.
    pub lease_duration: Duration,
    /// See [`kcl_lite::Settings`].
    pub poll_interval: Duration,
    /// See [`kcl_lite::Settings`].
    pub audit_interval: Duration,
    /// See [`kcl_lite::Settings`].
    pub max_unacknowledged: usize,
    /// See [`kcl_lite::Settings`].
    pub checkpoints: CheckpointPolicy,
    /// See [`kcl_lite::Settings`].
    pub failures: FailurePolicy,
    /// See [`kcl_lite::Settings`].
    pub slow_after: Duration,
    /// See [`kcl_lite::Settings`].
    pub callback_deadline: Duration,
    /// The initial position of the application.
    pub start: Start,
    /// When its first worker starts; the stream is older.
    pub boot_at: Duration,
    /// The largest number of records in a reply.
    pub read_limit: usize,
    /// The number of partition keys of the producer.
    pub keys: usize,
    /// The percentage of aggregates among the records of the stream.
    pub aggregates: u8,
    /// The mean time between puts.
    pub put_every: Duration,
    /// How the processors acknowledge.
    pub style: Style,
    /// What workers do when the stream is re-created; `None` if it is not.
    pub recreated: Option<StreamRecreated>,
    /// Whether the only fault is an owner that is busy for minutes: see [`Plan::with_busy_owner`].
    pub busy_owner: bool,
    /// Whether the last slot may hold only one lease: see [`Plan::with_full_worker`].
    pub full_worker: bool,
    /// Whether listings are very stale: see [`Plan::with_older_listings`].
    pub older_listings: bool,
    /// When all faults have ended; their effects must be repaired after a stated time.
    pub calm_at: Duration,
    /// The length of the run.
    pub length: Duration,
    /// The operations, in order of time.
    pub operations: Vec<Operation>,
}

/// How much of the library takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Tier {
    /// Everything above the ports: table and stream are the simulation's own.
    Protocol,
    /// All of it, with the AWS SDK, over HTTP requests to `local-aws` in this process.
    Full,
}

/// The theme of a run: each makes other situations likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// No faults: no record may be repeated, and budgets hold exactly.
    Calm,
    /// Faults of all kinds, each kind included or excluded at random.
    Chaos,
    /// Shards split and merge continuously.
    Resharding,
    /// Mostly merges, and workers that die at shard ends.
    Merging,
    /// Workers stop and restart one after another.
    Rolling,
    /// Links break for a long time.
    Partitions,
    /// Processes are frozen for seconds and minutes.
    Freezes,
    /// Processors fail, panic, hang, and drop tokens.
    Processors,
    /// Records expire, and listings are stale.
    Retention,
}

/// The initial position of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The oldest record in the stream.
    Horizon,
    /// New records only.
    Latest,
    /// Records from this time of the run on. It may be later than the first start.
    At(Duration),
    /// Records from this long before the first start on.
    Ago(Duration),
}

/// How processors acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// By returning `Ok`.
    Return,
    /// With one token for the batch, later.
    Defer,
    /// With one token for each record, later and in any order.
    Split,
}

/// A timed operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The time since the beginning of the run.
    pub at: Duration,
    /// The operation.
    pub what: What,
}

/// The kinds of operations with their parameters.
#[derive(Debug, Clone)]
pub enum What {
    /// The process of a slot is killed.
    Kill {
        /// The slot.
        slot: usize,
        /// Time until another incarnation starts; `None`: never.
        back_after: Option<Duration>,
        /// Whether it has the worker ID of the old one.
        same_id: bool,
    },
    /// The worker of a slot is stopped gracefully.
    Stop {
        /// The slot.
        slot: usize,
        /// The deadline of the shutdown.
        deadline: Duration,
        /// Time until another incarnation starts; `None`: never.
        back_after: Option<Duration>,
        /// Whether it has the worker ID of the old one.
        same_id: bool,
    },
    /// The process is frozen for a while; its clock runs.
    Freeze {
        /// The slot.
        slot: usize,
        /// The duration.
        lasts: Duration,
    },
    /// The machine of a slot is suspended, and its clock with it.
    Suspend {
        /// The slot.
        slot: usize,
        /// The duration.
        lasts: Duration,
    },
    /// Some calls of a slot to a service fail.
    Link {
        /// The slot.
        slot: usize,
        /// The service.
        service: Service,
        /// The fault.
        trouble: Trouble,
        /// The percentage of calls.
        percent: u8,
        /// The duration.
        lasts: Duration,
    },
    /// A shard is split.
    Split(u64),
    /// Two adjacent shards are merged.
    Merge(u64),
    /// Listings are stale, each shard by another time.
    StaleListings {
        /// The maximum age.
        lag: Duration,
        /// The duration.
        lasts: Duration,
    },
    /// The last reply of a shard does not name its children.
    NamelessChildren {
        /// The duration.
        lasts: Duration,
    },
    /// The processors of a slot change their behaviour.
    Mood {
        /// The slot.
        slot: usize,
        /// The behaviour.
        mood: Mood,
        /// The duration.
        lasts: Duration,
    },
    /// Records older than this expire, and closed shards without records with them.
    Trim {
        /// The age that a record may reach.
        keep: Duration,
    },
    /// An operator deletes a row by hand.
    Forget(u64),
    /// Many records at once.
    Burst(usize),
    /// The producer pauses.
    Drought {
        /// The duration.
        lasts: Duration,
    },
    /// The wall clock of a slot is wrong, in the full-stack tier.
    WallClock {
        /// The slot.
        slot: usize,
        /// By this many seconds, ahead or behind.
        by: i64,
        /// The duration.
        lasts: Duration,
    },
    /// The stream is deleted with its records, and re-created under its name.
    Recreate {
        /// The number of shards of the new stream.
        shards: u32,
        /// How long the stream does not exist.
        gone_for: Duration,
    },
}

/// The two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The lease table.
    Table,
    /// The stream: listings and reads.
    Stream,
}

/// The faults of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It takes up to this long in each direction.
    Slow(Duration),
    /// An error, before anything was applied.
    Refused,
    /// A read is refused because its shard does not exist.
    NotFound,
    /// Too many requests, before anything was applied.
    Throttled,
    /// The request never arrives, and no answer comes.
    RequestLost,
    /// It is applied; an error replaces the answer.
    ReplyBroken,
    /// It is applied; no answer comes.
    ReplyLost,
    /// It is applied up to this much later; no answer comes.
    Late(Duration),
}

/// The behaviour of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// A batch takes up to this long.
    Slow(Duration),
    /// This percentage of calls fails.
    Failing(u8),
    /// This percentage of calls panics.
    Panicking(u8),
    /// This percentage of calls does not return while the mood lasts.
    Hanging(u8),
    /// This percentage of tokens is dropped; with plain processors, of calls fails.
    Dropping(u8),
}

/// Returns a generator for one concern of a run, so that one concern does not shift another.
pub(crate) fn chance(seed: u64, concern: &str) -> Rng {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in concern.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    Rng::with_seed(hash)
}

/// Draws a duration between two bounds, to the millisecond.
pub(crate) fn between(rng: &mut Rng, least: Duration, most: Duration) -> Duration {
    let millis = |it: Duration| u64::try_from(it.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(rng.u64(millis(least)..=millis(most).max(millis(least))))
}

const SECOND: Duration = Duration::from_secs(1);
/// The length of a run: ten virtual minutes, of which the last three are without faults.
const LENGTH: Duration = Duration::from_secs(600);
const CALM_AT: Duration = Duration::from_secs(420);

impl Plan {
    /// Returns the plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let rng = &mut chance(seed, "plan");
        let theme = match rng.u8(0..17) {
            0 | 16 => Theme::Calm,
            1..=4 => Theme::Chaos,
            5 | 6 => Theme::Resharding,
            7 => Theme::Merging,
            8 | 9 => Theme::Rolling,
            10 | 11 => Theme::Partitions,
            12 | 13 => Theme::Freezes,
            14 => Theme::Processors,
            _ => Theme::Retention,
        };
        let workers = rng.usize(1..=4);
        let start = match rng.u8(0..4) {
            0 | 1 => Start::Horizon,
            2 => Start::Latest,
            _ => Start::At(between(rng, Duration::ZERO, 8 * SECOND)),
        };
        let mut plan = Self {
            seed,
            tier: Tier::Protocol,
            theme,
            workers,
            rates: (0..workers).map(|_| 0.99 + rng.f64() * 0.02).collect(),
            shards: rng.u32(1..=6),
            lease_duration: SECOND * *pick(rng, &[3, 5, 10, 10, 20]),
            poll_interval: Duration::from_millis(*pick(rng, &[200, 500, 1000, 1000])),
            audit_interval: SECOND * *pick(rng, &[5, 20, 60]),
            max_unacknowledged: *pick(rng, &[1, 20, 100, 100_000]),
            checkpoints: *pick(
                rng,
                &[
                    CheckpointPolicy::OnRenewal,
                    CheckpointPolicy::OnRenewal,
                    CheckpointPolicy::EveryBatch,
                    CheckpointPolicy::Every(SECOND),
                ],
            ),
            failures: *pick(
                rng,
                &[
                    FailurePolicy::Retry,
                    FailurePolicy::Retry,
                    FailurePolicy::ReleaseShard { attempts: 3 },
                    FailurePolicy::DeadLetter { attempts: 2 },
                ],
            ),
            slow_after: SECOND * *pick(rng, &[5, 30]),
            callback_deadline: SECOND * *pick(rng, &[40, 120, 600]),
            start,
            boot_at: between(rng, 8 * SECOND, 20 * SECOND),
            read_limit: rng.usize(5..=40),
            keys: rng.usize(1..=30),
            aggregates: *pick(rng, &[0, 0, 20, 80]),
            put_every: Duration::from_millis(rng.u64(100..=1500)),
            style: *pick(rng, &[Style::Return, Style::Return, Style::Defer, Style::Split]),
            recreated: None,
            busy_owner: false,
            full_worker: false,
            older_listings: false,
            calm_at: CALM_AT,
            length: LENGTH,
            operations: Vec::new(),
        };
        plan.draw_other_start();
        plan.draw_operations(rng);
        plan.operations.sort_by_key(|operation| operation.at);
        plan.varied()
    }

    /// Applies the variation that the seed selects, each with a generator of its own, so that the rest of
    /// the plan stays the same.
    fn varied(mut self) -> Self {
        if chance(self.seed, "suspend").u8(0..3) == 0 {
            self.suspend_instead();
        }
        // This key stays: another one would select other plans, and `corpus.txt` names seeds.
        if chance(self.seed, concat!("made", " again")).u8(0..20) == 0 {
            self.recreating()
        } else if chance(self.seed, "older listings").u8(0..20) == 0 {
            self.with_older_listings()
        } else if chance(self.seed, "busy owner").u8(0..20) == 0 {
            self.with_busy_owner()
        } else if chance(self.seed, "full worker").u8(0..20) == 0 {
            self.with_full_worker()
        } else {
            self
        }
    }

    /// Returns the same plan for a tier, without operations that the tier does not support.
    ///
    /// In the full-stack tier nothing is trimmed, because the service keeps records for at least a
    /// day, and the producer sends no aggregates: both are only in the protocol tier. Wall clocks are
    /// only in the full-stack tier: the library reads none, but the AWS SDK does.
    #[must_use]
    pub fn on(mut self, tier: Tier) -> Self {
        self.tier = tier;
        if tier == Tier::Full {
            self.aggregates = 0;
            // A read takes thirty times as long to compute.
            self.poll_interval = self.poll_interval.max(SECOND);
            self.operations.retain(|it| !matches!(it.what, What::Trim { .. }));
            self.draw_wall_clocks();
            self.operations.sort_by_key(|operation| operation.at);
        }
        self
    }

    /// Returns the command that replays the run.
    #[must_use]
    pub fn command(&self) -> String {
        let tier = match self.tier {
            Tier::Protocol => "",
            Tier::Full => " --tier full",
        };
        let recreate = if self.recreated.is_some() { " --recreate" } else { "" };
        let busy = if self.busy_owner { " --busy-owner" } else { "" };
        let older = if self.older_listings { " --older-listings" } else { "" };
        format!("cargo run -p sim --{tier}{recreate}{busy}{older} --seed {}", self.seed)
    }

    /// Returns the same plan with only these of its operations, by number.
    #[must_use]
    pub fn keeping(&self, numbers: &[usize]) -> Self {
        let kept = numbers.iter().filter_map(|number| self.operations.get(*number)).cloned();
        Self { operations: kept.collect(), ..self.clone() }
    }

    /// Draws another start, with a generator of its own, so that the rest of the plan stays the
    /// same.
    fn draw_other_start(&mut self) {
        let rng = &mut chance(self.seed, "another start");
        let is_other = rng.u8(0..3) == 0;
        self.start = match self.start {
            Start::Latest if is_other => Start::Ago(between(rng, Duration::ZERO, 15 * SECOND)),
            Start::At(_) if is_other => Start::At(self.boot_at + between(rng, SECOND, 60 * SECOND)),
            start @ (Start::Horizon | Start::Latest | Start::At(_) | Start::Ago(_)) => start,
        };
    }

    fn draw_operations(&mut self, rng: &mut Rng) {
        for kind in Kind::ALL {
            let most = self.theme.most(kind);
            // Kinds outside the theme are included or excluded at random.
            let count = if self.theme.is_about(kind) {
                rng.usize(most / 2..=most)
            } else if most > 0 && rng.bool() {
                rng.usize(0..=most)
            } else {
                0
            };
            let starts_later =
                self.operations.iter().any(|it| matches!(it.what, What::Stop { .. }));
            if kind == Kind::Forget && starts_later {
                continue;
            }
            for _ in 0..count {
                let mut at = between(rng, 2 * SECOND, self.calm_at - 5 * SECOND);
                let mut what = self.draw(rng, kind, self.calm_at - at);
                if let What::Kill { slot, .. } = &mut what
                    && rng.u8(0..6) == 0
                {
                    // In the middle of the first start.
                    *slot = 0;
                    at = self.boot_at + between(rng, Duration::ZERO, Duration::from_millis(200));
                }
                if kind == Kind::Forget {
                    // A worker that starts without the row cannot know that it existed.
                    at = at.max(self.boot_at + 20 * SECOND + self.lease_duration * 2);
                }
                self.cut_what_is_slow(rng, at, &what);
                self.operations.push(Operation { at, what });
            }
        }
    }

    /// Replaces freezes by suspends in one plan of three.
    fn suspend_instead(&mut self) {
        for operation in &mut self.operations {
            if let What::Freeze { slot, lasts } = operation.what {
                operation.what = What::Suspend { slot, lasts };
            }
        }
    }

    /// Returns the same plan with a stream that is deleted and re-created.
    ///
    /// One plan in twenty is of this kind. It uses a generator of its own, so that the rest of the
    /// plan stays the same.
    #[must_use]
    pub fn recreating(mut self) -> Self {
        if self.recreated.is_some() {
            return self;
        }
        let rng = &mut chance(self.seed, "another stream");
        let policies = [StreamRecreated::Adopt, StreamRecreated::Adopt, StreamRecreated::Refuse];
        self.recreated = Some(*pick(rng, &policies));
        let at = between(rng, self.boot_at + 20 * SECOND, self.calm_at - 60 * SECOND);
        let gone_for = SECOND * *pick(rng, &[0, 1, 10, 50]);
        let what = What::Recreate { shards: rng.u32(1..=6), gone_for };
        // As at the first start, a worker that starts without a row cannot know that it existed.
        self.operations.retain(|it| it.at < at || !matches!(it.what, What::Forget(_)));
        self.operations.push(Operation { at, what });
        self.operations.sort_by_key(|operation| operation.at);
        self
    }

    /// Returns the same plan with listings so stale that the rows of finished shards have been deleted
    /// since: they must not be taken for shards without a lease.
    ///
    /// One plan in twenty is of this kind.
    #[must_use]
    pub fn with_older_listings(mut self) -> Self {
        if self.older_listings {
            return self;
        }
        let rng = &mut chance(self.seed, "older listings' plan");
        self.older_listings = true;
        self.lease_duration = SECOND * 3;
        self.audit_interval = 5 * SECOND;
        self.operations.retain(|it| !matches!(it.what, What::StaleListings { .. }));
        let mut at = self.boot_at + 30 * SECOND;
        while at < self.calm_at - 60 * SECOND {
            let what = What::Split(rng.u64(..));
            self.operations.push(Operation { at, what });
            let lag = between(rng, 70 * SECOND, 110 * SECOND);
            at += between(rng, 61 * SECOND, 70 * SECOND);
            let lasts = between(rng, 10 * SECOND, 40 * SECOND);
            self.operations.push(Operation { at, what: What::StaleListings { lag, lasts } });
            at += lasts + between(rng, SECOND, 20 * SECOND);
        }
        self.operations.sort_by_key(|operation| operation.at);
        self
    }

    /// Returns the same plan with short leases, and with no fault except that the processors of one
    /// worker do not return for minutes. The others stop and restart, and request its leases: they have
    /// to get them when the time for the handoff has passed, and to stop without waiting for it.
    ///
    /// One plan in twenty is of this kind.
    #[must_use]
    pub fn with_busy_owner(mut self) -> Self {
        if self.busy_owner {
            return self;
        }
        let rng = &mut chance(self.seed, "busy owner's plan");
        self.busy_owner = true;
        self.clear_of_faults(2);
        self.shards = self.shards.max(3);
        self.lease_duration = SECOND * *pick(rng, &[2, 3, 3, 5]);
        self.checkpoints = *pick(rng, &[CheckpointPolicy::EveryBatch, CheckpointPolicy::OnRenewal]);
        let begins = self.boot_at + 60 * SECOND;
        let ends = self.calm_at - 60 * SECOND;
        let mood = What::Mood { slot: 0, mood: Mood::Hanging(100), lasts: ends - begins };
        self.operations = vec![Operation { at: begins, what: mood }];
        let mut at = self.boot_at + 5 * SECOND;
        while at < ends {
            // Before `begins` owners hand off at once, and workers are stopped while their requests are
            // pending.
            let is_quick = at < begins;
            let away = if is_quick { SECOND } else { 10 * SECOND };
            let back_after = Some(between(rng, SECOND / 5, away));
            let slot = rng.usize(1..self.workers);
            let what = What::Stop { slot, deadline: 60 * SECOND, back_after, same_id: rng.bool() };
            self.operations.push(Operation { at, what });
            at += if is_quick {
                between(rng, SECOND / 2, 3 * SECOND)
            } else {
                SECOND * *pick(rng, &[12, 25, 50, 70])
            };
        }
        self
    }

    /// Returns the same plan, in which one of three workers or more may hold only one lease, and with
    /// no fault except that another worker stops and restarts while one owns nearly all leases: the
    /// two have to share what the limited one does not take.
    ///
    /// One plan in twenty is of this kind.
    #[must_use]
    pub fn with_full_worker(mut self) -> Self {
        let rng = &mut chance(self.seed, "full worker's plan");
        self.full_worker = true;
        self.clear_of_faults(3);
        self.shards = rng.u32(6..=12);
        let at = self.boot_at + between(rng, 30 * SECOND, 90 * SECOND);
        let back_after = Some(between(rng, 10 * SECOND, 60 * SECOND));
        let slot = rng.usize(..self.workers - 1);
        let what = What::Stop { slot, deadline: 20 * SECOND, back_after, same_id: rng.bool() };
        self.operations = vec![Operation { at, what }];
        self
    }

    /// Removes the faults, so that a variation can add its own, and ensures this many workers.
    fn clear_of_faults(&mut self, workers: usize) {
        self.recreated = None;
        self.theme = Theme::Chaos;
        self.workers = self.workers.max(workers);
        self.rates.resize(self.workers, 1.0);
        self.callback_deadline = LENGTH;
        self.failures = FailurePolicy::Retry;
        self.operations.clear();
    }

    /// Returns the slot whose worker may hold only one lease.
    #[must_use]
    pub fn full_slot(&self) -> Option<usize> {
        self.full_worker.then_some(self.workers - 1)
    }

    /// Makes wall clocks jump in every other plan, also those of workers that start.
    fn draw_wall_clocks(&mut self) {
        let rng = &mut chance(self.seed, "wall clocks");
        for _ in 0..*pick(rng, &[0, 0, 1, 4]) {
            let at = between(rng, Duration::ZERO, self.calm_at - 5 * SECOND);
            let lasts = between(rng, SECOND, SECOND * 120).min(self.calm_at - at);
            let by = *pick(rng, &[-1_200, -180, 200, 900, 7_200, 36_000]);
            let what = What::WallClock { slot: rng.usize(0..self.workers), by, lasts };
            self.operations.push(Operation { at, what });
        }
    }

    /// Makes a link slow and then cuts it: a worker that measures its lease from replies would
    /// believe in it too long.
    fn cut_what_is_slow(&mut self, rng: &mut Rng, at: Duration, what: &What) {
        let What::Link { slot, service, trouble: Trouble::Slow(_), lasts, .. } = *what else {
            return;
        };
        let at = at + lasts;
        let lasts = (self.lease_duration * 2).min(self.calm_at.saturating_sub(at));
        if rng.bool() {
            let trouble = Trouble::RequestLost;
            let what = What::Link { slot, service, trouble, percent: 100, lasts };
            self.operations.push(Operation { at, what });
        }
    }

    /// Draws one operation that is over within `left`.
    fn draw(&self, rng: &mut Rng, kind: Kind, left: Duration) -> What {
        let slot = rng.usize(0..self.workers);
        let lasts = between(rng, SECOND, Duration::from_secs(90)).min(left);
        match kind {
            Kind::Kill => {
                What::Kill { slot, back_after: self.draw_return(rng), same_id: rng.bool() }
            }
            Kind::Stop => What::Stop {
                slot,
                deadline: if self.theme == Theme::Calm {
                    SECOND * 30
                } else {
                    SECOND * *pick(rng, &[1, 10, 30, 60])
                },
                back_after: self.draw_return(rng),
                same_id: rng.bool(),
            },
            Kind::Freeze => {
                let long = self.lease_duration * *pick(rng, &[2, 3, 3, 12]);
                What::Freeze { slot, lasts: between(rng, SECOND, long).min(left) }
            }
            Kind::Link => What::Link {
                slot,
                service: *pick(rng, &[Service::Table, Service::Table, Service::Stream]),
                trouble: draw_trouble(rng),
                percent: *pick(rng, &[5, 20, 50, 100]),
                lasts,
            },
            Kind::Split => What::Split(rng.u64(..)),
            Kind::Merge => What::Merge(rng.u64(..)),
            Kind::Stale => {
                let most = SECOND * *pick(rng, &[5, 15, 45]);
                What::StaleListings { lag: between(rng, SECOND, most), lasts }
            }
            Kind::Nameless => What::NamelessChildren { lasts },
            Kind::Mood => {
                let longer = if self.theme == Theme::Processors { 2 } else { 1 };
                let lasts = (lasts * longer).min(left);
                What::Mood { slot, mood: draw_mood(rng), lasts }
            }
            Kind::Trim => What::Trim { keep: between(rng, SECOND * 20, SECOND * 120) },
            Kind::Forget => What::Forget(rng.u64(..)),
            Kind::Burst => What::Burst(rng.usize(10..=200)),
            Kind::Drought => What::Drought { lasts },
        }
    }

    /// Draws after what time a killed or stopped worker is restarted; `None` if never.
    fn draw_return(&self, rng: &mut Rng) -> Option<Duration> {
        let soon = between(rng, Duration::from_millis(100), self.lease_duration * 2);
        (rng.u8(0..8) > 0).then_some(soon)
    }
}

fn pick<'a, T>(rng: &mut Rng, choices: &'a [T]) -> &'a T {
    &choices[rng.usize(0..choices.len())]
}

fn draw_trouble(rng: &mut Rng) -> Trouble {
    match rng.u8(0..10) {
        9 => Trouble::NotFound,
        0 => Trouble::Slow(between(rng, Duration::from_millis(100), 4 * SECOND)),
        1 => Trouble::Refused,
        2 => Trouble::Throttled,
        3 | 4 => Trouble::RequestLost,
        5 => Trouble::ReplyBroken,
        6 | 7 => Trouble::ReplyLost,
        _ => Trouble::Late(between(rng, SECOND, 40 * SECOND)),
    }
}

fn draw_mood(rng: &mut Rng) -> Mood {
    let percent = *pick(rng, &[2, 10, 50, 100]);
    match rng.u8(0..5) {
        0 => Mood::Slow(between(rng, SECOND, 30 * SECOND)),
        1 => Mood::Failing(percent),
        2 => Mood::Panicking(percent),
        3 => Mood::Hanging(percent),
        _ => Mood::Dropping(percent),
    }
}

/// The kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kill,
    Stop,
    Freeze,
    Link,
    Split,
    Merge,
    Stale,
    Nameless,
    Mood,
    Trim,
    Forget,
    Burst,
    Drought,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Kill,
        Self::Stop,
        Self::Freeze,
        Self::Link,
        Self::Split,
        Self::Merge,
        Self::Stale,
        Self::Nameless,
        Self::Mood,
        Self::Trim,
        Self::Forget,
        Self::Burst,
        Self::Drought,
    ];

    /// Returns how many of it there are at most in a run with another theme.
    fn usual(self) -> usize {
        match self {
            Self::Kill | Self::Stop | Self::Freeze | Self::Stale | Self::Mood => 4,
            Self::Link => 10,
            Self::Split | Self::Merge => 3,
            Self::Nameless | Self::Burst | Self::Drought => 2,
            Self::Trim | Self::Forget => 0,
        }
    }
}

impl Theme {
    fn is_about(self, kind: Kind) -> bool {
        match self {
            Self::Calm | Self::Chaos => false,
            Self::Resharding => matches!(kind, Kind::Split | Kind::Merge | Kind::Stale),
            Self::Merging => matches!(kind, Kind::Split | Kind::Merge | Kind::Kill),
            Self::Rolling => matches!(kind, Kind::Stop),
            Self::Partitions => matches!(kind, Kind::Link),
            Self::Freezes => matches!(kind, Kind::Freeze),
            Self::Processors => matches!(kind, Kind::Mood),
            Self::Retention => matches!(kind, Kind::Trim | Kind::Split | Kind::Merge),
        }
    }

    fn most(self, kind: Kind) -> usize {
        match (self, kind) {
            // Neither resharding nor a stop is a fault.
            (Self::Calm, Kind::Split | Kind::Merge | Kind::Burst | Kind::Drought) => kind.usual(),
            (Self::Calm, Kind::Stop) => 3,
            // Its owner has to be healthy to re-create it with the same content.
            (Self::Calm, Kind::Forget) => 2,
            (Self::Calm, _) => 0,
            (Self::Merging, Kind::Kill) => 8,
            (Self::Retention, Kind::Trim) => 6,
            _ if self.is_about(kind) => kind.usual().max(5) * 3,
            _ => kind.usual(),
        }
    }
}
