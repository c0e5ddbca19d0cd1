//! Ids that belong to a user besides its own: found in `/etc/subuid` and `/etc/subgid`, mapped into a user namespace by
//! the privileged programs `newuidmap` and `newgidmap`.

use serde::{Deserialize, Serialize};
use std::fs;
use std::process::{Command, Stdio};

/// The kernel takes 340 lines in a map, the first of which is the user's own id; nobody has nearly as many.
const MAX_RANGES: usize = 339;

/// Consecutive ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The lowest of them.
    pub first: u32,
    /// How many there are; at least one.
    pub count: u32,
}

/// Ids that one user may map into a user namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SubordinateIds {
    /// User ids.
    pub users: Vec<IdRange>,
    /// Group ids.
    pub groups: Vec<IdRange>,
}

impl SubordinateIds {
    /// What of this host's ids the user `name` with the id `uid` can map. Without ids of both kinds there are none: one
    /// alone is no use.
    pub fn of_user(uid: u32, name: &str) -> Self {
        let given = Self::given(uid, name);
        if given.users.is_empty() || given.groups.is_empty() { Self::default() } else { given }
    }

    /// What this host gives to the user. Where the two files have nothing, `getsubids` is asked, which knows of
    /// directories such as LDAP.
    pub fn given(uid: u32, name: &str) -> Self {
        let find = |path: &str, options: &[&str]| {
            let listed = ranges(&fs::read_to_string(path).unwrap_or_default(), uid, name);
            if listed.is_empty() { directory(options, name) } else { listed }
        };
        Self { users: find("/etc/subuid", &[]), groups: find("/etc/subgid", &["-g"]) }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// Maps 0 to `uid` and `gid` and the numbers from 1 on to these ids, in the user namespace of the process `pid`,
    /// which has no map yet. To be called from outside of that namespace. User ids are mapped last: where they are
    /// not, there is no map at all, unless the host gives the one kind of ids and refuses the other.
    ///
    /// # Errors
    /// Which of the two programs cannot be run, or what it said.
    pub(super) fn map_into(&self, pid: u32, uid: u32, gid: u32) -> Result<(), String> {
        run_mapper("newgidmap", pid, gid, &self.groups)?;
        run_mapper("newuidmap", pid, uid, &self.users)
    }
}

/// The lines of `/etc/subuid` that belong to the user: `NAME:FIRST:COUNT` or `UID:FIRST:COUNT`.
fn ranges(text: &str, uid: u32, name: &str) -> Vec<IdRange> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range = IdRange { first: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? };
        (owner == name || owner == uid.to_string()).then_some(range)
    };
    usable(text.lines().filter_map(range))
}

/// What `getsubids` prints: `0: NAME FIRST COUNT`.
fn directory(options: &[&str], name: &str) -> Vec<IdRange> {
    // The name must not be taken for an option; no account has such a one.
    if name.starts_with('-') {
        return Vec::new();
    }
    let output = Command::new("getsubids").args(options).arg(name).stdin(Stdio::null()).output();
    // It is not on every host, and then there is nothing to be asked.
    let Ok(output) = output else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let range = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        Some(IdRange { first: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? })
    };
    usable(text.lines().filter_map(range))
}

/// Ranges that a map can hold, as long as there are numbers left to map them to.
fn usable(ranges: impl Iterator<Item = IdRange>) -> Vec<IdRange> {
    let mut next = 1_u32;
    let fits = |range: &IdRange| range.count > 0 && range.first.checked_add(range.count).is_some();
    ranges
        .filter(fits)
        .take(MAX_RANGES)
        .map_while(|range| {
            next = next.checked_add(range.count)?;
            Some(range)
        })
        .collect()
}

fn run_mapper(program: &str, pid: u32, own: u32, ranges: &[IdRange]) -> Result<(), String> {
    let output = Command::new(program).arg(pid.to_string()).args(arguments(own, ranges)).stdin(Stdio::null()).output();
    match output {
        Err(error) => Err(format!("cannot run {program} ({error}); the package uidmap or shadow-utils has it")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
            Err(format!("{program} failed ({said}); it has to be setuid root or have file capabilities"))
        }
    }
}

/// Triples of the first number inside, the first id outside, and how many.
fn arguments(own: u32, ranges: &[IdRange]) -> Vec<String> {
    let mut arguments = vec!["0".to_owned(), own.to_string(), "1".to_owned()];
    let mut inside = 1_u32;
    for range in ranges {
        arguments.extend([inside, range.first, range.count].map(|number| number.to_string()));
        inside = inside.saturating_add(range.count);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_ranges_are_found_by_name_and_by_number() {
        let text = "other:1:2\nme:100000:65536\n# me:5:5\n1000:300000:10\nmeh:7:7\nme:no:number\nme:9\n";

        let found = ranges(text, 1000, "me");

        assert_eq!(found, [IdRange { first: 100_000, count: 65536 }, IdRange { first: 300_000, count: 10 }]);
    }

    #[test]
    fn ranges_that_no_map_can_hold_are_left_out() {
        let text = "me:5:0\nme:4294967295:2\nme:10:4294967285\nme:1:4294967290\n";

        assert_eq!(ranges(text, 1, "me"), [IdRange { first: 10, count: 4_294_967_285 }]);
        assert_eq!(ranges(&"me:1:1\n".repeat(1000), 1, "me").len(), MAX_RANGES);
    }

    #[test]
    fn ranges_are_mapped_one_after_the_other_behind_the_users_own_id() {
        let ranges = [IdRange { first: 100_000, count: 65536 }, IdRange { first: 300_000, count: 10 }];

        let expected = ["0", "1000", "1", "1", "100000", "65536", "65537", "300000", "10"];
        assert_eq!(arguments(1000, &ranges), expected);
    }
}
