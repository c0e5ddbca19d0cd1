//! The merged layers as a tree. Only the content that was kept in memory can be read.

use super::{Body, Content, Merged, Node, ROOT};
use crate::squashfs::writer::stream::{ContentId, Streamed};
use crate::tree::{self, Attr, Entry, Kind, NodeId, Statistics, Tree, Xattr};
use std::ffi::{OsStr, OsString};
use std::io;

impl Merged {
    fn node(&self, id: NodeId) -> Result<&Node, tree::Error> {
        let node = usize::try_from(id.0).ok().and_then(|index| self.nodes.get(index));
        node.ok_or(tree::Error::NoSuchNode(id))
    }
}

impl Node {
    fn kind(&self) -> Kind {
        match &self.body {
            Body::Directory(_) => Kind::Directory,
            Body::File { .. } => Kind::File,
            Body::Symlink(_) => Kind::Symlink,
            Body::Special(kind, _) => *kind,
        }
    }
}

impl Tree for Merged {
    fn root(&self) -> NodeId {
        NodeId(ROOT as u64)
    }

    fn attr(&self, id: NodeId) -> Result<Attr, tree::Error> {
        let node = self.node(id)?;
        let (size, rdev) = match &node.body {
            Body::Directory(_) => (0, 0),
            Body::File { size, .. } => (*size, 0),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Special(_, rdev) => (0, *rdev),
        };
        Ok(Attr {
            kind: node.kind(),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size,
            blocks: size.div_ceil(512),
            // Whoever writes the tree counts names itself.
            nlink: 1,
            mtime: node.mtime,
            ctime: node.mtime,
            atime: node.mtime,
            rdev,
        })
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, tree::Error> {
        match &self.node(dir)?.body {
            Body::Directory(children) => Ok(children.get(name).map(|child| NodeId(child.node as u64))),
            _ => Err(tree::Error::NotADirectory),
        }
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, tree::Error> {
        let Body::Directory(children) = &self.node(dir)?.body else { return Err(tree::Error::NotADirectory) };
        let entry = |(name, child): (&OsString, &super::Child)| Entry {
            name: name.clone(),
            node: NodeId(child.node as u64),
            kind: self.nodes[child.node].kind(),
        };
        Ok(children.iter().map(entry).collect())
    }

    fn read_link(&self, id: NodeId) -> Result<OsString, tree::Error> {
        match &self.node(id)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(tree::Error::NotASymlink),
        }
    }

    fn read(&self, id: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, tree::Error> {
        let Body::File { size, bytes, .. } = &self.node(id)?.body else { return Err(tree::Error::NotAFile) };
        let kept = match bytes {
            Some(bytes) => bytes.as_ref(),
            None if *size == 0 => &[],
            None => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        };
        let rest = usize::try_from(offset).ok().and_then(|offset| kept.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buf.len());
        buf[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn xattrs(&self, id: NodeId) -> Result<Vec<Xattr>, tree::Error> {
        Ok(self.node(id)?.xattrs.clone())
    }

    fn statistics(&self) -> Statistics {
        Statistics { nodes: self.nodes.len() as u64, block_size: 4096, ..Statistics::default() }
    }
}

impl Streamed for Merged {
    fn content(&self, id: NodeId) -> Option<ContentId> {
        match self.node(id).ok()?.body {
            Body::File { content: Content::Stored(stored), .. } => Some(stored),
            _ => None,
        }
    }
}
