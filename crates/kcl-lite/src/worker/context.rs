//! The state that the tasks of a control plane share, and the two writes that several of them issue.
//!
//! A row of a deleted stream is replaced or removed, however often its owner renews it before it learns
//! that the stream is deleted.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::event::{Event, Events};
use crate::lease::store::LeaseStore;
use crate::lease::tenure::{create_write, discard_write, write_id};
use crate::lease::{Lease, LeaseChange, LeaseWrite, WriteOutcome, counter_after, timing};
use crate::settings::Settings;
use crate::stream::Stream;

/// The state that the tasks of a control plane share.
#[derive(Debug, Clone)]
pub(crate) struct ControlContext {
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) stream: Arc<dyn Stream>,
    /// The clock on which an owner measures its leases: a [`LeaseClock`](crate::clock::LeaseClock).
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) events: Events,
    pub(crate) incarnation: String,
    /// Whether the worker reads more than one stream.
    pub(crate) several_streams: bool,
    /// When the worker was started.
    pub(crate) began: Instant,
}

impl ControlContext {
    /// Returns how long a call to the lease table may take.
    pub(super) fn write_limit(&self) -> Duration {
        timing::write_limit(self.settings.lease_duration)
    }

    pub(super) fn renew_interval(&self) -> Duration {
        timing::renew_interval(self.settings.lease_duration)
    }

    /// Creates a lease, unless it exists, and emits an event. Replaces a row of a former stream, however
    /// often an owner that does not know of the new stream renews it.
    pub(super) async fn create(&self, lease: &Lease) -> Result<(), ServiceError> {
        let mut write = create_write(lease.clone(), &self.incarnation);
        loop {
            match self.store.write(&write).await? {
                WriteOutcome::Refused(Some(row)) if self.is_replaceable(&row, lease) => {
                    let counter = row.counter;
                    // The counter of a row that another library created may have started anywhere.
                    let with = Lease {
                        counter: lease.counter.max(counter_after(counter, 2)),
                        ..lease.clone()
                    };
                    let id = write_id(&self.incarnation, with.counter);
                    let change = LeaseChange::Replace { counter, with: Box::new(with) };
                    write = LeaseWrite { key: row.key, id, change };
                }
                WriteOutcome::Refused(None)
                    if matches!(write.change, LeaseChange::Replace { .. }) =>
                {
                    // The new row does not exist yet, or was created and deleted: the caller has to read
                    // it and retry.
                    let context = format!("{} was removed before it could be replaced", lease.key);
                    return Err(ServiceError::new(ServiceErrorKind::NotReady, context));
                }
                // Another worker, or an earlier attempt of this one, has created the row.
                WriteOutcome::Refused(_) => return Ok(()),
                WriteOutcome::Done(_) => break,
            }
        }
        let (shard, checkpoint) = (lease.key.clone(), lease.checkpoint.clone());
        self.events.emit(&Event::LeaseCreated { shard, checkpoint });
        Ok(())
    }

    fn is_replaceable(&self, row: &Lease, lease: &Lease) -> bool {
        lease.other_stream(row).is_some_and(|it| self.settings.stream_recreated.removes(it))
    }

    /// Removes a row of a deleted stream, as long as `is_other` holds for the row.
    pub(super) async fn discard(
        &self,
        mut row: Lease,
        is_other: impl Fn(&Lease) -> bool,
    ) -> Result<(), ServiceError> {
        loop {
            match self.store.write(&discard_write(&row, &self.incarnation)).await? {
                // Its owner, which does not know of the new stream yet, has renewed it.
                WriteOutcome::Refused(Some(now)) if is_other(&now) => row = now,
                WriteOutcome::Refused(_) | WriteOutcome::Done(_) => return Ok(()),
            }
        }
    }
}
