//! The calls to Kinesis, one attempt each; the only file that names operations of the SDK.
//!
//! Never retries and never waits: whoever calls decides what a failure means.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, PutRecordsResultEntry, StreamStatus};

use crate::batch::Entry;
use crate::failure::{Failure, FailureKind};

/// A stream and the client to reach it.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    client: Client,
    stream: String,
}

impl Sender {
    pub(crate) fn new(client: Client, stream: String) -> Self {
        Self { client, stream }
    }

    /// Puts a batch: for each record, in order, `None` if it is stored, else why it is not.
    ///
    /// A batch of one is a PutRecord, as the workshop's client sends it.
    ///
    /// # Errors
    ///
    /// The request failed as a whole. If no answer came, the records may be stored all the same.
    pub(crate) async fn put(&self, batch: &[Entry]) -> Result<Vec<Option<Failure>>, Failure> {
        match batch {
            [single] => self.put_record(single).await.map(|()| vec![None]),
            several => self.put_records(several).await,
        }
    }

    async fn put_record(&self, entry: &Entry) -> Result<(), Failure> {
        let call = self.client.put_record().stream_name(&self.stream);
        let call = call.partition_key(&entry.key).data(Blob::new(entry.data.clone()));
        call.send().await.map(drop).map_err(|error| Failure::from_sdk("PutRecord", &error))
    }

    async fn put_records(&self, batch: &[Entry]) -> Result<Vec<Option<Failure>>, Failure> {
        let records = batch.iter().map(|entry| {
            PutRecordsRequestEntry::builder()
                .partition_key(&entry.key)
                .data(Blob::new(entry.data.clone()))
                .build()
                .expect("key and data are set")
        });
        let call = self.client.put_records().stream_name(&self.stream);
        let call = call.set_records(Some(records.collect()));
        let reply = call.send().await.map_err(|error| Failure::from_sdk("PutRecords", &error))?;
        let results = reply.records();
        if results.len() != batch.len() {
            let reason = format!("{} results for {} records", results.len(), batch.len());
            return Err(Failure::new(FailureKind::Unavailable, "PutRecords", &reason));
        }
        Ok(results.iter().map(refusal).collect())
    }

    /// The stream's state.
    ///
    /// # Errors
    ///
    /// `Missing` if there is no such stream, else why the question was not answered.
    pub(crate) async fn status(&self) -> Result<StreamStatus, Failure> {
        let operation = "DescribeStreamSummary";
        let call = self.client.describe_stream_summary().stream_name(&self.stream);
        let reply = call.send().await.map_err(|error| Failure::from_sdk(operation, &error))?;
        let summary = reply.stream_description_summary();
        let status = summary.map(|summary| summary.stream_status().clone());
        status.ok_or_else(|| Failure::new(FailureKind::Unavailable, operation, "an empty reply"))
    }

    /// Asks for the stream to be created.
    ///
    /// # Errors
    ///
    /// `Busy` if it exists already, which a lost reply to an earlier attempt explains too.
    pub(crate) async fn create(&self, shards: i32) -> Result<(), Failure> {
        let call = self.client.create_stream().stream_name(&self.stream).shard_count(shards);
        call.send().await.map(drop).map_err(|error| Failure::from_sdk("CreateStream", &error))
    }
}

/// A record without an error code is stored.
fn refusal(result: &PutRecordsResultEntry) -> Option<Failure> {
    let code = result.error_code()?;
    Some(Failure::coded("PutRecords", code, result.error_message().unwrap_or(""), 200))
}
