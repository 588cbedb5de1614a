//! All streams behind one lock, and the only functions that change them.
//!
//! Every call takes the lock once, uses one time, and sees expired data as removed. A change is
//! written to the journal before it becomes visible, so that nothing that was seen or acknowledged
//! is lost when the process is killed. Index and record are assigned under this lock, so that no
//! reader can pass a slower writer, and no record can be added to a closed shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::kinesis::arn::{Place, Resource};
use crate::kinesis::error::{invalid_argument, stream_not_found};
use crate::kinesis::journal::{Journal, Stored};
use crate::kinesis::log::Record;
use crate::kinesis::options::KinesisOptions;
use crate::kinesis::sequence::{SequenceNumber, ShardNumber};
use crate::kinesis::stream::{Meta, Stream, StreamId, StreamName};
use crate::kinesis::subscription::Subscriptions;
use crate::kinesis::transition::{Phase, Status, Transition};
use crate::wire::ApiError;

/// The interval between removals of expired records.
const TRIM_EVERY_MS: i64 = 1_000;

/// The parameter of every operation.
#[derive(Debug)]
pub(super) struct Service {
    pub clock: Clock,
    pub options: KinesisOptions,
    pub place: Place,
    state: Mutex<State>,
}

impl Service {
    pub(super) fn new(
        clock: Clock,
        options: KinesisOptions,
        journal: Option<(Journal, Vec<Stored>)>,
    ) -> Self {
        let (journal, stored) = journal.unzip();
        let state = State::new(options.account.clone(), journal, stored.unwrap_or_default());
        let place = Place { region: options.region.clone(), account: options.account.clone() };
        Self { clock, options, place, state: Mutex::new(state) }
    }

    /// Runs `work` on the state of this moment.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&mut State, i64) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        // A panic cannot leave a partial change that disturbs later calls: metadata is replaced as
        // a whole, and a record is pushed in one step.
        let mut state = self.state.lock();
        let now_ms = self.clock.now_ms();
        state.expire(now_ms)?;
        work(&mut state, now_ms)
    }

    /// Reads one stream.
    pub(super) fn read<T>(
        &self,
        name: &StreamName,
        work: impl FnOnce(&Stream, i64) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.with(|state, now_ms| work(state.stream(name)?, now_ms))
    }

    /// Changes one stream's metadata, all or nothing.
    pub(super) fn change<T>(
        &self,
        name: &StreamName,
        work: impl FnOnce(&mut Meta, i64) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.with(|state, now_ms| state.change(name, now_ms, |meta| work(meta, now_ms)))
    }

    /// Returns a phase that begins now and ends with time.
    pub(super) fn transition(&self, phase: Phase, now_ms: i64) -> Option<Transition> {
        let lasts = i64::try_from(self.options.transition.as_millis()).unwrap_or(i64::MAX);
        Some(Transition { phase, until_ms: now_ms.saturating_add(lasts) })
    }

    /// Returns the stream that a request names by name, by ARN, or by both.
    ///
    /// # Errors
    ///
    /// `InvalidArgumentException` if neither is given or they differ, `ValidationException` if the
    /// name is invalid.
    pub(super) fn stream_name(
        &self,
        name: Option<&str>,
        arn: Option<&str>,
    ) -> Result<StreamName, ApiError> {
        let by_name = name.map(StreamName::new).transpose()?;
        let by_arn = arn.map(|arn| self.stream_of(arn)).transpose()?;
        match (by_name, by_arn) {
            (Some(a), Some(b)) if a != b => Err(invalid_argument(format!(
                "StreamName {a} and StreamARN of {b} name different streams."
            ))),
            (Some(name), _) | (None, Some(name)) => Ok(name),
            (None, None) => Err(invalid_argument("Either StreamName or StreamARN must be given.")),
        }
    }

    /// Returns the stream that a stream's ARN names.
    pub(super) fn stream_of(&self, arn: &str) -> Result<StreamName, ApiError> {
        match self.place.read(arn)? {
            Resource::Stream(name) => Ok(name),
            Resource::Consumer { .. } => {
                Err(invalid_argument(format!("The ARN {arn} names a consumer, not a stream.")))
            }
        }
    }
}

/// A record to be put into a stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub hash_key: u128,
    pub partition_key: String,
    pub data: Bytes,
}

/// The outcome of a put.
#[derive(Debug)]
pub(super) enum Placed {
    Stored(SequenceNumber),
    /// The shard has accepted too much this second.
    Throttled(ShardNumber),
}

/// The streams, their journal, and the sessions of subscribers.
#[derive(Debug)]
pub(super) struct State {
    streams: BTreeMap<StreamName, Stream>,
    journal: Option<Journal>,
    account: String,
    last_id: StreamId,
    trimmed_ms: i64,
    /// The payload that was stored last, so that repeated puts of the same payload share memory.
    last_payload: Bytes,
    pub subscriptions: Subscriptions,
}

impl State {
    fn new(account: String, journal: Option<Journal>, stored: Vec<Stored>) -> Self {
        let last_id = stored.iter().map(|stored| stored.meta.id).max().unwrap_or(StreamId(0));
        let streams = stored
            .into_iter()
            .map(|stored| (stored.meta.name.clone(), Stream::new(stored.meta, stored.records)));
        Self {
            streams: streams.collect(),
            journal,
            account,
            last_id,
            trimmed_ms: i64::MIN,
            last_payload: Bytes::new(),
            subscriptions: Subscriptions::default(),
        }
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.streams.values()
    }

    pub(super) fn streams_after(&self, name: &StreamName) -> impl Iterator<Item = &Stream> {
        let later = (std::ops::Bound::Excluded(name), std::ops::Bound::Unbounded);
        self.streams.range::<StreamName, _>(later).map(|(_, stream)| stream)
    }

    /// # Errors
    ///
    /// `ResourceNotFoundException` if the stream does not exist.
    pub(super) fn stream(&self, name: &StreamName) -> Result<&Stream, ApiError> {
        self.streams.get(name).ok_or_else(|| stream_not_found(name, &self.account))
    }

    /// Returns a stream that accepts and returns records: one that is neither being created nor
    /// deleted.
    ///
    /// # Errors
    ///
    /// `ResourceNotFoundException` otherwise, as in the service.
    pub(super) fn serving(
        &mut self,
        name: &StreamName,
        now_ms: i64,
    ) -> Result<&mut Stream, ApiError> {
        let account = &self.account;
        self.streams
            .get_mut(name)
            .filter(|stream| stream.meta.status(now_ms).serves_records())
            .ok_or_else(|| stream_not_found(name, account))
    }

    /// Adds a stream.
    pub(super) fn create(
        &mut self,
        make: impl FnOnce(StreamId) -> Meta,
        now_ms: i64,
    ) -> Result<(), ApiError> {
        // From the time, so that an id is not reused after a restart.
        let now = u64::try_from(now_ms).unwrap_or_default();
        let id = StreamId(now.max(self.last_id.0.saturating_add(1)));
        let meta = make(id);
        if let Some(journal) = &mut self.journal {
            journal.save(&meta)?;
        }
        self.last_id = id;
        self.streams.insert(meta.name.clone(), Stream::new(meta, []));
        Ok(())
    }

    /// Changes a stream's metadata on a copy, which replaces the original once it is stored.
    pub(super) fn change<T>(
        &mut self,
        name: &StreamName,
        now_ms: i64,
        work: impl FnOnce(&mut Meta) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let account = &self.account;
        let stream = self.streams.get_mut(name).ok_or_else(|| stream_not_found(name, account))?;
        let mut meta = stream.meta.clone();
        let answer = work(&mut meta)?;
        meta.stored_ms = now_ms;
        if let Some(journal) = &mut self.journal {
            journal.save(&meta)?;
        }
        stream.replace_meta(meta);
        Ok(answer)
    }

    /// Puts records in the given order, those that the rates of their shards admit.
    ///
    /// # Errors
    ///
    /// `ResourceNotFoundException` unless the stream accepts records now.
    pub(super) fn append(
        &mut self,
        name: &StreamName,
        mut entries: Vec<Entry>,
        enforce_limits: bool,
        now_ms: i64,
    ) -> Result<Vec<Placed>, ApiError> {
        for entry in &mut entries {
            if entry.data != self.last_payload {
                self.last_payload = entry.data.clone();
            }
            entry.data = self.last_payload.clone();
        }
        let account = &self.account;
        let stream = self
            .streams
            .get_mut(name)
            .filter(|stream| stream.meta.status(now_ms).serves_records())
            .ok_or_else(|| stream_not_found(name, account))?;
        let mut placed = Vec::with_capacity(entries.len());
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            let Entry { hash_key, partition_key, data } = entry;
            let shard = stream.route(hash_key);
            let size = data.len() + partition_key.len();
            let admitted = !enforce_limits
                || stream.log_mut(shard).is_some_and(|log| log.meter.admit_write(size, now_ms));
            if !admitted {
                placed.push(Placed::Throttled(shard));
                continue;
            }
            let index = stream.meta.lineage.take_index();
            let encrypted = stream.meta.encryption_key.is_some();
            if let Some((shard, _)) = stream.shard(shard) {
                placed.push(Placed::Stored(shard.sequence(index, now_ms)));
            }
            let record = Record { index, arrival_ms: now_ms, partition_key, data, encrypted };
            records.push((shard, Arc::new(record)));
        }
        if let Some(journal) = &mut self.journal {
            // Stored before it is visible: no reader may see a record that a kill would lose.
            journal.append(stream.meta.id, &records)?;
        }
        for (shard, record) in records {
            stream.push(shard, record);
        }
        stream.wake();
        Ok(placed)
    }

    /// Removes deleted streams and, once a second, records beyond the retention period.
    fn expire(&mut self, now_ms: i64) -> Result<(), ApiError> {
        let gone = |stream: &Stream| stream.meta.status(now_ms) == Status::Gone;
        if self.streams.values().any(gone) {
            let journal = &mut self.journal;
            for stream in self.streams.values().filter(|stream| gone(stream)) {
                if let Some(journal) = journal {
                    journal.delete(stream.meta.id)?;
                }
            }
            self.streams.retain(|_, stream| !gone(stream));
        }
        if now_ms.saturating_sub(self.trimmed_ms) >= TRIM_EVERY_MS {
            self.trimmed_ms = now_ms;
            self.trim(now_ms)?;
        }
        Ok(())
    }

    fn trim(&mut self, now_ms: i64) -> Result<(), ApiError> {
        for stream in self.streams.values_mut() {
            if let Some(trimmed) = stream.trim(now_ms) {
                stream.meta.stored_ms = now_ms;
                if let Some(journal) = &mut self.journal {
                    journal.trim(&stream.meta, &trimmed)?;
                }
                stream.wake();
            }
        }
        Ok(())
    }

    /// Makes the next call remove expired records, because a retention period was shortened.
    pub(super) fn trim_soon(&mut self) {
        self.trimmed_ms = i64::MIN;
    }

    /// Returns the number of open shards of all streams.
    pub(super) fn open_shards(&self) -> usize {
        self.streams.values().map(|stream| stream.meta.lineage.open().count()).sum()
    }
}
