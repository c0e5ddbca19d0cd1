//! Makes empty SIF images, and takes objects out of those that exist, as siftool does.

use super::append::{ARCH_OFFSET, MODIFIED_OFFSET, USED_OFFSET, header_fields};
use super::descriptor::{DESCRIPTOR_BYTES, Descriptor, Partition, PartitionType};
use super::writer::{DATA_OFFSET, TABLE_DESCRIPTORS, TABLE_OFFSET};
use super::{Arch, Error, HEADER_BYTES, MAGIC, MAGIC_OFFSET, MAX_DESCRIPTORS, Sif, VERSION};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use uuid::Uuid;

/// Why an image could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It has no such object.
    #[error("object not found")]
    NoObject,
    /// The object is something else.
    #[error("data object not a partition")]
    NoPartition,
    /// Only a root file system can become the primary one.
    #[error("object {0} is not a system partition")]
    NoSystem(u32),
    /// The file is not the SIF that it was.
    #[error(transparent)]
    Sif(#[from] Error),
    /// The file could not be read or written.
    #[error("cannot change the SIF image")]
    Io(#[from] io::Error),
}

/// Makes an image without objects in `file`, which is empty, at `time_seconds` since 1970.
///
/// # Errors
/// If the file cannot be written.
pub fn create(file: &File, id: Uuid, time_seconds: i64) -> io::Result<()> {
    let mut header = vec![0; MAGIC_OFFSET];
    header.extend(MAGIC);
    header.extend(VERSION);
    header.extend(Arch::UNKNOWN.code());
    header.extend(id.as_bytes());
    let total = TABLE_DESCRIPTORS as u64;
    let seconds = time_seconds.cast_unsigned();
    for field in [seconds, seconds, total, total, TABLE_OFFSET, DATA_OFFSET - TABLE_OFFSET, DATA_OFFSET, 0] {
        header.extend(field.to_le_bytes());
    }
    debug_assert_eq!(header.len(), HEADER_BYTES);
    file.write_all_at(&header, 0)?;
    file.set_len(DATA_OFFSET)?;
    file.sync_all()
}

/// Takes the object `id` out of the table of the SIF `sif` in `file`. Its bytes stay where they are, for later objects.
///
/// # Errors
/// [`EditError::NoObject`], or if the file cannot be read or written.
pub fn delete(file: &File, sif: &Sif, id: u32, time_seconds: i64) -> Result<(), EditError> {
    let descriptor = sif.descriptors().iter().find(|object| object.id == id).ok_or(EditError::NoObject)?;
    let slot = slot(file, id)?;
    file.write_all_at(&[0; DESCRIPTOR_BYTES], slot)?;
    if is_primary(descriptor.partition()) {
        file.write_all_at(&Arch::UNKNOWN.code(), ARCH_OFFSET)?;
    }
    let [_, free, .., data_offset, _] = header_fields(file)?;
    let others = sif.descriptors().iter().filter(|object| object.id != id);
    let end = others.map(|object| object.offset_bytes + object.size_bytes).max().unwrap_or(0);
    let data_bytes = i64::try_from(end).unwrap_or(i64::MAX).saturating_sub(data_offset).max(0);
    file.write_all_at(&time_seconds.to_le_bytes(), MODIFIED_OFFSET)?;
    file.write_all_at(&free.saturating_add(1).to_le_bytes(), MODIFIED_OFFSET + 8)?;
    file.write_all_at(&data_bytes.to_le_bytes(), MODIFIED_OFFSET + 48)?;
    Ok(file.sync_all()?)
}

/// Makes the partition `id` of the SIF `sif` in `file` the one that is run; the present one becomes an ordinary one.
///
/// # Errors
/// [`EditError::NoObject`], [`EditError::NoPartition`] or [`EditError::NoSystem`], or if the file cannot be read or written.
pub fn set_primary(file: &File, sif: &Sif, id: u32, time_seconds: i64) -> Result<(), EditError> {
    let chosen = sif.descriptors().iter().find(|object| object.id == id).ok_or(EditError::NoObject)?;
    let partition = chosen.partition().ok_or(EditError::NoPartition)?;
    match partition.kind {
        PartitionType::PrimarySystem => return Ok(()),
        PartitionType::System => {}
        _ => return Err(EditError::NoSystem(id)),
    }
    let put = |object: &Descriptor, partition: Partition, kind| -> Result<(), EditError> {
        let slot = slot(file, object.id)?;
        let extra = Partition { kind, ..partition }.encode();
        let changed = Descriptor { extra, modified_seconds: time_seconds, ..object.clone() };
        Ok(file.write_all_at(&changed.encode(), slot)?)
    };
    // First the one that was: two at once no reader knows what to do with.
    if let Some((object, present)) = sif.primary_partition().and_then(|object| Some((object, object.partition()?))) {
        put(object, present, PartitionType::System)?;
    }
    put(chosen, partition, PartitionType::PrimarySystem)?;
    file.write_all_at(&partition.arch.code(), ARCH_OFFSET)?;
    file.write_all_at(&time_seconds.to_le_bytes(), MODIFIED_OFFSET)?;
    Ok(file.sync_all()?)
}

fn is_primary(partition: Option<Partition>) -> bool {
    partition.is_some_and(|partition| partition.kind == PartitionType::PrimarySystem)
}

/// Where in the file the descriptor of an object is.
fn slot(file: &File, id: u32) -> Result<u64, EditError> {
    let [_, _, total, table_offset, ..] = header_fields(file)?;
    let cannot_be = |_| Error::Table { total, offset: table_offset };
    let count = u64::try_from(total).map_err(cannot_be)?.min(MAX_DESCRIPTORS);
    let table = u64::try_from(table_offset).map_err(cannot_be)?;
    for index in 0..count {
        let offset = table.saturating_add(index * DESCRIPTOR_BYTES as u64);
        let mut raw = [0; DESCRIPTOR_BYTES];
        file.read_exact_at(&mut raw, offset)?;
        if raw[USED_OFFSET] != 0 && Descriptor::decode(&raw)?.is_some_and(|object| object.id == id) {
            return Ok(offset);
        }
    }
    Err(EditError::NoObject)
}
