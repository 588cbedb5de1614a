//! The leases of the shards that continue a finished one: made before `SHARD_END` is stored.
//!
//! Tries until it is done; dropping it is safe at any point, since every step can be repeated. Never
//! makes a merge child while a listed parent has no lease row: such a child could start too early.

use std::collections::BTreeSet;
use std::time::Duration;

use super::lease_keeper::KeeperContext;
use super::state::create_write;
use crate::clock;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::lease::store::WriteOutcome;
use crate::lease::{Lease, LeaseKey};
use crate::record::ShardId;
use crate::shard::{ChildShard, Shard, plan};
use crate::stream::ListFrom;

/// Makes the leases of the children of `parent`; returns their ids.
pub(crate) async fn make(
    context: KeeperContext,
    parent: Lease,
    named: Vec<ChildShard>,
) -> BTreeSet<ShardId> {
    loop {
        match try_make(&context, &parent, &named).await {
            Ok(children) => return children,
            Err(error) => context.events.emit(&Event::CoordinationFailed {
                operation: "creating the leases of the children",
                error: error.to_string(),
                passing: error.is_passing(),
            }),
        }
        clock::sleep(&context.clock, Duration::from_secs(1)).await;
    }
}

async fn try_make(
    context: &KeeperContext,
    parent: &Lease,
    named: &[ChildShard],
) -> Result<BTreeSet<ShardId>, ServiceError> {
    let children = if named.is_empty() {
        ChildShard::of(&parent.shard(), listed(context).await?)
    } else {
        named.to_vec()
    };
    for child in &children {
        for other in child.parents.iter().filter(|id| parent.shard() != **id) {
            let (child, other) = (parent.key.sibling(&child.id), parent.key.sibling(other));
            other_parent_is_known(context, &child, &other).await?;
        }
        let lease = plan::child_lease(parent, child);
        let (shard, checkpoint) = (lease.key.clone(), lease.checkpoint.clone());
        let write = create_write(lease, &context.incarnation);
        let outcome = timely(context, context.store.write(&write)).await?;
        if matches!(outcome, WriteOutcome::Done(_)) {
            context.events.emit(&Event::LeaseCreated { shard, checkpoint });
        }
    }
    Ok(children.into_iter().map(|child| child.id).collect())
}

/// A parent counts if it has a lease, or if a complete listing no longer shows it; and none has to
/// be looked for if the child has a lease already.
async fn other_parent_is_known(
    context: &KeeperContext,
    child: &LeaseKey,
    other: &LeaseKey,
) -> Result<(), ServiceError> {
    for known in [other, child] {
        if timely(context, context.store.get(known)).await?.is_some() {
            return Ok(());
        }
    }
    if listed(context).await?.iter().any(|shard| shard.id == other.shard()) {
        return Err(ServiceError::new(
            ServiceErrorKind::NotReady,
            format!("{child} waits: its other parent {other} has no lease yet"),
        ));
    }
    Ok(())
}

async fn listed(context: &KeeperContext) -> Result<Vec<Shard>, ServiceError> {
    Ok(timely(context, context.stream.list(ListFrom::All)).await?.shards)
}

/// A call that hangs must not hold the end of a shard up for ever.
async fn timely<T>(
    context: &KeeperContext,
    call: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    clock::timely(&context.clock, context.settings.lease_duration, "ending a shard", call).await
}
