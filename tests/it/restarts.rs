//! Stops, kills and pauses: the next instance resumes where the previous one stopped.

use std::time::Duration;

use anyhow::Result;
use e2e::group::Group;
use e2e::server::Aws;
use e2e::workshop::Workshop;
use local_aws::{Effect, Rule, Service};
use rustix::process::Signal;

use crate::{BRIEF, HASTY, INT, STEADY, TERM, settled, stop_producers};

#[tokio::test]
async fn a_clean_stop_is_resumed_without_loss_and_without_repeats() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 4 -interval 20ms")?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    let mut group = Group::default();
    for signal in [INT, TERM, INT] {
        let number = group.add(workshop.run("c", &line)?);
        group.member(number).wait_for_records(20).await?;
        assert_eq!(group.member(number).stop(signal).await?, 0);
    }
    stop_producers([&mut producer]).await?;
    group.add(workshop.run("c", &line)?);
    assert_eq!(settled(&workshop, &mut group).await?.repeats, 0);
    Ok(())
}

/// One instance is killed repeatedly, at moments drawn from a seed: right after a start, in the
/// middle of a batch, between batches. It restarts under the same worker ID, so that it need not
/// wait for its leases to expire.
#[tokio::test]
async fn kill_9_at_any_moment_loses_nothing() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 4 -interval 10ms")?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {HASTY}");
    let mut rng = fastrand::Rng::with_seed(2017);
    let mut group = Group::default();
    for _ in 0..8 {
        let number = group.add(workshop.run("c", &line)?);
        group.member(number).wait_for_records(rng.usize(1..500)).await?;
        group.member(number).kill().await?;
    }
    stop_producers([&mut producer]).await?;
    group.add(workshop.run("c", &line)?);
    settled(&workshop, &mut group).await?;
    Ok(())
}

/// Killed after it created the lease of one shard and before it created that of the other: its
/// successor must detect the missing lease at once and not at a later audit.
#[tokio::test]
async fn a_start_that_died_half_way_is_completed_by_the_next() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 4 -count 80 -interval 5ms")?;
    assert_eq!(producer.ended().await?.code(), Some(0));
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    let second_lease = Rule::new(Effect::Hang).client("dies").containing("shardId-000000000001");
    workshop.aws.local.faults().add(second_lease.service(Service::DynamoDb));
    let mut group = Group::default();
    let dies = group.add(workshop.run("dies", &line)?);
    workshop.aws.local.requests().wait_for("dies", "PutItem", 1).await;
    group.member(dies).kill().await?;
    group.add(workshop.run("next", &line)?);
    assert_eq!(settled(&workshop, &mut group).await?.sent, 80);
    Ok(())
}

#[tokio::test]
async fn the_other_instance_takes_over_from_a_killed_one() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 2 -interval 50ms")?;
    let unicorns = ["Shadowfax", "Bucephalus"];
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {BRIEF}");
    let mut group = Group::default();
    for client in ["first", "second"] {
        group.add(workshop.run(client, &line)?);
    }
    let apart = |group: &Group| {
        let printed = group.printed();
        let by = |number| printed.iter().any(|printed| printed.by == number);
        (by(0) && by(1)).then_some(())
    };
    group.wait_for("both print", apart).await?;
    let owners = group.at_rest(&unicorns, 10).await?;
    let (dead, alive) = (owners[0], 1 - owners[0]);
    group.member(dead).kill().await?;
    assert_eq!(group.at_rest(&unicorns, 10).await?, [alive, alive]);
    stop_producers([&mut producer]).await?;
    settled(&workshop, &mut group).await?;
    Ok(())
}

/// A laptop sleeps for longer than its lease duration, and wakes up: the other instance has taken
/// its leases meanwhile, and the sleeper must not disturb it.
#[tokio::test]
async fn a_paused_instance_loses_its_shards_and_comes_back_in_good_order() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let mut producer = workshop.run("p", "./producer -interval 20ms")?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {BRIEF}");
    let mut group = Group::default();
    let sleeper = group.add(workshop.run("sleeper", &line)?);
    group.member(sleeper).wait_for_records(10).await?;
    let other = group.add(workshop.run("other", &line)?);
    group.member(other).wait_for_stderr("standing by").await?;

    group.member(sleeper).signal(Signal::STOP)?;
    group.member(other).wait_for_records(10).await?;
    group.member(sleeper).signal(Signal::CONT)?;
    group.member(sleeper).wait_for_stderr("standing by").await?;
    let other_has = group.member(other).transcript().documents.len();
    group.member(other).wait_for_records(other_has + 10).await?;
    stop_producers([&mut producer]).await?;
    settled(&workshop, &mut group).await?;
    Ok(())
}

/// Machines whose clocks are wrong by an hour, and the start times that they store for machines
/// whose clocks are right.
#[tokio::test]
async fn how_long_ago_counts_by_the_clock_of_kinesis_and_not_by_that_of_the_machine() -> Result<()>
{
    for ahead in [-3_600_000, 3_600_000] {
        let workshop = Workshop::with(Aws::with_clock_ahead(ahead).await?)?;
        workshop.aws.create_stream("wildrydes", 1).await?;
        workshop.aws.put("wildrydes", "key", b"too old").await?;
        workshop.aws.local.clock().advance(Duration::from_secs(1_800));
        workshop.aws.put("wildrydes", "key", b"wanted").await?;
        for who in ["--from 5m", "--from 5m --app wildrydes-tail"] {
            let mut consumer = workshop.run("c", &format!("./consumer {who}"))?;
            consumer.wait_for_records(1).await?;
            assert_eq!(consumer.stop(INT).await?, 0);
            let transcript = consumer.transcript();
            assert_eq!(transcript.stdout, b"wanted\n", "{ahead} {who}: {}", transcript.stderr);
        }
    }
    Ok(())
}
