//! Environment variables, and the configuration of the SDK's retries from them.
//!
//! A blank variable is not set. An invalid value is ignored rather than an error.

use aws_smithy_types::retry::{RetryConfig, RetryMode};

/// Returns an environment variable, unless it is blank.
pub(super) fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    (!value.trim().is_empty()).then_some(value)
}

/// Returns the configuration of the SDK's retries; values that the SDK does not know are ignored.
pub(super) fn retries(attempts: Option<String>, mode: Option<String>) -> RetryConfig {
    let mut config = RetryConfig::standard();
    let attempts = attempts.and_then(|attempts| attempts.trim().parse().ok());
    if let Some(attempts @ 1..) = attempts {
        config = config.with_max_attempts(attempts);
    }
    if mode.is_some_and(|mode| mode.trim().eq_ignore_ascii_case("adaptive")) {
        config = config.with_retry_mode(RetryMode::Adaptive);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_that_the_sdk_does_not_know_are_its_defaults() {
        let of = |attempts: &str, mode: &str| retries(Some(attempts.into()), Some(mode.into()));
        for (attempts, mode) in [("", "legacy"), ("0", ""), ("-1", "STANDARD"), ("many", "\u{0}")] {
            assert_eq!(of(attempts, mode), RetryConfig::standard(), "{attempts} {mode}");
        }
        let adaptive =
            RetryConfig::standard().with_max_attempts(7).with_retry_mode(RetryMode::Adaptive);
        assert_eq!(of(" 7", "Adaptive"), adaptive);
    }
}
