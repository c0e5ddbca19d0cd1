//! Arguments of `instance`.

use super::RunFlags;
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

// `instance`.
#[derive(Debug, Subcommand)]
pub enum InstanceVerb {
    /// Start an instance: the image's startscript, in the background
    Start(InstanceStartArgs),
    /// Start an instance that executes the image's runscript
    Run(InstanceStartArgs),
    /// List the instances that live
    List(InstanceListArgs),
    /// Stop instances
    Stop(InstanceStopArgs),
    /// Show what an instance uses of processors, memory and disks
    Stats(InstanceStatsArgs),
}

// `instance start` and `instance run`: everything from the image on is theirs.
#[derive(Debug, Args)]
#[command(override_usage = "siphon instance start [OPTIONS] <IMAGE> <NAME> [ARGS]...")]
pub struct InstanceStartArgs {
    /// How to run
    #[command(flatten)]
    pub flags: RunFlags,
    /// Write the id of the instance's first process into this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Boot the image's own init; refused
    #[arg(long, hide = true)]
    pub boot: bool,
    /// An image, the name to give the instance, then arguments of its script
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "NAME"])]
    pub image_name_and_args: Vec<OsString>,
}

// `instance list`.
#[derive(Debug, Args)]
pub struct InstanceListArgs {
    /// Instances of this user; only for root
    #[arg(short, long)]
    pub user: Option<String>,
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
    /// Where standard output and standard error go
    #[arg(short, long)]
    pub logs: bool,
    /// All instances; siphon has none that others would leave out
    #[arg(short, long)]
    pub all: bool,
    /// Only those with such a name: *, ? and [a-z] stand for other characters
    #[arg(default_value = "*")]
    pub name: String,
}

// `instance stop`.
#[derive(Debug, Args)]
pub struct InstanceStopArgs {
    /// Instances of this user; only for root
    #[arg(short, long)]
    pub user: Option<String>,
    /// All instances
    #[arg(short, long)]
    pub all: bool,
    /// Kill at once
    #[arg(short = 'F', long)]
    pub force: bool,
    /// The signal to send: TERM, SIGTERM or 15, for instance; SIGINT if not given
    #[arg(short, long)]
    pub signal: Option<String>,
    /// Kill what has not ended after so many seconds
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub timeout: u64,
    /// The instance: *, ? and [a-z] stand for other characters
    #[arg(required_unless_present = "all")]
    pub name: Option<String>,
}

// `instance stats`.
#[derive(Debug, Args)]
pub struct InstanceStatsArgs {
    /// The instance is this user's; only for root
    #[arg(short, long)]
    pub user: Option<String>,
    /// As JSON, once
    #[arg(short, long)]
    pub json: bool,
    /// Once, and not every second until the instance ends
    #[arg(long)]
    pub no_stream: bool,
    /// The instance
    pub name: String,
}
