//! Splits and merges while records flow: none is lost, and each unicorn stays in order.

use std::time::Duration;

use anyhow::Result;
use e2e::account::RecordId;
use e2e::group::Group;
use e2e::workshop::Workshop;
use rustix::process::Signal;

use crate::{HASTY, INT, STEADY, settled, stop_producers};

const STREAM: &str = "wildrydes";

/// Waits until the group has printed a record of every open shard.
async fn follow(workshop: &Workshop, group: &mut Group) -> Result<()> {
    for (shard, ..) in workshop.aws.open_shards(STREAM).await? {
        let first = loop {
            let stored = workshop.aws.stored(STREAM).await?;
            let records = stored.get(&shard).into_iter().flatten();
            if let Some(id) = records.filter_map(|data| RecordId::of(data)).next_back() {
                break id;
            }
            let seen = group.seen().len();
            let more = |g: &Group| (g.seen().len() > seen).then_some(());
            group.wait_for("records go on", more).await?;
        };
        let what = format!("{first} of {shard}");
        group.wait_for(&what, |g| g.seen().contains(&first).then_some(())).await?;
    }
    Ok(())
}

/// Sixteen unicorns on two shards, so that every child has unicorns; two instances. Splits and
/// merges alternate, and each is followed before the next.
#[tokio::test]
async fn a_group_follows_splits_and_merges_while_it_runs() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 16 -interval 50ms")?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    let mut group = Group::default();
    for client in ["first", "second"] {
        group.add(workshop.run(client, &line)?);
    }
    follow(&workshop, &mut group).await?;
    for round in 0..2 {
        let (shard, ..) = workshop.aws.open_shards(STREAM).await?.swap_remove(round);
        workshop.aws.split(STREAM, &shard).await?;
        follow(&workshop, &mut group).await?;
        workshop.aws.merge_lowest(STREAM).await?;
        follow(&workshop, &mut group).await?;
    }
    stop_producers([&mut producer]).await?;
    assert_eq!(workshop.aws.shards(STREAM).await?.len(), 8);
    assert_eq!(settled(&workshop, &mut group).await?.repeats, 0);
    Ok(())
}

/// The instance is killed right after a split, and its successor after a merge: the next one must
/// finish the parents first.
#[tokio::test]
async fn a_kill_amid_a_reshard_loses_nothing() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 16 -interval 50ms")?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {HASTY}");
    let mut group = Group::default();
    let number = group.add(workshop.run("c", &line)?);
    follow(&workshop, &mut group).await?;
    let (shard, ..) = workshop.aws.open_shards(STREAM).await?.swap_remove(0);
    workshop.aws.split(STREAM, &shard).await?;
    group.member(number).kill().await?;
    let number = group.add(workshop.run("c", &line)?);
    follow(&workshop, &mut group).await?;
    workshop.aws.merge_lowest(STREAM).await?;
    group.member(number).kill().await?;
    group.add(workshop.run("c", &line)?);
    follow(&workshop, &mut group).await?;
    stop_producers([&mut producer]).await?;
    settled(&workshop, &mut group).await?;
    Ok(())
}

/// Two shards are merged while the instance that reads one of them is paused. The other instance
/// finishes its own shard, and must not take the child before the paused one has finished too.
#[tokio::test]
async fn a_merged_child_waits_for_the_slower_parent() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut producer = workshop.run("p", "./producer -unicorns 16 -interval 50ms")?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon -v {STEADY}");
    let mut group = Group::default();
    let fast = group.add(workshop.run("fast", &line)?);
    let slow = group.add(workshop.run("slow", &line)?);
    let both = |group: &Group| {
        let printed = group.printed();
        [fast, slow].iter().all(|by| printed.iter().any(|p| p.by == *by)).then_some(())
    };
    group.wait_for("both print", both).await?;

    group.member(slow).signal(Signal::STOP)?;
    workshop.aws.merge_lowest(STREAM).await?;
    group.member(fast).wait_for_stderr("finished shard").await?;
    // Time for several scans, in which the child must not be taken.
    let requests = workshop.aws.local.requests();
    let looks = requests.count("fast", "Scan");
    requests.wait_for("fast", "Scan", looks + 3).await;
    group.member(slow).signal(Signal::CONT)?;
    follow(&workshop, &mut group).await?;
    stop_producers([&mut producer]).await?;
    assert_eq!(settled(&workshop, &mut group).await?.repeats, 0);
    Ok(())
}

#[tokio::test]
async fn a_plain_tail_follows_a_split_and_a_merge_too() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let mut group = Group::default();
    let line = "./consumer --from trim-horizon --poll-interval 200ms";
    group.add(workshop.run("c", line)?);
    let mut producer = workshop.run("p", "./producer -unicorns 8 -interval 50ms")?;
    follow(&workshop, &mut group).await?;
    let (shard, ..) = workshop.aws.open_shards(STREAM).await?.swap_remove(0);
    workshop.aws.split(STREAM, &shard).await?;
    follow(&workshop, &mut group).await?;
    workshop.aws.merge_lowest(STREAM).await?;
    follow(&workshop, &mut group).await?;
    stop_producers([&mut producer]).await?;
    assert_eq!(settled(&workshop, &mut group).await?.repeats, 0);
    Ok(())
}

/// The workshop's own consumer crashes on a shard that is already closed.
#[tokio::test]
async fn shards_that_were_closed_before_the_start_are_read_to_their_end() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let mut group = Group::default();
    for split in [true, false] {
        let line = "./producer -unicorns 8 -count 40 -interval 1ms";
        assert_eq!(workshop.run("p", line)?.ended().await?.code(), Some(0));
        if split {
            let (shard, ..) = workshop.aws.open_shards(STREAM).await?.swap_remove(0);
            workshop.aws.split(STREAM, &shard).await?;
        }
    }
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {STEADY}");
    group.add(workshop.run("c", &line)?);
    let account = settled(&workshop, &mut group).await?;
    assert_eq!((account.sent, account.repeats), (80, 0));

    // "Latest" is determined by the service's clock, in whole seconds.
    workshop.aws.local.clock().advance(Duration::from_secs(2));
    let mut latest = workshop.run("latest", "./consumer -from latest --poll-interval 200ms")?;
    // After the start both open shards are read.
    workshop.aws.local.requests().wait_for("latest", "GetRecords", 2).await;
    workshop.aws.put(STREAM, "Shadowfax", b"news").await?;
    latest.wait_for_records(1).await?;
    assert_eq!(latest.stop(INT).await?, 0);
    assert_eq!(String::from_utf8_lossy(&latest.transcript().stdout), "news\n");
    Ok(())
}
