//! SIF, the Singularity Image Format: a header, a table of descriptors, and the objects they point at.
//!
//! ```text
//! header (128 bytes) | descriptors (585 bytes each, usually 48 at 4096) | objects, partitions on 4096-byte boundaries
//! ```
//!
//! All integers are little-endian and nothing is padded. Older writers aligned everything to 4096 and began at 32768, so
//! offset and size of a descriptor are the only truth about where its object lies. Signatures are not checked here.

pub mod append;
mod descriptor;
pub mod edit;
pub mod writer;

use crate::read_at::{ReadAt, Window};
use std::io;
use std::sync::Arc;
use uuid::Uuid;

pub use descriptor::{Arch, DataType, Descriptor, FilesystemType, Link, Partition, PartitionType};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// Where the magic lies, behind the launch script.
pub const MAGIC_OFFSET: usize = 32;
/// Says that a file is a SIF.
pub const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
/// The only version there is.
const VERSION: &[u8; 3] = b"01\0";
/// Descriptors that a table may have: far more than the 48 that writers reserve, and 2.4 MB to read.
const MAX_DESCRIPTORS: u64 = 4096;

/// What the header says of the whole image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Architecture of the primary partition.
    pub arch: Arch,
    /// Identity; nil in reproducible images.
    pub id: Uuid,
    /// Creation, in seconds since 1970.
    pub created_seconds: i64,
    /// Last change, in seconds since 1970.
    pub modified_seconds: i64,
    /// What makes the image a program: `#!/usr/bin/env run-singularity`; empty if nothing does.
    pub launch_script: String,
    /// Free descriptors, all descriptors, where their table begins and how long it is, where objects begin and how long they
    /// are together: as the image says, unchecked.
    pub layout: [i64; 6],
}

/// An opened SIF. Every object of it lies within the file.
#[derive(Debug, Clone)]
pub struct Sif {
    bytes: Arc<dyn ReadAt>,
    header: Header,
    descriptors: Vec<Descriptor>,
}

/// Why a file is no usable SIF.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The magic is missing.
    #[error("not a SIF image")]
    NotSif,
    /// Another version of the format.
    #[error("SIF version {0:?} is not known, only \"01\" is")]
    Version(String),
    /// The table of descriptors makes no sense.
    #[error("the SIF header places {total} descriptors at byte {offset}, which cannot be")]
    Table {
        /// `DescriptorsTotal`.
        total: i64,
        /// `DescriptorsOffset`.
        offset: i64,
    },
    /// An object has a negative place or size.
    #[error("SIF object {id} lies at byte {offset} with size {size}, which cannot be")]
    Object {
        /// Its id.
        id: u32,
        /// Its offset.
        offset: i64,
        /// Its size.
        size: i64,
    },
    /// The file ends before what the header or a descriptor promises.
    #[error("the SIF image is truncated: {what} ends at byte {end}, the file at byte {len}")]
    Truncated {
        /// What is cut off.
        what: String,
        /// Where it should end.
        end: u64,
        /// Where the file ends.
        len: u64,
    },
    /// The storage below failed.
    #[error("cannot read the SIF image")]
    Io(#[from] io::Error),
}

/// Whether a file with these first bytes is a SIF.
pub fn is_sif(head: &[u8]) -> bool {
    head.get(MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(MAGIC))
}

impl Sif {
    /// Reads the header and all descriptors of `bytes`.
    ///
    /// # Errors
    /// See [`Error`]. An object that reaches past the end is one, since then the file is incomplete.
    pub fn open(bytes: Arc<dyn ReadAt>) -> Result<Self, Error> {
        let mut raw = [0; HEADER_BYTES];
        if bytes.len() < HEADER_BYTES as u64 {
            return Err(Error::NotSif);
        }
        bytes.read_exact_at(&mut raw, 0)?;
        if !is_sif(&raw) {
            return Err(Error::NotSif);
        }
        if raw[42..45] != *VERSION {
            return Err(Error::Version(String::from_utf8_lossy(&raw[42..45]).trim_end_matches('\0').to_owned()));
        }
        let mut fields = descriptor::Fields::new(&raw[45..]);
        let header = Header {
            arch: Arch::from_code(fields.array()),
            id: Uuid::from_bytes(fields.array()),
            created_seconds: fields.i64(),
            modified_seconds: fields.i64(),
            launch_script: launch_script(&raw[..MAGIC_OFFSET]),
            layout: std::array::from_fn(|_| fields.i64()),
        };
        let [_, total, offset, ..] = header.layout;
        let descriptors = read_table(bytes.as_ref(), total, offset)?;
        Ok(Self { bytes, header, descriptors })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All objects, in the order of their descriptors.
    pub fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    /// The partition with the root file system, of whatever file system type.
    pub fn primary_partition(&self) -> Option<&Descriptor> {
        self.descriptors.iter().find(|descriptor| {
            matches!(descriptor.partition(), Some(Partition { kind: PartitionType::PrimarySystem, .. }))
        })
    }

    /// The first object of this type.
    pub fn find(&self, data_type: DataType) -> Option<&Descriptor> {
        self.descriptors.iter().find(|descriptor| descriptor.data_type == data_type)
    }

    /// The first object of this type and name, such as a generic JSON object `oci-config.json`.
    pub fn find_named(&self, data_type: DataType, name: &str) -> Option<&Descriptor> {
        self.descriptors.iter().find(|descriptor| descriptor.data_type == data_type && descriptor.name == name)
    }

    /// The bytes of an object of this image. Those of a descriptor that is another image's may be cut off or empty.
    pub fn object(&self, descriptor: &Descriptor) -> Window {
        let start = descriptor.offset_bytes.min(self.bytes.len());
        let size = descriptor.size_bytes.min(self.bytes.len() - start);
        Window::new(Arc::clone(&self.bytes), start, size).expect("clamped to the file")
    }
}

fn launch_script(raw: &[u8]) -> String {
    let text = raw.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).trim_end().to_owned()
}

fn read_table(bytes: &dyn ReadAt, total: i64, offset: i64) -> Result<Vec<Descriptor>, Error> {
    let cannot_be = || Error::Table { total, offset };
    let count = u64::try_from(total).ok().filter(|count| *count <= MAX_DESCRIPTORS).ok_or_else(cannot_be)?;
    let start = u64::try_from(offset).map_err(|_| cannot_be())?;
    let table_bytes = count * descriptor::DESCRIPTOR_BYTES as u64;
    let end = start.checked_add(table_bytes).ok_or_else(cannot_be)?;
    if end > bytes.len() {
        return Err(Error::Truncated { what: "the table of objects".into(), end, len: bytes.len() });
    }
    let mut table = vec![0; usize::try_from(table_bytes).map_err(|_| cannot_be())?];
    bytes.read_exact_at(&mut table, start)?;
    let mut descriptors = Vec::new();
    for raw in table.chunks_exact(descriptor::DESCRIPTOR_BYTES) {
        let Some(descriptor) = Descriptor::decode(raw)? else { continue };
        let end = descriptor.offset_bytes.checked_add(descriptor.size_bytes).ok_or_else(cannot_be)?;
        if end > bytes.len() {
            return Err(Error::Truncated { what: format!("object {}", descriptor.id), end, len: bytes.len() });
        }
        descriptors.push(descriptor);
    }
    Ok(descriptors)
}
