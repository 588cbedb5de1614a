//! Everything that can be observed of a worker, as one typed stream.
//!
//! Logs, metrics, the commands' messages and the tests all read the same events. Emitting never
//! blocks and never fails.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::FailedCall;
use crate::position::{Checkpoint, Position};
use crate::record::{LeaseKey, ShardId, Timestamp, WorkerId};

/// Something that happened to a worker. Past tense; a healthy hour has few of them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The stream exists but is not ready; the worker waits.
    WaitingForStream {
        /// What the service said.
        reason: String,
    },
    /// The worker is ready: the table exists, the shards have leases, the first scan is done.
    Started {
        /// Leases in the table.
        leases: usize,
    },
    /// The initial position of a stream that was never read is a time later than the service's: the
    /// clock that it was computed from is ahead, or it is wrong. Reading starts with what arrives now.
    InitialPositionReplaced {
        /// The stream.
        stream: String,
        /// The time that was asked for.
        requested: Timestamp,
        /// The service's present time, at which reading starts instead.
        used: Timestamp,
    },
    /// A lease row that said that its shard starts at a time later than the service's was rewritten: the
    /// shard starts with its oldest record.
    LeaseStartReplaced {
        /// The shard.
        shard: LeaseKey,
        /// The time that was stored.
        stored: Timestamp,
    },
    /// A lease row was made.
    LeaseCreated {
        /// The shard.
        shard: LeaseKey,
        /// Where it starts.
        checkpoint: Checkpoint,
    },
    /// This worker became the owner of a lease.
    LeaseTaken {
        /// The shard.
        shard: LeaseKey,
        /// Who had it before.
        from: Option<WorkerId>,
        /// Why it was taken.
        reason: TakeReason,
        /// Where it continues.
        checkpoint: Checkpoint,
    },
    /// This worker asked another one for a lease; it is taken when the other has let go.
    HandoffRequested {
        /// The shard.
        shard: LeaseKey,
        /// Who has it.
        from: WorkerId,
    },
    /// A durable write by this worker, with the checkpoint that is now stored.
    LeaseRenewed {
        /// The shard.
        shard: LeaseKey,
        /// What the row now says.
        checkpoint: Checkpoint,
        /// Whether this write moved the checkpoint.
        advanced: bool,
    },
    /// This worker stopped a shard because it no longer owns it, or cannot prove that it does.
    LeaseLost {
        /// The shard.
        shard: LeaseKey,
        /// Who has it now, if known. `None`: the lease could not be renewed in time.
        to: Option<WorkerId>,
    },
    /// This worker let a shard go in good order.
    LeaseReleased {
        /// The shard.
        shard: LeaseKey,
        /// What is stored.
        checkpoint: Checkpoint,
    },
    /// A finished lease was removed.
    LeaseDeleted {
        /// The shard.
        shard: LeaseKey,
    },
    /// A shard is being read and processed by this worker.
    ShardStarted {
        /// The shard.
        shard: LeaseKey,
        /// Where it starts.
        checkpoint: Checkpoint,
    },
    /// A shard is finished: everything acknowledged, `SHARD_END` stored.
    ShardEnded {
        /// The shard.
        shard: LeaseKey,
        /// The shards that continue it.
        children: Vec<ShardId>,
    },
    /// One of several streams does not exist any more; its shards are let go, its leases stay.
    StreamDeleted {
        /// The service's words, with the stream.
        error: String,
    },
    /// The worker holds nothing, because others hold all leases.
    StandingBy {
        /// Leases that could be held at all.
        leases: usize,
        /// Who holds them.
        owners: Vec<WorkerId>,
    },
    /// A processor returned an error or panicked; the batch is tried again.
    ProcessorFailed {
        /// The shard.
        shard: LeaseKey,
        /// How often these records have failed so far. Starts at 1 again for a part of a batch that was
        /// bisected.
        attempts: u32,
        /// The error down to its first cause, or the message of the panic.
        error: String,
        /// Time until the next attempt.
        retry_in: Duration,
    },
    /// A callback of a processor takes long and sends no heartbeat. It is waited for.
    ProcessorSlow {
        /// The shard.
        shard: LeaseKey,
        /// The callback.
        callback: &'static str,
        /// How long it has been running, its heartbeats included.
        running: Duration,
    },
    /// A record that the processor rejected, or that kept failing, was stored as a dead letter and counts
    /// as acknowledged.
    DeadLettered {
        /// The shard.
        shard: LeaseKey,
        /// The record.
        position: Position,
        /// How often this record alone was delivered and failed; 0 if the processor rejected it.
        attempts: u32,
        /// The error with which it was rejected, or its last one.
        error: String,
    },
    /// Many records of a shard were stored as dead letters, and none was processed between them. That
    /// looks like an outage of something that the processor needs, rather than like bad records. Emitted
    /// at 10 records and whenever their number has doubled.
    ManyDeadLetters {
        /// The shard.
        shard: LeaseKey,
        /// How many so far.
        records: u32,
        /// The error of the last one.
        error: String,
    },
    /// A record could not be stored as a dead letter; it is tried again, and the shard waits for it.
    DeadLetterFailed {
        /// The shard.
        shard: LeaseKey,
        /// The record.
        position: Position,
        /// The error of the dead-letter sink.
        error: String,
        /// Time until the next attempt.
        retry_in: Duration,
    },
    /// A reader that did not answer, or panicked, was replaced by a new one.
    ReaderRestarted {
        /// The shard.
        shard: LeaseKey,
        /// What was wrong with it.
        cause: String,
    },
    /// This worker gives a shard back, because it makes no progress here.
    ShardReleased {
        /// The shard.
        shard: LeaseKey,
        /// Why.
        reason: String,
    },
    /// Records aged out of the stream before they were read.
    GapDetected {
        /// The shard.
        shard: LeaseKey,
        /// What was processed before.
        from: Checkpoint,
        /// The oldest record that is left; `None` when none is.
        to: Option<Position>,
    },
    /// Records of aggregates belong to other shards. At most one such event a minute and shard.
    MisroutedRecords {
        /// The shard they were read from.
        shard: LeaseKey,
        /// How many since the last such event.
        records: u64,
        /// Whether they were dropped, as the settings say, or delivered.
        dropped: bool,
    },
    /// Kinesis records say that they are aggregates, and cannot be unpacked; they are delivered as
    /// they were read. At most one such event a minute and shard.
    CorruptAggregate {
        /// The shard.
        shard: LeaseKey,
        /// The newest of them.
        position: Position,
        /// What is wrong with it.
        error: String,
        /// How many since the last such event.
        records: u64,
    },
    /// Reading a shard failed; it is tried again.
    ReadFailed {
        /// The shard.
        shard: LeaseKey,
        /// The call and the service's words.
        error: String,
        /// Whether it may pass without anyone changing anything.
        transient: bool,
        /// The call to AWS that failed, in parts, if it was one.
        call: Option<Box<FailedCall>>,
    },
    /// The records of a shard are fetched in another way from now on.
    RetrievalChanged {
        /// The shard.
        shard: LeaseKey,
        /// How they are fetched now.
        to: Fetching,
        /// Why.
        reason: String,
    },
    /// A consumer for enhanced fan-out was registered, at the start or because it had been deleted.
    ConsumerRegistered {
        /// Its ARN.
        consumer: String,
    },
    /// A call of the control plane failed; it is tried again.
    CoordinationFailed {
        /// What was being done.
        operation: &'static str,
        /// The call and the service's words.
        error: String,
        /// Whether it may pass without anyone changing anything.
        transient: bool,
        /// The call to AWS that failed, in parts, if it was one.
        call: Option<Box<FailedCall>>,
    },
    /// The worker has stopped.
    Stopped,
}

/// Why a lease was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TakeReason {
    /// Nobody owned it.
    Unowned,
    /// Its owner has not renewed it for a lease duration.
    Expired,
    /// Its owner has more than its share and this worker has less, and could not be asked, or did
    /// not answer.
    Balance,
    /// Its owner handed it over on request.
    Handoff,
    /// It was this worker's own, from before a restart with the same id.
    Own,
}

impl fmt::Display for TakeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unowned => "nobody owned it",
            Self::Expired => "its owner did not renew it in time",
            Self::Balance => "this worker had less than its share",
            Self::Handoff => "its owner handed it over",
            Self::Own => "it was this worker's before a restart",
        })
    }
}

/// Who receives the events.
pub(crate) type Sink = Arc<dyn Fn(&Event) + Send + Sync>;

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    worker: WorkerId,
    sink: Option<Sink>,
}

impl Events {
    pub(crate) fn new(worker: WorkerId, sink: Option<Sink>) -> Self {
        Self { worker, sink }
    }

    /// Logs the event and hands it to the sink.
    pub(crate) fn emit(&self, event: &Event) {
        let worker = self.worker.as_str();
        match event.severity() {
            Severity::Warning => tracing::warn!(worker, "{event}"),
            Severity::Info => tracing::info!(worker, "{event}"),
            Severity::Routine => tracing::debug!(worker, "{event}"),
        }
        if let Some(sink) = &self.sink {
            sink(event);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// How much an event matters to whoever runs a worker; see [`Event::severity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Happens all the time in a healthy worker. Logged as `DEBUG`.
    Routine,
    /// Tells of a change, such as a lease that was taken. Logged as `INFO`.
    Info,
    /// Somebody should look at it. Logged as `WARN`.
    Warning,
}

/// How the records of a shard are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetching {
    /// By asking for them (`GetRecords`).
    Polling,
    /// By being sent them (`SubscribeToShard`).
    FanOut,
}

impl fmt::Display for Fetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Polling => "polling",
            Self::FanOut => "fan-out",
        })
    }
}

impl Event {
    /// Returns how much the event matters, so that a program can show events that it does not know by
    /// name. The worker's own log uses the same levels.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::ProcessorFailed { .. }
            | Self::InitialPositionReplaced { .. }
            | Self::LeaseStartReplaced { .. }
            | Self::StreamDeleted { .. }
            | Self::ProcessorSlow { .. }
            | Self::DeadLettered { .. }
            | Self::ManyDeadLetters { .. }
            | Self::DeadLetterFailed { .. }
            | Self::ReaderRestarted { .. }
            | Self::ShardReleased { .. }
            | Self::CorruptAggregate { .. }
            | Self::GapDetected { .. } => Severity::Warning,
            Self::ReadFailed { transient, .. } | Self::CoordinationFailed { transient, .. } => {
                if *transient {
                    Severity::Routine
                } else {
                    Severity::Warning
                }
            }
            Self::LeaseRenewed { .. } => Severity::Routine,
            Self::WaitingForStream { .. }
            | Self::Started { .. }
            | Self::LeaseCreated { .. }
            | Self::LeaseTaken { .. }
            | Self::HandoffRequested { .. }
            | Self::LeaseLost { .. }
            | Self::MisroutedRecords { .. }
            | Self::LeaseReleased { .. }
            | Self::LeaseDeleted { .. }
            | Self::ShardStarted { .. }
            | Self::ShardEnded { .. }
            | Self::StandingBy { .. }
            | Self::RetrievalChanged { .. }
            | Self::ConsumerRegistered { .. }
            | Self::Stopped => Severity::Info,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaitingForStream { reason } => write!(f, "waiting for the stream: {reason}"),
            Self::StreamDeleted { error } => write!(f, "a stream does not exist any more: {error}"),
            Self::InitialPositionReplaced { stream, requested, used } => {
                position_replaced(f, stream, *requested, *used)
            }
            Self::LeaseStartReplaced { shard, stored } => start_replaced(f, shard, *stored),
            Self::Started { leases } => write!(f, "started; the table has {leases} leases"),
            Self::LeaseCreated { shard, checkpoint } => {
                write!(f, "created lease {shard} at {checkpoint}")
            }
            Self::LeaseTaken { shard, from, reason, checkpoint } => {
                taken(f, shard, from.as_ref(), *reason, checkpoint)
            }
            Self::HandoffRequested { shard, from } => write!(f, "asked {from} for lease {shard}"),
            Self::LeaseRenewed { shard, checkpoint, .. } => {
                write!(f, "renewed lease {shard} at {checkpoint}")
            }
            Self::LeaseLost { shard, to } => lost(f, shard, to.as_ref()),
            Self::LeaseReleased { shard, checkpoint } => {
                write!(f, "released lease {shard} at {checkpoint}")
            }
            Self::LeaseDeleted { shard } => write!(f, "deleted finished lease {shard}"),
            Self::ShardStarted { shard, checkpoint } => {
                write!(f, "started shard {shard} at {checkpoint}")
            }
            Self::ShardEnded { shard, children } => {
                write!(f, "finished shard {shard}; it continues in {children:?}")
            }
            Self::StandingBy { leases, owners } => {
                write!(f, "standing by: {leases} of {leases} leases are held by {owners:?}")
            }
            Self::ProcessorFailed { shard, attempts, error, retry_in } => {
                processor_failed(f, shard, *attempts, *retry_in, error)
            }
            Self::ProcessorSlow { shard, callback, running } => {
                write!(f, "processor of {shard} is slow: `{callback}` takes {running:.0?} by now")
            }
            Self::DeadLettered { shard, position, attempts, error } => {
                dead_lettered(f, shard, position, *attempts, error)
            }
            Self::ManyDeadLetters { shard, records, error } => {
                many_dead_letters(f, shard, *records, error)
            }
            Self::DeadLetterFailed { shard, position, error, retry_in } => {
                dead_letter_failed(f, shard, position, *retry_in, error)
            }
            Self::ReaderRestarted { shard, cause } => {
                write!(f, "replaced the reader of {shard} by a new one: {cause}")
            }
            Self::ShardReleased { shard, reason } => {
                write!(f, "released {shard}, which makes no progress here: {reason}")
            }
            Self::GapDetected { shard, from, to } => aged_out(f, shard, from, to.as_ref()),
            Self::MisroutedRecords { shard, records, dropped } => {
                misrouted(f, shard, *records, *dropped)
            }
            Self::CorruptAggregate { shard, position, error, records } => {
                corrupt(f, shard, *records, position, error)
            }
            Self::ReadFailed { shard, error, .. } => write!(f, "reading {shard} failed: {error}"),
            Self::RetrievalChanged { shard, to, reason } => {
                write!(f, "reading {shard} by {to} now: {reason}")
            }
            Self::ConsumerRegistered { consumer } => write!(f, "registered {consumer}"),
            Self::CoordinationFailed { operation, error, .. } => {
                write!(f, "{operation} failed: {error}")
            }
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

fn position_replaced(
    f: &mut fmt::Formatter<'_>,
    stream: &str,
    requested: Timestamp,
    used: Timestamp,
) -> fmt::Result {
    write!(
        f,
        "the initial position of `{stream}`, {requested}, is later than the service's clock; "
    )?;
    write!(f, "reading starts at {used} instead")
}

fn start_replaced(f: &mut fmt::Formatter<'_>, shard: &LeaseKey, stored: Timestamp) -> fmt::Result {
    write!(
        f,
        "the start of {shard} that was stored, {stored}, is later than the service's clock; "
    )?;
    f.write_str("it starts with its oldest record instead")
}

fn taken(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    from: Option<&WorkerId>,
    reason: TakeReason,
    checkpoint: &Checkpoint,
) -> fmt::Result {
    let from = from.map_or("nobody", WorkerId::as_str);
    write!(f, "took lease {shard} from {from} at {checkpoint}: {reason}")
}

fn processor_failed(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    attempts: u32,
    retry_in: Duration,
    error: &str,
) -> fmt::Result {
    write!(f, "processor failed on {shard} (attempt {attempts}), next in {retry_in:?}: {error}")
}

fn dead_letter_failed(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    position: &Position,
    retry_in: Duration,
    error: &str,
) -> fmt::Result {
    let what = format!("storing record {position} of {shard} as a dead letter");
    write!(f, "{what} failed, next in {retry_in:?}: {error}")
}

fn lost(f: &mut fmt::Formatter<'_>, shard: &LeaseKey, to: Option<&WorkerId>) -> fmt::Result {
    match to {
        Some(to) => write!(f, "lost lease {shard} to {to}"),
        None => write!(f, "lost lease {shard}: it could not be renewed in time"),
    }
}

fn dead_lettered(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    position: &Position,
    attempts: u32,
    error: &str,
) -> fmt::Result {
    write!(f, "stored record {position} of {shard} as a dead letter; ")?;
    match attempts {
        0 => write!(f, "the processor rejected it: {error}"),
        attempts => write!(f, "it failed {attempts} times: {error}"),
    }
}

fn many_dead_letters(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    records: u32,
    error: &str,
) -> fmt::Result {
    write!(f, "stored {records} records of {shard} in a row as dead letters and processed none; ")?;
    write!(f, "if this is an outage, stop the worker and process them again: {error}")
}

fn misrouted(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    records: u64,
    dropped: bool,
) -> fmt::Result {
    let what = if dropped { "dropped" } else { "delivered" };
    write!(f, "{what} {records} records of aggregates in {shard} that belong to other shards")
}

fn corrupt(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    records: u64,
    position: &Position,
    error: &str,
) -> fmt::Result {
    write!(
        f,
        "{records} aggregates in {shard} cannot be unpacked and were delivered as they are; "
    )?;
    write!(f, "the last is {position}: {error}")
}

fn aged_out(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    from: &Checkpoint,
    to: Option<&Position>,
) -> fmt::Result {
    write!(f, "records of {shard} expired before they were read: ")?;
    match to {
        Some(to) => write!(f, "those between {from} and {to}"),
        None => write!(f, "all after {from}"),
    }
}
