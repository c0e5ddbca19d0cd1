//! The inode and directory tables.
//!
//! A listing holds where its inodes lie, and a directory's inode where its listing lies. So directories are written
//! deepest first, each after everything that it names.

use super::compress::Codec;
use super::content::Tail;
use super::directories::{self, Child, Listing, table_offset};
use super::metadata::{MetadataStream, Place};
use super::pipeline::Data;
use super::scan::{Directory, Node, Scan};
use super::{Error, Options, Owners};
use crate::squashfs::format::{NONE_U32, inode_type};
use crate::tree::{Kind, Tree};
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;

/// Bytes of the longest link target: a kernel page.
const MAX_TARGET_BYTES: usize = 4096;
/// Directory sizes count `.` and `..` as these bytes, though no listing holds them.
const DOT_ENTRIES_BYTES: u32 = 3;

/// The finished tables.
pub(super) struct Inodes {
    pub(super) inode_table: Vec<u8>,
    pub(super) directory_table: Vec<u8>,
    /// Metadata reference of each node.
    pub(super) references: Vec<u64>,
    /// Users and groups.
    pub(super) ids: Vec<u32>,
}

impl Inodes {
    pub(super) fn root(&self) -> u64 {
        self.references[0]
    }
}

/// Writes all inodes and listings.
pub(super) fn build(
    tree: &dyn Tree,
    scan: &Scan,
    data: &Data,
    codec: Codec,
    options: &Options,
) -> Result<Inodes, Error> {
    let mut builder = Builder {
        tree,
        scan,
        data,
        inodes: MetadataStream::new(codec)?,
        listings: MetadataStream::new(codec)?,
        places: vec![None; scan.nodes.len()],
        ids: Ids { owners: options.owners, list: Vec::new(), index_of: HashMap::new() },
        latest_mtime: options.latest_mtime.unwrap_or(u32::MAX),
    };
    for directory in scan.directories.iter().rev() {
        builder.directory(directory)?;
    }
    let references = builder.places.iter().map(|place| place.map_or(0, Place::reference)).collect();
    Ok(Inodes {
        inode_table: builder.inodes.finish()?.0,
        directory_table: builder.listings.finish()?.0,
        references,
        ids: builder.ids.list,
    })
}

struct Builder<'a> {
    tree: &'a dyn Tree,
    scan: &'a Scan,
    data: &'a Data,
    inodes: MetadataStream,
    listings: MetadataStream,
    places: Vec<Option<Place>>,
    ids: Ids,
    latest_mtime: u32,
}

impl Builder<'_> {
    /// Writes the inodes that a directory names, its listing, and its own inode.
    fn directory(&mut self, directory: &Directory) -> Result<(), Error> {
        let mut children = Vec::with_capacity(directory.children.len());
        for (name, node) in &directory.children {
            let inode = match self.places[*node] {
                Some(place) => place,
                None => self.leaf(*node)?,
            };
            let basic_type = basic_type(self.scan.nodes[*node].attr.kind);
            children.push(Child { name, inode, number: number(*node), basic_type });
        }
        let listing = directories::write(&mut self.listings, &children)?;
        let node = &self.scan.nodes[directory.node];
        let body = directory_body(node, &listing, self.parent_number(directory.node))?;
        self.add(directory.node, &body)?;
        Ok(())
    }

    /// Inode number of a directory's parent. The root has none and names a number that no inode has.
    fn parent_number(&self, node: usize) -> u32 {
        if node == 0 { self.scan.inode_count() + 1 } else { number(self.scan.nodes[node].parent) }
    }

    /// Writes the inode of anything but a directory.
    fn leaf(&mut self, index: usize) -> Result<Place, Error> {
        let node = &self.scan.nodes[index];
        let body = match node.attr.kind {
            Kind::File => self.file_body(index)?,
            Kind::Symlink => self.symlink_body(index)?,
            Kind::BlockDevice | Kind::CharDevice => special_body(node, Some(node.attr.rdev)),
            // A directory was written before the one that names it.
            Kind::Fifo | Kind::Socket | Kind::Directory => special_body(node, None),
        };
        self.add(index, &body)
    }

    /// Appends the header that all inodes have, and the rest.
    fn add(&mut self, index: usize, body: &Body) -> Result<Place, Error> {
        let place = self.inodes.place();
        let attr = &self.scan.nodes[index].attr;
        let (uid, gid) = self.ids.owners.map(attr.uid, attr.gid);
        let extension = if body.extended { inode_type::EXTENDED } else { 0 };
        let mut header = Vec::with_capacity(16);
        for field in [basic_type(attr.kind) + extension, attr.mode & 0o7777, self.ids.index(uid)?, self.ids.index(gid)?]
        {
            header.extend(field.to_le_bytes());
        }
        // The format's times are unsigned seconds: what lies outside of them is moved to the nearest.
        let seconds = attr.mtime.seconds.clamp(0, i64::from(self.latest_mtime));
        header.extend(u32::try_from(seconds).expect("clamped").to_le_bytes());
        header.extend(number(index).to_le_bytes());
        self.inodes.write(&header)?;
        self.inodes.write(&body.bytes)?;
        self.places[index] = Some(place);
        Ok(place)
    }

    fn file_body(&self, index: usize) -> Result<Body, Error> {
        let node = &self.scan.nodes[index];
        let blocks = &self.data.blocks[index];
        let Tail { fragment, offset } = self.data.tails[index];
        let small = u32::try_from(node.attr.size).ok().zip(u32::try_from(blocks.start).ok());
        let mut body = Body::default();
        match small.filter(|_| node.links == 1 && node.xattrs == NONE_U32 && blocks.hole_bytes == 0) {
            Some((size, start)) => body.put_u32s(&[start, fragment, offset, size]),
            None => {
                body.extended = true;
                for field in [blocks.start, node.attr.size, blocks.hole_bytes] {
                    body.bytes.extend(field.to_le_bytes());
                }
                body.put_u32s(&[node.links, fragment, offset, node.xattrs]);
            }
        }
        body.put_u32s(&blocks.sizes);
        Ok(body)
    }

    fn symlink_body(&self, index: usize) -> Result<Body, Error> {
        let node = &self.scan.nodes[index];
        let target = self.tree.read_link(node.id).map_err(self.scan.at(index))?;
        let size = u32::try_from(target.len()).ok().filter(|_| target.len() <= MAX_TARGET_BYTES);
        let size = size.ok_or_else(|| Error::LinkTooLong(self.scan.path(index)))?;
        let mut body = Body::default();
        body.put_u32s(&[node.links, size]);
        body.bytes.extend(target.as_bytes());
        body.put_xattrs(node);
        Ok(body)
    }
}

/// An inode without the header that all have.
#[derive(Default)]
struct Body {
    extended: bool,
    bytes: Vec<u8>,
}

impl Body {
    fn put_u32s(&mut self, fields: &[u32]) {
        self.bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    }

    /// Makes the inode an extended one if it has xattrs: for links, devices, pipes and sockets that is the difference.
    fn put_xattrs(&mut self, node: &Node) {
        if node.xattrs != NONE_U32 {
            self.extended = true;
            self.put_u32s(&[node.xattrs]);
        }
    }
}

fn special_body(node: &Node, rdev: Option<u32>) -> Body {
    let mut body = Body::default();
    body.put_u32s(&[node.links]);
    body.put_u32s(rdev.as_slice());
    body.put_xattrs(node);
    body
}

fn directory_body(node: &Node, listing: &Listing, parent: u32) -> Result<Body, Error> {
    let size = listing.size_bytes.checked_add(DOT_ENTRIES_BYTES);
    let size = size.ok_or(Error::TooMany { what: "bytes of names in one directory", limit: u64::from(u32::MAX) })?;
    let start = table_offset(listing.place)?;
    let mut body = Body::default();
    let small = u16::try_from(size).ok();
    match small.filter(|_| node.xattrs == NONE_U32 && listing.index_entries == 0) {
        Some(size) => {
            body.put_u32s(&[start, node.links]);
            body.bytes.extend(size.to_le_bytes());
            body.bytes.extend(listing.place.offset.to_le_bytes());
            body.put_u32s(&[parent]);
        }
        None => {
            body.extended = true;
            body.put_u32s(&[node.links, size, start, parent]);
            body.bytes.extend(listing.index_entries.to_le_bytes());
            body.bytes.extend(listing.place.offset.to_le_bytes());
            body.put_u32s(&[node.xattrs]);
            body.bytes.extend(&listing.index);
        }
    }
    Ok(body)
}

/// Users and groups, each once, as inodes refer to them.
struct Ids {
    owners: Owners,
    list: Vec<u32>,
    index_of: HashMap<u32, u16>,
}

impl Ids {
    fn index(&mut self, id: u32) -> Result<u16, Error> {
        if let Some(index) = self.index_of.get(&id) {
            return Ok(*index);
        }
        // The superblock counts them with 16 bits, so the last index is 65534.
        let limit = u16::MAX;
        let index = u16::try_from(self.list.len()).ok().filter(|index| *index < limit);
        let index = index.ok_or(Error::TooMany { what: "users and groups", limit: u64::from(limit) })?;
        self.list.push(id);
        self.index_of.insert(id, index);
        Ok(index)
    }
}

/// The inode number of a node.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("scanning stops at MAX_INODES") + 1
}

fn basic_type(kind: Kind) -> u16 {
    match kind {
        Kind::Directory => inode_type::DIRECTORY,
        Kind::File => inode_type::FILE,
        Kind::Symlink => inode_type::SYMLINK,
        Kind::BlockDevice => inode_type::BLOCK_DEVICE,
        Kind::CharDevice => inode_type::CHAR_DEVICE,
        Kind::Fifo => inode_type::FIFO,
        Kind::Socket => inode_type::SOCKET,
    }
}
