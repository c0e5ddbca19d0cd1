//! A packing that begins before its layer is made: meanwhile it copies what will be taken over of the base.
//!
//! ```text
//! build     before %post          -> starts the packing
//! packing                            a file without a name, and the content of the base in it
//! build     all sections have run -> the path of the layer, as a line
//! packing                            the rest, as any other
//! ```
//!
//! Who is told nothing, because the build has failed or was killed, ends and leaves nothing behind. For this the place of the
//! content has to be known before what lies in front of it is: over a large base there is room for that.

use super::publish::Draft;
use super::{FLUSH_INTERVAL, Told, base, is_bare};
use crate::settings::ImageSettings;
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use siphon_fsd::locator::Opened;
use siphon_image::squashfs::writer::{Copied, copy_base};
use std::ffi::OsStr;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Instant;

/// Bases from this length on have room in front of what is taken over of them.
const LARGE_BASE_BYTES: u64 = 256 << 20;
/// That room, from the beginning of the file: as much as leaves the superblock in the first 64 KiB, which is what is fetched
/// first of an image elsewhere. Where it is too little, the content is copied a second time.
const ROOM_BYTES: u64 = 60 << 10;
/// How often it is looked whether the user wants an end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// No path is longer.
const MAX_PATH_BYTES: u64 = 4096;

/// An image that was begun.
pub(super) struct Begun {
    pub(super) draft: Draft,
    /// Where the squashfs is expected to begin.
    pub(super) start_bytes: u64,
    pub(super) copied: Copied,
}

/// Where the partition of a SIF over this base begins at the earliest.
pub(super) fn partition_start(opened: &Opened) -> u64 {
    if opened.image_bytes >= LARGE_BASE_BYTES { ROOM_BYTES } else { 0 }
}

/// Begins `target` with the base of the sandbox `opened`, until the layer is told.
///
/// # Errors
/// If no file can be made. [`Told`] if the build ends before it has told.
pub(super) fn copy_until_told(opened: &mut Opened, target: &Path, settings: &ImageSettings) -> anyhow::Result<Begun> {
    let draft = Draft::beside(target)?;
    let start_bytes = if is_bare(target) { 0 } else { partition_start(opened) };
    let mut flushed = Instant::now();
    let mut goes_on = || {
        if flushed.elapsed() > FLUSH_INTERVAL {
            let _told_by_the_last_one = draft.file().sync_data();
            flushed = Instant::now();
        }
        !draft.is_interrupted() && !is_told(&Timespec::default())
    };
    let copied = match base(opened, settings).filter(|_| start_bytes > 0 || is_bare(target)) {
        Some(base) => copy_base(base, draft.file(), start_bytes, &mut goes_on),
        None => Copied::default(),
    };
    let _told_by_the_last_one = draft.file().sync_data();
    while !is_told(&LOOK) && !draft.is_interrupted() {}
    let mut line = Vec::new();
    if !draft.is_interrupted() {
        io::stdin().lock().take(MAX_PATH_BYTES + 1).read_until(b'\n', &mut line)?;
    }
    // Why the build has ended is said by the build.
    let layer = line.strip_suffix(b"\n").ok_or(Told)?;
    opened.upper_dir = Some(OsStr::from_bytes(layer).into());
    Ok(Begun { draft, start_bytes, copied })
}

/// Whether the input has something, or has ended, within this time.
fn is_told(within: &Timespec) -> bool {
    let input = io::stdin();
    let mut polled = [PollFd::new(&input, PollFlags::IN)];
    matches!(poll(&mut polled, Some(within)), Ok(ready) if ready > 0)
}

/// The builder's end of a packing that has begun. Unless it is told, it ends with this.
#[derive(Debug)]
pub(super) struct Packing {
    child: Child,
    /// Gone once all is told.
    input: Option<ChildStdin>,
}

impl Packing {
    /// Starts it: `command` is the packing.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn begin(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).spawn().context("cannot run siphon itself")?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    /// Tells it where the layer is. The process is then to be waited for.
    pub(super) fn tell(&mut self, layer: &Path) -> &mut Child {
        if let Some(mut input) = self.input.take() {
            // Where it has ended already, its status says so.
            let _ = input.write_all(&[layer.as_os_str().as_bytes(), b"\n"].concat());
        }
        &mut self.child
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        // At the end of its input it ends, and takes away what it has made.
        self.input = None;
        let _it_is_gone = self.child.wait();
    }
}
