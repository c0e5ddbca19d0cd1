//! Which files of lower layers nobody will see, so that their content need not be written.
//!
//! Layers are read from the top down, and this is told of each before the next. It goes by names as they are in the archives
//! and knows nothing of links in the way: where that is wrong, the merged tree asks for what was skipped. What hard links of
//! upper layers lead to is not skipped.

use super::merge::{OPAQUE, WHITEOUT, clean};
use super::tar::{Entry, Kind};
use std::collections::{HashMap, HashSet};

/// What the layers read so far cover.
#[derive(Debug, Default)]
pub(super) struct Cover {
    paths: HashMap<Vec<u8>, Hides>,
    link_targets: HashSet<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Hides {
    /// Anything but a directory at the path.
    itself: bool,
    /// Everything below it.
    below: bool,
}

impl Cover {
    /// Takes in the entries of a layer.
    pub(super) fn add(&mut self, entries: &[Entry]) {
        for entry in entries {
            let mut path = clean(&entry.path);
            let name = path.last().copied().unwrap_or_default();
            let mut hides = Hides { itself: true, below: entry.kind != Kind::Directory };
            if name == OPAQUE {
                path.pop();
                hides = Hides { itself: false, below: true };
            } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                path.pop();
                path.push(hidden);
                hides = Hides { itself: true, below: true };
            }
            let known = self.paths.entry(path.join(&b'/')).or_default();
            known.itself |= hides.itself;
            known.below |= hides.below;
            if entry.kind == Kind::HardLink {
                self.link_targets.insert(clean(&entry.link).join(&b'/'));
            }
        }
    }

    /// Whether a file at `path` of the next layer is hidden, as far as names tell.
    pub(super) fn hides(&self, path: &[u8]) -> bool {
        if self.paths.is_empty() {
            return false;
        }
        let path = clean(path).join(&b'/');
        if self.link_targets.contains(&path) {
            return false;
        }
        let is_below = |end: usize| self.paths.get(&path[..end]).is_some_and(|hides| hides.below);
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(index, _)| index);
        self.paths.get(&path).is_some_and(|hides| hides.itself) || is_below(0) || slashes.into_iter().any(is_below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Timestamp;

    fn entry(kind: Kind, path: &str, link: &str) -> Entry {
        let (path, link) = (path.into(), link.into());
        let mtime = Timestamp::default();
        Entry { kind, path, link, mode: 0, uid: 0, gid: 0, mtime, rdev: 0, size: 0, xattrs: Vec::new() }
    }

    #[test]
    fn names_of_upper_layers_hide_those_of_lower_ones() {
        let mut cover = Cover::default();
        cover.add(&[
            entry(Kind::File, "./a/b", ""),
            entry(Kind::Directory, "d/", ""),
            entry(Kind::File, "w/.wh.x", ""),
            entry(Kind::File, "o/.wh..wh..opq", ""),
            entry(Kind::HardLink, "h", "w/x/kept"),
        ]);

        for (path, hidden) in [
            ("a/b", true),
            ("/a/b", true),
            ("a/b/c", true),
            ("a/c", false),
            ("d", true),
            ("d/e", false),
            ("w/x", true),
            ("w/x/y", true),
            ("w/x/kept", false),
            ("w/xy", false),
            ("o", false),
            ("o/p/q", true),
        ] {
            assert_eq!(cover.hides(path.as_bytes()), hidden, "{path}");
        }
    }

    #[test]
    fn an_opaque_root_hides_everything() {
        let mut cover = Cover::default();
        cover.add(&[entry(Kind::File, ".wh..wh..opq", "")]);

        assert!(cover.hides(b"a"));
        assert!(cover.hides(b"a/b"));
    }
}
