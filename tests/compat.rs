//! The same command lines under apptainer and under siphon: exit code, output and effect have to be the same.
//!
//! A case is a line for the host's shell, in `tests/compat/groups/GROUP.toml`. What apptainer made of it lies beside it
//! in `GROUP.apptainer.toml` and stands in for it here, so that these tests need no apptainer. `make compat` asks it
//! anew, through this program too: with `SIPHON_COMPAT_APPTAINER` set to the command that runs apptainer, the tests
//! record instead of comparing. With `SIPHON_COMPAT_CASE` set, only cases whose names hold its words are run.
//!
//! A case that siphon does not pass yet is marked `pending`; that it does not pass is tested as well, so that no mark
//! outlives its reason. A case in which siphon does something else on purpose says so as `differs`.

#![expect(clippy::unwrap_used, reason = "a test ends where it is surprised")]

#[expect(dead_code, reason = "most of it serves the end-to-end tests")]
mod support;

mod compat {
    pub(crate) mod case;
    pub(crate) mod images;
    pub(crate) mod runtime;
    pub(crate) mod verdict;
}

use compat::case::{Case, Group, Recorded, Recording, directory};
use compat::runtime::{Apptainer, Runtime, Siphon};
use compat::verdict::{complaint, missing_words};

/// One test for each file of cases.
macro_rules! groups {
    ($($group:ident)*) => {
        $(#[test]
        fn $group() {
            record_or_compare(stringify!($group));
        })*

        const GROUPS: &[&str] = &[$(stringify!($group)),*];
    };
}

groups! {
    apps binds build cli contain env exit fakeroot gpu home inspect instances messages mounts namespaces oci overlays regressions run shell streams writes
}

fn record_or_compare(group: &str) {
    let cases = Group::read(group).cases;
    match std::env::var("SIPHON_COMPAT_APPTAINER") {
        Ok(command) => record(group, &cases, &command),
        Err(_) => compare(group, cases),
    }
}

fn record(group: &str, cases: &[Case], command: &str) {
    let mut apptainer = Apptainer::new(command);
    let mut complaints = Vec::new();
    let mut recorded = Vec::new();
    for case in cases {
        let ran = apptainer.run(case);
        let missing = missing_words(case, &ran);
        if !missing.is_empty() {
            complaints.push(format!("{}: apptainer does not say {missing:?}, but: {}", case.name, ran.stderr));
        }
        recorded.push(Recorded { name: case.name.clone(), line: case.line.clone(), outcome: ran.outcome });
    }
    Recording { apptainer: apptainer.version, cases: recorded }.write(group);
    assert!(complaints.is_empty(), "{group}:\n{}", complaints.join("\n"));
}

fn compare(group: &str, cases: Vec<Case>) {
    let recording = Recording::read(group);
    let wanted = std::env::var("SIPHON_COMPAT_CASE").unwrap_or_default();
    let mut siphon = Siphon::new();
    let mut complaints = Vec::new();
    for case in cases.iter().filter(|case| case.name.contains(&wanted)) {
        let said = match recording.of(case) {
            Some(apptainer) => complaint(case, apptainer, &siphon.run(case)),
            None => Some("is not recorded as it now is: run `make compat`".to_owned()),
        };
        complaints.extend(said.map(|said| format!("{}\n{}\n{said}", case.name, case.line)));
    }
    assert!(complaints.is_empty(), "{group}: {} of {}:\n\n{}", complaints.len(), cases.len(), complaints.join("\n\n"));
}

#[test]
fn every_file_of_cases_belongs_to_a_test() {
    let files = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<_> = files.filter_map(|name| Some(name.split_once('.')?.0.to_owned())).collect();
    found.sort();
    found.dedup();

    assert_eq!(found, GROUPS);
}
