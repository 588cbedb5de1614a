//! A stream: its metadata (`Meta`), its records, and the readers that wait for more.
//!
//! `Meta` is plain data that is copied, changed and stored as a whole. States that change with time
//! (CREATING, UPDATING, DELETING) are a phase and its end, compared with the clock, so that no task
//! has to run for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::kinesis::consumer::Consumer;
use crate::kinesis::error::validation;
use crate::kinesis::lineage::Lineage;
use crate::kinesis::log::{Batch, Log, Record};
use crate::kinesis::sequence::{Index, ShardNumber};
use crate::kinesis::shard::{ChildShardView, Shard};
use crate::kinesis::transition::{Status, Transition};
use crate::wire::ApiError;

/// The name of a stream: 1 to 128 letters, digits and `_.-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct StreamName(String);

impl StreamName {
    /// # Errors
    ///
    /// `ValidationException` if the text is not a valid stream name.
    pub(super) fn new(text: &str) -> Result<Self, ApiError> {
        is_name(text).then(|| Self(text.to_owned())).ok_or_else(|| {
            validation(
                "streamName",
                &format!("'{text}'"),
                "Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+ and have length \
                 less than or equal to 128",
            )
        })
    }
}

/// Returns whether a text can name a stream or a consumer.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a stream; a re-created stream has another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct StreamId(pub u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum StreamMode {
    Provisioned,
    OnDemand,
}

/// Everything about a stream but its records.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    pub id: StreamId,
    pub name: StreamName,
    pub created_ms: i64,
    /// When this was last stored; time does not move back before it.
    pub stored_ms: i64,
    pub mode: StreamMode,
    pub transition: Option<Transition>,
    pub retention_hours: i64,
    pub max_record_kib: i64,
    /// The KMS key, while the stream is encrypted.
    pub encryption_key: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub shard_metrics: BTreeSet<String>,
    pub consumers: BTreeMap<String, Consumer>,
    pub lineage: Lineage,
}

impl Meta {
    pub(super) fn status(&self, now_ms: i64) -> Status {
        Status::at(self.transition, now_ms)
    }

    /// Returns the moment before which records have expired.
    pub(super) fn horizon_ms(&self, now_ms: i64) -> i64 {
        now_ms.saturating_sub(self.retention_hours.saturating_mul(3_600_000))
    }

    /// Returns the consumers that are not gone, by name.
    pub(super) fn consumers_at(&self, now_ms: i64) -> impl Iterator<Item = (&str, &Consumer)> {
        let present = move |consumer: &Consumer| consumer.status(now_ms) != Status::Gone;
        let all = self.consumers.iter().map(|(name, consumer)| (name.as_str(), consumer));
        all.filter(move |(_, consumer)| present(consumer))
    }

    /// Returns the largest payload of a record.
    pub(super) fn max_record_size(&self) -> usize {
        usize::try_from(self.max_record_kib.saturating_mul(1_024)).unwrap_or(usize::MAX)
    }

    pub(super) fn children(&self, parent: ShardNumber) -> Vec<ChildShardView> {
        self.lineage.children(parent).map(ChildShardView::from).collect()
    }
}

/// A stream with its records.
#[derive(Debug)]
pub(super) struct Stream {
    pub meta: Meta,
    logs: BTreeMap<ShardNumber, Log>,
    /// The open shards by the start of their hash ranges.
    routes: BTreeMap<u128, ShardNumber>,
    /// Changes when there may be news for a subscription.
    wake: watch::Sender<()>,
}

impl Stream {
    /// Creates a stream from new or stored metadata, with its records in order.
    pub(super) fn new(
        meta: Meta,
        records: impl IntoIterator<Item = (ShardNumber, Record)>,
    ) -> Self {
        let mut stream = Self {
            meta,
            logs: BTreeMap::new(),
            routes: BTreeMap::new(),
            wake: watch::Sender::new(()),
        };
        stream.follow_lineage();
        for (shard, record) in records {
            stream.meta.lineage.skip_past(record.index);
            stream.push(shard, Arc::new(record));
        }
        stream
    }

    /// Replaces the metadata, and wakes subscriptions.
    pub(super) fn replace_meta(&mut self, meta: Meta) {
        self.meta = meta;
        self.follow_lineage();
        self.wake();
    }

    fn follow_lineage(&mut self) {
        let lineage = &self.meta.lineage;
        self.logs.retain(|number, _| lineage.get(*number).is_some());
        for shard in lineage.all() {
            self.logs.entry(shard.number).or_default();
        }
        self.routes = lineage.open().map(|shard| (shard.range.start, shard.number)).collect();
    }

    pub(super) fn wake(&self) {
        self.wake.send_replace(());
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.wake.subscribe()
    }

    /// Returns the open shard for a hash key.
    pub(super) fn route(&self, hash_key: u128) -> ShardNumber {
        let (_, number) = self
            .routes
            .range(..=hash_key)
            .next_back()
            .expect("open shards cover the whole hash space");
        *number
    }

    pub(super) fn push(&mut self, shard: ShardNumber, record: Arc<Record>) {
        if let Some(log) = self.logs.get_mut(&shard) {
            log.push(record);
        }
    }

    /// Returns a shard and its records.
    pub(super) fn shard(&self, number: ShardNumber) -> Option<(&Shard, &Log)> {
        self.meta.lineage.get(number).zip(self.logs.get(&number))
    }

    pub(super) fn log_mut(&mut self, number: ShardNumber) -> Option<&mut Log> {
        self.logs.get_mut(&number)
    }

    /// Reads from a place in a shard; at the end of a closed shard the result contains its
    /// children.
    pub(super) fn read(
        &self,
        shard: ShardNumber,
        from: Index,
        limit: usize,
        size: usize,
    ) -> Option<Read> {
        let (shard, log) = self.shard(shard)?;
        let batch = log.read(from, limit, size);
        let children =
            (shard.closed.is_some() && !batch.more).then(|| self.meta.children(shard.number));
        Some(Read { batch, children })
    }

    /// Drops records beyond the retention period; returns where each trimmed log begins now, if any
    /// was trimmed.
    pub(super) fn trim(&mut self, now_ms: i64) -> Option<Vec<(ShardNumber, Index)>> {
        let horizon_ms = self.meta.horizon_ms(now_ms);
        let mut trimmed: Vec<_> = self
            .logs
            .iter_mut()
            .filter_map(|(number, log)| log.trim(horizon_ms).map(|index| (*number, index)))
            .collect();
        for forgotten in self.meta.lineage.forget_closed_before(horizon_ms) {
            self.logs.remove(&forgotten);
            // Past every place, so that the journal removes all of its records.
            trimmed.push((forgotten, Index(u64::MAX)));
        }
        (!trimmed.is_empty()).then_some(trimmed)
    }
}

/// The result of reading a shard.
#[derive(Debug)]
pub(super) struct Read {
    pub batch: Batch,
    /// The children, if the shard is closed and all of it has been read.
    pub children: Option<Vec<ChildShardView>>,
}
