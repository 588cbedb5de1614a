//! Checks of the workers' reports about their health.

use std::sync::Arc;
use std::time::Duration;

use kcl_lite::Health;
use kcl_lite::lease::LeaseKey;

use super::{Ledger, Promise};
use crate::machine::Machine;
use crate::stream::Shards;
use crate::table::Rows;

/// How long a call of the control plane, or of a reader, may hang before it can be noticed.
const UNKNOWN: Duration = Duration::from_secs(100);

impl Ledger {
    /// Checks that a shard without progress for a long time is named by some worker, with the
    /// cause, or that some worker reports that the table cannot be used.
    pub(crate) fn is_told(
        &mut self,
        now: Duration,
        shards: &mut Shards,
        healths: &[(Arc<Machine>, Health)],
    ) {
        let patience = self.patience() + self.rules.slow_after + UNKNOWN;
        // A worker that was frozen resumes its observation when it thaws.
        let is_awake =
            |machine: &Machine| machine.thawed_at().is_none_or(|thawed| now > thawed + patience);
        for (machine, _) in healths {
            self.heard.entry(machine.number).or_insert(now);
        }
        for shard in 0..shards.all.len() {
            let Some(runnable_at) = self.runnable_at(shard, shards) else { continue };
            let truth = &mut shards.all[shard];
            let (key, done) = (LeaseKey::from(truth.id.clone()), truth.done());
            let waits = truth.waiting_since(now).map(|it| it.arrived);
            // A worker that cannot read the end of a parent does not know of its children.
            let parents = truth.parents.iter().filter_map(|it| self.leases.get(it));
            let parents_named = parents.map(|it| it.named).max().unwrap_or_default();
            let Some(facts) = self.leases.get_mut(&shard) else { continue };
            let says = |health: &Health| health.table.is_some() || health.shards.contains_key(&key);
            if healths.iter().any(|(_, health)| says(health)) {
                facts.named = now;
            }
            if facts.progress.0 != done || waits.is_none() {
                facts.progress = (done, now);
            }
            let Some(arrived) = waits else { continue };
            // Between two attempts everything may look healthy.
            let since =
                facts.progress.1.max(arrived).max(runnable_at).max(facts.named.max(parents_named));
            let is_late = now > since + patience;
            let has_seen = |machine: &Machine| {
                // Counted from the start of the worker: before that, the caller gets the error.
                let heard = self.heard.get(&machine.number).copied().unwrap_or(now);
                now > heard + patience && is_awake(machine)
            };
            let can_tell = healths.iter().any(|(machine, _)| has_seen(machine));
            if is_late && can_tell {
                let waited = now.saturating_sub(since);
                let text = format!("no progress for {waited:?}, and no worker reports it");
                return self.broken(Promise::Truth, now, Some(&key), text);
            }
        }
    }

    /// Returns whether a shard cannot end because the other parent of a child is behind one that is
    /// being read.
    fn waits_for_another(&self, shard: &LeaseKey, shards: &mut Shards) -> bool {
        let Some(shard) = shards.find(shard.as_str()) else { return false };
        let children = shards.all[shard].children.iter();
        let parents = children.flat_map(|child| shards.all[*child].parents.clone());
        let parents: Vec<_> = parents.filter(|parent| *parent != shard).collect();
        parents.into_iter().any(|parent| self.runnable_at(parent, shards).is_none())
    }

    /// Checks that no worker complains once everything has settled.
    pub(crate) fn is_healthy(
        &mut self,
        now: Duration,
        (shards, rows): (&mut Shards, &Rows),
        healths: &[(Arc<Machine>, Health)],
    ) {
        if let Some((machine, _)) = healths.first().filter(|_| shards.is_refused(rows)) {
            let text = format!("{machine} continues, though its leases are of another stream");
            return self.broken(Promise::Truth, now, None, text);
        }
        let unwell = healths.iter().find(|(_, health)| {
            let mut named = health.shards.keys();
            health.table.is_some() || named.any(|shard| !self.waits_for_another(shard, shards))
        });
        if let Some((machine, health)) = unwell {
            let text = format!("{machine} reports a problem: {health:?}");
            self.broken(Promise::Truth, now, None, text);
        }
    }
}
