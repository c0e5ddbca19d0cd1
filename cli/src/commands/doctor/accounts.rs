//! What the account has, and programs that siphon calls: all of it for parts of siphon only.

use super::check::Check;
use crate::settings::Environment;
use nix::unistd::{User, geteuid};
use siphon_fsd::sys::subordinate_ids::{IdRange, SubordinateIds};
use std::ffi::OsStr;
use std::path::PathBuf;

/// Ids that images of distributions use.
const WANTED_IDS: u64 = 65_536;

pub(super) fn checks(environment: &Environment) -> Vec<Check> {
    let mut found = Vec::new();
    let uid = geteuid();
    if !uid.is_root() {
        let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
        let SubordinateIds { users, groups } = SubordinateIds::given(uid.as_raw(), &name);
        for (file, given, program, flag) in [
            ("/etc/subuid", users, "newuidmap", "--add-subuids"),
            ("/etc/subgid", groups, "newgidmap", "--add-subgids"),
        ] {
            found.push(ids(file, &given, flag, &name));
            let purpose = "other users beside root with --fakeroot";
            found.push(helper(program, find(program, environment), "uidmap", "shadow-utils", purpose));
        }
        let program = find("fusermount3", environment);
        found.push(helper("fusermount3", program, "fuse3", "fuse3", "siphon mount, and nothing else"));
    }
    found
}

fn ids(file: &str, given: &[IdRange], flag: &str, name: &str) -> Check {
    let count: u64 = given.iter().map(|range| u64::from(range.count)).sum();
    if count >= WANTED_IDS {
        return Check::ok(file, format!("{count} subordinate ids")).optional();
    }
    let detail = format!("{count} subordinate ids for {name}, of {WANTED_IDS} for having all owners inside");
    Check::missing(file, detail, format!("as root: usermod {flag} 100000-165535 {name}")).optional()
}

fn helper(name: &str, path: Option<PathBuf>, debian: &str, others: &str, purpose: &str) -> Check {
    match path {
        Some(path) => Check::ok(name, path.display().to_string()).optional(),
        None => {
            let mend = format!("as root: apt-get install {debian}, or dnf install {others}");
            Check::missing(name, format!("not in PATH; for {purpose}"), mend).optional()
        }
    }
}

fn find(name: &str, environment: &Environment) -> Option<PathBuf> {
    let path = environment.get("PATH").unwrap_or(OsStr::new(""));
    std::env::split_paths(path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_ids_are_mended_by_a_command() {
        let given = [IdRange { first: 1, count: 4 }, IdRange { first: 9, count: 6 }];

        let check = ids("/etc/subuid", &given, "--add-subuids", "me");

        assert_eq!(check.mend.as_deref(), Some("as root: usermod --add-subuids 100000-165535 me"));
        assert!(check.detail.starts_with("10 subordinate ids") && !check.needed);
    }
}
