//! The encodings of requests and replies: AWS JSON 1.1, and CBOR 1.1, which Java clients use.
//!
//! Knows encodings and the shape of an error, never the meaning of an operation.

use std::fmt;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::de::{self, DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The encoding of one request and its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// `application/x-amz-json-1.1`
    Json,
    /// `application/x-amz-cbor-1.1`
    Cbor,
}

impl Format {
    /// Returns the format that a `Content-Type` header names, if it is supported.
    pub(crate) fn from_content_type(value: &str) -> Option<Self> {
        match value.split(';').next().unwrap_or_default().trim() {
            "application/x-amz-json-1.1" | "application/json" => Some(Self::Json),
            "application/x-amz-cbor-1.1" => Some(Self::Cbor),
            _ => None,
        }
    }

    /// Returns the `Content-Type` of replies.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/x-amz-json-1.1",
            Self::Cbor => "application/x-amz-cbor-1.1",
        }
    }

    /// Decodes a request; an empty body is the empty request.
    ///
    /// # Errors
    ///
    /// `ValidationException` if a required member is missing, `SerializationException` if the body
    /// is not in this format or a member has another type.
    pub(crate) fn decode<T: DeserializeOwned>(self, body: &[u8]) -> Result<T, ApiError> {
        let message = match self {
            Self::Json => {
                let body: &[u8] = if body.is_empty() { b"{}" } else { body };
                match serde_json::from_slice(body) {
                    Ok(request) => return Ok(request),
                    Err(error) => error.to_string(),
                }
            }
            Self::Cbor => {
                let body: &[u8] = if body.is_empty() { b"\xa0" } else { body };
                match ciborium::from_reader(body) {
                    Ok(request) => return Ok(request),
                    Err(ciborium::de::Error::Semantic(_, message)) => message,
                    Err(error) => error.to_string(),
                }
            }
        };
        Err(ApiError::from_decoding(message))
    }

    /// Encodes a reply into one buffer with room for `capacity` bytes.
    pub(crate) fn encode<T: Serialize>(self, reply: &T, capacity: usize) -> Bytes {
        let mut buffer = Vec::with_capacity(capacity);
        match self {
            Self::Json => serde_json::to_writer(&mut buffer, reply)
                .expect("replies have text keys and a Vec takes every write"),
            Self::Cbor => ciborium::into_writer(reply, &mut buffer)
                .expect("replies are plain data and a Vec takes every write"),
        }
        Bytes::from(buffer)
    }
}

/// A refused request, in the service's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ApiError {
    /// The name of the exception, such as `ResourceNotFoundException`; also the value of the header
    /// `x-amzn-errortype`.
    pub code: &'static str,
    /// The reason, for people.
    pub message: String,
    /// 400 for an error of the caller, 500 for an error of the service.
    pub status: u16,
}

impl ApiError {
    /// Creates an error of the caller.
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), status: 400 }
    }

    /// Creates an error of the service.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { code: "InternalFailure", message: message.into(), status: 500 }
    }

    fn from_decoding(message: String) -> Self {
        match message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
            Some(member) => Self::new(
                "ValidationException",
                format!(
                    "1 validation error detected: Value null at '{}' failed to satisfy \
                     constraint: Member must not be null",
                    lower_first(member)
                ),
            ),
            None => Self::new("SerializationException", message),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for ApiError {}

/// Lowers the first letter of a member's name, as the service does in messages.
fn lower_first(member: &str) -> String {
    let mut letters = member.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// The answer of an operation.
pub(crate) enum Reply {
    /// A complete body.
    Body(Bytes),
    /// Encoded event-stream messages, sent one by one.
    EventStream(BoxStream<'static, Bytes>),
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(body) => f.debug_tuple("Body").field(body).finish(),
            Self::EventStream(_) => f.write_str("EventStream"),
        }
    }
}

/// Binary data of a request: base64 text in JSON, a byte string in CBOR.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Blob(pub Bytes);

/// Binary data of a reply; encoded as a [`Blob`] is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlobRef<'a>(pub &'a [u8]);

impl Serialize for BlobRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&base64_simd::STANDARD.encode_to_string(self.0))
        } else {
            serializer.serialize_bytes(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(BlobVisitor)
        } else {
            deserializer.deserialize_byte_buf(BlobVisitor)
        }
    }
}

struct BlobVisitor;

impl Visitor<'_> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes, in base64 where the format is text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Blob, E> {
        base64_simd::STANDARD
            .decode_to_vec(text)
            .map(|bytes| Blob(bytes.into()))
            .map_err(|_| E::custom("the blob is not base64 text"))
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob(Bytes::copy_from_slice(bytes)))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
        Ok(Blob(bytes.into()))
    }
}

/// A timestamp in milliseconds since 1970: seconds with a fraction in JSON, whole milliseconds in
/// CBOR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Timestamp(pub i64);

impl Serialize for Timestamp {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this era are exact in an f64")]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_f64(self.0 as f64 / 1_000.0)
        } else {
            serializer.serialize_i64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let seconds = f64::deserialize(deserializer)?;
            // Rounded, because clients send 1.123 s as 1.122999906.
            #[expect(clippy::cast_possible_truncation, reason = "a cast saturates, as it should")]
            Ok(Self((seconds * 1_000.0).round() as i64))
        } else {
            i64::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    #[serde(rename_all = "PascalCase")]
    struct Sample {
        #[serde(serialize_with = "as_blob")]
        data: Blob,
        at: Timestamp,
    }

    fn as_blob<S: Serializer>(blob: &Blob, serializer: S) -> Result<S::Ok, S::Error> {
        BlobRef(&blob.0).serialize(serializer)
    }

    fn sample() -> Sample {
        Sample { data: Blob(vec![7; 10_000].into()), at: Timestamp(1_700_000_000_123) }
    }

    #[test]
    fn blobs_and_times_survive_both_formats() {
        for format in [Format::Json, Format::Cbor] {
            let encoded = format.encode(&sample(), 0);
            assert_eq!(format.decode::<Sample>(&encoded).unwrap(), sample(), "{format:?}");
        }
    }

    #[test]
    fn json_times_are_seconds_with_milliseconds() {
        let encoded = Format::Json.encode(&Timestamp(1_700_000_000_123), 0);
        assert_eq!(encoded, "1700000000.123");
        let rough: Timestamp = serde_json::from_str("1700000000.122999906").unwrap();
        assert_eq!(rough, Timestamp(1_700_000_000_123));
    }

    #[test]
    fn a_tagged_cbor_time_is_read() {
        let tagged = ciborium::Value::Tag(1, Box::new(1_700_000_000_123_i64.into()));
        let mut bytes = Vec::new();
        ciborium::into_writer(&tagged, &mut bytes).unwrap();
        assert_eq!(Format::Cbor.decode::<Timestamp>(&bytes).unwrap(), Timestamp(1_700_000_000_123));
    }

    #[test]
    fn a_missing_member_is_a_validation_error_and_bad_text_a_serialization_error() {
        for format in [Format::Json, Format::Cbor] {
            let error = format.decode::<Sample>(b"").unwrap_err();
            assert_eq!(error.code, "ValidationException", "{format:?}");
            assert!(error.message.contains("'data'"), "{}", error.message);
            let error = format.decode::<Sample>(b"\xff\xff{").unwrap_err();
            assert_eq!(error.code, "SerializationException", "{format:?}");
        }
    }
}
