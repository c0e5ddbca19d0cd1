//! Everything behind the content, in the one order that kernels accept: they check that each table ends where the next
//! begins.

use super::compress::Codec;
use super::inodes::Inodes;
use super::metadata::MetadataStream;
use super::pipeline::Data;
use super::scan::Scan;
use super::{Error, Image};
use crate::squashfs::format::{FRAGMENT_ENTRY_BYTES, NONE_U64, Superblock};

/// Writes all tables from the end of the data on. The superblock says where; what is known before is left 0.
pub(super) fn write(
    scan: &Scan,
    data: &Data,
    inodes: &Inodes,
    image: Image<'_>,
    codec: Codec,
) -> Result<Superblock, Error> {
    let mut end = End { image, codec, position: data.end };
    let inode_table_start = end.append(&inodes.inode_table)?;
    let directory_table_start = end.append(&inodes.directory_table)?;
    let fragment_table_start =
        if data.fragments.is_empty() { NONE_U64 } else { end.append_table(&fragment_entries(data))? };
    let export_table_start = end.append_table(&little_endian(&inodes.references))?;
    let ids: Vec<u8> = inodes.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let id_table_start = end.append_table(&ids)?;
    let xattr_table_start = if scan.xattrs.is_empty() { NONE_U64 } else { end.append_xattrs(scan)? };
    Ok(Superblock {
        fragment_count: u32::try_from(data.fragments.len()).expect("reading content stops before that"),
        id_count: u16::try_from(inodes.ids.len()).expect("building inodes stops before that"),
        bytes_used: end.position,
        id_table_start,
        xattr_table_start,
        inode_table_start,
        directory_table_start,
        fragment_table_start,
        export_table_start,
        inode_count: 0,
        mkfs_time: 0,
        block_size: 0,
        compressor_id: 0,
        block_log: 0,
        flags: 0,
        version_major: 0,
        version_minor: 0,
        root_inode: 0,
    })
}

/// The growing end of the image.
struct End<'a> {
    image: Image<'a>,
    codec: Codec,
    position: u64,
}

impl End<'_> {
    /// Writes `bytes` and returns where they begin.
    fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let start = self.position;
        self.image.write_at(bytes, start)?;
        self.position += bytes.len() as u64;
        Ok(start)
    }

    /// Writes metadata blocks with these entries and, behind them, the places of the blocks; returns where those begin.
    fn append_table(&mut self, entries: &[u8]) -> Result<u64, Error> {
        let index = self.append_blocks(entries)?;
        self.append(&index)
    }

    /// Writes metadata blocks with these entries; returns the list of their places.
    fn append_blocks(&mut self, entries: &[u8]) -> Result<Vec<u8>, Error> {
        let mut stream = MetadataStream::new(self.codec)?;
        stream.write(entries)?;
        let (table, mut starts) = stream.finish()?;
        let first = self.append(&table)?;
        starts.iter_mut().for_each(|start| *start += first);
        Ok(little_endian(&starts))
    }

    /// Writes attributes, their id table and its header; returns where the header begins.
    fn append_xattrs(&mut self, scan: &Scan) -> Result<u64, Error> {
        let (attributes, ids) = scan.xattrs.encode(self.codec)?;
        let attributes_start = self.append(&attributes)?;
        let index = self.append_blocks(&ids)?;
        let mut header = attributes_start.to_le_bytes().to_vec();
        header.extend(scan.xattrs.count()?.to_le_bytes());
        // `unused`.
        header.extend([0; 4]);
        header.extend(index);
        self.append(&header)
    }
}

fn fragment_entries(data: &Data) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.fragments.len() * FRAGMENT_ENTRY_BYTES);
    for (start, stored_size) in &data.fragments {
        bytes.extend(start.to_le_bytes());
        bytes.extend(stored_size.to_le_bytes());
        // `unused`.
        bytes.extend([0; 4]);
    }
    bytes
}

fn little_endian(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
