//! `siphon cat`: file contents of an image, without mounting it.

use crate::args::CatArgs;
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_image::path::resolve;

/// How much is read at once: several squashfs blocks.
const PIECE_BYTES: usize = 1 << 20;

/// Prints the files one after another.
///
/// # Errors
/// If the image cannot be opened, or a path is missing or no file.
pub fn cat(args: &CatArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let tree = super::open_tree(&args.image, common, report)?;
    let tree = tree.as_ref();
    let mut piece = vec![0; PIECE_BYTES];
    for path in &args.paths {
        let context = || format!("cannot read {} in {}", path.display(), args.image);
        let Some(node) = resolve(tree, path, true).with_context(context)?.node else {
            bail!("{} does not exist in {}", path.display(), args.image)
        };
        let mut offset = 0;
        loop {
            let read = tree.read(node, offset, &mut piece).with_context(context)?;
            if read == 0 {
                break;
            }
            report.bytes(&piece[..read])?;
            offset += read as u64;
        }
    }
    Ok(())
}
