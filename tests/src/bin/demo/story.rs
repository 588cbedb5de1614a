//! The acts of the demo, their order, and the durations measured.
//!
//! Each act begins at its fraction of the whole time, or when the previous act is over. Dropping
//! the future half-way leaves the processes running, for the table.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use e2e::account::RecordId;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::stage::{Fate, LABELS, PATIENCE, STREAM, Stage, UNICORNS, short};

/// Runs all acts.
pub(crate) async fn tell(stage: &mut Stage) -> Result<()> {
    open(stage).await?;
    stage.show_until_part(0.25).await?;
    let killed = kill_one(stage).await?;
    stage.show_until_part(0.4).await?;
    restart(stage, killed).await?;
    stage.show_until_part(0.6).await?;
    split(stage).await?;
    stage.show_until_part(0.8).await?;
    stop_one(stage).await?;
    stage.show_until_part(1.0).await
}

async fn open(stage: &mut Stage) -> Result<()> {
    stage.screen.act("Two unicorns send, two consumers of one application share the shards");
    for unicorn in UNICORNS {
        stage.start_producer(unicorn)?;
    }
    for label in LABELS {
        stage.start_consumer(label)?;
    }
    stage.screen.say("Each line is a second: [shards held] and the records printed.");
    share(stage).await
}

/// Waits until both consumers hold shards and print.
async fn share(stage: &mut Stage) -> Result<()> {
    let since = Instant::now();
    let shared = stage.show_until(PATIENCE, |stage| {
        let owners: BTreeSet<_> = stage.owners.values().collect();
        let all_print = stage.running().all(|c| c.prints_since(since));
        (owners.len() == LABELS.len() && all_print).then_some(())
    });
    if shared.await?.is_none() {
        stage.screen.bad("the consumers do not share the shards yet; continuing");
    }
    Ok(())
}

async fn kill_one(stage: &mut Stage) -> Result<&'static str> {
    let (label, unicorns) = choose(stage);
    let lasts = stage.settings.failover.as_secs();
    stage.screen.act(&format!("{label} is killed with -9: no release, no last checkpoint"));
    let consumer = stage.consumer(label)?;
    let at = Instant::now();
    consumer.process.kill().await?;
    consumer.fate = Fate::Killed;
    stage.screen.say(&format!("Its leases expire {lasts} s after its last renewal."));
    let failover = took_over(stage, &unicorns, at).await?;
    stage.measured.failover = failover;
    Ok(label)
}

async fn restart(stage: &mut Stage, label: &'static str) -> Result<()> {
    stage.screen.act(&format!("{label} is restarted and takes its share of the shards"));
    stage.start_consumer(label)?;
    share(stage).await
}

async fn split(stage: &mut Stage) -> Result<()> {
    let parent = stage.workshop.aws.shard_of(STREAM, UNICORNS[0]).await?;
    let number = short(&parent);
    stage.screen.act(&format!("Shard {number}, which contains {}, is split", UNICORNS[0]));
    let at = Instant::now();
    stage.workshop.aws.split(STREAM, &parent).await?;
    stage.screen.say("Its children are read after every record of the parent is printed.");
    // The first of its records that is stored in a child.
    let first = first_in_child(stage, &parent).await?;
    let read = stage.show_until(PATIENCE, |stage| {
        stage.running().find_map(|consumer| {
            let transcript = consumer.process.transcript();
            let mut documents = transcript.documents.iter();
            documents.find(|document| document.id == first).map(|d| (consumer.label, d.at))
        })
    });
    if let Some((label, printed)) = read.await? {
        let took = printed.saturating_duration_since(at);
        stage.measured.reshard = Some(took);
        stage.screen.good(&format!("{label} reads {} from a child", UNICORNS[0]));
    } else {
        stage.screen.bad("no consumer reads the child yet; see the table below");
    }
    Ok(())
}

/// Waits for the producer's first record after the split.
async fn first_in_child(stage: &mut Stage, parent: &str) -> Result<Option<RecordId>> {
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        let shard = stage.workshop.aws.shard_of(STREAM, UNICORNS[0]).await;
        if let Some(child) = shard.ok().filter(|shard| shard != parent) {
            let stored = stage.workshop.aws.stored(STREAM).await?;
            let records = stored.get(&child).into_iter().flatten();
            let mut ids = records.filter_map(|data| RecordId::of(data));
            return Ok(ids.find(|id| id.unicorn == UNICORNS[0]));
        }
        stage.show_until::<()>(stage.settings.interval, |_| None).await?;
    }
    Ok(None)
}

async fn stop_one(stage: &mut Stage) -> Result<()> {
    let (label, unicorns) = choose(stage);
    stage.screen.act(&format!("{label} is stopped with Ctrl-C and releases its shards"));
    let consumer = stage.consumer(label)?;
    let at = Instant::now();
    let code = consumer.process.stop(Signal::INT).await?;
    consumer.fate = Fate::Stopped;
    let last_words = consumer.process.transcript().stderr.lines().last().map(str::to_owned);
    stage.screen.say(&format!("exit code {code}; {}", last_words.unwrap_or_default()));
    let handover = took_over(stage, &unicorns, at).await?;
    stage.measured.handover = handover;
    Ok(())
}

/// Draws a running consumer among those that have printed the newest record of a unicorn; returns
/// it with those unicorns.
fn choose(stage: &mut Stage) -> (&'static str, BTreeSet<String>) {
    let mut theirs: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for unicorn in UNICORNS {
        let newest = stage.running().filter_map(|c| Some((c.last_of(unicorn)?, c.label)));
        if let Some((_, label)) = newest.max() {
            theirs.entry(label).or_default().insert(unicorn.to_owned());
        }
    }
    stage.rng.choice(theirs).unwrap_or((LABELS[0], BTreeSet::new()))
}

/// Waits until another consumer prints one of `unicorns`; reports and returns how long it took
/// since `at`.
async fn took_over(
    stage: &mut Stage,
    unicorns: &BTreeSet<String>,
    at: Instant,
) -> Result<Option<std::time::Duration>> {
    let taken = stage.show_until(PATIENCE, |stage| {
        stage.running().find_map(|c| Some((c.label, c.first_of(unicorns, at)?)))
    });
    let Some((label, printed)) = taken.await? else {
        stage.screen.bad("no consumer has taken over yet; see the table below");
        return Ok(None);
    };
    let took = printed.saturating_duration_since(at);
    let names = unicorns.iter().map(String::as_str).collect::<Vec<_>>().join(" and ");
    stage.screen.good(&format!("{label} prints {names} after {:.1} s", took.as_secs_f64()));
    Ok(Some(took))
}
