//! Opaque texts that clients send back: shard iterators and the tokens of lists.
//!
//! A text is base64 of JSON and a short digest, which distinguishes an issued text from one that a
//! client invented or damaged. It keeps no secret and does not protect against forgery.

use md5::{Digest, Md5};
use serde::Serialize;
use serde::de::DeserializeOwned;

const CHECK: usize = 4;

/// Returns the text for a value.
pub(super) fn seal<T: Serialize>(value: &T) -> String {
    let mut bytes = serde_json::to_vec(value).expect("tokens are plain data");
    let check = Md5::digest(&bytes);
    bytes.extend_from_slice(&check[..CHECK]);
    base64_simd::STANDARD.encode_to_string(&bytes)
}

/// Returns the value of a text, if it was issued for a value of this type.
pub(super) fn open<T: DeserializeOwned>(text: &str) -> Option<T> {
    let bytes = base64_simd::STANDARD.decode_to_vec(text).ok()?;
    let (value, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK)?)?;
    if Md5::digest(value)[..CHECK] != *check {
        return None;
    }
    serde_json::from_slice(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_reads_back_and_a_changed_one_does_not() {
        let text = seal(&(7, "a"));
        assert_eq!(open::<(i32, String)>(&text), Some((7, "a".to_owned())));
        assert_eq!(open::<String>(&text), None);
        let mut bytes = base64_simd::STANDARD.decode_to_vec(&text).unwrap();
        bytes[1] = b'8';
        let other_value = base64_simd::STANDARD.encode_to_string(&bytes);
        assert_eq!(open::<(i32, String)>(&other_value), None);
        for garbage in ["", "AAAAAAAAAAAA", "é", &text[4..], &format!("X{}", &text[1..])] {
            assert_eq!(open::<(i32, String)>(garbage), None, "{garbage}");
        }
    }
}
