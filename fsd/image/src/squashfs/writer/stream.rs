//! An image whose content arrives before its tree is known: out of a stream that can be read once.
//!
//! [`write()`] has the caller send the content of one file after the other, in the order in which it comes, and hand over
//! the tree when all is there. Blocks go through the same pipeline as those of [`super::write()`], so that equal content is
//! stored once and the bytes do not depend on the number of threads. Sizes of files to come are not known, so that every
//! block is digested.

use super::compress::Codec;
use super::content::{Packer, Tail};
use super::pipeline::{Blocks, Data, Source, write_data};
use super::scan::{self, MAX_FILE_BLOCKS, Scan};
use super::{Error, Image, Options, Progress, Summary, carry, check_block_size, finish};
use crate::squashfs::format::SUPERBLOCK_BYTES;
use crate::tree::{Kind, NodeId, Tree};
use std::fs::File;

pub use super::content::Chunk;

/// Content that is in the image already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentId(usize);

/// A tree whose files have content that was streamed.
pub trait Streamed: Tree {
    /// The content of the file `node`; `None` only if it is empty.
    fn content(&self, node: NodeId) -> Option<ContentId>;
}

/// Where content is sent to.
pub struct Contents<'a> {
    packer: Packer<'a>,
    max_file_bytes: u64,
    tails: Vec<Tail>,
    sizes: Vec<u64>,
}

impl std::fmt::Debug for Contents<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents").field("files", &self.sizes.len()).finish_non_exhaustive()
    }
}

impl Contents<'_> {
    /// Takes the content of one file: `size` bytes, of which `next` gives as many as it is asked for.
    ///
    /// # Errors
    /// Those of `next`, and [`Error::FileTooLarge`] or [`Error::Cancelled`].
    pub fn add<E: From<Error>>(
        &mut self,
        size: u64,
        next: impl FnMut(usize) -> Result<Chunk, E>,
    ) -> Result<ContentId, E> {
        if size > self.max_file_bytes {
            return Err(Error::FileTooLarge { path: "a file of the stream".into(), bytes: size }.into());
        }
        let id = self.sizes.len();
        let tail = self.packer.file(id, size, true, next)?;
        self.tails.push(tail);
        self.sizes.push(size);
        Ok(ContentId(id))
    }
}

/// Writes a squashfs image as [`super::write()`] does, of the content that `fill` sends and the tree that it returns.
///
/// # Errors
/// Those of `fill`, and see [`Error`].
pub fn write<T: Streamed, E: From<Error>>(
    fill: impl FnOnce(&mut Contents<'_>) -> Result<T, E>,
    out: &File,
    start_bytes: u64,
    options: &Options,
    progress: &Progress,
) -> Result<(Summary, T), E> {
    check_block_size(options)?;
    let codec = Codec::new(options)?;
    let codec_options = codec.options_block();
    let image = Image { out, start_bytes };
    image.write_at(&codec_options, SUPERBLOCK_BYTES as u64)?;
    let data_start = (SUPERBLOCK_BYTES + codec_options.len()) as u64;
    let source = Source { carried: carry::Carried { end: data_start, ..carry::Carried::default() }, base: None };
    let mut filled = None;
    let mut sizes = Vec::new();
    let data = write_data(source, image, codec, options, progress, |_, feed| {
        let packer = Packer::new(options.block_size, 0, feed, progress);
        let max_file_bytes = MAX_FILE_BLOCKS * u64::from(options.block_size);
        let mut contents = Contents { packer, max_file_bytes, tails: Vec::new(), sizes: Vec::new() };
        let result = fill(&mut contents);
        let is_whole = result.is_ok();
        filled = Some(result);
        if !is_whole {
            return Err(Error::Cancelled);
        }
        contents.packer.finish()?;
        sizes = contents.sizes;
        Ok(contents.tails)
    });
    let (data, tree) = match (data, filled) {
        (Ok(data), Some(tree)) => (data, tree?),
        // What the writing end was stopped by is told, unless it was this end that stopped it.
        (Err(Error::Cancelled), Some(Err(error))) => return Err(error),
        (Err(error), _) => return Err(error.into()),
        (Ok(_), None) => return Err(Error::Cancelled.into()),
    };
    let scan = scan::scan(&tree, options, progress)?;
    let data = by_node(&tree, &scan, data, &sizes)?;
    let summary = finish(&tree, &scan, &data, image, (codec, &codec_options), options)?;
    Ok((summary, tree))
}

/// The content under the nodes of the tree instead of the order in which it came.
fn by_node(tree: &dyn Streamed, scan: &Scan, streamed: Data, sizes: &[u64]) -> Result<Data, Error> {
    let nodes = scan.nodes.len();
    let mut blocks: Vec<Blocks> = std::iter::repeat_with(Blocks::default).take(nodes).collect();
    let mut tails = vec![Tail::NONE; nodes];
    for (index, node) in scan.nodes.iter().enumerate() {
        if node.attr.kind != Kind::File || node.attr.size == 0 {
            continue;
        }
        let content = tree.content(node.id).map(|ContentId(content)| content);
        let content = content.filter(|content| sizes.get(*content) == Some(&node.attr.size));
        let content = content.ok_or_else(|| Error::NoContent(scan.path(index)))?;
        blocks[index] = streamed.blocks.get(content).cloned().unwrap_or_default();
        tails[index] = streamed.tails[content];
    }
    Ok(Data { blocks, tails, ..streamed })
}
