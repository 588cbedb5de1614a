//! What `CreateTable` demands of billing mode and throughput, where dynoxide is more lenient.
//!
//! Owns the mode of a request that names none, and the rule for global secondary indexes of a
//! provisioned table. Never looks at a table that exists; every other rule is dynoxide's.

use std::borrow::Cow;

use dynoxide::DynoxideError;
use serde_json::Value;

/// Returns the request with its billing mode, so that dynoxide demands the throughput of that mode.
///
/// # Errors
/// A provisioned table has an index without throughput.
pub(super) fn checked<'a>(
    operation: &str,
    body: Cow<'a, str>,
) -> Result<Cow<'a, str>, DynoxideError> {
    if operation != "CreateTable" {
        return Ok(body);
    }
    // dynoxide refuses what cannot be read, and unknown modes.
    let Ok(Value::Object(mut request)) = serde_json::from_str(&body) else { return Ok(body) };
    let mode = request.get("BillingMode").and_then(Value::as_str).unwrap_or("PROVISIONED");
    if mode != "PROVISIONED" {
        return Ok(body);
    }
    if lacks_throughput(request.get("ProvisionedThroughput")) {
        request.insert("BillingMode".to_owned(), "PROVISIONED".into());
        return Ok(Cow::Owned(Value::Object(request).to_string()));
    }
    let indexes = request.get("GlobalSecondaryIndexes").and_then(Value::as_array);
    let bare = indexes
        .into_iter()
        .flatten()
        .find(|index| lacks_throughput(index.get("ProvisionedThroughput")));
    match bare.and_then(|index| index.get("IndexName")?.as_str()) {
        Some(index) => Err(DynoxideError::ValidationException(format!(
            "One or more parameter values were invalid: ProvisionedThroughput is not specified for \
             index: {index}"
        ))),
        None => Ok(body),
    }
}

fn lacks_throughput(throughput: Option<&Value>) -> bool {
    throughput.is_none_or(Value::is_null)
}
