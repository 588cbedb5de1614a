//! The checks of a run, one function each. Pure.
//!
//! Loss, order, owners and checkpoints are checked exactly; time only where progress stopped for so
//! long that no busy machine explains it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kcl_lite::Checkpoint;

use crate::evidence::{Evidence, Finding, StoredShard, Tenure};

/// The longest time, beyond the time without a healthy worker, that even a busy machine needs to
/// resume a shard.
const LONGEST_GAP: Duration = Duration::from_secs(60);

/// Returns all violations, in the order of time.
pub(crate) fn findings(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = evidence.failures.clone();
    for shard in evidence.shards.values() {
        findings.extend(lost(shard, &evidence.firsts(shard)));
        findings.extend(late(shard, &evidence.firsts(shard)));
    }
    for tenure in &evidence.tenures {
        findings.extend(uneven(tenure));
    }
    if evidence.settings.calm {
        findings.extend(repeated_at_all(evidence));
    }
    for succession in evidence.successions() {
        findings.extend(two_owners(succession));
        findings.extend(moved_back(succession));
        findings.extend(repeated_after_release(succession));
    }
    findings.extend(out_of_order(evidence));
    findings.extend(before_its_parents(evidence));
    findings.extend(table_moved_back(evidence));
    findings.extend(forgotten(evidence));
    findings.extend(checkpointed_too_early(evidence));
    findings.sort_by_key(|finding| finding.at);
    findings
}

fn finding(at: Duration, shard: &str, what: String) -> Finding {
    Finding { at, shard: Some(shard.to_owned()), what }
}

/// Finds records that were never processed.
fn lost(shard: &StoredShard, firsts: &[Option<Duration>]) -> Option<Finding> {
    let lost: Vec<_> =
        shard.records.iter().zip(firsts).filter(|(_, first)| first.is_none()).collect();
    let (first, _) = lost.first()?;
    let what = format!("LOST: {} records, from {} {} on", lost.len(), first.key, first.number);
    Some(finding(first.written.unwrap_or_default(), &shard.id, what))
}

/// Finds a record that waited longer than anything explains.
fn late(shard: &StoredShard, firsts: &[Option<Duration>]) -> Option<Finding> {
    let (waited, written) = longest_wait(shard, firsts)?;
    let what = format!("a record waited for {:.1} s", waited.as_secs_f64());
    (waited > LONGEST_GAP).then(|| finding(written + waited, &shard.id, what))
}

/// Returns the longest time between writing and processing a record of the shard, and when it was
/// written.
pub(crate) fn longest_wait(
    shard: &StoredShard,
    firsts: &[Option<Duration>],
) -> Option<(Duration, Duration)> {
    let waits = shard.records.iter().zip(firsts).filter_map(|(record, first)| {
        let written = record.written?;
        Some((first.as_ref()?.saturating_sub(written), written))
    });
    waits.max()
}

/// Checks that within one tenure the records are consecutive, from the checkpoint on.
fn uneven(tenure: &Tenure) -> Option<Finding> {
    let (at, place, due) = tenure
        .deliveries
        .iter()
        .zip(tenure.start..)
        .find_map(|((at, place), due)| (*place != due).then_some((*at, *place, due)))?;
    let kind = if place > due { "SKIPPED: " } else { "OUT OF ORDER: " };
    let who = format!("{} (token {})", tenure.worker, tenure.token);
    let what = format!("{kind}{who} processed record {place} of the shard when {due} was due");
    Some(finding(at, &tenure.shard, what))
}

/// Checks that after a tenure has begun, no batch begins under a smaller token, and that no two
/// tenures share one.
fn two_owners(succession: &[Tenure]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, old) in succession.iter().enumerate() {
        let Some(new) = succession[index + 1..].iter().min_by_key(|tenure| tenure.begun) else {
            continue;
        };
        if old.token == succession[index + 1].token {
            let what = format!("TWO OWNERS under token {}: {} and another", old.token, old.worker);
            found.push(finding(old.begun, &old.shard, what));
        }
        if let Some(batch) = old.batches.iter().find(|batch| **batch > new.begun) {
            let what = format!(
                "TWO OWNERS: {} (token {}) began a batch {:?} after {} (token {}) had the shard",
                old.worker,
                old.token,
                *batch - new.begun,
                new.worker,
                new.token
            );
            found.push(finding(*batch, &old.shard, what));
        }
    }
    found
}

/// Checks that every owner starts at the stored checkpoint, or later.
fn moved_back(succession: &[Tenure]) -> Vec<Finding> {
    let mut stored = 0;
    let mut found = Vec::new();
    for tenure in succession {
        if tenure.start < stored {
            let what = format!(
                "CHECKPOINT MOVED BACK: {stored} records were checkpointed, and {} (token {}) starts after {}",
                tenure.worker, tenure.token, tenure.start
            );
            found.push(finding(tenure.begun, &tenure.shard, what));
        }
        let newest = tenure.checkpoints.iter().map(|(_, covered)| *covered).max();
        stored = stored.max(tenure.start).max(newest.unwrap_or(0));
    }
    found
}

/// Checks that nothing is repeated after a graceful release.
fn repeated_after_release(succession: &[Tenure]) -> Vec<Finding> {
    let pairs = succession.windows(2).filter(|pair| pair[0].released.is_some());
    let repeats = pairs.filter_map(|pair| {
        let done = pair[0].deliveries.last().map_or(pair[0].start, |(_, place)| place + 1);
        let what = format!(
            "REPEATED after a release: {} (token {}) had processed {done} records, {} starts after {}",
            pair[0].worker, pair[0].token, pair[1].worker, pair[1].start
        );
        (pair[1].start < done).then(|| finding(pair[1].begun, &pair[1].shard, what))
    });
    repeats.collect()
}

/// Checks, if no worker was killed, paused or stopped, that every record was processed once.
fn repeated_at_all(evidence: &Evidence) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for tenure in &evidence.tenures {
        let deliveries = tenure.deliveries.iter();
        let again = deliveries.filter(|(_, place)| !seen.insert((tenure.shard.as_str(), *place)));
        let again: Vec<_> = again.collect();
        if let Some((at, _)) = again.first() {
            let what =
                format!("REPEATED in a calm run: {} records by {}", again.len(), tenure.worker);
            findings.push(finding(*at, &tenure.shard, what));
        }
    }
    findings
}

/// Checks that the records of a key are first processed in the order in which they were written,
/// through all resharding.
fn out_of_order(evidence: &Evidence) -> Vec<Finding> {
    let mut first_times = Vec::new();
    for shard in evidence.shards.values() {
        for (record, first) in shard.records.iter().zip(evidence.firsts(shard)) {
            first_times.extend(first.map(|at| (at, record, &shard.id)));
        }
    }
    first_times.sort_by_key(|(at, ..)| *at);
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for (at, record, shard) in first_times {
        let newest = newest.entry(&record.key).or_default();
        if record.number < *newest {
            let what =
                format!("OUT OF ORDER: {} {} came after {newest}", record.key, record.number);
            found.push(finding(at, shard, what));
        }
        *newest = record.number.max(*newest);
    }
    found
}

/// Checks that no record of a child is processed before all records of its parents.
fn before_its_parents(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    for child in evidence.shards.values() {
        let Some(first) = evidence.firsts(child).into_iter().flatten().min() else { continue };
        for parent in child.parents.iter().filter_map(|id| evidence.shards.get(id)) {
            let left =
                evidence.firsts(parent).iter().filter(|at| at.is_none_or(|at| at > first)).count();
            if left > 0 {
                let what = format!(
                    "OUT OF ORDER: the shard began while {left} records of its parent {} were left",
                    parent.id
                );
                found.push(finding(first, &child.id, what));
            }
        }
    }
    found
}

/// Checks that neither the counter nor the checkpoint of a row ever moves back, and that no deleted
/// row returns.
fn table_moved_back(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut highest: BTreeMap<&str, (u64, Checkpoint)> = BTreeMap::new();
    for sample in &evidence.samples {
        for (shard, row) in &sample.rows {
            let Ok(checkpoint) = Checkpoint::parse(&row.checkpoint, 0) else {
                let what = format!("the row's checkpoint is `{}`", row.checkpoint);
                found.push(finding(sample.at, shard, what));
                continue;
            };
            let now = (row.counter, checkpoint);
            let before = highest.entry(shard).or_insert_with(|| now.clone());
            if now.0 < before.0 || now.1 < before.1 {
                let what = format!("CHECKPOINT MOVED BACK in the table: {before:?}, then {now:?}");
                found.push(finding(sample.at, shard, what));
            }
            *before = now;
        }
    }
    found
}

/// Checks that a scan that began after a checkpoint was known to be stored shows it, or a later
/// one.
fn forgotten(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    for shard in evidence.shards.values() {
        let reported = evidence.tenures.iter().filter(|tenure| tenure.shard == shard.id);
        let mut reported: Vec<_> =
            reported.flat_map(|tenure| tenure.checkpoints.iter().copied()).collect();
        reported.sort_unstable();
        let (mut reported, mut stored) = (reported.into_iter().peekable(), 0);
        for sample in &evidence.samples {
            while let Some((_, covered)) = reported.next_if(|(at, _)| *at <= sample.sent) {
                stored = covered.max(stored);
            }
            let row = sample.rows.get(&shard.id);
            let shown = row.and_then(|row| Checkpoint::parse(&row.checkpoint, 0).ok());
            if let Some(shown) = shown.map(|it| shard.covered(&it)).filter(|it| *it < stored) {
                let what = format!("CHECKPOINT MOVED BACK: {stored} records, then {shown}");
                found.push(finding(sample.at, &shard.id, what));
            }
        }
    }
    found
}

/// Checks that the records covered by a checkpoint were processed before the checkpoint was
/// visible.
fn checkpointed_too_early(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    for shard in evidence.shards.values() {
        // By place: the time when all records up to it had been processed.
        let mut all_done = Some(Duration::ZERO);
        let done: Vec<_> = evidence
            .firsts(shard)
            .into_iter()
            .map(|first| {
                all_done = all_done.zip(first).map(|(before, first)| before.max(first));
                all_done
            })
            .collect();
        let rows = evidence.samples.iter().filter_map(|sample| {
            let row = sample.rows.get(&shard.id)?;
            Some((sample.at, shard.covered(&Checkpoint::parse(&row.checkpoint, 0).ok()?)))
        });
        let reported = evidence.tenures.iter().filter(|tenure| tenure.shard == shard.id);
        let reported = reported.flat_map(|tenure| tenure.checkpoints.iter().copied());
        let early = rows.chain(reported).find(|(at, covered)| {
            covered.checked_sub(1).is_some_and(|last| done[last].is_none_or(|done| done > *at))
        });
        if let Some((at, covered)) = early {
            let what =
                format!("CHECKPOINT TOO EARLY: it covers {covered} records, not all processed");
            found.push(finding(at, &shard.id, what));
        }
    }
    found
}

#[cfg(test)]
mod tests;
