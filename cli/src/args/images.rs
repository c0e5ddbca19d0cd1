//! Arguments of the commands that make images and look into them.

use super::{DaemonFlags, RecipeFlags, RegistryFlags};
use clap::Args;
use std::path::PathBuf;

// `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Make a writable directory over the image instead of an image file; takes milliseconds
    #[arg(short, long)]
    pub sandbox: bool,
    /// How the image file is made
    #[command(flatten)]
    pub image: ImageFlags,
    /// Take the changes in this directory into the image: a layer, as `--overlay` of a run leaves it
    #[arg(long, value_name = "DIR", conflicts_with = "sandbox")]
    pub overlay: Option<PathBuf>,
    /// How a definition file is read and built
    #[command(flatten)]
    pub recipe: RecipeFlags,
    /// Take the image as it is, without a note of what it is made of
    #[arg(long, hide = true)]
    pub as_it_is: bool,
    /// Read the sandbox's place from the input, once it is whole
    #[arg(long, hide = true, requires = "as_it_is")]
    pub when_told: bool,
    /// Who we are towards registries, and how they are spoken to
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// What to make: an image file, SIF or by the endings .sqfs and .squashfs bare squashfs; or with --sandbox a directory
    pub target: PathBuf,
    /// What to make it from: a definition file, an image, a sandbox, a directory, an http(s), oras:// or library:// URL, or an
    /// OCI image: docker://NAME, docker-daemon:NAME, oci:DIRECTORY, oci-archive:FILE, docker-archive:FILE, the latter with
    /// :NAME behind if they hold several
    #[arg(required_unless_present = "check")]
    pub source: Option<String>,
}

// Options of the commands that make image files.
#[derive(Debug, Clone, Default, Args)]
pub struct ImageFlags {
    /// Replace the target if it exists
    #[arg(short = 'F', long)]
    pub force: bool,
    /// Compress everything anew with zstd, gzip, lz4, xz, lzo or none; zstd, gzip and xz take a :LEVEL
    ///
    /// Without it what did not change is copied as it is stored in the image below, and the rest is compressed as that is.
    #[arg(long, value_name = "COMPRESSOR[:LEVEL]")]
    pub compression: Option<String>,
    /// Leave stored content of the image below out that no file uses any more, if it is more than this share
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100), default_value_t = 3)]
    pub compact: u8,
}

// `commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// How the image file is made
    #[command(flatten)]
    pub image: ImageFlags,
    /// The sandbox whose image and changes become one
    pub sandbox: String,
    /// The image file to make: SIF, or by the endings .sqfs and .squashfs bare squashfs
    pub target: PathBuf,
}

// `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Lay this over the image and keep changes in it: a directory, or an ext3 image; with :ro, or a squashfs, it is only
    /// read
    ///
    /// As for a run. What root mounts writable is a disk like any other: for all users, with their owners, setuid bits and
    /// device nodes.
    #[arg(short, long, value_name = "PATH[:ro]")]
    pub overlay: Vec<String>,
    /// How the image is served
    #[command(flatten)]
    pub daemon: DaemonFlags,
    /// The image: SIF, squashfs, sandbox, directory or http(s) URL
    pub image: String,
    /// An existing directory
    #[arg(value_name = "MOUNTPOINT")]
    pub directory: PathBuf,
}

// `umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The directory that was given to `mount`
    pub directory: PathBuf,
}

// `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// One line for each file with mode, owner, size, time and link target
    #[arg(short, long)]
    pub long: bool,
    /// Directories with all that is below them
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// One JSON object for each file and line
    #[arg(short, long)]
    pub json: bool,
    /// The image
    pub image: String,
    /// Paths in it
    #[arg(default_value = "/")]
    pub paths: Vec<PathBuf>,
}

// `cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The image
    pub image: String,
    /// Paths in it
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
}

// `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The labels; the default
    #[arg(short, long)]
    pub labels: bool,
    /// The definition file
    #[arg(short, long)]
    pub deffile: bool,
    /// The runscript
    #[arg(short, long)]
    pub runscript: bool,
    /// The startscript
    #[arg(short, long)]
    pub startscript: bool,
    /// The test script
    #[arg(short, long)]
    pub test: bool,
    /// The environment
    #[arg(short, long)]
    pub environment: bool,
    /// The help text
    #[arg(short = 'H', long)]
    pub helpfile: bool,
    /// Names of the SCIF apps
    #[arg(long)]
    pub list_apps: bool,
    /// What this SCIF app says of itself, instead of the image
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
    /// What the OCI image that this one was made from said: entry point, command, environment, labels
    #[arg(long)]
    pub oci_config: bool,
    /// Everything, as JSON
    #[arg(long)]
    pub all: bool,
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
    /// The image
    pub image: String,
}

// `run-help`.
#[derive(Debug, Args)]
pub struct RunHelpArgs {
    /// The help of this app of the image (SCIF)
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
    /// The image
    pub image: String,
}

// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
    /// As metrics in the text format of Prometheus
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
}
