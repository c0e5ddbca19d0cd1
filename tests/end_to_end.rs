//! Whole commands against the built binary: what a user types, and what must come of it.
//!
//! Every test has an environment of its own, whose end asserts that no process, mount or file stayed behind. Root runs
//! siphon as the account `siphon-test`, which `tests/setup` makes; any other user runs it as itself.

#![expect(clippy::unwrap_used, reason = "a test ends where it is surprised")]

mod support;

mod end_to_end {
    /// Sandboxes and what is built from them.
    mod build;
    /// One daemon per image: joined, replaced, gone.
    mod daemon;
    /// What the machine has and lacks.
    mod doctor;
    /// What goes wrong, and what is said about it.
    mod errors;
    /// Running programs: environment, mounts, signals, terminals.
    mod exec;
    /// Drivers of GPUs, and devices by CDI.
    mod gpu;
    /// Looking into an image without mounting it.
    mod inspect;
    /// Manual pages and completions.
    mod manual;
    /// Mounts in the host's tree.
    mod mount;
    /// Images behind a web server.
    mod remote;
}
