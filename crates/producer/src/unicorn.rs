//! The simulated unicorn: one straight ride per run, and vitals that drift.
//!
//! Pure and seeded: the same name, seed and temper give the same ride. Never reads a clock and
//! knows neither JSON nor Kinesis.

use std::f64::consts::{PI, TAU};

use fastrand::Rng;

/// Where every ride starts: midtown Manhattan, in degrees of latitude and longitude.
pub(crate) const START: (f64, f64) = (40.749167, -73.985184);

/// Metres per degree of latitude.
const METRES_PER_DEGREE_NORTH: f64 = 110_540.0;

/// Metres per degree of longitude at the equator.
const METRES_PER_DEGREE_EAST: f64 = 111_320.0;

/// The range from which the pace of a run is drawn, in metres per second.
const PACE: std::ops::Range<i64> = 100..200;

/// How much faster than its pace a unicorn may be in one second: 0 to 19 metres.
const SPURT: i64 = 20;

/// Magic and health points of a rested unicorn.
pub(crate) const RESTED: i64 = 150;

/// The parameters of a ride that a caller may fix instead of drawing them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Temper {
    /// Direction in radians, counterclockwise from east; drawn if `None`.
    pub(crate) bearing: Option<f64>,
    /// Magic and health points at the start.
    pub(crate) points: i64,
}

impl Default for Temper {
    fn default() -> Self {
        Self { bearing: None, points: RESTED }
    }
}

/// What the sensor measures in one second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
    pub(crate) distance: i64,
    pub(crate) magic_points: i64,
    pub(crate) health_points: i64,
}

/// One unicorn on its ride.
#[derive(Debug)]
pub(crate) struct Unicorn {
    name: String,
    position: (f64, f64),
    bearing: f64,
    pace: i64,
    magic_points: i64,
    health_points: i64,
    rng: Rng,
}

impl Unicorn {
    /// Creates a unicorn at the start of its ride.
    pub(crate) fn new(name: String, seed: u64, temper: Temper) -> Self {
        let mut rng = Rng::with_seed(seed);
        // Drawn also if the bearing is fixed, so that the other draws stay the same.
        let drawn = rng.f64() * TAU;
        Self {
            name,
            position: START,
            bearing: temper.bearing.unwrap_or(drawn),
            pace: rng.i64(PACE),
            magic_points: temper.points,
            health_points: temper.points,
            rng,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Rides for one second and measures.
    ///
    /// No value is bounded: points may fall below zero and a long ride leaves the map, as with the
    /// workshop's own client.
    pub(crate) fn ride_on(&mut self) -> Sample {
        let distance = self.pace + self.rng.i64(0..SPURT);
        #[expect(clippy::cast_precision_loss, reason = "at most 218, exact in an f64")]
        let metres = distance as f64;
        self.position = moved(self.position, self.bearing, metres);
        self.magic_points += drift(&mut self.rng);
        self.health_points += drift(&mut self.rng);
        Sample {
            latitude: self.position.0,
            longitude: self.position.1,
            distance,
            magic_points: self.magic_points,
            health_points: self.health_points,
        }
    }
}

/// Returns the position `metres` away from `position`; the longitude is scaled at the old latitude.
fn moved((latitude, longitude): (f64, f64), bearing: f64, metres: f64) -> (f64, f64) {
    let north = metres * bearing.sin() / METRES_PER_DEGREE_NORTH;
    let east = metres * bearing.cos() / (METRES_PER_DEGREE_EAST * (PI * latitude / 180.0).cos());
    (latitude + north, longitude + east)
}

/// Returns 0 in half of the cases, otherwise one point up or down.
fn drift(rng: &mut Rng) -> i64 {
    match rng.u8(0..4) {
        0 => 1,
        1 => -1,
        _ => 0,
    }
}

/// The unicorns of one producer, measured in turns.
#[derive(Debug)]
pub(crate) struct Herd {
    unicorns: Vec<Unicorn>,
    next: usize,
}

impl Herd {
    /// Creates one unicorn per name, each with its own seed drawn from `seed`.
    ///
    /// `names` is never empty; `options` refuses that.
    pub(crate) fn new(names: Vec<String>, seed: u64, temper: Temper) -> Self {
        debug_assert!(!names.is_empty(), "a herd has at least one unicorn");
        let mut seeds = Rng::with_seed(seed);
        let unicorns =
            names.into_iter().map(|name| Unicorn::new(name, seeds.u64(..), temper)).collect();
        Self { unicorns, next: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.unicorns.len()
    }

    /// Returns the unicorn that is measured next.
    pub(crate) fn next_unicorn(&mut self) -> &mut Unicorn {
        let turn = self.next;
        self.next = (turn + 1) % self.unicorns.len();
        &mut self.unicorns[turn]
    }
}

/// Returns `count` distinct names: `first`, then the stable's own unicorns, then numbered ones.
pub(crate) fn herd_names(first: &str, count: usize) -> Vec<String> {
    let stable = ["Shadowfax", "Bucephalus", "Rocinante"].map(String::from);
    let numbered = (stable.len() + 1..).map(|number| format!("Unicorn-{number:04}"));
    let others = stable.into_iter().chain(numbered).filter(|name| name != first);
    std::iter::once(first.to_owned()).chain(others).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::FRAC_PI_4;

    #[track_caller]
    fn check(from: (f64, f64), bearing: f64, metres: f64, expected: (f64, f64)) {
        let to = moved(from, bearing, metres);
        assert_eq!(
            (to.0.to_bits(), to.1.to_bits()),
            (expected.0.to_bits(), expected.1.to_bits()),
            "{to:?} is not bit for bit {expected:?}"
        );
    }

    #[test]
    fn the_two_records_of_the_workshop_are_one_second_apart() {
        check(
            (42.264444250051326, -71.97582884770408),
            FRAC_PI_4,
            163.0,
            (42.265486935100476, -71.97442977859625),
        );
    }

    #[test]
    fn golden_positions_from_the_start_point() {
        check(START, 0.0, 100.0, (40.749167, -73.98399822724073));
        check(START, 1.0, 150.0, (40.750308854964004, -73.9842229863659));
        check(START, 1.0, 30.5, (40.74939917717602, -73.9849885938944));
        check(START, PI, 29.25, (40.749167, -73.98553083853209));
    }

    #[test]
    fn a_given_bearing_is_a_straight_line() {
        let temper = Temper { bearing: Some(0.0), ..Temper::default() };
        let mut unicorn = Unicorn::new("Shadowfax".into(), 7, temper);
        let east = (0..50).map(|_| unicorn.ride_on()).collect::<Vec<_>>();
        assert!(east.iter().all(|sample| sample.latitude == START.0));
        assert!(east.windows(2).all(|pair| pair[0].longitude < pair[1].longitude));
    }

    #[test]
    fn distances_stay_within_19_metres_of_each_other_in_a_run() {
        let mut all = Vec::new();
        for seed in 0..300 {
            let mut unicorn = Unicorn::new("Shadowfax".into(), seed, Temper::default());
            let run = (0..200).map(|_| unicorn.ride_on().distance).collect::<Vec<_>>();
            let (least, most) = (run.iter().min().unwrap(), run.iter().max().unwrap());
            assert!(most - least <= 19, "{least}..{most} with seed {seed}");
            all.extend(run);
        }
        let (least, most) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
        assert!(least >= 100 && most <= 218, "{least}..{most}");
        assert!(least <= 104 && most >= 214, "300 runs use the whole range: {least}..{most}");
    }

    #[test]
    fn vitals_move_by_at_most_one_point_and_half_of_the_time_not_at_all() {
        let mut unicorn = Unicorn::new("Shadowfax".into(), 1, Temper::default());
        let mut before = (RESTED, RESTED);
        let mut still = 0;
        for _ in 0..10_000 {
            let sample = unicorn.ride_on();
            let (magic, health) = (sample.magic_points - before.0, sample.health_points - before.1);
            assert!(magic.abs() <= 1 && health.abs() <= 1);
            still += i32::from(magic == 0);
            before = (sample.magic_points, sample.health_points);
        }
        assert!((4_700..=5_300).contains(&still), "{still} of 10000 steps without a change");
    }

    #[test]
    fn points_start_where_they_are_reported_and_may_pass_zero() {
        let temper = Temper { points: 0, ..Temper::default() };
        let mut unicorn = Unicorn::new("Shadowfax".into(), 1, temper);
        assert!((0..200).any(|_| unicorn.ride_on().magic_points < 0));
    }

    #[test]
    fn the_same_seed_gives_the_same_herd_and_another_seed_another() {
        let ride = |seed| {
            let mut herd = Herd::new(herd_names("Shadowfax", 3), seed, Temper::default());
            (0..9)
                .map(|_| {
                    let unicorn = herd.next_unicorn();
                    format!("{} {:?}", unicorn.name().to_owned(), unicorn.ride_on())
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(ride(42), ride(42));
        assert_ne!(ride(42), ride(43));
        assert!(ride(42)[1].starts_with("Bucephalus"), "unicorns take turns");
    }

    #[test]
    fn herd_names_are_distinct_whatever_the_first_is() {
        assert_eq!(
            herd_names("Shadowfax", 5),
            ["Shadowfax", "Bucephalus", "Rocinante", "Unicorn-0004", "Unicorn-0005"]
        );
        assert_eq!(herd_names("Rocinante", 3), ["Rocinante", "Shadowfax", "Bucephalus"]);
        assert_eq!(herd_names("Silver", 2), ["Silver", "Shadowfax"]);
    }
}
