//! Options that make the host's GPUs usable inside.

use clap::Args;
use std::path::PathBuf;

// What of the host's GPUs a container sees.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "GPU")]
pub struct GpuFlags {
    /// Make the host's NVIDIA driver usable inside
    #[arg(long)]
    pub nv: bool,
    /// Make the host's AMD ROCm libraries usable inside
    #[arg(long)]
    pub rocm: bool,
    /// The same as --nv; nvidia-container-cli is not used
    #[arg(long)]
    pub nvccli: bool,
    /// With --nv or --rocm, bring the 32-bit libraries along too
    #[arg(long)]
    pub compat32: bool,
    /// Bring the device nodes of Intel Gaudi accelerators into a minimal /dev
    #[arg(long)]
    pub intel_hpu: bool,
    /// Add devices as their CDI specifications say: VENDOR/CLASS=NAME, such as nvidia.com/gpu=all
    #[arg(long = "device", value_name = "DEVICE", value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Look for CDI specifications in these directories instead of /etc/cdi and /var/run/cdi
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    pub cdi_dirs: Vec<PathBuf>,
    /// Do without the NVIDIA driver, whatever the environment says
    #[arg(long, hide = true)]
    pub no_nv: bool,
    /// Do without ROCm, whatever the environment says
    #[arg(long, hide = true)]
    pub no_rocm: bool,
}
