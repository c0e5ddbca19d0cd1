//! `siphon sif`: the objects of a SIF image, as siftool shows them.

mod edit;

use crate::args::{SifObjectArgs, SifVerb};
use crate::report::{Report, utc};
use anyhow::{Context, anyhow};
use siphon_image::read_at::{FileAt, ReadAt};
use siphon_image::sif::{DataType, Descriptor, FilesystemType, Link, PartitionType, Sif};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Bytes that are handed on at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Names of the hashes of signatures, by their numbers from 1 on.
const HASHES: [&str; 5] = ["SHA-256", "SHA-384", "SHA-512", "BLAKE2s-256", "BLAKE2b-256"];

/// Does what `verb` says.
///
/// # Errors
/// If the file is no SIF, or has no such object.
pub fn sif(verb: &SifVerb, report: Report) -> anyhow::Result<()> {
    match verb {
        SifVerb::List { image } => list(&open(image)?, report),
        SifVerb::Header { image } => header(&open(image)?, report),
        SifVerb::Info(args) => {
            let sif = open(&args.image)?;
            info(find(&sif, args)?, report)
        }
        SifVerb::Dump(args) => {
            let sif = open(&args.image)?;
            dump(&sif, find(&sif, args)?, report)
        }
        SifVerb::New { image } => edit::new(image),
        SifVerb::Add(args) => edit::add(args),
        SifVerb::Del(args) => edit::delete(args),
        SifVerb::Setprim(args) => edit::set_primary(args),
    }
}

fn open(path: &Path) -> anyhow::Result<Sif> {
    let context = || format!("cannot open {}", path.display());
    let bytes = FileAt::new(File::open(path).with_context(context)?).with_context(context)?;
    Sif::open(Arc::new(bytes)).with_context(context)
}

fn find<'a>(sif: &'a Sif, args: &SifObjectArgs) -> anyhow::Result<&'a Descriptor> {
    let found = sif.descriptors().iter().find(|object| object.id == args.id);
    found.ok_or_else(|| {
        anyhow!("{} has no object {}; \"siphon sif list\" shows those it has", args.image.display(), args.id)
    })
}

fn list(sif: &Sif, report: Report) -> anyhow::Result<()> {
    let rule = "-".repeat(78);
    report.line(&rule)?;
    report.line("ID   |GROUP   |LINK    |SIF POSITION (start-end)  |TYPE")?;
    report.line(&rule)?;
    for object in sif.descriptors() {
        let group = object.group.map_or("NONE".to_owned(), |group| group.to_string());
        let link = match object.link {
            None => "NONE".to_owned(),
            Some(Link::Object(id)) => id.to_string(),
            Some(Link::Group(group)) => format!("{group:<4}(G)"),
        };
        let position = format!("{}-{}", object.offset_bytes, object.offset_bytes.saturating_add(object.size_bytes));
        let kind = match (object.partition(), hash(object)) {
            (Some(found), _) => {
                let (filesystem, kind) = (filesystem_name(found.filesystem), partition_name(found.kind));
                format!("FS ({filesystem}/{kind}/{})", found.arch.name())
            }
            (None, Some(hash)) => format!("Signature ({hash})"),
            (None, None) => type_name(object.data_type).to_owned(),
        };
        report.line(format_args!("{:<5}|{group:<8}|{link:<8}|{position:<26}|{kind}", object.id))?;
    }
    Ok(())
}

fn header(sif: &Sif, report: Report) -> anyhow::Result<()> {
    let header = sif.header();
    let [free, total, table, table_bytes, data, data_bytes] = header.layout;
    let lines = [
        ("Launch Script:", Some(header.launch_script.clone()).filter(|script| !script.is_empty())),
        ("Version:", Some("01".to_owned())),
        ("Primary Architecture:", Some(header.arch.name().to_owned())),
        ("ID:", Some(header.id.to_string()).filter(|_| !header.id.is_nil())),
        ("Created At:", time(header.created_seconds)),
        ("Modified At:", time(header.modified_seconds)),
        ("Descriptors Free:", Some(free.to_string())),
        ("Descriptors Total:", Some(total.to_string())),
        ("Descriptors Offset:", Some(table.to_string())),
        ("Descriptors Size:", Some(readable(table_bytes))),
        ("Data Offset:", Some(data.to_string())),
        ("Data Size:", Some(readable(data_bytes))),
    ];
    for (label, value) in lines {
        if let Some(value) = value {
            report.line(format_args!("{label:<22}{value}"))?;
        }
    }
    Ok(())
}

fn info(object: &Descriptor, report: Report) -> anyhow::Result<()> {
    let link = match object.link {
        None => "NONE".to_owned(),
        Some(Link::Object(id)) => id.to_string(),
        Some(Link::Group(group)) => format!("{group} (G)"),
    };
    let mut lines = vec![
        ("Data Type:", type_name(object.data_type).to_owned()),
        ("ID:", object.id.to_string()),
        ("Group ID:", object.group.map_or("NONE".to_owned(), |group| group.to_string())),
        ("Linked ID:", link),
        ("Offset:", object.offset_bytes.to_string()),
        ("Size:", object.size_bytes.to_string()),
    ];
    lines.extend(time(object.created_seconds).map(|time| ("Created At:", time)));
    lines.extend(time(object.modified_seconds).map(|time| ("Modified At:", time)));
    lines.extend(Some(("Name:", object.name.clone())).filter(|(_, name)| !name.is_empty()));
    if let Some(partition) = object.partition() {
        lines.push(("Filesystem Type:", filesystem_name(partition.filesystem).to_owned()));
        lines.push(("Partition Type:", partition_name(partition.kind).to_owned()));
        lines.push(("Architecture:", partition.arch.name().to_owned()));
    }
    lines.extend(hash(object).map(|hash| ("Hash Type:", hash.to_owned())));
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 2;
    for (label, value) in lines {
        report.line(format_args!("  {label:<width$}{value}"))?;
    }
    Ok(())
}

fn dump(sif: &Sif, object: &Descriptor, report: Report) -> anyhow::Result<()> {
    let bytes = sif.object(object);
    let mut offset = 0;
    while offset < bytes.len() {
        let length = (bytes.len() - offset).min(PIECE_BYTES);
        let mut piece = vec![0; usize::try_from(length).expect("a piece is 1 MiB")];
        bytes.read_exact_at(&mut piece, offset).with_context(|| format!("cannot read object {}", object.id))?;
        report.bytes(&piece)?;
        offset += length;
    }
    Ok(())
}

/// `2026-11-25 01:19:33 +0000 UTC`; nothing for Go's zero time, which images without a time have.
fn time(seconds: i64) -> Option<String> {
    const GO_ZERO_SECONDS: i64 = -62_135_596_800;
    // Beyond are years of six digits, which no clock shows.
    (GO_ZERO_SECONDS + 1..1 << 40).contains(&seconds).then(|| format!("{} +0000 UTC", utc(seconds)))
}

/// In whole units of 1024, rounded to the nearest.
fn readable(bytes: i64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let bytes = bytes.max(0);
    let index = usize::try_from(bytes.checked_ilog2().unwrap_or(0) / 10).expect("at most 6");
    let unit = 1_i64 << (10 * index);
    format!("{} {}", bytes / unit + i64::from(bytes % unit >= unit - unit / 2), units[index])
}

fn type_name(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Deffile => "Def.FILE",
        DataType::EnvVar => "Env.Vars",
        DataType::Labels => "JSON.Labels",
        DataType::Partition => "FS",
        DataType::Signature => "Signature",
        DataType::GenericJson => "JSON.Generic",
        DataType::Generic => "Generic/Raw",
        DataType::CryptoMessage => "Cryptographic Message",
        DataType::Sbom => "SBOM",
        DataType::OciRootIndex => "OCI.RootIndex",
        DataType::OciBlob => "OCI.Blob",
        DataType::Unknown(_) => "Unknown",
    }
}

fn filesystem_name(filesystem: FilesystemType) -> &'static str {
    match filesystem {
        FilesystemType::Squashfs => "Squashfs",
        FilesystemType::Ext3 => "Ext3",
        FilesystemType::Archive => "Archive",
        FilesystemType::Raw => "Raw",
        FilesystemType::EncryptedSquashfs => "Encrypted squashfs",
        FilesystemType::GocryptfsSquashfs => "Gocryptfs squashfs",
        FilesystemType::Unknown(_) => "Unknown fs-type",
    }
}

fn partition_name(kind: PartitionType) -> &'static str {
    match kind {
        PartitionType::System => "System",
        PartitionType::PrimarySystem => "*System",
        PartitionType::Data => "Data",
        PartitionType::Overlay => "Overlay",
        PartitionType::Unknown(_) => "Unknown part-type",
    }
}

/// The hash that a signature is of.
fn hash(object: &Descriptor) -> Option<&'static str> {
    let number = i32::from_le_bytes(*object.extra.first_chunk()?);
    let known = usize::try_from(number).ok().and_then(|number| HASHES.get(number.checked_sub(1)?));
    (object.data_type == DataType::Signature).then(|| known.copied().unwrap_or("Unknown hash-type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_siftool_does() {
        let cases = [(28_080, "27 KiB"), (4_966, "5 KiB"), (3_191_755_344, "3 GiB"), (0, "0 B"), (1023, "1023 B")];
        for (bytes, expected) in cases {
            assert_eq!(readable(bytes), expected);
        }
        assert_eq!(readable(i64::MAX), "8 EiB");
    }
}
