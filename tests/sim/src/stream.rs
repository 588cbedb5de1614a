//! The stream: the true shards, records and lineage, and one machine's view of them.
//!
//! Owns the fate of every record: put, needed, delivered, acknowledged, expired. Listings may be
//! stale, each shard by another time; reads fail, hang, and omit children. Records are identified
//! by their index in the shard, which is in their data.
//!
//! A re-created stream is another stream. Shards have numbers that are unique in a run; their ids
//! start again with each stream, so that an id alone means a shard of the newest one. Records of
//! former streams are not needed any more, but writes for them are still checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kcl_lite::lease::{Lease, LeaseKey, StreamIdentity};
use kcl_lite::stream::{Description, ListFrom, Listing, Read, ShardReader, Stream};
use kcl_lite::{
    Checkpoint, ChildShard, Cursor, HashRange, Packing, Position, Record, SequenceNumber,
    ServiceError, ServiceErrorKind, Shard, ShardId, StreamRecreated, Timestamp,
};
use tokio::time::{Instant, sleep_until, timeout};

use crate::checks::TenureId;
use crate::machine::{Machine, Running};
use crate::network::READING;
use crate::plan::{Plan, Service, Start, Tier, chance};
use crate::reached::{Counts, Situation};
use crate::services::Services;
use crate::table::Rows;
use crate::world::Truth;

/// The service's time at the beginning of the run.
pub(crate) const EPOCH: i64 = 1_700_000_000_000;
/// How stale parts of a listing may be relative to others.
const MOST_UNEVEN: Duration = Duration::from_secs(45);
/// How long a read may hang, as in the client of the real service.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How far in the future a time may be for which the service still returns an iterator.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);
/// The least time between two reads of a shard.
const SPACING: Duration = Duration::from_millis(205);

/// Returns the service's time at a moment of the run.
pub(crate) fn service_time(at: Duration) -> Timestamp {
    Timestamp::from_millis(EPOCH + i64::try_from(at.as_millis()).unwrap_or(i64::MAX))
}

/// A record and its fate.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) key: usize,
    pub(crate) nth: usize,
    pub(crate) arrived: Duration,
    /// Whether the application has to process it: it arrived after the start, and has not expired.
    pub(crate) needed: bool,
    pub(crate) delivered: bool,
    pub(crate) acknowledged: bool,
    /// Whether the library has to know of the acknowledgement: it was not given after a failure.
    pub(crate) counts: bool,
    /// The number of its newest delivery, and the receiver.
    pub(crate) delivery: u64,
    pub(crate) by: Option<TenureId>,
    /// Whether that delivery has failed: its tokens may be too late.
    is_void: bool,
    /// Whether a processor has rejected it as a poison record.
    rejected: bool,
}

/// The true state of one shard.
#[derive(Debug)]
pub(crate) struct ShardTruth {
    pub(crate) id: ShardId,
    /// The number of its stream.
    stream: usize,
    pub(crate) parents: Vec<usize>,
    pub(crate) children: Vec<usize>,
    pub(crate) range: HashRange,
    pub(crate) opened: Duration,
    pub(crate) closed: Option<Duration>,
    /// The index of the first record that has not expired.
    pub(crate) trimmed: usize,
    /// Whether the service has deleted it.
    pub(crate) gone: bool,
    pub(crate) entries: Vec<Entry>,
    /// Whether a processor has panicked or dropped a token, and no new processor has started since.
    pub(crate) failing: bool,
    /// Acknowledgements of deliveries up to this one do not count any more: they belong to an
    /// earlier processor.
    void: u64,
    /// The index before which all needed records are acknowledged.
    done: usize,
}

/// One stream of the name.
#[derive(Debug, Default)]
struct Incarnation {
    made: Duration,
    deleted: Option<Duration>,
    /// The numbers of its shards.
    by_id: BTreeMap<ShardId, usize>,
}

/// All shards.
pub(crate) struct Shards {
    pub(crate) all: Vec<ShardTruth>,
    /// The streams of this name, in order of creation; never empty.
    streams: Vec<Incarnation>,
    recreated: Option<StreamRecreated>,
    /// Per partition key: its hash, and its records as (shard, index).
    keys: Vec<(u128, Vec<(usize, usize)>)>,
    /// Per partition key: the index before which all needed records are acknowledged.
    keys_done: Vec<usize>,
    numbers: u64,
    aggregates: u8,
    deliveries: u64,
    start: Start,
    /// When the application started. Earlier records are not needed.
    pub(crate) started: Option<Duration>,
    rng: Rng,
    /// The stream that clients reach in the full-stack tier; every change is mirrored there.
    services: Option<Services>,
}

impl ShardTruth {
    /// Returns the index of the first record that is not acknowledged.
    pub(crate) fn done(&mut self) -> usize {
        while self.entries.get(self.done).is_some_and(|it| it.acknowledged || !it.needed) {
            self.done += 1;
        }
        self.done
    }

    pub(crate) fn is_done(&mut self) -> bool {
        self.done() == self.entries.len()
    }

    /// Returns the index of the first record for a reader that starts at the position of a lease.
    pub(crate) fn first_after(&self, checkpoint: &Checkpoint, anchor: Option<Timestamp>) -> usize {
        let first = match checkpoint {
            Checkpoint::ShardEnd => self.entries.len(),
            Checkpoint::At(position) => {
                self.entries.partition_point(|it| Position::of(&it.record) <= *position)
            }
            Checkpoint::TrimHorizon | Checkpoint::Latest | Checkpoint::AtTimestamp => {
                anchor.map_or(0, |time| self.entries.partition_point(|it| it.record.arrived < time))
            }
        };
        first.max(self.trimmed)
    }

    /// Returns whether a checkpoint is the position of a record of this shard, or no position.
    pub(crate) fn has(&self, checkpoint: &Checkpoint) -> bool {
        let Checkpoint::At(position) = checkpoint else { return true };
        self.entries.binary_search_by(|it| Position::of(&it.record).cmp(position)).is_ok()
    }

    /// Returns up to where, from `start` to `end`, everything is acknowledged and counts.
    pub(crate) fn counted(&self, start: usize, end: usize) -> usize {
        let counts = |it: &&Entry| it.counts || !(it.needed || it.delivered);
        start + self.entries[start.min(end)..end].iter().take_while(counts).count()
    }

    /// Returns whether a record before `end` was delivered, has not failed, and is not
    /// acknowledged.
    pub(crate) fn is_outstanding(&mut self, end: usize) -> bool {
        let (done, void) = (self.done().min(end), self.void);
        let is_open = |it: &Entry| !it.acknowledged && !it.is_void && it.delivery > void;
        self.entries[done..end].iter().any(is_open)
    }

    /// Returns the oldest needed record that is not acknowledged, if it arrived before `since`.
    pub(crate) fn waiting_since(&mut self, since: Duration) -> Option<&Entry> {
        let done = self.done();
        self.entries.get(done).filter(|it| it.arrived < since)
    }

    /// Returns the oldest needed record that has never been delivered.
    pub(crate) fn oldest_unseen(&mut self) -> Option<&Entry> {
        let done = self.done();
        self.entries[done..].iter().find(|it| it.needed && !it.acknowledged && !it.delivered)
    }
}

impl Shards {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut rng = chance(plan.seed, "producer");
        let keys = (0..plan.keys).map(|_| (rng.u128(..), Vec::new())).collect::<Vec<_>>();
        let mut shards = Self {
            all: Vec::new(),
            streams: vec![Incarnation::default()],
            recreated: plan.recreated,
            keys_done: vec![0; keys.len()],
            keys,
            numbers: 0,
            aggregates: plan.aggregates,
            deliveries: 0,
            start: plan.start,
            started: None,
            rng,
            services: match plan.tier {
                Tier::Protocol => None,
                Tier::Full => Some(Services::start(plan.seed, plan.shards)),
            },
        };
        shards.open_first(plan.shards, Duration::ZERO);
        shards
    }

    /// Opens the first shards of a stream.
    fn open_first(&mut self, count: u32, now: Duration) {
        if let Some(services) = &self.services {
            for (_, range) in services.shards() {
                self.open_shard(Vec::new(), range, now);
            }
            return;
        }
        let width = u128::MAX / u128::from(count);
        for index in 0..u128::from(count) {
            let start = if index == 0 { 0 } else { index * width + 1 };
            let end = if index + 1 == u128::from(count) { u128::MAX } else { (index + 1) * width };
            self.open_shard(Vec::new(), HashRange { start, end }, now);
        }
    }

    /// Deletes the stream: its records can neither be read nor needed any more.
    pub(crate) fn delete(&mut self, now: Duration) {
        for shard in &mut self.all {
            shard.gone = true;
            shard.closed.get_or_insert(now);
            shard.entries.iter_mut().for_each(|entry| entry.needed = false);
        }
        self.newest_mut().deleted = Some(now);
        self.services.iter().for_each(Services::delete_stream);
    }

    /// Re-creates the stream under its name.
    pub(crate) fn make(&mut self, now: Duration, count: u32) {
        self.services.iter().for_each(|services| services.create_stream(count));
        self.streams.push(Incarnation { made: now, ..Incarnation::default() });
        self.open_first(count, now);
    }

    fn newest(&self) -> &Incarnation {
        self.streams.last().expect("there has always been a stream")
    }

    fn newest_mut(&mut self) -> &mut Incarnation {
        self.streams.last_mut().expect("there has always been a stream")
    }

    /// Returns when the newest stream was created, if it is not the first of its name.
    pub(crate) fn recreated(&self) -> Option<Duration> {
        (self.streams.len() > 1).then(|| self.newest().made)
    }

    /// Returns whether a worker that started at `born` may get the answer that the stream does not
    /// exist: it started before the newest stream was created, or that is deleted.
    pub(crate) fn was_missing_since(&self, born: Duration) -> bool {
        self.newest().deleted.is_some() || self.recreated().is_some_and(|made| born <= made)
    }

    /// Returns whether a row belongs to a stream that was replaced by another one.
    pub(crate) fn is_of_former(&self, row: &Lease) -> bool {
        self.of_row(row).is_none_or(|shard| self.is_former(shard))
    }

    /// Returns whether workers have to leave the leases of a former stream alone, and the new stream
    /// with them: as long as the new one has no leases, which are only created in an empty table.
    pub(crate) fn is_refused(&self, rows: &Rows) -> bool {
        self.recreated == Some(StreamRecreated::Refuse)
            && !rows.is_empty()
            && rows.values().all(|row| self.is_of_former(row))
    }

    /// Returns whether the shard belongs to a stream that was replaced by another one.
    pub(crate) fn is_former(&self, shard: usize) -> bool {
        self.all[shard].stream + 1 < self.streams.len()
    }

    /// Returns the identity of the stream, which a re-created stream does not share.
    fn identity(&self) -> StreamIdentity {
        let arn = "arn:aws:kinesis:eu-central-1:000000000000:stream/stream".to_owned();
        StreamIdentity { arn, created: service_time(self.newest().made) }
    }

    /// Returns the number of a shard of the newest stream by its id, or by the key of its lease,
    /// which is the same here.
    pub(crate) fn find(&self, id: &str) -> Option<usize> {
        self.newest().by_id.get(id).copied()
    }

    /// Returns the numbers of the shards that had this id in the streams of this name, newest
    /// first.
    pub(crate) fn find_all(&self, id: &str) -> impl Iterator<Item = usize> {
        self.streams.iter().rev().filter_map(move |stream| stream.by_id.get(id).copied())
    }

    /// Returns the number of the shard of a row, in the stream that the row names.
    pub(crate) fn of_row(&self, row: &Lease) -> Option<usize> {
        let created = row.stream.as_ref().map_or(service_time(Duration::ZERO), |it| it.created);
        let stream = self.streams.iter().find(|it| service_time(it.made) == created)?;
        stream.by_id.get(row.key.as_str()).copied()
    }

    /// Returns the row of a shard, if it has one.
    pub(crate) fn row<'a>(&self, shard: usize, rows: &'a Rows) -> Option<&'a Lease> {
        let row = rows.get(&LeaseKey::from(self.all[shard].id.clone()))?;
        (self.of_row(row) == Some(shard)).then_some(row)
    }

    fn open_shard(&mut self, parents: Vec<usize>, range: HashRange, now: Duration) -> usize {
        let number = self.all.len();
        let nth = self.newest().by_id.len();
        let id = match self.services {
            None => ShardId::from(format!("shard-{nth:03}")),
            Some(_) => ShardId::from(format!("shardId-{nth:012}")),
        };
        self.newest_mut().by_id.insert(id.clone(), number);
        for parent in &parents {
            self.all[*parent].children.push(number);
            self.all[*parent].closed = Some(now);
        }
        self.all.push(ShardTruth {
            id,
            stream: self.streams.len() - 1,
            parents,
            children: Vec::new(),
            range,
            opened: now,
            closed: None,
            trimmed: 0,
            gone: false,
            entries: Vec::new(),
            failing: false,
            void: 0,
            done: 0,
        });
        number
    }

    /// Returns the services of the full-stack tier.
    pub(crate) fn services(&self) -> &Services {
        self.services.as_ref().expect("only the full-stack tier has a wire")
    }

    /// Checks that the stream of the services equals this one.
    fn is_mirrored(&self) {
        let Some(services) = &self.services else { return };
        let there = services.shards();
        let here = self.newest().by_id.values().map(|number| &self.all[*number]);
        let here = here.map(|it| (it.id.to_string(), it.range));
        assert!(here.eq(there), "local-aws does not number shards in the order of their making");
    }

    fn open(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|it| self.all[*it].closed.is_none()).collect()
    }

    /// Puts one record of a random key, or an aggregate of several records of its shard.
    pub(crate) fn put(&mut self, now: Duration) {
        if self.newest().deleted.is_some() {
            return;
        }
        let key = self.rng.usize(0..self.keys.len());
        let hash = self.keys[key].0;
        let serves = |it: &ShardTruth, hash: u128| {
            it.closed.is_none() && (it.range.start..=it.range.end).contains(&hash)
        };
        let shard = self.all.iter().position(|it| serves(it, hash));
        let shard = shard.expect("open shards cover the whole hash space");
        // Sequence numbers have gaps, and grow in width.
        self.numbers += self.rng.u64(1..20);
        self.append(now, shard, key, 0);
        if self.rng.u8(0..100) < self.aggregates {
            let range = 0..self.keys.len();
            let keys: Vec<_> =
                range.filter(|key| serves(&self.all[shard], self.keys[*key].0)).collect();
            for sub in 1..self.rng.u64(2..7) {
                let key = keys[self.rng.usize(0..keys.len())];
                self.append(now, shard, key, sub);
            }
        }
    }

    fn append(&mut self, now: Duration, shard: usize, key: usize, sub_sequence_number: u64) {
        let index = self.all[shard].entries.len();
        let data = Bytes::copy_from_slice(&(index as u64).to_be_bytes());
        let sequence_number = match &self.services {
            None => SequenceNumber::from_string(self.numbers.to_string())
                .expect("an integer is a sequence number"),
            Some(services) => {
                let put = services.put(self.keys[key].0, &format!("key-{key}"), &data);
                assert_eq!(put.0, self.all[shard].id.as_str(), "a record went elsewhere");
                put.1
            }
        };
        let nth = self.keys[key].1.len();
        self.keys[key].1.push((shard, index));
        let record = Record {
            sequence_number,
            sub_sequence_number,
            partition_key: format!("key-{key}"),
            data,
            arrived: service_time(now),
            packing: Packing::Plain,
        };
        let is_early = matches!(self.start, Start::At(first) if now < first);
        // Workers that refuse a re-created stream need not read it.
        let is_read = self.recreated().is_none() || self.recreated != Some(StreamRecreated::Refuse);
        self.all[shard].entries.push(Entry {
            record,
            key,
            nth,
            arrived: now,
            needed: is_read && !is_early,
            delivered: false,
            acknowledged: false,
            counts: false,
            delivery: 0,
            by: None,
            is_void: false,
            rejected: false,
        });
    }

    /// Notes the start of the application: earlier records are not needed, if it starts at the tip or
    /// some time ago.
    pub(crate) fn start(&mut self, now: Duration) {
        if self.started.is_some() {
            return;
        }
        self.started = Some(now);
        let first = match self.start {
            Start::Latest => now + Duration::from_nanos(1),
            Start::Ago(ago) => now.saturating_sub(ago),
            Start::Horizon | Start::At(_) => return,
        };
        for entry in self.all.iter_mut().flat_map(|shard| &mut shard.entries) {
            entry.needed &= entry.arrived >= first;
        }
    }

    /// Splits an open shard; returns it and its children.
    pub(crate) fn split(&mut self, pick: u64, now: Duration) -> Option<(usize, [usize; 2])> {
        let open = self.open();
        let parent = open[usize::try_from(pick.checked_rem(open.len() as u64)?).ok()?];
        let HashRange { start, end } = self.all[parent].range;
        if end - start < 1 << 100 {
            return None;
        }
        let middle = start + (end - start) / 2;
        let halves = [HashRange { start, end: middle }, HashRange { start: middle + 1, end }];
        if let Some(services) = &self.services {
            services.split(self.all[parent].id.as_str(), middle + 1);
        }
        let children = halves.map(|half| self.open_shard(vec![parent], half, now));
        self.is_mirrored();
        Some((parent, children))
    }

    /// Merges two adjacent open shards; returns them and their child.
    pub(crate) fn merge(&mut self, pick: u64, now: Duration) -> Option<([usize; 2], usize)> {
        let mut open = self.open();
        open.sort_by_key(|shard| self.all[*shard].range.start);
        let pairs = (open.len() as u64).checked_sub(1).filter(|pairs| *pairs > 0)?;
        let at = usize::try_from(pick % pairs).ok()?;
        let (left, right) = (open[at], open[at + 1]);
        let range = HashRange { start: self.all[left].range.start, end: self.all[right].range.end };
        if let Some(services) = &self.services {
            services.merge(self.all[left].id.as_str(), self.all[right].id.as_str());
        }
        let child = self.open_shard(vec![left, right], range, now);
        self.is_mirrored();
        Some(([left, right], child))
    }

    /// Expires records that arrived before `oldest`, and closed shards without records, except
    /// those that are `kept`.
    pub(crate) fn trim(&mut self, oldest: Duration, kept: &[bool], counts: &mut Counts) {
        for (shard, kept) in self.all.iter_mut().zip(kept) {
            let first = shard.entries.partition_point(|it| it.arrived < oldest);
            for entry in shard.entries.iter_mut().take(first).skip(shard.trimmed) {
                if entry.needed && !entry.acknowledged {
                    counts.note(Situation::Trimmed);
                }
                entry.needed = false;
            }
            shard.trimmed = shard.trimmed.max(first);
            let is_over = shard.closed.is_some_and(|closed| closed < oldest);
            if is_over && !shard.gone && !kept {
                shard.gone = true;
                counts.note(Situation::ShardGone);
            }
        }
    }

    /// Returns the index of a record that was delivered from `shard`, if its content is that of the
    /// stored one.
    pub(crate) fn index_of(&self, shard: usize, record: &Record) -> Option<usize> {
        let index = u64::from_be_bytes(record.data.as_ref().try_into().ok()?);
        let index = usize::try_from(index).ok()?;
        let entry = self.all[shard].entries.get(index)?;
        (Position::of(&entry.record) == Position::of(record)).then_some(index)
    }

    /// Notes a delivery of some records; returns its number.
    pub(crate) fn deliver(&mut self, shard: usize, records: &[usize], by: TenureId) -> u64 {
        self.deliveries += 1;
        for index in records {
            let entry = &mut self.all[shard].entries[*index];
            entry.delivered = true;
            (entry.counts, entry.is_void) = (false, false);
            (entry.delivery, entry.by) = (self.deliveries, Some(by));
        }
        self.deliveries
    }

    /// Notes that a record was processed, unless it has been delivered again since.
    pub(crate) fn acknowledge(&mut self, shard: usize, index: usize, delivery: u64) {
        let (failing, void) = (self.all[shard].failing, self.all[shard].void);
        // A record of a newer stream that was delivered by the lease of this one is not a record of
        // this one.
        let Some(entry) = self.all[shard].entries.get_mut(index) else { return };
        entry.acknowledged |= entry.delivery == delivery;
        let is_late = failing || entry.is_void || delivery <= void;
        entry.counts |= entry.delivery == delivery && !is_late;
    }

    /// Notes that a processor rejects a record.
    pub(crate) fn reject(&mut self, shard: usize, index: usize) {
        if let Some(entry) = self.all[shard].entries.get_mut(index) {
            entry.rejected = true;
        }
    }

    /// Notes that a machine has dead-lettered a record. Returns false if the reason is a rejection
    /// and no processor has rejected it.
    pub(crate) fn put_aside(
        &mut self,
        machine: usize,
        shard: &str,
        position: &Position,
        is_rejected: bool,
    ) -> bool {
        let Some(shard) = self.find(shard) else { return true };
        let truth = &mut self.all[shard];
        let entry = truth.entries.iter_mut().find(|it| Position::of(&it.record) == *position);
        if let Some(entry) = entry {
            if is_rejected && !entry.rejected {
                return false;
            }
            entry.acknowledged = true;
            entry.counts |= entry.by.is_some_and(|by| by.0 == machine);
        }
        true
    }

    /// Notes that a processor returns an error for a delivery: records that its tokens have not
    /// acknowledged are delivered again.
    pub(crate) fn fail(&mut self, shard: usize, records: &[usize], delivery: u64) {
        for index in records {
            let entry = self.all[shard].entries.get_mut(*index);
            if let Some(entry) = entry.filter(|it| it.delivery == delivery) {
                entry.is_void = true;
            }
        }
    }

    /// Notes that a processor panics, or drops a token of a delivery: a new processor follows.
    pub(crate) fn fail_all(&mut self, shard: usize, records: &[usize], delivery: u64) {
        let truth = &mut self.all[shard];
        let is_current =
            |it: &Entry| it.delivery == delivery && delivery > truth.void && !it.is_void;
        truth.failing |= records.iter().any(|it| truth.entries.get(*it).is_some_and(is_current));
    }

    /// Notes a new processor of the shard: tokens of earlier processors have no effect.
    pub(crate) fn begin(&mut self, shard: usize) {
        let truth = &mut self.all[shard];
        (truth.failing, truth.void) = (false, self.deliveries);
    }

    /// Returns an earlier needed record of the same key, in another shard, that is not
    /// acknowledged.
    pub(crate) fn earlier_of_key(&mut self, shard: usize, index: usize) -> Option<&Entry> {
        let Entry { key, nth, .. } = self.all[shard].entries[index];
        let places = &self.keys[key].1;
        let settled = |(shard, index): (usize, usize)| {
            let entry = &self.all[shard].entries[index];
            entry.acknowledged || !entry.needed
        };
        while places.get(self.keys_done[key]).is_some_and(|place| settled(*place)) {
            self.keys_done[key] += 1;
        }
        let from = self.keys_done[key].min(nth);
        let earlier = places[from..nth].iter().find(|place| place.0 != shard && !settled(**place));
        earlier.map(|(shard, index)| &self.all[*shard].entries[*index])
    }

    /// Returns the shards as they were up to `lag` ago, each at a time of its own, closed if the closing
    /// had happened by then. A shard is never listed without the parents that still exist. A lag beyond
    /// [`MOST_UNEVEN`] applies to the whole listing.
    pub(crate) fn visible(
        &self,
        now: Duration,
        lag: Duration,
        rng: &mut Rng,
    ) -> Vec<(usize, Option<Duration>)> {
        let mut visible = Vec::new();
        let mut hidden = vec![false; self.all.len()];
        for (number, shard) in self.all.iter().enumerate() {
            let part = rng.f64();
            let part = if lag > MOST_UNEVEN { 1.0 } else { part };
            let seen = now.saturating_sub(lag.mul_f64(part));
            hidden[number] = shard.opened > seen && shard.opened > self.streams[shard.stream].made
                || shard.parents.iter().any(|parent| hidden[*parent]);
            // The first shards have always existed.
            if !shard.gone && !hidden[number] {
                visible.push((number, shard.closed.filter(|closed| *closed <= seen)));
            }
        }
        visible
    }

    fn listing(&self, from: ListFrom, now: Duration, lag: Duration, rng: &mut Rng) -> Listing {
        let visible = self.visible(now, lag, rng);
        let lasts_until = |closed: Option<Duration>, time: Timestamp| {
            closed.is_none_or(|closed| service_time(closed) >= time)
        };
        let starts_at = |number: usize, closed: Option<Duration>, time: Timestamp| {
            let parents = visible.iter().filter(|it| self.all[number].parents.contains(&it.0));
            lasts_until(closed, time) && !parents.into_iter().any(|it| lasts_until(it.1, time))
        };
        let chosen = visible.iter().filter(|(number, closed)| match from {
            ListFrom::All => true,
            ListFrom::Latest => closed.is_none(),
            ListFrom::TrimHorizon => starts_at(*number, *closed, Timestamp::from_millis(i64::MIN)),
            ListFrom::AtTimestamp(time) => starts_at(*number, *closed, time),
        });
        let mut shards: Vec<Shard> = chosen
            .map(|(number, closed)| {
                let shard = &self.all[*number];
                Shard {
                    id: shard.id.clone(),
                    parents: self.ids(&shard.parents),
                    hash_range: shard.range,
                    is_open: closed.is_none(),
                }
            })
            .collect();
        shards.sort_by(|a, b| a.id.cmp(&b.id));
        Listing { shards, at: service_time(now) }
    }

    fn is_there(&self) -> Result<(), ServiceError> {
        match self.newest().deleted {
            None => Ok(()),
            Some(_) => Err(ServiceError::new(ServiceErrorKind::Missing, "no such stream")),
        }
    }

    pub(crate) fn ids(&self, numbers: &[usize]) -> BTreeSet<ShardId> {
        numbers.iter().map(|number| self.all[*number].id.clone()).collect()
    }
}

/// The stream as one machine reaches it.
#[derive(Debug, Clone)]
pub(crate) struct SimStream(pub(crate) Arc<Machine>);

impl Stream for SimStream {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        async move {
            let machine = Arc::clone(&self.0);
            // Derived from earlier replies, and slightly early.
            let at = Timestamp::from_millis(service_time(machine.world.now()).as_millis() - 1500);
            let list = move |truth: &mut Truth| {
                truth.ledger.listed(machine.number, truth.now);
                let (lag, until) = truth.weather.stale;
                let lag = if truth.now < until { lag } else { Duration::ZERO };
                truth.shards.is_there()?;
                let listing = truth.shards.listing(from, truth.now, lag, &mut truth.rng);
                if lag > Duration::ZERO
                    && listing
                        != truth.shards.listing(from, truth.now, Duration::ZERO, &mut chance(0, ""))
                {
                    truth.ledger.counts.note(Situation::StaleListing);
                }
                let count = listing.shards.len();
                truth.say(&machine, format_args!("lists {count} shards"));
                Ok(listing)
            };
            let listing = self.0.call(Service::Stream, "listing", list).await??;
            Ok(Listing { at, ..listing })
        }
        .boxed()
    }

    /// Describes the stream only where that matters: otherwise the identity is unknown, and there
    /// is no call.
    fn describe(&self) -> BoxFuture<'_, Result<Description, ServiceError>> {
        async move {
            if self.0.world.plan.recreated.is_none() {
                return Ok(Description::default());
            }
            let describe = |truth: &mut Truth| {
                truth.shards.is_there()?;
                Ok(Some(truth.shards.identity()))
            };
            let identity =
                self.0.call(Service::Stream, "describing the stream", describe).await??;
            Ok(Description { identity, ..Description::default() })
        }
        .boxed()
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        Box::new(Reader {
            machine: Arc::clone(&self.0),
            _running: self.0.hold(),
            shard: shard.clone(),
            cursor,
            next: None,
            due: Instant::now(),
        })
    }
}

/// The reader of one shard.
#[derive(Debug)]
struct Reader {
    machine: Arc<Machine>,
    _running: Running,
    shard: ShardId,
    cursor: Cursor,
    /// The shard and its next record, after the first read has found them. As with the service's
    /// iterators, they stay with one stream, even if a stream of the same name is created later.
    next: Option<(usize, usize)>,
    /// The earliest time of the next read.
    due: Instant,
}

impl ShardReader for Reader {
    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        async move {
            sleep_until(self.due).await;
            let (shard, cursor, next) = (self.shard.clone(), self.cursor.clone(), self.next);
            let limit = self.machine.world.plan.read_limit;
            let read = move |truth: &mut Truth| truth.read(&shard, &cursor, next, limit);
            let call = self.machine.call(Service::Stream, READING, read);
            let result = timeout(READ_TIMEOUT, call).await.unwrap_or_else(|_| {
                Err(ServiceError::new(ServiceErrorKind::Unavailable, "no answer to a read"))
            });
            self.machine.awake().await;
            let poll = self.machine.world.plan.poll_interval;
            let (read, next) = match result.and_then(|read| read) {
                Ok(read) => read,
                Err(error) => {
                    self.due = Instant::now() + Duration::from_secs(1);
                    return Err(error);
                }
            };
            // Only with the reply, because a read without an answer must not move the reader.
            self.next = Some(next);
            let is_behind = matches!(read, Read::Records { millis_behind_latest: 1.., .. });
            self.due = Instant::now() + if is_behind { SPACING } else { poll };
            Ok(read)
        }
        .boxed()
    }
}

impl Truth {
    /// Returns the service's answer to a read, and where the next read continues.
    fn read(
        &mut self,
        id: &ShardId,
        cursor: &Cursor,
        next: Option<(usize, usize)>,
        limit: usize,
    ) -> Result<(Read, (usize, usize)), ServiceError> {
        let shards = &self.shards;
        let number = next.map(|it| it.0).or_else(|| shards.find(id.as_str()));
        let found = number.map(|number| (number, &shards.all[number]));
        let found = found.filter(|(_, shard)| !shard.gone);
        let (number, shard) =
            found.ok_or_else(|| ServiceError::new(ServiceErrorKind::Missing, "no such shard"))?;
        let entries = &shard.entries;
        if let (None, Cursor::At(of) | Cursor::After(of)) = (next, cursor)
            && entries.binary_search_by(|it| it.record.sequence_number.cmp(of)).is_err()
        {
            let text = "no number of a record of this shard";
            return Err(ServiceError::new(ServiceErrorKind::Invalid, text));
        }
        if let (None, Cursor::Timestamp(time)) = (next, cursor)
            && *time > service_time(self.now + CLOCK_TOLERANCE)
        {
            let text = "the time has not come yet";
            return Err(ServiceError::new(ServiceErrorKind::Invalid, text));
        }
        let first = next.map(|it| it.1).unwrap_or_else(|| match cursor {
            Cursor::Horizon => 0,
            Cursor::At(of) => entries.partition_point(|it| it.record.sequence_number < *of),
            Cursor::After(of) => entries.partition_point(|it| it.record.sequence_number <= *of),
            Cursor::Timestamp(time) => entries.partition_point(|it| it.record.arrived < *time),
        });
        let first = first.max(shard.trimmed);
        let last = entries.len().min(first + limit);
        // An aggregate is returned completely.
        let rest = entries[last..].iter().take_while(|it| it.record.sub_sequence_number > 0);
        let last = last + rest.count();
        if first < last {
            let behind = entries.get(last).map_or(0, |it| {
                u64::try_from(self.now.saturating_sub(it.arrived).as_millis()).unwrap_or(0).max(1)
            });
            let records = entries[first..last].iter().map(|it| it.record.clone()).collect();
            let read = Read::Records { records, millis_behind_latest: behind };
            return Ok((read, (number, last)));
        }
        if shard.closed.is_some() {
            let named = self.now >= self.weather.nameless_until;
            if !named {
                self.ledger.counts.note(Situation::NamelessEnd);
            }
            let children = shard.children.iter().filter(|_| named).map(|child| {
                let child = &shards.all[*child];
                ChildShard {
                    id: child.id.clone(),
                    parents: shards.ids(&child.parents),
                    hash_range: Some(child.range),
                }
            });
            return Ok((Read::End { children: children.collect() }, (number, first)));
        }
        Ok((Read::Records { records: Vec::new(), millis_behind_latest: 0 }, (number, first)))
    }
}
