//! A view whose own nodes have numbers that a layer above can tell from its own.

use super::numbers::Numbers;
use crate::view::UPPER_BIT;
use siphon_image::tree::{Activity, Attr, Entry, Error, NodeId, Statistics, Tree, Xattr};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Renumbered {
    inner: Arc<dyn Tree>,
    numbers: Numbers,
}

impl Renumbered {
    pub(super) fn new(inner: Arc<dyn Tree>, numbers: Numbers) -> Self {
        Self { inner, numbers }
    }

    fn outer(&self, node: NodeId) -> NodeId {
        node.0.checked_sub(UPPER_BIT).map_or(node, |own| self.numbers.outer(own))
    }

    fn inner(&self, node: NodeId) -> NodeId {
        self.numbers.own(node).map_or(node, |own| NodeId(own + UPPER_BIT))
    }
}

impl Tree for Renumbered {
    fn root(&self) -> NodeId {
        self.outer(self.inner.root())
    }

    fn attr(&self, node: NodeId) -> Result<Attr, Error> {
        self.inner.attr(self.inner(node))
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, Error> {
        Ok(self.inner.lookup(self.inner(dir), name)?.map(|node| self.outer(node)))
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, Error> {
        let mut entries = self.inner.entries(self.inner(dir))?;
        for entry in &mut entries {
            entry.node = self.outer(entry.node);
        }
        Ok(entries)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, Error> {
        self.inner.read_link(self.inner(node))
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        self.inner.read(self.inner(node), offset, buf)
    }

    fn host_file(&self, node: NodeId) -> Result<Option<OwnedFd>, Error> {
        self.inner.host_file(self.inner(node))
    }

    fn prepare(&self, ranges: &[(NodeId, Range<u64>)]) {
        let inner: Vec<_> = ranges.iter().map(|(node, range)| (self.inner(*node), range.clone())).collect();
        self.inner.prepare(&inner);
    }

    fn decoded_around(&self, node: NodeId, offset: u64) -> Option<Range<u64>> {
        self.inner.decoded_around(self.inner(node), offset)
    }

    fn fetch_ahead(&self, ranges: &[(NodeId, Range<u64>)]) {
        let inner: Vec<_> = ranges.iter().map(|(node, range)| (self.inner(*node), range.clone())).collect();
        self.inner.fetch_ahead(&inner);
    }

    fn origin(&self, node: NodeId) -> Option<(&dyn Tree, NodeId)> {
        self.inner.origin(self.inner(node))
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        self.inner.xattrs(self.inner(node))
    }

    fn statistics(&self) -> Statistics {
        self.inner.statistics()
    }

    fn activity(&self) -> Activity {
        self.inner.activity()
    }
}
