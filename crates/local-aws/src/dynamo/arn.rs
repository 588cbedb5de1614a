//! Translation of table ARNs.
//!
//! Owns two text translations: a table's ARN in place of a table's name becomes the name, and the
//! region in ARNs becomes ours, because dynoxide writes the literal `dynoxide` there. Never touches
//! the bodies of operations that carry items.

use std::borrow::Cow;

use serde_json::Value;

const THEIRS: &str = "arn:aws:dynamodb:dynoxide:";
const OURS: &str = "arn:aws:dynamodb:us-east-1:";

/// Returns whether the operation is about tables: neither request nor reply contains an item, so
/// that a text that looks like an ARN is one.
fn is_about_tables(operation: &str) -> bool {
    matches!(
        operation,
        "CreateTable"
            | "DescribeTable"
            | "UpdateTable"
            | "DeleteTable"
            | "TagResource"
            | "UntagResource"
            | "ListTagsOfResource"
            | "UpdateContinuousBackups"
            | "DescribeContinuousBackups"
    )
}

/// Returns the request in the form that dynoxide accepts.
pub(super) fn without_table_arns<'a>(operation: &str, body: &'a str) -> Cow<'a, str> {
    if !body.contains("arn:aws:dynamodb:") {
        return Cow::Borrowed(body);
    }
    let body = with_names(body);
    if is_about_tables(operation) { Cow::Owned(body.replace(OURS, THEIRS)) } else { body }
}

fn with_names(body: &str) -> Cow<'_, str> {
    let Ok(Value::Object(mut request)) = serde_json::from_str(body) else {
        return Cow::Borrowed(body);
    };
    let Some(name) = request.get("TableName").and_then(Value::as_str).and_then(table_of) else {
        return Cow::Borrowed(body);
    };
    let name = name.to_owned();
    request.insert("TableName".to_owned(), Value::String(name));
    Cow::Owned(Value::Object(request).to_string())
}

/// Returns `t` for `arn:aws:dynamodb:region:account:table/t`.
fn table_of(arn: &str) -> Option<&str> {
    arn.strip_prefix("arn:aws:dynamodb:")?.split_once(":table/").map(|(_, name)| name)
}

/// Returns the reply with the region that clients use.
pub(super) fn with_region(operation: &str, reply: String) -> String {
    if is_about_tables(operation) { reply.replace(THEIRS, OURS) } else { reply }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_arn_stands_for_the_table_name() {
        let body = r#"{"TableName":"arn:aws:dynamodb:us-east-1:000000000000:table/t"}"#;
        assert_eq!(without_table_arns("GetItem", body), r#"{"TableName":"t"}"#);
    }

    #[test]
    fn an_arn_inside_an_item_is_left_alone() {
        let body = r#"{"Item":{"a":{"S":"arn:aws:dynamodb:us-east-1:1:table/t"}},"TableName":"t"}"#;
        assert_eq!(without_table_arns("PutItem", body), body);
    }
}
