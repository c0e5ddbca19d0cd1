//! `siphon ls`: files of an image, without mounting it.

use crate::args::LsArgs;
use crate::report::{Report, utc};
use crate::settings::Common;
use anyhow::{Context, bail};
use serde::Serialize;
use siphon_image::path::resolve;
use siphon_image::tree::{Attr, Kind, NodeId, Tree};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How deep `-R` goes: no image that a kernel mounts has longer paths (`PATH_MAX` 4096, two bytes a level).
const MAX_DEPTH: usize = 2048;

/// One line.
#[derive(Debug, Serialize)]
struct Line {
    path: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    links: u32,
    mtime: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// Lists `args.paths`.
///
/// # Errors
/// If the image cannot be opened or a path does not exist in it.
pub fn ls(args: &LsArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let tree = super::open_tree(&args.image, common, report)?;
    let tree = tree.as_ref();
    for path in &args.paths {
        let resolved = resolve(tree, path, !args.long).with_context(|| format!("cannot look up {}", path.display()))?;
        let Some(node) = resolved.node else { bail!("{} does not exist in {}", path.display(), args.image) };
        let listing = Listing { tree, args, report };
        let attr = tree.attr(node)?;
        match attr.kind {
            Kind::Directory => listing.directory(node, &resolved.path)?,
            _ => listing.print(node, &attr, &resolved.path, resolved.path.as_os_str())?,
        }
    }
    Ok(())
}

struct Listing<'a> {
    tree: &'a dyn Tree,
    args: &'a LsArgs,
    report: Report,
}

impl Listing<'_> {
    /// Prints a directory, and with `-R` everything below it, each directory before what is in it. The walk keeps its
    /// own stack: an image may be as deep as it likes.
    fn directory(&self, top: NodeId, top_path: &Path) -> anyhow::Result<()> {
        let mut stack = vec![(top, top_path.to_owned(), 0)];
        while let Some((directory, path, depth)) = stack.pop() {
            if depth > MAX_DEPTH {
                bail!("{} is nested too deep; the image is damaged", top_path.display());
            }
            let mut below = Vec::new();
            for entry in self.tree.entries(directory)? {
                let entry_path = path.join(&entry.name);
                let attr = self.tree.attr(entry.node)?;
                let shown = if self.args.recursive { entry_path.as_os_str() } else { &entry.name };
                self.print(entry.node, &attr, &entry_path, shown)?;
                if self.args.recursive && entry.kind == Kind::Directory {
                    below.push((entry.node, entry_path, depth + 1));
                }
            }
            stack.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn print(&self, node: NodeId, attr: &Attr, path: &Path, shown: &OsStr) -> anyhow::Result<()> {
        if !self.args.long && !self.args.json {
            self.report.bytes(shown.as_bytes())?;
            return Ok(self.report.bytes(b"\n")?);
        }
        let line = self.line(node, attr, path)?;
        if self.args.json {
            return Ok(self.report.line(serde_json::to_string(&line)?)?);
        }
        let head = format!("{} {:>3} {:>5} {:>5} {:>10} ", line.mode, line.links, line.uid, line.gid, line.size);
        self.report.bytes(head.as_bytes())?;
        self.report.bytes(format!("{:.16} ", utc(line.mtime)).as_bytes())?;
        self.report.bytes(shown.as_bytes())?;
        let target = line.target.map(|target| format!(" -> {target}")).unwrap_or_default();
        Ok(self.report.line(target)?)
    }

    fn line(&self, node: NodeId, attr: &Attr, path: &Path) -> anyhow::Result<Line> {
        let target = match attr.kind {
            Kind::Symlink => Some(self.tree.read_link(node)?.to_string_lossy().into_owned()),
            _ => None,
        };
        Ok(Line {
            path: PathBuf::from(path).display().to_string(),
            kind: kind_name(attr.kind),
            mode: mode_text(attr),
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            links: attr.nlink,
            mtime: attr.mtime.seconds,
            target,
        })
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::File => "file",
        Kind::Symlink => "symlink",
        Kind::BlockDevice => "block device",
        Kind::CharDevice => "character device",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

/// `drwxr-xr-x`, as `ls` writes it.
fn mode_text(attr: &Attr) -> String {
    let kind = match attr.kind {
        Kind::Directory => 'd',
        Kind::File => '-',
        Kind::Symlink => 'l',
        Kind::BlockDevice => 'b',
        Kind::CharDevice => 'c',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = attr.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (attr.mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}
