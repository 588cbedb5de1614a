//! The sensor record: the measurements of a unicorn in one second, as bytes.
//!
//! The format of the workshop's first edition, field for field: key order, an integer `Distance`,
//! `StatusTime` in UTC without a zone, no newline at the end. `<`, `>` and `&` are escaped as Go's
//! encoder does, so that both programs write the same bytes. Never reads a clock.

use jiff::Timestamp;
use serde::Serialize;

use crate::unicorn::Sample;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Reading<'a> {
    name: &'a str,
    status_time: String,
    latitude: f64,
    longitude: f64,
    distance: i64,
    magic_points: i64,
    health_points: i64,
}

/// Returns the record for what `name` measured at `time`.
pub(crate) fn encoded(name: &str, time: Timestamp, sample: Sample) -> Vec<u8> {
    let reading = Reading {
        name,
        status_time: status_time(time),
        latitude: sample.latitude,
        longitude: sample.longitude,
        distance: sample.distance,
        magic_points: sample.magic_points,
        health_points: sample.health_points,
    };
    let json = serde_json::to_string(&reading).expect("strings and numbers always encode");
    escaped_like_go(json).into_bytes()
}

/// Returns `time` as `YYYY-MM-DD HH:MM:SS.mmm` in UTC, which Athena reads as a timestamp.
fn status_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// Escapes what Go's `encoding/json` escapes beyond JSON's own rules.
///
/// None of these characters is part of JSON's syntax, so that all of them are inside strings.
fn escaped_like_go(json: String) -> String {
    let special = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
    if !json.contains(special) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if special(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Sample = Sample {
        latitude: 42.264444250051326,
        longitude: -71.97582884770408,
        distance: 175,
        magic_points: 110,
        health_points: 150,
    };

    fn text(name: &str, time: &str) -> String {
        String::from_utf8(encoded(name, time.parse().unwrap(), SAMPLE)).unwrap()
    }

    #[test]
    fn a_record_is_the_workshops_first_byte_for_byte() {
        assert_eq!(
            text("Shadowfax", "2017-06-05T09:17:08.189Z"),
            concat!(
                r#"{"Name":"Shadowfax","StatusTime":"2017-06-05 09:17:08.189","#,
                r#""Latitude":42.264444250051326,"Longitude":-71.97582884770408,"#,
                r#""Distance":175,"MagicPoints":110,"HealthPoints":150}"#
            )
        );
    }

    #[test]
    fn status_time_always_has_three_digits_of_milliseconds() {
        for (time, expected) in [
            ("2026-01-02T03:04:05Z", "2026-01-02 03:04:05.000"),
            ("2026-01-02T03:04:05.07Z", "2026-01-02 03:04:05.070"),
            ("2026-12-31T23:59:59.999999999Z", "2026-12-31 23:59:59.999"),
            ("2026-07-01T00:30:00.5+02:00", "2026-06-30 22:30:00.500"),
        ] {
            assert_eq!(status_time(time.parse().unwrap()), expected);
        }
    }

    #[test]
    fn a_name_is_escaped_as_go_does_and_reads_back_as_it_was() {
        let name = "<Éowyn> & \"Windfola\"\u{2028}";
        let json = text(name, "2017-06-05T09:17:08.189Z");
        assert!(
            json.starts_with(
                r#"{"Name":"\u003cÉowyn\u003e \u0026 \"Windfola\"\u2028","StatusTime""#
            ),
            "{json}"
        );
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["Name"], name);
    }
}
