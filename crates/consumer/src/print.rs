//! The processor: one shard's batches, formatted and handed to stdout.

use kcl_lite::{Batch, BoxError, Heartbeat, RecordProcessor};

use crate::format::Format;
use crate::output::{Output, Text};

/// What indentation adds to a record of a few fields.
const USUAL_GROWTH: usize = 128;

/// Prints the records of one shard. A record is acknowledged once it is flushed, however long the
/// reader of stdout takes.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    pub(crate) output: Output,
    pub(crate) heartbeat: Heartbeat,
}

impl RecordProcessor for Printer {
    async fn process(&mut self, mut batch: Batch) -> Result<(), BoxError> {
        let records = batch.split();
        let size = records.iter().map(|(record, _)| record.data.len() + USUAL_GROWTH).sum();
        let mut text = Text::with_capacity(size);
        for (record, ack) in records {
            text.push(ack, |out| self.format.append(&record.data, out));
        }
        Ok(self.output.print(text)?)
    }

    /// A stdout that is full is open, and its writer waits for it: slow, but alive. One that fails or
    /// is closed ends the session.
    async fn idle(&mut self) -> Result<(), BoxError> {
        self.heartbeat.beat();
        Ok(())
    }
}
