//! The report of a gap to the processor, before anything is delivered.
//!
//! [`gap`](super::gap) decides whether there is one.

use super::task::{GapCheck, Pass, ShardTask};
use crate::error::{Error, ErrorKind};
use crate::event::Event;
use crate::processor::ErasedProcessor;
use crate::record::Record;
use crate::settings::GapPolicy;

impl ShardTask {
    /// Checks for a gap, once per tenure, and reports it to the processor. `Some` ends the pass.
    pub(super) async fn look_for_gap(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        first: Option<&Record>,
    ) -> Option<Pass> {
        if self.gap == GapCheck::Settled {
            return None;
        }
        if let Some(gap) = self.known.gap(first) {
            let shard = self.shard.lease_key.clone();
            if self.gap == GapCheck::Open {
                self.gap = GapCheck::Announced;
                let (from, to) = (gap.from.clone(), gap.to.clone());
                self.context.events.emit(&Event::GapDetected { shard: shard.clone(), from, to });
            }
            if let Err(fault) = self.call("gap", processor.gap(&gap)).await {
                return Some(self.after_fault("gap", fault));
            }
            if self.context.settings.on_gap == GapPolicy::Stop {
                let text = format!(
                    "records of shard `{shard}` behind checkpoint `{}` aged out before they were \
                     read; set `on_gap` to `Resume` to continue without them",
                    gap.from
                );
                return Some(Pass::Stop(Error::new(ErrorKind::Gap, text)));
            }
        }
        self.gap = GapCheck::Settled;
        None
    }
}
