//! The events of a worker: one typed stream of everything that can be observed.
//!
//! Logs, metrics, the commands' messages and the tests all read the same events. Emitting never
//! fails, and blocks only as long as the sink does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::FailedCall;
use crate::position::{Checkpoint, Position};
use crate::record::{LeaseKey, ShardId, Timestamp, WorkerId};

/// Something that happened to a worker. Names are in the past tense; a healthy worker emits few.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The stream exists but is not ready; the worker waits.
    WaitingForStream {
        /// The service's message.
        reason: String,
    },
    /// The worker is ready: the table exists, the shards have leases, the first scan is done.
    Started {
        /// The number of leases in the table.
        leases: usize,
    },
    /// The initial position of a stream that was never read is later than the service's clock, because
    /// the clock that it was computed from is ahead, or because it is wrong. Reading starts with what
    /// arrives now.
    InitialPositionReplaced {
        /// The stream.
        stream: String,
        /// The requested time.
        requested: Timestamp,
        /// The service's present time, at which reading starts instead.
        used: Timestamp,
    },
    /// A lease row whose start time was later than the service's clock was rewritten: the shard starts
    /// with its oldest record.
    LeaseStartReplaced {
        /// The shard.
        shard: LeaseKey,
        /// The start time that was stored.
        stored: Timestamp,
    },
    /// A lease row was created.
    LeaseCreated {
        /// The shard.
        shard: LeaseKey,
        /// The position at which the shard starts.
        checkpoint: Checkpoint,
    },
    /// This worker became the owner of a lease.
    LeaseTaken {
        /// The shard.
        shard: LeaseKey,
        /// The previous owner.
        from: Option<WorkerId>,
        /// Why the lease was taken.
        reason: TakeReason,
        /// The position after which processing continues.
        checkpoint: Checkpoint,
    },
    /// This worker requested a handoff; it takes the lease when the owner has handed it off.
    HandoffRequested {
        /// The shard.
        shard: LeaseKey,
        /// The owner.
        from: WorkerId,
    },
    /// This worker renewed a lease or stored a checkpoint.
    LeaseRenewed {
        /// The shard.
        shard: LeaseKey,
        /// The checkpoint in the row after the write.
        checkpoint: Checkpoint,
        /// Whether this write moved the checkpoint.
        advanced: bool,
    },
    /// This worker stopped a shard because it no longer owns it, or cannot prove that it does.
    LeaseLost {
        /// The shard.
        shard: LeaseKey,
        /// The new owner, if known. `None`: the lease could not be renewed in time.
        to: Option<WorkerId>,
    },
    /// This worker released or handed off a lease.
    LeaseReleased {
        /// The shard.
        shard: LeaseKey,
        /// The stored checkpoint.
        checkpoint: Checkpoint,
    },
    /// A finished lease was removed.
    LeaseDeleted {
        /// The shard.
        shard: LeaseKey,
    },
    /// This worker reads and processes a shard from now on.
    ShardStarted {
        /// The shard.
        shard: LeaseKey,
        /// The position at which it starts.
        checkpoint: Checkpoint,
    },
    /// A shard is finished: everything is acknowledged and `SHARD_END` is stored.
    ShardEnded {
        /// The shard.
        shard: LeaseKey,
        /// Its child shards.
        children: Vec<ShardId>,
    },
    /// One of several streams was deleted. Its shards are stopped, its leases stay in the table.
    StreamDeleted {
        /// The service's message, with the stream.
        error: String,
    },
    /// The worker holds no lease, because other workers hold all of them.
    StandingBy {
        /// The number of leases that could be held.
        leases: usize,
        /// Their owners.
        owners: Vec<WorkerId>,
    },
    /// A processor returned an error or panicked; the batch is retried.
    ProcessorFailed {
        /// The shard.
        shard: LeaseKey,
        /// How often these records have failed so far. Restarts at 1 for each part of a bisected batch.
        attempts: u32,
        /// The error down to its first cause, or the message of the panic.
        error: String,
        /// The time until the next attempt.
        retry_in: Duration,
    },
    /// A processor callback is slow and sends no heartbeat; the worker keeps waiting for it.
    ProcessorSlow {
        /// The shard.
        shard: LeaseKey,
        /// The callback.
        callback: &'static str,
        /// How long it has been running, including the time before its last heartbeat.
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
    /// Many records of a shard were stored as dead letters, and none was processed between them. This
    /// suggests an outage of something that the processor needs rather than poison records. Emitted at
    /// 10 records and each time the number has doubled.
    ManyDeadLetters {
        /// The shard.
        shard: LeaseKey,
        /// The number of records so far.
        records: u32,
        /// The error of the last one.
        error: String,
    },
    /// Storing a dead letter failed; it is retried, and the shard waits for it.
    DeadLetterFailed {
        /// The shard.
        shard: LeaseKey,
        /// The record.
        position: Position,
        /// The error of the dead-letter sink.
        error: String,
        /// The time until the next attempt.
        retry_in: Duration,
    },
    /// A reader that did not answer, or panicked, was replaced by a new one.
    ReaderRestarted {
        /// The shard.
        shard: LeaseKey,
        /// The failure of the old reader.
        cause: String,
    },
    /// This worker releases a shard because it makes no progress here.
    ShardReleased {
        /// The shard.
        shard: LeaseKey,
        /// Why there is no progress.
        reason: String,
    },
    /// Records aged out of the stream before they were read.
    GapDetected {
        /// The shard.
        shard: LeaseKey,
        /// The checkpoint before the gap.
        from: Checkpoint,
        /// The oldest record that is left; `None` when none is.
        to: Option<Position>,
    },
    /// Aggregates contained misrouted records. Emitted at most once per minute and shard.
    MisroutedRecords {
        /// The shard that they were read from.
        shard: LeaseKey,
        /// The number of records since the last such event.
        records: u64,
        /// Whether the records were dropped, by [`MisroutedPolicy`](crate::MisroutedPolicy), or delivered.
        dropped: bool,
    },
    /// Kinesis records that are marked as aggregates cannot be unpacked. They are delivered unchanged.
    /// Emitted at most once per minute and shard.
    CorruptAggregate {
        /// The shard.
        shard: LeaseKey,
        /// The newest of them.
        position: Position,
        /// Why it cannot be unpacked.
        error: String,
        /// The number of such records since the last such event.
        records: u64,
    },
    /// Reading a shard failed; the read is retried.
    ReadFailed {
        /// The shard.
        shard: LeaseKey,
        /// The call and the service's message.
        error: String,
        /// Whether a retry can succeed without intervention.
        transient: bool,
        /// The parts of the failed call to AWS, if the error is one.
        call: Option<Box<FailedCall>>,
    },
    /// A shard switched between polling and enhanced fan-out.
    RetrievalChanged {
        /// The shard.
        shard: LeaseKey,
        /// How its records are fetched from now on.
        to: Fetching,
        /// Why it switched.
        reason: String,
    },
    /// A stream consumer for enhanced fan-out was registered, at the start or because it had been deleted.
    ConsumerRegistered {
        /// Its ARN.
        consumer: String,
    },
    /// A call of the control plane failed; the call is retried.
    CoordinationFailed {
        /// The operation that needed the call.
        operation: &'static str,
        /// The call and the service's message.
        error: String,
        /// Whether a retry can succeed without intervention.
        transient: bool,
        /// The parts of the failed call to AWS, if the error is one.
        call: Option<Box<FailedCall>>,
    },
    /// The worker has stopped.
    Stopped,
}

/// Why a lease was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TakeReason {
    /// The lease had no owner.
    Unowned,
    /// The owner did not renew the lease for one lease duration.
    Expired,
    /// Takeover to rebalance: the owner has more than its share and this worker has less, and the owner
    /// does not know handoffs, or did not hand off before the deadline.
    Balance,
    /// The owner handed the lease off.
    Handoff,
    /// This worker ID already owned the lease before a restart.
    Own,
}

impl fmt::Display for TakeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unowned => "it had no owner",
            Self::Expired => "it expired",
            Self::Balance => "takeover, because this worker has less than its share",
            Self::Handoff => "the owner handed it off",
            Self::Own => "this worker owned it before a restart",
        })
    }
}

/// The callback that receives the events.
pub(crate) type Sink = Arc<dyn Fn(&Event) + Send + Sync>;

/// The sender of one worker's events, to the log and the sink. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    worker: WorkerId,
    sink: Option<Sink>,
}

impl Events {
    pub(crate) fn new(worker: WorkerId, sink: Option<Sink>) -> Self {
        Self { worker, sink }
    }

    /// Logs the event and calls the sink.
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

/// How much an event matters to an operator; see [`Event::severity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Frequent in a healthy worker. Logged as `DEBUG`.
    Routine,
    /// A change, such as a lease that was taken. Logged as `INFO`.
    Info,
    /// A problem that an operator should investigate. Logged as `WARN`.
    Warning,
}

/// How the records of a shard are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetching {
    /// Polling (`GetRecords`).
    Polling,
    /// Enhanced fan-out (`SubscribeToShard`).
    FanOut,
}

impl fmt::Display for Fetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Polling => "polling",
            Self::FanOut => "enhanced fan-out",
        })
    }
}

impl Event {
    /// Returns how much the event matters, so that a program can also show events that it does not match
    /// by name. The worker's own log uses the same levels.
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
            Self::StreamDeleted { error } => write!(f, "stream deleted: {error}"),
            Self::InitialPositionReplaced { stream, requested, used } => {
                position_replaced(f, stream, *requested, *used)
            }
            Self::LeaseStartReplaced { shard, stored } => start_replaced(f, shard, *stored),
            Self::Started { leases } => write!(f, "started; leases in the table: {leases}"),
            Self::LeaseCreated { shard, checkpoint } => {
                write!(f, "created lease {shard} at {checkpoint}")
            }
            Self::LeaseTaken { shard, from, reason, checkpoint } => {
                taken(f, shard, from.as_ref(), *reason, checkpoint)
            }
            Self::HandoffRequested { shard, from } => write!(f, "asked {from} to hand off {shard}"),
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
                write!(f, "finished shard {shard}; child shards: {children:?}")
            }
            Self::StandingBy { leases, owners } => {
                write!(f, "standing by: {leases} of {leases} leases are held by {owners:?}")
            }
            Self::ProcessorFailed { shard, attempts, error, retry_in } => {
                processor_failed(f, shard, *attempts, *retry_in, error)
            }
            Self::ProcessorSlow { shard, callback, running } => {
                write!(f, "processor of {shard} is slow: `{callback}` has run for {running:.0?}")
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
                write!(f, "replaced the reader of {shard}: {cause}")
            }
            Self::ShardReleased { shard, reason } => {
                write!(f, "released {shard} (no progress): {reason}")
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
                write!(f, "switched {shard} to {to}: {reason}")
            }
            Self::ConsumerRegistered { consumer } => write!(f, "registered consumer {consumer}"),
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
        "the initial position {requested} of `{stream}` is later than the service's clock; "
    )?;
    write!(f, "reading starts at {used} instead")
}

fn start_replaced(f: &mut fmt::Formatter<'_>, shard: &LeaseKey, stored: Timestamp) -> fmt::Result {
    write!(f, "the stored start time {stored} of {shard} is later than the service's clock; ")?;
    f.write_str("the shard starts with its oldest record instead")
}

fn taken(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    from: Option<&WorkerId>,
    reason: TakeReason,
    checkpoint: &Checkpoint,
) -> fmt::Result {
    let from = from.map_or("none", WorkerId::as_str);
    write!(f, "took lease {shard} at {checkpoint} (previous owner: {from}): {reason}")
}

fn processor_failed(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    attempts: u32,
    retry_in: Duration,
    error: &str,
) -> fmt::Result {
    write!(f, "processor failed on {shard} (attempt {attempts}), retrying in {retry_in:?}: {error}")
}

fn dead_letter_failed(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    position: &Position,
    retry_in: Duration,
    error: &str,
) -> fmt::Result {
    let what = format!("dead-lettering record {position} of {shard}");
    write!(f, "{what} failed, retrying in {retry_in:?}: {error}")
}

fn lost(f: &mut fmt::Formatter<'_>, shard: &LeaseKey, to: Option<&WorkerId>) -> fmt::Result {
    match to {
        Some(to) => write!(f, "lost lease {shard} to {to}"),
        None => write!(f, "lost lease {shard}: not renewed in time"),
    }
}

fn dead_lettered(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    position: &Position,
    attempts: u32,
    error: &str,
) -> fmt::Result {
    write!(f, "dead-lettered record {position} of {shard} ")?;
    match attempts {
        0 => write!(f, "because the processor rejected it: {error}"),
        attempts => write!(f, "after {attempts} attempts: {error}"),
    }
}

fn many_dead_letters(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    records: u32,
    error: &str,
) -> fmt::Result {
    write!(f, "dead-lettered {records} records of {shard} in a row and processed none; ")?;
    write!(f, "if an outage is the cause, stop the worker and reprocess them: {error}")
}

fn misrouted(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    records: u64,
    dropped: bool,
) -> fmt::Result {
    let what = if dropped { "dropped" } else { "delivered" };
    write!(f, "{what} {records} misrouted records from aggregates on {shard}")
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
        "{records} corrupt aggregates on {shard} cannot be unpacked and were delivered unchanged; "
    )?;
    write!(f, "the newest is {position}: {error}")
}

fn aged_out(
    f: &mut fmt::Formatter<'_>,
    shard: &LeaseKey,
    from: &Checkpoint,
    to: Option<&Position>,
) -> fmt::Result {
    write!(f, "records of {shard} aged out before they were read: ")?;
    match to {
        Some(to) => write!(f, "those between {from} and {to}"),
        None => write!(f, "all after {from}"),
    }
}
