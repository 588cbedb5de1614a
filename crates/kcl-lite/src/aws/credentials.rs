//! Diagnosis of missing credentials, with a remedy.
//!
//! The SDK loads credentials with the first call and reports every failure as a dispatch failure. This
//! module identifies the failures that are not transient. Never shows a credential.

use std::error::Error as StdError;
use std::fmt;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use parking_lot::Mutex;

use super::environment::variable;
use super::lookup::Found;
use super::profile;
use crate::error::chain;

/// The error of missing credentials that a retry cannot provide.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoCredentials {
    /// What was tried and failed, on one line.
    pub reason: String,
    /// How to fix it.
    pub remedy: String,
}

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no AWS credentials: {}: {}", self.reason, self.remedy)
    }
}

impl StdError for NoCredentials {}

impl Found {
    /// Loads credentials once, so that a program can report at its start that there are none.
    ///
    /// The first call to AWS uses these credentials. Transient failures, such as a network that is not up
    /// yet, are not reported here, because the calls retry.
    ///
    /// # Errors
    /// When no provider has credentials, or the profile cannot be used: an SSO login that has expired, a
    /// `credential_process` that fails. The error contains the remedy.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, except that a `credential_process` may have been started.
    pub async fn with_credentials(mut self) -> Result<Self, NoCredentials> {
        let Some(provider) = self.config.credentials_provider() else { return Ok(self) };
        match provider.provide_credentials().await {
            Ok(credentials) => {
                let first = First { credentials: Mutex::new(Some(credentials)), then: provider };
                let provider = SharedCredentialsProvider::new(first);
                self.config = self.config.to_builder().credentials_provider(provider).build();
                Ok(self)
            }
            Err(error) => unfixed(&error).map_or(Ok(self), Err),
        }
    }
}

/// A provider that returns already loaded credentials once, and then those of another provider.
#[derive(Debug)]
struct First {
    credentials: Mutex<Option<Credentials>>,
    then: SharedCredentialsProvider,
}

impl ProvideCredentials for First {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        // Only once, because the other provider has to renew them when they expire.
        let first = self.credentials.lock().take();
        match first {
            Some(credentials) => future::ProvideCredentials::ready(Ok(credentials)),
            None => self.then.provide_credentials(),
        }
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.then.fallback_on_interrupt()
    }
}

/// Returns the cause of an error of a call, if the call was not sent because of missing credentials that a
/// retry cannot provide.
pub(crate) fn missing(error: &(dyn StdError + 'static)) -> Option<NoCredentials> {
    chain(error).find_map(|error| error.downcast_ref()).and_then(unfixed)
}

/// Returns the failure with its remedy, unless it is transient.
pub(crate) fn unfixed(error: &CredentialsError) -> Option<NoCredentials> {
    // The types of these errors are private to the SDK, so its messages are matched instead.
    let words = chain(error).skip(1).map(ToString::to_string).collect::<Vec<_>>().join(": ");
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    let no = |reason: &str, remedy: &str| {
        Some(NoCredentials { reason: reason.to_owned(), remedy: remedy.to_owned() })
    };
    if matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
        // The text of the error lists every provider in turn and fills a screen.
        return no(
            "none in the environment, the profile or the instance",
            "run `aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        );
    }
    if matches!(error, CredentialsError::ProviderTimedOut(_)) {
        return None;
    }
    if says(&["SSO token", "sso/cache", "UnauthorizedException"]) {
        let words = "the profile's SSO login has expired, or does not exist";
        return no(words, &format!("run `aws sso login{}`", of_profile()));
    }
    if says(&["external process"]) {
        return no(&words, "run the profile's `credential_process` by hand to see its error");
    }
    matches!(error, CredentialsError::InvalidConfiguration(_))
        .then(|| no(&words, "correct the profile"))?
}

/// Returns the flag of the AWS CLI that selects the current profile.
fn of_profile() -> String {
    let named = variable("AWS_PROFILE").filter(|name| name != profile::DEFAULT);
    named.map_or_else(String::new, |name| format!(" --profile {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(error: &CredentialsError) -> Option<String> {
        unfixed(error).map(|no| no.remedy)
    }

    #[test]
    fn what_only_a_person_can_change_has_a_remedy() {
        for (error, part) in [
            (CredentialsError::not_loaded("no"), "aws configure"),
            (CredentialsError::provider_error("the SSO token has expired"), "aws sso login"),
            (CredentialsError::provider_error("external process exited with code 1"), "by hand"),
            (CredentialsError::invalid_configuration("a loop"), "correct the profile"),
        ] {
            let remedy = remedy(&error).unwrap();
            assert!(remedy.contains(part), "{remedy}");
        }
    }

    #[test]
    fn what_may_pass_is_left_to_the_calls() {
        for error in [
            CredentialsError::provider_timed_out(std::time::Duration::from_secs(5)),
            CredentialsError::provider_error("connection refused"),
            CredentialsError::unhandled("503"),
        ] {
            assert_eq!(remedy(&error), None);
        }
    }
}
