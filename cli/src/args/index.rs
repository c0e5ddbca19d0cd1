//! Arguments of `index`.

use clap::Args;

// `index`.
#[derive(Debug, Args)]
pub struct IndexArgs {
    /// Send the indexes to the registry, with what runs on this machine have read, for all other machines
    #[arg(long)]
    pub push: bool,
    /// The image: docker://HOST/PATH:TAG
    pub image: String,
}
