//! The text of one record on stdout.
//!
//! Whether a record is JSON decides how it is printed, never whether it is printed: the text of
//! every record is written and ends with a newline.

use serde::de::IgnoredAny;

use crate::indent::{compact, indent, trimmed};

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// JSON indented by four spaces; anything else unchanged.
    Pretty,
    /// JSON on one line; anything else unchanged.
    Json,
    /// The bytes of the record and a newline.
    Raw,
}

impl Format {
    /// Appends the text of one record to `out`.
    pub(crate) fn append(self, record: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Raw => {
                out.extend_from_slice(record);
                out.push(b'\n');
            }
            Self::Pretty | Self::Json if !is_one_document(record) => append_line(record, out),
            Self::Pretty => append_indented(record, out),
            Self::Json => append_on_one_line(record, out),
        }
    }
}

/// Returns whether `record` is exactly one JSON document. Reads it without building a value;
/// nesting is counted on the heap, so that no depth overflows the stack.
fn is_one_document(record: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(record).is_ok()
}

fn append_indented(json: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    if indent(json, out).is_err() {
        out.truncate(start);
        return append_line(json, out);
    }
    out.push(b'\n');
}

/// Appends JSON on one line. JSON allows no line break inside a token, so a text without line
/// breaks is on one line already.
fn append_on_one_line(json: &[u8], out: &mut Vec<u8>) {
    let json = trimmed(json);
    if json.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        compact(json, out);
    } else {
        out.extend_from_slice(json);
    }
    out.push(b'\n');
}

/// Appends the bytes unchanged, and a newline unless they end with one.
fn append_line(record: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(record);
    if record.last() != Some(&b'\n') {
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two records of the workshop's page, as the producer sends them.
    const RECORDS: [&str; 2] = [
        r#"{"Name":"Shadowfax","StatusTime":"2017-06-05 09:17:08.189","Latitude":42.264444250051326,"Longitude":-71.97582884770408,"Distance":175,"MagicPoints":110,"HealthPoints":150}"#,
        r#"{"Name":"Shadowfax","StatusTime":"2017-06-05 09:17:09.191","Latitude":42.265486935100476,"Longitude":-71.97442977859625,"Distance":163,"MagicPoints":110,"HealthPoints":151}"#,
    ];

    /// The output that the workshop's page shows for them.
    const PRINTED: &str = r#"{
    "Name": "Shadowfax",
    "StatusTime": "2017-06-05 09:17:08.189",
    "Latitude": 42.264444250051326,
    "Longitude": -71.97582884770408,
    "Distance": 175,
    "MagicPoints": 110,
    "HealthPoints": 150
}
{
    "Name": "Shadowfax",
    "StatusTime": "2017-06-05 09:17:09.191",
    "Latitude": 42.265486935100476,
    "Longitude": -71.97442977859625,
    "Distance": 163,
    "MagicPoints": 110,
    "HealthPoints": 151
}
"#;

    fn printed(format: Format, records: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for record in records {
            format.append(record, &mut out);
        }
        out
    }

    fn text(format: Format, record: &str) -> String {
        String::from_utf8(printed(format, &[record.as_bytes()])).unwrap()
    }

    #[test]
    fn the_workshops_sample_comes_out_byte_for_byte() {
        for end in ["", "\n"] {
            let records = RECORDS.map(|record| format!("{record}{end}"));
            let records = records.each_ref().map(|record| record.as_bytes());
            assert_eq!(String::from_utf8(printed(Format::Pretty, &records)).unwrap(), PRINTED);
        }
    }

    #[test]
    fn what_is_not_one_document_is_printed_as_it_is() {
        for record in ["ouch", "{\"a\":1}{\"b\":2}", "{\"a\":1} x", "{\"a\":", "\u{feff}{}", " \t"]
        {
            for format in [Format::Pretty, Format::Json] {
                assert_eq!(text(format, record), format!("{record}\n"), "{format:?}");
            }
        }
        assert_eq!(text(Format::Pretty, "two\nlines\n"), "two\nlines\n");
        assert_eq!(text(Format::Pretty, ""), "\n");
        assert_eq!(printed(Format::Pretty, &[b"\xff\xfe{", b"1"]), b"\xff\xfe{\n1\n");
    }

    #[test]
    fn a_document_too_deep_to_indent_is_printed_as_it_is() {
        let deep = [vec![b'['; 5_000], vec![b']'; 5_000]].concat();
        let expected = [b"1\n".as_slice(), &deep, b"\n"].concat();
        assert_eq!(printed(Format::Pretty, &[b"1", &deep]), expected);
    }

    #[test]
    fn json_keeps_a_line_as_it_came_and_joins_what_has_several() {
        assert_eq!(text(Format::Json, " {\"a\": 1.0} \n"), "{\"a\": 1.0}\n");
        assert_eq!(text(Format::Json, "{\r\n  \"a b\": [1,\n2]\n}\n"), "{\"a b\":[1,2]}\n");
    }

    #[test]
    fn raw_is_the_bytes_and_a_newline() {
        assert_eq!(printed(Format::Raw, &[b"\x00\xff", b"{ }\n", b""]), b"\x00\xff\n{ }\n\n\n");
    }
}
