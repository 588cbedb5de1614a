//! A stream in memory for tests, examples and simulation, without a service and without polling.
//!
//! Owns the shards, their records and their lineage. It has the service's semantics (listings that drop
//! expired shards, closed shards with children, sequence numbers that grow over the whole stream) without
//! its limits and failures, which `local-aws` simulates. All time is tokio's, so paused time drives it; it
//! never reads the wall clock, and equal calls produce equal streams.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kpl_format::hash_key;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Description, ListFrom, Listing, Read, ShardReader, Stream};
use crate::error::{ServiceError, ServiceErrorKind};
use crate::position::Cursor;
use crate::record::{Packing, Record, SequenceNumber, ShardId, Timestamp};
use crate::shard::{ChildShard, HashRange, Shard};

/// The start of the clock of every memory stream: 2023-11-14 22:13:20 UTC.
const EPOCH: i64 = 1_700_000_000_000;

/// How long a reader at the tip waits before it returns an empty reply.
const TIP_WAIT: Duration = Duration::from_secs(1);

/// The maximum number of records of one reply, as in the service.
const READ_LIMIT: usize = 10_000;

/// A stream in memory. Cheap to clone; clones share the same stream.
///
/// On paused time (`#[tokio::test(start_paused = true)]`) the worker needs
/// [`ControlPlane::Inline`](crate::ControlPlane::Inline); with the default, `start` fails.
///
/// # Example: write a record and read it
/// ```
/// use kcl_lite::stream::memory::MemoryStream;
/// use kcl_lite::stream::{Read, Stream as _};
/// use kcl_lite::Cursor;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let stream = MemoryStream::new(2);
/// let shard = stream.shard_of("Shadowfax");
/// stream.put("Shadowfax", "gallop");
/// let mut reader = stream.open(&shard, Cursor::Horizon);
/// let Read::Records { records, .. } = reader.next().await? else { panic!("the shard is open") };
/// assert_eq!(records[0].data, "gallop");
/// # Ok::<(), kcl_lite::ServiceError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct MemoryStream {
    shared: Arc<Shared>,
    read_limit: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
    started: Instant,
}

#[derive(Default)]
struct State {
    shards: BTreeMap<ShardId, Log>,
    shards_made: u64,
    records_made: u64,
    deleted: bool,
}

/// One shard and its records, oldest first.
struct Log {
    shard: Shard,
    records: Vec<Record>,
    closed: Option<Timestamp>,
}

impl Log {
    /// Returns whether the shard accepted records at `time` or later. The time of closing counts, because
    /// a record may have arrived in the same millisecond.
    fn lasts_until(&self, time: Timestamp) -> bool {
        self.closed.is_none_or(|closed| closed >= time)
    }

    /// Returns the index of the first record at `cursor`.
    fn seek(&self, cursor: &Cursor) -> usize {
        self.records.partition_point(|record| match cursor {
            Cursor::Horizon => false,
            Cursor::Timestamp(time) => record.arrived < *time,
            Cursor::At(number) => record.sequence_number < *number,
            Cursor::After(number) => record.sequence_number <= *number,
        })
    }
}

impl State {
    fn open_log(&mut self, shard: &ShardId) -> &mut Log {
        let log = self.shards.get_mut(shard).filter(|log| log.closed.is_none());
        log.unwrap_or_else(|| panic!("`{shard}` is not an open shard of this stream"))
    }

    fn add_shard(&mut self, parents: BTreeSet<ShardId>, hash_range: HashRange) -> ShardId {
        let id = ShardId::from(format!("shardId-{:012}", self.shards_made));
        self.shards_made += 1;
        let shard = Shard { id: id.clone(), parents, hash_range, is_open: true };
        self.shards.insert(id.clone(), Log { shard, records: Vec::new(), closed: None });
        id
    }

    fn close(&mut self, shard: &ShardId, now: Timestamp) -> HashRange {
        let log = self.open_log(shard);
        log.closed = Some(now);
        log.shard.is_open = false;
        log.shard.hash_range
    }

    fn append(
        &mut self,
        shard: &ShardId,
        key: &str,
        data: Bytes,
        now: Timestamp,
    ) -> SequenceNumber {
        assert!(!self.deleted, "the stream has been deleted");
        self.records_made += 1;
        let number = SequenceNumber::from_string(self.records_made.to_string())
            .expect("an integer is a sequence number");
        self.open_log(shard).records.push(Record {
            sequence_number: number.clone(),
            sub_sequence_number: 0,
            partition_key: key.to_owned(),
            data,
            arrived: now,
            packing: Packing::Plain,
        });
        number
    }

    /// Returns the open shard that serves `hash`.
    fn serving(&self, hash: u128) -> ShardId {
        let serves = |log: &&Log| {
            let range = log.shard.hash_range;
            log.closed.is_none() && (range.start..=range.end).contains(&hash)
        };
        let log = self.shards.values().find(serves);
        log.expect("open shards cover the whole hash range").shard.id.clone()
    }

    /// Returns the shards with records that arrived at `time` or later, except those that a reader reaches
    /// through their parents.
    fn starting_at(&self, time: Timestamp) -> Vec<Shard> {
        let lasts = |id: &ShardId| self.shards.get(id).is_some_and(|log| log.lasts_until(time));
        let starts = |log: &&Log| log.lasts_until(time) && !log.shard.parents.iter().any(lasts);
        self.shards.values().filter(starts).map(|log| log.shard.clone()).collect()
    }

    fn list(&self, from: ListFrom) -> Vec<Shard> {
        match from {
            ListFrom::All => self.shards.values().map(|log| log.shard.clone()).collect(),
            ListFrom::Latest => {
                let open = self.shards.values().filter(|log| log.closed.is_none());
                open.map(|log| log.shard.clone()).collect()
            }
            ListFrom::TrimHorizon => self.starting_at(Timestamp::from_millis(i64::MIN)),
            ListFrom::AtTimestamp(time) => self.starting_at(time),
        }
    }

    fn children(&self, parent: &ShardId) -> Vec<ChildShard> {
        let children = self.shards.values().filter(|log| log.shard.parents.contains(parent));
        children
            .map(|log| ChildShard {
                id: log.shard.id.clone(),
                parents: log.shard.parents.clone(),
                hash_range: Some(log.shard.hash_range),
            })
            .collect()
    }

    /// Returns what a reader at `cursor` gets now; `None` at the tip of an open shard.
    fn read(
        &self,
        shard: &ShardId,
        cursor: &Cursor,
        limit: usize,
        now: Timestamp,
    ) -> Result<Option<Read>, ServiceError> {
        let log = self.shards.get(shard).filter(|_| !self.deleted);
        let log = log.ok_or_else(|| missing(&format!("shard `{shard}`")))?;
        let rest = &log.records[log.seek(cursor)..];
        let (reply, later) = rest.split_at(rest.len().min(limit));
        if !reply.is_empty() {
            let behind = later.first().map_or(0, |next| now.as_millis() - next.arrived.as_millis());
            return Ok(Some(Read::Records {
                records: reply.to_vec(),
                // A backlog is reported as at least 1 ms, so that the reader is not taken to be at the tip.
                millis_behind_latest: u64::try_from(behind)
                    .unwrap_or(0)
                    .max(u64::from(!later.is_empty())),
            }));
        }
        Ok(log.closed.map(|_| Read::End { children: self.children(shard) }))
    }
}

impl MemoryStream {
    /// Creates a stream of `shards` open shards of equal size.
    ///
    /// # Panics
    /// When `shards` is 0.
    #[must_use]
    pub fn new(shards: u32) -> Self {
        assert!(shards > 0, "a stream has at least one shard");
        let mut state = State::default();
        let width = u128::MAX / u128::from(shards);
        for index in 0..u128::from(shards) {
            let start = if index == 0 { 0 } else { index * width + 1 };
            let is_last = index + 1 == u128::from(shards);
            let end = if is_last { u128::MAX } else { (index + 1) * width };
            state.add_shard(BTreeSet::new(), HashRange { start, end });
        }
        let shared =
            Shared { state: Mutex::new(state), changed: Notify::new(), started: Instant::now() };
        Self { shared: Arc::new(shared), read_limit: READ_LIMIT }
    }

    /// Returns the same stream; readers opened through it get at most `records` per reply.
    ///
    /// # Panics
    /// When `records` is 0.
    #[must_use]
    pub fn with_read_limit(mut self, records: usize) -> Self {
        assert!(records > 0, "a read returns at least one record");
        self.read_limit = records;
        self
    }

    /// Returns the time of this stream's clock, which sets the arrival times.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let elapsed = self.shared.started.elapsed().as_millis();
        Timestamp::from_millis(EPOCH.saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX)))
    }

    /// Returns the open shard that receives records of `key`.
    #[must_use]
    pub fn shard_of(&self, key: &str) -> ShardId {
        self.lock().serving(hash_key(key))
    }

    /// Appends a record to the shard of its key.
    ///
    /// # Panics
    /// When the stream has been deleted.
    pub fn put(&self, key: &str, data: impl Into<Bytes>) -> SequenceNumber {
        let now = self.now();
        self.change(|state| {
            let shard = state.serving(hash_key(key));
            state.append(&shard, key, data.into(), now)
        })
    }

    /// Appends a record to `shard`, regardless of its key.
    ///
    /// # Panics
    /// When `shard` is not open, or the stream has been deleted.
    pub fn put_to(&self, shard: &ShardId, key: &str, data: impl Into<Bytes>) -> SequenceNumber {
        let now = self.now();
        self.change(|state| state.append(shard, key, data.into(), now))
    }

    /// Splits `shard` into two halves.
    ///
    /// # Panics
    /// When `shard` is not open or serves a single hash key.
    pub fn split(&self, shard: &ShardId) -> [ShardId; 2] {
        let now = self.now();
        self.change(|state| {
            let HashRange { start, end } = state.close(shard, now);
            assert!(start < end, "`{shard}` serves a single hash key and cannot be split");
            let middle = start + (end - start) / 2;
            let halves = [HashRange { start, end: middle }, HashRange { start: middle + 1, end }];
            halves.map(|half| state.add_shard(BTreeSet::from([shard.clone()]), half))
        })
    }

    /// Merges two adjacent shards.
    ///
    /// # Panics
    /// When one of them is not open, or they are not adjacent.
    pub fn merge(&self, left: &ShardId, right: &ShardId) -> ShardId {
        let now = self.now();
        self.change(|state| {
            let (a, b) = (state.close(left, now), state.close(right, now));
            let (low, high) = if a < b { (a, b) } else { (b, a) };
            assert!(
                low.end.checked_add(1) == Some(high.start),
                "`{left}` and `{right}` are not adjacent"
            );
            let parents = BTreeSet::from([left.clone(), right.clone()]);
            state.add_shard(parents, HashRange { start: low.start, end: high.end })
        })
    }

    /// Removes a closed shard with its records, as the service does after the retention period.
    ///
    /// # Panics
    /// When `shard` is unknown or still open.
    pub fn expire(&self, shard: &ShardId) {
        self.change(|state| {
            let log = state.shards.get(shard);
            let is_closed = log.is_some_and(|log| log.closed.is_some());
            assert!(is_closed, "`{shard}` is not a closed shard of this stream");
            state.shards.remove(shard);
        });
    }

    /// Deletes the stream: listings and readers fail with kind `Missing`.
    pub fn delete(&self) {
        self.change(|state| state.deleted = true);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.shared.changed.notify_waiters();
        result
    }
}

impl fmt::Debug for MemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("MemoryStream")
            .field("shards", &state.shards.len())
            .field("records", &state.records_made)
            .finish_non_exhaustive()
    }
}

impl Stream for MemoryStream {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        Box::pin(async move {
            let state = self.lock();
            if state.deleted {
                return Err(missing("the stream"));
            }
            Ok(Listing { shards: state.list(from), at: self.now() })
        })
    }

    fn describe(&self) -> BoxFuture<'_, Result<Description, ServiceError>> {
        Box::pin(async {
            if self.lock().deleted {
                return Err(missing("the stream"));
            }
            Ok(Description { at: Some(self.now()), ..Description::default() })
        })
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        Box::new(MemoryReader { stream: self.clone(), shard: shard.clone(), cursor })
    }
}

/// A reader of a memory stream. At the tip it waits for a change, at most for [`TIP_WAIT`].
#[derive(Debug)]
struct MemoryReader {
    stream: MemoryStream,
    shard: ShardId,
    cursor: Cursor,
}

impl MemoryReader {
    fn read(&self) -> Result<Option<Read>, ServiceError> {
        let now = self.stream.now();
        self.stream.lock().read(&self.shard, &self.cursor, self.stream.read_limit, now)
    }

    async fn wait_and_read(&self) -> Result<Read, ServiceError> {
        // Created once, so that changes of other shards do not postpone the empty reply.
        let tip = tokio::time::sleep(TIP_WAIT);
        tokio::pin!(tip);
        loop {
            // Created before the read, so that a record put in between wakes the reader.
            let changed = self.stream.shared.changed.notified();
            if let Some(read) = self.read()? {
                return Ok(read);
            }
            tokio::select! {
                biased;
                // The change first, so that a record put at the last moment is read.
                () = changed => {}
                () = &mut tip => {
                    return Ok(Read::Records { records: Vec::new(), millis_behind_latest: 0 });
                }
            }
        }
    }
}

impl ShardReader for MemoryReader {
    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(async move {
            let read = self.wait_and_read().await?;
            // The cursor moves after the only await, so that a dropped future loses no record.
            if let Read::Records { records, .. } = &read
                && let Some(last) = records.last()
            {
                self.cursor = Cursor::After(last.sequence_number.clone());
            }
            Ok(read)
        })
    }
}

fn missing(what: &str) -> ServiceError {
    ServiceError::new(
        ServiceErrorKind::Missing,
        format!("{what} does not exist in memory: it was deleted, expired or never created"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(shards: &[Shard]) -> Vec<&str> {
        shards
            .iter()
            .map(|shard| shard.id.as_str().trim_start_matches("shardId-00000000000"))
            .collect()
    }

    async fn listed(stream: &MemoryStream, from: ListFrom) -> Vec<String> {
        let listing = stream.list(from).await.unwrap();
        ids(&listing.shards).into_iter().map(str::to_owned).collect()
    }

    fn data(read: &Read) -> Vec<&[u8]> {
        match read {
            Read::Records { records, .. } => {
                records.iter().map(|record| &record.data[..]).collect()
            }
            Read::End { .. } => panic!("the shard ended"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_starts_where_the_position_says() {
        let stream = MemoryStream::new(2);
        let [first, second] = ["shardId-000000000000", "shardId-000000000001"].map(ShardId::from);
        tokio::time::advance(Duration::from_secs(10)).await;
        stream.split(&first);
        tokio::time::advance(Duration::from_secs(10)).await;
        let at = |secs: i64| ListFrom::AtTimestamp(Timestamp::from_millis(EPOCH + secs * 1_000));
        assert_eq!(listed(&stream, ListFrom::All).await, ["0", "1", "2", "3"]);
        assert_eq!(listed(&stream, ListFrom::Latest).await, ["1", "2", "3"]);
        assert_eq!(listed(&stream, ListFrom::TrimHorizon).await, ["0", "1"]);
        assert_eq!(listed(&stream, at(10)).await, ["0", "1"]);
        assert_eq!(listed(&stream, at(11)).await, ["1", "2", "3"]);
        stream.expire(&first);
        assert_eq!(listed(&stream, ListFrom::TrimHorizon).await, ["1", "2", "3"]);
        assert_eq!(listed(&stream, at(-100)).await, ["1", "2", "3"]);
        let merged = stream.merge(&ShardId::from("shardId-000000000003"), &second);
        assert_eq!(listed(&stream, ListFrom::Latest).await, ["2", "4"]);
        assert_eq!(stream.lock().shards[&merged].shard.hash_range.end, u128::MAX);
        stream.delete();
        let error = stream.list(ListFrom::All).await.unwrap_err();
        assert_eq!(error.kind, ServiceErrorKind::Missing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_shard_gives_its_records_and_then_its_children() {
        let stream = MemoryStream::new(1).with_read_limit(2);
        let shard = stream.shard_of("a");
        for text in ["1", "2", "3"] {
            stream.put("a", text);
        }
        let children = stream.split(&shard);
        let mut reader = stream.open(&shard, Cursor::Horizon);
        let read = reader.next().await.unwrap();
        assert!(matches!(read, Read::Records { millis_behind_latest: 1.., .. }), "{read:?}");
        assert_eq!(data(&read), [b"1", b"2"]);
        assert_eq!(data(&reader.next().await.unwrap()), [b"3"]);
        for _ in 0..2 {
            let Read::End { children: ended } = reader.next().await.unwrap() else { panic!() };
            assert_eq!(
                ended.iter().map(|child| &child.id).collect::<Vec<_>>(),
                [&children[0], &children[1]]
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cursor_names_its_first_record() {
        let stream = MemoryStream::new(1);
        let shard = stream.shard_of("a");
        stream.put("a", "1");
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = stream.put("a", "2");
        let arrived = stream.now();
        stream.put("a", "3");
        for (cursor, expected) in [
            (Cursor::Horizon, &[b"1", b"2", b"3"][..]),
            (Cursor::Timestamp(arrived), &[b"2", b"3"]),
            (Cursor::At(second.clone()), &[b"2", b"3"]),
            (Cursor::After(second), &[b"3"]),
        ] {
            let mut reader = stream.open(&shard, cursor.clone());
            assert_eq!(data(&reader.next().await.unwrap()), expected, "{cursor:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_at_the_tip_waits_for_a_record_and_says_when_there_is_none() {
        let stream = MemoryStream::new(1);
        let mut reader = stream.open(&stream.shard_of("a"), Cursor::Horizon);
        let before = Instant::now();
        assert!(data(&reader.next().await.unwrap()).is_empty());
        assert_eq!(before.elapsed(), TIP_WAIT);
        let later = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stream.put("a", "now");
        };
        let (read, ()) = tokio::join!(reader.next(), later);
        assert_eq!(data(&read.unwrap()), [b"now"]);
        assert_eq!(before.elapsed(), TIP_WAIT + Duration::from_millis(300));
    }

    #[test]
    fn keys_spread_over_the_shards() {
        let stream = MemoryStream::new(4);
        let mut counts = BTreeMap::<ShardId, u32>::new();
        for index in 0..400 {
            *counts.entry(stream.shard_of(&format!("unicorn-{index}"))).or_default() += 1;
        }
        assert_eq!(counts.len(), 4);
        assert!(counts.values().all(|count| (60..=140).contains(count)), "{counts:?}");
    }
}
