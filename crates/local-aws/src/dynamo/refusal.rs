//! A reply of DynamoDB that is an error.

use bytes::Bytes;
use dynoxide::DynoxideError;

/// A reply that is an error: ready to send.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) body: Bytes,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({ "__type": code, "message": message }).to_string();
        Self { status, code: code.to_owned(), body: body.into() }
    }
}

impl From<DynoxideError> for Refusal {
    fn from(error: DynoxideError) -> Self {
        let kind = error.error_type();
        Self {
            status: error.status_code(),
            code: kind.rsplit('#').next().unwrap_or(kind).to_owned(),
            body: error.to_json().into(),
        }
    }
}
