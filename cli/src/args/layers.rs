//! Arguments of `overlay`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

// `overlay`.
#[derive(Debug, Subcommand)]
pub enum OverlayVerb {
    /// Make an ext3 image for --overlay, or add an overlay partition to a SIF image for --writable
    Create(OverlayCreateArgs),
}

// `overlay create`.
#[derive(Debug, Args)]
pub struct OverlayCreateArgs {
    /// How large it is, in MiB; at least 64
    #[arg(short, long, value_name = "MIB", default_value_t = 64)]
    pub size: u64,
    /// Take room on the disk only for what is written
    #[arg(short = 'S', long)]
    pub sparse: bool,
    /// Make this directory in it
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    pub create_dir: Vec<PathBuf>,
    /// Have it belong to root, for runs with --fakeroot
    #[arg(short, long)]
    pub fakeroot: bool,
    /// The image to make, or a SIF image
    pub image: PathBuf,
}
