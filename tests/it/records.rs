//! Streams and records that make the workshop's consumer crash.

use std::time::Duration;

use anyhow::Result;
use e2e::server::Aws;
use e2e::workshop::Workshop;
use local_aws::{Effect, Rule};

use crate::{INT, STEADY};

#[tokio::test]
async fn a_record_that_is_not_json_is_printed_and_does_not_end_the_consumer() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let records = [r#"{"a":1.0}"#, "ouch", r#"{"a":"#, "", r#"{"b":1}{"c":2}"#, r#"{"z":[]}"#];
    for record in records {
        workshop.aws.put("wildrydes", "key", record.as_bytes()).await?;
    }
    let expected =
        "{\n    \"a\": 1.0\n}\nouch\n{\"a\":\n\n{\"b\":1}{\"c\":2}\n{\n    \"z\": []\n}\n";
    for sharing in ["", "--app wildrydes-tail"] {
        let line = format!("./consumer --from trim-horizon {sharing}");
        let mut consumer = workshop.run("c", &line)?;
        consumer.wait_for_records(records.len()).await?;
        assert_eq!(consumer.stop(INT).await?, 0);
        let transcript = consumer.transcript();
        assert_eq!(String::from_utf8_lossy(&transcript.stdout), expected);
    }
    Ok(())
}

/// The test moves the services' clock, so that the stream becomes ACTIVE when the test wants it.
#[tokio::test]
async fn a_stream_that_is_being_created_is_waited_for() -> Result<()> {
    let an_hour = Duration::from_secs(3600);
    let workshop = Workshop::with(Aws::with_transition(an_hour).await?)?;
    workshop.aws.create_stream("wildrydes", 1).await?;
    let mut consumers = Vec::new();
    for sharing in ["", "--app wildrydes-tail"] {
        let line = format!("./consumer --from trim-horizon {sharing}");
        consumers.push(workshop.run("consumer", &line)?);
    }
    let mut producer = workshop.run("producer", "./producer -count 5 -interval 10ms")?;
    for consumer in &consumers {
        consumer.wait_for_stderr("waiting until stream `wildrydes`").await?;
    }
    producer.wait_for_stderr("waiting for ACTIVE").await?;
    workshop.aws.local.clock().advance(an_hour);
    assert_eq!(producer.ended().await?.code(), Some(0));
    // Creating the lease table takes an hour too.
    for consumer in &mut consumers {
        consumer.wait_for_records(5).await?;
        assert_eq!(consumer.stop(INT).await?, 0);
    }
    Ok(())
}

/// Common failures of both services: throttled reads, refused and unanswered writes.
#[tokio::test]
async fn everyday_trouble_of_the_services_costs_no_record() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let faults = workshop.aws.local.faults();
    let trouble = |effect, operation: &str| {
        faults.add(Rule::new(effect).client("c").operation(operation).probability(0.3));
    };
    trouble(Effect::Throttle, "GetRecords");
    trouble(Effect::Disconnect, "GetRecords");
    trouble(Effect::DropHalfReply, "UpdateItem");
    trouble(Effect::FailAfter { code: "InternalServerError".into(), status: 500 }, "UpdateItem");
    faults.add(Rule::new(Effect::Throttle).client("p").operation("PutRecords").probability(0.2));
    let mut group = e2e::group::Group::default();
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    group.add(workshop.run("c", &line)?);
    let mut producer = workshop.run("p", "./producer -unicorns 4 -count 400 -interval 20ms")?;
    assert_eq!(producer.ended().await?.code(), Some(0));
    assert_eq!(crate::settled(&workshop, &mut group).await?.sent, 400);
    Ok(())
}

/// `--aggregate` packs by shard, and resharding invalidates the packing: nevertheless the consumer
/// prints every unicorn's records, each as it was created.
#[tokio::test]
async fn a_consumer_prints_every_record_that_a_producer_has_packed() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut group = e2e::group::Group::default();
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    group.add(workshop.run("c", &line)?);
    let line = "./producer -aggregate -unicorns 20 -count 4000 -interval 20ms";
    let mut producer = workshop.run("p", line)?;
    workshop.aws.local.requests().wait_for("p", "PutRecords", 3).await;
    workshop.aws.split("wildrydes", "shardId-000000000000").await?;
    assert_eq!(producer.ended().await?.code(), Some(0));
    let account = crate::settled(&workshop, &mut group).await?;
    // A split may have routed one aggregate to the wrong shard, and it was sent again.
    assert!((4000..4200).contains(&account.sent), "{account:?}");
    let stored: usize = workshop.aws.stored("wildrydes").await?.values().map(Vec::len).sum();
    assert!(stored * 10 < account.sent, "{stored} Kinesis records");
    Ok(())
}
