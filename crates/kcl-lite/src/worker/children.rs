//! The creation of child leases at shard end, before `SHARD_END` is stored.
//!
//! Retries until it succeeds; dropping the future is safe at any point, since every step is idempotent.
//! Never creates the child of a merge while a listed parent has no lease row: such a child could start
//! too early.

use std::collections::BTreeSet;
use std::time::Duration;

use super::context::ControlContext;
use crate::clock;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::lease::{Lease, LeaseKey, Other};
use crate::record::ShardId;
use crate::shard::{self, ChildShard, Shard, plan};
use crate::stream::ListFrom;

/// How many attempts, one per second, treat a listing that shows neither a parent nor its children, but
/// their descendants, as partly stale; after that the parent counts as trimmed from the listing. Also how
/// long another parent may lack a lease when the descendants of its child have one.
const PATIENCE: u32 = 30;

/// Creates the leases of the children of `parent`; returns the shard IDs of those that were created or
/// exist, without the skipped ones.
pub(crate) async fn make(
    context: ControlContext,
    parent: Lease,
    named: Vec<ChildShard>,
) -> BTreeSet<ShardId> {
    let mut attempts = 0;
    loop {
        match try_make(&context, &parent, &named, attempts >= PATIENCE).await {
            Ok(children) => return children,
            // The other parent is still being read, or the listing is stale: normal in a resharding.
            Err(error) if error.kind == ServiceErrorKind::NotReady => {
                tracing::debug!("the shard end of {} is delayed: {error}", parent.key);
            }
            Err(error) => context.events.emit(&Event::CoordinationFailed {
                operation: "creating child leases",
                error: error.to_string(),
                transient: error.is_transient(),
                call: error.call.clone(),
            }),
        }
        clock::sleep(&context.clock, Duration::from_secs(1)).await;
        attempts += 1;
    }
}

async fn try_make(
    context: &ControlContext,
    parent: &Lease,
    named: &[ChildShard],
    has_waited: bool,
) -> Result<BTreeSet<ShardId>, ServiceError> {
    // A listing may be stale; the children that the last reply of the parent named are certain.
    let children = if named.is_empty() {
        listed_children(context, parent, has_waited).await?
    } else {
        named.to_vec()
    };
    let mut made = BTreeSet::new();
    for child in children {
        match other_parents_are_known(context, parent, &child).await {
            Ok(()) => {
                create(context, parent, &child).await?;
                made.insert(child.id);
            }
            // If first starts began both above and below `child`, its other parent gets no lease:
            // the child is skipped, and what is missing behind it gets leases.
            Err(error) if has_waited && error.kind == ServiceErrorKind::NotReady => {
                for later in missing_behind(context, parent, &child).await?.ok_or(error)? {
                    create(context, parent, &later).await?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(made)
}

async fn create(
    context: &ControlContext,
    parent: &Lease,
    child: &ChildShard,
) -> Result<(), ServiceError> {
    timely(context, context.create(&plan::child_lease(parent, child))).await
}

/// Lists the children. A stale listing may show only some of them, or none: together they have to cover
/// the parent's hash range, unless the parent itself has been trimmed for a while.
async fn listed_children(
    context: &ControlContext,
    parent: &Lease,
    has_waited: bool,
) -> Result<Vec<ChildShard>, ServiceError> {
    let shards = listed(context).await?;
    let id = parent.shard();
    let is_listed = shards.iter().any(|shard| shard.id == id);
    // Its descendants have greater IDs and cover its hash range; otherwise the listing predates it.
    let later = shards.iter().filter(|shard| shard.id > id).map(|shard| shard.hash_range);
    let is_history =
        !is_listed && parent.hash_range.is_none_or(|whole| shard::covers(later, whole));
    let children = ChildShard::of(&id, shards);
    let is_whole = parent.hash_range.is_none_or(|whole| ChildShard::cover(&children, whole));
    // Only a parent that has been trimmed can lack children in a complete listing.
    let may_be_behind = !is_history || !has_waited;
    if may_be_behind && (children.is_empty() || !is_whole) {
        return Err(ServiceError::new(
            ServiceErrorKind::NotReady,
            format!("the shard listing does not contain all children of {} yet", parent.key),
        ));
    }
    Ok(children)
}

async fn other_parents_are_known(
    context: &ControlContext,
    parent: &Lease,
    child: &ChildShard,
) -> Result<(), ServiceError> {
    for other in child.parents.iter().filter(|id| parent.shard() != **id) {
        let (child, other) = (parent.key.sibling(&child.id), parent.key.sibling(other));
        other_parent_is_known(context, parent, &child, &other).await?;
    }
    Ok(())
}

async fn missing_behind(
    context: &ControlContext,
    parent: &Lease,
    child: &ChildShard,
) -> Result<Option<Vec<ChildShard>>, ServiceError> {
    let shards = listed(context).await?;
    let rows = timely(context, context.store.list()).await?.leases;
    let of_stream = rows
        .iter()
        .filter(|row| row.key.stream() == parent.key.stream() && !is_of_former(row, parent));
    let mut served = plan::served(of_stream);
    served.remove(&child.id);
    Ok(plan::missing_behind(&child.id, &shards, &served))
}

/// Checks that another parent of a merge is accounted for: it has a lease, or a listing that shows the
/// child no longer shows it. If the child has a lease already, the other parent does not matter.
async fn other_parent_is_known(
    context: &ControlContext,
    parent: &Lease,
    child: &LeaseKey,
    other: &LeaseKey,
) -> Result<(), ServiceError> {
    for known in [other, child] {
        let row = timely(context, context.store.get(known)).await?;
        // A row of the former stream proves nothing, although it has the same key.
        if row.is_some_and(|row| !is_of_former(&row, parent)) {
            return Ok(());
        }
    }
    let shards = listed(context).await?;
    let shows = |key: &LeaseKey| shards.iter().any(|shard| shard.id == key.shard());
    // A listing without the child predates it, and proves nothing about its parents.
    if shows(other) || !shows(child) {
        return Err(ServiceError::new(
            ServiceErrorKind::NotReady,
            format!("{child} is not created yet: its other parent {other} has no lease"),
        ));
    }
    Ok(())
}

fn is_of_former(row: &Lease, parent: &Lease) -> bool {
    parent.other_stream(row) == Some(Other::Former)
}

async fn listed(context: &ControlContext) -> Result<Vec<Shard>, ServiceError> {
    Ok(timely(context, context.stream.list(ListFrom::All)).await?.shards)
}

/// Bounds a call: one that hangs must not block the end of a shard indefinitely.
async fn timely<T>(
    context: &ControlContext,
    call: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    clock::timely(&context.clock, context.settings.lease_duration, "ending a shard", call).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::clock::TokioClock;
    use crate::event::{Events, Sink};
    use crate::lease::StreamIdentity;
    use crate::lease::memory::MemoryStore;
    use crate::lease::store::LeaseStore;
    use crate::lease::tenure::create_write;
    use crate::position::{Checkpoint, Cursor};
    use crate::record::Timestamp;
    use crate::shard::HashRange;
    use crate::stream::{Listing, ShardReader, Stream};

    /// A stream with a fixed listing.
    #[derive(Debug)]
    struct Listed(Vec<Shard>);

    impl Stream for Listed {
        fn list(&self, _: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
            let listing = Listing { shards: self.0.clone(), at: Timestamp::from_millis(0) };
            async { Ok(listing) }.boxed()
        }

        fn open(&self, _: &ShardId, _: Cursor) -> Box<dyn ShardReader> {
            unreachable!("nothing is read here")
        }
    }

    const HALF: u128 = u128::MAX / 2;

    fn shard(id: &str, parents: &[&str], start: u128, end: u128) -> Shard {
        Shard {
            id: id.into(),
            parents: parents.iter().map(|id| ShardId::from(*id)).collect(),
            hash_range: HashRange { start, end },
            is_open: false,
        }
    }

    async fn made(shards: Vec<Shard>, named: &[ChildShard]) -> Result<usize, ServiceErrorKind> {
        made_after(shards, named, false).await
    }

    async fn made_after(
        shards: Vec<Shard>,
        named: &[ChildShard],
        has_waited: bool,
    ) -> Result<usize, ServiceErrorKind> {
        made_beside(&[], shards, named, has_waited).await
    }

    /// Returns how many leases are created beside `rows`.
    async fn made_beside(
        rows: &[&str],
        shards: Vec<Shard>,
        named: &[ChildShard],
        has_waited: bool,
    ) -> Result<usize, ServiceErrorKind> {
        let rows = rows.iter().map(|row| Lease::new(*row, Checkpoint::Latest)).collect();
        let parent = Lease::new("0", Checkpoint::TrimHorizon);
        made_of(parent, rows, shards, named, has_waited).await
    }

    async fn made_of(
        parent: Lease,
        rows: Vec<Lease>,
        shards: Vec<Shard>,
        named: &[ChildShard],
        has_waited: bool,
    ) -> Result<usize, ServiceErrorKind> {
        let (store, before) = (Arc::new(MemoryStore::new()), rows.len());
        for row in rows {
            store.write(&create_write(row, "other#1")).await.unwrap();
        }
        let context = context(&store, shards, None);
        let parent = Lease { hash_range: Some(HashRange::ALL), ..parent };
        let made = try_make(&context, &parent, named, has_waited).await;
        made.map_err(|error| error.kind)?;
        Ok(store.snapshot().len() - before)
    }

    fn context(store: &Arc<MemoryStore>, shards: Vec<Shard>, sink: Option<Sink>) -> ControlContext {
        ControlContext {
            store: Arc::clone(store) as Arc<dyn LeaseStore>,
            stream: Arc::new(Listed(shards)),
            clock: Arc::new(TokioClock),
            settings: Arc::default(),
            events: Events::new("me".into(), sink),
            incarnation: "me#1".to_owned(),
            several_streams: false,
            began: tokio::time::Instant::now(),
        }
    }

    /// One parent of a merge is read to its end long before the other has a lease.
    #[tokio::test(start_paused = true)]
    async fn an_end_that_waits_for_the_other_parent_is_no_failure() {
        let [first, second] = ["0", "1"].map(|id| shard(id, &[], 0, u128::MAX));
        let child = shard("2", &["0", "1"], 0, u128::MAX);
        let named = ChildShard::of(&"0".into(), vec![child.clone()]);
        let store = Arc::new(MemoryStore::new());
        let reported = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let sink = {
            let reported = Arc::clone(&reported);
            Arc::new(move |event: &Event| reported.lock().push(event.clone()))
        };
        let context = context(&store, vec![first, second, child], Some(sink));
        let parent = Lease::new("0", Checkpoint::TrimHorizon);
        let other = async {
            clock::sleep(&context.clock, Duration::from_secs(20)).await;
            let other = Lease::new("1", Checkpoint::TrimHorizon);
            store.write(&create_write(other, "other#1")).await.unwrap();
        };
        let (made, ()) = tokio::join!(make(context.clone(), parent, named), other);
        assert_eq!(made.len(), 1);
        let reported = reported.lock();
        assert!(matches!(reported[..], [Event::LeaseCreated { .. }]), "{reported:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_that_shows_a_part_of_the_children_is_asked_again() {
        let parent = shard("0", &[], 0, u128::MAX);
        let (low, high) = (shard("1", &["0"], 0, HALF), shard("2", &["0"], HALF + 1, u128::MAX));
        let behind = Err(ServiceErrorKind::NotReady);
        assert_eq!(made(vec![parent.clone()], &[]).await, behind);
        assert_eq!(made(vec![parent.clone(), low.clone()], &[]).await, behind);
        assert_eq!(made(vec![parent, low.clone(), high], &[]).await, Ok(2));
        assert_eq!(made(vec![low.clone()], &[]).await, behind);
        assert_eq!(
            made_after(vec![low.clone()], &[], true).await,
            behind,
            "older than its sibling"
        );
        let grandchild = shard("3", &["2"], HALF + 1, u128::MAX);
        assert_eq!(made(vec![low.clone(), grandchild.clone()], &[]).await, behind);
        let gone = made_after(vec![low, grandchild], &[], true).await;
        assert_eq!(gone, Ok(1), "the parent is history, and its children go too");
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_that_is_older_than_the_parent_says_nothing_of_its_children() {
        let former = ["-2", "-1"].map(|id| shard(id, &[], 0, u128::MAX));
        let behind = Err(ServiceErrorKind::NotReady);
        assert_eq!(made_after(former.to_vec(), &[], true).await, behind);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_that_is_older_than_a_child_says_nothing_of_its_other_parent() {
        let parent = shard("0", &[], 0, u128::MAX);
        let child = shard("2", &["0", "1"], 0, u128::MAX);
        let named = ChildShard::of(&"0".into(), vec![child.clone()]);
        let behind = Err(ServiceErrorKind::NotReady);
        assert_eq!(made(vec![parent.clone()], &named).await, behind);
        assert_eq!(made(vec![parent, child], &named).await, Ok(1), "that one is history");
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_of_a_former_stream_is_no_lease_of_the_other_parent_or_of_the_child() {
        let stream = |created| StreamIdentity {
            arn: "arn".to_owned(),
            created: Timestamp::from_millis(created),
        };
        let row =
            |id, created| Lease::of_stream(Some(stream(created)), id, Checkpoint::TrimHorizon);
        let [first, second] = ["0", "1"].map(|id| shard(id, &[], 0, u128::MAX));
        let child = shard("2", &["0", "1"], 0, u128::MAX);
        let named = ChildShard::of(&"0".into(), vec![child.clone()]);
        let shards = vec![first, second, child];
        for (id, created, expected) in [
            ("1", 1, Err(ServiceErrorKind::NotReady)),
            ("2", 1, Err(ServiceErrorKind::NotReady)),
            ("1", 2, Ok(1)),
            ("2", 2, Ok(0)),
        ] {
            let (parent, rows) = (row("0", 2), vec![row(id, created)]);
            let made = made_of(parent, rows, shards.clone(), &named, false).await;
            assert_eq!(made, expected, "{id} of {created}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn behind_a_child_that_cannot_be_made_the_rest_is() {
        let [first, second] = ["0", "1"].map(|id| shard(id, &[], 0, u128::MAX));
        let child = shard("2", &["0", "1"], 0, u128::MAX);
        let (low, high) = (shard("3", &["2"], 0, HALF), shard("4", &["2"], HALF + 1, u128::MAX));
        let named = ChildShard::of(&"0".into(), vec![child.clone()]);
        let shards = vec![first, second, child, low, high];
        let waits = Err(ServiceErrorKind::NotReady);
        assert_eq!(made_beside(&["4"], shards.clone(), &named, false).await, waits);
        assert_eq!(made_beside(&[], shards.clone(), &named, true).await, waits);
        assert_eq!(made_beside(&["4"], shards.clone(), &named, true).await, Ok(1));
        assert_eq!(made_beside(&["3", "4"], shards, &named, true).await, Ok(0));
    }
}
