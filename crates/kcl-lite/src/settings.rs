//! Everything that can be set on a worker: plain data with defaults and bounds.
//!
//! Components (clients, stores, clocks) are given to the builder instead.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::identity::Other;
use crate::position::InitialPosition;

/// Room for the largest reply while it is parsed.
const LEAST_MEMORY: u64 = 32 << 20;

/// The settings of a worker.
///
/// # Example: a faster failover
/// ```
/// use std::time::Duration;
/// let settings = kcl_lite::Settings { lease_duration: Duration::from_secs(5), ..Default::default() };
/// ```
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a lease lasts without a renewal. Default 10 s, from 1 s to 5 min. A dead worker's
    /// shards are taken over after this time; renewals are written every third of it. All workers of
    /// an application must use the same value.
    pub lease_duration: Duration,
    /// Where to start in a stream that the application has never read. Default `Latest`. Has no
    /// effect once leases exist.
    pub initial_position: InitialPosition,
    /// What is made even between workers. Default [`Balance::Count`].
    pub balance: Balance,
    /// The most leases this worker holds at once. Default no limit. Workers are not told of each
    /// other's limits: the others share what this worker does not take after three lease durations.
    pub max_leases: usize,
    /// Time between reads of a shard at its tip. Default 1 s, from 200 ms (the service allows five
    /// reads per second and shard, shared by all applications) to 1 min.
    pub poll_interval: Duration,
    /// How records are fetched. Default [`Retrieval::Polling`].
    pub retrieval: Retrieval,
    /// How many of the five reads per second, which the service allows per shard and all applications
    /// together, this one may use. Default 5, from 0.1. With `n` applications on a stream 5 / n keeps
    /// them out of each other's way; if they are throttled all the same, each slows down until it is
    /// not. A shard that is behind is read at this rate, one at its tip every `poll_interval`.
    pub reads_per_second: f64,
    /// The memory for records and replies of all shards of this worker together, in bytes. Default
    /// 256 MiB, at least 32 MiB: what a reply of 10 MiB takes while it is parsed.
    ///
    /// Nothing is read before the most that its reply may take is set aside; then the records count,
    /// aggregates unpacked, with a fixed amount per record for what is around it. A reply's memory is
    /// given back when all its records are acknowledged and the batches that hold them are dropped.
    /// Records that a processor clones are its own. Shards read in turn. One that has waited for ten
    /// seconds with nothing to process may exceed the budget, one at a time: by one reply, or, if its
    /// processor acknowledges later than it returns, by up to as much again.
    pub memory_budget: u64,
    /// When checkpoints are written. Default [`CheckpointPolicy::OnRenewal`].
    pub checkpoints: CheckpointPolicy,
    /// What happens when a processor keeps failing. Default [`FailurePolicy::Retry`].
    pub failures: FailurePolicy,
    /// After this time in one callback, or since its last [`Heartbeat`](crate::Heartbeat), an event says
    /// that the processor is slow, once per callback. Default 30 s, more than 0. `Duration::MAX`
    /// switches it off.
    pub slow_after: Duration,
    /// The longest that one callback may take, counted from its last [`Heartbeat`](crate::Heartbeat) if
    /// it sends any: then its future is dropped and the shard is released. Default 10 min, more than
    /// 0. `Duration::MAX` switches it off. A shard is also released when for so long none of its records
    /// is acknowledged and no heartbeat comes, if its window is full or other shards wait for its
    /// memory.
    pub callback_deadline: Duration,
    /// What happens when records aged out of the stream before they were read. Default
    /// [`GapPolicy::Resume`].
    pub on_gap: GapPolicy,
    /// What happens to records of an aggregate whose hash key belongs to another shard. Default
    /// [`MisroutedPolicy::Deliver`].
    pub on_misrouted: MisroutedPolicy,
    /// How many delivered records of one shard may wait for deferred acknowledgements before reading
    /// stops. Default 100,000, at least 1.
    pub max_unacknowledged: usize,
    /// How often the shards of a stream are listed to find holes: about once per interval by all workers
    /// together, who take turns; at once when leases leave a hole. Default 60 s, from 1 s to 1 h.
    pub audit_interval: Duration,
    /// How long `start` waits for what is transient: a service that cannot be reached or throttles, a
    /// stream or table that is being created. Then it returns the last error. Default 5 min, more than
    /// 0. `Duration::MAX` waits until the future is dropped.
    pub start_timeout: Duration,
    /// What to do at the start when the leases were made for another stream of the same name. Default
    /// `Refuse`.
    pub stream_recreated: StreamRecreated,
    /// How the lease table is made, if it may be. Default: on demand, if it does not exist.
    pub table: TableOptions,
    /// Where leases are kept alive. Default [`ControlPlane::OwnThread`].
    pub control_plane: ControlPlane,
    /// Seed of all jitter. Default: taken from the worker id, so that workers differ.
    pub seed: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(10),
            initial_position: InitialPosition::Latest,
            balance: Balance::Count,
            max_leases: usize::MAX,
            poll_interval: Duration::from_secs(1),
            retrieval: Retrieval::Polling,
            reads_per_second: 5.0,
            memory_budget: 256 << 20,
            checkpoints: CheckpointPolicy::OnRenewal,
            failures: FailurePolicy::Retry,
            slow_after: Duration::from_secs(30),
            callback_deadline: Duration::from_secs(10 * 60),
            on_gap: GapPolicy::Resume,
            on_misrouted: MisroutedPolicy::Deliver,
            max_unacknowledged: 100_000,
            audit_interval: Duration::from_secs(60),
            start_timeout: Duration::from_secs(5 * 60),
            stream_recreated: StreamRecreated::Refuse,
            table: TableOptions::default(),
            control_plane: ControlPlane::OwnThread,
            seed: None,
        }
    }
}

/// How the records of Kinesis streams are fetched.
///
/// Enhanced fan-out gives an application 2 MB per second and shard of its own, some 70 ms after a record
/// was put, and costs by the consumer, shard and hour and by the byte. Its actions, beside those of
/// polling:
///
/// | action | when |
/// |---|---|
/// | `DescribeStreamConsumer`, `RegisterStreamConsumer` | unless the consumer's ARN is given |
/// | `SubscribeToShard`, on the consumer | always |
///
/// # Example: fan-out
/// ```
/// use kcl_lite::{Retrieval, Settings};
/// let settings = Settings { retrieval: Retrieval::fan_out(), ..Default::default() };
/// assert!(settings.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retrieval {
    /// `GetRecords`, about once a second at the tip. All applications that poll a shard share five calls
    /// and 2 MB per second.
    #[default]
    Polling,
    /// `SubscribeToShard`.
    FanOut {
        /// Who subscribes.
        consumer: StreamConsumer,
    },
    /// Polling while that is enough; fan-out for a shard that stays behind the tip although its
    /// processor is fast enough, or that is throttled because others read it too. Each change is an
    /// [`Event::RetrievalChanged`](crate::Event::RetrievalChanged) that says why. The consumer is
    /// registered when it is first needed.
    Auto {
        /// Who subscribes.
        consumer: StreamConsumer,
    },
}

impl Retrieval {
    /// Fan-out by the consumer that is called after the application.
    #[must_use]
    pub fn fan_out() -> Self {
        Self::FanOut { consumer: StreamConsumer::Application }
    }

    /// Polling, and fan-out by the consumer that is called after the application.
    #[must_use]
    pub fn auto() -> Self {
        Self::Auto { consumer: StreamConsumer::Application }
    }

    /// Who subscribes, if anybody does.
    #[must_use]
    pub fn consumer(&self) -> Option<&StreamConsumer> {
        match self {
            Self::Polling => None,
            Self::FanOut { consumer } | Self::Auto { consumer } => Some(consumer),
        }
    }

    /// Names the consumer that is called after the application.
    pub(crate) fn name_consumer(&mut self, application: &str) {
        if let Self::FanOut { consumer } | Self::Auto { consumer } = self
            && *consumer == StreamConsumer::Application
        {
            *consumer = StreamConsumer::Named(application.to_owned());
        }
    }

    fn validate(&self) -> Result<(), Error> {
        let fault = match self.consumer() {
            Some(StreamConsumer::Named(name)) if !is_consumer_name(name) => {
                let what = "but must have 1 to 128 letters, digits, `_`, `.` and `-`";
                format!("the consumer of `retrieval` is called `{name}`, {what}")
            }
            Some(StreamConsumer::Arn(arn)) if !is_consumer_arn(arn) => {
                let what = "which is not the ARN of a stream consumer";
                format!("the consumer of `retrieval` is `{arn}`, {what}")
            }
            Some(_) | None => return Ok(()),
        };
        Err(Error::new(ErrorKind::Config, fault))
    }
}

/// A registered consumer of enhanced fan-out. All workers of an application share one, and no two
/// applications may: of two subscriptions of a consumer to a shard, the later ends the earlier. It is
/// never deregistered, so that it costs until you do that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StreamConsumer {
    /// The one called after the application; registered if it is missing.
    #[default]
    Application,
    /// The one of this name; registered if it is missing.
    Named(String),
    /// The one with this ARN, of the only stream. It must exist.
    Arn(String),
}

fn is_consumer_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (1..=128).contains(&name.len()) && name.chars().all(allowed)
}

fn is_consumer_arn(arn: &str) -> bool {
    arn.starts_with("arn:") && arn.contains(":stream/") && arn.contains("/consumer/")
}

/// When the newest acknowledged position is written to the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CheckpointPolicy {
    /// With the renewal that is due anyway, every third of the lease duration: no extra writes.
    #[default]
    OnRenewal,
    /// At the latest so long after the acknowledgement, from 10 ms on. Renewals carry it before, so
    /// more than a third of the lease duration is the same as [`OnRenewal`](Self::OnRenewal).
    Every(Duration),
    /// As soon as a batch is acknowledged: one write per batch, fewer repeats after a crash.
    EveryBatch,
    /// When the processor asks for it (see [`Checkpointer`](crate::Checkpointer)), and when the shard
    /// ends or is let go.
    Manual,
}

/// What happens to records that keep failing: an error, a panic, or a dropped token.
///
/// Each failure emits [`Event::ProcessorFailed`](crate::Event::ProcessorFailed), and the next attempt
/// follows after a delay that begins at 50 to 100 ms and doubles up to 30 s. No record is skipped
/// silently.
///
/// # Poison records
/// The policy is for failures that may be transient: something does not answer, or throttles. Only the
/// processor knows which record can never be processed. It says so with
/// [`Ack::reject`](crate::Ack::reject), or by returning a [`PoisonRecord`](crate::PoisonRecord). Give the
/// worker a place for such records with
/// [`WorkerBuilder::dead_letter`](crate::WorkerBuilder::dead_letter). Under every policy,
/// [`Retry`](Self::Retry) included, a rejected record is stored there without another attempt, and
/// counts as acknowledged as soon as it is stored. While storing it fails, the shard waits; a worker
/// that stops meanwhile leaves the record to the next owner. If the worker has no place for dead
/// letters, a rejection is a failure like any other, with an error that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FailurePolicy {
    /// Retries until the records are processed. The right policy together with rejections: poison
    /// records are stored as dead letters, and an outage is waited out.
    #[default]
    Retry,
    /// After `attempts` failures of a batch bisects it to find the failing record, stores that record as
    /// a [dead letter](crate::dead_letter::DeadLetter), acknowledges it, and goes on. A half is tried
    /// once before it is bisected again, a single record `attempts` times.
    ///
    /// **This policy cannot tell a poison record from an outage.** While a database that the processor
    /// needs is down, every record fails, and after a few seconds each every good record becomes a dead
    /// letter. [`Event::ManyDeadLetters`](crate::Event::ManyDeadLetters) warns when that seems to happen,
    /// but does not stop it. Use it only where a record fails because of the record, as a pure
    /// transformation does; otherwise reject poison records and use [`Retry`](Self::Retry).
    ///
    /// A processor that fails without a batch (in `initialize`) is retried without end.
    DeadLetter {
        /// How often a batch, and then a single record, may fail; at least 1. What fails between them,
        /// while the batch is bisected, does not count.
        attempts: u32,
    },
    /// Releases the shard after `attempts` failures, so that another worker may try.
    ReleaseShard {
        /// At least 1.
        attempts: u32,
    },
    /// Stops the worker after `attempts` failures, with an error of kind `Processor`.
    Stop {
        /// At least 1.
        attempts: u32,
    },
}

impl FailurePolicy {
    /// How often a batch may fail before anything else than another attempt happens.
    pub(crate) fn attempts(self) -> u32 {
        match self {
            Self::Retry => u32::MAX,
            Self::DeadLetter { attempts }
            | Self::ReleaseShard { attempts }
            | Self::Stop { attempts } => attempts,
        }
    }
}

/// What happens when records aged out of the stream before they were read. It is an event
/// ([`Event::GapDetected`](crate::Event::GapDetected)) and a callback in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GapPolicy {
    /// Go on with the oldest record that is left.
    #[default]
    Resume,
    /// Deliver nothing, and stop the worker with an error of kind `Gap`.
    Stop,
}

/// What happens to records of an aggregate whose hash key belongs to another shard than the one that
/// they were read from. They are counted in any case
/// ([`Status::misrouted_records`](crate::Status::misrouted_records)), and an event from time to time
/// ([`Event::MisroutedRecords`](crate::Event::MisroutedRecords)).
///
/// A producer that did not yet know of a reshard makes such records, and the KPL then sends each of
/// them again; a producer that does not group records by shard makes them all the time, and sends
/// nothing again. From here the two look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MisroutedPolicy {
    /// Deliver them: some come twice after a reshard, none is lost.
    #[default]
    Deliver,
    /// Drop them, and only them: right if every producer is the KPL. (The Java KCL drops the whole
    /// aggregate, with records that nobody sends again.)
    Drop,
}

/// The lease table: whether it may be made, and what it is like then.
///
/// A table that exists is used as it is; what differs from these options is logged once. The actions
/// a worker needs on the table:
///
/// | action | when |
/// |---|---|
/// | `Scan`, `GetItem`, `PutItem`, `UpdateItem`, `DeleteItem` | always |
/// | `DescribeTable` | unless `create` is `Never` |
/// | `CreateTable` | to make the table |
/// | `TagResource` | to make it with tags |
/// | `UpdateContinuousBackups` | to make it with point-in-time recovery |
/// | `DescribeContinuousBackups`, `ListTagsOfResource` | never; they let differences be noticed |
///
/// # Example: protected and labelled
/// ```
/// use kcl_lite::{Settings, TableOptions};
/// let table = TableOptions {
///     point_in_time_recovery: true,
///     deletion_protection: true,
///     tags: [("team".to_owned(), "rides".to_owned())].into(),
///     ..Default::default()
/// };
/// let settings = Settings { table, ..Default::default() };
/// assert!(settings.validate().is_ok());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Whether the table may be made. Default `IfMissing`.
    pub create: CreateTable,
    /// How a new table is paid for. Default `OnDemand`.
    pub billing: Billing,
    /// Whether a new table can be restored to any second of the last 35 days. Default no.
    pub point_in_time_recovery: bool,
    /// Whether a new table refuses to be deleted. Default no.
    pub deletion_protection: bool,
    /// The tags of a new table, at most 50. Default none. Keys have 1 to 128 characters and do not
    /// begin with `aws:`, values have at most 256.
    pub tags: BTreeMap<String, String>,
}

/// What workers make even between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Balance {
    /// The number of shards that can be read: it differs by one at most.
    #[default]
    Count,
    /// Bytes per second, as measured per shard: moves are made when one worker carries more than a
    /// tenth (and 64 KiB/s) above the average. Shards without load are not moved.
    Throughput,
}

/// Whether a worker may create its lease table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CreateTable {
    /// Create it if it does not exist.
    #[default]
    IfMissing,
    /// Never; rights to read and write items are enough then.
    Never,
}

/// What a worker that starts does when the leases belong to a stream that was deleted and made again.
///
/// One that runs meanwhile ends with an error of kind [`Missing`](crate::ErrorKind::Missing) when it
/// notices, soon after its next audit at the latest; a worker of several streams goes on with the
/// others. As soon as the new stream has a lease, all is decided: rows of the former one, which a worker
/// that had not noticed may put back, are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StreamRecreated {
    /// `start` returns an error that names both streams; nothing is written.
    #[default]
    Refuse,
    /// Starts over: the leases of the new stream take the place of the old ones, and it is read from
    /// its beginning, whatever [`Settings::initial_position`] says.
    Adopt,
}

impl StreamRecreated {
    /// Whether the leases of such a stream are removed by a worker that has started: by then it has been
    /// decided that those of a former one are of no use.
    pub(crate) fn removes(self, other: Other) -> bool {
        match other {
            Other::Former => true,
            Other::Unrelated => self == Self::Adopt,
            Other::Newer => false,
        }
    }
}

/// How the lease table is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Billing {
    /// By request: nothing to plan, and no throttling by a number that was guessed.
    #[default]
    OnDemand,
    /// By capacity, each at least 1. A worker reads the table at most at five read units per second
    /// and writes each lease three times per lease duration.
    Provisioned {
        /// Read units per second.
        read: u32,
        /// Write units per second.
        write: u32,
    },
}

impl TableOptions {
    fn validate(&self) -> Result<(), Error> {
        let refused = |fault: String| Err(Error::new(ErrorKind::Config, fault));
        if let Billing::Provisioned { read, write } = self.billing
            && (read == 0 || write == 0)
        {
            return refused(format!(
                "`table.billing` is {read} read and {write} write units, but each must be at least 1"
            ));
        }
        if self.tags.len() > 50 {
            let count = self.tags.len();
            return refused(format!("`table.tags` has {count} tags, but at most 50 are allowed"));
        }
        for (key, value) in &self.tags {
            let key_fits = (1..=128).contains(&key.chars().count()) && !key.starts_with("aws:");
            if !key_fits || value.chars().count() > 256 {
                return refused(format!(
                    "`table.tags` has the tag `{key}`, but a key must have 1 to 128 characters, not \
                     begin with `aws:`, and have a value of at most 256 characters"
                ));
            }
        }
        Ok(())
    }
}

/// Where a worker's control plane (scans, renewals, takes) runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControlPlane {
    /// On a thread of its own, so that a processor that blocks every thread of your runtime cannot
    /// delay a renewal.
    ///
    /// The thread has a runtime, and a time, of its own. `start` therefore refuses to run on paused time
    /// (`tokio::time::pause`, `#[tokio::test(start_paused = true)]`); do not pause it later either.
    #[default]
    OwnThread,
    /// On the runtime that `start` is called on: for tests on paused time, and for simulation.
    Inline,
}

impl Settings {
    /// Checks bounds and relations.
    ///
    /// # Errors
    /// Kind [`ErrorKind::Config`], naming the field and its bounds.
    pub fn validate(&self) -> Result<(), Error> {
        let within = |name: &str, value: Duration, least: Duration, most: Duration| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::new(
                ErrorKind::Config,
                format!("`{name}` is {value:?}, but must be from {least:?} to {most:?}"),
            ))
        };
        let secs = Duration::from_secs;
        within("lease_duration", self.lease_duration, secs(1), secs(300))?;
        within("poll_interval", self.poll_interval, Duration::from_millis(200), secs(60))?;
        within("audit_interval", self.audit_interval, secs(1), secs(3600))?;
        let config = |text: &str| Err(Error::new(ErrorKind::Config, text));
        if self.slow_after.is_zero() || self.callback_deadline.is_zero() {
            return config("`slow_after` and `callback_deadline` must be more than 0");
        }
        if self.start_timeout.is_zero() {
            return config("`start_timeout` must be more than 0");
        }
        if !(0.1..=5.0).contains(&self.reads_per_second) {
            let rate = self.reads_per_second;
            let fault = format!("`reads_per_second` is {rate}, but must be from 0.1 to 5");
            return Err(Error::new(ErrorKind::Config, fault));
        }
        if self.memory_budget < LEAST_MEMORY {
            let bytes = self.memory_budget;
            let fault =
                format!("`memory_budget` is {bytes}, but must be at least {LEAST_MEMORY} (32 MiB)");
            return Err(Error::new(ErrorKind::Config, fault));
        }
        if self.failures.attempts() == 0 {
            return config("`attempts` of `failures` must be at least 1");
        }
        if let CheckpointPolicy::Every(interval) = self.checkpoints
            && interval < Duration::from_millis(10)
        {
            return config("`checkpoints: Every` must be at least 10ms; `EveryBatch` is at once");
        }
        if self.max_leases == 0 || self.max_unacknowledged == 0 {
            return config("`max_leases` and `max_unacknowledged` must be at least 1");
        }
        self.retrieval.validate()?;
        self.table.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_bounds_is_named_with_its_bounds() {
        let settings = Settings { lease_duration: Duration::from_millis(10), ..Default::default() };
        let error = settings.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.to_string(), "`lease_duration` is 10ms, but must be from 1s to 300s");
    }

    #[test]
    fn a_consumer_that_cannot_be_is_refused_before_anything_is_sent() {
        for consumer in [
            StreamConsumer::Named(String::new()),
            StreamConsumer::Named("a b".to_owned()),
            StreamConsumer::Named("n".repeat(129)),
            StreamConsumer::Arn("orders".to_owned()),
            StreamConsumer::Arn("arn:aws:kinesis:x:0:stream/orders".to_owned()),
        ] {
            let retrieval = Retrieval::Auto { consumer: consumer.clone() };
            let error = Settings { retrieval, ..Default::default() }.validate();
            let error = error.expect_err(&format!("{consumer:?}"));
            assert!(error.to_string().contains("`retrieval`"), "{error}");
        }
        let arn = "arn:aws:kinesis:x:0:stream/orders/consumer/billing:1".to_owned();
        let retrieval = Retrieval::FanOut { consumer: StreamConsumer::Arn(arn) };
        Settings { retrieval, ..Default::default() }.validate().unwrap();
    }

    #[test]
    fn a_budget_without_room_for_one_reply_and_a_rate_above_the_services_are_refused() {
        for (settings, name) in [
            (Settings { memory_budget: LEAST_MEMORY - 1, ..Settings::default() }, "memory_budget"),
            (Settings { reads_per_second: 5.1, ..Settings::default() }, "reads_per_second"),
            (Settings { reads_per_second: 0.0, ..Settings::default() }, "reads_per_second"),
            (Settings { reads_per_second: f64::NAN, ..Settings::default() }, "reads_per_second"),
        ] {
            let error = settings.validate().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{name}` is ")), "{error}");
        }
        let settings = Settings { memory_budget: LEAST_MEMORY, ..Settings::default() };
        settings.validate().unwrap();
    }

    #[test]
    fn options_that_no_table_can_have_are_refused_before_anything_is_sent() {
        let tagged = |key: &str, value: &str| TableOptions {
            tags: [(key.to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        let billed = |read, write| TableOptions {
            billing: Billing::Provisioned { read, write },
            ..Default::default()
        };
        let many = (0..51).map(|number| (number.to_string(), String::new())).collect();
        for table in [
            billed(0, 1),
            billed(1, 0),
            tagged("", "x"),
            tagged("aws:team", "x"),
            tagged(&"k".repeat(129), "x"),
            tagged("team", &"v".repeat(257)),
            TableOptions { tags: many, ..Default::default() },
        ] {
            let settings = Settings { table: table.clone(), ..Default::default() };
            let error = settings.validate().expect_err(&format!("{table:?}"));
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().starts_with("`table."), "{error}");
        }
        let settings = Settings { table: tagged(&"k".repeat(128), ""), ..Default::default() };
        settings.validate().unwrap();
    }
}
