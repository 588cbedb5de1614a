//! The settings of a worker: plain data with defaults and bounds.
//!
//! Components (clients, stores, clocks) are passed to the builder instead.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::identity::Other;
use crate::position::InitialPosition;

/// The memory that the largest reply needs while it is parsed.
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
    /// The time after which a lease expires if it is not renewed. Default 10 s, from 1 s to 5 min. Other
    /// workers take the shards of a dead worker after this time; renewals are written every third of it.
    /// All workers of an application must use the same value.
    pub lease_duration: Duration,
    /// Where to start in a stream that the application has never read. Default `Latest`. Has no
    /// effect once leases exist.
    pub initial_position: InitialPosition,
    /// What a rebalance equalizes across workers. Default [`Balance::Count`].
    pub balance: Balance,
    /// The maximum number of leases that this worker holds. Default no limit. Workers do not know each
    /// other's limits: after three lease durations the others take what this worker does not take.
    pub max_leases: usize,
    /// The time between reads of a shard at its tip. Default 1 s, from 200 ms (the service allows five
    /// reads per second and shard, shared by all applications) to 1 min.
    pub poll_interval: Duration,
    /// How records are fetched. Default [`Retrieval::Polling`].
    pub retrieval: Retrieval,
    /// The maximum rate of reads per shard. Default 5, from 0.1. The service allows five per second and
    /// shard for all applications together, so `n` applications on a stream should use 5 / n each. An
    /// application that is throttled anyway slows down until it is not. A shard with a backlog is read at
    /// this rate, a shard at its tip every `poll_interval`.
    pub reads_per_second: f64,
    /// The memory budget for records and replies of all shards of this worker together, in bytes.
    /// Default 256 MiB, at least 32 MiB, which is what a reply of 10 MiB takes while it is parsed.
    ///
    /// Before a read, the worker reserves the most memory that the reply may take. After the read, the
    /// records count, with aggregates unpacked and a fixed overhead per record. A reply's memory is freed
    /// when all its records are acknowledged and the batches that hold them are dropped. Clones that a
    /// processor makes do not count. Shards read in turn. A shard that has waited for ten seconds with
    /// nothing to process may exceed the budget, one shard at a time: by one reply, or, if its processor
    /// acknowledges after it returns, by up to as much again.
    pub memory_budget: u64,
    /// When checkpoints are written. Default [`CheckpointPolicy::OnRenewal`].
    pub checkpoints: CheckpointPolicy,
    /// What happens when a processor keeps failing. Default [`FailurePolicy::Retry`].
    pub failures: FailurePolicy,
    /// The time in one callback, or since its last [`Heartbeat`](crate::Heartbeat), after which an event
    /// reports that the processor is slow, once per callback. Default 30 s, more than 0. `Duration::MAX`
    /// disables it.
    pub slow_after: Duration,
    /// The maximum time in one callback, or since its last [`Heartbeat`](crate::Heartbeat). Then the
    /// callback's future is dropped and the shard is released. Default 10 min, more than 0.
    /// `Duration::MAX` disables it. A shard whose window is full, or for whose memory other shards wait,
    /// is also released when for this time none of its records is acknowledged and no heartbeat comes.
    pub callback_deadline: Duration,
    /// What happens when records aged out of the stream before they were read. Default
    /// [`GapPolicy::Resume`].
    pub on_gap: GapPolicy,
    /// What happens to misrouted records of an aggregate. Default [`MisroutedPolicy::Deliver`].
    pub on_misrouted: MisroutedPolicy,
    /// The maximum number of records of one shard in flight before reading stops. Default 100,000, at
    /// least 1.
    pub max_unacknowledged: usize,
    /// The interval of the audit, which lists the shards of a stream to find holes. The workers take
    /// turns, so that together they list about once per interval; a hole in the leases triggers a listing
    /// immediately. Default 60 s, from 1 s to 1 h.
    pub audit_interval: Duration,
    /// How long `start` waits out transient failures: a service that is unreachable or throttles, a
    /// stream or table that is being created. Then it returns the last error. Default 5 min, more than
    /// 0. `Duration::MAX` waits until the future is dropped.
    pub start_timeout: Duration,
    /// What `start` does when the leases belong to another stream, for instance after the stream was
    /// re-created. Default `Refuse`.
    pub stream_recreated: StreamRecreated,
    /// Whether and how the lease table is created. Default: on demand, if it does not exist.
    pub table: TableOptions,
    /// Where the control plane runs. Default [`ControlPlane::OwnThread`].
    pub control_plane: ControlPlane,
    /// The seed of all jitter. Default: random, so that workers differ.
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
/// Enhanced fan-out gives each stream consumer a throughput of its own, 2 MB per second and shard, about
/// 70 ms after a record was put. AWS charges for it per consumer, shard and hour, and per byte. It needs
/// these actions in addition to those of polling:
///
/// | action | when |
/// |---|---|
/// | `DescribeStreamConsumer`, `RegisterStreamConsumer` | unless the consumer's ARN is given |
/// | `SubscribeToShard`, on the consumer | always |
///
/// # Example: enhanced fan-out
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
    /// Enhanced fan-out (`SubscribeToShard`).
    FanOut {
        /// The stream consumer that subscribes.
        consumer: StreamConsumer,
    },
    /// Polling, and enhanced fan-out for a shard that keeps a backlog although its processor is fast
    /// enough, or that is throttled because other applications read it too. Each switch emits an
    /// [`Event::RetrievalChanged`](crate::Event::RetrievalChanged) with the reason. The consumer is
    /// registered when it is first needed.
    Auto {
        /// The stream consumer that subscribes.
        consumer: StreamConsumer,
    },
}

impl Retrieval {
    /// Selects enhanced fan-out with the consumer that is named after the application.
    #[must_use]
    pub fn fan_out() -> Self {
        Self::FanOut { consumer: StreamConsumer::Application }
    }

    /// Selects polling, and enhanced fan-out with the consumer that is named after the application.
    #[must_use]
    pub fn auto() -> Self {
        Self::Auto { consumer: StreamConsumer::Application }
    }

    /// Returns the stream consumer that subscribes, or `None` for polling.
    #[must_use]
    pub fn consumer(&self) -> Option<&StreamConsumer> {
        match self {
            Self::Polling => None,
            Self::FanOut { consumer } | Self::Auto { consumer } => Some(consumer),
        }
    }

    /// Replaces `Application` by the name of the application.
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
                let what = "but a name must have 1 to 128 letters, digits, `_`, `.` and `-`";
                format!("the consumer of `retrieval` is named `{name}`, {what}")
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

/// A registered stream consumer of enhanced fan-out. All workers of an application share one consumer.
/// Two applications must not share one: of two subscriptions of a consumer to a shard, the later ends the
/// earlier. The library never deregisters a consumer, and AWS charges for it until you do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StreamConsumer {
    /// The consumer that is named after the application; registered if it is missing.
    #[default]
    Application,
    /// The consumer with this name; registered if it is missing.
    Named(String),
    /// The consumer with this ARN, which must exist. For a worker of one stream only.
    Arn(String),
}

fn is_consumer_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (1..=128).contains(&name.len()) && name.chars().all(allowed)
}

fn is_consumer_arn(arn: &str) -> bool {
    arn.starts_with("arn:") && arn.contains(":stream/") && arn.contains("/consumer/")
}

/// When the watermark is written to the lease row as the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CheckpointPolicy {
    /// With each renewal, every third of the lease duration. Needs no extra writes.
    #[default]
    OnRenewal,
    /// At most this long after the acknowledgement; at least 10 ms. Renewals carry the checkpoint too, so
    /// a value above a third of the lease duration is the same as [`OnRenewal`](Self::OnRenewal).
    Every(Duration),
    /// As soon as a batch is acknowledged: one write per batch, fewer repeated records after a crash.
    EveryBatch,
    /// When the processor requests it (see [`Checkpointer`](crate::Checkpointer)), and when the shard
    /// ends or is released.
    Manual,
}

/// What happens to records that keep failing: an error, a panic, or a dropped token.
///
/// Each failure emits [`Event::ProcessorFailed`](crate::Event::ProcessorFailed). Retries use exponential
/// backoff: the delay starts at 50 to 100 ms and doubles up to 30 s. No record is skipped silently.
///
/// # Poison records
/// The policy is for failures that may be transient: a dependency does not answer, or throttles. Only the
/// processor knows which record can never be processed. It rejects such a record with
/// [`Ack::reject`](crate::Ack::reject), or by returning a [`PoisonRecord`](crate::PoisonRecord).
/// Configure a sink for rejected records with
/// [`WorkerBuilder::dead_letter`](crate::WorkerBuilder::dead_letter). Under every policy, including
/// [`Retry`](Self::Retry), a rejected record is stored there without another attempt, and counts as
/// acknowledged as soon as it is stored. While storing it fails, the shard waits; if the worker stops
/// in that time, the next owner gets the record. Without a sink, a rejection is a failure like any
/// other, and its error names the missing sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FailurePolicy {
    /// Retries indefinitely. The right policy together with rejections: poison records are stored as
    /// dead letters, and an outage is waited out.
    #[default]
    Retry,
    /// Bisects a batch after `attempts` failures to find the failing record, stores that record as a
    /// [dead letter](crate::dead_letter::DeadLetter), acknowledges it, and continues. Each half gets one
    /// attempt before it is bisected again, a single record gets `attempts`.
    ///
    /// **This policy cannot distinguish a poison record from an outage.** While a database that the
    /// processor needs is down, every record fails, and each valid record becomes a dead letter after a
    /// few seconds. [`Event::ManyDeadLetters`](crate::Event::ManyDeadLetters) warns when that seems to
    /// happen, but does not stop it. Use this policy only where failures depend on the record alone, as
    /// in a pure transformation; otherwise reject poison records and use [`Retry`](Self::Retry).
    ///
    /// A processor that fails without a batch (in `initialize`) is retried indefinitely.
    DeadLetter {
        /// How often a batch, and then a single record, may fail; at least 1. Failures of the parts in
        /// between, while the batch is bisected, do not count.
        attempts: u32,
    },
    /// Releases the shard after `attempts` failures, so that another worker can take it.
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
    /// Returns the number of failures of a batch after which it is no longer simply retried.
    pub(crate) fn attempts(self) -> u32 {
        match self {
            Self::Retry => u32::MAX,
            Self::DeadLetter { attempts }
            | Self::ReleaseShard { attempts }
            | Self::Stop { attempts } => attempts,
        }
    }
}

/// What happens when records aged out of the stream before they were read. In any case the worker emits
/// [`Event::GapDetected`](crate::Event::GapDetected) and calls
/// [`RecordProcessor::gap`](crate::RecordProcessor::gap).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GapPolicy {
    /// Continues with the oldest record that is left.
    #[default]
    Resume,
    /// Delivers nothing, and stops the worker with an error of kind `Gap`.
    Stop,
}

/// What happens to misrouted records: records of an aggregate whose hash key belongs to another shard.
/// In any case they are counted ([`Status::misrouted_records`](crate::Status::misrouted_records)) and
/// reported at intervals ([`Event::MisroutedRecords`](crate::Event::MisroutedRecords)).
///
/// A producer that does not know of a resharding yet writes such records, and the KPL then sends each of
/// them again. A producer that does not group records by shard writes them all the time and sends
/// nothing again. A consumer cannot distinguish the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MisroutedPolicy {
    /// Delivers them: some are delivered twice after a resharding, none is lost.
    #[default]
    Deliver,
    /// Drops them, and only them. Correct if every producer is the KPL. (The Java KCL drops the whole
    /// aggregate, including records that no producer sends again.)
    Drop,
}

/// Whether the lease table may be created, and with which options.
///
/// An existing table is used unchanged; if `DescribeTable` shows other billing or no protection from
/// deletion, that is logged once. A worker needs these actions on the table:
///
/// | action | when |
/// |---|---|
/// | `Scan`, `GetItem`, `PutItem`, `UpdateItem`, `DeleteItem` | always |
/// | `DescribeTable` | unless `create` is `Never` |
/// | `CreateTable` | to create the table |
/// | `TagResource` | to create it with tags |
/// | `UpdateContinuousBackups` | to create it with point-in-time recovery |
///
/// # Example: a protected table with tags
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
    /// Whether the table may be created. Default `IfMissing`.
    pub create: CreateTable,
    /// The billing mode of a new table. Default `OnDemand`.
    pub billing: Billing,
    /// Whether a new table can be restored to any second of the last 35 days. Default no.
    pub point_in_time_recovery: bool,
    /// Whether a new table is protected from deletion. Default no.
    pub deletion_protection: bool,
    /// The tags of a new table, at most 50. Default none. Keys have 1 to 128 characters and do not
    /// begin with `aws:`, values have at most 256.
    pub tags: BTreeMap<String, String>,
}

/// What a rebalance equalizes across workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Balance {
    /// The number of readable shards, which differs by at most one.
    #[default]
    Count,
    /// The measured bytes per second: leases move when one worker carries more than a tenth (and
    /// 64 KiB/s) above the average. Shards without load are not moved.
    Throughput,
}

/// Whether a worker may create its lease table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CreateTable {
    /// Creates it if it does not exist.
    #[default]
    IfMissing,
    /// Never creates it. Permissions to read and write items are then enough.
    Never,
}

/// What a worker does at its start when the stream was re-created, so that the leases belong to the old
/// one.
///
/// A worker that runs while the stream is re-created detects it soon after its next audit at the latest,
/// and ends with an error of kind [`Missing`](crate::ErrorKind::Missing); a worker of several streams
/// continues with the others. Once the new stream has a lease, workers remove rows of the old stream,
/// which a worker that has not detected the change may still write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StreamRecreated {
    /// `start` returns an error that names both streams; nothing is written.
    #[default]
    Refuse,
    /// Starts over: the leases of the new stream replace the old ones, and the new stream is read from
    /// its beginning, regardless of [`Settings::initial_position`].
    Adopt,
}

impl StreamRecreated {
    /// Returns whether a worker that has started removes the leases of such a stream. Those of a former
    /// one are always removed, because the start has already decided for the new stream.
    pub(crate) fn removes(self, other: Other) -> bool {
        match other {
            Other::Former => true,
            Other::Unrelated => self == Self::Adopt,
            Other::Newer => false,
        }
    }
}

/// The billing mode of the lease table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Billing {
    /// Per request, without capacity planning.
    #[default]
    OnDemand,
    /// Provisioned capacity, each at least 1. A worker reads the table with at most five read units per
    /// second and writes each lease three times per lease duration.
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
    /// On a separate thread, so that a processor that blocks every thread of your runtime cannot delay a
    /// renewal.
    ///
    /// The thread has its own runtime with its own time. Therefore `start` fails on paused time
    /// (`tokio::time::pause`, `#[tokio::test(start_paused = true)]`). Do not pause time later either.
    #[default]
    OwnThread,
    /// On the runtime that `start` is called on. For tests on paused time, and for simulation.
    Inline,
}

impl Settings {
    /// Checks the bounds of all settings.
    ///
    /// # Errors
    /// Kind [`ErrorKind::Config`]; the message names the field and its bounds.
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
            return config("`checkpoints: Every` must be at least 10ms; use `EveryBatch` instead");
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
