//! The reference: a task per shard that calls `GetRecords` at the rate that the service allows, or that
//! receives the events of one `SubscribeToShard`.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::{ShardIteratorType, StartingPosition, SubscribeToShardEventStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::Result;
use crate::measure::{Count, STREAM};

/// Five calls per second and shard.
const SPACING: Duration = Duration::from_millis(200);

pub(crate) async fn read(
    config: &SdkConfig,
    count: &Arc<Count>,
    total: u64,
    consumer: Option<String>,
) -> Result<()> {
    let client = Client::new(config);
    let mut shards = JoinSet::new();
    for shard in client.list_shards().stream_name(STREAM).send().await?.shards() {
        let (client, shard) = (client.clone(), shard.shard_id().to_owned());
        let (count, consumer) = (Arc::clone(count), consumer.clone());
        shards.spawn(async move {
            match consumer {
                None => shard_loop(client, shard, count).await,
                Some(consumer) => subscription(client, consumer, shard, count).await,
            }
        });
    }
    tokio::select! {
        biased;
        () = count.reached(total) => Ok(()),
        Some(ended) = shards.join_next() => Err(format!("a loop ended: {ended:?}").into()),
    }
}

async fn shard_loop(
    client: Client,
    shard: String,
    count: Arc<Count>,
) -> std::result::Result<(), String> {
    let iterator = client
        .get_shard_iterator()
        .stream_name(STREAM)
        .shard_id(shard)
        .shard_iterator_type(ShardIteratorType::TrimHorizon);
    let reply = iterator.send().await.map_err(|error| format!("{error:?}"))?;
    let mut iterator = reply.shard_iterator.ok_or("no iterator")?;
    loop {
        let sent = Instant::now();
        let reply = client.get_records().shard_iterator(iterator).send().await;
        let reply = reply.map_err(|error| format!("{error:?}"))?;
        let bytes = reply.records().iter().map(|it| it.data().as_ref().len() as u64).sum();
        count.add(reply.records().len() as u64, bytes);
        iterator = reply.next_shard_iterator.ok_or("the shard ended")?;
        // 2 MB per second.
        let silence = Instant::now() + Duration::from_micros(bytes / 2);
        sleep_until(silence.max(sent + SPACING)).await;
    }
}

async fn subscription(
    client: Client,
    consumer: String,
    shard: String,
    count: Arc<Count>,
) -> std::result::Result<(), String> {
    let start = StartingPosition::builder().r#type(ShardIteratorType::TrimHorizon).build();
    let start = start.map_err(|error| format!("{error:?}"))?;
    let call = client.subscribe_to_shard().consumer_arn(consumer).shard_id(shard);
    let reply = call.starting_position(start).send().await;
    let mut events = reply.map_err(|error| format!("{error:?}"))?.event_stream;
    while let Some(event) = events.recv().await.map_err(|error| format!("{error:?}"))? {
        if let SubscribeToShardEventStream::SubscribeToShardEvent(event) = event {
            let bytes = event.records().iter().map(|it| it.data().as_ref().len() as u64).sum();
            count.add(event.records().len() as u64, bytes);
        }
    }
    Err("the subscription ended".to_owned())
}
