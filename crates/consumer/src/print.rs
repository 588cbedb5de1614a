//! The processor: one shard's batches, formatted and handed to stdout.

use kcl_lite::{Batch, BoxError, Record, RecordProcessor};

use crate::format::Format;
use crate::output::Output;

/// What indentation adds to a record of a few fields.
const USUAL_GROWTH: usize = 128;

/// Prints the records of one shard. A batch is acknowledged once it is flushed.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    pub(crate) output: Output,
}

impl RecordProcessor for Printer {
    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        let records = batch.records();
        self.output.write(text(self.format, records), records.len() as u64).await?;
        Ok(())
    }
}

fn text(format: Format, records: &[Record]) -> Vec<u8> {
    let size = records.iter().map(|record| record.data.len() + USUAL_GROWTH).sum();
    let mut text = Vec::with_capacity(size);
    for record in records {
        format.append(&record.data, &mut text);
    }
    text
}
