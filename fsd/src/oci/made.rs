//! An index of a layer that has none, made in one pass over it while it is fetched.
//!
//! What is fetched goes into the cache of chunks on its way, so that nothing is fetched twice. The layer is held against its
//! digest by a thread of its own, since decompressing it is what takes the time. What it decompresses to follows from that.

use super::LayerError;
use super::kept::Kept;
use super::layer::{Form, GZIP, Indexed, SEEKABLE, SEEKABLE_ENTRIES, TAR, gzip};
use crate::stream::InOrder;
use base16ct::lower::encode_string as hex;
use sha2::{Digest as _, Sha256};
use siphon_image::oci::lazy::gzip::Indexer;
use siphon_image::oci::lazy::tar::Scanner;
use siphon_image::oci::lazy::{saved, seekable, sha256};
use siphon_image::oci::{Descriptor, Digest};
use siphon_image::read_at::{FileAt, ReadAt};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

/// What is decompressed at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// Buffers that wait to be hashed, which is faster than what else is done with them.
const HASHED_BEHIND: usize = 16;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Makes an index of `layer`, and keeps it.
///
/// # Errors
/// If the layer cannot be fetched, is another one or no archive, or the cache directory cannot be written to. What was fetched
/// of one that is not what it should be is forgotten.
pub(super) fn make(kept: &Kept, layer: &Descriptor, bytes: Arc<dyn ReadAt>) -> Result<Indexed, LayerError> {
    make_once(kept, layer, bytes.clone()).inspect_err(|error| {
        if matches!(error, LayerError::Digest { .. } | LayerError::Format(_)) {
            bytes.discard(0..bytes.len());
        }
    })
}

fn make_once(kept: &Kept, layer: &Descriptor, bytes: Arc<dyn ReadAt>) -> Result<Indexed, LayerError> {
    let digest = layer.digest().as_ref();
    let mut stream = InOrder::new(bytes);
    let mut head = [0; 4];
    let length = fill(&mut stream, &mut head)?;
    let head = &head[..length];
    let pass = Pass { head, stream, expected: layer.digest() };
    if head.starts_with(&GZIP_MAGIC) {
        let mut indexer = Indexer::default().without_digests();
        pass.each(|bytes| Ok(indexer.push(bytes)?))?;
        let made = indexer.finish()?;
        let file = kept.make_index(digest, GZIP, |file| buffered(file, |out| saved::write(&made, out)))?;
        return gzip(file);
    }
    if head.starts_with(&ZSTD_MAGIC) {
        return make_seekable(kept, digest, pass);
    }
    let mut scanner = Scanner::default();
    pass.each(|bytes| Ok(scanner.push(bytes)?))?;
    let entries = scanner.finish()?;
    kept.make_index(digest, TAR, |file| buffered(file, |out| saved::write_entries(&entries, out)))?;
    Ok(Indexed { entries, form: Form::Tar })
}

/// A zstd layer as a rule is one frame, which can only be read from its start on: it is written anew.
fn make_seekable(kept: &Kept, digest: &str, pass: Pass<'_>) -> Result<Indexed, LayerError> {
    let mut made = None;
    let file = kept.make_index(digest, SEEKABLE, |file| {
        let mut recoder = seekable::Recoder::new(BufWriter::new(file))?;
        pass.each(|bytes| Ok(recoder.push(bytes)?)).map_err(std::io::Error::other)?;
        let (out, entries, _) = recoder.finish()?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        made = Some(entries);
        Ok(())
    })?;
    let entries = made.expect("the index was made");
    kept.make_index(digest, SEEKABLE_ENTRIES, |file| buffered(file, |out| saved::write_entries(&entries, out)))?;
    // It was written to, and is only read from now on.
    Ok(Indexed { entries, form: Form::Seekable(Arc::new(FileAt::new(file)?)) })
}

/// A layer that is read once.
struct Pass<'a> {
    /// Its first bytes, which were looked at.
    head: &'a [u8],
    /// The rest.
    stream: InOrder,
    expected: &'a Digest,
}

impl Pass<'_> {
    /// Hands all bytes to `take`, and holds them against the digest.
    fn each(mut self, mut take: impl FnMut(&[u8]) -> Result<(), LayerError>) -> Result<(), LayerError> {
        let (to_hash, to_be_hashed) = sync_channel::<Arc<Vec<u8>>>(HASHED_BEHIND);
        let first = Arc::new(self.head.to_vec());
        let found = std::thread::scope(|scope| -> Result<[u8; 32], LayerError> {
            let hashing = scope.spawn(move || {
                let mut hash = Sha256::new();
                to_be_hashed.iter().for_each(|bytes| hash.update(&*bytes));
                hash.finalize().into()
            });
            let mut next = Some(first);
            while let Some(bytes) = next {
                // It ends only with the channel.
                let _ = to_hash.send(bytes.clone());
                take(&bytes)?;
                next = self.read()?;
            }
            drop(to_hash);
            Ok(hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        check(&found, self.expected)
    }

    /// The next bytes; `None` at the end.
    fn read(&mut self) -> std::io::Result<Option<Arc<Vec<u8>>>> {
        let mut bytes = vec![0; BUFFER_BYTES];
        let length = self.stream.read(&mut bytes)?;
        bytes.truncate(length);
        Ok((length > 0).then(|| Arc::new(bytes)))
    }
}

fn buffered(file: &File, write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut out = BufWriter::new(file);
    write(&mut out)?;
    out.flush()
}

/// Fills `buf` as far as there are bytes.
fn fill(stream: &mut impl Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match stream.read(&mut buf[done..])? {
            0 => break,
            length => done += length,
        }
    }
    Ok(done)
}

/// Holds a SHA-256 against a digest.
fn check(found: &[u8; 32], expected: &Digest) -> Result<(), LayerError> {
    let Some(expected) = sha256(expected.as_ref()) else {
        return Err(LayerError::Algorithm(expected.to_string()));
    };
    if *found == expected {
        return Ok(());
    }
    Err(LayerError::Digest { found: format!("sha256:{}", hex(found)) })
}
