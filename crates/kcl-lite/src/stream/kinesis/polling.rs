//! Reading a shard with `GetRecords`.
//!
//! Owns the cursor, the iterator (a cache of the cursor, with an age) and the pace of calls. An
//! iterator that is too old, lost or refused is requested again from the cursor, which moves only
//! when a reply has arrived. Never ends a shard because of an error or an incomplete reply, and never
//! drops the records that arrive with the end.

use std::fmt;
use std::mem;
use std::time::Duration;

use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::ShardIteratorType;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::shard_client::ShardClient;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::position::Cursor;
use crate::record::Record;
use crate::retry::Retry;
use crate::shard::ChildShard;
use crate::stream::{Read, ShardReader};

/// The maximum age of an iterator. The service expires it after five minutes; one minute is left for
/// the call and for clocks that differ.
const OLDEST_ITERATOR: Duration = Duration::from_secs(4 * 60);

/// The factor by which calls are further apart than their number per second requires, so that two
/// clocks that differ do not make one call too many. With the jitter, 4.4 to 4.9 of five calls per
/// second are left.
const SPACING_MARGIN: f64 = 1.025;

/// The maximum data of one reply: 10 MiB.
const LARGEST_REPLY: u64 = 10 << 20;

/// The write limit of a shard per second: 1 MiB.
const WRITTEN_PER_SECOND: u64 = 1 << 20;

/// The memory that a reply uses while it is received and parsed, per byte of data: its text, of which
/// base64 makes 4/3, in the chunks that arrived and then in one piece, or in one piece and the data
/// beside it. Measured in a process that reads one reply: 2.9. The rest is what the allocator loses.
const WHILE_PARSED: (u64, u64) = (32, 10);

/// The maximum time between calls under throttling.
const MOST_SPACING: Duration = Duration::from_secs(10);

/// Delays after other failures: about one call per second at first, at most ten seconds apart.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(10);

/// The pace: when the next call may be made. Pure: instants are arguments.
#[derive(Debug)]
struct Pace {
    poll_interval: Duration,
    /// The minimum time between two calls.
    least_spacing: Duration,
    /// The time between two calls; grows when other consumers read the shard too.
    spacing: Duration,
    due: Option<Instant>,
    retry: Retry,
    rng: fastrand::Rng,
}

impl Pace {
    fn new(poll_interval: Duration, reads_per_second: f64, rng: fastrand::Rng) -> Self {
        let retry = Retry::new(RETRY_FIRST, RETRY_MOST);
        let least_spacing = Duration::from_secs_f64(SPACING_MARGIN / reads_per_second);
        Self { poll_interval, least_spacing, spacing: least_spacing, due: None, retry, rng }
    }

    /// Returns when the next call is due; `None` means immediately.
    fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Records that a call made at `sent` was answered at `now` with `bytes` of records.
    fn answered(&mut self, sent: Instant, now: Instant, bytes: u64, is_behind: bool) {
        self.retry.succeeded();
        self.spacing = self.spacing.mul_f64(0.75).max(self.least_spacing);
        let interval = if is_behind { self.spacing } else { self.poll_interval.max(self.spacing) };
        // Counted from the sending: the limit is on calls per second, however long a reply takes.
        let spaced = sent + interval.mul_f64(1.0 + self.rng.f64() / 10.0);
        // 2 MB per second and shard are 2 bytes per microsecond. The service allows a larger reply
        // (up to 10 MB), but then refuses calls until its time is over.
        self.due = Some(spaced.max(now + Duration::from_micros(bytes / 2)));
    }

    /// Records that a call was throttled at `now`.
    fn throttled(&mut self, now: Instant) {
        // A configured rate below one call per `MOST_SPACING` is never exceeded, so `max` comes
        // last.
        self.spacing = (self.spacing * 2).min(MOST_SPACING).max(self.least_spacing);
        // Wide jitter, so that readers that were throttled together do not meet again.
        self.due = Some(now + self.spacing.mul_f64(0.5 + self.rng.f64()));
    }

    /// Records that a call failed at `now`.
    fn failed(&mut self, now: Instant) {
        self.due = Some(now + self.retry.delay(&mut self.rng));
    }
}

/// A shard iterator and when it was requested.
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

/// How certain it is that the shard has ended.
#[derive(Debug)]
enum Ending {
    /// The last reply had an iterator, or there was no reply yet.
    Open,
    /// The last reply had neither an iterator nor children: the end of a shard whose children no
    /// longer exist, or a malformed reply. A listing has to tell.
    Suspected,
    /// A listing shows the shard closed. If a fresh iterator finds nothing either, it has ended.
    Closed(Vec<ChildShard>),
    /// Everything has been read.
    Certain(Vec<ChildShard>),
}

/// A reader that polls one shard.
#[derive(Debug)]
pub(super) struct PollingReader {
    of: ShardClient,
    /// The position of the next record.
    cursor: Cursor,
    iterator: Option<ShardIterator>,
    ending: Ending,
    pace: Pace,
    /// When a reply was last at the tip.
    at_tip: Option<Instant>,
}

impl PollingReader {
    pub(super) fn new(of: ShardClient, cursor: Cursor, rng: fastrand::Rng) -> Self {
        let options = &of.stream.options;
        let pace = Pace::new(options.poll_interval, options.reads_per_second, rng);
        Self { of, cursor, iterator: None, ending: Ending::Open, pace, at_tip: None }
    }

    /// Returns the position of the next record.
    pub(super) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    fn now(&self) -> Instant {
        self.of.stream.options.clock.now()
    }

    /// Waits until the pace allows a call.
    async fn wait(&self) {
        // The end is known without another call, so that it does not wait for one.
        if !matches!(self.ending, Ending::Certain(_))
            && let Some(due) = self.pace.due()
        {
            self.of.stream.options.clock.sleep_until(due).await;
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
                | ServiceErrorKind::WrongClock
                | ServiceErrorKind::FileLimit
                | ServiceErrorKind::Tls
                | ServiceErrorKind::Credentials
                | ServiceErrorKind::Key
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
            // A listing that fails leaves the suspicion, so that the next attempt lists again.
            self.ending = self.of.look_up_end().await?.map_or(Ending::Open, Ending::Closed);
            if matches!(self.ending, Ending::Open) {
                let what = "a reply of GetRecords had no iterator, but the shard is not closed";
                return Err(self.of.malformed(ServiceErrorKind::Unavailable, what));
            }
        }
        let is_cached = self.iterator.is_some();
        match self.read().await {
            Err(error) if error.kind == ServiceErrorKind::Missing => {
                // The service may have dropped the shard and all its records.
                let Some(children) = self.of.look_up_forgotten().await else { return Err(error) };
                self.ending = Ending::Certain(children.clone());
                Ok(Read::End { children })
            }
            // Not an error: the iterator is only a cache of the cursor.
            Err(error) if error.kind == ServiceErrorKind::Expired && is_cached => self.read().await,
            result => result,
        }
    }

    /// Makes one call and processes its reply.
    async fn read(&mut self) -> Result<Read, ServiceError> {
        let cached = self.iterator.clone().filter(|iterator| iterator.is_fresh(self.now()));
        let iterator = match cached {
            // Cloned and not taken: if this future is dropped during the call, the next one uses
            // it.
            Some(iterator) => iterator,
            None => self.iterator.insert(self.get_iterator().await?).clone(),
        };
        let sent = self.now();
        let call = self.of.stream.reads.get_records().set_stream_arn(self.of.stream.arn());
        let result = match call.shard_iterator(iterator.token).send().await {
            Ok(reply) => self.accept(reply, sent),
            Err(error) => Err(self.of.stream.failure("GetRecords", &self.of.object(), error)),
        };
        if let Err(error) = &result
            && matches!(error.kind, ServiceErrorKind::Expired | ServiceErrorKind::Invalid)
        {
            // The service may refuse an iterator as invalid too; the cursor yields a new one.
            self.iterator = None;
        }
        result
    }

    fn accept(&mut self, reply: GetRecordsOutput, sent: Instant) -> Result<Read, ServiceError> {
        // Converted before anything changes: a malformed reply must not move the cursor.
        let records = self.of.records(reply.records)?;
        let children = self.of.children(&reply.child_shards.unwrap_or_default());
        let is_at_tip = reply.millis_behind_latest == Some(0);

        if let Some(last) = records.last() {
            self.cursor = Cursor::After(last.sequence_number.clone());
        }
        // Dated at the sending, so that its age is never underestimated.
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
            // The listing does not prove that everything was read: only an empty reply at the tip
            // does.
            Ending::Certain(children)
        } else {
            Ending::Suspected
        };

        let millis_behind_latest =
            // A reply without this field does not count as at the tip.
            u64::try_from(reply.millis_behind_latest.unwrap_or(1)).unwrap_or(0);
        let bytes = records.iter().map(Record::size).sum();
        self.pace.answered(sent, self.now(), bytes, millis_behind_latest > 0);
        // Dated at the sending, so that what is written since is overestimated.
        self.at_tip = (millis_behind_latest == 0).then_some(sent);
        // Records that arrive with the end are returned first; the next call returns the end.
        if let Ending::Certain(children) = &self.ending
            && records.is_empty()
        {
            return Ok(Read::End { children: children.clone() });
        }
        Ok(Read::Records { records, millis_behind_latest })
    }

    async fn get_iterator(&self) -> Result<ShardIterator, ServiceError> {
        // Taken before the call, so that the age of the iterator is never underestimated.
        let since = self.now();
        let call = self.of.stream.calls.get_shard_iterator();
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
        let call = call.set_stream_name(self.of.stream.name()).set_stream_arn(self.of.stream.arn());
        let reply = call.shard_id(self.of.id.as_str()).send().await;
        let reply = reply.map_err(|error| {
            self.of.stream.failure("GetShardIterator", &self.of.object(), error)
        })?;
        let token = reply.shard_iterator.ok_or_else(|| {
            self.of
                .malformed(ServiceErrorKind::Unavailable, "GetShardIterator returned no iterator")
        })?;
        Ok(ShardIterator { token, since })
    }
}

impl ShardReader for PollingReader {
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.wait())
    }

    fn most_bytes(&self) -> u64 {
        largest_reply(self.at_tip.map(|tip| self.now().saturating_duration_since(tip)))
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(self.step())
    }
}

/// Returns the maximum memory that the next reply uses while it is parsed, given the time since the
/// tip was seen: what can have been written since, in seconds rounded up.
fn largest_reply(since_tip: Option<Duration>) -> u64 {
    let written = since_tip.map_or(LARGEST_REPLY, |since| {
        let seconds = since.as_secs().saturating_add(1);
        WRITTEN_PER_SECOND.saturating_mul(seconds).min(LARGEST_REPLY)
    });
    written * WHILE_PARSED.0 / WHILE_PARSED.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(Duration::from_secs(1), 5.0, fastrand::Rng::with_seed(7))
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
                // Measured from sending: a slow reply does not slow the pace.
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
        assert_eq!(pace.spacing, pace.least_spacing);
    }

    #[test]
    fn failures_are_retried_later_and_later_until_one_succeeds() {
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
    fn a_reply_at_the_tip_is_as_large_as_what_was_written_since() {
        let after = |seconds| largest_reply(Some(Duration::from_secs(seconds)));
        assert!((6 << 20..7 << 20).contains(&after(1)));
        assert_eq!(after(60), 32 << 20);
        assert_eq!(largest_reply(None), after(60));
    }

    #[test]
    fn an_iterator_is_fresh_for_four_minutes() {
        let since = Instant::now();
        let iterator = ShardIterator { token: String::new(), since };
        assert!(iterator.is_fresh(since + OLDEST_ITERATOR - Duration::from_millis(1)));
        assert!(!iterator.is_fresh(since + OLDEST_ITERATOR));
    }
}
