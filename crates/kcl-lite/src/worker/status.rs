//! The status of a worker: its state, the leases it holds, and its problems.
//!
//! Plain data and its text. The coordinator fills it in, and the handle adds the outcome of the worker.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::position::Checkpoint;
use crate::record::LeaseKey;

/// The state of a worker. It only changes from an earlier variant to a later one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// The worker has not read the lease table since its start, so it holds no lease yet.
    #[default]
    Starting,
    /// The worker takes its share of the leases. A paused or drained worker is running, too.
    Running,
    /// The worker drains its shards and releases its leases, because a shutdown was requested, its handle
    /// was dropped, or it failed.
    Stopping,
    /// The worker has shut down on request and holds no lease.
    Stopped,
    /// The worker has ended because of an error or was aborted, and holds no lease.
    Failed {
        /// The message of the error that [`WorkerHandle::stopped`](crate::WorkerHandle::stopped)
        /// returns.
        reason: String,
    },
}

impl WorkerState {
    /// Returns whether the worker has ended: `Stopped` or `Failed`.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Stopping => false,
            Self::Stopped | Self::Failed { .. } => true,
        }
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Running => f.write_str("running"),
            Self::Stopping => f.write_str("stopping"),
            Self::Stopped => f.write_str("stopped"),
            Self::Failed { reason } => write!(f, "failed: {reason}"),
        }
    }
}

/// A snapshot of a worker.
///
/// Its `Display` is a human-readable summary, with one line per shard; the format may change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The number of unfinished leases in the table at the last scan.
    pub leases: usize,
    /// The shards that this worker holds. Empty once the worker has ended.
    pub shards: BTreeMap<LeaseKey, ShardStatus>,
    /// The state of the worker, and its problems.
    pub health: Health,
    /// The number of misrouted records since the start; see
    /// [`Settings::on_misrouted`](crate::Settings::on_misrouted).
    pub misrouted_records: u64,
    /// The number of Kinesis records since the start that are marked as aggregates but cannot be
    /// unpacked. Each was delivered unchanged, as [`Packing::Corrupt`](crate::Packing::Corrupt).
    pub corrupt_aggregates: u64,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; holds {} of {} leases", self.health, self.shards.len(), self.leases)?;
        if self.misrouted_records > 0 {
            write!(f, "; misrouted records: {}", self.misrouted_records)?;
        }
        if self.corrupt_aggregates > 0 {
            write!(f, "; corrupt aggregates: {}", self.corrupt_aggregates)?;
        }
        for (key, shard) in &self.shards {
            write!(f, "\n{key}: {shard}")?;
        }
        Ok(())
    }
}

/// The state of a worker and the problems it sees: in its own shards, and in shards without an owner.
///
/// Its `Display` is one human-readable line, suited as the body of a health endpoint; the format may
/// change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// The state of the worker. Once it has ended, no problems are reported.
    pub state: WorkerState,
    /// Why the lease table cannot be used, if it could not be for a lease duration.
    pub table: Option<String>,
    /// The shards without progress, and the cause: held here but stuck or slow, unowned, or with an
    /// unreadable row.
    pub shards: BTreeMap<LeaseKey, String>,
}

impl Health {
    /// Returns whether the worker is running without problems.
    ///
    /// A worker that is starting, stopping or has ended is never healthy. A liveness probe that must not
    /// kill a worker during its shutdown should check [`state`](Self::state) as well.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.state == WorkerState::Running && self.table.is_none() && self.shards.is_empty()
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_healthy() {
            return f.write_str("running: healthy");
        }
        write!(f, "{}", self.state)?;
        let table = self.table.iter().map(|fault| format!("lease table: {fault}"));
        let shards = self.shards.iter().map(|(key, fault)| format!("{key}: {fault}"));
        for (index, fault) in table.chain(shards).enumerate() {
            let separator = if index == 0 { ": " } else { "; " };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

/// A snapshot of a shard that a worker holds.
///
/// Its `Display` is one human-readable line; the format may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardStatus {
    /// The stored checkpoint, as far as this worker knows: the one of the take at first, then the one of
    /// the latest renewal.
    pub checkpoint: Checkpoint,
    /// The backlog: how far reading is behind the tip of the shard, in milliseconds. `None` before the
    /// first reply.
    ///
    /// This is the value of the last reply. While the next reply is overdue, the time since the last one
    /// is added, so that the value grows while nothing can be read. A reply is overdue as soon as a read
    /// has failed, or when the last reply is ten seconds old (two poll intervals, if that is longer).
    pub millis_behind_latest: Option<u64>,
    /// The time since the last reply; `None` before the first.
    pub since_reply: Option<Duration>,
    /// The time since the last progress: a reply, a processed batch, or a
    /// [`Heartbeat`](crate::Heartbeat) of the processor.
    pub since_progress: Duration,
    /// Why the shard makes no progress, and for how long, if it makes none.
    pub trouble: Option<String>,
}

impl fmt::Display for ShardStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint {}, ", self.checkpoint)?;
        match (self.millis_behind_latest, self.since_reply) {
            (Some(lag), Some(age)) => {
                write!(f, "{lag} ms behind the tip (last reply {:.1} s ago)", age.as_secs_f64())?;
            }
            _ => f.write_str("not read yet")?,
        }
        write!(f, ", last progress {:.1} s ago", self.since_progress.as_secs_f64())?;
        match &self.trouble {
            Some(trouble) => write!(f, ", {trouble}"),
            None => Ok(()),
        }
    }
}

/// The outcome of a stopped worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The shards that were held when the stop was requested.
    pub shards: BTreeMap<LeaseKey, ShardReport>,
}

/// The final state of one shard at the stop of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardReport {
    /// Whether everything delivered was acknowledged and stored, so that nothing will be repeated.
    pub drained: bool,
    /// The last stored checkpoint.
    pub checkpoint: Checkpoint,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(state: WorkerState) -> Health {
        Health { state, ..Health::default() }
    }

    #[test]
    fn only_a_running_worker_can_be_well() {
        let failed = WorkerState::Failed { reason: "the stream is gone".to_owned() };
        for state in [WorkerState::Starting, WorkerState::Stopping, WorkerState::Stopped, failed] {
            assert!(!health(state.clone()).is_healthy(), "{state}");
        }
        let running = health(WorkerState::Running);
        assert!(running.is_healthy());
        let table = Some("not read for 12 s".to_owned());
        assert!(!Health { table, ..running }.is_healthy());
    }

    #[test]
    fn health_reads_as_one_line() {
        assert_eq!(health(WorkerState::Running).to_string(), "running: healthy");
        assert_eq!(health(WorkerState::Starting).to_string(), "starting");
        let failed = WorkerState::Failed { reason: "no stream `orders`".to_owned() };
        assert_eq!(health(failed).to_string(), "failed: no stream `orders`");
        let troubled = Health {
            table: Some("not read for 12 s: timeout".to_owned()),
            shards: [("shardId-1".into(), "paused".to_owned())].into(),
            ..health(WorkerState::Running)
        };
        let text = "running: lease table: not read for 12 s: timeout; shardId-1: paused";
        assert_eq!(troubled.to_string(), text);
    }

    #[test]
    fn a_status_has_a_line_per_shard() {
        let shard = ShardStatus {
            checkpoint: Checkpoint::TrimHorizon,
            millis_behind_latest: Some(1_250),
            since_reply: Some(Duration::from_millis(400)),
            since_progress: Duration::from_millis(200),
            trouble: None,
        };
        let unread = ShardStatus { millis_behind_latest: None, since_reply: None, ..shard.clone() };
        let status = Status {
            leases: 3,
            shards: [("shardId-1".into(), shard), ("shardId-2".into(), unread)].into(),
            health: health(WorkerState::Running),
            corrupt_aggregates: 1,
            ..Status::default()
        };
        let text = "running: healthy; holds 2 of 3 leases; corrupt aggregates: 1\n\
                    shardId-1: checkpoint TRIM_HORIZON, 1250 ms behind the tip (last reply 0.4 s \
                    ago), last progress 0.2 s ago\n\
                    shardId-2: checkpoint TRIM_HORIZON, not read yet, last progress 0.2 s ago";
        assert_eq!(status.to_string(), text);
    }
}
