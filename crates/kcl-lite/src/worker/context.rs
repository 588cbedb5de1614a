//! What the tasks of a control plane share, and the two writes that several of them make.
//!
//! A row of a stream that is gone is replaced or removed however often its owner, who does not know yet,
//! renews it meanwhile.

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

/// What the tasks of a control plane share.
#[derive(Debug, Clone)]
pub(crate) struct ControlContext {
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) stream: Arc<dyn Stream>,
    /// The clock that leases are measured on by their owner: a [`LeaseClock`](crate::clock::LeaseClock).
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
    /// Returns how long a call to the lease table may hang.
    pub(super) fn write_limit(&self) -> Duration {
        timing::write_limit(self.settings.lease_duration)
    }

    pub(super) fn renew_interval(&self) -> Duration {
        timing::renew_interval(self.settings.lease_duration)
    }

    /// Makes a lease, unless it is there, and tells of it. A row of a former stream makes way, however
    /// often an owner that does not know yet moves it meanwhile.
    pub(super) async fn create(&self, lease: &Lease) -> Result<(), ServiceError> {
        let mut write = create_write(lease.clone(), &self.incarnation);
        loop {
            match self.store.write(&write).await? {
                WriteOutcome::Refused(Some(row)) if self.is_replaceable(&row, lease) => {
                    let counter = row.counter;
                    // The counter of a row that another library made may have begun anywhere.
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
                    // Nobody has made the new row yet, or it has come and gone: the caller has to look
                    // and try again.
                    let context = format!("{} was removed meanwhile", lease.key);
                    return Err(ServiceError::new(ServiceErrorKind::NotReady, context));
                }
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

    /// Removes a row of a stream that is gone, as long as `is_other` says that it is one.
    pub(super) async fn discard(
        &self,
        mut row: Lease,
        is_other: impl Fn(&Lease) -> bool,
    ) -> Result<(), ServiceError> {
        loop {
            match self.store.write(&discard_write(&row, &self.incarnation)).await? {
                // Its owner, who does not know yet, has moved it.
                WriteOutcome::Refused(Some(now)) if is_other(&now) => row = now,
                WriteOutcome::Refused(_) | WriteOutcome::Done(_) => return Ok(()),
            }
        }
    }
}
