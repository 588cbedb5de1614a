//! The processor: sums each unicorn's minute, writes the row, and acknowledges only then.
//!
//! Every record is acknowledged individually, after its row is written. So the stored checkpoint is always
//! before the oldest open minute, and the next owner of the shard reads that minute again from its start
//! and writes the same row. Acknowledging whole batches would not work: a batch may contain the end of one
//! minute and the start of the next.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Write as _};

use kcl_lite::{Ack, Batch, BoxError, Heartbeat, RecordProcessor, ShardContext};
use tokio::time::Instant;

use super::window::{Closed, Row, Windows};

/// A destination of rows. A row may be written again after a failure or a crash, with the same content.
pub(crate) trait RowSink: Send + Sync + 'static {
    /// Writes rows; `Ok` means that they are stored. Sends heartbeats while it makes progress, even slowly.
    fn put(
        &self,
        rows: &[Row],
        heartbeat: &Heartbeat,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// Aggregates one shard.
#[derive(Debug)]
pub(crate) struct Aggregate<S> {
    sink: S,
    heartbeat: Heartbeat,
    windows: Windows<Ack>,
    /// Closed windows that are not written yet.
    closed: VecDeque<Closed<Ack>>,
    /// When the last record was delivered.
    heard: Instant,
}

impl<S: RowSink> Aggregate<S> {
    pub(crate) fn new(sink: S, shard: &ShardContext) -> Self {
        Self {
            sink,
            heartbeat: shard.heartbeat.clone(),
            windows: Windows::default(),
            closed: VecDeque::new(),
            heard: Instant::now(),
        }
    }

    async fn put_closed(&mut self) -> Result<(), BoxError> {
        while let Some(closed) = self.closed.front() {
            self.sink.put(&closed.rows, &self.heartbeat).await?;
            let closed = self.closed.pop_front().expect("it was there before the put");
            closed.held.into_iter().for_each(Ack::acknowledge);
        }
        Ok(())
    }
}

impl<S: RowSink> RecordProcessor for Aggregate<S> {
    async fn process(&mut self, mut batch: Batch) -> Result<(), BoxError> {
        // Before any record of the batch is counted: after an error the same batch is delivered to this
        // processor again.
        self.put_closed().await?;
        for (record, ack) in batch.split() {
            let reading = serde_json::from_slice(&record.data)
                .inspect_err(|error| skipped(&record.partition_key, error))
                .ok();
            self.closed.extend(self.windows.add(record.arrived, reading.as_ref(), ack));
        }
        self.heard = Instant::now();
        // A window that was just closed is written in the next call, which comes within a second.
        Ok(())
    }

    async fn idle(&mut self) -> Result<(), BoxError> {
        self.closed.extend(self.windows.close_after(self.heard.elapsed()));
        // After an error the shard restarts at the checkpoint: nothing is lost.
        self.put_closed().await
    }

    async fn shutdown_requested(&mut self) {
        if let Err(error) = self.put_closed().await {
            tell(&format!("rows are left to the next owner of the shard: {error}"));
        }
        // The tokens of the open minute are dropped, not acknowledged: the next owner reads it again.
        self.closed.clear();
        self.windows = Windows::default();
    }
}

/// Logs a record that is not a reading: it must not block the shard indefinitely.
fn skipped(key: &str, error: &serde_json::Error) {
    tell(&format!("a record of `{key}` is no reading and is left out: {error}"));
}

fn tell(line: &str) {
    // A closed stderr is ignored.
    writeln!(io::stderr(), "aggregate: {line}").ok();
}
