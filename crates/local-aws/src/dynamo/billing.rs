//! The rules of `CreateTable` for billing mode and throughput where dynoxide is more lenient.
//!
//! Owns the default mode, and the rule for global secondary indexes of a provisioned table. Never
//! looks at an existing table; every other rule is dynoxide's.

use std::borrow::Cow;

use dynoxide::DynoxideError;
use serde_json::Value;

/// Returns the request with its billing mode, so that dynoxide checks the throughput for that mode.
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
    // dynoxide refuses malformed requests and unknown modes.
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
