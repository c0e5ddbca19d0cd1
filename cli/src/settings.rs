//! Flags and environment resolved to plain values.
//!
//! A variable is looked up as `SIPHON_X`, then `APPTAINER_X`, then `SINGULARITY_X`; an empty one counts as absent. The
//! command line wins, except that binds add up.

mod binds;
mod common;
mod contain;
mod environment;
mod gpu;
mod image_file;
mod limits;
mod mount_spec;
mod namespaces;
mod other;
mod overlays;
mod recipe;
mod registries;
mod registries_conf;
mod run;
mod size;
mod variables;
mod verbosity;

pub use crate::args::EngineArg;
pub use binds::{Bind, BindError, ImageBind};
pub use common::Common;
pub use contain::Contain;
pub use environment::Environment;
pub use gpu::GpuSettings;
pub use image_file::{Compression, ImageSettings};
pub use limits::{Limit, Written, of_file as limits_of_file};
pub use namespaces::{Namespaces, Processes};
pub use overlays::OverlaySpec;
pub use recipe::{NOTE_MOUNT_POINTS, RecipeSettings, is_own_variable};
pub use registries::{RegistrySettings, credentials_file};
pub use registries_conf::RegistriesConf;
#[cfg(test)]
pub use run::Home;
pub use run::{Action, Fakeroot, RunSettings, Writes};
pub use size::parse as parse_size;
pub use variables::Variables;
pub use verbosity::{Verbosity, verbosity};

/// Why settings make no sense.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A bind cannot be read.
    #[error("while parsing bind path")]
    Bind(#[from] BindError),
    /// `--env` without a value.
    #[error("{0:?} must be formatted as NAME=VALUE")]
    Env(String),
    /// `--home` without a path.
    #[error("home argument {0:?} must be SRC or SRC:DST with absolute DST")]
    Home(String),
    /// `--block-cache` or its variable with something else than a size.
    #[error("{name} is {size:?}, and must be a number of bytes from 2M on, alone or with K, M or G")]
    CacheSize {
        /// The flag or the variable.
        name: &'static str,
        /// What was given.
        size: String,
    },
    /// `SIPHON_CACHE_LIMIT` with something else than a size.
    #[error("SIPHON_CACHE_LIMIT is {0:?}, and must be a number of bytes, alone or with K, M or G")]
    CacheLimit(String),
    /// `SIPHON_LAYER_ENGINE` with something else than an engine.
    #[error("SIPHON_LAYER_ENGINE is {0:?}, and must be auto, kernel or fuse")]
    Engine(String),
    /// `--writable-tmpfs-size` or its variable with something else than a size.
    #[error("--writable-tmpfs-size {0:?} must be a number of bytes, alone or with K, M or G")]
    MemorySize(String),
    /// `--overlay` beside `--writable`.
    #[error("cannot use --overlay in conjunction with --writable")]
    OverlayWithWritable,
    /// `--compression` with something else than a compressor that squashfs has.
    #[error(
        "the compression is {0:?}, and must be zstd, gzip, lz4, xz, lzo or none; zstd:1 to zstd:22, gzip:1 to gzip:9 and \
             xz:0 to xz:9 have a level"
    )]
    Compression(String),
    /// `SOURCE_DATE_EPOCH` with something else than a time.
    #[error("SOURCE_DATE_EPOCH is {0:?}, and must be a number of seconds since 1970")]
    SourceDateEpoch(String),
    /// A place for a scratch directory that is not absolute.
    #[error("scratch directory {0:?} must be an absolute path")]
    Scratch(String),
    /// A name server that is none.
    #[error("dns ip {0} is not a valid IP address")]
    NameServer(String),
    /// A host name that the kernel does not take.
    #[error("the host name {0:?} is not of 1 to 64 bytes")]
    Hostname(String),
    /// A value that is no limit.
    #[error("{option} does not take {value:?}")]
    Limit {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// An option that siphon does not have.
    #[error("{option} is not supported; {instead}")]
    Unsupported {
        /// The option as given.
        option: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// `--section` with something else than a section.
    #[error("--section has no {0:?}: it takes all, none, setup, post, files, environment, test and labels")]
    Section(String),
    /// Options of mksquashfs that cannot be followed.
    #[error(
        "--mksquashfs-args {0:?} cannot be followed: -comp takes gzip, zstd, xz, lz4 or lzo, and a level is a number that it has"
    )]
    MksquashfsArgs(String),
    /// The image's name is no text.
    #[error("the image argument is not valid UTF-8")]
    ImageName,
}

impl SettingsError {
    /// Whether the command line itself is wrong, and not what it asks for: apptainer's exit codes tell the two apart.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Env(_))
    }
}
