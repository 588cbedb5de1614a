//! local-aws in this process on a loopback port, and the content of its streams.
//!
//! The commands reach it over the socket; the harness calls it in process, as client `harness`, so
//! that faults for a command never hit the observer.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{Record, Shard, ShardIteratorType};
use kpl_format::{Aggregate, is_aggregate};
use local_aws::{Clock, LocalAws, Server};

use crate::account::RecordId;

/// The client name of the harness.
const HARNESS: &str = "harness";

/// A row of a lease table.
type Row = std::collections::HashMap<String, AttributeValue>;

/// A local-aws in this process.
#[derive(Debug)]
pub struct Aws {
    /// The services: faults, request log, clock.
    pub local: LocalAws,
    clients: Clients,
    server: Server,
}

/// The harness as a client of both services.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Kinesis.
    pub kinesis: aws_sdk_kinesis::Client,
    /// DynamoDB.
    pub dynamo: aws_sdk_dynamodb::Client,
}

impl Deref for Aws {
    type Target = Clients;

    fn deref(&self) -> &Clients {
        &self.clients
    }
}

impl Aws {
    /// Starts the services; streams and shards change state at once.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn start() -> Result<Self> {
        Self::with_transition(Duration::ZERO).await
    }

    /// Starts the services; a stream stays CREATING, UPDATING or DELETING for `transition`.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn with_transition(transition: Duration) -> Result<Self> {
        Self::serving(LocalAws::builder().transition(transition).build()?).await
    }

    /// Starts services whose clock is this many milliseconds ahead of the local one, or behind it.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn with_clock_ahead(millis: i64) -> Result<Self> {
        let clock = Clock::starting_at(Clock::new().now_ms() + millis);
        let local = LocalAws::builder().transition(Duration::ZERO).clock(clock).build()?;
        Self::serving(local).await
    }

    async fn serving(local: LocalAws) -> Result<Self> {
        let server = local.serve().await.context("local-aws finds no free port on 127.0.0.1")?;
        let clients = Clients::new(&local.sdk_config(HARNESS));
        Ok(Self { local, clients, server })
    }

    /// Returns the endpoint URL for an SDK.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        self.server.endpoint_url()
    }

    /// Stops the services; commands that still run lose their connection.
    pub async fn shutdown(self) {
        self.server.shutdown().await;
    }
}

impl Clients {
    /// Creates clients with this configuration.
    #[must_use]
    pub fn new(config: &SdkConfig) -> Self {
        Self {
            kinesis: aws_sdk_kinesis::Client::new(config),
            dynamo: aws_sdk_dynamodb::Client::new(config),
        }
    }

    /// Creates a stream.
    ///
    /// # Errors
    ///
    /// The service refuses the request.
    pub async fn create_stream(&self, stream: &str, shards: i32) -> Result<()> {
        self.kinesis.create_stream().stream_name(stream).shard_count(shards).send().await?;
        Ok(())
    }

    /// Stores one record.
    ///
    /// # Errors
    ///
    /// The service refuses the request.
    pub async fn put(&self, stream: &str, key: &str, data: &[u8]) -> Result<()> {
        let put = self.kinesis.put_record().stream_name(stream).partition_key(key);
        put.data(Blob::new(data)).send().await?;
        Ok(())
    }

    /// Returns all shards of a stream, including closed ones.
    ///
    /// # Errors
    ///
    /// The service refuses the request.
    pub async fn shards(&self, stream: &str) -> Result<Vec<Shard>> {
        let listing = self.kinesis.list_shards().stream_name(stream).send().await?;
        Ok(listing.shards().to_vec())
    }

    /// Returns the open shards, as id and hash range.
    ///
    /// # Errors
    ///
    /// The service refuses the request, or its reply lacks a member.
    pub async fn open_shards(&self, stream: &str) -> Result<Vec<(String, u128, u128)>> {
        let is_open = |shard: &Shard| {
            shard.sequence_number_range().is_some_and(|r| r.ending_sequence_number().is_none())
        };
        let hashed = |shard: Shard| {
            let range = shard.hash_key_range().context("a shard has a hash range")?;
            let (first, last) = (range.starting_hash_key().parse()?, range.ending_hash_key());
            Ok((shard.shard_id().to_owned(), first, last.parse()?))
        };
        self.shards(stream).await?.into_iter().filter(is_open).map(hashed).collect()
    }

    /// Splits one shard into halves.
    ///
    /// # Errors
    ///
    /// The shard does not exist or is closed, or the service refuses the request.
    pub async fn split(&self, stream: &str, shard: &str) -> Result<()> {
        let open = self.open_shards(stream).await?;
        let (id, first, last) =
            open.iter().find(|(id, ..)| id == shard).context("the shard is not open")?;
        let middle = first + (last - first) / 2 + 1;
        let split = self.kinesis.split_shard().stream_name(stream).shard_to_split(id);
        split.new_starting_hash_key(middle.to_string()).send().await?;
        Ok(())
    }

    /// Merges the two open shards with the lowest hash ranges.
    ///
    /// # Errors
    ///
    /// Fewer than two shards are open, or the service refuses the request.
    pub async fn merge_lowest(&self, stream: &str) -> Result<()> {
        let mut open = self.open_shards(stream).await?;
        open.sort_by_key(|(_, first, _)| *first);
        let [(one, ..), (other, ..), ..] = open.as_slice() else {
            anyhow::bail!("a merge needs two open shards")
        };
        self.merge(stream, one, other).await
    }

    /// Merges two adjacent open shards.
    ///
    /// # Errors
    ///
    /// The service refuses the request.
    pub async fn merge(&self, stream: &str, one: &str, other: &str) -> Result<()> {
        let merge = self.kinesis.merge_shards().stream_name(stream);
        merge.shard_to_merge(one).adjacent_shard_to_merge(other).send().await?;
        Ok(())
    }

    /// Returns the data of all records of a stream by shard, read with the SDK.
    ///
    /// # Errors
    ///
    /// The service refuses the request.
    pub async fn stored(&self, stream: &str) -> Result<BTreeMap<String, Vec<Vec<u8>>>> {
        let mut stored = BTreeMap::new();
        for shard in self.shards(stream).await? {
            let records = self.stored_in(stream, shard.shard_id()).await?;
            stored.insert(shard.shard_id().to_owned(), records);
        }
        Ok(stored)
    }

    async fn stored_in(&self, stream: &str, shard: &str) -> Result<Vec<Vec<u8>>> {
        let records = self.records_of(stream, shard).await?;
        Ok(records.into_iter().map(|record| record.data.into_inner()).collect())
    }

    /// Returns all records of a shard, read with the SDK.
    ///
    /// # Errors
    ///
    /// The service refuses the request.
    pub async fn records_of(&self, stream: &str, shard: &str) -> Result<Vec<Record>> {
        let start = self.kinesis.get_shard_iterator().stream_name(stream).shard_id(shard);
        let start = start.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await?;
        let mut next = start.shard_iterator().map(str::to_owned);
        let mut records = Vec::new();
        while let Some(iterator) = next {
            let reply = self.kinesis.get_records().shard_iterator(iterator).send().await?;
            records.extend_from_slice(reply.records());
            let more = !reply.records().is_empty() || reply.millis_behind_latest() > Some(0);
            next = reply.next_shard_iterator().filter(|_| more).map(str::to_owned);
        }
        Ok(records)
    }

    /// Returns the ids of the producers' records in a stream, unpacked from aggregates.
    ///
    /// # Errors
    ///
    /// The service refuses the request, or an aggregate is corrupt.
    pub async fn sent(&self, stream: &str) -> Result<Vec<RecordId>> {
        let mut sent = Vec::new();
        for data in self.stored(stream).await?.into_values().flatten() {
            if is_aggregate(&data) {
                let aggregate = Aggregate::read(data.into())?;
                sent.extend(aggregate.records().filter_map(|it| RecordId::of(&it.data)));
            } else {
                sent.extend(RecordId::of(&data));
            }
        }
        Ok(sent)
    }

    /// Returns the open shard that contains the newest record of `unicorn`.
    ///
    /// # Errors
    ///
    /// There is none, or the service refuses the request.
    pub async fn shard_of(&self, stream: &str, unicorn: &str) -> Result<String> {
        let open: BTreeSet<_> =
            self.open_shards(stream).await?.into_iter().map(|(id, ..)| id).collect();
        let stored = self.stored(stream).await?;
        let holds = |data: &Vec<u8>| RecordId::of(data).is_some_and(|id| id.unicorn == unicorn);
        let mut shards = stored.into_iter().filter(|(id, _)| open.contains(id));
        let found = shards.find(|(_, records)| records.iter().any(holds));
        found.map(|(id, _)| id).with_context(|| format!("no open shard holds {unicorn}"))
    }

    /// Returns the owners of unfinished shards from the application's lease table; empty if the
    /// table does not exist yet.
    pub async fn owners(&self, application: &str) -> BTreeMap<String, String> {
        let Ok(rows) = self.dynamo.scan().table_name(application).send().await else {
            return BTreeMap::new();
        };
        let owned = |row: &Row| {
            let text = |name| row.get(name)?.as_s().ok().cloned();
            let unfinished = text("checkpoint").is_none_or(|at| at != "SHARD_END");
            unfinished.then_some((text("leaseKey")?, text("leaseOwner")?))
        };
        rows.items().iter().filter_map(owned).collect()
    }
}
