//! Arguments of `exec`, `shell` and `run`.

use super::{DaemonFlags, GpuFlags};
use clap::Args;
use std::ffi::OsString;

/// `exec`: everything from the image on belongs to the container.
#[derive(Debug, Args)]
#[command(override_usage = "siphon exec [OPTIONS] <IMAGE> <COMMAND> [ARGS]...")]
pub struct ExecArgs {
    /// How to run
    #[command(flatten)]
    pub flags: RunFlags,
    /// An image (SIF, squashfs, sandbox directory or http(s) URL), then the command and its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "COMMAND"])]
    pub image_and_command: Vec<OsString>,
}

/// `shell`.
#[derive(Debug, Args)]
#[command(override_usage = "siphon shell [OPTIONS] <IMAGE> [ARGS]...")]
pub struct ShellArgs {
    /// How to run
    #[command(flatten)]
    pub flags: RunFlags,
    /// The shell to run inside, instead of /bin/bash or /bin/sh
    #[arg(short = 's', long)]
    pub shell: Option<OsString>,
    /// An image, then arguments of the shell
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "ARGS"])]
    pub image_and_args: Vec<OsString>,
}

/// `run`.
#[derive(Debug, Args)]
#[command(override_usage = "siphon run [OPTIONS] <IMAGE> [ARGS]...")]
pub struct RunArgs {
    /// How to run
    #[command(flatten)]
    pub flags: RunFlags,
    /// An image, then arguments of its runscript
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "ARGS"])]
    pub image_and_args: Vec<OsString>,
}

/// Options that `exec`, `shell` and `run` share.
#[derive(Debug, Clone, Default, Args)]
pub struct RunFlags {
    /// Bind a path of the host into the container: SRC, SRC:DST or SRC:DST:ro, several separated by commas
    ///
    /// A colon or comma that belongs to a path is written with a backslash before it. DST is made if the image does
    /// not have it.
    #[arg(short = 'B', long, value_name = "SPEC", help_heading = "Mounts")]
    pub bind: Vec<String>,
    /// Use another home directory: SRC, or SRC:DST for another name inside
    #[arg(short = 'H', long, value_name = "SPEC", help_heading = "Mounts")]
    pub home: Option<String>,
    /// Do not mount the home directory
    #[arg(long, help_heading = "Mounts")]
    pub no_home: bool,
    /// Leave out default mounts: proc, sys, dev, home, tmp, cwd, bind-paths, or /etc/hosts, /etc/localtime
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Mounts")]
    pub no_mount: Vec<String>,
    /// Start in this directory of the container
    #[arg(long, visible_alias = "pwd", value_name = "DIR", help_heading = "Mounts")]
    pub cwd: Option<String>,
    /// Write into the sandbox; changes stay
    #[arg(short = 'w', long, help_heading = "Writing")]
    pub writable: bool,
    /// Allow writes, and forget them at the end
    #[arg(long, help_heading = "Writing")]
    pub writable_tmpfs: bool,
    /// Do not pass the host's environment on
    #[arg(short = 'e', long, help_heading = "Environment")]
    pub cleanenv: bool,
    /// Set variables in the container: NAME=VALUE, several separated by commas
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Environment")]
    pub env: Vec<String>,
    /// Do not let the shell evaluate the values of --env
    #[arg(long, help_heading = "Environment")]
    pub no_eval: bool,
    /// GPUs
    #[command(flatten)]
    pub gpu: GpuFlags,
    /// How the image is served
    #[command(flatten)]
    pub daemon: DaemonFlags,
}
