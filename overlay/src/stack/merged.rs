//! One image over another tree, by the marks of the kernel's overlayfs.

use super::numbers::Numbers;
use parking_lot::RwLock;
use siphon_image::tree::{Activity, Attr, Entry, Error, Kind, NodeId, Statistics, Tree, Xattr};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Names of xattrs that are overlayfs's own, each followed by what it says.
const PREFIXES: [&str; 2] = ["user.overlay.", "trusted.overlay."];

#[derive(Debug)]
pub(super) struct Merged {
    upper: Arc<dyn Tree>,
    lower: Arc<dyn Tree>,
    numbers: Numbers,
    /// Directories of both: what is below each of the upper ones that were met.
    both: RwLock<HashMap<NodeId, NodeId>>,
}

/// Where a node is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// In the upper tree, and merged with a directory of the lower one.
    Upper(NodeId, Option<NodeId>),
    Lower(NodeId),
}

impl Merged {
    pub(super) fn new(upper: Arc<dyn Tree>, lower: Arc<dyn Tree>, numbers: Numbers) -> Self {
        let both = RwLock::new(HashMap::from([(upper.root(), lower.root())]));
        Self { upper, lower, numbers, both }
    }

    fn place(&self, node: NodeId) -> Place {
        match self.numbers.own(node) {
            None => Place::Lower(node),
            Some(own) => Place::Upper(NodeId(own), self.both.read().get(&NodeId(own)).copied()),
        }
    }

    fn says(&self, node: NodeId, what: &str, value: Option<&[u8]>) -> Result<bool, Error> {
        let mut xattrs = self.upper.xattrs(node)?.into_iter();
        Ok(xattrs.any(|(name, found)| own_name(&name) == Some(what) && value.is_none_or(|value| found == value)))
    }

    /// Whether the node of the upper tree says that there is no such name.
    fn is_whiteout(&self, node: NodeId, kind: Kind) -> Result<bool, Error> {
        match kind {
            Kind::CharDevice => Ok(self.upper.attr(node)?.rdev == 0),
            Kind::File if self.upper.attr(node)?.size == 0 => self.says(node, "whiteout", None),
            _ => Ok(false),
        }
    }

    /// The number of a node of the upper tree. `below` finds what the lower one has at its name.
    fn enter(
        &self,
        node: NodeId,
        kind: Kind,
        below: impl FnOnce() -> Result<Option<NodeId>, Error>,
    ) -> Result<NodeId, Error> {
        if kind == Kind::Directory
            && !self.both.read().contains_key(&node)
            && !self.says(node, "opaque", Some(b"y"))?
            && let Some(lower) = below()?
            && self.lower.attr(lower)?.kind == Kind::Directory
        {
            self.both.write().insert(node, lower);
        }
        Ok(self.numbers.outer(node.0))
    }
}

impl Tree for Merged {
    fn root(&self) -> NodeId {
        self.numbers.outer(self.upper.root().0)
    }

    fn attr(&self, node: NodeId) -> Result<Attr, Error> {
        match self.place(node) {
            Place::Lower(node) => self.lower.attr(node),
            Place::Upper(node, None) => self.upper.attr(node),
            // The subdirectories of both are not counted: 1 says so.
            Place::Upper(node, Some(_)) => Ok(Attr { nlink: 1, ..self.upper.attr(node)? }),
        }
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, Error> {
        let (upper, lower) = match self.place(dir) {
            Place::Lower(dir) => return self.lower.lookup(dir, name),
            Place::Upper(upper, lower) => (upper, lower),
        };
        let below = || lower.map_or(Ok(None), |lower| self.lower.lookup(lower, name));
        let Some(node) = self.upper.lookup(upper, name)? else { return below() };
        let kind = self.upper.attr(node)?.kind;
        if self.is_whiteout(node, kind)? {
            return Ok(None);
        }
        self.enter(node, kind, below).map(Some)
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, Error> {
        let (upper, lower) = match self.place(dir) {
            Place::Lower(dir) => return self.lower.entries(dir),
            Place::Upper(upper, lower) => (upper, lower),
        };
        let below = lower.map_or(Ok(Vec::new()), |lower| self.lower.entries(lower))?;
        let mut shown: BTreeMap<OsString, Entry> = below.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        for mut entry in self.upper.entries(upper)? {
            let hidden = shown.remove(&entry.name);
            if self.is_whiteout(entry.node, entry.kind)? {
                continue;
            }
            entry.node = self.enter(entry.node, entry.kind, || Ok(hidden.map(|hidden| hidden.node)))?;
            shown.insert(entry.name.clone(), entry);
        }
        Ok(shown.into_values().collect())
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, Error> {
        match self.place(node) {
            Place::Upper(node, _) => self.upper.read_link(node),
            Place::Lower(node) => self.lower.read_link(node),
        }
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        match self.place(node) {
            // A copy of attributes alone: its content was in the image that the layer was written over.
            Place::Upper(node, _) if self.says(node, "metacopy", None)? => {
                Err(io::Error::other("the layer has only the attributes of this file").into())
            }
            Place::Upper(node, _) => self.upper.read(node, offset, buf),
            Place::Lower(node) => self.lower.read(node, offset, buf),
        }
    }

    fn host_file(&self, node: NodeId) -> Result<Option<OwnedFd>, Error> {
        match self.place(node) {
            Place::Upper(node, _) if self.says(node, "metacopy", None)? => Ok(None),
            Place::Upper(node, _) => self.upper.host_file(node),
            Place::Lower(node) => self.lower.host_file(node),
        }
    }

    fn prepare(&self, ranges: &[(NodeId, Range<u64>)]) {
        let (mut upper, mut lower) = (Vec::new(), Vec::new());
        for (node, range) in ranges {
            match self.place(*node) {
                Place::Upper(node, _) => upper.push((node, range.clone())),
                Place::Lower(node) => lower.push((node, range.clone())),
            }
        }
        self.upper.prepare(&upper);
        self.lower.prepare(&lower);
    }

    fn decoded_around(&self, node: NodeId, offset: u64) -> Option<Range<u64>> {
        match self.place(node) {
            Place::Upper(node, _) => self.upper.decoded_around(node, offset),
            Place::Lower(node) => self.lower.decoded_around(node, offset),
        }
    }

    fn fetch_ahead(&self, ranges: &[(NodeId, Range<u64>)]) {
        for (node, range) in ranges {
            match self.place(*node) {
                Place::Upper(node, _) => self.upper.fetch_ahead(&[(node, range.clone())]),
                Place::Lower(node) => self.lower.fetch_ahead(&[(node, range.clone())]),
            }
        }
    }

    fn origin(&self, node: NodeId) -> Option<(&dyn Tree, NodeId)> {
        match self.place(node) {
            // What is below a directory is merged, or holds marks.
            Place::Upper(node, _) if self.upper.attr(node).ok()?.kind == Kind::Directory => None,
            Place::Upper(node, _) if self.says(node, "metacopy", None).unwrap_or(true) => None,
            Place::Upper(node, _) => self.upper.origin(node),
            Place::Lower(node) => self.lower.origin(node),
        }
    }

    fn files_after(&self, node: NodeId, count: usize, max_bytes: u64) -> Vec<(NodeId, u64)> {
        match self.place(node) {
            // What is stored next may be hidden here or not: no harm is done, as it is only read.
            Place::Lower(node) => self.lower.files_after(node, count, max_bytes),
            Place::Upper(node, _) => {
                let files = self.upper.files_after(node, count, max_bytes);
                files.into_iter().map(|(node, bytes)| (self.numbers.outer(node.0), bytes)).collect()
            }
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        match self.place(node) {
            Place::Lower(node) => self.lower.xattrs(node),
            Place::Upper(node, _) => {
                let mut xattrs = self.upper.xattrs(node)?;
                xattrs.retain(|(name, _)| own_name(name).is_none());
                Ok(xattrs)
            }
        }
    }

    fn statistics(&self) -> Statistics {
        let (upper, lower) = (self.upper.statistics(), self.lower.statistics());
        Statistics {
            bytes: upper.bytes.saturating_add(lower.bytes),
            nodes: upper.nodes.saturating_add(lower.nodes),
            ..lower
        }
    }

    fn activity(&self) -> Activity {
        let (upper, lower) = (self.upper.activity(), self.lower.activity());
        Activity {
            decoded_blocks: upper.decoded_blocks + lower.decoded_blocks,
            decoded_bytes: upper.decoded_bytes + lower.decoded_bytes,
            cache_hits: upper.cache_hits + lower.cache_hits,
            cache_misses: upper.cache_misses + lower.cache_misses,
            cache_waits: upper.cache_waits + lower.cache_waits,
        }
    }
}

/// What follows overlayfs's own prefix.
fn own_name(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))
}
