//! What the account has, and programs that siphon calls: all of it for parts of siphon only.

use super::check::Check;
use crate::settings::Environment;
use nix::unistd::{User, geteuid};
use std::ffi::OsStr;
use std::path::PathBuf;

/// Ids that images of distributions use.
const WANTED_IDS: u64 = 65_536;

pub(super) fn checks(environment: &Environment) -> Vec<Check> {
    let mut found = Vec::new();
    if !geteuid().is_root() {
        let names = identities();
        for (file, program, flag) in
            [("/etc/subuid", "newuidmap", "--add-subuids"), ("/etc/subgid", "newgidmap", "--add-subgids")]
        {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            found.push(ids(file, count(&text, &names), flag, &names));
            found.push(helper(
                program,
                find(program, environment),
                "uidmap",
                "shadow-utils",
                "other users beside root with --fakeroot",
            ));
        }
        let program = find("fusermount3", environment);
        found.push(helper("fusermount3", program, "fuse3", "fuse3", "siphon mount, and nothing else"));
    }
    found
}

/// The names under which the user may stand in the files of subordinate ids.
fn identities() -> Vec<String> {
    let uid = geteuid();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    name.into_iter().chain([uid.to_string()]).collect()
}

/// How many ids the lines `NAME:FIRST:COUNT` give to one of `names`.
fn count(text: &str, names: &[String]) -> u64 {
    let given = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        names.iter().any(|name| name == owner).then(|| fields.nth(1)?.trim().parse::<u64>().ok()).flatten()
    };
    text.lines().filter_map(given).fold(0, u64::saturating_add)
}

fn ids(file: &str, count: u64, flag: &str, names: &[String]) -> Check {
    let name = names.first().map_or("USER", String::as_str);
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
    fn ids_add_up_under_the_name_and_the_number_of_a_user() {
        let names = ["me".to_owned(), "1000".to_owned()];

        assert_eq!(count("you:1:5\nme:100000:65536\n1000:300000:10\nme:x\nme:1:no\n", &names), 65_546);
        assert_eq!(count("", &names), 0);
    }

    #[test]
    fn too_few_ids_are_mended_by_a_command() {
        let check = ids("/etc/subuid", 10, "--add-subuids", &["me".to_owned()]);

        assert_eq!(check.mend.as_deref(), Some("as root: usermod --add-subuids 100000-165535 me"));
        assert!(!check.needed);
    }
}
