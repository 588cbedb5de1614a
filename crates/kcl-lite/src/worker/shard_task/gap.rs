//! The detection of gaps: records that aged out of the stream before they were read.
//!
//! Reading starts *at* the record of the checkpoint. If another record comes first, that one has aged
//! out; whether unread records aged out with it depends on the time until which everything is known to
//! have been read, and on the retention of the stream. Pure: emits no event, reads no clock.

use crate::lease::Lease;
use crate::position::{Checkpoint, Gap, Position};
use crate::record::{Record, Timestamp};

/// The knowledge at the start of a tenure.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// The checkpoint in the row.
    pub(crate) checkpoint: Checkpoint,
    /// The time to which "latest" or a timestamp was resolved.
    pub(crate) anchor: Option<Timestamp>,
    /// The time until which everything that arrived was read and acknowledged.
    pub(crate) read_until: Option<Timestamp>,
    /// Records that arrived before this may have aged out: the service's time minus the retention.
    pub(crate) horizon: Option<Timestamp>,
}

impl Known {
    /// Creates it from a lease row.
    pub(crate) fn of(lease: &Lease, horizon: Option<Timestamp>) -> Self {
        Self {
            checkpoint: lease.checkpoint.clone(),
            anchor: lease.anchor,
            read_until: lease.read_until,
            horizon,
        }
    }

    /// Returns the gap, if there is one. `first` is the first record that was read; `None` if the shard
    /// has none to read.
    pub(super) fn gap(&self, first: Option<&Record>) -> Option<Gap> {
        let is_old = |time: Timestamp| self.horizon.is_some_and(|horizon| time < horizon);
        let may_have_lost = match &self.checkpoint {
            Checkpoint::At(position) => {
                let is_there =
                    first.is_some_and(|first| first.sequence_number <= position.sequence_number);
                // Rows that only other libraries have written lack `read_until`: then a loss cannot
                // be ruled out.
                !is_there && self.read_until.is_none_or(is_old)
            }
            Checkpoint::Latest | Checkpoint::AtTimestamp => {
                self.read_until.or(self.anchor).is_some_and(is_old)
            }
            // Reading starts at the oldest existing record: nothing can be missed.
            Checkpoint::TrimHorizon | Checkpoint::ShardEnd => false,
        };
        may_have_lost.then(|| Gap { from: self.checkpoint.clone(), to: first.map(Position::of) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(checkpoint: &str, read_until: Option<i64>, anchor: Option<i64>) -> Known {
        Known {
            checkpoint: Checkpoint::parse(checkpoint, 0).unwrap(),
            anchor: anchor.map(Timestamp::from_millis),
            read_until: read_until.map(Timestamp::from_millis),
            horizon: Some(Timestamp::from_millis(1_000)),
        }
    }

    #[test]
    fn a_checkpoint_whose_record_is_still_there_has_no_gap_however_old_it_is() {
        assert_eq!(known("7", None, None).gap(Some(&Record::numbered(7, 0))), None);
        assert_eq!(known("7", Some(1), None).gap(Some(&Record::numbered(7, 0))), None);
    }

    #[test]
    fn a_checkpoint_whose_record_is_gone_has_a_gap_unless_all_was_read_since_the_horizon() {
        let gap = known("7", Some(999), None).gap(Some(&Record::numbered(9, 0))).unwrap();
        assert_eq!((gap.from.to_string(), gap.to.unwrap().to_string()), ("7".into(), "9".into()));
        assert!(known("7", None, None).gap(Some(&Record::numbered(9, 0))).is_some());
        assert!(known("7", None, None).gap(None).is_some_and(|gap| gap.to.is_none()));
        assert_eq!(known("7", Some(1_000), None).gap(Some(&Record::numbered(9, 0))), None);
        assert_eq!(known("7", Some(1_000), None).gap(None), None);
    }

    #[test]
    fn an_anchor_that_is_older_than_the_horizon_has_a_gap() {
        for word in ["LATEST", "AT_TIMESTAMP"] {
            assert!(known(word, None, Some(999)).gap(Some(&Record::numbered(9, 0))).is_some());
            assert_eq!(known(word, None, Some(1_000)).gap(Some(&Record::numbered(9, 0))), None);
            assert_eq!(
                known(word, Some(1_000), Some(1)).gap(Some(&Record::numbered(9, 0))),
                None,
                "idle since"
            );
        }
        assert_eq!(known("TRIM_HORIZON", None, None).gap(Some(&Record::numbered(9, 0))), None);
    }

    #[test]
    fn without_a_horizon_only_a_checkpoint_of_unknown_age_has_a_gap() {
        let blind = |known: Known| Known { horizon: None, ..known };
        assert!(blind(known("7", None, None)).gap(Some(&Record::numbered(9, 0))).is_some());
        assert_eq!(blind(known("7", Some(1), None)).gap(Some(&Record::numbered(9, 0))), None);
        assert_eq!(blind(known("LATEST", None, Some(1))).gap(Some(&Record::numbered(9, 0))), None);
    }
}
