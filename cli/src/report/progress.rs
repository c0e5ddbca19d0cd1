//! A progress bar with bytes, rate and time left.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that is taken off the screen when it is dropped.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new(what: &'static str, total_bytes: u64, visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template(
            "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left",
        )
        .expect("the template is a constant and valid");
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target).with_style(style.progress_chars("=> "));
        bar.set_prefix(what);
        Self(bar)
    }

    /// Sets how many bytes are done, and of how many.
    pub fn set(&self, done_bytes: u64, total_bytes: u64) {
        self.0.set_length(total_bytes);
        self.0.set_position(done_bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
