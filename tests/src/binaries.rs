//! The real commands, built by the same cargo and in the same profile as the running executable.
//!
//! Cargo gives a test only the paths of its own package's binaries. A nested `cargo build` finds
//! the others, and updates them; cargo does not hold its lock while it runs a test or a program.
//! Never downloads anything.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

/// The directory of the commands.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Returns the commands, built once per process.
    ///
    /// # Errors
    ///
    /// They cannot be compiled; the message is the compiler's.
    pub fn built() -> Result<&'static Self> {
        static BUILT: OnceLock<Result<Binaries, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        built.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// Returns the path of `name`: `producer`, `consumer`, `local-aws`, `demo`, `chaos` or
    /// `memory`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name).with_extension(env::consts::EXE_EXTENSION)
    }
}

fn build() -> Result<Binaries> {
    let executable = env::current_exe().context("this program's own path is not known")?;
    let place = Place::of(&executable)?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Includes `-p e2e`, so that dependencies are built with the features that they already have.
    cargo.args(["build", "--offline", "--quiet", "--bins"]);
    cargo.args(["-p", "e2e", "-p", "producer", "-p", "consumer", "-p", "local-aws"]);
    cargo.arg("--profile").arg(&place.profile).arg("--target-dir").arg(&place.target_directory);
    if let Some(triple) = &place.triple {
        cargo.arg("--target").arg(triple);
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_cargos_own)) {
        cargo.env_remove(name);
    }
    let output = cargo.output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("the commands cannot be built:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Binaries { directory: place.profile_directory })
}

/// Returns whether cargo sets this variable for the programs it runs. Some build scripts depend on
/// such variables and would run again, with everything that depends on them.
fn is_cargos_own(name: &str) -> bool {
    const PREFIXES: [&str; 5] =
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The build of the running executable, as its path shows: `<target
/// directory>/[<triple>/]<profile>/[deps/]<executable>`.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    target_directory: PathBuf,
    triple: Option<String>,
    profile: String,
    profile_directory: PathBuf,
}

impl Place {
    fn of(executable: &Path) -> Result<Self> {
        let place = || {
            let directory = executable.parent()?;
            let in_deps = directory.file_name()? == "deps";
            let profile_directory = if in_deps { directory.parent()? } else { directory };
            let profile = match profile_directory.file_name()?.to_str()? {
                // The only profile whose directory has another name.
                "debug" => "dev".to_owned(),
                name => name.to_owned(),
            };
            let above = profile_directory.parent()?;
            let name = above.file_name()?.to_str()?;
            // Cargo marks its target directory, and a triple contains dashes.
            let is_triple = name.contains('-') && above.parent()?.join("CACHEDIR.TAG").exists();
            Some(Self {
                target_directory: if is_triple { above.parent()? } else { above }.to_owned(),
                triple: is_triple.then(|| name.to_owned()),
                profile,
                profile_directory: profile_directory.to_owned(),
            })
        };
        place().with_context(|| {
            format!("`{}` does not lie in a target directory of cargo", executable.display())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(executable: &str) -> (String, Option<String>, String) {
        let place = Place::of(Path::new(executable)).unwrap();
        (place.target_directory.display().to_string(), place.triple, place.profile)
    }

    #[test]
    fn a_test_and_a_program_lie_in_the_same_place() {
        let expected = ("/p/target".to_owned(), None, "dev".to_owned());
        assert_eq!(place("/p/target/debug/deps/it-0123"), expected);
        assert_eq!(place("/p/target/debug/demo"), expected);
        assert_eq!(place("/p/target/release/demo").2, "release");
    }

    #[test]
    fn a_triple_is_told_from_a_target_directory_by_cargos_mark() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("my-target");
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("CACHEDIR.TAG"), "").unwrap();
        let target = target.to_str().unwrap();
        let cross = place(&format!("{target}/x86_64-unknown-linux-musl/debug/demo"));
        assert_eq!((cross.0.as_str(), cross.1.is_some()), (target, true));
        assert_eq!(place(&format!("{target}/debug/demo")).0, target);
    }

    #[test]
    fn only_what_cargo_sets_for_the_program_is_taken_away() {
        assert!(is_cargos_own("CARGO_MANIFEST_DIR") && is_cargos_own("CARGO_PKG_NAME"));
        assert!(!is_cargos_own("CARGO_HOME") && !is_cargos_own("CARGO_TARGET_DIR"));
    }
}
