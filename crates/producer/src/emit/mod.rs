//! The loop: tick, measure, send, until the count is reached or a stop is requested.
//!
//! A reading is made after its tick and sent before the next one is waited for, so that a slow
//! stream slows the ride down instead of piling records up: at most one tick's records wait. Ticks
//! that were missed are dropped. Wall-clock time comes as a function; the pace is tokio's clock.
//!
//! With aggregates, records of several ticks may wait for each other, for a tenth of a second. An
//! aggregate that a reshard brought to another shard than its records belong to is sent again.

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

/// How often the shards are listed when a record is in one that no listing shows, a second apart.
const LISTINGS: u32 = 3;

/// A herd on its ride.
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
    /// When the oldest record in the queue was made.
    oldest: Instant,
    /// Where records belong, if they are to be packed.
    shards: Option<ShardMap>,
    /// Some of the queue are in an aggregate that is stored where it does not belong.
    has_astray: bool,
    tally: Tally,
}

/// What became of a request.
#[derive(Debug, Default)]
struct Settled {
    /// Why something was refused.
    reason: Option<Failure>,
    /// Aggregates that are stored in another shard than their records belong to, as far as is known,
    /// and that shard.
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

    /// Rides until the end and prints the sum.
    ///
    /// # Errors
    ///
    /// A call failed for good, or stdout cannot be written. A requested stop is no error.
    pub(crate) async fn run(mut self) -> Result<(), Halt> {
        let ended = match self.ride().await {
            Err(Halt::Stopped) => Ok(()),
            other => other,
        };
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
                    // What waits for others has been made, and goes with one request.
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

    /// Records that may still be made.
    fn left(&self) -> u64 {
        self.count.map_or(u64::MAX, |count| count - self.made)
    }

    /// Whether what waits is to be sent before the next tick.
    fn is_due(&self) -> bool {
        let next_tick = Instant::now() + self.pace.period();
        self.shards.is_none()
            || self.left() == 0
            || aggregate::is_due(self.queue.waiting_bytes(), self.oldest, next_tick)
    }

    /// Makes the records of a tick.
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
            // These are in a shard where they do not belong, and have to be sent again.
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
            if !moved.is_empty() {
                self.look_after(moved).await?;
            }
            if let Some(failure) = reason {
                self.recover(failure).await?;
            }
            if self.session.stop.is_cancelled() {
                return Err(Halt::Stopped);
            }
        }
    }

    /// Counts what was stored, and keeps what was not.
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
        if is_stored {
            self.session.progress();
            self.session.console.period()?;
        }
        Ok(settled)
    }

    /// A parcel is stored where its records belong.
    fn count(&mut self, parcel: &Parcel) {
        self.tally.sent += parcel.entries.len() as u64;
        self.tally.aggregates += u64::from(parcel.packed.is_some());
    }

    /// Puts the records back to where they were, to be sent again.
    fn keep(&mut self, parcels: Vec<Parcel>) {
        let entries: Vec<_> = parcels.into_iter().flat_map(|parcel| parcel.entries).collect();
        self.tally.failures += entries.len() as u64;
        self.queue.give_back(entries);
    }

    /// The stream was resharded. Aggregates that are in a shard which some of their records do not
    /// belong to are sent again, as a whole: consumers that filter by shard drop them as a whole.
    async fn look_after(&mut self, moved: Vec<(Parcel, String)>) -> Result<(), Halt> {
        if let Err(halt) = self.list_until_known(&moved).await {
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

    /// Sends what waits as it is, for the service to find its shards: the end of a ride that was
    /// stopped in the middle of a reshard.
    async fn send_unpacked(&mut self) -> Result<(), Halt> {
        loop {
            let batch: Vec<_> = self.queue.next_batch().into_iter().map(Parcel::from).collect();
            if batch.is_empty() {
                return Err(Halt::Stopped);
            }
            let reply = self.session.put(&batch).await?;
            if let Some(failure) = self.settle(batch, reply)?.reason {
                let left = self.queue.waiting.len();
                let line = format!("{left} records may be stored in a shard that is not theirs");
                self.session.console.note(&format!("{line}: {}", failure.words()));
                return Err(Halt::Stopped);
            }
        }
    }

    /// Lists the shards until those are known that the parcels are stored in, or a few times.
    async fn list_until_known(&mut self, moved: &[(Parcel, String)]) -> Result<(), Halt> {
        for listing in 1..=LISTINGS {
            self.list_shards().await?;
            let shards = self.shards.as_ref();
            let knows = |shard: &str| shards.is_some_and(|shards| shards.has(shard));
            if moved.iter().all(|(_, shard)| knows(shard)) {
                break;
            }
            // A listing may be behind, or the shard closed again.
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

    /// Waits until it makes sense to send again.
    async fn recover(&mut self, failure: Failure) -> Result<(), Halt> {
        if failure.kind != ServiceErrorKind::Missing {
            return self.session.wait_out(failure).await;
        }
        // A put to a stream that is being created is told that there is none.
        match self.session.wait_until_active().await {
            // Without permission to ask, the put's own answer is all that is known.
            Err(Halt::Failed(other)) if other.kind == ServiceErrorKind::Denied => {
                Err(Halt::Failed(failure))
            }
            Err(other) => Err(other),
            // ACTIVE to one, unknown to the other: a matter of moments.
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
