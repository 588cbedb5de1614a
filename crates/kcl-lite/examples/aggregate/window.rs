//! One-minute windows of one shard: arithmetic on readings and their arrival times.
//!
//! A window is a minute of arrival time at the service, as in the workshop, and a contiguous run of
//! records in the shard's order. So all records before an open window are finished, and the checkpoint may
//! be there. Pure: never reads a clock and never writes a row.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_lite::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

const MINUTE_MS: i64 = 60_000;

/// How much longer than its minute a window stays open in a shard without new records: more than the pause
/// between two reads of a throttled shard (15 s).
const GRACE: Duration = Duration::from_secs(30);

/// A reading of a unicorn; other fields are ignored.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Reading {
    name: String,
    distance: f64,
    magic_points: i64,
    health_points: i64,
}

/// One unicorn's minute, in the fields of the workshop's summary.
///
/// Name and minute are its key: a store replaces an earlier row of the same key.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The *start* of the minute in UTC, as in the rows of the workshop's first module.
    pub(crate) status_time: String,
    #[serde(serialize_with = "without_needless_fraction")]
    pub(crate) distance: f64,
    min_magic_points: i64,
    max_magic_points: i64,
    min_health_points: i64,
    max_health_points: i64,
}

/// The windows of one shard. `T` is the value that a closed window returns for each record: its token.
#[derive(Debug)]
pub(crate) struct Windows<T> {
    /// At most one is open: a record of a later minute closes it.
    open: Option<Window<T>>,
    /// The newest arrival time. Arrival times may be slightly out of order; a record that seems older than
    /// its predecessor counts as arriving with it.
    newest: i64,
}

impl<T> Default for Windows<T> {
    fn default() -> Self {
        Self { open: None, newest: i64::MIN }
    }
}

#[derive(Debug)]
struct Window<T> {
    minute: i64,
    rows: BTreeMap<String, Row>,
    held: Vec<T>,
}

/// A closed window.
#[derive(Debug)]
pub(crate) struct Closed<T> {
    pub(crate) rows: Vec<Row>,
    pub(crate) held: Vec<T>,
}

impl<T> Windows<T> {
    /// Adds the next record of the shard; `None` is a record that is not a reading and only has a place in
    /// the order. Returns the window that this record closes.
    pub(crate) fn add(
        &mut self,
        arrived: Timestamp,
        reading: Option<&Reading>,
        held: T,
    ) -> Option<Closed<T>> {
        self.newest = self.newest.max(arrived.as_millis());
        let minute = self.newest.div_euclid(MINUTE_MS);
        let closed = self.open.take_if(|window| window.minute != minute).map(Closed::from);
        let window = self.open.get_or_insert_with(|| Window {
            minute,
            rows: BTreeMap::new(),
            held: Vec::new(),
        });
        if let Some(reading) = reading {
            window.add(reading);
        }
        window.held.push(held);
        closed
    }

    /// Closes the window if its minute must be over, since nothing has arrived for `silence`.
    ///
    /// Needs no wall clock: the service's time is at least that of the newest record plus the silence since.
    /// A worker with a backlog receives records all the time, so it never closes a partly read window.
    pub(crate) fn close_after(&mut self, silence: Duration) -> Option<Closed<T>> {
        let end = (self.open.as_ref()?.minute + 1) * MINUTE_MS;
        let silence = silence.checked_sub(GRACE)?.as_millis();
        let now = self.newest.saturating_add(i64::try_from(silence).unwrap_or(i64::MAX));
        if now < end {
            return None;
        }
        // A record that is delivered even later counts in the next minute: it must not create a second,
        // partial row of this one.
        self.newest = end;
        self.open.take().map(Closed::from)
    }
}

impl<T> Window<T> {
    fn add(&mut self, reading: &Reading) {
        let Reading { name, distance, magic_points: magic, health_points: health } = reading;
        let row = self.rows.entry(name.clone()).or_insert_with(|| Row {
            name: name.clone(),
            status_time: status_time(self.minute),
            distance: 0.0,
            min_magic_points: *magic,
            max_magic_points: *magic,
            min_health_points: *health,
            max_health_points: *health,
        });
        row.distance += distance;
        row.min_magic_points = row.min_magic_points.min(*magic);
        row.max_magic_points = row.max_magic_points.max(*magic);
        row.min_health_points = row.min_health_points.min(*health);
        row.max_health_points = row.max_health_points.max(*health);
    }
}

impl<T> From<Window<T>> for Closed<T> {
    fn from(window: Window<T>) -> Self {
        Self { rows: window.rows.into_values().collect(), held: window.held }
    }
}

fn status_time(minute: i64) -> String {
    jiff::Timestamp::from_millisecond(minute * MINUTE_MS)
        .map(|time| time.strftime("%Y-%m-%d %H:%M:00.000").to_string())
        .unwrap_or_else(|_| "unknown".to_owned())
}

/// Serializes a distance: in the workshop's first edition they are whole metres, as are their sums.
fn without_needless_fraction<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    /// Up to this value every whole `f64` is an exact `i64`.
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= LARGEST {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and small enough")]
        return to.serialize_i64(*value as i64);
    }
    to.serialize_f64(*value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2017-05-06 17:47:00 UTC.
    const START: i64 = 1_494_092_820_000;

    fn reading(name: &str, distance: f64, points: i64) -> Reading {
        let name = name.to_owned();
        Reading { name, distance, magic_points: points, health_points: points + 1 }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(START + second * 1000)
    }

    fn distances(closed: &Closed<u32>) -> Vec<(&str, f64)> {
        closed.rows.iter().map(|row| (row.name.as_str(), row.distance)).collect()
    }

    #[test]
    fn a_row_sums_the_distance_and_spans_the_points_of_one_unicorn_in_one_minute() {
        let mut windows = Windows::default();
        for (second, name, distance, points) in [
            (0, "Shadowfax", 9_000.0, 155),
            (30, "Bucephalus", 1.5, 9),
            (59, "Shadowfax", 413.0, 153),
        ] {
            let closed = windows.add(at(second), Some(&reading(name, distance, points)), second);
            assert!(closed.is_none());
        }
        let closed = windows.add(at(60), Some(&reading("Shadowfax", 1.0, 1)), 60).unwrap();
        assert_eq!(closed.held, [0, 30, 59], "the record of the next minute stays held");
        let rows: Vec<_> =
            closed.rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
        insta::assert_snapshot!(rows.join("\n"), @r#"
        {"Name":"Bucephalus","StatusTime":"2017-05-06 17:47:00.000","Distance":1.5,"MinMagicPoints":9,"MaxMagicPoints":9,"MinHealthPoints":10,"MaxHealthPoints":10}
        {"Name":"Shadowfax","StatusTime":"2017-05-06 17:47:00.000","Distance":9413,"MinMagicPoints":153,"MaxMagicPoints":155,"MinHealthPoints":154,"MaxHealthPoints":156}
        "#);
    }

    #[test]
    fn silence_closes_a_window_when_its_minute_and_the_grace_are_over() {
        let mut windows = Windows::default();
        windows.add(at(50), Some(&reading("a", 1.0, 1)), 1);
        assert!(windows.close_after(Duration::from_millis(39_999)).is_none());
        let closed = windows.close_after(Duration::from_secs(40)).unwrap();
        assert_eq!((distances(&closed), closed.held.as_slice()), (vec![("a", 1.0)], &[1][..]));
        assert!(windows.close_after(Duration::from_secs(100)).is_none(), "nothing is open");
    }

    #[test]
    fn a_record_that_is_delivered_after_its_window_counts_in_the_next_minute() {
        let mut windows = Windows::default();
        windows.add(at(10), Some(&reading("a", 1.0, 1)), 1);
        windows.close_after(Duration::from_secs(600)).unwrap();
        windows.add(at(59), Some(&reading("a", 2.0, 1)), 2);
        let closed = windows.add(at(120), None, 3).unwrap();
        assert_eq!(closed.rows[0].status_time, "2017-05-06 17:48:00.000");
    }

    #[test]
    fn arrival_times_out_of_order_never_open_a_past_minute_again() {
        let mut windows = Windows::default();
        windows.add(at(58), Some(&reading("a", 1.0, 1)), 1);
        assert!(windows.add(at(61), Some(&reading("a", 2.0, 1)), 2).is_some());
        assert!(windows.add(at(59), Some(&reading("a", 4.0, 1)), 3).is_none());
        let closed = windows.add(at(125), None, 4).unwrap();
        assert_eq!(distances(&closed), [("a", 6.0)]);
    }

    #[test]
    fn a_minute_without_readings_gives_no_row_and_lets_its_records_go() {
        let mut windows = Windows::default();
        windows.add(at(0), None, 7);
        let closed = windows.add(at(60), None, 8).unwrap();
        assert_eq!((closed.rows.len(), closed.held.as_slice()), (0, &[7][..]));
    }
}
