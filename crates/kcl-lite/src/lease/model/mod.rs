//! The lease protocol as a small model, every state of which is visited.

mod explore;
mod world;

use self::explore::explore;

/// What a run of the model may contain.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Ticks of a clock that runs right until a lease expires.
    lasts: u32,
    /// What each worker's clock does in a tick, in milliseconds: as many workers.
    rates: &'static [u32],
    leases: usize,
    /// Records of a shard.
    records: u8,
    /// Whether rows are made, ended and deleted in the run; else they are there, and stay.
    whole_life: bool,
    faults: u8,
    /// Leases that are asked for, or let go by a worker's own wish.
    moves: u8,
}

impl Bounds {
    /// How soon all must be well when nothing goes wrong any more.
    fn calm_ticks(&self) -> u8 {
        u8::try_from(self.lasts * 2).expect("few ticks")
    }
}

/// What becomes of those who stand still when the faults end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// They never come back, and what was on its way is lost; another worker runs.
    StayAway,
    /// They go on, and what was on its way arrives.
    GoOn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(dead_code)]
    const BASE: Bounds = Bounds {
        lasts: 10,
        rates: &[950, 1_050],
        leases: 1,
        records: 1,
        whole_life: true,
        faults: 1,
        moves: 1,
    };

    #[test]
    #[ignore]
    fn probe() {
        let env = |name: &str, default: u32| {
            std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
        };
        let bounds = Bounds {
            lasts: env("L", 10),
            faults: env("F", 1) as u8,
            moves: env("M", 1) as u8,
            records: env("R", 1) as u8,
            leases: env("N", 1) as usize,
            whole_life: env("E", 1) == 1,
            rates: if env("W", 2) == 2 { &[950, 1_050] } else { &[950, 1_050, 1_000] },
        };
        let start = tokio::time::Instant::now();
        match explore(bounds) {
            Ok(visited) => println!("{bounds:?}\n{visited:?} {:?}", start.elapsed()),
            Err(counterexample) => println!("{counterexample}"),
        }
    }
}
