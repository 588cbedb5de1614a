//! Reading a shard with `GetRecords`.
//!
//! Owns the cursor, the iterator (a cache of it, with an age) and the pace of calls. An iterator
//! that is too old, lost or refused is made again from the cursor, which moves only when a reply
//! has come. Never ends a shard because of an error or a reply with parts missing, and never
//! drops the records that come with the end.

use std::fmt;
use std::mem;
use std::time::Duration;

use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{self, ShardIteratorType};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::kinesis::{self, KinesisStream};
use super::{ListFrom, Read, ShardReader, Stream as _};
use crate::error::{ServiceError, ServiceErrorKind};
use crate::position::Cursor;
use crate::record::{Packing, Record, SequenceNumber, ShardId, Timestamp};
use crate::retry::Retry;
use crate::shard::ChildShard;

/// The service lets an iterator live for five minutes; one minute is for the call and for clocks
/// that differ.
const OLDEST_ITERATOR: Duration = Duration::from_secs(4 * 60);

/// The service allows five calls per second and shard. With the jitter: 4.4 to 4.9.
const LEAST_SPACING: Duration = Duration::from_millis(205);

/// The slowest pace under throttling.
const MOST_SPACING: Duration = Duration::from_secs(10);

/// Delays after other failures: about one call per second at first, at most ten seconds apart.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(10);

/// When the next call may be made. Pure: instants come in as arguments.
#[derive(Debug)]
struct Pace {
    poll_interval: Duration,
    /// The least time between two calls; grows when others read the shard too.
    spacing: Duration,
    due: Option<Instant>,
    retry: Retry,
    rng: fastrand::Rng,
}

impl Pace {
    fn new(poll_interval: Duration, rng: fastrand::Rng) -> Self {
        let retry = Retry::new(RETRY_FIRST, RETRY_MOST);
        Self { poll_interval, spacing: LEAST_SPACING, due: None, retry, rng }
    }

    /// When the next call is due; `None` means at once.
    fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A call made at `sent` was answered at `now` with `bytes` of records.
    fn answered(&mut self, sent: Instant, now: Instant, bytes: u64, is_behind: bool) {
        self.retry.succeeded();
        self.spacing = self.spacing.mul_f64(0.75).max(LEAST_SPACING);
        let interval = if is_behind { self.spacing } else { self.poll_interval.max(self.spacing) };
        let spaced = sent + interval.mul_f64(1.0 + self.rng.f64() / 10.0);
        // 2 MB per second and shard are 2 bytes per microsecond. A larger reply (up to 10 MB) is
        // allowed, but the service refuses calls until its time is over.
        self.due = Some(spaced.max(now + Duration::from_micros(bytes / 2)));
    }

    /// A call was throttled at `now`.
    fn throttled(&mut self, now: Instant) {
        self.spacing = (self.spacing * 2).min(MOST_SPACING);
        self.due = Some(now + self.spacing.mul_f64(0.5 + self.rng.f64()));
    }

    /// A call failed at `now`.
    fn failed(&mut self, now: Instant) {
        self.due = Some(now + self.retry.delay(&mut self.rng));
    }
}

/// A shard iterator and when it was asked for.
#[derive(Clone)]
struct ShardIterator {
    token: String,
    since: Instant,
}

impl ShardIterator {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < OLDEST_ITERATOR
    }
}

impl fmt::Debug for ShardIterator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardIterator").field("since", &self.since).finish_non_exhaustive()
    }
}

/// How sure it is that the shard has ended.
#[derive(Debug)]
enum Ending {
    /// The last reply had an iterator, or there was none yet.
    Open,
    /// The last reply had neither an iterator nor children: an end whose children are gone, or a
    /// malformed reply. A listing has to tell.
    Suspected,
    /// A listing shows the shard closed. If a fresh iterator finds nothing either, it is the end.
    Closed(Vec<ChildShard>),
    /// Everything has been read.
    Certain(Vec<ChildShard>),
}

/// Reads one shard.
#[derive(Debug)]
pub(super) struct PollingReader {
    stream: KinesisStream,
    shard: ShardId,
    /// Where the next record is read from.
    cursor: Cursor,
    iterator: Option<ShardIterator>,
    ending: Ending,
    pace: Pace,
}

impl PollingReader {
    pub(super) fn new(
        stream: KinesisStream,
        shard: ShardId,
        cursor: Cursor,
        rng: fastrand::Rng,
    ) -> Self {
        let pace = Pace::new(stream.options.poll_interval, rng);
        Self { stream, shard, cursor, iterator: None, ending: Ending::Open, pace }
    }

    fn now(&self) -> Instant {
        self.stream.options.clock.now()
    }

    /// Waits until the pace allows a call.
    async fn wait(&self) {
        if !matches!(self.ending, Ending::Certain(_))
            && let Some(due) = self.pace.due()
        {
            self.stream.options.clock.sleep_until(due).await;
        }
    }

    async fn step(&mut self) -> Result<Read, ServiceError> {
        if let Ending::Certain(children) = &self.ending {
            return Ok(Read::End { children: children.clone() });
        }
        self.wait().await;
        let result = self.attempt().await;
        if let Err(error) = &result {
            let now = self.now();
            match error.kind {
                ServiceErrorKind::Throttled => self.pace.throttled(now),
                ServiceErrorKind::Unavailable
                | ServiceErrorKind::Denied
                | ServiceErrorKind::Missing
                | ServiceErrorKind::NotReady
                | ServiceErrorKind::Expired
                | ServiceErrorKind::Invalid => self.pace.failed(now),
            }
        }
        result
    }

    async fn attempt(&mut self) -> Result<Read, ServiceError> {
        if matches!(self.ending, Ending::Suspected) {
            self.ending = self.look_up_end().await?;
            if matches!(self.ending, Ending::Open) {
                let what = "a reply of GetRecords had no iterator, but the shard is not closed";
                return Err(self.malformed(ServiceErrorKind::Unavailable, what));
            }
        }
        let is_cached = self.iterator.is_some();
        match self.read().await {
            Err(error) if error.kind == ServiceErrorKind::Missing => {
                // The service may have forgotten the shard, with everything in it.
                let Some(children) = self.look_up_forgotten().await else { return Err(error) };
                self.ending = Ending::Certain(children.clone());
                Ok(Read::End { children })
            }
            // Not an error: the cursor is what counts, the iterator only a cache of it.
            Err(error) if error.kind == ServiceErrorKind::Expired && is_cached => self.read().await,
            result => result,
        }
    }

    /// One call, and what it says.
    async fn read(&mut self) -> Result<Read, ServiceError> {
        let cached = self.iterator.clone().filter(|iterator| iterator.is_fresh(self.now()));
        let iterator = match cached {
            Some(iterator) => iterator,
            None => self.iterator.insert(self.get_iterator().await?).clone(),
        };
        let sent = self.now();
        let call = self.stream.reads.get_records().set_stream_arn(self.stream.arn());
        let result = match call.shard_iterator(iterator.token).send().await {
            Ok(reply) => self.accept(reply, sent),
            Err(error) => Err(self.stream.failure("GetRecords", &self.object(), error)),
        };
        if let Err(error) = &result
            && matches!(error.kind, ServiceErrorKind::Expired | ServiceErrorKind::Invalid)
        {
            self.iterator = None;
        }
        result
    }

    fn accept(&mut self, reply: GetRecordsOutput, sent: Instant) -> Result<Read, ServiceError> {
        let records = reply.records.into_iter().map(|record| self.record(record));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let children = self.children(&reply.child_shards.unwrap_or_default());
        let is_at_tip = reply.millis_behind_latest == Some(0);

        if let Some(last) = records.last() {
            self.cursor = Cursor::After(last.sequence_number.clone());
        }
        self.iterator = reply.next_shard_iterator.map(|token| ShardIterator { token, since: sent });
        let before = mem::replace(&mut self.ending, Ending::Open);
        self.ending = if self.iterator.is_some() {
            Ending::Open
        } else if !children.is_empty() {
            Ending::Certain(children)
        } else if let Ending::Closed(children) = before
            && records.is_empty()
            && is_at_tip
        {
            Ending::Certain(children)
        } else {
            Ending::Suspected
        };

        let millis_behind_latest =
            // A reply that does not say it is not taken for the tip.
            u64::try_from(reply.millis_behind_latest.unwrap_or(1)).unwrap_or(0);
        let bytes = records.iter().map(Record::size).sum();
        self.pace.answered(sent, self.now(), bytes, millis_behind_latest > 0);
        if let Ending::Certain(children) = &self.ending
            && records.is_empty()
        {
            return Ok(Read::End { children: children.clone() });
        }
        Ok(Read::Records { records, millis_behind_latest })
    }

    async fn get_iterator(&self) -> Result<ShardIterator, ServiceError> {
        let since = self.now();
        let call = self.stream.calls.get_shard_iterator();
        let call = match &self.cursor {
            Cursor::Horizon => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
            Cursor::Timestamp(time) => call
                .shard_iterator_type(ShardIteratorType::AtTimestamp)
                .timestamp(DateTime::from_millis(time.as_millis())),
            Cursor::At(number) => call
                .shard_iterator_type(ShardIteratorType::AtSequenceNumber)
                .starting_sequence_number(number.as_str()),
            Cursor::After(number) => call
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .starting_sequence_number(number.as_str()),
        };
        let call = call.set_stream_name(self.stream.name()).set_stream_arn(self.stream.arn());
        let reply = call.shard_id(self.shard.as_str()).send().await;
        let reply = reply
            .map_err(|error| self.stream.failure("GetShardIterator", &self.object(), error))?;
        let token = reply.shard_iterator.ok_or_else(|| {
            self.malformed(ServiceErrorKind::Unavailable, "GetShardIterator gave no iterator")
        })?;
        Ok(ShardIterator { token, since })
    }

    /// Asks a complete listing whether the shard is closed, and for its children.
    async fn look_up_end(&self) -> Result<Ending, ServiceError> {
        let shards = self.stream.list(ListFrom::All).await?.shards;
        let is_closed = shards.iter().any(|shard| shard.id == self.shard && !shard.is_open);
        if !is_closed {
            return Ok(Ending::Open);
        }
        Ok(Ending::Closed(ChildShard::of(&self.shard, shards)))
    }

    /// The children of this shard, if a complete listing shows the stream and no longer this shard.
    ///
    /// Only when a listed shard names it as a parent, or all listed shards are younger: a listing that
    /// is behind may lack a shard that has just been made.
    async fn look_up_forgotten(&self) -> Option<Vec<ChildShard>> {
        let shards = self.stream.list(ListFrom::All).await.ok()?.shards;
        if shards.iter().any(|shard| shard.id == self.shard) {
            return None;
        }
        let is_older = shards.iter().all(|shard| shard.id > self.shard);
        let children = ChildShard::of(&self.shard, shards);
        (is_older || !children.is_empty()).then_some(children)
    }

    fn record(&self, record: types::Record) -> Result<Record, ServiceError> {
        let sequence_number = SequenceNumber::from_string(record.sequence_number)
            .map_err(|error| self.malformed(ServiceErrorKind::Invalid, &error.to_string()))?;
        let arrived = record.approximate_arrival_timestamp;
        Ok(Record {
            sequence_number,
            sub_sequence_number: 0,
            partition_key: record.partition_key.unwrap_or_default(),
            data: Bytes::from(record.data.into_inner()),
            arrived: Timestamp::from_millis(
                arrived.and_then(|time| time.to_millis().ok()).unwrap_or(0),
            ),
            packing: Packing::Plain,
        })
    }

    /// The children of a reply; none when one of them does not name this shard as its parent,
    /// for then the other parent may be missing too, and a listing has to tell.
    fn children(&self, children: &[types::ChildShard]) -> Vec<ChildShard> {
        let children = children.iter().map(|child| ChildShard {
            id: ShardId::from(child.shard_id.as_str()),
            parents: kinesis::parents(child),
            hash_range: child.hash_key_range.as_ref().and_then(kinesis::hash_range),
        });
        let children: Vec<_> = children.collect();
        if children.iter().all(|child| child.parents.contains(&self.shard)) {
            children
        } else {
            Vec::new()
        }
    }

    fn object(&self) -> String {
        format!(", shard `{}`", self.shard)
    }

    fn malformed(&self, kind: ServiceErrorKind, what: &str) -> ServiceError {
        ServiceError::new(kind, format!("shard `{}`: {what}", self.shard))
    }
}

impl ShardReader for PollingReader {
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.wait())
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(self.step())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(Duration::from_secs(1), fastrand::Rng::with_seed(7))
    }

    fn wait(pace: &Pace, since: Instant) -> Duration {
        pace.due().expect("a call was made").duration_since(since)
    }

    #[test]
    fn the_first_call_is_due_at_once() {
        assert_eq!(pace().due(), None);
    }

    #[test]
    fn calls_are_spaced_by_where_the_shard_is() {
        let (mut pace, sent) = (pace(), Instant::now());
        for (is_behind, least, most) in [(false, 1_000, 1_100), (true, 200, 250)] {
            for _ in 0..100 {
                // Measured from sending: a slow answer does not slow the pace.
                pace.answered(sent, sent + Duration::from_millis(150), 0, is_behind);
                let wait = wait(&pace, sent).as_millis();
                assert!((least..=most).contains(&wait), "{wait}");
            }
        }
    }

    #[test]
    fn a_large_reply_costs_its_time_also_at_the_tip() {
        let (mut pace, sent) = (pace(), Instant::now());
        let now = sent + Duration::from_millis(300);
        pace.answered(sent, now, 10_000_000, false);
        assert_eq!(wait(&pace, now), Duration::from_secs(5));
    }

    #[test]
    fn throttling_widens_the_spacing_up_to_a_bound_and_success_narrows_it_again() {
        let (mut pace, now) = (pace(), Instant::now());
        for _ in 0..10 {
            pace.throttled(now);
        }
        assert_eq!(pace.spacing, MOST_SPACING);
        assert!(wait(&pace, now) >= MOST_SPACING / 2 && wait(&pace, now) <= MOST_SPACING * 3 / 2);
        pace.answered(now, now, 0, true);
        assert!(wait(&pace, now) >= Duration::from_secs(7));
        for _ in 0..20 {
            pace.answered(now, now, 0, true);
        }
        assert_eq!(pace.spacing, LEAST_SPACING);
    }

    #[test]
    fn failures_are_tried_again_later_and_later_until_one_succeeds() {
        let (mut pace, now) = (pace(), Instant::now());
        let first = {
            pace.failed(now);
            wait(&pace, now)
        };
        for _ in 0..10 {
            pace.failed(now);
        }
        assert!(wait(&pace, now) >= RETRY_MOST / 2 && wait(&pace, now) <= RETRY_MOST);
        pace.answered(now, now, 0, false);
        pace.failed(now);
        assert!(first <= RETRY_FIRST && wait(&pace, now) <= RETRY_FIRST);
    }

    #[test]
    fn an_iterator_is_fresh_for_four_minutes() {
        let since = Instant::now();
        let iterator = ShardIterator { token: String::new(), since };
        assert!(iterator.is_fresh(since + OLDEST_ITERATOR - Duration::from_millis(1)));
        assert!(!iterator.is_fresh(since + OLDEST_ITERATOR));
    }
}
