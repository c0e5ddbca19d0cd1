//! Adds a partition to a SIF that exists, as apptainer does with an overlay.
//!
//! The bytes of the partition are behind all others before the table says that they are there: a crash in between leaves
//! the image as it was, with unused bytes at its end.

use super::descriptor::{DESCRIPTOR_BYTES, DataType, Descriptor, Fields, Partition};
use super::{Error, MAX_DESCRIPTORS, Sif};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Partitions begin on a boundary that a loop device can map.
const ALIGNMENT_BYTES: u64 = 4096;
/// Where the header has the time of the last change; the fields from there on are of 8 bytes.
const MODIFIED_OFFSET: u64 = 72;
/// Where in a descriptor it says whether it is used.
const USED_OFFSET: usize = 4;

/// Why a partition could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// All descriptors are used.
    #[error("the SIF image has no room for another object in its table")]
    Full,
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
    (start_bytes, size_bytes): (u64, u64),
    time_seconds: i64,
) -> Result<u32, AppendError> {
    file.sync_all()?;
    let mut header = [0; 56];
    file.read_exact_at(&mut header, MODIFIED_OFFSET)?;
    let mut fields = Fields::new(&header);
    let [_modified, free, total, table_offset, _table_bytes, data_offset, _data_bytes] = [(); 7].map(|()| fields.i64());
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
    let descriptor = Descriptor {
        data_type: DataType::Partition,
        id,
        group,
        link: None,
        offset_bytes: start_bytes,
        size_bytes,
        padded_bytes: start_bytes.saturating_sub(end.unwrap_or(start_bytes)) + size_bytes,
        created_seconds: time_seconds,
        modified_seconds: time_seconds,
        name: String::new(),
        extra: partition.encode(),
    };
    file.write_all_at(&descriptor.encode(), slot_offset)?;
    let data_bytes = i64::try_from(start_bytes + size_bytes).unwrap_or(i64::MAX).saturating_sub(data_offset);
    file.write_all_at(&time_seconds.to_le_bytes(), MODIFIED_OFFSET)?;
    file.write_all_at(&(free - 1).to_le_bytes(), MODIFIED_OFFSET + 8)?;
    file.write_all_at(&data_bytes.to_le_bytes(), MODIFIED_OFFSET + 48)?;
    file.sync_all()?;
    Ok(id)
}
