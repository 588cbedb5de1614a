//! Instances of one application share the shards; applications are independent.

use anyhow::Result;
use e2e::group::Group;
use e2e::workshop::Workshop;

use crate::{INT, STEADY, TERM, settled, stop_producers};

const UNICORNS: [&str; 2] = ["Shadowfax", "Bucephalus"];

/// Two instances on two shards. The second joins when the first holds both; after the handoff each
/// unicorn is printed by exactly one. Neither joining nor a graceful shutdown repeats a record.
#[tokio::test]
async fn two_instances_share_two_shards_and_one_hands_over_to_the_other() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producers = Vec::new();
    for unicorn in UNICORNS {
        producers
            .push(workshop.run(unicorn, &format!("./producer -name {unicorn} -interval 50ms"))?);
    }
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    let mut group = Group::default();
    group.add(workshop.run("first", &line)?);
    assert_eq!(group.at_rest(&UNICORNS, 5).await?, [0, 0]);

    group.add(workshop.run("second", &line)?);
    let apart = |g: &Group| {
        let printed = g.printed();
        let latest =
            |unicorn| printed.iter().rfind(|p| p.id.unicorn == unicorn).map(|printed| printed.by);
        (latest(UNICORNS[0]) != latest(UNICORNS[1])).then_some(())
    };
    group.wait_for("each instance prints a unicorn", apart).await?;
    let owners = group.at_rest(&UNICORNS, 40).await?;
    assert_ne!(owners[0], owners[1]);

    assert_eq!(group.member(owners[0]).stop(TERM).await?, 0);
    assert_eq!(group.at_rest(&UNICORNS, 10).await?, [owners[1], owners[1]]);
    stop_producers(&mut producers).await?;
    // Both the handoff and the shutdown were graceful.
    assert_eq!(settled(&workshop, &mut group).await?.repeats, 0);
    Ok(())
}

/// With more instances than shards the idle one reports that once, and takes a shard when one is
/// released.
#[tokio::test]
async fn an_idle_instance_stands_by_says_so_once_and_takes_over() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let mut producer = workshop.run("p", "./producer -interval 50ms")?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    let mut group = Group::default();
    let busy = group.add(workshop.run("busy", &format!("{line} --worker-id busy"))?);
    group.member(busy).wait_for_records(5).await?;

    let idle = group.add(workshop.run("idle", &line)?);
    group.member(idle).wait_for_stderr("held by busy;").await?;
    // It scans the table about once a second; after several scans there is still one report.
    let looks = workshop.aws.local.requests().count("idle", "Scan");
    workshop.aws.local.requests().wait_for("idle", "Scan", looks + 3).await;
    assert_eq!(group.member(idle).transcript().stderr.matches("standing by").count(), 1);
    assert!(group.member(idle).transcript().stdout.is_empty());

    assert_eq!(group.member(busy).stop(INT).await?, 0);
    group.member(idle).wait_for_records(5).await?;
    stop_producers([&mut producer]).await?;
    assert_eq!(settled(&workshop, &mut group).await?.repeats, 0);
    Ok(())
}

#[tokio::test]
async fn a_second_application_sees_everything_again() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 4 -count 40 -interval 10ms")?;
    assert_eq!(producer.ended().await?.code(), Some(0));
    for application in ["wildrydes-tail", "wildrydes-other"] {
        let line = format!("./consumer --app {application} --from trim-horizon {STEADY}");
        let mut group = Group::default();
        group.add(workshop.run(application, &line)?);
        let account = settled(&workshop, &mut group).await?;
        assert_eq!((account.sent, account.repeats), (40, 0), "{application}");
    }
    // The first application resumes: only the new record is new to it.
    workshop.aws.put("wildrydes", "Shadowfax", b"news").await?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    let mut again = workshop.run("wildrydes-tail", &line)?;
    again.wait_for_records(1).await?;
    assert_eq!(again.stop(INT).await?, 0);
    assert_eq!(String::from_utf8_lossy(&again.transcript().stdout), "news\n");
    Ok(())
}

#[tokio::test]
async fn without_an_application_each_instance_prints_everything_and_stores_nothing() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    workshop.aws.put("wildrydes", "Shadowfax", b"1").await?;
    workshop.aws.put("wildrydes", "Bucephalus", b"2").await?;
    for round in ["first", "second"] {
        let mut alone = workshop.run(round, "./consumer --from trim-horizon")?;
        alone.wait_for_records(2).await?;
        assert_eq!(alone.stop(INT).await?, 0);
        assert_eq!(alone.transcript().documents.len(), 2);
        let operations = workshop.aws.local.requests().operations(round);
        assert!(operations.iter().all(|o| o.starts_with("kinesis:")), "{operations:?}");
    }
    Ok(())
}
