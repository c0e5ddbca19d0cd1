//! Whole commands against the built binary: what a user types, and what must come of it.
//!
//! Every test has an environment of its own, whose end asserts that no process, mount or file stayed behind. Root runs
//! siphon as the account `siphon-test`, which `tests/setup` makes; any other user runs it as itself.

#![expect(clippy::unwrap_used, reason = "a test ends where it is surprised")]

mod support;

mod end_to_end {
    /// Recipes over base systems that programs of the host make.
    mod agents;
    /// Parts of an image that run by a name of their own.
    mod apps;
    /// Sandboxes and what is built from them.
    mod build;
    /// Options of builds from recipes.
    mod build_options;
    /// What is kept of remote images.
    mod cache;
    /// Commits that copy what did not change.
    mod commit;
    /// Directories and devices in place of the host's.
    mod contain;
    /// One daemon per image: joined, replaced, gone.
    mod daemon;
    /// What a sandbox changes, and putting it back.
    mod diff;
    /// What the machine has and lacks.
    mod doctor;
    /// What goes wrong, and what is said about it.
    mod errors;
    /// Running programs: environment, mounts, signals, terminals.
    mod exec;
    /// Images that are ext3 file systems.
    mod ext_image;
    /// Being root inside.
    mod fakeroot;
    /// Drivers of GPUs, and devices by CDI.
    mod gpu;
    /// Recipes that mean harm.
    mod hostile_recipes;
    /// Files out of other images.
    mod image_binds;
    /// Lines of the container's shell, for the tests of the other modules.
    mod in_image;
    /// OCI images that are run where they are.
    mod in_registry;
    /// Looking into an image without mounting it.
    mod inspect;
    /// Containers in the background.
    mod instance;
    /// What a container does not share with the host.
    mod isolation;
    /// Processes killed at any moment.
    mod kill;
    /// Who merges an image and what is written to it.
    mod layer;
    /// Limits of what a run may use.
    mod limits;
    /// Manual pages and completions.
    mod manual;
    /// Mounts in the host's tree.
    mod mount;
    /// Containers within containers.
    mod nested;
    /// Images made of layers.
    mod oci;
    /// Layers over an image, and what makes them.
    mod overlay;
    /// Pulls that come to no good end.
    mod pull;
    /// Image files sent to registries as images of layers.
    mod push;
    /// Images and sandboxes from definition files.
    mod recipes;
    /// Images in registries and libraries: fetched, sent and run.
    mod registry;
    /// Images behind a web server.
    mod remote;
    /// The objects of a SIF.
    mod sif;
    /// What a program finds when it starts: descriptors and mounts.
    mod surroundings;
    /// The recipes that newcomers learn by.
    mod tutorial;
    /// Variables, and options that have no effect.
    mod variables;
}
