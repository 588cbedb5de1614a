//! A processor that records the payloads of every batch and then runs a closure of the test.

use std::sync::Arc;

use kcl_lite::dead_letter::DeadLetter;
use kcl_lite::stream::Stream;
use kcl_lite::{Ack, Batch, BoxError, Record, RecordProcessor, Settings, WorkerHandle};
use parking_lot::Mutex;

use super::failures::Shelf;
use crate::fleet::Fleet;

type Act = dyn FnMut(Batch) -> Result<(), BoxError> + Send;

#[derive(Clone)]
pub(super) struct Actor {
    given: Arc<Mutex<Vec<Vec<String>>>>,
    act: Arc<Mutex<Act>>,
}

impl Actor {
    pub(super) fn new(act: impl FnMut(Batch) -> Result<(), BoxError> + Send + 'static) -> Self {
        Self { given: Arc::default(), act: Arc::new(Mutex::new(act)) }
    }

    /// Splits every batch into payloads and tokens.
    pub(super) fn splitting(
        mut act: impl FnMut(Vec<(String, Ack)>) -> Result<(), BoxError> + Send + 'static,
    ) -> Self {
        Self::new(move |mut batch| {
            let records = batch.split().into_iter();
            act(records.map(|(record, ack)| (payload(&record), ack)).collect())
        })
    }

    /// Acknowledges the records that `fails` does not name, and drops the other tokens with an error.
    pub(super) fn failing(mut fails: impl FnMut(&str) -> bool + Send + 'static) -> Self {
        Self::splitting(move |records| {
            let mut failed = None;
            for (payload, ack) in records {
                if fails(&payload) {
                    failed = Some(format!("cannot process {payload}").into());
                } else {
                    ack.acknowledge();
                }
            }
            failed.map_or(Ok(()), Err)
        })
    }

    /// Returns the payloads of the batches so far.
    pub(super) fn given(&self) -> Vec<Vec<String>> {
        self.given.lock().clone()
    }

    /// Starts worker `a` with this processor and a dead letter store.
    pub(super) async fn start(
        &self,
        fleet: &Fleet,
        stream: impl Stream + 'static,
        settings: Settings,
    ) -> WorkerHandle {
        self.start_with(fleet, stream, settings, Some(Shelf::default())).await
    }

    pub(super) async fn start_with(
        &self,
        fleet: &Fleet,
        stream: impl Stream + 'static,
        settings: Settings,
        sink: Option<impl DeadLetter + 'static>,
    ) -> WorkerHandle {
        let of_worker = self.clone();
        let mut builder = fleet.builder("a").settings(settings).stream(stream);
        if let Some(sink) = sink {
            builder = builder.dead_letter(sink);
        }
        let worker = builder.build().await.unwrap();
        worker.start(move |_| of_worker.clone()).await.unwrap()
    }
}

impl RecordProcessor for Actor {
    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        self.given.lock().push(batch.records().iter().map(payload).collect());
        let act = Arc::clone(&self.act);
        let mut act = act.lock();
        act(batch)
    }
}

pub(super) fn payload(record: &Record) -> String {
    String::from_utf8_lossy(&record.data).into_owned()
}

/// Returns the batches as the numbers in their records.
pub(super) fn texts(wanted: &[&[u32]]) -> Vec<Vec<String>> {
    let text = |batch: &&[u32]| batch.iter().map(ToString::to_string).collect();
    wanted.iter().map(text).collect()
}
