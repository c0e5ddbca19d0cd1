//! An object that has come completely is held against the digest of the whole, where that is known.
//!
//! Who reads some of an image file cannot tell whether the bytes are the right ones: its digest is of all of them. So once
//! the last chunk is here, a thread that gives way to all others reads it once from front to back. That it was found right
//! is written down beside the chunks. What is wrong is thrown away, and nothing more of it is handed out: what was is
//! wrong, too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use siphon_image::digest::Hash;

use super::Core;
use crate::cache::{CHUNK_BYTES, Found, Named, Object};
use crate::source::SourceError;

/// The run that fetched the last chunk goes first.
const PAUSE: Duration = Duration::from_secs(2);
/// The least priority that there is.
const NICE: i32 = 19;

/// What the bytes of an object have to be.
#[derive(Debug)]
pub(super) struct Check {
    /// `sha256:HEX` or `sha512:HEX`; `None` if it is not known.
    expected: Option<String>,
    /// Whether a thread is at it.
    is_running: AtomicBool,
    failure: OnceLock<Arc<SourceError>>,
}

/// How a check ended.
enum Outcome {
    Right,
    Wrong(Arc<SourceError>),
    /// Not all of it is here any more, or it is not wanted any more.
    Interrupted,
}

impl Check {
    /// Of the object `named`, whose validator is its digest if that is known.
    pub(super) fn of(named: &Named) -> Self {
        let is_digest = |text: &&String| Hash::like(text).is_some();
        let expected = Some(&named.description.validator).filter(is_digest).cloned();
        Self { expected, is_running: AtomicBool::new(false), failure: OnceLock::new() }
    }

    /// # Errors
    /// [`SourceError::Digest`] if the bytes were found to be others than they should be.
    pub(super) fn passed(&self) -> Result<(), Arc<SourceError>> {
        self.failure.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Reads all of `object`. `is_wanted` is asked now and then.
    fn run(&self, object: &Arc<Object>, is_wanted: impl Fn() -> bool) -> Outcome {
        let Some(expected) = &self.expected else { return Outcome::Right };
        if object.is_checked() {
            return Outcome::Right;
        }
        let Some(mut hash) = Hash::like(expected).filter(|_| object.is_complete()) else { return Outcome::Interrupted };
        let mut bytes = vec![0; CHUNK_BYTES];
        for chunk in 0..object.chunks() {
            let bytes = &mut bytes[..object.chunk_len(chunk)];
            match object.read(chunk, 0, bytes, || chunk..chunk + 1) {
                Ok(Found::Stored | Found::Fetched) if is_wanted() => hash.update(bytes),
                Ok(Found::Stored | Found::Fetched) => return Outcome::Interrupted,
                Ok(Found::Absent(_)) | Err(_) => {
                    object.misses(chunk);
                    return Outcome::Interrupted;
                }
            }
        }
        let found = hash.finish();
        if found == *expected {
            object.set_checked();
            return Outcome::Right;
        }
        let name = object.description().url.clone();
        let error = Arc::new(SourceError::Digest { name, expected: expected.clone(), found });
        // The first one stands.
        let error = self.failure.get_or_init(|| error).clone();
        object.throw_away();
        tracing::error!("{error}; what was cached of it is thrown away, and no more of it is read");
        Outcome::Wrong(error)
    }
}

impl Core {
    /// Has the object held against its digest on a thread of its own, if all of it is here now.
    pub(super) fn check_soon(self: &Arc<Self>) {
        let check = &self.check;
        let is_due =
            check.expected.is_some() && check.failure.get().is_none() && !check.is_running.load(Ordering::Relaxed);
        if !is_due || !self.object.is_complete() || self.object.is_checked() {
            return;
        }
        if check.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        let core = Arc::downgrade(self);
        let started = thread::Builder::new().name("check".to_owned()).spawn(move || run_apart(&core));
        if let Err(error) = started {
            tracing::debug!(%error, "cannot start the thread that checks what was fetched");
            check.is_running.store(false, Ordering::Release);
        }
    }

    /// Holds the object against its digest now, all of which has to be here.
    ///
    /// # Errors
    /// [`SourceError::Digest`].
    pub(super) fn check(&self) -> Result<(), Arc<SourceError>> {
        self.check.passed()?;
        match self.check.run(&self.object, || true) {
            Outcome::Right | Outcome::Interrupted => Ok(()),
            Outcome::Wrong(error) => Err(error),
        }
    }
}

fn run_apart(core: &Weak<Core>) {
    // Of this thread alone. Where it is refused, the check takes its turn like others.
    let _ = rustix::process::nice(NICE);
    thread::sleep(PAUSE);
    let Some(strong) = core.upgrade() else { return };
    // This thread's own is no sign of life.
    strong.check.run(&strong.object, || Arc::strong_count(&strong) > 1);
    strong.check.is_running.store(false, Ordering::Release);
}
