//! Re-indents JSON as text, byte by byte, without parsing values.
//!
//! The order of keys, the digits of numbers and the escapes in strings are preserved; only white
//! space between tokens changes. Does not validate: any bytes are accepted, and bytes that are not
//! JSON give a meaningless text, never a panic.

/// The workshop's indentation.
const INDENT: usize = 4;

/// The largest factor by which indentation may lengthen a record, plus a constant for small ones.
/// Without it a megabyte of brackets would become terabytes of spaces.
const MAX_GROWTH: usize = 16;
const ALWAYS_ALLOWED: usize = 16 * 1024;

/// The indented text would be too large for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooDeep;

/// Appends `json` to `out` with one member or element per line and four spaces per level.
///
/// White space around the document is dropped; no newline is appended.
///
/// # Errors
///
/// [`TooDeep`] leaves an incomplete text in `out`.
pub(crate) fn indent(json: &[u8], out: &mut Vec<u8>) -> Result<(), TooDeep> {
    let limit = out.len() + ALWAYS_ALLOWED + MAX_GROWTH * json.len();
    let mut depth = 0_usize;
    let mut rest = json;
    while let Some((token, after)) = next_token(rest) {
        rest = after;
        match token {
            b"{" | b"[" => {
                out.extend_from_slice(token);
                match next_token(rest) {
                    // An empty object or array stays on one line.
                    Some((close @ (b"}" | b"]"), after)) => {
                        out.extend_from_slice(close);
                        rest = after;
                    }
                    _ => {
                        depth += 1;
                        new_line(out, depth, limit)?;
                    }
                }
            }
            b"}" | b"]" => {
                depth = depth.saturating_sub(1);
                new_line(out, depth, limit)?;
                out.extend_from_slice(token);
            }
            b"," => {
                out.push(b',');
                new_line(out, depth, limit)?;
            }
            b":" => out.extend_from_slice(b": "),
            scalar => out.extend_from_slice(scalar),
        }
    }
    Ok(())
}

/// Appends `json` to `out` without any white space between tokens.
pub(crate) fn compact(json: &[u8], out: &mut Vec<u8>) {
    let mut rest = json;
    while let Some((token, after)) = next_token(rest) {
        out.extend_from_slice(token);
        rest = after;
    }
}

/// Returns `json` without white space at both ends.
pub(crate) fn trimmed(json: &[u8]) -> &[u8] {
    let start = json.iter().position(|byte| !is_space(*byte)).unwrap_or(json.len());
    let end = json.iter().rposition(|byte| !is_space(*byte)).map_or(start, |last| last + 1);
    &json[start..end]
}

fn new_line(out: &mut Vec<u8>, depth: usize, limit: usize) -> Result<(), TooDeep> {
    let length = out.len() + 1 + INDENT * depth;
    // Checked before the text grows, so that the limit bounds the memory too.
    if length > limit {
        return Err(TooDeep);
    }
    out.push(b'\n');
    out.resize(length, b' ');
    Ok(())
}

/// Returns the first token of `json` and the rest: a string, a bracket, a comma, a colon, or a run
/// of other bytes (a number or a word).
fn next_token(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = json.iter().position(|byte| !is_space(*byte))?;
    let json = &json[start..];
    let length = match json[0] {
        b'"' => string_length(json),
        byte if is_structure(byte) => 1,
        _ => json
            .iter()
            .position(|byte| is_space(*byte) || is_structure(*byte) || *byte == b'"')
            .unwrap_or(json.len()),
    };
    Some(json.split_at(length))
}

/// Returns the length of the string that `json` begins with, quotes included; the length of `json`
/// if the string never ends.
fn string_length(json: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = json.get(at..).and_then(|rest| rest.iter().position(ends_or_escapes)) {
        at += found + 1;
        if json[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    json.len()
}

fn ends_or_escapes(byte: &u8) -> bool {
    matches!(byte, b'"' | b'\\')
}

fn is_structure(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':')
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn indented(json: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        indent(json, &mut out).expect("not too deep");
        out
    }

    fn compacted(json: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compact(json, &mut out);
        out
    }

    fn text(json: &str) -> String {
        String::from_utf8(indented(json.as_bytes())).unwrap()
    }

    #[test]
    fn members_and_elements_stand_on_lines_of_their_own() {
        insta::assert_snapshot!(text(r#"{"a":[1,{"b":null}],"c":"d"}"#), @r#"
        {
            "a": [
                1,
                {
                    "b": null
                }
            ],
            "c": "d"
        }
        "#);
    }

    #[test]
    fn numbers_escapes_and_the_order_of_keys_stay_as_they_are() {
        for scalar in ["1e5", "1.0", "-0", "1E+400", r#""\u003c\/\"\\""#, "true"] {
            assert_eq!(text(scalar), scalar);
        }
        assert_eq!(
            text(r#"{"b":1.0,"a":1e5,"b":2}"#),
            "{\n    \"b\": 1.0,\n    \"a\": 1e5,\n    \"b\": 2\n}"
        );
    }

    #[test]
    fn empty_containers_stay_on_one_line_whatever_space_they_hold() {
        assert_eq!(text(" { } "), "{}");
        assert_eq!(text("[[ \n ],{}]"), "[\n    [],\n    {}\n]");
    }

    #[test]
    fn structure_inside_strings_is_text() {
        let string = r#""{[,: \" ]}""#;
        assert_eq!(text(string), string);
        assert_eq!(text(&format!("[{string}]")), format!("[\n    {string}\n]"));
    }

    #[test]
    fn space_around_the_document_is_dropped() {
        assert_eq!(text("\r\n\t {\"a\":1} \n\n"), "{\n    \"a\": 1\n}");
        assert_eq!(trimmed(b" \n"), b"");
        assert_eq!(trimmed(b"\t[1, 2]\r\n"), b"[1, 2]");
    }

    #[test]
    fn brackets_alone_are_refused_before_their_spaces_fill_the_memory() {
        let deep = [vec![b'['; 5_000], vec![b']'; 5_000]].concat();
        let mut out = Vec::new();
        assert_eq!(indent(&deep, &mut out), Err(TooDeep));
        assert!(out.len() <= ALWAYS_ALLOWED + MAX_GROWTH * deep.len());
    }

    #[test]
    fn a_deep_document_of_ordinary_size_is_not_too_deep() {
        let nested = format!("{}1{}", "[".repeat(60), "]".repeat(60));
        assert_eq!(text(&nested).lines().count(), 121);
    }

    fn json() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        scalar.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(Value::from_iter),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_value_is_the_same_before_and_after(value in json()) {
            for source in [serde_json::to_vec(&value)?, serde_json::to_vec_pretty(&value)?] {
                let before: Value = serde_json::from_slice(&source)?;
                prop_assert_eq!(&serde_json::from_slice::<Value>(&indented(&source))?, &before);
                prop_assert_eq!(&serde_json::from_slice::<Value>(&compacted(&source))?, &before);
            }
        }

        #[test]
        fn the_text_is_what_serde_json_writes_with_the_same_indentation(value in json()) {
            let mut expected = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            let mut serializer = serde_json::Serializer::with_formatter(&mut expected, formatter);
            serde::Serialize::serialize(&value, &mut serializer)?;
            prop_assert_eq!(indented(&serde_json::to_vec(&value)?), expected);
        }

        #[test]
        fn indenting_twice_is_indenting_once(value in json()) {
            let once = indented(&serde_json::to_vec_pretty(&value)?);
            prop_assert_eq!(&indented(&once), &once);
            prop_assert_eq!(indented(&compacted(&once)), once);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            indent(&bytes, &mut Vec::new()).ok();
            compacted(&bytes);
            trimmed(&bytes);
        }

        #[test]
        fn any_brackets_quotes_and_escapes_are_survived(text in r#"[\[\]{}",:\\ \n1a]{0,60}"#) {
            indent(text.as_bytes(), &mut Vec::new()).ok();
            compacted(text.as_bytes());
        }
    }
}
