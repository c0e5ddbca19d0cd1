//! Arguments of the commands that look at and change layers.

use clap::{Args, Subcommand};
use std::path::PathBuf;

// `diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
A line has a letter, the bytes of a file, and a path: A added, C changed, D deleted, M only its metadata. Times count in \
whole seconds, and those of directories not at all. The last line says how much it is in all.")]
pub struct DiffArgs {
    /// One JSON object for each change and line
    #[arg(short, long)]
    pub json: bool,
    /// A sandbox; or with a second one the old image: SIF, squashfs, sandbox, directory or http(s) URL
    #[arg(value_name = "SANDBOX|OLD")]
    pub old: String,
    /// The new image
    pub new: Option<String>,
}

// Subcommands of `layer`.
#[derive(Debug, Subcommand)]
pub enum LayerVerb {
    /// Put single paths of a sandbox back to what its image has
    Reset(LayerResetArgs),
}

// `layer reset`.
#[derive(Debug, Args)]
pub struct LayerResetArgs {
    /// Paths in the sandbox, with all that is below them
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The sandbox
    pub sandbox: String,
}
