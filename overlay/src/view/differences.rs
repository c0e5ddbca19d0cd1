//! Where a view may differ from the tree below it, found from what the layer has and nothing else.

use super::merged::outward;
use super::{Ino, View};
use siphon_image::directory::host;
use siphon_image::tree::{self, NodeId};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::AsFd;

impl View {
    /// The names in the directory `dir` at which the view may show something else than the directory `lower` of the tree
    /// below does, in the order of their bytes. `None` if it is made of something else, so that any name may.
    ///
    /// # Errors
    /// As [`View::entries`].
    pub(crate) fn names_apart(&self, dir: Ino, lower: NodeId) -> Result<Option<BTreeSet<OsString>>, tree::Error> {
        let Some(layer) = &self.layer else {
            let is_same = self.lower_of(dir).is_ok_and(|node| node == lower);
            return Ok(is_same.then(BTreeSet::new));
        };
        let both = self.both(layer, &layer.state.read(), dir).map_err(outward)?;
        if both.lower != Some(lower) {
            return Ok(None);
        }
        let mut names = BTreeSet::new();
        let Some(directory) = &both.upper else { return Ok(Some(names)) };
        for found in host::list(directory.as_fd())? {
            names.insert(layer.upper.marked_name(directory.as_fd(), &found.name)?.unwrap_or(found.name));
        }
        Ok(Some(names))
    }

    /// Whether files may be other ones than the tree below has at names of which the layer knows nothing: links of files
    /// that it has under other names.
    pub(crate) fn has_changed_links(&self) -> bool {
        self.layer.as_ref().is_some_and(|layer| layer.upper.holds_links())
    }

    /// The node of the tree below whose content `ino` has, if the layer has nothing of its own there.
    pub(super) fn unchanged(&self, ino: Ino) -> Option<NodeId> {
        let Some(layer) = &self.layer else { return self.lower_of(ino).ok() };
        match layer.state.read().nodes.get(&ino) {
            Some(node) if node.up => None,
            Some(node) => node.lower,
            None => self.lower_of(ino).ok(),
        }
    }
}
