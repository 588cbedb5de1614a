//! The measured reader: a worker whose processor counts.

use std::sync::Arc;

use aws_config::SdkConfig;
use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::{
    Batch, BoxError, ControlPlane, InitialPosition, RecordProcessor, Retrieval, Settings,
    StreamConsumer, Worker,
};

use crate::Result;
use crate::measure::{Count, STREAM};

struct Counter(Arc<Count>);

impl RecordProcessor for Counter {
    async fn process(&mut self, batch: Batch) -> std::result::Result<(), BoxError> {
        let bytes = batch.records().iter().map(|record| record.data.len() as u64).sum();
        self.0.add(batch.records().len() as u64, bytes);
        Ok(())
    }
}

/// Reads with the leases in DynamoDB; on paused time with in-memory leases, on this thread.
pub(crate) async fn read(
    config: &SdkConfig,
    count: &Arc<Count>,
    total: u64,
    consumer: Option<String>,
    is_paused: bool,
) -> Result<()> {
    let control_plane = if is_paused { ControlPlane::Inline } else { ControlPlane::OwnThread };
    let settings = Settings {
        initial_position: InitialPosition::TrimHorizon,
        control_plane,
        retrieval: consumer.map_or(Retrieval::Polling, |arn| Retrieval::FanOut {
            consumer: StreamConsumer::Arn(arn),
        }),
        ..Default::default()
    };
    // A new table for each run.
    let application = format!("reading-{}", std::process::id());
    let mut builder =
        Worker::builder(application, STREAM).settings(settings).aws_config(config.clone());
    if is_paused {
        builder = builder.lease_store(MemoryStore::new());
    }
    let counter = Arc::clone(count);
    let worker = builder.build().await?.start(move |_| Counter(Arc::clone(&counter))).await?;
    count.reached(total).await;
    worker.abort();
    Ok(())
}
