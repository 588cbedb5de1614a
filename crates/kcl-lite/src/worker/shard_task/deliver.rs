//! The delivery of one batch: deliver, retry, bisect, or give up.
//!
//! Order is kept: no record after a part is delivered before the part is processed or dead-lettered.

use std::sync::Arc;

use super::bisect::Next;
use super::callback::Fault;
use super::dead_letters::no_place;
use super::done::drop_done;
use super::fetch::FetchedRecords;
use super::task::{Pass, ShardTask};
use crate::budget::Permit;
use crate::error::{Failure, PoisonRecord};
use crate::position::{Checkpoint, Position};
use crate::processor::{Batch, ErasedProcessor, ShardContext, StoreChannel};
use crate::record::Record;
use crate::worker::liveness::Activity;

impl ShardTask {
    /// Delivers `records` until all are processed or dead-lettered. `Some` ends the pass.
    pub(super) async fn deliver(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &Arc<ShardContext>,
        line: &StoreChannel,
        fetched: FetchedRecords,
    ) -> Option<Pass> {
        let FetchedRecords { mut records, bytes, millis_behind_latest, memory } = fetched;
        // Shared, because a batch may be delivered in parts, and each part keeps the whole reply
        // alive.
        let memory = Arc::new(memory);
        if let Some(pass) = self.look_for_gap(processor, records.first()).await {
            return Some(pass);
        }
        // Outside the loop, so that a batch that is delivered several times counts once.
        self.keeper.delivered(bytes);
        loop {
            if let Some(pass) = self.store_rejected(&line.window).await {
                return Some(pass);
            }
            self.publish(&line.window);
            // Before each delivery, because tokens may acknowledge while a failure is waited out.
            self.drop_acknowledged(&mut records);
            line.window.pass_over(&mut records);
            if records.is_empty() {
                return None;
            }
            let count = match self.failures.bisection.next(&records) {
                Next::Deliver(count) => count,
                Next::Exhausted { records: count, attempts, failure } => {
                    if let Some(pass) = self.give_up(attempts, &failure) {
                        return Some(pass);
                    }
                    // Records that tokens have acknowledged are not searched for the poison record.
                    let open = line.window.open(&records[..count]);
                    if open.len() > 1 {
                        let attempts = self.context.settings.failures.attempts();
                        self.failures.bisection.halve(&open, attempts);
                    } else if !self.dead_letter(&line.window, &records[0], attempts, &failure).await
                    {
                        return Some(Pass::Drained { clean: false });
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
                    // Cloned, because tokens of the failed attempt may still share the part.
                    records.splice(0..0, part.iter().cloned());
                }
            }
        }
    }

    /// Calls `process` once. `Err(Some(_))` ends the pass, `Err(None)` requests a retry.
    async fn attempt(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &Arc<ShardContext>,
        line: &StoreChannel,
        (part, millis_behind_latest, memory): (Arc<Vec<Record>>, u64, &Arc<Permit>),
    ) -> Result<(), Option<Pass>> {
        // Checked for every delivery: after a suspend the fence may have passed although nothing
        // has cancelled this task yet.
        self.doing(Activity::Storing);
        self.keeper.still_ours().await;
        let (delivered, deferral) = line.window.deliver(&part);
        line.window.hold(delivered, Arc::clone(memory));
        let open = Arc::clone(deferral.records());
        let batch = Batch::new(
            Arc::clone(shard),
            millis_behind_latest,
            deferral,
            line.clone(),
            Arc::clone(memory),
        );
        let failure = match self.call("process", processor.process(batch)).await {
            Ok(()) => {
                line.window.succeeded(delivered);
                self.failures.succeeded();
                let now = self.context.clock.now();
                self.progress.lock().at = now;
                return Ok(());
            }
            Err(Fault::Failed(failure)) => failure,
            Err(Fault::TooLong(reason)) => return Err(Some(Pass::TooLong(reason))),
        };
        let failure = match self.rejection(&open, failure) {
            Ok((index, failure)) => {
                line.window.withdraw(delivered);
                line.window.rejected(open[index].clone(), failure);
                if index > 0 {
                    // The records before the rejected one were processed.
                    self.failures.dead_letters_in_a_row = 0;
                }
                return Err(None);
            }
            Err(failure) => failure,
        };
        self.publish(&line.window);
        let attempts = self.context.settings.failures.attempts();
        let last = part.last().map(Position::of).expect("a part is never empty");
        let error = failure.text.clone();
        let failures = self.failures.bisection.failed(last, attempts, failure);
        let at_once = matches!(self.failures.bisection.next(&part), Next::Exhausted { .. });
        if self.failures.is_dead {
            return Err(Some(Pass::Again { failures, error, at_once }));
        }
        // Until the retry, tokens of this attempt may still acknowledge: withdraw it after the pause.
        let drained = self.pause(failures, &error, at_once).await;
        line.window.withdraw(delivered);
        Err(drained.then_some(Pass::Drained { clean: false }))
    }

    /// Returns the index of the record that the processor's error rejects; or the error, if it rejects
    /// none of `records` or no dead letter store is configured.
    fn rejection(&self, records: &[Record], failure: Failure) -> Result<(usize, Failure), Failure> {
        let Some(position) = failure.poison().map(PoisonRecord::position) else {
            return Err(failure);
        };
        let Some(index) = records.iter().position(|it| Position::of(it) == *position) else {
            let text = format!("{} (but this record is not in the batch)", failure.text);
            return Err(failure.reworded(text));
        };
        match self.context.dead_letter {
            Some(_) => Ok((index, failure)),
            None => Err(no_place(failure)),
        }
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
}
