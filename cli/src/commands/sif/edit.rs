//! `siphon sif new`, `add`, `del` and `setprim`: a SIF image changed in place.

use super::open;
use crate::args::{SifAddArgs, SifObjectArgs};
use anyhow::{Context, bail};
use siphon_image::sif::append::{Object, append_object, object_start};
use siphon_image::sif::edit;
use siphon_image::sif::{Arch, DataType, FilesystemType, Partition, PartitionType, Sif};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the numbers of data types are behind, in the file.
const DATA_TYPE_BASE: i32 = 0x4000;
/// Partitions begin on a boundary that a loop device can map.
const PARTITION_ALIGNMENT_BYTES: u32 = 4096;
/// Longest name of an object.
const MAX_NAME_BYTES: usize = 128;
/// Bytes of the fingerprint of who signed.
const FINGERPRINT_BYTES: usize = 20;
/// Formats of SBOMs, by their numbers from 1 on.
const SBOM_FORMATS: [&str; 8] = [
    "cyclonedx-json",
    "cyclonedx-xml",
    "github-json",
    "spdx-json",
    "spdx-rdf",
    "spdx-tag-value",
    "spdx-yaml",
    "syft-json",
];

/// Makes an image without objects.
pub(super) fn new(image: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot make {}", image.display());
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o755).open(image).with_context(context)?;
    edit::create(&file, uuid::Uuid::new_v4(), now()).with_context(context)
}

/// Adds a file as an object.
pub(super) fn add(args: &SifAddArgs) -> anyhow::Result<()> {
    let object = object(args)?;
    let (mut file, sif) = open_writable(&args.image)?;
    let context = || format!("cannot add to {}", args.image.display());
    let own = if object.partition.is_some() { PARTITION_ALIGNMENT_BYTES } else { 1 };
    let alignment = args.alignment.filter(|alignment| *alignment > 0).unwrap_or(own);
    let mut data = File::open(&args.object).with_context(|| format!("cannot open {}", args.object.display()))?;
    let start = object_start(&sif, alignment.into());
    file.seek(SeekFrom::Start(start)).with_context(context)?;
    let bytes = std::io::copy(&mut data, &mut file).with_context(context)?;
    append_object(&file, &sif, &object, (start, bytes), now()).with_context(context)?;
    Ok(())
}

/// Takes an object out.
pub(super) fn delete(args: &SifObjectArgs) -> anyhow::Result<()> {
    let (file, sif) = open_writable(&args.image)?;
    edit::delete(&file, &sif, args.id, now()).with_context(|| format!("cannot change {}", args.image.display()))
}

/// Makes a system partition the one that is run.
pub(super) fn set_primary(args: &SifObjectArgs) -> anyhow::Result<()> {
    let (file, sif) = open_writable(&args.image)?;
    edit::set_primary(&file, &sif, args.id, now()).with_context(|| format!("cannot change {}", args.image.display()))
}

/// What the arguments say of the object.
fn object(args: &SifAddArgs) -> anyhow::Result<Object> {
    let data_type = DataType::from_code(DATA_TYPE_BASE + i32::from(args.datatype));
    let name = args.filename.clone().unwrap_or_default();
    if name.len() > MAX_NAME_BYTES {
        bail!("the name of an object has at most {MAX_NAME_BYTES} bytes");
    }
    let mut partition = None;
    let mut extra = Vec::new();
    match data_type {
        DataType::Partition => {
            let arch = args.partarch.and_then(Arch::from_number);
            let (Some(filesystem), Some(kind), Some(arch)) = (args.partfs, args.parttype, arch) else {
                bail!("with partition datatype, --partfs, --parttype and --partarch must be passed");
            };
            let filesystem = FilesystemType::from_code(filesystem.into());
            partition = Some(Partition { filesystem, kind: PartitionType::from_code(kind.into()), arch });
        }
        DataType::Signature => {
            let (Some(hash), Some(entity)) = (args.signhash, &args.signentity) else {
                bail!("with signature datatype, --signhash and --signentity must be passed");
            };
            extra = i32::from(hash).to_le_bytes().to_vec();
            extra.extend(fingerprint(entity)?);
        }
        DataType::Sbom => {
            let format = args.sbomformat.as_deref().unwrap_or_default();
            let Some(number) = SBOM_FORMATS.iter().position(|known| *known == format) else {
                bail!("with SBOM datatype, --sbomformat must be one of {}", SBOM_FORMATS.join(", "));
            };
            extra = i32::try_from(number + 1)?.to_le_bytes().to_vec();
        }
        _ => {}
    }
    let given = |number: u32| (number > 0).then_some(number);
    Ok(Object { data_type, name, group: given(args.groupid), link: given(args.link), partition, extra })
}

fn fingerprint(text: &str) -> anyhow::Result<Vec<u8>> {
    if text.len() != 2 * FINGERPRINT_BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        bail!("--signentity takes a fingerprint of {} hexadecimal digits, not {text:?}", 2 * FINGERPRINT_BYTES);
    }
    let byte = |at: usize| Ok(u8::from_str_radix(&text[2 * at..2 * at + 2], 16)?);
    (0..FINGERPRINT_BYTES).map(byte).collect()
}

fn open_writable(path: &Path) -> anyhow::Result<(File, Sif)> {
    let sif = open(path)?;
    let file = File::options().read(true).write(true).open(path);
    Ok((file.with_context(|| format!("cannot write to {}", path.display()))?, sif))
}

fn now() -> i64 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
