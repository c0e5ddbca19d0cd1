//! Arguments of `doctor`.

use clap::Args;

// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// All that is found of the NVIDIA driver, and what is not
    #[arg(long)]
    pub nv: bool,
    /// All that is found of AMD's ROCm, and what is not
    #[arg(long)]
    pub rocm: bool,
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
}
