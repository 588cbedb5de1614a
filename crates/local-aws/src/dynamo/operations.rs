//! The table of operations and the dynoxide calls that implement them.
//!
//! Owns the list of operations and the service's error type for a malformed body. Never looks
//! inside a request.

use dynoxide::{Database, DynoxideError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;

/// Decodes the request, calls dynoxide, encodes the reply.
macro_rules! dispatch {
    ($db:ident, $operation:ident, $body:ident, { $($name:literal => $method:ident),+ $(,)? }) => {
        match $operation {
            $($name => write(&$db.$method(read($operation, $body)?)?),)+
            _ => Err(Refusal::new(
                400,
                "UnknownOperationException",
                &format!("local-aws has no DynamoDB operation `{}`", $operation),
            )),
        }
    };
}

pub(super) fn dispatch(db: &Database, operation: &str, body: &str) -> Result<String, Refusal> {
    dispatch!(db, operation, body, {
        "CreateTable" => create_table,
        "DeleteTable" => delete_table,
        "DescribeTable" => describe_table,
        "ListTables" => list_tables,
        "UpdateTable" => update_table,
        "PutItem" => put_item,
        "GetItem" => get_item,
        "DeleteItem" => delete_item,
        "UpdateItem" => update_item,
        "Query" => query,
        "Scan" => scan,
        "BatchGetItem" => batch_get_item,
        "BatchWriteItem" => batch_write_item,
        "TransactWriteItems" => transact_write_items,
        "TransactGetItems" => transact_get_items,
        "UpdateTimeToLive" => update_time_to_live,
        "DescribeTimeToLive" => describe_time_to_live,
        "TagResource" => tag_resource,
        "UntagResource" => untag_resource,
        "ListTagsOfResource" => list_tags_of_resource,
        "ExecuteStatement" => execute_statement,
        "ExecuteTransaction" => execute_transaction,
        "BatchExecuteStatement" => batch_execute_statement,
    })
}

pub(super) fn read<T: DeserializeOwned>(operation: &str, body: &str) -> Result<T, DynoxideError> {
    serde_json::from_str(body).map_err(|error| unreadable(operation, &error.to_string()))
}

fn write(reply: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(reply).map_err(|error| {
        Refusal::new(500, "InternalServerError", &format!("the reply cannot be written: {error}"))
    })
}

/// Returns the error for a malformed body. dynoxide's own types put a marker in front of their
/// message that selects one of the service's two error types.
fn unreadable(operation: &str, message: &str) -> DynoxideError {
    let bare = message.rsplit_once(" at line ").map_or(message, |(text, _)| text);
    for (marker, text) in [("VALIDATION_AS_READ:", message), ("VALIDATION:", bare)] {
        if let Some(text) = text.strip_prefix(marker) {
            return DynoxideError::ValidationException(text.to_owned());
        }
    }
    if let Some(text) = bare.strip_prefix("VALIDATION_REQUEST:") {
        return DynoxideError::ValidationException(match operation {
            "PutItem" | "UpdateItem" | "DeleteItem" => {
                format!("1 validation error detected: {text}")
            }
            _ => text.to_owned(),
        });
    }
    for (marker, text) in [("SERIALIZATION_AS_READ:", message), ("SERIALIZATION:", bare)] {
        if let Some(text) = text.strip_prefix(marker) {
            return DynoxideError::SerializationException(text.to_owned());
        }
    }
    let incomplete = ["missing field", "unknown variant", "invalid type: null", "AttributeValue"];
    if incomplete.iter().any(|sign| bare.contains(sign)) {
        DynoxideError::ValidationException(bare.to_owned())
    } else {
        DynoxideError::SerializationException(bare.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_marker_of_the_database_reaches_a_client() {
        for (message, expected) in [
            ("VALIDATION:a b at line 1 column 7", "a b"),
            ("VALIDATION_REQUEST:a b at line 1 column 7", "1 validation error detected: a b"),
            ("SERIALIZATION:a b at line 1 column 7", "a b"),
            ("missing field `Key` at line 1 column 7", "missing field `Key`"),
        ] {
            assert_eq!(unreadable("PutItem", message).to_string(), expected);
        }
    }
}
