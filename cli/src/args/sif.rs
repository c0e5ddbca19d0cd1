//! Arguments of `sif`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Subcommands of `sif`.
#[derive(Debug, Subcommand)]
pub enum SifVerb {
    /// List the objects
    List {
        /// The image file
        image: PathBuf,
    },
    /// Print the header
    Header {
        /// The image file
        image: PathBuf,
    },
    /// Print all that is known of one object
    Info(SifObjectArgs),
    /// Write the bytes of one object to stdout
    Dump(SifObjectArgs),
}

/// `sif info` and `sif dump`.
#[derive(Debug, Args)]
pub struct SifObjectArgs {
    /// The number of the object, as `sif list` has it
    pub id: u32,
    /// The image file
    pub image: PathBuf,
}
