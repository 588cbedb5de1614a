//! The loop: tick, measure, send, until the count is reached or a stop is requested.
//!
//! A reading is made after its tick and sent before the next one is waited for, so that a slow
//! stream slows the ride down instead of piling records up: at most one tick's records wait. Ticks
//! that were missed are dropped. Wall-clock time comes as a function; the pace is tokio's clock.

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::batch::{Entry, Queue};
use crate::failure::{Failure, FailureKind};
use crate::options::Options;
use crate::pace::Pace;
use crate::reading;
use crate::report::Tally;
use crate::session::{Halt, Session};
use crate::unicorn::Herd;

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
    tally: Tally,
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
                () = self.session.stop.requested() => return Err(Halt::Stopped),
                _ = ticks.tick() => {}
            }
            self.measure(tick);
            self.send_waiting().await?;
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

    /// Makes the records of a tick.
    fn measure(&mut self, tick: u64) {
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
        loop {
            let batch = self.queue.next_batch();
            if batch.is_empty() {
                return Ok(());
            }
            let reply = self.session.put(&batch).await?;
            if let Some(failure) = self.settle(batch, reply)? {
                self.recover(failure).await?;
            }
            if self.session.stop.is_requested() {
                return Err(Halt::Stopped);
            }
        }
    }

    /// Counts what was stored, keeps what was not, and returns a reason if there is any.
    fn settle(
        &mut self,
        batch: Vec<Entry>,
        reply: Result<Vec<Option<Failure>>, Failure>,
    ) -> Result<Option<Failure>, Halt> {
        let results = match reply {
            Ok(results) => results,
            Err(failure) => {
                self.tally.failures += batch.len() as u64;
                self.queue.give_back(batch);
                return Ok(Some(failure));
            }
        };
        let (mut refused, mut reason) = (Vec::new(), None);
        let stored_before = self.tally.sent;
        for (entry, result) in batch.into_iter().zip(results) {
            if let Some(failure) = result {
                refused.push(entry);
                reason.get_or_insert(failure);
            } else {
                self.tally.sent += 1;
            }
        }
        self.tally.failures += refused.len() as u64;
        self.queue.give_back(refused);
        if self.tally.sent > stored_before {
            self.session.progress();
            self.session.console.period()?;
        }
        Ok(reason)
    }

    /// Waits until it makes sense to send again.
    async fn recover(&mut self, failure: Failure) -> Result<(), Halt> {
        if failure.kind != FailureKind::Missing {
            return self.session.wait_out(failure).await;
        }
        // A put to a stream that is being created is told that there is none.
        match self.session.wait_until_active().await {
            // Without permission to ask, the put's own answer is all that is known.
            Err(Halt::Failed(other)) if other.kind == FailureKind::Denied => {
                Err(Halt::Failed(failure))
            }
            Err(other) => Err(other),
            // ACTIVE to one, unknown to the other: a matter of moments, and bounded.
            Ok(()) => {
                let failure = Failure { kind: FailureKind::Busy, ..failure };
                self.session.wait_out(failure).await
            }
        }
    }
}

#[cfg(test)]
mod tests;
