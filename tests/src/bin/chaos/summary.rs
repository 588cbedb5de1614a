//! The summary at the end, and the timeline around a finding. Reads evidence, changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checks::longest_wait;
use crate::evidence::{Evidence, Finding, Tenure};
use crate::journal::{Entry, What};
use crate::say;

/// The number of findings that are printed in full; the first ones are the most informative.
const TOLD: usize = 5;
/// The number of lines in a timeline, and the time around a finding that it covers.
const LINES: usize = 60;
const AROUND: Duration = Duration::from_secs(4);

/// The takeovers for one reason.
#[derive(Debug, Default)]
struct Takeovers {
    count: usize,
    repeats: usize,
    most: usize,
    /// The records processed since the last checkpoint known to be stored, at the takeover with the
    /// most repeats.
    bound: usize,
}

/// Prints the summary.
pub(crate) fn print(evidence: &Evidence, findings: &[Finding]) {
    let records = |shard: &crate::evidence::StoredShard| shard.records.len();
    let sent: usize = evidence.shards.values().map(records).sum();
    let seen: usize =
        evidence.shards.values().map(|shard| evidence.firsts(shard).iter().flatten().count()).sum();
    let deliveries: usize = evidence.tenures.iter().map(|tenure| tenure.deliveries.len()).sum();
    let of_kind = |kind: &str| findings.iter().filter(|found| found.what.starts_with(kind)).count();
    let seed = evidence.settings.seed;
    say(&format!("\nsummary of seed {seed}, {} s", evidence.settings.length.as_secs()));
    row("records sent", sent);
    row("records seen", seen);
    row("lost", sent - seen);
    row("skipped by an owner", of_kind("SKIPPED"));
    row("out of order", of_kind("OUT OF ORDER"));
    row("two owners past the fence", of_kind("TWO OWNERS"));
    row("checkpoints moved back or too early", of_kind("CHECKPOINT"));
    row("repeats after a clean release", of_kind("REPEATED"));
    row("repeats", deliveries - seen);
    row("shards", evidence.shards.len());
    row("owners of shards, one after the other", evidence.tenures.len());
    row("batches finished under a lost lease", finished_late(evidence));
    print_takeovers(evidence);
    print_waits(evidence);
    if findings.is_empty() {
        say("\neverything held");
    } else {
        say(&format!("\n{} FINDINGS", findings.len()));
    }
}

fn row(name: &str, number: usize) {
    say(&format!("  {name:<42}{number:>9}"));
}

/// Returns the number of batches that began in time, and in which records were processed after the
/// next owner began: a paused process may do that.
fn finished_late(evidence: &Evidence) -> usize {
    let late = evidence.successions().flat_map(|succession| {
        succession.windows(2).map(|pair| {
            let is_late = |(at, _): &&(Duration, usize)| *at > pair[1].begun;
            usize::from(pair[0].deliveries.iter().any(|delivery| is_late(&delivery)))
        })
    });
    late.sum()
}

fn print_takeovers(evidence: &Evidence) {
    let mut kinds: BTreeMap<&str, Takeovers> = BTreeMap::new();
    for succession in evidence.successions() {
        for (index, tenure) in succession.iter().enumerate().skip(1) {
            let (repeats, bound) = repeated(&succession[..index], tenure);
            let kind = kinds.entry(&tenure.reason).or_default();
            kind.count += 1;
            kind.repeats += repeats;
            if repeats >= kind.most {
                (kind.most, kind.bound) = (repeats, bound);
            }
        }
    }
    say("\n  taken over because   times   repeats   most at once   bound there");
    for (reason, kind) in kinds {
        let Takeovers { count, repeats, most, bound } = kind;
        say(&format!("  {reason:<19}{count:>7}{repeats:>10}{most:>15}{bound:>14}"));
    }
    say("  bound: what earlier owners processed beyond the newest checkpoint known to be stored");
}

/// Returns how many records `tenure` processed again, and how many it may.
fn repeated(before: &[Tenure], tenure: &Tenure) -> (usize, usize) {
    let done = before.iter().flat_map(|earlier| &earlier.deliveries).map(|(_, place)| place + 1);
    let done = done.max().unwrap_or(0);
    let stored = before.iter().flat_map(|earlier| {
        earlier.checkpoints.iter().map(|(_, covered)| *covered).chain([earlier.start])
    });
    let bound = done.saturating_sub(stored.max().unwrap_or(0));
    let again = tenure.deliveries.iter().filter(|(_, place)| *place < done).count();
    (again, bound)
}

fn print_waits(evidence: &Evidence) {
    let waits = evidence.shards.values().filter_map(|shard| {
        let (wait, _) = longest_wait(shard, &evidence.firsts(shard))?;
        Some((wait, shard.id.trim_start_matches("shardId-").trim_start_matches('0')))
    });
    let mut waits: Vec<_> = waits.collect();
    waits.sort_unstable_by(|a, b| b.cmp(a));
    let median = waits.get(waits.len() / 2).map_or(0.0, |(wait, _)| wait.as_secs_f64());
    say("\n  longest time from writing to processing a record, by shard:");
    let longest = waits.iter().take(8).map(|(wait, shard)| {
        let shard = if shard.is_empty() { "0" } else { shard };
        format!("{shard}: {:.1} s", wait.as_secs_f64())
    });
    say(&format!(
        "  {}; median of the shards {median:.1} s",
        longest.collect::<Vec<_>>().join(", ")
    ));
}

/// Prints the findings, the first ones with their timeline.
pub(crate) fn print_timelines(evidence: &Evidence, findings: &[Finding]) {
    let start = evidence.timeline.first().map_or(Duration::ZERO, |(_, entry)| entry.at);
    for found in findings.iter().take(TOLD) {
        let shard = found.shard.as_deref().unwrap_or("-");
        let at = found.at.saturating_sub(start).as_secs_f64();
        say(&format!("\n{at:.3}s {shard}: {}", found.what));
        let near = |entry: &Entry| {
            let is_theirs = entry.shard.is_none() || entry.shard == found.shard;
            is_theirs && entry.at + AROUND >= found.at && entry.at <= found.at + AROUND
        };
        let lines: Vec<_> = evidence.timeline.iter().filter(|(_, entry)| near(entry)).collect();
        // The lines just before the finding are the most informative.
        let before = lines.iter().filter(|(_, entry)| entry.at <= found.at).count();
        for (process, entry) in lines.iter().skip(before.saturating_sub(LINES / 2)).take(LINES) {
            let at = entry.at.saturating_sub(start).as_secs_f64();
            say(&format!("    {at:>9.3}s {process:<14} {}", describe(&entry.what)));
        }
    }
    for found in findings.iter().skip(TOLD) {
        let shard = found.shard.as_deref().unwrap_or("-");
        let at = found.at.saturating_sub(start).as_secs_f64();
        say(&format!("{at:.3}s {shard}: {}", found.what));
    }
}

fn describe(what: &What) -> String {
    match what {
        What::Taken { reason } => format!("taken ({reason})"),
        What::Begun { token, checkpoint } => format!("begins, token {token}, at {checkpoint}"),
        What::Batch { token, records } => format!("batch of {records}, token {token}"),
        What::Record { token, sequence_number } => format!("{sequence_number}, token {token}"),
        What::Stored { checkpoint } => format!("stored {checkpoint}"),
        What::Released { checkpoint } => format!("released at {checkpoint}"),
        What::Reported { text } => text.clone(),
    }
}
