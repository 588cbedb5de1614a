//! Getting one batch done: deliver, deliver again, halve, put aside, or give up.
//!
//! Order is kept: nothing behind a part is delivered before the part is. A record that is put aside
//! counts as acknowledged only after it was stored.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::callback::Fault;
use super::fetch::FetchedRecords;
use super::suspects::Next;
use super::{Pass, ShardTask, drop_done};
use crate::budget::Permit;
use crate::clock::within;
use crate::dead_letter::DeadLetterRecord;
use crate::event::Event;
use crate::position::{Checkpoint, Position};
use crate::processor::{Batch, ErasedProcessor, ShardContext, StoreLine};
use crate::record::Record;
use crate::settings::FailurePolicy;
use crate::worker::liveness::Activity;

/// How long one attempt to store a dead letter may take.
const STORE_LIMIT: Duration = Duration::from_secs(30);

impl ShardTask {
    /// Delivers `records` until all are processed or put aside. `Some` ends the pass.
    pub(super) async fn deliver(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &Arc<ShardContext>,
        line: &StoreLine,
        fetched: FetchedRecords,
    ) -> Option<Pass> {
        let FetchedRecords { mut records, bytes, millis_behind_latest, memory } = fetched;
        let memory = Arc::new(memory);
        if let Some(pass) = self.look_for_gap(processor, records.first()).await {
            return Some(pass);
        }
        self.keeper.delivered(bytes);
        loop {
            self.publish(&line.window);
            self.drop_acknowledged(&mut records);
            line.window.pass_over(&mut records);
            if records.is_empty() {
                return None;
            }
            let count = match self.suspects.next(&records) {
                Next::Deliver(count) => count,
                Next::Exhausted { records: count, attempts, error } => {
                    if let Some(pass) = self.give_up(attempts, &error) {
                        return Some(pass);
                    }
                    let open = line.window.open(&records[..count]);
                    if open.len() > 1 {
                        let attempts = self.context.settings.failures.attempts();
                        self.suspects.halve(&open, attempts);
                    } else if let Some(pass) =
                        self.put_aside(line, &records[0], attempts, error).await
                    {
                        return Some(pass);
                    }
                    continue;
                }
            };
            let part = Arc::new(if count == records.len() {
                std::mem::take(&mut records)
            } else {
                records.drain(..count).collect()
            });
            let batch = (Arc::clone(&part), millis_behind_latest, &memory);
            match self.attempt(processor, shard, line, batch).await {
                Ok(()) => {}
                Err(Some(pass)) => return Some(pass),
                Err(None) => {
                    records.splice(0..0, part.iter().cloned());
                }
            }
        }
    }

    /// One call of `process`. `Err(Some(_))` ends the pass, `Err(None)` asks for another attempt.
    async fn attempt(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &Arc<ShardContext>,
        line: &StoreLine,
        (part, millis_behind_latest, memory): (Arc<Vec<Record>>, u64, &Arc<Permit>),
    ) -> Result<(), Option<Pass>> {
        self.doing(Activity::Storing);
        self.keeper.still_ours().await;
        let (delivered, deferral) = line.window.deliver(&part);
        line.window.hold(delivered, Arc::clone(memory));
        let batch = Batch::new(
            Arc::clone(shard),
            millis_behind_latest,
            deferral,
            line.clone(),
            Arc::clone(memory),
        );
        let error = match self.call("process", processor.process(batch)).await {
            Ok(()) => {
                line.window.succeeded(delivered);
                self.succeeded();
                let now = self.context.clock.now();
                self.progress.lock().unwrap_or_else(PoisonError::into_inner).at = now;
                return Ok(());
            }
            Err(Fault::Failed(_)) if crate::mutant::is("a-failed-batch-is-done") => {
                line.window.succeeded(delivered);
                return Ok(());
            }
            Err(Fault::Failed(error)) => error,
            Err(Fault::TooLong(reason)) => return Err(Some(Pass::TooLong(reason))),
        };
        self.publish(&line.window);
        let attempts = self.context.settings.failures.attempts();
        let last = part.last().map(Position::of).expect("a part is never empty");
        let failures = self.suspects.failed(last, attempts, &error);
        let at_once = matches!(self.suspects.next(&part), Next::Exhausted { .. });
        if self.is_dead {
            return Err(Some(Pass::Again { failures, error, at_once }));
        }
        // Until the next attempt tokens of this one may still acknowledge.
        let drained = self.pause(failures, &error, at_once).await;
        line.window.withdraw(delivered);
        Err(drained.then_some(Pass::Drained { clean: false }))
    }

    fn drop_acknowledged(&self, records: &mut Vec<Record>) {
        match (&self.acknowledged, &self.shard.checkpoint) {
            (Some(mark), _) => drop_done(records, &mark.position),
            (None, Checkpoint::At(position)) => drop_done(records, position),
            (
                None,
                Checkpoint::AtTimestamp
                | Checkpoint::TrimHorizon
                | Checkpoint::Latest
                | Checkpoint::ShardEnd,
            ) => {}
        }
    }

    /// Stores a record where the worker was told to, however long that takes, and acknowledges it.
    async fn put_aside(
        &mut self,
        line: &StoreLine,
        record: &Record,
        attempts: u32,
        error: String,
    ) -> Option<Pass> {
        let sink =
            self.context.dead_letter.clone().filter(|_| {
                matches!(self.context.settings.failures, FailurePolicy::DeadLetter { .. })
            });
        let sink = sink.expect("only the dead-letter policy puts records aside, and it has a sink");
        let letter = DeadLetterRecord {
            stream: self.shard.stream.to_string(),
            shard: self.shard.shard_id.clone(),
            position: Position::of(record),
            partition_key: record.partition_key.clone(),
            data: record.data.clone(),
            arrived: record.arrived,
            attempts,
            error,
        };
        let mut failure = None;
        let clock = Arc::clone(&self.context.clock);
        let begun = clock.now();
        loop {
            self.doing_since(Activity::DeadLettering { error: failure }, begun);
            let error = match within(&clock, STORE_LIMIT, sink.store(&letter)).await {
                Some(Ok(())) => break,
                Some(Err(_)) if crate::mutant::is("dead-letters-count-unstored") => break,
                Some(Err(error)) => error.to_string(),
                None => format!("no answer in {STORE_LIMIT:?}"),
            };
            let retry_in = self.retry.delay(&mut self.rng);
            self.context.events.emit(&Event::DeadLetterFailed {
                shard: self.shard.lease_key.clone(),
                position: letter.position.clone(),
                error: error.clone(),
                retry_in,
            });
            if self.sleep_unless_drained(retry_in).await {
                return Some(Pass::Drained { clean: false });
            }
            failure = Some(error);
        }
        line.window.settled(record);
        let DeadLetterRecord { position, attempts, error, .. } = letter;
        let shard = self.shard.lease_key.clone();
        self.context.events.emit(&Event::DeadLettered { shard, position, attempts, error });
        None
    }
}
