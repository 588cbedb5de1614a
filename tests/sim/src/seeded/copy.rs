//! Writes the copy of the workspace that contains the seeded bugs.
//!
//! Writes a file only if its content has changed, so that cargo does not compile more than necessary.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{EDITS, Seeded};

/// The folders of the workspace that cargo needs.
const FOLDERS: [&str; 2] = ["crates", "tests"];
const MANIFEST: &str = "Cargo.toml";
const LOCK: &str = "Cargo.lock";

/// Makes `copy` equal to the workspace in `root` with all edits applied.
///
/// # Errors
///
/// An edit does not apply, or a file cannot be read or written.
pub(super) fn write(root: &Path, copy: &Path, seeded: &Seeded) -> Result<(), String> {
    let wanted = wanted(root, seeded)?;
    for folder in FOLDERS.iter().filter(|folder| copy.join(folder).exists()) {
        for path in files(&copy.join(folder))? {
            let path = Path::new(folder).join(path);
            if !wanted.contains_key(&path) {
                let path = copy.join(path);
                fs::remove_file(&path).map_err(|error| failed("removed", &path, &error))?;
            }
        }
    }
    for (path, bytes) in &wanted {
        let path = copy.join(path);
        if fs::read(&path).is_ok_and(|present| present == *bytes) {
            continue;
        }
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = made.and_then(|()| fs::write(&path, bytes));
        written.map_err(|error| failed("written", &path, &error))?;
    }
    Ok(())
}

/// Returns every file of the copy, with its content.
fn wanted(root: &Path, seeded: &Seeded) -> Result<BTreeMap<PathBuf, Vec<u8>>, String> {
    let mut wanted = BTreeMap::new();
    for folder in FOLDERS {
        for path in files(&root.join(folder))? {
            let path = Path::new(folder).join(path);
            if path.starts_with(EDITS) {
                continue;
            }
            let bytes = read(&root.join(&path))?;
            let edited = seeded.edited(&path, &String::from_utf8_lossy(&bytes));
            let edited = edited.map_err(|complaints| complaints.join("\n\n"))?;
            wanted.insert(path, edited.map_or(bytes, String::into_bytes));
        }
    }
    wanted.extend(seeded.added.iter().map(|(path, bytes)| (path.clone(), bytes.clone())));
    let manifest = read(&root.join(MANIFEST))?;
    wanted.insert(MANIFEST.into(), marked(&String::from_utf8_lossy(&manifest)).into_bytes());
    wanted.insert(LOCK.into(), read(&root.join(LOCK))?);
    Ok(wanted)
}

/// Returns the manifest of the workspace with another version for its packages.
///
/// Cargo identifies what it has compiled by the name and version of a package and its path within the
/// workspace. If these were the same, cargo would mistake the library for its copy in the target
/// directory that they share.
fn marked(manifest: &str) -> String {
    let mark = |line: &str| match line.strip_prefix("version = \"") {
        Some(version) => format!("version = \"{}\n", version.replacen('"', "+seeded\"", 1)),
        None => format!("{line}\n"),
    };
    manifest.lines().map(mark).collect()
}

/// Returns every file below `folder`, relative to it, without generated and hidden ones.
///
/// # Errors
///
/// A folder cannot be read.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(inner) = folders.pop() {
        let place = folder.join(&inner);
        let entries = fs::read_dir(&place).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| failed("read", &place, &error))? {
            let name = entry.file_name();
            let path = inner.join(&name);
            let is_generated = name == "target" || name == "node_modules";
            if is_generated || name.to_string_lossy().starts_with('.') {
                continue;
            }
            if entry.path().is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the content of a file.
///
/// # Errors
///
/// The file cannot be read; the message names it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| failed("read", path, &error))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> String {
    format!("{} cannot be {what}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_of_the_copy_have_a_version_of_their_own() {
        let manifest = "[workspace.package]\nversion = \"0.1.0\"\n\n[workspace.dependencies]\n\
                        own = { version = \"0.1.0\", path = \"own\" }\n";
        let expected = manifest.replacen("0.1.0\"\n", "0.1.0+seeded\"\n", 1);
        assert_eq!(marked(manifest), expected);
    }
}
