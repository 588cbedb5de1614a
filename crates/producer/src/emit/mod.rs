//! The loop: waits for a tick, measures and sends, until the count is reached or a stop is
//! requested.
//!
//! A reading is created after its tick and sent before the loop waits for the next one, so that a
//! slow stream slows the ride down instead of building up a backlog: at most one tick's records
//! wait. Missed ticks are dropped. Wall-clock time comes from a function; the pace is tokio's
//! clock.
//!
//! With aggregates, records of several ticks may wait for each other for a tenth of a second. An
//! aggregate that resharding routed to another shard than its records belong to is sent again.

use std::time::Duration;

use jiff::Timestamp;
use kcl_lite::ServiceErrorKind;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::aggregate;
use crate::batch::{Entry, Parcel, Queue};
use crate::failure::Failure;
use crate::options::Options;
use crate::pace::Pace;
use crate::reading;
use crate::report::Tally;
use crate::send::Stored;
use crate::session::{Halt, Session};
use crate::shards::ShardMap;
use crate::unicorn::Herd;

/// How often the shards are listed, a second apart, when a record is in a shard that no listing
/// contains.
const LISTINGS: u32 = 3;

/// The unicorns of one run and their loop.
#[derive(Debug)]
pub(crate) struct Emitter<'a, Now> {
    session: Session<'a>,
    now: Now,
    herd: Herd,
    pace: Pace,
    count: Option<u64>,
    create_shards: Option<i32>,
    made: u64,
    queue: Queue,
    /// When the oldest record in the queue was created.
    oldest: Instant,
    /// The shard map, if records are packed.
    shards: Option<ShardMap>,
    /// Whether some records in the queue are in a stored aggregate in a shard that they do not
    /// belong to.
    has_astray: bool,
    tally: Tally,
}

/// The outcome of a request.
#[derive(Debug, Default)]
struct Settled {
    /// Why something was refused.
    reason: Option<Failure>,
    /// Aggregates that were stored in another shard than their records belong to, according to the
    /// last listing, and that shard.
    moved: Vec<(Parcel, String)>,
}

impl<'a, Now: Fn() -> Timestamp> Emitter<'a, Now> {
    pub(crate) fn new(options: Options, session: Session<'a>, now: Now) -> Self {
        Self {
            session,
            now,
            herd: Herd::new(options.names, options.seed, options.temper),
            pace: options.pace,
            count: options.count,
            create_shards: options.create_shards,
            made: 0,
            queue: Queue::default(),
            oldest: Instant::now(),
            shards: options.aggregate.then(ShardMap::default),
            has_astray: false,
            tally: Tally::starting(Instant::now()),
        }
    }

    /// Rides until the end and prints the summary.
    ///
    /// # Errors
    ///
    /// A call failed permanently, or stdout cannot be written. A requested stop is not an error.
    pub(crate) async fn run(mut self) -> Result<(), Halt> {
        let ended = match self.ride().await {
            Err(Halt::Stopped) => Ok(()),
            other => other,
        };
        // A failure before the first stored record leaves stdout empty.
        let nothing_to_sum = self.tally.sent == 0 && ended.is_err();
        if !nothing_to_sum && !matches!(ended, Err(Halt::Output(_))) {
            self.session.console.sum(&self.tally, Instant::now())?;
        }
        ended
    }

    async fn ride(&mut self) -> Result<(), Halt> {
        if let Some(shards) = self.create_shards {
            self.session.create_if_missing(shards).await?;
        }
        if self.shards.is_some() {
            self.list_shards().await?;
        }
        let start = Instant::now();
        // The rate does not include the wait for the stream.
        self.tally = Tally::starting(start);
        let mut ticks = interval_at(start + self.pace.period(), self.pace.period());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 1.. {
            if self.left() == 0 {
                break;
            }
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => {
                    // Waiting records have been created already, so they are sent before the end.
                    self.send_waiting().await?;
                    return Err(Halt::Stopped);
                }
                _ = ticks.tick() => {}
            }
            self.measure(tick);
            if self.is_due() {
                self.send_waiting().await?;
            }
            if self.herd.len() > 1 || matches!(self.pace, Pace::PerSecond(_)) {
                self.session.console.status_if_due(&self.tally, Instant::now());
            }
        }
        Ok(())
    }

    /// Returns how many records may still be created.
    fn left(&self) -> u64 {
        self.count.map_or(u64::MAX, |count| count - self.made)
    }

    /// Returns whether the waiting records are to be sent before the next tick.
    fn is_due(&self) -> bool {
        let next_tick = Instant::now() + self.pace.period();
        self.shards.is_none()
            || self.left() == 0
            || aggregate::is_due(self.queue.waiting_bytes(), self.oldest, next_tick)
    }

    /// Creates the records of a tick.
    fn measure(&mut self, tick: u64) {
        if self.queue.is_empty() {
            self.oldest = Instant::now();
        }
        let time = (self.now)();
        let due = self.pace.records_due(tick, self.herd.len());
        for _ in 0..due {
            if self.left() == 0 {
                break;
            }
            let unicorn = self.herd.next_unicorn();
            let sample = unicorn.ride_on();
            let data = reading::encoded(unicorn.name(), time, sample);
            self.queue.push(Entry { key: unicorn.name().to_owned(), data });
            self.made += 1;
        }
    }

    /// Sends until nothing waits.
    async fn send_waiting(&mut self) -> Result<(), Halt> {
        match self.send_packed().await {
            // These records are in a shard that they do not belong to, and have to be sent again.
            Err(Halt::Stopped) if self.has_astray => self.send_unpacked().await,
            other => other,
        }
    }

    async fn send_packed(&mut self) -> Result<(), Halt> {
        loop {
            let batch = match &self.shards {
                Some(shards) => self.queue.next_packed(shards),
                None => self.queue.next_batch().into_iter().map(Parcel::from).collect(),
            };
            if batch.is_empty() {
                self.has_astray = false;
                return Ok(());
            }
            let reply = self.session.put(&batch).await?;
            let Settled { reason, moved } = self.settle(batch, reply)?;
            // Before `recover`, which may end early: these parcels are in no queue meanwhile.
            if !moved.is_empty() {
                self.look_after(moved).await?;
            }
            if let Some(failure) = reason {
                self.recover(failure).await?;
            }
            // After each request, so that a stop does not wait for the whole queue.
            if self.session.stop.is_cancelled() {
                return Err(Halt::Stopped);
            }
        }
    }

    /// Counts what was stored and returns the rest to the queue.
    fn settle(
        &mut self,
        batch: Vec<Parcel>,
        reply: Result<Vec<Stored>, Failure>,
    ) -> Result<Settled, Halt> {
        let results = match reply {
            Ok(results) => results,
            Err(failure) => {
                self.keep(batch);
                return Ok(Settled { reason: Some(failure), ..Settled::default() });
            }
        };
        let is_stored = results.iter().any(Result::is_ok);
        let (mut refused, mut settled) = (Vec::new(), Settled::default());
        for (parcel, result) in batch.into_iter().zip(results) {
            match result {
                Err(failure) => {
                    refused.push(parcel);
                    settled.reason.get_or_insert(failure);
                }
                Ok(shard) => match &parcel.packed {
                    Some(packed) if packed.shard != shard => settled.moved.push((parcel, shard)),
                    _ => self.count(&parcel),
                },
            }
        }
        self.keep(refused);
        // A reply that refuses every record is no progress and must not reset the retries.
        if is_stored {
            self.session.progress();
            self.session.console.period()?;
        }
        Ok(settled)
    }

    /// Counts a parcel that is stored where its records belong.
    fn count(&mut self, parcel: &Parcel) {
        self.tally.sent += parcel.entries.len() as u64;
        self.tally.aggregates += u64::from(parcel.packed.is_some());
    }

    /// Returns the records to their old place, to be sent again.
    fn keep(&mut self, parcels: Vec<Parcel>) {
        let entries: Vec<_> = parcels.into_iter().flat_map(|parcel| parcel.entries).collect();
        self.tally.failures += entries.len() as u64;
        self.queue.give_back(entries);
    }

    /// Handles resharding: queues the aggregates that are in a shard which some of their records do
    /// not belong to, as a whole, because consumers that filter by shard drop them as a whole.
    async fn look_after(&mut self, moved: Vec<(Parcel, String)>) -> Result<(), Halt> {
        if let Err(halt) = self.list_until_known(&moved).await {
            // Where these belong is unknown without a listing, so that all of them are sent again.
            self.has_astray = true;
            self.keep(moved.into_iter().map(|(parcel, _)| parcel).collect());
            return Err(halt);
        }
        let mut astray = Vec::new();
        for (parcel, shard) in moved {
            let keys = parcel.entries.iter().map(|entry| entry.key.as_str());
            if self.shards.as_ref().is_some_and(|shards| shards.is_home(&shard, keys)) {
                self.count(&parcel);
            } else {
                astray.push(parcel);
            }
        }
        self.has_astray |= !astray.is_empty();
        self.keep(astray);
        Ok(())
    }

    /// Sends the waiting records unpacked, so that the service finds their shards. Used when a ride
    /// is stopped during resharding.
    async fn send_unpacked(&mut self) -> Result<(), Halt> {
        loop {
            let batch: Vec<_> = self.queue.next_batch().into_iter().map(Parcel::from).collect();
            if batch.is_empty() {
                return Err(Halt::Stopped);
            }
            let reply = self.session.put(&batch).await?;
            if let Some(failure) = self.settle(batch, reply)?.reason {
                let left = self.queue.waiting.len();
                let line = format!("{left} records may be stored in the wrong shard");
                self.session.console.note(&format!("{line}: {}", failure.words()));
                return Err(Halt::Stopped);
            }
        }
    }

    /// Lists the shards until the listing contains those where the parcels are stored, or
    /// [`LISTINGS`] times.
    async fn list_until_known(&mut self, moved: &[(Parcel, String)]) -> Result<(), Halt> {
        for listing in 1..=LISTINGS {
            self.list_shards().await?;
            let shards = self.shards.as_ref();
            let knows = |shard: &str| shards.is_some_and(|shards| shards.has(shard));
            if moved.iter().all(|(_, shard)| knows(shard)) {
                break;
            }
            // A listing may be stale, or the shard may be closed again.
            if listing < LISTINGS {
                self.session.pause(Duration::from_secs(1)).await?;
            }
        }
        Ok(())
    }

    async fn list_shards(&mut self) -> Result<(), Halt> {
        loop {
            let reply = tokio::select! {
                biased;
                () = self.session.stop.cancelled() => return Err(Halt::Stopped),
                reply = self.session.sender.shards() => reply,
            };
            match reply {
                Ok(shards) => {
                    self.shards = Some(shards);
                    return Ok(());
                }
                Err(failure) => self.recover(failure).await?,
            }
        }
    }

    /// Waits until a retry makes sense.
    async fn recover(&mut self, failure: Failure) -> Result<(), Halt> {
        if failure.kind != ServiceErrorKind::Missing {
            return self.session.wait_out(failure).await;
        }
        // While a stream is being created, a put fails as if the stream did not exist.
        match self.session.wait_until_active().await {
            // Without permission to describe the stream, only the failure of the put is known.
            Err(Halt::Failed(other)) if other.kind == ServiceErrorKind::Denied => {
                Err(Halt::Failed(failure))
            }
            Err(other) => Err(other),
            // One call reports ACTIVE and the other does not know the stream yet: this lasts a
            // moment.
            Ok(()) => {
                let failure = not_ready(failure);
                self.session.wait_out(failure).await
            }
        }
    }
}

fn not_ready(mut failure: Failure) -> Failure {
    failure.kind = ServiceErrorKind::NotReady;
    failure
}

#[cfg(test)]
mod tests;
