//! Adds objects to a SIF that exists, as apptainer does with an overlay and siftool with anything.
//!
//! The bytes of the object are behind all others before the table says that they are there: a crash in between leaves
//! the image as it was, with unused bytes at its end.

use super::descriptor::{DESCRIPTOR_BYTES, DataType, Descriptor, EXTRA_BYTES, Fields, Link, Partition, PartitionType};
use super::{Error, MAX_DESCRIPTORS, Sif};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Partitions begin on a boundary that a loop device can map.
const ALIGNMENT_BYTES: u64 = 4096;
/// Where the header has the time of the last change; the fields from there on are of 8 bytes.
pub(super) const MODIFIED_OFFSET: u64 = 72;
/// Which of the header's fields of layout says where objects begin.
const DATA_OFFSET_FIELD: usize = 4;
/// Where in a descriptor it says whether it is used.
pub(super) const USED_OFFSET: usize = 4;

/// Where the header has the architecture of the primary partition.
pub(super) const ARCH_OFFSET: u64 = 45;

/// What an object to be added is.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its type.
    pub data_type: DataType,
    /// Its name, of at most 128 bytes; mostly empty.
    pub name: String,
    /// The group that it belongs to.
    pub group: Option<u32>,
    /// The object that it is about.
    pub link: Option<u32>,
    /// What it holds, if it is a partition.
    pub partition: Option<Partition>,
    /// What its type says beyond that, of at most 384 bytes, if it is none.
    pub extra: Vec<u8>,
}

/// Why an object could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// All descriptors are used.
    #[error("the SIF image has no room for another object in its table")]
    Full,
    /// There is a primary partition already.
    #[error("image already contains a primary partition")]
    Primary,
    /// The file is not the SIF that it was.
    #[error(transparent)]
    Sif(#[from] Error),
    /// The file could not be read or written.
    #[error("cannot add to the SIF image")]
    Io(#[from] io::Error),
}

/// Where in `file`, of `len` bytes, a new partition has to begin.
pub fn partition_start(len: u64) -> u64 {
    len.next_multiple_of(ALIGNMENT_BYTES)
}

/// Where the next object has to begin: behind the last one, on a multiple of `alignment_bytes`, which is not 0.
pub fn object_start(sif: &Sif, alignment_bytes: u64) -> u64 {
    let ends = sif.descriptors().iter().map(|descriptor| descriptor.offset_bytes + descriptor.size_bytes);
    let start = u64::try_from(sif.header().layout[DATA_OFFSET_FIELD]).unwrap_or_default();
    ends.fold(start, u64::max).next_multiple_of(alignment_bytes)
}

/// Enters a partition of `size_bytes` at `start_bytes`, which [`partition_start`] said and where its bytes are already,
/// into the table of the SIF `sif` in `file`. Returns its id. The file is synced before and after.
///
/// # Errors
/// Any [`AppendError`]; the image is then as it was, unless the disk failed.
pub fn append_partition(
    file: &File,
    sif: &Sif,
    partition: Partition,
    group: Option<u32>,
    place: (u64, u64),
    time_seconds: i64,
) -> Result<u32, AppendError> {
    let (data_type, name, extra) = (DataType::Partition, String::new(), Vec::new());
    let object = Object { data_type, name, group, link: None, partition: Some(partition), extra };
    append_object(file, sif, &object, place, time_seconds)
}

/// Enters an object of `size_bytes` at `start_bytes`, where its bytes are already, into the table of the SIF `sif` in `file`.
/// Returns its id. The file is synced before and after.
///
/// # Errors
/// Any [`AppendError`]; the image is then as it was, unless the disk failed.
pub fn append_object(
    file: &File,
    sif: &Sif,
    object: &Object,
    (start_bytes, size_bytes): (u64, u64),
    time_seconds: i64,
) -> Result<u32, AppendError> {
    let primary = object.partition.filter(|partition| partition.kind == PartitionType::PrimarySystem);
    if primary.is_some() && sif.primary_partition().is_some() {
        return Err(AppendError::Primary);
    }
    file.sync_all()?;
    let [_, free, total, table_offset, _, data_offset, _] = header_fields(file)?;
    let cannot_be = |_| Error::Table { total, offset: table_offset };
    let count = u64::try_from(total).map_err(cannot_be)?.min(MAX_DESCRIPTORS);
    let table = u64::try_from(table_offset).map_err(cannot_be)?;
    let mut slot = None;
    for index in 0..count {
        let mut raw = [0; DESCRIPTOR_BYTES];
        let offset = table + index * DESCRIPTOR_BYTES as u64;
        file.read_exact_at(&mut raw, offset)?;
        if raw[USED_OFFSET] == 0 {
            slot = Some((index, offset));
            break;
        }
    }
    let (index, slot_offset) = slot.ok_or(AppendError::Full)?;
    let is_taken = |id: u32| sif.descriptors().iter().any(|descriptor| descriptor.id == id);
    let id = u32::try_from(index).expect("below MAX_DESCRIPTORS") + 1;
    let highest = sif.descriptors().iter().map(|descriptor| descriptor.id).max().unwrap_or(0);
    let id = if is_taken(id) { highest.saturating_add(1) } else { id };
    let end = sif.descriptors().iter().map(|descriptor| descriptor.offset_bytes + descriptor.size_bytes).max();
    let mut extra = Box::new([0; EXTRA_BYTES]);
    extra.iter_mut().zip(&object.extra).for_each(|(byte, given)| *byte = *given);
    let descriptor = Descriptor {
        data_type: object.data_type,
        id,
        group: object.group,
        link: object.link.map(Link::Object),
        offset_bytes: start_bytes,
        size_bytes,
        padded_bytes: start_bytes.saturating_sub(end.unwrap_or(start_bytes)) + size_bytes,
        created_seconds: time_seconds,
        modified_seconds: time_seconds,
        name: object.name.clone(),
        extra: object.partition.map_or(extra, Partition::encode),
    };
    file.write_all_at(&descriptor.encode(), slot_offset)?;
    let data_bytes = i64::try_from(start_bytes + size_bytes).unwrap_or(i64::MAX).saturating_sub(data_offset);
    if let Some(partition) = primary {
        file.write_all_at(&partition.arch.code(), ARCH_OFFSET)?;
    }
    file.write_all_at(&time_seconds.to_le_bytes(), MODIFIED_OFFSET)?;
    file.write_all_at(&(free - 1).to_le_bytes(), MODIFIED_OFFSET + 8)?;
    file.write_all_at(&data_bytes.to_le_bytes(), MODIFIED_OFFSET + 48)?;
    file.sync_all()?;
    Ok(id)
}

/// Time of the last change, free descriptors, all descriptors, where their table begins, how long it is, where objects begin,
/// how long they are together.
pub(super) fn header_fields(file: &File) -> io::Result<[i64; 7]> {
    let mut header = [0; 56];
    file.read_exact_at(&mut header, MODIFIED_OFFSET)?;
    let mut fields = Fields::new(&header);
    Ok([(); 7].map(|()| fields.i64()))
}
