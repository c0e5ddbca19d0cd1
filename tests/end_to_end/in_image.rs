use crate::support::environment::{Finished, TestEnvironment};

/// Runs a line of the container's shell in the SIF, with options before the image.
pub(super) fn exec(environment: &TestEnvironment, options: &[&str], line: &str) -> Finished {
    environment.siphon(&[&["exec"], options, &[environment.images().sif(), "sh", "-c", line]].concat()).run()
}

/// What such a line prints, when it succeeds.
pub(super) fn printed(environment: &TestEnvironment, options: &[&str], line: &str) -> String {
    let finished = exec(environment, options, line);
    assert_eq!(finished.code, 0, "{finished}");
    finished.stdout.trim_end().to_owned()
}
