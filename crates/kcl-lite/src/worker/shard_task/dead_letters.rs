//! Dead letters: records that a processor rejects, or that keep failing, are stored elsewhere.
//!
//! A record counts as acknowledged only after it was stored; while storing fails, the shard waits. The
//! processor or the failure policy decides which records are dead letters, not this module.

use std::sync::Arc;
use std::time::Duration;

use super::task::{Pass, ShardTask};
use crate::checkpoint::AckWindow;
use crate::clock::within;
use crate::dead_letter::{DeadLetter, DeadLetterRecord};
use crate::error::{Failure, words};
use crate::event::Event;
use crate::position::Position;
use crate::record::Record;
use crate::worker::liveness::Activity;

/// How long one attempt to store a dead letter may take.
const STORE_LIMIT: Duration = Duration::from_secs(30);
/// This many consecutive dead letters of a shard, without a processed record in between, indicate an
/// outage rather than poison records, which come alone or in small groups. An outage reaches the limit
/// within seconds, before many records are dead-lettered.
const MANY_IN_A_ROW: u32 = 10;

impl ShardTask {
    /// Stores the records that the processor has rejected. `Some` ends the pass.
    pub(super) async fn store_rejected(&mut self, window: &AckWindow) -> Option<Pass> {
        while let Some(rejected) = window.next_rejected() {
            if self.context.dead_letter.is_none() {
                return Some(self.cannot_reject(&rejected));
            }
            for record in &rejected.records {
                if !self.dead_letter(window, record, 0, &rejected.failure).await {
                    // The drain makes one more attempt to store them.
                    window.still_rejected(rejected);
                    return Some(Pass::Drained { clean: false });
                }
            }
            window.all_settled(&rejected);
            self.publish(window);
        }
        None
    }

    /// Stores rejected records during a drain, which leaves time for one attempt each. Returns false if
    /// one fails; its record is left to the next owner.
    pub(super) async fn store_rejected_at_last(&mut self, window: &AckWindow) -> bool {
        while let Some(rejected) = window.next_rejected() {
            let Some(sink) = self.context.dead_letter.clone() else { return false };
            for record in &rejected.records {
                let letter = self.letter(record, 0, &rejected.failure);
                if self.store(&sink, &letter).await.is_err() {
                    return false;
                }
                self.dead_lettered(window, record, letter);
            }
            window.all_settled(&rejected);
        }
        true
    }

    /// Stores one record, retrying indefinitely, and settles it; returns false if a drain interrupts it.
    pub(super) async fn dead_letter(
        &mut self,
        window: &AckWindow,
        record: &Record,
        attempts: u32,
        failure: &Failure,
    ) -> bool {
        let sink = self.context.dead_letter.clone();
        let sink = sink.expect("`build` and `store_rejected` refuse to go on without one");
        let letter = self.letter(record, attempts, failure);
        let begun = self.context.clock.now();
        let mut failure = None;
        loop {
            self.doing_since(Activity::DeadLettering { error: failure }, begun);
            let Err(error) = self.store(&sink, &letter).await else { break };
            let retry_in = self.failures.retry.delay(&mut self.rng);
            self.context.events.emit(&Event::DeadLetterFailed {
                shard: self.shard.lease_key.clone(),
                position: letter.position.clone(),
                error: error.clone(),
                retry_in,
            });
            // Other records may have been acknowledged during the attempt.
            self.publish(window);
            if self.sleep_unless_drained(retry_in).await {
                return false;
            }
            failure = Some(error);
        }
        self.dead_lettered(window, record, letter);
        true
    }

    fn letter(&self, record: &Record, attempts: u32, failure: &Failure) -> DeadLetterRecord {
        DeadLetterRecord {
            stream: self.shard.stream.to_string(),
            shard: self.shard.shard_id.clone(),
            position: Position::of(record),
            partition_key: record.partition_key.clone(),
            data: record.data.clone(),
            arrived: record.arrived,
            attempts,
            error: failure.text.clone(),
        }
    }

    /// Makes one attempt to store a dead letter.
    async fn store(
        &self,
        sink: &Arc<dyn DeadLetter>,
        letter: &DeadLetterRecord,
    ) -> Result<(), String> {
        match within(&self.context.clock, STORE_LIMIT, sink.store(letter)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(words(&*error)),
            None => Err(format!("no answer in {STORE_LIMIT:?}")),
        }
    }

    /// Settles a stored record. Emits an event for it, and another one for many in a row.
    fn dead_lettered(&mut self, window: &AckWindow, record: &Record, letter: DeadLetterRecord) {
        window.settled(record);
        let DeadLetterRecord { position, attempts, error, .. } = letter;
        let shard = self.shard.lease_key.clone();
        let last = error.clone();
        self.context.events.emit(&Event::DeadLettered { shard, position, attempts, error });
        if window.take_progress() {
            self.failures.dead_letters_in_a_row = 0;
        }
        self.failures.dead_letters_in_a_row = self.failures.dead_letters_in_a_row.saturating_add(1);
        let records = self.failures.dead_letters_in_a_row;
        // Repeated whenever the number has doubled.
        if records.is_multiple_of(MANY_IN_A_ROW) && (records / MANY_IN_A_ROW).is_power_of_two() {
            let shard = self.shard.lease_key.clone();
            let event = Event::ManyDeadLetters { shard, records, error: last };
            self.context.events.emit(&event);
        }
    }
}

/// Rewords the error of a processor that rejects a record while no dead letter store is configured.
pub(super) fn no_place(failure: Failure) -> Failure {
    let text = format!(
        "the processor rejected a record, but no dead letter store is configured (see \
         `WorkerBuilder::dead_letter`): {}",
        failure.text
    );
    failure.reworded(text)
}
