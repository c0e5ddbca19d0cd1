//! Options that decide how much of the host's files a run sees.

use clap::Args;

// What a run sees of the host's devices, home and temporary directories.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Isolation")]
pub struct ContainFlags {
    /// Have few devices, and an empty home, /tmp and /var/tmp, which are forgotten
    #[arg(short = 'c', long)]
    pub contain: bool,
    /// Besides --contain, hide the host's processes, IPC objects and environment
    #[arg(short = 'C', long)]
    pub containall: bool,
    /// Be as close to Docker as possible: --containall --no-init --no-umask --no-eval --writable-tmpfs
    #[arg(long)]
    pub compat: bool,
    /// Use 0022 as umask, and not the caller's
    #[arg(long)]
    pub no_umask: bool,
    /// Keep what is written to the directories of --contain and --scratch in this directory of the host
    #[arg(short = 'W', long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Have empty directories at these places, which are forgotten: DIR, several separated by commas
    #[arg(short = 'S', long, value_name = "DIR", value_delimiter = ',')]
    pub scratch: Vec<String>,
    /// Use these name servers inside: addresses separated by commas
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Option<String>,
}
