//! Copies stored content of a base image, in the kernel where both are files.
//!
//! Nearly always all of it is taken over, at the offsets where it was. So it is copied from the front on while it is still
//! found out what is ([`ahead`]), and what lies where it should then is not copied again.

use super::carry::Piece;
use super::{Error, Image, Progress};
use crate::read_at::ReadAt;
use rustix::fs::copy_file_range;
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Bytes that the kernel is asked for at once: ^C is looked at in between.
pub(super) const KERNEL_BYTES: u64 = 32 << 20;
/// Bytes that are handed through memory at once.
const BUFFER_BYTES: u64 = 1 << 20;
/// Filesystems share blocks between files only where both offsets are multiples of this; some want more, and copy then.
const SHARED_ALIGNMENT_BYTES: u64 = 4096;

/// Has the kernel copy `content` of `base` to the same offsets in `image`, and returns how much of it that did.
pub(super) fn portion(base: &dyn ReadAt, content: Range<u64>, image: Image<'_>) -> u64 {
    let progress = Progress::default();
    let Some((file, offset)) = base.file_at(content.start) else { return 0 };
    let _met_again_by_who_packs =
        in_kernel(file, offset, &Piece { to: content.start, from: content }, image, &progress);
    progress.bytes_written.into_inner()
}

/// Copies `content` of `base` to the same offsets in `image`, as far as that comes in the kernel while `meanwhile` runs.
/// Returns where what was copied ends, and what `meanwhile` returned. What fails is met again by who needs it.
pub(super) fn ahead<T>(
    base: &dyn ReadAt,
    content: Range<u64>,
    image: Image<'_>,
    meanwhile: impl FnOnce() -> T,
) -> (u64, T) {
    let (start, until) = (content.start, Progress::default());
    let piece = Piece { to: start, from: content };
    let done = std::thread::scope(|scope| {
        if let Some((file, offset)) = base.file_at(start) {
            let (piece, until) = (&piece, &until);
            scope.spawn(move || in_kernel(file, offset, piece, image, until));
        }
        let done = meanwhile();
        until.stop();
        done
    });
    (start + until.bytes_written.into_inner(), done)
}

/// Copies `pieces` of `base` to their places in `image`.
pub(super) fn copy(base: &dyn ReadAt, pieces: &[Piece], image: Image<'_>, progress: &Progress) -> Result<(), Error> {
    for piece in pieces {
        let whole = base.file_at(piece.from.start);
        let mut copied = match whole {
            Some((file, offset)) => in_kernel(file, offset, piece, image, progress)?,
            None => 0,
        };
        while copied < piece.from.end - piece.from.start {
            copied +=
                through_memory(base, piece.from.start + copied..piece.from.end, piece.to + copied, image, progress)?;
        }
    }
    Ok(())
}

/// Has the kernel copy, which shares the blocks where the filesystem can, and returns how far it came: not to the end
/// where it cannot copy between these files.
fn in_kernel(file: &File, offset: u64, piece: &Piece, image: Image<'_>, progress: &Progress) -> Result<u64, Error> {
    let mut from = offset;
    let mut to = image.start_bytes + piece.to;
    let end = offset + (piece.from.end - piece.from.start);
    while from < end {
        progress.check()?;
        // Up to the first border, so that the rest begins at one.
        let to_border = from.next_multiple_of(SHARED_ALIGNMENT_BYTES) - from;
        let most = if to_border > 0 { to_border } else { KERNEL_BYTES };
        let length = usize::try_from(most.min(end - from)).expect("a request is at most 32 MiB");
        match copy_file_range(file, Some(&mut from), image.out, Some(&mut to), length) {
            // Before the end: the base was cut off, which reading it will tell.
            Ok(0) => break,
            Ok(copied) => count(progress, copied as u64),
            Err(Errno::INTR) => {}
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::IO)) => {
                return Err(Error::Output(error.into()));
            }
            Err(_) => break,
        }
    }
    Ok(from - offset)
}

/// Copies the beginning of `from`, and returns how much that was.
fn through_memory(
    base: &dyn ReadAt,
    from: Range<u64>,
    to: u64,
    image: Image<'_>,
    progress: &Progress,
) -> Result<u64, Error> {
    progress.check()?;
    let length = (from.end - from.start).min(BUFFER_BYTES);
    let mut buffer = vec![0; usize::try_from(length).expect("a buffer is at most 1 MiB")];
    base.read_stream_at(&mut buffer, from.start).map_err(Error::BaseRead)?;
    image.write_at(&buffer, to)?;
    count(progress, length);
    Ok(length)
}

/// Counts what was copied.
pub(super) fn count(progress: &Progress, bytes: u64) {
    progress.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    progress.bytes_written.fetch_add(bytes, Ordering::Relaxed);
}
