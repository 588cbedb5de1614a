//! What is wrong with the profile files, as far as that can be seen without asking anyone.
//!
//! The SDK goes on without a profile that it cannot read or find, and fails much later for another reason.
//! Never reads a credential.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::path::PathBuf;

use aws_config::profile::ProfileSet;

use super::environment::variable;

/// The name of the profile that is used when none is named.
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

/// The SDK takes a file that is not UTF-8 for an empty one; PowerShell writes such files.
fn readable() -> Result<(), String> {
    for (name, default) in
        [("AWS_CONFIG_FILE", ".aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")]
    {
        let in_home = || std::env::home_dir().map(|home| home.join(default));
        let Some(path) = variable(name).map(PathBuf::from).or_else(in_home) else { continue };
        // What cannot be read is no profile: containers run as users who may not look into HOME.
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
    // A byte order mark makes the first section unknown, and no editor shows it.
    let remedy = if words.contains("on line 1:") {
        "correct the line; if it looks right, save the file without a byte order mark"
    } else {
        "correct the line"
    };
    format!("the AWS profiles cannot be used: {words}: {remedy}")
}

/// Whether the selected profile exists, and those that it takes its credentials from.
fn check(profiles: &ProfileSet) -> Result<(), String> {
    let selected = profiles.selected_profile();
    if selected != DEFAULT && profiles.get_profile(selected).is_none() {
        let mut known: Vec<_> = profiles.profiles().map(|name| format!("`{name}`")).collect();
        known.sort();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(format!(
            "the AWS profile `{selected}` that AWS_PROFILE names does not exist (there is {known}): correct \
             the name, or run `aws configure --profile {selected}`; in ~/.aws/config its section is \
             `[profile {selected}]`"
        ));
    }
    let mut seen = vec![selected];
    while let Some(source) = source(profiles, seen[seen.len() - 1]) {
        let last = seen[seen.len() - 1];
        if profiles.get_profile(source).is_none() {
            return Err(format!(
                "the AWS profile `{last}` takes its role with `source_profile = {source}`, and there is no \
                 profile `{source}`: correct the name, or run `aws configure --profile {source}`"
            ));
        }
        if seen.contains(&source) {
            let mut path = String::new();
            for name in seen.iter().chain([&source]) {
                let arrow = if path.is_empty() { "" } else { " → " };
                // Writing to a string does not fail.
                write!(path, "{arrow}`{name}`").ok();
            }
            return Err(format!(
                "the AWS profiles take their roles from each other ({path}): one of them needs keys or \
                 another `source_profile`"
            ));
        }
        seen.push(source);
    }
    Ok(())
}

/// The profile whose credentials this one uses to take a role.
fn source<'a>(profiles: &'a ProfileSet, name: &str) -> Option<&'a str> {
    let profile = profiles.get_profile(name)?;
    profile.get("role_arn")?;
    // One that names itself has keys of its own.
    profile.get("source_profile").filter(|source| *source != name)
}
