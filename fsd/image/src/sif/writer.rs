//! Writes a SIF as apptainer 1.4 does: small objects first, then one squashfs partition, all in group 1.
//!
//! The partition's bytes are not handed through here: whoever makes them writes them into the file where
//! [`SifWriter::partition_start`] says, and reports their number to [`SifWriter::add_partition`]. An object whose length is not
//! known before may follow it, as signatures do.

use super::descriptor::{Arch, DESCRIPTOR_BYTES, DataType, Descriptor, FilesystemType, Partition, PartitionType};
use super::{HEADER_BYTES, MAGIC, VERSION};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use uuid::Uuid;

/// Lets a kernel run the image as a program.
const LAUNCH_SCRIPT: &[u8; 32] = b"#!/usr/bin/env run-singularity\n\0";
/// Descriptors in the table.
pub(super) const TABLE_DESCRIPTORS: usize = 48;
/// Where the table begins.
pub(super) const TABLE_OFFSET: u64 = 4096;
/// Where the first object begins.
pub(super) const DATA_OFFSET: u64 = TABLE_OFFSET + (TABLE_DESCRIPTORS * DESCRIPTOR_BYTES) as u64;
/// Partitions begin on a boundary that a loop device can map.
const PARTITION_ALIGNMENT_BYTES: u64 = 4096;
/// The group of everything that makes up the container.
const GROUP: u32 = 1;

/// Why a SIF could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table is full.
    #[error("a SIF image cannot hold more than {TABLE_DESCRIPTORS} objects")]
    TooManyObjects,
    /// The output file failed.
    #[error("cannot write the SIF image")]
    Io(#[from] io::Error),
}

/// A SIF in the making. Until [`SifWriter::finish`] the file is not one yet: the header is written last.
#[derive(Debug)]
pub struct SifWriter<'a> {
    file: &'a File,
    arch: Arch,
    id: Uuid,
    time_seconds: i64,
    descriptors: Vec<Descriptor>,
    end: u64,
    /// Where the partition begins at the earliest.
    reserved: u64,
}

impl<'a> SifWriter<'a> {
    /// Starts an image in `file`, which should be empty. `time_seconds` since 1970 is that of the image and all objects.
    pub fn new(file: &'a File, arch: Arch, id: Uuid, time_seconds: i64) -> Self {
        Self { file, arch, id, time_seconds, descriptors: Vec::new(), end: DATA_OFFSET, reserved: 0 }
    }

    /// Appends a small object, in front of the partition or behind it. `name` is what tells JSON objects apart; others have none. Apptainer expects the
    /// definition file first, then JSON objects in the order of their names.
    ///
    /// # Errors
    /// [`Error::TooManyObjects`] if there would be no descriptor left for a partition, or [`Error::Io`].
    pub fn add_object(&mut self, data_type: DataType, name: &str, bytes: &[u8]) -> Result<(), Error> {
        if self.descriptors.len() + 1 >= TABLE_DESCRIPTORS {
            return Err(Error::TooManyObjects);
        }
        self.file.write_all_at(bytes, self.end)?;
        let size_bytes = bytes.len() as u64;
        let object = self.descriptor(data_type, self.end, size_bytes);
        self.descriptors.push(Descriptor { name: name.to_owned(), ..object });
        self.end += size_bytes;
        Ok(())
    }

    /// Where in the file the objects added so far end.
    pub fn objects_end(&self) -> u64 {
        self.end
    }

    /// Where in the file the partition's bytes must begin. Adding an object may move it.
    pub fn partition_start(&self) -> u64 {
        self.end.max(self.reserved).next_multiple_of(PARTITION_ALIGNMENT_BYTES)
    }

    /// Has the partition begin at `start_bytes` or later: where its bytes are already, if objects are written after them.
    pub fn reserve_partition(&mut self, start_bytes: u64) {
        self.reserved = start_bytes;
    }

    /// Appends the partition, whose `partition_bytes` of squashfs were written at [`SifWriter::partition_start`].
    pub fn add_partition(&mut self, partition_bytes: u64) {
        let start = self.partition_start();
        let partition =
            Partition { filesystem: FilesystemType::Squashfs, kind: PartitionType::PrimarySystem, arch: self.arch };
        let object = self.descriptor(DataType::Partition, start, partition_bytes);
        self.descriptors.push(Descriptor { extra: partition.encode(), ..object });
        self.end = start + partition_bytes;
    }

    /// Completes the image, and returns the length of the file in bytes. Nothing is synced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<u64, Error> {
        self.file.set_len(self.end)?;
        let mut table: Vec<u8> = self.descriptors.iter().flat_map(Descriptor::encode).collect();
        table.resize(TABLE_DESCRIPTORS * DESCRIPTOR_BYTES, 0);
        self.file.write_all_at(&table, TABLE_OFFSET)?;
        self.file.write_all_at(&self.header(), 0)?;
        Ok(self.end)
    }

    fn descriptor(&self, data_type: DataType, offset_bytes: u64, size_bytes: u64) -> Descriptor {
        Descriptor {
            data_type,
            id: u32::try_from(self.descriptors.len()).expect("at most 48") + 1,
            group: Some(GROUP),
            link: None,
            offset_bytes,
            size_bytes,
            padded_bytes: offset_bytes - self.end + size_bytes,
            created_seconds: self.time_seconds,
            modified_seconds: self.time_seconds,
            name: String::new(),
            extra: Box::new([0; 384]),
        }
    }

    fn header(&self) -> Vec<u8> {
        let free = (TABLE_DESCRIPTORS - self.descriptors.len()) as u64;
        let table_bytes = DATA_OFFSET - TABLE_OFFSET;
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(LAUNCH_SCRIPT);
        bytes.extend(MAGIC);
        bytes.extend(VERSION);
        bytes.extend(self.arch.code());
        bytes.extend(self.id.as_bytes());
        bytes.extend(self.time_seconds.to_le_bytes());
        bytes.extend(self.time_seconds.to_le_bytes());
        let data_bytes = self.end - DATA_OFFSET;
        for field in [free, TABLE_DESCRIPTORS as u64, TABLE_OFFSET, table_bytes, DATA_OFFSET, data_bytes] {
            bytes.extend(field.to_le_bytes());
        }
        bytes
    }
}
