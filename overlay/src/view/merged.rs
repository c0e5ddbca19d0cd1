//! The view as a tree, so that it is packed, listed and inspected like an image. Node ids are inode numbers.

use super::{Ino, OpenMode, View};
use crate::error::Error;
use rustix::io::Errno;
use siphon_image::tree::{self, Activity, Attr, Entry, Kind, NodeId, Statistics, Tree, Xattr};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;

impl Tree for View {
    fn root(&self) -> NodeId {
        NodeId(Ino::ROOT.0)
    }

    fn attr(&self, node: NodeId) -> Result<Attr, tree::Error> {
        View::attr(self, Ino(node.0)).map_err(outward)
    }

    /// The reference that is counted is never given back: a tree's ids stay good for its life.
    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, tree::Error> {
        match View::lookup(self, Ino(dir.0), name) {
            Ok((ino, _)) => Ok(Some(NodeId(ino.0))),
            Err(error) if error.errno() == Errno::NOENT.raw_os_error() => Ok(None),
            Err(error) => Err(outward(error)),
        }
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, tree::Error> {
        let entries = View::entries(self, Ino(dir.0)).map_err(outward)?;
        if self.layer.is_some() {
            for entry in &entries {
                Tree::lookup(self, dir, &entry.name)?;
            }
        }
        Ok(entries)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, tree::Error> {
        View::read_link(self, Ino(node.0)).map_err(outward)
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, tree::Error> {
        let file = self.open(Ino(node.0), OpenMode::default()).map_err(outward)?;
        View::read(self, &file, offset, buf).map_err(outward)
    }

    fn prepare(&self, ranges: &[(NodeId, Range<u64>)]) {
        let ranges: Vec<_> = ranges.iter().map(|(node, range)| (Ino(node.0), range.clone())).collect();
        self.decode_ahead(&ranges);
    }

    fn decoded_around(&self, node: NodeId, offset: u64) -> Option<Range<u64>> {
        View::decoded_around(self, Ino(node.0), offset)
    }

    fn fetch_ahead(&self, ranges: &[(NodeId, Range<u64>)]) {
        let ranges: Vec<_> = ranges.iter().map(|(node, range)| (Ino(node.0), range.clone())).collect();
        View::fetch_ahead(self, &ranges);
    }

    fn origin(&self, node: NodeId) -> Option<(&dyn Tree, NodeId)> {
        let below = self.unchanged(Ino(node.0))?;
        // Where files have more names than the layer knows, any directory may show one of them.
        if self.has_changed_links() && self.lower.attr(below).ok()?.kind == Kind::Directory {
            return None;
        }
        self.lower.origin(below)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, tree::Error> {
        let mut found = Vec::new();
        for name in self.xattr_names(Ino(node.0)).map_err(outward)? {
            if let Some(value) = self.xattr(Ino(node.0), &name).map_err(outward)? {
                found.push((name, value));
            }
        }
        Ok(found)
    }

    fn statistics(&self) -> Statistics {
        View::statistics(self).unwrap_or_default()
    }

    /// Of the image: the layer's files are read as they are.
    fn activity(&self) -> Activity {
        self.lower.activity()
    }
}

pub(super) fn outward(error: Error) -> tree::Error {
    match error {
        Error::Lower(error) => error,
        Error::Upper(source) if source.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) => {
            tree::Error::NotADirectory
        }
        Error::Upper(source) => tree::Error::Io(source),
        other => tree::Error::Io(io::Error::other(other)),
    }
}
