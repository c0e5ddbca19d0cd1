//! What the end-to-end tests stand on: an environment per test, small real images, a web server.

pub(crate) mod driver;
pub(crate) mod environment;
pub(crate) mod image;
pub(crate) mod listener;
pub(crate) mod registry;
pub(crate) mod server;
pub(crate) mod stalling;

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Says why a test does not run here. Where `CI` is set that is a failure, so that nothing is skipped unseen.
#[expect(clippy::print_stderr, reason = "the test report is where a skip has to be seen")]
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
    eprintln!("skipped: {reason}");
}

/// Whether the tests run as root, and so can mount with the kernel and switch to other accounts.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What is made for the tests that run at one time, and is gone with the last of them: a static itself is never dropped.
pub(crate) struct WhileUsed<T>(Mutex<Weak<T>>);

impl<T> WhileUsed<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    /// The value that others use, or else a new one.
    pub(crate) fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let made = Arc::new(make());
            *shared = Arc::downgrade(&made);
            made
        })
    }
}
