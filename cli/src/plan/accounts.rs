//! Who the caller is inside.

use super::HostFacts;
use crate::settings::Fakeroot;

/// The home directory of root.
pub(super) const ROOT_HOME: &str = "/root";

/// The host as a run sees it in which the caller is root.
pub(super) fn as_root(host: &HostFacts) -> HostFacts {
    let root = "root".to_owned();
    HostFacts { uid: 0, gid: 0, groups: vec![(0, root.clone())], user_name: root.clone(), gecos: root, ..host.clone() }
}

/// Whether the identities of the run's processes, and the owners of its files, are pretended.
pub(super) fn are_pretended(fakeroot: Option<Fakeroot>, host: &HostFacts) -> bool {
    fakeroot.is_some_and(|fakeroot| fakeroot.pretend) && !host.other_ids
}
