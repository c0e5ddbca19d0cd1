//! Hard links of the image that the layer has to know of for as long as it lives.
//!
//! ```text
//! .siphon/links/NODE             a link of the copy of a file that names in the image still stand for
//! .siphon/links/NODE-TOTAL-GONE  empty: GONE of the TOTAL names that NODE has in the image stand for it no more
//! ```
//!
//! The count is written after the change that it counts: a crash in between leaves a link too many, never one too few.

use super::Upper;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::NodeId;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What is known of one file of the image that has several names there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Links {
    /// Names that it has in the image.
    pub(crate) total: u32,
    /// Of these, how many no longer stand for it.
    pub(crate) gone: u32,
    /// Whether the layer has its copy under `links`.
    pub(crate) held: bool,
}

impl Links {
    /// How many names in the image stand for the file.
    pub(crate) fn left(&self) -> u32 {
        self.total.saturating_sub(self.gone)
    }
}

fn held_name(node: NodeId) -> OsString {
    node.0.to_string().into()
}

fn count_name(node: NodeId, links: &Links) -> OsString {
    format!("{}-{}-{}", node.0, links.total, links.gone).into()
}

/// Node, total and gone of the name of a count, or the node alone of a held link.
fn parsed(name: &OsStr) -> Option<(NodeId, Option<(u32, u32)>)> {
    let mut parts = name.to_str()?.split('-');
    let node = NodeId(parts.next()?.parse().ok()?);
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => Some((node, None)),
        (Some(total), Some(gone), None) => Some((node, Some((total.parse().ok()?, gone.parse().ok()?)))),
        _ => None,
    }
}

impl Upper {
    fn links_directory(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.links.as_ref().map(AsFd::as_fd).ok_or(Errno::ROFS)
    }

    /// All that is written down, by node.
    pub(crate) fn links(&self) -> io::Result<HashMap<NodeId, Links>> {
        let mut found: HashMap<NodeId, Links> = HashMap::new();
        let Ok(directory) = self.links_directory() else { return Ok(found) };
        for (node, count) in host::list(directory)?.iter().filter_map(|entry| parsed(&entry.name)) {
            let links = found.entry(node).or_default();
            match count {
                None => links.held = true,
                Some((total, gone)) => (links.total, links.gone) = (total, links.gone.max(gone)),
            }
        }
        // A link without a count comes from a crash before anything stood for it.
        found.retain(|_, links| links.total > 0);
        Ok(found)
    }

    /// Whether a copy may be held that names in the image stand for; so it is taken to be where that cannot be read.
    pub(crate) fn holds_links(&self) -> bool {
        self.links().map_or(true, |known| known.values().any(|links| links.held))
    }

    /// Keeps a link of `staged` in `work` as the copy of `node`.
    pub(crate) fn hold(&self, node: NodeId, links: &Links, staged: &OsStr) -> Result<(), Errno> {
        let directory = self.links_directory()?;
        self.write_count(node, links)?;
        match fs::unlinkat(directory, held_name(node), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        fs::linkat(self.work()?, staged, directory, held_name(node), AtFlags::empty())
    }

    fn write_count(&self, node: NodeId, links: &Links) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(self.links_directory()?, count_name(node, links), flags, Mode::from_raw_mode(0o600)).map(drop)
    }

    /// The copy of `node` that is held.
    pub(crate) fn held(&self, node: NodeId) -> io::Result<OwnedFd> {
        host::open_object(self.links_directory()?, &held_name(node))
    }

    /// The directory that held links are in, and the name of that of `node`.
    pub(crate) fn held_at(&self, node: NodeId) -> Result<(BorrowedFd<'_>, OsString), Errno> {
        Ok((self.links_directory()?, held_name(node)))
    }

    /// Writes down that `links`, of which one name more is gone than before, is now true of `node`.
    pub(crate) fn count_gone(&self, node: NodeId, links: &Links) -> Result<(), Errno> {
        let directory = self.links_directory()?;
        let before = Links { gone: links.gone.saturating_sub(1), ..*links };
        match fs::renameat(directory, count_name(node, &before), directory, count_name(node, links)) {
            Err(Errno::NOENT) => self.write_count(node, links),
            other => other,
        }
    }

    /// Lets go of the link that is held of `node`, and of the count.
    pub(crate) fn forget_links(&self, node: NodeId, links: &Links) -> Result<(), Errno> {
        let directory = self.links_directory()?;
        for name in [held_name(node), count_name(node, links)] {
            match fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes down that `now` is true of `node`, of which `before` was. Nothing is left where it has no more to say than
    /// the image. Nobody may change the layer meanwhile.
    pub(super) fn rewrite_links(&self, node: NodeId, before: &Links, now: Links) -> Result<(), Errno> {
        let directory = self.links_directory()?;
        if now == *before {
            return Ok(());
        }
        if !now.held && (now.gone == 0 || now.left() == 0) {
            return self.forget_links(node, before);
        }
        // The new count before the old one goes, of which the larger is believed.
        self.write_count(node, &now)?;
        let old = if now.held { None } else { Some(held_name(node)) };
        let counted = (now.gone != before.gone).then(|| count_name(node, before));
        for name in old.into_iter().chain(counted) {
            match fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
