//! The calls to Kinesis, one attempt each. The only file that names operations of the SDK.
//!
//! Never retries and never waits: the caller decides what to do about a failure.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{
    self, PutRecordsRequestEntry, PutRecordsResultEntry, ShardFilter, ShardFilterType, StreamStatus,
};

use crate::batch::Parcel;
use crate::failure::{Failure, from_sdk, in_reply};
use crate::shards::{Shard, ShardMap};

/// A stream and the client that calls it.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    client: Client,
    /// The name or the ARN.
    stream: String,
}

impl Sender {
    pub(crate) fn new(client: Client, stream: String) -> Self {
        Self { client, stream }
    }

    fn arn(&self) -> Option<String> {
        self.stream.starts_with("arn:").then(|| self.stream.clone())
    }

    fn name(&self) -> Option<String> {
        self.arn().is_none().then(|| self.stream.clone())
    }

    /// Puts a batch and returns, for each Kinesis record in order, the shard that it is stored in or
    /// why it was refused.
    ///
    /// A batch of one is a PutRecord, as the workshop's client sends it.
    ///
    /// # Errors
    ///
    /// The request failed as a whole. If no reply came, the records may be stored nevertheless.
    pub(crate) async fn put(&self, batch: &[Parcel]) -> Result<Vec<Stored>, Failure> {
        match batch {
            [single] => self.put_record(single).await.map(|shard| vec![Ok(shard)]),
            several => self.put_records(several).await,
        }
    }

    async fn put_record(&self, parcel: &Parcel) -> Result<String, Failure> {
        let call = self.client.put_record();
        let call = call.set_stream_name(self.name()).set_stream_arn(self.arn());
        let call = call.partition_key(parcel.key()).data(Blob::new(parcel.data()));
        let reply =
            call.send().await.map_err(|error| from_sdk("PutRecord", &self.stream, &error))?;
        Ok(reply.shard_id)
    }

    async fn put_records(&self, batch: &[Parcel]) -> Result<Vec<Stored>, Failure> {
        let records = batch.iter().map(|parcel| {
            PutRecordsRequestEntry::builder()
                .partition_key(parcel.key())
                .data(Blob::new(parcel.data()))
                .build()
                .expect("key and data are set")
        });
        let call = self.client.put_records();
        let call = call.set_stream_name(self.name()).set_stream_arn(self.arn());
        let call = call.set_records(Some(records.collect()));
        let reply =
            call.send().await.map_err(|error| from_sdk("PutRecords", &self.stream, &error))?;
        let results = reply.records();
        if results.len() != batch.len() {
            let reason = format!("{} results for {} records", results.len(), batch.len());
            return Err(in_reply("PutRecords", &self.stream, None, &reason));
        }
        Ok(results.iter().map(|result| stored(&self.stream, result)).collect())
    }

    /// Returns the open shards.
    ///
    /// # Errors
    ///
    /// Why the listing failed or is incomplete.
    pub(crate) async fn shards(&self) -> Result<ShardMap, Failure> {
        let operation = "ListShards";
        let open = ShardFilter::builder().r#type(ShardFilterType::AtLatest).build();
        let open = open.expect("the type is set");
        let call = self.client.list_shards().shard_filter(open);
        let mut call = call.set_stream_name(self.name()).set_stream_arn(self.arn());
        let mut shards = Vec::new();
        loop {
            let reply =
                call.send().await.map_err(|error| from_sdk(operation, &self.stream, &error))?;
            shards.extend(reply.shards().iter().filter_map(shard));
            // A token replaces all parameters of the first request and must be sent alone.
            let Some(token) = reply.next_token else { break };
            call = self.client.list_shards().next_token(token);
        }
        if shards.is_empty() {
            return Err(in_reply(operation, &self.stream, None, "no shard is open"));
        }
        Ok(ShardMap::new(shards))
    }

    /// Returns the status of the stream.
    ///
    /// # Errors
    ///
    /// `Missing` if the stream does not exist, otherwise why the call failed.
    pub(crate) async fn status(&self) -> Result<StreamStatus, Failure> {
        let operation = "DescribeStreamSummary";
        let call = self.client.describe_stream_summary();
        let call = call.set_stream_name(self.name()).set_stream_arn(self.arn());
        let reply = call.send().await.map_err(|error| from_sdk(operation, &self.stream, &error))?;
        let summary = reply.stream_description_summary();
        let status = summary.map(|summary| summary.stream_status().clone());
        status.ok_or_else(|| in_reply(operation, &self.stream, None, "an empty reply"))
    }

    /// Requests the creation of the stream.
    ///
    /// # Errors
    ///
    /// `NotReady` if it exists already, which may also be the result of an earlier attempt whose
    /// reply was lost.
    pub(crate) async fn create(&self, shards: i32) -> Result<(), Failure> {
        let call = self.client.create_stream().stream_name(&self.stream).shard_count(shards);
        call.send().await.map(drop).map_err(|error| from_sdk("CreateStream", &self.stream, &error))
    }
}

/// The shard that a Kinesis record is stored in, or why it was refused.
pub(crate) type Stored = Result<String, Failure>;

/// Reads one result: a record without an error code is stored.
fn stored(stream: &str, result: &PutRecordsResultEntry) -> Stored {
    match result.error_code() {
        None => Ok(result.shard_id().unwrap_or_default().to_owned()),
        Some(code) => {
            let message = result.error_message().unwrap_or("");
            Err(in_reply("PutRecords", stream, Some(code), message))
        }
    }
}

/// Returns a listed shard, unless it is closed.
fn shard(listed: &types::Shard) -> Option<Shard> {
    let is_closed = listed.sequence_number_range()?.ending_sequence_number().is_some();
    let range = listed.hash_key_range()?;
    let range = (range.starting_hash_key().parse().ok()?, range.ending_hash_key().parse().ok()?);
    (!is_closed).then(|| Shard { id: listed.shard_id().to_owned(), range })
}
