//! Options of singularity and apptainer that have little or no effect here: see [`crate::settings`] for which are taken
//! and which are refused.

use crate::args::RegistryFlags;
use clap::Args;

// Options that are known for scripts to go on working, or to be told what to use instead.
#[derive(Debug, Clone, Default, Args)]
pub struct OtherFlags {
    /// Run in a user namespace, as siphon does for everyone but root anyway
    #[arg(short = 'u', long, hide = true)]
    pub userns: bool,
    /// Unpack the image first; without effect
    #[arg(long, hide = true)]
    pub unsquash: bool,
    /// Share the mount with other runs, as siphon always does
    #[arg(long, hide = true)]
    pub sharens: bool,
    /// Limit the time of the image's environment files; without effect
    #[arg(long, value_name = "TIME", hide = true)]
    pub runscript_timeout: Option<String>,
    /// Where to unpack; without effect, as nothing is unpacked
    #[arg(long, value_name = "DIR", hide = true)]
    pub tmpdir: Option<String>,
    /// Make mount points in another way; without effect
    #[arg(long, hide = true)]
    pub underlay: bool,
    /// Keep nothing of remote images
    #[arg(long, hide = true)]
    pub disable_cache: bool,
    /// Registries and libraries
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// Ask for the passphrase of an encrypted image
    #[arg(long, hide = true)]
    pub passphrase: bool,
    /// The key of an encrypted image
    #[arg(long, value_name = "FILE", hide = true)]
    pub pem_path: Option<String>,
    /// Give the container capabilities
    #[arg(long, value_name = "LIST", hide = true)]
    pub add_caps: Option<String>,
    /// Take capabilities away from root's container
    #[arg(long, value_name = "LIST", hide = true)]
    pub drop_caps: Option<String>,
    /// Keep root's privileges
    #[arg(long, hide = true)]
    pub keep_privs: bool,
    /// Take all privileges away from root's container
    #[arg(long, hide = true)]
    pub no_privs: bool,
    /// Let setuid programs of the image count
    #[arg(long, hide = true)]
    pub allow_setuid: bool,
    /// Security modules and ids
    #[arg(long, value_name = "SPEC", hide = true)]
    pub security: Vec<String>,
    /// Libraries of the host to see inside
    #[arg(long, value_name = "LIST", hide = true)]
    pub containlibs: Vec<String>,
    /// A FUSE program to mount
    #[arg(long, value_name = "SPEC", hide = true)]
    pub fusemount: Vec<String>,
    /// Start under a checkpointing program
    #[arg(long, value_name = "NAME", hide = true)]
    pub dmtcp_launch: Option<String>,
    /// Go on from a checkpoint
    #[arg(long, value_name = "NAME", hide = true)]
    pub dmtcp_restart: Option<String>,
    /// Limits from a file
    #[arg(long, value_name = "FILE", hide = true)]
    pub apply_cgroups: Option<String>,
    /// Weight of block devices
    #[arg(long, value_name = "N", hide = true)]
    pub blkio_weight: Option<String>,
    /// Weight of one block device
    #[arg(long, value_name = "DEVICE:N", hide = true)]
    pub blkio_weight_device: Vec<String>,
    /// Share of processor time
    #[arg(long, value_name = "N", hide = true)]
    pub cpu_shares: Option<String>,
    /// Number of processors
    #[arg(long, value_name = "N", hide = true)]
    pub cpus: Option<String>,
    /// Which processors
    #[arg(long, value_name = "LIST", hide = true)]
    pub cpuset_cpus: Option<String>,
    /// Which memory nodes
    #[arg(long, value_name = "LIST", hide = true)]
    pub cpuset_mems: Option<String>,
    /// Most memory
    #[arg(long, value_name = "SIZE", hide = true)]
    pub memory: Option<String>,
    /// Memory that is kept
    #[arg(long, value_name = "SIZE", hide = true)]
    pub memory_reservation: Option<String>,
    /// Most memory and swap
    #[arg(long, value_name = "SIZE", hide = true)]
    pub memory_swap: Option<String>,
    /// Go on where memory ran out
    #[arg(long, hide = true)]
    pub oom_kill_disable: bool,
    /// Most processes
    #[arg(long, value_name = "N", hide = true)]
    pub pids_limit: Option<String>,
}
