//! Options that give a run namespaces of its own.

use clap::Args;

// What a run does not share with the host beyond its mounts.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Isolation")]
pub struct NamespaceFlags {
    /// Hide the host's processes: the container has process ids of its own, and all of it ends with the program
    #[arg(short = 'p', long)]
    pub pid: bool,
    /// Share the host's processes even where another option would hide them
    #[arg(long)]
    pub no_pid: bool,
    /// Run the program itself as process 1, without an init above it
    #[arg(long)]
    pub no_init: bool,
    /// Hide the host's shared memory segments, semaphores and message queues
    #[arg(short = 'i', long)]
    pub ipc: bool,
    /// Have a host name that can be changed
    #[arg(long)]
    pub uts: bool,
    /// Use this host name inside
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Have a network of its own; only with --network none
    #[arg(short = 'n', long)]
    pub net: bool,
    /// The network to have: none is a loopback device alone, and the only one there is
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Arguments of network plugins; refused, as there are none
    #[arg(long, value_name = "ARGS", hide = true)]
    pub network_args: Vec<String>,
    /// Join a network namespace; refused
    #[arg(long, value_name = "PATH", hide = true)]
    pub netns_path: Option<String>,
}
