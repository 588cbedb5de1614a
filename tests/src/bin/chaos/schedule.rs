//! The schedule: the acts against the workers and the stream, as a pure function of the seed.
//!
//! Within a slot one act is over before the next begins; acts on different slots overlap. At the
//! end of the schedule every slot has a running worker.

use std::fmt;
use std::time::Duration;

/// The number of workers that run at once.
pub(crate) const SLOTS: usize = 3;

/// An act against a worker or the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// kill -9, and after a while a new process, under the same worker ID or a new one.
    Kill { slot: usize, back_after: Duration, id: NextId },
    /// SIGTERM, and a new process a while after the old one has ended.
    Stop { slot: usize, back_after: Duration, id: NextId },
    /// SIGSTOP, and SIGCONT after a while.
    Pause { slot: usize, lasts: Duration },
    /// A split or a merge of open shards; the number selects them at execution time.
    Reshard { draw: u64 },
}

/// The worker ID of the next process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextId {
    Same,
    New,
}

/// An act and its time since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) act: Act,
}

/// Returns the acts of a run of this `length`, in the order of their times.
pub(crate) fn plan(seed: u64, length: Duration, lease: Duration) -> Vec<Planned> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut acts = Vec::new();
    for slot in 0..SLOTS {
        let mut rng = rng.fork();
        let mut at = between(&mut rng, lease, 3 * lease);
        loop {
            let (act, takes) = hit(&mut rng, slot, lease);
            if at + takes > length {
                break;
            }
            acts.push(Planned { at, act });
            at += takes + between(&mut rng, lease / 4, 4 * lease);
        }
    }
    let mut at = between(&mut rng, lease, 3 * lease);
    while at < length {
        acts.push(Planned { at, act: Act::Reshard { draw: rng.u64(..) } });
        at += between(&mut rng, lease, 6 * lease);
    }
    acts.sort_by_key(|planned| planned.at);
    acts
}

/// Returns only reshards, rare enough that subscriptions of five minutes end naturally.
pub(crate) fn calm(seed: u64, length: Duration) -> Vec<Planned> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let pause = (Duration::from_secs(60), Duration::from_secs(6 * 60));
    let mut acts = Vec::new();
    let mut at = Duration::from_secs(20);
    while at < length {
        acts.push(Planned { at, act: Act::Reshard { draw: rng.u64(..) } });
        at += between(&mut rng, pause.0, pause.1);
    }
    acts
}

/// Draws one act against a slot, and returns how long it takes at least.
fn hit(rng: &mut fastrand::Rng, slot: usize, lease: Duration) -> (Act, Duration) {
    let id = if rng.bool() { NextId::Same } else { NextId::New };
    match rng.u32(..10) {
        0..4 => {
            let back_after = between(rng, Duration::ZERO, 2 * lease);
            (Act::Kill { slot, back_after, id }, back_after)
        }
        4..6 => {
            let back_after = between(rng, Duration::ZERO, lease);
            (Act::Stop { slot, back_after, id }, back_after)
        }
        // A pause that is unnoticed, borderline, or much too long.
        kind => {
            let (least, most) = match kind {
                6 => (lease / 10, lease * 8 / 10),
                7 | 8 => (lease * 8 / 10, lease * 13 / 10),
                _ => (lease * 3 / 2, lease * 4),
            };
            let lasts = between(rng, least, most);
            (Act::Pause { slot, lasts }, lasts)
        }
    }
}

fn between(rng: &mut fastrand::Rng, least: Duration, most: Duration) -> Duration {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(rng.u64(millis(least)..=millis(most)))
}

impl Act {
    /// Returns the slot that the act concerns, if any.
    pub(crate) fn slot(&self) -> Option<usize> {
        match *self {
            Self::Kill { slot, .. } | Self::Stop { slot, .. } | Self::Pause { slot, .. } => {
                Some(slot)
            }
            Self::Reshard { .. } => None,
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6.1}s ", self.at.as_secs_f64())?;
        match self.act {
            Act::Kill { slot, back_after, id } => {
                write!(f, "kill -9 {slot}, back after {:.1}s, {id}", back_after.as_secs_f64())
            }
            Act::Stop { slot, back_after, id } => {
                write!(f, "SIGTERM {slot}, back after {:.1}s, {id}", back_after.as_secs_f64())
            }
            Act::Pause { slot, lasts } => {
                write!(f, "SIGSTOP {slot} for {:.1}s", lasts.as_secs_f64())
            }
            Act::Reshard { draw } => write!(f, "split or merge ({})", draw % 100),
        }
    }
}

impl fmt::Display for NextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same id",
            Self::New => "new id",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(2);

    #[test]
    fn a_seed_is_a_schedule() {
        let length = Duration::from_secs(600);
        assert_eq!(plan(7, length, LEASE), plan(7, length, LEASE));
        assert_ne!(plan(7, length, LEASE), plan(8, length, LEASE));
    }

    #[test]
    fn ten_minutes_have_everything_in_them() {
        let plan = plan(7, Duration::from_secs(600), LEASE);
        let count = |is: fn(&Act) -> bool| plan.iter().filter(|planned| is(&planned.act)).count();
        assert!(count(|act| matches!(act, Act::Kill { id: NextId::Same, .. })) > 10);
        assert!(count(|act| matches!(act, Act::Kill { id: NextId::New, .. })) > 10);
        assert!(count(|act| matches!(act, Act::Stop { .. })) > 10);
        assert!(count(|act| matches!(act, Act::Reshard { .. })) > 30);
        let pause = |least: Duration, most: Duration| {
            let is = |act: &Act| matches!(act, Act::Pause { lasts, .. } if (least..most).contains(lasts));
            plan.iter().filter(|planned| is(&planned.act)).count()
        };
        assert!(pause(Duration::ZERO, LEASE) > 5 && pause(LEASE, 2 * LEASE) > 5);
        assert!(pause(2 * LEASE, 5 * LEASE) > 5);
    }

    #[test]
    fn what_happens_to_one_slot_does_not_overlap() {
        let plan = plan(3, Duration::from_secs(600), LEASE);
        for slot in 0..SLOTS {
            let theirs = plan.iter().filter(|planned| planned.act.slot() == Some(slot));
            let mut free_at = Duration::ZERO;
            for planned in theirs {
                assert!(planned.at >= free_at, "{planned}");
                let takes = match planned.act {
                    Act::Kill { back_after, .. } | Act::Stop { back_after, .. } => back_after,
                    Act::Pause { lasts, .. } => lasts,
                    Act::Reshard { .. } => Duration::ZERO,
                };
                free_at = planned.at + takes;
            }
            assert!(free_at <= Duration::from_secs(600));
        }
    }
}
