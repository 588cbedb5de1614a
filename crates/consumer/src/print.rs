//! The processor of the command: formats the batches of one shard and queues them for stdout.

use kcl_lite::{Batch, BoxError, Heartbeat, RecordProcessor};

use crate::format::Format;
use crate::output::{Output, Text};

/// The bytes that indentation adds to a record of a few fields.
const USUAL_GROWTH: usize = 128;

/// The printer of one shard. It acknowledges a record once it is flushed, however slow the reader
/// of stdout is.
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

    /// Keeps the shard while stdout is full: the writer waits for its reader, which is slow but
    /// alive. A stdout that fails or is closed ends the session.
    async fn idle(&mut self) -> Result<(), BoxError> {
        self.heartbeat.beat();
        Ok(())
    }
}
