//! local-aws on a loopback port, with the records of a load in its stream.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use local_aws::{LocalAws, Server};
use std::time::Duration;

use crate::Result;
use crate::measure::{Load, STREAM};

/// The limits of one `PutRecords` call.
const MOST_RECORDS: usize = 500;
const MOST_BYTES: usize = 4 << 20;

pub(crate) struct Served {
    server: Server,
}

impl Served {
    /// Starts the services and puts all records.
    pub(crate) async fn start(load: &Load) -> Result<Self> {
        let local = LocalAws::builder().transition(Duration::ZERO).build()?;
        let client = Client::new(&local.sdk_config("writer"));
        let shards = i32::try_from(load.shards)?;
        client.create_stream().stream_name(STREAM).shard_count(shards).send().await?;
        let data = Blob::new(vec![b'x'; load.size]);
        let batch = MOST_RECORDS.min(MOST_BYTES / (load.size + 100));
        for shard in client.list_shards().stream_name(STREAM).send().await?.shards() {
            let range = shard.hash_key_range().ok_or("a shard has a range")?;
            let entry = PutRecordsRequestEntry::builder()
                .partition_key("unicorn")
                .explicit_hash_key(range.starting_hash_key())
                .data(data.clone())
                .build()?;
            let mut left = load.records;
            while left > 0 {
                let count = batch.min(left);
                let put = client.put_records().stream_name(STREAM);
                let put = put.set_records(Some(vec![entry.clone(); count])).send().await?;
                if put.failed_record_count() != Some(0) {
                    return Err("records were refused".into());
                }
                left -= count;
            }
        }
        Ok(Self { server: local.serve().await? })
    }

    pub(crate) fn endpoint_url(&self) -> String {
        self.server.endpoint_url()
    }

    pub(crate) async fn shutdown(self) {
        self.server.shutdown().await;
    }
}
