//! Checks of the AWS profile files, without a call to a service.
//!
//! The SDK ignores a profile that it cannot read or find, and fails much later with an unrelated error.
//! Never reads a credential.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::path::PathBuf;

use aws_config::profile::ProfileSet;

use super::environment::variable;

/// The profile that is used when `AWS_PROFILE` is not set.
pub(super) const DEFAULT: &str = "default";

/// Reads the profile files and checks the profile that is selected.
pub(super) async fn load() -> Result<ProfileSet, String> {
    readable()?;
    let selected = variable("AWS_PROFILE").unwrap_or_else(|| DEFAULT.to_owned());
    let real = (Default::default(), Default::default(), Default::default());
    let loaded = aws_config::profile::load(&real.0, &real.1, &real.2, Some(selected.into())).await;
    let profiles = loaded.map_err(|error| unreadable(&error))?;
    check(&profiles)?;
    Ok(profiles)
}

/// Rejects files that are not UTF-8, which PowerShell writes and the SDK treats as empty.
fn readable() -> Result<(), String> {
    for (name, default) in
        [("AWS_CONFIG_FILE", ".aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")]
    {
        let in_home = || std::env::home_dir().map(|home| home.join(default));
        let Some(path) = variable(name).map(PathBuf::from).or_else(in_home) else { continue };
        // An unreadable file counts as absent: users in containers often have no access to HOME.
        let is_text = std::fs::read(&path).map_or(true, |bytes| str::from_utf8(&bytes).is_ok());
        if !is_text {
            return Err(format!("`{}` is not UTF-8: save it in that encoding", path.display()));
        }
    }
    Ok(())
}

fn unreadable(error: &(dyn StdError + 'static)) -> String {
    let mut words = error.to_string();
    if let Some(cause) = error.source() {
        words = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    }
    // A byte order mark makes the first section invalid, and editors do not show it.
    let remedy = if words.contains("on line 1:") {
        "correct the line; if it looks right, save the file without a byte order mark"
    } else {
        "correct the line"
    };
    format!("the AWS profiles cannot be used: {words}: {remedy}")
}

/// Checks that the selected profile exists, and the chain of profiles that it takes its credentials from.
fn check(profiles: &ProfileSet) -> Result<(), String> {
    let selected = profiles.selected_profile();
    if selected != DEFAULT && profiles.get_profile(selected).is_none() {
        let mut known: Vec<_> = profiles.profiles().map(|name| format!("`{name}`")).collect();
        known.sort();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(format!(
            "the AWS profile `{selected}` in AWS_PROFILE does not exist (existing profiles: {known}): correct \
             the name, or run `aws configure --profile {selected}`; in ~/.aws/config its section is \
             `[profile {selected}]`"
        ));
    }
    let mut seen = vec![selected];
    while let Some(source) = source(profiles, seen[seen.len() - 1]) {
        let last = seen[seen.len() - 1];
        if profiles.get_profile(source).is_none() {
            return Err(format!(
                "the AWS profile `{last}` has `source_profile = {source}`, but there is no profile \
                 `{source}`: correct the name, or run `aws configure --profile {source}`"
            ));
        }
        if seen.contains(&source) {
            let mut path = String::new();
            for name in seen.iter().chain([&source]) {
                let arrow = if path.is_empty() { "" } else { " → " };
                // Writing to a string cannot fail.
                write!(path, "{arrow}`{name}`").ok();
            }
            return Err(format!(
                "the `source_profile` settings of the AWS profiles form a loop ({path}): one of the \
                 profiles needs keys or another `source_profile`"
            ));
        }
        seen.push(source);
    }
    Ok(())
}

/// Returns the profile whose credentials this one uses to assume its role.
fn source<'a>(profiles: &'a ProfileSet, name: &str) -> Option<&'a str> {
    let profile = profiles.get_profile(name)?;
    profile.get("role_arn")?;
    // A profile that names itself has its own keys.
    profile.get("source_profile").filter(|source| *source != name)
}
