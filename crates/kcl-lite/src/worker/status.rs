//! What a worker says of itself: the state it is in, what it holds, what goes wrong.
//!
//! Plain data and its text. Never finds anything out: the coordinator fills it in, and the handle adds
//! how the worker ended.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::position::Checkpoint;
use crate::record::LeaseKey;

/// Where a worker is in its life. It only moves down this list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// The worker has not read the lease table since its start, so it holds no lease yet.
    #[default]
    Starting,
    /// The worker takes its share of the leases. A paused or drained worker is running, too.
    Running,
    /// The worker drains its shards and releases its leases, because it was asked to stop, its handle
    /// was dropped, or it failed.
    Stopping,
    /// The worker has stopped because it was asked to, and holds nothing.
    Stopped,
    /// The worker has ended by itself or was aborted, and holds nothing.
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

/// A worker at one moment.
///
/// Its `Display` is a summary for people, with one line per shard; the format may change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Leases in the table that are not finished, as the worker last saw it.
    pub leases: usize,
    /// The shards this worker holds. Empty once the worker has ended.
    pub shards: BTreeMap<LeaseKey, ShardStatus>,
    /// The state of the worker, and what is wrong.
    pub health: Health,
    /// Records of aggregates since the start whose hash key belongs to another shard than the one
    /// they were read from: [`Settings::on_misrouted`](crate::Settings::on_misrouted).
    pub misrouted_records: u64,
    /// Kinesis records since the start that say they are aggregates and cannot be unpacked. Each was
    /// delivered as it was read: [`Packing::Corrupt`](crate::Packing::Corrupt).
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

/// The state of a worker, and what it sees going wrong: in its own shards, and in those that nobody
/// reads.
///
/// Its `Display` is one line for people, such as the body of a health endpoint; the format may change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Where the worker is in its life. Once it has ended, nothing else is reported here.
    pub state: WorkerState,
    /// Why the lease table cannot be used, if it has not been for a lease duration.
    pub table: Option<String>,
    /// Shards without progress, and the cause: held here and stuck or slow, held by nobody, or with a
    /// row that cannot be read.
    pub shards: BTreeMap<LeaseKey, String>,
}

impl Health {
    /// Returns whether the worker is running and nothing is wrong.
    ///
    /// A worker that is starting, stopping or has ended is never well. A liveness probe that must not
    /// kill a worker in the middle of its shutdown looks at [`state`](Self::state) as well.
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

/// A shard at one moment.
///
/// Its `Display` is one line for people; the format may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardStatus {
    /// The checkpoint that the lease table holds, as far as this worker knows: the one it took the
    /// lease with at first, then the one of the latest renewal.
    pub checkpoint: Checkpoint,
    /// How far reading is behind the tip of the shard, in milliseconds; `None` before the first reply.
    ///
    /// This is what the last reply said. While the next one is overdue, the time since the last one is
    /// added, so that lag grows while nothing can be read. The next reply is overdue as soon as a read
    /// has failed, or when the last one is ten seconds old (two poll intervals, if that is longer).
    pub millis_behind_latest: Option<u64>,
    /// How old the last reply is; `None` before the first.
    pub since_reply: Option<Duration>,
    /// Time since the shard last proved life: a reply, a batch done, or a
    /// [`Heartbeat`](crate::Heartbeat) of its processor.
    pub since_progress: Duration,
    /// Why it makes no progress, and for how long, if it makes none.
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

/// What a worker did with its shards when it stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The shards that were held when the stop was asked for.
    pub shards: BTreeMap<LeaseKey, ShardReport>,
}

/// How one shard was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardReport {
    /// Whether everything delivered was acknowledged and stored, so that nothing will be repeated.
    pub drained: bool,
    /// The checkpoint last stored.
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
