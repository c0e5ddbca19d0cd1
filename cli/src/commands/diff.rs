//! `siphon diff`: what a sandbox changes of its image, or what differs between two images.

use super::ls::kind_name;
use crate::args::DiffArgs;
use crate::build::own_what_is_ours;
use crate::report::{Report, human_bytes};
use crate::settings::Common;
use anyhow::{Context, bail};
use serde::Serialize;
use siphon_image::tree::{Attr, Kind};
use siphon_overlay::diff::{Apart, Change, Changes, Error as DiffError};
use siphon_overlay::upper::Upper;
use siphon_overlay::view::View;
use std::os::unix::ffi::OsStrExt;

/// Lists the changes.
///
/// # Errors
/// If an image cannot be opened or read, or a lone one is no sandbox.
pub fn diff(args: &DiffArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let owners = own_what_is_ours();
    let old = super::open_image(&args.old, common, report)?;
    let Some(new) = &args.new else {
        let Some(directory) = &old.upper_dir else {
            bail!("{} is no sandbox; name a second image to compare it with", args.old);
        };
        let context = || format!("cannot use the layer of {}", args.old);
        let upper = Upper::open(directory).with_context(context)?;
        let places = upper.places().with_context(context)?;
        let view = View::new(old.lower.clone(), Some(upper)).with_context(context)?;
        return tell(Changes::of_layer(old.lower.as_ref(), &view, owners).without(places), args.json, report);
    };
    let (old, new) = (old.tree()?, super::open_tree(new, common, report)?);
    tell(Changes::between(old.as_ref(), new.as_ref(), owners), args.json, report)
}

fn tell(changes: impl Iterator<Item = Result<Change, DiffError>>, json: bool, report: Report) -> anyhow::Result<()> {
    let mut totals = KINDS.map(|kind| (kind, 0_u64, 0_u64));
    for change in changes {
        let change = change?;
        let kind = kind_of(&change);
        let bytes = bytes_of(&change);
        for total in totals.iter_mut().filter(|total| total.0 == kind) {
            total.1 += 1;
            total.2 = total.2.saturating_add(bytes.unwrap_or(0));
        }
        if json {
            report.line(serde_json::to_string(&line(&change, kind, bytes))?)?;
        } else {
            let bytes = bytes.map(human_bytes).unwrap_or_default();
            report.bytes(format!("{} {bytes:>10} ", kind.letter()).as_bytes())?;
            report.bytes(change.path.as_os_str().as_bytes())?;
            let is_directory = change.new.or(change.old).is_some_and(|attr| attr.kind == Kind::Directory);
            report.bytes(if is_directory && change.path.as_os_str() != "/" { b"/\n" } else { b"\n" })?;
        }
    }
    let told = totals.map(|(kind, count, bytes)| match kind {
        ChangeKind::Metadata => format!("{count} with other metadata only"),
        _ => format!("{count} {} ({})", kind.word(), human_bytes(bytes)),
    });
    report.info(told.join(", "));
    Ok(())
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChangeKind {
    Added,
    Changed,
    Deleted,
    Metadata,
}

const KINDS: [ChangeKind; 4] = [ChangeKind::Added, ChangeKind::Changed, ChangeKind::Deleted, ChangeKind::Metadata];

impl ChangeKind {
    fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
            Self::Metadata => 'M',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Deleted => "deleted",
            Self::Metadata => "metadata",
        }
    }
}

fn kind_of(change: &Change) -> ChangeKind {
    match (&change.old, &change.new) {
        (None, _) => ChangeKind::Added,
        (_, None) => ChangeKind::Deleted,
        _ if change.apart.content => ChangeKind::Changed,
        _ => ChangeKind::Metadata,
    }
}

/// Bytes of a file that came, went or is another now.
fn bytes_of(change: &Change) -> Option<u64> {
    let is_file = |attr: &Attr| attr.kind == Kind::File;
    let attr = change.new.or(change.old).filter(is_file)?;
    (kind_of(change) != ChangeKind::Metadata).then_some(attr.size)
}

/// One line of JSON.
#[derive(Debug, Serialize)]
struct Line {
    path: String,
    change: &'static str,
    /// What is there now, or was if nothing is.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Length of a file before.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_bytes: Option<u64>,
    /// What differs of what is in both.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differs: Vec<&'static str>,
}

fn line(change: &Change, kind: ChangeKind, bytes: Option<u64>) -> Line {
    let Apart { content, mode, owner, time, xattrs } = change.apart;
    let differs = [(content, "content"), (mode, "mode"), (owner, "owner"), (time, "time"), (xattrs, "xattrs")];
    Line {
        path: change.path.display().to_string(),
        change: kind.word(),
        kind: change.new.or(change.old).map_or("", |attr| kind_name(attr.kind)),
        bytes,
        old_bytes: change.old.filter(|old| change.new.is_some() && old.kind == Kind::File).map(|old| old.size),
        differs: differs.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect(),
    }
}
