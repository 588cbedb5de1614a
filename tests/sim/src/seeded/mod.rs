//! Adds the seeded bugs to a copy of the workspace, by the edits in `tests/sim/seeded`.
//!
//! The library itself contains no trace of them. [`run`] writes the copy to the target directory, builds
//! the simulation there with all bugs at once, and runs it; the bug is selected at run time. Never
//! changes the workspace.

mod copy;
mod edits;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use self::edits::{Edit, Fault, apply};
use crate::mutants;

/// The directory of the edits, relative to the root of the workspace. It mirrors the workspace.
const EDITS: &str = "tests/sim/seeded";
/// What the name of a file of edits adds to the name of the edited file.
const EXTENSION: &str = ".edits";
/// How to repair an edit that no longer applies.
const ADAPT: &str = "Update the lines of the edit that begin with a space or `-` to the present \
                     source, and those with `+` so that they still make the bug.";

/// The content of `tests/sim/seeded`, by path in the workspace.
#[derive(Debug, Default)]
struct Seeded {
    edits: BTreeMap<PathBuf, Vec<Edit>>,
    /// Files that exist only in the copy.
    added: BTreeMap<PathBuf, Vec<u8>>,
}

impl Seeded {
    fn read(root: &Path) -> Result<Self, String> {
        let (mut seeded, folder) = (Self::default(), root.join(EDITS));
        for path in copy::files(&folder)? {
            let bytes = copy::read(&folder.join(&path))?;
            let name = path.to_string_lossy().into_owned();
            if name == "README.md" {
                continue;
            }
            let Some(of) = name.strip_suffix(EXTENSION) else {
                seeded.added.insert(path, bytes);
                continue;
            };
            let text = String::from_utf8_lossy(&bytes);
            let edits = Edit::parse(&text).map_err(|fault| format!("{EDITS}/{name}: {fault}"))?;
            seeded.edits.insert(of.into(), edits);
        }
        Ok(seeded)
    }

    /// Returns the text of the file `path` in the copy, if there are edits for it.
    fn edited(&self, path: &Path, source: &str) -> Result<Option<String>, Vec<String>> {
        let Some(edits) = self.edits.get(path) else { return Ok(None) };
        let complain = |(edit, fault)| complaint(path, edit, &fault);
        let edited = apply(source, edits);
        edited.map(Some).map_err(|faults| faults.into_iter().map(complain).collect())
    }

    /// Returns what is wrong with the edits; together they have to make exactly `bugs`.
    fn complaints(&self, root: &Path, bugs: &BTreeSet<String>) -> Vec<String> {
        let mut complaints = Vec::new();
        for (path, edits) in &self.edits {
            let place = format!("{EDITS}/{}{EXTENSION}", path.display());
            match fs::read_to_string(root.join(path)) {
                Ok(source) => {
                    complaints.extend(self.edited(path, &source).err().into_iter().flatten());
                }
                Err(error) => complaints.push(format!(
                    "{place}: {} cannot be read ({error}). Move the edits to where the code is now.",
                    path.display()
                )),
            }
            let unknown = edits.iter().flat_map(|edit| edit.bugs.difference(bugs));
            complaints.extend(unknown.map(|bug| {
                format!("{place}: the list in tests/sim/src/mutants.rs has no bug `{bug}`.")
            }));
        }
        let all = self.edits.values().flatten();
        let hooks: BTreeSet<_> = all.flat_map(Edit::hooks).collect();
        complaints.extend(bugs.difference(&hooks).map(|bug| {
            format!("no edit in {EDITS} asks for `{bug}` of the list in tests/sim/src/mutants.rs.")
        }));
        complaints
    }
}

/// Returns the message for the author of a change of `path` after which `edit` no longer applies.
fn complaint(path: &Path, edit: &Edit, fault: &Fault) -> String {
    let bugs: Vec<_> = edit.bugs.iter().map(|bug| format!("`{bug}`")).collect();
    let bugs = if bugs.is_empty() { "every seeded bug".to_owned() } else { bugs.join(", ") };
    let path = path.display();
    let (line, text) = (edit.line, edit.wanted().join("\n"));
    let place = format!("{EDITS}/{path}{EXTENSION}, line {line}: the edit for {bugs}");
    match fault {
        Fault::Places(0) => {
            format!("{place} no longer applies, because {path} lacks this text. {ADAPT}\n{text}")
        }
        Fault::Places(places) => format!(
            "{place} applies at {places} places of {path}. Add lines that begin with a space and \
             occur only next to the right place.\n{text}"
        ),
        Fault::Overlaps => {
            format!("{place} removes a line that another edit removes too. Merge the two edits.")
        }
    }
}

fn root() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().map_err(|error| format!("{} is not there: {error}", root.display()))
}

/// Returns the names of all bugs in the list.
fn listed() -> BTreeSet<String> {
    mutants::all().into_iter().map(|bug| bug.name.to_owned()).collect()
}

/// The target directory and profile of this program, read from its path:
/// `<target directory>/[<triple>/]<profile>/<program>`.
struct Place {
    target_directory: PathBuf,
    profile: String,
}

impl Place {
    fn of(program: &Path) -> Option<Self> {
        let directory = program.parent()?;
        let profile = match directory.file_name()?.to_str()? {
            // The one profile whose directory has another name.
            "debug" => "dev",
            name => name,
        };
        // Cargo marks its target directory.
        let is_target = |path: &&Path| path.join("CACHEDIR.TAG").exists();
        let target_directory = directory.ancestors().find(is_target)?.to_owned();
        Some(Self { target_directory, profile: profile.to_owned() })
    }
}

/// Builds the simulation with all seeded bugs, runs it with `arguments`, and returns its exit code. With
/// `with_model`, the model of the lease protocol has to find the bugs in its scope first.
///
/// # Errors
///
/// An edit no longer applies, the copy cannot be written or compiled, or the model misses a bug.
pub fn run(arguments: Vec<OsString>, with_model: bool) -> Result<ExitCode, String> {
    let program = env::current_exe().map_err(|error| format!("where this is: {error}"))?;
    let place = Place::of(&program).ok_or_else(|| {
        format!("`{}` does not lie in a target directory of cargo", program.display())
    })?;
    let root = root()?;
    let copy = place.target_directory.join("seeded");
    let seeded = Seeded::read(&root)?;
    let complaints = seeded.complaints(&root, &listed());
    if !complaints.is_empty() {
        return Err(complaints.join("\n\n"));
    }
    copy::write(&root, &copy, &seeded)?;

    let mut build = cargo("build", &root, &copy, &place);
    build.args(["--bin", "sim-with-bugs"]);
    if !status(&mut build)?.success() {
        return Err(format!("the copy in {} cannot be compiled", copy.display()));
    }
    if with_model {
        model(&root, &copy, &place)?;
    }
    let name = format!("sim-with-bugs{}", env::consts::EXE_SUFFIX);
    let status = status(Command::new(program.with_file_name(name)).args(arguments))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs the test in which the model of the lease protocol has to find the bugs in its scope.
fn model(root: &Path, copy: &Path, place: &Place) -> Result<(), String> {
    let mut test = cargo("test", root, copy, place);
    test.args(["--test", "model-with-bugs", "--", "--nocapture", "lease::model::seeded::"]);
    let output = test.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cargo cannot be started: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Cargo succeeds even if the filter selects no test.
    if output.status.success() && said.contains("test result: ok. 1 passed") {
        return Ok(());
    }
    Err(format!("{said}\nthe model of the lease protocol has not found all of its bugs"))
}

/// Returns a command of cargo for the copy. It selects the whole workspace, so that dependencies have
/// the features with which they were compiled before, and runs where the configuration of cargo is.
fn cargo(command: &str, root: &Path, copy: &Path, place: &Place) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([command, "--workspace", "--manifest-path"]).arg(copy.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&place.target_directory).current_dir(root);
    // Tests have a profile of their own, which is the development profile in all that counts here.
    if place.profile != "dev" {
        cargo.arg("--profile").arg(&place.profile);
    }
    // What cargo sets for the program that it runs. Some build scripts look at these, and would be run
    // again, with everything that follows from it.
    for (name, _) in env::vars_os() {
        let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if name.to_str().is_some_and(|name| prefixes.iter().any(|it| name.starts_with(it))) {
            cargo.env_remove(name);
        }
    }
    cargo
}

fn status(command: &mut Command) -> Result<std::process::ExitStatus, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.status().map_err(|error| format!("{program} cannot be started: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// A workspace of one file, and the edits of it.
    fn seeded(edits: &str) -> (PathBuf, Seeded) {
        let path = PathBuf::from("tests/sim/src/lib.rs");
        let edits = BTreeMap::from([(path.clone(), Edit::parse(edits).unwrap())]);
        (path, Seeded { edits, ..Seeded::default() })
    }

    /// This fails after a change of code that an edit replaces.
    #[test]
    fn every_edit_applies_and_every_seeded_bug_has_one() {
        if mutants::ARE_BUILT_IN {
            return;
        }
        let root = root().unwrap();
        assert_eq!(listed().len(), mutants::all().len(), "two bugs have the same name");
        let complaints = Seeded::read(&root).unwrap().complaints(&root, &listed());
        assert!(complaints.is_empty(), "\n\n{}\n", complaints.join("\n\n"));
    }

    #[test]
    fn a_complaint_names_the_bug_the_file_of_its_edit_and_what_to_do() {
        let (path, seeded) = seeded("@@ a-bug\n-mod gone;\n+mod gone; // mutant::is(\"a-bug\")\n");
        let complaints = seeded.edited(&path, "mod here;\n").unwrap_err();
        assert_eq!(
            complaints,
            [format!(
                "tests/sim/seeded/tests/sim/src/lib.rs.edits, line 1: the edit for `a-bug` no \
                 longer applies, because tests/sim/src/lib.rs lacks this text. {ADAPT}\nmod gone;"
            )]
        );
        let complaints = seeded.edited(&path, "mod gone;\nmod gone;\n").unwrap_err();
        assert!(
            complaints[0].contains("applies at 2 places of tests/sim/src/lib.rs"),
            "{complaints:?}"
        );
    }

    #[test]
    fn a_bug_without_an_edit_an_unknown_bug_and_a_file_that_is_gone_are_complaints() {
        let root = root().unwrap();
        let (path, mut seeded) = seeded("@@ a\n mod seeded;\n+// mutant::is(\"a\")\n");
        let complaints = |seeded: &Seeded, bugs| seeded.complaints(&root, &set(bugs)).join("\n");
        let said = complaints(&seeded, &["a", "b"]);
        assert!(said.contains("no edit in tests/sim/seeded asks for `b`"), "{said}");
        let said = complaints(&seeded, &[]);
        assert!(said.contains("has no bug `a`"), "{said}");
        let edits = seeded.edits.remove(&path).unwrap();
        seeded.edits.insert("tests/sim/src/gone.rs".into(), edits);
        let said = complaints(&seeded, &["a"]);
        assert!(said.contains("tests/sim/src/gone.rs cannot be read"), "{said}");
    }

    #[test]
    fn a_program_lies_in_the_target_directory_that_cargo_has_marked() {
        // This test lies one folder deeper than a program.
        let test = env::current_exe().unwrap();
        let program = test.parent().unwrap().with_file_name("sim");
        let place = Place::of(&program).unwrap();
        assert!(program.starts_with(&place.target_directory));
        assert!(Place::of(Path::new("/nowhere/sim")).is_none());
    }
}
