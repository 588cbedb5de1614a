//! Starting an application again from another place, while it runs.
//!
//! Every row is rewritten under its counter: a worker that holds the lease is fenced by that,
//! stops, and the lease is taken again from the new place. This is the only way in which a durable
//! checkpoint moves back. Parents are rewritten before their children, so that a worker that is
//! interrupted between two rows never reads a child before what its parent has to repeat. May be
//! repeated at any time; a repetition completes what an interrupted one began.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, ErrorKind, ServiceError};
use crate::lease::store::{LeaseStore, WriteOutcome};
use crate::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite, WriteId};
use crate::position::{Checkpoint, InitialPosition};
use crate::record::{ShardId, Timestamp};
use crate::shard::Shard;
use crate::shard::plan::{self, Source};
use crate::stream::{ListFrom, Listing, Stream};

/// How often a row whose counter moves meanwhile is tried.
const ATTEMPTS: u32 = 20;

/// What a reset did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reset {
    /// Shards that start again: those that hold the new place.
    pub restarted: Vec<LeaseKey>,
    /// Shards that start from their beginning after those.
    pub rewound: Vec<LeaseKey>,
    /// Leases that are ended, because their shards ended before the new place.
    pub dropped: Vec<LeaseKey>,
}

/// Makes an application read a stream again from `to`, or skip ahead to it. Running workers obey
/// within one renewal; stopped ones when they start.
///
/// For a worker of a single stream; `store` is its lease table and `stream` its stream.
///
/// # Example: an hour again
/// ```
/// use kcl_lite::lease::memory::MemoryStore;
/// use kcl_lite::stream::memory::MemoryStream;
/// use kcl_lite::{InitialPosition, Timestamp, reset};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let (store, stream) = (MemoryStore::new(), MemoryStream::new(2));
/// let an_hour_ago = Timestamp::from_millis(1_700_000_000_000 - 3_600_000);
/// let done = reset::reset(&store, &stream, InitialPosition::AtTimestamp(an_hour_ago)).await?;
/// assert_eq!(done.restarted.len(), 2);
/// # Ok::<(), kcl_lite::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Cancel safety
/// Dropping the future leaves some rows rewritten and others not; run it again.
///
/// # Errors
/// As the calls to the services; what was rewritten until then stays so, and a repetition goes on.
pub async fn reset(
    store: &dyn LeaseStore,
    stream: &dyn Stream,
    to: InitialPosition,
) -> Result<Reset, Error> {
    let all = stream.list(ListFrom::All).await?;
    let start = stream.list(ListFrom::Start(to)).await?;
    let source =
        Source { identity: stream.describe().await?.identity, position: to, ..Source::default() };
    let table = store.list().await?;
    if let Some((key, fault)) = table.unreadable.first_key_value() {
        let context = format!("the row `{key}` cannot be read: {fault}; mend or remove it first");
        return Err(Error::new(ErrorKind::Data, context));
    }
    if let Some(row) = table.leases.iter().find(|row| source.other_stream(row).is_some()) {
        let context = format!(
            "the row `{}` was made for another stream, {}: start a worker first, which can be told to \
             start over with the stream that is there now",
            row.key,
            row.made_for()
        );
        return Err(Error::new(ErrorKind::Config, context));
    }
    let rows = table.leases.into_iter().map(|lease| (lease.shard(), lease)).collect();
    let mut done = Reset::default();
    for step in steps(&all, &start, &rows, &source)? {
        perform(store, &step).await?;
        match step {
            Step::Restart(lease) => done.restarted.push(lease.key),
            Step::Rewind(key) => done.rewound.push(key),
            Step::Drop(key) => done.dropped.push(key),
        }
    }
    Ok(done)
}

/// What happens to one row.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Its shard holds the new place: it becomes this, or is made so.
    Restart(Box<Lease>),
    /// Its shard is younger than the new place: it starts from its own beginning.
    Rewind(LeaseKey),
    /// Its shard ended before the new place.
    Drop(LeaseKey),
}

impl Step {
    fn key(&self) -> &LeaseKey {
        match self {
            Self::Restart(lease) => &lease.key,
            Self::Rewind(key) | Self::Drop(key) => key,
        }
    }
}

/// What is to be done, parents first. Pure.
fn steps(
    all: &Listing,
    start: &Listing,
    rows: &BTreeMap<ShardId, Lease>,
    source: &Source,
) -> Result<Vec<Step>, Error> {
    let Some(first) = plan::first_leases(start, source) else {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "the shard listing does not cover the whole hash space; try again when the reshard is over",
        ));
    };
    let shards: BTreeMap<&ShardId, &Shard> = all.shards.iter().map(|it| (&it.id, it)).collect();
    let starts: BTreeSet<&ShardId> = start.shards.iter().map(|shard| &shard.id).collect();
    let mut restarts: Vec<_> = first.into_iter().map(|it| Step::Restart(Box::new(it))).collect();
    let (mut rewinds, mut drops) = (Vec::new(), Vec::new());
    for (shard, row) in rows.iter().filter(|(shard, _)| !starts.contains(shard)) {
        if descends(shard, &starts, &shards, rows) {
            rewinds.push(Step::Rewind(row.key.clone()));
        } else {
            drops.push(Step::Drop(row.key.clone()));
        }
    }
    // Ids grow with every reshard, so a parent sorts before its children.
    restarts.extend(rewinds);
    restarts.extend(drops);
    Ok(restarts)
}

/// Whether one of `starts` is an ancestor of `shard`.
fn descends(
    shard: &ShardId,
    starts: &BTreeSet<&ShardId>,
    shards: &BTreeMap<&ShardId, &Shard>,
    rows: &BTreeMap<ShardId, Lease>,
) -> bool {
    let listed = shards.get(shard).map(|shard| &shard.parents);
    let parents = listed.or_else(|| rows.get(shard).map(|row| &row.parents));
    parents.is_some_and(|parents| {
        let leads_here = |it: &ShardId| starts.contains(it) || descends(it, starts, shards, rows);
        parents.iter().any(leads_here)
    })
}

/// Writes under the counter that the row has now; an owner that renews meanwhile moves it.
async fn perform(store: &dyn LeaseStore, step: &Step) -> Result<(), ServiceError> {
    let mut row = store.get(step.key()).await?;
    for _ in 0..ATTEMPTS {
        let Some(change) = change(step, row.as_ref()) else { return Ok(()) };
        let counter = row.as_ref().map_or(0, |row| row.counter);
        let id = WriteId::new(format!("reset:{counter}"));
        let write = LeaseWrite { key: step.key().clone(), id, change };
        match store.write(&write).await? {
            WriteOutcome::Done(_) => return Ok(()),
            WriteOutcome::Refused(now) => row = now,
        }
    }
    Err(ServiceError::new(
        crate::error::ServiceErrorKind::Unavailable,
        format!("the row `{}` changes too quickly; try again", step.key()),
    ))
}

/// The write that brings `row` to where it should be; `None` if there is nothing to do.
fn change(step: &Step, row: Option<&Lease>) -> Option<LeaseChange> {
    let at = |row: &Lease, checkpoint, anchor: Option<Timestamp>| LeaseChange::Reset {
        counter: row.counter,
        checkpoint,
        anchor,
    };
    match (step, row) {
        (Step::Restart(lease), Some(row)) => Some(at(row, lease.checkpoint.clone(), lease.anchor)),
        (Step::Restart(lease), None) => Some(LeaseChange::Create(lease.clone())),
        (Step::Rewind(_), Some(row)) => Some(at(row, Checkpoint::TrimHorizon, None)),
        // Ended rather than removed: an owner would write a row again that is gone.
        (Step::Drop(_), Some(row)) if row.checkpoint.is_shard_end() => None,
        (Step::Drop(_), Some(row)) => Some(at(row, Checkpoint::ShardEnd, None)),
        (Step::Rewind(_) | Step::Drop(_), None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::HashRange;

    fn shard(id: &str, parents: &[&str], is_open: bool) -> Shard {
        let parents = parents.iter().map(|parent| ShardId::from(*parent)).collect();
        Shard { id: id.into(), parents, hash_range: HashRange::ALL, is_open }
    }

    fn listing(shards: &[Shard]) -> Listing {
        Listing { shards: shards.to_vec(), at: Timestamp::from_millis(9) }
    }

    fn rows(ids: &[&str]) -> BTreeMap<ShardId, Lease> {
        let row = |id: &&str| (ShardId::from(*id), Lease::new(*id, Checkpoint::ShardEnd));
        ids.iter().map(row).collect()
    }

    #[test]
    fn e11_a_rewind_restarts_what_holds_the_place_rewinds_what_follows_and_drops_what_was_before() {
        let family = [
            shard("0", &[], false),
            shard("1", &["0"], false),
            shard("2", &["1"], false),
            shard("3", &["2"], true),
        ];
        let to = InitialPosition::AtTimestamp(Timestamp::from_millis(5));
        let source = Source { position: to, ..Source::default() };
        let start = listing(&family[1..2]);
        let steps = steps(&listing(&family), &start, &rows(&["0", "2", "3"]), &source).unwrap();
        let told: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Step::Restart(lease) => format!("{} {:?}", lease.key, lease.checkpoint),
                Step::Rewind(key) => format!("{key} rewound"),
                Step::Drop(key) => format!("{key} dropped"),
            })
            .collect();
        assert_eq!(told, ["1 AtTimestamp", "2 rewound", "3 rewound", "0 dropped"]);
    }

    #[test]
    fn e11_the_owner_of_a_row_is_fenced_by_its_counter() {
        let row = Lease { counter: 7, ..Lease::new("0", Checkpoint::TrimHorizon) };
        let change = change(&Step::Rewind("0".into()), Some(&row)).unwrap();
        assert!(matches!(change, LeaseChange::Reset { counter: 7, .. }), "{change:?}");
    }
}
