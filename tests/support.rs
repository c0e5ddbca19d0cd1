//! What the end-to-end tests stand on: an environment per test, small real images, a web server.

pub(crate) mod driver;
pub(crate) mod environment;
pub(crate) mod image;
pub(crate) mod server;

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
