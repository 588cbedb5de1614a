//! The processor: sums each unicorn's minute, puts the row out, and acknowledges only then.
//!
//! Every record is acknowledged by itself, after the row that it went into is out. So the stored
//! checkpoint always stands before the oldest open minute, and whoever takes the shard over reads
//! that minute again from its beginning and puts out the same row. Acknowledging whole batches would
//! not do: a batch may hold the end of one minute and the beginning of the next.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Write as _};

use kcl_lite::{Ack, Batch, BoxError, Heartbeat, RecordProcessor, ShardContext};
use tokio::time::Instant;

use super::window::{Closed, Row, Windows};

/// Where rows go. A row may be put again after a failure or a crash, with the same content.
pub(crate) trait RowSink: Send + Sync + 'static {
    /// Puts rows out; `Ok` means that they are stored. Beats while it gets on, however slowly.
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
    /// Finished, but not yet put out.
    closed: VecDeque<Closed<Ack>>,
    /// When the last record came.
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
        // First, before anything of the batch is counted: after an error the same batch is
        // delivered to this value again.
        self.put_closed().await?;
        for (record, ack) in batch.split() {
            let reading = serde_json::from_slice(&record.data)
                .inspect_err(|error| skipped(&record.partition_key, error))
                .ok();
            self.closed.extend(self.windows.add(record.arrived, reading.as_ref(), ack));
        }
        self.heard = Instant::now();
        // What has just been closed goes out with the next call, which comes within a second.
        Ok(())
    }

    async fn idle(&mut self) -> Result<(), BoxError> {
        self.closed.extend(self.windows.close_after(self.heard.elapsed()));
        // After an error here the shard starts again after what is acknowledged: nothing is lost.
        self.put_closed().await
    }

    async fn shutdown_requested(&mut self) {
        if let Err(error) = self.put_closed().await {
            tell(&format!("rows are left to the next owner of the shard: {error}"));
        }
        // Dropped tokens say that the open minute is not done: the next owner reads it again.
        self.closed.clear();
        self.windows = Windows::default();
    }
}

/// A record that is no reading must not hold up the shard for ever.
fn skipped(key: &str, error: &serde_json::Error) {
    tell(&format!("a record of `{key}` is no reading and is left out: {error}"));
}

fn tell(line: &str) {
    // If stderr is closed there is nobody to tell.
    writeln!(io::stderr(), "aggregate: {line}").ok();
}
