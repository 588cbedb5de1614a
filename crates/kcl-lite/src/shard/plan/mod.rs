//! The plan that follows from a listing: leases to create, leases to delete, holes.
//!
//! Pure. The listing is a hint: it may be stale, and shards in it that contradict each other wait for
//! a later listing. Never creates a second lease for a range that a child or parent covers.

use std::collections::{BTreeMap, BTreeSet};

use super::{ChildShard, HashRange, ListFrom, Listing, Shard, cover, covers_everything};
use crate::identity::{Other, StreamIdentity};
use crate::lease::{Lease, LeaseKey, StreamKey};
use crate::position::{Checkpoint, InitialPosition};
use crate::record::{ShardId, Timestamp};

/// What new leases need to know about a stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    /// The key of the stream among those of the worker.
    pub(crate) key: StreamKey,
    /// The identity of the stream, if it is known.
    pub(crate) identity: Option<StreamIdentity>,
    /// The initial position.
    pub(crate) position: InitialPosition,
    /// When the stream was created, if it is a re-created stream that is read from its beginning. New
    /// rows store this time, so that a worker that completes the start after a crash starts there
    /// too, whatever its own initial position is.
    pub(crate) since: Option<Timestamp>,
}

/// An initial position with a resolved time, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Latest,
    TrimHorizon,
    At(Timestamp),
}

impl Start {
    /// Resolves `position` when the service's clock shows `now`, which may be early but is never
    /// late. The result is never in the future: the service would refuse to read from there until
    /// then, and records that arrive meanwhile would be lost.
    pub(crate) fn of(position: InitialPosition, now: Timestamp) -> Self {
        match position {
            InitialPosition::Latest => Self::Latest,
            InitialPosition::TrimHorizon => Self::TrimHorizon,
            InitialPosition::AtTimestamp(time) => Self::at(time, now),
            InitialPosition::Ago(ago) => {
                let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
                Self::at(Timestamp::from_millis(now.as_millis().saturating_sub(ago)), now)
            }
        }
    }

    fn at(time: Timestamp, now: Timestamp) -> Self {
        // No record is older than 1970, and the service accepts no earlier time.
        Self::At(time.min(now).max(Timestamp::from_millis(0)))
    }

    /// Returns the listing of the shards to start with.
    pub(crate) fn listed(self) -> ListFrom {
        match self {
            Self::Latest => ListFrom::Latest,
            Self::TrimHorizon => ListFrom::TrimHorizon,
            Self::At(time) => ListFrom::AtTimestamp(time),
        }
    }

    fn checkpoint(self) -> Checkpoint {
        match self {
            Self::Latest => Checkpoint::Latest,
            Self::TrimHorizon => Checkpoint::TrimHorizon,
            Self::At(_) => Checkpoint::AtTimestamp,
        }
    }
}

/// Returns the key under which the rows of one of several streams are stored. A stream keeps the rows
/// from when it was the only one.
pub(crate) fn key_among_several(identity: &StreamIdentity, leases: &[Lease]) -> StreamKey {
    let mut only = leases.iter().filter(|row| row.key.stream() == StreamKey::ONLY);
    if only.any(|row| row.stream.as_ref() == Some(identity)) {
        return StreamKey::ONLY;
    }
    let parts: Vec<_> = identity.arn.splitn(6, ':').collect();
    let (account, name) = (parts.get(4).unwrap_or(&""), parts.get(5).unwrap_or(&""));
    let name = name.strip_prefix("stream/").unwrap_or(name);
    StreamKey::of_several(account, name, identity.created)
}

/// Returns the leases of one stream by shard.
pub(crate) fn leases_of<'a>(
    source: &Source,
    leases: &'a BTreeMap<LeaseKey, Lease>,
) -> BTreeMap<ShardId, &'a Lease> {
    let of_stream = leases.values().filter(|lease| lease.key.stream() == source.key);
    of_stream.map(|lease| (lease.shard(), lease)).collect()
}

/// Returns the first leases of a stream without any: one for each shard of the listing, which was
/// made for `start`. Returns `None` while the listing does not cover the whole hash space.
pub(crate) fn first_leases(listing: &Listing, source: &Source, start: Start) -> Option<Vec<Lease>> {
    let ranges = listing.shards.iter().map(|shard| shard.hash_range);
    let first = |shard| source.new_lease(shard, start.checkpoint(), start, listing.at);
    covers_everything(ranges).then(|| listing.shards.iter().map(first).collect())
}

/// Returns the leases that are missing in a table that has some, oldest shards first.
///
/// Follows the rule of the Java KCL (`HierarchicalShardSyncer`): level by level, every open shard is
/// covered by its own lease or by an ancestor's. One rule is added: a shard whose parents have ended
/// gets its lease here too, in case the worker that finished the last parent could not create it. One
/// is removed: what unfinished leases cover gets no second lease. A stale listing shows a parent as
/// open whose lease is finished and deleted; it must not be read again beside its children.
pub(crate) fn leases_to_create(
    listing: &Listing,
    leases: &BTreeMap<LeaseKey, Lease>,
    source: &Source,
) -> Vec<Lease> {
    let leases = leases_of(source, leases);
    let shards: BTreeMap<&ShardId, &Shard> =
        listing.shards.iter().map(|shard| (&shard.id, shard)).collect();
    // The time of "latest", if a row stores it: the first start resolved it.
    let anchor = leases.values().filter_map(|lease| lease.anchor).min();
    let start = match (source.position, anchor) {
        (InitialPosition::AtTimestamp(time), Some(first)) => Start::at(time.min(first), listing.at),
        (InitialPosition::Ago(_), Some(first)) => Start::at(first, listing.at),
        // Counted from now, the time would differ from that of the first start, which no row stores
        // any more.
        (InitialPosition::Ago(_), None) => Start::TrimHorizon,
        (InitialPosition::AtTimestamp(time), None) if time > listing.at => Start::TrimHorizon,
        (position, _) => Start::of(position, listing.at),
    };
    let mut planner = Planner {
        shards,
        leases: &leases,
        start,
        begun: anchor.map(|_| has_begun(&listing.shards, &served(leases.values().copied()))),
        visited: BTreeMap::new(),
        planned: BTreeMap::new(),
    };
    let unfinished = |lease: &&Lease| !lease.checkpoint.is_shard_end();
    // The children of a shard that has just ended are in the table, but may be missing in this
    // snapshot.
    let continued = |lease: &&Lease| lease.children.iter().any(|it| !leases.contains_key(it));
    let covering = leases.values().copied().filter(|it| unfinished(it) || continued(it));
    let mut covering: Vec<_> =
        covering.filter_map(|it| Some((it.hash_range?, it.shard(), unfinished(&it)))).collect();
    covering.sort_unstable();
    // An ended shard does not cover its own children, in case they were not created.
    let is_covered = |shard: &Shard| {
        let counts = |it: &&(HashRange, ShardId, bool)| it.2 || !shard.parents.contains(&it.1);
        cover(covering.iter().filter(counts).map(|it| it.0), shard.hash_range)
    };
    for shard in &listing.shards {
        // Closed shards are reached from their open descendants. `visit` is the last condition,
        // because it also plans leases of ancestors.
        if shard.is_open
            && !leases.contains_key(&shard.id)
            && !is_covered(shard)
            && planner.is_consistent(shard)
            && !planner.visit(shard)
        {
            planner.planned.insert(shard.id.clone(), start.checkpoint());
        }
    }
    // A lease that the first start did not create starts at the time of that start. If no row stores
    // that time any more, a shard of unknown lineage starts at its beginning: "latest" would now be
    // another time.
    let at = anchor.map_or(listing.at, |first| first.min(listing.at));
    let is_lost = anchor.is_none() && !leases.is_empty();
    let planned = std::mem::take(&mut planner.planned);
    planned
        .into_iter()
        .filter_map(|(id, checkpoint)| {
            let shard = planner.shards.get(&id)?;
            let is_unknown = is_lost && checkpoint == Checkpoint::Latest;
            let checkpoint = if is_unknown { Checkpoint::TrimHorizon } else { checkpoint };
            Some(source.new_lease(shard, checkpoint, start, at))
        })
        .collect()
}

struct Planner<'a> {
    shards: BTreeMap<&'a ShardId, &'a Shard>,
    leases: &'a BTreeMap<ShardId, &'a Lease>,
    start: Start,
    /// The shards with a descendant that is or was served, if the time of "latest" is known.
    begun: Option<BTreeSet<&'a ShardId>>,
    /// Whether a shard is covered by its own lease or an ancestor's.
    visited: BTreeMap<ShardId, bool>,
    planned: BTreeMap<ShardId, Checkpoint>,
}

impl<'a> Planner<'a> {
    /// A child that is listed beside an open parent comes from a listing that is still changing.
    fn is_consistent(&self, shard: &Shard) -> bool {
        !self.listed_parents(shard).iter().any(|parent| parent.is_open)
    }

    fn listed_parents(&self, shard: &Shard) -> Vec<&'a Shard> {
        shard.parents.iter().filter_map(|id| self.shards.get(id).copied()).collect()
    }

    /// Plans the missing leases above `shard`. Returns whether it has a lease or an ancestor with
    /// one.
    fn visit(&mut self, shard: &Shard) -> bool {
        if self.leases.contains_key(&shard.id) {
            return true;
        }
        if let Some(known) = self.visited.get(&shard.id) {
            return *known;
        }
        let parents = self.listed_parents(shard);
        // Not `any`, which would stop at the first: a visit also plans leases.
        let covered: Vec<bool> = parents
            .iter()
            .map(|parent| self.visit(parent) || self.planned.contains_key(&parent.id))
            .collect();
        // A parent that is no longer listed covers the shard too if it has a lease.
        let unlisted = shard.parents.iter().filter(|id| !self.shards.contains_key(id));
        let leased_before = unlisted.into_iter().any(|id| self.leases.contains_key(id));
        let is_descendant = leased_before || covered.iter().any(|covered| *covered);
        if is_descendant {
            self.plan_parents(&parents, &covered);
            self.plan_after_ended_parents(shard);
        } else if self.is_read_first(&shard.id) {
            self.planned.insert(shard.id.clone(), self.start.checkpoint());
        }
        self.visited.insert(shard.id.clone(), is_descendant);
        is_descendant
    }

    /// Returns whether a lineage without leases starts with this shard rather than with its
    /// descendants.
    fn is_read_first(&self, id: &ShardId) -> bool {
        match self.start {
            Start::TrimHorizon | Start::At(_) => true,
            // The first start did not create it. The shards that were open then may have ended since,
            // and hold records that were written after that start.
            Start::Latest => self.begun.as_ref().is_some_and(|it| !it.contains(id)),
        }
    }

    fn plan_parents(&mut self, parents: &[&Shard], covered: &[bool]) {
        for (parent, covered) in parents.iter().zip(covered) {
            let missing = !self.leases.contains_key(&parent.id);
            if missing && (!*covered || self.planned.contains_key(&parent.id)) {
                let timestamp = matches!(self.start, Start::At(_));
                let known = self.visited.get(&parent.id).copied().unwrap_or(false);
                let checkpoint = if known && !timestamp {
                    Checkpoint::TrimHorizon
                } else {
                    self.start.checkpoint()
                };
                self.planned.insert(parent.id.clone(), checkpoint);
            }
        }
    }

    /// Plans `shard` if all its parents have ended or left no trace: no other worker will create its
    /// lease.
    fn plan_after_ended_parents(&mut self, shard: &Shard) {
        let ended =
            |id: &ShardId| self.leases.get(id).is_some_and(|lease| lease.checkpoint.is_shard_end());
        let gone = |id: &ShardId| !self.shards.contains_key(id) && !self.leases.contains_key(id);
        let is_next = shard.parents.iter().all(|id| ended(id) || gone(id));
        if is_next && shard.parents.iter().any(ended) {
            // Whatever the initial position is: the shard continues what its parents began.
            self.planned.insert(shard.id.clone(), Checkpoint::TrimHorizon);
        }
    }
}

/// Returns the shards that need a lease instead of `child`, which has none: the descendants of
/// `child` that nobody serves. Returns `None` while no descendant has a lease, so that `child` itself
/// is next.
///
/// Two first starts with different listings may have begun above and below `child`. Then nobody
/// creates a lease of its other parent, and `child` must not start after its own children.
pub(crate) fn missing_behind(
    child: &ShardId,
    shards: &[Shard],
    leased: &BTreeSet<ShardId>,
) -> Option<Vec<ChildShard>> {
    let has_begun = has_begun(shards, leased);
    if !has_begun.contains(child) {
        return None;
    }
    // Descends on each path to the first shard that nobody serves and below which nothing has begun.
    let (mut passed_over, mut missing) = (BTreeSet::from([child]), Vec::new());
    for shard in shards {
        if shard.parents.iter().all(|id| !passed_over.contains(id)) || leased.contains(&shard.id) {
            continue;
        }
        if has_begun.contains(&shard.id) {
            passed_over.insert(&shard.id);
        } else {
            missing.push(shard.clone().into());
        }
    }
    Some(missing)
}

/// Returns the shards that are or were served. The parents of a row were, even if their own rows are
/// gone.
pub(crate) fn served<'a>(rows: impl Iterator<Item = &'a Lease>) -> BTreeSet<ShardId> {
    rows.flat_map(|row| row.parents.iter().cloned().chain([row.shard()])).collect()
}

/// Returns the shards with a served descendant. Children have greater IDs than parents, so one pass
/// from the end finds them all.
fn has_begun<'a>(shards: &'a [Shard], served: &BTreeSet<ShardId>) -> BTreeSet<&'a ShardId> {
    let mut has_begun = BTreeSet::new();
    for shard in shards.iter().rev() {
        if served.contains(&shard.id) || has_begun.contains(&shard.id) {
            has_begun.extend(&shard.parents);
        }
    }
    has_begun
}

/// Returns the lease of a child that the last reply of `parent` named. It starts at its beginning.
///
/// If nothing of the parent was read, the start time of the application may be later than the
/// beginning of the child; then the child starts at that time too. Another library, which does not
/// know that time, repeats records rather than losing them.
pub(crate) fn child_lease(parent: &Lease, child: &ChildShard) -> Lease {
    Lease {
        anchor: parent.anchor.filter(|_| !matches!(parent.checkpoint, Checkpoint::At(_))),
        parents: child.parents.clone(),
        hash_range: child.hash_range,
        ..Lease::of_stream(
            parent.stream.clone(),
            parent.key.sibling(&child.id),
            Checkpoint::TrimHorizon,
        )
    }
}

impl Source {
    fn new_lease(
        &self,
        shard: &Shard,
        checkpoint: Checkpoint,
        start: Start,
        at: Timestamp,
    ) -> Lease {
        let anchor = match (&checkpoint, start) {
            // Stored, so that no crash makes a worker resolve `LATEST` again, to a later time.
            (Checkpoint::Latest, _) => Some(at),
            (Checkpoint::AtTimestamp, Start::At(time)) => Some(time),
            (Checkpoint::TrimHorizon, _) => self.since,
            _ => None,
        };
        Lease {
            parents: shard.parents.clone(),
            hash_range: Some(shard.hash_range),
            anchor,
            ..Lease::of_stream(self.identity.clone(), self.key.lease(&shard.id), checkpoint)
        }
    }

    /// Returns how the stream of `row` relates to this one, if the row is among those of this stream
    /// but belongs to another.
    pub(crate) fn other_stream(&self, row: &Lease) -> Option<Other> {
        let identity = self.identity.as_ref()?;
        let key = row.key.stream();
        match &row.stream {
            // The key may differ if the former stream was the only one of the worker and this one is
            // one of several.
            Some(stream) => {
                identity.other(stream).filter(|it| *it != Other::Unrelated || key == self.key)
            }
            // The Java library does not store the stream, but its keys for several streams contain
            // name and creation time.
            None => key.is_former_of(&self.key).then_some(Other::Former),
        }
    }
}

/// Returns the finished leases that are no longer needed: the leases of all parents are gone and
/// every child has made progress, so that no listing can bring the shard back.
pub(crate) fn leases_to_delete(leases: &BTreeMap<LeaseKey, Lease>) -> Vec<&Lease> {
    leases
        .values()
        .filter(|lease| {
            let parents_gone = lease.parent_keys().all(|parent| !leases.contains_key(&parent));
            // A row without children does not name them; it does not show that all have progressed.
            let children_moved = !lease.children.is_empty()
                && lease.child_keys().all(|child| {
                    leases.get(&child).is_some_and(|child| child.checkpoint.has_progress())
                });
            lease.checkpoint.is_shard_end() && parents_gone && children_moved
        })
        .collect()
}

#[cfg(test)]
mod tests;
